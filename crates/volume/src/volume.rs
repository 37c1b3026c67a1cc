//! The owner: its facts, the one place where inputs come in and the one where conclusions are drawn.

use crate::asks::Asks;
use crate::combine::Combine;
use crate::disks::{Disks, Links};
use crate::fill::{FILLS_AT_ONCE, Fill};
use crate::guest::Request;
use crate::io::{
    Doubt, Effect, FillStats, Input, MemberFailure, Settings, Ticket, VolumeEvent, VolumeStats,
};
use crate::order::{Op, OpId};
use crate::proposals::Proposals;
use crate::release::Releasing;
use crate::room::Rooms;
use crate::scrub::Scrub;
use crate::segment::Segment;
use crate::tail::RUN_BLOCKS_MAX;
use crate::takeover::Takeover;
use crate::throttle::Throttle;
use gabion_types::{
    BLOCK_BYTES, BlockIndex, Breaker, DiskId, Duration, Flaw, Instant, Limits, Load, NodeId, Prng,
    SegmentIndex, SegmentMembers, VolumeView,
};
use gabion_wire::{LinkClass, ReplicaOp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The owner looks after what has no moment of its own so often while something is in flight.
const LOOK_BUSY: Duration = Duration::from_millis(100);
/// And so often while only copies are missing.
const LOOK_DEGRADED: Duration = Duration::from_secs(1);
/// A step that comes so much later than it was due has missed what was said meanwhile.
const OWN_GAP: Duration = Duration::from_millis(100);
/// A segment without writes for so long tells its members how far it is settled.
pub(crate) const TELL_AFTER: Duration = Duration::from_millis(200);
/// After a start of the whole cluster, members are waited for so many times longer.
const CLUSTER_START_FACTOR: u32 = 10;
/// Segments named in one message.
pub(crate) const SEGMENTS_PER_MESSAGE: usize = 1024;
/// Lost blocks listed at once.
const LOST_LISTED_MAX: usize = 1024;

/// What an owner is told when it is made.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// The node that owns.
    pub me: NodeId,
    pub limits: Limits,
    pub settings: Settings,
    pub seed: u64,
    /// The whole cluster has just started: members are waited for longer.
    pub cluster_start: bool,
    /// Nodes that are known to be silent: they are not waited for.
    pub down: Vec<NodeId>,
}

/// The owner of one volume.
#[derive(Debug)]
pub struct Volume {
    pub(crate) me: NodeId,
    pub(crate) limits: Limits,
    pub(crate) settings: Settings,
    pub(crate) prng: Prng,
    pub(crate) view: VolumeView,
    pub(crate) segments: Vec<Segment>,
    pub(crate) disks: Disks,
    pub(crate) links: Links,
    pub(crate) asks: Asks,
    pub(crate) effects: VecDeque<Effect>,

    pub(crate) ops: BTreeMap<OpId, Op>,
    pub(crate) ops_given: u64,
    /// Ops that have begun: fetching or writing.
    pub(crate) begun: u32,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) arrivals: u64,
    /// And since when.
    pub(crate) flushes: Vec<(Ticket, Instant)>,
    pub(crate) rooms: Rooms,
    /// Segments with ops that begin when there is room.
    pub(crate) crowded: BTreeSet<SegmentIndex>,

    pub(crate) lease_until: Instant,
    /// A replica knows of a newer owner: nothing is admitted any more.
    pub(crate) superseded: bool,
    pub(crate) ended: bool,
    pub(crate) releasing: Option<Releasing>,
    pub(crate) proposals: Proposals,

    /// Segments to look at in `conclude`.
    pub(crate) dirty: BTreeSet<SegmentIndex>,
    /// Something that membership depends on has changed.
    pub(crate) members_dirty: bool,
    /// Copies are missing or too many.
    pub(crate) degraded: bool,
    pub(crate) serving_segments: usize,
    pub(crate) announced: bool,
    pub(crate) began: Instant,
    pub(crate) fence_until: Option<Instant>,
    pub(crate) tails_running: u32,
    pub(crate) tails_waiting: BTreeSet<SegmentIndex>,
    pub(crate) starts: BTreeSet<SegmentIndex>,
    pub(crate) settled_blocks: u64,
    pub(crate) lost_blocks: u64,

    pub(crate) joiners: BTreeSet<(SegmentIndex, DiskId)>,
    pub(crate) fills: BTreeMap<(SegmentIndex, DiskId), Fill>,
    /// One a segment that is held.
    pub(crate) combines: BTreeMap<SegmentIndex, Combine>,
    /// Whether who goes on alone has all as it was when it left, by its own word.
    pub(crate) alone: BTreeMap<SegmentIndex, bool>,
    /// Elders that lost what they had; until the members change. Bounded by the stale replicas.
    pub(crate) unfit: BTreeSet<(SegmentIndex, DiskId)>,
    pub(crate) fills_given: u64,
    pub(crate) fills_dirty: bool,
    pub(crate) fill_bytes: u64,
    pub(crate) throttle: Throttle,

    pub(crate) scrub: Option<Scrub>,
    /// The last one that was finished; the map may not know it yet.
    pub(crate) scrub_done: Option<u64>,

    tells: BTreeSet<(Instant, SegmentIndex)>,
    looked: Instant,
    pub(crate) pace_looked: Instant,
    members_looked: Instant,
    look_at: Option<Instant>,
    /// When a scrub that rests goes on.
    scrub_at: Option<Instant>,
    pub(crate) lost: BTreeSet<(SegmentIndex, BlockIndex)>,
    pub(crate) counts: VolumeStats,
}

