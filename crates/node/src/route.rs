//! From core to core: what one says is put where it belongs, until nobody has anything more to say.

use crate::committed::MAP_ORIGIN;
use crate::disks::DisksOutput;
use crate::fronts::FrontOutput;
use crate::guests::GuestsOutput;
use crate::io::{Effect, GuestId, LinkId, NodeEvent, OpenError, OpenedVolume};
use crate::links::LinkOutput;
use crate::node::{Local, Node};
use crate::owners::{OwnerOutput, Owners};
use crate::proposals::Source;
use crate::sessions::Via;
use crate::stop::Stage;
use gabion_cluster::{Change, VolumeState, manager};
use gabion_nbd::Export;
use gabion_store::{Origin, StoreEvent};
use gabion_types::{Epoch, Flaw, Instant, NodeId, VolumeId};
use gabion_volume::Input as VolumeInput;
use gabion_wire::{
    Body, LinkClass, LinkMessage, Message, ReplicaAnswer, RequestId, SessionMessage,
};

/// How a renewal gets to the leader.
#[derive(Clone, Copy, Debug)]
enum RenewsBy {
    Link(LinkId),
    Myself,
}

impl Node {
    pub(crate) fn pump(&mut self) {
        loop {
            if let Some(output) = self.links.next_output() {
                self.on_link(output);
            } else if let Some(output) = self.disks.next_output() {
                self.on_disks(output);
            } else if let Some(output) = self.owners.next_output() {
                self.on_owner(output);
            } else if let Some(local) = self.local.pop_front() {
                self.on_local(local);
            } else if let Some(output) = self.guests.next_output() {
                self.on_guests(output);
            } else if let Some(effect) = self.manager.next_effect() {
                self.on_manager(effect);
            } else if let Some(command) = self.proposals.next_command() {
                self.effects.push_back(Effect::Propose { command });
            } else if let Some(output) = self.next_of_fronts() {
                self.on_front(output);
            } else {
                return;
            }
        }
    }

    fn on_link(&mut self, output: LinkOutput) {
        let now = self.now;
        match output {
            LinkOutput::Connect { link, node, class } => {
                self.effects.push_back(Effect::Connect { link, node, class });
            }
            LinkOutput::Send { link, message } => self.send(link, message),
            LinkOutput::Close { link } => {
                self.flow.closed(link);
                self.effects.push_back(Effect::CloseLink { link });
            }
            LinkOutput::Up { node, class } => self.on_link_up(node, class),
            LinkOutput::Lost { node, class } => {
                self.flow.nobody_waits(node, class);
                if class != LinkClass::Control {
                    self.owners.feed_all(now, &VolumeInput::LinkLost { node, class });
                }
                if class == LinkClass::Data {
                    self.fronts.for_each(|front| front.link_lost(now, node));
                }
            }
            LinkOutput::Down { node } => {
                self.effects.push_back(Effect::Event(NodeEvent::PeerDown { node }));
                self.owners.feed_all(now, &VolumeInput::NodeDown { node });
                self.owners.sessions_node_down(now, node);
            }
            LinkOutput::PeerUp { node, class, .. } => {
                if class == LinkClass::Data {
                    self.owners.sessions_reachable(now, node);
                }
            }
            LinkOutput::PeerGone { node, class, link } => {
                self.disks.origin_gone(now, Origin(link.0));
                if class == LinkClass::Data {
                    self.owners.sessions_link_gone(now, node, link);
                }
            }
            LinkOutput::Refused { node, reason } => {
                self.effects.push_back(Effect::Event(NodeEvent::LinkRefused { node, reason }));
            }
            LinkOutput::Message { node, link, dialled, message, .. } => {
                self.on_message(node, link, dialled, message);
            }
        }
    }

    /// Every message to a peer goes out here.
    pub(crate) fn send(&mut self, link: LinkId, message: Message) {
        self.flow.sent(self.now, link, &message);
        self.effects.push_back(Effect::Send { link, message });
    }

    fn on_link_up(&mut self, node: NodeId, class: LinkClass) {
        let now = self.now;
        if class == LinkClass::Control {
            self.lease.hurry(now);
            self.renew();
            if self.is_leaving() {
                self.links.say_leaving();
            }
            return;
        }
        if class == LinkClass::Data {
            self.effects.push_back(Effect::Event(NodeEvent::PeerUp { node }));
            self.fronts.for_each(|front| front.reopen(now, node));
            self.owners.sessions_reachable(now, node);
        }
        if self.links.usable(node) {
            self.owners.feed_all(now, &VolumeInput::LinkUp { node });
            if self.links.leaving().any(|leaving| leaving == node) {
                self.owners.feed_all(now, &VolumeInput::NodeLeaving { node });
            }
        }
    }

