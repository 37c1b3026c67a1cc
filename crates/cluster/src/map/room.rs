//! How much each disk can still be given. Derived from the map when it is needed, so that there is
//! no second account to keep right.
//!
//! Volumes are thin: a disk may be promised more than it has, up to `overcommit.ratio`.

use crate::map::{DiskState, Map, NodeState, VolumeEntry};
use gabion_types::{DiskId, NodeId, SegmentMembers, SegmentSize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A copy is counted in steps of so much: what a page of its map covers. Units: bytes.
const STEP_BYTES: u64 = 1 << 20;

/// Disks in service on nodes that are alive. Those that are being emptied are named in no answer but
/// `left`'s.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    disks: BTreeMap<DiskId, Free>,
    /// Units: bytes.
    by_node: BTreeMap<NodeId, u64>,
    /// Of the nodes that are in one.
    zones: BTreeMap<NodeId, String>,
}

#[derive(Clone, Copy, Debug)]
struct Free {
    node: NodeId,
    bytes: u64,
    /// Of it, what the disk really has: the rest is over-committed.
    sure: u64,
    /// It is being emptied: it takes nothing new.
    draining: bool,
}

/// Where a replica must not go, and where it had better go or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Avoid {
    pub(crate) nodes: BTreeSet<NodeId>,
    pub(crate) disks: BTreeSet<DiskId>,
    /// Taken only where no other node has room.
    pub(crate) rather_not: BTreeSet<NodeId>,
    /// Zones of these nodes are taken only where no other zone has room.
    pub(crate) zones_of: BTreeSet<NodeId>,
    /// Taken before any other: where the volume's guest is, so that reads are local. Not where the
    /// disk would be over-committed by it while others may not be.
    pub(crate) rather: Option<NodeId>,
    /// Where nodes have the same room, another one's turn comes with each number.
    pub(crate) turn: u32,
}

impl Room {
    pub(crate) fn of(map: &Map) -> Self {
        let made;
        let promised = match map.account.get() {
            Some(account) => account,
            None => {
                made = promised(map);
                &made
            }
        };
        let mut room = Self { zones: zones(map), ..Self::default() };
        let percent = map.settings().overcommit_percent;
        for (id, disk) in &map.disks {
            let alive =
                map.nodes.get(&disk.node).is_some_and(|node| node.state == NodeState::Alive);
            if !alive || disk.state != DiskState::InService {
                continue;
            }
            let most = u128::from(disk.capacity_bytes) * u128::from(percent) / 100;
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            let promised = promised.get(id).copied().unwrap_or(0);
            let bytes = most.saturating_sub(promised);
            let sure = bytes.min(disk.capacity_bytes.saturating_sub(promised));
            room.disks.insert(*id, Free { node: disk.node, bytes, sure, draining: false });
            let total = room.by_node.entry(disk.node).or_insert(0);
            *total = total.saturating_add(bytes);
        }
        room.without(map.disks.keys().filter(|disk| map.is_draining(**disk)))
    }

