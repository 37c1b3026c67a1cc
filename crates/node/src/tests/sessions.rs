use crate::fronts::{Front, FrontOutput, Fronts, OfVolume, OwnerNow};
use crate::io::{GuestId, LinkId};
use crate::sessions::{SessionOutput, Sessions, SessionsOf, Via};
use bytes::Bytes;
use gabion_types::{
    ByteRange, Duration, Epoch, GuestData, GuestOp, HoldPolicy, Instant, IoError, MapIndex, NodeId,
    VolumeId,
};
use gabion_volume::Ticket;
use gabion_wire::SessionMessage;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const ME: NodeId = NodeId::new(1);
pub(super) const X: NodeId = NodeId::new(2);
pub(super) const Y: NodeId = NodeId::new(3);
pub(super) const VOLUME: VolumeId = VolumeId::new(5);

/// An owner on `ME` and fronts on three nodes; links can be cut.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) epoch: Epoch,
    pub(super) index: MapIndex,
    pub(super) voided: BTreeMap<NodeId, MapIndex>,
    pub(super) barred: BTreeSet<NodeId>,
    pub(super) owner: Sessions,
    pub(super) fronts: BTreeMap<NodeId, Front>,
    links: BTreeMap<NodeId, LinkId>,
    pub(super) cut: Vec<NodeId>,
    pub(super) admitted: Vec<(Ticket, GuestOp)>,
    pub(super) outputs: Vec<(NodeId, FrontOutput)>,
    pub(super) void_wanted: Vec<NodeId>,
}

pub(super) fn epoch(value: u64) -> Epoch {
    Epoch::new(value).unwrap()
}

fn owned_by(owner: OwnerNow) -> OfVolume {
    let (voided, hold) = (MapIndex::new(0), HoldPolicy::NeverFail);
    OfVolume { owner: Some(owner), voided, barred: false, hold }
}

fn sessions(now: Instant, at: Epoch) -> Sessions {
    sessions_of(now, at, 256)
}

fn sessions_of(now: Instant, owner_epoch: Epoch, admitted_max: usize) -> Sessions {
    sessions_that(now, owner_epoch, admitted_max, false)
}

pub(super) fn sessions_that(
    now: Instant,
    owner_epoch: Epoch,
    admitted_max: usize,
    exclusive: bool,
) -> Sessions {
    let (began, wait) = (MapIndex::new(9), Duration::from_secs(1));
    let hold = HoldPolicy::NeverFail;
    let (me, volume) = (ME, VOLUME);
    let of = SessionsOf { me, volume, owner_epoch, exclusive, hold, began, wait, admitted_max };
    let mut sessions = Sessions::new(now, of, [ME, X, Y].into_iter(), BTreeSet::new());
    sessions.set_applied(now, MapIndex::new(10));
    sessions
}

pub(super) fn write(byte: u8) -> GuestOp {
    let range = ByteRange::new(0, 4096).unwrap();
    GuestOp::Write { range, data: Bytes::from(vec![byte; 4096]), fua: false }
}

pub(super) fn world() -> World {
    let now = Instant::ZERO;
    let mut world = World {
        now,
        epoch: epoch(1),
        index: MapIndex::new(10),
        voided: BTreeMap::new(),
        barred: BTreeSet::new(),
        owner: sessions(now, epoch(1)),
        fronts: BTreeMap::new(),
        links: [(X, LinkId(21)), (Y, LinkId(31))].into(),
        cut: Vec::new(),
        admitted: Vec::new(),
        outputs: Vec::new(),
        void_wanted: Vec::new(),
    };
    for node in [ME, X, Y] {
        world.fronts.insert(node, Front::new(VOLUME, MapIndex::new(0)));
    }
    world.tell_map();
    world.owner.core_serves(now);
    world.pump();
    world
}

impl World {
    pub(super) fn tell_map(&mut self) {
        self.owner.set_applied(self.now, self.index);
        let owner = OwnerNow { node: ME, owner_epoch: self.epoch };
        for (node, front) in &mut self.fronts {
            let voided = self.voided.get(node).copied().unwrap_or_default();
            let barred = self.barred.contains(node);
            let (owner, hold) = (Some(owner), HoldPolicy::NeverFail);
            front.set_map(self.now, self.index, OfVolume { owner, voided, barred, hold });
        }
    }

