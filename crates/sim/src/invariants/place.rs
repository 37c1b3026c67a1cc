//! The disks of a run as invariants see them.

use crate::disk::VirtualDisk;
use bytes::Bytes;
use gabion_cluster::Map;
use gabion_store::{HeldSegment, Store};
use gabion_types::{BLOCK_BYTES, DiskId, SegmentIndex, VolumeId};

/// A disk and the store on it, if its process runs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub uuid: [u8; 16],
    pub store: Option<&'a Store>,
    pub disk: &'a VirtualDisk,
}

impl Place<'_> {
    /// The disk as a read finds it: for map pages that the store has not in memory.
    pub fn peek(&self) -> impl FnMut(u64) -> Option<Bytes> {
        let disk = self.disk;
        |offset| disk.page(offset / BLOCK_BYTES).cloned()
    }
}

/// The place of a disk of the map.
pub fn find<'a>(map: &Map, places: &[Place<'a>], disk: DiskId) -> Option<Place<'a>> {
    let entry = map.disk(disk)?;
    places.iter().find(|place| place.uuid == entry.uuid).copied()
}

/// The store of a disk of the map that takes requests.
pub fn serving<'a>(map: &Map, places: &[Place<'a>], disk: DiskId) -> Option<&'a Store> {
    find(map, places, disk)?.store.filter(|store| store.is_serving())
}

/// What a disk of the map that takes requests holds of a segment.
pub fn held<'a>(
    map: &Map,
    places: &[Place<'a>],
    disk: DiskId,
    (volume, segment): (VolumeId, SegmentIndex),
) -> Option<(Place<'a>, HeldSegment)> {
    let place = find(map, places, disk)?;
    let store = place.store.filter(|store| store.is_serving())?;
    Some((place, store.segment(volume, segment)?))
}
