//! One owner on a bench: what it asks is answered when the test says so.

use crate::disk::{Disk, Origin, Segment};
use crate::golden::Teller;
use bytes::Bytes;
use gabion_types::{
    ByteRange, DiskId, Duration, Epoch, Flaws, GuestOp, GuestResult, HoldPolicy, Instant, IoError,
    Joining, Limits, NodeId, Outcome, OwnerChange, ScrubAsk, ScrubFound, SegmentIndex,
    SegmentMembers, SegmentSize, Stale, VolumeId, VolumeView,
};
use gabion_volume::{
    Effect, Input, ProposalNumber, Settings, Ticket, Volume, VolumeConfig, VolumeEvent,
};
use gabion_wire::{ReplicaOp, ReplicaRequest, RequestId};
use std::collections::{BTreeMap, BTreeSet};

pub const SETTINGS: Settings = Settings {
    fence_wait: Duration::from_secs(1),
    slow_wait: Duration::from_secs(5),
    lag: Duration::from_millis(100),
    rebuild_wait: Duration::from_secs(60),
    fill_bytes_in_flight: 1 << 20,
    scrub_share_percent: 10,
    flaws: Flaws::NONE,
};

#[derive(Clone, Debug)]
pub struct Asked {
    pub node: NodeId,
    pub request: RequestId,
    pub ask: ReplicaRequest,
}

/// Disk i hangs on node i; the owner is node 1.
pub struct Bench {
    pub now: Instant,
    pub volume: Volume,
    pub view: VolumeView,
    pub disks: BTreeMap<DiskId, Disk>,
    pub asked: Vec<Asked>,
    /// The link to this node has no room: data that is asked there comes back unsent.
    pub no_room: Option<NodeId>,
    pub unsent: usize,
    pub proposed: Vec<(ProposalNumber, OwnerChange)>,
    pub done: BTreeMap<u64, GuestResult>,
    /// Answered as late, and under way still.
    pub late: usize,
    pub events: Vec<VolumeEvent>,
    pub scrubbed: Vec<(ScrubAsk, ScrubFound)>,
    pub serving: bool,
    pub ended: bool,
    /// What a golden script says of all this.
    pub teller: Teller,
}

pub fn disk(id: u32) -> DiskId {
    DiskId::new(id)
}

pub fn node(id: u32) -> NodeId {
    NodeId::new(id)
}

pub fn epoch(value: u64) -> Epoch {
    Epoch::new(value).unwrap()
}

/// A volume of two segments of 64 KiB on disks 1 and 2; disk 3 is a spare. Owned since epoch 2.
pub fn view() -> VolumeView {
    let members = SegmentMembers {
        creation: epoch(1),
        in_sync: vec![disk(1), disk(2)],
        joining: Vec::new(),
        stale: Vec::new(),
    };
    VolumeView {
        volume: VolumeId::new(1),
        size_bytes: 128 << 10,
        rf: 2,
        hold: HoldPolicy::NeverFail,
        epoch: epoch(2),
        owner_epoch: epoch(2),
        clean: true,
        segments: vec![members.clone(), members],
        homes: (1..=3).map(|id| (disk(id), node(id))).collect(),
        draining: BTreeSet::new(),
        moving: BTreeMap::new(),
        out: BTreeSet::new(),
        scrub: None,
    }
}

impl Bench {
    /// Nothing is answered yet, not even the fence.
    pub fn new(view: VolumeView) -> Self {
        Self::with_down(view, Vec::new())
    }

    /// The same, and these nodes are known to be silent.
    pub fn with_down(view: VolumeView, down: Vec<NodeId>) -> Self {
        let limits = Limits { segment: SegmentSize::new(64 << 10).unwrap(), ..Limits::DEFAULT };
        let config = VolumeConfig {
            me: node(1),
            limits,
            settings: SETTINGS,
            seed: 1,
            cluster_start: false,
            down,
        };
        let now = Instant::from_nanos(1);
        let mut disks: BTreeMap<DiskId, Disk> =
            (1..=3).map(|id| (disk(id), Disk::new(disk(id), 1000))).collect();
        for (index, members) in view.segments.iter().enumerate() {
            let index = SegmentIndex::new(u32::try_from(index).unwrap());
            for id in &members.in_sync {
                let segment = Segment { creation: members.creation, ..Segment::default() };
                disks.get_mut(id).unwrap().durable.segments.insert(index, segment);
            }
        }
        let volume = Volume::new(config, view.clone(), now);
        let mut bench = Self {
            now,
            volume,
            view,
            disks,
            asked: Vec::new(),
            no_room: None,
            unsent: 0,
            proposed: Vec::new(),
            done: BTreeMap::new(),
            late: 0,
            events: Vec::new(),
            scrubbed: Vec::new(),
            serving: false,
            ended: false,
            teller: Teller::default(),
        };
        bench.feed(Input::Lease { until: Instant::from_nanos(u64::MAX) });
        bench
    }

