//! A whole cluster: machines with real `node` cores, guests, faults, and the judge.
//!
//! First everything may go wrong while guests work (safety). Then all is mended, and everything has
//! to come back: all copies in-sync and equal, all data readable, nothing held (liveness).

mod combined;
mod damage;
mod describe;
mod emptying;
mod exclusive;
mod fault;
mod forsaken;
mod frail;
mod guest;
mod guests;
mod loss;
mod machine;
mod nbd;
mod operator;
mod parted;
mod prove;
mod route;
mod scenario;
mod schedule;
mod script;
mod story;
mod swarm;
mod watch;

use crate::caught::caught;
use crate::consensus::{Consensus, ConsensusEvent};
use crate::disk::VirtualDisk;
use crate::invariants::exactly_once::ExactlyOnce;
use crate::invariants::never_fewer::NeverFewer;
use crate::net::{Machine, NetEvent, Network};
use crate::oracle::{Broken, Oracle};
use crate::report::{Options, Report};
use crate::world::{Queue, Trace};
pub use fault::FaultKind;
use fault::Mend;
pub use forsaken::{Forsaken, ForsakenStep};
use gabion_cluster::{AdminReply, Change, Command, Map, Proposer};
use gabion_node::{Effect, GuestId, NodeEvent};
use gabion_types::{DiskToken, Duration, Flaws, Incarnation, Instant, Prng, VolumeId};
use gabion_volume::VolumeEvent;
use gabion_wire::Message;
use guest::{Guest, Orphan};
use loss::Lost;
use machine::Host;
use operator::Operator;
pub use parted::{Parted, PartedStep};
use prove::Phase;
pub use scenario::{NODES_MAX, NoScenario, Scenario};
pub use schedule::{NotATrouble, Part, Strike, Trouble, named};
pub use script::Script;
use std::collections::{BTreeMap, VecDeque};
use story::Story;
pub use story::{Told, Wait};
pub(crate) use swarm::map_pages_max;
pub use swarm::{Finale, GuestPlan, Swarm, VolumePlan};
use watch::Acked;

/// A run that has not come to its end after so many events never will.
const EVENTS_MAX: u64 = 30_000_000;

/// What has to hold at every moment is looked at so often, beside each change of the map. Units:
/// events.
const WATCH_EVERY: u64 = 256;
/// Where a rule is switched off, and few seeds have to do.
const WATCH_FLAWED_EVERY: u64 = 32;

#[derive(Debug)]
enum Event {
    Net(NetEvent),
    Consensus(ConsensusEvent<Command>),
    Disk {
        machine: Machine,
        slot: usize,
        life: u64,
        token: DiskToken,
    },
    Tick {
        machine: Machine,
        life: u64,
    },
    TurnEnds {
        machine: Machine,
        life: u64,
    },
    Exit {
        machine: Machine,
        life: u64,
    },
    Act {
        guest: usize,
        act: u64,
    },
    /// Bytes of a guest's socket come in at its node.
    Flow {
        machine: Machine,
        guest: GuestId,
    },
    Operate {
        number: u64,
    },
    Strike {
        number: usize,
    },
    Mend(Mend),
    /// Looks whether the phase is over.
    Look,
}

#[derive(Debug)]
pub struct Cluster {
    swarm: Swarm,
    flaws: Flaws,
    script: Script,
    queue: Queue<Event>,
    trace: Trace,
    prng: Prng,
    /// For what is lost for good and at the end, whatever happened before.
    damage_prng: Prng,
    machines: Vec<Host>,
    net: Network<Message>,
    consensus: Consensus<Command>,
    /// The world's own copy of the map, and how many entries of the log are in it.
    map: Map,
    applied: usize,
    running: Vec<bool>,
    guests: Vec<Guest>,
    next_guest: u64,
    oracle: Oracle,
    /// Volumes that guests were attached to, as the oracle counts them.
    places: BTreeMap<VolumeId, usize>,
    orphans: Vec<Orphan>,
    expelled: exclusive::Expelled,
    requests: ExactlyOnce,
    copies: NeverFewer,
    leavers: combined::Leavers,
    /// Somebody wanted a machine to be gone for good.
    removal_tried: bool,
    /// A machine got a disk more, if one does.
    disk_added: bool,
    /// Blocks whose writes were acknowledged last.
    acked: VecDeque<Acked>,
    /// A block that every copy has lost, if there is one.
    lost: Option<Lost>,
    operator: Operator,
    last_refusal: Option<AdminReply>,
    phase: Phase,
    story: Story,
    effects: Vec<Effect>,
    counts: BTreeMap<&'static str, u64>,
    operations: u64,
    events: u64,
    broken: Option<Broken>,
}

