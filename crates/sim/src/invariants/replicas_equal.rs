//! promise: acked-survives. When nothing is in flight, all in-sync copies of a block are equal, and
//! each disk holds what its map says. Source: DESIGN 7 ("all in-sync and equal"), 4.7, 5.

use super::place::{self, Place};
use crate::oracle::Broken;
use gabion_cluster::{Map, VolumeEntry, VolumeState};
use gabion_store::BlockPlace;
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, Crc, DiskId, SegmentIndex, Version, VolumeId,
    block_crc,
};

/// What one copy has of a block.
type Copied = (BlockKind, Version, Option<Crc>);

/// Errors: the first block that differs, or is not what its map says, or a replica that nobody serves.
pub fn check(map: &Map, places: &[Place<'_>]) -> Result<(), Broken> {
    let ready = |volume: &&VolumeEntry| volume.state == VolumeState::Ready;
    for volume in map.volumes().values().filter(ready) {
        for (index, members) in (0..).zip(&volume.segments) {
            let segment = (volume.id, SegmentIndex::new(index));
            let copies = members.in_sync.iter().map(|disk| {
                let copy = copy(find(map, places, *disk)?, segment);
                Ok((*disk, copy.map_err(|text| broken(segment, &format!("{disk}: {text}")))?))
            });
            let copies = copies.collect::<Result<Vec<_>, _>>()?;
            let [first, others @ ..] = &copies[..] else {
                return Err(broken(segment, "no copy"));
            };
            let differs = others.iter().find_map(|other| difference(first, other));
            differs.map_or(Ok(()), |text| Err(broken(segment, &text)))?;
        }
    }
    Ok(())
}

/// Errors: a block whose data are not on the disk.
fn copy(
    place: Place<'_>,
    (volume, segment): (VolumeId, SegmentIndex),
) -> Result<Vec<Copied>, String> {
    let Some(store) = place.store else { return Ok(Vec::new()) };
    let blocks = store.blocks(volume, segment, &mut place.peek());
    let read = |info: BlockInfo| {
        let located = store.locate(volume, segment, info.block, &mut place.peek());
        if let Some(located) = located {
            check_bytes(place, &located)
                .map_err(|text| format!("block {}: {text}", info.block.get()))?;
        }
        Ok((info.kind, info.version, located.map(|located| located.crc)))
    };
    blocks.into_iter().map(read).collect()
}

/// Errors: the bytes are others than those that the map names, and the disk did not spoil them.
fn check_bytes(place: Place<'_>, located: &BlockPlace) -> Result<(), String> {
    let page = located.offset / BLOCK_BYTES;
    let found = place.disk.page(page).map(|bytes| block_crc(bytes));
    if found == Some(located.crc) || place.disk.is_spoiled(page) {
        return Ok(());
    }
    Err(format!("{} at {} has {found:?}, not {:?}", located.version, located.offset, located.crc))
}

fn difference(
    (one, ours): &(DiskId, Vec<Copied>),
    (other, theirs): &(DiskId, Vec<Copied>),
) -> Option<String> {
    if ours.len() != theirs.len() {
        return Some(format!("{one} or {other} does not hold it"));
    }
    let mut pairs = (0..).map(BlockIndex::new).zip(ours.iter().zip(theirs));
    // What a disk itself calls bad is given to nobody; it is mended when it is read or scrubbed.
    let bad = |(kind, _, _): &Copied| *kind == BlockKind::Bad;
    let differ = |ours, theirs| ours != theirs && !bad(ours) && !bad(theirs);
    let (block, (ours, theirs)) = pairs.find(|(_, (ours, theirs))| differ(ours, theirs))?;
    Some(format!("block {}: {one} has {ours:?}, {other} has {theirs:?}", block.get()))
}

fn find<'a>(map: &Map, places: &[Place<'a>], disk: DiskId) -> Result<Place<'a>, Broken> {
    let place = place::find(map, places, disk).filter(|place| place.store.is_some());
    let nobody = || Broken { promise: "replicas-equal", text: format!("nobody serves {disk}") };
    place.ok_or_else(nobody)
}

fn broken((volume, segment): (VolumeId, SegmentIndex), text: &str) -> Broken {
    Broken { promise: "replicas-equal", text: format!("{volume} {segment} {text}") }
}
