//! Nodes, disks, links, the map's log and guests in virtual time. One seed decides everything.

use crate::check::{History, ZERO};
use crate::disk::{Disk, Origin, Segment};
use crate::map::{Life, Map};
use bytes::Bytes;
use gabion_types::{
    BlockKind, ByteRange, DiskId, Duration, Epoch, GuestData, GuestOp, GuestResult, Instant,
    IoError, Limits, NodeId, Outcome, OwnerChange, Prng, SECTOR_BYTES, SegmentIndex, SegmentSize,
    VolumeView,
};
use gabion_volume::{Effect, Input, Settings, Ticket, Volume, VolumeConfig, VolumeEvent};
use gabion_wire::{LinkClass, ReplicaAnswer, ReplicaOp, ReplicaRequest, RequestId};
use std::collections::{BTreeMap, BTreeSet};

pub const MS: u64 = 1_000_000;
const LEASE_OWNER: u64 = 2700 * MS;
const LEASE_MANAGER: u64 = 3300 * MS;

#[derive(Clone, Debug)]
enum Event {
    Request { owner: u64, link: u64, node: NodeId, request: RequestId, ask: ReplicaRequest },
    Answer { owner: u64, link: u64, node: NodeId, request: RequestId, answer: ReplicaAnswer },
    Commit { disk: DiskId },
    Log { node: NodeId },
    Propose { owner: u64, number: u64, change: OwnerChange },
    Wake { owner: u64, at: u64 },
    LinkLost { owner: u64, node: NodeId, link: u64, class: LinkClass },
    NodeDown { owner: u64, node: NodeId, link: u64 },
    LinkUp { owner: u64, node: NodeId, link: u64 },
    Renew { owner: u64 },
    Manager,
    TakeOver { node: NodeId, epoch: Epoch },
    Guest,
    Fault,
    Restart { node: NodeId },
    Ready { disk: DiskId },
    Mend { a: NodeId, b: NodeId },
    Rejoin { node: NodeId },
    Drop { disk: DiskId, segment: SegmentIndex, creation: Epoch, epoch: Epoch },
}

#[derive(Clone)]
struct Entry {
    view: VolumeView,
    owner: Option<Life>,
    outcome: Option<(Life, u64, Outcome)>,
}

struct Node {
    up: bool,
    /// Cut from the majority: no log, no proposals, no renewals.
    alone: bool,
    life: u64,
    applied: usize,
    log_pending: bool,
}

struct Owner {
    node: NodeId,
    life: Life,
    epoch: Epoch,
    volume: Volume,
    wake: Option<u64>,
    tickets: BTreeMap<Ticket, u64>,
    /// By peer: the number of its present link, and whether it is cut.
    links: BTreeMap<NodeId, (u64, bool)>,
    arrivals: BTreeMap<(NodeId, bool, LinkClass), u64>,
    proposed: BTreeMap<u64, OwnerChange>,
    releasing: bool,
}

struct Request {
    op: GuestOp,
    values: Vec<u64>,
    asked: u64,
    /// Never given to another owner.
    once: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub nodes: u32,
    pub rf: u8,
    pub segments: u32,
    pub faults_ms: u64,
    pub rot: bool,
    pub disk_loss: bool,
    pub rollback: bool,
    pub full: bool,
}

