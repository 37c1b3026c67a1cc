//! What is said about a link: who is there, is it alive, may it go on owning.

use gabion_types::{ClusterId, Incarnation, NodeId, VolumeId};

/// The protocol that this build speaks, and the oldest that it still understands.
pub const PROTOCOL: u16 = 1;

/// A node dials each peer three times: what is small and urgent never stands behind what is large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkClass {
    /// Pings and renewals.
    Control,
    /// Owners' requests and forwarded guests' requests.
    Data,
    /// Filling of joiners, scrub.
    Bulk,
}

/// The first message in each direction; the dialler speaks first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub cluster: ClusterId,
    /// Who speaks.
    pub node: NodeId,
    /// Whom it means to speak to; another refuses (ports get reused).
    pub to: NodeId,
    pub incarnation: Incarnation,
    pub class: LinkClass,
    pub protocol_min: u16,
    pub protocol_max: u16,
    /// Drawn anew for each link; the other side proves the cluster secret over both.
    pub nonce: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkMessage {
    Hello(Hello),
    /// HMAC-SHA256 of both nonces (dialler's first), the speaker's node id and class, keyed by the
    /// cluster secret.
    Proof {
        mac: [u8; 32],
    },
    /// Said before closing: why the link is refused.
    Refused {
        reason: LinkRefusal,
    },
    Ping {
        number: u64,
    },
    Pong {
        number: u64,
    },
    /// To the manager: the node lease of this incarnation, counted by the sender from its send.
    Renew {
        incarnation: Incarnation,
        number: u64,
        term: u64,
    },
    /// Answered only after the leader confirmed its leadership since the renewal arrived.
    Renewed {
        number: u64,
    },
    /// The manager asks the owner's node to let a volume go; `idle`: only if no guest is on it.
    ReleaseVolume {
        volume: VolumeId,
        idle: bool,
    },
    /// This process is about to end: owners are to do without its disks, while it still answers.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRefusal {
    WrongCluster,
    WrongNode,
    /// The map names another incarnation of the speaker.
    WrongIncarnation,
    NoCommonProtocol,
    BadProof,
    /// Not a member of the cluster map.
    UnknownNode,
}
