//! The `MetaStore` on openraft and redb.

use crate::consensus::disk::{AccessError, ConsensusDisk, DiskError, Identity};
use crate::consensus::election::{self, LEADER_HEARD_MS, Signals};
use crate::consensus::log::Log;
use crate::consensus::machine::Machine;
use crate::consensus::membership;
use crate::consensus::network::Network;
use crate::consensus::types::{LogId, Raft};
use crate::consensus::{Committed, LeaderView, MetaStore, ProposeError, SharedMap};
use crate::control::peers::{PeerClient, Peers};
use gabion_api::v1::ProposeRequest;
use gabion_cluster::Command;
use gabion_types::{ClusterId, NodeId, Prng};
use openraft::{BasicNode, Config, SnapshotPolicy};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Entries in a leader's log that are not applied yet. Full: proposals are refused, and made again by
/// those who need them; a leader without a majority does not grow for ever.
const UNAPPLIED_MAX: u64 = 4096;
/// An append, a heartbeat or a confirmation of the leadership that took longer has failed. Longer than
/// the heartbeat's interval, for a peer's disk may be slow to sync.
const RPC_WAIT_MS: u64 = 500;
/// A proposal that was not taken by the leader by then got lost.
const FORWARD_WAIT: Duration = Duration::from_secs(1);
/// A leadership that was not confirmed by then is none.
const CONFIRM_WAIT: Duration = Duration::from_secs(1);
/// The voter with the lowest id makes the cluster at once; another one does if it hears nothing so
/// long.
const INITIALIZE_WAIT: Duration = Duration::from_secs(5);
/// How long a shutdown waits until nobody holds the file any more.
/// Two elections, the first of which may be split.
const RETIRE_WAIT: Duration = Duration::from_secs(4);
const CLOSE_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    pub node: NodeId,
    pub api: String,
}

#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub dir: PathBuf,
    /// The first voters of a new cluster.
    pub voters: Vec<Voter>,
    pub seed: u64,
    /// A snapshot is made when so many entries came since the last one.
    pub snapshot_after: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the consensus file cannot be read: {0}")]
    Access(#[from] AccessError),
    #[error("openraft does not start: {0}")]
    Raft(String),
}

