//! The owner's side of sessions (rule 9): the requests that front nodes hold for their guests, each
//! executed at most once.
//!
//! rule: node/session-at-most-once — a request's number is taken once; what a front sends again
//! after a broken link is only what the owner says that it has not.
//! rule: node/attach-after-flush — a guest's handshake is answered when every other session has told
//! that it dropped what gone guests had asked, or is void by the map.

mod attach;

use attach::Attach;
use gabion_types::{
    Duration, Epoch, Flaw, Flaws, GuestData, GuestOp, GuestResult, HoldPolicy, Instant, IoError,
    Load, MapIndex, NodeId, VolumeId,
};
use gabion_volume::Ticket;
use gabion_wire::{SessionMessage, SessionNumber};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Requests of one session that a front may hold unanswered. Full: the front keeps them back.
pub const OUTSTANDING_MAX: usize = 256;
/// A front's oldest unanswered number is never further behind its newest.
pub const NUMBER_WINDOW: u64 = 1024;

/// How a session's messages travel: within the node, or over a link of the front's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Local,
    Link(crate::io::LinkId),
}

#[derive(Clone, Debug, PartialEq)]
pub enum SessionOutput {
    Send {
        node: NodeId,
        via: Via,
        message: SessionMessage,
    },
    /// Ask the front to open, over this node's own link.
    Nudge {
        node: NodeId,
    },
    Admit {
        ticket: Ticket,
        op: GuestOp,
    },
    /// A guest of this node has an exclusive volume now.
    LetIn,
    /// The map must say that these sessions are void.
    Void {
        nodes: Vec<NodeId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not heard from under this owner.
    Awaited {
        since: Instant,
    },
    /// `Have` was sent; it sends what it holds. Since it brought something, or began to; where it
    /// begins again and brings nothing, since the first time.
    Gathering {
        via: Via,
        since: Instant,
    },
    Open {
        via: Via,
    },
    /// Its link is gone; it may come back.
    Broken {
        since: Instant,
    },
    /// By the map, as of this index; it may open anew once it has seen that.
    Void {
        at: MapIndex,
    },
}

/// A request that has no place in the order yet.
#[derive(Clone, Debug)]
struct Queued {
    number: SessionNumber,
    guest: u64,
    op: GuestOp,
    since: Instant,
}

#[derive(Clone, Debug)]
struct Session {
    state: State,
    /// It asked to begin with more of the map than this node has.
    early: Option<(Via, MapIndex)>,
    /// `since` of a gathering that was broken off.
    gathers: Option<Instant>,
    /// All numbers below were seen, but for those that neither `executing` nor `done` nor `queued` has.
    next: SessionNumber,
    queued: VecDeque<Queued>,
    executing: BTreeSet<SessionNumber>,
    /// Answered within the window; reads without their data, for they can be done again.
    done: BTreeMap<SessionNumber, GuestResult>,
    /// Flush numbers that it has not answered.
    flushing: BTreeSet<u64>,
    /// Guests that shook hands or asked for something under this owner and did not hang up.
    guests: BTreeSet<u64>,
    /// Those of an exclusive volume that were let in by this owner, and the number of the next flush
    /// at that moment.
    admitted: BTreeMap<u64, u64>,
}

/// Whose sessions they are.
#[derive(Clone, Copy, Debug)]
pub struct SessionsOf {
    pub me: NodeId,
    pub volume: VolumeId,
    pub owner_epoch: Epoch,
    /// The guests of one node at a time.
    pub exclusive: bool,
    /// How long its guests bear to wait.
    pub hold: HoldPolicy,
    /// The map as of which the owner begins: what was voided up to there is not its own.
    pub began: MapIndex,
    /// A front that is not heard from for so long is void.
    pub wait: Duration,
    /// Requests that the owner's core takes at once.
    pub admitted_max: usize,
}

#[derive(Debug)]
pub struct Sessions {
    volume: VolumeId,
    owner_epoch: Epoch,
    exclusive: bool,
    hold: HoldPolicy,
    me: NodeId,
    began: MapIndex,
    applied: MapIndex,
    /// The last void of each front that was heeded. A log may hold one twice, and a restored map
    /// tells all that ever were.
    voided: BTreeMap<NodeId, MapIndex>,
    wait: Duration,
    sessions: BTreeMap<NodeId, Session>,
    tickets: BTreeMap<Ticket, (NodeId, SessionNumber)>,
    next_ticket: u64,
    next_flush: u64,
    attaches: Vec<Attach>,
    /// Nodes that count as failed: they are not waited for.
    down: BTreeSet<NodeId>,
    /// Nodes for which `Void` was asked and not yet decided.
    voiding: BTreeSet<NodeId>,
    core_serving: bool,
    serving: bool,
    admitted: usize,
    admitted_max: usize,
    pub flaws: Flaws,
    outputs: VecDeque<SessionOutput>,
}

impl Sessions {
    /// `nodes`: every member of the map, this one included.
    pub fn new(
        now: Instant,
        of: SessionsOf,
        nodes: impl Iterator<Item = NodeId>,
        down: BTreeSet<NodeId>,
    ) -> Self {
        let SessionsOf { me, volume, owner_epoch, exclusive, hold, began, wait, admitted_max } = of;
        let mut sessions = Self {
            volume,
            owner_epoch,
            exclusive,
            hold,
            me,
            began,
            applied: began,
            voided: BTreeMap::new(),
            wait,
            sessions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            next_flush: 0,
            attaches: Vec::new(),
            down,
            voiding: BTreeSet::new(),
            core_serving: false,
            serving: false,
            admitted: 0,
            admitted_max,
            flaws: Flaws::NONE,
            outputs: VecDeque::new(),
        };
        for node in nodes {
            sessions.sessions.insert(node, Session::new(State::Awaited { since: now }));
            sessions.outputs.push_back(SessionOutput::Nudge { node });
        }
        sessions
    }

