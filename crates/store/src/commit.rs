//! Group commit: what waits in the queue becomes durable together, by one sync.
//!
//! Order: data and frames are submitted together; when all are in, one sync; then the map is
//! changed, the requests are answered, and only then what they replaced is free. One group is under
//! way at a time; what arrives meanwhile shares the next frames. Its data is written at once where it
//! is large; small data waits for its frame, and is one write with that of others beside it.

use crate::apply::Freed;
use crate::config::{BATCH_BYTES_MAX, JOINED_PIECES_MAX, LAZY_ENTRIES_MAX};
use crate::disk::{Disk, Phase, Use};
use crate::op::{After, BLOCK, DataWrite, Op, OpPlace};
use crate::slots::Extent;
use bytes::Bytes;
use gabion_format::frame::{FRAME_ENTRIES_BYTES_MAX, FRAME_HEAD_BYTES};
use gabion_format::{
    Entry, FRAME_PAGES_MAX, FrameHead, Lsn, PAGE_BYTES, SegmentKey, Slot, encode_frame,
};
use gabion_types::{DiskOpKind, Flaw, Instant};
use gabion_wire::ReplicaDone;

const FRAME_BYTES_MAX: u64 = (FRAME_PAGES_MAX * PAGE_BYTES) as u64;

/// The ring. `head` and `tail` only grow; their place is the rest by the ring's length.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) ring_at: u64,
    pub(crate) ring_bytes: u64,
    /// Where the next frame goes.
    pub(crate) head: u64,
    /// Where the first frame begins that the durable checkpoint does not cover.
    pub(crate) tail: u64,
    /// The last frame that is synced; the map holds the outcome of all up to it.
    pub(crate) durable: Lsn,
    /// Its crc.
    pub(crate) chain: u32,
}

impl Journal {
    pub(crate) fn is_half_full(&self) -> bool {
        self.head - self.tail > self.ring_bytes / 2
    }

    /// Where a frame begins: never across the ring's end.
    fn start_of(&self, bytes: u64) -> u64 {
        let at = self.head % self.ring_bytes;
        if at + bytes > self.ring_bytes { self.head + self.ring_bytes - at } else { self.head }
    }

    /// Whether frames with so many bytes of entries have room, whatever their cut.
    fn fits(&self, entries_bytes: usize) -> bool {
        if entries_bytes <= FRAME_ENTRIES_BYTES_MAX {
            let bytes = (FRAME_HEAD_BYTES + entries_bytes).next_multiple_of(PAGE_BYTES) as u64;
            return self.start_of(bytes) + bytes <= self.tail + self.ring_bytes;
        }
        // An entry is at most a twelfth of a frame, so frames are filled to nine tenths at least.
        let frames = (entries_bytes / (FRAME_ENTRIES_BYTES_MAX * 9 / 10) + 1) as u64;
        self.head + (frames + 1) * FRAME_BYTES_MAX <= self.tail + self.ring_bytes
    }
}

/// What becomes durable together.
#[derive(Debug)]
pub(crate) struct Batch {
    lazy: Vec<Entry>,
    ops: Vec<u64>,
    /// Writes of data and frames under way.
    outstanding: u32,
    last: Lsn,
    chain: u32,
    /// Where its first frame begins, in the ring.
    pub(crate) start: u64,
    /// Slots that its frames name; sorted.
    named: Vec<Extent>,
}

impl Disk {
    pub(crate) fn begin_batch(&mut self, now: Instant) {
        let runs = matches!(self.phase, Phase::Serving | Phase::Stopping);
        if !runs || self.batch.is_some() {
            return;
        }
        self.note_lazy(now);
        if self.queue.is_empty() && !self.is_lazy_due(now) {
            return;
        }
        let lazy = self.lazy_entries();
        let lazy_bytes = lazy.iter().map(Entry::encoded_bytes).sum::<usize>();
        let count = self.ops_that_fit(lazy_bytes);
        if count == 0 && !(self.queue.is_empty() && self.journal.fits(lazy_bytes)) {
            // The ring is full: all waits for the checkpoint.
            return;
        }
        for entry in &lazy {
            if let Entry::Settled { key, .. } = entry {
                self.settled_asked.remove(key);
            }
        }
        let ops = self.queue.drain(..count).collect::<Vec<_>>();
        self.write_batch(lazy, ops);
        self.note_lazy(now);
    }

    fn has_lazy(&self) -> bool {
        !self.settled_asked.is_empty() || self.map_asked > self.table.highest_map
    }

    fn note_lazy(&mut self, now: Instant) {
        self.lazy_since = self.has_lazy().then(|| self.lazy_since.unwrap_or(now));
    }