pub struct OpenraftStore {
    me: NodeId,
    pub(super) raft: Raft,
    /// None after the shutdown: connections of peers may hold on to this struct, not to the file.
    disk: Mutex<Option<ConsensusDisk>>,
    pub(super) peers: Arc<Peers>,
    map: SharedMap,
    leader: watch::Receiver<LeaderView>,
    led: watch::Receiver<bool>,
    retires: watch::Sender<bool>,
    asked: watch::Sender<Option<Instant>>,
    removed: watch::Receiver<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl OpenraftStore {
    /// Whether the directory holds a log.
    pub fn exists(config: &ConsensusConfig) -> bool {
        ConsensusDisk::exists(&config.dir)
    }

    /// Makes an empty log where there is none. Durable: when it returns.
    pub fn make(config: &ConsensusConfig) -> Result<(), ConsensusError> {
        drop(ConsensusDisk::open(&config.dir, Identity::new(config.cluster, config.node))?);
        Ok(ConsensusDisk::sync_directories(&config.dir)?)
    }

    /// Where the log of a directory (or its snapshot) ends; zero if there is none.
    pub async fn log_end(config: &ConsensusConfig) -> Result<u64, ConsensusError> {
        if !ConsensusDisk::exists(&config.dir) {
            return Ok(0);
        }
        let disk = ConsensusDisk::open(&config.dir, Identity::new(config.cluster, config.node))?;
        let (_, last) = disk.ends().await?;
        // A crash right after a snapshot was installed leaves the log behind it; openraft mends that.
        let snapshot = disk.snapshot().await?.and_then(|(meta, _)| meta.last_log_id);
        Ok(last.max(snapshot).map_or(0, |last| last.index))
    }

    /// Replays what is known to be committed into `committed` (which must be read meanwhile), then
    /// takes part.
    pub async fn start(
        config: ConsensusConfig,
        peers: Arc<Peers>,
        committed: mpsc::Sender<Committed>,
    ) -> Result<Arc<Self>, ConsensusError> {
        let disk = ConsensusDisk::open(&config.dir, Identity::new(config.cluster, config.node))?;
        let map = SharedMap::default();
        let machine = Machine::load(disk.clone(), map.clone(), committed).await?;
        let network = Network::new(Arc::clone(&peers));
        let me = u64::from(config.node.get());
        let raft = Raft::new(
            me,
            Arc::new(openraft_config(&config)?),
            network.clone(),
            Log::new(disk.clone()),
            machine,
        );
        let raft = raft.await.map_err(|error| ConsensusError::Raft(error.to_string()))?;
        let prng = Prng::new(config.seed);
        let (leader_sender, leader) = watch::channel(LeaderView::default());
        let (led_sender, led) = watch::channel(false);
        let (retires, retired) = watch::channel(false);
        let (asked, ask) = watch::channel(None);
        let (removed_sender, removed) = watch::channel(false);
        let signals =
            Signals { led: led_sender, retires: retired, asked: ask, removed: removed_sender };
        let tasks = vec![
            tokio::spawn(election::run(raft.clone(), disk.clone(), network, me, prng, signals)),
            tokio::spawn(watch_leader(raft.clone(), leader_sender)),
            tokio::spawn(membership::follow_map(raft.clone(), map.clone(), me)),
            tokio::spawn(initialize(raft.clone(), config)),
        ];
        let me = peers.me;
        let tasks = Mutex::new(tasks);
        let disk = Mutex::new(Some(disk));
        Ok(Arc::new(Self {
            me,
            raft,
            disk,
            map,
            peers,
            leader,
            led,
            retires,
            asked,
            removed,
            tasks,
        }))
    }

    /// Whether this node would vote for one whose log ends there.
    pub(super) async fn would_vote(&self, last: Option<LogId>) -> bool {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match disk {
            Some(disk) => election::would_vote(&self.raft, &disk, last).await,
            None => false,
        }
    }

    /// Makes a snapshot now, so that the log can be cut.
    pub async fn snapshot_now(&self) {
        let _stopped = self.raft.trigger().snapshot().await;
    }

    /// Before a stop: lets another node lead, if this one does, and does not stand again. Owners go on
    /// by their leases meanwhile, so guests don't wait for the election. Returns when another leads, when
    /// nobody else is there to lead, or when `RETIRE_WAIT` is over.
    pub async fn retire(&self) {
        self.retires.send_replace(true);
        if self.leading().await.is_none() {
            return;
        }
        let network = Network::new(Arc::clone(&self.peers));
        if !election::ask_another(&self.raft, &network, u64::from(self.me.get())).await {
            tracing::info!("no other voter is there to lead");
            return;
        }
        let mut leader = self.leader.clone();
        let other = leader.wait_for(|view| view.leader.is_some_and(|leader| leader != self.me));
        if tokio::time::timeout(RETIRE_WAIT, other).await.is_err() {
            tracing::warn!("no other node took the consensus lead over");
        }
    }

    /// Ends when another voter has said that this node was removed from the cluster.
    pub async fn removed(&self) {
        let mut removed = self.removed.clone();
        if removed.wait_for(|removed| *removed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the map says that of another node.
    pub(super) fn has_removed(&self, node: NodeId) -> bool {
        self.map.read_map(|map| map.is_removed(node))
    }

    /// A leader that retires asked for it.
    pub(super) fn stand(&self) {
        self.asked.send_replace(Some(Instant::now()));
    }

    /// Hands a command to a node that is thought to lead; it may know better. Taken twice, it counts
    /// once by its number.
    async fn forward(&self, to: NodeId, command: &Command) -> Result<(), ProposeError> {
        let command = serde_json::to_vec(command).map_err(|_| ProposeError::Stopped)?.into();
        let request = ProposeRequest { command };
        let propose = |mut client: PeerClient| {
            let request = request.clone();
            async move { client.propose(request).await }
        };
        let answer = self.peers.ask(to, FORWARD_WAIT, propose).await;
        let answer = answer.ok_or(ProposeError::Unreachable)?;
        if answer.taken {
            return Ok(());
        }
        Err(ProposeError::NotLeader { leader: answer.leader.map(NodeId::new) })
    }

    /// The term in which this node leads, by its own knowledge.
    async fn leading(&self) -> Option<u64> {
        let me = u64::from(self.me.get());
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.ok()?;
        let leading = vote.is_committed() && vote.leader_id().voted_for() == Some(me);
        leading.then(|| vote.leader_id().term)
    }
}

#[tonic::async_trait]
impl MetaStore for OpenraftStore {
    async fn propose(&self, command: Command) -> Result<(), ProposeError> {
        let leader = self.leader.borrow().leader;
        let Some(leader) = leader else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        if leader == self.me {
            return self.propose_here(command).await;
        }
        match self.forward(leader, &command).await {
            Err(ProposeError::NotLeader { leader: Some(other) }) if other == self.me => {
                self.propose_here(command).await
            }
            Err(ProposeError::NotLeader { leader: Some(other) }) if other != leader => {
                self.forward(other, &command).await
            }
            result => result,
        }
    }

    async fn propose_here(&self, command: Command) -> Result<(), ProposeError> {
        let view = *self.leader.borrow();
        if view.leader != Some(self.me) {
            return Err(ProposeError::NotLeader { leader: view.leader });
        }
        let unapplied = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let applied = metrics.last_applied.map_or(0, |id| id.index);
            metrics.last_log_index.unwrap_or(0).saturating_sub(applied)
        };
        if unapplied > UNAPPLIED_MAX {
            return Err(ProposeError::Full);
        }
        // Nobody waits for a single write: what became of a command is known from the committed log.
        self.raft.client_write_ff(command).await.map(drop).map_err(|_| ProposeError::Stopped)
    }

    async fn confirm_leader(&self) -> Option<u64> {
        let term = self.leading().await?;
        // A confirmation is a word of the leader's, too: the others would go on to wait for it.
        if *self.retires.borrow() {
            return None;
        }
        let confirmed = tokio::time::timeout(CONFIRM_WAIT, self.raft.ensure_linearizable()).await;
        confirmed.ok()?.ok()?;
        (self.leading().await? == term).then_some(term)
    }

    fn leader(&self) -> watch::Receiver<LeaderView> {
        self.leader.clone()
    }

    fn is_led(&self) -> bool {
        *self.led.borrow()
    }

    fn map(&self) -> SharedMap {
        self.map.clone()
    }

    async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        let failed = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
        let reason = failed.ok().and_then(|metrics| metrics.running_state.as_ref().err().cloned());
        reason.map_or_else(|| "it stopped".to_owned(), |fatal| fatal.to_string())
    }

    /// openraft goes on when its handle is dropped; only this ends it. Afterwards nobody holds the file
    /// (or `CLOSE_WAIT` is over).
    async fn shutdown(&self) {
        let _ended = self.raft.shutdown().await;
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            let _aborted = task.await;
        }
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let closed = async {
            while disk.as_ref().is_some_and(|disk| disk.holders() > 1) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _in_time = tokio::time::timeout(CLOSE_WAIT, closed).await;
    }
}

fn openraft_config(config: &ConsensusConfig) -> Result<Config, ConsensusError> {
    let config = Config {
        cluster_name: config.cluster.to_string(),
        // Its timers are ours (see `election`): this is how long its messages may take.
        heartbeat_interval: RPC_WAIT_MS,
        election_timeout_min: LEADER_HEARD_MS - 1,
        election_timeout_max: LEADER_HEARD_MS,
        enable_heartbeat: false,
        enable_elect: false,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_after),
        max_in_snapshot_log_to_keep: config.snapshot_after / 2,
        replication_lag_threshold: config.snapshot_after,
        purge_batch_size: 1,
        ..Config::default()
    };
    config.validate().map_err(|error| ConsensusError::Raft(error.to_string()))
}

/// Makes a new cluster of the configured voters, where there is none. All do it alike, so it does no
/// harm when several do.
async fn initialize(raft: Raft, config: ConsensusConfig) {
    let lowest = config.voters.iter().map(|voter| voter.node).min();
    if lowest != Some(config.node) {
        let voter = config.voters.iter().any(|voter| voter.node == config.node);
        if !voter {
            return;
        }
        tokio::time::sleep(INITIALIZE_WAIT).await;
    }
    if raft.is_initialized().await.unwrap_or(true) {
        return;
    }
    let voter = |voter: &Voter| (u64::from(voter.node.get()), BasicNode::new(&voter.api));
    let members: BTreeMap<u64, BasicNode> = config.voters.iter().map(voter).collect();
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(cluster = %config.cluster, "a new cluster is made"),
        Err(error) => tracing::debug!(%error, "the cluster was made by another node"),
    }
}

async fn watch_leader(raft: Raft, view: watch::Sender<LeaderView>) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            let leader = metrics.current_leader.and_then(|id| u32::try_from(id).ok());
            LeaderView { term: metrics.vote.leader_id().term, leader: leader.map(NodeId::new) }
        };
        view.send_if_modified(|view| {
            let changed = *view != now;
            *view = now;
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
