//! Handshakes of guests: answered when nothing of guests that are gone can come after.

use super::{Session, SessionOutput, Sessions, State, Via};
use gabion_types::{Flaw, Instant, NodeId};
use gabion_wire::SessionMessage;
use std::collections::BTreeSet;

/// A guest that waits for its handshake's answer.
#[derive(Clone, Debug)]
pub(super) struct Attach {
    pub(super) node: NodeId,
    pub(super) guest: u64,
    pub(super) flush: u64,
    pub(super) waiting: BTreeSet<NodeId>,
    pub(super) since: Instant,
    /// Guests of that node have an exclusive volume.
    pub(super) taken_by: Option<NodeId>,
}

impl Sessions {
    pub(super) fn on_attach(&mut self, now: Instant, node: NodeId, via: Via, guest: u64) {
        if self.sessions.get(&node).and_then(Session::via) != Some(via)
            || self.attaches.iter().any(|attach| attach.node == node && attach.guest == guest)
        {
            return;
        }
        if let Some(session) = self.sessions.get_mut(&node) {
            session.guests.insert(guest);
        }
        let flush = self.next_flush;
        self.next_flush += 1;
        let (volume, owner_epoch) = (self.volume, self.owner_epoch);
        let mut waiting = BTreeSet::new();
        for (other, session) in self.sessions.iter_mut().filter(|(other, _)| **other != node) {
            match session.state {
                State::Open { via } | State::Gathering { via, .. } => {
                    session.flushing.insert(flush);
                    waiting.insert(*other);
                    let message = SessionMessage::Flush { volume, owner_epoch, number: flush };
                    self.outputs.push_back(SessionOutput::Send { node: *other, via, message });
                }
                State::Awaited { .. } | State::Broken { .. } => {
                    waiting.insert(*other);
                }
                State::Void { .. } => {}
            }
        }
        let taken_by = None;
        self.attaches.push(Attach { node, guest, flush, waiting, since: now, taken_by });
    }

    /// A front that came back is asked anew: it may hold what gone guests sent and it has not read.
    pub(super) fn flush_for_waiting(&mut self, node: NodeId, via: Via) {
        let Some(session) = self.sessions.get_mut(&node) else {
            return;
        };
        let (volume, owner_epoch) = (self.volume, self.owner_epoch);
        for attach in self.attaches.iter().filter(|attach| attach.waiting.contains(&node)) {
            session.flushing.insert(attach.flush);
            let message = SessionMessage::Flush { volume, owner_epoch, number: attach.flush };
            self.outputs.push_back(SessionOutput::Send { node, via, message });
        }
    }

    pub(super) fn on_flushed(&mut self, node: NodeId, via: Via, number: u64, guests: bool) {
        let Some(session) = self.sessions.get_mut(&node) else {
            return;
        };
        if session.via() != Some(via) || !session.flushing.remove(&number) {
            return;
        }
        // Who was let in before that was asked has heard of it, on the same link; or it is gone.
        if !guests {
            session.admitted.retain(|_, next_flush| *next_flush > number);
        }
        for attach in &mut self.attaches {
            if attach.flush == number {
                attach.waiting.remove(&node);
                if guests && self.exclusive {
                    attach.taken_by = Some(node);
                }
            }
        }
    }

    /// Another node whose guests have the volume to themselves.
    // rule: node/exclusive-to-one-node
    fn kept_out_by(&self, attach: &Attach) -> Option<NodeId> {
        let let_in = |(node, session): (&NodeId, &Session)| {
            (*node != attach.node && !session.admitted.is_empty()).then_some(*node)
        };
        let is_void = |node: &NodeId| {
            matches!(self.sessions.get(node).map(|it| &it.state), None | Some(State::Void { .. }))
        };
        let told = attach.taken_by.filter(|node| !is_void(node));
        told.or_else(|| self.sessions.iter().find_map(let_in))
    }

    pub(super) fn conclude_attaches(&mut self, now: Instant) {
        let mut slow = Vec::new();
        let mut ready = Vec::new();
        for attach in &mut self.attaches {
            attach.waiting.retain(|node| match self.sessions.get(node).map(|it| &it.state) {
                None | Some(State::Void { .. }) => false,
                Some(
                    State::Open { .. }
                    | State::Gathering { .. }
                    | State::Awaited { .. }
                    | State::Broken { .. },
                ) => true,
            });
            if attach.waiting.is_empty() {
                ready.push(attach.clone());
            } else {
                let over = attach.since + self.wait;
                let waiting = attach.waiting.iter().map(|node| (*node, over));
                slow.extend(waiting.filter(|(node, _)| *node != self.me));
            }
        }
        let late = slow
            .into_iter()
            .filter(|(node, over)| self.down.contains(node) || self.silent_at(*node, *over) <= now);
        let late: BTreeSet<NodeId> = late.map(|(node, _)| node).collect();
        self.void(late.into_iter().collect());
        if !self.serving {
            return;
        }
        let (volume, owner_epoch) = (self.volume, self.owner_epoch);
        for attach in ready {
            let (node, guest) = (attach.node, attach.guest);
            self.attaches.retain(|attach| attach.node != node || attach.guest != guest);
            let by = self
                .kept_out_by(&attach)
                .filter(|_| self.exclusive && !self.flaws.has(Flaw::KeepsNobodyOut));
            let next_flush = self.next_flush;
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let Some(via) = session.via() else { continue };
            let message = if let Some(by) = by {
                session.guests.remove(&guest);
                SessionMessage::KeptOut { volume, owner_epoch, guest, by }
            } else {
                if self.exclusive {
                    session.admitted.insert(guest, next_flush);
                    self.outputs.push_back(SessionOutput::LetIn);
                }
                SessionMessage::Attached { volume, owner_epoch, guest }
            };
            self.outputs.push_back(SessionOutput::Send { node, via, message });
        }
    }
}
