//! All consensus logs are gone: the map is made anew from what the disks say.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::Judge;
use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::fixture::{program, wait};
use gabion_tests::{Cluster, Ran, Shape, run};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const MIB: u64 = 16;

fn recover(cluster: &Cluster, nodes: &[u32], more: &[&str]) -> Ran {
    let mut command = Command::new(program());
    command.args(["--json", "cluster", "recover", "--from-disks"]);
    command.args(nodes.iter().map(|node| cluster.local.dir.node_dir(*node)));
    run(command.args(more), MOST)
}

fn lose_logs(cluster: &Cluster, nodes: &[u32]) {
    for node in nodes {
        std::fs::remove_dir_all(cluster.local.dir.node_dir(*node).join("meta")).unwrap();
    }
}

fn all_is_there(cluster: &Cluster, volume: &str, judge: &mut Judge) {
    for node in cluster.local.ids() {
        let address = cluster.local.nbd_tcp(node);
        read_back(&address, volume, judge, Patience::default())
            .unwrap_or_else(|error| panic!("{volume} through node {node}: {error}"));
    }
}

/// Writes until a few hundred are acknowledged behind the fill.
fn write_some(writer: &Writer) {
    let before = writer.progress().writes_acknowledged;
    wait("the guest writes", MOST, || {
        let now = writer.progress();
        writer.ended() || (now.filled && now.writes_acknowledged > before + 300)
    });
}

/// Under load a node dies and is removed; then power goes everywhere, the dead node comes back with its
/// old copies, and every log is lost.
// promise: self-describing, acked-survives, no-silent-corruption
#[test]
fn a_cluster_without_any_log_is_made_anew_from_its_disks() {
    let mut cluster = Cluster::of(Shape { disk_mib: 192, segment_mib: 4, ..Shape::default() });
    cluster.create("vm1", MIB);
    cluster.create("vm2", 4);
    let nodes = cluster.local.ids();
    let writer = Writer::start(cluster.writer_plan("vm1", MIB, 1));
    let other = Writer::start(WriterPlan { seed: 9, ..cluster.writer_plan("vm2", 4, 2) });
    write_some(&writer);
    cluster.kill(3);
    cluster.wait_removed("vm1", 3);
    write_some(&writer);
    write_some(&other);
    cluster.kill_all();
    let (mut first, mut second) = (writer.give_up(), other.give_up());
    assert_eq!((&first.wrong, &second.wrong), (&None, &None));

    lose_logs(&cluster, &[1, 2]);
    // One log is left: what it knows is newer than the disks.
    let refused = recover(&cluster, &nodes, &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("node 3 has its consensus log"), "{}", refused.err);
    lose_logs(&cluster, &[3]);
    // Not all nodes are here.
    let refused = recover(&cluster, &[1, 2], &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("--others-are-lost"), "{}", refused.err);
    let shown: Value = serde_json::from_str(&refused.out).unwrap();
    assert!(shown["absent"][0].as_str().unwrap().contains("node 3"), "{shown}");
    assert_eq!(shown["written"], false);

    let said = ["--volume", "1=vm1,size=16MiB,rf=2", "--volume", "2=vm2"];
    let dry = recover(&cluster, &nodes, &[&said[..], &["--dry-run"]].concat());
    assert_eq!(serde_json::from_str::<Value>(&dry.ok()).unwrap()["written"], false);
    let done: Value = serde_json::from_str(&recover(&cluster, &nodes, &said).ok()).unwrap();
    assert_eq!(done["written"], true);
    for volume in done["volumes"].as_array().unwrap() {
        assert_eq!(volume["held_segments"], serde_json::json!([]), "{done}");
    }
    cluster.start_all();
    cluster.wait_healthy("vm1");
    cluster.wait_healthy("vm2");
    all_is_there(&cluster, "vm1", &mut first.judge);
    all_is_there(&cluster, "vm2", &mut second.judge);
    let events = cluster.gabion(&["events"]).ok();
    assert!(events.contains("the map was made anew from what 3 disks say"), "{events}");
    // Ids go on behind those that there were, and the cluster is as good as any.
    cluster.create("vm3", 4);
    let mut guest = cluster.client(2, "vm3").unwrap();
    guest.write(0, &[7; 4096]).unwrap();
    assert_eq!(cluster.show("vm1")["rf"], 2);
    let writer = Writer::start_with(
        WriterPlan { fill_first: false, seed: 11, ..cluster.writer_plan("vm1", MIB, 2) },
        Some(first.judge),
    );
    wait("the guest writes", MOST, || writer.progress().writes_acknowledged > 300);
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    all_is_there(&cluster, "vm1", &mut left.judge);
}

