//! Opening a disk: the superblock, the root, the journal, what they name of the map; all by reads, then
//! one sync.
//!
//! The bitmap says what is free, so of the map pages only those are read that the journal names: the
//! time is by the journal, not by the disk. Where anything is not as it should be, or there is no
//! bitmap, opening begins anew and reads the whole map: then nothing has to be taken on trust.

use crate::config::{BITMAP_RUN_MAX, DAMAGES_TOLD_MAX, RECOVERY_READS_MAX, Settings, StoreConfig};
use crate::decide::{SuperblockSeen, SuperblockVerdict, decide_superblock};
use crate::disk::Disk;
use crate::driver::Driver;
use crate::fresh::FRESH_GENERATION;
use crate::io::{Damage, During, OutOfService, Part};
use crate::pages::{Geometry, Table};
use crate::replay::{Odd, Recovered, replay};
use crate::ring::{RING_PART_BYTES, RingScan};
use bytes::Bytes;
use gabion_format::codec::crc_field;
use gabion_format::{
    BitmapPage, ChunkRef, Content, Entry, FormatError, Layout, Lsn, MapPage, PageRef, Root,
    SegmentKey, SegmentPage, Superblock,
};
use gabion_types::{BLOCK_BYTES, Crc, DiskDone, DiskError, DiskOpKind, Flaw, Instant, block_crc};
use std::collections::{BTreeSet, VecDeque};

/// What a read in flight is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Superblock {
        place: usize,
    },
    Root,
    Chunk {
        key: SegmentKey,
        at: ChunkRef,
    },
    /// A run of bitmap pages.
    Bitmap {
        first: usize,
    },
    Page {
        key: SegmentKey,
        index: usize,
        at: PageRef,
    },
    Ring {
        at: u64,
    },
    /// Data that a frame names which may not have been synced.
    Data {
        lsn: Lsn,
        crcs: Vec<Crc>,
    },
    /// Not a read: what was read stays.
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Superblocks,
    /// The root, the segment pages that it leads to, and the bitmap.
    Root,
    Ring,
    /// Map pages.
    Map,
    Data,
    // rule: store/recovery-syncs-what-it-read
    /// An earlier process may have left what was read in the disk's cache only. Nothing is written
    /// on the strength of it before it is durable: the older root and its pages are what a power
    /// cut would bring back.
    Sync,
}

#[derive(Debug)]
pub(crate) struct Opening {
    config: StoreConfig,
    /// All map pages are read.
    whole: bool,
    pub(crate) driver: Driver<Reading>,
    stage: Stage,
    todo: VecDeque<(Reading, u64, u64)>,
    outstanding: usize,
    superblocks: [Option<Result<Superblock, Unreadable>>; 2],
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unreadable {
    Format(FormatError),
    Disk(DiskError),
}

/// From the superblock on.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// The other superblock is not readable.
    pub(crate) alone: bool,
    /// All map pages are in the table; else those that the journal names, and the bitmap counts.
    pub(crate) whole: bool,
    /// The crc of the bitmap that the root names.
    bitmap: Option<u32>,
    pub(crate) table: Table,
    pub(crate) ring: RingScan,
    /// Frames whose data is not what they say.
    pub(crate) differing: BTreeSet<Lsn>,
    pub(crate) damages: Damages,
}

/// What was not as it should be. Bounded: beyond `DAMAGES_TOLD_MAX` they are only counted.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    pub(crate) told: Vec<Damage>,
    pub(crate) count: u64,
}

impl Damages {
    pub(crate) fn add(&mut self, part: Part, offset: u64, segment: Option<SegmentKey>) {
        self.count += 1;
        if self.told.len() < DAMAGES_TOLD_MAX {
            let segment = segment.map(|key| (key.volume, key.segment));
            self.told.push(Damage { part, offset, segment });
        }
    }
}

/// What opening leads to.
pub(crate) enum Step {
    GoesOn,
    Open(Box<Disk>),
    Failed(OutOfService),
}