    fn is_lazy_due(&self, now: Instant) -> bool {
        let due = |since: Instant| now >= since + self.config.settings.lazy_after;
        let stopping = self.phase == Phase::Stopping && !self.settled_asked.is_empty();
        self.lazy_since.is_some_and(due) || stopping
    }

    fn lazy_entries(&self) -> Vec<Entry> {
        let settled = self.settled_asked.iter().take(LAZY_ENTRIES_MAX);
        let mut lazy: Vec<_> =
            settled.map(|(key, seq)| Entry::Settled { key: *key, seq: *seq }).collect();
        if self.map_asked > self.table.highest_map {
            lazy.push(Entry::SawMap { index: self.map_asked });
        }
        lazy
    }

    /// How many of the queue go into the next frames.
    fn ops_that_fit(&self, lazy_bytes: usize) -> usize {
        let mut total = lazy_bytes;
        let mut count = 0;
        for key in &self.queue {
            total += self.ops.get(*key).map_or(0, Op::encoded_bytes);
            if (count > 0 && total > BATCH_BYTES_MAX) || !self.journal.fits(total) {
                break;
            }
            count += 1;
        }
        count
    }

    fn write_batch(&mut self, lazy: Vec<Entry>, ops: Vec<u64>) {
        let mut outstanding = 0;
        let mut named = Vec::new();
        let mut data: Vec<DataWrite> = Vec::new();
        for key in &ops {
            let Some(op) = self.ops.get_mut(*key) else { continue };
            op.place = OpPlace::InBatch;
            op.held.drain(..).for_each(|write| join(&mut data, write));
            outstanding += op.writes_out;
            named.extend(op.extents());
        }
        named.sort_unstable();
        let entries = ops.iter().filter_map(|key| self.ops.get(*key)).flat_map(|op| &op.entries);
        let entries = lazy.iter().chain(entries).collect::<Vec<_>>();
        let mut last = self.journal.durable;
        let mut chain = self.journal.chain;
        let mut frames: Vec<Bytes> = Vec::new();
        for part in cut(&entries) {
            last = last.next();
            let head = FrameHead {
                uuid: self.superblock.uuid,
                life: self.life,
                lsn: last,
                durable: self.journal.durable,
                generation: self.superblock.generation,
                chain,
            };
            let (bytes, crc) = encode_frame(&head, part.iter().copied());
            chain = crc;
            frames.push(bytes);
        }
        for (slot, pieces) in data {
            self.driver.write(Use::BatchData, self.layout.slot_offset(slot), pieces);
            outstanding += 1;
        }
        let mut start = None;
        for bytes in frames {
            let length = bytes.len() as u64;
            let at = self.journal.start_of(length);
            start.get_or_insert(at);
            self.journal.head = at + length;
            let offset = self.journal.ring_at + at % self.journal.ring_bytes;
            self.driver.write(Use::Frame, offset, vec![bytes]);
            outstanding += 1;
            self.stats.frames += 1;
        }
        let start = start.unwrap_or(self.journal.head);
        self.batch = Some(Batch { lazy, ops, outstanding, last, chain, start, named });
    }