impl Volume {
    /// Takes the volume over: the view says that `config.me` owns it.
    pub fn new(config: VolumeConfig, view: VolumeView, now: Instant) -> Self {
        let mut disks = Disks::default();
        disks.learn(&view.homes);
        let mut links = Links::default();
        config.down.iter().filter(|node| **node != config.me).for_each(|node| {
            links.note_down(*node);
        });
        let mut volume = Self {
            me: config.me,
            limits: config.limits,
            settings: config.settings,
            prng: Prng::new(config.seed),
            view,
            segments: Vec::new(),
            disks,
            links,
            asks: Asks::default(),
            effects: VecDeque::new(),
            ops: BTreeMap::new(),
            ops_given: 0,
            begun: 0,
            requests: BTreeMap::new(),
            arrivals: 0,
            flushes: Vec::new(),
            rooms: Rooms::default(),
            crowded: BTreeSet::new(),
            lease_until: Instant::ZERO,
            superseded: false,
            ended: false,
            releasing: None,
            proposals: Proposals::default(),
            dirty: BTreeSet::new(),
            members_dirty: true,
            degraded: false,
            serving_segments: 0,
            announced: false,
            began: now,
            fence_until: None,
            tails_running: 0,
            tails_waiting: BTreeSet::new(),
            starts: BTreeSet::new(),
            settled_blocks: 0,
            lost_blocks: 0,
            joiners: BTreeSet::new(),
            fills: BTreeMap::new(),
            combines: BTreeMap::new(),
            alone: BTreeMap::new(),
            unfit: BTreeSet::new(),
            fills_given: 0,
            fills_dirty: false,
            fill_bytes: 0,
            throttle: Throttle::default(),
            scrub: None,
            scrub_done: None,
            tells: BTreeSet::new(),
            looked: now,
            pace_looked: now,
            members_looked: now,
            look_at: None,
            scrub_at: None,
            lost: BTreeSet::new(),
            counts: VolumeStats::default(),
        };
        let factor = if config.cluster_start { CLUSTER_START_FACTOR } else { 1 };
        let fence_wait = config.settings.fence_wait.saturating_mul(factor);
        volume.take_new_segments(now, fence_wait, config.cluster_start);
        volume.follow_scrub(now);
        volume.conclude(now);
        volume
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        if self.ended {
            return;
        }
        self.forgive_own_gap(now);
        match input {
            Input::Guest { ticket, op } => self.handle_guest(now, ticket, op),
            Input::View { view, owned } => self.handle_view(now, view, owned),
            Input::Proposed { number, outcome } => self.handle_proposed(now, number, outcome),
            Input::Answer { request, answer } => self.handle_answer(now, request, answer),
            Input::LinkLost { node, class } => self.handle_link_lost(now, node, class),
            Input::LinkUp { node } => self.handle_link_up(now, node),
            Input::Unsent { request } => self.handle_unsent(request),
            Input::Room { node, class, bytes } => self.handle_room(now, node, class, bytes),
            Input::NodeDown { node } => self.handle_node_down(now, node),
            Input::NodeLeaving { node } => {
                self.links.note_leaving(node);
                self.members_dirty = true;
            }
            Input::DiskOut { disk } => {
                if self.disks.home(disk).is_some() {
                    self.fail_disk(now, disk, MemberFailure::OutOfService);
                }
            }
            Input::Lease { until } => self.handle_lease(now, until),
            Input::Settings(settings) => {
                self.settings = settings;
                self.fills_dirty = true;
            }
            Input::Release => self.handle_release(now),
            Input::Tick => {}
        }
        self.conclude(now);
    }