    pub fn loads(&self) -> impl Iterator<Item = Load> {
        let what = "requests of a session that wait";
        self.sessions
            .values()
            .map(move |session| Load::new(what, session.queued.len(), OUTSTANDING_MAX))
    }

    pub fn next_output(&mut self) -> Option<SessionOutput> {
        self.outputs.pop_front()
    }

    /// Guests of the volume, on all nodes.
    pub fn guests(&self) -> usize {
        self.sessions.values().map(|session| session.guests.len()).sum()
    }

    pub fn has_remote_guests(&self) -> bool {
        self.sessions.iter().any(|(node, session)| *node != self.me && !session.guests.is_empty())
    }

    #[cfg(test)]
    pub fn guests_of(&self, node: NodeId) -> &BTreeSet<u64> {
        &self.sessions[&node].guests
    }

    /// The volume's core took over.
    pub fn core_serves(&mut self, now: Instant) {
        self.core_serving = true;
        self.conclude(now);
    }

    /// It counts as failed: closed and not to be dialled, or silent for long enough.
    pub fn node_down(&mut self, now: Instant, node: NodeId) {
        self.down.insert(node);
        self.conclude(now);
    }

    /// A link of this node to the front came up: ask again if it was not heard from.
    pub fn reachable(&mut self, node: NodeId) {
        self.down.remove(&node);
        if let Some(session) = self.sessions.get(&node)
            && matches!(session.state, State::Awaited { .. } | State::Broken { .. })
        {
            self.outputs.push_back(SessionOutput::Nudge { node });
        }
    }

    /// The front's link is gone.
    pub fn link_gone(&mut self, now: Instant, node: NodeId, link: crate::io::LinkId) {
        let via = Via::Link(link);
        if let Some(session) = self.sessions.get_mut(&node) {
            session.early.take_if(|(early, _)| *early == via);
            if session.via() == Some(via) {
                let since = session.gathers.unwrap_or(now);
                session.state = State::Broken { since };
                session.flushing.clear();
                // Its front sends again what it still wants.
                session.queued.clear();
            }
        }
        self.conclude(now);
    }

    /// The map names a new incarnation: the old process is dead, its guests' connections with it.
    pub fn restarted(&mut self, now: Instant, node: NodeId) {
        if let Some(session) = self.sessions.get_mut(&node) {
            *session = Session::new(State::Void { at: MapIndex::new(0) });
            self.forget_tickets(node);
        }
        self.conclude(now);
    }

    /// Committed: what these fronts held is dropped by them. One that was heeded before is over: its
    /// front may be back by now.
    // rule: node/a-void-counts-once
    pub fn voided(&mut self, now: Instant, nodes: &[NodeId], at: MapIndex) {
        for node in nodes {
            self.voiding.remove(node);
            if at <= self.began.max(self.voided.get(node).copied().unwrap_or_default()) {
                continue;
            }
            self.voided.insert(*node, at);
            if let Some(session) = self.sessions.get_mut(node) {
                let early = session.early;
                *session = Session { early, ..Session::new(State::Void { at }) };
                self.forget_tickets(*node);
            }
        }
        self.conclude(now);
    }

