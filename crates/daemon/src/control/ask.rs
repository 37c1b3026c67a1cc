//! What the services of the API share: this node's view of the cluster, and the way to the leader.

use crate::consensus::{LeaderView, MetaStore, Replica, SharedMap};
use crate::control::errors::{admin_error, no_majority};
use crate::control::hub::Hub;
use crate::control::internal::Local;
use crate::control::observer::Observer;
use crate::control::peers::{FORWARDED_KEY, PeerClient, Peers};
use crate::control::show::Told;
use gabion_api::v1::{
    ConfirmMapRequest, ErrorCode, ErrorDetail, LocalEvictRequest, LocalHistoryRequest,
    LocalLocateRequest, LocalLocateResponse, LocalSample, LocalStatsRequest,
};
use gabion_cluster::{AdminError, AdminReply, AdminRequest, Map};
use gabion_types::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A node that says nothing of itself by then counts as not reachable just now.
const TOLD_WAIT: Duration = Duration::from_millis(700);
/// How long a node that passed a change on waits until its own copy of the map has it, too.
const CATCH_UP_WAIT: Duration = Duration::from_secs(2);
/// In the answer of a change: the map's index that has it.
const MAP_INDEX_KEY: &str = "gabion-map-index";

/// One for all services.
pub struct Context {
    pub me: NodeId,
    pub map: SharedMap,
    pub store: Arc<dyn MetaStore>,
    pub hub: Arc<Hub>,
    pub peers: Arc<Peers>,
    pub local: Arc<dyn Local>,
    pub observer: Arc<Observer>,
}

/// Where a change is made.
pub enum Place {
    Here,
    At(Channel),
}

impl Context {
    /// No leader: also where there is no sign of a majority that follows it.
    pub fn leader(&self) -> LeaderView {
        let view = *self.store.leader().borrow();
        LeaderView { leader: view.leader.filter(|_| self.store.is_led()), ..view }
    }

    /// Errors: no leader is known, or the caller has passed it on already.
    pub fn place(&self, metadata: &MetadataMap) -> Result<Place, Status> {
        match self.leader().leader {
            Some(leader) if leader == self.me => Ok(Place::Here),
            Some(leader) if metadata.get(FORWARDED_KEY).is_none() => {
                let channel = self.peers.channel(leader).ok_or_else(no_majority);
                channel.map(Place::At).map_err(ErrorDetail::into_status)
            }
            Some(_) | None => Err(no_majority().into_status()),
        }
    }

