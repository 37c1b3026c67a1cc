//! The sick is done without, and costs nobody else anything: what each node says of its peers and disks.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion_tests::faulty::FaultyDisk;
use gabion_tests::fixture::{id, wait};
use gabion_tests::{Cluster, Shape, http, needs};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;
const SEGMENT: u64 = 4 << 20;

/// What a node says of one of its peers.
fn peer(cluster: &Cluster, of: u32, peer: u32) -> Value {
    let shown = cluster.json(&["node", "list"]);
    let nodes = shown["nodes"].as_array().unwrap().iter();
    let node = nodes.into_iter().find(|node| id(&node["id"]) == Some(of)).unwrap();
    let peers = node["peers"].as_array().unwrap().iter();
    let found = peers.into_iter().find(|told| id(&told["node"]) == Some(peer));
    found.map_or(Value::Null, |told| told["breaker"].clone())
}

/// The only disk of a node.
fn disk(cluster: &Cluster, node: u32) -> Value {
    let shown = cluster.json(&["disk", "list"]);
    let disks = shown["disks"].as_array().unwrap().iter();
    disks.into_iter().find(|disk| id(&disk["node"]) == Some(node)).unwrap().clone()
}

/// A gauge as a node tells it.
fn gauge(cluster: &Cluster, node: u32, start: &str) -> Option<f64> {
    let text = http::get(&cluster.local.dir.entry(node).unwrap().http, "/metrics");
    let line = text.lines().find(|line| line.starts_with(start))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A segment whose copies are on exactly these nodes. Units: bytes of its start.
fn segment_on(cluster: &Cluster, nodes: [u32; 2]) -> u64 {
    let shown = cluster.show("vm1");
    let segments = shown["segments"].as_array().unwrap().iter();
    let on = |segment: &&Value| {
        let copies = segment["in_sync"].as_array().unwrap().iter();
        let mut on: Vec<_> = copies.filter_map(|copy| id(&copy["node"])).collect();
        on.sort_unstable();
        on == nodes
    };
    let found = segments.into_iter().find(on).expect("copies are spread");
    found["index"].as_u64().unwrap() * SEGMENT
}

// rule: node/a-breaker-says-what-the-owners-act-on
// promise: hold-not-fail
#[test]
fn a_frozen_peer_is_open_with_the_reason_and_costs_its_own_segments_only() {
    let shape = Shape { nodes: 3, disk_mib: 128, segment_mib: 4, ..Shape::default() };
    let mut cluster = Cluster::of(shape);
    cluster.create("vm1", 32);
    let leads = id(&cluster.json(&["status"])["leader"]);
    let (frozen, well) = if leads == Some(3) { (2, 3) } else { (3, 2) };
    let slow = segment_on(&cluster, [1, frozen]);
    let quick = segment_on(&cluster, [1, well]);
    let mut guests = [(); 2].map(|()| cluster.client(1, "vm1").unwrap());
    guests[0].write(quick, &fill(1, 0, 1)).unwrap();
    assert_eq!(cluster.owner("vm1"), Some(1));
    assert_eq!(peer(&cluster, 1, frozen)["state"], "closed");
    assert_eq!(gauge(&cluster, 1, &format!("gabion_peer_breaker{{peer=\"n{frozen}\"")), Some(0.0));

    cluster.signal(frozen, Signal::STOP);
    let [mut of_quick, mut of_slow] = guests;
    let held = std::thread::spawn(move || {
        of_slow.write(slow, &fill(2, 0, 1)).unwrap();
        Instant::now()
    });
    of_quick.write(quick + BLOCK, &fill(3, 0, 1)).unwrap();
    let answered = Instant::now();
    wait("it is open", MOST, || peer(&cluster, 1, frozen)["state"] == "open");
    let open = peer(&cluster, 1, frozen);
    assert!(open["why"].as_str().unwrap().contains("no byte"), "{open}");
    assert!(answered < held.join().unwrap(), "who needs another peer waited for this one");
    assert_eq!(peer(&cluster, 1, well)["state"], "closed");
    let level =
        |cluster: &Cluster| gauge(cluster, 1, &format!("gabion_peer_breaker{{peer=\"n{frozen}\""));
    wait("its metric says so", MOST, || level(&cluster) == Some(2.0));
    let listed = cluster.gabion(&["node", "list"]).ok();
    assert!(listed.lines().next().unwrap().contains("WITHOUT"), "{listed}");

    cluster.signal(frozen, Signal::CONT);
    wait("it is closed again", MOST, || peer(&cluster, 1, frozen)["state"] == "closed");
    wait("its metric says so", MOST, || level(&cluster) == Some(0.0));
    cluster.wait_healthy("vm1");
}

/// Three nodes, a volume with copies on 1 and 2 that node 2 owns, and the disk of node 2.
fn owner_on_a_faulty_disk() -> (Cluster, FaultyDisk) {
    let shape = Shape { nodes: 3, disk_mib: 128, segment_mib: 4, ..Shape::default() };
    let mut cluster = Cluster::of(shape);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let faulty = FaultyDisk::take(&cluster.local.dir.node_file(2).unwrap().disks[0].path);
    cluster.local.start_all().unwrap();
    cluster.local.wait_ready(&[1, 2, 3]).unwrap();
    cluster.set("disk.hang", "5s");
    cluster.gabion(&["volume", "create", "vm1", "--size", "8MiB"]).ok();
    cluster.wait_healthy("vm1");
    cluster.gabion(&["volume", "move", "vm1", "--to", "2"]).ok();
    wait("node 2 owns it", MOST, || cluster.owner("vm1") == Some(2));
    (cluster, faulty)
}

/// A write that waits for that disk is answered, the disk is open with its reason, and the copies are made elsewhere.
fn is_done_without(cluster: &Cluster, why: &str) {
    let mut guest = cluster.client(2, "vm1").unwrap();
    for block in 0..4 {
        guest.write(block * SEGMENT / 2, &fill(2, block, 1)).unwrap();
    }
    wait("it is open", MOST, || disk(cluster, 2)["breaker"]["state"] == "open");
    let open = disk(cluster, 2);
    assert_eq!(open["state"], "failed");
    assert!(open["breaker"]["why"].as_str().unwrap().contains(why), "{open}");
    assert_eq!(gauge(cluster, 2, "gabion_disk_breaker"), Some(2.0));
    let listed = cluster.gabion(&["disk", "list"]).ok();
    assert!(listed.contains("is open for its node") && listed.contains(why), "{listed}");
    cluster.wait_healthy("vm1");
    assert!(!cluster.holders("vm1").contains(&2));
    for block in 0..4 {
        assert_eq!(guest.read(block * SEGMENT / 2, 4096).unwrap(), fill(2, block, 1));
    }
}

// rule: store/a-disk-that-hangs-is-out
// promise: hold-not-fail
#[test]
fn an_own_disk_that_hangs_is_done_without() {
    if !needs(&["nbdfuse", "umount"]) {
        return;
    }
    let (mut cluster, disk) = owner_on_a_faulty_disk();
    disk.hang(true);
    is_done_without(&cluster, "it hangs");
    // What it was asked before it answers now; it stays out.
    disk.hang(false);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(self::disk(&cluster, 2)["breaker"]["state"], "open");
    assert!(!cluster.holders("vm1").contains(&2));
    cluster.kill_all();
}

#[test]
fn a_disk_whose_writes_fail_is_open_with_its_error() {
    if !needs(&["nbdfuse", "umount"]) {
        return;
    }
    let (mut cluster, disk) = owner_on_a_faulty_disk();
    disk.fail_writes();
    is_done_without(&cluster, "a write failed");
    cluster.kill_all();
}
