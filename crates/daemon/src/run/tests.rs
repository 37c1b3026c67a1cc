//! Whole nodes in one process: real files, loopback, gRPC from outside.

use super::*;
use crate::init::init;
use crate::test_ports::free_port;
use bytes::Bytes;
use gabion_api::IoClient;
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_api::v1::volumes_client::VolumesClient;
use gabion_api::v1::{
    Attach, CreateVolumeRequest, DiskState, ErrorCode, ErrorDetail, EventsRequest,
    GetVolumeRequest, Health, LocateRequest, SetSettingRequest, StatusRequest, StatusResponse,
};
use gabion_types::MapIndex;
use std::fmt::Write;
use std::io::{Read, Seek, SeekFrom};
use tokio::runtime::{Builder, Runtime};
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes away with the test.
struct TestDir(PathBuf);

impl Drop for TestDir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// With a runtime of its own, so that its connections end with it, as those of a process do.
struct TestNode {
    runtime: Option<Runtime>,
    running: Option<Running>,
    _home: Home,
}

impl TestNode {
    async fn start(settings: Settings) -> Result<Self, RunError> {
        Identity::of_initialised(&settings)?;
        let home = Home::lock(&settings.dir)?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let starting = runtime.spawn(async move { Running::start(&settings).await });
        let started = starting.await.unwrap();
        let mut node = Self { runtime: Some(runtime), running: None, _home: home };
        node.running = Some(started?);
        Ok(node)
    }

