//! Real nodes: a cluster laid out by hand, made by `cluster init` and `node init`, and run by
//! `node run` alone.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::{Address, NbdClient, Patience};
use gabion::process;
use gabion_tests::command::{Started, needs_loop_devices};
use gabion_tests::fixture::{program, temp_dir, wait};
use gabion_tests::ports::Slot;
use gabion_tests::{Ran, run};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const DISK: u64 = 256 << 20;

/// Three machines: a directory and ports each.
struct Machines {
    dir: PathBuf,
    ports: Slot,
    nodes: Vec<Option<Started>>,
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 1..=3 {
                eprintln!("---- node {node}:\n{}", self.log(node));
            }
        }
        self.nodes.clear();
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Machines {
    fn new() -> Self {
        let (dir, ports) = (temp_dir("machines"), Slot::take());
        Self { dir, ports, nodes: vec![None, None, None] }
    }

    fn port(&self, base: u16, node: u16) -> u16 {
        base + node + self.ports.offset
    }

    /// A verb, as root of one of the machines types it.
    fn gabion(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(&self.dir).env("GABION_CLUSTER", self.apis());
        run(&mut command, MOST)
    }

    fn apis(&self) -> String {
        (1..=3).map(|node| self.api(node)).collect::<Vec<_>>().join(",")
    }

    fn api(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.port(7400, node))
    }

    fn found(&self) -> Ran {
        let nodes = (1..=3).map(|node| {
            let port = |base| self.port(base, node);
            let (api, peer, nbd, http) = (port(7400), port(7500), port(10808), port(7600));
            format!("m{node}=127.0.0.1,api={api},peer={peer},nbd={nbd},http={http}")
        });
        let nodes: Vec<String> = nodes.collect();
        let mut verb = vec!["cluster", "init", "--file", "etc/cluster.toml"];
        verb.extend(["--segment-size", "32MiB"]);
        nodes.iter().for_each(|node| verb.extend(["--node", node.as_str()]));
        self.gabion(&verb)
    }

    /// As somebody writes it by hand.
    fn configure(&self, node: u16, disk: &Path) -> String {
        let text = format!(
            "node = {node}\ncluster_file = \"cluster.toml\"\ndir = {:?}\n\n\
             [[disks]]\npath = {disk:?}\n{}",
            self.dir.join(format!("var{node}")),
            if disk.starts_with("/dev") { String::new() } else { format!("size_bytes = {DISK}\n") },
        );
        let config = format!("etc/node{node}.toml");
        fs::write(self.dir.join(&config), text).unwrap();
        config
    }

    fn disk(&self, node: u16) -> PathBuf {
        self.dir.join(format!("disk-of-{node}"))
    }

    fn start(&mut self, node: u16) {
        let mut command = Command::new(program());
        command.args(["node", "run", "--config", &format!("etc/node{node}.toml")]);
        let started = Started::start(command.current_dir(&self.dir));
        self.nodes[usize::from(node) - 1] = Some(started);
    }

    fn kill(&mut self, node: u16) {
        self.nodes[usize::from(node) - 1] = None;
    }

    fn log(&self, node: u16) -> String {
        let started = self.nodes[usize::from(node) - 1].as_ref();
        started.map_or_else(String::new, Started::complained)
    }

    fn wait_ready(&self, node: u16) {
        let http = format!("127.0.0.1:{}", self.port(7600, node));
        wait("the node serves", MOST, || process::ready(&http));
    }

    fn nbd(&self, node: u16, volume: &str) -> NbdClient {
        let address = Address::Tcp(format!("127.0.0.1:{}", self.port(10808, node)));
        NbdClient::connect(&address, volume, Patience::default()).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.gabion(&all).ok()).unwrap()
    }
}

