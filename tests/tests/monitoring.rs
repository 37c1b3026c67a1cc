//! What monitoring is told: each metric is documented, and each alert is raised by the thing that it is there for,
//! in a real Prometheus.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::command::Started;
use gabion_tests::faulty::FaultyDisk;
use gabion_tests::fixture::{temp_dir, wait};
use gabion_tests::{Cluster, Shape, http, needs, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// The node whose disk can be made slow.
const FAULTY: u32 = 2;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn told(cluster: &Cluster, node: u32) -> String {
    http::get(&cluster.local.dir.entry(node).unwrap().http, "/metrics")
}

#[test]
fn each_metric_is_documented_and_no_other() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    cluster.gabion(&["volume", "scrub", "vm1", "--deep", "--wait"]).ok();
    let text = told(&cluster, cluster.owner("vm1").unwrap());
    let typed = |line: &'_ str| {
        let mut words = line.strip_prefix("# TYPE ")?.split(' ').map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    let told: BTreeSet<(String, String)> = text.lines().filter_map(typed).collect();
    let docs = fs::read_to_string(docs().join("metrics.md")).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `gabion_")?.split('|').map(str::trim);
        let name = format!("gabion_{}", cells.next()?.trim_end_matches('`'));
        Some((name, cells.next()?.to_owned()))
    };
    let documented: BTreeSet<(String, String)> = docs.lines().filter_map(row).collect();
    assert_eq!(told, documented);
}

/// The rules as they are, but that nothing has to last; and three seconds are a month.
fn rules() -> String {
    let rules = fs::read_to_string(docs().join("prometheus/alerts.yml")).unwrap();
    let month = "30 * 24 * 3600";
    assert!(rules.contains(month));
    let lines = rules.lines().filter(|line| !line.trim().starts_with("for: "));
    lines.map(|line| format!("{}\n", line.replace(month, "3"))).collect()
}

/// What the dashboard asks, with all volumes chosen.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(docs().join("prometheus/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().replace("$volume", ".*")).collect()
}

struct Prometheus {
    address: String,
    _server: Started,
    dir: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Prometheus {
    fn of(cluster: &Cluster) -> Self {
        let dir = temp_dir("prometheus");
        fs::write(dir.join("alerts.yml"), rules()).unwrap();
        let entry = |id| format!("'{}'", cluster.local.dir.entry(id).unwrap().http);
        let targets: Vec<String> = cluster.local.ids().into_iter().map(entry).collect();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms }}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{ job_name: gabion, static_configs: [{{ targets: [{}] }}] }}]\n",
            targets.join(", ")
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        run(
            Command::new("promtool").args(["check", "config"]).arg(dir.join("prometheus.yml")),
            MOST,
        )
        .ok();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut server = Command::new("prometheus");
        server.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        server.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        server.arg(format!("--web.listen-address={free}"));
        let mut server = Started::start(&mut server);
        wait("Prometheus is ready", MOST, || {
            assert!(server.running(), "{}", server.complained());
            std::net::TcpStream::connect(free).is_ok()
                && http::ask(&free.to_string(), "GET", "/-/ready", &[], "").0 == 200
        });
        Self { address: free.to_string(), _server: server, dir }
    }

    fn ask(&self, path: &str) -> Value {
        let answer: Value = serde_json::from_str(&http::get(&self.address, path)).unwrap();
        answer["data"].clone()
    }

    /// How many series answer a query.
    fn series(&self, query: &str) -> usize {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let found = self.ask(&format!("/api/v1/query?query={escaped}"));
        found["result"].as_array().unwrap().len()
    }

    fn firing(&self) -> BTreeSet<String> {
        let alerts = self.ask("/api/v1/alerts")["alerts"].as_array().unwrap().clone();
        let firing = alerts.into_iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// Until they are all raised; those are counted.
    #[track_caller]
    fn wait_for(&self, seen: &mut BTreeSet<String>, names: &[&str]) {
        wait(&format!("{names:?}"), MOST, || {
            let firing = self.firing();
            names.iter().all(|name| firing.contains(*name))
        });
        seen.extend(names.iter().map(|name| (*name).to_owned()));
    }

    fn scrapes(&self) -> usize {
        let up = self.ask("/api/v1/query?query=count_over_time(up%5B1h%5D)");
        let counts = up["result"].as_array().unwrap().iter();
        let count = |it: &Value| it["value"][1].as_str().unwrap().parse::<usize>().unwrap();
        counts.map(count).min().unwrap_or(0)
    }

    /// Until all nodes were scraped that often more.
    fn wait_scrapes(&self, more: usize) {
        let before = self.scrapes();
        wait("it is scraped", MOST, || self.scrapes() >= before + more);
    }
}

