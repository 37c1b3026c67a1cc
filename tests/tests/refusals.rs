//! Bad input gets a clear error and harms nobody.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::{Judge, fill};
use gabion::nbd_client::{NbdClient, NbdError, Patience, Request};
use gabion::writer::{Writer, read_back};
use gabion_tests::fixture::wait;
use gabion_tests::{Cluster, Shape};
use gabion_types::Prng;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// The verb is refused with this exit code, and what it says contains these words.
#[track_caller]
fn refused(cluster: &Cluster, code: i32, words: &str, arguments: &[&str]) {
    let ran = cluster.gabion(arguments);
    assert_eq!(ran.code(), code, "{arguments:?}: {}{}", ran.out, ran.err);
    assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    assert!(ran.out.is_empty(), "{arguments:?}: {}", ran.out);
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let long = "x".repeat(300);
    refused(&cluster, 5, "size", &["volume", "create", "empty", "--size", "0"]);
    refused(&cluster, 5, "size", &["volume", "create", "odd", "--size", "4097"]);
    refused(&cluster, 5, "at most", &["volume", "create", "big", "--size", "900TiB"]);
    refused(&cluster, 5, "room", &["volume", "create", "big", "--size", "1TiB"]);
    refused(
        &cluster,
        5,
        "1, 2 or 3",
        &["volume", "create", "many", "--size", "64MiB", "--rf", "4"],
    );
    refused(&cluster, 5, "already", &["volume", "create", "vm1", "--size", "64MiB"]);
    refused(&cluster, 5, "name", &["volume", "create", &long, "--size", "64MiB"]);
    refused(&cluster, 5, "name", &["volume", "create", "a/b", "--size", "64MiB"]);
    refused(&cluster, 4, "no volume", &["volume", "clients", "nobody"]);
    refused(&cluster, 4, "no volume", &["volume", "evict", "nobody"]);
    refused(&cluster, 4, "no client 1-1", &["volume", "evict", "vm1", "--client", "1-1"]);
    refused(&cluster, 2, "10GiB (10737418240 bytes)", &["volume", "create", "g", "--size", "10G"]);
    refused(&cluster, 4, "no volume", &["volume", "show", "nobody"]);
    refused(&cluster, 4, "no volume", &["volume", "delete", "nobody"]);
    refused(&cluster, 5, "grows", &["volume", "resize", "vm1", "--size", "32MiB"]);
    refused(&cluster, 4, "no node 99", &["volume", "move", "vm1", "--to", "99"]);
    refused(&cluster, 4, "setting", &["settings", "set", "no.such", "1"]);
    refused(&cluster, 5, "such as 500ms", &["settings", "set", "rebuild.wait", "soon"]);
    refused(&cluster, 2, "unexpected", &["volume", "create", "a", "b", "--size", "64MiB"]);
    let guest = cluster.client(1, "vm1").unwrap();
    refused(&cluster, 5, "attached", &["volume", "delete", "vm1"]);
    guest.disconnect();
    let listed = cluster.json(&["volume", "list"]);
    assert_eq!(listed["volumes"].as_array().unwrap().len(), 1, "{listed}");
    cluster.gabion(&["volume", "delete", "vm1", "--force"]).ok();
}

#[test]
fn more_copies_than_nodes_are_refused() {
    let cluster = Cluster::of(Shape { nodes: 1, ..Shape::default() });
    refused(&cluster, 5, "2 copies", &["volume", "create", "v", "--size", "64MiB"]);
    cluster.gabion(&["volume", "create", "v", "--size", "64MiB", "--rf", "1"]).ok();
}