    /// Taken over, and nothing under way.
    pub fn serving(view: VolumeView) -> Self {
        let mut bench = Self::new(view);
        bench.answer_all();
        assert!(bench.serving);
        bench
    }

    pub fn feed(&mut self, input: Input) {
        self.teller.tell_input(&input);
        self.volume.handle(self.now, input);
        while let Some(effect) = self.volume.next_effect() {
            self.teller.tell_effect(&effect);
            match effect {
                Effect::Ask { node, request, ask, .. }
                    if self.no_room == Some(node) && ask.op.payload().is_some() =>
                {
                    self.unsent += 1;
                    self.volume.handle(self.now, Input::Unsent { request });
                }
                Effect::Ask { node, request, ask, .. } => {
                    self.asked.push(Asked { node, request, ask });
                }
                Effect::GuestDone { ticket, result } => {
                    assert!(self.done.insert(ticket.0, result).is_none(), "answered twice");
                }
                Effect::GuestLate { ticket } => {
                    let late = Err(IoError::HeldTooLong);
                    assert!(self.done.insert(ticket.0, late).is_none(), "answered twice");
                    self.late += 1;
                }
                Effect::GuestOver => self.late -= 1,
                Effect::Propose { number, change } => self.proposed.push((number, change)),
                Effect::Serving => self.serving = true,
                Effect::Ended => self.ended = true,
                Effect::Scrubbed { ask, found } => self.scrubbed.push((ask, found)),
                Effect::Event(event) => self.events.push(event),
            }
        }
    }

    pub fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.volume.next_deadline().filter(|at| *at <= end) {
            self.now = at.max(self.now + Duration::from_nanos(1));
            self.feed(Input::Tick);
        }
        self.now = end.max(self.now);
        self.feed(Input::Tick);
    }

    /// Lets what fits through to its disk, and its answer back.
    pub fn answer(&mut self, fits: impl Fn(&ReplicaRequest) -> bool) -> usize {
        let (now, later): (Vec<Asked>, Vec<Asked>) =
            std::mem::take(&mut self.asked).into_iter().partition(|asked| fits(&asked.ask));
        self.asked = later;
        let count = now.len();
        for Asked { request, ask, .. } in now {
            let disk = self.disks.get_mut(&ask.disk).unwrap();
            let mut answers = disk.take(Origin { owner: 1, link: 1 }, request, ask);
            answers.extend(disk.commit(usize::MAX));
            for (_, request, answer) in answers {
                self.feed(Input::Answer { request, answer });
            }
        }
        count
    }

    pub fn answer_disk(&mut self, id: u32) -> usize {
        self.answer(|ask| ask.disk == disk(id))
    }

    pub fn answer_all(&mut self) {
        while self.answer(|_| true) > 0 {}
    }

    /// What is asked of a disk and not answered.
    pub fn asked_of(&self, id: u32) -> Vec<&ReplicaOp> {
        let asked = self.asked.iter().filter(|asked| asked.ask.disk == disk(id));
        asked.map(|asked| &asked.ask.op).collect()
    }

    pub fn writes(&self, id: u32) -> usize {
        let ops = self.asked_of(id);
        ops.iter().filter(|op| matches!(op, ReplicaOp::Write { .. })).count()
    }

    /// The map changes the view so, of itself.
    pub fn show(&mut self, change: impl FnOnce(&mut VolumeView)) {
        self.view.epoch = self.view.epoch.next();
        change(&mut self.view);
        let view = self.view.clone();
        self.feed(Input::View { view, owned: true });
    }

    /// The map changes the view so, and executes the last proposal.
    pub fn commit(&mut self, change: impl FnOnce(&mut VolumeView)) {
        self.show(change);
        let (number, _) = *self.proposed.last().as_ref().unwrap();
        self.feed(Input::Proposed { number: *number, outcome: Outcome::Done });
    }

    pub fn block(&self, block: u64, count: u64) -> ByteRange {
        ByteRange::new(block * 4096, count * 4096).unwrap()
    }

    pub fn write(&mut self, ticket: u64, range: ByteRange, label: u8) {
        let data = Bytes::from(vec![label; usize::try_from(range.length()).unwrap()]);
        let op = GuestOp::Write { range, data, fua: false };
        self.feed(Input::Guest { ticket: Ticket(ticket), op });
    }

    pub fn read(&mut self, ticket: u64, range: ByteRange) {
        self.feed(Input::Guest { ticket: Ticket(ticket), op: GuestOp::Read { range } });
    }
}

/// Disk 2 is out of a segment since `left`; disk 3 joins in its place.
pub fn replace_second(members: &mut SegmentMembers, left: Epoch) {
    members.in_sync = vec![disk(1)];
    members.stale = vec![Stale { disk: disk(2), left, compare_all: false, reach: None }];
    members.joining = vec![Joining {
        disk: disk(3),
        joined: left,
        left: None,
        compare_all: false,
        fill_waits: true,
        reach: None,
        alone: false,
    }];
}
