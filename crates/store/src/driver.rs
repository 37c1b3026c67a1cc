//! What is in flight to the disk, and the effects that wait to be fetched.

use crate::io::Effect;
use bytes::Bytes;
use gabion_types::{DiskOp, DiskOpKind, DiskToken, Duration, Instant};
use std::collections::{BTreeMap, VecDeque};

/// How often it is looked whether the disk hangs, while it has something to answer. A longer step counts
/// as so long: the own loop stood still, and nobody is judged by that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Each token in flight with what it is for, and when it went out.
#[derive(Debug)]
pub(crate) struct Driver<U> {
    next_token: u64,
    in_flight: BTreeMap<DiskToken, (Duration, U)>,
    /// For how long the own loop has run. Units: since the start, without what it stood still.
    ran: Duration,
    seen: Instant,
    stood_still: bool,
    pub(crate) effects: VecDeque<Effect>,
}

impl<U> Driver<U> {
    pub(crate) fn new(next_token: u64) -> Self {
        Self {
            next_token,
            in_flight: BTreeMap::new(),
            ran: Duration::ZERO,
            seen: Instant::ZERO,
            stood_still: false,
            effects: VecDeque::new(),
        }
    }

    /// Time passed. Order: before all else of a step.
    pub(crate) fn pass(&mut self, now: Instant) {
        let step = now.since(self.seen);
        self.stood_still = step > LOOK_EVERY * 2;
        self.ran += step.min(LOOK_EVERY);
        self.seen = self.seen.max(now);
    }

    /// For how long the oldest operation has been out, as far as the own loop ran.
    pub(crate) fn oldest(&self) -> Duration {
        let oldest = self.in_flight.first_key_value();
        oldest.map_or(Duration::ZERO, |(_, (sent, _))| self.ran.saturating_sub(*sent))
    }

    // rule: store/a-disk-that-hangs-is-out
    /// It has not answered for so long, though the own loop ran and fetched what was there. Zero: it may
    /// take for ever.
    pub(crate) fn hangs(&self, after: Duration) -> bool {
        after > Duration::ZERO && self.oldest() >= after && !self.stood_still
    }

    pub(crate) fn next_look(&self, after: Duration) -> Option<Instant> {
        let looks = after > Duration::ZERO && !self.in_flight.is_empty();
        looks.then(|| self.seen + LOOK_EVERY)
    }

    pub(crate) fn submit(&mut self, usage: U, kind: DiskOpKind) {
        let token = DiskToken(self.next_token);
        self.next_token += 1;
        self.in_flight.insert(token, (self.ran, usage));
        self.effects.push_back(Effect::Disk(DiskOp { token, kind }));
    }

    pub(crate) fn read(&mut self, usage: U, offset: u64, length: u64) {
        self.submit(usage, DiskOpKind::Read { offset, length });
    }

    pub(crate) fn write(&mut self, usage: U, offset: u64, pieces: Vec<Bytes>) {
        self.submit(usage, DiskOpKind::Write { offset, pieces });
    }

    pub(crate) fn done(&mut self, token: DiskToken) -> Option<U> {
        self.in_flight.remove(&token).map(|(_, usage)| usage)
    }

    pub(crate) fn next_token(&self) -> u64 {
        self.next_token
    }
}
