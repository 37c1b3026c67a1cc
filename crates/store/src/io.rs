//! What goes into a store and what comes out.

use gabion_types::{
    BlockIndex, ClusterId, DiskDone, DiskError, DiskOp, Duration, Limits, MapIndex, SegmentIndex,
    VolumeId,
};
use gabion_wire::{ReplicaAnswer, ReplicaRequest, RequestId};

/// Who asked: a link of a peer, or an owner on this node. Chosen by the node; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Disk(DiskDone),
    Request {
        from: Origin,
        request: RequestId,
        ask: ReplicaRequest,
    },
    /// A new link of that peer came up, or it is gone: what it asked and what has not reached a
    /// frame is dropped, and nothing of it is answered.
    OriginGone {
        origin: Origin,
    },
    /// The highest map index that this node applied; kept on the disk, lazily.
    SawMap(MapIndex),
    /// How much of the disk's time a scrub may take. Units: percent, at least 1.
    ScrubShare(u32),
    /// As `Settings::hang_after`.
    HangAfter(Duration),
    /// The map page of a block is wanted in memory, for who looks at it from outside.
    WantPage {
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
    },
    /// Nothing more comes for now: what waits becomes durable together. Without it nothing does; a
    /// driver says it once it has handed on all that one look brought.
    Commit,
    /// Checkpoint, then `Stopped`. Further requests are refused.
    Stop,
    /// Time passed (a deadline was reached).
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Disk(DiskOp),
    Answer {
        to: Origin,
        request: RequestId,
        answer: ReplicaAnswer,
    },
    /// Recovery is over (once): requests are taken from now on.
    Opened(Opened),
    /// The disk is not ours to use, or gives errors: out of service for good (once).
    OutOfService(OutOfService),
    Event(StoreEvent),
    /// Answers `Stop` (once).
    Stopped,
}

/// What the disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub cluster: ClusterId,
    pub uuid: [u8; 16],
    pub limits: Limits,
    pub highest_map: MapIndex,
    pub capacity_bytes: u64,
    /// Recovery met damage below the durable lsn.
    pub damaged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfService {
    #[error("no superblock of Gabion is readable on it; `gabion node init` formats it")]
    NotFormatted,
    #[error("it was formatted by a newer version {version} of Gabion")]
    TooNew { version: u16 },
    #[error("it belongs to cluster {found}")]
    OtherCluster { found: ClusterId },
    #[error("it holds {found} bytes and was formatted for {expected}")]
    Truncated { found: u64, expected: u64 },
    #[error("its metadata is damaged beyond recovery")]
    Damaged,
    /// Not found by the store itself, but known to its node.
    #[error(
        "the cluster map says that it failed once, and what it holds is not trusted; format it anew"
    )]
    Retired,
    #[error("{during} failed: {error}")]
    Failed { during: During, error: DiskError },
    #[error("it hangs: what it was asked has not been answered for {} s", after.as_secs())]
    Hangs { after: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    Open,
    Write,
    Sync,
}

impl std::fmt::Display for During {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "opening",
            Self::Write => "a write",
            Self::Sync => "a sync",
        })
    }
}

/// For the log and the events; plain facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Frames replayed, entries dropped as a torn tail.
    Recovered {
        frames: u64,
        entries_dropped: u64,
    },
    /// Recovery found it: the other copies have what it told of. Or a disk that serves found it: all of
    /// it is in memory, too, but for a map page.
    Damaged(Damage),
    /// A block's data failed its checksum.
    Corrupt {
        volume: u32,
        segment: u32,
        block: u32,
    },
    Checkpointed {
        pages: u64,
    },
}

/// A part of a disk that recovery could not use as it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub part: Part,
    /// Units: bytes from the start of the disk.
    pub offset: u64,
    /// `None`: it is of no one segment.
    pub segment: Option<(VolumeId, SegmentIndex)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// One of the two; the other is good.
    Superblock,
    /// Of the durable checkpoint.
    Root,
    /// Of the durable checkpoint.
    Bitmap,
    SegmentPage,
    MapPage,
    /// A part of the ring cannot be read, or a frame that was durable is not there.
    Journal,
    /// Two blocks, or a block and a page, name one slot; or the slot is not on this disk.
    BlockPlace,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Root => "root",
            Self::Bitmap => "bitmap",
            Self::SegmentPage => "segment page",
            Self::MapPage => "map page",
            Self::Journal => "journal",
            Self::BlockPlace => "place of a block",
        })
    }
}

/// Space and traffic of one disk. Units: bytes, counts since open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub capacity_bytes: u64,
    /// Slots in use by data and metadata.
    pub used_bytes: u64,
    /// Left beside what the map's own pages may need; the reserve is in it.
    pub free_bytes: u64,
    /// Kept back for overwrites, repair, checkpoints.
    pub reserve_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    /// Of them: data that came to fill a joiner.
    pub filled_bytes: u64,
    /// Moved from many pieces into one; not in `write_bytes`.
    pub moved_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub frames: u64,
    pub syncs: u64,
    pub checkpoints: u64,
    pub corrupt_blocks: u64,
    /// Map pages and other parts that were found damaged, and that were written anew.
    pub damaged_pages: u64,
    /// Map pages in memory, and how many came from the disk since it opened.
    pub pages_here: u64,
    pub pages_loaded: u64,
    /// Read by scrubs.
    pub verified_bytes: u64,
    /// Requests taken and not yet answered.
    pub pending: u64,
    /// For how long the oldest operation has been with the disk, to the second.
    pub oldest: Duration,
}
