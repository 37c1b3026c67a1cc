//! A guest: asks, waits, and goes elsewhere when nobody answers.

use super::swarm::GuestPlan;
use crate::nbd_guest::NbdGuest;
use crate::net::Machine;
use crate::oracle::{Open, WriteId};
use crate::workload::OpPlan;
use gabion_node::GuestId;
use gabion_types::{Duration, Instant, Prng};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub struct Guest {
    pub plan: GuestPlan,
    /// What it is attached to, or was last, as the oracle counts volumes: one that was made anew
    /// under the same name is another.
    pub volume: usize,
    pub prng: Prng,
    pub state: GuestState,
    /// Its socket, if it speaks NBD.
    pub nbd: Option<NbdGuest>,
    /// What was not answered on the last connection; asked again, first.
    pub again: VecDeque<OpPlan>,
    /// Invents new requests.
    pub busy: bool,
    /// The number of the act that is on the list; an earlier one is void.
    pub acts: u64,
    pub answered: u64,
    /// It wants something and was answered nothing since.
    wants_since: Option<Instant>,
    /// From when, and how long.
    pub longest_wait: Option<(Instant, Duration)>,
}

#[derive(Debug)]
pub enum GuestState {
    Away,
    Opening { machine: Machine, id: GuestId, since: Instant },
    Attached { machine: Machine, id: GuestId, flights: BTreeMap<u64, Flight>, next_tag: u64 },
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct Flight {
    pub plan: OpPlan,
    pub write: Option<WriteId>,
    pub open: Open,
    pub began: Instant,
}

/// A write without an answer whose guest is gone: it happens soon or never.
#[derive(Clone, Copy, Debug)]
pub struct Orphan {
    pub volume: usize,
    pub write: WriteId,
    pub gone_since: Instant,
}

impl Guest {
    pub fn new(mut plan: GuestPlan, prng: Prng) -> Self {
        let asks = plan.asks.take();
        Self {
            volume: 0,
            plan,
            prng,
            state: GuestState::Away,
            nbd: None,
            busy: asks.is_none(),
            again: asks.unwrap_or_default().into(),
            acts: 0,
            answered: 0,
            wants_since: None,
            longest_wait: None,
        }
    }

    pub fn wants(&mut self, now: Instant) {
        self.wants_since.get_or_insert(now);
    }

    /// Something was answered; what else it asked for it wants from now on.
    pub fn was_answered(&mut self, now: Instant) {
        let Some(from) = self.wants_since.take() else { return };
        let took = now.since(from);
        if self.longest_wait.is_none_or(|(_, longest)| took > longest) {
            self.longest_wait = Some((from, took));
        }
        if !self.is_idle() {
            self.wants_since = Some(now);
        }
    }

    pub fn in_flight(&self) -> usize {
        match &self.state {
            GuestState::Away | GuestState::Opening { .. } => 0,
            GuestState::Attached { flights, .. } => flights.len(),
        }
    }

    /// It has a write without an answer, through one of these machines.
    pub fn writes_on(&self, machines: &impl Fn(&Machine) -> bool) -> bool {
        match &self.state {
            GuestState::Away | GuestState::Opening { .. } => false,
            GuestState::Attached { machine, flights, .. } => {
                machines(machine) && flights.values().any(|flight| flight.write.is_some())
            }
        }
    }

    /// What it has asked for without an answer, and what it asks next.
    pub fn plans(&self) -> impl Iterator<Item = &OpPlan> {
        let flights = match &self.state {
            GuestState::Away | GuestState::Opening { .. } => None,
            GuestState::Attached { flights, .. } => Some(flights.values()),
        };
        flights.into_iter().flatten().map(|flight| &flight.plan).chain(&self.again)
    }

    /// Nothing is left to be asked or answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.again.is_empty()
    }

    /// Nor will there be.
    pub fn has_no_wish(&self) -> bool {
        self.is_idle() && !self.busy
    }

    /// When the oldest request without an answer was made.
    pub fn waits_since(&self) -> Option<Instant> {
        match &self.state {
            GuestState::Away => None,
            GuestState::Opening { since, .. } => Some(*since),
            GuestState::Attached { flights, .. } => flights.values().map(|one| one.began).min(),
        }
    }
}
