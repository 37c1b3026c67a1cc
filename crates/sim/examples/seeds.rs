//! Runs ranges of seeds on all cores: `seeds (solo|cluster) A..B [threads]`, or one with its trace:
//! `seeds (solo|cluster) N --trace [lines]`.

use gabion_sim::{Options, Report};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

type Run = fn(Options) -> Report;

#[derive(Default)]
struct Sums {
    seeds: u64,
    operations: u64,
    virtual_seconds: f64,
    counts: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let run: Run = match arguments.first().map(String::as_str) {
        Some("solo") => gabion_sim::solo::run,
        Some("cluster") => gabion_sim::cluster::run,
        _ => return eprintln!("seeds (solo|cluster) A..B [threads] | N --trace [lines]"),
    };
    let range = arguments.get(1).map_or("0..100", String::as_str);
    match range.split_once("..") {
        Some((first, end)) => {
            let number = |text: &str| text.parse::<u64>().expect("a seed is a number");
            let threads = arguments.get(2).map_or(2, |text| number(text));
            many(run, number(first), number(end), threads);
        }
        None => one(run, range.parse().expect("a seed is a number"), &arguments[2..]),
    }
}

fn one(run: Run, seed: u64, rest: &[String]) {
    let watch = rest.first().is_some_and(|word| word == "--trace");
    let lines = rest.get(1).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let report = run(Options { seed, watch });
    if watch {
        let skip = report.lines.len().saturating_sub(lines);
        report.lines.iter().skip(skip).for_each(|line| println!("{line}"));
    }
    println!("{}", report.summary());
    println!("{:?}", report.counts);
    if let Some(broken) = report.broken {
        println!("BROKEN {broken}");
    }
}

fn many(run: Run, first: u64, end: u64, threads: u64) {
    let next = AtomicU64::new(first);
    let sums = Mutex::new(Sums::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let result =
                        catch_unwind(AssertUnwindSafe(|| run(Options { seed, watch: false })));
                    add(&mut sums.lock().expect("nobody panics with it"), seed, result.ok());
                }
            });
        }
    });
    let sums = sums.into_inner().expect("nobody panicked with it");
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.1} s, {:.2} virtual hours, {} operations checked ({:.0} a second), {} failures",
        sums.seeds,
        sums.virtual_seconds / 3600.0,
        sums.operations,
        sums.operations as f64 / seconds,
        sums.failures.len(),
    );
    println!("{:?}", sums.counts);
    sums.failures.iter().filter(|text| text.ends_with("PANIC")).for_each(|text| println!("{text}"));
}

fn add(sums: &mut Sums, seed: u64, report: Option<Report>) {
    sums.seeds += 1;
    let Some(report) = report else {
        sums.failures.push(format!("seed {seed} PANIC"));
        return;
    };
    sums.operations += report.operations;
    sums.virtual_seconds += report.virtual_time.as_secs_f64();
    for (what, count) in &report.counts {
        *sums.counts.entry(what).or_default() += count;
    }
    if report.broken.is_some() {
        println!("{}", report.summary());
        sums.failures.push(report.summary());
    }
}
