//! Links to peers: the node's names for them, the engine's connections, and the bytes between.

use super::address::Lookup;
use super::plane::{Plane, Who};
use bytes::Bytes;
use gabion_engine::{ConnHandle, HangUp};
use gabion_node::{Input, LinkId};
use gabion_types::NodeId;
use gabion_wire::{Assembler, Message, encode};
use std::collections::HashMap;

/// A link that is closed from here says so much more before it ends.
const LAST_WORD_BYTES_MAX: u64 = 4096;
/// Links that peers dialled. More are closed at once.
const ACCEPTED_MAX: usize = 512;

#[derive(Default)]
pub(crate) struct Links {
    links: HashMap<LinkId, Link>,
    accepted: usize,
    /// Numbers accepted links; odd ones only.
    numbers: u64,
    /// Links that were given enough since the node was last told what left them.
    sending: Vec<LinkId>,
}

enum Link {
    /// Its peer's name is being looked up.
    Resolving,
    Dialling {
        conn: ConnHandle,
    },
    Up {
        conn: ConnHandle,
        assembler: Assembler,
        accepted: bool,
        /// What the node takes for unsent: the last word on it and what came since.
        given: u64,
    },
}

impl Plane {
    pub(crate) fn dial(&mut self, link: LinkId, node: NodeId) {
        let in_map = self.node.map().node(node).map(|entry| entry.info.peer.as_str());
        let Some(address) = in_map.or_else(|| self.voters.get(&node).map(String::as_str)) else {
            return self.local.push_back(Input::LinkClosed { link });
        };
        match self.resolver.look_up(link, address) {
            Lookup::Known(address) => self.dial_at(link, address),
            Lookup::Asked => {
                self.links.links.insert(link, Link::Resolving);
            }
            Lookup::Failed => self.local.push_back(Input::LinkClosed { link }),
        }
    }

    pub(crate) fn take_resolved(&mut self) {
        while let Some((link, address)) = self.resolver.next() {
            if !matches!(self.links.links.get(&link), Some(Link::Resolving)) {
                continue;
            }
            self.links.links.remove(&link);
            match address {
                Some(address) => self.dial_at(link, address),
                None => self.local.push_back(Input::LinkClosed { link }),
            }
        }
        self.settle();
    }

    fn dial_at(&mut self, link: LinkId, address: std::net::SocketAddr) {
        match self.engine.connect_tcp(address, HangUp::AfterData) {
            Ok(conn) => {
                self.who.insert(conn, Who::Link(link));
                self.links.links.insert(link, Link::Dialling { conn });
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a peer could not be dialled");
                self.local.push_back(Input::LinkClosed { link });
            }
        }
    }

    pub(crate) fn on_dialled(&mut self, conn: ConnHandle, link: LinkId) {
        let state = Link::Up { conn, assembler: Assembler::new(), accepted: false, given: 0 };
        self.links.links.insert(link, state);
        self.feed(Input::Connected { link });
        self.read_link(link);
    }

    pub(crate) fn on_dial_failed(&mut self, link: LinkId) {
        self.links.links.remove(&link);
        self.feed(Input::LinkClosed { link });
    }

    pub(crate) fn on_link_accepted(&mut self, conn: ConnHandle) {
        if self.links.accepted >= ACCEPTED_MAX {
            return self.engine.close(conn);
        }
        let link = LinkId(self.links.numbers << 1 | 1);
        self.links.numbers += 1;
        self.links.accepted += 1;
        self.who.insert(conn, Who::Link(link));
        let state = Link::Up { conn, assembler: Assembler::new(), accepted: true, given: 0 };
        self.links.links.insert(link, state);
        self.feed(Input::Accepted { link });
        self.read_link(link);
    }

    /// Begins to read, or goes on with what is there.
    fn read_link(&mut self, link: LinkId) {
        if let Some(bytes) = self.wanted_of(link) {
            self.on_link_bytes(link, bytes);
        }
    }

    fn wanted_of(&mut self, link: LinkId) -> Option<Bytes> {
        match self.links.links.get(&link)? {
            Link::Up { conn, assembler, .. } => self.engine.expect(*conn, assembler.want()),
            Link::Resolving | Link::Dialling { .. } => None,
        }
    }

    /// Bytes that were expected are there; goes on while more are.
    pub(crate) fn on_link_bytes(&mut self, link: LinkId, bytes: Bytes) {
        let mut next = Some(bytes);
        let mut whole = false;
        while let Some(bytes) = next {
            let Some(Link::Up { assembler, .. }) = self.links.links.get_mut(&link) else { return };
            match assembler.received(bytes) {
                Ok(Some(message)) => {
                    whole = true;
                    self.feed(Input::Peer { link, message });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(?link, %error, "a peer's link is closed: it sent what is no message");
                    return self.on_link_gone(link);
                }
            }
            next = self.wanted_of(link);
        }
        if !whole {
            self.feed(Input::PeerBytes { link });
        }
    }

    /// It hung up, or has to be closed from here.
    pub(crate) fn on_link_gone(&mut self, link: LinkId) {
        if let Some(conn) = self.forget_link(link) {
            self.engine.close(conn);
            self.feed(Input::LinkClosed { link });
        }
    }

    /// The node does not want it any more. A word that says why still goes out; requests that wait
    /// on a link that is given up don't.
    pub(crate) fn close_link(&mut self, link: LinkId) {
        let Some(conn) = self.forget_link(link) else { return };
        if self.engine.send_backlog(conn) <= LAST_WORD_BYTES_MAX {
            self.engine.close_after_send(conn);
        } else {
            self.engine.close(conn);
        }
    }

    fn forget_link(&mut self, link: LinkId) -> Option<ConnHandle> {
        let conn = match self.links.links.remove(&link)? {
            Link::Resolving => return None,
            Link::Dialling { conn } => conn,
            Link::Up { conn, accepted, .. } => {
                self.links.accepted -= usize::from(accepted);
                conn
            }
        };
        self.who.remove(&conn);
        Some(conn)
    }

    pub(crate) fn send_link(&mut self, link: LinkId, message: &Message) {
        let report = self.node.link_report_bytes();
        let Some(Link::Up { conn, given, .. }) = self.links.links.get_mut(&link) else { return };
        match encode(message) {
            Ok(encoded) => {
                let bytes = encoded.byte_count() as u64;
                if *given < report && *given + bytes >= report {
                    self.links.sending.push(link);
                }
                *given += bytes;
                let pieces = [Some(encoded.head), encoded.payload].into_iter().flatten();
                self.engine.send(*conn, pieces);
            }
            Err(error) => {
                tracing::error!(?link, %error, "a peer's link is closed: it cannot be sent to");
                if let Some(conn) = self.forget_link(link) {
                    self.engine.close(conn);
                    self.local.push_back(Input::LinkClosed { link });
                }
            }
        }
    }

    /// Tells the node of links that much has left.
    pub(crate) fn report_backlogs(&mut self) {
        let report = self.node.link_report_bytes();
        for link in std::mem::take(&mut self.links.sending) {
            let Some(Link::Up { conn, given, .. }) = self.links.links.get_mut(&link) else {
                continue;
            };
            let unsent = self.engine.send_backlog(*conn);
            let left = given.saturating_sub(unsent) >= report;
            if left {
                *given = unsent;
            }
            // What is sent meanwhile lists it again only if it is below.
            if *given >= report {
                self.links.sending.push(link);
            }
            if left {
                self.feed(Input::LinkBacklog { link, unsent });
            }
        }
    }
}
