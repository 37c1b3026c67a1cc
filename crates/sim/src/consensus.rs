//! Consensus as a linearizable log: what any correct implementation may do, and no more.
//!
//! An entry is committed when it reaches a leader that reaches a majority. Proposals may be lost or
//! come twice; each machine hears of the committed entries in order, sooner or later; who does not
//! reach the leader hears nothing. A deposed leader may believe in itself for a while.

use crate::net::Machine;
use crate::world::Spread;
use gabion_types::{Duration, Instant, Prng};

/// The world's word on who reaches whom, both ways, with running processes.
pub trait Reach {
    fn is_up(&self, machine: Machine) -> bool;
    fn reaches(&self, from: Machine, to: Machine) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsensusTimes {
    pub message: Spread,
    pub election: Spread,
    /// One proposal in so many is lost, and one in so many comes twice.
    pub lost_of: u64,
    pub twice_of: u64,
}

impl ConsensusTimes {
    pub const FAST: Self = Self {
        message: Spread::new(200, 3000).with_tail(400_000, 200),
        election: Spread::new(300_000, 2_000_000),
        lost_of: 200,
        twice_of: 200,
    };

    /// A proposal in five is lost, comes twice, or comes after seconds.
    pub const SLOW: Self = Self {
        message: Spread::new(5_000, 80_000).with_tail(4_000_000, 15),
        election: Spread::new(1_000_000, 5_000_000),
        lost_of: 15,
        twice_of: 15,
    };

    /// A network that works, and the elections of a new cluster.
    pub const CALM: Self = Self {
        message: Spread::new(300, 3000),
        election: Spread::new(1_000_000, 2_000_000),
        lost_of: u64::MAX,
        twice_of: u64::MAX,
    };
}

/// What becomes due; the world keeps it until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsensusEvent<C> {
    Proposed {
        from: Machine,
        entry: C,
    },
    Confirm {
        machine: Machine,
        number: u64,
        term: u64,
    },
    Confirmed {
        machine: Machine,
        life: u64,
        number: u64,
        term: u64,
    },
    /// Committed entries may have come in at a machine.
    Deliver {
        machine: Machine,
    },
    /// A machine believes something else of who leads.
    News {
        machine: Machine,
        life: u64,
        term: u64,
        leader: Option<Machine>,
    },
    /// Looks after the leader.
    Beat,
}

/// What a machine is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsensusTold<C> {
    /// Index: from 1.
    Committed {
        machine: Machine,
        index: u64,
        entry: C,
    },
    Leader {
        machine: Machine,
        term: u64,
        leader: Option<Machine>,
    },
    Confirmed {
        machine: Machine,
        number: u64,
        term: u64,
    },
}

const BEAT: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Consensus<C> {
    log: Vec<C>,
    members: Vec<Member>,
    leader: Option<Machine>,
    term: u64,
    /// Since when the leader is without a majority, or there is none: when that ends.
    vacant_until: Option<Instant>,
    times: ConsensusTimes,
    prng: Prng,
    due: Vec<(Instant, ConsensusEvent<C>)>,
    /// When somebody proposed something last, or something came in.
    busy_at: Instant,
    /// Proposals on their way.
    on_their_way: u64,
    pub elections: u64,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    voter: bool,
    /// Counts its starts: what was on its way to an earlier one is gone.
    life: u64,
    /// How many entries it was told of since its start, and how many it may be told of now.
    told: usize,
    ready: usize,
    believes: (u64, Option<Machine>),
}

impl<C: Clone> Consensus<C> {
    pub fn new(voters: &[bool], times: ConsensusTimes, prng: Prng) -> Self {
        let member = |voter: &bool| Member {
            voter: *voter,
            life: 0,
            told: 0,
            ready: 0,
            believes: (0, None),
        };
        Self {
            log: Vec::new(),
            members: voters.iter().map(member).collect(),
            leader: None,
            term: 0,
            vacant_until: None,
            times,
            prng,
            due: vec![(Instant::ZERO, ConsensusEvent::Beat)],
            busy_at: Instant::ZERO,
            on_their_way: 0,
            elections: 0,
        }
    }