    pub(super) fn pump(&mut self) {
        let mut idle = false;
        while !idle {
            idle = true;
            while let Some(output) = self.owner.next_output() {
                idle = false;
                self.on_owner(output);
            }
            for node in [ME, X, Y] {
                while let Some(output) = self.fronts.get_mut(&node).unwrap().next_output() {
                    idle = false;
                    self.on_front(node, output);
                }
            }
        }
    }

    fn on_owner(&mut self, output: SessionOutput) {
        match output {
            SessionOutput::Send { node, message, .. } if !self.cut.contains(&node) => {
                self.fronts.get_mut(&node).unwrap().handle(self.now, ME, message);
            }
            SessionOutput::Admit { ticket, op } => self.admitted.push((ticket, op)),
            SessionOutput::Void { nodes } => self.void_wanted.extend(nodes),
            SessionOutput::LetIn => self.barred.clear(),
            SessionOutput::Send { .. } | SessionOutput::Nudge { .. } => {}
        }
    }

    fn on_front(&mut self, node: NodeId, output: FrontOutput) {
        match output {
            FrontOutput::Send { message, .. } if !self.cut.contains(&node) => {
                let via = self.links.get(&node).map_or(Via::Local, |link| Via::Link(*link));
                self.owner.handle(self.now, node, via, message);
            }
            other => self.outputs.push((node, other)),
        }
    }

    /// As long as a flush takes, and more.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now + Duration::from_millis(10);
            for (node, front) in &mut self.fronts {
                if !self.cut.contains(node) {
                    front.tick(self.now);
                }
            }
            self.owner.tick(self.now);
            self.pump();
        }
    }

    pub(super) fn attach(&mut self, node: NodeId, guest: u64) {
        self.fronts.get_mut(&node).unwrap().attach(GuestId(guest));
        self.pump();
        self.pass(30);
    }

    pub(super) fn is_attached(&self, node: NodeId, guest: u64) -> bool {
        self.outputs.contains(&(node, FrontOutput::Attached { guest: GuestId(guest) }))
    }

    pub(super) fn request(&mut self, node: NodeId, guest: u64, tag: u64, op: GuestOp) {
        self.fronts.get_mut(&node).unwrap().request(self.now, GuestId(guest), tag, op);
        self.pump();
    }

    pub(super) fn finish(&mut self, place: usize) {
        let (ticket, _) = self.admitted[place];
        self.owner.done(self.now, ticket, Ok(GuestData::Done));
        self.pump();
    }

    pub(super) fn relink(&mut self, node: NodeId) {
        let old = self.links[&node];
        self.owner.link_gone(self.now, node, old);
        self.links.insert(node, LinkId(old.0 + 2));
        self.cut.retain(|cut| *cut != node);
        let front = self.fronts.get_mut(&node).unwrap();
        front.link_lost(self.now, ME);
        front.reopen(self.now, ME);
        self.pump();
    }

    pub(super) fn done_tags(&self, node: NodeId) -> Vec<u64> {
        self.outputs
            .iter()
            .filter_map(|(who, output)| match output {
                FrontOutput::Done { tag, .. } if *who == node => Some(*tag),
                _ => None,
            })
            .collect()
    }
}

// rule: node/session-at-most-once
#[test]
fn after_a_broken_link_only_what_the_owner_lacks_is_sent_again() {
    let mut world = world();
    world.attach(X, 1);
    assert!(world.is_attached(X, 1));
    world.request(X, 1, 100, write(1));
    world.cut.push(X);
    world.request(X, 1, 101, write(2));
    // The first is done, but its answer is lost with the link.
    world.finish(0);
    assert_eq!(world.done_tags(X), Vec::<u64>::new());
    world.relink(X);
    assert_eq!(world.done_tags(X), vec![100]);
    let ops: Vec<_> = world.admitted.iter().map(|(_, op)| op.clone()).collect();
    assert_eq!(ops, vec![write(1), write(2)], "each once, in order");
    world.finish(1);
    assert_eq!(world.done_tags(X), vec![100, 101]);
}

