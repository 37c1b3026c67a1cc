//! Where a block lies on this node's disks: for operators and tests, not for guests' I/O.

use gabion_node::{Input, Node, WantedPage};
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

/// What is to be read before it can be said.
pub(crate) fn away(node: &Node, block: BlockAddress) -> Vec<Input> {
    let BlockAddress { volume, segment, block } = block;
    let disks = node.stats().disks.into_iter().map(|disk| disk.disk);
    let away = disks.filter(|disk| {
        node.store(*disk).is_some_and(|store| store.is_away(volume, segment, block))
    });
    let wanted = WantedPage { volume, segment, block };
    away.map(|disk| Input::WantPage { disk, wanted }).collect()
}

/// Of the map pages that are in memory.
pub(crate) fn locate(node: &Node, block: BlockAddress) -> Vec<LocatedCopy> {
    let disks = node.stats().disks.into_iter();
    let copy = |disk: gabion_node::DiskStats| {
        let store = node.store(disk.disk)?;
        let place = store.locate(block.volume, block.segment, block.block, &mut |_| None)?;
        Some(LocatedCopy { disk: disk.id?, path: disk.path, place })
    };
    disks.filter_map(copy).collect()
}
