//! Disks and nodes that somebody wants to take away: emptied first, while guests go on.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::Cluster;
use gabion_tests::fixture::{Shape, wait};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(120);
const STALL_MOST: Duration = Duration::from_secs(1);

fn entry(cluster: &Cluster, what: &str, id: &str) -> Value {
    let noun = what.trim_end_matches('s');
    let all = cluster.json(&[noun, "list"]);
    let all = all[what].as_array().unwrap();
    all.iter().find(|one| one["id"] == id).unwrap().clone()
}

fn disk_of(cluster: &Cluster, node: &str) -> Value {
    let disks = cluster.json(&["disk", "list"]);
    let disks = disks["disks"].as_array().unwrap();
    disks.iter().find(|disk| disk["node"] == node).unwrap().clone()
}

/// The volume is written full, and goes on being written.
fn write(cluster: &Cluster, first: u32) -> Writer {
    let plan = cluster.writer_plan("vm1", 128, first);
    let writer = Writer::start(WriterPlan { pace: Duration::from_millis(1), ..plan });
    wait("the first fill", Duration::from_secs(60), || writer.progress().filled);
    writer.reset_stall();
    writer
}

fn prove(cluster: &Cluster, writer: Writer, node: u32) {
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    let address = cluster.local.nbd_tcp(node);
    read_back(&address, "vm1", &mut left.judge, Patience::default()).unwrap();
}

// promise: acked-survives
#[test]
fn a_node_is_emptied_under_load_and_nobody_misses_it() {
    let mut cluster = Cluster::of(Shape { nodes: 4, ..Shape::default() });
    cluster.create("vm1", 128);
    let writer = write(&cluster, 1);
    let gone = *cluster.holders("vm1").iter().find(|node| **node != 1).unwrap();
    let name = gone.to_string();
    let said = cluster.gabion_within(&["node", "drain", &name, "--wait"], MOST).ok();
    assert!(said.contains("it is safe to take it away"), "{said}");
    assert!(!cluster.holders("vm1").contains(&gone), "its copies are elsewhere");
    let shown = cluster.show("vm1");
    assert_eq!(
        (shown["health"].as_str(), shown["segments_degraded"].as_u64()),
        (Some("healthy"), Some(0))
    );
    assert_eq!(entry(&cluster, "nodes", &name)["state"], "drained");
    let disk = disk_of(&cluster, &name);
    assert_eq!((&disk["state"], &disk["replicas"]), (&"drained".into(), &0.into()), "{disk}");
    let status = cluster.json(&["status"]);
    assert!(status["notes"][0].as_str().unwrap().contains("safe to take it away"), "{status}");
    assert_eq!(status["health"], "healthy", "{status}");
    let events = cluster.gabion(&["events"]).ok();
    assert!(events.contains(&format!("node {gone} is drained")), "{events}");

    let before = writer.progress().stall_most;
    println!("while it was emptied: a stall of {before:?}");
    assert!(before < STALL_MOST, "{before:?}");
    cluster.kill(gone);
    let done = writer.progress().writes_acknowledged;
    wait("guests go on", MOST, || writer.progress().writes_acknowledged > done + 500);
    let stall = writer.progress().stall_most;
    println!("with its death: a stall of {stall:?}");
    assert_eq!(cluster.show("vm1")["health"], "healthy", "nothing of it was there");

    cluster.gabion(&["node", "remove", &name]).ok();
    let nodes = cluster.json(&["node", "list"]);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 3, "{nodes}");
    assert_eq!(cluster.json(&["status"])["problems"], Value::Array(vec![]));
    // Of four voters two would be no majority.
    wait("it votes no more", MOST, || cluster.log_of_all().contains("vote no more"));
    let another = *cluster.holders("vm1").iter().find(|node| **node != 1).unwrap();
    cluster.kill(another);
    let done = writer.progress().writes_acknowledged;
    wait("guests go on", MOST, || writer.progress().writes_acknowledged > done + 500);
    cluster.start_node(another);
    cluster.wait_healthy("vm1");

    cluster.local.start(gone).unwrap();
    let told = || cluster.log(gone).contains("was removed from the cluster");
    wait("it is told", MOST, told);
    wait("it stops", MOST, || cluster.local.pid(gone).is_none());
    assert!(!cluster.local.ids().contains(&gone), "`up` leaves it out from now on");
    prove(&cluster, writer, 1);
}

