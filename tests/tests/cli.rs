//! What people type, and what their scripts read.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::command::Started;
use gabion_tests::fixture::{program, temp_dir, wait};
use gabion_tests::ports::Slot;
use gabion_tests::{Cluster, Ran, Shape, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

fn gabion(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program());
    run(command.args(arguments).current_dir(dir).env_remove("GABION_CLUSTER"), MOST)
}

fn interrupt(started: &Started) {
    let pid = i32::try_from(started.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

fn up(dir: &Path, offset: u16, more: &[&str]) -> Started {
    let offset = offset.to_string();
    let mut command = Command::new(program());
    command.args(["up", "--disk-size", "384MiB", "--base-port-offset", &offset]).args(more);
    let mut started = Started::start(command.current_dir(dir));
    let said = || started.said().contains("ready;");
    wait("up is ready", Duration::from_secs(90), said);
    assert!(started.running());
    started
}

#[test]
fn up_stops_cleanly_and_goes_on() {
    let dir = temp_dir("up");
    let ports = Slot::take();
    let first = up(&dir, ports.offset, &[]);
    gabion(&dir, &["volume", "create", "vm1", "--size", "64MiB"]).ok();
    let again = gabion(&dir, &["up"]);
    assert_eq!(again.code(), 5, "{}", again.err);
    assert!(again.err.contains("runs already"), "{}", again.err);
    gabion(&dir, &["node", "kill", "3"]).ok();
    wait("up says so", MOST, || first.said().contains("node 3 ended"));
    assert_eq!(gabion(&dir, &["node", "kill", "3"]).code(), 4);
    gabion(&dir, &["node", "start", "3"]).ok();
    interrupt(&first);
    let ran = first.finish(MOST);
    assert!(ran.status.success(), "{}{}", ran.out, ran.err);
    assert!(!ran.err.contains("killed"), "{}", ran.err);
    assert_eq!(gabion(&dir, &["status"]).code(), 1, "nobody is there");

    let offset = ports.offset.to_string();
    let mut command = Command::new(program());
    command.args(["--json", "up", "--base-port-offset", &offset, "--restart"]);
    let second = Started::start(command.current_dir(&dir));
    let told = || serde_json::from_str::<Value>(&second.said()).ok();
    wait("up is ready", Duration::from_secs(90), || told().is_some());
    let told = told().unwrap();
    for (index, node) in (1..).zip(told["nodes"].as_array().unwrap()) {
        assert_eq!(node["id"], index.to_string(), "{told}");
        assert!(node["pid"].as_u64().is_some(), "{told}");
        for (what, port) in [("api", 7400), ("peer", 7500), ("nbd", 10808), ("http", 7600)] {
            let address = format!("127.0.0.1:{}", port + ports.offset + index);
            assert_eq!(node[what], address, "{told}");
        }
        assert!(node["nbd_unix"].as_str().unwrap().ends_with("nbd.sock"), "{told}");
    }
    assert_eq!(told["nodes"].as_array().unwrap().len(), 3);
    assert!(second.complained().contains("continuing"), "{}", second.complained());
    gabion(&dir, &["volume", "wait", "vm1", "--healthy", "--timeout", "60s"]).ok();
    gabion(&dir, &["node", "kill", "2"]).ok();
    wait("it is started again", MOST, || second.complained().contains("node 2 is started again"));
    interrupt(&second);
    assert!(second.finish(MOST).status.success());
    std::fs::remove_dir_all(dir).unwrap();
}

/// Making the disks takes longer than a node may take to serve, on slow disks: so it is over before
/// the first node is started, and what was interrupted is gone on with.
#[test]
fn up_that_is_killed_while_it_makes_disks_goes_on_later() {
    let dir = temp_dir("up-killed");
    let ports = Slot::take();
    let offset = ports.offset.to_string();
    let arguments = ["up", "--disk-size", "384MiB", "--base-port-offset", &offset];
    let mut command = Command::new(program());
    let first = Started::start(command.args(arguments).current_dir(&dir));
    let half_made = dir.join("gabion-data/node2/disk0.new");
    wait("the second disk is begun", MOST, || half_made.exists());
    assert!(!dir.join("gabion-data/node1/pid").exists(), "no node runs yet");
    // As by kill -9.
    drop(first);
    let mut command = Command::new(program());
    let start = Started::start(command.args(["node", "start", "3"]).current_dir(&dir));
    let disk = dir.join("gabion-data/node3/disk0");
    wait("it makes what is missing", MOST, || disk.exists());
    let pid = dir.join("gabion-data/node3/pid");
    wait("and then runs the node", MOST, || pid.exists());
    gabion(&dir, &["node", "kill", "3"]).ok();
    drop(start);
    let second = up(&dir, ports.offset, &[]);
    assert!(second.said().contains("disk files: 384 MiB in"), "{}", second.said());
    assert!(!half_made.exists());
    gabion(&dir, &["volume", "create", "vm1", "--size", "64MiB"]).ok();
    interrupt(&second);
    assert!(second.finish(MOST).status.success());
    std::fs::remove_dir_all(dir).unwrap();
}

// rule: node/quiet-before-all-stop
#[test]
fn up_stops_under_guests_and_removes_no_copy() {
    let mut cluster = Cluster::of(Shape { disk_mib: 384, ..Shape::default() });
    cluster.create("vm1", 96);
    cluster.create("vm2", 96);
    let plan = |volume, node| WriterPlan {
        seed: u64::from(node),
        ..cluster.writer_plan(volume, 64, node)
    };
    let plans = [plan("vm1", 1), plan("vm2", 3)];
    let guests: Vec<Writer> = plans.into_iter().map(Writer::start).collect();
    wait("the guests write", MOST, || {
        guests.iter().all(|guest| guest.progress().writes_acknowledged > 500)
    });
    let stopped = cluster.local.stop();
    assert!(stopped.is_empty(), "{stopped:?} had to be killed");
    guests.iter().for_each(Writer::ask_to_stop);
    for node in 1..=3 {
        let log = cluster.log(node);
        let (_, stop) = log.split_once("the whole cluster stops").expect("it was told so");
        for sign in ["WARN", "ERROR", "removed"] {
            assert_eq!(stop.lines().find(|line| line.contains(sign)), None, "it is no failure");
        }
    }
    cluster.start_all();
    for (guest, volume) in guests.into_iter().zip(["vm1", "vm2"]) {
        let mut left = guest.stop();
        assert_eq!(left.wrong, None);
        let at = cluster.local.nbd_tcp(2);
        read_back(&at, volume, &mut left.judge, Patience::default()).unwrap();
        let shown = cluster.show(volume);
        assert_eq!(shown["health"], "healthy", "{shown}");
    }
}

#[test]
fn the_simulator_is_a_verb() {
    let dir = temp_dir("sim");
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let one = json(gabion(&dir, &["sim", "run", "--seed", "7", "--json"]).ok());
    let again = gabion(&dir, &["sim", "run", "--seed", "7", "--trace"]).ok();
    let hash = one["trace_hash"].as_str().unwrap();
    assert!(again.lines().last().unwrap().contains(hash), "{again}");
    assert!(again.lines().any(|line| line.contains("node1") && line.contains("sends")));
    let few = json(gabion(&dir, &["sim", "run", "--seeds", "0..6", "--json"]).ok());
    assert_eq!((few["seeds"].as_u64(), &few["failures"]), (Some(6), &serde_json::json!([])));
    assert!(few["faults"].as_object().is_some_and(|faults| !faults.is_empty()), "{few}");
    let part = gabion(&dir, &["sim", "run", "--seed", "7", "--only", "none", "--json"]).ok();
    let part = json(part);
    assert_ne!(part["trace_hash"], one["trace_hash"]);
    let story = gabion(&dir, &["sim", "run", "--nodes", "3", "--kill", "1", "--down", "8s"]).ok();
    assert!(story.contains("is killed") && story.contains("nothing was lost"));
    assert_eq!(gabion(&dir, &["sim", "run", "--nodes", "3", "--kill", "3"]).code(), 2);
    let list = json(gabion(&dir, &["sim", "list", "--json"]).ok());
    assert!(list["promises"].as_array().unwrap().len() > 9);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let dir = temp_dir("ports");
    let ports = Slot::take();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 7502 + ports.offset)).unwrap();
    let offset = ports.offset.to_string();
    let ran = gabion(&dir, &["up", "--base-port-offset", &offset]);
    assert_eq!(ran.code(), 1);
    let address = taken.local_addr().unwrap().to_string();
    assert!(ran.err.contains(&address) && ran.err.contains("node 2"), "{}", ran.err);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn json_has_the_names_that_scripts_read() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let guest = cluster.client(2, "vm1").unwrap();
    let status = cluster.json(&["status"]);
    for name in ["cluster_id", "leader", "nodes", "volumes"] {
        assert!(!status[name].is_null(), "{name}: {status}");
    }
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!(node["state"], "up", "{node}");
        assert!(node["id"].is_string() && node["name"].is_string(), "{node}");
        assert!(node["since_ms"].is_u64() && node["pid"].is_u64(), "{node}");
        assert_eq!(node["disks"].as_array().unwrap().len(), 1, "{node}");
    }
    let shown = cluster.show("vm1");
    assert_eq!(shown["name"], "vm1");
    assert_eq!(shown["size_bytes"], 64 << 20);
    assert_eq!(shown["rf"], 2);
    assert_eq!(shown["health"], "healthy");
    assert_eq!(shown["owner"]["node"], "2", "{shown}");
    assert!(shown["owner"]["epoch"].is_u64() && shown["epoch"].is_u64(), "{shown}");
    let segments = shown["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2, "{shown}");
    for segment in segments {
        assert!(segment["index"].is_u64(), "{segment}");
        assert_eq!(segment["in_sync"].as_array().unwrap().len(), 2, "{segment}");
        for list in ["joining", "stale", "lost"] {
            assert_eq!(segment[list].as_array().unwrap().len(), 0, "{segment}");
        }
    }
    assert!(cluster.json(&["disk", "list"])["disks"].as_array().unwrap().len() == 3);
    assert!(cluster.json(&["node", "list"])["nodes"].as_array().unwrap().len() == 3);
    guest.disconnect();
}