    pub(crate) fn on_data_written(&mut self, key: u64) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.writes_out -= 1;
        match op.place {
            OpPlace::Queued => {}
            OpPlace::InBatch => self.on_frame_written(),
            OpPlace::Cancelled if op.writes_out == 0 => self.forget_cancelled(key),
            OpPlace::Cancelled => {}
        }
    }

    pub(crate) fn on_frame_written(&mut self) {
        let Some(batch) = &mut self.batch else { return };
        batch.outstanding -= 1;
        if batch.outstanding == 0 {
            if self.config.flaws.has(Flaw::AnswerBeforeSync) {
                self.on_batch_durable();
                return;
            }
            self.stats.syncs += 1;
            self.driver.submit(Use::BatchSync, DiskOpKind::Sync);
        }
    }

    // promise: acked-survives
    // rule: store/sync-before-answer
    pub(crate) fn on_batch_durable(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        // These frames say that the ones before are durable: what those named is not looked at.
        self.release_quarantine();
        self.journal.durable = batch.last;
        self.journal.chain = batch.chain;
        let mut freed = Freed::default();
        for entry in &batch.lazy {
            // A settled seq of a segment that is gone or joins says nothing.
            let _ = self.table.apply(batch.last, entry, &mut freed);
        }
        let mut answers = Vec::with_capacity(batch.ops.len());
        for key in &batch.ops {
            let Some(op) = self.ops.remove(*key) else { continue };
            self.blocks_out -= op.data_blocks();
            self.places_coming -= u64::from(op.places_coming);
            self.makers -= u32::from(op.makes);
            let mut result = Ok(());
            for entry in &op.entries {
                let made = self.is_made_by(entry);
                let applied = self.table.apply(batch.last, entry, &mut freed);
                if applied.is_ok() {
                    self.note_applied(entry);
                    made.into_iter().for_each(|made| self.note_join(made));
                }
                result = result.and(applied);
            }
            if let (Ok(()), Some((key, seq))) = (&result, op.settled) {
                self.ask_settled(key, seq);
            }
            answers.push((op.asker, op.after, result));
        }
        self.set_free(freed, &batch.named);
        for (asker, after, result) in answers {
            let result = result.map(|()| self.done_of(&asker, after));
            self.answer(&asker, result);
        }
    }

    // rule: store/a-join-of-this-life-is-unbroken
    /// Whether the segment is made by it. None: it is no join, or began before.
    fn is_made_by(&self, entry: &Entry) -> Option<(SegmentKey, bool)> {
        let Entry::Join { key, joined, creation } = entry else { return None };
        let kept = self.table.segment(*key).map(|segment| &segment.meta);
        let kept = kept.filter(|meta| meta.creation == *creation);
        let again = kept.is_some_and(|meta| meta.joining && meta.joined == *joined);
        (!again).then_some((*key, kept.is_none()))
    }

    fn note_join(&mut self, (key, made): (SegmentKey, bool)) {
        if made {
            self.joined_here.insert(key);
        } else {
            self.joined_here.remove(&key);
        }
    }

    /// What was to be settled of a segment is void when another life of it begins.
    fn note_applied(&mut self, entry: &Entry) {
        match entry {
            Entry::Join { key, .. } => {
                self.settled_asked.remove(key);
            }
            Entry::Gone { key, .. } => {
                self.settled_asked.remove(key);
                self.joined_here.remove(key);
            }
            Entry::Promoted { key, .. } => {
                self.joined_here.remove(key);
            }
            Entry::Fence { volume, epoch } => {
                if self.fences_asked.get(volume).is_some_and(|asked| asked <= epoch) {
                    self.fences_asked.remove(volume);
                }
            }
            Entry::Blocks { .. }
            | Entry::Settled { .. }
            | Entry::EpochStart { .. }
            | Entry::New { .. }
            | Entry::SawMap { .. } => {}
        }
    }

    fn done_of(&self, asker: &crate::disk::Asker, after: After) -> ReplicaDone {
        match after {
            After::Done => ReplicaDone::Done,
            After::Fenced { segments } => {
                ReplicaDone::Fenced { reports: self.reports(asker.volume, &segments) }
            }
            After::FencedBefore { reports } => ReplicaDone::Fenced { reports },
            After::JoinStarted { key } => {
                let settled = self.table.segment(key).map(|segment| segment.meta.settled);
                ReplicaDone::JoinStarted { settled: settled.unwrap_or_default() }
            }
        }
    }

    // rule: store/quarantine
    /// What the newest frames name must stay as it is until a later frame says that they are
    /// durable: recovery compares it with the frames' checksums.
    pub(crate) fn set_free(&mut self, freed: Freed, named: &[Extent]) {
        for slot in freed.slots {
            if !self.bad.is_empty() {
                self.bad.remove(&slot);
            }
            if is_named(named, slot) {
                self.quarantine.push(slot);
            } else {
                self.limbo.push(slot);
            }
        }
        // rule: store/dropped-places-outlive-their-root
        // The durable checkpoint names these places, and so does one under way.
        let newest = self.generation + u64::from(self.checkpoint.is_some());
        let places = freed.places.into_iter().map(|slot| (newest + 1, slot));
        self.old_places.extend(places);
    }
}

/// Puts a write behind the last one, or into it where it goes on.
fn join(writes: &mut Vec<DataWrite>, (slot, mut pieces): DataWrite) {
    if let Some((first, before)) = writes.last_mut() {
        let bytes: usize = before.iter().map(Bytes::len).sum();
        let goes_on = u32::try_from(bytes / BLOCK).is_ok_and(|count| first.plus(count) == slot);
        if goes_on && before.len() + pieces.len() <= JOINED_PIECES_MAX {
            before.append(&mut pieces);
            return;
        }
    }
    writes.push((slot, pieces));
}

fn is_named(named: &[Extent], slot: Slot) -> bool {
    let at = named.partition_point(|(first, _)| *first <= slot);
    at > 0 && slot.get() - named[at - 1].0.get() < named[at - 1].1
}

/// Cuts entries to frames.
fn cut<'a, 'b>(entries: &'b [&'a Entry]) -> Vec<&'b [&'a Entry]> {
    let mut parts = Vec::new();
    let mut from = 0;
    let mut bytes = 0;
    for (index, entry) in entries.iter().enumerate() {
        let length = entry.encoded_bytes();
        if bytes + length > FRAME_ENTRIES_BYTES_MAX {
            parts.push(&entries[from..index]);
            (from, bytes) = (index, 0);
        }
        bytes += length;
    }
    parts.push(&entries[from..]);
    parts
}
