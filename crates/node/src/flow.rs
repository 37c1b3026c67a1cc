//! How much of what links were given has not left this machine, and who waits for room on them.
//!
//! rule: node/a-link-is-given-what-it-can-send — a link that this node dialled is given data only
//! while less than a window of what it was given is unsent. What does not fit stays with the owner
//! or the front that has it, and both get their part of what becomes free.

use crate::io::LinkId;
use crate::node::Node;
use gabion_types::{Duration, Instant, NodeId, VolumeId};
use gabion_wire::{Body, LinkClass, Message, ReplicaDone};
use std::collections::{BTreeMap, VecDeque};

/// A driver tells of what left a link when it is so much of the window.
const REPORT_PART: u64 = 8;
/// What a message costs besides its payload, about.
const MESSAGE_BYTES: u64 = 128;

#[derive(Debug)]
struct Sending {
    /// Given and not known to have left.
    unsent: u64,
    /// When something left last, or when nothing was there to leave.
    progress: Instant,
}

#[derive(Debug)]
pub struct Flow {
    window: u64,
    sending: BTreeMap<LinkId, Sending>,
    /// Volumes whose owners hold data back, in the order in which they get room. Bounded by the
    /// volumes that are owned here.
    waiting: BTreeMap<(NodeId, LinkClass), VecDeque<VolumeId>>,
}

