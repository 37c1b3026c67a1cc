//! What openraft is told about our log.

use bytes::Bytes;
use gabion_cluster::Command;
use openraft::BasicNode;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;

openraft::declare_raft_types!(
    /// Entries carry the map's commands; a snapshot is the map.
    pub TypeConfig:
        D = Command,
        R = (),
        NodeId = u64,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Bytes,
        Responder = Silent,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type StoredMembership = openraft::StoredMembership<u64, BasicNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub type StorageError = openraft::StorageError<u64>;

/// Nobody waits for a single write: what became of a command is known from the committed log only.
pub struct Silent;

impl Responder<TypeConfig> for Silent {
    type Receiver = ();

    fn from_app_data(command: Command) -> (Command, Self, ()) {
        (command, Self, ())
    }

    fn send(self, _result: ClientWriteResult<TypeConfig>) {}
}
