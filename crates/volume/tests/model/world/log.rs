//! The map's log as each node hears of it, and the manager.

use super::{Entry, Event, LEASE_MANAGER, MS, World};
use crate::disk::Origin;
use crate::map::Life;
use gabion_types::{DiskId, Epoch, NodeId, Outcome, OwnerChange, SegmentIndex};
use gabion_volume::{Input, ProposalNumber};
use gabion_wire::{ReplicaOp, ReplicaRequest, RequestId};

impl World {
    pub(super) fn append(&mut self, outcome: Option<(Life, u64, Outcome)>) {
        let (view, owner) = (self.map.view.clone(), self.map.owner);
        self.log.push(Entry { view, owner, outcome });
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.log_later(node));
    }

    pub(super) fn log_later(&mut self, node: NodeId) {
        let behind = self.nodes[&node].applied < self.log.len();
        let state = self.nodes.get_mut(&node).unwrap();
        if behind && state.up && !state.alone && !state.log_pending {
            state.log_pending = true;
            let slow = self.prng.chance(1, 10);
            let after = if slow { self.between(MS, 400 * MS) } else { self.between(MS, 10 * MS) };
            self.at(after, Event::Log { node });
        }
    }

    pub(super) fn on_log(&mut self, node: NodeId) -> Result<(), String> {
        let state = self.nodes.get_mut(&node).unwrap();
        state.log_pending = false;
        if !state.up || state.alone || state.applied >= self.log.len() {
            return Ok(());
        }
        let entry = self.log[state.applied].clone();
        state.applied += 1;
        let life = (node, state.life);
        let owned = entry.owner == Some(life);
        let epoch = entry.view.owner_epoch;
        self.say(|| {
            let view = &entry.view;
            format!("log {node}: {} owner {:?} {:?}", view.epoch, entry.owner, view.segments)
        });
        let owners: Vec<u64> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.node == node)
            .map(|(key, _)| *key)
            .collect();
        let mut known = false;
        for owner in owners {
            known |= self.owners[&owner].epoch == epoch;
            let view = entry.view.clone();
            self.feed(owner, Input::View { view, owned })?;
            if let Some((whose, number, outcome)) = entry.outcome
                && whose == life
                && let Some(state) = self.owners.get_mut(&owner)
                && state.proposed.remove(&number).is_some()
            {
                let number = ProposalNumber(number);
                self.feed(owner, Input::Proposed { number, outcome })?;
            }
        }
        if owned && !known && self.map.owner == Some(life) && self.map.view.owner_epoch == epoch {
            self.start_owner(node, entry.view.clone())?;
        }
        if entry.owner.is_none() {
            let after = self.between(5 * MS, 300 * MS);
            self.at(after, Event::TakeOver { node, epoch: entry.view.epoch });
        }
        self.log_later(node);
        Ok(())
    }

    pub(super) fn on_propose(&mut self, owner: u64, number: u64, change: OwnerChange) {
        let Some(state) = self.owners.get(&owner) else { return };
        let (node, life) = (state.node, state.life);
        if self.nodes[&node].alone {
            self.at(200 * MS, Event::Propose { owner, number, change });
            return;
        }
        let alive: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, state)| state.up && !state.alone)
            .map(|(node, _)| *node)
            .filter(|node| {
                self.disks.values().any(|d| !d.out && self.map.view.homes[&d.id] == *node)
            })
            .collect();
        // Numbers are the node's: told apart by the owner's epoch here.
        let key = owner * 1_000_000 + number;
        let outcome = self.map.apply(life, key, &change, &alive);
        self.say(|| format!("map: {change:?} -> {outcome:?}"));
        self.append(Some((life, number, outcome)));
        if let OwnerChange::Forget { stale, epoch } = &change
            && outcome == Outcome::Done
        {
            for (segment, disk) in stale {
                let creation = self.map.view.segments[segment.get() as usize].creation;
                let after = self.between(MS, 500 * MS);
                let (segment, disk, epoch) = (*segment, *disk, epoch.next());
                self.at(after, Event::Drop { disk, segment, creation, epoch });
            }
        }
    }

    pub(super) fn on_drop(
        &mut self,
        disk: DiskId,
        segment: SegmentIndex,
        creation: Epoch,
        epoch: Epoch,
    ) {
        let members = &self.map.view.segments[segment.get() as usize];
        let node = self.map.view.homes[&disk];
        if members.write_set().any(|member| member == disk) || !self.nodes[&node].up {
            return;
        }
        let ask = ReplicaRequest {
            disk,
            volume: self.map.view.volume,
            owner_epoch: Epoch::MAX,
            op: ReplicaOp::Drop { segment, creation, epoch },
        };
        let from = Origin { owner: 0, link: 0 };
        self.disks.get_mut(&disk).unwrap().take(from, RequestId(0), ask);
        self.commit_later(disk);
    }

    pub(super) fn on_manager(&mut self) {
        self.at(100 * MS, Event::Manager);
        let Some(life) = self.map.owner else {
            let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
            let epoch = self.map.view.epoch;
            let node = *self.prng.pick(&nodes).unwrap();
            let after = self.between(100 * MS, 500 * MS);
            self.at(after, Event::TakeOver { node, epoch });
            return;
        };
        let reborn = self.nodes[&life.0].life != life.1 && self.nodes[&life.0].up;
        if reborn || self.now > self.renewed + LEASE_MANAGER {
            self.say(|| format!("map: {life:?} expires"));
            self.map.expire();
            self.append(None);
        }
    }
}