    /// A request on its way to the leader.
    pub fn forwarded<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(FORWARDED_KEY, self.me.get().into());
        request
    }

    /// The node that was asked, be it this one or the one that passed the request on.
    pub fn asked(&self, metadata: &MetadataMap) -> Option<NodeId> {
        let Some(by) = metadata.get(FORWARDED_KEY) else { return Some(self.me) };
        by.to_str().ok()?.parse().ok().map(NodeId::new)
    }

    /// Asks this node's manager. `subject` is for the errors.
    pub async fn admin(&self, request: AdminRequest, subject: &str) -> Result<AdminReply, Status> {
        match self.hub.admin(request).await {
            Some(AdminReply::Refused(AdminError::NotLeader { .. })) => {
                Err(no_majority().into_status())
            }
            // What it asked others for was in vain, whatever the manager made of that.
            Some(AdminReply::Refused(_)) if !self.store.is_led() => {
                Err(no_majority().into_status())
            }
            Some(AdminReply::Refused(error)) => Err(admin_error(&error, subject).into_status()),
            Some(reply @ (AdminReply::Done | AdminReply::Created { .. })) => Ok(reply),
            None if !self.store.is_led() => Err(no_majority().into_status()),
            None => {
                let what = "this node took too long to answer, or has too many requests";
                Err(ErrorDetail::of(ErrorCode::TimedOut, what, "try again").into_status())
            }
        }
    }

    /// The answer of a change that was made here.
    pub fn answer<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        let index = self.map.read_map(|map| map.applied().get());
        response.metadata_mut().insert(MAP_INDEX_KEY, index.into());
        response
    }

    /// After a change that was made elsewhere: whoever asks this node next sees it.
    pub async fn catch_up(&self, metadata: &MetadataMap) {
        let index = metadata.get(MAP_INDEX_KEY).and_then(|value| value.to_str().ok());
        let Some(index) = index.and_then(|index| index.parse::<u64>().ok()) else { return };
        let mut applied = self.map.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        let _late = tokio::time::timeout(CATCH_UP_WAIT, reached).await;
    }

    /// Waits until this node's map has all that was decided before the call: it may have been cut off,
    /// or have stood still. False: no leader says what that is, or it does not come.
    pub async fn confirm_map(&self) -> bool {
        let confirmed = async {
            let index = match self.leader().leader? {
                leader if leader == self.me => {
                    self.store.confirm_leader().await?;
                    return Some(());
                }
                leader => {
                    let confirm = async |mut client: PeerClient| {
                        client.confirm_map(ConfirmMapRequest {}).await
                    };
                    self.peers.ask(leader, TOLD_WAIT, confirm).await?.map_index?
                }
            };
            let mut applied = self.map.applied();
            applied.wait_for(|applied| *applied >= index).await.ok().map(|_| ())
        };
        tokio::time::timeout(TOLD_WAIT, confirmed).await.is_ok_and(|confirmed| confirmed.is_some())
    }

    /// What these nodes say of themselves; those that don't are left out. They are chosen by the map as
    /// it is now.
    pub async fn told_by(&self, nodes: impl FnOnce(&Map) -> BTreeSet<NodeId>) -> Told {
        let mut told = Told {
            unconfirmed: !self.confirm_map().await,
            no_majority: !self.store.is_led(),
            short: self.observer.short(),
            ..Told::default()
        };
        let mut asked = JoinSet::new();
        for node in self.map.read_map(nodes) {
            if node == self.me {
                told.nodes.insert(node, self.local.stats());
                continue;
            }
            let peers = Arc::clone(&self.peers);
            asked.spawn(async move {
                let ask =
                    async |mut client: PeerClient| client.local_stats(LocalStatsRequest {}).await;
                peers.ask(node, TOLD_WAIT, ask).await.map(|answer| (node, answer))
            });
        }
        while let Some(answer) = asked.join_next().await {
            told.nodes.extend(answer.ok().flatten());
        }
        told
    }

    /// Whose vote counts, as far as this node's log goes; before there is one those of the
    /// configuration.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let voters = self.map.read(Replica::voters);
        if !voters.is_empty() {
            return voters;
        }
        self.peers.others().into_iter().chain([self.me]).collect()
    }

    /// What the nodes' volumes did since then; those that don't answer are left out.
    pub async fn histories(&self, since_ms: u64) -> Vec<Vec<LocalSample>> {
        let mut asked = JoinSet::new();
        let nodes = self.map.read_map(|map| map.nodes().keys().copied().collect::<Vec<_>>());
        for node in nodes.into_iter().filter(|node| *node != self.me) {
            let peers = Arc::clone(&self.peers);
            asked.spawn(async move {
                let request = LocalHistoryRequest { since_ms };
                let ask = async |mut client: PeerClient| client.local_history(request).await;
                peers.ask(node, TOLD_WAIT, ask).await
            });
        }
        let mut found = vec![self.local.history(since_ms)];
        while let Some(answer) = asked.join_next().await {
            found.extend(answer.ok().flatten().map(|answer| answer.samples));
        }
        found
    }

    /// Where a node's copies of a block lie. Errors: `None` when it could not be asked.
    pub async fn located_by(
        &self,
        node: NodeId,
        block: LocalLocateRequest,
    ) -> Option<LocalLocateResponse> {
        if node == self.me {
            return Some(self.local.locate(block).await);
        }
        let ask = async |mut client: PeerClient| client.local_locate(block).await;
        self.peers.ask(node, TOLD_WAIT, ask).await
    }

    /// Closes the connection of one guest of a volume. Errors: `None` when its node could not be asked.
    pub async fn evicted_by(&self, node: NodeId, guest: LocalEvictRequest) -> Option<bool> {
        if node == self.me {
            return Some(self.local.evict(guest).await.found);
        }
        let ask = async |mut client: PeerClient| client.local_evict(guest).await;
        self.peers.ask(node, TOLD_WAIT, ask).await.map(|answer| answer.found)
    }

    /// By its id or its name.
    pub fn node_named(&self, text: &str) -> Result<NodeId, Status> {
        let by_id = text.parse::<u32>().ok().map(NodeId::new);
        let found = self.map.read_map(|map| {
            let awaited = map.awaited().map(|info| (info.id, &info.name));
            let here = map.nodes().iter().map(|(id, entry)| (*id, &entry.info.name));
            let all: Vec<_> = here.chain(awaited).collect();
            let is_there = |id: &NodeId| all.iter().any(|(known, _)| known == id);
            let named = all.iter().find(|(_, name)| *name == text).map(|(id, _)| *id);
            by_id.filter(is_there).or(named)
        });
        found.ok_or_else(|| {
            let what = format!("there is no node {text}");
            ErrorDetail::of(ErrorCode::NoNode, what, "see `gabion node list`")
                .about(text)
                .into_status()
        })
    }

    pub async fn told_by_all(&self) -> Told {
        self.told_by(|map| map.nodes().keys().copied().collect()).await
    }

    /// By the owners of all volumes.
    pub async fn told_by_owners(&self) -> Told {
        self.told_by(|map| {
            let owners = map.volumes().values().filter_map(|volume| volume.owner);
            owners.map(|(node, _)| node).collect()
        })
        .await
    }
}

/// A call that did not reach the leader, or whose answer got lost, may be tried again; what the
/// leader itself said is passed on as it is.
pub fn passed_on(status: Status) -> Status {
    ErrorDetail::from_status(&status).into_status()
}
