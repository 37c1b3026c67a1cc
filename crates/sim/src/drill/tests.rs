//! Each rule is needed: switched off, the simulator finds it within so many seeds; with it, the same
//! seed is silent.

use super::{CALM, Settings, losing, run, world};
use crate::cluster::{Forsaken, Parted};
use gabion_types::{Flaw, Flaws};

/// Runs seeds until one breaks a promise, which has to be one of these.
fn found(flaw: Flaw, seeds: u64, promises: &[&str]) {
    let world = world(flaw);
    for seed in 0..seeds {
        crate::caught::silence();
        let report = run(&world, seed, Flaws::only(flaw));
        // What is not as it should be is told.
        drop(std::panic::take_hook());
        let Some(broken) = report.broken else { continue };
        assert!(promises.contains(&broken.promise), "seed {seed}: {broken}");
        assert_eq!(run(&world, seed, Flaws::NONE).broken, None, "seed {seed} with the rule");
        return;
    }
    panic!("{flaw:?} is not found within {seeds} seeds");
}

/// Both copies of a block rot, or all three: whoever reads it is told, its owner lists it, and what is
/// written over it is there.
// promise: no-silent-corruption
#[test]
fn a_block_without_a_good_copy_is_told_listed_and_written_over() {
    let scrubs: Settings = &[("scrub.light", "1s"), ("scrub.deep", "2s"), ("scrub.share", "100%")];
    for (rf, settings) in [(2, CALM.settings), (3, CALM.settings), (2, scrubs)] {
        let (mut told, mut scrubbed) = (0, 0);
        for seed in 0..10 {
            let report = run(&losing(rf, settings), seed, Flaws::NONE);
            assert_eq!(report.broken, None, "{}", report.summary());
            let count = |what| report.counts.get(what).copied().unwrap_or_default();
            assert_eq!((count("script-loss"), count("rot")), (1, rf.into()), "seed {seed}");
            assert!(count("lost-written") > 0, "seed {seed}");
            told += count("lost-told");
            scrubbed += count("blocks-scrubs-lost");
        }
        // The block, and the three around it; some write over it sooner.
        assert!(told >= 20, "{told} with {rf} copies");
        assert_eq!(scrubbed > 0, settings == scrubs, "{scrubbed} with {rf} copies");
    }
}

/// The last copy that has all goes, for good or for a while: what is left of two makes one, and nothing is
/// lost; where it does not, the right disk is waited for.
// promise: acked-survives
// promise: hold-not-fail
#[test]
fn what_two_copies_have_between_them_is_put_together() {
    let (for_good, silent) = (Parted::ForGood, Parted::Silent);
    let (tail, old, late) = (Parted::Tail, Parted::OldElder, Parted::LateJoiner);
    for (how, least, most) in
        [(for_good, 10, 10), (silent, 8, 10), (tail, 2, 10), (old, 0, 0), (late, 0, 0)]
    {
        let mut combined = 0;
        for seed in 0..10 {
            let report = run(&super::parting(how), seed, Flaws::NONE);
            assert_eq!(report.broken, None, "{how:?}: {}", report.summary());
            // Its moment is not met by every seed.
            let parted = report.counts.get("script-parted") == Some(&1);
            assert!(parted || how == tail, "{how:?} {seed}");
            combined += report.counts.get("combined").copied().unwrap_or_default();
        }
        assert!((least..=most).contains(&combined), "{how:?}: {combined} of 10");
    }
}

/// Every copy that has all goes, and an operator accepts the loss: what is left goes on, nothing is made up,
/// and those that come back later change nothing.
// promise: no-silent-corruption
// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn what_is_left_goes_on_when_an_operator_says_so() {
    for how in [Forsaken::Older, Forsaken::Part, Forsaken::Nothing] {
        let (mut accepted, mut told) = (0, 0);
        for seed in 0..10 {
            let report = run(&super::forsaking(how), seed, Flaws::NONE);
            assert_eq!(report.broken, None, "{how:?} {seed}: {}", report.summary());
            let count = |what| report.counts.get(what).copied().unwrap_or_default();
            accepted += count("loss-accepted");
            told += count("given-up-told");
        }
        assert!(accepted >= 8, "{how:?}: {accepted} of 10");
        assert_eq!(told > 0, how != Forsaken::Older, "{how:?}: {told}");
    }
}

macro_rules! each_is_found {
    ($($test:ident: $flaw:ident within $seeds:literal, $promises:expr;)*) => {
        $(#[test]
        fn $test() {
            found(Flaw::$flaw, $seeds, &$promises);
        })*

        const DRILLS: &[(Flaw, u64, &[&str])] = &[$((Flaw::$flaw, $seeds, &$promises)),*];
    };
}

#[test]
fn every_flaw_has_its_test() {
    let tested = |flaw: &Flaw| DRILLS.iter().any(|(of, _, _)| of == flaw);
    Flaw::ALL.iter().for_each(|flaw| assert!(tested(flaw), "{flaw:?}"));
}

#[test]
fn every_invariant_is_broken_by_a_flaw() {
    let modules = include_str!("../invariants/mod.rs").lines();
    let names = modules.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let promises: Vec<_> = DRILLS.iter().flat_map(|(_, _, promises)| *promises).collect();
    for name in names.filter(|name| *name != "place").map(|name| name.replace('_', "-")) {
        assert!(promises.iter().any(|promise| **promise == name), "{name} is broken by no flaw");
        assert!(crate::list::is_promise(&name), "{name} is not in the list");
    }
}

