//! A small cluster for tests: nodes n1, n2, … with disks of 1 GiB and segments of 1 MiB.

use crate::command::{Applied, Change, Command, NodeInfo, Proposer, VolumeSpec};
use crate::map::{Map, VolumeEntry};
use crate::placement::{PlacementError, Wanted, place};
use gabion_types::{
    ClusterId, DiskId, Epoch, HoldPolicy, Incarnation, Limits, MapIndex, NodeId, Outcome,
    OwnerChange, SegmentSize, VolumeId,
};
use std::collections::BTreeMap;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

#[derive(Clone, Debug)]
pub(crate) struct Small {
    pub(crate) map: Map,
    pub(crate) log: Vec<Command>,
    numbers: BTreeMap<Incarnation, u64>,
    lives: u64,
}

impl Small {
    /// One node, nothing initialised.
    pub(crate) fn empty() -> Self {
        let mut small =
            Self { map: Map::default(), log: Vec::new(), numbers: BTreeMap::new(), lives: 1000 };
        small.register(1);
        small
    }

    pub(crate) fn new(nodes: u32, disks_each: u8) -> Self {
        Self::of(nodes, disks_each, MIB)
    }

    pub(crate) fn of(nodes: u32, disks_each: u8, segment_bytes: u64) -> Self {
        let mut small = Self::empty();
        let segment = SegmentSize::new(segment_bytes).unwrap();
        let limits = Limits { segment, ..Limits::DEFAULT };
        small.by(1, Change::Init { cluster: ClusterId::new([7; 16]), limits });
        for node in 1..=nodes {
            if node > 1 {
                small.register(node);
            }
            for disk in 0..disks_each {
                let mut uuid = [0; 16];
                uuid[0] = disk + 1;
                uuid[1] = u8::try_from(node).unwrap();
                let path = format!("/disk{disk}");
                let node_id = NodeId::new(node);
                let change = Change::AddDisk { node: node_id, uuid, capacity_bytes: GIB, path };
                assert_eq!(small.by(node, change), Outcome::Done);
            }
        }
        small
    }

    /// With a volume `vm` of so many segments that is ready.
    pub(crate) fn with_volume(nodes: u32, rf: u8, segments: u64) -> Self {
        let mut small = Self::new(nodes, 1);
        let id = small.create("vm", segments * MIB, rf);
        small.record_all(id);
        small
    }

    pub(crate) fn info(node: u32) -> NodeInfo {
        let address = |port: u32| format!("127.0.0.1:{}", port + node);
        NodeInfo {
            id: NodeId::new(node),
            name: format!("node{node}"),
            peer: address(7500),
            api: address(7400),
            nbd: address(10808),
            http: address(7600),
            zone: String::new(),
        }
    }

    pub(crate) fn apply(&mut self, from: Proposer, change: Change) -> Applied {
        self.append(&Command { from, change })
    }

    pub(crate) fn append(&mut self, command: &Command) -> Applied {
        let Proposer { incarnation, number, .. } = command.from;
        let last = self.numbers.entry(incarnation).or_default();
        *last = number.max(*last);
        self.lives = self.lives.max(incarnation.get());
        self.log.push(command.clone());
        self.map.apply(MapIndex::new(self.log.len() as u64), command)
    }

    /// Proposed by the present process of that node.
    pub(crate) fn by(&mut self, node: u32, change: Change) -> Outcome {
        let from = self.proposer(node);
        let applied = self.apply(from, change);
        assert!(!applied.repeat);
        self.check();
        applied.outcome
    }

    /// Of what the present process of that node proposes next.
    pub(crate) fn proposer(&self, node: u32) -> Proposer {
        let incarnation = self.incarnation(node);
        let number = self.numbers.get(&incarnation).map_or(1, |last| last + 1);
        Proposer { node: NodeId::new(node), incarnation, number }
    }

    pub(crate) fn incarnation(&self, node: u32) -> Incarnation {
        self.map.node(NodeId::new(node)).unwrap().incarnation
    }

