//! What takes a disk's slots and its memory, for the simulator's checks.

use crate::config::{BAD_SLOTS_MAX, REQUESTS_MAX, WAITING_BLOCKS_MAX};
use crate::disk::Disk;
use crate::op::block_info;
use crate::pages::{Away, Chunk, Page, page_of, within};
use crate::store::Store;
use bytes::Bytes;
use gabion_format::{BlockEntry, MapPage, SegmentKey};
use gabion_types::{BLOCK_BYTES, BlockIndex, BlockInfo, Load, SegmentIndex, VolumeId};

/// Reads 4 KiB of the disk from an offset on, as the store would find them: for who looks from outside
/// at blocks whose map page is on the disk only.
pub type Peek<'a> = dyn FnMut(u64) -> Option<Bytes> + 'a;

/// Slots that are taken, and by what. Equal sums, or some leaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotAccount {
    pub taken: u64,
    /// By blocks that the map names.
    pub data: u64,
    /// By map pages and segment pages.
    pub metadata: u64,
    /// Of them: slots that count as free all the same. They would be given out under what they hold.
    pub named_free: u64,
    /// By what is not given out again yet, and by requests under way.
    pub passing: u64,
    /// A page of the map cannot be read: what it named comes back at the next start.
    pub page_lost: bool,
}

impl SlotAccount {
    pub fn leaked(&self) -> u64 {
        self.taken.saturating_sub(self.data + self.metadata + self.passing)
    }
}

impl Store {
    /// Of a disk that is open.
    pub fn slot_account(&self, peek: &mut Peek<'_>) -> Option<SlotAccount> {
        self.disk().map(|disk| disk.slot_account(peek))
    }

    pub fn loads(&self) -> Vec<Load> {
        let Some(disk) = self.disk() else { return Vec::new() };
        let requests = disk.ops.len() + disk.waiting.len() + disk.reads.len();
        let requests = requests + disk.verifies.queue.len() + disk.loads.parked.len();
        // The first one has no bound but its own.
        let out = disk.ops.iter().map(|(_, op)| op.data_blocks());
        let line = disk.waiting.iter().map(|waiting| u64::from(waiting.plan.data_blocks()));
        let blocks = |what, used: u64, max: u64, alone: bool| {
            let max = if alone { max.max(used) } else { max };
            Load::bytes(what, used * BLOCK_BYTES, max * BLOCK_BYTES)
        };
        let alone = out.filter(|blocks| *blocks > 0).count() == 1;
        let waits_alone = line.filter(|blocks| *blocks > 0).count() == 1;
        vec![
            Load::new("requests of a disk", requests, REQUESTS_MAX),
            blocks("bytes of writes under way", disk.blocks_out, disk.blocks_out_max(), alone),
            blocks("bytes in line", disk.blocks_waiting, WAITING_BLOCKS_MAX, waits_alone),
            Load::new("map pages in memory", disk.table.pages_here(), disk.pages_most())
                .that_lasts(),
            Load::new("slots known as bad", disk.bad.len(), BAD_SLOTS_MAX).that_lasts(),
        ]
    }

    /// One block as the map has it; none where its segment is not held.
    pub fn block(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
        peek: &mut Peek<'_>,
    ) -> Option<BlockInfo> {
        let entry = self.entry(volume, segment, block, peek)?;
        Some(block_info(block, entry.state(), entry.version()))
    }

    /// All blocks of a segment, as its map has them; none where it is not held.
    pub fn blocks(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        peek: &mut Peek<'_>,
    ) -> Vec<BlockInfo> {
        let Some(disk) = self.disk() else { return Vec::new() };
        let held = disk.table.segment(SegmentKey::new(volume, segment));
        let Some(held) = held else { return Vec::new() };
        let mut page: Option<(usize, Option<MapPage>)> = None;
        let mut entry = |block| {
            held.known_block(block).or_else(|| {
                let index = page_of(block);
                if page.as_ref().is_none_or(|(of, _)| *of != index) {
                    page = Some((index, disk.peeked(held.away(index)?, peek)));
                }
                Some(page.as_ref()?.1.as_ref()?.entries[within(block)])
            })
        };
        let blocks = (0..disk.table.geometry.segment_blocks).map(BlockIndex::new);
        let info = |block| {
            let entry = entry(block).unwrap_or(BlockEntry::UNKNOWN);
            block_info(block, entry.state(), entry.version())
        };
        blocks.map(info).collect()
    }

    pub(crate) fn entry(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
        peek: &mut Peek<'_>,
    ) -> Option<BlockEntry> {
        let disk = self.disk()?;
        let segment = disk.table.segment(SegmentKey::new(volume, segment))?;
        if let Some(entry) = segment.known_block(block) {
            return Some(entry);
        }
        let away = segment.away(page_of(block))?;
        Some(disk.peeked(away, peek)?.entries[within(block)])
    }
}

impl Disk {
    fn peeked(&self, away: Away, peek: &mut Peek<'_>) -> Option<MapPage> {
        let stored = MapPage::decode(&peek(self.layout.slot_offset(away.live.slot))?).ok()?;
        (stored.lsn == away.live.lsn).then_some(stored)
    }

    fn slot_account(&self, peek: &mut Peek<'_>) -> SlotAccount {
        let segments = || self.table.segments().map(|(_, segment)| segment);
        let pages = || segments().flat_map(|segment| segment.pages().map(|(_, page)| page));
        let away = || segments().flat_map(|segment| segment.pages_away().map(|(_, away)| away));
        let mut data = Vec::new();
        pages().for_each(|page| data.extend(page.entries.iter().filter_map(BlockEntry::slot)));
        let mut page_lost = self.slots_lost;
        for away in away() {
            match self.peeked(away, peek) {
                Some(page) => data.extend(page.entries.iter().filter_map(BlockEntry::slot)),
                None => page_lost = true,
            }
        }
        let of_page = |page: &Page| {
            let refs = [page.live, page.pending].iter().flatten().count();
            refs + usize::from(page.spare.is_some())
        };
        let of_chunk = |chunk: &Chunk| {
            let refs = [chunk.live, chunk.pending].iter().flatten().count();
            refs + usize::from(chunk.spare.is_some())
        };
        let chunks = segments().flat_map(|segment| segment.chunks.iter().map(of_chunk));
        let ops = self.ops.iter().flat_map(|(_, op)| op.extents().map(|(_, count)| count));
        let of_away = away().map(|away| 1 + usize::from(away.spare.is_some())).sum::<usize>();
        let metadata = pages().map(of_page).sum::<usize>() + chunks.sum::<usize>() + of_away;
        let passing = self.quarantine.len() + self.old_places.len() + self.limbo.len();
        let free = data
            .iter()
            .filter(|slot| !self.slots.is_taken(**slot) || !self.table.named.is_set(**slot));
        SlotAccount {
            taken: u64::from(self.slots.count()) - self.slots.free(),
            named_free: free.count() as u64,
            data: data.len() as u64,
            metadata: metadata as u64,
            passing: passing as u64 + u64::from(ops.sum::<u32>()),
            page_lost,
        }
    }
}
