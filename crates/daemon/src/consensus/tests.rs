//! Three consensus nodes in one process, over real loopback gRPC and real files.

use super::*;
use crate::control::internal::{InternalService, Local};
use crate::control::peers::Peers;
use gabion_api::v1::{
    LocalEvictRequest, LocalEvictResponse, LocalLocateRequest, LocalLocateResponse,
    LocalStatsResponse,
};
use gabion_cluster::{Change, Proposer};
use gabion_types::{ClusterId, Incarnation};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

const SNAPSHOT_AFTER: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that goes away with the test.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gabion-{name}-{}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

struct NoLocal;

#[tonic::async_trait]
impl Local for NoLocal {
    fn stats(&self) -> LocalStatsResponse {
        LocalStatsResponse::default()
    }

    fn history(&self, _since_ms: u64) -> Vec<gabion_api::v1::LocalSample> {
        Vec::new()
    }

    fn add_disk(
        &self,
        _request: gabion_api::v1::AddDiskRequest,
    ) -> crate::control::internal::AddingDisk {
        mpsc::channel(1).1.into()
    }

    async fn locate(&self, _block: LocalLocateRequest) -> LocalLocateResponse {
        LocalLocateResponse::default()
    }

    async fn evict(&self, _guest: LocalEvictRequest) -> LocalEvictResponse {
        LocalEvictResponse::default()
    }
}

/// Of a node's own, so that its connections end with it.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct TestNode {
    store: Arc<OpenraftStore>,
    server: OwnRuntime,
    reader: JoinHandle<Vec<Committed>>,
}

struct TestCluster {
    dir: TestDir,
    voters: Vec<Voter>,
    nodes: Vec<Option<TestNode>>,
    number: u64,
}

