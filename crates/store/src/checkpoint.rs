//! Checkpoints: the map goes to the pool, so that the journal can be written over.
//!
//! Order: changed map pages, segment pages and the root, each to its other place; a sync; the
//! superblock; a sync; then the journal's tail moves and the places that were replaced are free.
//! What the root says of segments and fences is exactly what the frames up to its lsn made; a map
//! page may be newer, and says so by its own lsn. Guests' writes go on meanwhile.

use crate::commit::Journal;
use crate::config::{
    BITMAP_RUN_MAX, CHECKPOINT_QUIET_AFTER, CHECKPOINT_WRITES_BESIDE, CHECKPOINT_WRITES_MAX,
};
use crate::disk::{Disk, Phase, Use};
use crate::io::{Effect, Opened, StoreEvent};
use crate::pages::{PageKey, Segment};
use bytes::Bytes;
use gabion_format::codec::crc_field;
use gabion_format::{
    BitmapPage, CHUNK_PAGES, ChunkRef, Layout, Lsn, MapPage, PageRef, Root, SegmentKey,
    SegmentPage, SegmentRecord, Slot, Superblock,
};
use gabion_types::{BLOCK_BYTES, DiskOpKind, Epoch, MapIndex, VolumeId};
use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
pub(crate) struct Checkpoint {
    generation: u64,
    /// All frames up to it are covered.
    lsn: Lsn,
    chain: u32,
    /// Where the journal begins once this one is durable.
    tail: u64,
    map: MapIndex,
    fences: Vec<(VolumeId, Epoch)>,
    segments: Vec<(u64, SegmentRecord)>,
    pages: VecDeque<PageKey>,
    pages_written: Vec<PageKey>,
    /// Segment pages to write: of which segment, and which of its lives.
    chunks: BTreeSet<(SegmentKey, u64, usize)>,
    chunks_written: Vec<(SegmentKey, u64, usize, ChunkRef)>,
    /// Bitmap pages to write.
    bitmap: VecDeque<usize>,
    stage: Stage,
    outstanding: u32,
    /// Map pages to write, and where the journal's head was when it began.
    pages_all: usize,
    began_at: u64,
    /// Where the journal's head was when a write of this one came in last, and how many have come in
    /// since it moved.
    head: u64,
    quiet: u32,
    root_length: u64,
    root_crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pages,
    Chunks,
    /// Behind all map pages: see `named.rs`.
    Bitmap,
    Root,
    Sync,
    Superblock,
}

impl Disk {
    pub(crate) fn begin_checkpoint(&mut self) {
        let pages = VecDeque::from(self.table.take_dirty());
        self.checkpoints_wanted = self.checkpoints_wanted.saturating_sub(1);
        let chunks = pages.iter().map(|at| (at.key, at.instance, at.index / CHUNK_PAGES));
        let chunks = chunks.chain(self.table.take_rotten_chunks()).collect();
        let record = |(key, segment): (SegmentKey, &Segment)| {
            let chunks = segment.chunks.iter().filter_map(|chunk| chunk.live).collect();
            (segment.instance, SegmentRecord { key, meta: segment.meta, chunks })
        };
        let fences = self.table.fences.iter().map(|(volume, epoch)| (*volume, *epoch));
        self.checkpoint = Some(Checkpoint {
            generation: self.generation + 1,
            lsn: self.journal.durable,
            chain: self.journal.chain,
            tail: self.batch.as_ref().map_or(self.journal.head, |batch| batch.start),
            map: self.map_asked.max(self.table.highest_map),
            fences: fences.collect(),
            segments: self.table.segments().map(record).collect(),
            pages_all: pages.len(),
            began_at: self.journal.head,
            head: self.journal.head,
            quiet: 0,
            pages,
            pages_written: Vec::new(),
            chunks,
            chunks_written: Vec::new(),
            bitmap: VecDeque::new(),
            stage: Stage::Pages,
            outstanding: 0,
            root_length: 0,
            root_crc: 0,
        });
        self.go_on_with_checkpoint();
    }

    /// Sends what may be sent now.
    pub(crate) fn go_on_with_checkpoint(&mut self) {
        let busy = self.batch.is_some() || !self.queue.is_empty();
        let serving = self.phase == Phase::Serving;
        while let Some(checkpoint) = &mut self.checkpoint {
            let guests_write = serving && (busy || checkpoint.quiet < CHECKPOINT_QUIET_AFTER);
            if checkpoint.outstanding >= checkpoint.writes_max(guests_write, &self.journal) {
                return;
            }
            match checkpoint.stage {
                Stage::Pages => match checkpoint.pages.pop_front() {
                    Some(at) => self.write_page(at),
                    None => checkpoint.stage = Stage::Chunks,
                },
                Stage::Chunks => match checkpoint.chunks.pop_first() {
                    Some((key, instance, chunk)) => self.write_chunk(key, instance, chunk),
                    None => {
                        checkpoint.stage = Stage::Bitmap;
                        let changed = self.table.named.take_changed(checkpoint.place());
                        checkpoint.bitmap = changed.into();
                    }
                },
                Stage::Bitmap if checkpoint.bitmap.is_empty() => {
                    checkpoint.stage = Stage::Root;
                    self.write_root();
                }
                Stage::Bitmap => self.write_bitmap(),
                Stage::Root | Stage::Sync | Stage::Superblock => return,
            }
        }
    }

