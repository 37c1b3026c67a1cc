//! Epochs, seqs and versions: the order in which everything that happened to a block is told.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One number a volume, raised by consensus on every change of owner or of members.
///
/// Shape: 48 bits, so that a map entry on disk stays at 24 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(u64);

/// Counts the writes within a segment; only grows, also across epochs. Shape: 64 bits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(u64);

/// What stands on every block: ordered by epoch, then by seq.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    pub epoch: Epoch,
    pub seq: Seq,
}

impl Epoch {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self((1 << 48) - 1);

    /// Errors: `None` above 48 bits.
    pub const fn new(value: u64) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch after this one; a volume would need a change a microsecond for eight years to run out.
    #[must_use]
    pub fn next(self) -> Self {
        Self::new(self.0 + 1).expect("epochs are raised far fewer than 2^48 times")
    }
}

impl Seq {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a segment sees far fewer than 2^64 writes"))
    }

    /// The seq before this one; that of zero is zero.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Version {
    /// The version of a block that was never written.
    pub const NEVER: Self = Self { epoch: Epoch::ZERO, seq: Seq::ZERO };

    pub const fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "q{}", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.get(), self.seq.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_ordered_by_epoch_first() {
        let old = Version::new(Epoch(1), Seq(900));
        let new = Version::new(Epoch(2), Seq(3));
        assert!(old < new);
        assert!(Version::NEVER < old);
        assert_eq!(Epoch::new(1 << 48), None);
        assert_eq!(Seq::ZERO.previous(), Seq::ZERO);
    }
}
