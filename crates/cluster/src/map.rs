//! The cluster map: what the committed log comes to. A pure state machine; every node applies the
//! same entries and has the same map.

mod account;
mod admit;
mod apply;
mod drain;
mod entry;
mod executed;
mod leaving;
mod members;
mod moves;
mod orders;
mod ownership;
pub(crate) mod room;
mod scrub;
mod volumes;

pub use admit::{Admitted, TOKENS_MAX, Ticket};
pub use entry::{
    DiskEntry, DiskState, Drain, DrainReason, Growth, NodeEntry, NodeState, Scrubbed, Scrubs,
    VolumeEntry, VolumeState,
};
pub use executed::EXECUTED_MAX;
pub use members::{Remains, Stranded};
pub use moves::MOVES_MAX;
pub use orders::{CreateOrder, DropOrder};
pub use volumes::{RF_MAX, is_volume_name};

use crate::command::NodeInfo;
use crate::event::{EVENTS_MAX, Fact, MapEvent};
use crate::settings::Settings;
use account::Account;
use gabion_types::{
    ClusterId, DiskId, Incarnation, Limits, MapIndex, NodeId, Outcome, SegmentMembers, VolumeId,
    VolumeView,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Nodes that a cluster may have. Full: `Register` of one more is refused.
pub const NODES_MAX: usize = 512;
/// Disks, the failed ones included. Full: `AddDisk` is refused.
pub const DISKS_MAX: usize = 4096;
/// Volumes. Full: `CreateVolume` is refused.
pub const VOLUMES_MAX: usize = 16_384;
/// Segments of one volume: 16 TiB at 256 MiB.
pub const SEGMENTS_MAX: u32 = 65_536;
/// In-sync and joining replicas of one segment. Full: no joiner is added.
pub const WRITE_SET_MAX: usize = 6;
/// Stale replicas of one segment. Full: the one that left first is dropped.
pub const STALE_MAX: usize = 4;
/// Earlier incarnations of a node that are remembered, so that none of them registers again.
pub const PAST_MAX: usize = 64;
/// Nodes that were removed. Full: no other is.
pub const REMOVED_MAX: usize = 4096;
/// Disks that were removed with copies on them. Full: no node is removed by force.
pub const RETIRED_MAX: usize = DISKS_MAX;
/// Bytes of a name, an address or a path. Longer ones are refused.
pub const TEXT_MAX: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// None before `Init`.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) limits: Limits,
    pub(crate) nodes: BTreeMap<NodeId, NodeEntry>,
    pub(crate) disks: BTreeMap<DiskId, DiskEntry>,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeEntry>,
    /// Only those that were set, as the operator spelled them.
    pub(crate) set: BTreeMap<String, String>,
    /// Nodes that were members once; none ever is again. Bounded by `REMOVED_MAX`.
    #[serde(default)]
    pub(crate) removed: BTreeSet<NodeId>,
    /// Disks that left the map with copies on them: none is used again before it is formatted anew.
    /// Bounded by `RETIRED_MAX`.
    #[serde(default)]
    pub(crate) retired: BTreeSet<[u8; 16]>,
    /// Tokens that were used, as long as they are good. Bounded by `TOKENS_MAX`.
    #[serde(default)]
    pub(crate) admitted: BTreeMap<u64, Admitted>,
    /// Nodes that a token let in, and that have not started yet. Bounded by `NODES_MAX`.
    #[serde(default)]
    pub(crate) awaited: BTreeMap<NodeId, NodeInfo>,
    /// Tokens that expire at or before that may have been used. Units: ms since 1970.
    #[serde(default)]
    pub(crate) tokens_forgotten_ms: u64,
    /// The last ids given; none is ever used twice.
    #[serde(default)]
    pub(crate) last_node: u32,
    pub(crate) last_disk: u32,
    pub(crate) last_volume: u32,
    /// The consensus term of the manager that leads.
    pub(crate) term: u64,
    pub(crate) applied: MapIndex,
    pub(crate) events: VecDeque<MapEvent>,
    #[serde(skip)]
    pub(crate) account: Account,
}

