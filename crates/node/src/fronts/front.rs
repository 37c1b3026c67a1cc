//! One volume's front: its session with the owner, whoever that is.

use crate::guests::GUESTS_MAX;
use crate::io::{GuestId, OpenError};
use crate::sessions::{NUMBER_WINDOW, OUTSTANDING_MAX};
use gabion_types::{
    Duration, Epoch, Flaw, Flaws, GuestOp, GuestResult, HoldPolicy, Instant, IoError, MapIndex,
    NodeId, VolumeId,
};
use gabion_wire::{SessionMessage, SessionNumber};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often a session that does not open is asked for again.
const OPEN_AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq)]
pub enum FrontOutput {
    /// To the owner, over this node's own data link (or to itself).
    Send {
        node: NodeId,
        message: SessionMessage,
    },
    Attached {
        guest: GuestId,
    },
    /// It may not: it is no guest any more.
    Refused {
        guest: GuestId,
        why: OpenError,
    },
    Done {
        guest: GuestId,
        tag: u64,
        result: GuestResult,
    },
    /// Its requests are dropped; close its connection.
    Drop {
        guest: GuestId,
    },
    /// Nobody owns the volume and guests wait.
    WantOwner {
        volume: VolumeId,
    },
}

/// What the map says of a volume's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerNow {
    pub node: NodeId,
    pub owner_epoch: Epoch,
}

/// What the map says of a volume to this node's front.
#[derive(Clone, Copy, Debug)]
pub struct OfVolume {
    pub owner: Option<OwnerNow>,
    /// When this node's session was last voided.
    pub voided: MapIndex,
    /// This node's guests were evicted.
    pub barred: bool,
    pub hold: HoldPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening { again: Instant },
    Open,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    guest: GuestId,
    tag: u64,
    op: GuestOp,
    since: Instant,
    sent: bool,
}

/// Where a front stands that has requests to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    None,
    /// In `Fronts::sending`.
    Sending,
    /// In `Fronts::stuck`.
    Stuck,
}

#[derive(Debug)]
pub struct Front {
    volume: VolumeId,
    owner: Option<(OwnerNow, Stage)>,
    /// The map index at which it was last voided.
    voided: MapIndex,
    applied: MapIndex,
    known: bool,
    /// By the map: this node's guests were evicted.
    barred: bool,
    hold: HoldPolicy,
    /// True once `Attached`.
    guests: BTreeMap<GuestId, bool>,
    pub(super) requests: BTreeMap<SessionNumber, Request>,
    /// Bounded by the volume's share: its guests aren't read when that is full.
    backlog: VecDeque<Request>,
    /// Payload of both.
    pub(super) bytes: u64,
    next: SessionNumber,
    /// While the session is open: numbers that the owner does not have, to be sent in their order.
    unsent: BTreeSet<SessionNumber>,
    /// `Opened` is to be said when all numbers below were sent.
    opening: Option<SessionNumber>,
    pub(super) turn: Turn,
    /// Guests that hung up while the session was not open: the owner may still know them, and hold
    /// requests of theirs that have no place in the order. Bounded by the guests that were attached.
    gone: BTreeSet<GuestId>,
    /// Guests whose hang-up was told on the present link, the latest `GUESTS_MAX`: it may get lost
    /// with the link.
    told: VecDeque<GuestId>,
    /// `Flush`es whose moment's hang-ups are still to be seen: the owner epoch, the number and how
    /// many ticks are still to come.
    flushes: Vec<(Epoch, u64, u8)>,
    /// `Flush`es to be answered when all numbers below were sent, or the backlog has ended before.
    answers: Vec<(Epoch, u64, SessionNumber)>,
    pub(super) outputs: VecDeque<FrontOutput>,
    flaws: Flaws,
}

impl Front {
    pub fn new(volume: VolumeId, voided: MapIndex) -> Self {
        Self {
            volume,
            owner: None,
            voided,
            applied: MapIndex::new(0),
            known: false,
            barred: false,
            hold: HoldPolicy::NeverFail,
            guests: BTreeMap::new(),
            requests: BTreeMap::new(),
            backlog: VecDeque::new(),
            bytes: 0,
            next: SessionNumber(0),
            unsent: BTreeSet::new(),
            opening: None,
            turn: Turn::None,
            gone: BTreeSet::new(),
            told: VecDeque::new(),
            flushes: Vec::new(),
            answers: Vec::new(),
            outputs: VecDeque::new(),
            flaws: Flaws::NONE,
        }
    }

