//! Owners of one volume, one after the other, over model replicas, through crashes, cuts, stalls, bit
//! rot and full disks; then everything heals. Checked: each sector is one linearizable register, every
//! acknowledged write survives, only the rightful owner answers, and all copies end up equal.

// A test fails by a panic; its helpers do too.
#![allow(clippy::unwrap_used)]

mod check;
mod disk;
mod map;
mod world;

use gabion_types::Prng;
use proptest::prelude::*;
use world::{Counts, Fault, KINDS, Plan, World};

fn plan_of(seed: u64) -> Plan {
    let mut prng = Prng::new(seed ^ 0x5eed);
    let rf = if prng.chance(1, 4) { 3 } else { 2 };
    let nodes = u32::try_from(prng.between(u64::from(rf), u64::from(rf) + 2)).unwrap();
    Plan {
        nodes,
        rf,
        segments: u32::try_from(prng.between(1, 3)).unwrap(),
        faults_ms: prng.between(3_000, 25_000),
        rot: prng.chance(1, 4),
        disk_loss: nodes > u32::from(rf) && prng.chance(1, 3),
        rollback: prng.chance(1, 3),
        full: prng.chance(1, 5),
    }
}

fn run(seed: u64) -> Result<Counts, String> {
    let mut world = World::new(seed, plan_of(seed));
    world.tracing = std::env::var("GABION_TRACE").is_ok();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    for line in &world.trace {
        println!("{line}");
    }
    match result {
        Ok(Ok(())) => Ok(world.done),
        Ok(Err(why)) => Err(format!("seed {seed} at {} ms: {why}", world.now / world::MS)),
        Err(_) => Err(format!("seed {seed} at {} ms: panicked", world.now / world::MS)),
    }
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("GABION_SEEDS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("GABION_SEEDS=first..end");
            first.parse().unwrap()..end.parse().unwrap()
        }
        Err(_) => 0..400,
    }
}

// promise: acked-survives
// promise: one-register
// promise: one-owner
// promise: majority-first
// promise: hold-not-fail
// promise: flush-means-flush
#[test]
fn seeds_hold() {
    let mut total = Counts::default();
    let mut failures = Vec::new();
    let seeds = seeds();
    for seed in seeds.clone() {
        match run(seed) {
            Ok(counts) => {
                total.answered += counts.answered;
                total.failed += counts.failed;
                total.owners += counts.owners;
                total.fills += counts.fills;
                total.repairs += counts.repairs;
                total.removals += counts.removals;
                total.combines += counts.combines;
                total.scrubs += counts.scrubs;
                total.scrubbed += counts.scrubbed;
            }
            Err(why) => failures.push(why),
        }
    }
    println!("{seeds:?}: {total:?}");
    failures.iter().take(20).for_each(|why| println!("{why}"));
    assert!(failures.is_empty(), "{} of {seeds:?} failed", failures.len());
    assert!(total.answered > 0 && total.fills > 0 && total.removals > 0);
    assert!(total.scrubs > 0 && total.scrubbed > 0);
}

fn any_plan() -> impl Strategy<Value = Plan> {
    (2_u8..=3, 0_u32..=2, 1_u32..=3, any::<[bool; 4]>()).prop_map(|(rf, more, segments, flags)| {
        let [rot, disk_loss, rollback, full] = flags;
        let (nodes, disk_loss) = (u32::from(rf) + more, disk_loss && more > 0);
        Plan { nodes, rf, segments, faults_ms: 0, rot, disk_loss, rollback, full }
    })
}

fn any_fault() -> impl Strategy<Value = Fault> {
    (50_u64..2500, 0..KINDS, 0_u32..5, 0_u32..5, 0_u64..1000)
        .prop_map(|(wait_ms, kind, a, b, luck)| Fault { wait_ms, kind, a, b, luck })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::with_cases(64) })]

    /// Faults as a list: what fails is shrunk to the few that are needed.
    // promise: acked-survives
    // promise: one-register
    #[test]
    fn scripts_of_faults_hold(
        plan in any_plan(),
        script in proptest::collection::vec(any_fault(), 0..20),
        seed in 0_u64..1000,
    ) {
        let faults_ms = 2500 + script.iter().map(|fault| fault.wait_ms).sum::<u64>();
        let mut world = World::new(seed, Plan { faults_ms, ..plan });
        world.script = Some(script.into());
        prop_assert_eq!(world.run(), Ok(()));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(3), run(3));
}
