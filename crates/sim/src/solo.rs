//! One store on one virtual disk, one client, and everything that may happen to them.
//!
//! The client plays an owner that knows exactly what it may see: every answer is judged, the process
//! is killed and the power cut at any moment, data rot. No cluster, so it is quick to find what is
//! wrong with a disk's own promises.

mod answers;
mod asks;
mod model;
mod script;

use crate::caught::caught;
use crate::cluster::{Part, map_pages_max};
use crate::content::Label;
use crate::disk::{DiskTimes, PowerCut, Rot, VirtualDisk};
use crate::invariants::no_write_under_read;
use crate::oracle::Broken;
use crate::report::{Options, Report};
use crate::world::{Queue, Spread, TURN_NS_MOST, Trace, Who, index};
use asks::Asked;
use gabion_store::{Effect, Input, Origin, Settings, Store, StoreConfig, StoreEvent};
use gabion_types::{
    BlockIndex, ClusterId, DiskToken, Duration, Epoch, Flaws, Instant, Limits, Prng, SegmentSize,
    Seq,
};
use gabion_wire::RequestId;
use model::{Block, Content};
use script::Script;
use std::collections::BTreeMap;

pub(crate) const CLUSTER: ClusterId = ClusterId::new(*b"one single store");
/// Recovery takes no longer on a disk of this size.
const RECOVERY: Duration = Duration::from_secs(30);
/// A request is answered within, while nothing is wrong.
const ANSWER: Duration = Duration::from_secs(20);

/// A run is over within.
const RUN: Duration = Duration::from_secs(3600);

#[derive(Debug)]
enum Event {
    Disk { life: u64, token: DiskToken },
    Tick { life: u64 },
    Commit { life: u64 },
    Ask,
    Trouble,
    Start,
    Overdue { life: u64 },
}

/// What a seed decides.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub disk_bytes: u64,
    pub disk_times: DiskTimes,
    pub limits: Limits,
    pub segments: u32,
    pub depth: usize,
    pub think: Spread,
    pub trouble: Spread,
    /// One trouble in so many also strikes a recovery.
    pub strikes_recovery_of: u64,
    /// The process dies when a superblock is in the disk's cache only, and the power goes while what
    /// comes next recovers from that: chance hardly ever meets it.
    pub strikes_superblock: bool,
    pub rots: bool,
    pub power: bool,
    pub actions: u64,
}

#[derive(Debug)]
struct Segment {
    creation: Epoch,
    made: bool,
    /// Something was asked of it.
    asked_for: bool,
    blocks: Vec<Block>,
    /// The next seq to give, the highest answered, what `EpochStart` made durable and asked for.
    next: Seq,
    answered: Seq,
    started: Seq,
    starting: Seq,
    /// The highest that the client said was settled.
    settled: Seq,
    /// J while it joins, by the client's word.
    joined: Option<Epoch>,
    /// Whether it joins is not known: an answer was lost.
    unsure: bool,
    /// A new owner has not given it its first seq.
    needs_start: bool,
    /// Asks in flight that stand alone.
    changing: u32,
}

#[derive(Debug)]
struct Solo {
    plan: Plan,
    flaws: Flaws,
    queue: Queue<Event>,
    trace: Trace,
    prng: Prng,
    disk: VirtualDisk,
    store: Option<Store>,
    opened: bool,
    stopping: bool,
    life: u64,
    armed: Option<Instant>,
    origin: Origin,
    /// The epoch that the client took over at, and the one that it gives versions under.
    owner_epoch: Epoch,
    epoch: Epoch,
    /// The highest fence that was answered.
    fenced: Epoch,
    fencing: bool,
    segments: Vec<Segment>,
    commits_later: bool,
    asks: BTreeMap<RequestId, Asked>,
    /// After the last restart every block is read: the segment and block to go on with.
    finale: Option<(usize, u32)>,
    script: Script,
    next_request: u64,
    labels: u64,
    actions: u64,
    counts: BTreeMap<&'static str, u64>,
    broken: Option<Broken>,
}

pub fn run(options: Options) -> Report {
    run_flawed(options, Flaws::NONE)
}

/// What a seed decides before the first event.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Prng::new(seed))
}