#[test]
fn a_node_is_removed_while_it_runs_and_a_dead_one_by_force() {
    let mut cluster = Cluster::of(Shape { nodes: 5, ..Shape::default() });
    let leader =
        |cluster: &Cluster| cluster.json(&["status"])["leader"].as_str().map(str::to_owned);
    cluster.create("vm1", 64);
    let leads = leader(&cluster).unwrap();
    let holders = cluster.holders("vm1");
    let free = |node: &u32| !holders.contains(node) && node.to_string() != leads;
    let spare = (1..=5).find(free).unwrap().to_string();
    let early = cluster.gabion(&["node", "remove", &spare]);
    assert_eq!(early.code(), 5, "{}{}", early.out, early.err);
    assert!(early.err.contains("not drained"), "{}", early.err);
    cluster.gabion_within(&["node", "drain", &spare, "--wait"], MOST).ok();
    cluster.gabion(&["node", "remove", &spare]).ok();
    let spare = spare.parse().unwrap();
    wait("it stops by itself", MOST, || cluster.local.pid(spare).is_none());
    assert!(cluster.log(spare).contains("was removed from the cluster"), "{}", cluster.log(spare));

    cluster.gabion(&["volume", "create", "single", "--size", "32MiB", "--rf", "1"]).ok();
    let last = cluster.holders("single")[0];
    cluster.kill(last);
    let silent = |node: u32| entry(&cluster, "nodes", &node.to_string())["state"] == "silent";
    wait("it is silent", MOST, || silent(last));
    let lost = cluster.gabion(&["node", "remove", &last.to_string(), "--force"]);
    assert_eq!(lost.code(), 5, "{}{}", lost.out, lost.err);
    assert!(lost.err.contains("last copy") && lost.err.contains("single"), "{}", lost.err);
    cluster.gabion(&["volume", "delete", "single"]).ok();
    let alive = (1..=5).find(|node| ![spare, last].contains(node)).unwrap().to_string();
    let alive = cluster.gabion(&["node", "remove", &alive, "--force"]);
    assert_eq!(alive.code(), 5, "{}{}", alive.out, alive.err);
    cluster.gabion(&["node", "remove", &last.to_string(), "--force"]).ok();
    cluster.wait_healthy("vm1");
    assert!(!cluster.holders("vm1").contains(&last));
}

#[test]
fn a_node_with_guests_keeps_their_volume_and_says_so() {
    let cluster = Cluster::of(Shape { nodes: 4, ..Shape::default() });
    cluster.create("vm1", 128);
    let writer = write(&cluster, 1);
    assert_eq!(cluster.owner("vm1"), Some(1));
    cluster.gabion(&["node", "drain", "1"]).ok();
    wait("its copies move", MOST, || !cluster.holders("vm1").contains(&1));
    wait("it says what it waits for", MOST, || {
        let waits = entry(&cluster, "nodes", "1")["drain_waits"].clone();
        waits.to_string().contains("it owns volume vm1 for 1 guest")
    });
    assert_eq!(entry(&cluster, "nodes", "1")["state"], "draining");
    assert!(writer.progress().stall_most < STALL_MOST, "{:?}", writer.progress().stall_most);
    prove(&cluster, writer, 2);
    wait("it is let go", MOST, || entry(&cluster, "nodes", "1")["state"] == "drained");
    cluster.gabion(&["node", "drain", "1", "--cancel"]).ok();
    assert_eq!(entry(&cluster, "nodes", "1")["state"], "up");
}

#[test]
fn a_disk_is_emptied_and_used_again_and_what_cannot_be_is_refused() {
    let cluster = Cluster::start();
    cluster.create("vm1", 128);
    let writer = write(&cluster, 1);
    let disk = disk_of(&cluster, "2");
    let (id, path) = (disk["id"].as_str().unwrap(), disk["path"].as_str().unwrap());
    cluster.gabion_within(&["disk", "drain", path, "--node", "2", "--wait"], MOST).ok();
    assert_eq!(entry(&cluster, "disks", id)["state"], "drained");
    // Nodes publish what their disks hold ten times a second, and the map knows it sooner.
    wait("its room is free", MOST, || entry(&cluster, "disks", id)["used_bytes"] == 0);

    let more = cluster.gabion(&["node", "drain", "3"]);
    assert_eq!(more.code(), 5, "{}{}", more.out, more.err);
    assert!(more.err.contains("2 copies need 2 nodes"), "{}", more.err);
    for (verb, name) in [("disk", "99"), ("node", "9")] {
        let unknown = cluster.gabion(&[verb, "drain", name]);
        assert_eq!(unknown.code(), 4, "{}{}", unknown.out, unknown.err);
    }
    cluster.gabion(&["disk", "drain", id, "--cancel"]).ok();
    assert_eq!(entry(&cluster, "disks", id)["state"], "in_service");
    cluster.gabion(&["volume", "create", "vm2", "--size", "64MiB", "--rf", "3"]).ok();
    assert_eq!(cluster.holders("vm2"), [1, 2, 3], "new copies go there again");
    prove(&cluster, writer, 3);
}

