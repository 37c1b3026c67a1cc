//! Executing entries: who may propose, what is executed once, and the changes of nodes, disks and
//! settings.

use crate::command::{Applied, Change, Command, NodeInfo, Proposer};
use crate::event::Fact;
use crate::map::executed::Executed;
use crate::map::{
    DISKS_MAX, DiskEntry, DiskState, Map, NODES_MAX, NodeEntry, NodeState, PAST_MAX, Scrubbed,
    TEXT_MAX,
};
use crate::settings::{SettingError, Settings};
use gabion_types::{
    BLOCK_BYTES, ClusterId, DiskId, Incarnation, Limits, MapIndex, NodeId, Outcome, RefusedChange,
    SegmentSize,
};
use std::collections::{BTreeMap, VecDeque};

impl Map {
    /// Executes one committed entry. Total: whatever the entry holds, it is done or refused, and
    /// what is refused changes nothing but the memory of its number.
    // rule: cluster/each-proposal-once
    pub fn apply(&mut self, index: MapIndex, command: &Command) -> Applied {
        self.applied = index;
        let Command { from, change } = command;
        if let Some(node) = self.nodes.get(&from.node).filter(|node| is_from(node, *from)) {
            if let Some(outcome) = node.executed.outcome(from.number) {
                return Applied { outcome, repeat: true };
            }
        } else if !matches!(change, Change::Init { .. } | Change::Register { .. }) {
            let outcome = Outcome::Refused(RefusedChange::OtherIncarnation);
            return Applied { outcome, repeat: false };
        }
        self.keep_account(change);
        let outcome = match self.execute(*from, change) {
            Ok(()) => Outcome::Done,
            Err(refused) => Outcome::Refused(refused),
        };
        self.conclude_drains();
        if let Some(node) = self.nodes.get_mut(&from.node).filter(|node| is_from(node, *from)) {
            node.executed.record(from.number, outcome);
        }
        Applied { outcome, repeat: false }
    }

    fn execute(&mut self, from: Proposer, change: &Change) -> Result<(), RefusedChange> {
        match change {
            Change::Init { cluster, limits } => self.init(*cluster, *limits),
            Change::Register { node, incarnation } => self.register(from, node, *incarnation),
            Change::Admit { ticket, at_ms, info } => self.admit(*ticket, *at_ms, info),
            Change::AddDisk { node, uuid, capacity_bytes, path } => {
                let disk = DiskEntry::new(*uuid, *node, *capacity_bytes, path.clone());
                self.add_disk(from, disk)
            }
            Change::DiskFailed { disk } => self.disk_failed(*disk),
            Change::DiskMissing { disk } => self.disk_missing(from, *disk),
            Change::DrainDisk { disk, why } => self.drain_disk(from, *disk, *why),
            Change::DrainNode { node, why } => self.drain_node(*node, *why),
            Change::RemoveNode { node, force } => self.remove_node(*node, *force),
            Change::MoveCopies { volume, moves } => self.move_copies(*volume, moves),
            Change::CreateVolume { spec, placement } => self.create_volume(spec, placement),
            Change::Created { volume, disk, creation } => {
                self.created(from, *volume, *disk, *creation)
            }
            Change::ResizeVolume { volume, size_bytes, placement } => {
                self.resize_volume(*volume, *size_bytes, placement)
            }
            Change::DeleteVolume { volume, force } => self.delete_volume(*volume, *force),
            Change::Dropped { disk, replicas } => self.dropped(from, *disk, replicas),
            Change::TakeOver { volume, epoch, node, incarnation } => {
                self.take_over(*volume, *epoch, *node, *incarnation)
            }
            Change::AcceptLoss { volume, survivors } => self.accept_loss(*volume, survivors),
            Change::Owner { volume, change } => self.owner_change(from, *volume, change),
            Change::VoidSessions { volume, owner_epoch, nodes } => {
                self.void_sessions(from, *volume, *owner_epoch, nodes)
            }
            Change::Evict { volume, barred, let_back } => self.evict(*volume, barred, *let_back),
            Change::LetIn { volume, owner_epoch } => self.let_in(from, *volume, *owner_epoch),
            Change::WantScrub { volume, kind } => self.want_scrub(*volume, *kind),
            Change::Scrubbed { volume, owner_epoch, ask, at_ms, found } => {
                let done = Scrubbed { number: ask.number, at_ms: *at_ms, found: *found };
                self.scrubbed(from, *volume, *owner_epoch, ask.kind, done)
            }
            Change::Lead { term } => self.lead(from, *term),
            Change::Expire { node, incarnation, term } => self.expire(*node, *incarnation, *term),
            Change::Revive { node, incarnation } => self.revive(from, *node, *incarnation),
            Change::SetSetting { name, value } => self.set_setting(name, value),
        }
    }

