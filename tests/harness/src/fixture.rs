//! A cluster of child processes in a temporary directory, with ports of its own.

use crate::command::{Ran, run};
use crate::ports::Slot;
use gabion::layout::Plan;
use gabion::local::LocalCluster;
use gabion::nbd_client::{Address, NbdClient, NbdError, Patience};
use gabion::process;
use gabion::writer::WriterPlan;
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A verb of the command line takes at most this long, unless it waits for something.
const VERB_MOST: Duration = Duration::from_secs(60);

/// What a test's cluster looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub nodes: u32,
    pub disk_mib: u64,
    pub segment_mib: u64,
    /// One node more, without disks.
    pub witness: bool,
    /// Nodes are in them in turn.
    pub zones: &'static [&'static str],
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 3, disk_mib: 512, segment_mib: 32, witness: false, zones: &[] }
    }
}

pub struct Cluster {
    pub local: LocalCluster,
    pub dir: PathBuf,
    _ports: Slot,
}

impl Cluster {
    #[track_caller]
    pub fn start() -> Self {
        Self::of(Shape::default())
    }

    #[track_caller]
    pub fn of(shape: Shape) -> Self {
        let mut cluster = Self::laid_out(shape);
        cluster.start_all();
        cluster
    }

    /// Its files lie there; nothing runs yet.
    #[track_caller]
    pub fn laid_out(shape: Shape) -> Self {
        let ports = Slot::take();
        let dir = temp_dir("cluster");
        let plan = Plan {
            nodes: shape.nodes,
            disks: 1,
            disk_bytes: shape.disk_mib << 20,
            witness: shape.witness,
            port_offset: ports.offset,
            segment_bytes: shape.segment_mib << 20,
            io: std::env::var("GABION_TESTS_IO").unwrap_or_else(|_| "auto".to_owned()),
            zones: shape.zones.iter().map(|zone| (*zone).to_owned()).collect(),
        };
        let local = LocalCluster::lay_out(&dir, &plan, program()).unwrap_or_else(|e| panic!("{e}"));
        Self { local, dir, _ports: ports }
    }

    #[track_caller]
    pub fn start_all(&mut self) {
        self.local.make_disks(|_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        self.local.start_all().unwrap_or_else(|e| panic!("{e}"));
        let ids = self.local.ids();
        self.local.wait_ready(&ids).unwrap_or_else(|e| panic!("{e}"));
    }

    /// From the test's own thread only: a node goes when the thread that started it goes.
    #[track_caller]
    pub fn start_node(&mut self, node: u32) {
        self.local.start(node).unwrap_or_else(|e| panic!("{e}"));
        self.local.wait_ready(&[node]).unwrap_or_else(|e| panic!("{e}"));
    }

    #[track_caller]
    pub fn kill(&mut self, node: u32) {
        self.signal(node, Signal::KILL);
    }

    #[track_caller]
    pub fn signal(&mut self, node: u32, signal: Signal) {
        self.local.signal(node, signal).unwrap_or_else(|e| panic!("{e}"));
    }

    /// All at the same moment.
    #[track_caller]
    pub fn kill_all(&mut self) {
        self.local.kill_all().unwrap_or_else(|e| panic!("{e}"));
    }

    /// The command line, as a user types it.
    pub fn gabion(&self, arguments: &[&str]) -> Ran {
        self.gabion_within(arguments, VERB_MOST)
    }

    pub fn gabion_within(&self, arguments: &[&str], most: Duration) -> Ran {
        run(&mut self.command(arguments), most)
    }

    /// The same, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(["--cluster", &self.local.api_addresses().join(",")]).args(arguments);
        command
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.gabion(&[&["--json"], arguments].concat()).json()
    }

    #[track_caller]
    pub fn create(&self, name: &str, mib: u64) {
        let size = format!("{mib}MiB");
        self.gabion(&["volume", "create", name, "--size", &size]).ok();
    }

    #[track_caller]
    pub fn show(&self, name: &str) -> Value {
        self.json(&["volume", "show", name])
    }

    /// The node that owns it, if one does.
    #[track_caller]
    pub fn owner(&self, name: &str) -> Option<u32> {
        id(&self.show(name)["owner"]["node"])
    }