/// A bit of each of these copies flips.
fn rot(cluster: &Cluster, disk: &str, blocks: usize) {
    let mut rotten = 0;
    for block in (0..2048).step_by(16) {
        let offset = (block * 4096).to_string();
        let found = cluster.json(&["volume", "locate", "vm1", &offset]);
        let copies = found["copies"].as_array().unwrap();
        let Some(copy) = copies.iter().find(|copy| copy["disk"] == disk) else { continue };
        let path = copy["path"].as_str().unwrap();
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let (at, mut byte) = (copy["byte_offset"].as_u64().unwrap() + 77, [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        rotten += 1;
        if rotten == blocks {
            return;
        }
    }
    panic!("{rotten} copies on disk {disk}");
}

// rule: node/a-disk-that-rots-is-suspect
// promise: no-silent-corruption
#[test]
fn a_disk_that_rots_often_is_emptied() {
    let cluster = Cluster::of(Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() });
    cluster.create("vm1", 8);
    cluster.set("disk.suspect", "4");
    let mut guest = cluster.client(1, "vm1").unwrap();
    for first in (0..2048).step_by(64) {
        guest.write(first * 4096, &[7; 64 * 4096]).unwrap();
    }
    let holder = *cluster.holders("vm1").iter().find(|node| **node != 1).unwrap();
    let disk = disk_of(&cluster, &holder.to_string())["id"].as_str().unwrap().to_owned();
    let state = || entry(&cluster, "disks", &disk)["state"].as_str().unwrap().to_owned();
    let scrub =
        || cluster.gabion_within(&["volume", "scrub", "vm1", "--deep", "--wait"], MOST).ok();
    rot(&cluster, &disk, 3);
    scrub();
    assert_eq!((cluster.holders("vm1").contains(&holder), &*state()), (true, "in_service"));
    rot(&cluster, &disk, 1);
    scrub();
    wait("it is emptied", MOST, || state() == "drained");
    assert!(!cluster.holders("vm1").contains(&holder));
    assert_eq!(entry(&cluster, "disks", &disk)["suspect_blocks"], 4);
    let status = cluster.json(&["status"]);
    let problem = status["problems"][0].as_str().unwrap();
    assert!(problem.contains("is suspect, 4 blocks of it were corrupt"), "{status}");
    assert!(cluster.gabion(&["events"]).ok().contains("is suspect: 4 blocks"));
    cluster.gabion(&["disk", "drain", &disk, "--cancel"]).ok();
    assert_eq!(state(), "in_service");
    for first in (0..2048).step_by(64) {
        assert_eq!(guest.read(first * 4096, 64 * 4096).unwrap(), [7; 64 * 4096]);
    }
    guest.disconnect();
    let gone = cluster.gabion(&["settings", "set", "disk.suspect", "many"]);
    assert_eq!(gone.code(), 5, "{}", gone.err);
}

// rule: cluster/copies-in-different-zones
#[test]
fn copies_are_in_different_zones_where_there_is_room() {
    let zones = &["a", "a", "b"];
    let cluster = Cluster::of(Shape { zones, ..Shape::default() });
    cluster.create("vm1", 128);
    assert!(cluster.holders("vm1").contains(&3), "node 3 is the only one of its zone");
    let shown = cluster.show("vm1");
    assert_eq!(shown["segments_sharing_zones"], 0, "{shown}");
    assert_eq!(entry(&cluster, "nodes", "3")["zone"], "b");
    cluster.gabion_within(&["node", "drain", "3", "--wait"], MOST).ok();
    let shown = cluster.show("vm1");
    assert_eq!(shown["segments_sharing_zones"], 4, "rather in one zone than fewer: {shown}");
    let status = cluster.json(&["status"]).to_string();
    assert!(status.contains("4 of 4 segments have two copies in one zone"), "{status}");
}
