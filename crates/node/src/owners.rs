//! The volumes that this node owns: a `volume` core and its sessions each.

use crate::io::LinkId;
use crate::sessions::{SessionOutput, Sessions, SessionsOf, Via};
use crate::settings::NodeSettings;
use gabion_store::Origin;
use gabion_types::{
    BreakerSeen, DiskId, Epoch, Instant, IoError, Load, MapIndex, NodeId, Outcome, OwnerChange,
    ScrubAsk, ScrubFound, SegmentIndex, VolumeId, VolumeView,
};
use gabion_volume::{
    Effect as VolumeEffect, Input as VolumeInput, ProposalNumber, Volume, VolumeConfig,
    VolumeEvent, VolumeStats,
};
use gabion_wire::{LinkClass, ReplicaAnswer, ReplicaRequest, RequestId, SessionMessage};
use std::collections::{BTreeMap, VecDeque};

/// Request ids on a link: the owner's instance above, its own number below.
const INSTANCE_SHIFT: u32 = 40;
/// Origins of owners on this node; a link's number is below.
const OWNER_ORIGIN: u64 = 1 << 63;

#[derive(Clone, Debug, PartialEq)]
pub enum OwnerOutput {
    Ask {
        node: NodeId,
        class: LinkClass,
        origin: Origin,
        request: RequestId,
        ask: ReplicaRequest,
    },
    Propose {
        volume: VolumeId,
        instance: u64,
        number: ProposalNumber,
        change: OwnerChange,
    },
    Void {
        volume: VolumeId,
        owner_epoch: Epoch,
        nodes: Vec<NodeId>,
    },
    /// A guest was let in to an exclusive volume.
    LetIn {
        volume: VolumeId,
        owner_epoch: Epoch,
    },
    Nudge {
        volume: VolumeId,
        owner_epoch: Epoch,
        node: NodeId,
    },
    Send {
        node: NodeId,
        via: Via,
        message: SessionMessage,
    },
    /// What it asked this node's stores and has not reached a frame is void.
    OriginGone {
        origin: Origin,
    },
    Scrubbed {
        volume: VolumeId,
        owner_epoch: Epoch,
        ask: ScrubAsk,
        found: ScrubFound,
    },
    Event {
        volume: VolumeId,
        event: VolumeEvent,
    },
    Began {
        volume: VolumeId,
    },
    Ended {
        volume: VolumeId,
    },
}

/// What tells one view of a volume from the next: epoch, size, the scrub that is wanted.
pub type Shape = (Epoch, u64, Option<ScrubAsk>);

#[derive(Debug)]
struct Owner {
    instance: u64,
    owner_epoch: Epoch,
    /// Of the view that the core has.
    shape: Shape,
    core: Volume,
    sessions: Sessions,
    releasing: bool,
    /// Since when only forwarded guests have been there.
    idle_since: Option<Instant>,
}

/// What an owner is told when it begins.
pub struct Beginning<'a> {
    pub view: VolumeView,
    /// To the guests of one node at a time.
    pub exclusive: bool,
    /// The map as of which it begins: what was voided up to there is not its own.
    pub index: MapIndex,
    pub members: Vec<NodeId>,
    /// Nodes that count as failed now.
    pub down: Vec<NodeId>,
    pub cluster_start: bool,
    pub lease: Option<Instant>,
    pub seed: u64,
    pub settings: &'a NodeSettings,
}

#[derive(Debug)]
pub struct Owners {
    me: NodeId,
    next_instance: u64,
    owners: BTreeMap<VolumeId, Owner>,
    instances: BTreeMap<u64, VolumeId>,
    outputs: VecDeque<OwnerOutput>,
}

impl Owners {
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            next_instance: 1,
            owners: BTreeMap::new(),
            instances: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    pub fn next_output(&mut self) -> Option<OwnerOutput> {
        self.outputs.pop_front()
    }

    pub fn owner_epoch(&self, volume: VolumeId) -> Option<Epoch> {
        self.owners.get(&volume).map(|owner| owner.owner_epoch)
    }