    pub fn take_due(&mut self) -> Vec<(Instant, ConsensusEvent<C>)> {
        std::mem::take(&mut self.due)
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// What stands in the log before anybody proposes.
    pub fn seed_log(&mut self, entry: C) {
        self.log.push(entry);
    }

    pub fn log(&self) -> &[C] {
        &self.log
    }

    pub fn leader(&self) -> Option<Machine> {
        self.leader
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    pub fn propose(&mut self, now: Instant, from: Machine, entry: C) {
        self.busy_at = now;
        if self.prng.chance(1, self.times.lost_of) {
            return;
        }
        let copies = 1 + u64::from(self.prng.chance(1, self.times.twice_of));
        self.on_their_way += copies;
        for _ in 0..copies {
            let at = now + self.times.message.draw(&mut self.prng);
            self.due.push((at, ConsensusEvent::Proposed { from, entry: entry.clone() }));
        }
    }

    pub fn confirm(&mut self, now: Instant, machine: Machine, number: u64, term: u64) {
        let at = now + self.times.message.draw(&mut self.prng);
        self.due.push((at, ConsensusEvent::Confirm { machine, number, term }));
    }

    /// A process starts with `kept` entries of its own log applied; the rest comes.
    pub fn start(&mut self, now: Instant, machine: Machine, kept: usize) {
        let member = &mut self.members[machine];
        member.life += 1;
        member.told = kept;
        member.ready = member.ready.max(kept);
        member.believes = (0, None);
        self.due.push((now, ConsensusEvent::Deliver { machine }));
    }

    /// Nothing is on its way, and nobody has wanted anything for so long.
    pub fn is_quiet(&self, now: Instant, wait: Duration) -> bool {
        self.on_their_way == 0 && now.since(self.busy_at) >= wait
    }

    /// How many entries lie in a machine's own log.
    pub fn has(&self, machine: Machine) -> usize {
        self.members[machine].ready
    }

    /// It votes no more, and is not counted.
    pub fn remove(&mut self, machine: Machine) {
        self.members[machine].voter = false;
    }

    /// The leader steps down for no reason, and nobody is elected for so long at least.
    pub fn unseat(&mut self, now: Instant, least: Duration) {
        self.leader = None;
        let wait = self.times.election.draw(&mut self.prng).max(least);
        self.vacant_until = Some(now + wait);
    }

    pub fn due(
        &mut self,
        now: Instant,
        event: ConsensusEvent<C>,
        reach: &impl Reach,
    ) -> Vec<ConsensusTold<C>> {
        match event {
            ConsensusEvent::Proposed { from, entry } => self.on_proposed(now, from, entry, reach),
            ConsensusEvent::Confirm { machine, number, term } => {
                let leads = self.leader == Some(machine) && self.term == term;
                if leads && self.has_majority(machine, reach) {
                    let life = self.members[machine].life;
                    let at = now + self.times.message.draw(&mut self.prng);
                    let event = ConsensusEvent::Confirmed { machine, life, number, term };
                    self.due.push((at, event));
                }
            }
            ConsensusEvent::Confirmed { machine, life, number, term } => {
                if self.members[machine].life == life {
                    return vec![ConsensusTold::Confirmed { machine, number, term }];
                }
            }
            ConsensusEvent::Deliver { machine } => return self.on_deliver(machine, reach),
            ConsensusEvent::News { machine, life, term, leader } => {
                if self.members[machine].life == life {
                    return vec![ConsensusTold::Leader { machine, term, leader }];
                }
            }
            ConsensusEvent::Beat => self.on_beat(now, reach),
        }
        Vec::new()
    }

    fn on_proposed(&mut self, now: Instant, from: Machine, entry: C, reach: &impl Reach) {
        self.on_their_way -= 1;
        self.busy_at = now;
        let Some(leader) = self.leader else { return };
        let heard = from == leader || reach.reaches(from, leader);
        if heard && self.has_majority(leader, reach) {
            self.log.push(entry);
            self.spread(now, reach);
        }
    }

    /// The leader tells all that it reaches.
    fn spread(&mut self, now: Instant, reach: &impl Reach) {
        let Some(leader) = self.leader else { return };
        for machine in 0..self.members.len() {
            let reached = machine == leader || reach.reaches(leader, machine);
            let member = &mut self.members[machine];
            // One that was away when it was to be told is told anew.
            if reached && (member.ready < self.log.len() || member.told < member.ready) {
                member.ready = self.log.len();
                let at = now + self.times.message.draw(&mut self.prng);
                self.due.push((at, ConsensusEvent::Deliver { machine }));
            }
        }
    }

    fn on_deliver(&mut self, machine: Machine, reach: &impl Reach) -> Vec<ConsensusTold<C>> {
        if !reach.is_up(machine) {
            return Vec::new();
        }
        let member = &mut self.members[machine];
        let told = member.told..member.ready;
        member.told = member.ready;
        let committed = |at: usize| ConsensusTold::Committed {
            machine,
            index: at as u64 + 1,
            entry: self.log[at].clone(),
        };
        told.map(committed).collect()
    }

    fn on_beat(&mut self, now: Instant, reach: &impl Reach) {
        self.due.push((now + BEAT, ConsensusEvent::Beat));
        match (self.leader, self.vacant_until) {
            (Some(leader), _) if self.has_majority(leader, reach) => self.vacant_until = None,
            (_, None) => {
                let wait = self.times.election.draw(&mut self.prng);
                self.vacant_until = Some(now + wait);
            }
            (_, Some(until)) if now >= until => self.elect(now, reach),
            (_, Some(_)) => {}
        }
        self.spread(now, reach);
        self.tell_news(now, reach);
    }

    fn elect(&mut self, now: Instant, reach: &impl Reach) {
        let candidates: Vec<Machine> = (0..self.members.len())
            .filter(|machine| self.members[*machine].voter && self.has_majority(*machine, reach))
            .collect();
        if let Some(winner) = self.prng.pick(&candidates) {
            self.leader = Some(*winner);
            self.term += 1;
            self.elections += 1;
            self.vacant_until = None;
        } else {
            self.vacant_until = Some(now + self.times.election.draw(&mut self.prng));
        }
    }

    /// Who hears of the leader believes in it; who does not doubts after a while.
    fn tell_news(&mut self, now: Instant, reach: &impl Reach) {
        for machine in 0..self.members.len() {
            if !reach.is_up(machine) {
                continue;
            }
            let hears = |leader: &Machine| machine == *leader || reach.reaches(*leader, machine);
            let leader = self.leader.filter(hears);
            let news = (self.term.max(self.members[machine].believes.0), leader);
            let doubts = leader.is_none() && !self.prng.chance(1, 10);
            if self.members[machine].believes == news || doubts {
                continue;
            }
            self.members[machine].believes = news;
            let life = self.members[machine].life;
            let at = now + self.times.message.low_us_wait();
            let (term, leader) = news;
            self.due.push((at, ConsensusEvent::News { machine, life, term, leader }));
        }
    }

    fn has_majority(&self, leader: Machine, reach: &impl Reach) -> bool {
        if !reach.is_up(leader) {
            return false;
        }
        let voters = self.members.iter().filter(|member| member.voter).count();
        let heard = (0..self.members.len())
            .filter(|machine| self.members[*machine].voter)
            .filter(|machine| *machine == leader || reach.reaches(leader, *machine))
            .count();
        heard * 2 > voters
    }
}

impl Spread {
    fn low_us_wait(&self) -> Duration {
        Duration::from_micros(self.low_us)
    }
}

#[cfg(test)]
mod tests;
