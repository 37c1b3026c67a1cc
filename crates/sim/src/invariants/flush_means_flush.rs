//! promise: flush-means-flush. What was acknowledged is synced: a flush has nothing left to do, and a
//! power cut nothing to take. Source: DESIGN 1, 4.1 and 4.5.
//!
//! It is looked at when a write is acknowledged, and again for the last ones at each flush.

use super::place::{Place, find};
use crate::oracle::Broken;
use gabion_cluster::{Map, VolumeEntry};
use gabion_types::{BlockIndex, SegmentIndex};

/// `joiners`: they have had all of the writes, too.
///
/// Errors: a member has one of the blocks in its disk's cache only.
pub fn check(
    map: &Map,
    places: &[Place<'_>],
    volume: &VolumeEntry,
    (blocks, joiners): (&[(SegmentIndex, BlockIndex)], bool),
) -> Result<(), Broken> {
    for (segment, block) in blocks {
        let Some(members) = volume.segments.get(segment.get() as usize) else { continue };
        let disks = members.write_set().filter(|disk| joiners || members.is_in_sync(*disk));
        let places = disks.filter_map(|disk| find(map, places, disk));
        let serving = |place: &Place<'_>| place.store.is_some_and(|store| store.is_serving());
        for place in places.filter(serving) {
            check_synced(&place, volume, (*segment, *block))?;
        }
    }
    Ok(())
}

/// Errors: what the disk's map names for this block is in its cache only.
fn check_synced(
    place: &Place<'_>,
    volume: &VolumeEntry,
    (segment, block): (SegmentIndex, BlockIndex),
) -> Result<(), Broken> {
    let store = place.store;
    let located =
        store.and_then(|store| store.locate(volume.id, segment, block, &mut place.peek()));
    match located {
        Some(at) if place.disk.is_cached(at.offset) => {
            let (id, block) = (volume.id, block.get());
            let text = format!("{id} {segment} block {block}: {} is not synced", at.version);
            Err(Broken { promise: "flush-means-flush", text })
        }
        Some(_) | None => Ok(()),
    }
}
