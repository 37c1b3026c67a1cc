//! promise: acked-survives. A write is acknowledged when it is on every member of its blocks' write
//! sets, as a majority has them. Source: DESIGN 1, 4.1.
//!
//! It is looked at in the moment in which an owner answers a guest of its own node: until then no
//! other write of these blocks has begun, so all members have the same version of them. A request
//! that is done in pieces may have got a joiner since its first one: that is owed by filling.

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
/// Errors: a block that some member of the write set has not.
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
                return Err(Broken { promise: "durable-on-all", text });
            }
        }
    }
    Ok(())
}

/// What a member has to show of a block.
pub fn version(info: Option<BlockInfo>) -> Version {
    info.filter(|info| info.kind != BlockKind::Bad).map_or(Version::NEVER, |info| info.version)
}
