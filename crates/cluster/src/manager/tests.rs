//! The manager of node n1 in a small cluster; the test is the log.

mod admin;
mod drain;
mod lease;
mod level;
mod repair;
mod safety;
mod scrub;

use super::{Effect, Input, Manager};
use crate::command::{AdminReply, AdminRequest, Change};
use crate::map::tests::Small;
use gabion_types::{Duration, Instant, NodeId, Outcome};

const ME: u32 = 1;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

struct Rig {
    small: Small,
    manager: Manager,
    now: Instant,
    effects: Vec<Effect>,
    /// Proposals that the log has not taken yet.
    proposed: Vec<(u64, Change)>,
    numbers: u64,
}

impl Rig {
    /// Not leading.
    fn following(small: Small) -> Self {
        let incarnation = small.incarnation(ME);
        let manager = Manager::new(NodeId::new(ME), incarnation);
        let now = Instant::from_nanos(1_000_000_000);
        Self { small, manager, now, effects: Vec::new(), proposed: Vec::new(), numbers: 0 }
    }

    /// Leading in term 5, which is committed.
    fn new(small: Small) -> Self {
        let mut rig = Self::following(small);
        rig.lead(5);
        rig.commit();
        assert!(rig.manager.is_active());
        rig
    }

    fn lead(&mut self, term: u64) {
        self.handle(Input::Leader { term, leader: Some(NodeId::new(ME)) });
    }

    fn handle(&mut self, input: Input) {
        self.manager.handle(self.now, &self.small.map, input);
        while let Some(effect) = self.manager.next_effect() {
            if let Effect::Propose { key, change } = effect {
                self.proposed.push((key, change));
            } else {
                self.effects.push(effect);
            }
        }
        let deadline = self.manager.next_deadline();
        assert!(deadline.is_none_or(|deadline| deadline > self.now), "it would never sleep");
    }

    /// The log takes everything that was proposed; the number of entries.
    fn commit(&mut self) -> usize {
        let mut count = 0;
        while !self.proposed.is_empty() {
            let (key, change) = self.proposed.remove(0);
            let outcome = self.small.by(ME, change);
            self.handle(Input::Proposed { key, outcome });
            count += 1;
        }
        count
    }

    /// By another node, through the log.
    fn by(&mut self, node: u32, change: Change) -> Outcome {
        let outcome = self.small.by(node, change);
        self.handle(Input::Applied);
        outcome
    }

    /// Lets time pass, waking at every deadline.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(deadline) = self.manager.next_deadline().filter(|at| *at <= until) {
            self.now = deadline;
            self.handle(Input::Tick);
        }
        self.now = until;
        self.handle(Input::Tick);
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn renew(&mut self, node: u32, number: u64) {
        let incarnation = self.small.incarnation(node);
        let term = self.small.map.term();
        self.handle(Input::Renew { node: NodeId::new(node), incarnation, number, term });
    }

    /// Everybody renews and is answered.
    fn renew_all(&mut self) {
        for node in self.small.map.nodes().keys().copied().collect::<Vec<_>>() {
            self.renew(node.get(), self.now.nanos());
        }
        while let Some(Effect::ConfirmLeader { number, term }) =
            self.take().into_iter().find(|e| matches!(e, Effect::ConfirmLeader { .. }))
        {
            self.handle(Input::LeaderConfirmed { number, term });
        }
        self.take();
    }

    /// Lets time pass while all nodes but these go on renewing.
    fn live(&mut self, time: Duration, without: &[u32]) {
        let until = self.now + time;
        while self.now < until {
            for node in self.small.map.nodes().keys().copied().collect::<Vec<_>>() {
                if !without.contains(&node.get()) {
                    self.renew(node.get(), self.now.nanos());
                }
            }
            self.pass(millis(250));
            self.effects.retain(|effect| !matches!(effect, Effect::ConfirmLeader { .. }));
        }
    }

    fn ask(&mut self, request: AdminRequest) -> u64 {
        self.numbers += 1;
        self.handle(Input::Admin { number: self.numbers, request });
        self.numbers
    }

    /// The answer to a request, if it came.
    fn answer(&mut self, number: u64) -> Option<AdminReply> {
        let place = self.effects.iter().position(
            |effect| matches!(effect, Effect::AdminDone { number: of, .. } if *of == number),
        )?;
        let effect = self.effects.remove(place);
        if let Effect::AdminDone { reply, .. } = effect { Some(reply) } else { None }
    }
}
