//! Members: who is removed and why, who stays, and how one comes back.

use crate::DONE;
use crate::bench::{Bench, disk, epoch, node, replace_second, view};
use gabion_types::{
    BlockIndex, Duration, GuestData, Joining, Outcome, OwnerChange, RefusedChange, SegmentIndex,
    Seq, Stale,
};
use gabion_volume::{Input, VolumeEvent};
use gabion_wire::{LinkClass, ReplicaOp};

// rule: volume/an-own-gap-blames-nobody
#[test]
fn an_owner_that_hung_removes_nobody_for_what_it_did_not_hear() {
    let gap = Duration::from_mins(1);
    let mut bench = Bench::new(view());
    bench.answer_disk(1);
    bench.wait(Duration::from_millis(500));
    bench.now = bench.now + gap;
    bench.feed(Input::Tick);
    assert!(bench.proposed.is_empty(), "half of the time for the fence is left");
    bench.answer_all();
    assert!(bench.serving);

    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    bench.answer_disk(1);
    bench.now = bench.now + gap;
    bench.feed(Input::Lease { until: bench.now + gap });
    bench.wait(Duration::from_secs(4));
    assert!(bench.proposed.is_empty(), "{:?}", bench.proposed);
    bench.wait(Duration::from_secs(2));
    assert!(matches!(bench.proposed[..], [(_, OwnerChange::RemoveMembers { .. })]), "it is slow");
}

// rule: volume/who-leaves-is-removed-while-it-answers
#[test]
fn a_node_that_stops_is_done_without_before_it_goes() {
    let mut bench = Bench::serving(view());
    bench.feed(Input::NodeLeaving { node: node(2) });
    let proposed = |bench: &Bench| bench.proposed.last().map(|(_, change)| change.clone());
    let Some(OwnerChange::RemoveMembers { removals, add_joiner: true, .. }) = proposed(&bench)
    else {
        panic!("{:?}", bench.proposed);
    };
    assert!(removals.iter().all(|one| one.disk == disk(2) && one.may_return && !one.compare_all));
    assert_eq!(removals.len(), 2, "of both segments");
    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    assert_eq!(bench.writes(2), 1, "it is written to until the map says otherwise");
    bench.answer_all();
    assert_eq!(bench.done.get(&1), None, "the map decides who has to have it");
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);

    let returns = |bench: &Bench| {
        let joins = bench.proposed.iter().filter_map(|(_, change)| {
            let OwnerChange::AddJoining { joins, .. } = change else { return None };
            Some(joins)
        });
        joins.flatten().filter(|(_, back)| *back == Some(disk(2))).count()
    };
    bench.commit(|view| view.segments.iter_mut().for_each(|members| members.joining.clear()));
    bench.wait(Duration::from_secs(20));
    assert_eq!(returns(&bench), 0, "not before it is back");
    let (number, _) = *bench.proposed.last().unwrap();
    let outcome = Outcome::Refused(gabion_types::RefusedChange::NoRoom);
    bench.feed(Input::Proposed { number, outcome });
    bench.feed(Input::LinkLost { node: node(2), class: LinkClass::Data });
    bench.feed(Input::LinkUp { node: node(2) });
    bench.answer_all();
    bench.wait(Duration::from_secs(20));
    assert!(returns(&bench) > 0);
}

// rule: node/owners-hear-of-disks-that-are-out
#[test]
fn a_disk_that_is_out_is_no_copy_also_while_guests_are_silent() {
    let mut bench = Bench::serving(view());
    bench.feed(Input::DiskOut { disk: disk(9) });
    assert!(bench.proposed.is_empty(), "it has nothing of this volume");
    bench.feed(Input::DiskOut { disk: disk(2) });
    let (_, change) = bench.proposed.last().unwrap();
    let OwnerChange::RemoveMembers { removals, add_joiner: true, .. } = change else {
        panic!("{change:?}")
    };
    assert_eq!(removals.len(), 2, "all segments in one entry");
}

