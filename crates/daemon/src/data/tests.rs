//! Whole data planes over loopback and real files, with a thread for a consensus.

use super::{DataConfig, DataError, DataHandle, DataPlane, DataSender, Published, make_disk_file};
use gabion_cluster::{AdminReply, AdminRequest, Change, Command, NodeInfo, Proposer, VolumeSpec};
use gabion_engine::EngineConfig;
use gabion_node::{Effect, GuestId, Input, NodeConfig, NodeSettings};
use gabion_store::NewDisk;
use gabion_types::{
    ByteRange, ClusterId, Duration, GuestData, GuestOp, HoldPolicy, Incarnation, Limits, MapIndex,
    NodeId, SegmentSize,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tokio::sync::watch;

const CLUSTER: ClusterId = ClusterId::new([7; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

fn limits() -> Limits {
    Limits { segment: SegmentSize::new(1 << 20).unwrap(), ..Limits::DEFAULT }
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gabion-data-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], crate::test_ports::free_port()))
}

fn config(number: u32, scratch: &Scratch, with_disk: bool) -> DataConfig {
    let peer = free_port();
    let disk = scratch.0.join(format!("disk{number}"));
    if with_disk && !disk.exists() {
        let new = NewDisk {
            cluster: CLUSTER,
            uuid: [u8::try_from(number).unwrap(); 16],
            capacity_bytes: 64 << 20,
            limits: limits(),
        };
        make_disk_file(&disk, &new, |_| {}).unwrap();
    }
    let info = NodeInfo {
        id: NodeId::new(number),
        name: format!("node{number}"),
        peer: peer.to_string(),
        api: String::new(),
        nbd: String::new(),
        http: String::new(),
        zone: String::new(),
    };
    DataConfig {
        node: NodeConfig {
            cluster: CLUSTER,
            node: info.id,
            incarnation: Incarnation::new(u64::from(number) * 1000),
            secret: [9; 32],
            seed: u64::from(number),
            settings: NodeSettings { limits: limits(), ..NodeSettings::default() },
            info,
            disks: Vec::new(),
        },
        engine: EngineConfig { arena_bytes: 16 << 20, ..EngineConfig::default() },
        disks: if with_disk { vec![disk] } else { Vec::new() },
        listen_peer: peer,
        listen_nbd: Some("127.0.0.1:0".parse().unwrap()),
        listen_nbd_unix: Some(scratch.0.join(format!("nbd{number}.sock"))),
        voters: BTreeMap::new(),
    }
}

/// Data planes and a log that the first one leads.
struct Rig {
    nodes: Vec<(DataSender, watch::Receiver<Arc<Published>>, SocketAddr)>,
    effects: Receiver<Effect>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    fn start(configs: Vec<DataConfig>) -> Self {
        let (to_consensus, log) = channel();
        let (to_test, effects) = channel();
        let (mut nodes, mut threads) = (Vec::new(), Vec::new());
        for config in configs {
            let handle = DataPlane::spawn(config).unwrap();
            let nbd = handle.bound().nbd.unwrap();
            let (sender, mut effects, state, thread) = handle.into_parts();
            let to_consensus: Sender<Effect> = to_consensus.clone();
            threads.push(thread);
            threads.push(std::thread::spawn(move || {
                while let Some(effect) = effects.blocking_recv() {
                    if to_consensus.send(effect).is_err() {
                        return;
                    }
                }
            }));
            nodes.push((sender, state, nbd));
        }
        let senders: Vec<_> = nodes.iter().map(|(sender, ..)| sender.clone()).collect();
        threads.push(std::thread::spawn(move || consensus(&log, &senders, &to_test)));
        Self { nodes, effects, threads }
    }

