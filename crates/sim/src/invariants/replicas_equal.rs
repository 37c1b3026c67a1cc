//! promise: acked-survives. When nothing is in flight, all in-sync copies of a block are equal.

use super::place::{self, Place};
use crate::oracle::Broken;
use gabion_cluster::Map;
use gabion_types::{BlockIndex, Crc, DiskId, SegmentIndex, Version, VolumeId};

/// Errors: the first block that differs, or a replica that nobody serves.
pub fn check(map: &Map, places: &[Place<'_>]) -> Result<(), Broken> {
    for volume in map.volumes().values() {
        for (index, members) in (0..).zip(&volume.segments) {
            let segment = SegmentIndex::new(index);
            let blocks = map.limits().segment.blocks();
            let [first, others @ ..] = &members.in_sync[..] else {
                return Err(broken(format!("{} {segment}: no copy", volume.id)));
            };
            for other in others {
                compare(map, places, (volume.id, segment, blocks), (*first, *other))?;
            }
        }
    }
    Ok(())
}

fn compare(
    map: &Map,
    places: &[Place<'_>],
    (volume, segment, blocks): (VolumeId, SegmentIndex, u32),
    (one, other): (DiskId, DiskId),
) -> Result<(), Broken> {
    let (left, right) = (find(map, places, one)?, find(map, places, other)?);
    for block in (0..blocks).map(BlockIndex::new) {
        let ours = located(left, volume, segment, block);
        let theirs = located(right, volume, segment, block);
        if ours != theirs {
            let at = format!("{volume} {segment} block {}", block.get());
            return Err(broken(format!("{at}: {one} has {ours:?}, {other} has {theirs:?}")));
        }
    }
    Ok(())
}

fn find<'a>(map: &Map, places: &[Place<'a>], disk: DiskId) -> Result<Place<'a>, Broken> {
    let place = place::find(map, places, disk).filter(|place| place.store.is_some());
    place.ok_or_else(|| broken(format!("nobody serves {disk}")))
}

fn broken(text: String) -> Broken {
    Broken { promise: "replicas-equal", text }
}

/// What a store has of a block, without the place.
fn located(
    place: Place<'_>,
    volume: VolumeId,
    segment: SegmentIndex,
    block: BlockIndex,
) -> Option<(Version, Crc)> {
    let located = place.store?.locate(volume, segment, block, &mut place.peek());
    located.map(|found| (found.version, found.crc))
}