// rule: volume/never-remove-without-a-sound-copy
// promise: hold-not-fail
#[test]
fn the_last_copies_are_held_and_not_removed() {
    let mut bench = Bench::serving(view());
    bench.disks.values_mut().for_each(|disk| disk.out = true);
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    bench.feed(Input::NodeDown { node: node(2) });
    bench.answer_all();
    bench.wait(Duration::from_secs(30));
    assert!(bench.events.contains(&VolumeEvent::Held { segment: 0 }), "{:?}", bench.events);
    let proposed = bench.proposed.len();
    assert!(bench.done.is_empty());
    // The map may know no better: what was proposed before the last one failed is refused.
    for (number, _) in bench.proposed.clone() {
        let refused = gabion_types::RefusedChange::LastInSync;
        bench.feed(Input::Proposed { number, outcome: Outcome::Refused(refused) });
    }
    bench.wait(Duration::from_secs(30));
    assert_eq!(bench.proposed.len(), proposed);
    assert!(bench.done.is_empty());
}

// rule: volume/replica-proves-itself-after-a-break
// promise: acked-survives
#[test]
fn a_replica_that_lost_what_it_answered_is_found_when_its_link_is_back() {
    let mut bench = Bench::serving(view());
    let (old, new) = (bench.block(0, 1), bench.block(9, 1));
    let before = bench.disks[&disk(2)].durable.clone();
    bench.write(1, old, 1);
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);
    bench.feed(Input::LinkLost { node: node(2), class: LinkClass::Data });
    bench.disks.get_mut(&disk(2)).unwrap().durable = before;
    bench.feed(Input::LinkUp { node: node(2) });
    bench.write(2, new, 2);
    assert!(
        matches!(bench.asked_of(2)[..], [ReplicaOp::Fence { .. }]),
        "first it says what it has"
    );
    assert!(bench.proposed.is_empty());
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Fence { .. }));
    let (_, OwnerChange::RemoveMembers { removals, .. }) = &bench.proposed[0] else {
        panic!("{:?}", bench.proposed)
    };
    assert!(removals.iter().all(|removal| removal.disk == disk(2) && removal.compare_all));
    bench.answer_all();
    assert_eq!(bench.done.get(&2), None, "not before the map has removed it");
}

// The map may have removed it already, for a lesser reason: then it comes back by what it has, and
// that has to be all that it says to have.
// rule: volume/nothing-for-a-replica-that-lost-something
// promise: acked-survives
#[test]
fn a_replica_that_lost_something_is_sent_nothing_before_it_joins_anew() {
    let mut bench = Bench::serving(view());
    let (old, new) = (bench.block(0, 1), bench.block(9, 1));
    let before = bench.disks[&disk(2)].durable.clone();
    bench.write(1, old, 1);
    bench.answer_all();
    bench.feed(Input::LinkLost { node: node(2), class: LinkClass::Data });
    bench.write(2, new, 2);
    bench.disks.get_mut(&disk(2)).unwrap().durable = before;
    bench.feed(Input::LinkUp { node: node(2) });
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Fence { .. }));
    bench.write(3, new, 3);
    bench.wait(Duration::from_secs(2));
    let sent: Vec<_> = bench.asked_of(2);
    assert!(sent.is_empty(), "{sent:?}");
    assert_eq!(bench.disks[&disk(2)].durable.segments[&SegmentIndex::new(0)].settled, Seq::ZERO);
}

// A stale copy that is gone for good does not keep a new one from being made.
#[test]
fn a_disk_that_the_map_refuses_is_passed_over() {
    let mut bench = Bench::serving(view());
    bench.commit(|view| {
        let left = view.epoch;
        for members in &mut view.segments {
            members.in_sync.retain(|member| *member != disk(2));
            members.stale.push(Stale { disk: disk(2), left, compare_all: false, reach: None });
        }
    });
    let refused = Outcome::Refused(gabion_types::RefusedChange::NoRoom);
    let mut asked = Vec::new();
    for _ in 0..6 {
        bench.wait(Duration::from_secs(8));
        let Some((number, OwnerChange::AddJoining { joins, .. })) = bench.proposed.pop() else {
            continue;
        };
        asked.extend(joins.iter().map(|(_, disk)| *disk));
        bench.feed(Input::Proposed { number, outcome: refused });
    }
    assert_eq!(asked[0], Some(disk(2)), "{asked:?}");
    assert!(asked.contains(&None), "{asked:?}");
}