    async fn stop(mut self) {
        let (running, runtime) = (self.running.take().unwrap(), self.runtime.as_ref().unwrap());
        runtime.spawn(running.stop()).await.unwrap();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct TestCluster {
    settings: Vec<Settings>,
    nodes: Vec<Option<TestNode>>,
    _dir: TestDir,
}

fn settings(dir: &Path, count: u32) -> Vec<Settings> {
    let mut voters = String::new();
    let mut listens = Vec::new();
    for node in 1..=count {
        let [api, peer, nbd, http] = [(); 4].map(|()| free_port());
        let listen = format!(
            "api = \"127.0.0.1:{api}\"\npeer = \"127.0.0.1:{peer}\"\n\
             nbd = \"127.0.0.1:{nbd}\"\nhttp = \"127.0.0.1:{http}\"\n"
        );
        write!(voters, "[[voters]]\nnode = {node}\nname = \"node{node}\"\n{listen}").unwrap();
        listens.push(listen);
    }
    let file = |(node, listen): (u32, String)| {
        let home = dir.join(format!("node{node}"));
        let text = format!(
            "cluster = \"000102030405060708090a0b0c0d0e0f\"\nnode = {node}\n\
             name = \"node{node}\"\ndir = {home:?}\nsecret = \"{secret}\"\n[listen]\n{listen}\
             [[disks]]\npath = {disk:?}\nsize_bytes = 67108864\n{voters}\
             [limits]\nsegment_bytes = 1048576\n",
            secret = "5".repeat(64),
            disk = home.join("disk0"),
        );
        Settings::parse(Path::new("node.toml"), &text).unwrap()
    };
    (1..).zip(listens).map(file).collect()
}

impl TestCluster {
    async fn start(name: &str, count: u32) -> Self {
        start_log();
        let path = std::env::temp_dir().join(format!("gabion-{name}-{}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&path);
        let dir = TestDir(path);
        let settings = settings(&dir.0, count);
        let mut cluster = Self { settings, nodes: Vec::new(), _dir: dir };
        for index in 0..cluster.settings.len() {
            init(&cluster.settings[index], false, |_, _| {}).unwrap();
            cluster.nodes.push(None);
            cluster.start_node(index).await;
        }
        cluster
    }

    async fn start_node(&mut self, index: usize) {
        let node = TestNode::start(self.settings[index].clone()).await.unwrap();
        self.nodes[index] = Some(node);
    }

    async fn stop_node(&mut self, index: usize) {
        self.nodes[index].take().unwrap().stop().await;
    }

    async fn stop(mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_some() {
                self.stop_node(index).await;
            }
        }
    }

    fn channel(&self, index: usize) -> Channel {
        let address = format!("http://{}", self.settings[index].listen.api);
        Channel::from_shared(address).unwrap().connect_lazy()
    }

    fn addresses(&self) -> Vec<String> {
        self.settings.iter().map(|settings| settings.listen.api.to_string()).collect()
    }

    async fn status(&self, index: usize) -> Result<StatusResponse, Status> {
        let answer = ClusterClient::new(self.channel(index)).status(StatusRequest {}).await?;
        Ok(answer.into_inner())
    }

    /// Until the status at one node is as wanted; gives it.
    async fn until(
        &self,
        index: usize,
        wanted: impl Fn(&StatusResponse) -> bool,
    ) -> StatusResponse {
        let mut last = None;
        let wait = async {
            loop {
                last = self.status(index).await.ok();
                if let Some(status) = last.as_ref().filter(|status| wanted(status)) {
                    return status.clone();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        found.unwrap_or_else(|_| panic!("it stays like this: {last:?}"))
    }

    async fn all_up(&self) -> StatusResponse {
        let count = self.settings.len();
        let up = |status: &StatusResponse| {
            let disks: usize = status.nodes.iter().map(|node| node.disks.len()).sum();
            status.nodes.len() == count && disks == count && status.leader.is_some()
        };
        self.until(0, up).await
    }
}

fn create(name: &str, size_bytes: u64) -> CreateVolumeRequest {
    CreateVolumeRequest { name: name.to_owned(), size_bytes, ..CreateVolumeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_through_any_node_and_written_through_grpc() {
    let mut cluster = TestCluster::start("run-volume", 3).await;
    let status = cluster.all_up().await;
    let leader = status.leader.unwrap();
    assert_eq!(status.health(), Health::Healthy, "{:?}", status.problems);

    // Through a node that does not lead: it answers as if it did, and has it at once itself.
    let other = usize::try_from(leader % 3).unwrap();
    let mut volumes = VolumesClient::new(cluster.channel(other));
    let made = volumes.create(create("vm1", 8 << 20)).await.unwrap().into_inner().volume.unwrap();
    assert_eq!((made.rf, made.segments.len()), (2, 8));
    let got = volumes.get(GetVolumeRequest { name: "vm1".to_owned() }).await.unwrap();
    assert_eq!(got.into_inner().volume.unwrap().health(), Health::Healthy);

    let again = volumes.create(create("vm1", 8 << 20)).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&again).code(), ErrorCode::NameTaken);
    let odd = volumes.create(create("vm2", 1000)).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&odd).code(), ErrorCode::BadSize);
    let alone = CreateVolumeRequest { attach: Attach::Exclusive.into(), ..create("vm2", 8 << 20) };
    let alone = volumes.create(alone).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(alone.attach(), Attach::Exclusive);
    let none = volumes.get(GetVolumeRequest { name: "vm9".to_owned() }).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&none).code(), ErrorCode::NoVolume);

    let guest = IoClient::open_within(&cluster.addresses(), "vm1", PATIENCE).await.unwrap();
    assert_eq!(guest.size_bytes(), 8 << 20);
    let data = Bytes::from(vec![0xA5; 3 << 20]);
    guest.write(4096, data.clone()).await.unwrap();
    guest.flush().await.unwrap();
    assert_eq!(guest.read(4096, 3 << 20).await.unwrap(), data);
    guest.zero(8192, 4096).await.unwrap();
    assert_eq!(guest.read(8192, 4096).await.unwrap(), Bytes::from(vec![0; 4096]));
    let locate = LocateRequest { name: "vm1".to_owned(), offset: 4096 };
    let copies = volumes.locate(locate).await.unwrap().into_inner().copies;
    assert_eq!(copies.len(), 2);
    for copy in copies {
        assert!(copy.known && copy.data, "{copy:?}");
        let mut file = std::fs::File::open(&copy.path).unwrap();
        let mut block = vec![0; 4096];
        file.seek(SeekFrom::Start(copy.byte_offset)).unwrap();
        file.read_exact(&mut block).unwrap();
        assert_eq!(block, data[..4096], "{copy:?}");
    }
    let past = guest.read(8 << 20, 512).await.unwrap_err();
    assert_eq!(past.code(), ErrorCode::OutOfRange);

    // The node that served it goes, clean; the guest goes on at another one.
    let served = guest.state().borrow().connected.clone().unwrap();
    let served = cluster.addresses().iter().position(|address| *address == served).unwrap();
    cluster.stop_node(served).await;
    let found = tokio::time::timeout(PATIENCE, guest.read(4096, 4096)).await.unwrap().unwrap();
    assert_eq!(found, data.slice(..4096));
    guest.write(0, Bytes::from(vec![7; 4096])).await.unwrap();

    cluster.start_node(served).await;
    let seen = (served + 1) % 3;
    let healthy = |status: &StatusResponse| status.health() == Health::Healthy;
    cluster.until(seen, healthy).await;
    assert_eq!(guest.read(0, 4096).await.unwrap(), Bytes::from(vec![7; 4096]));
    drop(guest);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_events_are_those_of_the_cluster() {
    let cluster = TestCluster::start("run-settings", 2).await;
    let leader = cluster.all_up().await.leader.unwrap();
    let other = usize::try_from(leader % 2).unwrap();
    let mut client = ClusterClient::new(cluster.channel(other));
    let set = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        SetSettingRequest { name, value }
    };
    client.set_setting(set("rebuild.wait", "5s")).await.unwrap();
    let bad = client.set_setting(set("rebuild.wait", "soon")).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&bad).code(), ErrorCode::BadValue);
    let none = client.set_setting(set("rebuild.wat", "5s")).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&none).code(), ErrorCode::NoSetting);

    let request = EventsRequest::default();
    let mut events = client.events(request).await.unwrap().into_inner();
    let mut kinds = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        kinds.push(event.kind);
    }
    for kind in ["node_registered", "disk_opened", "setting_changed"] {
        assert!(kinds.iter().any(|found| found == kind), "{kind} is not in {kinds:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_the_log_does_not_vote_again() {
    let mut cluster = TestCluster::start("run-lost", 3).await;
    let status = cluster.all_up().await;
    let victim = usize::try_from(status.leader.unwrap() % 3).unwrap();
    cluster.stop_node(victim).await;
    let settings = cluster.settings[victim].clone();
    std::fs::remove_dir_all(settings.dir.join("meta")).unwrap();
    // The others know it, though its own identity does not tell.
    let mut identity = Identity::of_initialised(&settings).unwrap();
    assert!(identity.log_made);
    identity.log_made = false;
    identity.write(&settings.dir).unwrap();
    let error = TestNode::start(settings.clone()).await.err().unwrap();
    assert!(matches!(error, RunError::LogLost { .. }), "{error}");
    // Nobody answers, and it knows it by itself.
    identity.log_made = true;
    identity.write(&settings.dir).unwrap();
    for other in (0..3).filter(|node| *node != victim) {
        cluster.stop_node(other).await;
    }
    let error = TestNode::start(settings).await.err().unwrap();
    assert!(matches!(error, RunError::LogLost { .. }), "{error}");
}

#[tokio::test]
async fn a_disk_that_comes_late_is_compared_with_the_log_as_well() {
    let (seen, disks) = watch::channel(DisksSeen { decided: 1, highest_map: MapIndex::new(7) });
    let (_alive, mut milestone) = watch::channel(Milestone::Running);
    let mut log = LogJudge { dir: PathBuf::new(), disks, log_end: 7 };
    log.wait_for_disks(1, &mut milestone).await.unwrap();
    let short = Duration::from_millis(50);
    assert!(tokio::time::timeout(short, log.judge_late()).await.is_err());
    seen.send_replace(DisksSeen { decided: 2, highest_map: MapIndex::new(8) });
    let error = log.judge_late().await;
    assert!(matches!(error, RunError::RolledBack { seen: 8, log_end: 7, .. }), "{error}");
    // And at once where it is there in time.
    let error = log.wait_for_disks(2, &mut milestone).await.unwrap_err();
    assert!(matches!(error, RunError::RolledBack { .. }), "{error}");
}

/// The body of an answer to a plain GET; `None` where nobody answers.
async fn get(at: SocketAddr, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(at).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_starting_is_alive_and_not_ready() {
    start_log();
    let path = std::env::temp_dir().join(format!("gabion-run-starting-{}", std::process::id()));
    let dir = TestDir(path);
    let all = settings(&dir.0, 3);
    init(&all[0], false, |_, _| {}).unwrap();
    // Others that take its calls and never answer keep it from coming further for a while.
    let mut silent = Vec::new();
    for other in &all[1..] {
        silent.push(TcpListener::bind(other.listen.api).await.unwrap());
    }
    let own = all[0].clone();
    let starting = tokio::spawn(async move { TestNode::start(own).await });
    let health = async {
        loop {
            if let Some(answer) = get(all[0].listen.http, "/healthz").await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let health = tokio::time::timeout(PATIENCE, health).await.unwrap();
    let ready = get(all[0].listen.http, "/readyz").await.unwrap();
    let metrics = get(all[0].listen.http, "/metrics").await.unwrap();
    assert!(!starting.is_finished(), "it was to be seen while it starts");
    assert!(health.contains(" 200 ") && health.ends_with("alive\n"), "{health}");
    assert!(ready.contains(" 503 ") && ready.contains("the node is starting: "), "{ready}");
    assert!(metrics.contains(" 503 "), "{metrics}");
    // It serves, and is not ready: there is no majority. So says gRPC, of the node as a whole too.
    let node = starting.await.unwrap().unwrap();
    let ready = get(all[0].listen.http, "/readyz").await.unwrap();
    assert!(ready.contains(" 503 ") && ready.contains("no leader"), "{ready}");
    let address = format!("http://{}", all[0].listen.api);
    let channel = Channel::from_shared(address).unwrap().connect_lazy();
    let mut client = HealthClient::new(channel);
    for service in ["", "gabion.v1.Io", "gabion.v1.Volumes"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = client.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing, "{service:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_not_there_is_missed_and_never_made() {
    let mut cluster = TestCluster::start("run-disk-gone", 3).await;
    cluster.all_up().await;
    cluster.stop_node(2).await;
    let disk = cluster.settings[2].disks[0].path.clone();
    let kept = disk.with_extension("kept");
    std::fs::rename(&disk, &kept).unwrap();
    cluster.start_node(2).await;
    let missing = |status: &StatusResponse| {
        status.nodes.iter().any(|node| {
            node.id == 3 && node.disks.iter().any(|disk| disk.state() == DiskState::Missing)
        })
    };
    cluster.until(0, missing).await;
    assert!(!disk.exists(), "an empty disk in its place would fill the file system below a mount");
    let mut volumes = VolumesClient::new(cluster.channel(2));
    volumes.create(create("vm1", 8 << 20)).await.unwrap();
    cluster.stop_node(2).await;
    std::fs::rename(&kept, &disk).unwrap();
    cluster.start_node(2).await;
    let back = |status: &StatusResponse| {
        let disks = status.nodes.iter().flat_map(|node| &node.disks);
        disks.clone().count() == 3 && disks.into_iter().all(|d| d.state() == DiskState::InService)
    };
    cluster.until(0, back).await;
    cluster.stop().await;
}

#[test]
fn a_node_that_was_not_made_does_not_run_and_leaves_no_trace() {
    let path = std::env::temp_dir().join(format!("gabion-run-unmade-{}", std::process::id()));
    let dir = TestDir(path);
    let settings = settings(&dir.0, 1).remove(0);
    let error = run_with(settings.clone()).err().unwrap();
    assert!(matches!(error, RunError::Identity(IdentityError::Missing { .. })), "{error}");
    assert!(!settings.dir.exists());
    init(&settings, false, |_, _| {}).unwrap();
    let other = Settings { cluster: gabion_types::ClusterId::new([9; 16]), ..settings };
    let error = run_with(other).err().unwrap();
    assert!(matches!(error, RunError::Identity(IdentityError::Other { .. })), "{error}");
}
