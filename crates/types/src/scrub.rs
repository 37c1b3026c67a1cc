//! Scrubs: what the map asks an owner to look through, and what came of it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScrubKind {
    /// The copies' tables of (version, crc) are compared.
    Light,
    /// The same, and every block of every copy is read and verified.
    Deep,
}

/// A scrub that is wanted of a volume's owner, until it says that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubAsk {
    /// Grows with each scrub of the volume.
    pub number: u64,
    pub kind: ScrubKind,
}

/// What a scrub saw. Units: blocks of copies, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFound {
    /// Blocks of the volume of which a copy had something, compared over all copies.
    pub compared_blocks: u64,
    /// Read and compared with their checksums.
    pub verified_blocks: u64,
    /// Unreadable, or of another content than their checksum says.
    pub bad_blocks: u64,
    /// Older than what every copy has to have.
    pub behind_blocks: u64,
    /// Of the bad ones and those behind, what was written anew from another copy.
    pub mended_blocks: u64,
    /// Copies of one version whose checksums differ: no telling which is right, and nothing done.
    pub differing_blocks: u64,
    /// Blocks of the volume that are readable in no copy.
    pub lost_blocks: u64,
    /// Parts of segments that could not be looked at, for a copy was away or guests wrote there.
    pub skipped: u64,
}
