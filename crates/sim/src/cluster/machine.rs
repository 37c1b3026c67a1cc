//! A machine: its disks, its clock, and the process on it.

use super::describe::input_kind;
use super::swarm::map_pages_max;
use super::{Cluster, Event};
use crate::disk::{Snapshot, VirtualDisk};
use crate::invariants::no_spinning;
use crate::net::{Conn, Machine, Side};
use crate::world::{Clock, TURN_NS_MOST, Who};
use gabion_cluster::{Map, NodeInfo};
use gabion_node::{DiskSlot, GuestId, Input, LinkId, Node, NodeConfig, NodeDisk, NodeSettings};
use gabion_types::{
    ClusterId, DiskToken, Duration, Incarnation, Instant, Limits, MapIndex, NodeId, Prng,
};
use std::collections::{BTreeMap, VecDeque};

/// The cluster that every run makes.
pub const CLUSTER: ClusterId = ClusterId::new(*b"a simulated one!");
/// What the wall clocks of all machines say when a run begins.
const START_UNIX_MS: u64 = 1_800_000_000_000;
const SECRET: [u8; 32] = *b"known to all simulated machines.";

#[derive(Debug)]
pub enum State {
    /// Without power.
    Off,
    /// With power, without a process.
    Down,
    Running(Box<Node>),
    /// Hangs: what comes waits.
    Paused(Box<Node>, VecDeque<Input>),
}

#[derive(Debug)]
pub struct Disk {
    pub virtual_disk: VirtualDisk,
    /// What stands on the disk as its name.
    pub uuid: [u8; 16],
    /// What is done and not answered, as the disk is stuck: of which process, and what.
    pub waiting: Vec<(u64, DiskToken)>,
    /// What it will be again.
    pub old: Option<Snapshot>,
}

/// Bytes that a link was given.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// Not arrived.
    unsent: u64,
    /// What the process takes for unsent.
    told: u64,
}

#[derive(Debug)]
pub struct Host {
    pub state: State,
    pub disks: Vec<Disk>,
    clock: Clock,
    /// Local nanoseconds a million of the world's.
    ppm: u64,
    /// Counts starts: events of an earlier process are void.
    pub life: u64,
    pub incarnation: Incarnation,
    /// Its turn goes on: what comes by its end is of the same.
    turn_open: bool,
    /// The tick that is on the list, by the world's time.
    armed: Option<Instant>,
    links: BTreeMap<LinkId, (Conn, Side)>,
    ends: BTreeMap<(Conn, Side), LinkId>,
    next_link: u64,
    sent: BTreeMap<LinkId, Sent>,
    pub guests: BTreeMap<GuestId, usize>,
    pub stopping: bool,
    /// It was told to let go of its volumes, and serves those of others only.
    pub drained: bool,
    /// The cluster removed it: it never starts again.
    pub removed: bool,
    /// Since when its clock stands still.
    stands_since: Option<Instant>,
    /// How many of its last turns by its own clock left something due.
    idle_turns: u32,
    /// When a clock that its lease hangs on last stood or jumped.
    bent_at: Option<Instant>,
}

impl Host {
    pub fn new(disks: Vec<Disk>, ppm: u64) -> Self {
        Self {
            state: State::Off,
            disks,
            clock: Clock::new(Instant::ZERO, Instant::ZERO, ppm),
            ppm,
            life: 0,
            incarnation: Incarnation::new(0),
            turn_open: false,
            armed: None,
            links: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_link: 0,
            sent: BTreeMap::new(),
            guests: BTreeMap::new(),
            stopping: false,
            drained: false,
            removed: false,
            stands_since: None,
            idle_turns: 0,
            bent_at: None,
        }
    }

    /// While it hangs; nothing if it does not.
    pub fn clock_stands_since(&mut self, now: Instant) {
        if matches!(self.state, State::Paused(..)) {
            self.stands_since.get_or_insert(now);
        }
    }

    /// All deadlines that it set before are nearer now.
    pub fn jump_clock(&mut self, now: Instant, ahead: Duration) {
        self.clock.jump(now, ahead);
        self.bend(now);
        self.armed = None;
    }

    fn clock_goes_on(&mut self, now: Instant) {
        if let Some(since) = self.stands_since.take() {
            self.clock.hold_back(now, now.since(since));
            self.bend(now);
        }
    }

