//! A cluster on this machine measured with fio, beside the machine's own file system in the same run.
//!
//! `cargo run --release -p gabion-benches [RUNS]`

use gabion_tests::fixture::temp_dir;
use gabion_tests::{Cluster, Shape, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const VOLUME_MIB: u64 = 1024;
const FIO_MOST: Duration = Duration::from_secs(300);

/// One line of the table.
struct Case {
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    seconds: u32,
}

const CASES: [Case; 4] = [
    Case { name: "random write", rw: "randwrite", block: "4k", depth: 16, seconds: 10 },
    Case { name: "random read", rw: "randread", block: "4k", depth: 16, seconds: 10 },
    Case { name: "sequential write", rw: "write", block: "1M", depth: 16, seconds: 10 },
    Case { name: "sequential read", rw: "read", block: "1M", depth: 16, seconds: 10 },
];

/// Of one run of fio. Latencies in microseconds.
struct Figures {
    iops: f64,
    mib_per_s: f64,
    p50: f64,
    p99: f64,
    p999: f64,
}

fn main() {
    let runs: u32 = std::env::args().nth(1).map_or(3, |typed| typed.parse().expect("RUNS"));
    println!("{}", machine());
    let shape = Shape { disk_mib: 2048, segment_mib: 256, ..Shape::default() };
    let cluster = Cluster::of(shape);
    cluster.create("bench", VOLUME_MIB);
    let uri = cluster.unix(1, "bench");
    let dir = temp_dir("bench");
    let reference = dir.join("reference");
    fill(&reference, &uri);
    println!("| case | run | IOPS | MiB/s | p50 us | p99 us | p99.9 us | of the file system |");
    println!("|---|---|---|---|---|---|---|---|");
    for case in &CASES {
        for number in 1..=runs {
            let of_file = fio(case, &file_target(&reference));
            let of_volume = fio(case, &["--ioengine=nbd".to_owned(), format!("--uri={uri}")]);
            println!(
                "| {} {}, depth {} | {number} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} |",
                case.name,
                case.block,
                case.depth,
                of_volume.iops,
                of_volume.mib_per_s,
                of_volume.p50,
                of_volume.p99,
                of_volume.p999,
                of_volume.iops / of_file.iops
            );
        }
    }
    for node in cluster.local.ids() {
        let (now, most) = cluster.memory_bytes(node);
        println!("node {node}: {} MiB in memory, {} MiB at most", now >> 20, most >> 20);
    }
    drop(std::fs::remove_dir_all(dir));
}

/// Every write is synced: one copy, where the volume has two.
fn file_target(file: &Path) -> Vec<String> {
    ["--ioengine=libaio", "--direct=1", "--sync=dsync"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("--filename={}", file.display())])
        .collect()
}

/// Both are written full before anything is measured.
fn fill(reference: &Path, uri: &str) {
    let file = format!("--filename={}", reference.display());
    for target in [vec![file], vec!["--ioengine=nbd".to_owned(), format!("--uri={uri}")]] {
        let mut command = Command::new("fio");
        command.args(["--name=fill", "--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"]);
        command.arg(format!("--size={VOLUME_MIB}M")).args(target);
        run(&mut command, FIO_MOST).ok();
    }
}

fn fio(case: &Case, target: &[String]) -> Figures {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--output-format=json", "--time_based"]);
    command.args(["--percentile_list=50:99:99.9", &format!("--size={VOLUME_MIB}M")]);
    command.args([&format!("--rw={}", case.rw), &format!("--bs={}", case.block)]);
    command.args([&format!("--iodepth={}", case.depth), &format!("--runtime={}", case.seconds)]);
    let said = run(command.args(target), FIO_MOST).ok();
    let json: Value = serde_json::from_str(&said[said.find('{').expect("JSON")..]).expect("JSON");
    let side = &json["jobs"][0][if case.rw.contains("read") { "read" } else { "write" }];
    let number = |value: &Value| value.as_f64().expect("a number");
    let percentile = |name: &str| number(&side["clat_ns"]["percentile"][name]) / 1000.0;
    Figures {
        iops: number(&side["iops"]),
        mib_per_s: number(&side["bw_bytes"]) / f64::from(1 << 20),
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        p999: percentile("99.900000"),
    }
}

fn machine() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let ran = run(Command::new(program).args(arguments), FIO_MOST);
        ran.out.trim().to_owned()
    };
    let dir = std::env::temp_dir();
    format!(
        "commit {}, {} cores, Linux {}, files on {}",
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("nproc", &[]),
        said("uname", &["-r"]),
        said("findmnt", &["-no", "FSTYPE,SOURCE", "-T", &dir.display().to_string()])
    )
}
