//! fio as the client of everything that is measured.

use crate::cpu::{self, Used};
use gabion_harness::command::Started;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const RAMP_SECONDS: u32 = 3;
const MORE_MOST: Duration = Duration::from_secs(120);

/// What is done, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub rw: &'static str,
    pub block: &'static str,
    pub depth: u32,
    /// Connections, each with `depth` requests in flight.
    pub connections: u32,
}

/// Of one run. Latencies from submission to completion.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub iops: f64,
    pub mib_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of servers and client together. Units: microseconds for each request.
    pub cpu_us: f64,
}

/// Writes all of it once, in large requests.
pub fn fill(target: &str, mib: u64) {
    let size = format!("--size={mib}M");
    let mut command = Command::new("fio");
    command.args(["--name=fill", "--rw=write", "--bs=1M", "--iodepth=4", "--ioengine=nbd"]);
    gabion_harness::run(command.args(["--uri", target, &size]), MORE_MOST).ok();
}

/// Measures; `servers` are the processes whose processor time counts with the client's.
pub fn measure(job: Job, targets: &[String], mib: u64, seconds: u32, servers: &[u32]) -> Figures {
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--group_reporting", "--percentile_list=50:99"]);
    for target in targets {
        command.args(["--name=bench", "--ioengine=nbd", "--time_based", "--randrepeat=0"]);
        command.args([format!("--uri={target}"), format!("--size={mib}M")]);
        command.args([format!("--rw={}", job.rw), format!("--bs={}", job.block)]);
        command
            .args([format!("--iodepth={}", job.depth), format!("--numjobs={}", job.connections)]);
        command.args([format!("--runtime={seconds}"), format!("--ramp_time={RAMP_SECONDS}")]);
        if job.rw == "randrw" {
            command.arg("--rwmixread=70");
        }
    }
    let client = Started::start(&mut command);
    // The window lies within what is measured, whatever the start took.
    std::thread::sleep(Duration::from_millis(u64::from(RAMP_SECONDS) * 1000 + 700));
    let pids: Vec<u32> = servers.iter().copied().chain(cpu::family(client.id())).collect();
    let then = Used::now(&pids);
    std::thread::sleep(Duration::from_millis(u64::from(seconds) * 1000 - 1200));
    let share = Used::now(&pids).share_since(&then);
    let figures = read(&client.finish(MORE_MOST).ok());
    Figures { cpu_us: share * 1e6 / figures.iops, ..figures }
}

/// Both directions together; of latencies the worse one.
fn read(said: &str) -> Figures {
    let at = said.find('{').expect("fio says JSON");
    let json: Value = serde_json::from_str(&said[at..]).expect("fio says JSON");
    let mut all = Figures::default();
    for group in json["jobs"].as_array().expect("jobs") {
        for side in [&group["read"], &group["write"]] {
            let number = |value: &Value| value.as_f64().unwrap_or_default();
            let percentile = |name: &str| number(&side["clat_ns"]["percentile"][name]) / 1000.0;
            all.iops += number(&side["iops"]);
            all.mib_per_s += number(&side["bw_bytes"]) / f64::from(1 << 20);
            all.p50_us = all.p50_us.max(percentile("50.000000"));
            all.p99_us = all.p99_us.max(percentile("99.000000"));
        }
        assert_eq!(group["error"], 0, "{group}");
    }
    all
}
