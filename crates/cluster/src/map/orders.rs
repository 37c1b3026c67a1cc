//! What the map orders a node to do with its own disks: make segments (rule 0) and drop replicas
//! (rule 10).

use crate::map::{DiskEntry, Map, VolumeState};
use gabion_types::{DiskId, Epoch, NodeId, SegmentIndex, SegmentMembers, VolumeId};
use std::collections::BTreeSet;

/// A run of segments that a disk has to record before the volume (or its growth) is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreateOrder {
    pub volume: VolumeId,
    pub disk: DiskId,
    pub creation: Epoch,
    pub first: SegmentIndex,
    pub count: u32,
}

/// A replica that a disk has to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropOrder {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub disk: DiskId,
    pub creation: Epoch,
    /// The volume's epoch by this map, or the one at which it was deleted: the order stands as of
    /// then, so a fence up to it is no reason against it.
    pub epoch: Epoch,
}

impl Map {
    /// Segments that disks of this node have to record. When all of a (volume, disk) are durable:
    /// `Created`.
    pub fn creates_for(&self, node: NodeId) -> Vec<CreateOrder> {
        let mut orders = Vec::new();
        for volume in self.volumes.values() {
            if let VolumeState::Creating { waiting } = &volume.state {
                self.push_creates(&mut orders, node, volume.id, waiting, 0, &volume.segments);
            }
            if let Some(growth) = &volume.growth {
                let first = volume.segments.len();
                let waiting = &growth.waiting;
                self.push_creates(&mut orders, node, volume.id, waiting, first, &growth.segments);
            }
        }
        orders
    }

    fn push_creates(
        &self,
        orders: &mut Vec<CreateOrder>,
        node: NodeId,
        volume: VolumeId,
        waiting: &BTreeSet<DiskId>,
        first: usize,
        segments: &[SegmentMembers],
    ) {
        let here = |disk: &&DiskId| self.disk(**disk).is_some_and(|entry| entry.node == node);
        for disk in waiting.iter().filter(here).copied() {
            for (offset, members) in segments.iter().enumerate() {
                if !members.is_in_sync(disk) {
                    continue;
                }
                let segment = segment_at(first + offset);
                let creation = members.creation;
                match orders.last_mut() {
                    Some(run)
                        if run.volume == volume
                            && run.disk == disk
                            && run.creation == creation
                            && run.first.get() + run.count == segment.get() =>
                    {
                        run.count += 1;
                    }
                    Some(_) | None => orders.push(CreateOrder {
                        volume,
                        disk,
                        creation,
                        first: segment,
                        count: 1,
                    }),
                }
            }
        }
    }

    /// Replicas that disks of this node have to drop. Gone, or not there at all: `Dropped`.
    pub fn drops_for(&self, node: NodeId) -> Vec<DropOrder> {
        let there = |disk: &DiskEntry| disk.node == node && disk.is_in_service();
        let disks = self.disks.iter().filter(|(_, disk)| there(disk));
        let mut orders = Vec::new();
        for (disk, entry) in disks {
            for (volume, segments) in &entry.to_drop {
                let epoch = self.volumes.get(volume).map_or(Epoch::ZERO, |volume| volume.epoch);
                orders.extend(segments.iter().map(|(segment, mark)| DropOrder {
                    volume: *volume,
                    segment: *segment,
                    disk: *disk,
                    creation: mark.creation,
                    epoch: epoch.max(mark.epoch),
                }));
            }
        }
        orders
    }

    /// The map names this replica: in-sync, joining, stale or in the making.
    pub fn is_wanted(
        &self,
        disk: DiskId,
        volume: VolumeId,
        segment: SegmentIndex,
        creation: Epoch,
    ) -> bool {
        self.members(volume, segment).is_some_and(|members| {
            members.creation == creation
                && (members.is_in_sync(disk)
                    || members.joining(disk).is_some()
                    || members.stale(disk).is_some())
        })
    }

    /// Who holds a segment, also one that a growing volume is yet to get.
    pub fn members(&self, volume: VolumeId, segment: SegmentIndex) -> Option<&SegmentMembers> {
        let entry = self.volumes.get(&volume)?;
        let index = usize::try_from(segment.get()).ok()?;
        let grown = || {
            let growth = entry.growth.as_ref()?;
            growth.segments.get(index - entry.segments.len())
        };
        entry.segments.get(index).or_else(grown)
    }
}

/// The index of the `place`-th segment.
pub(crate) fn segment_at(place: usize) -> SegmentIndex {
    SegmentIndex::new(u32::try_from(place).expect("a volume has at most SEGMENTS_MAX segments"))
}
