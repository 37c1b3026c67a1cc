//! The cluster map, its manager, and the model of owners and disks.

use super::{Entries, Meter, NoPlan, Outcome, Plan};
use gabion_cluster::level;
use gabion_cluster::manager::{self, Manager};
use gabion_cluster::map::Map;
use gabion_cluster::safety::Safety;
use gabion_cluster::{AdminReply, AdminRequest, Change, Command, NodeInfo, Proposer, VolumeSpec};
use gabion_types::{
    ClusterId, DiskId, Duration, HoldPolicy, Incarnation, Instant, Limits, MapIndex, NodeId,
    Outcome as Decided, OwnerChange, Promotion, Removal, SegmentIndex, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Most copies of one entry, as in `volume`.
const COPIES_PER_ENTRY: usize = 4096;
/// Copies of one volume that are filled at a time, as in `volume`.
const FILLS_AT_ONCE: usize = 4;
const STEP: Duration = Duration::from_millis(500);
const MANAGER: NodeId = NodeId::new(1);
/// Voters of so large a cluster.
const VOTERS: u32 = 5;
/// An end that nothing comes near: a bug if it is reached.
const STEPS_MAX: u64 = 10_000_000;

/// A copy that is being filled.
struct Fill {
    volume: VolumeId,
    segment: SegmentIndex,
    joiner: DiskId,
    source: DiskId,
    left: f64,
}

/// What a copy takes its share of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Disk(DiskId),
    In(NodeId),
    Out(NodeId),
}

pub(super) struct World<'a, 'b> {
    plan: Plan,
    meter: &'a mut Meter<'b>,
    map: Map,
    index: u64,
    now: Instant,
    manager: Manager,
    numbers: BTreeMap<NodeId, u64>,
    renewal: u64,
    dead: BTreeSet<NodeId>,
    lost_at: Option<Instant>,
    /// With a copy that is missing or being made. Bounded by the volumes.
    open: BTreeSet<VolumeId>,
    fills: Vec<Fill>,
    filling: BTreeMap<VolumeId, BTreeSet<SegmentIndex>>,
    replies: Vec<AdminReply>,
    pub(super) outcome: Outcome,
}

fn incarnation(node: NodeId) -> Incarnation {
    Incarnation::new(u64::from(node.get()) + 1000)
}

fn name_of(change: &Change) -> &'static str {
    if let Change::Owner { change, .. } = change {
        return match change {
            OwnerChange::RemoveMembers { .. } => "remove members",
            OwnerChange::AddJoining { .. } => "add joining",
            OwnerChange::Promote { .. } => "promote",
            OwnerChange::Combine { .. } => "combine",
            OwnerChange::Forget { .. } => "forget",
            OwnerChange::Release { .. } => "release",
        };
    }
    let named = [
        (matches!(change, Change::Expire { .. }), "expire"),
        (matches!(change, Change::TakeOver { .. }), "take over"),
        (matches!(change, Change::MoveCopies { .. }), "move copies"),
    ];
    named.iter().find(|(is, _)| *is).map_or("other", |(_, name)| name)
}