    /// A new process of that node.
    pub(crate) fn register(&mut self, node: u32) {
        assert_eq!(self.append(&self.new_process(node)).outcome, Outcome::Done);
    }

    /// What it proposes first.
    pub(crate) fn new_process(&self, node: u32) -> Command {
        let incarnation = Incarnation::new(self.lives + 1);
        let from = Proposer { node: NodeId::new(node), incarnation, number: 1 };
        Command { from, change: Change::Register { node: Self::info(node), incarnation } }
    }

    pub(crate) fn silence(&mut self, node: u32) {
        let term = self.map.term() + 1;
        assert_eq!(self.by(node, Change::Lead { term }), Outcome::Done);
        let (id, incarnation) = (NodeId::new(node), self.incarnation(node));
        let change = Change::Expire { node: id, incarnation, term };
        assert_eq!(self.by(node, change), Outcome::Done);
    }

    pub(crate) fn spec(name: &str, size_bytes: u64, rf: u8) -> VolumeSpec {
        let hold = HoldPolicy::NeverFail;
        VolumeSpec { name: name.to_string(), size_bytes, rf, hold, exclusive: false }
    }

    /// Still in the making.
    pub(crate) fn create(&mut self, name: &str, size_bytes: u64, rf: u8) -> VolumeId {
        let placement = placed(&self.map, size_bytes, 0, rf).unwrap();
        let spec = Self::spec(name, size_bytes, rf);
        assert_eq!(self.by(1, Change::CreateVolume { spec, placement }), Outcome::Done);
        self.map.volume_by_name(name).unwrap().id
    }

    /// Every node does what the map orders it to make.
    pub(crate) fn record_all(&mut self, volume: VolumeId) {
        for node in self.map.nodes().keys().copied().collect::<Vec<_>>() {
            self.record(node.get(), volume);
        }
    }

    pub(crate) fn record(&mut self, node: u32, volume: VolumeId) {
        let orders = self.map.creates_for(NodeId::new(node)).into_iter();
        let disks: BTreeMap<DiskId, Epoch> = orders
            .filter(|order| order.volume == volume)
            .map(|order| (order.disk, order.creation))
            .collect();
        for (disk, creation) in disks {
            assert_eq!(self.by(node, Change::Created { volume, disk, creation }), Outcome::Done);
        }
    }

    pub(crate) fn id(&self) -> VolumeId {
        self.volume().id
    }

    pub(crate) fn volume(&self) -> &VolumeEntry {
        self.map.volume_by_name("vm").unwrap()
    }

    pub(crate) fn take_over(&mut self, node: u32) {
        let (volume, epoch) = (self.id(), self.volume().epoch);
        let (id, incarnation) = (NodeId::new(node), self.incarnation(node));
        let change = Change::TakeOver { volume, epoch, node: id, incarnation };
        assert_eq!(self.by(node, change), Outcome::Done);
    }

    /// By the volume's owner.
    pub(crate) fn owner(&mut self, change: OwnerChange) -> Outcome {
        let (node, _) = self.volume().owner.unwrap();
        let volume = self.id();
        self.by(node.get(), Change::Owner { volume, change })
    }

    /// A node without a copy of the volume's first segment.
    pub(crate) fn spare_node(&self) -> NodeId {
        let members = &self.volume().segments[0];
        let homes: Vec<_> =
            members.write_set().map(|disk| self.map.disk(disk).unwrap().node).collect();
        *self.map.nodes().keys().find(|node| !homes.contains(node)).unwrap()
    }

    pub(crate) fn check(&self) {
        super::random::check(&self.map);
    }
}

/// Wherever the guest is.
pub(crate) fn placed(
    map: &Map,
    size_bytes: u64,
    had: u32,
    rf: u8,
) -> Result<Vec<Vec<DiskId>>, PlacementError> {
    place(map, Wanted { size_bytes, had, rf, near: None })
}