    /// If these disks were being emptied, too.
    pub(crate) fn without<'a>(mut self, disks: impl Iterator<Item = &'a DiskId>) -> Self {
        for disk in disks {
            if let Some(free) = self.disks.get_mut(disk) {
                free.draining = true;
            }
        }
        self.by_node.clear();
        for free in self.disks.values().filter(|free| !free.draining) {
            let total = self.by_node.entry(free.node).or_insert(0);
            *total = total.saturating_add(free.bytes);
        }
        self
    }

    /// Of all that take something. Units: bytes.
    pub(crate) fn total(&self) -> u64 {
        self.by_node.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Nodes that a replica could go to, with room or without.
    pub(crate) fn nodes(&self) -> usize {
        self.by_node.len()
    }

    /// Nothing, if the disk can take nothing now. Units: bytes.
    pub(crate) fn left(&self, disk: DiskId) -> Option<u64> {
        self.disks.get(&disk).map(|free| free.bytes)
    }

    pub(crate) fn fits(&self, disk: DiskId, bytes: u64) -> bool {
        self.disks.get(&disk).is_some_and(|free| !free.draining && free.bytes >= bytes)
    }

    /// Only where it has as much: see `fits` and `pick`.
    pub(crate) fn take(&mut self, disk: DiskId, bytes: u64) {
        if let Some(free) = self.disks.get_mut(&disk) {
            free.bytes = free.bytes.saturating_sub(bytes);
            free.sure = free.sure.saturating_sub(bytes);
            let total = self.by_node.entry(free.node).or_insert(0);
            *total = total.saturating_sub(bytes);
        }
    }

    // rule: cluster/nothing-new-on-what-is-emptied
    // rule: cluster/copies-in-different-zones
    /// In a zone without a copy, on the node with the most room, the disk with the most room; nodes that have the same take
    /// turns, of a node's disks the lower id is taken.
    pub(crate) fn pick(&self, avoid: &Avoid, bytes: u64) -> Option<DiskId> {
        self.disks
            .iter()
            .filter(|(disk, free)| {
                !free.draining
                    && free.bytes >= bytes
                    && !avoid.disks.contains(disk)
                    && !avoid.nodes.contains(&free.node)
            })
            .max_by_key(|(disk, free)| {
                let total = self.by_node.get(&free.node).copied().unwrap_or(0);
                let nodes = u32::try_from(self.by_node.len()).unwrap_or(u32::MAX).max(1);
                let back = nodes - 1 - avoid.turn % nodes;
                let turn = free.node.get().wrapping_add(back) % nodes;
                let first = (Reverse(turn), Reverse(free.node), Reverse(**disk));
                let rather = avoid.rather == Some(free.node) && free.sure >= bytes;
                let other_zone = !self.shares_zone(free.node, &avoid.zones_of);
                let wanted = (!avoid.rather_not.contains(&free.node), other_zone, rather);
                (wanted, total, free.bytes, first)
            })
            .map(|(disk, _)| *disk)
    }

    fn shares_zone(&self, node: NodeId, others: &BTreeSet<NodeId>) -> bool {
        let zone = self.zones.get(&node);
        zone.is_some() && others.iter().any(|other| self.zones.get(other) == zone)
    }

    /// How large a volume could be that has `rf` replicas of all, each on another node: as many
    /// whole segments as fit, and a last one in what is left beside them. Units: bytes.
    pub(crate) fn placeable(&self, rf: u8, segment: SegmentSize) -> u64 {
        let mut whole: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut rest: BTreeMap<NodeId, u64> = BTreeMap::new();
        for free in self.disks.values().filter(|free| !free.draining) {
            let fits = whole.entry(free.node).or_insert(0);
            *fits = fits.saturating_add(free.bytes / segment.bytes());
            let beside = rest.entry(free.node).or_insert(0);
            *beside = (*beside).max(free.bytes % segment.bytes());
        }
        let fits = |segments: u64| {
            let sum = whole.values().map(|free| u128::from((*free).min(segments)));
            sum.sum::<u128>() >= u128::from(segments) * u128::from(rf)
        };
        let total = whole.values().fold(0_u64, |sum, free| sum.saturating_add(*free));
        let (mut low, mut high) = (0, total / u64::from(rf.max(1)));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        let mut rest: Vec<_> = rest.into_values().collect();
        rest.sort_unstable_by_key(|bytes| Reverse(*bytes));
        let rest = rest.get(usize::from(rf.max(1)) - 1).copied().unwrap_or(0);
        let step = STEP_BYTES.min(segment.bytes());
        low.saturating_mul(segment.bytes()).saturating_add(rest / step * step)
    }
}

pub(crate) fn zones(map: &Map) -> BTreeMap<NodeId, String> {
    let zones = map.nodes.iter().map(|(id, node)| (*id, node.info.zone.clone()));
    zones.filter(|(_, zone)| !zone.is_empty()).collect()
}