impl<'a, 'b> World<'a, 'b> {
    pub(super) fn new(plan: &Plan, meter: &'a mut Meter<'b>) -> Self {
        Self {
            plan: *plan,
            meter,
            map: Map::default(),
            index: 0,
            now: Instant::ZERO,
            manager: Manager::new(MANAGER, incarnation(MANAGER)),
            numbers: BTreeMap::new(),
            renewal: 0,
            dead: BTreeSet::new(),
            lost_at: None,
            open: BTreeSet::new(),
            fills: Vec::new(),
            filling: BTreeMap::new(),
            replies: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> (T, Duration) {
        let before = (self.meter.clock)();
        let done = work(self);
        (done, (self.meter.clock)().saturating_sub(before))
    }

    /// One entry of the log.
    fn apply(&mut self, node: NodeId, change: Change) -> Decided {
        let number = self.numbers.entry(node).or_insert(0);
        *number += 1;
        let from = Proposer { node, incarnation: incarnation(node), number: *number };
        self.index += 1;
        let index = MapIndex::new(self.index);
        let command = Command { from, change };
        let (name, bytes) = (name_of(&command.change), (self.meter.entry_bytes)(&command));
        let (applied, took) = self.timed(|world| world.map.apply(index, &command));
        let entries = match self.lost_at {
            None => &mut self.outcome.entries_before,
            Some(_) => self.outcome.entries.entry(name).or_default(),
        };
        note(entries, bytes, applied.outcome == Decided::Done);
        if self.lost_at.is_some() {
            self.outcome.applied.entry(name).or_default().add(took);
        }
        applied.outcome
    }

    /// The manager is told something, and what it wants is done.
    fn manage(&mut self, name: &'static str, input: manager::Input) {
        let now = self.now;
        let (effects, took) = self.timed(|world| {
            world.manager.handle(now, &world.map, input);
            std::iter::from_fn(|| world.manager.next_effect()).collect::<Vec<_>>()
        });
        if self.lost_at.is_some() {
            self.outcome.managed.entry(name).or_default().add(took);
        }
        for effect in effects {
            match effect {
                manager::Effect::Propose { key, change } => {
                    let outcome = self.apply(MANAGER, change);
                    self.manage("an outcome", manager::Input::Proposed { key, outcome });
                }
                manager::Effect::ConfirmLeader { number, term } => {
                    self.manage("a confirmation", manager::Input::LeaderConfirmed { number, term });
                }
                manager::Effect::AdminDone { reply, .. } => self.replies.push(reply),
                manager::Effect::Renewed { .. } | manager::Effect::AskRelease { .. } => {}
            }
        }
    }

    /// Nodes, disks and volumes; each volume is owned by the node for which it was made.
    pub(super) fn build(&mut self) -> Result<(), NoPlan> {
        let limits = Limits::DEFAULT;
        self.apply(MANAGER, Change::Init { cluster: ClusterId::new([7; 16]), limits });
        for node in (1..=self.plan.nodes).map(NodeId::new) {
            let info = info(node, self.plan.racks);
            self.apply(node, Change::Register { node: info, incarnation: incarnation(node) });
            for disk in 0..self.plan.disks_per_node {
                let mut uuid = [0; 16];
                uuid[..4].copy_from_slice(&node.get().to_le_bytes());
                uuid[4..8].copy_from_slice(&disk.to_le_bytes());
                let (capacity_bytes, path) = (self.plan.disk_bytes, format!("/dev/nvme{disk}n1"));
                self.apply(node, Change::AddDisk { node, uuid, capacity_bytes, path });
            }
        }
        self.manage("leader", manager::Input::Leader { term: 1, leader: Some(MANAGER) });
        let volumes = self.plan.segments.div_ceil(self.plan.segments_per_volume);
        let mut left = self.plan.segments;
        for volume in 0..volumes {
            let owner = NodeId::new(1 + volume % self.plan.nodes);
            let segments = left.min(self.plan.segments_per_volume);
            left -= segments;
            self.create(volume, owner, segments)?;
            self.pass_a_little();
        }
        self.outcome.map_bytes[0] = (self.meter.map_bytes)(&self.map);
        Ok(())
    }

    fn create(&mut self, number: u32, owner: NodeId, segments: u32) -> Result<(), NoPlan> {
        let spec = VolumeSpec {
            name: format!("vm{number}"),
            size_bytes: u64::from(segments) * self.map.limits().segment.bytes(),
            rf: self.plan.rf,
            hold: HoldPolicy::NeverFail,
            exclusive: false,
        };
        let request = AdminRequest::CreateVolume { spec, near: Some(owner) };
        self.manage("a request", manager::Input::Admin { number: u64::from(number), request });
        let Some(entry) = self.map.volumes().values().next_back() else {
            return Err(NoPlan::NoRoom);
        };
        let (volume, creation) = (entry.id, entry.epoch);
        let disks: BTreeSet<DiskId> =
            entry.segments.iter().flat_map(|members| &members.in_sync).copied().collect();
        if matches!(self.replies.pop(), Some(AdminReply::Refused(_))) {
            return Err(NoPlan::NoRoom);
        }
        for disk in disks {
            let Some(node) = self.home(disk) else { continue };
            self.apply(node, Change::Created { volume, disk, creation });
        }
        self.manage("an entry", manager::Input::Applied);
        let Some(epoch) = self.map.volume(volume).map(|entry| entry.epoch) else {
            return Err(NoPlan::NoRoom);
        };
        self.replies.clear();
        let incarnation = incarnation(owner);
        self.apply(owner, Change::TakeOver { volume, epoch, node: owner, incarnation });
        Ok(())
    }

    /// So that no lease ends while the cluster is made.
    fn pass_a_little(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        if self.now.nanos().is_multiple_of(500_000_000) {
            self.renew();
        }
    }

    fn renew(&mut self) {
        self.renewal += 1;
        let alive = (1..=self.plan.nodes).map(NodeId::new).filter(|node| !self.dead.contains(node));
        for node in alive.collect::<Vec<_>>() {
            let (incarnation, number) = (incarnation(node), self.renewal);
            self.manage("a renewal", manager::Input::Renew { node, incarnation, number, term: 1 });
        }
    }

    /// The last rack, so that the manager's node stays.
    pub(super) fn lose_a_rack(&mut self) {
        self.renew();
        let lost = self.plan.racks - 1;
        let in_rack = |node: &u32| (node - 1) % self.plan.racks == lost;
        self.dead = (1..=self.plan.nodes).filter(in_rack).map(NodeId::new).collect();
        self.lost_at = Some(self.now);
        self.outcome.nodes_lost = u32::try_from(self.dead.len()).unwrap_or(u32::MAX);
        let segments = self.map.volumes().values().flat_map(|entry| &entry.segments);
        for members in segments {
            let gone = members.in_sync.iter().filter(|disk| self.is_dead(**disk)).count();
            self.outcome.copies_lost += gone as u64;
            self.outcome.segments_held += u64::from(gone == members.in_sync.len());
        }
        self.open = self.map.volumes().keys().copied().collect();
        for step in 1.. {
            assert!(step < STEPS_MAX, "it comes to an end");
            self.now = self.now + STEP;
            self.renew();
            self.manage("a tick", manager::Input::Tick);
            if self.since_loss() >= Duration::from_secs(1) {
                self.owners_act();
            }
            self.fill();
            if step % 20 == 1 {
                self.look();
            }
            if self.note_progress() {
                break;
            }
        }
        self.look();
    }

    fn since_loss(&self) -> Duration {
        self.lost_at.map_or(Duration::ZERO, |lost| self.now.since(lost))
    }

    /// What people and their tools ask for now and then.
    fn look(&mut self) {
        let voters: BTreeSet<NodeId> = (1..=VOTERS.min(self.plan.nodes)).map(NodeId::new).collect();
        let (_, took) = self.timed(|world| Safety::of(&world.map, &voters));
        self.outcome.looks.entry("what a loss would cost").or_default().add(took);
        let (_, took) = self.timed(|world| level::plan(&world.map, 0, 8));
        self.outcome.looks.entry("which copies to move").or_default().add(took);
        let bytes = (self.meter.map_bytes)(&self.map);
        self.outcome.map_bytes[1] = self.outcome.map_bytes[1].max(bytes);
    }

    /// True: all is done.
    fn note_progress(&mut self) -> bool {
        let since = self.since_loss();
        if self.outcome.all_owned.is_none() {
            let owned = self.map.volumes().values().all(|entry| entry.owner.is_some());
            let expired = self.dead.iter().all(|node| !self.map.is_alive(*node));
            self.outcome.all_owned = (owned && expired).then_some(since);
        }
        self.outcome.rebuilt = since;
        self.open.is_empty() && self.outcome.all_owned.is_some()
    }

    fn home(&self, disk: DiskId) -> Option<NodeId> {
        self.map.disk(disk).map(|entry| entry.node)
    }

    fn is_dead(&self, disk: DiskId) -> bool {
        self.home(disk).is_none_or(|node| self.dead.contains(&node))
    }

    /// Each owner that lives does the next thing for its volume.
    fn owners_act(&mut self) {
        for volume in self.open.iter().copied().collect::<Vec<_>>() {
            let Some(entry) = self.map.volume(volume) else { continue };
            let owner = entry.owner.map(|(node, _)| node).filter(|node| !self.dead.contains(node));
            let Some(owner) = owner else { continue };
            let epoch = entry.epoch;
            let removals = self.removals(volume);
            if !removals.is_empty() {
                let change = OwnerChange::RemoveMembers { epoch, removals, add_joiner: true };
                self.apply(owner, Change::Owner { volume, change });
                continue;
            }
            let joins = self.joins(volume);
            if !joins.is_empty() {
                let change = OwnerChange::AddJoining { epoch, joins };
                self.apply(owner, Change::Owner { volume, change });
                continue;
            }
            self.begin_fills(volume);
        }
    }

    fn removals(&self, volume: VolumeId) -> Vec<Removal> {
        let Some(entry) = self.map.volume(volume) else { return Vec::new() };
        let mut removals = Vec::new();
        for (segment, members) in (0..).map(SegmentIndex::new).zip(&entry.segments) {
            if members.in_sync.iter().all(|disk| self.is_dead(*disk)) {
                continue;
            }
            let gone = members.write_set().filter(|disk| self.is_dead(*disk));
            removals.extend(gone.map(|disk| Removal {
                segment,
                disk,
                compare_all: false,
                may_return: true,
                replaced: false,
                reach: None,
            }));
        }
        removals.truncate(COPIES_PER_ENTRY);
        removals
    }

    /// Segments for which the map found no place before.
    fn joins(&self, volume: VolumeId) -> Vec<(SegmentIndex, Option<DiskId>)> {
        let Some(entry) = self.map.volume(volume) else { return Vec::new() };
        let segments = (0..).map(SegmentIndex::new).zip(&entry.segments);
        let short =
            segments.filter(|(_, members)| members.write_set().count() < usize::from(self.plan.rf));
        short.map(|(segment, _)| (segment, None)).take(COPIES_PER_ENTRY).collect()
    }

    fn begin_fills(&mut self, volume: VolumeId) {
        if self.since_loss() < self.map.settings().rebuild_wait {
            return;
        }
        let Some(entry) = self.map.volume(volume) else { return };
        let bytes = self.map.limits().segment.bytes() as f64;
        let under_way = self.filling.entry(volume).or_default();
        let mut joining = 0;
        for (segment, members) in (0..).map(SegmentIndex::new).zip(&entry.segments) {
            joining += members.joining.len();
            let (Some(join), Some(source)) = (members.joining.first(), members.in_sync.first())
            else {
                continue;
            };
            if under_way.len() < FILLS_AT_ONCE && under_way.insert(segment) {
                let (joiner, source) = (join.disk, *source);
                self.fills.push(Fill { volume, segment, joiner, source, left: bytes });
            }
        }
        if joining == 0 {
            self.open.remove(&volume);
        }
    }

    /// A step of all copies; those that are full are promoted.
    fn fill(&mut self) {
        if self.fills.is_empty() {
            return;
        }
        let since = self.since_loss();
        self.outcome.filling_began.get_or_insert(since);
        let parts: Vec<Vec<Part>> = self.fills.iter().map(|fill| self.parts(fill)).collect();
        let mut users: BTreeMap<Part, u32> = BTreeMap::new();
        parts.iter().flatten().for_each(|part| *users.entry(*part).or_default() += 1);
        let rate = |part: &Part| {
            let all =
                if let Part::Disk(_) = part { self.plan.disk_rate } else { self.plan.node_rate };
            all as f64 / f64::from(users[part])
        };
        let rates: Vec<f64> = parts
            .iter()
            .map(|parts| parts.iter().map(rate).fold(f64::INFINITY, f64::min))
            .collect();
        let mut full: BTreeMap<VolumeId, Vec<(SegmentIndex, DiskId)>> = BTreeMap::new();
        for (fill, rate) in self.fills.iter_mut().zip(rates) {
            fill.left -= rate * STEP.as_secs_f64();
            if fill.left <= 0.0 {
                full.entry(fill.volume).or_default().push((fill.segment, fill.joiner));
            }
        }
        self.fills.retain(|fill| fill.left > 0.0);
        for (volume, copies) in full {
            self.promote(volume, &copies);
        }
    }

    fn promote(&mut self, volume: VolumeId, copies: &[(SegmentIndex, DiskId)]) {
        let Some(entry) = self.map.volume(volume) else { return };
        let (epoch, Some((owner, _))) = (entry.epoch, entry.owner) else { return };
        let segments = (0..).map(SegmentIndex::new).zip(&entry.segments);
        let joined = segments.flat_map(|(segment, members)| {
            members.joining.iter().map(move |join| ((segment, join.disk), join.joined))
        });
        let joined: BTreeMap<_, _> = joined.collect();
        let promotes = copies.iter().filter_map(|(segment, disk)| {
            let joined = *joined.get(&(*segment, *disk))?;
            Some(Promotion { segment: *segment, disk: *disk, joined })
        });
        let promotes: Vec<_> = promotes.collect();
        let bytes = self.map.limits().segment.bytes();
        self.outcome.copied_bytes += promotes.len() as u64 * bytes;
        let change = OwnerChange::Promote { epoch, promotes };
        self.apply(owner, Change::Owner { volume, change });
        if let Some(under_way) = self.filling.get_mut(&volume) {
            for (segment, _) in copies {
                under_way.remove(segment);
            }
        }
    }

    /// From the source's disk through the owner to the joiner's.
    fn parts(&self, fill: &Fill) -> Vec<Part> {
        let mut parts = vec![Part::Disk(fill.source), Part::Disk(fill.joiner)];
        let owner =
            self.map.volume(fill.volume).and_then(|entry| entry.owner).map(|(node, _)| node);
        let (from, to) = (self.home(fill.source), self.home(fill.joiner));
        if from != owner {
            parts.extend(from.map(Part::Out).into_iter().chain(owner.map(Part::In)));
        }
        if to != owner {
            parts.extend(owner.map(Part::Out).into_iter().chain(to.map(Part::In)));
        }
        parts
    }
}

fn note(entries: &mut Entries, bytes: u64, done: bool) {
    entries.count += 1;
    entries.bytes += bytes;
    entries.most = entries.most.max(bytes);
    entries.refused += u64::from(!done);
}

fn info(node: NodeId, racks: u32) -> NodeInfo {
    let at = |port: u32| format!("10.0.{}.{}:{port}", node.get() / 250, node.get() % 250);
    NodeInfo {
        id: node,
        name: format!("node{}", node.get()),
        peer: at(7500),
        api: at(7400),
        nbd: at(10_809),
        http: at(7600),
        zone: format!("rack{}", (node.get() - 1) % racks),
    }
}
