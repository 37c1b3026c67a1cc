//! The service between nodes: consensus, proposals, what only this node knows.

use crate::consensus::{Answerer, MetaStore, ProposeError};
use crate::control::guard::Guarded;
use crate::control::peers::{INTERNAL_MESSAGE_BYTES_MAX, Peers};
use gabion_api::v1::internal_server::{Internal, InternalServer};
use gabion_api::v1::{
    AddDiskProgress, AddDiskRequest, ConfirmMapRequest, ConfirmMapResponse, ConsensusMessage,
    LocalEvictRequest, LocalEvictResponse, LocalHistoryRequest, LocalHistoryResponse,
    LocalLocateRequest, LocalLocateResponse, LocalSample, LocalStatsRequest, LocalStatsResponse,
    ProposeRequest, ProposeResponse, SnapshotChunk,
};
use gabion_cluster::Command;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What only this node knows of itself.
#[tonic::async_trait]
pub trait Local: Send + Sync + 'static {
    fn stats(&self) -> LocalStatsResponse;

    /// What its volumes did since then. Units: ms since 1970.
    fn history(&self, since_ms: u64) -> Vec<LocalSample>;

    /// Where its copies of a block lie now.
    async fn locate(&self, block: LocalLocateRequest) -> LocalLocateResponse;

    /// Makes a disk more, and uses it; each step is told, or why not.
    fn add_disk(&self, request: AddDiskRequest) -> AddingDisk;

    /// Closes the connection of a guest of that volume.
    async fn evict(&self, guest: LocalEvictRequest) -> LocalEvictResponse;
}

/// What is told of a disk that is being added.
pub type AddingDisk = ReceiverStream<Result<AddDiskProgress, Status>>;

pub struct InternalService {
    peers: Arc<Peers>,
    answerer: Answerer,
    store: Arc<dyn MetaStore>,
    local: Arc<dyn Local>,
}

impl InternalService {
    /// Only for who proves the cluster's secret.
    pub fn server(
        peers: Arc<Peers>,
        answerer: Answerer,
        store: Arc<dyn MetaStore>,
        local: Arc<dyn Local>,
    ) -> Guarded<InternalServer<Self>> {
        let verifier = Arc::clone(&peers.verifier);
        let server = InternalServer::new(Self { peers, answerer, store, local })
            .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(INTERNAL_MESSAGE_BYTES_MAX);
        Guarded::new(server, verifier)
    }
}

#[tonic::async_trait]
impl Internal for InternalService {
    async fn append(
        &self,
        request: Request<ConsensusMessage>,
    ) -> Result<Response<ConsensusMessage>, Status> {
        Ok(Response::new(self.answerer.append(request.into_inner()).await?))
    }

    async fn vote(
        &self,
        request: Request<ConsensusMessage>,
    ) -> Result<Response<ConsensusMessage>, Status> {
        Ok(Response::new(self.answerer.vote(request.into_inner()).await?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<ConsensusMessage>, Status> {
        let chunks = request.into_inner();
        Ok(Response::new(self.answerer.install_snapshot(chunks).await?))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        let bytes = request.into_inner().command;
        let command: Command = serde_json::from_slice(&bytes)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let answer = match self.store.propose_here(command).await {
            Ok(()) => ProposeResponse { taken: true, leader: Some(self.peers.me.get()) },
            Err(ProposeError::NotLeader { leader }) => {
                ProposeResponse { taken: false, leader: leader.map(|node| node.get()) }
            }
            Err(ProposeError::Full | ProposeError::Unreachable | ProposeError::Stopped) => {
                ProposeResponse { taken: false, leader: None }
            }
        };
        Ok(Response::new(answer))
    }

    async fn confirm_map(
        &self,
        _request: Request<ConfirmMapRequest>,
    ) -> Result<Response<ConfirmMapResponse>, Status> {
        let leads = self.store.confirm_leader().await.is_some();
        let map_index = leads.then(|| *self.store.map().applied().borrow());
        Ok(Response::new(ConfirmMapResponse { map_index }))
    }

    async fn local_stats(
        &self,
        _request: Request<LocalStatsRequest>,
    ) -> Result<Response<LocalStatsResponse>, Status> {
        Ok(Response::new(self.local.stats()))
    }

    async fn local_history(
        &self,
        request: Request<LocalHistoryRequest>,
    ) -> Result<Response<LocalHistoryResponse>, Status> {
        let samples = self.local.history(request.into_inner().since_ms);
        Ok(Response::new(LocalHistoryResponse { samples }))
    }

    async fn local_locate(
        &self,
        request: Request<LocalLocateRequest>,
    ) -> Result<Response<LocalLocateResponse>, Status> {
        let block = request.into_inner();
        Ok(Response::new(self.local.locate(block).await))
    }

    type AddDiskStream = AddingDisk;

    async fn add_disk(
        &self,
        request: Request<AddDiskRequest>,
    ) -> Result<Response<AddingDisk>, Status> {
        Ok(Response::new(self.local.add_disk(request.into_inner())))
    }

    async fn local_evict(
        &self,
        request: Request<LocalEvictRequest>,
    ) -> Result<Response<LocalEvictResponse>, Status> {
        Ok(Response::new(self.local.evict(request.into_inner()).await))
    }
}
