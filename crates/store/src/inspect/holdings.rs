//! What a disk holds, for whoever has lost the map.

use super::{Offline, ReadDisk, recover};
use crate::io::OutOfService;
use crate::pages::Segment;
use gabion_format::SegmentKey;
use gabion_types::{ClusterId, Epoch, FoundReplica, Limits, MapIndex, VolumeId};

/// All that a disk says of itself and of its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub uuid: [u8; 16],
    pub cluster: ClusterId,
    pub limits: Limits,
    pub capacity_bytes: u64,
    /// The newest map that it knew of.
    pub highest_map: MapIndex,
    /// The highest owner epoch of each volume that it refuses older ones of.
    pub fences: Vec<(VolumeId, Epoch)>,
    pub replicas: Vec<FoundReplica>,
}

// promise: self-describing
/// Reads the whole map of the disk, and no data. Errors: it could not be opened at all, by any node.
pub fn holdings(capacity_bytes: u64, read: &mut ReadDisk<'_>) -> Result<Holdings, OutOfService> {
    let Offline { store, .. } = recover(capacity_bytes, read)?;
    let disk = store.disk().ok_or(OutOfService::Damaged)?;
    Ok(Holdings {
        uuid: disk.superblock.uuid,
        cluster: disk.superblock.cluster,
        limits: disk.superblock.limits,
        capacity_bytes: disk.layout.capacity,
        highest_map: disk.superblock.highest_map.max(disk.table.highest_map),
        fences: disk.table.fences.iter().map(|(volume, epoch)| (*volume, *epoch)).collect(),
        replicas: disk.table.segments().map(|(key, segment)| holding(key, segment)).collect(),
    })
}

fn holding(key: SegmentKey, segment: &Segment) -> FoundReplica {
    let meta = &segment.meta;
    let of_blocks = segment.pages().map(|(_, page)| page.highest_epoch).max();
    let others = [meta.creation, meta.next_epoch];
    let newest = others.into_iter().chain(of_blocks).max();
    FoundReplica {
        volume: key.volume,
        segment: key.segment,
        creation: meta.creation,
        joining: meta.joining,
        damaged: meta.damaged,
        last_epoch: newest.expect("two at least"),
        highest: meta.highest,
    }
}
