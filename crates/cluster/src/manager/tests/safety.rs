//! Leases and the log together, at random: nodes whose maps lag, whose clocks drift, that freeze,
//! leaders that don't know that they are deposed, proposals that come late and twice. Never do two
//! nodes both hold a lease and own the volume by their own maps.

use super::millis;
use crate::command::{Change, Command, Proposer};
use crate::manager::{Effect, Input, Manager};
use crate::map::tests::Small;
use crate::map::{Map, NodeState};
use gabion_types::{Incarnation, Instant, MapIndex, NodeId, Prng, VolumeId};
use std::collections::BTreeMap;

const NODES: u64 = 3;
/// Five minutes each. Within a thousand it caught each of: no term in `Expire`; no `Lead` before a
/// renewal; a renewal answered while the end is under way, while the node is silent, without a new
/// confirmation; a new leader that doesn't wait.
const SEEDS: u64 = 200;

/// What one node may be told.
#[derive(Clone, Debug)]
enum News {
    Input(Input),
    /// So much of the log is committed.
    Committed(usize),
    Renewed(u64),
    /// Time to renew, to want the volume, to propose again.
    Pulse,
}

/// One seed's world. Times are milliseconds of true time.
struct World {
    prng: Prng,
    now: u64,
    nodes: Vec<Peer>,
    log: Vec<Command>,
    /// Who really leads.
    leader: (u64, NodeId),
    volume: VolumeId,
    /// By time and order; to whom.
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    takeovers: u64,
    expired: u64,
}

#[derive(Clone, Debug)]
enum Event {
    News(usize, News),
    /// Comes to the log, if there is a way.
    Propose(Command),
    /// A question for the truth: does this node lead in that term?
    Confirm(usize, u64, u64),
    Elect,
}

