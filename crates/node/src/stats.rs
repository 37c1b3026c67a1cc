//! What a node tells of itself, beyond the map.

use crate::disks::DiskCondition;
use crate::guests::{ClientStats, GUESTS_MAX};
use crate::io::DiskSlot;
use crate::node::Node;
use crate::stop::Stage;
use gabion_store::{Store, StoreStats};
use gabion_types::{
    BreakerSeen, DiskId, Duration, Instant, Load, MapIndex, NodeId, SegmentIndex, VolumeId,
};
use gabion_volume::VolumeStats;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub struct NodeStats {
    pub node: NodeId,
    pub leader: Option<NodeId>,
    pub map: MapIndex,
    /// The map names this process.
    pub registered: bool,
    /// Registered, with a leader, a lease and all disks decided: guests are served.
    pub ready: bool,
    /// What is left of the lease.
    pub lease_left: Option<Duration>,
    pub guests: usize,
    /// Payload of this node's guests that is held, on its way in, or to be answered. Units: bytes.
    pub guest_bytes: u64,
    /// Guests that are not read, because their volume's share of the buffers is full.
    pub guests_waiting: usize,
    pub disks: Vec<DiskStats>,
    /// Of the volumes that this node owns.
    pub volumes: Vec<(VolumeId, VolumeStats)>,
    /// Guests of those volumes, whatever node they are attached to.
    pub guests_of: BTreeMap<VolumeId, usize>,
    /// This node's own.
    pub clients: Vec<ClientStats>,
    pub peers: Vec<PeerStats>,
    /// Disks, here or elsewhere, that the owners of those volumes do without, or take back only later.
    pub doubts: Vec<(VolumeId, DiskId, BreakerSeen)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DiskStats {
    pub disk: DiskSlot,
    pub id: Option<DiskId>,
    pub path: String,
    pub condition: DiskCondition,
    pub breaker: BreakerSeen,
    pub store: StoreStats,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    pub node: NodeId,
    /// Links for owners' requests are up.
    pub up: bool,
    /// Counts as failed.
    pub down: bool,
    pub breaker: BreakerSeen,
}

impl Node {
    pub fn stats(&self) -> NodeStats {
        let disks = self.disks.slots().into_iter().filter_map(|slot| {
            Some(DiskStats {
                disk: slot,
                id: self.disks.id(slot),
                path: self.disks.path(slot).to_owned(),
                condition: self.disks.condition(slot)?.clone(),
                breaker: self.disks.breaker(slot)?.seen(self.now),
                store: self.disks.stats(slot)?,
            })
        });
        let peers = self.links.peers().filter_map(|node| {
            Some(PeerStats {
                node,
                up: self.links.usable(node),
                down: self.links.is_down(node),
                breaker: self.links.breaker(node)?.seen(self.now),
            })
        });
        let lease = self.lease.until().filter(|until| *until > self.now);
        NodeStats {
            node: self.config.node,
            leader: self.leader,
            map: self.index,
            registered: self.registered,
            ready: self.registered
                && self.leader.is_some()
                && lease.is_some()
                && self.disks.all_decided()
                && self.stage == Stage::Running,
            lease_left: lease.map(|until| until.since(self.now)),
            guests: self.guests.len(),
            guest_bytes: self.fronts.held_bytes() + self.shares.reserved_bytes(),
            guests_waiting: self.shares.waiting(),
            disks: disks.collect(),
            volumes: self.owners.stats().collect(),
            guests_of: self.owners.guests().collect(),
            clients: self.guests.clients().collect(),
            peers: peers.collect(),
            doubts: self.owners.doubts(self.now).collect(),
        }
    }

    /// For the simulator's checks and `volume locate`.
    pub fn store(&self, disk: DiskSlot) -> Option<&Store> {
        self.disks.store(disk)
    }

    pub fn disk_condition(&self, disk: DiskSlot) -> Option<&DiskCondition> {
        self.disks.condition(disk)
    }

    /// How full everything is that has a bound.
    // promise: bounded
    pub fn loads(&self) -> Vec<Load> {
        let guests = Load::new("guests of a node", self.guests.len(), GUESTS_MAX);
        let disks = self.disks.slots().into_iter().filter_map(|slot| self.disks.store(slot));
        let stores = disks.flat_map(Store::loads);
        [guests]
            .into_iter()
            .chain(stores)
            .chain(self.owners.loads())
            .chain(self.fronts.loads())
            .chain(self.share_loads())
            .collect()
    }

    /// The lease holds, if it is that late.
    pub fn holds_lease(&self, now: Instant) -> bool {
        self.lease.holds(now)
    }

    /// Volumes that this node's owners may acknowledge and answer for, if it is that late; with the
    /// segments of each that are not served yet.
    pub fn completing(&self, now: Instant) -> Vec<(VolumeId, Vec<SegmentIndex>)> {
        self.owners.completing(now).collect()
    }

    /// Volumes owned here in which something could go on, if it is that late, and that nothing wakes.
    pub fn overlooked(&self, now: Instant) -> Vec<VolumeId> {
        self.owners.overlooked(now).collect()
    }

    /// The volume is owned here, and has proposed other members for this segment.
    pub fn is_undecided(&self, volume: VolumeId, segment: SegmentIndex) -> bool {
        self.owners.is_undecided(volume, segment)
    }

    /// Guests' requests that this node holds unanswered.
    pub fn held_requests(&self) -> usize {
        self.fronts.held()
    }
}