#[test]
fn a_stale_replica_returns_by_delta_and_its_stand_in_goes() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 4);
    bench.write(1, range, 1);
    bench.answer_all();
    bench.wait(Duration::from_millis(300));
    bench.answer_all();
    bench.feed(Input::NodeDown { node: node(2) });
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    bench.write(2, bench.block(2, 1), 2);
    bench.answer_all();
    bench.feed(Input::LinkUp { node: node(2) });
    bench.wait(Duration::from_secs(1));
    let (_, change) = bench.proposed.last().unwrap().clone();
    let OwnerChange::AddJoining { joins, .. } = change else { panic!("{change:?}") };
    assert!(joins.iter().all(|(_, joiner)| *joiner == Some(disk(2))));
    bench.commit(|view| {
        let joined = view.epoch;
        for members in &mut view.segments {
            let stale = members.stale.pop().unwrap();
            members.joining.push(Joining {
                disk: stale.disk,
                joined,
                left: Some(stale.left),
                compare_all: stale.compare_all,
                fill_waits: false,
                reach: None,
                alone: false,
            });
        }
    });
    bench.answer_all();
    // Only what was written meanwhile was copied.
    assert_eq!(bench.volume.stats().filled_bytes, 4096);
    let (_, change) = bench.proposed.last().unwrap().clone();
    assert!(
        matches!(&change, OwnerChange::Promote { promotes, .. } if promotes[0].disk == disk(2))
    );
    bench.commit(|view| {
        for members in &mut view.segments {
            members.joining.retain(|joining| joining.disk != disk(2));
            members.in_sync.push(disk(2));
        }
    });
    bench.answer_all();
    let (_, change) = bench.proposed.last().unwrap().clone();
    let OwnerChange::RemoveMembers { removals, add_joiner: false, .. } = change else {
        panic!("{change:?}")
    };
    assert!(removals.iter().all(|removal| removal.disk == disk(3)));
    let second = &bench.disks[&disk(2)].durable.segments[&SegmentIndex::new(0)];
    assert!(!second.joining);
    assert_eq!(second.blocks[&BlockIndex::new(2)].version.epoch, epoch(3));
}

/// Whoever goes on alone has all as it was when it left; and a change of its segment while that is being made sure
/// changes nothing of it.
// rule: volume/what-a-survivor-lacks-is-lost
// promise: no-silent-corruption
#[test]
fn a_survivor_loses_nothing_that_it_has() {
    for disturbed in [false, true] {
        let mut bench = Bench::serving(view());
        let range = bench.block(0, 1);
        for ticket in 1..=3 {
            bench.write(ticket, range, 7);
            bench.answer_all();
        }
        let left = bench.view.epoch.next();
        bench.show(|view| {
            view.segments[0].in_sync = vec![disk(1)];
            let (compare_all, reach) = (false, Some(Seq::new(1)));
            view.segments[0].stale = vec![Stale { disk: disk(2), left, compare_all, reach }];
        });
        bench.answer_all();
        bench.show(|view| {
            let joined = view.epoch;
            let Stale { disk, left, compare_all, reach } = view.segments[0].stale.pop().unwrap();
            let (left, fill_waits, alone) = (Some(left), false, true);
            let one = Joining { disk, joined, left, compare_all, fill_waits, reach, alone };
            view.segments[0].joining.push(one);
        });
        // It had asked that the copy comes back, and was too late.
        let (number, _) = *bench.proposed.last().unwrap();
        let outcome = Outcome::Refused(RefusedChange::OtherEpoch);
        bench.feed(Input::Proposed { number, outcome });
        let is_marked = |bench: &Bench| {
            let asked = bench.asked_of(2);
            asked.iter().any(|op| matches!(op, ReplicaOp::EpochStart { .. }))
        };
        while !is_marked(&bench) {
            assert!(bench.answer_disk(2) > 0, "it is made a member");
        }
        if disturbed {
            let (compare_all, reach) = (true, None);
            bench.show(|view| {
                view.segments[0].stale = vec![Stale { disk: disk(3), left, compare_all, reach }];
            });
        }
        bench.answer_all();
        let promotes = matches!(bench.proposed.last(), Some((_, OwnerChange::Promote { .. })));
        assert!(promotes, "{:?}", bench.proposed);
        bench.commit(|view| {
            view.segments[0].in_sync = vec![disk(2)];
            view.segments[0].joining.clear();
        });
        bench.answer_all();
        bench.read(5, range);
        bench.read(6, bench.block(2, 1));
        bench.answer_all();
        let reads =
            |ticket, byte| bench.done[&ticket] == Ok(GuestData::Read(vec![byte; 4096].into()));
        assert!(reads(5, 7), "disturbed: {disturbed}");
        assert!(reads(6, 0), "what was never written is not lost either; disturbed: {disturbed}");
    }
}