// rule: node/held-requests-follow-the-owner
#[test]
fn a_new_owner_runs_what_fronts_hold_before_anything_new() {
    let mut world = world();
    world.attach(X, 1);
    world.attach(Y, 2);
    world.request(X, 1, 100, write(1));
    world.request(Y, 2, 200, write(2));
    world.epoch = epoch(2);
    world.owner = sessions(world.now, epoch(2));
    world.admitted.clear();
    world.owner.core_serves(world.now);
    // Y is slow to learn of the new owner; nothing is admitted before it has opened.
    let owner = OwnerNow { node: ME, owner_epoch: epoch(2) };
    for node in [ME, X] {
        let front = world.fronts.get_mut(&node).unwrap();
        front.set_map(world.now, world.index, owned_by(owner));
    }
    world.pump();
    world.request(X, 1, 101, write(3));
    assert!(world.admitted.is_empty());
    world.tell_map();
    world.pump();
    let ops: Vec<_> = world.admitted.iter().map(|(_, op)| op.clone()).collect();
    assert_eq!(ops.len(), 3);
    let place = |op: &GuestOp| ops.iter().position(|it| it == op).unwrap();
    assert!(place(&write(1)) < place(&write(3)));
    assert!(place(&write(2)) < place(&write(3)));
}

// rule: node/void-session-closes-guests
#[test]
fn a_front_that_stays_away_is_void_and_drops_its_guests() {
    let mut world = world();
    world.attach(X, 1);
    world.request(X, 1, 100, write(1));
    world.cut.push(X);
    world.request(X, 1, 101, write(2));
    // Another guest shakes hands elsewhere; X does not answer the flush.
    world.fronts.get_mut(&Y).unwrap().attach(GuestId(7));
    world.pump();
    world.pass(500);
    assert!(!world.is_attached(Y, 7));
    world.pass(700);
    assert_eq!(world.void_wanted, vec![X]);
    assert!(!world.is_attached(Y, 7), "not before the map says so");
    world.index = MapIndex::new(11);
    world.voided.insert(X, world.index);
    world.owner.voided(world.now, &[X], world.index);
    world.pump();
    assert!(world.is_attached(Y, 7));
    // X wakes up: it may not open before it has seen that, and then it has nothing left to send.
    world.cut.clear();
    let before = world.admitted.len();
    world.relink(X);
    assert_eq!(world.admitted.len(), before);
    world.tell_map();
    world.pass(300);
    assert_eq!(world.admitted.len(), before);
    assert!(world.outputs.contains(&(X, FrontOutput::Drop { guest: GuestId(1) })));
    world.attach(X, 8);
    assert!(world.is_attached(X, 8), "a new guest is welcome");
}

// rule: node/attach-after-flush
#[test]
fn a_handshake_waits_until_others_have_dropped_gone_guests() {
    let mut world = world();
    world.attach(X, 1);
    world.fronts.get_mut(&Y).unwrap().attach(GuestId(2));
    world.pump();
    assert!(!world.is_attached(Y, 2), "X has not been asked twice for its hang-ups");
    world.pass(30);
    assert!(world.is_attached(Y, 2));
}

// rule: node/gone-guest-is-never-sent
#[test]
fn a_request_of_a_gone_guest_is_not_sent_again() {
    let mut world = world();
    world.attach(X, 1);
    world.cut.push(X);
    world.request(X, 1, 100, write(1));
    world.fronts.get_mut(&X).unwrap().detach(GuestId(1));
    world.relink(X);
    assert!(world.admitted.is_empty());
    assert_eq!(world.fronts[&X].held(), 0);
}

#[test]
fn a_request_under_an_unknown_session_is_ignored() {
    let mut world = world();
    let message = SessionMessage::Request {
        volume: VOLUME,
        owner_epoch: epoch(1),
        number: gabion_wire::SessionNumber(3),
        guest: 9,
        op: write(9),
    };
    world.owner.handle(world.now, X, Via::Link(LinkId(77)), message);
    world.pump();
    assert!(world.admitted.is_empty());
}

// rule: node/a-void-counts-once
#[test]
fn a_front_that_is_back_is_not_made_void_by_the_same_word_again() {
    let mut world = world();
    world.attach(X, 1);
    world.index = MapIndex::new(11);
    world.voided.insert(X, world.index);
    world.tell_map();
    world.owner.voided(world.now, &[X], world.index);
    world.pass(300);
    world.attach(X, 2);
    world.request(X, 2, 100, write(1));
    assert_eq!(world.admitted.len(), 1);
    // The same word comes again, and what was before this owner began.
    for at in [11, 9, 3] {
        world.owner.voided(world.now, &[X], MapIndex::new(at));
    }
    world.pass(300);
    world.finish(0);
    assert_eq!(world.done_tags(X), vec![100]);
    assert_eq!(world.admitted.len(), 1, "nothing runs twice");
}

