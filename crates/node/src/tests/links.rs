use crate::io::LinkId;
use crate::links::{LinkOutput, Links, PeerTrouble};
use crate::settings::NodeSettings;
use gabion_types::{
    Breaker, BreakerState, ClusterId, Duration, Incarnation, Instant, NodeId, Prng,
};
use gabion_wire::link::LinkRefusal;
use gabion_wire::{Body, LinkClass, LinkMessage, Message, RequestId};
use std::collections::BTreeMap;

const A: NodeId = NodeId::new(1);
const B: NodeId = NodeId::new(2);

/// Two nodes' links and the wires between them.
struct Pair {
    now: Instant,
    a: Links,
    b: Links,
    /// From the dialler's link to the acceptor's.
    wires: BTreeMap<LinkId, LinkId>,
    next: u64,
    cut: bool,
    refuse: bool,
    /// Links of other classes are refused.
    only: Option<LinkClass>,
    seen: Vec<(NodeId, LinkOutput)>,
}

fn links(me: NodeId, secret: u8) -> Links {
    let incarnation = Incarnation::new(u64::from(me.get()) * 10);
    let settings = NodeSettings::default();
    let prng = Prng::new(u64::from(me.get()));
    Links::new(ClusterId::new([7; 16]), me, incarnation, [secret; 32], prng, settings)
}

fn pair(secret_of_b: u8) -> Pair {
    let mut pair = Pair {
        now: Instant::ZERO,
        a: links(A, 1),
        b: links(B, secret_of_b),
        wires: BTreeMap::new(),
        next: 1,
        cut: false,
        refuse: false,
        only: None,
        seen: Vec::new(),
    };
    let members = [(A, Incarnation::new(10)), (B, Incarnation::new(20))].into();
    pair.a.set_members(pair.now, &members);
    pair.b.set_members(pair.now, &members);
    pair
}

impl Pair {
    fn side(&mut self, node: NodeId) -> &mut Links {
        if node == A { &mut self.a } else { &mut self.b }
    }

    fn pump(&mut self) {
        let mut idle = false;
        while !idle {
            idle = true;
            for (me, other) in [(A, B), (B, A)] {
                while let Some(output) = self.side(me).next_output() {
                    idle = false;
                    self.route(me, other, &output);
                    self.seen.push((me, output));
                }
            }
        }
    }

    fn route(&mut self, me: NodeId, other: NodeId, output: &LinkOutput) {
        let now = self.now;
        match output {
            LinkOutput::Connect { link, class, .. }
                if self.refuse || self.only.is_some_and(|only| only != *class) =>
            {
                self.side(me).closed(now, *link);
            }
            LinkOutput::Connect { link, .. } if !self.cut => {
                let theirs = LinkId(self.next * 2 + 1 + u64::from(me.get()) * 1000);
                self.next += 1;
                self.wires.insert(self.key(me, *link), theirs);
                self.side(other).accepted(now, theirs);
                self.side(me).connected(now, *link);
            }
            LinkOutput::Send { link, message } if !self.cut => {
                let forward = self.wires.get(&self.key(me, *link)).copied();
                let back = self.wires.iter().find(|(_, theirs)| **theirs == *link);
                let target = forward.or(back.map(|(mine, _)| LinkId(mine.0 % 1_000_000)));
                if let Some(target) = target {
                    self.side(other).message(now, target, message.clone());
                }
            }
            LinkOutput::Close { link } => {
                if let Some(theirs) = self.wires.remove(&self.key(me, *link)) {
                    self.side(other).closed(now, theirs);
                } else if let Some(mine) =
                    self.wires.iter().find(|(_, theirs)| **theirs == *link).map(|(mine, _)| *mine)
                {
                    self.wires.remove(&mine);
                    self.side(other).closed(now, LinkId(mine.0 % 1_000_000));
                }
            }
            _ => {}
        }
    }

