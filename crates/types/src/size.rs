//! Sizes and places: bytes of a volume, blocks of a segment.

use crate::ids::SegmentIndex;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A block of a volume, and a slot of a disk.
pub const BLOCK_BYTES: u64 = 4096;
/// The smallest unit a guest may address; below a block it costs a read.
pub const SECTOR_BYTES: u64 = 512;

/// Index of a block within its segment. Units: blocks of 4 KiB.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BlockIndex(u32);

impl BlockIndex {
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, blocks: u32) -> Self {
        Self(self.0 + blocks)
    }

    /// As an index into a slice.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A run of blocks within one segment; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    first: BlockIndex,
    count: u32,
}

impl BlockRange {
    /// Errors: `None` when empty or when the end does not fit 32 bits.
    pub const fn new(first: BlockIndex, count: u32) -> Option<Self> {
        if count == 0 || first.0.checked_add(count).is_none() {
            None
        } else {
            Some(Self { first, count })
        }
    }

    pub const fn first(self) -> BlockIndex {
        self.first
    }

    /// Units: blocks; at least 1.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The block after the last one.
    pub const fn end(self) -> BlockIndex {
        BlockIndex(self.first.0 + self.count)
    }

    pub const fn bytes(self) -> u64 {
        self.count as u64 * BLOCK_BYTES
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.first.0 < other.end().0 && other.first.0 < self.end().0
    }

    pub const fn contains(self, block: BlockIndex) -> bool {
        self.first.0 <= block.0 && block.0 < self.end().0
    }

    pub fn iter(self) -> impl Iterator<Item = BlockIndex> {
        (self.first.0..self.first.0 + self.count).map(BlockIndex)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.first.0)?;
        if self.count > 1 { write!(f, "-{}", self.end().0 - 1) } else { Ok(()) }
    }
}

/// A run of bytes of a volume. Units: bytes. May be empty; the end fits 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// Errors: `None` when the end does not fit 64 bits.
    pub const fn new(offset: u64, length: u64) -> Option<Self> {
        if offset.checked_add(length).is_none() { None } else { Some(Self { offset, length }) }
    }

    pub const fn offset(self) -> u64 {
        self.offset
    }

    pub const fn length(self) -> u64 {
        self.length
    }

    pub const fn end(self) -> u64 {
        self.offset + self.length
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

/// Size of a segment: a power of two from 64 KiB to 16 GiB, fixed when the cluster is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentSize(u64);

impl SegmentSize {
    pub const DEFAULT: Self = Self(256 << 20);

    /// Errors: `None` unless a power of two between 64 KiB and 16 GiB.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 64 << 10 && bytes <= 16 << 30 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Blocks in a segment; at most 4 Mi.
    pub fn blocks(self) -> u32 {
        u32::try_from(self.0 / BLOCK_BYTES).expect("a segment has at most 4 Mi blocks")
    }

    /// The segment that holds a byte of the volume. Errors: `None` above 2^32 segments.
    pub fn segment_of(self, offset: u64) -> Option<SegmentIndex> {
        u32::try_from(offset / self.0).ok().map(SegmentIndex::new)
    }

    /// The block within its segment that holds a byte of the volume.
    pub fn block_of(self, offset: u64) -> BlockIndex {
        let within = (offset % self.0) / BLOCK_BYTES;
        BlockIndex(u32::try_from(within).expect("a segment has at most 4 Mi blocks"))
    }

    /// How many segments a volume of so many bytes has. Errors: `None` above 2^32.
    pub fn segments_of(self, volume_bytes: u64) -> Option<u32> {
        u32::try_from(volume_bytes.div_ceil(self.0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_touch_without_overlapping() {
        let range = |first, count| BlockRange::new(BlockIndex::new(first), count).unwrap();
        assert!(!range(0, 4).overlaps(range(4, 1)));
        assert!(range(0, 5).overlaps(range(4, 1)));
        assert!(range(4, 1).overlaps(range(0, 9)));
        assert_eq!(BlockRange::new(BlockIndex::new(3), 0), None);
        assert_eq!(BlockRange::new(BlockIndex::new(u32::MAX), 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
    }

    #[test]
    fn a_byte_finds_its_segment_and_block() {
        let size = SegmentSize::new(1 << 20).unwrap();
        assert_eq!(size.segment_of((3 << 20) + 8192), Some(SegmentIndex::new(3)));
        assert_eq!(size.block_of((3 << 20) + 8192 + 511), BlockIndex::new(2));
        assert_eq!(size.segments_of((3 << 20) + 1), Some(4));
        assert_eq!(SegmentSize::new(3 << 20), None);
    }
}