    /// This node's map is so far, and what it says of these sessions was heeded.
    pub fn set_applied(&mut self, now: Instant, index: MapIndex) {
        self.applied = self.applied.max(index);
        let early = self.sessions.iter_mut().filter_map(|(node, session)| {
            let (via, applied) = session.early.take_if(|(_, applied)| *applied <= index)?;
            Some((*node, via, applied))
        });
        let early: Vec<_> = early.collect();
        if early.is_empty() {
            return;
        }
        for (node, via, applied) in early {
            self.on_open(now, node, via, applied);
        }
        self.conclude(now);
    }

    /// The void proposal was refused or is to be judged anew.
    pub fn void_undecided(&mut self, now: Instant) {
        self.voiding.clear();
        self.conclude(now);
    }

    fn forget_tickets(&mut self, node: NodeId) {
        // What runs already runs on; nobody waits for its answer.
        self.tickets.retain(|_, (who, _)| *who != node);
    }

    pub fn handle(&mut self, now: Instant, node: NodeId, via: Via, message: SessionMessage) {
        match message {
            SessionMessage::Open { applied, .. } => self.on_open(now, node, via, applied),
            SessionMessage::Opened { .. } => self.on_opened(node, via),
            SessionMessage::Request { number, guest, op, .. } => {
                self.on_request(now, (node, via), number, guest, op);
            }
            SessionMessage::HungUp { guest, .. } => self.on_hung_up(node, guest),
            SessionMessage::Attach { guest, .. } => self.on_attach(now, node, via, guest),
            SessionMessage::Flushed { number, guests, .. } => {
                self.on_flushed(node, via, number, guests);
            }
            SessionMessage::Have { .. }
            | SessionMessage::Response { .. }
            | SessionMessage::Attached { .. }
            | SessionMessage::KeptOut { .. }
            | SessionMessage::Flush { .. }
            | SessionMessage::Closed { .. } => {}
        }
        self.conclude(now);
    }

    fn on_open(&mut self, now: Instant, node: NodeId, via: Via, applied: MapIndex) {
        let session =
            self.sessions.entry(node).or_insert_with(|| Session::new(State::Void { at: applied }));
        // rule: node/a-void-comes-before-what-follows-it — else what it asks for under the session that is
        // void already would be asked for again under the next one.
        if applied > self.applied {
            session.early = Some((via, applied));
            return;
        }
        let too_early = match session.state {
            State::Void { at } => applied < at,
            State::Awaited { .. }
            | State::Gathering { .. }
            | State::Open { .. }
            | State::Broken { .. } => false,
        };
        if too_early || self.voiding.contains(&node) {
            let (volume, owner_epoch) = (self.volume, self.owner_epoch);
            let message = SessionMessage::Closed { volume, owner_epoch };
            self.outputs.push_back(SessionOutput::Send { node, via, message });
            return;
        }
        // rule: node/new-link-throws-the-old-away — what has no place in the order yet is sent again
        // by the front, if its guest is still there: a hang-up may have been lost with the link.
        if session.via() != Some(via) {
            let since = *session.gathers.get_or_insert(now);
            session.state = State::Gathering { via, since };
            session.flushing.clear();
            session.queued.clear();
        }
        let (mut next, mut missing) = (session.next, session.missing());
        if self.flaws.has(Flaw::ForwardedTwice) {
            (next, missing) = (SessionNumber(0), Vec::new());
        }
        let again: Vec<_> = session
            .done
            .iter()
            .filter(|(number, _)| !missing.contains(number))
            .map(|(number, result)| (*number, result.clone()))
            .collect();
        let (volume, owner_epoch) = (self.volume, self.owner_epoch);
        let have = SessionMessage::Have { volume, owner_epoch, next, missing };
        self.outputs.push_back(SessionOutput::Send { node, via, message: have });
        for (number, result) in again {
            let message = SessionMessage::Response { volume, owner_epoch, number, result };
            self.outputs.push_back(SessionOutput::Send { node, via, message });
        }
    }

    fn on_opened(&mut self, node: NodeId, via: Via) {
        if let Some(session) = self.sessions.get_mut(&node)
            && matches!(session.state, State::Gathering { via: at, .. } if at == via)
        {
            session.state = State::Open { via };
            session.gathers = None;
            self.flush_for_waiting(node, via);
        }
    }