    fn init(&mut self, cluster: ClusterId, limits: Limits) -> Result<(), RefusedChange> {
        let sound = SegmentSize::new(limits.segment.bytes()).is_some()
            && limits.part_bytes > 0
            && u64::from(limits.part_bytes).is_multiple_of(BLOCK_BYTES)
            && limits.requests_per_volume > 0
            && limits.write_bytes_per_disk >= u64::from(limits.part_bytes);
        if self.cluster.is_some() || !sound {
            return Err(RefusedChange::Invalid);
        }
        self.cluster = Some(cluster);
        self.limits = limits;
        self.note(Fact::Initialized);
        Ok(())
    }

    /// What an earlier incarnation owned is free at once: its locks prove that it is dead. An
    /// incarnation that was replaced never comes back, however late its entry.
    // rule: cluster/one-incarnation
    fn register(
        &mut self,
        from: Proposer,
        info: &NodeInfo,
        incarnation: Incarnation,
    ) -> Result<(), RefusedChange> {
        let texts = [&info.name, &info.peer, &info.api, &info.nbd, &info.http, &info.zone];
        let own = from.node == info.id && from.incarnation == incarnation;
        if !own || texts.iter().any(|text| text.len() > TEXT_MAX) {
            return Err(RefusedChange::Invalid);
        }
        if self.is_removed(info.id) {
            return Err(RefusedChange::Removed);
        }
        let since = self.applied;
        let lease = self.settings().lease_duration;
        let Some(node) = self.nodes.get_mut(&info.id) else {
            // A place is kept for each that is awaited.
            let others = self.awaited.keys().filter(|id| **id != info.id).count();
            if self.nodes.len() + others >= NODES_MAX {
                return Err(RefusedChange::NoRoom);
            }
            let entry = NodeEntry {
                info: info.clone(),
                incarnation,
                state: NodeState::Alive,
                since,
                lease,
                drain: None,
                past: VecDeque::new(),
                executed: Executed::default(),
            };
            self.nodes.insert(info.id, entry);
            self.awaited.remove(&info.id);
            self.last_node = self.last_node.max(info.id.get());
            self.note(Fact::NodeRegistered { node: info.id, incarnation });
            return Ok(());
        };
        if node.past.contains(&incarnation) {
            return Err(RefusedChange::OtherIncarnation);
        }
        node.info = info.clone();
        if node.incarnation == incarnation {
            return Ok(());
        }
        if node.past.len() == PAST_MAX {
            node.past.pop_front();
        }
        node.past.push_back(node.incarnation);
        node.incarnation = incarnation;
        node.state = NodeState::Alive;
        node.since = since;
        node.lease = lease;
        node.executed = Executed::default();
        self.note(Fact::NodeRegistered { node: info.id, incarnation });
        self.disown_all_of(info.id);
        Ok(())
    }

    fn add_disk(&mut self, from: Proposer, disk: DiskEntry) -> Result<(), RefusedChange> {
        if from.node != disk.node || disk.capacity_bytes == 0 || disk.path.len() > TEXT_MAX {
            return Err(RefusedChange::Invalid);
        }
        if self.is_retired(disk.uuid) {
            return Err(RefusedChange::Removed);
        }
        let node = disk.node;
        let Some(id) = self.disk_by_uuid(disk.uuid) else {
            if self.disks.len() >= DISKS_MAX {
                return Err(RefusedChange::NoRoom);
            }
            self.last_disk = self.last_disk.checked_add(1).ok_or(RefusedChange::NoRoom)?;
            let id = DiskId::new(self.last_disk);
            self.disks.insert(id, disk);
            self.note(Fact::DiskAdded { disk: id, node });
            return Ok(());
        };
        let known = self.disks.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if known.state == DiskState::Failed {
            return Err(RefusedChange::Invalid);
        }
        let moved = known.node != node || known.state == DiskState::Missing;
        known.state = DiskState::InService;
        known.node = node;
        known.capacity_bytes = disk.capacity_bytes;
        known.path = disk.path;
        if moved {
            self.note(Fact::DiskMoved { disk: id, node });
            self.touch_volumes_on(id);
        }
        Ok(())
    }

