//! Each peer's breaker: whether requests go to it, and why not. It is read off what the owners of volumes
//! act on: links that are up, and `LinkOutput::Down`.

use super::{Links, Peer};
use gabion_types::{Breaker, Duration, Instant, NodeId};
use gabion_wire::LinkClass;
use gabion_wire::link::LinkRefusal;
use std::fmt;

/// Why requests do not go to a peer: what its links for them met last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerTrouble {
    NotSeen,
    /// Dialled in vain: refused, or no way there.
    NotConnected,
    /// It closed before both had greeted.
    HungUp,
    Broke,
    /// No byte for so long, though something was asked of it.
    Silent(Duration),
    /// It takes nothing of what was sent, for so long.
    Stuck(Duration),
    Refused(LinkRefusal),
}

impl fmt::Display for PeerTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = |time: &Duration| time.as_secs_f64();
        match self {
            Self::NotSeen => f.write_str("it has not been seen since this process began"),
            Self::NotConnected => f.write_str("no connection to it can be made"),
            Self::HungUp => f.write_str("it hangs up before it has greeted"),
            Self::Broke => f.write_str("the connection to it broke"),
            Self::Silent(time) => write!(f, "no byte of it for {} s", secs(time)),
            Self::Stuck(time) => write!(f, "it takes no byte for {} s", secs(time)),
            Self::Refused(reason) => f.write_str(match reason {
                LinkRefusal::WrongCluster => "refused: it is of another cluster",
                LinkRefusal::WrongNode => "refused: another node is at its address",
                LinkRefusal::WrongIncarnation => {
                    "refused: the cluster map names another process of that node"
                }
                LinkRefusal::NoCommonProtocol => "refused: no common version of the protocol",
                LinkRefusal::BadProof => "refused: it has another secret",
                LinkRefusal::UnknownNode => "refused: it is no member of the cluster",
            }),
        }
    }
}

impl Peer {
    /// Both links that an owner needs are up.
    pub(super) fn usable(&self) -> bool {
        self.is_up(LinkClass::Data) && self.is_up(LinkClass::Bulk)
    }

    /// A link is gone, or could not be made. Order: before its state is written.
    pub(super) fn note_trouble(&mut self, now: Instant, class: LinkClass, trouble: PeerTrouble) {
        if class == LinkClass::Control {
            return;
        }
        let since = if self.usable() { now } else { self.trouble.0 };
        self.trouble = (since, trouble);
    }
}

impl Links {
    // rule: node/a-breaker-says-what-the-owners-act-on
    /// Open: owners do without it. Half-open: it is dialled or greeted, and not given up.
    pub fn breaker(&self, node: NodeId) -> Option<Breaker<PeerTrouble>> {
        let peer = self.peers.get(&node)?;
        let (since, why) = peer.trouble;
        Some(match (peer.usable(), peer.down) {
            (true, _) => Breaker::Closed,
            (false, true) => Breaker::Open { since, why },
            (false, false) => Breaker::HalfOpen { since, why },
        })
    }
}
