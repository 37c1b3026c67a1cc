//! What takes a disk's slots and its memory, for the simulator's checks.

use crate::config::{BAD_SLOTS_MAX, REQUESTS_MAX};
use crate::disk::Disk;
use crate::op::block_info;
use crate::pages::{Chunk, Page};
use crate::store::Store;
use gabion_format::SegmentKey;
use gabion_types::{BlockIndex, BlockInfo, Load, SegmentIndex, VolumeId};

/// Slots that are taken, and by what. Equal sums, or some leaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotAccount {
    pub taken: u64,
    /// By blocks that the map names.
    pub data: u64,
    /// By map pages and segment pages.
    pub metadata: u64,
    /// By what is not given out again yet, and by requests under way.
    pub passing: u64,
}

impl SlotAccount {
    pub fn leaked(&self) -> u64 {
        self.taken.saturating_sub(self.data + self.metadata + self.passing)
    }
}

impl Store {
    /// Of a disk that is open.
    pub fn slot_account(&self) -> Option<SlotAccount> {
        self.disk().map(Disk::slot_account)
    }

    pub fn loads(&self) -> Vec<Load> {
        let Some(disk) = self.disk() else { return Vec::new() };
        let requests = disk.ops.len() + disk.waiting.len() + disk.reads.len();
        vec![
            Load::new("requests of a disk", requests, REQUESTS_MAX),
            Load::new("slots known as bad", disk.bad.len(), BAD_SLOTS_MAX),
        ]
    }

    /// One block as the map has it; none where its segment is not held.
    pub fn block(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
    ) -> Option<BlockInfo> {
        let entry = self.disk()?.table.block(SegmentKey::new(volume, segment), block)?;
        Some(block_info(block, entry.state(), entry.version()))
    }

    /// All blocks of a segment, as its map has them; none where it is not held.
    pub fn blocks(&self, volume: VolumeId, segment: SegmentIndex) -> Vec<BlockInfo> {
        let found = self.disk().and_then(|disk| {
            let segment = disk.table.segment(SegmentKey::new(volume, segment))?;
            let blocks = (0..disk.table.geometry.segment_blocks).map(BlockIndex::new);
            let info = |block| {
                let entry = segment.block(block);
                block_info(block, entry.state(), entry.version())
            };
            Some(blocks.map(info).collect())
        });
        found.unwrap_or_default()
    }
}

impl Disk {
    fn slot_account(&self) -> SlotAccount {
        let segments = || self.table.segments().map(|(_, segment)| segment);
        let pages = || segments().flat_map(|segment| segment.pages().map(|(_, page)| page));
        let data = pages().flat_map(|page| page.entries.iter().filter_map(|entry| entry.slot()));
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
        let metadata = pages().map(of_page).sum::<usize>() + chunks.sum::<usize>();
        let passing = self.quarantine.len() + self.old_places.len() + self.limbo.len();
        SlotAccount {
            taken: u64::from(self.slots.count()) - self.slots.free(),
            data: data.count() as u64,
            metadata: metadata as u64,
            passing: passing as u64 + u64::from(ops.sum::<u32>()),
        }
    }
}
