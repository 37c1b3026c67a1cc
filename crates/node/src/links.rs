//! Links to peers: dial, greet, ping, and say who is down.
//!
//! Each node dials each peer three times, once a class. Who asks uses the links it dialled; answers
//! come back on the link that the question came on.

mod breaker;
mod inbound;

use crate::io::LinkId;
use crate::proof::{Proof, proof, verify};
use crate::settings::NodeSettings;
pub use breaker::PeerTrouble;
use gabion_types::{ClusterId, Duration, Incarnation, Instant, NodeId, Prng};
use gabion_wire::link::LinkRefusal;
use gabion_wire::{Body, Hello, LinkClass, LinkMessage, Message, PROTOCOL, RequestId};
use inbound::Inbound;
use std::collections::{BTreeMap, VecDeque};

const CLASSES: [LinkClass; 3] = [LinkClass::Control, LinkClass::Data, LinkClass::Bulk];
/// A tick that comes so much too late judges nobody.
const OWN_GAP: Duration = Duration::from_millis(100);

/// What became of the links; drained by the node after each step.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkOutput {
    Connect {
        link: LinkId,
        node: NodeId,
        class: LinkClass,
    },
    Send {
        link: LinkId,
        message: Message,
    },
    Close {
        link: LinkId,
    },
    /// A link that this node dialled is greeted.
    Up {
        node: NodeId,
        class: LinkClass,
    },
    /// It is gone: no answer comes to what was asked on it.
    Lost {
        node: NodeId,
        class: LinkClass,
    },
    /// Closed and not to be dialled anew, or silent.
    Down {
        node: NodeId,
    },
    /// A peer's link is greeted; any older one of its class was closed before.
    PeerUp {
        node: NodeId,
        class: LinkClass,
        link: LinkId,
        incarnation: Incarnation,
    },
    PeerGone {
        node: NodeId,
        class: LinkClass,
        link: LinkId,
    },
    Refused {
        node: Option<NodeId>,
        reason: LinkRefusal,
    },
    /// Anything but greetings and pings, for others to handle.
    Message {
        node: NodeId,
        class: LinkClass,
        link: LinkId,
        dialled: bool,
        message: Message,
    },
}

/// The state of one dialled class.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dial {
    Idle { again: Instant },
    Dialling { link: LinkId, since: Instant },
    Greeting { link: LinkId, since: Instant, nonce: [u8; 16], peer: Option<Hello> },
    Up { link: LinkId, heard: Instant, ping: Option<Instant>, next_ping: Instant },
}

#[derive(Clone, Debug)]
struct Peer {
    dials: BTreeMap<LinkClass, Dial>,
    /// Since when the data link has been missing.
    missing_since: Option<Instant>,
    /// It was up in this process's life.
    seen: bool,
    down: bool,
    /// Its present process said that it is about to end.
    leaving: bool,
    /// Since when requests have not gone to it, and what its links for them met last. It says nothing
    /// while they are up.
    trouble: (Instant, PeerTrouble),
}

impl Peer {
    fn is_up(&self, class: LinkClass) -> bool {
        matches!(self.dials.get(&class), Some(Dial::Up { .. }))
    }
}

#[derive(Debug)]
pub struct Links {
    cluster: ClusterId,
    me: NodeId,
    incarnation: Incarnation,
    secret: [u8; 32],
    prng: Prng,
    settings: NodeSettings,
    next_link: u64,
    peers: BTreeMap<NodeId, Peer>,
    /// What the map says each peer's present incarnation is.
    incarnations: BTreeMap<NodeId, Incarnation>,
    dialled: BTreeMap<LinkId, (NodeId, LinkClass)>,
    inbound: BTreeMap<LinkId, Inbound>,
    outputs: VecDeque<LinkOutput>,
    /// The last tick came much later than it was due.
    gap: bool,
    /// The own loop stood still since the last tick: the node hung, or its clock jumped.
    hung: bool,
    /// When the next tick was due; what comes much later says that the own loop stood still.
    expected: Option<Instant>,
}

