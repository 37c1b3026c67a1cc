//! Proposals to the cluster map: numbered, proposed again until the log tells their outcome.

use gabion_cluster::{Change, Command, Proposer};
use gabion_types::{Duration, Incarnation, Instant, NodeId, Outcome, VolumeId};
use gabion_volume::ProposalNumber;
use std::collections::{BTreeMap, VecDeque};

/// Proposals without an outcome. The map remembers more outcomes than this of each incarnation, so
/// none is forgotten before it is known. More wait in line.
pub const IN_FLIGHT_MAX: usize = 64;

/// Who wants to know the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Register,
    /// Something that is looked at again from the map whatever came of it.
    Reconcile,
    TakeOver {
        volume: VolumeId,
    },
    Void {
        volume: VolumeId,
    },
    Owner {
        volume: VolumeId,
        instance: u64,
        number: ProposalNumber,
    },
    Manager {
        key: u64,
    },
}

#[derive(Clone, Debug)]
struct Pending {
    source: Source,
    change: Change,
    again: Instant,
}

#[derive(Debug)]
pub struct Proposals {
    me: NodeId,
    incarnation: Incarnation,
    again: Duration,
    next: u64,
    registered: bool,
    pending: BTreeMap<u64, Pending>,
    waiting: VecDeque<(Source, Change)>,
    out: VecDeque<Command>,
}

impl Proposals {
    pub fn new(me: NodeId, incarnation: Incarnation, again: Duration) -> Self {
        Self {
            me,
            incarnation,
            again,
            next: 1,
            registered: false,
            pending: BTreeMap::new(),
            waiting: VecDeque::new(),
            out: VecDeque::new(),
        }
    }

    pub fn next_command(&mut self) -> Option<Command> {
        self.out.pop_front()
    }

    pub fn is_pending(&self, source: Source) -> bool {
        self.pending.values().any(|pending| pending.source == source)
            || self.waiting.iter().any(|(waiting, _)| *waiting == source)
    }

    pub fn has_change(&self, change: &Change) -> bool {
        self.pending.values().any(|pending| pending.change == *change)
            || self.waiting.iter().any(|(_, waiting)| waiting == change)
    }

    /// Nothing but the registration is proposed before the map names this incarnation.
    pub fn set_registered(&mut self, now: Instant) {
        self.registered = true;
        self.fill(now);
    }

    pub fn propose(&mut self, now: Instant, source: Source, change: Change) {
        self.waiting.push_back((source, change));
        self.fill(now);
    }

    fn fill(&mut self, now: Instant) {
        while self.pending.len() < IN_FLIGHT_MAX {
            let ready =
                |(source, _): &(Source, Change)| self.registered || *source == Source::Register;
            let Some(at) = self.waiting.iter().position(ready) else {
                return;
            };
            let Some((source, change)) = self.waiting.remove(at) else {
                return;
            };
            let number = self.next;
            self.next += 1;
            self.out.push_back(self.command(number, change.clone()));
            self.pending.insert(number, Pending { source, change, again: now + self.again });
        }
    }

    fn command(&self, number: u64, change: Change) -> Command {
        let from = Proposer { node: self.me, incarnation: self.incarnation, number };
        Command { from, change }
    }

    /// The log's word on one of this incarnation's proposals; who wanted to know, the first time.
    pub fn decided(&mut self, now: Instant, from: Proposer) -> Option<Source> {
        if from.node != self.me || from.incarnation != self.incarnation {
            return None;
        }
        let pending = self.pending.remove(&from.number)?;
        self.fill(now);
        Some(pending.source)
    }

    /// After the map came whole: what of this was decided meanwhile.
    pub fn decided_in(
        &mut self,
        now: Instant,
        outcome_of: impl Fn(u64) -> Option<Outcome>,
    ) -> Vec<(Source, Outcome)> {
        let known: Vec<_> = self
            .pending
            .keys()
            .filter_map(|number| outcome_of(*number).map(|outcome| (*number, outcome)))
            .collect();
        let decided = known
            .into_iter()
            .filter_map(|(number, outcome)| {
                self.pending.remove(&number).map(|pending| (pending.source, outcome))
            })
            .collect();
        self.fill(now);
        decided
    }

    // rule: node/proposals-follow-the-leader
    /// Another node leads: what was proposed to the one before may be lost.
    pub fn leader_changed(&mut self, now: Instant) {
        self.propose_again(now, |_| true);
    }

    pub fn tick(&mut self, now: Instant) {
        self.propose_again(now, |pending| pending.again <= now);
    }

    fn propose_again(&mut self, now: Instant, which: impl Fn(&Pending) -> bool) {
        let late: Vec<_> = self
            .pending
            .iter_mut()
            .filter(|(_, pending)| which(pending))
            .map(|(number, pending)| {
                pending.again = now + self.again;
                (*number, pending.change.clone())
            })
            .collect();
        for (number, change) in late {
            self.out.push_back(self.command(number, change));
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.again).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(value: u32) -> Change {
        Change::SetSetting { name: "a".into(), value: value.to_string() }
    }

    // rule: node/proposals-follow-the-leader
    #[test]
    fn a_proposal_keeps_its_number_until_it_is_decided() {
        let mut proposals =
            Proposals::new(NodeId::new(1), Incarnation::new(5), Duration::from_millis(500));
        proposals.propose(Instant::ZERO, Source::Reconcile, setting(1));
        assert_eq!(proposals.next_command(), None, "not registered yet");
        proposals.propose(Instant::ZERO, Source::Register, setting(2));
        let register = proposals.next_command().unwrap();
        assert_eq!(register.from.number, 1);
        proposals.set_registered(Instant::ZERO);
        let first = proposals.next_command().unwrap();
        proposals.tick(Instant::ZERO + Duration::from_secs(1));
        let again: Vec<_> = std::iter::from_fn(|| proposals.next_command()).collect();
        assert_eq!(again, vec![register.clone(), first.clone()]);
        proposals.leader_changed(Instant::ZERO + Duration::from_secs(1));
        let again: Vec<_> = std::iter::from_fn(|| proposals.next_command()).collect();
        assert_eq!(again, vec![register.clone(), first.clone()], "at once");
        assert_eq!(proposals.decided(Instant::ZERO, first.from), Some(Source::Reconcile));
        assert_eq!(proposals.decided(Instant::ZERO, first.from), None);
        assert_eq!(proposals.decided(Instant::ZERO, register.from), Some(Source::Register));
        assert_eq!(proposals.next_deadline(), None);
    }

    #[test]
    fn more_than_the_bound_wait_in_line() {
        let mut proposals =
            Proposals::new(NodeId::new(1), Incarnation::new(5), Duration::from_millis(500));
        proposals.set_registered(Instant::ZERO);
        for value in 0..100 {
            proposals.propose(Instant::ZERO, Source::Reconcile, setting(value));
        }
        let sent: Vec<_> = std::iter::from_fn(|| proposals.next_command()).collect();
        assert_eq!(sent.len(), IN_FLIGHT_MAX);
        proposals.decided(Instant::ZERO, sent[0].from);
        assert!(proposals.next_command().is_some());
    }
}
