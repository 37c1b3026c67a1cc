//! What is measured, against what, and what is wanted of it.

use crate::cpu::Used;
use crate::fio::{self, Figures, Job};
use crate::grpc;
use crate::peers::Peer;
use crate::rebuild::{self, Pattern};
use crate::report::{Row, Target, median, number};
use gabion_harness::{Cluster, Shape};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

const VOLUME_MIB: u64 = 1024;
/// Volumes at once, each a part of the large one.
const VOLUMES: u32 = 4;
const IDLE: Duration = Duration::from_secs(20);
const OVERWRITE_MOST: Duration = Duration::from_secs(300);

const QUORUM: &str = "QEMU quorum, both copies synced";
const SINGLE: &str = "one qemu-nbd, one copy, nothing synced";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Against {
    Quorum,
    Single,
}

/// A job that both sides do.
struct Pair {
    what: &'static str,
    job: Job,
    against: Against,
    least: f64,
    /// By MiB a second.
    by_bytes: bool,
}

const fn job(rw: &'static str, block: &'static str, depth: u32) -> Job {
    Job { rw, block, depth, connections: 1 }
}

const RANDOM_WRITE: &str = "4k random write, depth 16";
const RANDOM_READ: &str = "4k random read, depth 16";
const OVERWRITTEN: &str = "1M sequential read, depth 4, after random overwrites";

/// In this order: the first one reads what was written in one go.
const PAIRS: [Pair; 7] = [
    Pair {
        what: "1M sequential read, depth 4",
        job: job("read", "1M", 4),
        against: Against::Single,
        least: 0.8,
        by_bytes: true,
    },
    Pair {
        what: RANDOM_WRITE,
        job: job("randwrite", "4k", 16),
        against: Against::Quorum,
        least: 2.3,
        by_bytes: false,
    },
    Pair {
        what: "4k random write, depth 1",
        job: job("randwrite", "4k", 1),
        against: Against::Quorum,
        least: 1.4,
        by_bytes: false,
    },
    Pair {
        what: RANDOM_READ,
        job: job("randread", "4k", 16),
        against: Against::Single,
        least: 0.9,
        by_bytes: false,
    },
    Pair {
        what: "64k random write, depth 8",
        job: job("randwrite", "64k", 8),
        against: Against::Quorum,
        least: 2.0,
        by_bytes: true,
    },
    Pair {
        what: OVERWRITTEN,
        job: job("read", "1M", 4),
        against: Against::Single,
        least: 0.4,
        by_bytes: true,
    },
    Pair {
        what: "1M sequential write, depth 4",
        job: job("write", "1M", 4),
        against: Against::Quorum,
        least: 1.5,
        by_bytes: true,
    },
];

struct Bench {
    cluster: Cluster,
    seconds: u32,
}

/// All but rebuilds. `wanted`: whether a row of that name is.
pub fn measure(runs: u32, seconds: u32, wanted: &dyn Fn(&str) -> bool) -> Vec<Row> {
    let shape = Shape { disk_mib: 3072, segment_mib: 256, ..Shape::default() };
    let bench = Bench { cluster: Cluster::of(shape), seconds };
    let mut found = BTreeMap::new();
    let mut rows = bench.idle(wanted);
    bench.make_volumes();
    for number in 1..=runs {
        eprintln!("run {number} of {runs}");
        bench.pairs(wanted, &mut found);
        bench.alone(wanted, &mut found);
    }
    rows.extend(found.into_values().map(Entry::into_row));
    rows.sort_by_key(|row: &Row| row.what.clone());
    rows
}

/// A row in the making.
struct Entry {
    row: Row,
    ours: Vec<Figures>,
    theirs: Vec<Figures>,
}

impl Entry {
    fn new(what: &str, unit: &'static str, reference: &str, least: f64) -> Self {
        let (what, reference) = (what.to_owned(), reference.to_owned());
        let target = Target::AtLeast(least);
        let row = Row { what, unit, reference, target, runs: Vec::new(), more: String::new() };
        Self { row, ours: Vec::new(), theirs: Vec::new() }
    }