#[test]
fn verbs_do_what_they_say_at_any_node() {
    let cluster = Cluster::start();
    for (node, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let api = cluster.local.dir.entry(node).unwrap().api.clone();
        let verb = ["--cluster", &api, "volume", "create", name, "--size", "32MiB"];
        gabion(&cluster.dir, &verb).ok();
    }
    let listed = cluster.json(&["volume", "list"]);
    let names: Vec<&Value> =
        listed["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
    cluster.gabion(&["volume", "resize", "a", "--size", "96MiB"]).ok();
    let mut guest = cluster.client(1, "a").unwrap();
    assert_eq!(guest.size_bytes(), 96 << 20);
    guest.write(90 << 20, &[7; 4096]).unwrap();
    cluster.gabion(&["volume", "move", "a", "--to", "3"]).ok();
    assert_eq!(cluster.owner("a"), Some(3));
    assert_eq!(guest.read(90 << 20, 4096).unwrap(), [7; 4096]);
    cluster.set("rebuild.wait", "90s");
    let setting = cluster.json(&["settings", "get", "rebuild.wait"]);
    assert_eq!(setting["value"], "90s");
    assert!(cluster.json(&["settings", "list"])["settings"].as_array().unwrap().len() > 3);
    let waited = cluster.gabion(&["volume", "wait", "b", "--healthy", "--timeout", "10s"]);
    assert_eq!(waited.code(), 0);
    cluster.gabion(&["volume", "delete", "b"]).ok();
    assert_eq!(cluster.gabion(&["volume", "show", "b"]).code(), 4);
    let measured = cluster.json(&["bench", "c", "--seconds", "1"]);
    assert!(measured["iops"].as_u64().unwrap() > 0, "{measured}");
    let events = cluster.gabion(&["events"]).ok();
    assert!(!events.is_empty());
}

#[test]
fn a_volume_that_cannot_be_healthy_is_waited_for_and_not_longer() {
    let mut cluster = Cluster::of(Shape { nodes: 3, ..Shape::default() });
    cluster.create("vm1", 64);
    let guest = cluster.client(1, "vm1").unwrap();
    let victim = cluster.holders("vm1").into_iter().find(|node| *node != 1).unwrap();
    cluster.kill(victim);
    cluster.wait_removed("vm1", victim);
    let waited = cluster.gabion(&["volume", "wait", "vm1", "--healthy", "--timeout", "1s"]);
    assert_eq!(waited.code(), 3, "{}", waited.err);
    assert!(waited.err.contains("degraded"), "{}", waited.err);
    let shown = cluster.show("vm1");
    let short = || cluster.show("vm1")["short_ms"].as_u64();
    assert!(short().is_some(), "{shown}");
    wait("it says for how long", MOST, || short() > Some(1000));
    let problems = cluster.json(&["status"])["problems"].to_string();
    assert!(problems.contains("fewer than 2 copies, for "), "{problems}");
    guest.disconnect();
}

// promise: hold-not-fail
#[test]
fn status_says_so_when_there_is_no_majority() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let mut guest = cluster.client(1, "vm1").unwrap();
    guest.write(0, &[1; 4096]).unwrap();
    let other = cluster.client(2, "vm1").unwrap();
    wait("both guests are counted", MOST, || cluster.show("vm1")["guests"] == 2);
    guest.disconnect();
    wait("one is gone", MOST, || cluster.show("vm1")["guests"] == 1);
    drop(other);
    cluster.kill(2);
    cluster.kill(3);
    let status = || cluster.json(&["status"]);
    wait("it says that it is not healthy", Duration::from_secs(8), || {
        status()["volumes"][0]["health"] == "held"
    });
    let status = status();
    assert_eq!((&status["leader"], &status["health"]), (&Value::Null, &"held".into()), "{status}");
    let said = status["problems"].to_string();
    assert!(said.contains("no majority of the voters answers"), "{said}");
    assert!(said.contains("node2") && said.contains("node3"), "{said}");
    let late = cluster.gabion(&["volume", "wait", "vm1", "--healthy", "--timeout", "2s"]);
    assert_eq!(late.code(), 3, "{}", late.err);
    let refused = cluster.gabion(&["volume", "create", "vm2", "--size", "64MiB"]);
    assert_eq!(refused.code(), 1, "{}", refused.err);
    assert!(refused.err.contains("no leader"), "{}", refused.err);
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.wait_healthy("vm1");
    assert_eq!(cluster.json(&["status"])["health"], "healthy");
}

