//! One node, from its configuration to its end: everything is started, wired and stopped here.

use crate::consensus::{
    Answerer, Committed, ConsensusConfig, ConsensusError, MetaStore, OpenraftStore, Voter,
};
use crate::control::ask::Context;
use crate::control::event_log::EventLog;
use crate::control::hub::{DisksSeen, Hub, Milestone};
use crate::control::local::LocalStats;
use crate::control::observer::Observer;
use crate::control::peers::Peers;
use crate::control::server;
use crate::data::{DataConfig, DataError, DataPlane, Published, listen_hint};
use crate::drills::DrillDir;
use crate::home::{Home, HomeError, random};
use crate::http::console::Console;
use crate::http::{self, HttpState, Stage};
use crate::identity::{Identity, IdentityError};
use crate::service::Service;
use crate::settings::{Settings, SettingsError};
use gabion_cluster::{Change, Command, Map, Proposer};
use gabion_engine::EngineConfig;
use gabion_node::{Input, NodeConfig, NodeSettings};
use gabion_types::{Incarnation, NodeId};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Entries of the log on their way to the data plane.
const LOG_QUEUED: usize = 64;
/// A snapshot of the map is made after so many entries of the log.
const SNAPSHOT_AFTER: u64 = 2000;
/// A clean stop takes no longer.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// The disks are recovered by then, or their node starts without knowing what map they saw.
const DISKS_WAIT: Duration = Duration::from_secs(120);
/// How often the leader of a cluster without a map tries to make it.
const INIT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    #[error("cannot listen for {whom} at {at} ({error}); {}", listen_hint(.error))]
    Listen { whom: &'static str, at: SocketAddr, error: std::io::Error },
    #[error("the server for {whom} ended: {error}")]
    Served { whom: &'static str, error: Box<dyn std::error::Error + Send + Sync> },
    #[error("the process cannot be set up: {0}")]
    Process(std::io::Error),
    #[error(
        "a disk of this node has seen map {seen}, and its consensus log ends at {log_end}: the \
         directory {dir} was lost or rolled back; a node that votes with a log like that could \
         undo what was decided; bring the old directory back, or give the node a new id and new \
         disks", dir = dir.display()
    )]
    RolledBack { dir: PathBuf, seen: u64, log_end: u64 },
    #[error(
        "node {node} is known to the cluster, and its consensus log is not in {dir}: who lost the \
         log is a new node; bring the old directory back, or give the node a new id and new disks",
        node = node.get(), dir = dir.display()
    )]
    LogLost { node: NodeId, dir: PathBuf },
    #[error("another process of this node runs ({0}); this one stops")]
    Superseded(Incarnation),
    #[error(
        "node {node} was removed from the cluster, and is never a member of it again; this process \
         stops; its directory and disks may be used for something else, or for a new node with \
         another id", node = node.get()
    )]
    Removed { node: NodeId },
    #[error("the data plane ended; the log says why")]
    DataDied,
    #[error("the consensus log cannot be kept any more: {0}")]
    ConsensusFailed(String),
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT; then hands its volumes over and
/// leaves. Before all nodes of a cluster stop, each is told by SIGUSR1 to let go of its guests and
/// volumes. The log goes to stderr.
///
/// Errors: it could not start, or could not go on.
pub fn run(config: &Path) -> Result<(), RunError> {
    let settings = Settings::read(config)?;
    run_with(settings)
}