    fn on_message(&mut self, node: NodeId, link: LinkId, dialled: bool, message: Message) {
        match message.body {
            Body::Link(message) => self.on_link_message(node, message),
            Body::Replica(ask) if !dialled => {
                self.disks.request(self.now, Origin(link.0), message.request, ask);
            }
            Body::Answer(answer) if dialled => {
                self.owners.answer(self.now, message.request, answer);
            }
            Body::Session(session) if dialled => self.tell_front(node, session),
            Body::Session(session) => self.on_session(node, link, session),
            // A question on a link that this node dialled, or an answer on one that it did not.
            Body::Replica(_) | Body::Answer(_) => {
                self.flow.closed(link);
                self.effects.push_back(Effect::CloseLink { link });
                self.links.closed(self.now, link);
            }
        }
    }

    fn on_link_message(&mut self, node: NodeId, message: LinkMessage) {
        match message {
            LinkMessage::Renew { incarnation, number, term } => {
                self.manage(manager::Input::Renew { node, incarnation, number, term });
            }
            LinkMessage::Renewed { number } => self.on_renewed(number),
            LinkMessage::ReleaseVolume { volume, idle } => self.on_ask_release(volume, idle),
            LinkMessage::Leaving => {
                self.links.note_leaving(node);
                self.owners.feed_all(self.now, &VolumeInput::NodeLeaving { node });
            }
            LinkMessage::Hello(_)
            | LinkMessage::Proof { .. }
            | LinkMessage::Refused { .. }
            | LinkMessage::Ping { .. }
            | LinkMessage::Pong { .. } => {}
        }
    }

    /// A peer's session message on a link that it dialled: a front's, or an owner's nudge.
    fn on_session(&mut self, node: NodeId, link: LinkId, message: SessionMessage) {
        let volume = message.volume();
        let owned = self.owners.owner_epoch(volume);
        match &message {
            SessionMessage::Open { owner_epoch, .. } if owned != Some(*owner_epoch) => {
                let known = self.map.volume(volume).map(|entry| entry.owner_epoch);
                if known.is_some_and(|known| known > *owner_epoch) {
                    self.close_session(link, volume, *owner_epoch);
                } else {
                    self.nudged(node, volume);
                }
            }
            SessionMessage::Open { .. }
            | SessionMessage::Have { .. }
            | SessionMessage::Opened { .. }
            | SessionMessage::Request { .. }
            | SessionMessage::Response { .. }
            | SessionMessage::HungUp { .. }
            | SessionMessage::Attach { .. }
            | SessionMessage::Attached { .. }
            | SessionMessage::KeptOut { .. }
            | SessionMessage::Flush { .. }
            | SessionMessage::Flushed { .. }
            | SessionMessage::Closed { .. } => {
                self.owners.session(self.now, node, Via::Link(link), message);
            }
        }
    }

    fn close_session(&mut self, link: LinkId, volume: VolumeId, owner_epoch: Epoch) {
        let body = Body::Session(SessionMessage::Closed { volume, owner_epoch });
        let message = Message { request: RequestId(0), body };
        self.send(link, message);
    }

    /// An owner asks for this node's session, guests or not.
    fn nudged(&mut self, node: NodeId, volume: VolumeId) {
        if self.map.volume(volume).is_none() && self.fronts.len() >= crate::guests::GUESTS_MAX {
            return;
        }
        let now = self.now;
        self.front(volume);
        self.follow_volume(volume);
        if let Some(front) = self.fronts.get_mut(volume) {
            front.reopen(now, node);
        }
    }

    fn tell_front(&mut self, node: NodeId, message: SessionMessage) {
        if let Some(front) = self.fronts.get_mut(message.volume()) {
            front.handle(self.now, node, message);
        }
    }

    fn on_local(&mut self, local: Local) {
        let me = self.config.node;
        match local {
            Local::ToFront(message) => self.tell_front(me, message),
            Local::ToOwner(message) => self.owners.session(self.now, me, Via::Local, message),
        }
    }

