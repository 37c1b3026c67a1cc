//! What openraft is told about our log.

use bytes::Bytes;
use gabion_cluster::Command;
use openraft::BasicNode;
use openraft::impls::OneshotResponder;

openraft::declare_raft_types!(
    /// Entries carry the map's commands; a snapshot is the map.
    pub TypeConfig:
        D = Command,
        R = (),
        NodeId = u64,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Bytes,
        Responder = OneshotResponder<TypeConfig>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type Membership = openraft::Membership<u64, BasicNode>;
pub type StoredMembership = openraft::StoredMembership<u64, BasicNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub type StorageError = openraft::StorageError<u64>;
