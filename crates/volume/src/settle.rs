//! The seqs of one segment: which were given, which are open, and up to where all is settled.

use gabion_types::{Epoch, Instant, Seq};
use std::collections::BTreeSet;

/// More than all owners give in one segment between two such leaps.
const LEAP: u64 = 1 << 36;

/// Seqs given by this owner in one segment.
///
/// Invariants: an open seq is one whose write is neither on every member nor void. Settled never
/// reaches an open seq, and never one above the highest that was really written: a replica's
/// highest seq is never below a settled seq that another one heard.
#[derive(Debug, Default)]
pub(crate) struct Seqs {
    next: Seq,
    open: BTreeSet<Seq>,
    /// The highest seq that every member has, by a write or by the start of the epoch.
    top: Seq,
    /// The settled seq that members were told last.
    told: Seq,
    /// When to tell it without a write.
    pub(crate) tell_at: Option<Instant>,
}

impl Seqs {
    /// After `EpochStart(next)` is durable on every member.
    pub(crate) fn start(next: Seq) -> Self {
        Self { next, top: next.previous(), ..Self::default() }
    }

    /// The seq that the next write gets.
    pub(crate) fn next(&self) -> Seq {
        self.next
    }

    /// The next one is above all that copies may have that are gone, and come back one day: else they would
    /// make the one that went on without them look rolled back.
    // rule: volume/a-survivor-is-ahead-of-those-that-are-gone
    pub(crate) fn leap(&mut self, reached: Seq, joined: Epoch) {
        let from = self.next.max(reached).get();
        // A later leap goes further, whatever its owner knows of earlier ones.
        let by_epoch = joined.get().saturating_mul(LEAP).min(u64::MAX / 2);
        self.next = Seq::new(from.saturating_add(LEAP).max(by_epoch));
    }

    /// Every member has it.
    pub(crate) fn top(&self) -> Seq {
        self.top
    }

    /// A new seq, open from now on.
    pub(crate) fn give(&mut self) -> Seq {
        let seq = self.next;
        self.next = seq.next();
        self.open.insert(seq);
        seq
    }

    /// The write that had these seqs, one after the other, is on every member by the last of them.
    // rule: volume/replaced-seq-settles-with-its-replacement
    pub(crate) fn resolve(&mut self, seqs: &[Seq]) {
        self.void(seqs);
        self.top = seqs.last().copied().unwrap_or_default().max(self.top);
    }

    /// The write that had these seqs failed at its only member.
    pub(crate) fn void(&mut self, seqs: &[Seq]) {
        seqs.iter().for_each(|seq| {
            self.open.remove(seq);
        });
    }

    /// Up to here every write is on every in-sync replica, or void.
    pub(crate) fn settled(&self) -> Seq {
        self.open.first().map_or(self.top, |seq| seq.previous().min(self.top))
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The settled seq, noted as told.
    pub(crate) fn tell(&mut self) -> Seq {
        self.told = self.settled();
        self.told
    }

    pub(crate) fn is_told(&self) -> bool {
        self.told == self.settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_stops_below_the_first_open_seq() {
        let mut seqs = Seqs::start(Seq::new(10));
        assert_eq!(seqs.settled(), Seq::new(9));
        let (first, second) = (seqs.give(), seqs.give());
        assert_eq!(seqs.settled(), Seq::new(9));
        seqs.resolve(&[second]);
        assert_eq!(seqs.settled(), Seq::new(9));
        seqs.resolve(&[first]);
        assert_eq!(seqs.settled(), second);
    }

    // rule: volume/a-survivor-is-ahead-of-those-that-are-gone
    #[test]
    fn a_leap_leaves_what_is_settled() {
        let mut seqs = Seqs::start(Seq::new(10));
        let open = seqs.give();
        let epoch = |value| Epoch::new(value).unwrap();
        seqs.leap(Seq::new(5), Epoch::ZERO);
        assert!(seqs.next() > Seq::new(LEAP) && seqs.settled() == Seq::new(9));
        let again = seqs.give();
        seqs.resolve(&[open, again]);
        assert_eq!(seqs.settled(), again);
        let mut seqs = Seqs::default();
        seqs.leap(Seq::new(77), epoch(1));
        assert_eq!(seqs.next(), Seq::new(77 + LEAP));
        let first = seqs.next();
        let mut seqs = Seqs::default();
        seqs.leap(Seq::ZERO, epoch(4));
        assert!(seqs.next() > first, "by an owner that knows of nothing");
    }

    // rule: volume/replaced-seq-settles-with-its-replacement
    #[test]
    fn a_replaced_seq_is_settled_only_with_its_replacement() {
        let mut seqs = Seqs::start(Seq::new(1));
        let old = seqs.give();
        let other = seqs.give();
        let new = seqs.give();
        seqs.resolve(&[other]);
        assert_eq!(seqs.settled(), Seq::ZERO);
        seqs.resolve(&[old, new]);
        assert_eq!(seqs.settled(), new);
    }

    #[test]
    fn a_void_seq_is_settled_only_below_a_written_one() {
        let mut seqs = Seqs::start(Seq::new(5));
        let void = seqs.give();
        seqs.void(&[void]);
        assert_eq!(seqs.settled(), Seq::new(4));
        let written = seqs.give();
        seqs.resolve(&[written]);
        assert_eq!(seqs.settled(), written);
    }
}