/// As `run`, with a configuration that may have been changed by options.
pub fn run_with(settings: Settings) -> Result<(), RunError> {
    start_log();
    // Before the lock: nothing is written into a directory that is not the node's.
    let home = Identity::of_initialised(&settings).map_err(RunError::from).and_then(|identity| {
        if identity.removed {
            return Err(RunError::Removed { node: settings.info.id });
        }
        Ok(Home::lock(&settings.dir)?)
    });
    let home = home.inspect_err(|error| tracing::error!("{error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("gabion-control")
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Process)?;
    let result = runtime.block_on(live(&settings));
    let result = match result {
        Err(RunError::Removed { node }) => {
            Err(note_removal(&settings).err().unwrap_or(RunError::Removed { node }))
        }
        result => result,
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(home);
    match &result {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::error!("{error}"),
    }
    result
}

/// So that it says so at once when it is started again.
fn note_removal(settings: &Settings) -> Result<(), RunError> {
    let mut identity = Identity::of_initialised(settings)?;
    identity.removed = true;
    Ok(identity.write(&settings.dir)?)
}

/// To stderr; `GABION_LOG` chooses what, as in `debug` or `info,gabion_daemon=trace`.
fn start_log() {
    // openraft calls each try to reach a node that is down an error.
    let filter = tracing_subscriber::EnvFilter::try_from_env("GABION_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A process that has a log of its own keeps it.
    let _kept = log.with_ansi(std::io::stderr().is_terminal()).try_init();
}

async fn live(settings: &Settings) -> Result<(), RunError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Process)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Process)?;
    let mut quiesce = signal(SignalKind::user_defined1()).map_err(RunError::Process)?;
    let mut asked = async || {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    };
    let service = Service::from_env();
    let mut node = tokio::select! {
        node = Running::start(settings) => node?,
        name = asked() => {
            tracing::info!(name, "told to stop before it had started");
            return Ok(());
        }
        never = service.tell_starting() => match never {},
    };
    let (service, hub) = (Arc::new(service), Arc::clone(&node.hub));
    let teller = Arc::clone(&service);
    tokio::spawn(async move { teller.tell_running(&hub).await });
    let mut all_stop = false;
    let ended = loop {
        tokio::select! {
            error = node.ended() => break Err(error),
            name = asked() => {
                tracing::info!(name, "told to stop");
                break Ok(());
            }
            _ = quiesce.recv() => {
                tracing::info!("told to let go of guests and volumes: the whole cluster stops");
                if node.hub.send(Input::Quiesce).await.is_err() {
                    break Err(RunError::DataDied);
                }
                all_stop = true;
            }
        }
    };
    service.tell_stopping();
    if ended.is_ok() && !all_stop {
        node.store.retire().await;
    }
    node.stop().await;
    ended
}

/// A node that takes part.
struct Running {
    node: NodeId,
    hub: Arc<Hub>,
    store: Arc<OpenraftStore>,
    servers: tokio::task::JoinSet<RunError>,
    milestone: watch::Receiver<Milestone>,
    judge: LogJudge,
}

/// Compares the log with what the disks saw of the map.
struct LogJudge {
    dir: PathBuf,
    disks: watch::Receiver<DisksSeen>,
    /// Where the log ended when the process started.
    log_end: u64,
}

impl LogJudge {
    /// Waits until the disks have told what map they saw: a log that ends below it was rolled back,
    /// and must not vote. Disks that take long are judged when they are there.
    async fn wait_for_disks(
        &mut self,
        all: usize,
        milestone: &mut watch::Receiver<Milestone>,
    ) -> Result<(), RunError> {
        let decided = self.disks.wait_for(|seen| seen.decided >= all);
        tokio::select! {
            decided = tokio::time::timeout(DISKS_WAIT, decided) => {
                if decided.is_err() {
                    tracing::warn!("not all disks are recovered yet; the node starts without them");
                }
            }
            _ = milestone.wait_for(|milestone| *milestone == Milestone::Died) => {
                return Err(RunError::DataDied);
            }
        }
        let seen = self.disks.borrow().highest_map.get();
        if seen > self.log_end { Err(self.rolled_back(seen)) } else { Ok(()) }
    }

    /// Ends only if a disk that came late saw a newer map.
    async fn judge_late(&mut self) -> RunError {
        let log_end = self.log_end;
        let newer = self.disks.wait_for(|seen| seen.highest_map.get() > log_end).await;
        match newer.map(|seen| seen.highest_map.get()) {
            Ok(seen) => self.rolled_back(seen),
            Err(_) => RunError::DataDied,
        }
    }

    fn rolled_back(&self, seen: u64) -> RunError {
        RunError::RolledBack { dir: self.dir.clone(), seen, log_end: self.log_end }
    }
}

