//! Takeovers: whom a new owner waits for, and from when on it serves.

use crate::DONE;
use crate::bench::{Bench, disk, node, replace_second, view};
use gabion_types::{Duration, OwnerChange, SegmentIndex};
use gabion_volume::{Input, VolumeEvent};
use gabion_wire::{LinkClass, ReplicaOp};

// rule: volume/fence-the-whole-write-set
// rule: volume/serve-only-with-fenced-members
#[test]
fn who_does_not_answer_the_fence_is_removed_before_anything_is_served() {
    let mut bench = Bench::new(view());
    let fences = |bench: &Bench, id| match bench.asked_of(id)[..] {
        [ReplicaOp::Fence { segments }] => segments.len(),
        ref other => panic!("{other:?}"),
    };
    assert_eq!((fences(&bench, 1), fences(&bench, 2)), (2, 2));
    bench.answer_disk(1);
    bench.wait(Duration::from_millis(999));
    assert!(bench.proposed.is_empty());
    bench.wait(Duration::from_millis(2));
    assert!(matches!(bench.proposed[..], [(_, OwnerChange::RemoveMembers { .. })]));
    while bench.answer(|ask| ask.disk == disk(1)) > 0 {}
    assert!(!bench.serving);
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    bench.answer_all();
    assert!(bench.serving);
}

// rule: volume/who-is-known-to-be-silent-is-not-waited-for
#[test]
fn a_takeover_from_a_dead_node_does_not_wait_for_it() {
    let mut bench = Bench::with_down(view(), vec![node(2)]);
    assert!(bench.proposed.is_empty(), "nobody is known to be sound");
    bench.answer_disk(1);
    assert!(matches!(bench.proposed[..], [(_, OwnerChange::RemoveMembers { .. })]));
}

// promise: hold-not-fail
#[test]
fn a_segment_that_nobody_has_does_not_keep_others_from_being_served() {
    let mut bench = Bench::new(view());
    for id in [1, 2] {
        bench.disks.get_mut(&disk(id)).unwrap().durable.segments.remove(&SegmentIndex::new(1));
    }
    bench.answer_all();
    bench.wait(Duration::from_secs(2));
    bench.answer_all();
    assert!(bench.serving);
    assert!(bench.events.contains(&VolumeEvent::Held { segment: 1 }));
    let (range, held) = (bench.block(0, 1), bench.block(16, 1));
    bench.write(1, range, 1);
    bench.write(2, held, 2);
    bench.answer_all();
    assert_eq!((bench.done.get(&1), bench.done.get(&2)), (DONE, None));
    assert!(bench.proposed.is_empty(), "nothing is removed from it");
}

// rule: volume/never-remove-without-a-sound-copy
// promise: acked-survives
#[test]
fn a_copy_that_is_away_is_not_removed_for_a_disk_that_lost_its_own() {
    let mut bench = Bench::new(view());
    bench.disks.get_mut(&disk(1)).unwrap().durable.segments.remove(&SegmentIndex::new(1));
    bench.answer_disk(1);
    bench.feed(Input::NodeDown { node: node(2) });
    let removed = |bench: &Bench| -> Vec<(u32, gabion_types::DiskId)> {
        let changes = bench.proposed.iter().filter_map(|(_, change)| {
            let OwnerChange::RemoveMembers { removals, .. } = change else { return None };
            Some(removals)
        });
        changes.flatten().map(|removal| (removal.segment.get(), removal.disk)).collect()
    };
    assert_eq!(removed(&bench), [(0, disk(2))], "of segment 1 it is the only copy");
    bench.commit(|view| {
        let left = view.epoch;
        replace_second(&mut view.segments[0], left);
    });
    while bench.answer(|ask| ask.disk != disk(2)) > 0 {}
    assert!(bench.events.contains(&VolumeEvent::Held { segment: 1 }), "{:?}", bench.events);
    bench.wait(Duration::from_secs(3));
    assert_eq!(removed(&bench).len(), 1);
    bench.feed(Input::LinkUp { node: node(2) });
    while bench.answer(|_| true) > 0 {}
    assert_eq!(removed(&bench).len(), 1, "one change at a time, and segment 0 wants its copy back");
    bench.commit(|_| {});
    assert_eq!(removed(&bench).last(), Some(&(1, disk(1))));
}

// rule: volume/asks-follow-their-disk
#[test]
fn what_a_disk_is_asked_follows_it_to_another_node() {
    let mut bench = Bench::new(view());
    bench.answer_disk(1);
    bench.feed(Input::LinkLost { node: node(2), class: LinkClass::Data });
    bench.asked.retain(|asked| asked.ask.disk != disk(2));
    bench.view.homes.insert(disk(2), node(3));
    bench.view.epoch = bench.view.epoch.next();
    let view = bench.view.clone();
    bench.feed(Input::View { view, owned: true });
    let moved = bench.asked.iter().filter(|asked| asked.ask.disk == disk(2));
    assert!(moved.map(|asked| asked.node).eq([node(3)]), "the fence");
    bench.answer_all();
    assert!(bench.serving);
}

// rule: volume/epoch-start-on-all-before-settled-moves
#[test]
fn a_segment_serves_when_every_member_knows_where_the_epoch_starts() {
    let mut bench = Bench::new(view());
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Fence { .. }));
    bench.answer(|ask| ask.disk == disk(1) && matches!(ask.op, ReplicaOp::EpochStart { .. }));
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    bench.wait(Duration::from_millis(500));
    assert!(!bench.serving && bench.writes(1) == 0);
    assert!(!bench.asked.iter().any(|asked| matches!(asked.ask.op, ReplicaOp::Advance { .. })));
    bench.answer(|ask| matches!(ask.op, ReplicaOp::EpochStart { .. }));
    assert!(bench.serving && bench.writes(1) == 1);
}