/// Runs a part of what a seed decides.
pub fn run_part(options: Options, part: &Part) -> Report {
    let actions = part.actions.unwrap_or(u64::MAX);
    run_drill(options, Flaws::NONE, |plan| plan.actions = plan.actions.min(actions))
}

/// With a store of which a rule is switched off.
pub fn run_flawed(options: Options, flaws: Flaws) -> Report {
    run_drill(options, flaws, |_| {})
}

/// With a plan that was changed after it was drawn.
pub fn run_drill(options: Options, flaws: Flaws, change: impl Fn(&mut Plan)) -> Report {
    let mut prng = Prng::new(options.seed);
    let mut plan = Plan::draw(&mut prng);
    change(&mut plan);
    let mut solo = Solo::new(plan, prng, options.watch);
    solo.flaws = flaws;
    solo.begin();
    let panicked = caught(|| while solo.broken.is_none() && !solo.is_over() && solo.step() {});
    solo.broken = solo.broken.or(panicked);
    solo.report(options.seed)
}

impl Plan {
    fn draw(prng: &mut Prng) -> Self {
        let pick = |prng: &mut Prng, items: &[u64]| *prng.pick(items).expect("there are some");
        let segment = SegmentSize::new(pick(prng, &[64 << 10, 256 << 10, 1 << 20]));
        Self {
            disk_bytes: pick(prng, &[64 << 20, 64 << 20, 128 << 20]),
            disk_times: DiskTimes::FAST,
            strikes_recovery_of: 8,
            strikes_superblock: false,
            limits: Limits {
                segment: segment.expect("a power of two in range"),
                part_bytes: 256 << 10,
                requests_per_volume: 256,
                write_bytes_per_disk: 4 << 20,
            },
            segments: u32::try_from(prng.between(1, 4)).expect("a few"),
            depth: index(pick(prng, &[1, 4, 32])),
            think: Spread::new(1, pick(prng, &[20, 200, 5000])),
            trouble: Spread::new(100, pick(prng, &[20_000, 500_000, 3_000_000])),
            rots: prng.chance(1, 3),
            power: prng.chance(4, 5),
            actions: pick(prng, &[300, 2000, 6000]),
        }
    }
}

impl Solo {
    fn new(plan: Plan, mut prng: Prng, watch: bool) -> Self {
        let mut disk = VirtualDisk::new(plan.disk_bytes, plan.disk_times, prng.fork());
        let uuid = [7; 16];
        disk.format(crate::formatting::format_disk(CLUSTER, uuid, plan.disk_bytes, plan.limits));
        let epoch = Epoch::new(2).expect("small");
        let blocks = index(u64::from(plan.limits.segment.blocks()));
        let segment = |_| Segment {
            creation: Epoch::new(1).expect("small"),
            made: false,
            asked_for: false,
            blocks: vec![Block::default(); blocks],
            next: Seq::new(1),
            answered: Seq::ZERO,
            started: Seq::ZERO,
            starting: Seq::ZERO,
            settled: Seq::ZERO,
            joined: None,
            unsure: false,
            needs_start: true,
            changing: 0,
        };
        Self {
            segments: (0..plan.segments).map(segment).collect(),
            plan,
            flaws: Flaws::NONE,
            queue: Queue::default(),
            trace: Trace::new(watch),
            prng,
            disk,
            store: None,
            opened: false,
            stopping: false,
            life: 0,
            armed: None,
            origin: Origin(0),
            owner_epoch: epoch,
            epoch,
            fenced: Epoch::ZERO,
            fencing: false,
            commits_later: false,
            asks: BTreeMap::new(),
            finale: None,
            script: Script::default(),
            next_request: 0,
            labels: 0,
            actions: 0,
            counts: BTreeMap::new(),
            broken: None,
        }
    }

    fn begin(&mut self) {
        self.start();
        self.queue.after(Duration::from_millis(1), Event::Ask);
        let wait = self.plan.trouble.draw(&mut self.prng);
        self.queue.after(wait, Event::Trouble);
    }

    fn is_over(&self) -> bool {
        let read = self.finale.is_some_and(|(segment, _)| segment == self.segments.len());
        read && self.asks.is_empty()
    }

