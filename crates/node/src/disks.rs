//! The disks of this node: a `store` core each, and what the map wants of them.

use crate::io::{DiskSlot, NodeDisk, WantedPage};
use crate::settings::NodeSettings;
use gabion_store::{
    Effect as StoreEffect, Input as StoreInput, Opened, Origin, OutOfService,
    Settings as StoreSettings, Store, StoreConfig, StoreEvent, StoreStats,
};
use gabion_types::{Breaker, ClusterId, DiskDone, DiskId, DiskOp, Flaws, Instant, MapIndex};
use gabion_wire::{Refusal, ReplicaAnswer, ReplicaRequest, RequestId};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub enum DisksOutput {
    Disk { disk: DiskSlot, op: DiskOp },
    Answer { to: Origin, request: RequestId, answer: ReplicaAnswer },
    Opened { disk: DiskSlot, opened: Opened },
    Out { disk: DiskSlot, why: OutOfService },
    Event { disk: DiskSlot, event: StoreEvent },
    Stopped { disk: DiskSlot },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCondition {
    Opening,
    InService { uuid: [u8; 16], capacity_bytes: u64 },
    Out(OutOfService),
    Stopped,
}

/// Why a disk of this node is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskTrouble {
    Opening,
    Out(OutOfService),
    Stopped,
}

impl fmt::Display for DiskTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => f.write_str("its recovery is under way"),
            Self::Out(why) => write!(f, "{why}"),
            Self::Stopped => f.write_str("its node stops"),
        }
    }
}

#[derive(Debug)]
struct Disk {
    store: Store,
    path: String,
    condition: DiskCondition,
    /// When it came into that condition.
    since: Instant,
    /// As the map numbers it.
    id: Option<DiskId>,
    /// It came when the node ran already: nothing waits for it.
    late: bool,
}

impl Disk {
    fn turn(&mut self, now: Instant, condition: DiskCondition) {
        (self.condition, self.since) = (condition, now);
    }

    // rule: node/a-breaker-says-what-the-owners-act-on
    fn breaker(&self) -> Breaker<DiskTrouble> {
        let since = self.since;
        match &self.condition {
            DiskCondition::InService { .. } => Breaker::Closed,
            DiskCondition::Opening => Breaker::HalfOpen { since, why: DiskTrouble::Opening },
            DiskCondition::Out(why) => Breaker::Open { since, why: DiskTrouble::Out(why.clone()) },
            DiskCondition::Stopped => Breaker::Open { since, why: DiskTrouble::Stopped },
        }
    }
}

/// What all disks of a node are made with.
#[derive(Clone, Copy, Debug)]
struct Made {
    cluster: ClusterId,
    flaws: Flaws,
    pages_max: usize,
}

impl Made {
    fn disk(&self, now: Instant, disk: &NodeDisk, seed: u64, late: bool) -> Disk {
        let config = StoreConfig {
            cluster: Some(self.cluster),
            capacity_bytes: disk.capacity_bytes,
            seed,
            settings: StoreSettings { pages_max: self.pages_max, ..StoreSettings::default() },
            flaws: self.flaws,
            ..StoreConfig::default()
        };
        Disk {
            store: Store::new(config, now),
            path: disk.path.clone(),
            condition: DiskCondition::Opening,
            since: now,
            id: None,
            late,
        }
    }
}

#[derive(Debug)]
pub struct Disks {
    disks: Vec<Disk>,
    made: Made,
    slots: BTreeMap<DiskId, DiskSlot>,
    outputs: VecDeque<DisksOutput>,
}

impl Disks {
    pub fn new(
        now: Instant,
        cluster: ClusterId,
        disks: &[NodeDisk],
        seed: u64,
        (flaws, pages_max): (Flaws, usize),
    ) -> Self {
        let made = Made { cluster, flaws, pages_max };
        let disks = disks.iter().zip(0u64..);
        let disks = disks.map(|(disk, place)| made.disk(now, disk, seed ^ place, false)).collect();
        let mut disks = Self { disks, made, slots: BTreeMap::new(), outputs: VecDeque::new() };
        for slot in disks.slots() {
            disks.drain(now, slot);
        }
        disks
    }