// rule: node/attach-after-flush
#[test]
fn a_front_that_comes_back_is_asked_for_its_hang_ups() {
    let mut world = world();
    world.attach(X, 1);
    world.cut.push(X);
    let old = world.links[&X];
    world.owner.link_gone(world.now, X, old);
    // Its guest left by then, and its last write lies unread in its socket.
    world.fronts.get_mut(&Y).unwrap().attach(GuestId(2));
    world.pump();
    world.pass(30);
    world.relink(X);
    assert!(!world.is_attached(Y, 2), "X is asked first");
    world.request(X, 1, 100, write(1));
    world.fronts.get_mut(&X).unwrap().detach(GuestId(1));
    world.pass(30);
    assert!(world.is_attached(Y, 2));
}

// rule: node/new-link-throws-the-old-away
#[test]
fn a_hang_up_that_was_lost_with_its_link_counts_all_the_same() {
    let mut world = world();
    world.owner = sessions_of(world.now, epoch(1), 1);
    for node in [ME, X, Y] {
        world.fronts.get_mut(&node).unwrap().reopen(world.now, ME);
    }
    world.owner.core_serves(world.now);
    world.pump();
    world.attach(Y, 2);
    world.attach(X, 1);
    // One request is admitted at a time: the second has no place in the order yet.
    world.attach(X, 3);
    world.request(Y, 2, 200, write(2));
    world.request(X, 1, 100, write(1));
    world.request(X, 3, 300, write(3));
    assert_eq!(world.admitted.len(), 1);
    world.cut.push(X);
    world.fronts.get_mut(&X).unwrap().detach(GuestId(1));
    world.pump();
    world.relink(X);
    world.finish(0);
    let ops: Vec<_> = world.admitted.iter().map(|(_, op)| op.clone()).collect();
    assert_eq!(ops, [write(2), write(3)], "the request of a gone guest is never run");
    world.pass(30);
    assert!(!world.owner.guests_of(X).contains(&1), "nor is the guest counted");
}

/// X holds five requests when a new owner begins; it opens its session, and what it says is kept.
fn held_by_x() -> (World, Vec<SessionMessage>) {
    let mut world = world();
    world.attach(X, 1);
    world.cut.push(X);
    for tag in 0..5 {
        world.fronts.get_mut(&X).unwrap().request(world.now, GuestId(1), tag, write(7));
    }
    world.epoch = epoch(2);
    world.owner = sessions(world.now, epoch(2));
    world.owner.core_serves(world.now);
    world.tell_map();
    world.pump();
    world.outputs.clear();
    let said = open_x(&mut world);
    world.cut.clear();
    (world, said)
}

fn open_x(world: &mut World) -> Vec<SessionMessage> {
    let via = Via::Link(world.links[&X]);
    let (volume, owner_epoch, applied) = (VOLUME, world.epoch, world.index);
    let open = SessionMessage::Open { volume, owner_epoch, applied };
    world.owner.handle(world.now, X, via, open);
    let mut said = Vec::new();
    while let Some(output) = world.owner.next_output() {
        let SessionOutput::Send { node: X, message, .. } = output else { continue };
        world.fronts.get_mut(&X).unwrap().handle(world.now, ME, message);
    }
    while let Some(output) = world.fronts.get_mut(&X).unwrap().next_output() {
        if let FrontOutput::Send { message, .. } = output {
            said.push(message);
        }
    }
    said
}

// rule: node/session-at-most-once
#[test]
fn a_front_that_brings_what_it_holds_slowly_is_not_void() {
    let (mut world, said) = held_by_x();
    let requests = |said: &[SessionMessage]| {
        said.iter().filter(|it| matches!(it, SessionMessage::Request { .. })).count()
    };
    assert_eq!(requests(&said), 5);
    assert!(matches!(said.last(), Some(SessionMessage::Opened { .. })));
    world.fronts.get_mut(&Y).unwrap().attach(GuestId(9));
    let via = Via::Link(world.links[&X]);
    for message in said {
        world.pass(600);
        assert_eq!(world.void_wanted, [], "it is slow, and not silent");
        assert!(!world.is_attached(Y, 9));
        assert!(world.owner.next_deadline().is_none_or(|due| due > world.now));
        world.owner.handle(world.now, X, via, message);
        world.pump();
    }
    assert_eq!(world.admitted.len(), 5);
    world.pass(30);
    assert!(world.is_attached(Y, 9));
}

// rule: node/session-at-most-once
#[test]
fn a_front_that_begins_again_and_again_and_brings_nothing_is_void() {
    let (mut world, _) = held_by_x();
    for _ in 0..5 {
        world.pass(300);
        let old = world.links[&X];
        world.owner.link_gone(world.now, X, old);
        world.links.insert(X, LinkId(old.0 + 2));
        open_x(&mut world);
    }
    assert_eq!(world.void_wanted, [X], "a new owner is not kept from serving for ever");
}