impl Opening {
    pub(crate) fn settings(&mut self) -> &mut Settings {
        &mut self.config.settings
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.driver.next_look(self.config.settings.hang_after)
    }

    pub(crate) fn new(config: StoreConfig, now: Instant) -> Self {
        let mut opening = Self {
            whole: config.whole_map,
            config,
            driver: Driver::new(0),
            stage: Stage::Superblocks,
            todo: VecDeque::new(),
            outstanding: 0,
            superblocks: [None, None],
            found: None,
        };
        opening.driver.pass(now);
        opening.begin();
        opening
    }

    fn begin(&mut self) {
        self.stage = Stage::Superblocks;
        self.superblocks = [None, None];
        self.found = None;
        for (place, offset) in [(0, 0), (1, BLOCK_BYTES)] {
            self.todo.push_back((Reading::Superblock { place }, offset, BLOCK_BYTES));
        }
        self.submit();
    }

    // rule: store/odd-disk-is-read-whole
    fn begin_anew(&mut self) -> Step {
        self.whole = true;
        self.begin();
        Step::GoesOn
    }

    fn submit(&mut self) {
        while self.outstanding < RECOVERY_READS_MAX {
            let Some((reading, offset, length)) = self.todo.pop_front() else { return };
            self.outstanding += 1;
            self.driver.read(reading, offset, length);
        }
    }

    pub(crate) fn handle_disk(&mut self, done: DiskDone) -> Step {
        let Some(reading) = self.driver.done(done.token) else { return Step::GoesOn };
        self.outstanding -= 1;
        if let Err(why) = self.take(reading, done.result) {
            return Step::Failed(why);
        }
        self.submit();
        while self.outstanding == 0 {
            if !self.whole && self.found.as_ref().is_some_and(Found::is_odd) {
                return self.begin_anew();
            }
            if self.stage == Stage::Sync {
                return self.finish();
            }
            if let Err(why) = self.next_stage() {
                return Step::Failed(why);
            }
            self.submit();
        }
        Step::GoesOn
    }

    fn take(
        &mut self,
        reading: Reading,
        result: Result<Bytes, DiskError>,
    ) -> Result<(), OutOfService> {
        if let Reading::Superblock { place } = reading {
            self.superblocks[place] = Some(match result {
                Ok(bytes) => Superblock::decode(&bytes).map_err(Unreadable::Format),
                Err(error) => Err(Unreadable::Disk(error)),
            });
            return Ok(());
        }
        if reading == Reading::Sync {
            let failed = |error| OutOfService::Failed { during: During::Sync, error };
            return result.map(|_| ()).map_err(failed);
        }
        let Some(found) = &mut self.found else { return Ok(()) };
        match reading {
            Reading::Superblock { .. } | Reading::Sync => {}
            Reading::Root => {
                let bytes = result.map_err(|_| OutOfService::Damaged)?;
                self.todo = found.take_root(&bytes).ok_or(OutOfService::Damaged)?;
                self.whole |= found.bitmap.is_none();
                found.whole = self.whole;
                if !self.whole {
                    self.todo.extend(found.bitmap_reads());
                }
            }
            Reading::Bitmap { first } => found.take_bitmap(first, result.ok()),
            Reading::Chunk { key, at } => found.take_chunk(key, at, result.ok()),
            Reading::Page { key, index, at } => found.take_page(key, index, at, result.ok()),
            Reading::Ring { at } => found.ring.put(&found.superblock, at, result.ok()),
            Reading::Data { lsn, crcs } => {
                let good = result.is_ok_and(|data| {
                    data.len() as u64 == crcs.len() as u64 * BLOCK_BYTES
                        && data.chunks_exact(4096).map(block_crc).eq(crcs)
                });
                if !good {
                    found.differing.insert(lsn);
                }
            }
        }
        Ok(())
    }

