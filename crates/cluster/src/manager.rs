//! The manager: a part of every node, active where the node leads the consensus. It watches the
//! nodes' leases, finds owners for volumes that need repair, and carries out what operators ask.

mod admin;
mod admit;
mod drain;
mod lease;
mod level;
mod repair;
mod revive;
mod scrub;

use crate::command::{AdminError, AdminReply, AdminRequest, Change};
use crate::map::{Map, NodeState};
use admin::Admin;
use drain::Handover;
use gabion_types::{Duration, Incarnation, Instant, NodeId, Outcome, VolumeId};
use lease::Leases;
use level::Levelling;
use repair::Repair;
use revive::Revival;
use scrub::Schedule;
use std::collections::{BTreeMap, VecDeque};

/// Operators' requests that wait for a new leader's term.
const EARLY_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Who leads the consensus, as far as this node knows.
    Leader {
        term: u64,
        leader: Option<NodeId>,
    },
    /// A node renews its lease; this node's own renewals come in by the same door.
    Renew {
        node: NodeId,
        incarnation: Incarnation,
        number: u64,
        term: u64,
    },
    /// This node led in that term at a moment after `ConfirmLeader` was asked.
    LeaderConfirmed {
        number: u64,
        term: u64,
    },
    /// Entries were applied to the map (or a whole map was restored).
    Applied,
    /// What became of `Effect::Propose`; the map that is handed in has it already.
    Proposed {
        key: u64,
        outcome: Outcome,
    },
    /// An operator's request; answered by `AdminDone`, exactly once.
    Admin {
        number: u64,
        request: AdminRequest,
    },
    /// What the wall clock says now. Units: ms since 1970.
    WallClock {
        unix_ms: u64,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Into the log, tried until its outcome is known; answered by `Proposed`, exactly once.
    Propose {
        key: u64,
        change: Change,
    },
    ConfirmLeader {
        number: u64,
        term: u64,
    },
    /// To the node that renewed, with its number.
    Renewed {
        node: NodeId,
        number: u64,
    },
    AdminDone {
        number: u64,
        reply: AdminReply,
    },
    /// Ask the owner's node to let the volume go. `idle`: only if no guest is attached to it; else
    /// it drains, releases, and does not take it again for a second.
    AskRelease {
        node: NodeId,
        volume: VolumeId,
        idle: bool,
    },
}

/// See the crate's page. Every input comes with the map as it is by then.
#[derive(Clone, Debug)]
pub struct Manager {
    me: NodeId,
    incarnation: Incarnation,
    role: Role,
    /// It leads and the map has its term.
    active: bool,
    leases: Leases,
    revival: Revival,
    repair: Repair,
    schedule: Schedule,
    handover: Handover,
    levelling: Levelling,
    admin: Admin,
    /// Asked before this node's term stood in the map. Bounded by `EARLY_MAX`.
    early: VecDeque<(u64, AdminRequest)>,
    proposals: Proposals,
    effects: VecDeque<Effect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Following { leader: Option<NodeId> },
    Leading { term: u64 },
}

/// Proposals without an outcome. Bounded: one for each node, volume under repair and admin job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proposals {
    last: u64,
    pending: BTreeMap<u64, Purpose>,
    out: VecDeque<(u64, Change)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Lead { term: u64 },
    Expire { node: NodeId },
    Revive,
    Repair { volume: VolumeId },
    Scrub { volume: VolumeId },
    Level { volume: VolumeId },
    Admin { number: u64 },
}