/// Runs what a seed decides.
pub fn run(options: Options) -> Report {
    run_part(options, &Part::default())
}

/// What a seed decides before the first event.
pub fn plan(seed: u64) -> Swarm {
    Swarm::draw(&mut Prng::new(seed))
}

/// Runs a part of what a seed decides.
pub fn run_part(options: Options, part: &Part) -> Report {
    let mut prng = Prng::new(options.seed);
    let mut swarm = Swarm::draw(&mut prng);
    swarm.keep(part);
    let script = swarm.script();
    run_flawed(options, swarm, prng, (Flaws::NONE, script))
}

/// Runs a given world; `prng` decides what happens in it.
pub fn run_swarm(options: Options, swarm: Swarm, prng: Prng) -> Report {
    run_flawed(options, swarm, prng, (Flaws::NONE, Script::None))
}

/// Runs a given world in which a rule is switched off, and a script waits for its moment.
pub fn run_flawed(
    options: Options,
    swarm: Swarm,
    prng: Prng,
    (flaws, script): (Flaws, Script),
) -> Report {
    let mut cluster = Cluster::new(swarm, prng, options.watch);
    cluster.flaws = flaws;
    cluster.script = script;
    let panicked = caught(|| {
        cluster.begin();
        while cluster.broken.is_none() && !cluster.phase.is_end() && cluster.step() {}
    });
    cluster.broken = cluster.broken.or(panicked);
    cluster.report(options.seed)
}

impl Cluster {
    fn new(swarm: Swarm, mut prng: Prng, watch: bool) -> Self {
        let mut machines = Vec::new();
        for (disks, ppm) in swarm.disks.iter().zip(&swarm.clocks_ppm) {
            let disks = (0..*disks).map(|_| {
                let disk = VirtualDisk::new(swarm.disk_bytes, swarm.disk_times, prng.fork());
                machine::formatted(disk, swarm.limits, &mut prng)
            });
            machines.push(Host::new(disks.collect(), *ppm));
        }
        let guests = swarm.guests.iter().map(|plan| Guest::new(plan.clone(), prng.fork()));
        Self {
            guests: guests.collect(),
            net: Network::new(machines.len(), swarm.net, prng.fork()),
            consensus: Consensus::new(&vec![true; machines.len()], swarm.consensus, prng.fork()),
            queue: Queue::default(),
            trace: Trace::new(watch),
            prng,
            damage_prng: Prng::new(swarm.damage_seed),
            running: vec![false; machines.len()],
            machines,
            map: Map::default(),
            applied: 0,
            next_guest: 0,
            oracle: Oracle::new(swarm.unit_bytes),
            places: BTreeMap::new(),
            orphans: Vec::new(),
            expelled: exclusive::Expelled::default(),
            requests: ExactlyOnce::default(),
            copies: NeverFewer::default(),
            leavers: combined::Leavers::default(),
            removal_tried: false,
            disk_added: false,
            acked: VecDeque::new(),
            lost: None,
            operator: Operator::default(),
            last_refusal: None,
            phase: Phase::Making,
            story: Story::default(),
            effects: Vec::new(),
            counts: BTreeMap::new(),
            operations: 0,
            events: 0,
            broken: None,
            flaws: Flaws::NONE,
            script: Script::None,
            swarm,
        }
    }

    /// Everything starts; the log begins with the making of the cluster.
    fn begin(&mut self) {
        let from =
            Proposer { node: machine::node_id(0), incarnation: Incarnation::new(0), number: 0 };
        let change = Change::Init { cluster: machine::CLUSTER, limits: self.swarm.limits };
        self.consensus.seed_log(Command { from, change });
        for machine in 0..self.machines.len() {
            self.start(machine);
        }
        self.first_tasks();
        self.queue.after(Duration::from_secs(1), Event::Look);
    }