    pub fn shape(&self, volume: VolumeId) -> Option<Shape> {
        self.owners.get(&volume).map(|owner| owner.shape)
    }

    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.owners.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    pub fn stats(&self) -> impl Iterator<Item = (VolumeId, VolumeStats)> + '_ {
        self.owners.iter().map(|(volume, owner)| (*volume, owner.core.stats()))
    }

    /// Disks that owners here do without, or take back only later.
    pub fn doubts(&self, now: Instant) -> impl Iterator<Item = (VolumeId, DiskId, BreakerSeen)> {
        let owners = self.owners.iter();
        owners.flat_map(move |(volume, owner)| {
            owner.core.doubts(now).map(move |(disk, it)| (*volume, disk, it.seen(now)))
        })
    }

    pub fn guests(&self) -> impl Iterator<Item = (VolumeId, usize)> + '_ {
        self.owners.iter().map(|(volume, owner)| (*volume, owner.sessions.guests()))
    }

    /// Volumes whose owner here may acknowledge and answer now, as far as it knows; with the segments
    /// of each that it does not serve yet.
    pub fn completing(&self, now: Instant) -> impl Iterator<Item = (VolumeId, Vec<SegmentIndex>)> {
        let may = move |(_, owner): &(&VolumeId, &Owner)| owner.core.may_complete(now);
        let owners = self.owners.iter().filter(may);
        owners.map(|(volume, owner)| (*volume, owner.core.unserved()))
    }

    /// Volumes in which something could go on, and nothing will make it.
    pub fn overlooked(&self, now: Instant) -> impl Iterator<Item = VolumeId> {
        let forgotten = move |owner: &Owner| {
            owner.core.overlooked(now).is_some() || owner.sessions.overlooked()
        };
        let owners = self.owners.iter().filter(move |(_, owner)| forgotten(owner));
        owners.map(|(volume, _)| *volume)
    }

    pub fn is_undecided(&self, volume: VolumeId, segment: SegmentIndex) -> bool {
        self.owners.get(&volume).is_some_and(|owner| owner.core.is_undecided(segment))
    }

    pub fn loads(&self) -> impl Iterator<Item = Load> {
        self.owners.values().flat_map(|owner| {
            owner.core.loads().into_iter().chain(owner.sessions.loads().collect::<Vec<_>>())
        })
    }

    pub fn volume_settings(&self, settings: &NodeSettings) -> gabion_volume::Settings {
        volume_settings(settings)
    }

    pub fn begin(&mut self, now: Instant, beginning: Beginning<'_>) {
        let Beginning {
            view,
            exclusive,
            index,
            members,
            down,
            cluster_start,
            lease,
            seed,
            settings,
        } = beginning;
        let (volume, owner_epoch, hold) = (view.volume, view.owner_epoch, view.hold);
        let shape = shape_of(&view);
        let instance = self.next_instance;
        self.next_instance += 1;
        let not_waited_for = down.iter().copied().collect();
        let config = VolumeConfig {
            me: self.me,
            limits: settings.limits,
            settings: volume_settings(settings),
            seed,
            cluster_start,
            down,
        };
        let core = Volume::new(config, view, now);
        let of = SessionsOf {
            me: self.me,
            volume,
            owner_epoch,
            exclusive,
            hold,
            began: index,
            wait: settings.session_wait,
            admitted_max: settings.limits.requests_per_volume as usize,
        };
        let mut sessions = Sessions::new(now, of, members.into_iter(), not_waited_for);
        sessions.flaws = settings.flaws;
        let owner = Owner {
            instance,
            owner_epoch,
            shape,
            core,
            sessions,
            releasing: false,
            idle_since: None,
        };
        self.instances.insert(instance, volume);
        self.owners.insert(volume, owner);
        self.outputs.push_back(OwnerOutput::Began { volume });
        if let Some(until) = lease {
            self.feed(now, volume, VolumeInput::Lease { until });
        }
        self.drain(now, volume);
    }

    /// The map's present word on a volume that is owned here.
    pub fn view(&mut self, now: Instant, view: VolumeView, owned: bool) {
        let volume = view.volume;
        if let Some(owner) = self.owners.get_mut(&volume) {
            owner.shape = shape_of(&view);
        }
        self.feed(now, volume, VolumeInput::View { view, owned });
    }

    /// It is not owned here any more and the map has no view of it.
    pub fn end(&mut self, volume: VolumeId) {
        self.remove(volume);
    }

    pub fn proposed(
        &mut self,
        now: Instant,
        volume: VolumeId,
        instance: u64,
        number: ProposalNumber,
        outcome: Outcome,
    ) {
        if self.owners.get(&volume).is_some_and(|owner| owner.instance == instance) {
            self.feed(now, volume, VolumeInput::Proposed { number, outcome });
        }
    }

    /// A replica's answer, by the request id that went out with the question.
    pub fn answer(&mut self, now: Instant, request: RequestId, answer: ReplicaAnswer) {
        let Some(volume) = self.instances.get(&(request.0 >> INSTANCE_SHIFT)).copied() else {
            return;
        };
        let request = RequestId(request.0 & ((1 << INSTANCE_SHIFT) - 1));
        self.feed(now, volume, VolumeInput::Answer { request, answer });
    }

    pub fn answer_of_store(
        &mut self,
        now: Instant,
        origin: Origin,
        request: RequestId,
        answer: ReplicaAnswer,
    ) {
        if self.instances.contains_key(&(origin.0 & !OWNER_ORIGIN)) {
            self.answer(now, request, answer);
        }
    }

    pub fn is_owner_origin(origin: Origin) -> bool {
        origin.0 & OWNER_ORIGIN != 0
    }

    /// The link had no room for what an owner asked.
    pub fn unsent(&mut self, now: Instant, request: RequestId) {
        let Some(volume) = self.instances.get(&(request.0 >> INSTANCE_SHIFT)).copied() else {
            return;
        };
        let request = RequestId(request.0 & ((1 << INSTANCE_SHIFT) - 1));
        self.feed(now, volume, VolumeInput::Unsent { request });
    }

    /// There is room now. True: the owner has more than that.
    pub fn room(
        &mut self,
        now: Instant,
        volume: VolumeId,
        (node, class): (NodeId, LinkClass),
        bytes: u64,
    ) -> bool {
        self.feed(now, volume, VolumeInput::Room { node, class, bytes });
        self.owners.get(&volume).is_some_and(|owner| owner.core.waits_for_room(node, class))
    }

    /// What an owner asked could not be sent.
    pub fn ask_lost(&mut self, now: Instant, volume: VolumeId, node: NodeId, class: LinkClass) {
        self.feed(now, volume, VolumeInput::LinkLost { node, class });
    }

    /// To every owner: links, nodes, the lease.
    pub fn disk_out(&mut self, now: Instant, volume: VolumeId, disk: DiskId) {
        self.feed(now, volume, VolumeInput::DiskOut { disk });
    }

    pub fn feed_all(&mut self, now: Instant, input: &VolumeInput) {
        for volume in self.owners.keys().copied().collect::<Vec<_>>() {
            self.feed(now, volume, input.clone());
        }
    }

    pub fn session(&mut self, now: Instant, node: NodeId, via: Via, message: SessionMessage) {
        let volume = message.volume();
        if let Some(owner) = self.owners.get_mut(&volume) {
            owner.sessions.handle(now, node, via, message);
            self.drain(now, volume);
        }
    }

    pub fn sessions_node_down(&mut self, now: Instant, node: NodeId) {
        self.each_sessions(now, |sessions| sessions.node_down(now, node));
    }

    pub fn sessions_reachable(&mut self, now: Instant, node: NodeId) {
        self.each_sessions(now, |sessions| sessions.reachable(node));
    }

    pub fn sessions_link_gone(&mut self, now: Instant, node: NodeId, link: LinkId) {
        self.each_sessions(now, |sessions| sessions.link_gone(now, node, link));
    }

    pub fn sessions_restarted(&mut self, now: Instant, node: NodeId) {
        self.each_sessions(now, |sessions| sessions.restarted(now, node));
    }

    /// The map is so far. Comes after all that it says was done.
    pub fn map_applied(&mut self, now: Instant, index: MapIndex) {
        for volume in self.owners.keys().copied().collect::<Vec<_>>() {
            if let Some(owner) = self.owners.get_mut(&volume) {
                owner.sessions.set_applied(now, index);
                self.drain(now, volume);
            }
        }
    }

    pub fn sessions_voided(
        &mut self,
        now: Instant,
        volume: VolumeId,
        nodes: &[NodeId],
        at: MapIndex,
    ) {
        if let Some(owner) = self.owners.get_mut(&volume) {
            owner.sessions.voided(now, nodes, at);
            self.drain(now, volume);
        }
    }

    pub fn sessions_void_undecided(&mut self, now: Instant, volume: VolumeId) {
        if let Some(owner) = self.owners.get_mut(&volume) {
            owner.sessions.void_undecided(now);
            self.drain(now, volume);
        }
    }

    fn each_sessions(&mut self, now: Instant, each: impl Fn(&mut Sessions)) {
        for volume in self.owners.keys().copied().collect::<Vec<_>>() {
            if let Some(owner) = self.owners.get_mut(&volume) {
                each(&mut owner.sessions);
            }
            self.drain(now, volume);
        }
    }

    /// Guests of other nodes are on the volume.
    pub fn has_remote_guests(&self, volume: VolumeId) -> bool {
        self.owners.get(&volume).is_some_and(|owner| owner.sessions.has_remote_guests())
    }

    pub fn release(&mut self, now: Instant, volume: VolumeId) {
        if let Some(owner) = self.owners.get_mut(&volume)
            && !owner.releasing
        {
            owner.releasing = true;
            self.feed(now, volume, VolumeInput::Release);
        }
    }

    /// `local`: guests of this node are on the volume; `remote`: of others.
    pub fn judge_idle(
        &mut self,
        now: Instant,
        volume: VolumeId,
        local: bool,
        wait: gabion_types::Duration,
    ) {
        let Some(owner) = self.owners.get_mut(&volume) else {
            return;
        };
        let forwarded = owner.sessions.has_remote_guests();
        if local || !forwarded {
            owner.idle_since = None;
            return;
        }
        let since = *owner.idle_since.get_or_insert(now);
        if now.since(since) >= wait && owner.core.is_serving() {
            self.release(now, volume);
        }
    }

    fn feed(&mut self, now: Instant, volume: VolumeId, input: VolumeInput) {
        if let Some(owner) = self.owners.get_mut(&volume) {
            owner.core.handle(now, input);
            self.drain(now, volume);
        }
    }

    /// Until neither the core nor the sessions have anything more to say.
    fn drain(&mut self, now: Instant, volume: VolumeId) {
        while let Some(owner) = self.owners.get_mut(&volume) {
            if let Some(effect) = owner.core.next_effect() {
                self.on_core(now, volume, effect);
            } else if let Some(output) = owner.sessions.next_output() {
                self.on_sessions(now, volume, output);
            } else {
                return;
            }
        }
    }

    fn on_core(&mut self, now: Instant, volume: VolumeId, effect: VolumeEffect) {
        let Some(owner) = self.owners.get_mut(&volume) else {
            return;
        };
        let instance = owner.instance;
        match effect {
            VolumeEffect::Ask { node, class, request, ask } => {
                assert!(request.0 >> INSTANCE_SHIFT == 0, "an owner asks fewer than 2^40 times");
                let request = RequestId(instance << INSTANCE_SHIFT | request.0);
                let origin = Origin(OWNER_ORIGIN | instance);
                self.outputs.push_back(OwnerOutput::Ask { node, class, origin, request, ask });
            }
            VolumeEffect::GuestDone { ticket, result } => {
                owner.sessions.done(now, ticket, result);
            }
            VolumeEffect::GuestLate { ticket } => {
                owner.sessions.answer(ticket, Err(IoError::HeldTooLong));
            }
            VolumeEffect::GuestOver => owner.sessions.over(now),
            VolumeEffect::Propose { number, change } => {
                self.outputs.push_back(OwnerOutput::Propose { volume, instance, number, change });
            }
            VolumeEffect::Serving => owner.sessions.core_serves(now),
            VolumeEffect::Ended => self.remove(volume),
            VolumeEffect::Scrubbed { ask, found } => {
                let owner_epoch = owner.owner_epoch;
                self.outputs.push_back(OwnerOutput::Scrubbed { volume, owner_epoch, ask, found });
            }
            VolumeEffect::Event(event) => {
                self.outputs.push_back(OwnerOutput::Event { volume, event });
            }
        }
    }

    fn on_sessions(&mut self, now: Instant, volume: VolumeId, output: SessionOutput) {
        let Some(owner) = self.owners.get_mut(&volume) else {
            return;
        };
        let owner_epoch = owner.owner_epoch;
        match output {
            SessionOutput::Send { node, via, message } => {
                self.outputs.push_back(OwnerOutput::Send { node, via, message });
            }
            SessionOutput::Nudge { node } => {
                self.outputs.push_back(OwnerOutput::Nudge { volume, owner_epoch, node });
            }
            SessionOutput::Admit { ticket, op } => {
                owner.core.handle(now, VolumeInput::Guest { ticket, op });
            }
            SessionOutput::LetIn => {
                self.outputs.push_back(OwnerOutput::LetIn { volume, owner_epoch });
            }
            SessionOutput::Void { nodes } => {
                self.outputs.push_back(OwnerOutput::Void { volume, owner_epoch, nodes });
            }
        }
    }

    fn remove(&mut self, volume: VolumeId) {
        if let Some(owner) = self.owners.remove(&volume) {
            self.instances.remove(&owner.instance);
            let origin = Origin(OWNER_ORIGIN | owner.instance);
            self.outputs.push_back(OwnerOutput::OriginGone { origin });
            self.outputs.push_back(OwnerOutput::Ended { volume });
        }
    }

    pub fn tick(&mut self, now: Instant) {
        for volume in self.owners.keys().copied().collect::<Vec<_>>() {
            if let Some(owner) = self.owners.get_mut(&volume) {
                owner.sessions.tick(now);
            }
            self.feed(now, volume, VolumeInput::Tick);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.owners
            .values()
            .flat_map(|owner| [owner.core.next_deadline(), owner.sessions.next_deadline()])
            .flatten()
            .min()
    }
}

fn shape_of(view: &VolumeView) -> Shape {
    (view.epoch, view.size_bytes, view.scrub)
}

fn volume_settings(settings: &NodeSettings) -> gabion_volume::Settings {
    gabion_volume::Settings {
        fence_wait: settings.fence_wait,
        slow_wait: settings.slow_wait,
        lag: settings.lag,
        rebuild_wait: settings.rebuild_wait,
        fill_bytes_in_flight: settings.fill_bytes_in_flight,
        scrub_share_percent: settings.scrub_share_percent,
        flaws: settings.flaws,
    }
}
