//! Which slots of the pool are free, and when a freed one may be given out again.

use crate::config::STREAM_BLOCKS;
use gabion_format::Slot;
use std::collections::{BTreeSet, VecDeque};

const WORD_SLOTS: u32 = 64;
const GROUP_WORDS: usize = 64;
/// A run of free slots is looked for in so many words (1 GiB of disk); then pieces are taken.
const RUN_WORDS_MAX: usize = 4096;

/// Consecutive slots.
pub(crate) type Extent = (Slot, u32);

/// A bit a slot, set where it is taken, with a count of the free ones for each 64 words.
#[derive(Debug)]
pub(crate) struct Slots {
    words: Vec<u64>,
    group_free: Vec<u32>,
    free: u64,
    count: u32,
}

impl Slots {
    pub(crate) fn new(count: u32) -> Self {
        let words_count = count.div_ceil(WORD_SLOTS) as usize;
        let mut words = vec![0; words_count];
        let rest = count % WORD_SLOTS;
        if let Some(last) = words.last_mut().filter(|_| rest > 0) {
            *last = u64::MAX << rest;
        }
        let group_free = words
            .chunks(GROUP_WORDS)
            .map(|group| group.iter().map(|word| word.count_zeros()).sum())
            .collect();
        Self { words, group_free, free: u64::from(count), count }
    }

    /// With what these bits say, lowest bit of the first byte first; beyond `count` they are clear.
    pub(crate) fn of(count: u32, bits: &[u8]) -> Self {
        let mut slots = Self::new(count);
        for (word, bytes) in slots.words.iter_mut().zip(bits.chunks_exact(8)) {
            *word |= u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        for (free, group) in slots.group_free.iter_mut().zip(slots.words.chunks(GROUP_WORDS)) {
            *free = group.iter().map(|word| word.count_zeros()).sum();
        }
        slots.free = slots.group_free.iter().map(|free| u64::from(*free)).sum();
        slots
    }

    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_taken(&self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        self.words.get(word).is_none_or(|word| word & bit != 0)
    }

    /// False: it was taken already, or there is no such slot.
    pub(crate) fn take(&mut self, slot: Slot) -> bool {
        if self.is_taken(slot) {
            return false;
        }
        let (word, bit) = place(slot);
        self.words[word] |= bit;
        self.group_free[word / GROUP_WORDS] -= 1;
        self.free -= 1;
        true
    }

    pub(crate) fn release(&mut self, slot: Slot) {
        assert!(slot.get() < self.count && self.is_taken(slot), "{slot:?} was freed twice");
        let (word, bit) = place(slot);
        self.words[word] &= !bit;
        self.group_free[word / GROUP_WORDS] += 1;
        self.free += 1;
    }

    /// Takes `want` slots, from `hint` on where possible; consecutive ones for a stream.
    /// Errors: `None` when fewer are free.
    pub(crate) fn allocate(&mut self, hint: Slot, want: u32) -> Option<Vec<Extent>> {
        if self.free < u64::from(want) {
            return None;
        }
        let whole = if want >= STREAM_BLOCKS { self.find_run(hint, want) } else { None };
        if let Some(first) = whole {
            (0..want).for_each(|index| assert!(self.take(first.plus(index)), "the run was free"));
            return Some(vec![(first, want)]);
        }
        Some(self.allocate_pieces(hint, want))
    }

    /// Whether `allocate` would find so many in one run.
    pub(crate) fn has_run(&self, hint: Slot, want: u32) -> bool {
        want >= STREAM_BLOCKS && self.find_run(hint, want).is_some()
    }

    /// Word by word, each in a few steps.
    fn find_run(&self, hint: Slot, want: u32) -> Option<Slot> {
        let mut index = self.start_word(hint);
        // Free slots right before this word.
        let mut run: u32 = 0;
        for _ in 0..RUN_WORDS_MAX.min(self.words.len()) {
            match run_in(self.words[index], run, want) {
                Ok(end) => return Some(Slot::new(first_slot(index) + end - want)),
                Err(trailing) => run = trailing,
            }
            index += 1;
            if index == self.words.len() {
                (index, run) = (0, 0);
            }
        }
        None
    }

    fn allocate_pieces(&mut self, hint: Slot, want: u32) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut left = want;
        let mut index = self.start_word(hint);
        while left > 0 {
            if self.group_free[index / GROUP_WORDS] == 0 {
                index = (index / GROUP_WORDS + 1) * GROUP_WORDS;
            } else {
                left -= self.take_from_word(index, left, &mut extents);
                index += 1;
            }
            if index >= self.words.len() {
                index = 0;
            }
        }
        extents
    }

    fn take_from_word(&mut self, index: usize, left: u32, extents: &mut Vec<Extent>) -> u32 {
        let mut taken = 0;
        while taken < left && self.words[index] != u64::MAX {
            let slot = Slot::new(first_slot(index) + self.words[index].trailing_ones());
            assert!(self.take(slot), "the bit was clear");
            taken += 1;
            match extents.last_mut() {
                Some((first, count)) if first.get() + *count == slot.get() => *count += 1,
                Some(_) | None => extents.push((slot, 1)),
            }
        }
        taken
    }

    fn start_word(&self, hint: Slot) -> usize {
        let word = (hint.get() / WORD_SLOTS) as usize;
        if word < self.words.len() { word } else { 0 }
    }
}

