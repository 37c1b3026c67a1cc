use super::run;
use crate::report::Options;

const SEEDS: u64 = 20;

#[test]
fn a_disk_keeps_its_promises() {
    for seed in crate::many::asked_seeds(SEEDS) {
        let report = run(Options { seed, watch: false });
        assert_eq!(report.broken, None, "{}", report.summary());
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1000..1003 {
        let hash = |watch| run(Options { seed, watch }).hash;
        assert_eq!(hash(false), hash(true), "seed {seed}");
    }
}