pub struct World {
    pub plan: Plan,
    pub now: u64,
    serial: u64,
    events: BTreeMap<(u64, u64), Event>,
    prng: Prng,
    pub map: Map,
    log: Vec<Entry>,
    nodes: BTreeMap<NodeId, Node>,
    pub disks: BTreeMap<DiskId, Disk>,
    committing: BTreeSet<DiskId>,
    stalled: BTreeMap<DiskId, u64>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    owners: BTreeMap<u64, Owner>,
    given: u64,
    latest: Option<u64>,
    renewed: u64,
    requests: BTreeMap<u64, Request>,
    pub history: History,
    values: u64,
    healing: bool,
    quiet_until: u64,
    snapshot: Option<(DiskId, crate::disk::Durable)>,
    pub rotted: bool,
    pub done: Counts,
    pub trace: Vec<String>,
    pub tracing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub answered: u64,
    pub failed: u64,
    pub owners: u64,
    pub fills: u64,
    pub repairs: u64,
    pub removals: u64,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> Self {
        let mut prng = Prng::new(seed);
        let segment = 64 << 10;
        let homes: BTreeMap<DiskId, NodeId> =
            (1..=plan.nodes).map(|node| (DiskId::new(node), NodeId::new(node))).collect();
        let map = Map::new(homes.clone(), plan.rf, plan.segments, segment);
        let blocks = (plan.segments * 16) as usize;
        let room = if plan.full { blocks / 2 + 6 } else { 10_000 };
        let mut disks: BTreeMap<DiskId, Disk> =
            homes.keys().map(|disk| (*disk, Disk::new(*disk, room))).collect();
        for (index, members) in map.view.segments.iter().enumerate() {
            let index = SegmentIndex::new(u32::try_from(index).unwrap());
            for disk in &members.in_sync {
                let segment = Segment { creation: members.creation, ..Segment::default() };
                disks.get_mut(disk).unwrap().durable.segments.insert(index, segment);
            }
        }
        let node = |_| Node { up: true, alone: false, life: 1, applied: 0, log_pending: false };
        let nodes = homes.values().map(|id| (*id, node(()))).collect();
        let mut world = Self {
            plan,
            now: 0,
            serial: 0,
            events: BTreeMap::new(),
            prng: prng.fork(),
            map,
            log: Vec::new(),
            nodes,
            disks,
            committing: BTreeSet::new(),
            stalled: BTreeMap::new(),
            cuts: BTreeSet::new(),
            owners: BTreeMap::new(),
            given: 0,
            latest: None,
            renewed: 0,
            requests: BTreeMap::new(),
            history: History::default(),
            values: 0,
            healing: false,
            quiet_until: 0,
            snapshot: None,
            rotted: false,
            done: Counts::default(),
            trace: Vec::new(),
            tracing: false,
        };
        world.append(None);
        world.at(MS, Event::Manager);
        world.at(MS, Event::Guest);
        world.at(500 * MS, Event::Fault);
        world
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.tracing {
            let line = format!("{:9.3} {}", self.now as f64 / 1e6, what());
            self.trace.push(line);
        }
    }

