//! Every structure and every block of a disk, verified.

use super::{Offline, ReadDisk, recover};
use crate::io::{Damage, OutOfService, StoreEvent};
use crate::pages::Segment;
use gabion_format::{BlockState, PAGE_BLOCKS, SegmentKey, Slot};
use gabion_types::{
    BLOCK_BYTES, BlockIndex, ClusterId, Crc, DiskError, SegmentIndex, VolumeId, block_crc,
};

/// One read of data. Units: bytes.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bad blocks that are told one by one; more are only counted.
const BAD_BLOCKS_TOLD_MAX: usize = 4096;

/// How far a check has come. Units: bytes of blocks' data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    pub done_bytes: u64,
    pub all_bytes: u64,
}

/// A block whose data is not what the map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBlock {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub block: BlockIndex,
    /// Units: bytes from the start of the disk.
    pub offset: u64,
    /// The device's word; `None`: it was read, and its checksum differs.
    pub error: Option<DiskError>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub uuid: [u8; 16],
    pub cluster: ClusterId,
    pub capacity_bytes: u64,
    pub segments: u64,
    pub map_pages: u64,
    /// Blocks with data, that read as zeros, and whose every copy was lost.
    pub data_blocks: u64,
    pub zero_blocks: u64,
    pub lost_blocks: u64,
    /// Blocks of which the disk does not know what they hold: their map page is damaged.
    pub unknown_blocks: u64,
    /// Journal frames behind the newest checkpoint.
    pub frames: u64,
    /// Of a torn tail: they were never answered. Not an error.
    pub entries_dropped: u64,
    pub damages: Vec<Damage>,
    /// The first ones; `bad_blocks_count` has their number.
    pub bad_blocks: Vec<BadBlock>,
    pub bad_blocks_count: u64,
}

impl Check {
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty() && self.bad_blocks_count == 0 && self.unknown_blocks == 0
    }
}

// promise: no-silent-corruption
/// Reads all that the disk holds. Errors: it could not be opened at all, by any node.
pub fn check(
    capacity_bytes: u64,
    read: &mut ReadDisk<'_>,
    progress: &mut dyn FnMut(Checked),
) -> Result<Check, OutOfService> {
    let Offline { store, events } = recover(capacity_bytes, read)?;
    let disk = store.disk().ok_or(OutOfService::Damaged)?;
    let mut found = Check {
        uuid: disk.superblock.uuid,
        cluster: disk.superblock.cluster,
        capacity_bytes: disk.layout.capacity,
        segments: 0,
        map_pages: 0,
        data_blocks: 0,
        zero_blocks: 0,
        lost_blocks: 0,
        unknown_blocks: 0,
        frames: 0,
        entries_dropped: 0,
        damages: Vec::new(),
        bad_blocks: Vec::new(),
        bad_blocks_count: 0,
    };
    for event in events {
        match event {
            StoreEvent::Recovered { frames, entries_dropped } => {
                (found.frames, found.entries_dropped) = (frames, entries_dropped);
            }
            StoreEvent::Damaged(damage) => found.damages.push(damage),
            StoreEvent::Corrupt { .. } | StoreEvent::Checkpointed { .. } => {}
        }
    }
    disk.table.segments().for_each(|(_, segment)| found.count(segment));
    let all_bytes = found.data_blocks * BLOCK_BYTES;
    let mut done_bytes = 0;
    for (key, segment) in disk.table.segments() {
        let mut placed = placed(segment);
        placed.sort_unstable_by_key(|placed| placed.slot);
        for run in runs(&placed) {
            found.verify(key, disk.layout.slot_offset(run[0].slot), run, read);
            done_bytes += run.len() as u64 * BLOCK_BYTES;
            progress(Checked { done_bytes, all_bytes });
        }
    }
    Ok(found)
}

/// A block with data.
#[derive(Clone, Copy)]
struct Placed {
    slot: Slot,
    crc: Crc,
    block: BlockIndex,
}

fn placed(segment: &Segment) -> Vec<Placed> {
    let mut placed = Vec::new();
    for (index, page) in segment.pages() {
        let first = u32::try_from(index).expect("a segment has few pages") * PAGE_BLOCKS;
        for (at, entry) in (first..).zip(&page.entries) {
            if let BlockState::Data { slot, crc } = entry.state() {
                placed.push(Placed { slot, crc, block: BlockIndex::new(at) });
            }
        }
    }
    placed
}

/// Blocks that lie behind each other: one read each.
fn runs(placed: &[Placed]) -> impl Iterator<Item = &[Placed]> {
    let most = usize::try_from(READ_BYTES_MAX / BLOCK_BYTES).expect("256");
    placed
        .chunk_by(|before, next| before.slot.plus(1) == next.slot)
        .flat_map(move |run| run.chunks(most))
}

impl Check {
    fn count(&mut self, segment: &Segment) {
        self.segments += 1;
        for (_, page) in segment.pages() {
            self.map_pages += 1;
            for entry in &page.entries {
                match entry.state() {
                    BlockState::Absent => {}
                    BlockState::Zero => self.zero_blocks += 1,
                    BlockState::Lost => self.lost_blocks += 1,
                    BlockState::Unknown => self.unknown_blocks += 1,
                    BlockState::Data { .. } => self.data_blocks += 1,
                }
            }
        }
    }

    fn verify(&mut self, key: SegmentKey, offset: u64, run: &[Placed], read: &mut ReadDisk<'_>) {
        let length = run.len() as u64 * BLOCK_BYTES;
        let data = read(offset, length).ok().filter(|data| data.len() as u64 == length);
        for (nth, placed) in run.iter().enumerate() {
            let at = offset + nth as u64 * BLOCK_BYTES;
            let block = match &data {
                Some(data) => Ok(data.slice(nth * 4096..(nth + 1) * 4096)),
                // An error of a long read may be that of one block.
                None => read(at, BLOCK_BYTES),
            };
            let error = match block {
                Ok(block) if block.len() == 4096 && block_crc(&block) == placed.crc => continue,
                Ok(_) => None,
                Err(error) => Some(error),
            };
            self.bad_blocks_count += 1;
            if self.bad_blocks.len() < BAD_BLOCKS_TOLD_MAX {
                self.bad_blocks.push(BadBlock {
                    volume: key.volume,
                    segment: key.segment,
                    block: placed.block,
                    offset: at,
                    error,
                });
            }
        }
    }
}
