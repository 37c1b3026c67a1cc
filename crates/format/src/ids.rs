//! Names of things on one disk.

use gabion_types::{SegmentIndex, VolumeId};

/// Drawn when a disk is formatted; stands in every structure, so that nothing older counts.
pub type DiskUuid = [u8; 16];

/// Number of a journal frame; grows by one, over all lives of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    pub const ZERO: Self = Self(0);

    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a disk sees far fewer than 2^64 frames"))
    }
}

/// 4 KiB of the pool, counted from its start. Shape: 32 bits, hence disks up to 16 TiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, slots: u32) -> Self {
        Self(self.0 + slots)
    }
}

/// A segment of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
}

impl SegmentKey {
    pub const fn new(volume: VolumeId, segment: SegmentIndex) -> Self {
        Self { volume, segment }
    }
}
