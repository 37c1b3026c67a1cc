//! Ids. None of a node, disk or volume is ever used twice in the life of a cluster.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A machine. Lives in the consensus log's own file.
    NodeId, u32, "n"
);
id!(
    /// A disk, numbered by the cluster map when it is added. On the disk itself stands its uuid.
    DiskId, u32, "d"
);
id!(
    /// A volume, numbered by the cluster map when it is created.
    VolumeId, u32, "v"
);
id!(
    /// The how-manieth segment of a volume.
    SegmentIndex, u32, "s"
);
id!(
    /// One life of a node's process: random, drawn at its start, registered in the map.
    Incarnation, u64, "i"
);
id!(
    /// Index of a committed entry of the consensus log.
    MapIndex, u64, "@"
);

/// A cluster: random, made once by `cluster init`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