    // rule: node/a-disk-comes-while-the-node-serves
    /// Its recovery begins; the others serve on.
    pub fn add(&mut self, now: Instant, disk: &NodeDisk, seed: u64, settings: &NodeSettings) {
        let slot = DiskSlot(u32::try_from(self.disks.len()).unwrap_or(u32::MAX));
        self.disks.push(self.made.disk(now, disk, seed, true));
        self.drain(now, slot);
        self.tell_settings(now, slot, settings);
    }

    pub fn next_output(&mut self) -> Option<DisksOutput> {
        self.outputs.pop_front()
    }

    pub fn slots(&self) -> Vec<DiskSlot> {
        (0u32..).zip(&self.disks).map(|(place, _)| DiskSlot(place)).collect()
    }

    pub fn store(&self, disk: DiskSlot) -> Option<&Store> {
        self.disks.get(disk.0 as usize).map(|disk| &disk.store)
    }

    pub fn condition(&self, disk: DiskSlot) -> Option<&DiskCondition> {
        self.disks.get(disk.0 as usize).map(|disk| &disk.condition)
    }

    /// Open or half-open: requests are refused by name.
    pub fn breaker(&self, disk: DiskSlot) -> Option<Breaker<DiskTrouble>> {
        self.disks.get(disk.0 as usize).map(Disk::breaker)
    }

    pub fn path(&self, disk: DiskSlot) -> &str {
        self.disks.get(disk.0 as usize).map_or("", |disk| &disk.path)
    }

    pub fn id(&self, disk: DiskSlot) -> Option<DiskId> {
        self.disks.get(disk.0 as usize)?.id
    }

    pub fn stats(&self, disk: DiskSlot) -> Option<StoreStats> {
        self.disks.get(disk.0 as usize).map(|disk| disk.store.stats())
    }

    /// The map numbered a disk.
    pub fn set_id(&mut self, disk: DiskSlot, id: DiskId) {
        if let Some(entry) = self.disks.get_mut(disk.0 as usize) {
            entry.id = Some(id);
            self.slots.insert(id, disk);
        }
    }

    /// The map gave up a disk once: what its cache held then is unknown.
    pub fn retire(&mut self, now: Instant, disk: DiskSlot) {
        if let Some(entry) = self.disks.get_mut(disk.0 as usize) {
            let why = OutOfService::Retired;
            entry.turn(now, DiskCondition::Out(why.clone()));
            self.outputs.push_back(DisksOutput::Out { disk, why });
        }
    }

    /// No disk of those that were there at the start waits for its recovery.
    pub fn all_decided(&self) -> bool {
        self.disks.iter().all(|disk| disk.late || disk.condition != DiskCondition::Opening)
    }

    pub fn all_stopped(&self) -> bool {
        self.disks
            .iter()
            .all(|disk| matches!(disk.condition, DiskCondition::Stopped | DiskCondition::Out(_)))
    }

    pub fn done(&mut self, now: Instant, disk: DiskSlot, done: DiskDone) {
        self.feed(now, disk, StoreInput::Disk(done));
    }

    pub fn want_page(&mut self, now: Instant, disk: DiskSlot, wanted: WantedPage) {
        let WantedPage { volume, segment, block } = wanted;
        self.feed(now, disk, StoreInput::WantPage { volume, segment, block });
    }

