//! Three machines, laid out as `cluster init` and `node init` do it: on the loopback with ports of their
//! own, or in a network namespace each.

use crate::command::{Ran, Started, run};
use crate::fixture::{program, temp_dir, wait};
use crate::net::Net;
use crate::ports::Slot;
use gabion::nbd_client::{Address, NbdClient, Patience};
use gabion::process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
/// Units: bytes.
pub const DISK: u64 = 256 << 20;

/// How the machines reach each other.
enum Place {
    Loopback(Slot),
    Namespaces(Net),
}

/// Nodes at most: those that join included.
const NODES: u16 = 5;

/// Three machines, and more that may join: a directory and an address each.
pub struct Machines {
    pub dir: PathBuf,
    place: Place,
    nodes: Vec<Option<Started>>,
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 1..=NODES {
                eprintln!("---- node {node}:\n{}", self.log(node));
            }
        }
        self.nodes.clear();
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Machines {
    #[must_use]
    pub fn on_loopback() -> Self {
        Self::new(Place::Loopback(Slot::take()))
    }

    #[must_use]
    pub fn in_namespaces(net: Net) -> Self {
        Self::new(Place::Namespaces(net))
    }

    fn new(place: Place) -> Self {
        Self { dir: temp_dir("machines"), place, nodes: (0..NODES).map(|_| None).collect() }
    }

    /// The network between them.
    pub fn net(&self) -> &Net {
        match &self.place {
            Place::Namespaces(net) => net,
            Place::Loopback(_) => panic!("these machines are on the loopback"),
        }
    }

    fn host(&self, node: u16) -> String {
        match &self.place {
            Place::Loopback(_) => "127.0.0.1".to_owned(),
            Place::Namespaces(_) => Net::host(node),
        }
    }

    fn port(&self, base: u16, node: u16) -> u16 {
        let offset = if let Place::Loopback(ports) = &self.place { ports.offset } else { 0 };
        base + node + offset
    }

    fn address(&self, base: u16, node: u16) -> String {
        format!("{}:{}", self.host(node), self.port(base, node))
    }

    /// A verb, as root of one of the machines types it.
    pub fn gabion(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program());
        let apis: Vec<String> = (1..=3).map(|node| self.address(7400, node)).collect();
        command.args(arguments).current_dir(&self.dir).env("GABION_CLUSTER", apis.join(","));
        run(&mut command, MOST)
    }

    pub fn found(&self) -> Ran {
        let nodes = (1..=3).map(|node| {
            let port = |base| self.port(base, node);
            let (api, peer, nbd, http) = (port(7400), port(7500), port(10808), port(7600));
            let host = self.host(node);
            format!("m{node}={host},api={api},peer={peer},nbd={nbd},http={http}")
        });
        let nodes: Vec<String> = nodes.collect();
        let mut verb = vec!["cluster", "init", "--file", "etc/cluster.toml"];
        verb.extend(["--segment-size", "32MiB"]);
        nodes.iter().for_each(|node| verb.extend(["--node", node.as_str()]));
        self.gabion(&verb)
    }

    /// As somebody writes it by hand.
    pub fn configure(&self, node: u16, disk: &Path) -> String {
        let text = format!(
            "node = {node}\ncluster_file = \"cluster.toml\"\ndir = {:?}\n\n\
             [[disks]]\npath = {disk:?}\n{}",
            self.dir.join(format!("var{node}")),
            if disk.starts_with("/dev") { String::new() } else { format!("size_bytes = {DISK}\n") },
        );
        let config = format!("etc/node{node}.toml");
        fs::write(self.dir.join(&config), text).expect("a file in the temporary directory");
        config
    }

    /// Of a node that is in no cluster yet, as somebody writes it by hand.
    pub fn configure_new(&self, node: u16, zone: &str) -> String {
        let at = |base| self.address(base, node);
        let text = format!(
            "name = \"m{node}\"\nzone = {zone:?}\ncluster_file = \"cluster{node}.toml\"\n\
             dir = {:?}\n\n[listen]\napi = {:?}\npeer = {:?}\nnbd = {:?}\nhttp = {:?}\n\n\
             [[disks]]\npath = {:?}\nsize_bytes = {DISK}\n",
            self.dir.join(format!("var{node}")),
            at(7400),
            at(7500),
            at(10808),
            at(7600),
            self.disk(node),
        );
        let config = format!("etc/node{node}.toml");
        fs::write(self.dir.join(&config), text).expect("a file in the temporary directory");
        config
    }

    /// `host:port` of its API.
    pub fn api(&self, node: u16) -> String {
        self.address(7400, node)
    }

    pub fn disk(&self, node: u16) -> PathBuf {
        self.dir.join(format!("disk-of-{node}"))
    }

    /// All of it: a cluster that serves.
    #[track_caller]
    pub fn start_all(&mut self) {
        self.found().ok();
        for node in 1..=3 {
            let config = self.configure(node, &self.disk(node));
            self.gabion(&["node", "init", "--config", &config]).ok();
            self.start(node);
        }
        (1..=3).for_each(|node| self.wait_ready(node));
    }

    #[track_caller]
    pub fn start(&mut self, node: u16) {
        let config = format!("etc/node{node}.toml");
        let mut command = match &self.place {
            Place::Loopback(_) => Command::new(program()),
            Place::Namespaces(_) => Net::command(node, &program()),
        };
        command.args(["node", "run", "--config", &config]);
        let started = Started::start(command.current_dir(&self.dir));
        self.nodes[usize::from(node) - 1] = Some(started);
    }

    pub fn kill(&mut self, node: u16) {
        self.nodes[usize::from(node) - 1] = None;
    }

    #[track_caller]
    pub fn signal(&self, node: u16, signal: Signal) {
        let started = self.nodes[usize::from(node) - 1].as_ref().expect("it runs");
        let pid = Pid::from_child(started.child());
        kill_process(pid, signal).expect("it runs");
    }

    pub fn log(&self, node: u16) -> String {
        let started = self.nodes[usize::from(node) - 1].as_ref();
        started.map_or_else(String::new, Started::complained)
    }

    #[track_caller]
    pub fn wait_ready(&self, node: u16) {
        let http = self.address(7600, node);
        wait("the node serves", MOST, || process::ready(&http));
    }

    pub fn nbd_address(&self, node: u16) -> Address {
        Address::Tcp(self.address(10808, node))
    }

    #[track_caller]
    pub fn nbd(&self, node: u16, volume: &str) -> NbdClient {
        let connected = NbdClient::connect(&self.nbd_address(node), volume, Patience::default());
        connected.unwrap_or_else(|error| panic!("through node {node}: {error}"))
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.gabion(&[&["--json"], arguments].concat()).json()
    }

    #[track_caller]
    pub fn wait_healthy(&self, volume: &str) {
        self.gabion(&["volume", "wait", volume, "--healthy", "--timeout", "55s"]).ok();
    }
}