    /// A lease from before ends at another moment than its owner or the manager counts on.
    pub fn bend(&mut self, now: Instant) {
        self.bent_at = Some(now);
    }

    /// It may still hold a lease from before its clock, or the manager's, stood or jumped.
    pub fn is_bent(&self, now: Instant, lease: Duration) -> bool {
        self.bent_at.is_some_and(|at| now.since(at) < lease)
    }

    /// The time by its clock.
    pub fn local(&self, now: Instant) -> Instant {
        self.clock.local(now)
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// A process is there, hanging or not.
    pub fn has_process(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Paused(..))
    }

    pub fn node(&self) -> Option<&Node> {
        match &self.state {
            State::Running(node) | State::Paused(node, _) => Some(node),
            State::Off | State::Down => None,
        }
    }

    /// Dialled links have the node's even numbers, accepted ones odd numbers of the driver's.
    pub fn accept(&mut self, conn: Conn) -> LinkId {
        let link = LinkId(self.next_link << 1 | 1);
        self.next_link += 1;
        self.bind(link, conn, Side::Acceptor);
        link
    }

    pub fn bind(&mut self, link: LinkId, conn: Conn, side: Side) {
        self.links.insert(link, (conn, side));
        self.ends.insert((conn, side), link);
    }

    pub fn end_of(&self, link: LinkId) -> Option<(Conn, Side)> {
        self.links.get(&link).copied()
    }

    pub fn link_of(&self, conn: Conn, side: Side) -> Option<LinkId> {
        self.ends.get(&(conn, side)).copied()
    }

    /// Returns what had not left before.
    pub fn note_sent(&mut self, link: LinkId, bytes: u64) -> u64 {
        let sent = self.sent.entry(link).or_default();
        let before = sent.unsent;
        sent.unsent += bytes;
        sent.told += bytes;
        before
    }

    /// What is unsent now, when so much has left that the process is to be told.
    pub fn note_left(&mut self, link: LinkId, bytes: u64) -> Option<u64> {
        let report = self.node()?.link_report_bytes();
        let sent = self.sent.get_mut(&link)?;
        sent.unsent = sent.unsent.saturating_sub(bytes);
        if sent.told - sent.unsent < report {
            return None;
        }
        sent.told = sent.unsent;
        Some(sent.unsent)
    }

    fn unsent(&self, link: LinkId) -> u64 {
        self.sent.get(&link).map_or(0, |sent| sent.unsent)
    }

    pub fn unbind(&mut self, link: LinkId) -> Option<(Conn, Side)> {
        let end = self.links.remove(&link)?;
        self.sent.remove(&link);
        self.ends.remove(&end);
        Some(end)
    }
}

/// Cluster ids count nodes from 1.
pub fn node_id(machine: Machine) -> NodeId {
    NodeId::new(u32::try_from(machine + 1).expect("a few machines"))
}

pub fn machine_of(node: NodeId) -> Machine {
    usize::try_from(node.get()).expect("a few machines") - 1
}

pub fn who(machine: Machine) -> Who {
    Who::Node(u32::try_from(machine).expect("a few machines"))
}

impl Cluster {
    /// A process starts, with power if need be. Nothing if there is one.
    pub(super) fn start(&mut self, machine: Machine) {
        if self.machines[machine].has_process() || self.machines[machine].removed {
            return;
        }
        let now = self.queue.now();
        let seed = self.prng.next_u64();
        let incarnation = Incarnation::new(self.prng.next_u64());
        let settings = NodeSettings {
            limits: self.swarm.limits,
            link_unsent_max: self.swarm.link_unsent_max(),
            map_pages_max: map_pages_max(seed),
            flaws: self.flaws,
            ..NodeSettings::default()
        };
        let kept = self.kept_entries(machine);
        let host = &mut self.machines[machine];
        host.life += 1;
        host.incarnation = incarnation;
        host.stopping = false;
        host.drained = false;
        host.armed = None;
        host.bent_at = None;
        host.clock = Clock::new(now, Instant::from_nanos(self.prng.below(1 << 40)), host.ppm);
        let config = NodeConfig {
            cluster: CLUSTER,
            node: node_id(machine),
            incarnation,
            secret: SECRET,
            seed,
            settings,
            info: info(machine),
            disks: host.disks.iter().enumerate().map(disk_config).collect(),
        };
        let local = host.clock.local(now);
        host.state = State::Running(Box::new(Node::new(config, local)));
        self.net.set_process(now, machine, true);
        self.trace.note(now, who(machine), "start", [host.life, kept as u64, 0]);
        self.consensus.start(now, machine, kept);
        if kept > 0 {
            let map = Box::new(self.map_at(kept));
            self.feed(machine, Input::Restored { index: MapIndex::new(kept as u64), map });
        }
        let unix_ms = START_UNIX_MS + now.nanos() / 1_000_000;
        // Elsewhere no scrub would be due.
        if self.swarm.scrubs() {
            self.feed(machine, Input::WallClock { unix_ms });
        }
        self.feed(machine, Input::Tick);
    }