    fn on_request(
        &mut self,
        now: Instant,
        (node, via): (NodeId, Via),
        number: SessionNumber,
        guest: u64,
        op: GuestOp,
    ) {
        let Some(session) = self.sessions.get_mut(&node) else {
            return;
        };
        let known = session.has(number) && !self.flaws.has(Flaw::ForwardedTwice);
        if session.via() != Some(via) || known {
            return;
        }
        let new = number >= session.next;
        session.next = session.next.max(SessionNumber(number.0.saturating_add(1)));
        session.done.remove(&number);
        session.guests.insert(guest);
        if let State::Gathering { since, .. } = &mut session.state
            && new
        {
            *since = now;
            session.gathers = Some(now);
        }
        session.queued.push_back(Queued { number, guest, op, since: now });
        session.trim_window();
    }

    fn on_hung_up(&mut self, node: NodeId, guest: u64) {
        if let Some(session) = self.sessions.get_mut(&node) {
            let of_it = session.queued.iter().filter(|queued| queued.guest == guest);
            let gone: Vec<_> = of_it.map(|queued| queued.number).collect();
            session.queued.retain(|queued| queued.guest != guest);
            session.guests.remove(&guest);
            session.admitted.remove(&guest);
            for number in gone {
                session.done.insert(number, Ok(GuestData::Done));
            }
        }
        self.attaches.retain(|attach| attach.node != node || attach.guest != guest);
    }

    /// A request is through. None: nobody waits for it any more.
    pub fn done(&mut self, now: Instant, ticket: Ticket, result: GuestResult) {
        self.answer(ticket, result);
        self.over(now);
    }

    /// One that was answered takes up nothing any more.
    pub fn over(&mut self, now: Instant) {
        self.admitted = self.admitted.saturating_sub(1);
        self.conclude(now);
    }

    // promise: bounded
    /// The guest hears of it. What it asked for may be under way still, and counts until it is `over`.
    pub fn answer(&mut self, ticket: Ticket, result: GuestResult) {
        let Some((node, number)) = self.tickets.remove(&ticket) else { return };
        if let Some(session) = self.sessions.get_mut(&node) {
            session.executing.remove(&number);
        }
        self.respond(node, number, result);
    }

    fn respond(&mut self, node: NodeId, number: SessionNumber, result: GuestResult) {
        let Some(session) = self.sessions.get_mut(&node) else { return };
        let kept = match &result {
            Ok(GuestData::Read(_) | GuestData::Status(_)) => None,
            Ok(GuestData::Done) | Err(_) => Some(result.clone()),
        };
        // A read that was answered is taken for not seen: it may be asked again.
        if let Some(kept) = kept {
            session.done.insert(number, kept);
        }
        if let Some(via) = session.via() {
            let (volume, owner_epoch) = (self.volume, self.owner_epoch);
            let message = SessionMessage::Response { volume, owner_epoch, number, result };
            self.outputs.push_back(SessionOutput::Send { node, via, message });
        }
    }

    // promise: hold-not-fail
    // rule: node/nobody-answers-for-too-long
    /// What has waited for its place in the order for too long does not get one any more.
    fn fail_late(&mut self, now: Instant) {
        let HoldPolicy::FailAfter(wait) = self.hold else { return };
        let late = |queued: &mut Queued| now.since(queued.since) >= wait;
        let mut failed = Vec::new();
        for (node, session) in &mut self.sessions {
            while let Some(queued) = session.queued.pop_front_if(late) {
                failed.push((*node, queued.number));
            }
        }
        for (node, number) in failed {
            self.respond(node, number, Err(IoError::HeldTooLong));
        }
    }

    fn fails_at(&self) -> Option<Instant> {
        let HoldPolicy::FailAfter(wait) = self.hold else { return None };
        let first = self.sessions.values().filter_map(|session| session.queued.front());
        first.map(|queued| queued.since + wait).min()
    }

    fn conclude(&mut self, now: Instant) {
        self.conclude_serving(now);
        if self.serving {
            self.admit();
        }
        self.conclude_attaches(now);
    }

    /// Before anything new is admitted, what the fronts hold unanswered is here, or void.
    fn conclude_serving(&mut self, now: Instant) {
        if self.serving || !self.core_serving {
            return;
        }
        let mut late = Vec::new();
        let mut missing = false;
        for (node, session) in &self.sessions {
            let since = match session.state {
                State::Open { .. } | State::Void { .. } => continue,
                State::Awaited { since }
                | State::Broken { since }
                | State::Gathering { since, .. } => since,
            };
            missing = true;
            let over = now.since(since) >= self.wait || self.down.contains(node);
            if over && *node != self.me {
                late.push(*node);
            }
        }
        self.void(late);
        self.serving = !missing;
    }