    /// A place that a page owns already, or a new one near the segment's.
    fn metadata_slot(&mut self, spare: Option<Slot>) -> Slot {
        spare.unwrap_or_else(|| {
            let extents = self.slots.allocate(Slot::default(), 1);
            self.table.add_held(1);
            extents.expect("room for two places of each page is kept")[0].0
        })
    }

    fn write_page(&mut self, at: PageKey) {
        let uuid = self.superblock.uuid;
        let Some(spare) = self.table.page_mut(at).map(|page| page.spare.take()) else { return };
        let slot = self.metadata_slot(spare);
        let Some(page) = self.table.page_mut(at) else { return };
        page.pending = Some(PageRef { slot, lsn: page.lsn });
        page.due = false;
        let encoded = MapPage {
            uuid,
            key: at.key,
            index: u32::try_from(at.index).expect("a segment has at most 2^15 map pages"),
            lsn: page.lsn,
            highest: page.highest,
            entries: page.entries,
        };
        let bytes = encoded.encode();
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.pages_written.push(at);
        }
        self.write_metadata(self.layout.slot_offset(slot), bytes);
    }

    fn write_chunk(&mut self, key: SegmentKey, instance: u64, chunk: usize) {
        let uuid = self.superblock.uuid;
        let there = self.table.chunk_mut(key, instance, chunk).map(|chunk| chunk.spare.take());
        let Some(spare) = there else { return };
        let slot = self.metadata_slot(spare);
        let Some(segment) = self.table.segment(key) else { return };
        let first = chunk * CHUNK_PAGES;
        let pages = (first..first + CHUNK_PAGES).map(|index| {
            let pending = segment.page(index).and_then(|page| page.pending);
            pending.or(segment.live(index))
        });
        let chunk_number = u32::try_from(chunk).expect("a segment has at most 133 chunks");
        let encoded = SegmentPage { uuid, key, chunk: chunk_number, pages: pages.collect() };
        let bytes = encoded.encode();
        let crc = crc_field(&bytes).expect("a sealed structure has a crc");
        let at = ChunkRef { chunk: chunk_number, slot, crc };
        if let Some(chunk) = self.table.chunk_mut(key, instance, chunk) {
            chunk.pending = Some(at);
        }
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.chunks_written.push((key, instance, chunk, at));
        }
        self.write_metadata(self.layout.slot_offset(slot), bytes);
    }

    // promise: self-describing
    // rule: store/bitmap-behind-map-pages
    /// A run of pages.
    fn write_bitmap(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let place = checkpoint.place();
        let Some(first) = checkpoint.bitmap.front().copied() else { return };
        let mut pieces = Vec::new();
        while let Some(page) = checkpoint
            .bitmap
            .pop_front_if(|page| *page == first + pieces.len() && pieces.len() < BITMAP_RUN_MAX)
        {
            let encoded = BitmapPage {
                uuid: self.superblock.uuid,
                generation: checkpoint.generation,
                index: u32::try_from(page).expect("at most 2^18"),
                bits: self.table.named.page(page).to_vec(),
            };
            let bytes = encoded.encode();
            let crc = crc_field(&bytes).expect("a sealed structure has a crc");
            self.table.named.written(place, page, crc);
            pieces.push(bytes);
        }
        checkpoint.outstanding += 1;
        let offset = self.layout.bitmap_at[place] + first as u64 * BLOCK_BYTES;
        self.driver.write(Use::CheckpointWrite, offset, pieces);
    }

    fn write_root(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let mut written = checkpoint.chunks_written.iter().peekable();
        for (instance, record) in &mut checkpoint.segments {
            // Both are in the order of the segments.
            while let Some((key, of, _, at)) = written.next_if(|(key, ..)| *key <= record.key) {
                if (key, of) == (&record.key, &*instance) {
                    record.chunks.retain(|chunk| chunk.chunk != at.chunk);
                    record.chunks.push(*at);
                }
            }
            record.chunks.sort_unstable_by_key(|chunk| chunk.chunk);
        }
        let segments = std::mem::take(&mut checkpoint.segments);
        let root = Root {
            uuid: self.superblock.uuid,
            generation: checkpoint.generation,
            lsn: checkpoint.lsn,
            bitmap: (!self.slots_lost).then(|| self.table.named.crc(checkpoint.place())),
            fences: std::mem::take(&mut checkpoint.fences),
            segments: segments.into_iter().map(|(_, record)| record).collect(),
        };
        let (bytes, crc) = root.encode();
        checkpoint.root_length = bytes.len() as u64;
        checkpoint.root_crc = crc;
        let offset = self.layout.root_place(checkpoint.generation);
        assert!(bytes.len() as u64 <= self.layout.root_bytes, "its bounds are in the layout");
        self.write_metadata(offset, bytes);
    }

    fn write_metadata(&mut self, offset: u64, bytes: Bytes) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.outstanding += 1;
        }
        self.driver.write(Use::CheckpointWrite, offset, vec![bytes]);
    }

    pub(crate) fn on_checkpoint_written(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        checkpoint.outstanding -= 1;
        let moved = std::mem::replace(&mut checkpoint.head, self.journal.head) != checkpoint.head;
        checkpoint.quiet = if moved { 0 } else { checkpoint.quiet.saturating_add(1) };
        if checkpoint.stage == Stage::Root && checkpoint.outstanding == 0 {
            checkpoint.stage = Stage::Sync;
            self.stats.syncs += 1;
            self.driver.submit(Use::CheckpointSync, DiskOpKind::Sync);
        }
    }

    pub(crate) fn on_checkpoint_synced(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        checkpoint.stage = Stage::Superblock;
        let superblock = checkpoint.superblock(&self.superblock, self.life, &self.journal);
        let offset = Layout::superblock_at(superblock.generation);
        self.driver.write(Use::Superblock, offset, vec![superblock.encode()]);
    }

    pub(crate) fn on_superblock_written(&mut self) {
        self.stats.syncs += 1;
        self.driver.submit(Use::SuperblockSync, DiskOpKind::Sync);
    }

    // rule: store/tail-moves-after-superblock
    pub(crate) fn on_superblock_durable(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        self.superblock = checkpoint.superblock(&self.superblock, self.life, &self.journal);
        self.generation = checkpoint.generation;
        self.journal.tail = checkpoint.tail;
        for at in &checkpoint.pages_written {
            if let Some(page) = self.table.page_mut(*at) {
                page.spare = page.live.map(|live| live.slot);
                page.live = page.pending.take();
                page.rotten = false;
            }
        }
        for (key, instance, chunk, _) in &checkpoint.chunks_written {
            if let Some(chunk) = self.table.chunk_mut(*key, *instance, *chunk) {
                chunk.spare = chunk.live.map(|live| live.slot);
                chunk.live = chunk.pending.take();
            }
        }
        let generation = checkpoint.generation;
        while let Some((_, slot)) = self.old_places.pop_front_if(|(when, _)| *when <= generation) {
            self.limbo.push(slot);
        }
        if checkpoint.lsn == self.journal.durable {
            self.release_quarantine();
        }
        self.stats.checkpoints += 1;
        self.evict_again();
        let pages = checkpoint.pages_written.len() as u64;
        self.driver.effects.push_back(Effect::Event(StoreEvent::Checkpointed { pages }));
        if self.phase == Phase::Recovering {
            self.open();
        }
    }

    fn open(&mut self) {
        self.phase = Phase::Serving;
        self.driver.effects.push_back(Effect::Opened(Opened {
            cluster: self.superblock.cluster,
            uuid: self.superblock.uuid,
            limits: self.superblock.limits,
            highest_map: self.superblock.highest_map,
            capacity_bytes: self.layout.capacity,
            damaged: self.damaged,
        }));
    }
}

impl Checkpoint {
    // rule: store/checkpoint-paced
    /// Beside guests' writes it goes by few at a time, as long as it is done with its pages before
    /// three quarters of the ring are full; without them, or when it is late, by as many as it may.
    fn writes_max(&self, guests_write: bool, journal: &Journal) -> u32 {
        let written = (self.pages_all - self.pages.len()) as u64;
        let filled = journal.head - self.began_at;
        let in_time = written * (journal.ring_bytes / 4) >= filled * self.pages_all as u64;
        if guests_write && in_time { CHECKPOINT_WRITES_BESIDE } else { CHECKPOINT_WRITES_MAX }
    }

    /// Of root and bitmap.
    fn place(&self) -> usize {
        usize::from(self.generation % 2 == 1)
    }

    fn superblock(&self, before: &Superblock, life: u64, journal: &Journal) -> Superblock {
        Superblock {
            generation: self.generation,
            life,
            lsn: self.lsn,
            chain: self.chain,
            journal_next: self.tail % journal.ring_bytes,
            root_length: self.root_length,
            root_crc: self.root_crc,
            highest_map: self.map,
            ..*before
        }
    }
}