/// Fronts of open sessions with X, guests 1 and 2 each of which asked four times.
fn open_fronts(volumes: &[VolumeId]) -> Fronts {
    let mut fronts = Fronts::default();
    let owner = OwnerNow { node: X, owner_epoch: epoch(1) };
    for volume in volumes.iter().copied() {
        let front = fronts.or_insert(volume, MapIndex::new(0));
        front.set_map(Instant::ZERO, MapIndex::new(1), owned_by(owner));
        let (owner_epoch, next) = (epoch(1), gabion_wire::SessionNumber(0));
        let have = SessionMessage::Have { volume, owner_epoch, next, missing: Vec::new() };
        front.handle(Instant::ZERO, X, have);
        for guest in [1, 2] {
            front.attach(GuestId(guest));
            front.handle(Instant::ZERO, X, SessionMessage::Attached { volume, owner_epoch, guest });
            (0..4).for_each(|tag| front.request(Instant::ZERO, GuestId(guest), tag, write(1)));
        }
    }
    fronts
}

/// What leaves while the link has room for so many requests.
fn drain(fronts: &mut Fronts, mut room: usize) -> Vec<SessionMessage> {
    let mut sent = Vec::new();
    fronts.look_again();
    while let Some(output) = fronts.next_output(|_| room > 0) {
        if let FrontOutput::Send { message, .. } = output {
            room -= usize::from(matches!(message, SessionMessage::Request { .. }));
            sent.push(message);
        }
    }
    sent
}

fn drained(fronts: &mut Fronts, room: usize) -> Vec<(u32, u64, u64)> {
    let requests = drain(fronts, room).into_iter().filter_map(|message| match message {
        SessionMessage::Request { volume, number, guest, .. } => {
            Some((volume.get(), number.0, guest))
        }
        _ => None,
    });
    requests.collect()
}

// rule: node/requests-go-as-there-is-room
// rule: node/gone-guest-is-never-sent
// promise: bounded
#[test]
fn requests_leave_their_fronts_as_there_is_room_and_fronts_take_turns() {
    let volumes = [VolumeId::new(1), VolumeId::new(2)];
    let mut fronts = open_fronts(&volumes);
    assert_eq!(drained(&mut fronts, 0), []);
    assert!(fronts.wait_for(X) && !fronts.wait_for(Y));
    // One guest hangs up: what it asked was never sent, and isn't.
    fronts.get_mut(volumes[0]).unwrap().detach(GuestId(1));
    assert_eq!(drained(&mut fronts, 0), []);
    assert_eq!(drained(&mut fronts, 3), [(1, 4, 2), (2, 0, 1), (1, 5, 2)]);
    let rest = drained(&mut fronts, 100);
    assert_eq!(rest[..3], [(2, 1, 1), (1, 6, 2), (2, 2, 1)], "where they left off");
    assert_eq!(rest.len(), 2 + 7);
    assert!(!fronts.wait_for(X));
}

// rule: node/flushed-follows-what-was-held
#[test]
fn a_flush_is_answered_behind_what_was_held_for_want_of_room() {
    let volumes = [VolumeId::new(1)];
    let is_flushed = |sent: &[SessionMessage]| {
        sent.iter().any(|message| matches!(message, SessionMessage::Flushed { number: 9, .. }))
    };
    let flush = |fronts: &mut Fronts| {
        let (volume, owner_epoch) = (volumes[0], epoch(1));
        let front = fronts.get_mut(volume).unwrap();
        front.handle(Instant::ZERO, X, SessionMessage::Flush { volume, owner_epoch, number: 9 });
        (0..2).for_each(|_| front.tick(Instant::ZERO));
        assert_eq!(front.next_deadline(), None, "it does not spin while it waits");
    };
    let mut fronts = open_fronts(&volumes);
    flush(&mut fronts);
    assert!(!is_flushed(&drain(&mut fronts, 7)));
    // What comes after the flush is not waited for.
    fronts.get_mut(volumes[0]).unwrap().request(Instant::ZERO, GuestId(1), 7, write(1));
    let last = drain(&mut fronts, 1);
    assert!(matches!(last[0], SessionMessage::Request { .. }) && is_flushed(&last));
    // Nor is what goes with its guest.
    let mut fronts = open_fronts(&volumes);
    flush(&mut fronts);
    fronts.get_mut(volumes[0]).unwrap().detach(GuestId(1));
    assert!(!is_flushed(&drain(&mut fronts, 0)));
    fronts.get_mut(volumes[0]).unwrap().detach(GuestId(2));
    assert!(is_flushed(&drain(&mut fronts, 0)));
}