impl Links {
    pub fn new(
        cluster: ClusterId,
        me: NodeId,
        incarnation: Incarnation,
        secret: [u8; 32],
        prng: Prng,
        settings: NodeSettings,
    ) -> Self {
        Self {
            cluster,
            me,
            incarnation,
            secret,
            prng,
            settings,
            next_link: 0,
            peers: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            dialled: BTreeMap::new(),
            inbound: BTreeMap::new(),
            outputs: VecDeque::new(),
            gap: false,
            hung: false,
            expected: None,
        }
    }

    pub fn next_output(&mut self) -> Option<LinkOutput> {
        self.outputs.pop_front()
    }

    pub fn set_settings(&mut self, settings: NodeSettings) {
        self.settings = settings;
    }

    /// The members of the map and their incarnations; links to others are closed.
    pub fn set_members(&mut self, now: Instant, members: &BTreeMap<NodeId, Incarnation>) {
        for (node, peer) in &mut self.peers {
            peer.leaving &= self.incarnations.get(node) == members.get(node);
        }
        self.incarnations = members.clone();
        let gone: Vec<_> =
            self.peers.keys().copied().filter(|node| !members.contains_key(node)).collect();
        for node in gone {
            self.forget(node);
        }
        for node in members.keys().copied().filter(|node| *node != self.me) {
            self.peers.entry(node).or_insert_with(|| Peer {
                dials: CLASSES.iter().map(|class| (*class, Dial::Idle { again: now })).collect(),
                missing_since: Some(now),
                seen: false,
                down: false,
                leaving: false,
                trouble: (now, PeerTrouble::NotSeen),
            });
        }
        self.tick(now);
    }

    /// The greeted link that this node dialled.
    pub fn up(&self, node: NodeId, class: LinkClass) -> Option<LinkId> {
        match self.peers.get(&node)?.dials.get(&class)? {
            Dial::Up { link, .. } => Some(*link),
            Dial::Idle { .. } | Dial::Dialling { .. } | Dial::Greeting { .. } => None,
        }
    }

    /// Both links that an owner needs are up.
    pub fn usable(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(Peer::usable)
    }

    pub fn is_down(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_none_or(|peer| peer.down)
    }