/// A node with its disk is gone for good as well: what it alone had is held and told, the rest is served.
// promise: self-describing, hold-not-fail
#[test]
fn what_only_a_lost_disk_had_is_held_and_told() {
    let mut cluster = Cluster::of(Shape { disk_mib: 192, segment_mib: 4, ..Shape::default() });
    // One copy, and more than one disk has room for: some segments are on one disk alone.
    cluster.gabion(&["volume", "create", "one", "--size", "240MiB", "--rf", "1"]).ok();
    cluster.create("two", 8);
    let mut guest = cluster.client(1, "two").unwrap();
    guest.write(0, &[9; 8 << 20]).unwrap();
    drop(guest);
    let homes = cluster.show("one")["segments"].clone();
    let on =
        |segment: usize| gabion_tests::fixture::id(&homes[segment]["in_sync"][0]["node"]).unwrap();
    let lost = on(0);
    let gone: Vec<u32> = (0..60).filter(|at| on(usize::try_from(*at).unwrap()) == lost).collect();
    assert!(gone.len() < 60);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let nodes = cluster.local.ids();
    lose_logs(&cluster, &nodes);
    let disk = cluster.local.dir.node_file(lost).unwrap().disks[0].path.clone();
    std::fs::rename(&disk, disk.with_extension("away")).unwrap();
    let refused = recover(&cluster, &nodes, &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    let said = ["--others-are-lost", "--volume", "1=one", "--volume", "2=two"];
    let done: Value = serde_json::from_str(&recover(&cluster, &nodes, &said).ok()).unwrap();
    let held = |name: &str| {
        let volumes = done["volumes"].as_array().unwrap().iter();
        volumes.clone().find(|volume| volume["name"] == name).unwrap()["held_segments"].clone()
    };
    // Segments behind the last one that is there are not known of.
    let there = done["volumes"][0]["segments"].as_u64().unwrap();
    let gone: Vec<u32> = gone.into_iter().filter(|at| u64::from(*at) < there).collect();
    assert_eq!((held("one"), held("two")), (serde_json::json!(gone), serde_json::json!([])));

    cluster.local.start_all().unwrap();
    cluster.local.wait_ready(&nodes).unwrap();
    cluster.wait_healthy("two");
    let mut guest = cluster.client(nodes[0], "two").unwrap();
    assert_eq!(guest.read(0, 8 << 20).unwrap(), [9; 8 << 20]);
    let shown = cluster.show("one");
    wait("it is held", MOST, || cluster.show("one")["health"] == "held");
    assert_eq!(shown["segments"].as_array().unwrap().len() as u64, there);
}

fn force(cluster: &Cluster, nodes: &[u32], lost: &str, more: &[&str]) -> Ran {
    let mut command = Command::new(program());
    command.args(["--json", "cluster", "recover", "--force-majority"]);
    command.args(nodes.iter().map(|node| cluster.local.dir.node_dir(*node)));
    run(command.args(["--lost", lost]).args(more), MOST)
}

/// Two of three machines are gone for good, under load: guests' I/O is held until an operator says so. What was
/// acknowledged is there, the rest goes on, and who comes back against that word is told to stop.
// promise: acked-survives, hold-not-fail
#[test]
fn one_of_three_goes_on_when_an_operator_says_that_the_others_are_gone() {
    let mut cluster = Cluster::of(Shape { disk_mib: 192, segment_mib: 4, ..Shape::default() });
    // One copy of each segment is on the node that was asked.
    cluster.create("vm1", MIB);
    let writer = Writer::start(cluster.writer_plan("vm1", MIB, 1));
    write_some(&writer);
    cluster.kill(2);
    cluster.kill(3);
    let refused = force(&cluster, &[1], "2,3", &[]);
    assert_eq!(refused.code(), 5, "it runs: {}", refused.err);
    cluster.kill(1);
    let mut left = writer.give_up();
    assert_eq!(left.wrong, None);

    let refused = force(&cluster, &[1], "2", &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("--lost 2,3"), "{}", refused.err);
    let refused = force(&cluster, &[1, 2], "3", &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("a majority"), "{}", refused.err);
    let dry: Value =
        serde_json::from_str(&force(&cluster, &[1], "2,3", &["--dry-run"]).ok()).unwrap();
    assert_eq!((&dry["written"], &dry["not_removed"]), (&false.into(), &serde_json::json!([])));
    let done: Value = serde_json::from_str(&force(&cluster, &[1], "2,3", &[]).ok()).unwrap();
    assert_eq!(done["written"], true);

    cluster.start_node(1);
    read_back(&cluster.local.nbd_tcp(1), "vm1", &mut left.judge, Patience::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let events = cluster.gabion(&["events"]).ok();
    assert!(events.contains("nodes [2, 3] are gone for good"), "{events}");
    let plan = WriterPlan { fill_first: false, seed: 12, ..cluster.writer_plan("vm1", MIB, 1) };
    let writer = Writer::start_with(plan, Some(left.judge));
    wait("the guest writes", MOST, || writer.progress().writes_acknowledged > 300);
    cluster.local.start(2).unwrap();
    let told = || cluster.log(2).contains("was removed from the cluster");
    wait("who came back hears that it was removed", MOST, told);
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    read_back(&cluster.local.nbd_tcp(1), "vm1", &mut left.judge, Patience::default())
        .unwrap_or_else(|error| panic!("{error}"));
}