    fn step(&mut self) -> bool {
        let Some(event) = self.queue.pop() else { return false };
        if self.queue.now().since(Instant::ZERO) > RUN {
            self.break_promise("comes-to-an-end", format!("asked: {:?}", self.asks));
        }
        match event {
            Event::Disk { life, token } if life == self.life => {
                if let Some(done) = self.disk.complete(token) {
                    self.feed(Input::Disk(done));
                    self.play();
                }
            }
            Event::Tick { life } if life == self.life => {
                if self.armed.is_some_and(|armed| armed <= self.queue.now()) {
                    self.armed = None;
                    self.feed(Input::Tick);
                }
            }
            Event::Commit { life } if life == self.life => {
                self.commits_later = false;
                self.commit();
            }
            Event::Disk { .. } | Event::Tick { .. } | Event::Commit { .. } => {}
            Event::Ask => self.on_ask(),
            Event::Trouble => self.on_trouble(),
            Event::Start => self.start(),
            Event::Overdue { life } => {
                if life == self.life && !self.opened {
                    self.break_promise("recovers", format!("not open after {RECOVERY:?}"));
                }
            }
        }
        true
    }

    fn start(&mut self) {
        let now = self.queue.now();
        self.life += 1;
        self.commits_later = false;
        self.origin = Origin(self.life);
        let seed = self.prng.next_u64();
        let settings = Settings { pages_max: map_pages_max(seed), ..Settings::default() };
        let config = StoreConfig {
            cluster: Some(CLUSTER),
            capacity_bytes: self.disk.capacity_bytes(),
            seed,
            settings,
            flaws: self.flaws,
            ..StoreConfig::default()
        };
        self.trace.note(now, Who::World, "start", [self.life, 0, 0]);
        self.store = Some(Store::new(config, now));
        self.queue.after(RECOVERY, Event::Overdue { life: self.life });
        self.pump();
    }

    fn feed(&mut self, input: Input) {
        let now = self.queue.now();
        let Some(store) = &mut self.store else { return };
        self.trace.note_with(now, Who::Node(0), "input", [0, 0, 0], || {
            format!("{input:?}").chars().take(700).collect()
        });
        store.handle(now, input);
        if !self.commits_later && self.prng.chance(1, 3) {
            self.commits_later = true;
            let wait = Duration::from_nanos(self.prng.between(0, TURN_NS_MOST));
            self.queue.after(wait, Event::Commit { life: self.life });
        }
        self.commit();
    }

    fn commit(&mut self) {
        let now = self.queue.now();
        if let Some(store) = self.store.as_mut().filter(|_| !self.commits_later) {
            store.handle(now, Input::Commit);
        }
        self.pump();
    }

    fn pump(&mut self) {
        let now = self.queue.now();
        while let Some(effect) = self.store.as_mut().and_then(Store::next_effect) {
            self.trace.note_with(now, Who::Node(0), "effect", [0, 0, 0], || {
                format!("{effect:?}").chars().take(700).collect()
            });
            match effect {
                Effect::Disk(op) => {
                    let token = op.token;
                    if let Err(broken) = no_write_under_read::check(&self.disk, &op) {
                        self.break_promise(broken.promise, broken.text);
                    }
                    let wait = self.disk.submit(op);
                    self.queue.after(wait, Event::Disk { life: self.life, token });
                }
                Effect::Answer { to, request, answer } => self.on_answer(to, request, answer),
                Effect::Opened(opened) => {
                    self.opened = true;
                    if opened.damaged && !self.is_rotten() {
                        self.break_promise("recovers", format!("damaged: {opened:?}"));
                    }
                }
                Effect::OutOfService(why) => {
                    self.break_promise("recovers", format!("out of service: {why}"));
                }
                Effect::Event(event) => self.on_event(&event),
                Effect::Stopped => {
                    self.lose(None);
                }
            }
        }
        self.arm();
    }

