//! Links to peers: the node's names for them, the engine's connections, and the bytes between.

use super::address::Lookup;
use super::plane::{Plane, Who};
use bytes::Bytes;
use gabion_engine::{ConnHandle, HangUp};
use gabion_node::{Input, LinkId};
use gabion_types::NodeId;
use gabion_wire::{Assembler, Message, encode};
use std::collections::HashMap;

// promise: bounded
/// Bytes queued for one link. More: the peer doesn't read, and the link is closed.
const LINK_BACKLOG_MAX: u64 = 64 << 20;
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
        let state = Link::Up { conn, assembler: Assembler::new(), accepted: false };
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
        let state = Link::Up { conn, assembler: Assembler::new(), accepted: true };
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
        let Some(Link::Up { conn, .. }) = self.links.links.get(&link) else { return };
        let conn = *conn;
        let fault = match encode(message) {
            Ok(encoded) => {
                self.engine.send(conn, [Some(encoded.head), encoded.payload].into_iter().flatten());
                let queued = self.engine.send_backlog(conn);
                (queued > LINK_BACKLOG_MAX).then(|| format!("{queued} bytes wait for it"))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            tracing::error!(?link, fault, "a peer's link is closed: it cannot be sent to");
            if let Some(conn) = self.forget_link(link) {
                self.engine.close(conn);
                self.local.push_back(Input::LinkClosed { link });
            }
        }
    }
}