impl Running {
    async fn start(settings: &Settings) -> Result<Self, RunError> {
        warn_of_exposure(settings);
        let mut servers = tokio::task::JoinSet::new();
        let (stage, http_stage) = watch::channel(Stage::Starting("it asks the others who it is"));
        let api = bind("the API", settings.listen.api).await?;
        let http = bind("HTTP", settings.listen.http).await?;
        let drills = DrillDir::beside(&settings.dir);
        let console = Console::new(settings.http.clone(), settings.info.http.clone(), drills);
        servers.spawn(serve_http(
            http,
            HttpState { stage: http_stage, console: Arc::clone(&console) },
        ));
        let me = settings.info.id;
        let voters = settings.voters.iter().map(|voter| (voter.id, voter.api.clone()));
        let peers = Arc::new(Peers::new(me, settings.cluster, settings.secret, voters));
        let config = consensus_config(settings)?;
        let mut identity = Identity::of_initialised(settings)?;
        log_is_not_lost(settings, &identity, &config, &peers).await?;
        let log_end = OpenraftStore::log_end(&config).await?;

        let incarnation = Incarnation::new(random()?);
        let data_config = data_config(settings, incarnation)?;
        stage.send_replace(Stage::Starting("its disks are being recovered"));
        let data = tokio::task::spawn_blocking(move || DataPlane::spawn(data_config));
        let data = data.await.map_err(|_| RunError::DataDied)??;
        let bound = data.bound();
        let (sender, effects, state, _thread) = data.into_parts();
        let events = Arc::new(EventLog::new(me, &settings.dir));
        let hub = Hub::start(sender.clone(), state.clone(), effects, Arc::clone(&events));
        let mut milestone = hub.milestone.subscribe();
        let (dir, disks) = (settings.dir.clone(), hub.disks.subscribe());
        let mut judge = LogJudge { dir, disks, log_end };
        judge.wait_for_disks(settings.disks.len(), &mut milestone).await?;
        if !identity.log_made {
            OpenraftStore::make(&config)?;
            identity.log_made = true;
            identity.write(&settings.dir)?;
        }

        stage.send_replace(Stage::Starting("its consensus log is being read"));
        let (committed, log) = mpsc::channel::<Committed>(LOG_QUEUED);
        let feed = Arc::clone(&hub);
        tokio::spawn(async move { feed.carry_log(log).await });
        let store = OpenraftStore::start(config, Arc::clone(&peers), committed).await?;
        let meta: Arc<dyn MetaStore> = store.clone();
        hub.connect(Arc::clone(&meta));
        tokio::spawn(make_map(Arc::clone(&meta), settings.clone()));
        let local = LocalStats::start(Arc::clone(&hub), sender, state.clone(), settings);
        let context = Arc::new(Context {
            me,
            map: meta.map(),
            observer: Observer::start(meta.map(), Arc::clone(&peers), events),
            store: meta,
            hub: Arc::clone(&hub),
            peers,
            local,
        });
        tracing::info!(
            node = me.get(), %incarnation, api = %settings.listen.api, peer = %bound.peer,
            http = %settings.listen.http, "running"
        );
        console.serve(&context);
        let answerer = Answerer::new(Arc::clone(&store));
        servers.spawn(serve_api(api, context, answerer, state.clone()));
        stage.send_replace(Stage::Running(state));
        Ok(Self { node: me, hub, store, servers, milestone, judge })
    }

    /// Ends only when something went wrong.
    async fn ended(&mut self) -> RunError {
        let milestone = self.milestone.wait_for(|milestone| *milestone != Milestone::Running);
        tokio::select! {
            milestone = milestone => match milestone.map(|milestone| milestone.clone()) {
                Ok(Milestone::Superseded(by)) => RunError::Superseded(by),
                Ok(Milestone::Removed) => RunError::Removed { node: self.node },
                Ok(Milestone::Running | Milestone::Stopped | Milestone::Died) | Err(_) => {
                    RunError::DataDied
                }
            },
            () = self.store.removed() => RunError::Removed { node: self.node },
            failed = self.store.failed() => RunError::ConsensusFailed(failed),
            Some(Ok(error)) = self.servers.join_next() => error,
            error = self.judge.judge_late() => error,
        }
    }

    /// Hands over and leaves: the consensus and the servers go on until the data plane is done.
    async fn stop(mut self) {
        let stopped = async {
            if self.hub.send(Input::Stop).await.is_err() {
                return;
            }
            let over =
                |milestone: &Milestone| matches!(milestone, Milestone::Stopped | Milestone::Died);
            let _gone = self.milestone.wait_for(over).await;
        };
        if tokio::time::timeout(STOP_WAIT, stopped).await.is_err() {
            tracing::warn!("not everything was handed over in time");
        }
        self.servers.abort_all();
        self.store.shutdown().await;
    }
}

