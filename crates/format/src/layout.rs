//! Where what lies on a disk; a function of its capacity and the cluster's segment size.

use crate::ids::Slot;
use crate::map_page::PAGE_BLOCKS;
use crate::root::{CHUNK_REF_BYTES, FENCE_BYTES, ROOT_HEAD_BYTES, SEGMENT_BYTES};
use crate::segment_page::CHUNK_PAGES;
use crate::{BITMAP_PAGE_SLOTS, PAGE_BYTES};
use gabion_types::{BLOCK_BYTES, SegmentSize};

pub const CAPACITY_MIN: u64 = 16 << 20;
/// 2^32 slots.
pub const CAPACITY_MAX: u64 = 16 << 40;

const SUPERBLOCKS_BYTES: u64 = 2 * BLOCK_BYTES;
const JOURNAL_BYTES_MIN: u64 = 1 << 20;
const JOURNAL_BYTES_MAX: u64 = 256 << 20;
/// Segments are thin: a disk may hold so many times as many as would fit it full.
const SEGMENTS_OVERCOMMIT: u64 = 16;
const SEGMENTS_MIN: u64 = 1024;
const SEGMENTS_MAX: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("a disk of {0} bytes is too small; at least 16 MiB are needed")]
    TooSmall(u64),
    #[error("a disk of {0} bytes is too large; at most 16 TiB of it can be used")]
    TooLarge(u64),
}

/// Units: bytes from the start of the disk. All multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub capacity: u64,
    pub segment: SegmentSize,
    pub journal_at: u64,
    pub journal_bytes: u64,
    pub root_at: [u64; 2],
    pub root_bytes: u64,
    pub bitmap_at: [u64; 2],
    pub bitmap_bytes: u64,
    pub pool_at: u64,
    pub slots: u32,
}

impl Layout {
    pub fn new(capacity_bytes: u64, segment: SegmentSize) -> Result<Self, LayoutError> {
        let capacity = capacity_bytes / BLOCK_BYTES * BLOCK_BYTES;
        if capacity < CAPACITY_MIN {
            return Err(LayoutError::TooSmall(capacity_bytes));
        }
        if capacity > CAPACITY_MAX {
            return Err(LayoutError::TooLarge(capacity_bytes));
        }
        let journal = (capacity / 16).clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX);
        let journal_bytes = journal / BLOCK_BYTES * BLOCK_BYTES;
        let root_bytes = root_bytes(capacity, segment);
        let bitmap_pages = (capacity / BLOCK_BYTES).div_ceil(u64::from(BITMAP_PAGE_SLOTS));
        let bitmap_bytes = bitmap_pages * BLOCK_BYTES;
        let root_at = SUPERBLOCKS_BYTES + journal_bytes;
        let bitmap_at = root_at + 2 * root_bytes;
        let pool_at = bitmap_at + 2 * bitmap_bytes;
        let pool = capacity.checked_sub(pool_at).ok_or(LayoutError::TooSmall(capacity_bytes))?;
        let slots = u32::try_from(pool / BLOCK_BYTES).expect("16 TiB less its metadata fit");
        if u64::from(slots) * BLOCK_BYTES < capacity / 2 {
            return Err(LayoutError::TooSmall(capacity_bytes));
        }
        Ok(Self {
            capacity,
            segment,
            journal_at: SUPERBLOCKS_BYTES,
            journal_bytes,
            root_at: [root_at, root_at + root_bytes],
            root_bytes,
            bitmap_at: [bitmap_at, bitmap_at + bitmap_bytes],
            bitmap_bytes,
            pool_at,
            slots,
        })
    }

    /// The places alternate by the checkpoint's generation.
    pub fn superblock_at(generation: u64) -> u64 {
        (generation % 2) * BLOCK_BYTES
    }

    pub fn root_place(&self, generation: u64) -> u64 {
        if generation.is_multiple_of(2) { self.root_at[0] } else { self.root_at[1] }
    }

    pub fn slot_offset(&self, slot: Slot) -> u64 {
        self.pool_at + u64::from(slot.get()) * BLOCK_BYTES
    }

    /// Segments (and fenced volumes) that the root has room for.
    pub fn segments_max(&self) -> usize {
        usize::try_from(segments_max(self.capacity, self.segment)).expect("at most 2^20")
    }

    /// Map pages of one segment.
    pub fn pages_per_segment(&self) -> usize {
        self.segment.blocks().div_ceil(PAGE_BLOCKS) as usize
    }

    /// Segment pages of one segment.
    pub fn chunks_per_segment(&self) -> usize {
        self.pages_per_segment().div_ceil(CHUNK_PAGES)
    }
}

fn segments_max(capacity: u64, segment: SegmentSize) -> u64 {
    (capacity / segment.bytes() * SEGMENTS_OVERCOMMIT).clamp(SEGMENTS_MIN, SEGMENTS_MAX)
}

fn root_bytes(capacity: u64, segment: SegmentSize) -> u64 {
    let segments = segments_max(capacity, segment);
    let pages = u64::from(segment.blocks().div_ceil(PAGE_BLOCKS));
    let chunks = pages.div_ceil(CHUNK_PAGES as u64);
    // Each segment page that is referred to has a place in the pool.
    let refs = (segments * chunks).min(capacity / BLOCK_BYTES);
    let bytes = ROOT_HEAD_BYTES as u64
        + segments * (SEGMENT_BYTES + FENCE_BYTES) as u64
        + refs * CHUNK_REF_BYTES as u64;
    bytes.div_ceil(PAGE_BYTES as u64) * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_behind_each_other_and_fit() {
        let sizes = [16 << 20, 64 << 20, 512 << 20, 1 << 40, 16 << 40];
        let segments = [64 << 10, 1 << 20, 256 << 20, 16 << 30];
        for (capacity, segment) in
            sizes.into_iter().flat_map(|size| segments.map(|segment| (size, segment)))
        {
            let segment = SegmentSize::new(segment).unwrap();
            let layout = Layout::new(capacity + 17, segment).unwrap();
            assert!(layout.root_at[0] >= layout.journal_at + layout.journal_bytes);
            assert!(layout.bitmap_at[0] >= layout.root_at[1] + layout.root_bytes);
            assert!(layout.pool_at >= layout.bitmap_at[1] + layout.bitmap_bytes);
            assert!(layout.slot_offset(Slot::new(layout.slots)) <= capacity);
            assert!(u64::from(layout.slots) * BLOCK_BYTES > capacity * 3 / 4, "{layout:?}");
        }
    }

    #[test]
    fn a_disk_that_is_too_small_or_too_large_is_refused() {
        assert!(Layout::new((16 << 20) - 1, SegmentSize::DEFAULT).is_err());
        assert!(Layout::new((16 << 40) + 4096, SegmentSize::DEFAULT).is_err());
    }
}