    /// Both sides number the links they dial from zero.
    fn key(&self, me: NodeId, link: LinkId) -> LinkId {
        LinkId(link.0 + u64::from(me.get()) * 1_000_000)
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now + Duration::from_millis(10);
            for node in [A, B] {
                let now = self.now;
                if self.side(node).next_deadline().is_some_and(|due| due <= now) {
                    self.side(node).tick(now);
                }
            }
            self.pump();
        }
    }

    fn count(&self, wanted: impl Fn(&LinkOutput) -> bool) -> usize {
        self.seen.iter().filter(|(_, output)| wanted(output)).count()
    }
}

#[test]
fn all_classes_come_up_both_ways_and_stay() {
    let mut pair = pair(1);
    pair.pump();
    pair.pass(100);
    assert!(pair.a.usable(B) && pair.b.usable(A));
    assert!(pair.a.inbound(B, LinkClass::Control).is_some());
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Up { .. })), 6);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::PeerUp { .. })), 6);
    pair.pass(5000);
    assert!(pair.a.usable(B) && !pair.a.is_down(B));
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Lost { .. })), 0);
}

#[test]
fn another_secret_is_refused_by_name() {
    let mut pair = pair(2);
    pair.pump();
    pair.pass(500);
    assert!(!pair.a.usable(B) && !pair.a.is_down(B), "it may still be starting");
    pair.pass(10_000);
    assert!(pair.a.is_down(B));
    let refused = |output: &LinkOutput| {
        matches!(output, LinkOutput::Refused { reason: LinkRefusal::BadProof, .. })
    };
    assert!(pair.count(refused) > 0);
}

#[test]
fn silence_for_a_second_is_down_and_a_return_is_up() {
    let mut pair = pair(1);
    pair.pump();
    pair.pass(300);
    pair.cut = true;
    pair.seen.clear();
    pair.pass(900);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Down { .. })), 0);
    pair.pass(600);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Down { .. })), 2);
    assert!(pair.a.is_down(B));
    pair.cut = false;
    pair.pass(2500);
    assert!(pair.a.usable(B) && !pair.a.is_down(B));
}

fn breaker(pair: &Pair) -> (BreakerState, PeerTrouble, u64) {
    let silence = PeerTrouble::Silent(NodeSettings::default().ping_silence);
    match pair.a.breaker(B).unwrap() {
        Breaker::Closed => (BreakerState::Closed, silence, 0),
        Breaker::Open { since, why } => (BreakerState::Open, why, since.nanos() / 1_000_000),
        Breaker::HalfOpen { since, why } => {
            (BreakerState::HalfOpen, why, since.nanos() / 1_000_000)
        }
    }
}

// rule: node/a-breaker-says-what-the-owners-act-on
#[test]
fn a_breaker_opens_with_its_reason_and_is_half_open_until_requests_go_again() {
    let silence = PeerTrouble::Silent(Duration::from_secs(1));
    let mut pair = pair(1);
    pair.refuse = true;
    pair.pump();
    let unseen = (BreakerState::HalfOpen, PeerTrouble::NotConnected, 0);
    assert_eq!(breaker(&pair), unseen, "it may still be starting");
    pair.refuse = false;
    pair.pass(300);
    assert_eq!(breaker(&pair).0, BreakerState::Closed);
    pair.cut = true;
    pair.pass(1500);
    let (state, why, since) = breaker(&pair);
    assert_eq!((state, why), (BreakerState::Open, silence));
    // It is dialled in vain: open still, and since it opened.
    pair.pass(3000);
    assert_eq!(breaker(&pair), (BreakerState::Open, silence, since));
    (pair.cut, pair.refuse) = (false, true);
    pair.pass(3000);
    assert_eq!(breaker(&pair), (BreakerState::Open, PeerTrouble::NotConnected, since));
    // It is there again, and takes requests only when all links for them are up.
    (pair.refuse, pair.only) = (false, Some(LinkClass::Data));
    pair.pass(100);
    assert_eq!(breaker(&pair), (BreakerState::HalfOpen, PeerTrouble::NotConnected, since));
    pair.only = None;
    pair.pass(100);
    assert_eq!(breaker(&pair).0, BreakerState::Closed);
    // Broken, and not given up before it was dialled for a while.
    pair.refuse = true;
    let (now, data) = (pair.now, pair.a.up(B, LinkClass::Data).unwrap());
    pair.a.closed(now, data);
    pair.pump();
    let broke_at = now.nanos() / 1_000_000;
    assert_eq!(breaker(&pair), (BreakerState::HalfOpen, PeerTrouble::Broke, broke_at));
    pair.pass(400);
    assert_eq!(breaker(&pair), (BreakerState::Open, PeerTrouble::NotConnected, broke_at));
    assert_eq!(pair.a.breaker(A), None);
}

