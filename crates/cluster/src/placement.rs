//! Where the segments of a new volume go: each copy on another node, where there is the most room.
//!
//! Racks and zones would be one more level of `Avoid`, above the node.

use crate::map::Map;
use crate::map::room::{Avoid, Room};
use gabion_types::DiskId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("fewer nodes than copies: {nodes}")]
    TooFewNodes { nodes: u32 },
    #[error("no room; {segments} segments would fit")]
    NoRoom { segments: u64 },
}

/// Disks for so many segments, `rf` for each, the first of which changes from segment to segment so
/// that reads and owners spread. The same map gives the same places.
pub fn place(map: &Map, segments: u32, rf: u8) -> Result<Vec<Vec<DiskId>>, PlacementError> {
    let mut room = Room::of(map);
    if room.nodes() < usize::from(rf) {
        let nodes = u32::try_from(room.nodes()).unwrap_or(u32::MAX);
        return Err(PlacementError::TooFewNodes { nodes });
    }
    let fit = room.placeable(rf);
    if fit < u64::from(segments) {
        return Err(PlacementError::NoRoom { segments: fit });
    }
    (0..segments)
        .map(|segment| {
            let mut disks = Vec::with_capacity(usize::from(rf));
            let mut avoid = Avoid::default();
            for _ in 0..rf {
                let disk = room.pick(&avoid).ok_or(PlacementError::NoRoom { segments: fit })?;
                avoid.nodes.extend(map.disk(disk).map(|entry| entry.node));
                disks.push(disk);
            }
            disks.iter().for_each(|disk| room.take(*disk));
            disks.sort_unstable();
            let turns = usize::try_from(segment).unwrap_or(0) % disks.len().max(1);
            disks.rotate_left(turns);
            Ok(disks)
        })
        .collect()
}

/// How many bytes a new volume with `rf` copies could have. Thin, so data may need more room than
/// there is; a volume that could never be written full is not promised. Units: bytes.
pub fn free_bytes(map: &Map, rf: u8) -> u64 {
    let segments = Room::of(map).placeable(rf);
    let promised = segments.saturating_mul(map.limits().segment.bytes());
    promised.min(capacity_bytes(map) / u64::from(rf.max(1)))
}

/// Of all disks in service.
pub fn capacity_bytes(map: &Map) -> u64 {
    let in_service = map.disks().values().filter(|disk| disk.is_in_service());
    in_service.fold(0, |sum, disk| sum.saturating_add(disk.capacity_bytes))
}
