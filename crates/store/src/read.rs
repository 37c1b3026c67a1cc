//! Reads: of what is durable, each block verified.

use crate::config::{BAD_SLOTS_MAX, READ_TRIES_MAX, SCAN_ENTRIES_MAX, SCAN_PAGES_MAX};
use crate::disk::{Asker, Disk, Use};
use crate::io::{Effect, StoreEvent};
use crate::op::block_info;
use crate::pages::page_of;
use crate::straighten::pieces_of;
use bytes::{Bytes, BytesMut};
use gabion_format::{BlockState, PAGE_BLOCKS, SegmentKey, Slot};
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, BlockRange, Crc, DiskError, Epoch, Flaw, Seq,
    block_crc,
};
use gabion_wire::{Refusal, ReplicaDone};

const BLOCK: usize = 4096;

#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) asker: Asker,
    pub(crate) key: SegmentKey,
    first: BlockIndex,
    blocks: Vec<ReadBlock>,
    /// Disk reads under way.
    outstanding: u32,
    /// Keeps the slots that were in the map when it began.
    guard: u64,
    purpose: Purpose,
}

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Owner,
    /// A scrub's: what came of it is told, and not the data.
    Verify,
    /// What lies in many pieces is put into one.
    Straighten,
}

#[derive(Clone, Debug)]
pub(crate) struct ReadBlock {
    pub(crate) info: BlockInfo,
    slot: Option<Slot>,
    pub(crate) data: Option<Bytes>,
    tries: u32,
}

impl ReadBlock {
    pub(crate) fn has_slot(&self) -> bool {
        self.slot.is_some()
    }
}

impl Read {
    pub(crate) fn range(&self) -> BlockRange {
        let count = u32::try_from(self.blocks.len()).expect("at most `REQUEST_BLOCKS_MAX`");
        BlockRange::new(self.first, count).expect("as it was asked")
    }
}

impl Disk {
    pub(crate) fn begin_read(
        &mut self,
        asker: Asker,
        key: SegmentKey,
        range: BlockRange,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        let segment = self.table.segment(key).ok_or(Refusal::NoSegment)?;
        let blocks = range.iter().map(|block| {
            let entry = segment.block(block);
            let info = block_info(block, entry.state(), entry.version());
            ReadBlock { info, slot: entry.slot(), data: None, tries: 0 }
        });
        let blocks = blocks.collect::<Vec<_>>();
        let runs = runs_of(&blocks);
        let guard = self.limbo.begin_read();
        let first = range.first();
        let verifies = purpose == Purpose::Verify;
        let (of_data, pieces) = pieces_of(&blocks);
        let read = Read { asker, key, first, blocks, outstanding: 0, guard, purpose };
        let Ok(read) = self.reads.insert(read) else { return Err(Refusal::Busy) };
        match purpose {
            Purpose::Verify => {
                self.stats.verified_bytes +=
                    runs.iter().map(|(_, n)| u64::from(*n) * BLOCK_BYTES).sum::<u64>();
            }
            Purpose::Owner => {
                self.stats.reads += 1;
                self.stats.read_bytes += range.bytes();
            }
            Purpose::Straighten => {}
        }
        if purpose != Purpose::Straighten {
            self.note_pieces(key, range, of_data, pieces);
        }
        for (at, count) in runs {
            self.submit_read(read, at, count);
        }
        if verifies {
            self.verify_pages(read, key, range);
        }
        self.finish_read(read);
        Ok(())
    }

    fn submit_read(&mut self, key: u64, at: u32, count: u32) {
        let Some(read) = self.reads.get_mut(key) else { return };
        let Some(slot) = read.blocks[at as usize].slot else { return };
        read.outstanding += 1;
        let offset = self.layout.slot_offset(slot);
        let usage = Use::Read { read: key, at, count };
        self.driver.read(usage, offset, u64::from(count) * BLOCK_BYTES);
    }

    pub(crate) fn on_read(
        &mut self,
        key: u64,
        at: u32,
        count: u32,
        result: Result<Bytes, DiskError>,
    ) {
        let Some(read) = self.reads.get_mut(key) else { return };
        read.outstanding -= 1;
        let data = result.ok().filter(|data| data.len() == count as usize * BLOCK);
        let mut again = Vec::new();
        for index in at..at + count {
            let part = (index - at) as usize * BLOCK;
            let block = data.as_ref().map(|data| data.slice(part..part + BLOCK));
            // An error of a long read may be that of one block.
            let alone = data.is_some() || count == 1;
            if !self.take_block(key, index, block, alone) {
                again.push(index);
            }
        }
        again.into_iter().for_each(|index| self.submit_read(key, index, 1));
        self.finish_read(key);
    }

