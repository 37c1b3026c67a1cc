//! Not a toy in speed: floors that a change must not fall through. Figures stand in `benches/README.md`.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::{Cluster, Shape, needs, run};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const RANDOM_WRITE_IOPS_LEAST: u64 = 10_000;
const SEQUENTIAL_BYTES_LEAST: u64 = 400 << 20;
const MEMORY_MOST: u64 = 300 << 20;

fn fio(uri: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new("fio");
    command.args(["--name=speed", "--ioengine=nbd", "--output-format=json", "--time_based"]);
    command.arg(format!("--uri={uri}")).args(arguments);
    let said = run(&mut command, Duration::from_secs(120)).ok();
    serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap()
}

#[test]
fn two_synced_copies_are_not_slow() {
    if !needs(&["fio"]) {
        return;
    }
    if cfg!(debug_assertions) && std::env::var_os("GABION_BIN").is_none() {
        eprintln!("measured with the release binary that tests/run builds, or one made now");
    }
    let cluster = Cluster::of(Shape { disk_mib: 2048, segment_mib: 256, ..Shape::default() });
    cluster.create("vm1", 1024);
    let uri = cluster.unix(1, "vm1");
    let sequential =
        fio(&uri, &["--rw=write", "--bs=1M", "--iodepth=16", "--size=1024M", "--runtime=8"]);
    let random =
        fio(&uri, &["--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=1024M", "--runtime=10"]);
    let write = |run: &Value, field: &str| run["jobs"][0]["write"][field].as_f64().unwrap();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (iops, rate) = (write(&random, "iops") as u64, write(&sequential, "bw_bytes") as u64);
    println!("4k random write {iops} IOPS; 1M sequential write {} MiB/s", rate >> 20);
    for node in cluster.local.ids() {
        let (now, most) = cluster.memory_bytes(node);
        println!("node {node}: {} MiB in memory, {} MiB at most", now >> 20, most >> 20);
        assert!(most < MEMORY_MOST, "node {node} held {} MiB", most >> 20);
    }
    assert!(iops >= RANDOM_WRITE_IOPS_LEAST, "{iops} IOPS");
    assert!(rate >= SEQUENTIAL_BYTES_LEAST, "{} MiB/s", rate >> 20);
}