    fn on_disks(&mut self, output: DisksOutput) {
        match output {
            DisksOutput::Disk { disk, op } => self.effects.push_back(Effect::Disk { disk, op }),
            DisksOutput::Answer { to, request, answer } => self.on_answer(to, request, answer),
            DisksOutput::Opened { disk, opened } => {
                self.map_dirty = true;
                let map = opened.highest_map;
                let id = self.disks.id(disk);
                self.effects.push_back(Effect::Event(NodeEvent::DiskOpened { disk, id, map }));
            }
            DisksOutput::Out { disk, why } => {
                self.map_dirty = true;
                self.effects.push_back(Effect::Event(NodeEvent::DiskOut { disk, why }));
            }
            DisksOutput::Event { disk, event } => {
                // It may be the one too many.
                self.map_dirty |= matches!(event, StoreEvent::Corrupt { .. });
                self.effects.push_back(Effect::Event(NodeEvent::Store { disk, event }));
            }
            DisksOutput::Stopped { .. } => {}
        }
    }

    fn on_answer(&mut self, to: Origin, request: RequestId, answer: ReplicaAnswer) {
        if to == MAP_ORIGIN {
            self.on_job_done(request, &answer);
            self.map_dirty = true;
        } else if Owners::is_owner_origin(to) {
            self.owners.answer_of_store(self.now, to, request, answer);
        } else {
            let message = Message { request, body: Body::Answer(answer) };
            self.send(LinkId(to.0), message);
        }
    }

    fn on_owner(&mut self, output: OwnerOutput) {
        let me = self.config.node;
        match output {
            OwnerOutput::Ask { node, origin, request, ask, .. } if node == me => {
                self.disks.request(self.now, origin, request, ask);
            }
            OwnerOutput::Ask { node, class, request, ask, .. } => {
                // Without a link it is lost; the owner asks again once it hears of one.
                let Some(link) = self.links.up(node, class) else {
                    return self.owners.ask_lost(self.now, ask.volume, node, class);
                };
                if ask.op.payload().is_some() && self.flow.room(link) == 0 {
                    self.flow.wait(node, class, ask.volume);
                    self.owners.unsent(self.now, request);
                } else {
                    self.send(link, Message { request, body: Body::Replica(ask) });
                }
            }
            OwnerOutput::Propose { volume, instance, number, change } => {
                let source = Source::Owner { volume, instance, number };
                self.proposals.propose(self.now, source, Change::Owner { volume, change });
            }
            OwnerOutput::Void { volume, owner_epoch, nodes } => {
                let change = Change::VoidSessions { volume, owner_epoch, nodes };
                self.proposals.propose(self.now, Source::Void { volume }, change);
            }
            OwnerOutput::LetIn { volume, owner_epoch } => {
                let barred = self.map.volume(volume).is_some_and(|entry| !entry.barred.is_empty());
                if barred {
                    let change = Change::LetIn { volume, owner_epoch };
                    self.proposals.propose(self.now, Source::Reconcile, change);
                }
            }
            // Refused: it is not the owner any more, and the next one does it again.
            OwnerOutput::Scrubbed { volume, owner_epoch, ask, found } => {
                let at_ms = self.unix_ms();
                let change = Change::Scrubbed { volume, owner_epoch, ask, at_ms, found };
                self.proposals.propose(self.now, Source::Reconcile, change);
            }
            OwnerOutput::Nudge { volume, owner_epoch, node } => {
                self.nudge(volume, owner_epoch, node);
            }
            OwnerOutput::Send { node, via, message } => self.send_as_owner(node, via, message),
            OwnerOutput::OriginGone { origin } => self.disks.origin_gone(self.now, origin),
            OwnerOutput::Event { volume, event } => {
                self.effects.push_back(Effect::Event(NodeEvent::Volume { volume, event }));
            }
            OwnerOutput::Began { volume } => {
                self.effects.push_back(Effect::Event(NodeEvent::Owning { volume }));
                self.front(volume);
                self.map_dirty = true;
            }
            OwnerOutput::Ended { volume } => {
                self.effects.push_back(Effect::Event(NodeEvent::OwningEnded { volume }));
                self.map_dirty = true;
            }
        }
    }

    /// Zero: not known.
    fn unix_ms(&self) -> u64 {
        self.wall.map_or(0, |(then, unix_ms)| {
            let since = self.now.since(then).as_millis();
            unix_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
        })
    }

    fn nudge(&mut self, volume: VolumeId, owner_epoch: Epoch, node: NodeId) {
        let message = SessionMessage::Open { volume, owner_epoch, applied: self.index };
        if node == self.config.node {
            self.front(volume);
            self.map_dirty = true;
        } else if let Some(link) = self.links.up(node, LinkClass::Data) {
            let message = Message { request: RequestId(0), body: Body::Session(message) };
            self.send(link, message);
        }
    }

