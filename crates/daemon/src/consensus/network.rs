//! openraft's messages over the nodes' own gRPC service: both ends.

use crate::consensus::openraft_store::OpenraftStore;
use crate::consensus::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use crate::control::peers::{PeerClient, Peers};
use bytes::{Bytes, BytesMut};
use gabion_api::v1::{ConsensusMessage, SnapshotChunk};
use gabion_types::NodeId;
use openraft::error::{
    Fatal, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{BasicNode, OptionalSend};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// A snapshot travels in pieces of this size. Units: bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// A larger one is refused. Units: bytes.
const SNAPSHOT_BYTES_MAX: usize = 512 << 20;
/// A peer that could not be reached is tried again after so long.
const BACKOFF: Duration = Duration::from_millis(100);

/// What goes through the `Vote` call.
#[derive(Debug, Serialize, Deserialize)]
pub enum VoteAsk {
    /// Would you vote for somebody whose log ends there? Nothing is changed by it.
    Pre {
        last: Option<LogId>,
    },
    Vote(VoteRequest<u64>),
    /// The leader retires: stand as soon as the others may vote.
    Stand,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum VoteAnswer {
    Pre {
        yes: bool,
    },
    /// To `Pre`: who asks is none of the cluster's any more.
    Removed,
    Stands,
    Vote(Box<Result<VoteResponse<u64>, RaftError<u64>>>),
}

type AppendAnswer = Result<AppendEntriesResponse<u64>, RaftError<u64>>;
type SnapshotAnswer = Result<SnapshotResponse<u64>, Fatal<u64>>;

#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    vote: Vote,
    meta: SnapshotMeta,
}

/// A call that did not get a usable answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("no address of node {0} is known")]
    Unknown(u64),
    #[error(transparent)]
    Status(#[from] Status),
    #[error("the answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Makes the connections to the other voters.
#[derive(Clone)]
pub struct Network {
    peers: Arc<Peers>,
}

impl Network {
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    /// All nodes that are known.
    pub fn others(&self) -> Vec<u64> {
        self.peers.others().into_iter().map(|node| u64::from(node.get())).collect()
    }

    pub fn to(&self, target: u64) -> Link {
        Link { peers: Arc::clone(&self.peers), target }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        if let Some(id) = node_id(target).filter(|id| self.peers.address(*id).is_none()) {
            self.peers.learn(id, &node.addr);
        }
        self.to(target)
    }
}

/// To one voter.
pub struct Link {
    peers: Arc<Peers>,
    target: u64,
}

impl Link {
    fn client(&self) -> Result<PeerClient, CallError> {
        let node = node_id(self.target).and_then(|node| self.peers.client(node));
        node.ok_or(CallError::Unknown(self.target))
    }

    fn message<T: Serialize>(&self, body: &T) -> Result<ConsensusMessage, CallError> {
        Ok(ConsensusMessage {
            cluster: Bytes::copy_from_slice(&self.peers.cluster.bytes()),
            from: self.peers.me.get(),
            to: u32::try_from(self.target).map_err(|_| CallError::Unknown(self.target))?,
            body: serde_json::to_vec(body)?.into(),
        })
    }

    async fn append(
        &self,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendAnswer, CallError> {
        let answer = self.client()?.append(self.message(rpc)?).await?;
        Ok(serde_json::from_slice(&answer.into_inner().body)?)
    }

    pub(super) async fn ask(&self, ask: &VoteAsk) -> Option<VoteAnswer> {
        self.ask_or_error(ask).await.ok()
    }

    async fn ask_or_error(&self, ask: &VoteAsk) -> Result<VoteAnswer, CallError> {
        let answer = self.client()?.vote(self.message(ask)?).await?;
        Ok(serde_json::from_slice(&answer.into_inner().body)?)
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotAnswer, CallError> {
        let head = self.message(&SnapshotHead { vote, meta: snapshot.meta })?;
        let mut data = *snapshot.snapshot;
        let mut chunks = vec![SnapshotChunk { head: Some(head), data: Bytes::new() }];
        while !data.is_empty() {
            let data = data.split_to(data.len().min(CHUNK_BYTES));
            chunks.push(SnapshotChunk { head: None, data });
        }
        let answer = self.client()?.install_snapshot(tokio_stream::iter(chunks)).await?;
        Ok(serde_json::from_slice(&answer.into_inner().body)?)
    }

    /// A node whose consensus stopped is like one that cannot be reached.
    #[allow(clippy::result_large_err, reason = "the error's size is openraft's own")]
    fn remote<T>(
        &self,
        answer: Result<T, RaftError<u64>>,
    ) -> Result<T, RPCError<u64, BasicNode, RaftError<u64>>> {
        answer.map_err(|error| match error {
            RaftError::Fatal(fatal) => Unreachable::new(&fatal).into(),
            RaftError::APIError(_) => RemoteError::new(self.target, error).into(),
        })
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let answer = self.append(&rpc).await.map_err(|error| Unreachable::new(&error))?;
        self.remote(answer)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let answer = self.ask_or_error(&VoteAsk::Vote(rpc)).await;
        match answer.map_err(|error| Unreachable::new(&error))? {
            VoteAnswer::Vote(answer) => self.remote(*answer),
            VoteAnswer::Pre { .. } | VoteAnswer::Removed | VoteAnswer::Stands => {
                let error = Status::internal("the answer to a vote is one to another question");
                Err(Unreachable::new(&error).into())
            }
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = self.send_snapshot(vote, snapshot) => answer,
        };
        let answer = answer.map_err(|error| Unreachable::new(&error))?;
        Ok(answer.map_err(|fatal| Unreachable::new(&fatal))?)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

fn node_id(raw: u64) -> Option<NodeId> {
    u32::try_from(raw).ok().map(NodeId::new)
}

/// The other end: bodies in, bodies out.
#[derive(Clone)]
pub struct Answerer {
    store: Arc<OpenraftStore>,
}

impl Answerer {
    pub fn new(store: Arc<OpenraftStore>) -> Self {
        Self { store }
    }

    /// Errors: `InvalidArgument` for what cannot be read, `PermissionDenied` for another cluster or
    /// another node's mail (ports get used again).
    fn open<T: DeserializeOwned>(&self, message: &ConsensusMessage) -> Result<T, Status> {
        let own = &self.store.peers;
        if message.cluster != own.cluster.bytes().as_slice() {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        if message.to != own.me.get() {
            let text = format!("this is node {}, not node {}", own.me.get(), message.to);
            return Err(Status::permission_denied(text));
        }
        serde_json::from_slice(&message.body)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }

    fn close<T: Serialize>(&self, to: u32, body: &T) -> Result<ConsensusMessage, Status> {
        let body = serde_json::to_vec(body).map_err(|error| Status::internal(error.to_string()))?;
        let own = &self.store.peers;
        let cluster = Bytes::copy_from_slice(&own.cluster.bytes());
        Ok(ConsensusMessage { cluster, from: own.me.get(), to, body: body.into() })
    }

    pub async fn append(&self, message: ConsensusMessage) -> Result<ConsensusMessage, Status> {
        let rpc = self.open(&message)?;
        let answer: AppendAnswer = self.store.raft.append_entries(rpc).await;
        self.close(message.from, &answer)
    }

    pub async fn vote(&self, message: ConsensusMessage) -> Result<ConsensusMessage, Status> {
        let removed = self.store.has_removed(NodeId::new(message.from));
        let answer = match self.open(&message)? {
            VoteAsk::Pre { .. } if removed => VoteAnswer::Removed,
            VoteAsk::Pre { last } => {
                let yes = self.store.would_vote(last).await;
                VoteAnswer::Pre { yes }
            }
            VoteAsk::Stand => {
                self.store.stand();
                VoteAnswer::Stands
            }
            VoteAsk::Vote(rpc) => VoteAnswer::Vote(Box::new(self.store.raft.vote(rpc).await)),
        };
        self.close(message.from, &answer)
    }

    /// Errors: also what `chunks` gives.
    pub async fn install_snapshot(
        &self,
        mut chunks: impl Stream<Item = Result<SnapshotChunk, Status>> + Unpin,
    ) -> Result<ConsensusMessage, Status> {
        let first = chunks.next().await.transpose()?;
        let head = first.and_then(|chunk| chunk.head);
        let head = head.ok_or_else(|| Status::invalid_argument("the first chunk has no head"))?;
        let SnapshotHead { vote, meta } = self.open(&head)?;
        let mut data = BytesMut::new();
        while let Some(chunk) = chunks.next().await.transpose()? {
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
            data.extend_from_slice(&chunk.data);
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(data.freeze()) };
        let answer: SnapshotAnswer = self.store.raft.install_full_snapshot(vote, snapshot).await;
        self.close(head.from, &answer)
    }
}
