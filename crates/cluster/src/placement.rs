//! Where the segments of a new volume go: each copy on another node, one where its guest is, the
//! others where there is the most room.
//! Copies of a segment are in different zones where there is room.

use crate::map::room::{Avoid, Room, copy_bytes, zones};
use crate::map::{Map, VolumeEntry};
use gabion_types::{DiskId, NodeId, SegmentMembers};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("fewer nodes than copies: {nodes}")]
    TooFewNodes { nodes: u32 },
    #[error("no room")]
    NoRoom,
}

/// What is to be placed: a new volume, or what an old one grows by.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of the whole volume, when it has grown.
    pub size_bytes: u64,
    /// Segments that have their places already.
    pub had: u32,
    pub rf: u8,
    /// The node whose guests will use it, as far as that is known.
    pub near: Option<NodeId>,
}

/// Disks for each segment, `rf` for each, the first of which changes from segment to segment so
/// that reads and owners spread. The same map gives the same places.
pub fn place(map: &Map, wanted: Wanted) -> Result<Vec<Vec<DiskId>>, PlacementError> {
    if map.limits().segment.segments_of(wanted.size_bytes) == Some(wanted.had) {
        return Ok(Vec::new());
    }
    let room = Room::of(map);
    if room.nodes() < usize::from(wanted.rf) {
        let nodes = u32::try_from(room.nodes()).unwrap_or(u32::MAX);
        return Err(PlacementError::TooFewNodes { nodes });
    }
    let near = wanted.near.and_then(|near| place_in(map, room.clone(), wanted, Some(near)));
    near.or_else(|| place_in(map, room, wanted, None)).ok_or(PlacementError::NoRoom)
}

fn place_in(
    map: &Map,
    mut room: Room,
    wanted: Wanted,
    near: Option<NodeId>,
) -> Option<Vec<Vec<DiskId>>> {
    let segment = map.limits().segment;
    let segments = segment.segments_of(wanted.size_bytes)?;
    // By the volume, or the first segments of all would meet on the same disks.
    let volumes = map.last_volume;
    (wanted.had..segments)
        .map(|index| {
            let turn = volumes.wrapping_add(index);
            let index = usize::try_from(index).ok()?;
            let bytes = copy_bytes(segment, wanted.size_bytes, index);
            let mut disks = Vec::with_capacity(usize::from(wanted.rf));
            let mut avoid = Avoid { rather: near, turn, ..Avoid::default() };
            for _ in 0..wanted.rf {
                let disk = room.pick(&avoid, bytes)?;
                avoid.nodes.extend(map.disk(disk).map(|entry| entry.node));
                avoid.zones_of.clone_from(&avoid.nodes);
                disks.push(disk);
            }
            disks.iter().for_each(|disk| room.take(*disk, bytes));
            disks.sort_unstable();
            let turns = index % disks.len().max(1);
            disks.rotate_left(turns);
            Some(disks)
        })
        .collect()
}

/// How large a new volume with `rf` copies could be. Thin, so data may need more room than there
/// is; a volume that could never be written full is not promised. Units: bytes.
pub fn free_bytes(map: &Map, rf: u8) -> u64 {
    let placeable = Room::of(map).placeable(rf, map.limits().segment);
    placeable.min(capacity_bytes(map) / u64::from(rf.max(1)))
}

/// Of all disks in service that stay.
pub fn capacity_bytes(map: &Map) -> u64 {
    let in_service = map.disks().iter().filter(|(_, disk)| disk.is_in_service());
    let stay = in_service.filter(|(id, _)| !map.is_draining(**id));
    stay.fold(0, |sum, (_, disk)| sum.saturating_add(disk.capacity_bytes))
}

/// Why disks cannot be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    #[error("fewer nodes than copies: {nodes}, {wanted} copies")]
    TooFewNodes { wanted: u8, nodes: u32 },
    #[error("no room for {left} of {copies} copies")]
    NoRoom { left: u32, copies: u32, free_bytes: u64 },
}

/// Whether every copy on these disks has a place elsewhere, by what is promised, and every one that is
/// missing keeps a node to be made on.
pub fn can_empty(map: &Map, disks: &BTreeSet<DiskId>) -> Result<(), DrainError> {
    let now = Room::of(map);
    let nodes_now = now.nodes();
    let mut room = now.without(disks.iter());
    let (nodes, free_bytes) = (room.nodes(), room.total());
    let goes = |disk: &DiskId| disks.contains(disk) || map.is_draining(*disk);
    let (mut copies, mut left) = (0, 0);
    for volume in map.volumes().values() {
        let wanted = volume.spec.rf;
        let growth = volume.growth.iter().flat_map(|growth| &growth.segments);
        for (place, members) in volume.segments.iter().chain(growth).enumerate() {
            let going = members.write_set().filter(|disk| disks.contains(disk)).count();
            // A copy that is missing still is to be made somewhere.
            let missing = members.write_set().count() < usize::from(wanted);
            let waits = missing && nodes_now >= usize::from(wanted);
            if going == 0 && !waits {
                continue;
            }
            if nodes < usize::from(wanted) {
                let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
                return Err(DrainError::TooFewNodes { wanted, nodes });
            }
            let bytes = copy_bytes(map.limits().segment, volume.size_promised(), place);
            let staying = members.write_set().filter(|disk| !goes(disk));
            let mut avoid = Avoid::default();
            avoid.nodes.extend(staying.filter_map(|disk| map.disk(disk)).map(|disk| disk.node));
            for _ in 0..going {
                copies += 1;
                match room.pick(&avoid, bytes) {
                    Some(disk) => {
                        room.take(disk, bytes);
                        avoid.nodes.extend(map.disk(disk).map(|entry| entry.node));
                    }
                    None => left += 1,
                }
            }
        }
    }
    if left == 0 { Ok(()) } else { Err(DrainError::NoRoom { left, copies, free_bytes }) }
}

/// Segments with two copies in one zone, of a volume in a cluster of several zones.
pub fn sharing_zones(map: &Map, volume: &VolumeEntry) -> usize {
    let zones = zones(map);
    if zones.values().collect::<BTreeSet<_>>().len() < 2 {
        return 0;
    }
    let shares = |members: &&SegmentMembers| {
        let nodes = members.in_sync.iter().filter_map(|disk| map.disk(*disk)).map(|disk| disk.node);
        let mut seen = BTreeSet::new();
        nodes.filter_map(|node| zones.get(&node)).any(|zone| !seen.insert(zone))
    };
    volume.segments.iter().filter(shares).count()
}
