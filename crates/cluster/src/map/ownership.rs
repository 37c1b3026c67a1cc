//! Who owns a volume: taken by compare and set, lost with the lease or the process.

use crate::command::Proposer;
use crate::event::Fact;
use crate::map::room::holders;
use crate::map::{Map, NodeState, VolumeEntry, VolumeState};
use gabion_types::{DiskId, Epoch, Incarnation, NodeId, RefusedChange, VolumeId};
use std::collections::BTreeSet;

impl Map {
    /// Nobody owns it and its epoch is the one that the proposer saw: so of two that want it, one
    /// gets it. A silent node gets nothing, for its lease is not renewed.
    // rule: cluster/take-over-unowned-only
    // promise: one-owner
    pub(crate) fn take_over(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        match volume.state {
            VolumeState::Creating { .. } => return Err(RefusedChange::Busy),
            VolumeState::Deleting => return Err(RefusedChange::NotFound),
            VolumeState::Ready => {}
        }
        if volume.owner.is_some() {
            return Err(RefusedChange::Busy);
        }
        if volume.epoch != epoch {
            return Err(RefusedChange::OtherEpoch);
        }
        let taker = self.nodes.get(&node).ok_or(RefusedChange::NotFound)?;
        if taker.incarnation != incarnation {
            return Err(RefusedChange::OtherIncarnation);
        }
        if taker.state == NodeState::Silent {
            return Err(RefusedChange::Busy);
        }
        let clean = volume.clean;
        let epoch = volume.raise_epoch();
        volume.clean = clean;
        volume.owner_epoch = epoch;
        volume.owner = Some((node, incarnation));
        self.note(Fact::TakenOver { volume: id, node, epoch });
        Ok(())
    }

    /// By the owner, whatever the epoch of its members is by now. Raises no epoch.
    pub(crate) fn void_sessions(
        &mut self,
        from: Proposer,
        id: VolumeId,
        owner_epoch: Epoch,
        nodes: &[NodeId],
    ) -> Result<(), RefusedChange> {
        let index = self.applied;
        let members: Vec<NodeId> = self.members_of(nodes).collect();
        let volume = self.volume_of_owner(from, id, owner_epoch)?;
        volume.voided.extend(members.into_iter().map(|node| (node, index)));
        Ok(())
    }

    /// All guests are closed, also those that came a moment ago; the one for whom they go gets in.
    // rule: node/exclusive-to-one-node
    pub(super) fn evict(
        &mut self,
        id: VolumeId,
        barred: &BTreeSet<NodeId>,
        let_back: bool,
    ) -> Result<(), RefusedChange> {
        let index = self.applied;
        let barred: BTreeSet<NodeId> = self.members_of(barred).collect();
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if volume.spec.exclusive {
            volume.barred = barred;
        }
        if !let_back {
            volume.voided.extend(self.nodes.keys().map(|node| (*node, index)));
            self.note(Fact::Evicted { volume: id });
        }
        Ok(())
    }

    pub(super) fn let_in(
        &mut self,
        from: Proposer,
        id: VolumeId,
        owner_epoch: Epoch,
    ) -> Result<(), RefusedChange> {
        let volume = self.volume_of_owner(from, id, owner_epoch)?;
        volume.barred.clear();
        Ok(())
    }

    fn members_of<'a>(
        &'a self,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) -> impl Iterator<Item = NodeId> {
        nodes.into_iter().copied().filter(|node| self.nodes.contains_key(node))
    }

    /// What its owner may change, whatever the epoch of its members is by now.
    pub(super) fn volume_of_owner(
        &mut self,
        from: Proposer,
        id: VolumeId,
        owner_epoch: Epoch,
    ) -> Result<&mut VolumeEntry, RefusedChange> {
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if volume.owner != Some((from.node, from.incarnation)) {
            return Err(RefusedChange::NotOwner);
        }
        if volume.owner_epoch != owner_epoch {
            return Err(RefusedChange::OtherEpoch);
        }
        Ok(volume)
    }

    /// The node's lease ended, or its process was replaced.
    pub(crate) fn disown_all_of(&mut self, node: NodeId) {
        let mut lost = Vec::new();
        for volume in self.volumes.values_mut() {
            if volume.owner.is_some_and(|(owner, _)| owner == node) {
                volume.owner = None;
                volume.raise_epoch();
                lost.push(volume.id);
            }
        }
        for volume in lost {
            self.note(Fact::Disowned { volume, node });
        }
    }

    /// A disk hangs on another node now: who works by a view that names it needs a new one.
    pub(crate) fn touch_volumes_on(&mut self, disk: DiskId) {
        for volume in self.volumes.values_mut() {
            let names = volume.segments.iter().any(|members| holders(members).any(|d| d == disk));
            if names {
                volume.raise_epoch();
            }
        }
    }
}
