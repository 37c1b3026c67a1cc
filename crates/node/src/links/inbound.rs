//! Links that peers dialled: greeted once the peer has proven that it knows the cluster's secret.

use super::{LinkOutput, Links};
use crate::io::LinkId;
use crate::proof::{Proof, proof, verify};
use gabion_types::{Instant, NodeId};
use gabion_wire::link::LinkRefusal;
use gabion_wire::{Body, Hello, LinkClass, LinkMessage, Message, PROTOCOL};

/// Links that peers dialled and that are not greeted yet. More are closed at once.
const GREETING_MAX: usize = 64;

/// A link that a peer dialled.
#[derive(Clone, Debug)]
pub(super) enum Inbound {
    Fresh { since: Instant },
    Greeting { since: Instant, theirs: Hello, nonce: [u8; 16] },
    Up { node: NodeId, class: LinkClass, heard: Instant },
}

impl Links {
    pub fn accepted(&mut self, now: Instant, link: LinkId) {
        let greeting = |state: &&Inbound| !matches!(state, Inbound::Up { .. });
        if self.inbound.values().filter(greeting).count() >= GREETING_MAX {
            self.outputs.push_back(LinkOutput::Close { link });
            return;
        }
        self.inbound.insert(link, Inbound::Fresh { since: now });
    }

    pub(super) fn message_on_inbound(&mut self, now: Instant, link: LinkId, message: Message) {
        let Some(state) = self.inbound.get(&link).cloned() else {
            return;
        };
        match (state, message.body) {
            (Inbound::Fresh { .. }, Body::Link(LinkMessage::Hello(theirs))) => {
                self.on_hello(now, link, theirs);
            }
            (Inbound::Greeting { theirs, nonce, .. }, Body::Link(LinkMessage::Proof { mac })) => {
                self.on_proof(now, link, &theirs, nonce, mac);
            }
            (Inbound::Up { .. }, Body::Link(LinkMessage::Ping { number })) => {
                self.say(link, LinkMessage::Pong { number });
            }
            (Inbound::Up { node, class, .. }, body) => {
                let message = Message { request: message.request, body };
                self.outputs.push_back(LinkOutput::Message {
                    node,
                    class,
                    link,
                    dialled: false,
                    message,
                });
            }
            (Inbound::Fresh { .. } | Inbound::Greeting { .. }, _) => self.drop_inbound(link),
        }
    }

    fn on_hello(&mut self, now: Instant, link: LinkId, theirs: Hello) {
        let reason = if theirs.cluster != self.cluster {
            Some(LinkRefusal::WrongCluster)
        } else if theirs.to != self.me {
            Some(LinkRefusal::WrongNode)
        } else if theirs.protocol_min > PROTOCOL || theirs.protocol_max < PROTOCOL {
            Some(LinkRefusal::NoCommonProtocol)
        } else {
            match self.incarnations.get(&theirs.node) {
                None => Some(LinkRefusal::UnknownNode),
                Some(known) if *known != theirs.incarnation => Some(LinkRefusal::WrongIncarnation),
                Some(_) => None,
            }
        };
        if let Some(reason) = reason {
            self.refuse(link, Some(theirs.node), reason);
            return;
        }
        let nonce = self.nonce();
        let hello = self.hello(theirs.node, theirs.class, nonce);
        self.say(link, LinkMessage::Hello(hello));
        let mac = proof(
            &self.secret,
            &Proof {
                dialler: theirs.nonce,
                acceptor: nonce,
                speaker: self.me,
                class: theirs.class,
            },
        );
        self.say(link, LinkMessage::Proof { mac });
        self.inbound.insert(link, Inbound::Greeting { since: now, theirs, nonce });
    }

    /// A new link of a peer makes the old one's rest void.
    fn on_proof(
        &mut self,
        now: Instant,
        link: LinkId,
        theirs: &Hello,
        nonce: [u8; 16],
        mac: [u8; 32],
    ) {
        let (node, class) = (theirs.node, theirs.class);
        let parts = Proof { dialler: theirs.nonce, acceptor: nonce, speaker: node, class };
        if !verify(&self.secret, &parts, &mac) {
            self.refuse(link, Some(node), LinkRefusal::BadProof);
            return;
        }
        if let Some(older) = self.inbound(node, class) {
            self.drop_inbound(older);
        }
        self.inbound.insert(link, Inbound::Up { node, class, heard: now });
        let incarnation = theirs.incarnation;
        self.outputs.push_back(LinkOutput::PeerUp { node, class, link, incarnation });
    }

    fn refuse(&mut self, link: LinkId, node: Option<NodeId>, reason: LinkRefusal) {
        self.say(link, LinkMessage::Refused { reason });
        self.outputs.push_back(LinkOutput::Refused { node, reason });
        self.drop_inbound(link);
    }

    pub(super) fn drop_inbound(&mut self, link: LinkId) {
        self.outputs.push_back(LinkOutput::Close { link });
        if let Some(Inbound::Up { node, class, .. }) = self.inbound.remove(&link) {
            self.outputs.push_back(LinkOutput::PeerGone { node, class, link });
        }
    }

    /// The link that a peer dialled to this node.
    pub fn inbound(&self, node: NodeId, class: LinkClass) -> Option<LinkId> {
        self.inbound.iter().find_map(|(link, state)| match state {
            Inbound::Up { node: who, class: what, .. } if *who == node && *what == class => {
                Some(*link)
            }
            Inbound::Up { .. } | Inbound::Fresh { .. } | Inbound::Greeting { .. } => None,
        })
    }
}
