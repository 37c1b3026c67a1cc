//! What a replica knows of one block.

use crate::size::BlockIndex;
use crate::version::Version;
use std::fmt;

/// CRC-32 (ISO-HDLC, as in zlib) of one block's 4096 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Crc(u32);

impl Crc {
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Display for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The checksum that travels with a block from where its data enters to every disk and back.
pub fn block_crc(block: &[u8]) -> Crc {
    Crc(crc32fast::hash(block))
}

/// What stands under a block's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// Never written: version is `Version::NEVER`. Reads as zeros.
    Absent,
    /// A hole with a version, made by trim or write-zeroes. Reads as zeros.
    Zero,
    /// Data with a checksum.
    Data,
    /// Was acknowledged once and is readable nowhere. Reads as EIO until overwritten.
    Lost,
    /// Only in answers: this copy's data is unreadable or fails its checksum.
    Bad,
}

/// One block of a segment. Shape: with `kind` other than `Data`, `crc` is zero and no payload follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    pub block: BlockIndex,
    pub kind: BlockKind,
    pub version: Version,
    pub crc: Crc,
}

impl BlockInfo {
    pub const fn absent(block: BlockIndex) -> Self {
        Self { block, kind: BlockKind::Absent, version: Version::NEVER, crc: Crc(0) }
    }
}