    /// How much of its log a starting process gets as one map.
    fn kept_entries(&mut self, machine: Machine) -> usize {
        let has = self.consensus.has(machine) as u64;
        if self.prng.chance(1, 2) { crate::world::index(self.prng.between(0, has)) } else { 0 }
    }

    pub(super) fn map_at(&self, entries: usize) -> Map {
        let mut map = Map::default();
        for (index, command) in (1..).zip(&self.consensus.log()[..entries]) {
            map.apply(MapIndex::new(index), command);
        }
        map
    }

    /// The process dies; its machine stays.
    pub(super) fn kill(&mut self, machine: Machine) {
        if !self.machines[machine].has_process() {
            return;
        }
        self.lose_process(machine);
        self.machines[machine].state = State::Down;
        self.net.set_process(self.queue.now(), machine, false);
    }

    /// What both a kill and a power cut do.
    pub(super) fn lose_process(&mut self, machine: Machine) {
        let now = self.queue.now();
        let host = &mut self.machines[machine];
        host.life += 1;
        host.turn_open = false;
        host.armed = None;
        host.stands_since = None;
        host.idle_turns = 0;
        host.links.clear();
        host.sent.clear();
        host.ends.clear();
        for disk in &mut host.disks {
            disk.virtual_disk.lose_process();
        }
        self.trace.note(now, who(machine), "gone", [host.life, 0, 0]);
        for guest in std::mem::take(&mut host.guests).into_values() {
            self.guest_cut_off(guest);
        }
    }

    /// Asks the process to stop by itself.
    pub(super) fn stop(&mut self, machine: Machine) {
        if self.machines[machine].has_process() && !self.machines[machine].stopping {
            self.machines[machine].stopping = true;
            self.feed(machine, Input::Stop);
        }
    }

    /// Asks the process to let go of its volumes and guests; it stays for the volumes of others.
    pub(super) fn drain(&mut self, machine: Machine) {
        if self.machines[machine].has_process() && !self.machines[machine].stopping {
            self.machines[machine].drained = true;
            self.feed(machine, Input::Quiesce);
        }
    }

    pub(super) fn pause(&mut self, machine: Machine) {
        self.note_frozen(machine);
        let host = &mut self.machines[machine];
        host.state = match std::mem::replace(&mut host.state, State::Off) {
            State::Running(node) => State::Paused(node, VecDeque::new()),
            other @ (State::Off | State::Down | State::Paused(..)) => other,
        };
    }

    pub(super) fn resume(&mut self, machine: Machine) {
        let now = self.queue.now();
        let host = &mut self.machines[machine];
        host.clock_goes_on(now);
        let waiting;
        (host.state, waiting) = match std::mem::replace(&mut host.state, State::Off) {
            State::Paused(node, waiting) => (State::Running(node), waiting),
            other @ (State::Off | State::Down | State::Running(_)) => (other, VecDeque::new()),
        };
        for mut input in waiting {
            // It asks when it goes on, and not while it hangs, what its links have not sent.
            if let Input::LinkBacklog { link, unsent } = &mut input {
                *unsent = self.machines[machine].unsent(*link);
            }
            self.feed(machine, input);
        }
        if self.machines[machine].is_running() {
            self.feed(machine, Input::Tick);
        }
    }