/// Looks for a run of `want` free slots in a word, behind `before` free ones: where it ends, in slots
/// from the word's first. Errors: how many free ones the word ends with.
fn run_in(word: u64, before: u32, want: u32) -> Result<u32, u32> {
    let leading = word.trailing_zeros();
    if before + leading >= want {
        return Ok(want.saturating_sub(before));
    }
    if leading == WORD_SLOTS {
        return Err(before + WORD_SLOTS);
    }
    if word.count_zeros() >= want {
        // A bit stays where so many free slots begin.
        let mut begins = !word;
        let mut length = 1;
        while length < want {
            let step = length.min(want - length);
            begins &= begins >> step;
            length += step;
        }
        if begins != 0 {
            return Ok(begins.trailing_zeros() + want);
        }
    }
    Err(word.leading_zeros())
}

fn place(slot: Slot) -> (usize, u64) {
    ((slot.get() / WORD_SLOTS) as usize, 1 << (slot.get() % WORD_SLOTS))
}

fn first_slot(word: usize) -> u32 {
    u32::try_from(word).expect("words of 2^32 slots fit") * WORD_SLOTS
}

/// Slots that were replaced while reads of them may be under way.
#[derive(Debug, Default)]
pub(crate) struct Limbo {
    next_read: u64,
    reads: BTreeSet<u64>,
    /// Each with the first read that was submitted after it was freed.
    waiting: VecDeque<(u64, Slot)>,
}

impl Limbo {
    pub(crate) fn begin_read(&mut self) -> u64 {
        let read = self.next_read;
        self.next_read += 1;
        self.reads.insert(read);
        read
    }

    pub(crate) fn end_read(&mut self, read: u64) {
        self.reads.remove(&read);
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        self.waiting.push_back((self.next_read, slot));
    }

    /// Reads keep nothing: a rule that tests switch off.
    pub(crate) fn forget_reads(&mut self) {
        self.reads.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    // rule: store/slot-freed-after-reads
    /// The next one that no read submitted before can still be under way to.
    pub(crate) fn pop(&mut self) -> Option<Slot> {
        let (after, slot) = self.waiting.front().copied()?;
        if self.reads.first().is_some_and(|read| *read < after) {
            return None;
        }
        self.waiting.pop_front();
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(extents: &[Extent]) -> u32 {
        extents.iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn a_stream_gets_consecutive_slots_and_falls_back_to_pieces() {
        let mut slots = Slots::new(1000);
        assert!(slots.take(Slot::new(70)));
        let run = slots.allocate(Slot::new(64), 200).unwrap();
        assert_eq!(run, vec![(Slot::new(71), 200)]);
        (0..1000).for_each(|slot| {
            slots.take(Slot::new(slot));
        });
        (0..1000).step_by(2).for_each(|slot| slots.release(Slot::new(slot)));
        let pieces = slots.allocate(Slot::new(999), 100).unwrap();
        assert_eq!((pieces.len(), total(&pieces)), (100, 100));
        assert_eq!(slots.free(), 400);
        assert_eq!(slots.allocate(Slot::new(0), 401), None);
    }

    #[test]
    fn every_slot_is_given_out_once() {
        for count in [1, 63, 64, 65, 4096, 10_000] {
            let mut slots = Slots::new(count);
            let mut seen = BTreeSet::new();
            let mut want = 1;
            while let Some(extents) = slots.allocate(Slot::new(want * 37), want) {
                for (first, run) in extents {
                    (0..run).for_each(|index| assert!(seen.insert(first.plus(index))));
                }
                want = (want % 40 + 1).min(u32::try_from(slots.free()).unwrap()).max(1);
            }
            assert_eq!((slots.free(), seen.len()), (0, count as usize));
        }
    }

    /// As one would look for it bit by bit.
    fn run_by_bits(slots: &Slots, hint: Slot, want: u32) -> Option<Slot> {
        let words = u32::try_from(slots.words.len().min(RUN_WORDS_MAX)).unwrap();
        let first = u32::try_from(slots.start_word(hint)).unwrap() * WORD_SLOTS;
        let end = u32::try_from(slots.words.len()).unwrap() * WORD_SLOTS;
        let mut run = 0;
        for slot in (first..first + words * WORD_SLOTS).map(|slot| slot % end) {
            run = if slot == 0 { 0 } else { run };
            run = if slots.is_taken(Slot::new(slot)) { 0 } else { run + 1 };
            if run == want {
                return Some(Slot::new(slot + 1 - want));
            }
        }
        None
    }

    #[test]
    fn the_first_run_that_is_long_enough_is_found() {
        let mut prng = gabion_types::Prng::new(5);
        for round in 0..200 {
            let count = 64 + u32::try_from(prng.below(2000)).unwrap();
            let mut slots = Slots::new(count);
            let mut at = 0;
            while at < count {
                let of = |prng: &mut gabion_types::Prng, below| {
                    u32::try_from(prng.below(below)).unwrap()
                };
                at += of(&mut prng, if round % 2 == 0 { 150 } else { 30 });
                for _ in 0..=of(&mut prng, 70) {
                    slots.take(Slot::new(at));
                    at += 1;
                }
            }
            for want in [16, 17, 63, 64, 65, 100, 128, 200] {
                let hint = Slot::new(u32::try_from(prng.below(u64::from(count))).unwrap());
                let found = slots.find_run(hint, want);
                assert_eq!(found, run_by_bits(&slots, hint, want), "{count} {hint:?} {want}");
            }
        }
    }

    // rule: store/slot-freed-after-reads
    #[test]
    fn a_freed_slot_waits_for_the_reads_before_it() {
        let mut limbo = Limbo::default();
        let before = limbo.begin_read();
        limbo.push(Slot::new(1));
        let after = limbo.begin_read();
        assert_eq!(limbo.pop(), None);
        limbo.end_read(before);
        assert_eq!(limbo.pop(), Some(Slot::new(1)));
        limbo.push(Slot::new(2));
        assert_eq!(limbo.pop(), None);
        limbo.end_read(after);
        assert_eq!(limbo.pop(), Some(Slot::new(2)));
        assert!(limbo.is_empty());
    }
}