    // promise: no-silent-corruption
    // rule: store/bad-only-if-still-named
    /// False: the block is to be read again. A copy is bad only if the map still names its slot.
    fn take_block(&mut self, key: u64, index: u32, data: Option<Bytes>, alone: bool) -> bool {
        let Some(read) = self.reads.get_mut(key) else { return true };
        let place = BlockIndex::new(read.first.get() + index);
        let current = self.table.block(read.key, place);
        let block = &mut read.blocks[index as usize];
        let flaws = self.config.flaws;
        let trusted = flaws.has(Flaw::TrustTheDisk);
        let good = |data: &Bytes| {
            trusted || block_crc(data) == block.info.crc || flaws.has(Flaw::SourceUnchecked)
        };
        if let Some(data) = data.filter(good) {
            if trusted {
                block.info.crc = block_crc(&data);
            }
            block.data = Some(data);
            return true;
        }
        let Some(slot) = block.slot else { return true };
        let current = current.filter(|entry| entry.slot() != Some(slot));
        block.tries += 1;
        if let Some(entry) = current.filter(|_| block.tries < READ_TRIES_MAX) {
            block.info = block_info(place, entry.state(), entry.version());
            block.slot = entry.slot();
            return block.slot.is_none();
        }
        if !alone {
            return false;
        }
        block.info.kind = BlockKind::Bad;
        block.info.crc = Crc::default();
        let segment = read.key;
        if self.bad.len() < BAD_SLOTS_MAX {
            self.bad.insert(slot);
        }
        self.stats.corrupt_blocks += 1;
        self.driver.effects.push_back(Effect::Event(StoreEvent::Corrupt {
            volume: segment.volume.get(),
            segment: segment.segment.get(),
            block: place.get(),
        }));
        true
    }

    /// A read of something beside the blocks is asked for, or done.
    pub(crate) fn count_read(&mut self, key: u64, begins: bool) -> Option<SegmentKey> {
        let read = self.reads.get_mut(key)?;
        read.outstanding = if begins { read.outstanding + 1 } else { read.outstanding - 1 };
        Some(read.key)
    }

    pub(crate) fn finish_read(&mut self, key: u64) {
        if self.reads.get(key).is_none_or(|read| read.outstanding > 0) {
            return;
        }
        let Some(read) = self.reads.remove(key) else { return };
        self.limbo.end_read(read.guard);
        match read.purpose {
            Purpose::Owner => {}
            Purpose::Verify => {
                self.on_verified(&read.asker, read.blocks.iter().map(|block| block.info));
                return;
            }
            Purpose::Straighten => return self.on_stretch_read(read.key, read.blocks),
        }
        let blocks = read.blocks.iter().map(|block| block.info).collect();
        let of_data = read.blocks.iter().filter(|block| block.info.kind == BlockKind::Data);
        let data = join(of_data.filter_map(|block| block.data.as_ref()));
        self.answer(&read.asker, Ok(ReplicaDone::Blocks { blocks, data }));
    }

    /// Looks at so many pages at most; the answer says where to go on.
    pub(crate) fn scan(
        &self,
        key: SegmentKey,
        from: BlockIndex,
        seq_above: Seq,
        epoch_from: Option<Epoch>,
        entries_max: u32,
    ) -> Result<ReplicaDone, Refusal> {
        let segment = self.table.segment(key).ok_or(Refusal::NoSegment)?;
        let entries_max = (entries_max as usize).min(SCAN_ENTRIES_MAX);
        if entries_max == 0 || from.get() > self.table.geometry.segment_blocks {
            return Err(Refusal::Invalid);
        }
        let wanted = |seq: Seq, epoch: Epoch| {
            seq > seq_above || epoch_from.is_some_and(|from| epoch >= from)
        };
        let mut entries = Vec::new();
        let mut at = from.get();
        let pages_end = page_of(from) + SCAN_PAGES_MAX;
        while at < self.table.geometry.segment_blocks {
            let index = page_of(BlockIndex::new(at));
            if index >= pages_end || segment.away(index).is_some() {
                break;
            }
            let page_end = (at / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            let page = segment.page(index);
            let Some(page) =
                page.filter(|page| wanted(page.highest, page.highest_epoch) || page.has_unknown())
            else {
                at = page_end;
                continue;
            };
            while at < page_end.min(self.table.geometry.segment_blocks) {
                let entry = page.entries[(at % PAGE_BLOCKS) as usize];
                let (state, version) = (entry.state(), entry.version());
                let told = match state {
                    BlockState::Absent => false,
                    BlockState::Unknown => true,
                    BlockState::Zero | BlockState::Lost | BlockState::Data { .. } => {
                        wanted(version.seq, version.epoch)
                    }
                };
                if told && entries.len() == entries_max {
                    let next = Some(BlockIndex::new(at));
                    return Ok(ReplicaDone::Table { entries, next });
                }
                if told {
                    entries.push(block_info(BlockIndex::new(at), state, version));
                }
                at += 1;
            }
        }
        let next = (at < self.table.geometry.segment_blocks).then(|| BlockIndex::new(at));
        Ok(ReplicaDone::Table { entries, next })
    }
}

/// Blocks whose slots lie behind each other: one disk read.
pub(crate) fn runs_of(blocks: &[ReadBlock]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut before: Option<Slot> = None;
    for (index, block) in (0..).zip(blocks) {
        match (block.slot, before, runs.last_mut()) {
            (Some(slot), Some(last), Some((_, count))) if slot.get() == last.get() + 1 => {
                *count += 1;
            }
            (Some(_), _, _) => runs.push((index, 1)),
            (None, _, _) => {}
        }
        before = block.slot;
    }
    runs
}

/// Without a copy where the pieces lie behind each other in memory.
fn join<'a>(mut pieces: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let Some(first) = pieces.next() else { return Bytes::new() };
    let Some(second) = pieces.next() else { return first.clone() };
    let mut joined = BytesMut::from(first.as_ref());
    joined.extend_from_slice(second);
    pieces.for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}