    /// A request of an owner, here or elsewhere; one for a disk that isn't here is refused by name.
    pub fn request(&mut self, now: Instant, from: Origin, request: RequestId, ask: ReplicaRequest) {
        if let Some(slot) = self.slots.get(&ask.disk).copied() {
            self.feed(now, slot, StoreInput::Request { from, request, ask });
            return;
        }
        let answer = ReplicaAnswer {
            disk: ask.disk,
            volume: ask.volume,
            credit_bytes: 0,
            // Its number may be on its way to this node's map while the disk recovers.
            result: Err(if self.all_known() { Refusal::NoDisk } else { Refusal::NotReady }),
        };
        self.outputs.push_back(DisksOutput::Answer { to: from, request, answer });
    }

    fn all_known(&self) -> bool {
        self.disks.iter().all(|disk| match disk.condition {
            DiskCondition::Opening => false,
            DiskCondition::InService { .. } => disk.id.is_some(),
            DiskCondition::Out(_) | DiskCondition::Stopped => true,
        })
    }

    pub fn origin_gone(&mut self, now: Instant, origin: Origin) {
        for slot in self.slots() {
            self.feed(now, slot, StoreInput::OriginGone { origin });
        }
    }

    pub fn saw_map(&mut self, now: Instant, index: MapIndex) {
        for slot in self.slots() {
            if matches!(self.condition(slot), Some(DiskCondition::InService { .. })) {
                self.feed(now, slot, StoreInput::SawMap(index));
            }
        }
    }

    pub fn set_settings(&mut self, now: Instant, settings: &NodeSettings) {
        self.slots().into_iter().for_each(|slot| self.tell_settings(now, slot, settings));
    }

    fn tell_settings(&mut self, now: Instant, slot: DiskSlot, settings: &NodeSettings) {
        self.feed(now, slot, StoreInput::ScrubShare(settings.scrub_share_percent));
        self.feed(now, slot, StoreInput::HangAfter(settings.disk_hang));
    }

    pub fn stop(&mut self, now: Instant) {
        for slot in self.slots() {
            self.feed(now, slot, StoreInput::Stop);
        }
    }

    fn feed(&mut self, now: Instant, slot: DiskSlot, input: StoreInput) {
        if let Some(disk) = self.disks.get_mut(slot.0 as usize) {
            disk.store.handle(now, input);
            self.drain(now, slot);
        }
    }

    fn drain(&mut self, now: Instant, slot: DiskSlot) {
        let Some(disk) = self.disks.get_mut(slot.0 as usize) else {
            return;
        };
        while let Some(effect) = disk.store.next_effect() {
            let output = match effect {
                StoreEffect::Disk(op) => DisksOutput::Disk { disk: slot, op },
                StoreEffect::Answer { to, request, answer } => {
                    DisksOutput::Answer { to, request, answer }
                }
                StoreEffect::Opened(opened) => {
                    let (uuid, capacity_bytes) = (opened.uuid, opened.capacity_bytes);
                    disk.turn(now, DiskCondition::InService { uuid, capacity_bytes });
                    DisksOutput::Opened { disk: slot, opened }
                }
                StoreEffect::OutOfService(why) => {
                    disk.turn(now, DiskCondition::Out(why.clone()));
                    DisksOutput::Out { disk: slot, why }
                }
                StoreEffect::Event(event) => DisksOutput::Event { disk: slot, event },
                StoreEffect::Stopped => {
                    disk.turn(now, DiskCondition::Stopped);
                    DisksOutput::Stopped { disk: slot }
                }
            };
            self.outputs.push_back(output);
        }
    }

    /// Nothing more comes for now: what waits becomes durable together.
    pub fn commit(&mut self, now: Instant) {
        // At the end of each turn: no list is made for it.
        for (place, _) in (0u32..).zip(0..self.disks.len()) {
            self.feed(now, DiskSlot(place), StoreInput::Commit);
        }
    }

    pub fn tick(&mut self, now: Instant) {
        for slot in self.slots() {
            self.feed(now, slot, StoreInput::Tick);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.disks.iter().filter_map(|disk| disk.store.next_deadline()).min()
    }
}