#[test]
fn three_machines_laid_out_by_hand_become_a_cluster() {
    let mut machines = Machines::new();
    let said = machines.found().ok();
    assert!(said.contains("export GABION_CLUSTER="), "{said}");
    let shared = machines.dir.join("etc/cluster.toml");
    assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&shared).unwrap();
    let again = machines.found();
    assert_eq!((again.code(), fs::read_to_string(&shared).unwrap()), (5, secret), "{}", again.err);

    for node in 1..=3 {
        let config = machines.configure(node, &machines.disk(node));
        let early = machines.gabion(&["node", "run", "--config", &config]);
        assert_eq!(early.code(), 1, "{}", early.err);
        assert!(early.err.contains("`gabion node init`"), "{}", early.err);
        assert!(!machines.disk(node).exists(), "only `node init` makes a disk");
        machines.gabion(&["node", "init", "--config", &config]).ok();
        assert_eq!(fs::metadata(machines.disk(node)).unwrap().len(), DISK);
        machines.start(node);
    }
    (1..=3).for_each(|node| machines.wait_ready(node));
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB"]).ok();
    let mut guest = machines.nbd(1, "vm1");
    guest.write(4096, &[7; 8192]).unwrap();
    let init = machines.gabion(&["node", "init", "--config", "etc/node1.toml", "--force"]);
    assert_eq!(init.code(), 5, "it runs: {}{}", init.out, init.err);

    machines.kill(3);
    guest.write(0, &[8; 4096]).unwrap();
    assert_eq!(guest.read(4096, 8192).unwrap(), [7; 8192]);
    guest.disconnect();

    // The mount of its disk is missing when it comes back: it serves without, and makes nothing.
    let (disk, kept) = (machines.disk(3), machines.dir.join("unmounted"));
    fs::rename(&disk, &kept).unwrap();
    machines.start(3);
    machines.wait_ready(3);
    let state = |machines: &Machines| {
        let disks = machines.json(&["disk", "list"]);
        let disks = disks["disks"].as_array().unwrap().clone();
        let own = disks.iter().find(|disk| disk["node"] == "3").unwrap();
        own["state"].as_str().unwrap().to_owned()
    };
    wait("the map knows that it is missing", MOST, || state(&machines) == "missing");
    assert!(!disk.exists());
    assert!(machines.log(3).contains("out of service"), "{}", machines.log(3));
    let mut guest = machines.nbd(3, "vm1");
    assert_eq!(guest.read(0, 4096).unwrap(), [8; 4096]);
    guest.disconnect();
    let gone = machines.gabion(&["node", "init", "--config", "etc/node3.toml"]);
    assert_eq!(gone.code(), 5, "it runs: {}", gone.err);
    machines.kill(3);
    let gone = machines.gabion(&["node", "init", "--config", "etc/node3.toml"]);
    assert_eq!(gone.code(), 5, "{}", gone.err);
    assert!(gone.err.contains("is not there") && !disk.exists(), "{}", gone.err);

    fs::rename(&kept, &disk).unwrap();
    machines.start(3);
    machines.gabion(&["volume", "wait", "vm1", "--healthy", "--timeout", "50s"]).ok();
    assert_eq!(state(&machines), "in_service");
    let mut guest = machines.nbd(3, "vm1");
    assert_eq!(guest.read(4096, 8192).unwrap(), [7; 8192]);
    guest.disconnect();
}

/// A file as a block device; detached when dropped.
struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Self {
        let mut command = Command::new("losetup");
        let said = run(command.args(["--find", "--show"]).arg(file), MOST).ok();
        Self(said.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["--detach", &self.0]).status());
    }
}

#[test]
fn a_block_device_is_formatted_if_it_holds_nothing_or_that_may_be_lost() {
    if !needs_loop_devices() {
        return;
    }
    let mut machines = Machines::new();
    machines.found().ok();
    let backing = machines.dir.join("backing");
    File::create(&backing).unwrap().set_len(DISK).unwrap();
    let ext4 = File::options().write(true).open(&backing).unwrap();
    ext4.write_all_at(&[0x53, 0xEF], 0x438).unwrap();
    drop(ext4);
    let device = Loop::on(&backing);
    let config = machines.configure(1, Path::new(&device.0));
    let init = |more: &[&str]| {
        let mut verb = vec!["--json", "node", "init", "--config", &config];
        verb.extend(more);
        machines.gabion(&verb)
    };
    let refused = init(&[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("ext4 file system; --force"), "{}", refused.err);
    let forced: Value = serde_json::from_str(&init(&["--force"]).ok()).unwrap();
    assert_eq!(forced["disks"][0]["done"], "formatted", "{forced}");
    assert_eq!(forced["disks"][0]["size_bytes"], DISK, "{forced}");
    assert!(forced["disks"][0]["lost"].as_str().unwrap().contains("ext4"), "{forced}");
    let again: Value = serde_json::from_str(&init(&[]).ok()).unwrap();
    assert_eq!(again["disks"][0]["done"], "kept", "{again}");

    for node in 2..=3 {
        let config = machines.configure(node, &machines.disk(node));
        machines.gabion(&["node", "init", "--config", &config]).ok();
    }
    (1..=3).for_each(|node| machines.start(node));
    (1..=3).for_each(|node| machines.wait_ready(node));
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB", "--rf", "3"]).ok();
    let mut guest = machines.nbd(1, "vm1");
    guest.write(0, &[9; 4096]).unwrap();
    guest.disconnect();
    let shown = machines.json(&["disk", "list"]);
    assert!(shown.to_string().contains(&device.0), "{shown}");
    (1..=3).for_each(|node| machines.kill(node));
    let found = machines.gabion(&["disk", "check", &device.0]);
    assert_eq!(found.code(), 0, "{}{}", found.out, found.err);
}
