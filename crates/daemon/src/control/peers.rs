//! The other nodes' API: where they are, and how this node proves that it belongs to the cluster.

use crate::control::guard::Proving;
use crate::control::proof::{Prover, Secret, Verifier};
use crate::home::random;
use crate::token::JoinToken;
use gabion_api::v1::JoinResponse;
use gabion_api::v1::internal_client::InternalClient;
use gabion_cluster::Ticket;
use gabion_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// Set on a call that a node passes on: it is not passed on again.
pub const FORWARDED_KEY: &str = "gabion-forwarded";

/// A connection that was not made by then counts as failed.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// A peer whose machine is gone without a word is noticed after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// A consensus message or a snapshot's chunk. Units: bytes.
pub const INTERNAL_MESSAGE_BYTES_MAX: usize = 64 << 20;

pub type PeerClient = InternalClient<Proving>;

/// One connection a node, made when it is first used and made again by itself. Bounded by the nodes
/// of the cluster.
pub struct Peers {
    pub me: NodeId,
    pub cluster: ClusterId,
    secret: Secret,
    /// For those who call this node.
    pub verifier: Arc<Verifier>,
    known: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    address: String,
    channel: Option<Channel>,
    prover: Arc<Prover>,
}

impl Peers {
    /// `voters`: the addresses of the configuration, until the map tells newer ones.
    pub fn new(
        me: NodeId,
        cluster: ClusterId,
        secret: [u8; 32],
        voters: impl IntoIterator<Item = (NodeId, String)>,
    ) -> Self {
        let secret = Secret { secret, cluster };
        let known = voters
            .into_iter()
            .map(|(node, address)| (node, Peer::new(&secret, node, address)))
            .collect();
        let verifier = Arc::new(Verifier::new(secret.clone(), me, draw));
        Self { me, cluster, secret, verifier, known: Mutex::new(known) }
    }

    /// The map's word on where a node's API is.
    pub fn learn(&self, node: NodeId, address: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&node) {
            Some(peer) if peer.address == address => {}
            Some(_) | None => {
                known.insert(node, Peer::new(&self.secret, node, address.to_owned()));
            }
        }
    }

    /// All nodes that are known, but this one.
    pub fn others(&self) -> Vec<NodeId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.keys().copied().filter(|node| *node != self.me).collect()
    }

    /// The highest id of them, this node's included.
    pub fn highest(&self) -> NodeId {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.keys().next_back().copied().unwrap_or(self.me).max(self.me)
    }

    /// As a member made it.
    pub fn join_token(&self, ticket: Ticket) -> JoinToken {
        JoinToken::make(&self.secret.secret, self.cluster, ticket)
    }

    /// What a new node is told, with the secret.
    pub fn seal(&self, token: &JoinToken, answer: JoinResponse) -> JoinResponse {
        token.seal(answer, &self.secret.secret, draw())
    }

    pub fn address(&self, node: NodeId) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&node).map(|peer| peer.address.clone())
    }

    /// Errors: `None` for a node without a usable address.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(&node)?.channel()
    }

    /// The internal service of a node. Errors: as `channel`.
    pub fn client(&self, node: NodeId) -> Option<PeerClient> {
        let proving = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let peer = known.get_mut(&node)?;
            Proving::new(peer.channel()?, Arc::clone(&peer.prover))
        };
        let client = InternalClient::new(proving);
        Some(
            client
                .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(INTERNAL_MESSAGE_BYTES_MAX),
        )
    }

    /// Asks a node twice: the first call to a process that was restarted is lost, and only tells what
    /// to prove to the new one. For what may be done twice. Errors: none if it did not answer in time.
    pub async fn ask<T, Answer>(
        &self,
        node: NodeId,
        within: Duration,
        call: impl Fn(PeerClient) -> Answer,
    ) -> Option<T>
    where
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self.client(node)?;
        let twice = async {
            match call(client.clone()).await {
                Ok(answer) => Ok(answer),
                Err(_) => call(client).await,
            }
        };
        let answer = tokio::time::timeout(within, twice).await;
        answer.ok()?.ok().map(Response::into_inner)
    }
}

impl Peer {
    fn new(secret: &Secret, node: NodeId, address: String) -> Self {
        let prover = Arc::new(Prover::new(secret.clone(), node, draw()));
        Self { address, channel: None, prover }
    }

    fn channel(&mut self) -> Option<Channel> {
        if self.channel.is_none() {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).ok()?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_WAIT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .tcp_nodelay(true);
            self.channel = Some(endpoint.connect_lazy());
        }
        self.channel.clone()
    }
}

/// What nobody can guess.
fn draw() -> [u8; 16] {
    let mut drawn = [0; 16];
    for half in drawn.chunks_exact_mut(8) {
        let random = random().expect("a system without random numbers runs no node");
        half.copy_from_slice(&random.to_le_bytes());
    }
    drawn
}