    fn next_stage(&mut self) -> Result<(), OutOfService> {
        self.stage = match self.stage {
            Stage::Superblocks => {
                let mut found = self.choose_superblock()?;
                found.whole = self.whole;
                let root = found.layout.root_place(found.superblock.generation);
                self.todo.push_back((Reading::Root, root, found.superblock.root_length));
                self.found = Some(found);
                Stage::Root
            }
            Stage::Root => {
                self.todo = self.found.iter().flat_map(Found::ring_reads).collect();
                Stage::Ring
            }
            Stage::Ring => {
                if let Some(found) = &mut self.found {
                    found.ring.end(&found.superblock);
                }
                self.todo = self.found.iter().flat_map(Found::page_reads).collect();
                Stage::Map
            }
            Stage::Map => {
                self.todo = self.found.iter().flat_map(Found::data_reads).collect();
                Stage::Data
            }
            Stage::Data | Stage::Sync if self.config.flaws.has(Flaw::NoSyncAfterReplay) => {
                Stage::Sync
            }
            Stage::Data | Stage::Sync => {
                self.outstanding += 1;
                self.driver.submit(Reading::Sync, DiskOpKind::Sync);
                Stage::Sync
            }
        };
        Ok(())
    }

    fn choose_superblock(&self) -> Result<Found, OutOfService> {
        let seen = |place: usize| match &self.superblocks[place] {
            Some(Ok(superblock)) => SuperblockSeen::Good { generation: superblock.generation },
            Some(Err(Unreadable::Format(FormatError::Version { found }))) => {
                SuperblockSeen::TooNew { version: *found }
            }
            Some(Err(_)) | None => SuperblockSeen::Unreadable,
        };
        let (place, alone) = match decide_superblock([seen(0), seen(1)]) {
            SuperblockVerdict::Use { place, alone } => (place, alone),
            SuperblockVerdict::TooNew { version } => return Err(OutOfService::TooNew { version }),
            SuperblockVerdict::NotFormatted => return Err(self.why_unreadable()),
        };
        let Some(Ok(superblock)) = self.superblocks[place] else {
            return Err(OutOfService::NotFormatted);
        };
        let other = self.superblocks[1 - place].and_then(Result::ok);
        if other.is_some_and(|other| other.uuid != superblock.uuid) {
            // It was being formatted anew, and that did not come to its end.
            return Err(OutOfService::NotFormatted);
        }
        if self.config.cluster.is_some_and(|cluster| cluster != superblock.cluster) {
            return Err(OutOfService::OtherCluster { found: superblock.cluster });
        }
        if self.config.capacity_bytes < superblock.capacity {
            let (found, expected) = (self.config.capacity_bytes, superblock.capacity);
            return Err(OutOfService::Truncated { found, expected });
        }
        let layout = Layout::new(superblock.capacity, superblock.limits.segment)
            .map_err(|_| OutOfService::Damaged)?;
        let root_fits = (1..=layout.root_bytes).contains(&superblock.root_length)
            && superblock.root_length.is_multiple_of(BLOCK_BYTES)
            && superblock.journal_next < layout.journal_bytes;
        if !root_fits {
            return Err(OutOfService::Damaged);
        }
        let mut found = Found::new(superblock, layout, alone, self.config.seed);
        found.table.flaws = self.config.flaws;
        // A disk that was never opened has one only.
        if alone && superblock.generation > FRESH_GENERATION {
            found.damages.add(Part::Superblock, (1 - place) as u64 * BLOCK_BYTES, None);
        }
        Ok(found)
    }

    fn why_unreadable(&self) -> OutOfService {
        let errors = self.superblocks.iter().flatten().filter_map(|result| result.err());
        for error in errors {
            match error {
                Unreadable::Disk(error) => {
                    return OutOfService::Failed { during: During::Open, error };
                }
                Unreadable::Format(FormatError::Magic) => {}
                Unreadable::Format(_) => return OutOfService::Damaged,
            }
        }
        OutOfService::NotFormatted
    }