#[test]
fn the_page_tells_of_every_drill() {
    let page = include_str!("../../README.md");
    for (flaw, seeds, promises) in DRILLS {
        let row = format!("| `{flaw:?}` | {} | {seeds} |", promises.join(", "));
        assert!(page.contains(&row), "the page has no row {row}");
    }
}

each_is_found! {
    acknowledge_before_map: AcknowledgeBeforeMap within 10,
        ["majority-first", "durable-on-all", "settled-on-all"];
    acknowledge_by_old_answers: AcknowledgeByOldAnswers within 20,
        ["durable-on-all", "acked-survives"];
    fence_in_memory_only: FenceInMemoryOnly within 2, ["one-owner"];
    fence_before_writes_under_way: FenceBeforeWritesUnderWay within 10, ["store"];
    no_fence: NoFence within 2, ["store"];
    keep_unfenced_member: KeepUnfencedMember within 20, ["one-owner"];
    serve_before_reconciling: ServeBeforeReconciling within 10,
        ["settled-on-all", "acked-survives", "one-register", "replicas-equal"];
    ignore_returning_tail: IgnoreReturningTail within 10,
        ["replicas-equal", "one-register", "acked-survives", "settled-on-all"];
    joiner_old_tail_counts: JoinerOldTailCounts within 20,
        ["one-register", "acked-survives", "settled-on-all", "replicas-equal"];
    joiner_not_in_write_set: JoinerNotInWriteSet within 10, ["durable-on-all"];
    joiner_settled_advances: JoinerSettledAdvances within 20, ["settled-on-all"];
    settled_to_one_that_left: SettledToOneThatLeft within 20, ["settled-on-all"];
    settled_moves_with_epoch_start: SettledMovesWithEpochStart within 10, ["settled-on-all"];
    no_restamp: NoRestamp within 10, ["durable-on-all"];
    install_always: InstallAlways within 10, ["store"];
    read_during_unresolved_write: ReadDuringUnresolvedWrite within 10,
        ["one-register", "acked-survives"];
    read_after_lease: ReadAfterLease within 50, ["one-owner"];
    write_makes_segment: WriteMakesSegment within 5, ["store"];
    forwarded_twice: ForwardedTwice within 20, ["acked-survives", "one-register"];
    no_sync_after_replay: NoSyncAfterReplay within 5, ["recovers"];
    slot_freed_under_read: SlotFreedUnderRead within 2, ["no-write-under-read"];
    answer_before_sync: AnswerBeforeSync within 2, ["flush-means-flush"];
    lost_as_zeros: LostAsZeros within 2, ["no-silent-corruption"];
    trust_the_disk: TrustTheDisk within 10, ["no-silent-corruption"];
    data_as_holes: DataAsHoles within 2, ["no-silent-corruption", "acked-survives"];
    lease_twice_as_long: LeaseTwiceAsLong within 10, ["one-owner"];
    lost_wake_up: LostWakeUp within 10, ["liveness", "whole"];
    // rule: volume/whoever-may-go-on-is-woken
    crowd_not_woken: CrowdNotWoken within 2, ["no-sleepers"];
    leaked_slot: LeakedSlot within 10, ["no-leaks"];
    admit_without_bound: AdmitWithoutBound within 2, ["bounded"];
    begun_without_bound: BegunWithoutBound within 2, ["bounded"];
    sent_without_bound: SentWithoutBound within 2, ["bounded"];
    fills_without_bound: FillsWithoutBound within 10, ["bounded"];
    fill_bytes_without_bound: FillBytesWithoutBound within 10, ["bounded"];
    writes_without_bound: WritesWithoutBound within 2, ["bounded"];
    pages_without_bound: PagesWithoutBound within 5, ["bounded"];
    answered_twice: AnsweredTwice within 10, ["exactly-once"];
    leaked_bytes: LeakedBytes within 10, ["no-leaks"];
    held_failed: HeldFailed within 10, ["hold-not-fail"];
    source_unchecked: SourceUnchecked within 20, ["sound-sources"];
    last_install_skipped: LastInstallSkipped within 10, ["replicas-equal", "settled-on-all"];
    install_not_written: InstallNotWritten within 20, ["replicas-equal", "acked-survives"];
    torn_merge: TornMerge within 10, ["one-register", "acked-survives"];
    never_promoted: NeverPromoted within 10, ["whole"];
    removed_before_replaced: RemovedBeforeReplaced within 2, ["never-fewer"];
    keeps_nobody_out: KeepsNobodyOut within 5, ["one-host"];
    // rule: volume/only-a-pair-is-combined
    combines_any_pair: CombinesAnyPair within 10, ["acked-survives", "no-silent-corruption", "one-register"];
    combines_with_nothing: CombinesWithNothing within 2, ["no-silent-corruption"];
    elder_unjudged: ElderUnjudged within 10, ["no-silent-corruption"];
    // rule: volume/a-tail-of-before-j-goes-to-the-joiner
    tail_misses_joiner: TailMissesJoiner within 20, ["one-register"];
    // rule: volume/what-a-survivor-lacks-is-lost
    survivor_unfilled: SurvivorUnfilled within 2, ["no-silent-corruption"];
    // rule: node/sleeps-while-it-can-do-nothing
    awake_for_nothing: AwakeForNothing within 2, ["no-spinning"];
}