impl TestCluster {
    async fn start(name: &str, count: u32) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
        let _already = log.try_init();
        let mut listeners = Vec::new();
        let mut voters = Vec::new();
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let api = listener.local_addr().unwrap().to_string();
            voters.push(Voter { node: NodeId::new(id), api });
            listeners.push(listener);
        }
        let dir = TestDir::new(name);
        let mut cluster = Self { dir, voters, nodes: Vec::new(), number: 0 };
        for (index, listener) in listeners.into_iter().enumerate() {
            let node = cluster.start_node(index, listener).await;
            cluster.nodes.push(Some(node));
        }
        cluster
    }

    async fn start_node(&self, index: usize, listener: TcpListener) -> TestNode {
        let node = self.voters[index].node;
        let cluster = ClusterId::new([7; 16]);
        let voters = self.voters.iter().map(|voter| (voter.node, voter.api.clone()));
        let peers = Arc::new(Peers::new(node, cluster, [9; 32], voters));
        let config = ConsensusConfig {
            cluster,
            node,
            dir: self.dir.0.join(format!("node{node}")),
            voters: self.voters.clone(),
            seed: u64::from(node.get()) * 77,
            snapshot_after: SNAPSHOT_AFTER,
        };
        let (sender, mut committed) = mpsc::channel(64);
        let reader = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(entry) = committed.recv().await {
                seen.push(entry);
            }
            seen
        });
        let store = OpenraftStore::start(config, Arc::clone(&peers), sender).await.unwrap();
        let meta: Arc<dyn MetaStore> = store.clone();
        let answerer = Answerer::new(Arc::clone(&store));
        let service = InternalService::server(peers, answerer, meta, Arc::new(NoLocal));
        let server = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        server.spawn(async move {
            let listener = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(service).serve_with_incoming(listener).await.unwrap();
        });
        TestNode { store, server: OwnRuntime(Some(server)), reader }
    }

    /// Returns what it had seen of the log.
    async fn kill(&mut self, index: usize) -> Vec<Committed> {
        let node = self.nodes[index].take().unwrap();
        drop(node.server);
        node.store.shutdown().await;
        drop(node.store);
        node.reader.await.unwrap()
    }

    async fn restart(&mut self, index: usize) {
        let address = self.voters[index].api.clone();
        let listener = TcpListener::bind(address).await.unwrap();
        let node = self.start_node(index, listener).await;
        self.nodes[index] = Some(node);
    }

    fn store(&self, index: usize) -> &OpenraftStore {
        &self.nodes[index].as_ref().unwrap().store
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_some()).collect()
    }

    /// Waits until all who are alive name the same leader, one of them; gives its index.
    async fn leader(&self) -> usize {
        let alive = self.alive();
        eventually(|| {
            let mut leaders = alive.iter().map(|index| self.store(*index).leader().borrow().leader);
            let first = leaders.next().unwrap()?;
            let index = self.voters.iter().position(|voter| voter.node == first)?;
            (leaders.all(|other| other == Some(first)) && alive.contains(&index)).then_some(index)
        })
        .await
    }

    /// Sets `name` through one node, until its own copy of the map has it.
    async fn set(&mut self, through: usize, value: &str) {
        self.number += 1;
        let incarnation = Incarnation::new(1);
        let from = Proposer { node: NodeId::new(1), incarnation, number: self.number };
        let (name, value) = ("rebuild.wait".to_owned(), value.to_owned());
        let change = Change::SetSetting { name, value };
        let command = Command { from, change };
        let store = self.store(through);
        let before = *store.map().applied().borrow();
        loop {
            if store.propose(command.clone()).await.is_ok() {
                let mut applied = store.map().applied();
                let taken = tokio::time::timeout(
                    Duration::from_secs(2),
                    applied.wait_for(|index| *index > before),
                );
                if taken.await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All who are alive have the same map in the end.
    async fn settle(&self) -> Map {
        let alive = self.alive();
        eventually(|| {
            let mut ends = alive.iter().map(|index| {
                self.store(*index).map().read(|replica| (replica.last, replica.map.clone()))
            });
            let first = ends.next().unwrap();
            ends.all(|other| other == first).then_some(first.1)
        })
        .await
    }
}

async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it takes far less")
}

/// Each index once, in order, from what came first; a restored map only moves forward.
fn assert_in_order(seen: &[Committed]) {
    let index = |committed: &Committed| match committed {
        Committed::Entry { index, .. } | Committed::Restored { index, .. } => *index,
    };
    assert!(seen.windows(2).all(|pair| index(&pair[0]) < index(&pair[1])), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_catches_up() {
    let mut cluster = TestCluster::start("consensus-kill", 3).await;
    let first = cluster.leader().await;
    cluster.set((first + 1) % 3, "61s").await;
    let confirmed = cluster.store(first).confirm_leader().await;
    assert_eq!(confirmed, Some(cluster.store(first).leader().borrow().term));

    assert_in_order(&cluster.kill(first).await);
    let second = cluster.leader().await;
    assert_ne!(first, second);
    cluster.set(second, "62s").await;

    cluster.restart(first).await;
    cluster.leader().await;
    cluster.set(first, "63s").await;
    let map = cluster.settle().await;
    assert!(map != Map::default());
    for index in 0..3 {
        assert_in_order(&cluster.kill(index).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_the_log_gets_a_snapshot() {
    let mut cluster = TestCluster::start("consensus-snapshot", 3).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.set(leader, "61s").await;
    cluster.kill(away).await;
    for seconds in 0..3 * SNAPSHOT_AFTER {
        cluster.set(leader, &format!("{}s", 100 + seconds)).await;
    }
    cluster.restart(away).await;
    let map = cluster.settle().await;
    let seen = cluster.kill(away).await;
    assert_in_order(&seen);
    let restored = |committed: &Committed| matches!(committed, Committed::Restored { .. });
    assert!(seen.iter().any(restored), "the log was cut, so a snapshot was needed: {seen:?}");

    // Its own restart begins with the snapshot and tells the rest again.
    cluster.restart(away).await;
    assert_eq!(cluster.settle().await, map);
    for index in 0..3 {
        assert_in_order(&cluster.kill(index).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nobody_is_confirmed() {
    let mut cluster = TestCluster::start("consensus-minority", 3).await;
    let leader = cluster.leader().await;
    cluster.set(leader, "60s").await;
    cluster.settle().await;
    cluster.kill((leader + 1) % 3).await;
    cluster.kill((leader + 2) % 3).await;
    let before = cluster.store(leader).map().applied().borrow().to_owned();
    assert_eq!(cluster.store(leader).confirm_leader().await, None);
    let from = Proposer { node: NodeId::new(1), incarnation: Incarnation::new(1), number: 1 };
    let change = Change::SetSetting { name: "rebuild.wait".to_owned(), value: "61s".to_owned() };
    let _lost_or_taken = cluster.store(leader).propose(Command { from, change }).await;
    assert_eq!(cluster.store(leader).confirm_leader().await, None);
    assert_eq!(*cluster.store(leader).map().applied().borrow(), before);

    cluster.restart((leader + 1) % 3).await;
    cluster.leader().await;
    cluster.set(leader, "62s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_node_is_refused_by_name() {
    let mut cluster = TestCluster::start("consensus-identity", 1).await;
    cluster.leader().await;
    cluster.kill(0).await;
    let dir = cluster.dir.0.join("noden1");
    let open = |cluster, node| {
        let identity = disk::Identity::new(ClusterId::new([cluster; 16]), NodeId::new(node));
        disk::ConsensusDisk::open(&dir, identity).map(drop).unwrap_err().to_string()
    };
    assert!(open(7, 2).contains("belongs to node 1 and the configuration says node 2"));
    assert!(open(8, 1).contains("belongs to cluster 07070707"));
}