    fn send_as_owner(&mut self, node: NodeId, via: Via, message: SessionMessage) {
        match via {
            Via::Local => self.local.push_back(Local::ToFront(message)),
            Via::Link(link) => {
                if self.links.inbound(node, LinkClass::Data) == Some(link) {
                    let message = Message { request: RequestId(0), body: Body::Session(message) };
                    self.send(link, message);
                }
            }
        }
    }

    /// A front's requests go only while the link to the owner has room.
    fn next_of_fronts(&mut self) -> Option<FrontOutput> {
        let (links, flow) = (&self.links, &self.flow);
        self.fronts.next_output(|node| {
            links.up(node, LinkClass::Data).is_none_or(|link| flow.room(link) > 0)
        })
    }

    fn on_front(&mut self, output: FrontOutput) {
        match output {
            FrontOutput::Send { node, message } if node == self.config.node => {
                self.local.push_back(Local::ToOwner(message));
            }
            FrontOutput::Send { node, message } => {
                if let Some(link) = self.links.up(node, LinkClass::Data) {
                    let message = Message { request: RequestId(0), body: Body::Session(message) };
                    self.send(link, message);
                }
            }
            FrontOutput::Attached { guest } => self.on_attached(guest),
            FrontOutput::Refused { guest, why } => self.guests.opened(guest, Err(why)),
            FrontOutput::Done { guest, tag, result } => {
                self.shares.freed();
                self.guests.done(guest, tag, result);
            }
            FrontOutput::Drop { guest } => {
                self.shares.forget(guest);
                self.guests.dropped(guest);
            }
            FrontOutput::WantOwner { volume } => self.want_owner(volume),
        }
    }

    fn on_attached(&mut self, guest: GuestId) {
        let volume = self.guests.volume(guest).and_then(|volume| self.map.volume(volume));
        let result = volume.map(|entry| OpenedVolume {
            volume: entry.id,
            name: entry.spec.name.clone(),
            size_bytes: entry.spec.size_bytes,
        });
        self.guests.opened(guest, result.ok_or(OpenError::NotFound));
    }

    fn on_manager(&mut self, effect: manager::Effect) {
        match effect {
            manager::Effect::Propose { key, change } => {
                self.proposals.propose(self.now, Source::Manager { key }, change);
            }
            manager::Effect::ConfirmLeader { number, term } => {
                self.effects.push_back(Effect::ConfirmLeader { number, term });
            }
            manager::Effect::Renewed { node, number } if node == self.config.node => {
                self.on_renewed(number);
            }
            manager::Effect::Renewed { node, number } => {
                if let Some(link) = self.links.inbound(node, LinkClass::Control) {
                    let body = Body::Link(LinkMessage::Renewed { number });
                    let message = Message { request: RequestId(0), body };
                    self.send(link, message);
                }
            }
            manager::Effect::AdminDone { number, reply } => {
                self.effects.push_back(Effect::AdminDone { number, reply });
            }
            manager::Effect::AskRelease { node, volume, idle } if node == self.config.node => {
                self.on_ask_release(volume, idle);
            }
            manager::Effect::AskRelease { node, volume, idle } => {
                if let Some(link) = self.links.up(node, LinkClass::Control) {
                    let body = Body::Link(LinkMessage::ReleaseVolume { volume, idle });
                    let message = Message { request: RequestId(0), body };
                    self.send(link, message);
                }
            }
        }
    }

    fn on_ask_release(&mut self, volume: VolumeId, idle: bool) {
        let local = self.fronts.get(volume).is_some_and(|front| front.has_guests());
        if !(idle && (local || self.owners.has_remote_guests(volume))) {
            self.owners.release(self.now, volume);
        }
    }

    /// Where a renewal would go.
    fn renews_by(&self) -> Option<RenewsBy> {
        let leader = self.leader.filter(|_| self.registered)?;
        if !matches!(self.stage, Stage::Running | Stage::Quiet | Stage::Releasing { .. }) {
            return None;
        }
        if leader == self.config.node {
            return Some(RenewsBy::Myself);
        }
        self.links.up(leader, LinkClass::Control).map(RenewsBy::Link)
    }

    // rule: node/sleeps-while-it-can-do-nothing
    /// When the next renewal is due; none while there is nobody to send it to, or the node would be
    /// awake all the time until there is.
    pub(crate) fn renew_deadline(&self) -> Option<Instant> {
        let flawed = self.registered && self.settings.flaws.has(Flaw::AwakeForNothing);
        (flawed || self.renews_by().is_some()).then(|| self.lease.next_deadline())
    }

