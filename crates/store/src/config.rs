//! What a store is told when it is made, and its bounds.

use gabion_types::{ClusterId, Duration, Flaws};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// The cluster that the disk must belong to; `None` takes any.
    pub cluster: Option<ClusterId>,
    /// What the driver found. Units: bytes.
    pub capacity_bytes: u64,
    /// Spreads the segments over the disk.
    pub seed: u64,
    pub settings: Settings,
    /// All of the map is read before it opens; else only what the journal names.
    pub whole_map: bool,
    /// None but in tests.
    pub flaws: Flaws,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Settled seqs and the highest map index ride with the next frame; where none comes, they get
    /// one of their own after so long.
    pub lazy_after: Duration,
    /// A scrub takes at most this part of the disk's time.
    pub scrub_share_percent: u32,
    /// Map pages kept in memory, of 3 KiB each; what is under way and what a checkpoint has to write
    /// comes on top.
    pub pages_max: usize,
    /// A disk that has not answered an operation for so long is out of service. Zero: it may take for ever.
    pub hang_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lazy_after: Duration::from_secs(1),
            scrub_share_percent: 10,
            pages_max: 65_536,
            hang_after: Duration::from_secs(30),
        }
    }
}

/// Requests taken and not yet answered. Full: refused as `Busy`.
pub const REQUESTS_MAX: usize = 16_384;
/// Data of requests that wait for slots, or until less is on its way. Full: refused as `Busy`. Units:
/// blocks (64 MiB).
pub(crate) const WAITING_BLOCKS_MAX: u64 = 16_384;
/// What the largest request of a guest takes: 32 MiB, and its map pages.
pub(crate) const REQUEST_SLOTS_MAX: u64 = 8_448;
/// Blocks of one read or write. More: refused as `Invalid`. Units: blocks.
pub const REQUEST_BLOCKS_MAX: u32 = 1024;
/// Blocks of one `Settle`, `Repair` or `Install`, with and without data. More: refused as
/// `Invalid`.
pub const LIST_BLOCKS_MAX: usize = 4096;
/// Segments that one `EpochStart` names. More: refused as `Invalid`.
pub const STARTS_MAX: usize = 8192;
/// Entries of one `Scan` answer, whatever was asked for.
pub const SCAN_ENTRIES_MAX: usize = 8192;
/// Map pages that one `Scan` looks at; its answer says where to go on.
pub const SCAN_PAGES_MAX: usize = 1024;
/// Of them, so many are read from the disk for one `Scan`.
pub(crate) const SCAN_LOADS_MAX: usize = 64;
/// Reads of map pages in flight, of a disk that serves.
pub(crate) const PAGE_READS_MAX: usize = 64;
/// Entries of one group commit, beyond its first request. Units: bytes.
pub(crate) const BATCH_BYTES_MAX: usize = 512 << 10;
/// Pieces of data of one write to the disk that is made of several requests'.
pub(crate) const JOINED_PIECES_MAX: usize = 256;
/// Settled seqs that ride with one group commit; the rest waits for the next.
pub(crate) const LAZY_ENTRIES_MAX: usize = 256;
/// Page writes of a checkpoint in flight.
pub(crate) const CHECKPOINT_WRITES_MAX: u32 = 32;
/// The same beside guests' writes, which go first.
pub(crate) const CHECKPOINT_WRITES_BESIDE: u32 = 2;
/// Guests rest when so many writes of a checkpoint came in and none of theirs went out meanwhile.
pub(crate) const CHECKPOINT_QUIET_AFTER: u32 = 8;
/// Blocks that scrubs want verified wait in a line of so many requests. Full: refused as `Busy`.
pub(crate) const VERIFIES_MAX: usize = 256;
/// Bitmap pages of one write.
pub(crate) const BITMAP_RUN_MAX: usize = 64;
/// A scrub lets guests go first, but not for longer than this for each of its reads.
pub(crate) const VERIFY_YIELDS_MAX: Duration = Duration::from_millis(100);
/// Reads of a recovery in flight.
pub(crate) const RECOVERY_READS_MAX: usize = 64;
/// A block that changes under its read is read again so often; then it counts as bad.
pub(crate) const READ_TRIES_MAX: u32 = 8;
/// Slots remembered as unreadable. More are not remembered: their repair waits for another read.
pub(crate) const BAD_SLOTS_MAX: usize = 65_536;
/// A run of so many blocks gets consecutive slots where there are any. Units: blocks.
pub(crate) const STREAM_BLOCKS: u32 = 16;
/// What is put into one run at a time. Units: blocks (1 MiB).
pub(crate) const STRETCH_BLOCKS: u32 = 256;
/// It is, where it lies in more pieces than this part of its blocks: 64 of a whole one.
pub(crate) const SCATTERED_PIECES_PART: usize = 4;
/// Stretches that are remembered. More are not: another read meets them.
pub(crate) const SCATTERED_MAX: usize = 1024;
/// The disk has had nothing to do for so long before one is moved, and between two of them.
pub(crate) const STRAIGHTEN_AFTER: Duration = Duration::from_millis(100);
/// Kept for repair. Units: bytes.
pub(crate) const REPAIR_RESERVE_BYTES: u64 = 64 << 20;
/// The reserve is at most this part of the pool.
pub(crate) const RESERVE_PART: u64 = 8;
/// Damages of one recovery that are told one by one; more are only counted.
pub(crate) const DAMAGES_TOLD_MAX: usize = 1024;
