#![doc = include_str!("../README.md")]

pub mod block;
pub mod breaker;
pub mod change;
pub mod disk;
pub mod flaw;
pub mod guest;
pub mod ids;
pub mod latency;
pub mod limits;
pub mod load;
pub mod members;
pub mod prng;
pub mod scrub;
pub mod size;
pub mod slab;
pub mod time;
pub mod version;

pub use block::{BlockInfo, BlockKind, Crc, block_crc};
pub use breaker::{Breaker, BreakerSeen, BreakerState};
pub use change::{Combining, Outcome, OwnerChange, Promotion, RefusedChange, Removal};
pub use disk::{DiskDone, DiskError, DiskOp, DiskOpKind, DiskToken};
pub use flaw::{Flaw, Flaws};
pub use guest::{GuestData, GuestOp, GuestResult, HoldPolicy, IoError, MappedExtent};
pub use ids::{ClusterId, DiskId, Incarnation, MapIndex, NodeId, SegmentIndex, VolumeId};
pub use latency::{LATENCY_BOUNDS, Latencies};
pub use limits::Limits;
pub use load::Load;
pub use members::{FoundReplica, Joining, Move, Pair, SegmentMembers, Stale, VolumeView};
pub use prng::Prng;
pub use scrub::{ScrubAsk, ScrubFound, ScrubKind};
pub use size::{BLOCK_BYTES, BlockIndex, BlockRange, ByteRange, SECTOR_BYTES, SegmentSize};
pub use slab::Slab;
pub use time::{Duration, Instant};
pub use version::{Epoch, Seq, Version};
