//! The other nodes' API: where they are, and how this node proves that it belongs to the cluster.

use gabion_api::v1::internal_client::InternalClient;
use gabion_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Metadata key that carries the cluster's secret between nodes.
pub const SECRET_KEY: &str = "gabion-secret";
/// Set on a call that a node passes on: it is not passed on again.
pub const FORWARDED_KEY: &str = "gabion-forwarded";

/// A connection that was not made by then counts as failed.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// A peer whose machine is gone without a word is noticed after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// A consensus message or a snapshot's chunk. Units: bytes.
pub const INTERNAL_MESSAGE_BYTES_MAX: usize = 64 << 20;

pub type PeerClient = InternalClient<InterceptedService<Channel, Proof>>;

/// Adds the secret to each call.
#[derive(Clone)]
pub struct Proof {
    secret: MetadataValue<Ascii>,
}

impl Interceptor for Proof {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(SECRET_KEY, self.secret.clone());
        Ok(request)
    }
}

/// One connection a node, made when it is first used and made again by itself. Bounded by the nodes
/// of the cluster.
pub struct Peers {
    pub me: NodeId,
    pub cluster: ClusterId,
    proof: Proof,
    known: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    address: String,
    channel: Option<Channel>,
}

impl Peers {
    /// `voters`: the addresses of the configuration, until the map tells newer ones.
    pub fn new(
        me: NodeId,
        cluster: ClusterId,
        secret: [u8; 32],
        voters: impl IntoIterator<Item = (NodeId, String)>,
    ) -> Self {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret = MetadataValue::try_from(hex).expect("hex digits are ASCII");
        let known = voters
            .into_iter()
            .map(|(node, address)| (node, Peer { address, channel: None }))
            .collect();
        Self { me, cluster, proof: Proof { secret }, known: Mutex::new(known) }
    }

    /// The map's word on where a node's API is.
    pub fn learn(&self, node: NodeId, address: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&node) {
            Some(peer) if peer.address == address => {}
            Some(_) | None => {
                known.insert(node, Peer { address: address.to_owned(), channel: None });
            }
        }
    }

    /// All nodes that are known, but this one.
    pub fn others(&self) -> Vec<NodeId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.keys().copied().filter(|node| *node != self.me).collect()
    }

    pub fn address(&self, node: NodeId) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&node).map(|peer| peer.address.clone())
    }

    /// Errors: `None` for a node without a usable address.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = known.get_mut(&node)?;
        if peer.channel.is_none() {
            let endpoint = Endpoint::from_shared(format!("http://{}", peer.address)).ok()?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_WAIT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .tcp_nodelay(true);
            peer.channel = Some(endpoint.connect_lazy());
        }
        peer.channel.clone()
    }

    /// The internal service of a node. Errors: as `channel`.
    pub fn client(&self, node: NodeId) -> Option<PeerClient> {
        let channel = self.channel(node)?;
        let client = InternalClient::with_interceptor(channel, self.proof.clone());
        Some(
            client
                .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(INTERNAL_MESSAGE_BYTES_MAX),
        )
    }

    /// Whether a caller knows the cluster's secret. Compared without an early end.
    pub fn proves(&self, metadata: &MetadataMap) -> bool {
        let Some(given) = metadata.get(SECRET_KEY) else { return false };
        let (given, expected) = (given.as_bytes(), self.proof.secret.as_bytes());
        let differing = given.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
        given.len() == expected.len() && differing == 0
    }
}