    /// Sends a renewal when one is due; the leader's own goes without a link.
    pub(crate) fn renew(&mut self) {
        let Some(by) = self.renews_by() else { return };
        let Some(number) = self.lease.due(self.now) else { return };
        let (incarnation, term) = (self.config.incarnation, self.term);
        match by {
            RenewsBy::Link(link) => {
                let body = Body::Link(LinkMessage::Renew { incarnation, number, term });
                let message = Message { request: RequestId(0), body };
                self.send(link, message);
            }
            RenewsBy::Myself => {
                let node = self.config.node;
                self.manage(manager::Input::Renew { node, incarnation, number, term });
            }
        }
    }

    fn on_renewed(&mut self, number: u64) {
        if self.lease.renewed(number)
            && let Some(until) = self.lease.until()
        {
            self.owners.feed_all(self.now, &VolumeInput::Lease { until });
            self.fronts.for_each(|front| front.want_owner());
        }
    }

    pub(crate) fn on_nbd_accepted(&mut self, guest: GuestId) {
        if self.stage == Stage::Running {
            self.guests.nbd_accepted(self.now, guest);
        } else {
            self.effects.push_back(Effect::NbdClose { guest });
        }
    }

    pub(crate) fn on_guest_open(&mut self, guest: GuestId, name: String) {
        if self.stage == Stage::Running {
            self.guests.direct_open(self.now, guest, name);
        } else {
            let result = Err(OpenError::Stopping);
            self.effects.push_back(Effect::GuestOpened { guest, result });
        }
    }

    fn on_guests(&mut self, output: GuestsOutput) {
        match output {
            GuestsOutput::Effect(effect) => self.effects.push_back(effect),
            GuestsOutput::List { guest } => {
                let ready =
                    self.map.volumes().values().filter(|entry| entry.state == VolumeState::Ready);
                let names = ready.map(|entry| entry.spec.name.clone()).collect();
                self.guests.listed(guest, names);
            }
            GuestsOutput::Describe { guest, name } => {
                let entry = self
                    .map
                    .volume_by_name(&name)
                    .filter(|entry| entry.state == VolumeState::Ready);
                let export = entry.map(|entry| Export {
                    name: entry.spec.name.clone(),
                    size_bytes: entry.spec.size_bytes,
                    read_only: false,
                });
                self.guests.described(guest, export);
            }
            GuestsOutput::Open { .. } => self.look_at_openings(),
            GuestsOutput::Want { guest, volume, bytes } => self.want(guest, volume, bytes),
            GuestsOutput::Request { guest, volume, tag, op } => {
                let now = self.now;
                self.front(volume).request(now, guest, tag, op);
                if self.guests.is_direct(guest) {
                    self.judge_direct(guest, volume);
                }
            }
            GuestsOutput::Detached { guest, volume } => {
                self.shares.forget(guest);
                if let Some(front) = volume.and_then(|volume| self.fronts.get_mut(volume)) {
                    front.detach(guest);
                }
            }
        }
    }

    /// Guests that wait for a volume whose name may still be on its way.
    pub(crate) fn look_at_openings(&mut self) {
        let now = self.now;
        let waiting: Vec<_> = self
            .guests
            .opening()
            .filter(|(guest, _, _)| self.guests.volume(*guest).is_none())
            .map(|(guest, name, since)| (guest, name.to_owned(), since))
            .collect();
        for (guest, name, since) in waiting {
            let entry = self.map.volume_by_name(&name);
            match entry.map(|entry| (entry.id, &entry.state)) {
                Some((volume, VolumeState::Ready)) => {
                    self.guests.set_volume(guest, volume);
                    self.front(volume).attach(guest);
                    self.follow_volume(volume);
                }
                found if now.since(since) >= self.settings.unknown_name_wait => {
                    let why = match found {
                        Some(_) => OpenError::NotReady,
                        None if self.leader.is_none() => OpenError::NoMajority,
                        None => OpenError::NotFound,
                    };
                    self.guests.opened(guest, Err(why));
                }
                Some(_) | None => {}
            }
        }
    }

    pub(crate) fn openings_deadline(&self) -> Option<Instant> {
        self.guests
            .opening()
            .filter(|(guest, _, _)| self.guests.volume(*guest).is_none())
            .map(|(_, _, since)| since + self.settings.unknown_name_wait)
            .min()
    }

    pub(crate) fn judge_idle_owners(&mut self) {
        for volume in self.owners.volumes().collect::<Vec<VolumeId>>() {
            let local = self.fronts.get(volume).is_some_and(|front| front.has_guests());
            let wait = self.settings.idle_owner_wait;
            self.owners.judge_idle(self.now, volume, local, wait);
        }
    }
}