    fn finish(&mut self) -> Step {
        let Some(found) = self.found.take() else { return Step::GoesOn };
        let recovered: Recovered = match replay(found) {
            Ok(recovered) => recovered,
            Err(Odd) => return self.begin_anew(),
        };
        if !recovered.has_room() {
            return Step::Failed(OutOfService::Damaged);
        }
        let effects = std::mem::take(&mut self.driver.effects);
        let next_token = self.driver.next_token();
        let mut disk = recovered.into_disk(self.config.clone(), next_token);
        for effect in effects.into_iter().rev() {
            disk.driver.effects.push_front(effect);
        }
        disk.begin_checkpoint();
        Step::Open(Box::new(disk))
    }
}

impl Found {
    fn new(superblock: Superblock, layout: Layout, alone: bool, seed: u64) -> Self {
        let geometry = Geometry {
            segments_max: layout.segments_max(),
            segment_blocks: layout.segment.blocks(),
            pages_per_segment: layout.pages_per_segment(),
            chunks_per_segment: layout.chunks_per_segment(),
            slots: layout.slots,
        };
        Self {
            superblock,
            layout,
            alone,
            whole: false,
            bitmap: None,
            table: Table::new(geometry, seed),
            ring: RingScan::default(),
            differing: BTreeSet::new(),
            damages: Damages::default(),
        }
    }

    // promise: self-describing
    /// The segments and fences; and what is to be read next. `None`: not the root that the
    /// superblock names.
    fn take_root(&mut self, bytes: &[u8]) -> Option<VecDeque<(Reading, u64, u64)>> {
        let root = Root::decode(bytes).ok()?;
        let named = crc_field(bytes) == Some(self.superblock.root_crc)
            && root.uuid == self.superblock.uuid
            && root.generation == self.superblock.generation
            && root.lsn == self.superblock.lsn
            && root.segments.len() <= self.table.geometry.segments_max;
        if !named {
            return None;
        }
        self.bitmap = root.bitmap;
        self.table.fences.extend(root.fences);
        self.table.highest_map = self.superblock.highest_map;
        let mut todo = VecDeque::new();
        for record in root.segments {
            self.table.add_segment(record.key, record.meta);
            for at in record.chunks {
                if at.chunk as usize >= self.table.geometry.chunks_per_segment {
                    return None;
                }
                if at.slot.get() >= self.layout.slots {
                    self.lose_chunk(record.key, at);
                    continue;
                }
                let reading = Reading::Chunk { key: record.key, at };
                todo.push_back((reading, self.layout.slot_offset(at.slot), BLOCK_BYTES));
            }
        }
        Some(todo)
    }

    /// The place of root and bitmap.
    fn place(&self) -> usize {
        usize::from(self.superblock.generation % 2 == 1)
    }

    fn bitmap_reads(&self) -> impl Iterator<Item = (Reading, u64, u64)> {
        let pages = self.table.named.pages();
        let at = self.layout.bitmap_at[self.place()];
        (0..pages).step_by(BITMAP_RUN_MAX).map(move |first| {
            let count = BITMAP_RUN_MAX.min(pages - first) as u64;
            let offset = at + first as u64 * BLOCK_BYTES;
            (Reading::Bitmap { first }, offset, count * BLOCK_BYTES)
        })
    }

    /// What is not as it was written shows in the crc over all of it.
    fn take_bitmap(&mut self, first: usize, bytes: Option<Bytes>) {
        let place = self.place();
        let bytes = bytes.unwrap_or_default();
        for (page, bytes) in (first..).zip(bytes.chunks_exact(4096)) {
            let Ok(stored) = BitmapPage::decode(bytes) else { continue };
            let crc = crc_field(bytes).unwrap_or_default();
            let is_it = stored.uuid == self.superblock.uuid && stored.index as usize == page;
            if !is_it || !self.table.named.load(place, page, &stored.bits, crc) {
                self.bitmap = None;
            }
        }
    }

    // rule: store/odd-disk-is-read-whole
    /// Something is not as a store that was stopped, killed or lost its power leaves it; or there is
    /// no bitmap that can be used. To be asked when nothing is being read.
    fn is_odd(&self) -> bool {
        let named = self.bitmap == Some(self.table.named.crc(self.place()));
        !named || self.damages.count > 0 || self.ring.newer || !self.ring.unreadable.is_empty()
    }

