//! What happened: told alike by each node, and still known after a restart.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::fixture::{program, wait};
use gabion_tests::{Cluster, run};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

/// As one node tells them: all fields of each.
fn told_by(cluster: &Cluster, node: u32) -> Vec<Value> {
    let api = &cluster.local.dir.entry(node).unwrap().api;
    let ran = run(Command::new(program()).args(["--json", "--cluster", api, "events"]), MOST);
    ran.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has(events: &[Value], text: &str) -> bool {
    events.iter().any(|event| event["text"].as_str().unwrap().contains(text))
}

#[test]
fn each_node_tells_the_same_story_also_of_the_time_when_it_was_away() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    cluster.wait_healthy("vm1");
    let before = told_by(&cluster, 3);
    assert!(has(&before, "volume vm1 was created"), "{before:?}");
    cluster.kill(3);
    wait("it is missed", MOST, || has(&told_by(&cluster, 1), "node 3 is silent"));
    cluster.create("vm2", 64);
    cluster.start_node(3);
    cluster.wait_healthy("vm1");
    cluster.wait_healthy("vm2");
    // A moment later each has heard of all.
    wait("all tell the same", MOST, || {
        let first = told_by(&cluster, 1);
        (2..=3).all(|node| told_by(&cluster, node) == first)
    });
    let after = told_by(&cluster, 3);
    for (text, times) in
        [("node 3 is silent", 1), ("volume vm2 was created", 1), ("node 3 started", 2)]
    {
        let told = after.iter().filter(|event| event["text"].as_str().unwrap().contains(text));
        assert_eq!(told.count(), times, "{text}: {after:?}");
    }
    // What it had noticed itself before it was killed.
    let noticed = |event: &&Value| event["node"] == "3" && event["kind"] == "disk_opened";
    assert!(before.iter().filter(noticed).all(|event| after.contains(event)), "{after:?}");
    assert_eq!(after.iter().filter(noticed).count(), 2, "{after:?}");

    // All of it again, from the disks alone.
    cluster.kill_all();
    cluster.start_all();
    let again = told_by(&cluster, 2);
    assert!(after.iter().all(|event| again.contains(event)), "{again:?}");
}
