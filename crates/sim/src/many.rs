//! Many seeds on all cores. The one place of this crate that looks at a real clock: to end in time.

use crate::cluster::Part;
use crate::oracle::Broken;
use crate::report::{Options, Report};
use crate::{cluster, solo};
use gabion_types::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// How often somebody is told how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Machines, guests, network, consensus.
    Cluster,
    /// One store on one disk.
    Store,
}

/// Which seeds, and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub world: World,
    pub first: u64,
    /// None: for as long as there is time.
    pub end: Option<u64>,
    pub until: Option<Instant>,
    pub threads: usize,
}

/// What came of them so far.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    pub seeds: u64,
    /// The sum of all traces' hashes: equal for equal seeds, in whatever order they ran.
    pub hash: u64,
    pub operations: u64,
    pub events: u64,
    pub virtual_time: Duration,
    pub counts: BTreeMap<&'static str, u64>,
    /// By seed.
    pub failures: BTreeMap<u64, Broken>,
}

impl World {
    pub fn run(self, options: Options, part: &Part) -> Report {
        match self {
            Self::Cluster => cluster::run_part(options, part),
            Self::Store => solo::run_part(options, part),
        }
    }
}

impl Sums {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.hash = self.hash.wrapping_add(report.hash);
        self.operations += report.operations;
        self.events += report.events;
        self.virtual_time += report.virtual_time;
        for (what, count) in report.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if let Some(broken) = report.broken {
            self.failures.insert(report.seed, broken);
        }
    }

    /// Faults that were injected, by kind.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        let known: BTreeSet<_> =
            crate::list::faults().into_iter().map(|fault| fault.name).collect();
        let faults = self.counts.iter().filter(|(what, _)| known.contains(*what));
        faults.map(|(what, count)| (*what, *count)).collect()
    }
}

impl Batch {
    /// `look` is told now and then how far it is; false from it ends the batch.
    pub fn run(self, mut look: impl FnMut(&Sums) -> bool) -> Sums {
        let next = AtomicU64::new(self.first);
        let ends = AtomicBool::new(false);
        let sums = Mutex::new(Sums::default());
        let work = || {
            while !ends.load(Ordering::Relaxed) && self.until.is_none_or(|at| Instant::now() < at) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if self.end.is_some_and(|end| seed >= end) {
                    return;
                }
                let report = self.world.run(Options { seed, watch: false }, &Part::default());
                sums.lock().expect("nobody panics with it").add(report);
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(work)).collect();
            while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(LOOK_EVERY);
                if !look(&sums.lock().expect("nobody panics with it")) {
                    ends.store(true, Ordering::Relaxed);
                }
            }
        });
        sums.into_inner().expect("nobody panicked with it")
    }
}

/// `GABION_SEEDS=A..B`, or as many as the tests run by default.
#[cfg(test)]
pub(crate) fn asked_seeds(default: u64) -> std::ops::Range<u64> {
    let Ok(asked) = std::env::var("GABION_SEEDS") else { return 0..default };
    let seeds = asked
        .split_once("..")
        .and_then(|(first, end)| Some(first.parse::<u64>().ok()?..end.parse::<u64>().ok()?));
    seeds.expect("GABION_SEEDS=A..B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_run_once() {
        let batch = Batch { world: World::Store, first: 3, end: Some(9), until: None, threads: 2 };
        let sums = batch.run(|_| true);
        let mut alone = Sums::default();
        for seed in 3..9 {
            alone.add(World::Store.run(Options { seed, watch: false }, &Part::default()));
        }
        assert_eq!(sums.hash, alone.hash);
        assert_eq!((sums.seeds, sums.events, &sums.counts), (6, alone.events, &alone.counts));
        assert_eq!(sums.failures, BTreeMap::new());
    }
}