#[test]
fn io_outside_a_volume_is_refused_and_the_connection_lives() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let end = 64 << 20;
    for node in [1, 2] {
        let unknown = cluster.client(node, "nobody");
        assert!(matches!(unknown, Err(NbdError::Refused { .. })));
        let mut client = cluster.client(node, "vm1").unwrap();
        let mut fails = |request: Request<'_>| match client.call(request) {
            Err(NbdError::Failed(error)) => error,
            other => panic!("{request:?} gave {other:?}"),
        };
        let data = vec![1; 8192];
        assert_eq!(fails(Request::Read { offset: end, length: 4096 }), EINVAL);
        assert_eq!(fails(Request::Read { offset: end - 4096, length: 8192 }), EINVAL);
        assert_eq!(fails(Request::Read { offset: u64::MAX - 4095, length: 8192 }), EINVAL);
        for offset in [end, end - 4096, u64::MAX - 4095] {
            let error = fails(Request::Write { offset, data: &data, fua: false });
            assert!([EINVAL, ENOSPC].contains(&error), "error {error} at {offset}");
        }
        let error = fails(Request::Trim { offset: end, length: 4096 });
        assert!([EINVAL, ENOSPC].contains(&error), "error {error}");
        assert_eq!(fails(Request::Read { offset: 100, length: 512 }), EINVAL);
        assert_eq!(fails(Request::Write { offset: 512, data: &data[..100], fua: false }), EINVAL);
        client.write(end - 8192, &data).unwrap();
        assert_eq!(client.read(end - 8192, 8192).unwrap(), data);
        client.disconnect();
    }
}

// promise: bounded
#[test]
fn random_bytes_harm_nobody() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let writer = Writer::start(cluster.writer_plan("vm1", 64, 1));
    let mut chance = Prng::new(42);
    let entry = cluster.local.dir.entry(1).unwrap().clone();
    let peer = cluster.local.dir.node_file(1).unwrap().listen.peer;
    for address in [&entry.nbd, &peer, &entry.api, &entry.http] {
        for round in 0..1000u32 {
            let length = usize::try_from(chance.below(600)).unwrap();
            let mut bytes: Vec<u8> =
                (0..length).map(|_| chance.next_u64().to_le_bytes()[0]).collect();
            // Some begin as the protocol wants it, to get further in.
            if address == &entry.nbd && round % 2 == 0 {
                let start = [0, 0, 0, 3].into_iter().chain(*b"IHAVEOPT");
                bytes = start.chain(bytes).collect();
            } else if address == &entry.api && round % 2 == 0 {
                bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().copied().chain(bytes).collect();
            }
            let mut socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            // The node may hang up at any byte.
            drop(socket.write_all(&bytes));
            if round % 10 == 0 {
                drop(socket.read(&mut [0; 512]));
            }
        }
    }
    assert!(!writer.ended());
    let left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    assert_eq!(left.progress.connections, 1, "{:?}", left.progress.last_break);
    for node in cluster.local.ids() {
        assert!(cluster.local.ready(node), "node {node}");
        assert!(!cluster.log(node).contains("panicked"), "node {node}");
    }
    cluster.wait_healthy("vm1");
}

/// The node runs, for it is a voter; the disk is not used, and the log says why.
#[track_caller]
fn disk_stays_out(cluster: &mut Cluster, node: u32, why: &str) {
    let before = cluster.log(node).len();
    cluster.start_node(node);
    let mut said = String::new();
    wait("the log says why", Duration::from_secs(10), || {
        said = cluster.log(node).split_off(before);
        said.contains("out of service")
    });
    let line = said.lines().find(|line| line.contains("out of service")).unwrap();
    assert!(line.contains("ERROR") && line.contains(why), "{line}");
    assert!(!said.contains("panicked"), "{said}");
    // The map is told: it is not counted on, and `status` names it.
    let name = node.to_string();
    let missing = || {
        let disks = cluster.json(&["disk", "list"]);
        let disks = disks["disks"].as_array().unwrap().iter();
        let states = disks.filter(|disk| disk["node"].as_str() == Some(name.as_str()));
        states.map(|disk| disk["state"].clone()).all(|state| state == "missing")
    };
    wait("the disk counts as missing", Duration::from_secs(10), missing);
    let status = cluster.gabion(&["status"]).out;
    assert!(status.contains(&format!("node{node} runs without it")), "{status}");
    cluster.create("beside", 64);
    assert!(cluster.gabion(&["volume", "delete", "beside"]).status.success());
}

fn written(cluster: &Cluster) -> Judge {
    let mut judge = Judge::new(0, 64);
    let mut client = cluster.client(1, "vm1").unwrap();
    for (label, block) in (1..).zip(judge.blocks()) {
        judge.begin(label, block, 1);
        client.write(block * 4096, &fill(label, block, 1)).unwrap();
        judge.acknowledge(label, block, 1);
    }
    client.disconnect();
    judge
}

#[track_caller]
fn served_by(cluster: &Cluster, node: u32, judge: &mut Judge) {
    read_back(&cluster.local.nbd_tcp(node), "vm1", judge, Patience::default()).unwrap();
}

