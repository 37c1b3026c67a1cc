//! Nodes that leave the cluster for good, with their disks.

use super::room::holders;
use super::{DiskEntry, Map, NodeState, REMOVED_MAX, RETIRED_MAX, VolumeState};
use crate::event::Fact;
use gabion_types::{DiskId, NodeId, RefusedChange, SegmentMembers, VolumeId};
use std::collections::BTreeSet;

impl Map {
    /// Volumes of which some segments have no other in-sync copy than on disks of this node, as far as
    /// copies can be reached, and how many segments.
    pub fn last_copies_of(&self, node: NodeId) -> (BTreeSet<VolumeId>, u64) {
        let here = |disk: &DiskEntry| disk.node == node;
        let there =
            |disk: &DiskEntry| !here(disk) && disk.is_in_service() && self.is_alive(disk.node);
        let last = |members: &&SegmentMembers| {
            let mut disks = members.in_sync.iter().filter_map(|disk| self.disks.get(disk));
            disks.clone().any(here) && !disks.any(there)
        };
        let (mut volumes, mut count) = (BTreeSet::new(), 0);
        for volume in self.volumes.values() {
            let segments = volume.all_segments().filter(last).count();
            if segments > 0 {
                volumes.insert(volume.id);
                count += u64::try_from(segments).unwrap_or(u64::MAX);
            }
        }
        (volumes, count)
    }

    /// An operator says that these are gone for good, and a majority of the voters with them: they count as
    /// silent, and are removed where nobody needs what they have. Gives those that are not: what only
    /// they have is held. Not an entry of a log: there is none that could take it.
    pub fn go_on_without(&mut self, lost: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        for id in lost {
            if let Some(incarnation) = self.nodes.get(id).map(|node| node.incarnation) {
                // Silent already: nothing changes.
                let _silent = self.expire(*id, incarnation, self.term);
            }
        }
        let stays = |map: &mut Self, id: NodeId| map.remove_node(id, true).is_err();
        let kept: Vec<NodeId> = lost.iter().copied().filter(|id| stays(self, *id)).collect();
        self.note(Fact::MajorityForced { lost: lost.iter().copied().collect() });
        kept.into_iter().collect()
    }

    // rule: cluster/only-what-nobody-needs-is-removed
    pub(super) fn remove_node(&mut self, id: NodeId, force: bool) -> Result<(), RefusedChange> {
        if self.is_removed(id) {
            return Ok(());
        }
        if self.removed.len() < REMOVED_MAX && self.give_up_awaited(id) {
            return Ok(());
        }
        let node = self.nodes.get(&id).ok_or(RefusedChange::NotFound)?;
        let (drained, silent) = (node.drain.is_some(), node.state == NodeState::Silent);
        let empty = drained && self.is_empty_node(id);
        if !empty {
            if !force || !silent {
                return Err(RefusedChange::InUse);
            }
            if self.last_copies_of(id).1 > 0 {
                return Err(RefusedChange::LastInSync);
            }
        }
        let disks = self.disks_of(id);
        let used: Vec<DiskId> =
            disks.iter().copied().filter(|disk| !self.is_empty_disk(*disk)).collect();
        if self.removed.len() >= REMOVED_MAX || self.retired.len() + used.len() > RETIRED_MAX {
            return Err(RefusedChange::NoRoom);
        }
        let used = used.iter().filter_map(|disk| self.disks.get(disk)).map(|disk| disk.uuid);
        let used: Vec<_> = used.collect();
        self.retired.extend(used);
        self.take_out(&disks.iter().copied().collect());
        self.nodes.remove(&id);
        self.removed.insert(id);
        for volume in self.volumes.values_mut() {
            volume.voided.remove(&id);
            volume.barred.remove(&id);
        }
        let disks = u32::try_from(disks.len()).unwrap_or(u32::MAX);
        self.note(Fact::NodeRemoved { node: id, disks });
        Ok(())
    }

    /// No segment names these disks any more, and then the map does not know them. Each segment has
    /// an in-sync copy elsewhere.
    fn take_out(&mut self, disks: &BTreeSet<DiskId>) {
        let goes = |disk: &DiskId| disks.contains(disk);
        let mut changed = Vec::new();
        for volume in self.volumes.values_mut() {
            if !volume.all_segments().flat_map(holders).any(|disk| goes(&disk)) {
                continue;
            }
            volume.raise_epoch();
            changed.push(volume.id);
            let growth = volume.growth.iter_mut().flat_map(|growth| &mut growth.segments);
            for members in volume.segments.iter_mut().chain(growth) {
                members.in_sync.retain(|disk| !goes(disk));
                members.joining.retain(|joining| !goes(&joining.disk));
                members.stale.retain(|stale| !goes(&stale.disk));
            }
            volume.forget_moved();
            if let VolumeState::Creating { waiting } = &mut volume.state {
                waiting.retain(|disk| !goes(disk));
            }
            if let Some(growth) = &mut volume.growth {
                growth.waiting.retain(|disk| !goes(disk));
            }
        }
        let mut dropped = BTreeSet::new();
        for disk in disks {
            let entry = self.disks.remove(disk);
            dropped.extend(entry.into_iter().flat_map(|entry| entry.to_drop.into_keys()));
        }
        changed.into_iter().for_each(|id| self.conclude_making(id));
        self.finish_deleted(dropped);
    }
}
