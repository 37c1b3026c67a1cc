//! One connection and what is on its way in it.

use super::{Machine, Side};
use gabion_types::Instant;
use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
pub(super) struct Connection<M> {
    pub from: Machine,
    pub to: Machine,
    established: bool,
    closed: BTreeSet<Side>,
    /// Its machine lost power: it says and hears nothing.
    pub silent: BTreeSet<Side>,
    /// A hang-up that this side hears of once the way is open.
    pub hangup_waits: BTreeSet<Side>,
    /// Reset in the middle: nothing more arrives.
    pub broken: bool,
    from_dialler: Direction<M>,
    from_acceptor: Direction<M>,
}

/// Messages on their way, in order, with the moment from which each may arrive.
#[derive(Debug)]
pub(super) struct Direction<M> {
    queue: VecDeque<(Instant, M)>,
    last_ready: Instant,
}

impl<M> Connection<M> {
    pub fn new(from: Machine, to: Machine) -> Self {
        Self {
            from,
            to,
            established: false,
            closed: BTreeSet::new(),
            silent: BTreeSet::new(),
            hangup_waits: BTreeSet::new(),
            broken: false,
            from_dialler: Direction::default(),
            from_acceptor: Direction::default(),
        }
    }

    /// From which machine to which this side's messages go.
    pub fn way(&self, side: Side) -> (Machine, Machine) {
        match side {
            Side::Dialler => (self.from, self.to),
            Side::Acceptor => (self.to, self.from),
        }
    }

    /// The messages that this side sent.
    pub fn direction(&mut self, side: Side) -> &mut Direction<M> {
        match side {
            Side::Dialler => &mut self.from_dialler,
            Side::Acceptor => &mut self.from_acceptor,
        }
    }

    pub fn is_open(&self, side: Side) -> bool {
        !self.closed.contains(&side)
    }

    /// Open, and its machine has power.
    pub fn is_alive(&self, side: Side) -> bool {
        self.is_open(side) && !self.silent.contains(&side)
    }

    /// Whether a message can come in at this side.
    pub fn takes(&self, side: Side) -> bool {
        self.established && self.is_alive(side) && !self.broken
    }

    /// False: it was closed already.
    pub fn close(&mut self, side: Side) -> bool {
        self.closed.insert(side)
    }

    /// How many messages wait that were sent before.
    pub fn establish(&mut self, now: Instant) -> usize {
        self.established = true;
        self.from_dialler.delay_until(now)
    }

    /// Its dialler is gone, and what that sent is still to come in.
    pub fn is_late(&self) -> bool {
        let gone = !self.is_alive(Side::Dialler);
        gone && self.takes(Side::Acceptor) && !self.from_dialler.queue.is_empty()
    }

    pub fn is_over(&self) -> bool {
        self.closed.len() == 2
    }
}

impl<M> Default for Direction<M> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), last_ready: Instant::ZERO }
    }
}

impl<M> Direction<M> {
    /// When it may arrive: never before what was sent before it.
    pub fn push(&mut self, ready: Instant, message: M) -> Instant {
        self.last_ready = self.last_ready.max(ready);
        self.queue.push_back((self.last_ready, message));
        self.last_ready
    }

    pub fn pop(&mut self, now: Instant) -> Option<M> {
        if self.queue.front()?.0 > now {
            return None;
        }
        self.queue.pop_front().map(|(_, message)| message)
    }

    pub fn truncate(&mut self, keep: usize) {
        self.queue.truncate(keep);
    }

    pub fn last_ready(&self) -> Instant {
        self.last_ready
    }

    /// Nothing arrives before. Returns how many wait.
    pub fn delay_until(&mut self, ready: Instant) -> usize {
        self.last_ready = self.last_ready.max(ready);
        self.queue.iter_mut().for_each(|(at, _)| *at = (*at).max(ready));
        self.queue.len()
    }
}