    pub(super) fn with(self, flaws: Flaws) -> Self {
        Self { flaws, ..self }
    }

    #[cfg(test)]
    pub fn next_output(&mut self) -> Option<FrontOutput> {
        self.outputs.pop_front().or_else(|| self.sends_to().and_then(|_| self.next_to_send()))
    }

    /// The owner that it has requests for, over an open session.
    pub(super) fn sends_to(&self) -> Option<NodeId> {
        let (owner, stage) = self.owner?;
        let any = !self.unsent.is_empty() || self.opening.is_some();
        (stage == Stage::Open && any).then_some(owner.node)
    }

    /// The next request, in the order of the numbers; `Opened` behind those that were held before.
    pub(super) fn next_to_send(&mut self) -> Option<FrontOutput> {
        let (owner, _) = self.owner?;
        if let Some(end) = self.opening
            && self.unsent.first().is_none_or(|first| *first >= end)
        {
            self.opening = None;
            self.ask_attaches(owner);
            self.answer_flushes();
            let (volume, owner_epoch) = (self.volume, owner.owner_epoch);
            let message = SessionMessage::Opened { volume, owner_epoch };
            return Some(FrontOutput::Send { node: owner.node, message });
        }
        let number = self.unsent.pop_first()?;
        self.answer_flushes();
        let request = self.requests.get_mut(&number)?;
        request.sent = true;
        let message = SessionMessage::Request {
            volume: self.volume,
            owner_epoch: owner.owner_epoch,
            number,
            guest: request.guest.0,
            op: request.op.clone(),
        };
        Some(FrontOutput::Send { node: owner.node, message })
    }

    /// Guests that came while the session was not open.
    fn ask_attaches(&mut self, owner: OwnerNow) {
        let waiting: Vec<_> = self
            .guests
            .iter()
            .filter(|(_, attached)| !**attached)
            .map(|(guest, _)| *guest)
            .collect();
        for guest in waiting {
            self.ask_attach(owner, guest);
        }
    }

    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    pub fn has_guests(&self) -> bool {
        !self.guests.is_empty()
    }

    pub fn is_idle(&self) -> bool {
        self.guests.is_empty() && self.requests.is_empty() && self.backlog.is_empty()
    }

    /// The map told of the volume once.
    pub fn is_known(&self) -> bool {
        self.known
    }

    pub fn held(&self) -> usize {
        self.requests.len() + self.backlog.len()
    }

    pub fn held_bytes(&self) -> u64 {
        self.bytes
    }

    /// After more than one request was dropped.
    fn count_bytes(&mut self) {
        let all = self.requests.values().chain(&self.backlog);
        self.bytes = all.map(|request| request.op.payload_bytes()).sum();
    }

    /// The map moved on: who owns the volume, and at which index this node's sessions were voided.
    pub fn set_map(
        &mut self,
        now: Instant,
        applied: MapIndex,
        OfVolume { owner, voided, barred, hold }: OfVolume,
    ) {
        self.applied = applied;
        self.known = true;
        self.barred = barred;
        self.hold = hold;
        if voided > self.voided {
            self.voided = voided;
            self.on_voided();
        }
        if barred {
            self.refuse_waiting();
        }
        if self.owner.map(|(owner, _)| owner) == owner {
            return;
        }
        self.forget_flushes();
        self.gone.clear();
        self.told.clear();
        self.owner = owner.map(|owner| (owner, Stage::Opening { again: now }));
        for request in self.requests.values_mut() {
            request.sent = false;
        }
        if self.owner.is_some() {
            self.open(now);
        } else {
            self.want_owner();
        }
    }

