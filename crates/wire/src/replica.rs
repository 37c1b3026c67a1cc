//! What an owner asks of a replica, and what it answers. A node's own stores are asked in the same
//! words, without a wire between.
//!
//! Durable: whatever changes a replica is answered only after the sync that covers it.

use bytes::Bytes;
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockRange, Crc, DiskId, Epoch, SegmentIndex, Seq, Version,
    VolumeId,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRequest {
    pub disk: DiskId,
    pub volume: VolumeId,
    /// The epoch at which the sender took the volume over. Refused below the fence. For `Create`
    /// and `Drop`, which come from the map and not from an owner, it is not looked at.
    pub owner_epoch: Epoch,
    pub op: ReplicaOp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOp {
    /// Rule 0. Makes the segments, empty; those that are there with this creation epoch are left.
    /// Local only: each node does it for its own disks when the map says so.
    Create { creation: Epoch, first: SegmentIndex, count: u32 },
    /// Rule 6. Refuses older owners durably, for the whole volume on this disk, also where the
    /// disk holds nothing of it; answered after what had reached a frame is durable.
    Fence { segments: Vec<FencedSegment> },
    /// Rule 1. Shape: one crc a block; `data` is `range.bytes()` long.
    Write {
        segment: SegmentIndex,
        version: Version,
        range: BlockRange,
        crcs: Vec<Crc>,
        data: Bytes,
        settled: Seq,
    },
    /// A hole with a version, over the whole range.
    Zero { segment: SegmentIndex, version: Version, range: BlockRange, settled: Seq },
    /// Each block verified; those that fail come back as `Bad` without data.
    Read { segment: SegmentIndex, range: BlockRange },
    /// Scrub: reads each block and says what came of it, in a `Table` without the data; those that
    /// were never written are left out. The disk does it at its own pace, behind everything else.
    Verify { segment: SegmentIndex, range: BlockRange },
    /// A page of the table: blocks from `from` on that were ever written and either have a seq
    /// above `seq_above` or an epoch at or above `epoch_from`; at most `entries_max`.
    Scan {
        segment: SegmentIndex,
        from: BlockIndex,
        seq_above: Seq,
        epoch_from: Option<Epoch>,
        entries_max: u32,
    },
    /// Takeover: blocks with their own versions, each applied iff above the block's. A `Lost` block
    /// is lost from then on. `data` holds the `Data` blocks in order.
    Settle { segment: SegmentIndex, blocks: Vec<BlockInfo>, data: Bytes },
    /// Read repair: the same version again, applied iff the block has still that version and its
    /// copy is bad (or the map page that told of it is lost).
    Repair { segment: SegmentIndex, blocks: Vec<BlockInfo>, data: Bytes },
    /// The next seq of each segment, durable before the settled seq moves past the gap.
    EpochStart { starts: Vec<EpochStart> },
    /// Up to this seq of each segment every write is on every in-sync replica, or void. Not
    /// answered.
    Advance { settled: Vec<(SegmentIndex, Seq)> },
    /// Rule 7. Becomes a joiner from J on; makes the segment if it isn't there with this creation
    /// epoch; freezes its settled seq.
    JoinStart { segment: SegmentIndex, joined: Epoch, creation: Epoch },
    /// Filling: each block applied iff the joiner's own has an epoch below J, even over a higher
    /// version; `Absent` takes the block away.
    Install { segment: SegmentIndex, joined: Epoch, blocks: Vec<BlockInfo>, data: Bytes },
    /// The joiner is in-sync now; its settled seq thaws and becomes `settled`.
    Promoted { segment: SegmentIndex, joined: Epoch, settled: Seq },
    /// Rule 10. Local only, from the committed map. Refused when the volume's fence on this disk or
    /// the segment's J is higher than `epoch`, or the creation epoch is another.
    Drop { segment: SegmentIndex, creation: Epoch, epoch: Epoch },
}

impl ReplicaOp {
    /// The payload that rides behind, if any.
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Write { data, .. }
            | Self::Settle { data, .. }
            | Self::Repair { data, .. }
            | Self::Install { data, .. } => Some(data).filter(|data| !data.is_empty()),
            Self::Create { .. }
            | Self::Fence { .. }
            | Self::Zero { .. }
            | Self::Read { .. }
            | Self::Scan { .. }
            | Self::Verify { .. }
            | Self::EpochStart { .. }
            | Self::Advance { .. }
            | Self::JoinStart { .. }
            | Self::Promoted { .. }
            | Self::Drop { .. } => None,
        }
    }
}

