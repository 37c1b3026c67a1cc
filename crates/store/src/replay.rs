//! From what was read to an opened disk: the journal is replayed, the free slots are counted.

use crate::apply::Freed;
use crate::commit::Journal;
use crate::config::{REQUESTS_MAX, StoreConfig};
use crate::decide::{Beyond, Data, NewestCase, Next, Verdict, decide_frame, newest_case};
use crate::disk::{Disk, Phase};
use crate::driver::Driver;
use crate::io::{Effect, Part, StoreEvent, StoreStats};
use crate::load::Loads;
use crate::named::Named;
use crate::opening::{Damages, Found};
use crate::pages::Table;
use crate::slots::{Limbo, Slots};
use crate::straighten::Scattered;
use crate::verify::Verifies;
use gabion_format::{BlockEntry, Entry, Frame, Layout, Lsn, Rule, SegmentKey, Slot, Superblock};
use gabion_types::{BLOCK_BYTES, Epoch, MapIndex, Slab, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the disk holds.
#[derive(Debug)]
pub(crate) struct Recovered {
    superblock: Superblock,
    /// The next life, and the generation below that of the next checkpoint.
    life: u64,
    generation: u64,
    layout: Layout,
    table: Table,
    slots: Slots,
    quarantine: Vec<Slot>,
    old_places: Vec<Slot>,
    journal: Journal,
    damaged: bool,
    damages: Damages,
    frames: u64,
    entries_dropped: u64,
}

/// The walk along the journal.
struct Walk {
    table: Table,
    freed: Freed,
    /// Named by frames that nothing proves durable.
    named: Vec<(Slot, u32)>,
    last: Lsn,
    chain: u32,
    damaged: bool,
    /// Frames that were durable are not there. Told once, however many.
    hole: bool,
    frames: u64,
    entries_dropped: u64,
}

/// The whole map is to be read: it cannot be said what is free.
#[derive(Debug)]
pub(crate) struct Odd;

pub(crate) fn replay(found: Found) -> Result<Recovered, Odd> {
    let Found { superblock, layout, alone, whole, mut table, ring, differing, mut damages, .. } =
        found;
    if !whole {
        table.unname(&ring.frames);
    }
    let pages_lost = damages.told.iter().any(|damage| damage.part != Part::Superblock);
    let durable = ring.durable(&superblock);
    let highest = ring.highest;
    let newest = newest_case(alone, ring.newer);
    let mut walk = Walk {
        table,
        freed: Freed::default(),
        named: Vec::new(),
        last: superblock.lsn,
        chain: superblock.chain,
        damaged: !ring.unreadable.is_empty() || newest.is_damage(),
        hole: false,
        frames: 0,
        entries_dropped: 0,
    };
    ring.unreadable.iter().for_each(|at| damages.add(Part::Journal, layout.journal_at + at, None));
    if newest == NewestCase::NewestNeverWritten {
        let place = Layout::superblock_at(superblock.generation + 1);
        damages.add(Part::Superblock, place, None);
    }
    walk.run(ring.frames, durable, &differing, layout.slots);
    walk.table.raise(ring.fences, ring.saw_map);
    let page_lsn = walk.table.highest_page_lsn();
    // A page that knows of frames that the journal does not have.
    let ends_early = page_lsn > walk.last;
    walk.damaged |= ends_early;
    if walk.hole || ends_early {
        damages.add(Part::Journal, layout.journal_at, None);
    }
    if !whole && (walk.damaged || damages.count > 0) {
        return Err(Odd);
    }
    if walk.damaged {
        walk.table.segments_mut().for_each(|(_, segment)| segment.meta.damaged = true);
    }
    let mut slots = Slots::new(layout.slots);
    let doubled = if whole {
        walk.table.take_slots(&mut slots)
    } else {
        slots = walk.table.slots_by_bitmap().ok_or(Odd)?;
        Vec::new()
    };
    for (key, slot) in &doubled {
        damages.add(Part::BlockPlace, layout.slot_offset(*slot), Some(*key));
    }
    let take = |slots: &mut Slots, list: Vec<Slot>| {
        list.into_iter().filter(|slot| slots.take(*slot)).collect::<Vec<_>>()
    };
    let named = walk.named.iter().flat_map(|(slot, count)| (0..*count).map(|nth| slot.plus(nth)));
    let quarantine = take(&mut slots, named.collect());
    let old_places = take(&mut slots, walk.freed.places);
    let journal = Journal {
        ring_at: layout.journal_at,
        ring_bytes: layout.journal_bytes,
        head: superblock.journal_next,
        tail: superblock.journal_next,
        // Above whatever was seen: no frame of this life may look older than a page.
        durable: walk.last.max(highest.lsn).max(page_lsn),
        chain: walk.chain,
    };
    Ok(Recovered {
        life: superblock.life.max(highest.life) + 1,
        generation: generation_above(superblock.generation, highest.generation),
        superblock,
        layout,
        table: walk.table,
        slots,
        quarantine,
        old_places,
        journal,
        damaged: walk.damaged || pages_lost || !doubled.is_empty(),
        damages,
        frames: walk.frames,
        entries_dropped: walk.entries_dropped,
    })
}

// rule: store/numbers-of-a-lost-superblock-never-again
/// The checkpoints go on behind it: above every generation that any frame names, and first in the
/// place where the durable one isn't.
fn generation_above(durable: u64, seen: u64) -> u64 {
    let above = durable.max(seen);
    if above % 2 == durable % 2 { above } else { above + 1 }
}

impl Walk {
    fn run(
        &mut self,
        mut frames: BTreeMap<Lsn, Frame>,
        durable: Lsn,
        differing: &BTreeSet<Lsn>,
        slots: u32,
    ) {
        let mut at = self.last.next();
        loop {
            let frame = frames.remove(&at);
            let frame =
                frame.filter(|frame| frame.head.chain == self.chain && in_pool(frame, slots));
            let next = if frame.is_some() { Next::Chained } else { Next::Missing };
            let beyond = if durable >= at {
                Beyond::ProvesDurable
            } else if frames.is_empty() {
                Beyond::Nothing
            } else {
                Beyond::Unsynced
            };
            let data = if differing.contains(&at) { Data::Differs } else { Data::Matches };
            match (decide_frame(next, beyond, data), frame) {
                (Verdict::Replay, Some(frame)) => self.replay_frame(&frame, at > durable),
                (Verdict::Replay | Verdict::End, _) => return,
                (Verdict::Cut, frame) => {
                    frame.iter().chain(frames.values()).for_each(|frame| self.drop_frame(frame));
                    return;
                }
                (Verdict::Hole, _) => {
                    self.damaged = true;
                    self.hole = true;
                    let Some((behind, frame)) = frames.first_key_value() else { return };
                    // What lies behind starts the chain anew.
                    (at, self.chain) = (*behind, frame.head.chain);
                    continue;
                }
            }
            at = at.next();
        }
    }

    fn replay_frame(&mut self, frame: &Frame, unproven: bool) {
        for entry in &frame.entries {
            // The settled seqs stay those before the damage.
            if self.damaged && matches!(entry, Entry::Settled { .. }) {
                continue;
            }
            if unproven {
                self.named.extend(entry.extent());
            }
            // What was refused then is refused now.
            let _ = self.table.apply(frame.head.lsn, entry, &mut self.freed);
        }
        self.frames += 1;
        self.last = frame.head.lsn;
        self.chain = frame.crc;
    }

    /// A torn tail: it is told at the next fence, in case the disk had said that it was durable.
    fn drop_frame(&mut self, frame: &Frame) {
        self.entries_dropped += frame.entries.len() as u64;
        for entry in &frame.entries {
            let Entry::Blocks { key, rule: Rule::Write | Rule::Settle, version, .. } = entry else {
                continue;
            };
            if let Some(segment) = self.table.segment_mut(*key) {
                let dropped = segment.meta.dropped_from.unwrap_or(version.seq);
                segment.meta.dropped_from = Some(dropped.min(version.seq));
            }
        }
    }
}

fn in_pool(frame: &Frame, slots: u32) -> bool {
    let mut extents = frame.entries.iter().filter_map(Entry::extent);
    extents.all(|(slot, count)| slot.get().checked_add(count).is_some_and(|end| end <= slots))
}

impl Table {
    /// What was heard of a life whose superblock is gone.
    fn raise(&mut self, fences: BTreeMap<VolumeId, Epoch>, saw_map: MapIndex) {
        for (volume, epoch) in fences {
            let room = self.fences.len() < self.geometry.segments_max;
            if room || self.fences.contains_key(&volume) {
                let fence = self.fences.entry(volume).or_insert(Epoch::ZERO);
                *fence = (*fence).max(epoch);
            }
        }
        self.highest_map = self.highest_map.max(saw_map);
    }

    fn highest_page_lsn(&self) -> Lsn {
        let segments = || self.segments().map(|(_, segment)| segment);
        let here = segments().flat_map(|segment| segment.pages().map(|(_, page)| page.lsn));
        let away = segments().flat_map(|segment| segment.pages_away());
        here.chain(away.map(|(_, away)| away.live.lsn)).max().unwrap_or_default()
    }

    // rule: store/bitmap-behind-map-pages
    /// Before the replay: what the bitmap says of slots that the pages in memory, or the frames, name
    /// is of no certain moment. The rest of it is right.
    fn unname(&mut self, frames: &BTreeMap<Lsn, Frame>) {
        self.slots_here().into_iter().for_each(|slot| self.named.clear(slot));
        let entries = frames.values().flat_map(|frame| &frame.entries);
        for (first, count) in entries.filter_map(Entry::extent) {
            (0..count).for_each(|nth| self.named.clear(Slot::new(first.get().saturating_add(nth))));
        }
    }

    /// After the replay: by the bitmap, and by the pages in memory. `None`: they don't agree.
    fn slots_by_bitmap(&mut self) -> Option<Slots> {
        let here = self.slots_here();
        here.iter().for_each(|slot| self.named.clear(*slot));
        if !here.into_iter().all(|slot| self.named.set(slot)) {
            return None;
        }
        let mut slots = self.named.to_slots();
        self.page_places().into_iter().all(|slot| slots.take(slot)).then_some(slots)
    }

    fn slots_here(&self) -> Vec<Slot> {
        let pages = self.segments().flat_map(|(_, segment)| segment.pages());
        pages.flat_map(|(_, page)| page.entries.iter().filter_map(BlockEntry::slot)).collect()
    }

    /// Of segment pages and map pages.
    fn page_places(&self) -> Vec<Slot> {
        let mut places = Vec::new();
        for (_, segment) in self.segments() {
            for chunk in &segment.chunks {
                places.extend(chunk.live.map(|at| at.slot).into_iter().chain(chunk.spare));
            }
            for (_, page) in segment.pages() {
                places.extend(page.live.map(|at| at.slot).into_iter().chain(page.spare));
            }
            for (_, away) in segment.pages_away() {
                places.extend([away.live.slot].into_iter().chain(away.spare));
            }
        }
        places
    }

    /// Marks everything that the map names as taken. A slot that is named twice, or that is none,
    /// makes what names it unknown. Those slots, and in which segments.
    fn take_slots(&mut self, slots: &mut Slots) -> Vec<(SegmentKey, Slot)> {
        let mut doubled = Vec::new();
        // Two pages in one place: one of them would not have been read as itself.
        self.page_places().into_iter().for_each(|slot| {
            slots.take(slot);
        });
        for (key, segment) in self.segments() {
            for (index, page) in segment.pages() {
                for (at, entry) in page.entries.iter().enumerate() {
                    if let Some(slot) = entry.slot().filter(|slot| !slots.take(*slot)) {
                        doubled.push((key, index, at, slot));
                    }
                }
            }
        }
        for (key, index, at, _) in &doubled {
            self.make_unknown(*key, *index, *at);
        }
        // The bitmap is drawn anew as well.
        self.named = Named::new(self.geometry.slots);
        for slot in self.slots_here() {
            self.named.set(slot);
        }
        doubled.into_iter().map(|(key, _, _, slot)| (key, slot)).collect()
    }

    fn make_unknown(&mut self, key: SegmentKey, index: usize, at: usize) {
        if let Some(page) = self.page_to_change(key, index) {
            page.entries[at] = BlockEntry::UNKNOWN;
            page.unknown = true;
        }
        if let Some(segment) = self.segment_mut(key) {
            segment.meta.damaged = true;
        }
    }
}

impl Recovered {
    /// What is damaged may need more map pages than there is room for.
    pub(crate) fn has_room(&self) -> bool {
        self.table.places_owed() <= self.slots.free()
    }

    /// In its last step: a checkpoint, under a new life.
    pub(crate) fn into_disk(self, config: StoreConfig, next_token: u64) -> Disk {
        let mut driver = Driver::new(next_token);
        driver.effects.push_back(Effect::Event(StoreEvent::Recovered {
            frames: self.frames,
            entries_dropped: self.entries_dropped,
        }));
        let damages = self.damages.told.into_iter().map(StoreEvent::Damaged).map(Effect::Event);
        driver.effects.extend(damages);
        let next = self.generation + 1;
        let old_places = self.old_places.into_iter().map(|slot| (next, slot));
        Disk {
            config,
            driver,
            phase: Phase::Recovering,
            layout: self.layout,
            superblock: self.superblock,
            life: self.life,
            generation: self.generation,
            damaged: self.damaged,
            map_asked: self.table.highest_map,
            table: self.table,
            slots: self.slots,
            small_cursor: Slot::default(),
            limbo: Limbo::default(),
            quarantine: self.quarantine,
            old_places: old_places.collect(),
            bad: BTreeSet::new(),
            journal: self.journal,
            ops: Slab::new(u32::try_from(REQUESTS_MAX).expect("a small constant")),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            blocks_waiting: 0,
            blocks_out: 0,
            batch: None,
            reads: Slab::new(u32::try_from(REQUESTS_MAX).expect("a small constant")),
            verifies: Verifies::default(),
            checkpoints_wanted: 0,
            loads: Loads::default(),
            scattered: Scattered::default(),
            slots_lost: false,
            checkpoint: None,
            fences_asked: BTreeMap::new(),
            joined_here: BTreeSet::new(),
            settled_asked: BTreeMap::new(),
            lazy_since: None,
            makers: 0,
            places_coming: 0,
            stats: StoreStats::default(),
        }
    }
}

const _: () = assert!(BLOCK_BYTES == 4096, "slots are blocks");
