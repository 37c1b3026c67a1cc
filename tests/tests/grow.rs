//! A cluster that grows: nodes that join, voters that are replaced.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::fixture::wait;
use gabion_tests::machines::Machines;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

fn token(machines: &Machines, valid: &str) -> String {
    let verb = ["cluster", "token", "--config", "etc/node1.toml", "--valid", valid];
    machines.json(&verb)["token"].as_str().unwrap().to_owned()
}

fn join(machines: &Machines, node: u16, token: &str) -> gabion_tests::command::Ran {
    let config = format!("etc/node{node}.toml");
    let at = machines.api(2);
    machines.gabion(&["cluster", "join", &at, "--token", token, "--config", &config])
}

/// The ids of the nodes of which this is so.
fn nodes_that(machines: &Machines, is_so: impl Fn(&Value) -> bool) -> Vec<String> {
    let nodes = machines.json(&["node", "list"]);
    let nodes = nodes["nodes"].as_array().unwrap().clone();
    let so = nodes.iter().filter(|node| is_so(node));
    so.map(|node| node["id"].as_str().unwrap().to_owned()).collect()
}

fn voters(machines: &Machines) -> Vec<String> {
    nodes_that(machines, |node| node["voter"] == true)
}

fn write(machines: &Machines, nodes: &[u16]) -> Writer {
    let plan = WriterPlan {
        addresses: nodes.iter().map(|node| machines.nbd_address(*node)).collect(),
        export: "vm1".to_owned(),
        first_block: 0,
        blocks: 64 << 8,
        depth: 8,
        seed: 7,
        reads_percent: 25,
        fill_first: true,
        pace: Duration::from_millis(1),
        patience: Patience::default(),
    };
    let writer = Writer::start(plan);
    wait("the first fill", MOST, || writer.progress().filled);
    writer
}

fn goes_on(writer: &Writer) {
    let done = writer.progress().writes_acknowledged;
    wait("guests go on", MOST, || writer.progress().writes_acknowledged > done + 500);
}

