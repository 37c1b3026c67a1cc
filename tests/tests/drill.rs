//! A drill on a real cluster: each node is hurt in turn, nothing is lost, and all is as it was afterwards.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::Cluster;
use gabion_tests::command::Started;
use gabion_tests::fixture::wait;
use serde_json::Value;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(240);

fn drill(cluster: &Cluster, more: &[&str]) -> gabion_tests::Ran {
    let dir = cluster.dir.display().to_string();
    let words = [&["--json", "drill", "run", "--dir", &dir, "--for", "4s"], more].concat();
    cluster.gabion_within(&words, MOST)
}

// promise: acked-survives, hold-not-fail
#[test]
fn each_node_is_killed_frozen_and_slowed_and_nothing_is_lost() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let found = drill(&cluster, &[]).json();
    println!("{found:#}");
    let drills = found["drills"].as_array().unwrap();
    let done = |drill: &Value| {
        let word = |field: &str| drill[field].as_str().unwrap().to_owned();
        (word("harm"), word("node"))
    };
    let all: Vec<(String, String)> = drills.iter().map(done).collect();
    let wanted = ["kill", "freeze", "slow"].into_iter();
    let wanted =
        wanted.flat_map(|harm| (1..=3).map(move |node| (harm.to_owned(), node.to_string())));
    assert_eq!(all, wanted.collect::<Vec<_>>());
    for drill in drills {
        assert_eq!(drill["rpo_writes_lost"], 0, "{drill}");
        assert!(drill["writes_acknowledged"].as_u64().unwrap() > 0, "{drill}");
        assert!(drill["verified_bytes"].as_u64().unwrap() > 3 * (64 << 20), "{drill}");
        assert!(drill["longest_stall_ms"].as_u64().unwrap() < 10_000, "{drill}");
    }
    // Somebody noticed that the owner was killed.
    let noticed = |drill: &&Value| drill["rto_ms"].as_u64().unwrap() > 0;
    assert!(drills.iter().any(|drill| drill["harm"] == "kill" && noticed(&drill)));
    let dir = cluster.dir.display().to_string();
    let kept = cluster.json(&["drill", "list", "--dir", &dir]);
    assert_eq!(kept["kept"].as_array().unwrap().len(), 1, "{kept}");
    assert_eq!(kept["kept"][0]["drills"], found["drills"]);
    let stopped = cluster.gabion(&["drill", "stop", "--dir", &dir]);
    assert_eq!(stopped.code(), 4, "none runs: {}", stopped.err);
    let left = cluster.json(&["volume", "list"]);
    assert_eq!(left["volumes"].as_array().unwrap().len(), 1, "its own volume is gone: {left}");
    cluster.wait_healthy("vm1");
}

#[test]
fn a_cluster_that_is_not_well_is_left_alone() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    cluster.kill(2);
    let refused = drill(&cluster, &[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("node 2 does not run"), "{}", refused.err);
    let volumes = cluster.json(&["volume", "list"]);
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 1, "{volumes}");
}

#[test]
fn a_cluster_that_is_stopped_meanwhile_stays_stopped() {
    let mut cluster = Cluster::start();
    let dir = cluster.dir.display().to_string();
    let words = ["drill", "run", "--dir", &dir, "--for", "5m", "--only", "kill"];
    let drill = Started::start(&mut cluster.command(&words));
    wait("a node is killed", MOST, || drill.said().contains("kill node 1"));
    wait("it is seen", MOST, || {
        let nodes = cluster.json(&["node", "list"])["nodes"].clone();
        nodes.as_array().unwrap().iter().any(|node| node["state"] == "silent")
    });
    cluster.kill_all();
    let ran = drill.finish(MOST);
    assert_eq!(ran.status.code(), Some(1), "{}", ran.err);
    assert!(ran.err.contains("was stopped during a drill"), "{}", ran.err);
    assert_eq!(cluster.log(1).matches("running node=1").count(), 1, "{}", cluster.log(1));
}