    /// Waits until what a node publishes satisfies; the other nodes go on meanwhile.
    fn wait(&self, node: usize, what: &str, holds: impl Fn(&Published) -> bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut state = self.nodes[node].1.clone();
        let waited = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, state.wait_for(|state| holds(state))).await.is_ok()
        });
        assert!(waited, "{what}: {:?}", self.nodes[node].1.borrow().stats);
    }

    fn answer<T>(&self, look: impl Fn(Effect) -> Option<T>) -> T {
        loop {
            let effect = self.effects.recv_timeout(PATIENCE).unwrap();
            if let Some(found) = look(effect) {
                return found;
            }
        }
    }

    fn create_volume(&self, name: &str, size_bytes: u64, rf: u8) {
        let spec = VolumeSpec {
            name: name.into(),
            size_bytes,
            rf,
            hold: HoldPolicy::NeverFail,
            exclusive: false,
        };
        let request = AdminRequest::CreateVolume { spec, near: None };
        self.nodes[0].0.submit(Input::Admin { number: 1, request }).unwrap();
        let reply = self.answer(|effect| {
            if let Effect::AdminDone { reply, .. } = effect { Some(reply) } else { None }
        });
        assert!(matches!(reply, AdminReply::Created { .. }), "{reply:?}");
    }

    fn stop(self) {
        for (sender, ..) in &self.nodes {
            sender.submit(Input::Stop).unwrap();
        }
        for _ in 0..self.nodes.len() {
            self.answer(|effect| (effect == Effect::Stopped).then_some(()));
        }
        drop(self.nodes);
        drop(self.effects);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// Commits what is proposed, in the order of its arrival, and tells all nodes; passes on the rest.
fn consensus(log: &Receiver<Effect>, nodes: &[DataSender], to_test: &Sender<Effect>) {
    let mut index = 0;
    let mut stopped = 0;
    let mut commit = |command: &Command| {
        index += 1;
        for node in nodes {
            let command = command.clone();
            let _ = node.submit(Input::Committed { index: MapIndex::new(index), command });
        }
    };
    let from = Proposer { node: NodeId::new(1), incarnation: Incarnation::new(1000), number: 0 };
    commit(&Command { from, change: Change::Init { cluster: CLUSTER, limits: limits() } });
    for node in nodes {
        node.submit(Input::Leader { term: 1, leader: Some(NodeId::new(1)) }).unwrap();
    }
    while let Ok(effect) = log.recv() {
        if let Effect::Propose { command } = &effect {
            commit(command);
        } else if let Effect::ConfirmLeader { number, term } = effect {
            let _ = nodes[0].submit(Input::LeaderConfirmed { number, term });
        } else {
            stopped += usize::from(effect == Effect::Stopped);
            let _ = to_test.send(effect);
        }
        if stopped == nodes.len() {
            return;
        }
    }
}

/// As little of an NBD client as tests need.
struct NbdClient {
    stream: TcpStream,
    cookie: u64,
}

impl NbdClient {
    fn open(at: SocketAddr, export: &str) -> Self {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self { stream, cookie: 0 }
    }

    fn ask(&mut self, kind: u16, offset: u64, length: usize, data: &[u8]) -> Vec<u8> {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(u32::try_from(length).unwrap().to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[4..8], [0; 4], "the request failed");
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        let mut read = vec![0; if kind == 0 { length } else { 0 }];
        self.stream.read_exact(&mut read).unwrap();
        read
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.ask(1, offset, data.len(), data);
    }

    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.ask(0, offset, length, &[])
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at / 97 % 251).unwrap() ^ seed).collect()
}

#[test]
fn two_nodes_find_each_other() {
    let scratch = Scratch::new("peers");
    let rig = Rig::start((1..=2).map(|number| config(number, &scratch, false)).collect());
    for node in 0..2 {
        rig.wait(node, "its peer is up", |state| state.stats.peers.iter().any(|peer| peer.up));
        rig.wait(node, "it is ready", |state| state.stats.ready);
    }
    rig.stop();
}

