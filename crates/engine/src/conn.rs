//! One connection: what is wanted of it, what is queued for it, what is under way on it.

use crate::arena::Arena;
use crate::op::{OpKey, Outgoing, Place, SEND_BYTES_MAX, SEND_PIECES_MAX, Space};
use crate::sockets::HangUp;
use bytes::{Buf, Bytes, BytesMut};
use gabion_types::Instant;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Room that a receive offers for small messages: one system call brings many.
pub(crate) const CHUNK_BYTES: usize = 32 << 10;
/// Less spare room than this is not worth a receive: a new chunk is begun.
const CHUNK_SPARE_MIN: usize = 4 << 10;
/// From this size on, what is wanted is received straight into aligned memory of its own.
pub(crate) const PLACE_BYTES_MIN: usize = 64 << 10;

pub(crate) struct Conn {
    pub(crate) socket: Rc<OwnedFd>,
    pub(crate) hang_up: HangUp,
    pub(crate) phase: Phase,
    pub(crate) hung: Hung,
    pub(crate) watch: Option<OpKey>,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Queue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting {
        by: Instant,
        op: OpKey,
    },
    Open,
    /// Closed by the caller; what is queued still goes out. No events come of it.
    Lingering {
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hung {
    No,
    /// The kernel said so; the caller is told when it has all data from before.
    Seen,
    Told,
}

#[derive(Default)]
pub(crate) struct Incoming {
    /// Received and not yet handed out, if no receive into it is under way.
    chunk: BytesMut,
    place: Option<Place>,
    /// Bytes that the caller waits for, in one piece. Zero: none.
    wanted: usize,
    pub(crate) op: Option<OpKey>,
}

#[derive(Default)]
pub(crate) struct Queue {
    pieces: VecDeque<Bytes>,
    /// Queued and under way.
    bytes: u64,
    pub(crate) op: Option<OpKey>,
    /// It stands in the engine's list of connections to send on.
    pub(crate) listed: bool,
}

impl Incoming {
    pub(crate) fn is_waiting(&self) -> bool {
        self.wanted > 0
    }

    /// The bytes, if they are there already. Else they are waited for.
    pub(crate) fn expect(&mut self, arena: &Arena, wanted: usize) -> Option<Bytes> {
        assert!(self.wanted == 0, "one expectation at a time");
        if wanted < PLACE_BYTES_MIN {
            if self.chunk.len() >= wanted {
                return Some(self.chunk.split_to(wanted).freeze());
            }
        } else {
            let mut buf = arena.take(wanted);
            let filled = self.chunk.len().min(wanted);
            buf[..filled].copy_from_slice(&self.chunk[..filled]);
            self.chunk.advance(filled);
            if filled == wanted {
                return Some(buf.into_bytes());
            }
            self.place = Some(Place { buf, filled });
        }
        self.wanted = wanted;
        None
    }

    /// Where the next receive puts its bytes; it comes back by `received`.
    pub(crate) fn space(&mut self) -> Space {
        if let Some(place) = self.place.take() {
            return Space::Place(place);
        }
        let missing = self.wanted.saturating_sub(self.chunk.len()).max(CHUNK_SPARE_MIN);
        if self.chunk.capacity() - self.chunk.len() < missing {
            self.chunk.reserve(missing.max(CHUNK_BYTES));
        }
        Space::Chunk(std::mem::take(&mut self.chunk))
    }

    /// A receive brought so many bytes. Returns what was waited for, when it is whole.
    pub(crate) fn received(&mut self, space: Space, bytes: usize) -> Option<Bytes> {
        match space {
            Space::Chunk(chunk) => {
                self.chunk = chunk;
                let whole = self.wanted > 0 && self.chunk.len() >= self.wanted;
                whole.then(|| self.chunk.split_to(std::mem::take(&mut self.wanted)).freeze())
            }
            Space::Place(mut place) => {
                place.filled += bytes;
                if place.filled == place.buf.len() {
                    self.wanted = 0;
                    return Some(place.buf.into_bytes());
                }
                self.place = Some(place);
                None
            }
        }
    }
}

impl Queue {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len() as u64;
            self.pieces.push_back(piece);
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As much as one call takes.
    pub(crate) fn next_message(&mut self) -> Option<Outgoing> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.pieces.front() {
            let full = pieces.len() >= SEND_PIECES_MAX
                || !pieces.is_empty() && bytes + next.len() > SEND_BYTES_MAX;
            if full {
                break;
            }
            bytes += next.len();
            pieces.extend(self.pieces.pop_front());
        }
        (!pieces.is_empty()).then(|| Outgoing::new(pieces))
    }

    /// So many bytes of it went out; the rest goes first next time.
    pub(crate) fn sent(&mut self, message: Outgoing, mut bytes: usize) {
        self.bytes -= bytes as u64;
        let mut rest = Vec::new();
        for mut piece in message.into_pieces() {
            let gone = bytes.min(piece.len());
            bytes -= gone;
            piece.advance(gone);
            if !piece.is_empty() {
                rest.push(piece);
            }
        }
        rest.into_iter().rev().for_each(|piece| self.pieces.push_front(piece));
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_in_part_goes_on_where_it_stopped() {
        let mut queue = Queue::default();
        for piece in ["abc", "", "defg", "h"] {
            queue.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(queue.bytes(), 8);
        let message = queue.next_message().unwrap();
        queue.push(Bytes::from_static(b"i"));
        queue.sent(message, 4);
        assert_eq!(queue.bytes(), 5);
        let rest = queue.next_message().unwrap().into_pieces();
        assert_eq!(rest.concat(), b"efghi");
    }

    #[test]
    fn a_message_is_bounded_in_pieces_and_bytes() {
        let mut queue = Queue::default();
        for _ in 0..SEND_PIECES_MAX + 1 {
            queue.push(Bytes::from_static(b"x"));
        }
        queue.push(Bytes::from(vec![0; 2 * SEND_BYTES_MAX]));
        assert_eq!(queue.next_message().unwrap().into_pieces().len(), SEND_PIECES_MAX);
        assert_eq!(queue.next_message().unwrap().into_pieces().len(), 1);
        assert_eq!(queue.next_message().unwrap().into_pieces()[0].len(), 2 * SEND_BYTES_MAX);
        assert!(queue.next_message().is_none());
    }
}