    fn on_voided(&mut self) {
        self.requests.clear();
        self.backlog.clear();
        self.count_bytes();
        let attached: Vec<_> = self
            .guests
            .iter()
            .filter(|(_, attached)| **attached)
            .map(|(guest, _)| *guest)
            .collect();
        for guest in attached {
            self.guests.remove(&guest);
            self.outputs.push_back(FrontOutput::Drop { guest });
        }
        if let Some((_, stage)) = &mut self.owner {
            *stage = Stage::Opening { again: Instant::ZERO };
        }
    }

    /// The volume is gone: every guest is dropped.
    pub fn end(&mut self) {
        self.requests.clear();
        self.backlog.clear();
        self.count_bytes();
        for guest in std::mem::take(&mut self.guests).into_keys() {
            self.outputs.push_back(FrontOutput::Drop { guest });
        }
    }

    pub fn want_owner(&mut self) {
        if self.owner.is_none() && !self.is_idle() {
            self.outputs.push_back(FrontOutput::WantOwner { volume: self.volume });
        }
    }

    /// Those that are not in yet.
    fn refuse_waiting(&mut self) {
        let waiting = self.guests.extract_if(.., |_, attached| !*attached);
        let waiting: Vec<GuestId> = waiting.map(|(guest, _)| guest).collect();
        for guest in waiting {
            self.refuse(guest, OpenError::Barred);
        }
    }

    // rule: node/exclusive-to-one-node
    fn refuse(&mut self, guest: GuestId, why: OpenError) {
        self.guests.remove(&guest);
        match self.owner {
            Some((owner, Stage::Open)) => self.tell_hung_up(owner, guest),
            Some((_, Stage::Opening { .. })) => {
                self.gone.insert(guest);
            }
            None => {}
        }
        self.outputs.push_back(FrontOutput::Refused { guest, why });
    }

    pub fn attach(&mut self, guest: GuestId) {
        if self.barred {
            self.outputs.push_back(FrontOutput::Refused { guest, why: OpenError::Barred });
            return;
        }
        self.guests.insert(guest, false);
        match self.owner {
            None => self.want_owner(),
            Some((owner, Stage::Open)) if self.opening.is_none() => self.ask_attach(owner, guest),
            Some((_, Stage::Open | Stage::Opening { .. })) => {}
        }
    }

    fn ask_attach(&mut self, owner: OwnerNow, guest: GuestId) {
        let message = SessionMessage::Attach {
            volume: self.volume,
            owner_epoch: owner.owner_epoch,
            guest: guest.0,
        };
        self.outputs.push_back(FrontOutput::Send { node: owner.node, message });
    }

    pub fn detach(&mut self, guest: GuestId) {
        let Some(attached) = self.guests.remove(&guest) else {
            return;
        };
        let sent = self.requests.values().any(|request| request.guest == guest && request.sent);
        self.drop_requests(|request| request.guest == guest);
        match self.owner {
            Some((owner, Stage::Open)) => self.tell_hung_up(owner, guest),
            Some((_, Stage::Opening { .. })) if sent || attached => {
                self.gone.insert(guest);
            }
            Some((_, Stage::Opening { .. })) | None => {}
        }
        self.send_backlog();
        self.answer_flushes();
    }

    /// None of them is sent (again). Gives whose they were.
    fn drop_requests(&mut self, drops: impl Fn(&Request) -> bool) -> Vec<(GuestId, u64)> {
        let numbered = self.requests.extract_if(.., |_, request| drops(request));
        let mut dropped: Vec<Request> = numbered.map(|(_, request)| request).collect();
        let (gone, kept) = std::mem::take(&mut self.backlog).into_iter().partition(|it| drops(it));
        self.backlog = kept;
        dropped.extend::<VecDeque<_>>(gone);
        self.unsent.retain(|number| self.requests.contains_key(number));
        if !self.flaws.has(Flaw::LeakedBytes) {
            self.count_bytes();
        }
        dropped.into_iter().map(|request| (request.guest, request.tag)).collect()
    }

    /// When the first of them has waited as long as the volume's guests bear, while there is no owner who
    /// would answer. One who is there counts by itself.
    fn fails_at(&self) -> Option<Instant> {
        let HoldPolicy::FailAfter(wait) = self.hold else { return None };
        if matches!(self.owner, Some((_, Stage::Open))) {
            return None;
        }
        let held = self.requests.values().chain(&self.backlog);
        held.map(|request| request.since).min().map(|since| since + wait)
    }