    fn at(&mut self, after: u64, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + after, self.serial), event);
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.prng.between(low, high)
    }

    fn instant(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    /// Faults, then quiet until everything is whole.
    pub fn run(&mut self) -> Result<(), String> {
        while self.now < self.plan.faults_ms * MS {
            self.step()?;
        }
        self.heal();
        let deadline = self.now + 400_000 * MS;
        while !self.is_whole() {
            if self.now > deadline {
                if self.tracing {
                    let owners: Vec<_> =
                        self.owners.values().map(|o| format!("{:#?}", o.volume)).collect();
                    std::fs::write("/tmp/vol.state", owners.join("\n")).unwrap();
                }
                return Err(format!("not whole again: {}", self.describe()));
            }
            self.step()?;
        }
        self.read_everything()?;
        self.compare_replicas()?;
        self.history.check()
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".to_owned());
        };
        self.now = at;
        self.happen(event)
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Request { owner, link, node, request, ask } => {
                self.on_request(owner, link, node, request, ask);
            }
            Event::Answer { owner, link, node, request, answer } => {
                let live = self.owners.get(&owner);
                if live.is_some_and(|live| node == live.node || live.links[&node] == (link, false))
                {
                    return self.feed(owner, Input::Answer { request, answer });
                }
            }
            Event::Commit { disk } => self.on_commit(disk),
            Event::Log { node } => return self.on_log(node),
            Event::Propose { owner, number, change } => self.on_propose(owner, number, change),
            Event::Wake { owner, at } => {
                if self.owners.get(&owner).is_some_and(|owner| owner.wake == Some(at)) {
                    return self.feed(owner, Input::Tick);
                }
            }
            Event::LinkLost { owner, node, link, class } => {
                if self.has_link(owner, node, link, true) {
                    return self.feed(owner, Input::LinkLost { node, class });
                }
            }
            Event::NodeDown { owner, node, link } => {
                if self.has_link(owner, node, link, true) {
                    return self.feed(owner, Input::NodeDown { node });
                }
            }
            Event::LinkUp { owner, node, link } => {
                if self.has_link(owner, node, link, false) {
                    return self.feed(owner, Input::LinkUp { node });
                }
            }
            Event::Renew { owner } => return self.on_renew(owner),
            Event::Manager => self.on_manager(),
            Event::TakeOver { node, epoch } => {
                let state = &self.nodes[&node];
                if state.up && !state.alone {
                    let life = (node, state.life);
                    if self.map.take_over(life, epoch) {
                        self.renewed = self.now;
                        self.append(None);
                    }
                }
            }
            Event::Guest => return self.on_guest(),
            Event::Fault => self.on_fault()?,
            Event::Restart { node } => self.restart(node),
            Event::Ready { disk } => self.disks.get_mut(&disk).unwrap().ready = true,
            Event::Mend { a, b } => self.mend(a, b),
            Event::Rejoin { node } => self.rejoin(node),
            Event::Drop { disk, segment, creation, epoch } => {
                self.on_drop(disk, segment, creation, epoch)
            }
        }
        Ok(())
    }

    // ---- the owner ----

    fn feed(&mut self, owner: u64, input: Input) -> Result<(), String> {
        let now = self.instant();
        if self.tracing {
            let text = format!("{input:?}");
            let text: String = text.chars().take(600).collect();
            self.say(|| format!("owner {owner} <- {text}"));
        }
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.volume.handle(now, input);
        self.drain(owner)
    }

    fn drain(&mut self, owner: u64) -> Result<(), String> {
        loop {
            let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
            let Some(effect) = state.volume.next_effect() else { break };
            self.on_effect(owner, effect)?;
        }
        let now = self.now;
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        let wake = state.volume.next_deadline().map(|at| at.nanos().max(now));
        if wake != state.wake {
            state.wake = wake;
            if let Some(at) = wake {
                self.at(at - now, Event::Wake { owner, at });
            }
        }
        Ok(())
    }

    fn on_effect(&mut self, owner: u64, effect: Effect) -> Result<(), String> {
        if self.tracing {
            let text = format!("{effect:?}");
            let text: String = text.chars().take(600).collect();
            self.say(|| format!("owner {owner} -> {text}"));
        }
        match effect {
            Effect::Ask { node, class, request, ask } => {
                self.send(owner, node, class, request, ask)
            }
            Effect::GuestDone { ticket, result } => {
                return self.on_guest_done(owner, ticket, result);
            }
            Effect::Propose { number, change } => {
                let after = self.between(MS, 30 * MS);
                let state = self.owners.get_mut(&owner).unwrap();
                assert!(state.proposed.len() < 2, "one proposal at a time");
                state.proposed.insert(number.0, change.clone());
                self.at(after, Event::Propose { owner, number: number.0, change });
            }
            Effect::Serving => {}
            Effect::Ended => self.forget_owner(owner),
            Effect::Event(event) => match event {
                VolumeEvent::FillDone { .. } => self.done.fills += 1,
                VolumeEvent::Repaired { .. } => self.done.repairs += 1,
                VolumeEvent::MemberFailed { .. } => self.done.removals += 1,
                VolumeEvent::TookOver { .. }
                | VolumeEvent::FillStarted { .. }
                | VolumeEvent::Held { .. }
                | VolumeEvent::HoldOver { .. } => {}
            },
        }
        Ok(())
    }

    fn forget_owner(&mut self, owner: u64) {
        self.say(|| format!("owner {owner} is gone"));
        let Some(state) = self.owners.remove(&owner) else { return };
        for request in state.tickets.into_values() {
            let gone = self.requests.get(&request).is_some_and(|request| request.once)
                || (!self.healing && self.prng.chance(1, 4));
            if gone {
                self.abandon(request);
            }
        }
        for disk in self.disks.values_mut() {
            disk.origin_gone(|origin| origin.owner == owner);
        }
    }

    fn start_owner(&mut self, node: NodeId, view: VolumeView) -> Result<(), String> {
        self.given += 1;
        let owner = self.given;
        let life = (node, self.nodes[&node].life);
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|peer| *peer != node).collect();
        let links: BTreeMap<NodeId, (u64, bool)> =
            peers.iter().map(|peer| (*peer, (1, self.is_cut(node, *peer)))).collect();
        let cut: Vec<NodeId> =
            links.iter().filter(|(_, (_, cut))| *cut).map(|(peer, _)| *peer).collect();
        let down = if self.prng.chance(1, 2) { cut.clone() } else { Vec::new() };
        let settings = Settings {
            fence_wait: Duration::from_millis(1000),
            slow_wait: Duration::from_secs(5),
            rebuild_wait: Duration::from_millis(self.between(500, 8000)),
            fill_bytes_in_flight: self.between(1, 8) * 4096,
        };
        let segment = SegmentSize::new(64 << 10).unwrap();
        let limits = Limits {
            segment,
            requests_per_volume: u32::try_from(self.between(2, 64)).unwrap(),
            ..Limits::DEFAULT
        };
        let seed = self.prng.next_u64();
        let cluster_start = self.prng.chance(1, 8);
        let config = VolumeConfig { me: node, limits, settings, seed, cluster_start, down };
        let epoch = view.owner_epoch;
        let volume = Volume::new(config, view, self.instant());
        self.say(|| format!("owner {owner} begins on {node} at {epoch}"));
        let state = Owner {
            node,
            life,
            epoch,
            volume,
            wake: None,
            tickets: BTreeMap::new(),
            links,
            arrivals: BTreeMap::new(),
            proposed: BTreeMap::new(),
            releasing: false,
        };
        self.owners.insert(owner, state);
        self.done.owners += 1;
        self.latest = Some(owner);
        self.drain(owner)?;
        for peer in cut {
            let after = self.between(200 * MS, 900 * MS);
            self.at(after, Event::NodeDown { owner, node: peer, link: 1 });
        }
        // What was never answered runs first.
        let held: Vec<u64> = self.requests.keys().copied().collect();
        for request in held {
            if !self.requests[&request].once {
                self.submit(owner, request)?;
            }
        }
        self.on_renew(owner)
    }

    fn on_renew(&mut self, owner: u64) -> Result<(), String> {
        let Some(state) = self.owners.get(&owner) else { return Ok(()) };
        let (node, life) = (state.node, state.life);
        self.at(500 * MS, Event::Renew { owner });
        if self.nodes[&node].alone || self.map.owner != Some(life) {
            return Ok(());
        }
        self.renewed = self.now;
        let until = Instant::from_nanos(self.now + LEASE_OWNER);
        self.feed(owner, Input::Lease { until })
    }

    // ---- links ----

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        a != b && (self.cuts.contains(&pair(a, b)) || !self.nodes[&a].up || !self.nodes[&b].up)
    }

    fn has_link(&self, owner: u64, node: NodeId, link: u64, cut: bool) -> bool {
        self.owners.get(&owner).is_some_and(|state| state.links.get(&node) == Some(&(link, cut)))
    }

    fn send(
        &mut self,
        owner: u64,
        node: NodeId,
        class: LinkClass,
        request: RequestId,
        ask: ReplicaRequest,
    ) {
        let own = self.owners[&owner].node == node;
        let (link, cut) = self.owners[&owner].links.get(&node).copied().unwrap_or((0, false));
        if cut {
            self.at(0, Event::LinkLost { owner, node, link, class });
            return;
        }
        let delay = if own { self.between(1000, 50_000) } else { self.between(20_000, 3 * MS) };
        let after = self.in_order(owner, (node, true, class), delay);
        self.at(after, Event::Request { owner, link, node, request, ask });
    }

    /// Messages of one link arrive in their order.
    fn in_order(&mut self, owner: u64, lane: (NodeId, bool, LinkClass), delay: u64) -> u64 {
        let now = self.now;
        let Some(state) = self.owners.get_mut(&owner) else { return delay };
        let last = state.arrivals.entry(lane).or_insert(0);
        *last = (now + delay).max(*last + 1);
        *last - now
    }

    fn on_request(
        &mut self,
        owner: u64,
        link: u64,
        node: NodeId,
        request: RequestId,
        ask: ReplicaRequest,
    ) {
        // An owner that is gone may still have something under way, while its link lasts.
        let stale = match self.owners.get(&owner) {
            Some(state) => state.node != node && state.links[&node] != (link, false),
            None => self.prng.chance(1, 2),
        };
        if !self.nodes[&node].up || stale {
            return;
        }
        let id = ask.disk;
        let disk = self.disks.get_mut(&id).unwrap();
        disk.origin_gone(|origin| origin.owner == owner && origin.link < link);
        let answers = disk.take(Origin { owner, link }, request, ask);
        self.answer_all(node, answers);
        self.commit_later(id);
    }

    fn answer_all(&mut self, node: NodeId, answers: Vec<crate::disk::Answer>) {
        for (from, request, answer) in answers {
            let delay = self.between(1000, 2 * MS);
            let after = self.in_order(from.owner, (node, false, LinkClass::Data), delay);
            let (owner, link) = (from.owner, from.link);
            self.at(after, Event::Answer { owner, link, node, request, answer });
        }
    }

    fn commit_later(&mut self, id: DiskId) {
        if self.disks[&id].is_idle() || !self.committing.insert(id) {
            return;
        }
        let stall = self.stalled.get(&id).map_or(0, |until| until.saturating_sub(self.now));
        let after = self.between(50_000, 5 * MS) + stall;
        self.at(after, Event::Commit { disk: id });
    }

    fn on_commit(&mut self, id: DiskId) {
        self.committing.remove(&id);
        let node = self.map.view.homes[&id];
        if !self.nodes[&node].up {
            return;
        }
        let queued = self.disks[&id].queued() as u64;
        let count = usize::try_from(self.between(1, queued.max(1))).unwrap();
        let answers = self.disks.get_mut(&id).unwrap().commit(count);
        self.answer_all(node, answers);
        self.commit_later(id);
    }

    fn break_links(&mut self, a: NodeId, b: NodeId) {
        let owners: Vec<(u64, NodeId)> = self
            .owners
            .iter()
            .filter(|(_, state)| state.node == a || state.node == b)
            .map(|(owner, state)| (*owner, if state.node == a { b } else { a }))
            .collect();
        for (owner, peer) in owners {
            let state = self.owners.get_mut(&owner).unwrap();
            let Some(entry) = state.links.get_mut(&peer) else { continue };
            if !entry.1 {
                *entry = (entry.0 + 1, true);
                let link = entry.0;
                for class in [LinkClass::Data, LinkClass::Bulk, LinkClass::Control] {
                    let after = self.between(0, 20 * MS);
                    self.at(after, Event::LinkLost { owner, node: peer, link, class });
                }
                let after = self.between(200 * MS, 1200 * MS);
                self.at(after, Event::NodeDown { owner, node: peer, link });
            }
        }
    }

    fn restore_links(&mut self, a: NodeId, b: NodeId) {
        if self.is_cut(a, b) {
            return;
        }
        let owners: Vec<(u64, NodeId)> = self
            .owners
            .iter()
            .filter(|(_, state)| state.node == a || state.node == b)
            .map(|(owner, state)| (*owner, if state.node == a { b } else { a }))
            .collect();
        for (owner, peer) in owners {
            let state = self.owners.get_mut(&owner).unwrap();
            let Some(entry) = state.links.get_mut(&peer) else { continue };
            if entry.1 {
                // A loss that was not told yet is told now.
                *entry = (entry.0 + 1, false);
                let link = entry.0;
                let after = self.between(MS, 50 * MS);
                self.at(after, Event::LinkUp { owner, node: peer, link });
                for class in [LinkClass::Data, LinkClass::Bulk, LinkClass::Control] {
                    let _ = self.feed(owner, Input::LinkLost { node: peer, class });
                }
            }
        }
    }

    fn mend(&mut self, a: NodeId, b: NodeId) {
        self.cuts.remove(&pair(a, b));
        self.restore_links(a, b);
    }

    // ---- the map ----

    fn append(&mut self, outcome: Option<(Life, u64, Outcome)>) {
        let (view, owner) = (self.map.view.clone(), self.map.owner);
        self.log.push(Entry { view, owner, outcome });
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.log_later(node));
    }

    fn log_later(&mut self, node: NodeId) {
        let behind = self.nodes[&node].applied < self.log.len();
        let state = self.nodes.get_mut(&node).unwrap();
        if behind && state.up && !state.alone && !state.log_pending {
            state.log_pending = true;
            let slow = self.prng.chance(1, 10);
            let after = if slow { self.between(MS, 400 * MS) } else { self.between(MS, 10 * MS) };
            self.at(after, Event::Log { node });
        }
    }

    fn on_log(&mut self, node: NodeId) -> Result<(), String> {
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
                let number = gabion_volume::ProposalNumber(number);
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

    fn on_propose(&mut self, owner: u64, number: u64, change: OwnerChange) {
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

    fn on_drop(&mut self, disk: DiskId, segment: SegmentIndex, creation: Epoch, epoch: Epoch) {
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

    fn on_manager(&mut self) {
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

    // ---- guests ----

    fn on_guest(&mut self) -> Result<(), String> {
        let after = self.between(MS, 30 * MS);
        self.at(after, Event::Guest);
        if self.healing || self.requests.len() >= 12 {
            return Ok(());
        }
        let op = self.draw_op();
        // Now and then somebody still believes in an older owner.
        let owners: Vec<u64> = self.owners.keys().copied().collect();
        let zombie = self.prng.chance(1, 10).then(|| self.prng.pick(&owners).copied()).flatten();
        let zombie = zombie.filter(|owner| Some(*owner) != self.latest);
        let request = self.new_request(op, zombie.is_some());
        match zombie.or(self.latest.filter(|owner| self.owners.contains_key(owner))) {
            Some(owner) => self.submit(owner, request),
            None => Ok(()),
        }
    }

    fn draw_op(&mut self) -> GuestOp {
        let size = self.map.view.size_bytes;
        // A few hot blocks, so that requests overlap.
        let hot = self.prng.chance(2, 3);
        let span = if hot { 5 * 4096 } else { size };
        let base = if hot { self.map.view.size_bytes / 2 - 2 * 4096 } else { 0 };
        let aligned = self.prng.chance(2, 3);
        let unit = if aligned { 4096 } else { SECTOR_BYTES };
        let most = if aligned { 6 } else { 12 };
        let first = self.prng.below(span / unit);
        let count = self.between(1, most).min((size - base) / unit - first);
        let range = ByteRange::new(base + first * unit, count * unit).unwrap();
        let fua = self.prng.chance(1, 5);
        match self.prng.below(20) {
            0..=9 => {
                let mut data = Vec::new();
                for _ in 0..range.length() / SECTOR_BYTES {
                    self.values += 1;
                    data.extend_from_slice(&self.values.to_le_bytes().repeat(64));
                }
                GuestOp::Write { range, data: Bytes::from(data), fua }
            }
            10..=16 => GuestOp::Read { range },
            17 => GuestOp::Zero { range, fua },
            18 if self.prng.chance(1, 2) => GuestOp::Trim { range, fua },
            18 => GuestOp::Status { range },
            _ => GuestOp::Flush,
        }
    }

    fn new_request(&mut self, op: GuestOp, once: bool) -> u64 {
        let values = match &op {
            GuestOp::Write { data, .. } => values_of(data),
            GuestOp::Zero { range, .. } => vec![ZERO; sectors(*range).count()],
            GuestOp::Trim { .. }
            | GuestOp::Read { .. }
            | GuestOp::Status { .. }
            | GuestOp::Flush => Vec::new(),
        };
        self.serial += 1;
        let (id, asked) = (self.serial, self.now);
        self.requests.insert(id, Request { op, values, asked, once });
        id
    }

    fn submit(&mut self, owner: u64, request: u64) -> Result<(), String> {
        let op = self.requests[&request].op.clone();
        self.serial += 1;
        let ticket = Ticket(self.serial);
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.tickets.insert(ticket, request);
        self.feed(owner, Input::Guest { ticket, op })
    }

    fn abandon(&mut self, request: u64) {
        let Some(request) = self.requests.remove(&request) else { return };
        self.note_write(&request, u64::MAX);
    }

    fn note_write(&mut self, request: &Request, answered: u64) {
        match &request.op {
            GuestOp::Write { range, .. } | GuestOp::Zero { range, .. } => {
                for (sector, value) in sectors(*range).zip(&request.values) {
                    self.history.wrote(sector, *value, request.asked, answered);
                }
            }
            GuestOp::Trim { range, .. } => {
                for sector in trimmed(range) {
                    self.history.wrote(sector, ZERO, request.asked, answered);
                }
            }
            GuestOp::Read { .. } | GuestOp::Status { .. } | GuestOp::Flush => {}
        }
    }

    fn on_guest_done(
        &mut self,
        owner: u64,
        ticket: Ticket,
        result: GuestResult,
    ) -> Result<(), String> {
        let now = self.now;
        let state = self.owners.get_mut(&owner).unwrap();
        let Some(id) = state.tickets.remove(&ticket) else {
            return Err(format!("{ticket:?} answered twice"));
        };
        let (life, epoch) = (state.life, state.epoch);
        let rightful = self.map.owner == Some(life) && self.map.view.owner_epoch == epoch;
        let Some(request) = self.requests.remove(&id) else { return Ok(()) };
        // A trim of no whole block does nothing, whoever answers it.
        let nothing = matches!(request.op, GuestOp::Trim { .. })
            && request.op.range().is_some_and(|range| trimmed(&range).is_empty());
        if result.is_ok() && !rightful && !nothing {
            return Err(format!("owner {owner} answered {:?} after its time", request.op));
        }
        match result {
            Ok(GuestData::Done) => {
                self.done.answered += 1;
                self.note_write(&request, now);
            }
            Ok(GuestData::Read(data)) => {
                self.done.answered += 1;
                let GuestOp::Read { range } = request.op else { panic!("data for no read") };
                if data.len() as u64 != range.length() {
                    return Err("a read of another length".to_owned());
                }
                for (sector, value) in sectors(range).zip(values_of(&data)) {
                    self.history.read(sector, value, request.asked, now);
                }
            }
            Ok(GuestData::Status(extents)) => {
                let total: u64 = extents.iter().map(|extent| extent.length).sum();
                let length = request.op.range().unwrap().length();
                if total == 0 || total > length {
                    return Err(format!("status of {total} bytes for {length}"));
                }
            }
            Err(IoError::NoSpace) if self.plan.full => {
                self.done.failed += 1;
                self.note_write(&request, u64::MAX);
            }
            Err(IoError::Lost) if self.rotted => {
                self.done.failed += 1;
                self.note_write(&request, u64::MAX);
            }
            Err(error) => return Err(format!("{:?} failed: {error}", request.op)),
        }
        Ok(())
    }

    // ---- faults ----

    fn on_fault(&mut self) -> Result<(), String> {
        if self.healing {
            return Ok(());
        }
        let after = self.between(50 * MS, 2500 * MS);
        self.at(after, Event::Fault);
        if self.now < self.quiet_until {
            return Ok(());
        }
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (a, b) = (*self.prng.pick(&nodes).unwrap(), *self.prng.pick(&nodes).unwrap());
        match self.prng.below(16) {
            0..=2 => {
                let after = self.between(50 * MS, 6000 * MS);
                self.crash(a, after);
            }
            3..=6 if a != b => {
                let long = self.prng.chance(1, 3);
                let after =
                    if long { self.between(MS, 5000 * MS) } else { self.between(MS, 150 * MS) };
                self.say(|| format!("fault: cut {a} {b}"));
                self.cuts.insert(pair(a, b));
                self.break_links(a, b);
                self.at(after, Event::Mend { a, b });
            }
            7..=8 => self.isolate(a, &nodes),
            9 => {
                let until = self.now + self.between(10 * MS, 8000 * MS);
                self.say(|| format!("fault: disk of {a} stalls until {until}"));
                self.stalled.insert(DiskId::new(a.get()), until);
            }
            10 => self.power_loss(&nodes),
            11..=12 if self.plan.rot => self.rot(),
            13 if self.plan.disk_loss => self.lose_disk(),
            14 => return self.release(),
            15 => self.take_snapshot(DiskId::new(a.get())),
            _ => {}
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        let Some(owner) = self.latest else { return Ok(()) };
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.releasing = true;
        self.feed(owner, Input::Release)
    }

    fn crash(&mut self, node: NodeId, after: u64) {
        if !self.nodes[&node].up {
            return;
        }
        self.say(|| format!("fault: crash {node}"));
        let owners: Vec<u64> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.node == node)
            .map(|(key, _)| *key)
            .collect();
        owners.into_iter().for_each(|owner| self.forget_owner(owner));
        self.nodes.get_mut(&node).unwrap().up = false;
        let id = DiskId::new(node.get());
        let queued = self.disks[&id].queued() as u64;
        let kept = usize::try_from(self.between(0, queued)).unwrap();
        let disk = self.disks.get_mut(&id).unwrap();
        disk.crash(kept);
        disk.ready = false;
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| {
            self.break_links(other, node);
        });
        self.at(after, Event::Restart { node });
    }

    fn restart(&mut self, node: NodeId) {
        if self.nodes[&node].up {
            return;
        }
        self.say(|| format!("fault: {node} is back"));
        let state = self.nodes.get_mut(&node).unwrap();
        state.up = true;
        state.life += 1;
        let after = self.between(0, 400 * MS);
        self.at(after, Event::Ready { disk: DiskId::new(node.get()) });
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| {
            self.restore_links(other, node);
        });
        self.log_later(node);
    }

    fn isolate(&mut self, node: NodeId, nodes: &[NodeId]) {
        self.say(|| format!("fault: isolate {node}"));
        self.nodes.get_mut(&node).unwrap().alone = true;
        for other in nodes.iter().filter(|other| **other != node) {
            self.cuts.insert(pair(node, *other));
            self.break_links(node, *other);
        }
        let after = self.between(100 * MS, 7000 * MS);
        self.at(after, Event::Rejoin { node });
    }

    fn rejoin(&mut self, node: NodeId) {
        self.say(|| format!("fault: {node} rejoins"));
        self.nodes.get_mut(&node).unwrap().alone = false;
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| self.mend(node, other));
        self.log_later(node);
    }

    /// A disk that comes back as it was earlier: alone, and all others come back as they were.
    fn power_loss(&mut self, nodes: &[NodeId]) {
        self.say(|| "fault: power is lost everywhere".to_owned());
        let healthy = self.map.view.segments.iter().all(|members| {
            members.in_sync.len() == usize::from(self.plan.rf)
                && members.joining.is_empty()
                && members.stale.is_empty()
        });
        let calm = healthy
            && self.cuts.is_empty()
            && self.nodes.values().all(|node| node.up && !node.alone)
            && self.disks.values().all(|disk| !disk.out);
        for node in nodes {
            let after = self.between(50 * MS, if calm { 700 * MS } else { 2000 * MS });
            self.crash(*node, after);
        }
        if let Some((id, old)) = self.snapshot.take()
            && calm
            && self.plan.rollback
        {
            self.say(|| format!("fault: {id} is rolled back"));
            // What it holds of other creations and joins is as old as the rest.
            self.disks.get_mut(&id).unwrap().durable = old;
            self.quiet_until = self.now + 15_000 * MS;
        }
    }

    fn take_snapshot(&mut self, id: DiskId) {
        self.snapshot = Some((id, self.disks[&id].durable.clone()));
    }

    /// One copy of a block becomes unreadable, where another in-sync one is good.
    fn rot(&mut self) {
        let index = self.prng.below(u64::from(self.plan.segments));
        let index = SegmentIndex::new(u32::try_from(index).unwrap());
        let members = self.map.view.segments[index.get() as usize].clone();
        if members.in_sync.len() < 2 {
            return;
        }
        let (victim, other) = (members.in_sync[0], members.in_sync[1]);
        let good = self.disks[&other].durable.segments.get(&index).cloned().unwrap_or_default();
        let victim = self.disks.get_mut(&victim).unwrap();
        let Some(segment) = victim.durable.segments.get_mut(&index) else { return };
        let candidates: Vec<_> = segment
            .blocks
            .iter()
            .filter(|(block, entry)| {
                let same = good.blocks.get(block);
                entry.kind == BlockKind::Data
                    && same.is_some_and(|same| same.version == entry.version && !same.bad)
            })
            .map(|(block, _)| *block)
            .collect();
        if let Some(block) = self.prng.pick(&candidates) {
            segment.blocks.get_mut(block).unwrap().bad = true;
            self.rotted = true;
        }
    }

    fn lose_disk(&mut self) {
        if self.disks.values().any(|disk| disk.out) {
            return;
        }
        let ids: Vec<DiskId> = self.disks.keys().copied().collect();
        let id = *self.prng.pick(&ids).unwrap();
        let spare = self.map.view.segments.iter().all(|members| {
            !members.is_in_sync(id) || members.in_sync.len() == usize::from(self.plan.rf)
        });
        if spare && self.plan.rf >= 2 {
            self.say(|| format!("fault: {id} is out of service"));
            self.disks.get_mut(&id).unwrap().out = true;
        }
    }

    // ---- the end ----

    fn heal(&mut self) {
        self.say(|| "heal".to_owned());
        self.healing = true;
        self.stalled.clear();
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in &nodes {
            self.restart(*node);
            self.rejoin(*node);
        }
        for id in self.disks.keys().copied().collect::<Vec<_>>() {
            self.committing.remove(&id);
            self.commit_later(id);
        }
    }

    /// A copy may be beyond recovery: its only in-sync disk is out of service.
    pub fn is_hopeless(&self) -> bool {
        self.map
            .view
            .segments
            .iter()
            .any(|members| members.in_sync.iter().all(|disk| self.disks[disk].out))
    }

    fn is_whole(&self) -> bool {
        let owner = self.map.owner.is_some();
        let members = self.map.view.segments.iter().all(|members| {
            members.in_sync.len() == usize::from(self.plan.rf)
                && members.joining.is_empty()
                && members.stale.is_empty()
        });
        self.is_hopeless() || (owner && members && self.requests.is_empty())
    }

    fn describe(&self) -> String {
        format!(
            "owner {:?} {}, {} open, owners {:?}, {:?}",
            self.map.owner,
            self.map.view.epoch,
            self.requests.len(),
            self.owners
                .iter()
                .map(|(key, owner)| (*key, owner.node, owner.epoch))
                .collect::<Vec<_>>(),
            self.map.view.segments,
        )
    }

    fn read_everything(&mut self) -> Result<(), String> {
        if self.is_hopeless() {
            return Ok(());
        }
        for segment in 0..self.plan.segments {
            let range = ByteRange::new(u64::from(segment) << 16, 64 << 10).unwrap();
            let request = self.new_request(GuestOp::Read { range }, false);
            if let Some(owner) = self.latest.filter(|owner| self.owners.contains_key(owner)) {
                self.submit(owner, request)?;
            }
        }
        let deadline = self.now + 60_000 * MS;
        while !self.requests.is_empty() {
            if self.now > deadline {
                return Err(format!("reads are held: {}", self.describe()));
            }
            self.step()?;
        }
        // Settled seqs and promotions reach their disks.
        let until = self.now + 3000 * MS;
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    /// In-sync replicas hold the same.
    fn compare_replicas(&self) -> Result<(), String> {
        for (at, members) in self.map.view.segments.iter().enumerate() {
            let index = SegmentIndex::new(u32::try_from(at).unwrap());
            let tables: Vec<(DiskId, &Segment)> = members
                .in_sync
                .iter()
                .filter(|disk| !self.disks[disk].out)
                .map(|disk| (*disk, &self.disks[disk].durable.segments[&index]))
                .collect();
            for (disk, other) in tables.iter().skip(1) {
                let (first, one) = tables[0];
                let blocks = one.blocks.keys().chain(other.blocks.keys());
                for block in blocks {
                    let of = |segment: &Segment| {
                        segment
                            .blocks
                            .get(block)
                            .map(|entry| (entry.version, entry.kind, entry.crc))
                    };
                    if of(one) != of(other) {
                        return Err(format!(
                            "{index} block {}: {first} has {:?}, {disk} has {:?}",
                            block.get(),
                            of(one),
                            of(other)
                        ));
                    }
                }
            }
            if let Some((disk, _)) = tables.iter().find(|(_, segment)| segment.joining) {
                return Err(format!("{index}: {disk} still believes that it joins"));
            }
        }
        Ok(())
    }
}

fn sectors(range: ByteRange) -> impl Iterator<Item = u64> {
    range.offset() / SECTOR_BYTES..range.end() / SECTOR_BYTES
}

/// The sectors of the whole blocks within.
fn trimmed(range: &ByteRange) -> std::ops::Range<u64> {
    range.offset().next_multiple_of(4096) / SECTOR_BYTES..range.end() / 4096 * 8
}

fn values_of(data: &Bytes) -> Vec<u64> {
    data.chunks(512)
        .map(|sector| {
            let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
            let whole = sector.chunks(8).all(|word| word == value.to_le_bytes());
            assert!(whole, "a torn sector");
            value
        })
        .collect()
}
