//! Where a block lies on this node's disks: for operators and tests, not for guests' I/O.

use gabion_node::Node;
use gabion_store::BlockPlace;
use gabion_types::{BlockIndex, DiskId, SegmentIndex, VolumeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockAddress {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub block: BlockIndex,
}

/// A copy with data, as of a moment ago: the next write puts it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedCopy {
    pub disk: DiskId,
    pub path: String,
    pub place: BlockPlace,
}

pub(crate) fn locate(node: &Node, block: BlockAddress) -> Vec<LocatedCopy> {
    let disks = node.stats().disks.into_iter();
    let copy = |disk: gabion_node::DiskStats| {
        let place = node.store(disk.disk)?.locate(block.volume, block.segment, block.block)?;
        Some(LocatedCopy { disk: disk.id?, path: disk.path, place })
    };
    disks.filter_map(copy).collect()
}
