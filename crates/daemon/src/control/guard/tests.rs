//! Calls between who knows the secret and who doesn't, over real connections.

use super::*;
use crate::control::peers::Peers;
use crate::control::proof::Secret;
use gabion_api::v1::internal_client::InternalClient;
use gabion_api::v1::internal_server::{Internal, InternalServer};
use gabion_api::v1::{
    ConfirmMapRequest, ConfirmMapResponse, ConsensusMessage, LocalEvictRequest, LocalEvictResponse,
    LocalHistoryRequest, LocalHistoryResponse, LocalLocateRequest, LocalLocateResponse,
    LocalStatsRequest, LocalStatsResponse, ProposeRequest, ProposeResponse, SnapshotChunk,
};
use gabion_types::{ClusterId, NodeId};
use std::sync::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Status, Streaming};

const SECRET: [u8; 32] = [0x5A; 32];

/// Answers, and keeps all that callers told of themselves.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Internal for Told {
    type AddDiskStream = crate::control::internal::AddingDisk;

    async fn add_disk(
        &self,
        _request: tonic::Request<gabion_api::v1::AddDiskRequest>,
    ) -> Result<tonic::Response<Self::AddDiskStream>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn append(
        &self,
        _request: tonic::Request<ConsensusMessage>,
    ) -> Result<tonic::Response<ConsensusMessage>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn vote(
        &self,
        _request: tonic::Request<ConsensusMessage>,
    ) -> Result<tonic::Response<ConsensusMessage>, Status> {
        Err(Status::permission_denied("the word of a node"))
    }

    async fn install_snapshot(
        &self,
        _request: tonic::Request<Streaming<SnapshotChunk>>,
    ) -> Result<tonic::Response<ConsensusMessage>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn confirm_map(
        &self,
        _request: tonic::Request<ConfirmMapRequest>,
    ) -> Result<tonic::Response<ConfirmMapResponse>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn propose(
        &self,
        _request: tonic::Request<ProposeRequest>,
    ) -> Result<tonic::Response<ProposeResponse>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn local_stats(
        &self,
        request: tonic::Request<LocalStatsRequest>,
    ) -> Result<tonic::Response<LocalStatsResponse>, Status> {
        let mut told = self.0.lock().unwrap();
        told.push(format!("{:?}", request.metadata()));
        Ok(tonic::Response::new(LocalStatsResponse { node: 2, ..LocalStatsResponse::default() }))
    }

    async fn local_evict(
        &self,
        _request: tonic::Request<LocalEvictRequest>,
    ) -> Result<tonic::Response<LocalEvictResponse>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn local_history(
        &self,
        _request: tonic::Request<LocalHistoryRequest>,
    ) -> Result<tonic::Response<LocalHistoryResponse>, Status> {
        Err(Status::internal("not asked here"))
    }

    async fn local_locate(
        &self,
        _request: tonic::Request<LocalLocateRequest>,
    ) -> Result<tonic::Response<LocalLocateResponse>, Status> {
        Err(Status::internal("not asked here"))
    }
}

/// What a node with this secret would run at node 2's address.
async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Dropped, it hangs up as a killed process does.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve_guarded(listener: TcpListener, secret: [u8; 32], told: Told) -> OwnRuntime {
    let verifier = Arc::clone(&peers(2, secret, None).verifier);
    let service = Guarded::new(InternalServer::new(told), verifier);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = listener.into_std().unwrap();
    runtime.spawn(async move {
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
        Server::builder().add_service(service).serve_with_incoming(incoming).await
    });
    OwnRuntime(Some(runtime))
}

fn peers(me: u32, secret: [u8; 32], other: Option<&str>) -> Peers {
    let voters = other.map(|address| (NodeId::new(2), address.to_owned()));
    Peers::new(NodeId::new(me), ClusterId::new([1; 16]), secret, voters)
}

async fn stats(peers: &Peers) -> Result<u32, Status> {
    let mut client = peers.client(NodeId::new(2)).unwrap();
    let answer = client.local_stats(LocalStatsRequest {}).await?;
    Ok(answer.into_inner().node)
}

#[tokio::test]
async fn nodes_with_one_secret_hear_each_other() {
    let (listener, address) = listen().await;
    let _server = serve_guarded(listener, SECRET, Told::default());
    let caller = peers(1, SECRET, Some(&address));
    for _ in 0..3 {
        assert_eq!(stats(&caller).await.unwrap(), 2);
    }
    // A refusal by who is proven is its word as it stands.
    let mut client = caller.client(NodeId::new(2)).unwrap();
    let refused = client.vote(ConsensusMessage::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "the word of a node"));
}

#[tokio::test]
async fn who_does_not_know_the_secret_is_not_let_in() {
    let (listener, address) = listen().await;
    let told = Told::default();
    let _server = serve_guarded(listener, SECRET, told.clone());
    assert!(stats(&peers(1, [0; 32], Some(&address))).await.is_err());
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut bare = InternalClient::new(channel);
    let refused = bare.local_stats(LocalStatsRequest {}).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&refused).code(), ErrorCode::WrongSecret);
    assert!(told.all().is_empty());
}

/// A process that has a dead node's address: it gets no secret, and its word counts for nothing.
#[tokio::test]
async fn who_answers_in_anothers_place_learns_nothing_and_is_not_believed() {
    let (listener, address) = listen().await;
    let told = Told::default();
    let inner = InternalServer::new(told.clone());
    // It knows the protocol: it lets everybody in, with a challenge of its own.
    let lax = tonic::service::interceptor::InterceptedService::new(inner, Ok);
    let serving =
        Server::builder().add_service(lax).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    let caller = peers(1, SECRET, Some(&address));
    assert!(stats(&caller).await.is_err());
    // Also when it gets what would open the real one.
    let secret = Secret { secret: SECRET, cluster: ClusterId::new([1; 16]) };
    let prover = Arc::new(Prover::new(secret, NodeId::new(2), [3; 16]));
    prover.learn(Some([4; 16]));
    let proving = Proving::new(caller.channel(NodeId::new(2)).unwrap(), Arc::clone(&prover));
    let asked = InternalClient::new(proving).local_stats(LocalStatsRequest {}).await;
    let error = format!("{:?}", asked.unwrap_err());
    assert!(error.contains("did not prove"), "{error}");
    assert_eq!(prover.challenge(), None, "the next call begins anew");
    assert_eq!(told.all().len(), 1);
    let secret = hex(&SECRET);
    for headers in told.all() {
        assert!(headers.contains(PROOF_KEY) && !headers.contains(&secret), "{headers}");
    }
}

#[tokio::test]
async fn a_process_that_was_started_again_is_proven_to_anew() {
    let (listener, address) = listen().await;
    let first = serve_guarded(listener, SECRET, Told::default());
    let caller = peers(1, SECRET, Some(&address));
    assert_eq!(stats(&caller).await.unwrap(), 2);
    drop(first);
    let again = async {
        loop {
            if let Ok(listener) = TcpListener::bind(&address).await {
                break listener;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let listener = tokio::time::timeout(std::time::Duration::from_secs(20), again).await.unwrap();
    let _second = serve_guarded(listener, SECRET, Told::default());
    let heard = async {
        while stats(&caller).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), heard).await.unwrap();
}
