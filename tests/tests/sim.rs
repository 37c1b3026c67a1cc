//! The simulator as users have it: the release binary shows what the cores do, to the bit.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_sim::list;
use gabion_sim::many::{Batch, World};
use gabion_tests::fixture::program;
use gabion_tests::run;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

const SEEDS: u64 = 100;

/// A failure that the binary finds is replayed by a debugger, and the other way round.
#[test]
fn debug_and_release_give_the_same_traces() {
    const { assert!(cfg!(debug_assertions), "this is to be built without --release") };
    for (world, option) in [(World::Cluster, None), (World::Store, Some("--store"))] {
        let mut command = Command::new(program());
        command.args(["sim", "run", "--json", "--seeds", &format!("0..{SEEDS}")]).args(option);
        let said = run(&mut command, Duration::from_secs(600)).ok();
        let said: Value = serde_json::from_str(&said).unwrap();
        let batch = Batch { world, first: 0, end: Some(SEEDS), until: None, threads: 2 };
        let sums = batch.run(|_| true);
        assert_eq!(sums.failures, BTreeMap::new());
        if world == World::Cluster {
            let faults = sums.faults();
            let strikes = |name| faults.get(name).is_some_and(|count| *count > 0);
            let never = list::faults().into_iter().filter(|fault| !strikes(fault.name));
            assert_eq!(never.collect::<Vec<_>>(), [], "each kind of fault strikes");
        }
        assert_eq!(said["hash"], format!("{:016x}", sums.hash), "{world:?}");
        assert_eq!(said["events"], sums.events);
    }
}
