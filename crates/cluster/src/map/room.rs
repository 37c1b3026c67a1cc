//! How many segments each disk can still be given. Derived from the map when it is needed, so that
//! there is no second account to keep right.
//!
//! Volumes are thin: a disk may be promised more than it has, up to `overcommit.ratio`.

use crate::map::{DiskState, Map, NodeState};
use gabion_types::{DiskId, NodeId, SegmentMembers};
use std::collections::{BTreeMap, BTreeSet};

/// Disks in service on nodes that are alive.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    disks: BTreeMap<DiskId, Free>,
    /// Units: segments.
    by_node: BTreeMap<NodeId, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Free {
    node: NodeId,
    /// Units: segments.
    segments: u64,
}

/// Where a replica must not go, and where it had better not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Avoid {
    pub(crate) nodes: BTreeSet<NodeId>,
    pub(crate) disks: BTreeSet<DiskId>,
    /// Taken only where no other node has room.
    pub(crate) rather_not: BTreeSet<NodeId>,
}

impl Room {
    pub(crate) fn of(map: &Map) -> Self {
        let promised = promised(map);
        let mut room = Self { disks: BTreeMap::new(), by_node: BTreeMap::new() };
        let percent = map.settings().overcommit_percent;
        for (id, disk) in &map.disks {
            let alive =
                map.nodes.get(&disk.node).is_some_and(|node| node.state == NodeState::Alive);
            if !alive || disk.state != DiskState::InService {
                continue;
            }
            let most = u128::from(disk.capacity_bytes) * u128::from(percent)
                / 100
                / u128::from(map.limits.segment.bytes());
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            let segments = most.saturating_sub(promised.get(id).copied().unwrap_or(0));
            room.disks.insert(*id, Free { node: disk.node, segments });
            let total = room.by_node.entry(disk.node).or_insert(0);
            *total = total.saturating_add(segments);
        }
        room
    }

    /// Nodes that a replica could go to, with room or without.
    pub(crate) fn nodes(&self) -> usize {
        self.by_node.len()
    }

    pub(crate) fn has(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|free| free.segments > 0)
    }

    pub(crate) fn take(&mut self, disk: DiskId) {
        if let Some(free) = self.disks.get_mut(&disk) {
            free.segments = free.segments.saturating_sub(1);
            let total = self.by_node.entry(free.node).or_insert(0);
            *total = total.saturating_sub(1);
        }
    }

    /// On the node with the most room, the disk with the most room; ties go to the lower id.
    pub(crate) fn pick(&self, avoid: &Avoid) -> Option<DiskId> {
        self.disks
            .iter()
            .filter(|(disk, free)| {
                free.segments > 0
                    && !avoid.disks.contains(disk)
                    && !avoid.nodes.contains(&free.node)
            })
            .max_by_key(|(disk, free)| {
                let total = self.by_node.get(&free.node).copied().unwrap_or(0);
                let lower_first = (std::cmp::Reverse(free.node), std::cmp::Reverse(**disk));
                (!avoid.rather_not.contains(&free.node), total, free.segments, lower_first)
            })
            .map(|(disk, _)| *disk)
    }

    /// How many more segments could have `rf` replicas, each on another node. Units: segments.
    pub(crate) fn placeable(&self, rf: u8) -> u64 {
        let fits = |segments: u64| {
            let sum = self.by_node.values().map(|free| u128::from((*free).min(segments)));
            sum.sum::<u128>() >= u128::from(segments) * u128::from(rf)
        };
        let total = self.by_node.values().fold(0_u64, |sum, free| sum.saturating_add(*free));
        let (mut low, mut high) = (0, total / u64::from(rf.max(1)));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// Replicas that each disk has or must still drop. Units: segments.
pub(crate) fn promised(map: &Map) -> BTreeMap<DiskId, u64> {
    let mut promised = BTreeMap::new();
    for volume in map.volumes.values() {
        let growth = volume.growth.iter().flat_map(|growth| &growth.segments);
        for members in volume.segments.iter().chain(growth) {
            for disk in holders(members) {
                *promised.entry(disk).or_insert(0) += 1;
            }
        }
    }
    for (disk, entry) in &map.disks {
        let drops = entry.to_drop.values().map(BTreeMap::len).sum::<usize>();
        let drops = u64::try_from(drops).unwrap_or(u64::MAX);
        *promised.entry(*disk).or_insert(0) += drops;
    }
    promised
}

/// Every disk that the map names for a segment.
pub(crate) fn holders(members: &SegmentMembers) -> impl Iterator<Item = DiskId> + '_ {
    members.write_set().chain(members.stale.iter().map(|stale| stale.disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: &[(u32, u32, u64)]) -> Room {
        let mut room = Room { disks: BTreeMap::new(), by_node: BTreeMap::new() };
        for (disk, node, segments) in free {
            let node = NodeId::new(*node);
            room.disks.insert(DiskId::new(*disk), Free { node, segments: *segments });
            *room.by_node.entry(node).or_insert(0) += segments;
        }
        room
    }

    #[test]
    fn what_can_be_placed_needs_other_nodes() {
        assert_eq!(room(&[(1, 1, 100), (2, 2, 10)]).placeable(2), 10);
        assert_eq!(room(&[(1, 1, 100), (2, 2, 50), (3, 3, 50)]).placeable(2), 100);
        assert_eq!(room(&[(1, 1, 5), (2, 2, 5), (3, 3, 5)]).placeable(2), 7);
        assert_eq!(room(&[(1, 1, 5), (2, 1, 5)]).placeable(2), 0);
        assert_eq!(room(&[]).placeable(1), 0);
    }

    #[test]
    fn the_emptiest_node_is_picked_and_then_its_emptiest_disk() {
        let room = room(&[(1, 1, 7), (2, 2, 3), (3, 2, 5), (4, 3, 0)]);
        let mut avoid = Avoid::default();
        assert_eq!(room.pick(&avoid), Some(DiskId::new(3)));
        avoid.disks.insert(DiskId::new(3));
        assert_eq!(room.pick(&avoid), Some(DiskId::new(2)));
        avoid.rather_not.insert(NodeId::new(2));
        assert_eq!(room.pick(&avoid), Some(DiskId::new(1)));
        avoid.nodes.insert(NodeId::new(1));
        assert_eq!(room.pick(&avoid), Some(DiskId::new(2)));
        avoid.nodes.insert(NodeId::new(2));
        assert_eq!(room.pick(&avoid), None, "a full disk takes nothing");
    }
}
