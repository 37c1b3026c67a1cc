//! What all nodes of a cluster agree on; fixed when the cluster is made, kept in each superblock.

use crate::size::SegmentSize;
use serde::{Deserialize, Serialize};

/// Limits of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub segment: SegmentSize,
    /// A guest request is handled in parts of at most so many bytes; a multiple of 4 KiB.
    pub part_bytes: u32,
    /// Guest requests (parts) in flight on one volume. Full: front ends stop reading their sockets.
    pub requests_per_volume: u32,
    /// Write bytes in flight on one disk, over all owners; the store's reserve covers them.
    pub write_bytes_per_disk: u64,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        segment: SegmentSize::DEFAULT,
        part_bytes: 256 << 10,
        requests_per_volume: 256,
        write_bytes_per_disk: 64 << 20,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