    pub fn note_leaving(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.leaving = true;
        }
    }

    /// Peers whose processes are about to end.
    pub fn leaving(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.leaving).map(|(node, _)| *node)
    }

    /// Says it to all who can hear.
    pub fn say_leaving(&mut self) {
        let up: Vec<LinkId> =
            self.peers.keys().filter_map(|node| self.up(*node, LinkClass::Control)).collect();
        up.into_iter().for_each(|link| self.say(link, LinkMessage::Leaving));
    }

    /// A peer has not been seen in this process's life, and there is still hope.
    pub fn awaits_first_sight(&self) -> bool {
        self.peers.values().any(|peer| !peer.seen && !peer.down)
    }

    pub fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    pub fn send(&mut self, link: LinkId, message: Message) {
        self.outputs.push_back(LinkOutput::Send { link, message });
    }

    fn say(&mut self, link: LinkId, message: LinkMessage) {
        self.send(link, Message { request: RequestId(0), body: Body::Link(message) });
    }

    pub fn connected(&mut self, now: Instant, link: LinkId) {
        let Some((node, class)) = self.dialled.get(&link).copied() else {
            self.outputs.push_back(LinkOutput::Close { link });
            return;
        };
        let nonce = self.nonce();
        self.set_dial(node, class, Dial::Greeting { link, since: now, nonce, peer: None });
        let hello = self.hello(node, class, nonce);
        self.say(link, LinkMessage::Hello(hello));
    }

    /// To whom this node dialled that link, and for what.
    pub fn dialled_to(&self, link: LinkId) -> Option<(NodeId, LinkClass)> {
        self.dialled.get(&link).copied()
    }

    /// The own loop stood still before the last tick: nobody is to be judged by what it missed.
    pub fn stood_still(&self) -> bool {
        self.gap
    }

    /// Given up from this side: for so long it took nothing.
    pub fn close_stuck(&mut self, now: Instant, link: LinkId, silence: Duration) {
        if let Some((node, class)) = self.dialled.get(&link).copied() {
            self.drop_dialled(now, link, (node, class), PeerTrouble::Stuck(silence));
        } else {
            self.drop_inbound(link);
        }
    }

    /// The driver's word that a link is gone.
    pub fn closed(&mut self, now: Instant, link: LinkId) {
        self.look_for_gap(now);
        if let Some((node, class)) = self.dialled.remove(&link) {
            let trouble = match self.dial(node, class) {
                Some(Dial::Up { .. }) => PeerTrouble::Broke,
                Some(Dial::Greeting { .. }) => PeerTrouble::HungUp,
                Some(Dial::Idle { .. } | Dial::Dialling { .. }) | None => PeerTrouble::NotConnected,
            };
            self.lose(now, (node, class), trouble);
        } else if let Some(Inbound::Up { node, class, .. }) = self.inbound.remove(&link) {
            self.outputs.push_back(LinkOutput::PeerGone { node, class, link });
        }
    }

    pub fn bytes(&mut self, now: Instant, link: LinkId) {
        if let Some((node, class)) = self.dialled.get(&link).copied() {
            if let Some(Dial::Up { heard, ping, .. }) = self.dial(node, class) {
                *heard = now;
                if ping.is_some() {
                    *ping = Some(now);
                }
            }
        } else if let Some(Inbound::Up { heard, .. }) = self.inbound.get_mut(&link) {
            *heard = now;
        }
    }

    pub fn message(&mut self, now: Instant, link: LinkId, message: Message) {
        self.bytes(now, link);
        if let Some((node, class)) = self.dialled.get(&link).copied() {
            self.message_on_dialled(now, link, node, class, message);
        } else if self.inbound.contains_key(&link) {
            self.message_on_inbound(now, link, message);
        }
    }

    fn message_on_dialled(
        &mut self,
        now: Instant,
        link: LinkId,
        node: NodeId,
        class: LinkClass,
        message: Message,
    ) {
        let up = matches!(self.dial(node, class), Some(Dial::Up { .. }));
        match message.body {
            Body::Link(LinkMessage::Pong { .. }) => {
                if let Some(Dial::Up { ping, .. }) = self.dial(node, class) {
                    *ping = None;
                }
            }
            Body::Link(LinkMessage::Refused { reason }) => {
                self.drop_refused(now, link, (node, class), reason);
            }
            Body::Link(LinkMessage::Hello(hello)) => self.on_answer_hello(node, class, hello),
            Body::Link(LinkMessage::Proof { mac }) => {
                self.on_answer_proof(now, link, node, class, mac);
            }
            Body::Link(_) | Body::Answer(_) | Body::Session(_) if up => self
                .outputs
                .push_back(LinkOutput::Message { node, class, link, dialled: true, message }),
            Body::Link(_) | Body::Replica(_) | Body::Answer(_) | Body::Session(_) => {
                self.drop_dialled(now, link, (node, class), PeerTrouble::HungUp);
            }
        }
    }

    fn drop_refused(
        &mut self,
        now: Instant,
        link: LinkId,
        (node, class): (NodeId, LinkClass),
        reason: LinkRefusal,
    ) {
        self.outputs.push_back(LinkOutput::Refused { node: Some(node), reason });
        self.drop_dialled(now, link, (node, class), PeerTrouble::Refused(reason));
    }

    fn on_answer_hello(&mut self, node: NodeId, class: LinkClass, hello: Hello) {
        if let Some(Dial::Greeting { peer, .. }) = self.dial(node, class) {
            *peer = Some(hello);
        }
    }

    fn on_answer_proof(
        &mut self,
        now: Instant,
        link: LinkId,
        node: NodeId,
        class: LinkClass,
        mac: [u8; 32],
    ) {
        let Some(Dial::Greeting { nonce, peer: Some(theirs), .. }) = self.dial(node, class) else {
            self.drop_dialled(now, link, (node, class), PeerTrouble::HungUp);
            return;
        };
        let (nonce, theirs) = (*nonce, theirs.clone());
        let parts = Proof { dialler: nonce, acceptor: theirs.nonce, speaker: node, class };
        let wanted = self.incarnations.get(&node).copied();
        let reason = if theirs.cluster != self.cluster {
            Some(LinkRefusal::WrongCluster)
        } else if theirs.node != node || theirs.to != self.me {
            Some(LinkRefusal::WrongNode)
        } else if !verify(&self.secret, &parts, &mac) {
            Some(LinkRefusal::BadProof)
        } else if wanted != Some(theirs.incarnation) {
            Some(LinkRefusal::WrongIncarnation)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.drop_refused(now, link, (node, class), reason);
            return;
        }
        let mac = proof(&self.secret, &Proof { speaker: self.me, ..parts });
        self.say(link, LinkMessage::Proof { mac });
        let next_ping = now + self.settings.ping_interval;
        self.set_dial(node, class, Dial::Up { link, heard: now, ping: None, next_ping });
        if let Some(peer) = self.peers.get_mut(&node) {
            if class == LinkClass::Data {
                peer.missing_since = None;
            } else if !peer.seen || peer.down {
                // It is there; its data link gets its own time.
                peer.missing_since = Some(now);
            }
            peer.seen = true;
            peer.down = false;
        }
        self.outputs.push_back(LinkOutput::Up { node, class });
    }

    fn drop_dialled(
        &mut self,
        now: Instant,
        link: LinkId,
        of: (NodeId, LinkClass),
        trouble: PeerTrouble,
    ) {
        self.outputs.push_back(LinkOutput::Close { link });
        self.dialled.remove(&link);
        self.lose(now, of, trouble);
    }

    fn lose(&mut self, now: Instant, (node, class): (NodeId, LinkClass), trouble: PeerTrouble) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.note_trouble(now, class, trouble);
        }
        let again = now + self.settings.redial_interval;
        let was_up = self.up(node, class).is_some();
        self.set_dial(node, class, Dial::Idle { again });
        if was_up {
            if class == LinkClass::Data
                && let Some(peer) = self.peers.get_mut(&node)
            {
                peer.missing_since = Some(now);
            }
            self.outputs.push_back(LinkOutput::Lost { node, class });
        } else {
            self.judge_missing(now, node, self.settings.reconnect_grace);
        }
    }

    /// Closed, and dialled in vain for as long as the grace: down.
    fn judge_missing(&mut self, now: Instant, node: NodeId, grace: Duration) {
        if let Some(peer) = self.peers.get_mut(&node)
            && let Some(since) = peer.missing_since
            && now.since(since) >= if peer.seen { grace } else { self.settings.start_wait }
            && !peer.down
        {
            peer.down = true;
            self.outputs.push_back(LinkOutput::Down { node });
        }
    }

    fn forget(&mut self, node: NodeId) {
        let links: Vec<_> = self
            .dialled
            .iter()
            .filter(|(_, (who, _))| *who == node)
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.dialled.remove(&link);
            self.outputs.push_back(LinkOutput::Close { link });
        }
        for class in CLASSES {
            if let Some(link) = self.inbound(node, class) {
                self.drop_inbound(link);
            }
        }
        if self.peers.remove(&node).is_some() {
            self.outputs.push_back(LinkOutput::Down { node });
        }
    }

    /// After a gap in the own loop nobody is judged by what was not read or dialled meanwhile.
    // rule: node/an-own-gap-blames-nobody
    fn look_for_gap(&mut self, now: Instant) {
        let late = self.expected.map_or(Duration::ZERO, |due| now.since(due));
        if late > OWN_GAP {
            self.hung = true;
            self.expected = Some(now);
            for peer in self.peers.values_mut() {
                peer.missing_since = peer.missing_since.map(|since| since + late);
            }
        }
    }

    /// Dials, pings, and judges silence. Called after the driver drained its sockets.
    pub fn tick(&mut self, now: Instant) {
        self.look_for_gap(now);
        let gap = std::mem::take(&mut self.hung);
        self.gap = gap;
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            for class in CLASSES {
                self.tick_dial(now, node, class, gap);
            }
            self.judge_missing(now, node, self.settings.ping_silence);
        }
        let silence = self.settings.ping_silence * 5;
        let old: Vec<_> = self
            .inbound
            .iter()
            .filter(|(_, state)| match state {
                Inbound::Fresh { since } | Inbound::Greeting { since, .. } => {
                    now.since(*since) > silence
                }
                Inbound::Up { heard, .. } => !gap && now.since(*heard) > silence,
            })
            .map(|(link, _)| *link)
            .collect();
        for link in old {
            self.drop_inbound(link);
        }
        self.expected = self.next_deadline();
    }

    fn tick_dial(&mut self, now: Instant, node: NodeId, class: LinkClass, gap: bool) {
        let settings = self.settings;
        let Some(dial) = self.dial(node, class) else {
            return;
        };
        match dial {
            Dial::Idle { again } if *again <= now => {
                let link = LinkId(self.next_link << 1);
                self.next_link += 1;
                self.dialled.insert(link, (node, class));
                self.set_dial(node, class, Dial::Dialling { link, since: now });
                self.outputs.push_back(LinkOutput::Connect { link, node, class });
            }
            Dial::Dialling { link, since } | Dial::Greeting { link, since, .. }
                if now.since(*since) >= settings.ping_silence =>
            {
                let (link, silent) = (*link, PeerTrouble::Silent(settings.ping_silence));
                self.drop_dialled(now, link, (node, class), silent);
            }
            Dial::Up { ping: Some(sent), link, .. } => {
                if gap {
                    *sent = now;
                } else if now.since(*sent) >= settings.ping_silence {
                    let (link, silent) = (*link, PeerTrouble::Silent(settings.ping_silence));
                    self.drop_dialled(now, link, (node, class), silent);
                    if class == LinkClass::Data {
                        self.judge_missing(now, node, Duration::ZERO);
                    }
                }
            }
            Dial::Up { ping: None, link, next_ping, .. } if *next_ping <= now => {
                let link = *link;
                *next_ping = now + settings.ping_interval;
                if let Some(Dial::Up { ping, .. }) = self.dial(node, class) {
                    *ping = Some(now);
                }
                self.say(link, LinkMessage::Ping { number: now.nanos() });
            }
            Dial::Idle { .. } | Dial::Dialling { .. } | Dial::Greeting { .. } | Dial::Up { .. } => {
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let settings = &self.settings;
        let dials = self.peers.values().flat_map(|peer| peer.dials.values());
        let of_dials = dials.map(|dial| match dial {
            Dial::Idle { again } => *again,
            Dial::Dialling { since, .. } | Dial::Greeting { since, .. } => {
                *since + settings.ping_silence
            }
            Dial::Up { ping: Some(sent), .. } => *sent + settings.ping_silence,
            Dial::Up { ping: None, next_ping, .. } => *next_ping,
        });
        let of_missing = self.peers.values().filter(|peer| !peer.down).filter_map(|peer| {
            let wait = if peer.seen { settings.ping_silence } else { settings.start_wait };
            peer.missing_since.map(|since| since + wait)
        });
        of_dials.chain(of_missing).min()
    }

    fn dial(&mut self, node: NodeId, class: LinkClass) -> Option<&mut Dial> {
        self.peers.get_mut(&node)?.dials.get_mut(&class)
    }

    fn set_dial(&mut self, node: NodeId, class: LinkClass, dial: Dial) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.dials.insert(class, dial);
        }
    }

    fn nonce(&mut self) -> [u8; 16] {
        let (high, low) = (self.prng.next_u64(), self.prng.next_u64());
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    fn hello(&self, to: NodeId, class: LinkClass, nonce: [u8; 16]) -> Hello {
        Hello {
            cluster: self.cluster,
            node: self.me,
            to,
            incarnation: self.incarnation,
            class,
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            nonce,
        }
    }
}