    fn arm(&mut self) {
        let Some(deadline) = self.store.as_ref().and_then(Store::next_deadline) else { return };
        let at = deadline.max(self.queue.now()) + Duration::from_micros(1);
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            self.queue.at(at, Event::Tick { life: self.life });
        }
    }

    fn on_event(&mut self, event: &StoreEvent) {
        match event {
            StoreEvent::Recovered { .. } => self.count("recovered"),
            StoreEvent::Damaged(_) => self.count("damaged"),
            StoreEvent::Corrupt { .. } => self.count("corrupt"),
            StoreEvent::Checkpointed { .. } => self.count("checkpointed"),
        }
    }

    fn on_trouble(&mut self) {
        let wait = self.plan.trouble.draw(&mut self.prng);
        self.queue.after(wait, Event::Trouble);
        // A recovery is struck too, but not each time, or it would never end.
        let spared = !self.opened && !self.prng.chance(1, self.plan.strikes_recovery_of);
        if self.store.is_none() || self.finale.is_some() || spared {
            return;
        }
        if self.plan.actions <= self.actions {
            if self.asks.is_empty() && !self.is_rotten() {
                self.finale = Some((0, 0));
                let cut = self.plan.power.then(|| PowerCut::draw(&mut self.prng));
                self.lose(cut);
            }
            return;
        }
        if self.plan.rots && self.opened && self.prng.chance(1, 2) {
            self.rot_something();
        } else if !self.is_rotten() {
            match self.prng.below(5) {
                0 if self.opened => {
                    self.stopping = true;
                    self.feed(Input::Stop);
                }
                1 | 2 if self.plan.power => {
                    let cut = PowerCut::draw(&mut self.prng);
                    self.count("power-cut");
                    self.lose(Some(cut));
                }
                _ => {
                    self.count("kill");
                    self.lose(None);
                }
            }
        }
    }

    /// The process is gone, with or without the power. It comes back.
    fn lose(&mut self, cut: Option<PowerCut>) {
        let now = self.queue.now();
        self.trace.note(now, Who::World, "gone", [self.life, u64::from(cut.is_some()), 0]);
        match cut {
            Some(cut) => self.disk.lose_power(cut),
            None => self.disk.lose_process(),
        }
        self.store = None;
        self.opened = false;
        self.stopping = false;
        self.armed = None;
        self.life += 1;
        self.cut_off_all();
        let blocks = self.segments.iter_mut().flat_map(|segment| &mut segment.blocks);
        blocks.for_each(|block| block.seen_bad = false);
        let wait = Spread::new(10, 5_000).draw(&mut self.prng);
        self.queue.after(wait, Event::Start);
    }

    /// One block's data are damaged, where it is sure what stands there.
    fn rot_something(&mut self) {
        let segment = index(self.prng.below(u64::from(self.plan.segments)));
        let block = index(self.prng.below(self.segments[segment].blocks.len() as u64));
        let Some((version, Content::Data(_))) = self.segments[segment].blocks[block].certain()
        else {
            return;
        };
        let Some(store) = &self.store else { return };
        let at = BlockIndex::new(u32::try_from(block).expect("few blocks"));
        let mut peek = |offset: u64| self.disk.page(offset / 4096).cloned();
        let located = store.locate(asks::VOLUME, asks::segment(segment), at, &mut peek);
        let Some(place) = located else { return };
        let (offset, found) = (place.offset, place.version);
        if found != version {
            let text =
                format!("block {block} of segment {segment}: {found} is located, not {version}");
            self.break_promise("locates", text);
            return;
        }
        let rot = match self.prng.below(3) {
            0 => Rot::Flip { bit: self.prng.below(4096 * 8) },
            1 => Rot::Unreadable,
            _ => Rot::Zeroed,
        };
        self.count("rot");
        self.trace.note_with(
            self.queue.now(),
            Who::World,
            "rot",
            [segment as u64, block as u64, offset],
            || format!("{rot:?}"),
        );
        self.segments[segment].blocks[block].rotten = Some(version);
        self.disk.rot(offset / 4096, rot);
    }

    fn is_rotten(&self) -> bool {
        let blocks = self.segments.iter().flat_map(|segment| &segment.blocks);
        blocks.into_iter().any(|block| block.rotten.is_some())
    }

    fn next_label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn break_promise(&mut self, promise: &'static str, text: String) {
        self.broken.get_or_insert(Broken { promise, text });
    }

    fn report(self, seed: u64) -> Report {
        Report {
            seed,
            hash: self.trace.hash(),
            events: self.trace.count(),
            virtual_time: self.queue.now().since(Instant::ZERO),
            operations: self.actions,
            counts: self.counts,
            broken: self.broken,
            lines: self.trace.lines().cloned().collect(),
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests;