    // promise: hold-not-fail
    // rule: node/nobody-answers-for-too-long
    fn fail_held(&mut self, now: Instant) {
        let HoldPolicy::FailAfter(wait) = self.hold else { return };
        if self.fails_at().is_none_or(|at| now < at) {
            return;
        }
        for (guest, tag) in self.drop_requests(|request| now.since(request.since) >= wait) {
            let result = Err(IoError::HeldTooLong);
            self.outputs.push_back(FrontOutput::Done { guest, tag, result });
        }
        self.send_backlog();
    }

    fn tell_hung_up(&mut self, owner: OwnerNow, guest: GuestId) {
        if self.told.len() >= GUESTS_MAX {
            self.told.pop_front();
        }
        self.told.push_back(guest);
        let message = SessionMessage::HungUp {
            volume: self.volume,
            owner_epoch: owner.owner_epoch,
            guest: guest.0,
        };
        self.outputs.push_back(FrontOutput::Send { node: owner.node, message });
    }

    pub fn request(&mut self, since: Instant, guest: GuestId, tag: u64, op: GuestOp) {
        if self.guests.get(&guest) != Some(&true) {
            return;
        }
        self.bytes += op.payload_bytes();
        self.backlog.push_back(Request { guest, tag, op, since, sent: false });
        self.send_backlog();
    }

    fn send_backlog(&mut self) {
        loop {
            let oldest = self.requests.keys().next().copied().unwrap_or(self.next);
            let full =
                self.requests.len() >= OUTSTANDING_MAX && !self.flaws.has(Flaw::SentWithoutBound);
            if full || self.next.0 - oldest.0 >= NUMBER_WINDOW {
                return;
            }
            let Some(request) = self.backlog.pop_front() else {
                return;
            };
            let number = self.next;
            self.next = SessionNumber(number.0 + 1);
            if let Some((_, Stage::Open)) = self.owner {
                self.unsent.insert(number);
            }
            self.requests.insert(number, request);
        }
    }

    /// The link to that node is there (again), or its owner asked for the session.
    pub fn reopen(&mut self, now: Instant, node: NodeId) {
        if self.owner.is_some_and(|(owner, _)| owner.node == node) {
            self.open(now);
        }
    }

    /// The link to that node is gone; nothing is heard from the owner until it is there again.
    pub fn link_lost(&mut self, now: Instant, node: NodeId) {
        if let Some((owner, stage)) = &mut self.owner
            && owner.node == node
        {
            *stage = Stage::Opening { again: now + OPEN_AGAIN };
            self.forget_flushes();
            self.gone.extend(self.told.drain(..));
        }
    }

    fn open(&mut self, now: Instant) {
        let Some((owner, stage)) = &mut self.owner else {
            return;
        };
        *stage = Stage::Opening { again: now + OPEN_AGAIN };
        let message = SessionMessage::Open {
            volume: self.volume,
            owner_epoch: owner.owner_epoch,
            applied: self.applied,
        };
        self.outputs.push_back(FrontOutput::Send { node: owner.node, message });
    }