    /// One input into a process; its effects are done, its timer is set.
    pub(super) fn feed(&mut self, machine: Machine, input: Input) {
        let now = self.queue.now();
        if self.trace.is_watched() && self.machines[machine].is_running() {
            let text = self.describe_input(machine, &input);
            self.trace.detail_next(text);
        }
        let host = &mut self.machines[machine];
        let local = host.clock.local(now);
        let node = match &mut host.state {
            State::Running(node) => node,
            State::Paused(_, waiting) => {
                waiting.push_back(input);
                return;
            }
            State::Off | State::Down => return,
        };
        self.trace.note(now, who(machine), input_kind(&input), [0, 0, 0]);
        if !matches!(input, Input::TurnEnds) {
            node.handle(local, input);
            if !host.turn_open && self.prng.chance(1, 3) {
                host.turn_open = true;
                let ends = Event::TurnEnds { machine, life: host.life };
                self.queue.after(Duration::from_nanos(self.prng.between(0, TURN_NS_MOST)), ends);
            }
        }
        if !host.turn_open {
            node.handle(local, Input::TurnEnds);
        }
        let mut effects = std::mem::take(&mut self.effects);
        while let Some(effect) = node.next_effect() {
            effects.push(effect);
        }
        for effect in effects.drain(..) {
            self.perform(machine, effect);
        }
        self.effects = effects;
        self.arm(machine);
    }

    pub(super) fn on_turn_ends(&mut self, machine: Machine, life: u64) {
        let host = &mut self.machines[machine];
        if host.life == life {
            host.turn_open = false;
            self.feed(machine, Input::TurnEnds);
        }
    }

    fn arm(&mut self, machine: Machine) {
        let now = self.queue.now();
        let host = &mut self.machines[machine];
        let Some(deadline) = host.node().and_then(Node::next_deadline) else { return };
        let late = Duration::from_nanos(self.prng.between(1_000, 200_000));
        let at = host.clock.world(deadline).max(now) + late;
        if host.armed.is_none_or(|armed| at < armed) {
            host.armed = Some(at);
            self.queue.at(at, Event::Tick { machine, life: host.life });
        }
    }

    pub(super) fn on_tick(&mut self, machine: Machine, life: u64) {
        let host = &mut self.machines[machine];
        if host.life == life && host.armed.is_some_and(|armed| armed <= self.queue.now()) {
            host.armed = None;
            if host.is_running() {
                self.feed(machine, Input::Tick);
                self.check_turn(machine);
            }
        }
    }

    fn check_turn(&mut self, machine: Machine) {
        let now = self.queue.now();
        let host = &mut self.machines[machine];
        let due = host.node().map(|node| node.due(host.local(now))).unwrap_or_default();
        host.idle_turns = if due.is_empty() { 0 } else { host.idle_turns + 1 };
        let result = no_spinning::check(node_id(machine), host.idle_turns, &due);
        self.judge_watch(result);
    }

    pub(super) fn on_disk(&mut self, machine: Machine, slot: usize, life: u64, token: DiskToken) {
        let host = &mut self.machines[machine];
        if host.life != life {
            return;
        }
        if host.disks[slot].virtual_disk.is_stuck() {
            host.disks[slot].waiting.push((life, token));
            return;
        }
        if let Some(done) = host.disks[slot].virtual_disk.complete(token) {
            let disk = DiskSlot(u32::try_from(slot).expect("a few disks"));
            self.feed(machine, Input::Disk { disk, done });
        }
    }
}

fn info(machine: Machine) -> NodeInfo {
    let name = format!("node{}", machine + 1);
    let at = |port: &str| format!("{name}:{port}");
    NodeInfo {
        id: node_id(machine),
        peer: at("peer"),
        api: at("api"),
        nbd: at("nbd"),
        zone: ["", "a", "b"][machine % 3].to_owned(),
        http: at("http"),
        name,
    }
}

pub(super) fn disk_config((slot, disk): (usize, &Disk)) -> NodeDisk {
    NodeDisk { capacity_bytes: disk.virtual_disk.capacity_bytes(), path: format!("disk{slot}") }
}

/// A fresh disk, formatted.
pub fn formatted(mut disk: VirtualDisk, limits: Limits, prng: &mut Prng) -> Disk {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&prng.next_u64().to_le_bytes());
    uuid[8..].copy_from_slice(&prng.next_u64().to_le_bytes());
    let pieces = crate::formatting::format_disk(CLUSTER, uuid, disk.capacity_bytes(), limits);
    disk.format(pieces);
    Disk { virtual_disk: disk, uuid, waiting: Vec::new(), old: None }
}