/// Before anything else: an address in use is told at once.
async fn bind(whom: &'static str, at: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(at).await.map_err(|error| RunError::Listen { whom, at, error })
}

/// From the start: a node that recovers its disks for minutes is alive, and says that it is not ready.
async fn serve_http(listener: TcpListener, state: HttpState) -> RunError {
    let error = match http::serve(listener, state).await {
        Ok(()) => "it closed its listener".into(),
        Err(error) => error.into(),
    };
    RunError::Served { whom: "HTTP", error }
}

async fn serve_api(
    listener: TcpListener,
    context: Arc<Context>,
    answerer: Answerer,
    state: watch::Receiver<Arc<Published>>,
) -> RunError {
    let error = match server::serve(listener, context, answerer, state).await {
        Ok(()) => "it closed its listener".into(),
        Err(error) => error.into(),
    };
    RunError::Served { whom: "the API", error }
}

/// Until there is TLS.
fn warn_of_exposure(settings: &Settings) {
    for (what, at) in settings.listen.beyond_loopback() {
        tracing::warn!(
            what, %at,
            "listens beyond loopback: nothing is encrypted there, and only peers prove who they \
             are; keep it in a network that you trust"
        );
    }
}

fn consensus_config(settings: &Settings) -> Result<ConsensusConfig, RunError> {
    let voter = |info: &gabion_cluster::NodeInfo| Voter { node: info.id, api: info.api.clone() };
    Ok(ConsensusConfig {
        cluster: settings.cluster,
        node: settings.info.id,
        dir: settings.dir.join("meta"),
        voters: settings.voters.iter().map(voter).collect(),
        seed: random()?,
        snapshot_after: SNAPSHOT_AFTER,
    })
}

fn data_config(settings: &Settings, incarnation: Incarnation) -> Result<DataConfig, RunError> {
    let node = NodeConfig {
        cluster: settings.cluster,
        node: settings.info.id,
        incarnation,
        secret: settings.secret,
        seed: random()?,
        settings: NodeSettings { limits: settings.limits, ..NodeSettings::default() },
        info: settings.info.clone(),
        disks: Vec::new(),
    };
    Ok(DataConfig {
        node,
        engine: EngineConfig { mode: settings.io, ..EngineConfig::default() },
        disks: settings.disks.iter().map(|disk| disk.path.clone()).collect(),
        listen_peer: settings.listen.peer,
        listen_nbd: Some(settings.listen.nbd),
        listen_nbd_unix: settings.listen.nbd_unix.clone(),
        voters: settings.voters.iter().map(|voter| (voter.id, voter.peer.clone())).collect(),
    })
}

/// A node that votes without the log that it had could undo what was decided.
async fn log_is_not_lost(
    settings: &Settings,
    identity: &Identity,
    config: &ConsensusConfig,
    peers: &Peers,
) -> Result<(), RunError> {
    if OpenraftStore::exists(config) {
        return Ok(());
    }
    if identity.log_made || crate::control::known::by_others(peers).await {
        let (node, dir) = (settings.info.id, settings.dir.clone());
        return Err(RunError::LogLost { node, dir });
    }
    Ok(())
}

/// The leader of a cluster whose map is empty proposes its first entry.
async fn make_map(store: Arc<dyn MetaStore>, settings: Settings) {
    let map = store.map();
    loop {
        tokio::time::sleep(INIT_PAUSE).await;
        if map.read_map(Map::cluster).is_some() {
            return;
        }
        if store.confirm_leader().await.is_none() || map.read_map(Map::cluster).is_some() {
            continue;
        }
        let Ok(random) = random() else { continue };
        let incarnation = Incarnation::new(random);
        let from = Proposer { node: settings.info.id, incarnation, number: 1 };
        let change = Change::Init { cluster: settings.cluster, limits: settings.limits };
        if let Err(error) = store.propose_here(Command { from, change }).await {
            tracing::debug!(%error, "the first entry is proposed again");
        }
    }
}

#[cfg(test)]
mod tests;