struct Peer {
    id: NodeId,
    incarnation: Incarnation,
    manager: Manager,
    map: Map,
    applied: usize,
    /// Own clock: true time times this, in parts of 1000.
    speed: u64,
    frozen_until: u64,
    /// Its consensus hears nothing: neither entries nor who leads.
    deaf_until: u64,
    /// Its renewals get lost.
    mute_until: u64,
    believed: Option<NodeId>,
    term: u64,
    /// By its number: own time at which it was sent.
    sent: BTreeMap<u64, u64>,
    next: u64,
    until: u64,
    pending: BTreeMap<u64, (Option<u64>, Change)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let small = Small::with_volume(3, 2, 1);
        let mut prng = Prng::new(seed);
        let nodes = small.map.nodes().iter().map(|(id, entry)| Peer {
            id: *id,
            incarnation: entry.incarnation,
            manager: Manager::new(*id, entry.incarnation),
            map: small.map.clone(),
            applied: small.log.len(),
            speed: prng.between(960, 1040),
            frozen_until: 0,
            deaf_until: 0,
            mute_until: 0,
            believed: None,
            term: 0,
            sent: BTreeMap::new(),
            next: 1000,
            until: 0,
            pending: BTreeMap::new(),
        });
        let nodes: Vec<_> = nodes.collect();
        let mut world = Self {
            now: 100_000,
            nodes,
            volume: small.id(),
            log: small.log,
            leader: (0, NodeId::new(0)),
            queue: BTreeMap::new(),
            events: 0,
            takeovers: 0,
            expired: 0,
            prng,
        };
        world.later(0, Event::Elect);
        for node in 0..world.nodes.len() {
            world.later(1, Event::News(node, News::Pulse));
        }
        world
    }

    fn later(&mut self, delay: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now + delay, self.events), event);
    }

    /// Mostly quick, sometimes very slow.
    fn delay(&mut self) -> u64 {
        if self.prng.chance(1, 12) { self.prng.below(6000) } else { self.prng.between(1, 60) }
    }

    fn run(&mut self, until: u64) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > until {
                return;
            }
            self.now = at;
            self.on_event(event);
            self.check();
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Elect => self.elect(),
            Event::Propose(command) => {
                self.log.push(command);
                for node in 0..self.nodes.len() {
                    let delay = self.delay();
                    let news = News::Committed(self.log.len());
                    self.later(delay, Event::News(node, news));
                }
            }
            Event::Confirm(node, number, term) => {
                if self.leader == (term, self.nodes[node].id) {
                    let delay = self.delay();
                    let input = Input::LeaderConfirmed { number, term };
                    self.later(delay, Event::News(node, News::Input(input)));
                }
            }
            Event::News(node, news) => {
                let peer = &self.nodes[node];
                let deaf = match news {
                    News::Committed(_) | News::Input(Input::Leader { .. }) => peer.deaf_until,
                    News::Input(_) | News::Renewed(_) | News::Pulse => 0,
                };
                let away = peer.frozen_until.max(deaf);
                if away > self.now {
                    self.later(away - self.now, Event::News(node, news));
                } else {
                    self.on_news(node, news);
                }
            }
        }
    }

    fn elect(&mut self) {
        let place = usize::try_from(self.prng.below(NODES)).unwrap();
        let term = self.leader.0 + 1;
        let leader = self.nodes[place].id;
        self.leader = (term, leader);
        for node in 0..self.nodes.len() {
            let delay = self.delay();
            let input = Input::Leader { term, leader: Some(leader) };
            self.later(delay, Event::News(node, News::Input(input)));
        }
        for fault in 0..3 {
            let until = self.now + self.prng.below(9000);
            let node = usize::try_from(self.prng.below(NODES * 2)).unwrap();
            let Some(peer) = self.nodes.get_mut(node) else { continue };
            match fault {
                0 => peer.frozen_until = until,
                1 => peer.deaf_until = until + 3000,
                _ => peer.mute_until = until,
            }
        }
        let delay = self.prng.between(500, 15_000);
        self.later(delay, Event::Elect);
    }

    fn on_news(&mut self, node: usize, news: News) {
        match news {
            News::Input(Input::Leader { term, leader }) => {
                let peer = &mut self.nodes[node];
                if term < peer.term {
                    return;
                }
                (peer.term, peer.believed) = (term, leader);
                self.feed(node, Input::Leader { term, leader });
            }
            News::Input(input) => self.feed(node, input),
            News::Committed(length) => self.commit(node, length),
            News::Renewed(number) => {
                let peer = &mut self.nodes[node];
                if let Some(sent) = peer.sent.remove(&number) {
                    peer.until = peer.until.max(sent + 2700);
                }
            }
            News::Pulse => self.pulse(node),
        }
    }

    fn commit(&mut self, node: usize, length: usize) {
        while self.nodes[node].applied < length {
            let peer = &mut self.nodes[node];
            let command = self.log[peer.applied].clone();
            peer.applied += 1;
            let index = MapIndex::new(u64::try_from(peer.applied).unwrap());
            let applied = peer.map.apply(index, &command);
            let own = command.from.node == peer.id;
            let decided = if own { peer.pending.remove(&command.from.number) } else { None };
            self.feed(node, Input::Applied);
            if let Some((Some(key), _)) = decided {
                self.feed(node, Input::Proposed { key, outcome: applied.outcome });
            }
        }
    }

    /// Every 250 ms of true time: renew, propose again, want the volume.
    fn pulse(&mut self, node: usize) {
        self.later(250, Event::News(node, News::Pulse));
        self.feed(node, Input::Tick);
        let peer = &mut self.nodes[node];
        let own = peer.own_time(self.now);
        peer.next += 1;
        let number = peer.next;
        peer.sent.insert(number, own);
        let input =
            Input::Renew { node: peer.id, incarnation: peer.incarnation, number, term: peer.term };
        let to = peer.believed.and_then(|id| self.nodes.iter().position(|peer| peer.id == id));
        if let Some(to) = to.filter(|_| self.nodes[node].mute_until <= self.now) {
            let delay = self.delay();
            self.later(delay, Event::News(to, News::Input(input)));
        }
        for number in self.nodes[node].pending.keys().copied().collect::<Vec<_>>() {
            if self.prng.chance(1, 6) {
                self.send_proposal(node, number);
            }
        }
        let peer = &self.nodes[node];
        let entry = peer.map.volume(self.volume).unwrap();
        let wants = entry.owner.is_none()
            && peer.until > own
            && peer.map.node(peer.id).unwrap().state == NodeState::Alive
            && !peer.pending.values().any(|(_, c)| matches!(c, Change::TakeOver { .. }));
        if wants && self.prng.chance(1, 4) {
            let change = Change::TakeOver {
                volume: self.volume,
                epoch: entry.epoch,
                node: peer.id,
                incarnation: peer.incarnation,
            };
            self.propose(node, None, change);
        }
    }

    fn propose(&mut self, node: usize, key: Option<u64>, change: Change) {
        let peer = &mut self.nodes[node];
        peer.next += 1;
        let number = peer.next;
        peer.pending.insert(number, (key, change));
        self.send_proposal(node, number);
    }

    /// May be lost, slow or doubled.
    fn send_proposal(&mut self, node: usize, number: u64) {
        let peer = &self.nodes[node];
        let from = Proposer { node: peer.id, incarnation: peer.incarnation, number };
        let command = Command { from, change: peer.pending[&number].1.clone() };
        if self.prng.chance(5, 6) {
            let delay = self.delay();
            self.later(delay, Event::Propose(command));
        }
    }

    fn feed(&mut self, node: usize, input: Input) {
        let peer = &mut self.nodes[node];
        let now = Instant::ZERO + millis(peer.own_time(self.now));
        peer.manager.handle(now, &peer.map, input);
        while let Some(effect) = self.nodes[node].manager.next_effect() {
            match effect {
                Effect::Propose { key, change } => self.propose(node, Some(key), change),
                Effect::ConfirmLeader { number, term } => {
                    let delay = self.delay();
                    self.later(delay, Event::Confirm(node, number, term));
                }
                Effect::Renewed { node: to, number } => {
                    let to = self.nodes.iter().position(|peer| peer.id == to).unwrap();
                    let delay = self.delay();
                    self.later(delay, Event::News(to, News::Renewed(number)));
                }
                Effect::AdminDone { .. } | Effect::AskRelease { .. } => {}
            }
        }
    }

    // promise: one-owner
    fn check(&self) {
        let serves = |peer: &&Peer| {
            let owner = peer.map.volume(self.volume).and_then(|entry| entry.owner);
            owner == Some((peer.id, peer.incarnation)) && peer.until > peer.own_time(self.now)
        };
        let serving: Vec<_> = self.nodes.iter().filter(serves).map(|peer| peer.id).collect();
        assert!(serving.len() <= 1, "at {} ms: {serving:?}", self.now);
    }

    fn count(&mut self) {
        let mut map = Map::default();
        for (index, command) in self.log.iter().enumerate() {
            let index = MapIndex::new(u64::try_from(index).unwrap() + 1);
            let done = map.apply(index, command);
            let done = done.outcome == gabion_types::Outcome::Done && !done.repeat;
            self.takeovers += u64::from(done && matches!(command.change, Change::TakeOver { .. }));
            self.expired += u64::from(done && matches!(command.change, Change::Expire { .. }));
        }
    }
}

impl Peer {
    fn own_time(&self, now: u64) -> u64 {
        now * self.speed / 1000
    }
}

// rule: cluster/expire-in-its-term
// rule: cluster/revive-by-itself
// rule: cluster/renewed-after-confirmed
// rule: cluster/new-leader-waits-a-lease
#[test]
fn two_never_serve_at_once() {
    let (mut takeovers, mut expired) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run(100_000 + 300_000);
        world.count();
        takeovers += world.takeovers;
        expired += world.expired;
    }
    assert!(takeovers > 100 && expired > 200, "{takeovers} takeovers, {expired} leases ended");
}