/// A segment as the map knows it, for a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FencedSegment {
    pub segment: SegmentIndex,
    pub creation: Epoch,
    /// Set where the map says that this replica is joining: only versions from J on count for it.
    pub joined: Option<Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    pub segment: SegmentIndex,
    pub epoch: Epoch,
    /// The first seq that the new owner will give.
    pub next: Seq,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaAnswer {
    pub disk: DiskId,
    pub volume: VolumeId,
    /// Bytes that this owner may have in flight to this disk beyond what it has: space and queue.
    pub credit_bytes: u64,
    pub result: Result<ReplicaDone, Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaDone {
    /// Durable.
    Done,
    Fenced {
        reports: Vec<FenceReport>,
    },
    /// Every block of the range asked for, in order; `data` holds the `Data` blocks.
    Blocks {
        blocks: Vec<BlockInfo>,
        data: Bytes,
    },
    /// `next`: where to go on; none at the end of the segment.
    Table {
        entries: Vec<BlockInfo>,
        next: Option<BlockIndex>,
    },
    JoinStarted {
        /// Its settled seq, frozen. With a segment just made: zero.
        settled: Seq,
    },
}

/// What a replica knows of a segment when it is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceReport {
    pub segment: SegmentIndex,
    /// The segment is there with the creation epoch asked for. Else all that follows is zero.
    pub present: bool,
    pub settled: Seq,
    /// Highest seq that it ever made durable; of a joiner: among versions from J on.
    pub highest: Seq,
    /// J, if it is a joiner by its own word.
    pub joined: Option<Epoch>,
    /// The highest `next` that an `EpochStart` made durable here.
    pub next: Seq,
    /// Lowest seq that its recovery had to drop.
    pub dropped_from: Option<Seq>,
    /// Recovery met damage: blocks may be missing or old at any seq.
    pub damaged: bool,
    /// A joiner that was made by joining, in the life of this very process: so it had nothing before, nothing
    /// that it got went through a recovery, and its disk is no older one.
    pub unbroken: bool,
}

/// Why a replica did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the volume is fenced for the owner of epoch {by}")]
    Fenced { by: Epoch },
    #[error("no such segment on this disk")]
    NoSegment,
    #[error("no such disk on this node")]
    NoDisk,
    #[error("the disk is full")]
    NoSpace,
    #[error("the disk is out of service")]
    OutOfService,
    #[error("the request names another J, creation epoch or drop epoch than the segment has")]
    WrongEpoch,
    #[error("the payload does not match its checksum")]
    BadPayload,
    #[error("the disk is still recovering")]
    NotReady,
    #[error("the request makes no sense for this segment")]
    Invalid,
    #[error("too much in flight on this disk")]
    Busy,
}

/// What new data of a run may take of a disk's credit: a slot a block, two places for each map page
/// that the run touches, and two for each segment page. Units: bytes; `fresh`: of the run, what has
/// no slot yet.
pub fn credit_taken(range: BlockRange, fresh: u64) -> u64 {
    const PAGE_BLOCKS: u64 = 128;
    let first = u64::from(range.first().get());
    let pages = (first + u64::from(range.count()) - 1) / PAGE_BLOCKS - first / PAGE_BLOCKS + 1;
    fresh + 2 * (pages + pages.min(2)) * BLOCK_BYTES
}

#[cfg(test)]
mod credit {
    use super::*;

    #[test]
    fn scattered_blocks_take_more_of_the_credit_than_runs() {
        let taken = |first, count: u32| {
            let range = BlockRange::new(BlockIndex::new(first), count).expect("a run");
            credit_taken(range, range.bytes()) / BLOCK_BYTES
        };
        assert_eq!((taken(7, 1), taken(127, 1), taken(127, 2)), (5, 5, 10));
        assert_eq!((taken(0, 64), taken(0, 128), taken(0, 8192)), (68, 132, 8192 + 132));
    }
}