    // rule: cluster/missing-disk-takes-nothing
    fn disk_missing(&mut self, from: Proposer, id: DiskId) -> Result<(), RefusedChange> {
        let disk = self.disks.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if disk.node != from.node {
            return Err(RefusedChange::Invalid);
        }
        if disk.state == DiskState::InService {
            disk.state = DiskState::Missing;
            self.note(Fact::DiskMissing { disk: id });
            self.give_up_unmade_on(&[id]);
        }
        Ok(())
    }

    fn disk_failed(&mut self, id: DiskId) -> Result<(), RefusedChange> {
        let disk = self.disks.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if disk.state == DiskState::Failed {
            return Ok(());
        }
        disk.state = DiskState::Failed;
        let drops = std::mem::take(&mut disk.to_drop);
        self.note(Fact::DiskFailed { disk: id });
        self.forget_stale_on(id);
        self.touch_volumes_held_by(id);
        self.give_up_unmade_on(&[id]);
        self.finish_deleted(drops.into_keys().collect());
        Ok(())
    }

    fn lead(&mut self, from: Proposer, term: u64) -> Result<(), RefusedChange> {
        if term <= self.term {
            return Err(RefusedChange::Invalid);
        }
        self.term = term;
        self.note(Fact::Led { node: from.node, term });
        Ok(())
    }

    // rule: cluster/expire-in-its-term
    pub(super) fn expire(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        term: u64,
    ) -> Result<(), RefusedChange> {
        let since = self.applied;
        let current = self.term;
        let node = self.nodes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if node.incarnation != incarnation {
            return Err(RefusedChange::OtherIncarnation);
        }
        if term != current {
            return Err(RefusedChange::Invalid);
        }
        if node.state == NodeState::Silent {
            return Ok(());
        }
        node.state = NodeState::Silent;
        node.since = since;
        self.note(Fact::NodeSilent { node: id });
        self.disown_all_of(id);
        let disks = self.disks.iter().filter(|(_, disk)| disk.node == id);
        let disks: Vec<_> = disks.map(|(disk, _)| *disk).collect();
        self.give_up_unmade_on(&disks);
        Ok(())
    }

    // rule: cluster/revive-by-itself
    fn revive(
        &mut self,
        from: Proposer,
        id: NodeId,
        incarnation: Incarnation,
    ) -> Result<(), RefusedChange> {
        if from.node != id || from.incarnation != incarnation {
            return Err(RefusedChange::Invalid);
        }
        let since = self.applied;
        let node = self.nodes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if node.state == NodeState::Silent {
            node.state = NodeState::Alive;
            node.since = since;
            self.note(Fact::NodeRevived { node: id });
        }
        Ok(())
    }

    fn set_setting(&mut self, name: &str, value: &str) -> Result<(), RefusedChange> {
        let text = Settings::check(&self.set, name, value).map_err(|error| match error {
            SettingError::NoSuch => RefusedChange::NotFound,
            SettingError::BadValue { .. } => RefusedChange::Invalid,
        })?;
        self.set.insert(name.to_string(), text.clone());
        self.note(Fact::SettingChanged { name: name.to_string(), value: text });
        Ok(())
    }
}

impl DiskEntry {
    pub(crate) fn new(uuid: [u8; 16], node: NodeId, capacity_bytes: u64, path: String) -> Self {
        let (state, drain) = (DiskState::InService, None);
        Self { uuid, node, capacity_bytes, path, state, drain, to_drop: BTreeMap::new() }
    }
}

fn is_from(node: &NodeEntry, from: Proposer) -> bool {
    node.incarnation == from.incarnation
}