// rule: node/a-breaker-says-what-the-owners-act-on
#[test]
fn a_refused_peer_is_open_with_the_refusal() {
    let mut pair = pair(2);
    pair.pump();
    pair.pass(11_000);
    let why = PeerTrouble::Refused(LinkRefusal::BadProof);
    assert_eq!((breaker(&pair).0, breaker(&pair).1), (BreakerState::Open, why));
    assert_eq!(why.to_string(), "refused: it has another secret");
}

#[test]
fn a_refused_reconnect_is_down_after_the_grace() {
    let mut pair = pair(1);
    pair.pump();
    pair.pass(300);
    pair.refuse = true;
    pair.seen.clear();
    let data = pair.a.up(B, LinkClass::Data).unwrap();
    let now = pair.now;
    pair.a.closed(now, data);
    pair.pump();
    pair.pass(150);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Lost { .. })), 1);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Down { .. })), 0);
    pair.pass(150);
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Down { .. })), 1);
}

// rule: node/an-own-gap-blames-nobody
#[test]
fn a_peer_that_is_not_there_yet_gets_its_time_also_from_a_node_that_hung() {
    let mut pair = pair(1);
    pair.refuse = true;
    pair.pump();
    pair.pass(2000);
    pair.now = pair.now + Duration::from_mins(1);
    pair.pass(10);
    assert!(!pair.a.is_down(B), "it may still be starting");
    // Nobody answers the next calls.
    (pair.refuse, pair.cut) = (false, true);
    pair.pass(200);
    let calls = (0..).map(|number| LinkId(number * 2)).take(1000);
    let dialled: Vec<LinkId> = calls.filter(|call| pair.a.dialled_to(*call).is_some()).collect();
    assert_eq!(dialled.len(), 3);
    pair.now = pair.now + Duration::from_mins(1);
    for link in dialled {
        let now = pair.now;
        pair.a.closed(now, link);
    }
    pair.pump();
    assert!(!pair.a.is_down(B), "the word of a link comes before the tick");
    pair.pass(9000);
    assert!(pair.a.is_down(B), "ten seconds are over");
}

#[test]
fn a_peer_that_came_is_not_down_for_the_time_before_it_came() {
    let mut pair = pair(1);
    pair.refuse = true;
    pair.pump();
    pair.pass(5000);
    pair.refuse = false;
    pair.only = Some(LinkClass::Control);
    pair.pass(100);
    assert!(pair.a.up(B, LinkClass::Control).is_some());
    assert!(!pair.a.is_down(B), "its other links are on their way");
    pair.only = None;
    pair.pass(100);
    assert!(pair.a.usable(B));
    assert_eq!(pair.count(|output| matches!(output, LinkOutput::Down { .. })), 0);
}

#[test]
fn what_comes_before_the_greeting_closes_the_link() {
    let mut pair = pair(1);
    let now = pair.now;
    let link = LinkId(99);
    pair.b.accepted(now, link);
    let ping = Body::Link(LinkMessage::Ping { number: 1 });
    pair.b.message(now, link, Message { request: RequestId(0), body: ping });
    let outputs: Vec<_> = std::iter::from_fn(|| pair.b.next_output()).collect();
    assert!(outputs.contains(&LinkOutput::Close { link }));
}