impl Flow {
    pub fn new(window: u64) -> Self {
        Self { window, sending: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    pub fn report_bytes(&self) -> u64 {
        (self.window / REPORT_PART).max(1)
    }

    pub fn opened(&mut self, now: Instant, link: LinkId) {
        self.sending.insert(link, Sending { unsent: 0, progress: now });
    }

    pub fn closed(&mut self, link: LinkId) {
        self.sending.remove(&link);
    }

    pub fn sent(&mut self, now: Instant, link: LinkId, message: &Message) {
        let report = self.report_bytes();
        if let Some(sending) = self.sending.get_mut(&link) {
            if sending.unsent < report {
                sending.progress = now;
            }
            sending.unsent += message_bytes(message);
        }
    }

    /// The driver's word: so much is unsent now.
    pub fn drained(&mut self, now: Instant, link: LinkId, unsent: u64) {
        if let Some(sending) = self.sending.get_mut(&link) {
            if unsent < sending.unsent {
                sending.progress = now;
            }
            sending.unsent = unsent;
        }
    }

    /// Bytes that the link may be given now; the last message may go over it.
    pub fn room(&self, link: LinkId) -> u64 {
        let unsent = self.sending.get(&link).map_or(0, |sending| sending.unsent);
        self.window.saturating_sub(unsent)
    }

    pub fn wait(&mut self, node: NodeId, class: LinkClass, volume: VolumeId) {
        let waiting = self.waiting.entry((node, class)).or_default();
        if !waiting.contains(&volume) {
            waiting.push_back(volume);
        }
    }

    /// All that were told to wait hear of the link's end in another way.
    pub fn nobody_waits(&mut self, node: NodeId, class: LinkClass) {
        self.waiting.remove(&(node, class));
    }

    /// Full links of which nothing has left for so long: nobody reads at the other end.
    pub fn stalled(&self, now: Instant, silence: Duration) -> Vec<LinkId> {
        let stalled = |sending: &&Sending| {
            sending.unsent >= self.window && now.since(sending.progress) >= silence
        };
        let links = self.sending.iter().filter(|(_, sending)| stalled(sending));
        links.map(|(link, _)| *link).collect()
    }

    pub fn next_deadline(&self, silence: Duration) -> Option<Instant> {
        let full = self.sending.values().filter(|sending| sending.unsent >= self.window);
        full.map(|sending| sending.progress + silence).min()
    }

    #[cfg(test)]
    pub fn unsent(&self, link: LinkId) -> Option<u64> {
        self.sending.get(&link).map(|sending| sending.unsent)
    }
}

/// What a message takes of a link's window.
pub fn message_bytes(message: &Message) -> u64 {
    let payload = match &message.body {
        Body::Replica(ask) => ask.op.payload(),
        Body::Session(session) => session.payload(),
        Body::Answer(answer) => match &answer.result {
            Ok(ReplicaDone::Blocks { data, .. }) => Some(data),
            Ok(
                ReplicaDone::Done
                | ReplicaDone::Fenced { .. }
                | ReplicaDone::Table { .. }
                | ReplicaDone::JoinStarted { .. },
            )
            | Err(_) => None,
        },
        Body::Link(_) => None,
    };
    MESSAGE_BYTES + payload.map_or(0, |data| data.len() as u64)
}

impl Node {
    /// A driver tells by `LinkBacklog` whenever so many bytes more have left a link.
    pub fn link_report_bytes(&self) -> u64 {
        self.flow.report_bytes()
    }

    pub(crate) fn on_link_backlog(&mut self, link: LinkId, unsent: u64) {
        self.flow.drained(self.now, link, unsent);
        if let Some((node, class)) = self.links.dialled_to(link) {
            self.grant_room(link, node, class);
        }
    }

    /// Forwarded requests and owners' data get half of the room each, if both wait; owners take
    /// turns, and so do fronts.
    fn grant_room(&mut self, link: LinkId, node: NodeId, class: LinkClass) {
        let forwards = class == LinkClass::Data && self.fronts.wait_for(node);
        let kept = if forwards { self.flow.room(link) / 2 } else { 0 };
        let count = self.flow.waiting.get(&(node, class)).map_or(0, VecDeque::len);
        for _ in 0..count {
            let room = self.flow.room(link).saturating_sub(kept);
            let next = self.flow.waiting.get_mut(&(node, class)).filter(|_| room > 0);
            let Some(volume) = next.and_then(VecDeque::pop_front) else { break };
            if self.owners.room(self.now, volume, (node, class), room) {
                self.flow.wait(node, class, volume);
            }
            self.pump();
        }
        self.fronts.look_again();
    }

    /// Nothing was taken from a full link for as long as silence is borne: the peer is stuck.
    // rule: node/only-a-stuck-link-is-closed
    pub(crate) fn close_stalled(&mut self) {
        if self.links.stood_still() {
            return;
        }
        let silence = self.settings.ping_silence;
        for link in self.flow.stalled(self.now, silence) {
            self.links.close_stuck(self.now, link, silence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use gabion_types::{ByteRange, Epoch, GuestOp};
    use gabion_wire::{RequestId, SessionMessage, SessionNumber};

    const LINK: LinkId = LinkId(2);

    fn message(bytes: usize) -> Message {
        let range = ByteRange::new(0, bytes as u64).unwrap();
        let op = GuestOp::Write { range, data: Bytes::from(vec![0; bytes]), fua: false };
        let body = Body::Session(SessionMessage::Request {
            volume: VolumeId::new(1),
            owner_epoch: Epoch::new(1).unwrap(),
            number: SessionNumber(1),
            guest: 1,
            op,
        });
        Message { request: RequestId(0), body }
    }

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    // rule: node/only-a-stuck-link-is-closed
    // promise: bounded
    #[test]
    fn only_a_full_link_that_nothing_leaves_is_stalled() {
        let silence = Duration::from_secs(1);
        let mut flow = Flow::new(1 << 20);
        flow.opened(at(0), LINK);
        assert_eq!(flow.room(LINK), 1 << 20);
        // A link that was idle for long is not stuck the moment that it is full.
        for _ in 0..4 {
            flow.sent(at(10_000), LINK, &message(256 << 10));
        }
        assert_eq!(flow.room(LINK), 0);
        assert_eq!(flow.stalled(at(10_999), silence), []);
        assert_eq!(flow.next_deadline(silence), Some(at(11_000)));
        // A slow one is not stuck.
        for step in 1..100u64 {
            flow.drained(at(10_000 + step * 900), LINK, 900 << 10);
            flow.sent(at(10_000 + step * 900), LINK, &message(128 << 10));
            assert_eq!(flow.stalled(at(10_000 + step * 900 + 899), silence), []);
        }
        let full_since = 10_000 + 99 * 900;
        flow.drained(at(full_since + 500), LINK, flow.unsent(LINK).unwrap());
        assert_eq!(flow.stalled(at(full_since + 1000), silence), [LINK]);
        flow.closed(LINK);
        assert_eq!(flow.stalled(at(full_since + 1000), silence), []);
        assert_eq!(flow.next_deadline(silence), None);
    }
}
