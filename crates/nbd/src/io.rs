//! What goes into an NBD connection and what comes out.

use bytes::Bytes;
use gabion_types::{GuestOp, GuestResult};

/// Names a part of a request on this connection until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Exactly as many bytes as `Connection::want` asked for.
    Received(Bytes),
    /// Answers `Effect::List`.
    Listed { exports: Vec<String> },
    /// Answers `Effect::Describe` and `Effect::Open`; none: there is no such export now.
    Export(Option<Export>),
    /// Answers `Effect::Open`: it may not, and why.
    Refused { why: String },
    /// Answers `Effect::Request`.
    Done { tag: Tag, result: GuestResult },
    /// The volume was deleted, the client evicted or the node stops: answer what is open, then
    /// close.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub size_bytes: u64,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// To the socket, in order; the pieces one behind the other.
    Send { pieces: Vec<Bytes> },
    /// The names of all exports are wanted.
    List,
    /// For INFO: nothing is attached.
    Describe { name: String },
    /// For GO and EXPORT_NAME: attach.
    Open { name: String },
    /// A request, or a part of at most `part_bytes` of one.
    Request { tag: Tag, op: GuestOp },
    /// Send what is queued, then close.
    Close,
}

/// How many bytes the connection can use next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// So many, no more: deliver them in one piece (of a write: in one aligned piece).
    Exactly(usize),
    /// Nothing now: it waits for an answer, or enough is in flight.
    Paused,
    Closed,
}
