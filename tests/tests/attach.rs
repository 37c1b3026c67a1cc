//! Volumes that are the guests' of one node at a time: who is on them, who is kept out, and how an
//! operator gives them to another host. With two QEMUs, and through a node that hangs.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion::nbd_client::{Address, NbdClient, Patience, Request};
use gabion_tests::command::Started;
use gabion_tests::fixture::wait;
use gabion_tests::{Cluster, needs};
use rustix::process::Signal;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(30);
const BLOCK: u64 = 4096;

/// An exclusive volume of 64 MiB.
fn exclusive() -> Cluster {
    let cluster = Cluster::start();
    let verb = ["volume", "create", "vm1", "--size", "64MiB", "--attach", "exclusive"];
    cluster.gabion(&verb).ok();
    assert_eq!(cluster.show("vm1")["attach"], "exclusive");
    cluster
}

/// Each attached client: its id, its node and by what it came.
fn clients(cluster: &Cluster) -> Vec<[String; 3]> {
    let shown = cluster.json(&["volume", "clients", "vm1"]);
    let clients = shown["clients"].as_array().unwrap().iter();
    let attached = clients.filter(|client| client["waiting"] == false);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    attached.map(|one| ["id", "node", "protocol"].map(|name| text(&one[name]))).collect()
}

/// A QEMU that has the volume over its node's unix socket, and gives it on as a disk.
struct Qemu {
    process: Started,
    disk: PathBuf,
}

impl Qemu {
    fn start(cluster: &Cluster, node: u32) -> Self {
        let Address::Unix(socket) = cluster.local.nbd_unix(node) else { panic!("a unix socket") };
        let disk = cluster.dir.join(format!("qemu{node}.sock"));
        let server = format!("server.type=unix,server.path={}", socket.display());
        let mut qemu = Command::new("qemu-storage-daemon");
        let blockdev = format!("driver=nbd,node-name=vm,{server},export=vm1,reconnect-delay=120");
        qemu.args(["--blockdev", &blockdev]);
        qemu.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", disk.display())]);
        qemu.args(["--export", "type=nbd,id=vm,node-name=vm,name=vm1,writable=on"]);
        let mut process = Started::start(&mut qemu);
        wait("qemu says something", MOST, || disk.exists() || !process.running());
        Self { process, disk }
    }

    /// What a guest of this QEMU does.
    fn guest(&self, patience: Duration) -> NbdClient {
        let patience = Patience { io: patience, ..Patience::default() };
        NbdClient::connect(&Address::Unix(self.disk.clone()), "vm1", patience).unwrap()
    }
}

// rule: node/exclusive-to-one-node
#[test]
fn of_two_qemus_the_second_gets_in_when_the_first_is_evicted() {
    if !needs(&["qemu-storage-daemon"]) {
        return;
    }
    let cluster = exclusive();
    let mut first = Qemu::start(&cluster, 1);
    assert!(first.process.running(), "{}", first.process.complained());
    let mut guest = first.guest(Duration::from_secs(5));
    guest.write(0, &fill(1, 0, 1)).unwrap();
    wait("it is known", MOST, || !clients(&cluster).is_empty());
    let [[_, node, protocol]] = &clients(&cluster)[..] else { panic!("{:?}", clients(&cluster)) };
    assert_eq!((node.as_str(), protocol.as_str()), ("1", "nbd+unix"));

    let mut second = Qemu::start(&cluster, 2);
    assert!(!second.process.running());
    let complained = second.process.complained();
    assert!(complained.contains("guests of node 1 have the volume"), "{complained}");

    let done = cluster.json(&["volume", "evict", "vm1"]);
    assert_eq!((&done["clients"], &done["kept_out"]), (&1.into(), &serde_json::json!(["1"])));
    let mut second = Qemu::start(&cluster, 2);
    assert!(second.process.running(), "{}", second.process.complained());
    let mut other = second.guest(MOST);
    assert_eq!(other.read(0, 4096).unwrap(), fill(1, 0, 1));
    other.write(0, &fill(2, 0, 1)).unwrap();
    // The first one comes again and again, and holds what its guest asks for.
    assert!(guest.write(0, &fill(3, 0, 1)).is_err(), "nothing answers it");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(other.read(0, 4096).unwrap(), fill(2, 0, 1));
    // It is gone, the second leaves by itself: the node is as good as any other.
    drop((guest, first, other, second));
    wait("nobody is left", MOST, || clients(&cluster).is_empty());
    assert_eq!(cluster.json(&["volume", "clients", "vm1"])["kept_out"], serde_json::json!([]));
    let mut back = cluster.client(1, "vm1").unwrap();
    assert_eq!(back.read(0, 4096).unwrap(), fill(2, 0, 1));
}

// rule: node/exclusive-to-one-node
// promise: one-register
#[test]
fn a_host_that_hangs_writes_nothing_after_another_has_the_volume() {
    let mut cluster = exclusive();
    cluster.gabion(&["volume", "move", "vm1", "--to", "3"]).ok();
    let mut guest = cluster.client(1, "vm1").unwrap();
    guest.write(0, &fill(1, 0, 64)).unwrap();
    cluster.signal(1, Signal::STOP);
    // Its socket takes them; its node does not.
    for block in 0..64 {
        let data = fill(2, block, 1);
        let request = Request::Write { offset: block * BLOCK, data: &data, fua: false };
        guest.submit(request).unwrap();
    }
    let done = cluster.json(&["volume", "evict", "vm1"]);
    assert_eq!(done["kept_out"], serde_json::json!(["1"]), "it does not say who is there");
    let mut other = cluster.client(2, "vm1").unwrap();
    other.write(0, &fill(3, 0, 64)).unwrap();
    cluster.signal(1, Signal::CONT);
    let answer = guest.receive();
    assert!(answer.is_err(), "its connection ends without an answer: {answer:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(other.read(0, 64 * 4096).unwrap(), fill(3, 0, 64));
    assert!(cluster.client(1, "vm1").is_err(), "a guest of node 2 is in");
}

// rule: node/exclusive-to-one-node
#[test]
fn who_was_evicted_by_mistake_is_let_back_and_one_client_goes_alone() {
    let cluster = exclusive();
    let mut guest = cluster.client(1, "vm1").unwrap();
    let more = cluster.client(1, "vm1").unwrap();
    wait("several of one node are in", MOST, || clients(&cluster).len() == 2);
    let found = clients(&cluster);
    cluster.gabion(&["volume", "evict", "vm1", "--client", &found[1][0]]).ok();
    wait("one is left", MOST, || clients(&cluster).len() == 1);
    assert!(clients(&cluster)[0][0] == found[0][0]);
    guest.write(0, &fill(1, 0, 1)).unwrap();
    drop(more);
    let gone = cluster.gabion(&["volume", "evict", "vm1", "--client", &found[1][0]]);
    assert_eq!(gone.status.code(), Some(4), "{}", gone.err);

    cluster.gabion(&["volume", "evict", "vm1"]).ok();
    let refused = cluster.client(1, "vm1");
    assert!(refused.is_err_and(|error| error.to_string().contains("evicted")));
    cluster.gabion(&["volume", "evict", "vm1", "--let-back"]).ok();
    wait("it is let in", MOST, || cluster.client(1, "vm1").is_ok());
}