// promise: acked-survives
#[test]
fn a_fourth_node_joins_under_load_and_takes_the_vote_of_one_that_died() {
    let mut machines = Machines::on_loopback();
    machines.start_all();
    machines.gabion(&["settings", "set", "voter.wait", "5s"]).ok();
    machines.gabion(&["settings", "set", "rebuild.wait", "1s"]).ok();
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB"]).ok();
    let writer = write(&machines, &[1, 2]);

    machines.configure_new(4, "");
    let said = join(&machines, 4, &token(&machines, "1h")).ok();
    assert!(said.contains("it is node 4 of cluster"), "{said}");
    let file = machines.dir.join("etc/cluster4.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let notes = machines.json(&["status"])["notes"].to_string();
    assert!(notes.contains("node m4 was let in as node 4 and has not started yet"), "{notes}");
    machines.start(4);
    machines.wait_ready(4);
    assert_eq!(nodes_that(&machines, |node| node["state"] == "up"), ["1", "2", "3", "4"]);
    assert_eq!(voters(&machines), ["1", "2", "3"], "an even number bears no more");
    let status = machines.json(&["status"]);
    assert_eq!(status["safety"]["survives_any_node"], true, "{status}");
    assert!(!status["notes"].to_string().contains("not started"), "{status}");
    // Guests come in by it like by any other.
    let mut guest = machines.nbd(4, "vm1");
    guest.read(0, 4096).unwrap();
    guest.disconnect();
    goes_on(&writer);

    machines.kill(3);
    wait("it is replaced as a voter", MOST, || voters(&machines) == ["1", "2", "4"]);
    machines.wait_healthy("vm1");
    let status = machines.json(&["status"]);
    assert_eq!(status["safety"]["survives_any_node"], true, "{status}");
    let events = machines.gabion(&["events"]).ok();
    assert!(events.contains("nodes 1, 2, 4 vote; new: 4; no more: 3"), "{events}");
    goes_on(&writer);

    // And now the cluster does without a second of the first three.
    machines.kill(2);
    goes_on(&writer);
    machines.wait_healthy("vm1");
    // The dead come back: who lost the vote reads, and serves all the same.
    machines.start(2);
    machines.start(3);
    machines.wait_ready(2);
    machines.wait_ready(3);
    wait("all are there", MOST, || nodes_that(&machines, |node| node["state"] == "up").len() == 4);
    assert_eq!(voters(&machines), ["1", "2", "4"]);
    // Its own log says who it is when it starts again.
    machines.kill(4);
    machines.start(4);
    machines.wait_ready(4);
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    read_back(&machines.nbd_address(4), "vm1", &mut left.judge, Patience::default()).unwrap();
}

fn refused(machines: &Machines, node: u16, token: &str, code: i32, named: &str) {
    let ran = join(machines, node, token);
    assert_eq!(ran.code(), code, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains(named) && ran.err.contains("next:"), "{}", ran.err);
    let file = machines.dir.join(format!("etc/cluster{node}.toml"));
    assert!(!file.exists(), "nothing is written");
}

#[test]
fn a_token_lets_one_node_in_for_a_while_and_nobody_else() {
    let mut machines = Machines::on_loopback();
    machines.start_all();
    machines.configure_new(4, "");
    machines.configure_new(5, "");
    let good = token(&machines, "1h");
    let (head, last) = good.split_at(good.len() - 1);
    let changed = format!("{head}{}", if last == "0" { "1" } else { "0" });
    refused(&machines, 5, &changed, 5, "the token is none of this cluster's");
    refused(&machines, 5, "gabion", 2, "that is no token");
    let short = token(&machines, "1s");
    std::thread::sleep(Duration::from_millis(1100));
    refused(&machines, 5, &short, 5, "has expired");
    let longer = format!("{}{}", &short[..31], "f".repeat(16)) + &short[47..];
    refused(&machines, 5, &longer, 5, "the token is none of this cluster's");

    join(&machines, 4, &good).ok();
    refused(&machines, 5, &good, 5, "was used already, by node 4");
    let again = join(&machines, 4, &good).ok();
    assert!(again.contains("it is node 4"), "what was done is kept: {again}");
    // The answer was lost, or the file was: the same machine gets the same again.
    fs::remove_file(machines.dir.join("etc/cluster4.toml")).unwrap();
    let again = join(&machines, 4, &good).ok();
    assert!(again.contains("it is node 4"), "{again}");
    machines.start(4);
    machines.wait_ready(4);
    let taken = machines.configure_new(5, "").replace("etc/", "");
    let text = fs::read_to_string(machines.dir.join("etc").join(&taken)).unwrap();
    fs::write(machines.dir.join("etc").join(&taken), text.replace("\"m5\"", "\"m4\"")).unwrap();
    refused(&machines, 5, &token(&machines, "1h"), 5, "a node of that name");
    let member = machines.gabion(&[
        "cluster",
        "join",
        &machines.api(1),
        "--token",
        &token(&machines, "1h"),
        "--config",
        "etc/node2.toml",
    ]);
    assert_ne!(member.code(), 0, "{}", member.out);

    // One that never comes is given up, and its id with it.
    machines.configure_new(5, "");
    let said = join(&machines, 5, &token(&machines, "1h")).ok();
    assert!(said.contains("it is node 5"), "{said}");
    machines.gabion(&["node", "remove", "5"]).ok();
    machines.start(5);
    wait("it is told", MOST, || machines.log(5).contains("was removed from the cluster"));
}

fn disks(machines: &Machines) -> Vec<Value> {
    machines.json(&["disk", "list"])["disks"].as_array().unwrap().clone()
}

// rule: node/a-disk-comes-while-the-node-serves
#[test]
fn a_disk_is_added_to_a_node_that_runs_and_to_one_that_does_not() {
    let mut machines = Machines::on_loopback();
    machines.start_all();
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB"]).ok();
    let writer = write(&machines, &[1, 2]);
    writer.reset_stall();
    let add = |machines: &Machines, path: &str, node: u16, more: &[&str]| {
        let config = format!("etc/node{node}.toml");
        let mut verb = vec!["disk", "add", path, "--config", &config];
        verb.extend(more);
        machines.gabion(&verb)
    };
    let said = add(&machines, "more1", 1, &["--size", "128MiB"]).ok();
    assert!(
        said.contains("made, 134217728 bytes") && said.contains("it is disk 4 of node 1"),
        "{said}"
    );
    let stall = writer.progress().stall_most;
    assert!(stall < Duration::from_secs(1), "{stall:?}");
    assert!(disks(&machines).iter().all(|disk| disk["state"] == "in_service"));
    let again = add(&machines, "more1", 1, &["--size", "128MiB"]).ok();
    assert!(again.contains("kept, 134217728 bytes"), "{again}");
    let text = fs::read_to_string(machines.dir.join("etc/node1.toml")).unwrap();
    assert_eq!(text.matches("more1").count(), 1, "{text}");

    for (path, more, code, named) in [
        ("more2", &[][..], 5, "the size of the new disk file"),
        ("no/where", &["--size", "128MiB"], 5, "there is no directory"),
        ("etc/node1.toml", &["--size", "128MiB"], 5, "--force"),
        ("more2", &["--size", "1MiB"], 2, "64MiB"),
        ("/dev/nothing", &[], 5, "there is no device"),
    ] {
        let ran = add(&machines, path, 1, more);
        assert_eq!(ran.code(), code, "{path}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(named), "{path}: {}", ran.err);
    }

    // It is used, and it is there again after a restart.
    // Of the two nodes that are left one is node 1, where only the new disk may hold copies then.
    let first_of = |node: &str| -> String {
        let disks = disks(&machines);
        let disk = disks.iter().find(|disk| disk["node"] == node && disk["id"] != "4");
        disk.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let drained = [first_of("1"), first_of("2")];
    for id in &drained {
        machines.gabion(&["disk", "drain", id, "--wait"]).ok();
    }
    let used = disks(&machines).iter().any(|disk| disk["id"] == "4" && disk["replicas"] != 0);
    assert!(used, "{:?}", disks(&machines));
    machines.kill(1);
    let said = add(&machines, "more0", 1, &["--size", "128MiB"]).ok();
    assert!(said.contains("it is in service when node 1 runs"), "{said}");
    machines.start(1);
    machines.wait_ready(1);
    wait("all five are in service", MOST, || {
        let disks = disks(&machines);
        disks.len() == 5
            && disks.iter().all(|disk| {
                disk["state"] == "in_service" || drained.iter().any(|id| disk["id"] == id.as_str())
            })
    });
    machines.wait_healthy("vm1");
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    read_back(&machines.nbd_address(3), "vm1", &mut left.judge, Patience::default()).unwrap();
}

// rule: cluster/levelling-ends
// promise: acked-survives
#[test]
fn copies_move_to_a_node_that_joins_and_then_all_is_level() {
    let mut machines = Machines::on_loopback();
    machines.start_all();
    machines.gabion(&["settings", "set", "rebalance.wait", "3s"]).ok();
    for name in ["vm1", "vm2", "vm3"] {
        machines.gabion(&["volume", "create", name, "--size", "64MiB"]).ok();
    }
    let writer = write(&machines, &[1, 2]);
    machines.configure_new(4, "");
    join(&machines, 4, &token(&machines, "1h")).ok();
    machines.start(4);
    machines.wait_ready(4);
    writer.reset_stall();
    let replicas = |machines: &Machines| -> Vec<u64> {
        disks(machines).iter().map(|disk| disk["replicas"].as_u64().unwrap()).collect()
    };
    let before = replicas(&machines);
    assert_eq!((before.len(), before.iter().sum::<u64>(), before[3]), (4, 12, 0), "{before:?}");
    wait("copies move", MOST, || replicas(&machines)[3] > 0);
    wait("it ends", MOST, || {
        let now = replicas(&machines);
        now.iter().sum::<u64>() == 12 && now[3] >= 2
    });
    let moved = replicas(&machines);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(replicas(&machines), moved, "and stays so");
    for name in ["vm1", "vm2", "vm3"] {
        machines.wait_healthy(name);
    }
    let events = machines.gabion(&["events"]).ok();
    assert!(events.contains("move to other disks, to level them"), "{events}");
    let promoted = events.lines().filter(|line| line.contains("on disk 4 are in sync")).count();
    println!(
        "{before:?} -> {moved:?}, {promoted} promotions, a stall of {:?}",
        writer.progress().stall_most
    );
    assert!(writer.progress().stall_most < Duration::from_secs(1));
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    read_back(&machines.nbd_address(4), "vm1", &mut left.judge, Patience::default()).unwrap();
}