    pub fn handle(&mut self, now: Instant, from: NodeId, message: SessionMessage) {
        let Some((owner, stage)) = self.owner else {
            return;
        };
        if owner.node != from {
            return;
        }
        let current = |epoch: Epoch| epoch == owner.owner_epoch;
        match message {
            SessionMessage::Have { owner_epoch, next, missing, .. } if current(owner_epoch) => {
                if matches!(stage, Stage::Opening { .. }) {
                    self.on_have(owner, next, &missing.into_iter().collect());
                }
            }
            SessionMessage::Response { owner_epoch, number, result, .. }
                if current(owner_epoch) =>
            {
                if let Some(request) = self.requests.remove(&number) {
                    if self.flaws.has(Flaw::AnsweredTwice) {
                        self.requests.insert(number, request.clone());
                    } else {
                        self.bytes -= request.op.payload_bytes();
                    }
                    let (guest, tag) = (request.guest, request.tag);
                    self.outputs.push_back(FrontOutput::Done { guest, tag, result });
                }
                self.send_backlog();
            }
            SessionMessage::Attached { owner_epoch, guest, .. } if current(owner_epoch) => {
                let guest = GuestId(guest);
                if let Some(attached) = self.guests.get_mut(&guest)
                    && !*attached
                {
                    *attached = true;
                    self.outputs.push_back(FrontOutput::Attached { guest });
                }
            }
            SessionMessage::KeptOut { owner_epoch, guest, by, .. } if current(owner_epoch) => {
                let guest = GuestId(guest);
                if self.guests.get(&guest) == Some(&false) {
                    self.refuse(guest, OpenError::KeptOut(by));
                }
            }
            SessionMessage::Flush { owner_epoch, number, .. } if current(owner_epoch) => {
                self.flushes.push((owner_epoch, number, 2));
            }
            SessionMessage::Closed { owner_epoch, .. } if current(owner_epoch) => {
                if let Some((_, stage)) = &mut self.owner {
                    *stage = Stage::Opening { again: now + OPEN_AGAIN };
                }
            }
            SessionMessage::Have { .. }
            | SessionMessage::Response { .. }
            | SessionMessage::Attached { .. }
            | SessionMessage::KeptOut { .. }
            | SessionMessage::Flush { .. }
            | SessionMessage::Closed { .. }
            | SessionMessage::Open { .. }
            | SessionMessage::Opened { .. }
            | SessionMessage::Request { .. }
            | SessionMessage::HungUp { .. }
            | SessionMessage::Attach { .. }
            | SessionMessage::Flushed { .. } => {}
        }
    }

    fn on_have(&mut self, owner: OwnerNow, next: SessionNumber, missing: &BTreeSet<SessionNumber>) {
        self.owner = Some((owner, Stage::Open));
        for guest in std::mem::take(&mut self.gone) {
            self.tell_hung_up(owner, guest);
        }
        let unseen = |number: &&SessionNumber| **number >= next || missing.contains(number);
        self.unsent = self.requests.keys().filter(unseen).copied().collect();
        self.opening = Some(self.next);
        self.send_backlog();
    }

    /// Comes after the driver drained its sockets: the hang-ups of guests were seen.
    pub fn tick(&mut self, now: Instant) {
        self.fail_held(now);
        if let Some((_, Stage::Opening { again })) = self.owner
            && again <= now
        {
            self.open(now);
        }
        if !matches!(self.owner, Some((_, Stage::Open))) {
            return;
        }
        let end = SessionNumber(self.next.0 + self.backlog.len() as u64);
        for (epoch, number, ticks) in &mut self.flushes {
            *ticks -= 1;
            if *ticks == 0 {
                self.answers.push((*epoch, *number, end));
            }
        }
        self.flushes.retain(|(_, _, ticks)| *ticks > 0);
        self.answer_flushes();
    }

    // rule: node/flushed-follows-what-was-held
    /// What this node's guests had sent goes to the owner first: one of them may be gone without a
    /// hang-up that can be seen, and ask again elsewhere.
    fn answer_flushes(&mut self) {
        let Some((owner, Stage::Open)) = self.owner else {
            return;
        };
        let all = SessionNumber(u64::MAX);
        let numbered = if self.backlog.is_empty() { all } else { self.next };
        let below = self.unsent.first().copied().unwrap_or(all).min(numbered);
        for (owner_epoch, number, _) in self.answers.extract_if(.., |answer| answer.2 <= below) {
            let guests = self.guests.values().any(|attached| *attached);
            let volume = self.volume;
            let message = SessionMessage::Flushed { volume, owner_epoch, number, guests };
            self.outputs.push_back(FrontOutput::Send { node: owner.node, message });
        }
    }

    /// The owner asks again, over the next link.
    fn forget_flushes(&mut self) {
        self.flushes.clear();
        self.answers.clear();
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let next = match self.owner {
            Some((_, Stage::Open)) if !self.flushes.is_empty() => Some(Instant::ZERO),
            Some((_, Stage::Opening { again })) => Some(again),
            Some((_, Stage::Open)) | None => None,
        };
        next.into_iter().chain(self.fails_at()).min()
    }
}
