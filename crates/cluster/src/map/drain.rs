//! Disks that are being emptied, by themselves or with their node: nothing new goes there, owners move
//! what is there (`gabion_volume`), and what moved is dropped like any other copy.

use super::entry::{Drain, DrainReason};
use super::room::holders;
use super::{DiskEntry, DiskState, Map, VolumeEntry};
use crate::command::Proposer;
use crate::event::{DrainOf, DrainStep, Fact};
use gabion_types::{DiskId, NodeId, RefusedChange, SegmentMembers};
use std::collections::BTreeSet;

impl Map {
    /// By itself, or with its node.
    pub fn is_draining(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|entry| {
            entry.drain.is_some() || self.nodes.get(&entry.node).is_some_and(|n| n.drain.is_some())
        })
    }

    /// No copy of anything is on it or meant for it, and none is to be dropped.
    pub fn is_empty_disk(&self, disk: DiskId) -> bool {
        let named = |members: &SegmentMembers| holders(members).any(|holder| holder == disk);
        let to_drop = self.disks.get(&disk).is_some_and(|entry| !entry.to_drop.is_empty());
        !to_drop && !self.volumes.values().any(|volume| volume.all_segments().any(named))
    }

    pub(super) fn draining_of(&self, segments: &[SegmentMembers]) -> BTreeSet<DiskId> {
        let draining = self.disks.keys().copied().filter(|disk| self.is_draining(*disk));
        let draining: BTreeSet<DiskId> = draining.collect();
        if draining.is_empty() {
            return draining;
        }
        let named: BTreeSet<DiskId> = segments.iter().flat_map(holders).collect();
        draining.intersection(&named).copied().collect()
    }

    /// Only its own node knows whether it is suspect; one that is being emptied already goes on so.
    pub(super) fn drain_disk(
        &mut self,
        from: Proposer,
        id: DiskId,
        why: Option<DrainReason>,
    ) -> Result<(), RefusedChange> {
        let disk = self.disks.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        let suspect = matches!(why, Some(DrainReason::Suspect { .. }));
        if disk.state == DiskState::Failed || (suspect && disk.node != from.node) {
            return Err(RefusedChange::Invalid);
        }
        if suspect && disk.drain.is_some() {
            return Ok(());
        }
        if disk.drain.map(|drain| drain.why) == why {
            return Ok(());
        }
        disk.drain = why.map(|why| Drain { why, done: false });
        self.note_drain(DrainOf::Disk(id), step_of(why));
        self.touch_volumes_on(id);
        Ok(())
    }

    pub(super) fn drain_node(
        &mut self,
        id: NodeId,
        why: Option<DrainReason>,
    ) -> Result<(), RefusedChange> {
        let node = self.nodes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if node.drain.map(|drain| drain.why) == why {
            return Ok(());
        }
        node.drain = why.map(|why| Drain { why, done: false });
        self.note_drain(DrainOf::Node(id), step_of(why));
        for disk in self.disks_of(id) {
            self.touch_volumes_on(disk);
        }
        Ok(())
    }

    pub(super) fn disks_of(&self, node: NodeId) -> Vec<DiskId> {
        let disks = self.disks.iter().filter(|(_, disk)| disk.node == node);
        disks.map(|(id, _)| *id).collect()
    }

    /// Nothing is left on its disks, and it owns nothing.
    pub(super) fn is_empty_node(&self, node: NodeId) -> bool {
        !self.volumes.values().any(|volume| volume.owner.is_some_and(|(owner, _)| owner == node))
            && self.disks_of(node).into_iter().all(|disk| self.is_empty_disk(disk))
    }

    /// Copies on the disks of a node, also those that it is yet to drop, and volumes that it owns.
    pub fn left_on(&self, node: NodeId) -> (u64, u64) {
        let disks: BTreeSet<DiskId> = self.disks_of(node).into_iter().collect();
        let owned =
            self.volumes.values().filter(|v| v.owner.is_some_and(|(owner, _)| owner == node));
        let segments = self.volumes.values().flat_map(VolumeEntry::all_segments);
        let named = segments.flat_map(holders).filter(|disk| disks.contains(disk)).count();
        let to_drop: usize =
            disks.iter().filter_map(|disk| self.disks.get(disk)).map(DiskEntry::to_drop).sum();
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        (wide(named + to_drop), wide(owned.count()))
    }

    /// What is empty is told of once; a node that owns something again is not done any more.
    pub(super) fn conclude_drains(&mut self) {
        let open = |drain: Option<Drain>| drain.is_some_and(|drain| !drain.done);
        let disks = self.disks.iter().filter(|(_, disk)| open(disk.drain));
        let disks: Vec<DiskId> = disks.map(|(id, _)| *id).collect();
        for id in disks.into_iter().filter(|id| self.is_empty_disk(*id)).collect::<Vec<_>>() {
            if let Some(drain) = self.disks.get_mut(&id).and_then(|disk| disk.drain.as_mut()) {
                drain.done = true;
                self.note_drain(DrainOf::Disk(id), DrainStep::Done);
            }
        }
        let nodes = self.nodes.iter().filter(|(_, node)| node.drain.is_some());
        let nodes: Vec<NodeId> = nodes.map(|(id, _)| *id).collect();
        for id in nodes {
            let empty = self.is_empty_node(id);
            let Some(drain) = self.nodes.get_mut(&id).and_then(|node| node.drain.as_mut()) else {
                continue;
            };
            let told = std::mem::replace(&mut drain.done, empty);
            if empty && !told {
                self.note_drain(DrainOf::Node(id), DrainStep::Done);
            }
        }
    }

    fn note_drain(&mut self, of: DrainOf, step: DrainStep) {
        self.note(Fact::Drain { of, step });
    }
}

fn step_of(why: Option<DrainReason>) -> DrainStep {
    why.map_or(DrainStep::Cancelled, |why| DrainStep::Begun { why })
}