    fn void(&mut self, nodes: Vec<NodeId>) {
        let new: Vec<_> = nodes.into_iter().filter(|node| !self.voiding.contains(node)).collect();
        if !new.is_empty() {
            self.voiding.extend(new.iter().copied());
            self.outputs.push_back(SessionOutput::Void { nodes: new });
        }
    }

    /// Requests that could be admitted, and that nothing will admit: never between two inputs.
    pub fn overlooked(&self) -> bool {
        let waiting = self.sessions.values().any(|session| !session.queued.is_empty());
        self.serving && waiting && self.admitted < self.admitted_max
    }

    fn admit(&mut self) {
        // One of each session in turn, so that a busy front does not starve the others.
        let mut max = self.admitted_max;
        if self.flaws.has(Flaw::AdmitWithoutBound) {
            max = usize::MAX;
        }
        while self.admitted < max {
            let mut any = false;
            for (node, session) in &mut self.sessions {
                if self.admitted >= max {
                    break;
                }
                let Some(Queued { number, op, .. }) = session.queued.pop_front() else {
                    continue;
                };
                any = true;
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.admitted += 1;
                session.executing.insert(number);
                self.tickets.insert(ticket, (*node, number));
                self.outputs.push_back(SessionOutput::Admit { ticket, op });
            }
            if !any {
                return;
            }
        }
    }

    pub fn tick(&mut self, now: Instant) {
        self.fail_late(now);
        self.conclude(now);
    }

    /// One that still brings what it holds is not silent, however long that takes.
    fn silent_at(&self, node: NodeId, at: Instant) -> Instant {
        match self.sessions.get(&node).map(|session| &session.state) {
            Some(State::Gathering { since, .. }) => at.max(*since + self.wait),
            Some(
                State::Open { .. }
                | State::Void { .. }
                | State::Awaited { .. }
                | State::Broken { .. },
            )
            | None => at,
        }
    }

    // rule: node/sleeps-while-it-can-do-nothing
    pub fn next_deadline(&self) -> Option<Instant> {
        // This node's own is not made void, nor is another one twice.
        let may_be_void = |node: &NodeId| *node != self.me && !self.voiding.contains(node);
        let sessions = self.sessions.iter().filter_map(|(node, session)| match session.state {
            State::Awaited { since } | State::Broken { since } | State::Gathering { since, .. }
                if self.core_serving && !self.serving && may_be_void(node) =>
            {
                Some(since + self.wait)
            }
            State::Awaited { .. }
            | State::Broken { .. }
            | State::Gathering { .. }
            | State::Open { .. }
            | State::Void { .. } => None,
        });
        let attaches = self.attaches.iter().flat_map(|attach| {
            let waiting = attach.waiting.iter().filter(|node| may_be_void(node));
            waiting.map(|node| self.silent_at(*node, attach.since + self.wait))
        });
        sessions.chain(attaches).chain(self.fails_at()).min()
    }
}

impl Session {
    fn new(state: State) -> Self {
        Self {
            state,
            early: None,
            gathers: None,
            next: SessionNumber(0),
            queued: VecDeque::new(),
            executing: BTreeSet::new(),
            done: BTreeMap::new(),
            flushing: BTreeSet::new(),
            guests: BTreeSet::new(),
            admitted: BTreeMap::new(),
        }
    }

    fn via(&self) -> Option<Via> {
        match self.state {
            State::Gathering { via, .. } | State::Open { via } => Some(via),
            State::Awaited { .. } | State::Broken { .. } | State::Void { .. } => None,
        }
    }

    fn has(&self, number: SessionNumber) -> bool {
        self.executing.contains(&number)
            || self.done.contains_key(&number)
            || self.queued.iter().any(|queued| queued.number == number)
    }

    fn missing(&self) -> Vec<SessionNumber> {
        let first = self.next.0.saturating_sub(NUMBER_WINDOW);
        (first..self.next.0).map(SessionNumber).filter(|number| !self.has(*number)).collect()
    }

    fn trim_window(&mut self) {
        let first = SessionNumber(self.next.0.saturating_sub(NUMBER_WINDOW));
        while let Some((number, _)) = self.done.first_key_value() {
            if *number >= first {
                break;
            }
            self.done.pop_first();
        }
    }
}