    /// The map pages that the journal names, and all of a segment that it drops; or all.
    fn page_reads(&self) -> Vec<(Reading, u64, u64)> {
        let mut reads = Vec::new();
        let mut add = |key: SegmentKey, index: usize, at: PageRef| {
            let reading = Reading::Page { key, index, at };
            reads.push((reading, self.layout.slot_offset(at.slot), BLOCK_BYTES));
        };
        if self.whole {
            for (key, segment) in self.table.segments() {
                segment.pages_away().for_each(|(index, away)| add(key, index, away.live));
            }
            return reads;
        }
        for (key, index) in self.ring.pages_named(self.table.geometry.pages_per_segment) {
            let away = self.table.segment(key).and_then(|segment| segment.away(index));
            away.into_iter().for_each(|away| add(key, index, away.live));
        }
        reads
    }

    fn take_chunk(&mut self, key: SegmentKey, at: ChunkRef, bytes: Option<Bytes>) {
        let page = bytes.filter(|bytes| crc_field(bytes) == Some(at.crc));
        let page = page.and_then(|bytes| SegmentPage::decode(&bytes).ok()).filter(|page| {
            page.uuid == self.superblock.uuid && page.key == key && page.chunk == at.chunk
        });
        let Some(page) = page else {
            self.lose_chunk(key, at);
            return;
        };
        self.table.load_chunk(key, at);
        let first = at.chunk as usize * gabion_format::CHUNK_PAGES;
        for (index, at) in (first..).zip(page.pages) {
            let Some(at) = at else { continue };
            if at.slot.get() >= self.layout.slots {
                self.lose_page(key, index, at, at.lsn);
                continue;
            }
            self.table.add_away(key, index, at);
        }
    }

    // rule: store/lost-map-write-noticed
    fn take_page(&mut self, key: SegmentKey, index: usize, at: PageRef, bytes: Option<Bytes>) {
        let page = bytes.and_then(|bytes| MapPage::decode(&bytes).ok()).filter(|page| {
            page.uuid == self.superblock.uuid
                && page.key == key
                && page.index as usize == index
                && page.lsn == at.lsn
        });
        match page {
            Some(page) => self.table.load_page(key, index, &page),
            None => self.lose_page(key, index, at, self.superblock.lsn),
        }
    }

    fn lose_chunk(&mut self, key: SegmentKey, at: ChunkRef) {
        self.damages.add(Part::SegmentPage, self.layout.slot_offset(at.slot), Some(key));
        self.table.lose_chunk(key, at);
    }

    fn lose_page(&mut self, key: SegmentKey, index: usize, at: PageRef, lsn: Lsn) {
        self.damages.add(Part::MapPage, self.layout.slot_offset(at.slot), Some(key));
        let place = (at.slot.get() < self.layout.slots).then_some(at.slot);
        self.table.lose_page(key, index, place, lsn);
    }

    fn ring_reads(&self) -> impl Iterator<Item = (Reading, u64, u64)> {
        let ring = self.layout.journal_bytes;
        let parts = (0..ring).step_by(usize::try_from(RING_PART_BYTES).unwrap_or(usize::MAX));
        parts.map(move |at| {
            (Reading::Ring { at }, self.layout.journal_at + at, RING_PART_BYTES.min(ring - at))
        })
    }

    /// The data of the frames that no later frame proves durable.
    fn data_reads(&self) -> Vec<(Reading, u64, u64)> {
        let durable = self.ring.durable(&self.superblock);
        let mut reads = Vec::new();
        for (lsn, frame) in self.ring.frames.range(durable.next()..) {
            for entry in &frame.entries {
                let Entry::Blocks { content: Content::Data { slot, crcs }, .. } = entry else {
                    continue;
                };
                let reading = Reading::Data { lsn: *lsn, crcs: crcs.clone() };
                let length = crcs.len() as u64 * BLOCK_BYTES;
                let offset = self.layout.slot_offset(*slot);
                if offset + length > self.layout.capacity {
                    continue;
                }
                reads.push((reading, offset, length));
            }
        }
        reads
    }
}