// promise: hold-not-fail
// rule: node/nobody-answers-for-too-long
#[test]
fn where_nobody_answers_guests_hear_of_it_after_as_long_as_they_bear() {
    let mut world = world();
    world.attach(X, 1);
    let second = |count| Duration::from_secs(count);
    let began = world.now;
    let bears = |owner| OfVolume { hold: HoldPolicy::FailAfter(second(5)), ..owned_by(owner) };
    let owner = OwnerNow { node: ME, owner_epoch: world.epoch };
    let index = world.index;
    let front = world.fronts.get_mut(&X).unwrap();
    front.set_map(began, index, bears(owner));
    front.request(began, GuestId(1), 100, write(1));
    // The owner has it: that one counts.
    while front.next_output().is_some() {}
    front.tick(began + second(60));
    assert_eq!((front.next_output(), front.held()), (None, 1));
    // Nobody owns the volume any more.
    let orphaned = OfVolume { owner: None, ..bears(owner) };
    front.set_map(began + second(1), index, orphaned);
    front.request(began + second(3), GuestId(1), 101, write(2));
    assert_eq!(front.next_deadline(), Some(began + second(5)));
    let told = |front: &mut Front| {
        let said = std::iter::from_fn(|| front.next_output());
        let done = said.filter_map(|output| match output {
            FrontOutput::Done { tag, result, .. } => Some((tag, result)),
            _ => None,
        });
        done.collect::<Vec<_>>()
    };
    front.tick(began + second(4));
    assert_eq!(told(front), []);
    front.tick(began + second(5));
    assert_eq!(told(front), [(100, Err(IoError::HeldTooLong))]);
    front.tick(began + second(8));
    assert_eq!(told(front), [(101, Err(IoError::HeldTooLong))]);
    assert_eq!((front.held(), front.held_bytes(), front.next_deadline()), (0, 0, None));
    // What was answered is never sent.
    front.set_map(began + second(9), index, bears(owner));
    let next = gabion_wire::SessionNumber(0);
    let (volume, owner_epoch, missing) = (VOLUME, owner.owner_epoch, vec![]);
    let have = SessionMessage::Have { volume, owner_epoch, next, missing };
    front.handle(began + second(9), ME, have);
    let sent = std::iter::from_fn(|| front.next_output());
    let request = |output: &FrontOutput| {
        matches!(output, FrontOutput::Send { message: SessionMessage::Request { .. }, .. })
    };
    assert!(!sent.into_iter().any(|output| request(&output)));
}

// promise: hold-not-fail
// promise: bounded
#[test]
fn late_requests_count_until_they_are_over_and_those_behind_them_fail_in_time() {
    let mut world = world();
    let (began, wait) = (MapIndex::new(9), Duration::from_secs(1));
    let hold = HoldPolicy::FailAfter(Duration::from_secs(5));
    let (me, volume, owner_epoch) = (ME, VOLUME, epoch(1));
    let (exclusive, admitted_max) = (false, 1);
    let of = SessionsOf { me, volume, owner_epoch, exclusive, hold, began, wait, admitted_max };
    world.owner = Sessions::new(world.now, of, [ME, X, Y].into_iter(), BTreeSet::new());
    world.owner.set_applied(world.now, MapIndex::new(10));
    world.owner.core_serves(world.now);
    for front in world.fronts.values_mut() {
        front.reopen(world.now, ME);
    }
    world.pump();
    world.attach(X, 1);
    world.request(X, 1, 100, write(1));
    world.request(X, 1, 101, write(2));
    assert_eq!(world.admitted.len(), 1);
    let (ticket, _) = world.admitted[0];
    let failed = Err(IoError::HeldTooLong);
    world.owner.answer(ticket, failed.clone());
    world.pump();
    assert_eq!((world.done_tags(X), world.admitted.len()), (vec![100], 1), "it is under way still");
    world.pass(5000);
    assert_eq!((world.done_tags(X), world.admitted.len()), (vec![100, 101], 1), "and in vain");
    world.request(X, 1, 102, write(3));
    world.owner.over(world.now);
    world.pump();
    let last = world.admitted.last().map(|(_, op)| op.clone());
    assert_eq!((world.admitted.len(), last), (2, Some(write(3))));
}
