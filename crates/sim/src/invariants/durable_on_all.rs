//! promise: acked-survives, majority-first, flush-means-flush. A write is acknowledged when it is
//! synced on every member of its blocks' write sets, as a majority has them. Source: DESIGN 1, 4.1.
//!
//! It is looked at in the moment in which an owner answers a guest of its own node: until then no
//! other write of these blocks has begun, so all members have the same version of them. A request
//! that is done in pieces may have got a joiner since its first one: that is owed by filling. A
//! flush looks again at what was acknowledged before.

use super::place::{Place, find};
use crate::oracle::Broken;
use gabion_cluster::Map;
use gabion_cluster::VolumeEntry;
use gabion_types::{BlockIndex, BlockInfo, BlockKind, ByteRange, SegmentIndex, Version};

/// Blocks of these bytes, each with its segment.
pub fn blocks(map: &Map, bytes: ByteRange) -> Vec<(SegmentIndex, BlockIndex)> {
    let size = map.limits().segment;
    let step = usize::try_from(gabion_types::BLOCK_BYTES).expect("4096");
    let first = bytes.offset() - bytes.offset() % gabion_types::BLOCK_BYTES;
    let places = (first..bytes.end()).step_by(step);
    places.filter_map(|at| Some((size.segment_of(at)?, size.block_of(at)))).collect()
}

/// `whole`: all blocks were written at once.
///
/// Errors: a block that some member of the write set has not, or only in its cache.
pub fn check(
    map: &Map,
    places: &[Place<'_>],
    volume: &VolumeEntry,
    (blocks, whole): (&[(SegmentIndex, BlockIndex)], bool),
) -> Result<(), Broken> {
    for (segment, block) in blocks {
        let Some(members) = volume.segments.get(segment.get() as usize) else { continue };
        let mut first: Option<(gabion_types::DiskId, Version)> = None;
        for disk in members.write_set().filter(|disk| whole || members.is_in_sync(*disk)) {
            let Some(place) = find(map, places, disk) else { continue };
            let Some(store) = place.store.filter(|store| store.is_serving()) else { continue };
            let version = version(store.block(volume.id, *segment, *block, &mut place.peek()));
            let at = || format!("{} {segment} block {}", volume.id, block.get());
            let (other, same) = *first.get_or_insert((disk, version));
            if version != same {
                let text =
                    format!("{}: acknowledged, {other} has {same}, {disk} has {version}", at());
                return Err(Broken { promise: "acked-survives", text });
            }
            check_synced(&place, volume, (*segment, *block))?;
        }
    }
    Ok(())
}

/// Errors: what the disk's map names for this block is in its cache only.
pub fn check_synced(
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

fn version(info: Option<BlockInfo>) -> Version {
    info.filter(|info| info.kind != BlockKind::Bad).map_or(Version::NEVER, |info| info.version)
}
