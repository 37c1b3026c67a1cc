//! NBD guests: the node's names for them and the engine's connections.

use super::plane::{Plane, Who};
use bytes::Bytes;
use gabion_engine::{Caller, ConnHandle};
use gabion_node::{GuestId, Input};
use std::collections::BTreeMap;
use std::sync::Arc;

// promise: bounded
/// Bytes of answers that one guest has not read. More: nothing more is read from it until it reads.
/// Answers to what was taken before may still come on top; the limits of its NBD core bound those.
const GUEST_BACKLOG_MAX: u64 = 8 << 20;

#[derive(Default)]
pub(crate) struct NbdGuests {
    guests: BTreeMap<GuestId, NbdGuest>,
    /// Numbers guests; odd ones only.
    numbers: u64,
    /// Guests with a `held` want.
    held: Vec<GuestId>,
    /// Who they are. Shared with what was published last.
    pub(crate) callers: Arc<BTreeMap<GuestId, Caller>>,
}

struct NbdGuest {
    conn: ConnHandle,
    /// The connection's core wants so many bytes, and gets them when its answers were read.
    held: Option<usize>,
}

impl Plane {
    pub(crate) fn on_guest_accepted(&mut self, conn: ConnHandle) {
        let guest = GuestId(self.nbd.numbers << 1 | 1);
        self.nbd.numbers += 1;
        if let Some(caller) = self.engine.caller(conn) {
            Arc::make_mut(&mut self.nbd.callers).insert(guest, caller);
        }
        self.who.insert(conn, Who::Guest(guest));
        self.nbd.guests.insert(guest, NbdGuest { conn, held: None });
        self.feed(Input::NbdAccepted { guest });
    }

    pub(crate) fn on_guest_bytes(&mut self, guest: GuestId, bytes: Bytes) {
        self.feed(Input::NbdBytes { guest, bytes });
    }

    pub(crate) fn on_guest_gone(&mut self, guest: GuestId) {
        if let Some(NbdGuest { conn, .. }) = self.forget_guest(guest) {
            self.engine.close(conn);
            self.feed(Input::GuestClosed { guest });
        }
    }

    pub(crate) fn want_guest(&mut self, guest: GuestId, bytes: usize) {
        let Some(state) = self.nbd.guests.get_mut(&guest) else { return };
        if self.engine.send_backlog(state.conn) > GUEST_BACKLOG_MAX {
            state.held = Some(bytes);
            self.nbd.held.push(guest);
        } else if let Some(bytes) = self.engine.expect(state.conn, bytes) {
            self.local.push_back(Input::NbdBytes { guest, bytes });
        }
    }

    /// Reads on where answers were read meanwhile.
    pub(crate) fn retry_held(&mut self) {
        for guest in std::mem::take(&mut self.nbd.held) {
            let held = self.nbd.guests.get_mut(&guest).and_then(|state| state.held.take());
            if let Some(bytes) = held {
                self.want_guest(guest, bytes);
            }
        }
        self.settle();
    }

    pub(crate) fn send_guest(&mut self, guest: GuestId, pieces: Vec<Bytes>) {
        if let Some(state) = self.nbd.guests.get(&guest) {
            self.engine.send(state.conn, pieces);
        }
    }

    /// The node is done with it; what it said last still goes out.
    pub(crate) fn close_guest(&mut self, guest: GuestId) {
        if let Some(NbdGuest { conn, .. }) = self.forget_guest(guest) {
            self.engine.close_after_send(conn);
        }
    }

    fn forget_guest(&mut self, guest: GuestId) -> Option<NbdGuest> {
        let state = self.nbd.guests.remove(&guest)?;
        self.who.remove(&state.conn);
        if self.nbd.callers.contains_key(&guest) {
            Arc::make_mut(&mut self.nbd.callers).remove(&guest);
        }
        Some(state)
    }
}