impl Map {
    /// None before the first entry of the cluster.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> MapIndex {
        self.applied
    }

    /// The consensus term of the last manager that led.
    pub fn term(&self) -> u64 {
        self.term
    }

    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeEntry> {
        &self.nodes
    }

    pub fn disks(&self) -> &BTreeMap<DiskId, DiskEntry> {
        &self.disks
    }

    pub fn volumes(&self) -> &BTreeMap<VolumeId, VolumeEntry> {
        &self.volumes
    }

    pub fn node(&self, node: NodeId) -> Option<&NodeEntry> {
        self.nodes.get(&node)
    }

    pub fn disk(&self, disk: DiskId) -> Option<&DiskEntry> {
        self.disks.get(&disk)
    }

    pub fn volume(&self, volume: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.get(&volume)
    }

    /// Volumes that are being deleted have no name any more.
    pub fn volume_by_name(&self, name: &str) -> Option<&VolumeEntry> {
        self.volumes
            .values()
            .find(|volume| volume.spec.name == name && volume.state != VolumeState::Deleting)
    }

    pub fn disk_by_uuid(&self, uuid: [u8; 16]) -> Option<DiskId> {
        self.disks.iter().find(|(_, disk)| disk.uuid == uuid).map(|(id, _)| *id)
    }

    /// The map names this process for the node.
    pub fn is_registered(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.incarnation == incarnation)
    }

    /// It was a member, and is never one again.
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.removed.contains(&node)
    }

    /// A disk that left the map with copies on it.
    pub fn is_retired(&self, uuid: [u8; 16]) -> bool {
        self.retired.contains(&uuid)
    }

    pub fn is_alive(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.state == NodeState::Alive)
    }

    pub fn settings(&self) -> Settings {
        Settings::of(&self.set)
    }

    /// What the copies on each disk could grow to: volumes are thin. Units: bytes.
    pub fn promised_bytes(&self) -> BTreeMap<DiskId, u64> {
        room::promised(self)
    }

    /// Those that were set, by name.
    pub fn settings_set(&self) -> &BTreeMap<String, String> {
        &self.set
    }

    /// The oldest first; at most `EVENTS_MAX`.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &MapEvent> {
        self.events.iter()
    }

    /// What the volume's owner works by. None while it is being made or deleted.
    pub fn view(&self, volume: VolumeId) -> Option<VolumeView> {
        let entry = self.volumes.get(&volume).filter(|entry| entry.state == VolumeState::Ready)?;
        Some(VolumeView {
            volume,
            size_bytes: entry.spec.size_bytes,
            rf: entry.spec.rf,
            hold: entry.spec.hold,
            epoch: entry.epoch,
            owner_epoch: entry.owner_epoch,
            clean: entry.clean,
            segments: entry.segments.clone(),
            draining: self.draining_of(&entry.segments),
            moving: entry.moving.clone(),
            out: self.out_of(&entry.segments),
            homes: self.homes(&entry.segments),
            scrub: entry.scrub.wanted,
        })
    }

    /// Volumes that this process owns, by the map's word.
    pub fn owned_by(
        &self,
        node: NodeId,
        incarnation: Incarnation,
    ) -> impl Iterator<Item = VolumeId> + '_ {
        self.volumes
            .values()
            .filter(move |volume| volume.owner == Some((node, incarnation)))
            .map(|volume| volume.id)
    }

    /// What became of a proposal of this incarnation, as far as the map remembers: for a node that
    /// got the map whole instead of by its entries.
    pub fn outcome_of(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        number: u64,
    ) -> Option<Outcome> {
        let entry = self.nodes.get(&node).filter(|entry| entry.incarnation == incarnation)?;
        entry.executed.outcome(number)
    }

    fn out_of(&self, segments: &[SegmentMembers]) -> BTreeSet<DiskId> {
        let named = segments.iter().flat_map(|members| &members.in_sync).copied();
        named.filter(|disk| self.is_out_for_good(*disk)).collect()
    }

    fn homes(&self, segments: &[SegmentMembers]) -> BTreeMap<DiskId, NodeId> {
        let named = segments.iter().flat_map(|members| {
            members.write_set().chain(members.stale.iter().map(|stale| stale.disk))
        });
        named.filter_map(|disk| self.disks.get(&disk).map(|entry| (disk, entry.node))).collect()
    }

    pub(crate) fn note(&mut self, what: Fact) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(MapEvent { index: self.applied, what });
    }
}

#[cfg(test)]
pub(crate) mod tests;
