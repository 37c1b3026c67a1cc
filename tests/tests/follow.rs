//! Guests that know one address, and go on when the node behind it dies or hangs: by way of HAProxy, as
//! `docs/haproxy.cfg` has it.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::{Address, Patience};
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::command::Started;
use gabion_tests::fixture::wait;
use gabion_tests::proxy::Proxy;
use gabion_tests::{Cluster, needs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LISTENS_MOST: Duration = Duration::from_secs(20);
/// A node's death, and the guest's way to another.
const GETS_ON_MOST: Duration = Duration::from_secs(40);
const ENDS_MOST: Duration = Duration::from_secs(60);

/// Each node dies once, and hangs once; whatever the guest talks to is among them.
fn strike_each_node(cluster: &mut Cluster, volume: &str, mut gets_on: impl FnMut(&str)) {
    // Copies that were begun for those that are away are filled at once.
    cluster.set("rebuild.wait", "1s");
    for node in cluster.local.ids() {
        cluster.kill(node);
        gets_on(&format!("node {node} was killed"));
        cluster.start_node(node);
        cluster.wait_healthy(volume);
        cluster.signal(node, Signal::STOP);
        gets_on(&format!("node {node} hangs"));
        cluster.signal(node, Signal::CONT);
        cluster.wait_healthy(volume);
    }
}

// promise: acked-survives, hold-not-fail
#[test]
fn an_unmodified_qemu_follows_through_a_proxy() {
    if !needs(&["haproxy", "qemu-storage-daemon"]) {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let proxy = Proxy::before(&cluster);
    let disk = cluster.dir.join("qemu.sock");
    let mut qemu = Command::new("qemu-storage-daemon");
    let server = format!("server.type=unix,server.path={}", proxy.socket.display());
    qemu.args([
        "--blockdev",
        &format!("driver=nbd,node-name=vm,{server},export=vm1,reconnect-delay=120"),
    ]);
    qemu.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", disk.display())]);
    qemu.args(["--export", "type=nbd,id=vm,node-name=vm,name=vm1,writable=on"]);
    let mut qemu = Started::start(&mut qemu);
    wait("qemu has the volume", LISTENS_MOST, || disk.exists() || !qemu.running());
    assert!(qemu.running(), "{}", qemu.complained());

    let plan = cluster.writer_plan("vm1", 64, 1);
    let addresses = vec![Address::Unix(disk)];
    let writer = Writer::start(WriterPlan { addresses, pace: Duration::from_millis(1), ..plan });
    wait("the first fill", ENDS_MOST, || writer.progress().filled);
    strike_each_node(&mut cluster, "vm1", |what| {
        writer.reset_stall();
        let before = writer.progress().writes_acknowledged;
        let on = || writer.ended() || writer.progress().writes_acknowledged > before + 200;
        wait("the guest gets on", GETS_ON_MOST, on);
        println!("{what}: a stall of {:?}", writer.progress().stall_most);
    });
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    assert_eq!(left.progress.connections, 1, "qemu kept its guest's connection");
    let address = cluster.local.nbd_tcp(1);
    read_back(&address, "vm1", &mut left.judge, Patience::default()).unwrap();
}

// promise: acked-survives
#[test]
fn a_plain_libnbd_client_follows_through_a_proxy() {
    if !needs(&["haproxy", "nbdsh"]) {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let proxy = Proxy::before(&cluster);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/libnbd_guest.py");
    let uri = format!("nbd+unix:///vm1?socket={}", proxy.socket.display());
    // Debian's: its modules are those that the package of libnbd has.
    let mut guest = Command::new("/usr/bin/python3");
    let mut guest = Started::start(guest.arg(script).arg(uri));
    let count = |guest: &Started| {
        let said = guest.said();
        said.lines().filter_map(|line| line.parse::<u64>().ok()).max().unwrap_or(0)
    };
    wait("it writes", ENDS_MOST, || count(&guest) > 0 || !guest.running());
    strike_each_node(&mut cluster, "vm1", |what| {
        let before = count(&guest);
        wait("the guest gets on", GETS_ON_MOST, || {
            count(&guest) > before + 100 || !guest.running()
        });
        assert!(guest.running(), "{what}: {}", guest.complained());
    });
    kill_process(Pid::from_child(guest.child()), Signal::TERM).unwrap();
    let said = guest.finish(ENDS_MOST).ok();
    let told: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    println!("{told}");
    assert_eq!(told["wrong"], serde_json::json!([]));
    assert!(told["connections"].as_u64().unwrap() > 1, "its connection broke and it came again");
}