    fn into_row(mut self) -> Row {
        let of =
            |all: &[Figures], field: fn(&Figures) -> f64| number(median(all.iter().map(field)));
        if !self.theirs.is_empty() {
            self.row.more = format!(
                "CPU {} / {} µs each; p50 {} / {} µs, p99 {} / {} µs",
                of(&self.ours, |it| it.cpu_us),
                of(&self.theirs, |it| it.cpu_us),
                of(&self.ours, |it| it.p50_us),
                of(&self.theirs, |it| it.p50_us),
                of(&self.ours, |it| it.p99_us),
                of(&self.theirs, |it| it.p99_us)
            );
        }
        self.row
    }
}

type Found = BTreeMap<String, Entry>;

impl Bench {
    fn make_volumes(&self) {
        self.cluster.create("bench", VOLUME_MIB);
        fio::fill(&self.uri("bench"), VOLUME_MIB);
        let part = VOLUME_MIB / u64::from(VOLUMES);
        for name in Self::parts() {
            self.cluster.create(&name, part);
            fio::fill(&self.uri(&name), part);
        }
    }

    fn parts() -> impl Iterator<Item = String> {
        (1..=VOLUMES).map(|number| format!("part{number}"))
    }

    /// At the node where its volumes were made, which owns them.
    fn uri(&self, volume: &str) -> String {
        self.cluster.unix(1, volume)
    }

    fn pids(&self) -> Vec<u32> {
        let pids = self.cluster.local.ids().into_iter().filter_map(|id| self.cluster.local.pid(id));
        pids.filter_map(|pid| u32::try_from(pid.as_raw_pid()).ok()).collect()
    }

    fn ours(&self, job: Job, volumes: &[String], mib: u64) -> Figures {
        let targets: Vec<String> = volumes.iter().map(|volume| self.uri(volume)).collect();
        fio::measure(job, &targets, mib, self.seconds, &self.pids())
    }

    fn one(&self, job: Job) -> Figures {
        self.ours(job, &["bench".to_owned()], VOLUME_MIB)
    }

    /// Theirs and ours one after the other.
    fn pairs(&self, wanted: &dyn Fn(&str) -> bool, found: &mut Found) {
        let processor = format!("{RANDOM_WRITE}, CPU");
        for pair in PAIRS.iter().filter(|pair| wanted(pair.what)) {
            let peer = match pair.against {
                Against::Quorum => Peer::quorum(VOLUME_MIB),
                Against::Single => Peer::single(VOLUME_MIB),
            };
            let target = [peer.uri.clone()];
            let theirs = fio::measure(pair.job, &target, VOLUME_MIB, self.seconds, &peer.pids());
            drop(peer);
            if pair.what == OVERWRITTEN {
                overwrite(&self.uri("bench"));
            }
            let ours = self.one(pair.job);
            let of = |it: &Figures| if pair.by_bytes { it.mib_per_s } else { it.iops };
            eprintln!("  {}: {} / {}", pair.what, number(of(&ours)), number(of(&theirs)));
            let reference = if pair.against == Against::Quorum { QUORUM } else { SINGLE };
            let unit = if pair.by_bytes { "MiB/s" } else { "IOPS" };
            let entry = found
                .entry(pair.what.to_owned())
                .or_insert_with(|| Entry::new(pair.what, unit, reference, pair.least));
            entry.row.runs.push((of(&ours), of(&theirs)));
            entry.ours.push(ours);
            entry.theirs.push(theirs);
            if pair.what == RANDOM_WRITE {
                let entry = found
                    .entry(processor.clone())
                    .or_insert_with(|| Entry::new(&processor, "µs", QUORUM, 0.0));
                entry.row.target = Target::AtMost(0.4);
                entry.row.runs.push((ours.cpu_us, theirs.cpu_us));
            }
        }
    }