    /// The nodes with a copy in sync of any of its segments.
    #[track_caller]
    pub fn holders(&self, name: &str) -> Vec<u32> {
        let shown = self.show(name);
        let segments = shown["segments"].as_array().expect("a list");
        let replicas = segments.iter().flat_map(|s| s["in_sync"].as_array().expect("a list"));
        let mut nodes: Vec<u32> = replicas.filter_map(|replica| id(&replica["node"])).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    #[track_caller]
    pub fn wait_healthy(&self, name: &str) {
        let verb = ["volume", "wait", name, "--healthy", "--timeout", "120s"];
        self.gabion_within(&verb, Duration::from_secs(150)).ok();
    }

    /// Until the map knows that the node's copies are gone, or it is healthy without them.
    #[track_caller]
    pub fn wait_removed(&self, name: &str, node: u32) {
        wait("the dead copies leave", Duration::from_secs(30), || {
            !self.holders(name).contains(&node)
        });
    }

    #[track_caller]
    pub fn set(&self, setting: &str, value: &str) {
        self.gabion(&["settings", "set", setting, value]).ok();
    }

    pub fn tcp(&self, node: u32, volume: &str) -> String {
        let entry = self.local.dir.entry(node).expect("a node of this cluster");
        format!("nbd://{}/{volume}", entry.nbd)
    }

    pub fn unix(&self, node: u32, volume: &str) -> String {
        let entry = self.local.dir.entry(node).expect("a node of this cluster");
        format!("nbd+unix:///{volume}?socket={}", entry.nbd_unix.display())
    }

    pub fn client(&self, node: u32, volume: &str) -> Result<NbdClient, NbdError> {
        NbdClient::connect(&self.local.nbd_tcp(node), volume, Patience::default())
    }

    /// A guest that never gives up, over all nodes, beginning with `first`.
    pub fn writer_plan(&self, volume: &str, mib: u64, first: u32) -> WriterPlan {
        let mut nodes = self.local.ids();
        let at = nodes.iter().position(|node| *node == first);
        nodes.rotate_left(at.expect("a node of this cluster"));
        let addresses: Vec<Address> =
            nodes.into_iter().map(|node| self.local.nbd_tcp(node)).collect();
        WriterPlan {
            addresses,
            export: volume.to_owned(),
            first_block: 0,
            blocks: mib << 8,
            depth: 16,
            seed: 7,
            reads_percent: 25,
            fill_first: true,
            pace: Duration::ZERO,
            patience: Patience::default(),
        }
    }

    pub fn log(&self, node: u32) -> String {
        process::log_tail(&self.local.dir.log(node), usize::MAX)
    }

    pub fn log_of_all(&self) -> String {
        self.local.dir.file.nodes.iter().map(|node| self.log(node.id)).collect()
    }

    /// Units: bytes that the process of a node holds in memory now, and held at most.
    pub fn memory_bytes(&self, node: u32) -> (u64, u64) {
        let pid = self.local.pid(node).expect("it runs").as_raw_pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or_default() << 10
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.local.ids() {
                let tail = process::log_tail(&self.local.dir.log(node), 30);
                eprintln!("---- the log of node {node} ends:\n{tail}");
            }
        }
        // What cannot be killed is told by the next test that meets it.
        drop(self.local.kill_all());
        let keep = std::thread::panicking() && std::env::var_os("GABION_TESTS_KEEP").is_some();
        if !keep {
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// An id as JSON has it: digits in a string.
pub fn id(value: &Value) -> Option<u32> {
    value.as_str()?.parse().ok()
}

/// Looks again and again; fails the test when it never is so.
#[track_caller]
pub fn wait(what: &str, most: Duration, is_so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    assert!(process::wait_for(most, is_so), "after {most:?} still not: {what}");
    started.elapsed()
}

/// A new directory of its own, also where several processes have the same number (in namespaces).
pub fn temp_dir(what: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-test-{what}-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        match std::fs::create_dir(&dir) {
            Ok(()) => return dir,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
    }
}

/// The binary under test: `$GABION_BIN`, as `tests/run` sets it, else it is built now.
pub fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::var_os("GABION_BIN").map_or_else(build, PathBuf::from)).clone()
}

fn build() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("tests/harness lies in the root");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "-p", "gabion"])
        .current_dir(root)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "gabion does not build");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("release/gabion")
}