// promise: self-describing
#[test]
fn a_disk_of_another_cluster_is_not_used() {
    let small = Shape { disk_mib: 384, ..Shape::default() };
    let mut ours = Cluster::of(small);
    let mut theirs = Cluster::of(small);
    let their_id = theirs.local.dir.file.cluster.clone();
    theirs.local.stop();
    ours.create("vm1", 96);
    let mut judge = written(&ours);
    ours.signal(2, Signal::TERM);
    let (disk, kept) = (ours.dir.join("node2/disk0"), ours.dir.join("node2/kept"));
    let foreign = theirs.dir.join("node2/disk0");
    fs::rename(&disk, &kept).unwrap();
    fs::copy(&foreign, &disk).unwrap();
    disk_stays_out(&mut ours, 2, &their_id);
    served_by(&ours, 2, &mut judge);
    ours.signal(2, Signal::TERM);
    assert!(fs::read(&disk).unwrap() == fs::read(&foreign).unwrap(), "it was written to");
    fs::rename(&kept, &disk).unwrap();
    ours.start_node(2);
    served_by(&ours, 2, &mut judge);
    ours.wait_healthy("vm1");
}

#[test]
fn a_truncated_disk_is_not_used() {
    let mut cluster = Cluster::of(Shape { disk_mib: 384, ..Shape::default() });
    cluster.create("vm1", 96);
    let mut judge = written(&cluster);
    cluster.signal(3, Signal::TERM);
    let disk = cluster.dir.join("node3/disk0");
    let whole = fs::metadata(&disk).unwrap().len();
    File::options().write(true).open(&disk).unwrap().set_len(whole - (1 << 20)).unwrap();
    disk_stays_out(&mut cluster, 3, &whole.to_string());
    served_by(&cluster, 3, &mut judge);
}

// promise: one-owner
#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let cluster = Cluster::of(Shape { disk_mib: 384, ..Shape::default() });
    let program = gabion_tests::fixture::program();
    let mut second = std::process::Command::new(program);
    let config = cluster.local.dir.config(1);
    let ran = gabion_tests::run(
        second.args(["node", "run", "--config"]).arg(&config),
        Duration::from_secs(20),
    );
    assert!(!ran.status.success());
    let said = format!("{}{}", ran.out, ran.err);
    assert!(said.contains("node1"), "{said}");
    assert!(cluster.local.ready(1));
    let dir = cluster.dir.to_str().unwrap();
    refused(&cluster, 5, "runs already", &["node", "start", "1", "--dir", dir]);
}

// promise: bounded
#[test]
fn a_full_disk_says_so_and_keeps_serving() {
    let cluster = Cluster::start();
    cluster.create("vm1", 768);
    let mut client = cluster.client(1, "vm1").unwrap();
    let piece = 1 << 20;
    let data = |label: u8| vec![label; piece];
    let mut written = 0u64;
    let full = loop {
        let offset = written << 20;
        match client.write(offset, &data(u8::try_from(written % 250 + 1).unwrap())) {
            Ok(()) => written += 1,
            Err(NbdError::Failed(error)) => break error,
            Err(error) => panic!("{error}"),
        }
        assert!(written < 768, "768 MiB with two copies fit on three disks of 512 MiB");
    };
    assert_eq!(full, ENOSPC);
    assert!(written > 100, "only {written} MiB fit");
    for round in 0..50u64 {
        let at = round * 7 % written;
        client.write(at << 20, &data(251)).unwrap_or_else(|e| panic!("overwrite at {at}: {e}"));
        assert_eq!(client.read(at << 20, 1 << 20).unwrap(), data(251), "at {at}");
    }
    // A request of 1 MiB is handled in parts, but room was looked for before any of them.
    let refused = client.read(written << 20, 1 << 20).unwrap();
    assert!(refused.iter().all(|byte| *byte == 0), "a part of what was refused was written");
    client.call(Request::Trim { offset: 0, length: 64 << 20 }).unwrap();
    let until = Patience::default();
    let mut other = NbdClient::connect(&cluster.local.nbd_tcp(2), "vm1", until).unwrap();
    // What was given back is to be had again.
    wait("room again", Duration::from_secs(30), || other.write(0, &data(9)).is_ok());
    cluster.wait_healthy("vm1");
}
