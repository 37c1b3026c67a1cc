use super::{FaultKind, Part, Trouble, plan, run, run_part};
use crate::report::Options;
use std::collections::BTreeSet;

/// Seeds from 0 on; more with `GABION_SEEDS=A..B`, or `gabion sim run --seeds A..B`.
const SEEDS: u64 = 15;

#[test]
fn promises_hold() {
    for seed in crate::many::asked_seeds(SEEDS) {
        let report = run(Options { seed, watch: false });
        assert_eq!(report.broken, None, "{}", report.summary());
        assert!(report.operations > 0, "{}", report.summary());
    }
}

/// In some of the seeds copies are looked through all the time, beside all that goes wrong. Most of what
/// rots is read by guests first: so several are tried until a scrub mended something.
#[test]
fn copies_are_scrubbed_under_trouble() {
    let scrubs = |seed: &u64| plan(*seed).scrubs();
    let rots = |seed: &u64| !plan(*seed).frail.is_empty() && plan(*seed).rots;
    let mut mended = 0;
    for seed in (340..900).filter(scrubs).filter(rots).take(20) {
        let report = run(Options { seed, watch: false });
        assert_eq!(report.broken, None, "{}", report.summary());
        let count = |what| report.counts.get(what).copied().unwrap_or_default();
        assert!(count("event-scrubbed") > 0, "{}", report.summary());
        mended += count("blocks-scrubs-mended");
        if mended > 0 {
            return;
        }
    }
    panic!("no scrub mended anything");
}

/// Some guests use all of NBD that there is, under trouble as well: what has to be refused is, and harms
/// nobody.
#[test]
fn guests_speak_all_of_nbd() {
    let speaks = |seed: &u64| {
        let swarm = plan(*seed);
        swarm
            .guests
            .iter()
            .filter_map(|guest| guest.nbd)
            .any(|dialect| dialect.allocation && dialect.curious && dialect.careless)
    };
    let told = [
        "nbd-chunks",
        "nbd-status",
        "nbd-refused",
        "nbd-listed",
        "nbd-described",
        "nbd-nonsense",
        "nbd-good-bye",
    ];
    let mut counts = [0; 7];
    for seed in (0..).filter(speaks).take(4) {
        let report = run(Options { seed, watch: false });
        assert_eq!(report.broken, None, "{}", report.summary());
        for (sum, name) in counts.iter_mut().zip(told) {
            *sum += report.counts.get(name).copied().unwrap_or_default();
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{told:?}: {counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1000..1002 {
        let hash = |watch| run(Options { seed, watch }).hash;
        assert_eq!(hash(false), hash(true), "seed {seed}");
    }
}

/// What is left out does not change what the rest of the schedule is.
#[test]
fn a_part_of_a_seed_is_the_same_each_time() {
    // What strikes always does something, whatever else is the matter.
    let sure = |seed: &u64| {
        let strikes = plan(*seed).strikes;
        let at = |number: usize| strikes.get(number).map(|strike| strike.kind);
        let surely = [FaultKind::Isolate, FaultKind::Reset, FaultKind::SlowWay, FaultKind::Unseat];
        [2, 5, 7].into_iter().all(|number| at(number).is_some_and(|kind| surely.contains(&kind)))
    };
    let seed = (0..).find(sure).expect("some have such faults there");
    let some: BTreeSet<_> = [2, 5, 7].map(Trouble::Strike).into();
    let part = Part { troubles: Some(some), guests: Some([0].into()), actions: None };
    let report = |part: &Part| run_part(Options { seed, watch: false }, part);
    let (one, other, whole) = (report(&part), report(&part), report(&Part::default()));
    assert_eq!((one.broken, one.hash), (None, other.hash));
    assert_ne!(one.hash, whole.hash);
    let mut kept = plan(seed);
    kept.keep(&part);
    let strikes: Vec<_> = kept.kept_strikes().map(|(number, strike)| (number, *strike)).collect();
    let all = plan(seed).strikes;
    assert_eq!(strikes, [2, 5, 7].map(|number| (number, all[number])));
    let counted: u64 = FaultKind::ALL.iter().filter_map(|kind| one.counts.get(kind.name())).sum();
    assert_eq!(counted, 3);
    assert!(!one.counts.contains_key("rot") && !one.counts.contains_key("disk-died"));
}
