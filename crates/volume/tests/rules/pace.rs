//! Disks that answer, and keep all guests waiting.

use crate::bench::{Bench, disk, node, replace_second, view};
use gabion_types::{DiskId, Duration, Outcome, OwnerChange, RefusedChange};
use gabion_volume::Input;

/// Writes one after the other for so long; disk 1 answers after `first`, disk 2 after `second`.
fn write_for(bench: &mut Bench, span: Duration, [first, second]: [u64; 2]) {
    let end = bench.now + span;
    let mut ticket = bench.done.keys().max().map_or(1, |last| last + 1);
    while bench.now < end && bench.proposed.is_empty() {
        let range = bench.block(ticket % 16, 1);
        bench.write(ticket, range, 7);
        bench.wait(Duration::from_millis(first));
        bench.answer_disk(1);
        bench.wait(Duration::from_millis(second - first));
        bench.answer_all();
        assert!(bench.done.contains_key(&ticket) || !bench.proposed.is_empty());
        ticket += 1;
    }
}

/// The map has no room for another copy.
fn wait_without_room(bench: &mut Bench, span: Duration) {
    let end = bench.now + span;
    while bench.now < end && returns(bench) == 0 {
        for (number, _) in std::mem::take(&mut bench.proposed) {
            let outcome = Outcome::Refused(RefusedChange::NoRoom);
            bench.feed(Input::Proposed { number, outcome });
        }
        bench.wait(Duration::from_secs(1));
    }
}

fn returns(bench: &Bench) -> usize {
    let joins = bench.proposed.iter().filter_map(|(_, change)| {
        let OwnerChange::AddJoining { joins, .. } = change else { return None };
        Some(joins)
    });
    joins.flatten().filter(|(_, back)| *back == Some(disk(2))).count()
}

// rule: volume/who-lags-for-long-is-done-without
#[test]
fn a_disk_that_all_wait_for_goes_and_is_borne_with_where_no_other_has_room() {
    let mut bench = Bench::serving(view());
    for minutes in [5, 10] {
        let began = bench.now;
        write_for(&mut bench, Duration::from_secs(25), [1, 200]);
        assert_eq!(bench.proposed, [], "half a minute is not over");
        write_for(&mut bench, Duration::from_secs(60), [1, 200]);
        assert!(bench.now.since(began) <= Duration::from_secs(41));
        let Some((_, OwnerChange::RemoveMembers { removals, add_joiner: true, .. })) =
            bench.proposed.last()
        else {
            panic!("{:?}", bench.proposed);
        };
        assert_eq!(removals.len(), 2, "of both segments");
        assert!(removals.iter().all(|one| one.disk == disk(2) && !one.compare_all));
        bench.commit(|view| {
            let left = view.epoch;
            view.segments.iter_mut().for_each(|members| replace_second(members, left));
            view.segments.iter_mut().for_each(|members| members.joining.clear());
        });
        wait_without_room(&mut bench, Duration::from_secs(15));
        assert!(returns(&bench) > 0, "{:?}", bench.proposed);
        bench.commit(|view| {
            for members in &mut view.segments {
                members.in_sync = vec![disk(1), disk(2)];
                members.stale.clear();
            }
        });
        bench.answer_all();
        bench.proposed.clear();
        let borne = Duration::from_secs(60) * minutes - Duration::from_secs(60);
        write_for(&mut bench, borne, [1, 200]);
        assert_eq!(bench.proposed, []);
        write_for(&mut bench, Duration::from_secs(35), [1, 2]);
    }
}

// rule: volume/who-lags-for-long-is-done-without
#[test]
fn where_all_are_slow_or_one_is_for_a_while_all_stay() {
    let mut bench = Bench::serving(view());
    write_for(&mut bench, Duration::from_secs(120), [200, 320]);
    for _ in 0..10 {
        write_for(&mut bench, Duration::from_secs(20), [1, 200]);
        write_for(&mut bench, Duration::from_secs(20), [1, 2]);
    }
    assert_eq!(bench.proposed, []);
}

/// Copies on nodes 2 and 3, none on the owner's own; the second of a write's two answers is disk 2's.
fn lagging_elsewhere() -> Bench {
    let mut view = view();
    for members in &mut view.segments {
        members.in_sync = vec![disk(2), disk(3)];
    }
    let mut bench = Bench::serving(view);
    let end = bench.now + Duration::from_secs(60);
    let mut ticket = 1;
    while bench.proposed.is_empty() {
        assert!(bench.now < end, "it lags, and stays");
        let range = bench.block(ticket % 16, 1);
        bench.write(ticket, range, 7);
        bench.wait(Duration::from_millis(1));
        bench.answer_disk(3);
        bench.wait(Duration::from_millis(200));
        bench.answer_all();
        ticket += 1;
    }
    bench
}

fn last_removed(bench: &Bench) -> Vec<DiskId> {
    let removed = bench.proposed.iter().rev().find_map(|(_, change)| {
        let OwnerChange::RemoveMembers { removals, .. } = change else { return None };
        Some(removals.iter().map(|removal| removal.disk).collect())
    });
    removed.unwrap_or_default()
}

// rule: volume/who-lags-for-long-is-done-without
// rule: volume/never-remove-without-a-sound-copy
#[test]
fn a_disk_that_lags_is_a_copy_when_the_other_one_fails() {
    let mut bench = lagging_elsewhere();
    assert_eq!(last_removed(&bench), [disk(2), disk(2)]);
    // The map did not do it, and the other copy's node dies.
    let (number, _) = bench.proposed.pop().unwrap();
    bench.feed(Input::NodeDown { node: node(3) });
    let outcome = Outcome::Refused(RefusedChange::OtherEpoch);
    bench.feed(Input::Proposed { number, outcome });
    assert_eq!(last_removed(&bench), [disk(3), disk(3)], "{:?}", bench.proposed);
}

// rule: volume/who-lags-for-long-is-done-without
// promise: hold-not-fail
#[test]
fn where_the_only_copy_lags_a_joiner_that_dies_holds_nobody_up() {
    let mut bench = lagging_elsewhere();
    let (number, _) = bench.proposed.pop().unwrap();
    // The other one had left meanwhile, and a stand-in is begun.
    bench.show(|view| {
        let left = view.epoch;
        for members in &mut view.segments {
            replace_second(members, left);
            members.in_sync = vec![disk(2)];
            members.stale = Vec::new();
        }
    });
    let outcome = Outcome::Refused(RefusedChange::OtherEpoch);
    bench.feed(Input::Proposed { number, outcome });
    bench.answer_all();
    assert_eq!(bench.proposed, [], "the only copy stays, as slow as it is");
    bench.feed(Input::NodeDown { node: node(3) });
    assert_eq!(last_removed(&bench), [disk(3), disk(3)], "{:?}", bench.proposed);
}