    /// Against its own figures of the same run.
    fn alone(&self, wanted: &dyn Fn(&str) -> bool, found: &mut Found) {
        let mut note = |what: &str, unit, reference: &str, least, runs: (f64, f64)| {
            eprintln!("  {what}: {} / {}", number(runs.0), number(runs.1));
            let entry = found.entry(what.to_owned());
            let entry = entry.or_insert_with(|| Entry::new(what, unit, reference, least));
            entry.row.runs.push(runs);
        };
        let write = job("randwrite", "4k", 16);
        let shared = ["70/30 mix", "4 volumes at once", "8 connections"];
        if shared.iter().any(|what| wanted(what)) {
            let (written, read) = (self.one(write).iops, self.one(job("randread", "4k", 16)).iops);
            let mixed = self.one(job("randrw", "4k", 16)).iops;
            let in_turn = 1.0 / (0.7 / read + 0.3 / written);
            note(
                "4k 70/30 mix, depth 16",
                "IOPS",
                "its reads and writes in turn",
                1.0,
                (mixed, in_turn),
            );
            let parts: Vec<String> = Self::parts().collect();
            let part = VOLUME_MIB / u64::from(VOLUMES);
            let all = self.ours(Job { depth: 4, ..write }, &parts, part).iops;
            let one = "one volume, one connection";
            note("4k random write, 4 volumes at once", "IOPS", one, 1.0, (all, written));
            let all = self.one(Job { depth: 2, connections: 8, ..write }).iops;
            note("4k random write, 8 connections", "IOPS", one, 1.0, (all, written));
        }
        if wanted("gRPC") {
            let node = self.cluster.local.dir.entry(1).expect("node 1").api.clone();
            let stream =
                |block, depth| grpc::write_iops(&node, "bench", block, depth, self.seconds);
            let small = (stream(4096, 32), self.one(job("randwrite", "4k", 32)).iops);
            note("gRPC 4k random write, depth 32", "IOPS", "NBD at the same node", 0.5, small);
            let large = (stream(1 << 20, 4), self.one(job("randwrite", "1M", 4)).mib_per_s);
            note("gRPC 1M random write, depth 4", "MiB/s", "NBD at the same node", 0.6, large);
        }
    }

    /// A cluster that nobody uses.
    fn idle(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Row> {
        if !wanted("idle") {
            return Vec::new();
        }
        std::thread::sleep(Duration::from_secs(5));
        let pids = self.pids();
        let then: Vec<Used> = pids.iter().map(|pid| Used::now(&[*pid])).collect();
        std::thread::sleep(IDLE);
        let share = |(pid, then): (&u32, &Used)| Used::now(&[*pid]).share_since(then) * 100.0;
        let most = pids.iter().zip(&then).map(share).fold(0.0, f64::max);
        let memory = |id: u32| self.cluster.memory_bytes(id).0 >> 20;
        let memory = self.cluster.local.ids().into_iter().map(memory).max().unwrap_or_default();
        let row = |what: &str, unit, limit: f64, value: f64| Row {
            what: what.to_owned(),
            unit,
            reference: format!("what is allowed, {unit}"),
            target: Target::AtMost(1.0),
            runs: vec![(value, limit)],
            more: "the node that uses most".to_owned(),
        };
        vec![
            row("idle node, processor", "% of a core", 1.0, most),
            row("idle node, memory", "MiB", 100.0, memory as f64),
        ]
    }
}

/// Each block once, in an order that has nothing to do with where they lie.
fn overwrite(target: &str) {
    let mut command = Command::new("fio");
    command.args(["--name=overwrite", "--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    command.args(["--ioengine=nbd", &format!("--uri={target}"), &format!("--size={VOLUME_MIB}M")]);
    gabion_harness::run(&mut command, OVERWRITE_MOST).ok();
}

/// Each time a cluster of its own.
pub fn rebuilds(runs: u32, mib: u64, wanted: &dyn Fn(&str) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let patterns = [
        ("rebuild, written in sequence", Pattern::Sequential, 0.5),
        ("rebuild, every second 4k a hole", Pattern::Holes, 0.25),
    ];
    for (what, pattern, least) in patterns {
        if wanted(what) {
            let speed = |_| {
                let speed = rebuild::speed(pattern, mib);
                eprintln!("  {what}: {} / {}", number(speed.rebuild), number(speed.dd));
                (speed.rebuild, speed.dd)
            };
            let mut entry = Entry::new(what, "MiB/s", "dd of as much, past the page cache", least);
            entry.row.runs = (0..runs).map(speed).collect();
            rows.push(entry.into_row());
        }
    }
    let what = "guests' p99 while a copy is made, depth 4";
    if wanted(what) {
        let felt = |_| {
            let felt = rebuild::felt(mib);
            eprintln!("  {what}: {} / {}", number(felt.rebuilding_us), number(felt.quiet_us));
            (felt.rebuilding_us, felt.quiet_us)
        };
        let mut entry = Entry::new(what, "µs", "before the node died", 0.0);
        entry.row.target = Target::AtMost(2.0);
        entry.row.runs = (0..runs).map(felt).collect();
        rows.push(entry.into_row());
    }
    rows
}
