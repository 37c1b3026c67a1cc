//! promise: majority-first. While an owner waits for a majority to remove a copy, that copy is still
//! owed every write: none is acknowledged without it. Source: DESIGN 1, 4.2 ("only after the commit").

use super::durable_on_all::version;
use super::place::{Place, find};
use crate::oracle::Broken;
use gabion_cluster::{Map, VolumeEntry};
use gabion_types::{BlockIndex, DiskId, SegmentIndex, Version};

/// When the owner acknowledges a write of these blocks. `undecided`: it has proposed other members of
/// a segment, and knows of no outcome.
///
/// Errors: an in-sync copy, as a majority has them, lacks what the others have.
pub fn check(
    map: &Map,
    places: &[Place<'_>],
    volume: &VolumeEntry,
    blocks: &[(SegmentIndex, BlockIndex)],
    undecided: impl Fn(SegmentIndex) -> bool,
) -> Result<(), Broken> {
    for (segment, block) in blocks.iter().filter(|(segment, _)| undecided(*segment)) {
        let Some(members) = volume.segments.get(segment.get() as usize) else { continue };
        let copy = |disk: &DiskId| {
            let place = find(map, places, *disk)?;
            let store = place.store.filter(|store| store.is_serving())?;
            Some((*disk, version(store.block(volume.id, *segment, *block, &mut place.peek()))))
        };
        let copies: Vec<_> = members.in_sync.iter().filter_map(copy).collect();
        if let Some(text) = lagging(&copies) {
            let text = format!("{} {segment} block {}: {text}", volume.id, block.get());
            return Err(Broken { promise: "majority-first", text });
        }
    }
    Ok(())
}

fn lagging(copies: &[(DiskId, Version)]) -> Option<String> {
    let (best, newest) = copies.iter().max_by_key(|(_, version)| *version)?;
    let (disk, version) = copies.iter().find(|(_, version)| version < newest)?;
    Some(format!("acknowledged, {best} has {newest}, {disk} has {version} and is not removed yet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::{Epoch, Seq};

    #[test]
    fn every_copy_counts_until_it_is_removed() {
        let copy = |disk, seq| {
            let epoch = Epoch::new(1).expect("small");
            (DiskId::new(disk), Version::new(epoch, Seq::new(seq)))
        };
        assert_eq!(lagging(&[]), None);
        assert_eq!(lagging(&[copy(1, 4), copy(2, 4)]), None);
        assert!(lagging(&[copy(1, 3), copy(2, 4)]).is_some());
    }
}
