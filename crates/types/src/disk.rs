//! What a store asks of its disk, and what it gets: the border between the pure cores and whoever
//! does the I/O.

use bytes::Bytes;
use std::fmt;

/// Brings a completion back to its request; chosen by the store, unique among what is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskToken(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOp {
    pub token: DiskToken,
    pub kind: DiskOpKind,
}

/// Shape: offsets and lengths are multiples of 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOpKind {
    Read {
        offset: u64,
        length: u64,
    },
    /// The pieces lie one behind the other on the disk. The driver may write straight from them
    /// where they are aligned, else it copies.
    Write {
        offset: u64,
        pieces: Vec<Bytes>,
    },
    /// Makes every write that completed before it was issued durable.
    Sync,
}

impl fmt::Display for DiskOpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset, length } => write!(f, "read {offset}+{length}"),
            Self::Write { offset, pieces } => {
                let length: usize = pieces.iter().map(Bytes::len).sum();
                write!(f, "write {offset}+{length}")
            }
            Self::Sync => f.write_str("sync"),
        }
    }
}

/// Exactly one comes for each `DiskOp`. Short reads and writes, EINTR and EAGAIN were continued by
/// the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDone {
    pub token: DiskToken,
    /// A read's data, in one piece; empty for the rest.
    pub result: Result<Bytes, DiskError>,
}

/// The device's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("the disk answered with an I/O error (errno {errno})")]
    Io { errno: i32 },
    #[error("the file system under the disk file is full")]
    NoSpace,
    #[error("the disk ends before byte {end}")]
    PastEnd { end: u64 },
}
