//! How fast a lost copy is made again, and what guests feel of it.

use crate::peers;
use gabion_harness::command::Started;
use gabion_harness::fixture::{self, temp_dir};
use gabion_harness::{Cluster, Shape, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(300);
const SEGMENT_MIB: u64 = 256;
const GUESTS_DEPTH: u32 = 4;
const QUIET_UNTIL: Duration = Duration::from_secs(10);
/// Of which the rebuild takes the larger part.
const FELT_SECONDS: u32 = 60;

/// Every second block of a volume, or all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    Sequential,
    Holes,
}

impl Pattern {
    fn fill(self, target: &str, mib: u64) {
        if self == Self::Sequential {
            return crate::fio::fill(target, mib);
        }
        let mut command = Command::new("fio");
        command.args(["--name=fill", "--rw=write:4k", "--bs=4k", "--iodepth=32", "--ioengine=nbd"]);
        command.args([&format!("--uri={target}"), &format!("--size={mib}M")]);
        // fio counts what it wrote: half of the volume.
        run(command.arg(format!("--io_size={}M", mib / 2)), MOST).ok();
    }

    fn data_mib(self, mib: u64) -> u64 {
        if self == Self::Sequential { mib } else { mib / 2 }
    }
}

/// Units: MiB of data a second, of the copy and of `dd` that copies as much in the same run.
pub struct Speed {
    pub rebuild: f64,
    pub dd: f64,
}

/// A node that holds copies dies, nobody else does anything.
pub fn speed(pattern: Pattern, mib: u64) -> Speed {
    let mut cluster = cluster(mib);
    pattern.fill(&cluster.unix(1, "bench"), mib);
    let (lost, segments) = lose_a_node(&mut cluster);
    let began = Instant::now();
    wait_for_all_copies(&cluster, lost);
    let took = began.elapsed();
    drop(cluster);
    let copied = pattern.data_mib(segments * SEGMENT_MIB);
    Speed { rebuild: copied as f64 / took.as_secs_f64(), dd: peers::copy_speed(copied) }
}

/// Latencies of guests' random writes. Units: microseconds, 99 of 100 are below.
pub struct Felt {
    pub quiet_us: f64,
    pub rebuilding_us: f64,
}

/// In one run of fio: before the node dies, and while its copies are made again.
pub fn felt(mib: u64) -> Felt {
    let mut cluster = cluster(mib);
    let target = cluster.unix(1, "bench");
    crate::fio::fill(&target, mib);
    let dir = temp_dir("felt");
    let log = dir.join("log");
    let mut command = Command::new("fio");
    command.args(["--name=felt", "--rw=randwrite", "--bs=4k", "--ioengine=nbd", "--time_based"]);
    command.args([format!("--uri={target}"), format!("--size={mib}M")]);
    command.args([format!("--iodepth={GUESTS_DEPTH}"), format!("--runtime={FELT_SECONDS}")]);
    let guest = Started::start(command.arg(format!("--write_lat_log={}", log.display())));
    let began = Instant::now();
    std::thread::sleep(QUIET_UNTIL);
    let (lost, _) = lose_a_node(&mut cluster);
    // The stall of the death itself is told elsewhere.
    let from = began.elapsed() + Duration::from_millis(500);
    wait_for_all_copies(&cluster, lost);
    let until = began.elapsed();
    guest.finish(MOST).ok();
    let answers = read_log(&dir.join("log_clat.1.log"));
    drop(std::fs::remove_dir_all(dir));
    let quiet_us = p99_us(&answers, Duration::from_secs(2), QUIET_UNTIL);
    Felt { quiet_us, rebuilding_us: p99_us(&answers, from, until) }
}

fn cluster(mib: u64) -> Cluster {
    let shape = Shape { disk_mib: mib + mib / 4, segment_mib: SEGMENT_MIB, ..Shape::default() };
    let cluster = Cluster::of(shape);
    // At once, and not only after the node was given time to come back.
    cluster.set("rebuild.wait", "0s");
    cluster.create("bench", mib);
    cluster
}

/// One that holds copies and is not the owner dies; its number, and of how many segments it held a copy.
fn lose_a_node(cluster: &mut Cluster) -> (u32, u64) {
    let owner = cluster.owner("bench").expect("an owner");
    let lost = cluster.holders("bench").into_iter().find(|node| *node != owner);
    let lost = lost.expect("two copies are on two nodes");
    let segments = copies_on(cluster, lost);
    cluster.kill(lost);
    (lost, segments)
}

/// In-sync copies of the volume that are on that node.
fn copies_on(cluster: &Cluster, node: u32) -> u64 {
    let volume = cluster.show("bench");
    let segments = volume["segments"].as_array().expect("segments").iter();
    let here = |replica: &Value| fixture::id(&replica["node"]) == Some(node);
    let on = |segment: &&Value| segment["in_sync"].as_array().expect("a list").iter().any(here);
    segments.filter(on).count() as u64
}

fn wait_for_all_copies(cluster: &Cluster, lost: u32) {
    cluster.wait_removed("bench", lost);
    cluster
        .gabion_within(&["volume", "wait", "bench", "--healthy", "--timeout", "300s"], MOST)
        .ok();
}

/// When each answer came, and how long it took. Source: fio(1), log file formats: ms, ns, ….
fn read_log(file: &Path) -> Vec<(Duration, f64)> {
    let text = std::fs::read_to_string(file).expect("fio writes its log");
    let line = |line: &str| {
        let mut fields = line.split(", ");
        let at = Duration::from_millis(fields.next()?.parse().ok()?);
        Some((at, fields.next()?.parse::<f64>().ok()? / 1000.0))
    };
    text.lines().filter_map(line).collect()
}

fn p99_us(answers: &[(Duration, f64)], from: Duration, until: Duration) -> f64 {
    let within = answers.iter().filter(|(at, _)| (from..until).contains(at));
    let mut took: Vec<f64> = within.map(|(_, took)| *took).collect();
    took.sort_by(f64::total_cmp);
    let rank = took.len() * 99 / 100;
    *took.get(rank).expect("guests were answered meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_in_a_hundred_of_a_window() {
        let answer = |ms, us| (Duration::from_millis(ms), us);
        let answers: Vec<_> = (0..200).map(|ms| answer(ms, ms as f64)).collect();
        let (from, until) = (Duration::from_millis(100), Duration::from_millis(200));
        assert!((p99_us(&answers, from, until) - 199.0).abs() < 0.1);
    }
}
