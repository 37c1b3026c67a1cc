use super::run;
use crate::report::Options;

/// Seeds that CI runs; more with `examples/seeds.rs`.
const SEEDS: u64 = 15;

#[test]
fn promises_hold() {
    for seed in 0..SEEDS {
        let report = run(Options { seed, watch: false });
        assert_eq!(report.broken, None, "{}", report.summary());
        assert!(report.operations > 0, "{}", report.summary());
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1000..1002 {
        let hash = |watch| run(Options { seed, watch }).hash;
        assert_eq!(hash(false), hash(true), "seed {seed}");
    }
}
