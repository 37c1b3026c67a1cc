//! Nodes, disks, links, the map's log and guests in virtual time. One seed decides everything.

mod end;
mod faults;
mod guests;
mod links;
mod log;
mod owner;

pub use faults::{Fault, KINDS};

use crate::check::History;
use crate::disk::{Disk, Durable, Segment};
use crate::map::{Life, Map};
use gabion_types::{
    DiskId, Epoch, GuestOp, Instant, NodeId, Outcome, OwnerChange, Prng, ScrubAsk, ScrubFound,
    SegmentIndex, VolumeView,
};
use gabion_volume::{Input, Ticket, Volume};
use gabion_wire::{LinkClass, ReplicaAnswer, ReplicaRequest, RequestId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    Unsent { owner: u64, node: NodeId, link: u64, class: LinkClass, request: RequestId },
    Room { owner: u64, node: NodeId, link: u64, class: LinkClass },
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
    snapshot: Option<(DiskId, Durable)>,
    /// What goes wrong, where it is not left to chance.
    pub script: Option<VecDeque<Fault>>,
    pub rotted: bool,
    scrubs_wanted: u64,
    last_scrub: Option<(ScrubAsk, ScrubFound)>,
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
    pub combines: u64,
    pub scrubs: u64,
    /// Blocks that scrubs mended.
    pub scrubbed: u64,
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
            script: None,
            rotted: false,
            scrubs_wanted: 0,
            last_scrub: None,
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
                return Err(format!("not whole again: {}", self.describe()));
            }
            self.step()?;
        }
        self.read_everything()?;
        self.scrub_everything()?;
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
            Event::Unsent { owner, node, link, class, request } => {
                return self.on_unsent(owner, (node, link, class), request);
            }
            Event::Room { owner, node, link, class } => {
                return self.on_room(owner, (node, link, class));
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
}