impl Manager {
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        Self {
            me: node,
            incarnation,
            role: Role::Following { leader: None },
            active: false,
            leases: Leases::default(),
            revival: Revival::default(),
            repair: Repair::default(),
            schedule: Schedule::default(),
            handover: Handover::default(),
            levelling: Levelling::default(),
            admin: Admin::new(node),
            early: VecDeque::new(),
            proposals: Proposals::default(),
            effects: VecDeque::new(),
        }
    }

    /// This node leads, and the map says so: it renews and ends leases.
    pub fn is_active(&self) -> bool {
        self.active
    }

    pub fn handle(&mut self, now: Instant, map: &Map, input: Input) {
        match input {
            Input::Leader { term, leader } => self.on_leader(now, term, leader),
            Input::Renew { node, incarnation, number, term } => {
                if matches!(self.role, Role::Leading { term: own } if term <= own) {
                    self.leases.on_renew(now, map, &self.proposals, (node, incarnation), number);
                }
            }
            Input::LeaderConfirmed { number, term } => {
                if self.active_term(map) == Some(term) {
                    let answered = self.leases.on_confirmed(map, &self.proposals, number);
                    self.effects.extend(answered);
                }
            }
            Input::Proposed { key, outcome } => self.on_proposed(now, map, key, outcome),
            Input::Admin { number, request } => self.on_admin(number, request),
            Input::WallClock { unix_ms } => self.schedule.set_wall(now, unix_ms),
            Input::Applied | Input::Tick => {}
        }
        self.conclude(now, map);
    }

    /// A new leader may not have heard yet what was decided before it led: what it would refuse by that
    /// waits until its own term stands in the map, behind all of it.
    // rule: cluster/a-leader-answers-from-its-own-term-on
    fn on_admin(&mut self, number: u64, request: AdminRequest) {
        match self.role {
            Role::Leading { .. } if self.early.len() < EARLY_MAX => {
                self.early.push_back((number, request));
            }
            Role::Leading { .. } => {
                let leader = Some(self.me);
                self.admin.refuse(number, AdminError::NotLeader { leader });
            }
            Role::Following { leader } => {
                self.admin.refuse(number, AdminError::NotLeader { leader });
            }
        }
    }

    fn take_early(&mut self, now: Instant, map: &Map) {
        let ready = match self.role {
            Role::Leading { term } => map.term() >= term,
            Role::Following { .. } => true,
        };
        if !ready {
            return;
        }
        for (number, request) in std::mem::take(&mut self.early) {
            match self.role {
                Role::Leading { .. } => {
                    self.admin.on_request(now, map, &mut self.proposals, number, request);
                }
                Role::Following { leader } => {
                    self.admin.refuse(number, AdminError::NotLeader { leader });
                }
            }
        }
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let leading = earlier(self.leases.next_deadline(), self.repair.next_deadline());
        earlier(
            leading.filter(|_| self.active),
            earlier(self.revival.next_deadline(), self.admin.next_deadline()),
        )
    }

    fn active_term(&self, map: &Map) -> Option<u64> {
        match self.role {
            Role::Following { .. } => None,
            Role::Leading { term } => (map.term() == term).then_some(term),
        }
    }

    fn on_leader(&mut self, now: Instant, term: u64, leader: Option<NodeId>) {
        let role = if leader == Some(self.me) {
            Role::Leading { term }
        } else {
            Role::Following { leader }
        };
        if role != self.role {
            self.role = role;
            self.leases.begin();
            self.repair.begin(now);
            self.schedule.begin(now);
            self.levelling.begin(now);
        }
    }

    fn on_proposed(&mut self, now: Instant, map: &Map, key: u64, outcome: Outcome) {
        let Some(purpose) = self.proposals.pending.remove(&key) else { return };
        match purpose {
            Purpose::Lead { .. }
            | Purpose::Expire { .. }
            | Purpose::Scrub { .. }
            | Purpose::Level { .. } => {}
            Purpose::Revive => self.revival.on_proposed(now),
            Purpose::Repair { volume } => self.repair.on_proposed(now, volume),
            Purpose::Admin { number } => {
                self.admin.on_proposed(now, map, &mut self.proposals, number, outcome);
            }
        }
    }

    /// Draws the conclusions from what changed.
    fn conclude(&mut self, now: Instant, map: &Map) {
        self.announce(map);
        self.take_early(now, map);
        let silent = map.node(self.me).is_some_and(|node| {
            node.incarnation == self.incarnation && node.state == NodeState::Silent
        });
        if self.revival.is_due(now, silent) {
            let change = Change::Revive { node: self.me, incarnation: self.incarnation };
            self.proposals.propose(Purpose::Revive, change);
        }
        let term = self.active_term(map);
        self.active = term.is_some();
        if let Some(term) = term {
            self.leases.conclude(now, map, &mut self.proposals, term);
            self.effects.extend(self.leases.next_confirm(now, term));
            self.repair.conclude(now, map, &mut self.proposals);
            self.schedule.conclude(now, map, &mut self.proposals);
            self.levelling.conclude(now, map, &mut self.proposals);
            self.effects.extend(self.handover.next_asked(now, map));
        }
        self.admin.conclude(now, map, &mut self.proposals);
        self.effects.extend(self.admin.done.drain(..));
        let proposed = self.proposals.out.drain(..);
        self.effects.extend(proposed.map(|(key, change)| Effect::Propose { key, change }));
    }

    /// Before it renews any lease a new leader has its term committed: see `Change::Lead`.
    fn announce(&mut self, map: &Map) {
        let Role::Leading { term } = self.role else { return };
        let purpose = Purpose::Lead { term };
        let registered = map.is_registered(self.me, self.incarnation);
        if registered && map.term() < term && !self.proposals.is_pending(purpose) {
            self.proposals.propose(purpose, Change::Lead { term });
        }
    }
}

impl Proposals {
    pub(crate) fn propose(&mut self, purpose: Purpose, change: Change) {
        self.last += 1;
        self.pending.insert(self.last, purpose);
        self.out.push_back((self.last, change));
    }

    pub(crate) fn is_pending(&self, purpose: Purpose) -> bool {
        self.pending.values().any(|pending| *pending == purpose)
    }
}

/// What ends by the manager's clock ends 10 % later than by the node's, which stops 10 % early: so
/// clocks that drift by less than that never make both think that it is theirs.
pub(crate) fn by_manager(lease: Duration) -> Duration {
    lease + lease / 10
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
