//! promise: liveness. When nothing goes wrong any more, every segment has all its copies in-sync, and
//! none is joining or stale; and what was to be emptied is empty, if there is room. Source: DESIGN 7 ("then heal and prove: all in-sync"), 4.2 and 4.7.

use gabion_cluster::placement::can_empty;
use gabion_cluster::{DiskEntry, Map, NodeState, VolumeEntry, VolumeState};
use gabion_types::DiskId;
use std::collections::BTreeSet;

/// Deleted, and no disk that is there has anything of it left: only one that is missing holds it back.
fn is_gone(map: &Map, volume: &VolumeEntry) -> bool {
    let mut drops = map.nodes().keys().flat_map(|node| map.drops_for(*node));
    volume.state == VolumeState::Deleting && !drops.any(|order| order.volume == volume.id)
}

/// What is not whole yet, in words; none if all is.
pub fn missing(map: &Map) -> Option<String> {
    if let Some((node, _)) = map.nodes().iter().find(|(_, node)| node.state != NodeState::Alive) {
        return Some(format!("{node} is silent"));
    }
    for volume in map.volumes().values().filter(|volume| !is_gone(map, volume)) {
        if volume.state != VolumeState::Ready {
            return Some(format!("{} is {:?}", volume.id, volume.state));
        }
        if !volume.moving.is_empty() {
            return Some(format!("{} has copies to move: {:?}", volume.id, volume.moving));
        }
        for (index, members) in volume.segments.iter().enumerate() {
            let there = |disk: &DiskId| map.disk(*disk).is_some_and(DiskEntry::is_in_service);
            let copies = members.in_sync.len() == usize::from(volume.spec.rf)
                && members.in_sync.iter().all(there);
            if !copies || !members.joining.is_empty() || !members.stale.is_empty() {
                let (id, owner) = (volume.id, volume.owner);
                return Some(format!("{id} (owner {owner:?}) segment {index}: {members:?}"));
            }
        }
    }
    not_emptied(map)
}

/// A disk that was to be emptied, and could be.
fn not_emptied(map: &Map) -> Option<String> {
    let there = |(id, disk): &(&DiskId, &DiskEntry)| disk.is_in_service() && map.is_draining(**id);
    let mut disks = map.disks().iter().filter(there).map(|(id, _)| *id);
    let left =
        disks.find(|id| !map.is_empty_disk(*id) && can_empty(map, &BTreeSet::from([*id])).is_ok());
    left.map(|id| format!("{id} is not empty"))
}
