//! Who owns a volume: taken by compare and set, lost with the lease or the process.

use crate::command::Proposer;
use crate::event::Fact;
use crate::map::room::holders;
use crate::map::{Map, NodeState, VolumeState};
use gabion_types::{DiskId, Epoch, Incarnation, NodeId, RefusedChange, VolumeId};

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
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if volume.owner != Some((from.node, from.incarnation)) {
            return Err(RefusedChange::NotOwner);
        }
        if volume.owner_epoch != owner_epoch {
            return Err(RefusedChange::OtherEpoch);
        }
        for node in nodes.iter().filter(|node| self.nodes.contains_key(node)) {
            volume.voided.insert(*node, index);
        }
        Ok(())
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