#[test]
fn a_guest_writes_and_reads_through_either_node() {
    let scratch = Scratch::new("guests");
    let rig = Rig::start((1..=2).map(|number| config(number, &scratch, true)).collect());
    for node in 0..2 {
        rig.wait(node, "both disks are in the map", |state| state.map.disks().len() == 2);
        rig.wait(node, "its peer is up", |state| state.stats.peers.iter().any(|peer| peer.up));
    }
    rig.create_volume("vm1", 8 << 20, 2);
    let mut first = NbdClient::open(rig.nodes[0].2, "vm1");
    let data = pattern(3 << 20, 1);
    first.write(4096, &data);
    assert!(first.read(4096, data.len()) == data);
    first.ask(3, 0, 0, &[]);
    let mut second = NbdClient::open(rig.nodes[1].2, "vm1");
    assert!(second.read(4096, data.len()) == data, "by way of the owner");
    let small = pattern(512, 9);
    second.write(512, &small);
    assert_eq!(first.read(0, 1536)[512..1024], small);

    // The same volume by another front end.
    let guest = GuestId(2);
    rig.nodes[1].0.submit(Input::GuestOpen { guest, volume: "vm1".into() }).unwrap();
    let opened = rig.answer(|effect| {
        if let Effect::GuestOpened { result, .. } = effect { Some(result) } else { None }
    });
    assert_eq!(opened.unwrap().size_bytes, 8 << 20);
    let op = GuestOp::Read { range: ByteRange::new(512, 512).unwrap() };
    rig.nodes[1].0.submit(Input::Guest { guest, tag: 5, op }).unwrap();
    let done = rig.answer(|effect| {
        if let Effect::GuestDone { tag: 5, result, .. } = effect { Some(result) } else { None }
    });
    assert_eq!(done, Ok(GuestData::Read(small.into())));
    drop((first, second));
    rig.stop();
}

// promise: bounded
#[test]
fn a_guest_that_does_not_read_its_answers_is_not_read_from() {
    let scratch = Scratch::new("greedy");
    let rig = Rig::start(vec![config(1, &scratch, true)]);
    rig.wait(0, "its disk is in the map", |state| state.map.disks().len() == 1);
    rig.create_volume("vm1", 8 << 20, 1);
    let mut greedy = NbdClient::open(rig.nodes[0].2, "vm1");
    // Requests for far more than is ever buffered, until the socket takes no more of them.
    greedy.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut asked = 0u64;
    let length = 1u32 << 20;
    let request = |cookie: u64| {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(cookie.to_be_bytes());
        request.extend(0u64.to_be_bytes());
        request.extend(length.to_be_bytes());
        request
    };
    while let Ok(()) = greedy.stream.write_all(&request(asked)) {
        asked += 1;
        assert!(asked < 1 << 20, "the node takes requests without end");
    }
    // Others are served meanwhile.
    let mut other = NbdClient::open(rig.nodes[0].2, "vm1");
    other.write(0, &pattern(4096, 1));
    assert_eq!(other.read(0, 4096), pattern(4096, 1));
    drop((greedy, other));
    rig.stop();
}

#[test]
fn garbage_on_the_peers_port_closes_only_itself() {
    let scratch = Scratch::new("garbage");
    let config = config(1, &scratch, false);
    let at = config.listen_peer;
    let rig = Rig::start(vec![config]);
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[0x5a; 1000]).unwrap();
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "the node hangs up");
    rig.wait(0, "it is ready", |state| state.stats.ready);
    rig.stop();
}

#[test]
fn what_cannot_start_says_why() {
    let scratch = Scratch::new("refused");
    let first = config(1, &scratch, true);
    let handle: DataHandle = DataPlane::spawn(first.clone()).unwrap();
    let again = DataConfig { listen_peer: free_port(), ..first.clone() };
    let Err(error) = DataPlane::spawn(again) else { panic!("two processes on one disk") };
    assert!(matches!(error, DataError::Disk(_)), "{error}");
    let taken = DataConfig { disks: Vec::new(), listen_peer: handle.bound().peer, ..first };
    let Err(error) = DataPlane::spawn(taken) else { panic!("two listeners on one port") };
    assert!(matches!(error, DataError::Listen { .. }), "{error}");
    handle.join().unwrap();
}