#[test]
fn the_largest_request_has_room_on_each_of_many_volumes() {
    let cluster = Cluster::of(Shape { disk_mib: 256, ..Shape::default() });
    for volume in 0..6 {
        let name = format!("vm{volume}");
        cluster.create(&name, 64);
        let mut guest = cluster.client(1, &name).unwrap();
        guest.write(0, &vec![3; 32 << 20]).unwrap();
        guest.disconnect();
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let dir = temp_dir("refused");
    let small = gabion(&dir, &["up", "--disk-size", "1MiB"]);
    assert_eq!(small.code(), 2, "{}", small.err);
    assert!(small.err.contains("64MiB") && !dir.join("gabion-data").exists(), "{}", small.err);
    let none = gabion(&dir, &["volume", "create", "vm1", "--size", "1GiB", "--rf", "0"]);
    assert_eq!(none.code(), 2, "{}", none.err);
}

#[test]
fn a_support_bundle_has_what_is_needed_and_neither_secret_nor_data() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let guests = b"guests' data are nobody's business".repeat(128);
    cluster.client(1, "vm1").unwrap().write(0, &guests[..4096]).unwrap();
    let http = cluster.local.dir.entry(1).unwrap().http.clone();
    let counted =
        || gabion_tests::http::get(&http, "/metrics").contains("gabion_volume_writes_total");
    wait("the write is told of", MOST, counted);
    cluster.kill(3);
    let out = cluster.dir.join("bundle.tar").display().to_string();
    let dir = cluster.dir.display().to_string();
    let verb = ["--json", "support", "bundle", "--out", &out, "--dir", &dir];
    let told = cluster.gabion(&verb).json();
    assert_eq!(told["missing"], serde_json::json!(["nodes/node3/metrics.txt"]));
    let listed = run(Command::new("tar").args(["-tf", &out]), MOST).ok();
    for name in [
        "/status.json",
        "/events.json",
        "/volumes/vm1.json",
        "/nodes/node1/metrics.txt",
        "/nodes/node3/log",
    ] {
        assert!(listed.lines().any(|line| line.ends_with(name)), "{name}: {listed}");
    }
    let bundle = std::fs::read(&out).unwrap();
    let holds = |text: &[u8]| bundle.windows(text.len()).any(|window| window == text);
    let secret = cluster.local.dir.node_file(1).unwrap().secret;
    assert!(secret.len() == 64 && !holds(secret.as_bytes()));
    assert!(!holds(&guests[..34]));
    assert!(holds(b"gabion_volume_writes_total"));
    let again = cluster.gabion(&verb);
    assert_eq!(again.code(), 5, "{}", again.err);
}
