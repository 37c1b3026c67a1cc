//! The consensus log, behind a trait of our own: a second kind can take openraft's place.

pub mod disk;
mod election;
mod log;
mod machine;
mod membership;
mod network;
mod openraft_store;
pub(crate) mod types;

#[cfg(test)]
mod tests;

pub use machine::Replica;
pub(crate) use machine::apply;
pub use network::Answerer;
pub use openraft_store::{ConsensusConfig, ConsensusError, OpenraftStore, Voter};

use gabion_cluster::{Command, Map};
use gabion_types::{MapIndex, NodeId};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// What came out of the log, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Committed {
    Entry {
        index: MapIndex,
        command: Command,
    },
    /// The entries up to `index` are not to be had any more: the whole map as of then.
    Restored {
        index: MapIndex,
        map: Box<Map>,
    },
}

/// Who leads, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderView {
    pub term: u64,
    pub leader: Option<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this node does not lead; {leader:?} may")]
    NotLeader { leader: Option<NodeId> },
    #[error("too many entries wait for a majority")]
    Full,
    #[error("the leader cannot be reached")]
    Unreachable,
    #[error("the consensus has stopped")]
    Stopped,
}

/// A replicated log of commands with one leader at a time.
#[tonic::async_trait]
pub trait MetaStore: Send + Sync {
    /// Hands a command to the leader, wherever it is. Done means: it stands in the leader's log. It
    /// may still get lost; what is committed is known from the committed stream only.
    async fn propose(&self, command: Command) -> Result<(), ProposeError>;

    /// As `propose`, when this node leads.
    async fn propose_here(&self, command: Command) -> Result<(), ProposeError>;

    /// Whether this node leads now, in which term: confirmed with a majority after the call began,
    /// and everything committed before is in the committed stream and the map.
    async fn confirm_leader(&self) -> Option<u64>;

    fn leader(&self) -> watch::Receiver<LeaderView>;

    /// Whether a majority follows that leader, as far as this node can know: false after 3 s
    /// without a sign of it.
    fn is_led(&self) -> bool;

    /// This node's copy of the map.
    fn map(&self) -> SharedMap;

    /// Ends when the log cannot be kept any more (its disk failed): with the reason.
    async fn failed(&self) -> String;

    async fn shutdown(&self);
}

/// A node's copy of the map, for those who only look; as new as the committed stream or newer.
#[derive(Clone)]
pub struct SharedMap {
    replica: Arc<RwLock<Replica>>,
    applied: watch::Sender<u64>,
}

impl Default for SharedMap {
    fn default() -> Self {
        Self { replica: Arc::default(), applied: watch::Sender::new(0) }
    }
}

impl SharedMap {
    /// Short work only: the log waits meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Replica) -> T) -> T {
        look(&self.replica.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn read_map<T>(&self, look: impl FnOnce(&Map) -> T) -> T {
        self.read(|replica| look(&replica.map))
    }

    /// Changes with each entry that was applied.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn replace(&self, replica: Replica) {
        self.write(|own| *own = replica);
    }

    fn apply(&self, entry: types::Entry) -> Option<Committed> {
        self.write(|replica| machine::apply(replica, entry))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Replica) -> T) -> T {
        let mut replica = self.replica.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut replica);
        let index = replica.last.map_or(0, |last| last.index);
        drop(replica);
        self.applied.send_replace(index);
        result
    }
}