/// The only copy of a block of volume `one` rots.
fn rot(cluster: &Cluster) {
    let found = cluster.json(&["volume", "locate", "one", "0"]);
    let copy = &found["copies"][0];
    let disk = fs::File::options().write(true).open(copy["path"].as_str().unwrap()).unwrap();
    disk.write_all_at(&[7; 512], copy["byte_offset"].as_u64().unwrap()).unwrap();
}

/// As much as there is room for.
fn fill_disks(cluster: &Cluster) {
    cluster.gabion(&["volume", "create", "big", "--size", "120MiB", "--rf", "3"]).ok();
    let mut guest = cluster.client(1, "big").unwrap();
    let data: Vec<u8> = (0..MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let full = (0..120).find(|mib| guest.write(mib * MIB, &data).is_err());
    assert!(full.is_some_and(|mib| mib > 50), "{full:?}");
}

#[test]
fn each_alert_is_raised_by_what_it_is_there_for() {
    if !needs(&["prometheus", "promtool", "nbdfuse", "umount"]) {
        return;
    }
    let shape = Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() };
    let mut cluster = Cluster::of(shape);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let disk = FaultyDisk::take(&cluster.local.dir.node_file(FAULTY).unwrap().disks[0].path);
    cluster.local.start_all().unwrap();
    cluster.local.wait_ready(&[1, 2, 3]).unwrap();
    cluster.gabion(&["volume", "create", "vm1", "--size", "8MiB", "--rf", "3"]).ok();
    cluster.gabion(&["volume", "create", "one", "--size", "4MiB", "--rf", "1"]).ok();
    let mut guest = cluster.client(1, "vm1").unwrap();
    let mut single = cluster.client(1, "one").unwrap();
    for block in 0..8 {
        guest.write(block * BLOCK, &[1; 4096]).unwrap();
        single.write(block * BLOCK, &[1; 4096]).unwrap();
    }
    let prometheus = Prometheus::of(&cluster);
    prometheus.wait_scrapes(4);
    // A volume with one copy survives nothing, and that is told; of the rest nothing is wrong.
    let at_rest = ["GabionAtRisk", "GabionNotSurvivable"].map(str::to_owned);
    assert_eq!(prometheus.firing(), BTreeSet::from(at_rest));
    for query in dashboard() {
        assert!(prometheus.series(&query) > 0, "the dashboard shows nothing of {query}");
    }
    let mut seen = BTreeSet::new();
    prometheus.wait_for(&mut seen, &["GabionAtRisk", "GabionNotSurvivable"]);

    disk.slow_down(Duration::from_millis(400));
    (0..4).for_each(|block| guest.write(block * BLOCK, &[2; 4096]).unwrap());
    disk.slow_down(Duration::ZERO);
    prometheus.wait_for(&mut seen, &["GabionSlow"]);
    cluster.gabion(&["volume", "scrub", "vm1", "--deep", "--wait"]).ok();
    prometheus.wait_for(&mut seen, &["GabionScrubLate"]);

    rot(&cluster);
    assert!(single.read(0, 4096).is_err(), "its only copy is bad");
    prometheus.wait_for(&mut seen, &["GabionCorruption", "GabionBlocksLost", "GabionGuestErrors"]);
    fill_disks(&cluster);
    prometheus.wait_for(&mut seen, &["GabionDiskNearFull"]);

    // The node whose disk the only copy is on; of the others one is to own it, and one loses its disk.
    let holder = cluster.holders("one")[0];
    let others = || cluster.local.ids().into_iter().filter(|id| *id != holder);
    let third = others().find(|id| *id != FAULTY).unwrap();
    let owner = others().find(|id| *id != third).unwrap();
    cluster.gabion(&["volume", "move", "one", "--to", &owner.to_string()]).ok();
    drop((guest, single));
    let path = cluster.local.dir.node_file(third).unwrap().disks[0].path.clone();
    let away = path.with_extension("away");
    cluster.kill(third);
    fs::rename(&path, &away).unwrap();
    cluster.local.start(third).unwrap();
    prometheus.wait_for(&mut seen, &["GabionDiskOut"]);
    cluster.kill(third);
    fs::rename(&away, &path).unwrap();
    cluster.start_node(third);
    cluster.kill(holder);
    let address = cluster.local.nbd_tcp(owner);
    std::thread::spawn(move || {
        let patience = gabion::nbd_client::Patience::default();
        let guest = gabion::nbd_client::NbdClient::connect(&address, "one", patience);
        drop(guest.map(|mut guest| guest.read(0, 4096)));
    });
    prometheus.wait_for(&mut seen, &["GabionIoHeld", "GabionNodeDown"]);
    cluster.kill(third);
    prometheus.wait_for(&mut seen, &["GabionNotReady"]);

    let rules = rules();
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(seen, names.map(str::to_owned).collect::<BTreeSet<_>>());
    drop(cluster.local.kill_all());
    drop(disk);
}