    /// A step that comes late counts for nobody's slowness: what was said meanwhile is still to be
    /// heard. The node hung, or its clock jumped.
    // rule: volume/an-own-gap-blames-nobody
    fn forgive_own_gap(&mut self, now: Instant) {
        let gap = self.look_at.map_or(Duration::ZERO, |due| now.since(due));
        if gap < OWN_GAP {
            return;
        }
        self.asks.put_off_blame(gap);
        for takeover in self.segments.iter_mut().filter_map(Segment::takeover_mut) {
            takeover.wait_longer(gap);
        }
        self.fence_until = self.fence_until.map(|until| until + gap);
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let tell = self.tells.first().map(|(at, _)| *at);
        [tell, self.look_at, self.fence_until, self.scrub_at].into_iter().flatten().min()
    }

    /// `Serving` was said, and ownership has not ended.
    pub fn is_serving(&self) -> bool {
        self.announced && !self.ended
    }

    /// Guests' requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.requests.len() + self.flushes.len()
    }

    /// It may acknowledge and answer, as far as it knows.
    pub fn may_complete(&self, now: Instant) -> bool {
        self.announced && self.may_serve(now)
    }

    /// Segments that are still being taken over.
    pub fn unserved(&self) -> Vec<SegmentIndex> {
        let unserved = self.segments.iter().filter(|segment| !segment.is_serving());
        unserved.map(|segment| segment.index).collect()
    }

    /// A change of this segment's members is proposed, and its outcome not known.
    pub fn is_undecided(&self, segment: SegmentIndex) -> bool {
        self.proposals.freezes(segment)
    }

    pub fn loads(&self) -> Vec<Load> {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let requests = count(self.limits.requests_per_volume.max(1));
        let run = RUN_BLOCKS_MAX as u64 * BLOCK_BYTES;
        let fill_bytes_max = self.settings.fill_bytes_in_flight.max(run);
        vec![
            Load::new("requests of a volume", self.in_flight(), requests),
            Load::new("ops of a volume that have begun", count(self.begun), requests),
            Load::new("joiners filled at a time", self.fills.len(), FILLS_AT_ONCE),
            Load::bytes("bytes of filling in flight", self.fill_bytes, fill_bytes_max),
        ]
    }

    /// The epoch at which this owner took over.
    pub fn owner_epoch(&self) -> gabion_types::Epoch {
        self.view.owner_epoch
    }

    /// Disks that this owner does without, or takes back only later.
    pub fn doubts(&self, now: Instant) -> impl Iterator<Item = (DiskId, Breaker<Doubt>)> {
        self.disks.doubts(now)
    }

    pub fn stats(&self) -> VolumeStats {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let waiting = self.segments.iter().map(|segment| segment.waiting.len()).sum();
        VolumeStats {
            serving: self.is_serving(),
            held_requests: count(waiting),
            in_flight: count(self.in_flight()),
            fills: self.joiners.iter().map(|key| self.fill_stats(*key)).collect(),
            held_segments: self
                .segments
                .iter()
                .filter(|segment| segment.held.is_some())
                .map(|segment| segment.index.get())
                .collect(),
            lost: self.lost_runs(),
            scrub: self.scrub_stats(),
            ..self.counts.clone()
        }
    }

    fn fill_stats(&self, (segment, disk): (SegmentIndex, DiskId)) -> FillStats {
        let fill = self.fills.get(&(segment, disk));
        FillStats {
            segment: segment.get(),
            disk,
            source: fill.and_then(|fill| fill.source()),
            copied_bytes: fill.map_or(0, |fill| u64::from(fill.position().get()) * BLOCK_BYTES),
            total_bytes: self.limits.segment.bytes(),
            waiting: fill.is_none(),
        }
    }

    /// Runs of lost blocks: segment, first block, count.
    fn lost_runs(&self) -> Vec<(u32, u32, u32)> {
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        for (segment, block) in &self.lost {
            match runs.last_mut() {
                Some((last, first, count))
                    if *last == segment.get() && *first + *count == block.get() =>
                {
                    *count += 1;
                }
                Some(_) | None => runs.push((segment.get(), block.get(), 1)),
            }
        }
        runs
    }

    pub(crate) fn note_lost(&mut self, segment: SegmentIndex, block: BlockIndex) {
        if self.lost.len() < LOST_LISTED_MAX {
            self.lost.insert((segment, block));
        }
    }

    pub(crate) fn segment(&self, index: SegmentIndex) -> &Segment {
        &self.segments[index.get() as usize]
    }

    pub(crate) fn segment_mut(&mut self, index: SegmentIndex) -> &mut Segment {
        &mut self.segments[index.get() as usize]
    }

    pub(crate) fn members(&self, index: SegmentIndex) -> &SegmentMembers {
        &self.view.segments[index.get() as usize]
    }

    /// Of the segment, up to the volume's end.
    pub(crate) fn blocks_of(&self, index: SegmentIndex) -> u32 {
        let segment = self.limits.segment.bytes();
        let before = segment.saturating_mul(u64::from(index.get()));
        let bytes = self.view.size_bytes.saturating_sub(before).min(segment);
        u32::try_from(bytes / BLOCK_BYTES).unwrap_or(u32::MAX)
    }

    pub(crate) fn event(&mut self, event: VolumeEvent) {
        self.effects.push_back(Effect::Event(event));
    }

    /// The lease holds, no newer owner is known, and there can be none by an own release.
    // promise: one-owner
    pub(crate) fn may_serve(&self, now: Instant) -> bool {
        now < self.lease_until && !self.superseded && !self.ended && !self.proposals.is_releasing()
    }

    fn handle_lease(&mut self, now: Instant, until: Instant) {
        let had = self.may_serve(now);
        self.lease_until = until;
        if !had && self.may_serve(now) {
            self.wake_all();
        }
    }

    /// Every segment with requests is looked at. A request for room has no place in the order.
    // rule: volume/a-lease-that-comes-back-wakes-all
    pub(crate) fn wake_all(&mut self) {
        let busy = self
            .segments
            .iter()
            .filter(|segment| !segment.order.is_empty() || !segment.waiting.is_empty());
        let busy: Vec<SegmentIndex> = busy.map(|segment| segment.index).collect();
        self.dirty.extend(busy);
    }

    pub(crate) fn fail_disk(&mut self, now: Instant, disk: DiskId, why: MemberFailure) {
        let state = self.disks.get_mut(disk);
        if state.failed.is_none() {
            state.failed = Some((why, now));
        }
        self.members_dirty = true;
    }

    /// The one place where conclusions are drawn from what is known.
    fn conclude(&mut self, now: Instant) {
        self.look_after(now);
        self.tell_settled(now);
        while !self.ended {
            while let Some(index) = self.dirty.pop_first() {
                self.progress(now, index);
            }
            self.start_epochs(now);
            if std::mem::take(&mut self.members_dirty) {
                self.members_looked = now;
                self.look_at_members(now);
                self.start_alone(now);
                self.look_at_combines(now);
                self.propose(now);
            }
            if std::mem::take(&mut self.fills_dirty) {
                self.pump_fills(now);
            }
            if self.dirty.is_empty() && !self.members_dirty && !self.fills_dirty {
                break;
            }
        }
        self.pump_scrub(now);
        self.finish_flushes(now);
        self.conclude_release(now);
        self.announce(now);
        self.arm(now);
    }

    /// Takes one segment as far as it goes now.
    fn progress(&mut self, now: Instant, index: SegmentIndex) {
        if !self.segment(index).is_serving() {
            self.progress_takeover(now, index);
        }
        if self.segment(index).is_serving() && self.may_serve(now) {
            self.acknowledge(now, index);
            self.begin_waiting(now, index);
        }
    }

    /// What has no input of its own: time.
    fn look_after(&mut self, now: Instant) {
        if self.fence_until.is_some_and(|until| until <= now) {
            self.stop_waiting_for_fences(now);
        }
        if now.since(self.looked) < LOOK_BUSY {
            return;
        }
        self.looked = now;
        self.ask_again(now);
        self.look_for_slow(now);
        self.look_at_pace(now);
        self.look_at_throttle();
        self.answer_held_too_long(now);
        self.rooms.forget_old(now);
        self.wake_stalled();
        self.members_dirty |= self.disks.forgive_old(now);
        if self.degraded && now.since(self.members_looked) >= LOOK_DEGRADED {
            self.members_dirty = true;
        }
        self.fills_dirty |= !self.joiners.is_empty();
    }

    fn arm(&mut self, now: Instant) {
        let busy = self.asks.len() > 0
            || !self.requests.is_empty()
            || !self.flushes.is_empty()
            || self.releasing.is_some()
            || self.scrub.is_some()
            || self.proposals.wait_for(now);
        let every = if busy {
            Some(LOOK_BUSY)
        } else if self.degraded || !self.joiners.is_empty() {
            Some(LOOK_DEGRADED)
        } else {
            None
        };
        self.scrub_at = self.scrub_deadline(now);
        self.look_at = every.map(|every| (self.looked + every).max(now + Duration::from_millis(1)));
    }

    pub(crate) fn tell_later(&mut self, now: Instant, index: SegmentIndex) {
        let segment = self.segment_mut(index);
        if segment.seqs.tell_at.is_none() && !segment.seqs.is_told() {
            let at = now + TELL_AFTER;
            segment.seqs.tell_at = Some(at);
            self.tells.insert((at, index));
        }
    }

    fn tell_settled(&mut self, now: Instant) {
        let mut due = Vec::new();
        while let Some((at, index)) = self.tells.first().copied().filter(|(at, _)| *at <= now) {
            self.tells.remove(&(at, index));
            self.segment_mut(index).seqs.tell_at = None;
            due.push(index);
        }
        self.tell_settled_of(&due);
    }

    /// Tells in-sync members how far these segments are settled. One that left never hears of it,
    /// and a joiner keeps its own.
    // rule: volume/settled-goes-to-in-sync-only
    pub(crate) fn tell_settled_of(&mut self, segments: &[SegmentIndex]) {
        let mut told: BTreeMap<DiskId, Vec<_>> = BTreeMap::new();
        for index in segments {
            let segment = self.segment_mut(*index);
            if !segment.is_serving() || segment.seqs.is_told() {
                continue;
            }
            let settled = segment.seqs.tell();
            let members = self.members(*index).in_sync.iter();
            let sound = members.filter(|disk| !self.is_rolled_back(*index, **disk));
            for disk in sound.chain(&self.also_told(*index)) {
                told.entry(*disk).or_default().push((*index, settled));
            }
        }
        for (disk, settled) in told {
            for chunk in settled.chunks(SEGMENTS_PER_MESSAGE) {
                self.tell(disk, LinkClass::Data, ReplicaOp::Advance { settled: chunk.to_vec() });
            }
        }
    }

    /// Nobody: two rules that tests switch off.
    fn also_told(&self, index: SegmentIndex) -> Vec<DiskId> {
        let members = self.members(index);
        if self.settings.flaws.has(Flaw::SettledToOneThatLeft) {
            members.stale.iter().map(|stale| stale.disk).collect()
        } else if self.settings.flaws.has(Flaw::JoinerSettledAdvances) {
            members.joining.iter().map(|joining| joining.disk).collect()
        } else {
            Vec::new()
        }
    }

    /// Says once that it serves: every segment serves or is held, and one serves.
    fn announce(&mut self, now: Instant) {
        let held = |volume: &Self| {
            let held = volume.segments.iter();
            held.filter(|segment| segment.held.is_some() && !segment.is_serving()).count()
        };
        if self.announced || self.ended || self.serving_segments == 0 {
            return;
        }
        // The count of held ones walks all segments: only once the rest could be enough.
        let undecided = self.segments.len() - self.serving_segments;
        if undecided > 0 && undecided != held(self) {
            return;
        }
        self.announced = true;
        self.effects.push_back(Effect::Serving);
        let segments = u32::try_from(self.segments.len()).unwrap_or(u32::MAX);
        self.event(VolumeEvent::TookOver {
            segments,
            settled_blocks: self.settled_blocks,
            lost_blocks: self.lost_blocks,
            took: now.since(self.began),
        });
    }

    /// Nothing is owned any more. What guests wait for stays with the node.
    // promise: one-owner
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.requests.clear();
        self.flushes.clear();
        self.ops.clear();
        self.effects.push_back(Effect::Ended);
    }

    /// Segments of the view that are not known yet: each is taken over.
    pub(crate) fn take_new_segments(&mut self, now: Instant, wait: Duration, patient: bool) {
        let known = self.segments.len();
        let until = now + wait;
        for index in known..self.view.segments.len() {
            let index = SegmentIndex::new(u32::try_from(index).expect("segments count in 32 bits"));
            self.segments.push(Segment::new(index, Takeover::new(until, patient)));
            self.dirty.insert(index);
        }
        if self.segments.len() > known {
            self.fence_until = Some(self.fence_until.map_or(until, |earlier| earlier.min(until)));
            let new: Vec<SegmentIndex> =
                self.segments[known..].iter().map(|segment| segment.index).collect();
            new.iter().for_each(|index| self.learn_joiners(now, *index));
            self.fence(now, &new);
        }
    }
}
