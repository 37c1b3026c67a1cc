//! One message between two nodes.

use crate::link::LinkMessage;
use crate::replica::{ReplicaAnswer, ReplicaRequest};
use crate::session::SessionMessage;

/// Chosen by whoever asks; comes back with the answer. Unique among what is in flight on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Zero where nothing is answered.
    pub request: RequestId,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// About the link itself: hello, ping, renew.
    Link(LinkMessage),
    /// An owner asks a replica.
    Replica(ReplicaRequest),
    /// A replica answers its owner.
    Answer(ReplicaAnswer),
    /// A front node and an owner, about forwarded guests' requests.
    Session(SessionMessage),
}
