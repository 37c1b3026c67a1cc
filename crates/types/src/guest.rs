//! What guests ask and what they get, whatever front end they came through.

use crate::size::ByteRange;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// One request of a guest, or one part of a large one.
///
/// Shape: at most `Limits::part_bytes` of data, in multiples of 512 bytes; zero, trim and status may
/// cover more, for they cost by entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestOp {
    Read {
        range: ByteRange,
    },
    Write {
        range: ByteRange,
        data: Bytes,
        fua: bool,
    },
    /// Reads as zeros afterwards.
    Zero {
        range: ByteRange,
        fua: bool,
    },
    /// Whole blocks within read as zeros afterwards; edges that are part of a block stay.
    Trim {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    /// Before a write of several parts: finds room for all of it on every copy, and keeps it for
    /// the parts. Answered `NoSpace`: none of them is to be written.
    Room {
        range: ByteRange,
    },
    /// Which parts hold data.
    Status {
        range: ByteRange,
    },
}

impl GuestOp {
    pub fn range(&self) -> Option<ByteRange> {
        match self {
            Self::Read { range }
            | Self::Write { range, .. }
            | Self::Zero { range, .. }
            | Self::Trim { range, .. }
            | Self::Room { range }
            | Self::Status { range } => Some(*range),
            Self::Flush => None,
        }
    }

    pub fn is_write(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Zero { .. } | Self::Trim { .. } => true,
            Self::Read { .. } | Self::Flush | Self::Room { .. } | Self::Status { .. } => false,
        }
    }

    /// Payload bytes that the request or its answer carries.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Read { range } | Self::Write { range, .. } => range.length(),
            Self::Zero { .. }
            | Self::Trim { .. }
            | Self::Flush
            | Self::Room { .. }
            | Self::Status { .. } => 0,
        }
    }
}

impl fmt::Display for GuestOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forced = |fua: &bool| if *fua { " fua" } else { "" };
        match self {
            Self::Read { range } => write!(f, "read {range}"),
            Self::Write { range, fua, .. } => write!(f, "write {range}{}", forced(fua)),
            Self::Zero { range, fua } => write!(f, "zero {range}{}", forced(fua)),
            Self::Trim { range, fua } => write!(f, "trim {range}{}", forced(fua)),
            Self::Flush => f.write_str("flush"),
            Self::Room { range } => write!(f, "room {range}"),
            Self::Status { range } => write!(f, "status {range}"),
        }
    }
}

/// A run of a volume with or without data. Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedExtent {
    pub length: u64,
    pub data: bool,
}

/// What a request that went well gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestData {
    Done,
    Read(Bytes),
    /// In order from the start of the range; together as long as the range or shorter, never empty.
    Status(Vec<MappedExtent>),
}

pub type GuestResult = Result<GuestData, IoError>;

/// Why a guest's request failed. A request is held, not failed, while there is hope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum IoError {
    #[error("the range reaches past the end of the volume; check the size with `volume show`")]
    OutOfRange,
    #[error("offset and length must be multiples of 512 bytes")]
    Misaligned,
    #[error("a request carries at most 32 MiB; split it")]
    TooLarge,
    #[error("a disk under this volume is full; delete or trim something, or add a disk")]
    NoSpace,
    #[error("every copy of a block in this range is lost; overwrite it, or see `volume show`")]
    Lost,
    #[error("held longer than the volume's deadline; see `volume explain`")]
    HeldTooLong,
    #[error("the volume was deleted, or this client was evicted")]
    Gone,
    #[error("this node is stopping; reconnect to another")]
    Stopping,
}

/// What happens to I/O while a segment has no usable copy or there is no majority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldPolicy {
    /// Wait for ever: a guest's file system does not go read-only because a node was rebooted.
    #[default]
    NeverFail,
    /// Fail after so long.
    FailAfter(Duration),
}