    /// False: nothing will ever happen again, or far too much happened.
    fn step(&mut self) -> bool {
        self.drain_due();
        let Some(event) = self.queue.pop() else { return false };
        match event {
            Event::Net(event) => self.on_net(event),
            Event::Consensus(event) => {
                self.refresh_running();
                self.on_consensus(event);
            }
            Event::Disk { machine, slot, life, token } => {
                self.on_disk(machine, slot, life, token);
                self.play();
            }
            Event::Tick { machine, life } => self.on_tick(machine, life),
            Event::TurnEnds { machine, life } => self.on_turn_ends(machine, life),
            Event::Exit { machine, life } => self.on_exit(machine, life),
            Event::Act { guest, act } => self.on_act(guest, act),
            Event::Flow { machine, guest } => self.flow(machine, guest),
            Event::Operate { number } => self.operate(number),
            Event::Strike { number } => self.strike(number),
            Event::Mend(mend) => {
                self.story.mended_at = Some(self.queue.now());
                self.mend(mend);
            }
            Event::Look => self.look(),
        }
        self.events += 1;
        let flawed = self.flaws != Flaws::NONE;
        let every = if flawed { WATCH_FLAWED_EVERY } else { WATCH_EVERY };
        if self.events.is_multiple_of(every) {
            self.watch();
        }
        if self.events > EVENTS_MAX {
            let text = format!("no end after {EVENTS_MAX} events in phase {:?}", self.phase);
            self.break_promise("comes-to-an-end", text);
        }
        true
    }

    fn drain_due(&mut self) {
        if self.net.has_due() {
            for (at, event) in self.net.take_due() {
                self.queue.at(at, Event::Net(event));
            }
        }
        if self.consensus.has_due() {
            for (at, event) in self.consensus.take_due() {
                self.queue.at(at, Event::Consensus(event));
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The first one counts; the run ends with it.
    fn break_promise(&mut self, promise: &'static str, text: String) {
        self.broken.get_or_insert(Broken { promise, text });
    }

    /// A moment that is never the same as that of its cause.
    fn no_time(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn report(self, seed: u64) -> Report {
        let waits = self.waits();
        let mut counts = self.counts;
        let disks = self.machines.iter().flat_map(|host| &host.disks);
        let disks = disks.map(|disk| disk.virtual_disk.counts());
        let (lost, torn) =
            disks.fold((0, 0), |(lost, torn), disk| (lost + disk.sectors_lost, torn + disk.torn));
        counts.insert("sectors-lost-at-power-cuts", lost);
        counts.insert("torn-page", torn);
        counts.insert("late-connection", self.net.late);
        counts.insert("writes", self.oracle.writes() as u64);
        counts.insert("units-checked", self.oracle.units_checked);
        counts.insert("map-entries", self.applied as u64);
        counts.insert("elections", self.consensus.elections);
        counts.insert("messages", self.net.messages);
        Report {
            seed,
            hash: self.trace.hash(),
            events: self.events,
            virtual_time: self.queue.now().since(Instant::ZERO),
            operations: self.operations,
            counts,
            broken: self.broken,
            whole_at: self.story.whole_at,
            mended_at: self.story.mended_at,
            story: self.story.into_lines(),
            waits,
            lines: self.trace.lines().cloned().collect(),
        }
    }

    fn note_event(&mut self, machine: Machine, event: &NodeEvent) {
        if let NodeEvent::Volume { event: VolumeEvent::Scrubbed { found, .. }, .. } = event {
            *self.counts.entry("blocks-scrubs-mended").or_default() += found.mended_blocks;
        }
        if let NodeEvent::Volume { event: VolumeEvent::Lost { blocks, .. }, .. } = event {
            *self.counts.entry("blocks-scrubs-lost").or_default() += u64::from(*blocks);
        }
        if let NodeEvent::Volume { volume, event: VolumeEvent::MemberFailed { disk, .. } } = event {
            self.copies.on_failed(*volume, *disk);
        }
        // From here on the last owner does nothing more.
        if let NodeEvent::Volume { volume, event: VolumeEvent::TookOver { .. } } = event {
            self.on_taken_over(*volume);
        }
        self.trace.note_with(self.queue.now(), machine::who(machine), "event", [0, 0, 0], || {
            format!("{event:?}")
        });
        self.tell_event(machine, event);
        self.count(match event {
            NodeEvent::PeerUp { .. } => "event-peer-up",
            NodeEvent::PeerDown { .. } => "event-peer-down",
            NodeEvent::LinkRefused { .. } => "event-link-refused",
            NodeEvent::DiskOpened { .. } => "event-disk-opened",
            NodeEvent::DiskOut { .. } => "event-disk-out",
            NodeEvent::Store { .. } => "event-store",
            NodeEvent::Volume { event: VolumeEvent::Scrubbed { .. }, .. } => "event-scrubbed",
            NodeEvent::Volume { .. } => "event-volume",
            NodeEvent::Owning { .. } => "event-owning",
            NodeEvent::OwningEnded { .. } => "event-owning-ended",
            NodeEvent::Superseded { .. } => "event-superseded",
            NodeEvent::Removed => "event-removed",
        });
    }
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