/// What a copy of a volume's segment can grow to. Units: bytes.
pub(crate) fn copy_bytes(segment: SegmentSize, volume_bytes: u64, place: usize) -> u64 {
    let place = u64::try_from(place).unwrap_or(u64::MAX);
    let before = place.saturating_mul(segment.bytes());
    let bytes = volume_bytes.saturating_sub(before).min(segment.bytes());
    bytes.next_multiple_of(STEP_BYTES.min(segment.bytes()))
}

impl VolumeEntry {
    /// Also while it grows to that. Units: bytes.
    pub(crate) fn size_promised(&self) -> u64 {
        self.growth.as_ref().map_or(self.spec.size_bytes, |growth| growth.size_bytes)
    }
}

/// Replicas that each disk has or must still drop. Units: bytes.
pub(crate) fn promised(map: &Map) -> BTreeMap<DiskId, u64> {
    let mut promised: BTreeMap<DiskId, u64> = BTreeMap::new();
    let mut count = |disk: DiskId, bytes: u64| {
        let sum = promised.entry(disk).or_insert(0);
        *sum = sum.saturating_add(bytes);
    };
    let segment = map.limits.segment;
    for volume in map.volumes.values() {
        let growth = volume.growth.iter().flat_map(|growth| &growth.segments);
        for (place, members) in volume.segments.iter().chain(growth).enumerate() {
            let bytes = copy_bytes(segment, volume.size_promised(), place);
            holders(members).for_each(|disk| count(disk, bytes));
        }
    }
    for (disk, entry) in &map.disks {
        for (volume, drops) in &entry.to_drop {
            let size = map.volumes.get(volume).map_or(u64::MAX, VolumeEntry::size_promised);
            for index in drops.keys() {
                let place = usize::try_from(index.get()).unwrap_or(usize::MAX);
                count(*disk, copy_bytes(segment, size, place));
            }
        }
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

    const MIB: u64 = 1 << 20;

    fn segment() -> SegmentSize {
        SegmentSize::new(4 * MIB).unwrap()
    }

    /// Units: disk, node, MiB.
    fn room(free: &[(u32, u32, u64)]) -> Room {
        let mut room = Room::default();
        for (disk, node, mib) in free {
            let node = NodeId::new(*node);
            let bytes = mib * MIB;
            let free = Free { node, bytes, sure: bytes, draining: false };
            room.disks.insert(DiskId::new(*disk), free);
            *room.by_node.entry(node).or_insert(0) += bytes;
        }
        room
    }

    #[test]
    fn what_can_be_placed_needs_other_nodes() {
        let placeable = |free: &[_], rf| room(free).placeable(rf, segment()) / MIB;
        assert_eq!(placeable(&[(1, 1, 400), (2, 2, 40)], 2), 40);
        assert_eq!(placeable(&[(1, 1, 400), (2, 2, 200), (3, 3, 200)], 2), 400);
        assert_eq!(placeable(&[(1, 1, 20), (2, 2, 20), (3, 3, 20)], 2), 28, "7 of 15 copies");
        assert_eq!(placeable(&[(1, 1, 20), (2, 1, 20)], 2), 0);
        assert_eq!(placeable(&[], 1), 0);
        assert_eq!(placeable(&[(1, 1, 3), (2, 2, 2), (3, 3, 1)], 2), 2, "less than a segment");
        assert_eq!(placeable(&[(1, 1, 7), (2, 2, 6)], 2), 6, "a last one that is short");
    }

    #[test]
    fn a_copy_of_the_end_of_a_volume_counts_by_what_it_has() {
        let bytes = |size, place| copy_bytes(segment(), size, place);
        assert_eq!(bytes(9 * MIB, 0), 4 * MIB);
        assert_eq!(bytes(9 * MIB, 2), MIB);
        assert_eq!(bytes(9 * MIB + 4096, 2), 2 * MIB);
        assert_eq!(bytes(9 * MIB, 3), 0);
        assert_eq!(bytes(u64::MAX, 3), 4 * MIB);
        let small = SegmentSize::new(64 << 10).unwrap();
        assert_eq!(copy_bytes(small, 4096, 0), 64 << 10);
    }

    #[test]
    fn the_emptiest_node_is_picked_and_then_its_emptiest_disk() {
        let room = room(&[(1, 1, 7), (2, 2, 3), (3, 2, 5), (4, 3, 0)]);
        let mut avoid = Avoid::default();
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(3)));
        avoid.disks.insert(DiskId::new(3));
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(2)));
        avoid.rather_not.insert(NodeId::new(2));
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(1)));
        avoid.nodes.insert(NodeId::new(1));
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(2)));
        avoid.nodes.insert(NodeId::new(2));
        assert_eq!(room.pick(&avoid, MIB), None, "a full disk takes nothing");
    }

    // rule: cluster/nothing-new-on-what-is-emptied
    #[test]
    fn a_disk_that_is_being_emptied_takes_nothing() {
        let all = room(&[(1, 1, 7), (2, 2, 9), (3, 3, 7)]);
        let room = all.without([DiskId::new(2)].iter());
        assert_eq!(room.pick(&Avoid::default(), MIB), Some(DiskId::new(1)));
        assert!(!room.fits(DiskId::new(2), MIB));
        assert_eq!(room.left(DiskId::new(2)), Some(9 * MIB), "what is on it may grow");
        assert_eq!((room.nodes(), room.total()), (2, 14 * MIB));
        assert_eq!(room.placeable(2, segment()), 7 * MIB);
    }

    // rule: cluster/copies-in-different-zones
    #[test]
    fn another_zone_comes_before_more_room() {
        let mut room = room(&[(1, 1, 9), (2, 2, 8), (3, 3, 3), (4, 4, 1)]);
        let zones = [(1, "a"), (2, "a"), (3, "b")];
        room.zones = zones.map(|(node, zone)| (NodeId::new(node), zone.to_owned())).into();
        let used = |nodes: &[u32]| {
            let nodes: BTreeSet<_> = nodes.iter().copied().map(NodeId::new).collect();
            Avoid { nodes: nodes.clone(), zones_of: nodes, ..Avoid::default() }
        };
        assert_eq!(room.pick(&used(&[]), MIB), Some(DiskId::new(1)));
        assert_eq!(room.pick(&used(&[1]), MIB), Some(DiskId::new(3)));
        assert_eq!(
            room.pick(&used(&[1]), 4 * MIB),
            Some(DiskId::new(2)),
            "rather there than nowhere"
        );
        assert_eq!(room.pick(&used(&[1, 3]), MIB), Some(DiskId::new(4)), "it is in none");
        let near = Avoid { rather: Some(NodeId::new(2)), ..used(&[1]) };
        assert_eq!(room.pick(&near, MIB), Some(DiskId::new(3)), "also before its guest's node");
    }

    #[test]
    fn nodes_with_the_same_room_take_turns() {
        let room = room(&[(1, 1, 7), (2, 2, 7), (3, 3, 7)]);
        let picks = |turn| room.pick(&Avoid { turn, ..Avoid::default() }, MIB).unwrap().get();
        assert_eq!([0, 1, 2, 3].map(picks), [1, 2, 3, 1]);
    }

    #[test]
    fn the_guests_node_comes_before_emptier_ones_and_not_where_it_must_not() {
        let mut room = room(&[(1, 1, 3), (2, 2, 9), (3, 3, 7)]);
        let mut avoid = Avoid { rather: Some(NodeId::new(1)), ..Avoid::default() };
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(1)));
        assert_eq!(room.pick(&avoid, 4 * MIB), Some(DiskId::new(2)), "where it has room");
        room.disks.get_mut(&DiskId::new(1)).unwrap().sure = 2 * MIB;
        assert_eq!(room.pick(&avoid, 2 * MIB), Some(DiskId::new(1)));
        assert_eq!(room.pick(&avoid, 3 * MIB), Some(DiskId::new(2)), "not by over-committing it");
        avoid.rather_not.insert(NodeId::new(1));
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(2)));
        avoid.nodes.extend([2, 3].map(NodeId::new));
        assert_eq!(room.pick(&avoid, MIB), Some(DiskId::new(1)));
    }
}
