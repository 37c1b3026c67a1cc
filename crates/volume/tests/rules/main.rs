//! Each rule of the owner by a script of its own.

// A test fails by a panic; its helpers do too.
#![allow(clippy::unwrap_used)]

mod bench;
#[allow(dead_code)]
#[path = "../model/disk.rs"]
mod disk;
mod golden;
mod scrub;

use bench::{Bench, disk, epoch, node, replace_second, view};
use gabion_types::{
    BlockIndex, ByteRange, Duration, GuestData, GuestOp, HoldPolicy, Instant, IoError, Joining,
    MappedExtent, Outcome, OwnerChange, SegmentIndex, Seq, Stale,
};
use gabion_volume::{Input, Ticket, VolumeEvent};
use gabion_wire::{LinkClass, ReplicaOp};

const DONE: Option<&Result<GuestData, IoError>> = Some(&Ok(GuestData::Done));

fn version_of(op: &ReplicaOp) -> (u64, u64) {
    let ReplicaOp::Write { version, .. } = op else { panic!("{op:?}") };
    (version.epoch.get(), version.seq.get())
}

// rule: volume/write-goes-to-whole-write-set
// promise: acked-survives
#[test]
fn a_write_is_acknowledged_when_every_member_has_it() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 2);
    bench.write(1, range, 7);
    assert_eq!((bench.writes(1), bench.writes(2)), (1, 1));
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), None);
    bench.answer_disk(2);
    assert_eq!(bench.done.get(&1), DONE);
}

// rule: volume/restamp-on-change-of-members
// rule: volume/undecided-change-freezes-acknowledgements
// rule: volume/only-answers-to-the-present-version-count
// rule: volume/join-start-before-writes
// rule: volume/joiner-is-fenced-first
// promise: majority-first
#[test]
fn fewer_copies_acknowledge_only_after_the_map_said_so() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    assert_eq!(version_of(bench.asked_of(1)[0]), (2, 1));
    bench.feed(Input::NodeDown { node: node(2) });
    let (_, change) = bench.proposed.last().unwrap();
    let OwnerChange::RemoveMembers { removals, add_joiner: true, .. } = change else {
        panic!("{change:?}")
    };
    assert_eq!(removals.len(), 2, "all segments in one entry");
    // Nothing before the map has decided.
    let late = bench.asked.iter().find(|asked| asked.ask.disk == disk(1)).cloned().unwrap();
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Write { .. }));
    assert_eq!(bench.done.get(&1), None);
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    // A new version to the new members, and to the joiner only after its disk was fenced and it
    // has started.
    assert_eq!(version_of(bench.asked_of(1)[0]), (3, 2));
    assert!(matches!(bench.asked_of(3)[..], [ReplicaOp::Fence { .. }]));
    bench.answer_disk(3);
    let joins = bench.asked_of(3);
    assert!(joins.iter().all(|op| matches!(op, ReplicaOp::JoinStart { .. })) && joins.len() == 2);
    bench.answer(|ask| matches!(ask.op, ReplicaOp::JoinStart { .. }));
    assert_eq!(version_of(bench.asked_of(3)[0]), (3, 2));
    // The new member's answer counts, one to the old version does not.
    bench.answer_disk(3);
    bench.asked.push(late);
    bench.answer(
        |ask| matches!(&ask.op, ReplicaOp::Write { version, .. } if version.seq == Seq::new(1)),
    );
    assert_eq!(bench.done.get(&1), None);
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), DONE);
}

// rule: volume/settled-goes-to-in-sync-only
#[test]
fn a_joiner_is_not_told_what_is_settled() {
    let mut bench = Bench::serving(view());
    bench.feed(Input::NodeDown { node: node(2) });
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    bench.answer_all();
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    bench.answer_all();
    bench.write(2, range, 2);
    let settled = |bench: &Bench, id| match bench.asked_of(id)[..] {
        [ReplicaOp::Write { settled, .. }] => *settled,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(settled(&bench, 1), Seq::new(1));
    assert_eq!(settled(&bench, 3), Seq::ZERO);
    bench.answer_all();
    bench.wait(Duration::from_secs(1));
    let told = bench.asked.iter().filter(|asked| matches!(asked.ask.op, ReplicaOp::Advance { .. }));
    assert!(told.map(|asked| asked.ask.disk).all(|told| told == disk(1)));
    assert_eq!(bench.disks[&disk(3)].durable.segments[&SegmentIndex::new(0)].settled, Seq::ZERO);
}

// rule: volume/overlapping-requests-wait
#[test]
fn requests_on_one_block_wait_for_each_other() {
    let mut bench = Bench::serving(view());
    let (low, high) = (bench.block(0, 2), bench.block(1, 2));
    bench.write(1, low, 1);
    bench.write(2, high, 2);
    bench.read(3, high);
    let free = bench.block(5, 1);
    bench.read(4, free);
    assert_eq!(bench.writes(1), 1);
    bench.answer_disk(2);
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Read { .. }));
    assert!(bench.done.contains_key(&4) && !bench.done.contains_key(&3));
    bench.answer_all();
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&3) else { panic!("{:?}", bench.done) };
    assert!(data.iter().all(|byte| *byte == 2));
}

// rule: volume/request-keeps-its-place-until-done
// promise: one-register
#[test]
fn a_part_that_is_done_is_not_shown_before_the_whole_request_is() {
    let mut bench = Bench::serving(view());
    // The last block of the first segment and the first one of the second.
    let range = bench.block(15, 2);
    bench.write(1, range, 1);
    bench.answer(|ask| matches!(&ask.op, ReplicaOp::Write { segment, .. } if segment.get() == 1));
    let second = bench.block(16, 1);
    bench.read(2, second);
    assert!(!bench.asked.iter().any(|asked| matches!(asked.ask.op, ReplicaOp::Read { .. })));
    bench.answer_all();
    assert!(bench.done.contains_key(&1) && bench.done.contains_key(&2));
}

// rule: volume/lease-after-the-data
// promise: one-owner
#[test]
fn what_was_read_is_not_told_after_the_lease() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.read(1, range);
    bench.write(2, bench.block(1, 1), 1);
    bench.feed(Input::Lease { until: bench.now });
    bench.answer_all();
    bench.feed(Input::Guest { ticket: Ticket(3), op: GuestOp::Flush });
    assert!(bench.done.is_empty(), "{:?}", bench.done);
    bench.feed(Input::Lease { until: Instant::from_nanos(u64::MAX) });
    // Written is written; read is read again.
    assert_eq!(bench.done.get(&2), DONE);
    assert_eq!(bench.done.get(&3), DONE);
    assert_eq!(bench.done.get(&1), None);
    bench.answer_all();
    assert!(bench.done.contains_key(&1));
}

// rule: volume/a-lease-that-comes-back-wakes-all
// promise: hold-not-fail
/// A large write of a guest whose owner had no lease for a moment: it has no place in the order.
#[test]
fn a_request_for_room_goes_on_when_the_lease_is_back() {
    let mut bench = Bench::serving(view());
    bench.feed(Input::Lease { until: bench.now });
    let range = bench.block(0, 8);
    bench.feed(Input::Guest { ticket: Ticket(1), op: GuestOp::Room { range } });
    bench.answer_all();
    assert!(bench.done.is_empty(), "{:?}", bench.done);
    bench.feed(Input::Lease { until: Instant::from_nanos(u64::MAX) });
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);
}

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

// rule: volume/slow-read-goes-elsewhere
#[test]
fn a_read_that_is_not_answered_is_asked_of_another_copy() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    bench.answer_all();
    bench.read(2, range);
    let reads = |bench: &Bench| {
        let asked = bench.asked_of(2);
        asked.iter().filter(|op| matches!(op, ReplicaOp::Read { .. })).count()
    };
    bench.wait(Duration::from_secs(4));
    assert_eq!(reads(&bench), 0);
    bench.wait(Duration::from_secs(2));
    assert_eq!(reads(&bench), 1);
    bench.answer_disk(2);
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&2) else { panic!("{:?}", bench.done) };
    assert!(data.iter().all(|byte| *byte == 7));
    assert!(bench.proposed.is_empty(), "a read alone removes nobody");
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

// rule: volume/in-doubt-is-asked-again
#[test]
fn a_write_in_doubt_is_sent_again_as_it_was() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    let first: Vec<_> = bench.asked_of(2).into_iter().cloned().collect();
    bench.asked.clear();
    bench.feed(Input::LinkLost { node: node(2), class: LinkClass::Data });
    bench.feed(Input::LinkUp { node: node(2) });
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Fence { .. }));
    let again: Vec<_> = bench.asked_of(2).into_iter().cloned().collect();
    assert_eq!(first, again);
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
            members.stale.push(Stale { disk: disk(2), left, compare_all: false });
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

// rule: volume/full-disk-refuses-before-anything-is-sent
// promise: bounded
#[test]
fn a_full_disk_takes_overwrites_and_nothing_new() {
    let mut bench = Bench::serving(view());
    let (old, new) = (bench.block(0, 1), bench.block(9, 1));
    bench.write(1, old, 1);
    bench.answer_all();
    bench.disks.get_mut(&disk(2)).unwrap().room = 1;
    bench.write(2, old, 2);
    bench.answer_all();
    bench.write(3, new, 3);
    bench.write(4, old, 4);
    assert_eq!(bench.writes(1) + bench.writes(2), 0, "the disk is asked first");
    bench.answer_all();
    assert_eq!(bench.done.get(&3), Some(&Err(IoError::NoSpace)));
    assert_eq!(bench.done.get(&4), DONE);
    let first = &bench.disks[&disk(1)].durable.segments[&SegmentIndex::new(0)];
    assert!(!first.blocks.contains_key(&BlockIndex::new(9)));
}

// rule: volume/full-disk-refuses-before-anything-is-sent
#[test]
fn a_large_write_has_room_for_all_of_its_parts_or_for_none() {
    let mut bench = Bench::serving(view());
    let old = bench.block(0, 4);
    bench.write(1, old, 1);
    bench.answer_all();
    bench.disks.get_mut(&disk(2)).unwrap().room = 22;
    bench.write(2, old, 2);
    bench.answer_all();
    let room = |range| GuestOp::Room { range };
    // Four blocks are there. A disk lends half of what is free, nine slots; four go with each run for
    // the pages of its map. So there is no room for eight new blocks, and just so for five.
    let whole = bench.block(0, 12);
    bench.feed(Input::Guest { ticket: Ticket(3), op: room(whole) });
    bench.answer_all();
    assert_eq!(bench.done.get(&3), Some(&Err(IoError::NoSpace)));
    let whole = bench.block(0, 9);
    bench.feed(Input::Guest { ticket: Ticket(4), op: room(whole) });
    bench.answer_all();
    assert_eq!(bench.done.get(&4), DONE);
    // What is kept for it is not another's, and its parts need no further word.
    let (other, one, two) = (bench.block(20, 2), bench.block(0, 5), bench.block(5, 4));
    bench.write(5, other, 3);
    bench.answer_all();
    assert_eq!(bench.done.get(&5), Some(&Err(IoError::NoSpace)));
    bench.write(6, one, 4);
    bench.write(7, two, 5);
    assert_eq!(bench.writes(2), 2);
    bench.answer_all();
    assert_eq!((bench.done.get(&6), bench.done.get(&7)), (DONE, DONE));
    bench.write(8, bench.block(20, 2), 6);
    bench.answer_all();
    assert_eq!(bench.done.get(&8), DONE, "nothing is kept any more");
    bench.write(9, bench.block(24, 3), 7);
    bench.answer_all();
    assert_eq!(bench.done.get(&9), Some(&Err(IoError::NoSpace)));
}

// rule: volume/release-is-clean-only-when-all-is-settled
#[test]
fn a_release_waits_for_what_is_in_flight() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    bench.feed(Input::Release);
    assert!(bench.proposed.is_empty());
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);
    let (number, change) = bench.proposed[0].clone();
    assert!(matches!(change, OwnerChange::Release { clean: true, .. }));
    bench.feed(Input::Proposed { number, outcome: Outcome::Done });
    assert!(bench.ended);

    let mut bench = Bench::serving(view());
    bench.write(1, range, 1);
    bench.feed(Input::Release);
    bench.answer_disk(1);
    bench.wait(Duration::from_secs(2));
    assert!(matches!(bench.proposed[0].1, OwnerChange::Release { clean: false, .. }));
    // The next owner may be there already: nothing is told any more.
    bench.answer_all();
    assert!(bench.done.is_empty());
}

// promise: flush-means-flush
#[test]
fn a_flush_waits_for_nothing_that_is_not_done() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 1);
    bench.feed(Input::Guest { ticket: Ticket(2), op: GuestOp::Flush });
    assert_eq!(bench.done.get(&2), DONE);
    assert_eq!(bench.done.get(&1), None);
}

// promise: no-silent-corruption
#[test]
fn a_bad_copy_is_passed_over_and_mended_and_the_last_one_is_an_error() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 1);
    bench.write(1, range, 5);
    bench.answer_all();
    let spoil = |bench: &mut Bench, id| {
        let segments = &mut bench.disks.get_mut(&disk(id)).unwrap().durable.segments;
        let segment = segments.get_mut(&SegmentIndex::new(0)).unwrap();
        segment.blocks.get_mut(&BlockIndex::new(0)).unwrap().bad = true;
    };
    spoil(&mut bench, 1);
    bench.read(2, range);
    bench.answer_all();
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&2) else { panic!("{:?}", bench.done) };
    assert!(data.iter().all(|byte| *byte == 5));
    assert!(bench.events.contains(&VolumeEvent::Repaired { disk: disk(1), segment: 0, blocks: 1 }));
    spoil(&mut bench, 1);
    spoil(&mut bench, 2);
    bench.read(3, range);
    bench.answer_all();
    assert_eq!(bench.done.get(&3), Some(&Err(IoError::Lost)));
    assert_eq!(bench.volume.stats().lost, vec![(0, 0, 1)]);
    bench.write(4, range, 6);
    bench.answer_all();
    assert!(bench.volume.stats().lost.is_empty());
}

// promise: hold-not-fail
#[test]
fn a_held_request_fails_only_by_the_volumes_deadline() {
    let mut with_deadline = view();
    with_deadline.hold = HoldPolicy::FailAfter(Duration::from_secs(10));
    for (view, fails) in [(view(), false), (with_deadline, true)] {
        let mut bench = Bench::serving(view);
        bench.feed(Input::Lease { until: bench.now });
        let range = bench.block(0, 1);
        bench.read(1, range);
        bench.wait(Duration::from_secs(9));
        assert!(bench.done.is_empty());
        bench.wait(Duration::from_secs(2));
        let expected = fails.then_some(Err(IoError::HeldTooLong));
        assert_eq!(bench.done.get(&1).cloned(), expected);
    }
}

#[test]
fn sectors_are_written_into_their_blocks() {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 3);
    bench.write(1, range, 1);
    bench.answer_all();
    // From the middle of block 0 to the middle of block 2.
    let middle = ByteRange::new(512, 2 * 4096).unwrap();
    bench.write(2, middle, 2);
    bench.answer_all();
    bench.read(3, range);
    bench.answer_all();
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&3) else { panic!("{:?}", bench.done) };
    let wrong = data.iter().enumerate().find(|(at, byte)| {
        let inside = (512..512 + 2 * 4096).contains(at);
        **byte != if inside { 2 } else { 1 }
    });
    assert_eq!(wrong, None);
    // Zeros take edges too, trim only whole blocks.
    let op = GuestOp::Zero { range: ByteRange::new(0, 512).unwrap(), fua: false };
    bench.feed(Input::Guest { ticket: Ticket(4), op });
    let op = GuestOp::Trim { range: ByteRange::new(4096 - 512, 4096 + 1024).unwrap(), fua: false };
    bench.feed(Input::Guest { ticket: Ticket(5), op });
    bench.feed(Input::Guest { ticket: Ticket(6), op: GuestOp::Status { range } });
    bench.answer_all();
    let extent = |length, data| MappedExtent { length, data };
    let extents = vec![extent(4096, true), extent(4096, false), extent(4096, true)];
    assert_eq!(bench.done.get(&6), Some(&Ok(GuestData::Status(extents))));
}

/// Zeroes over the first 16 blocks.
fn zero_all(bench: &mut Bench, ticket: u64) {
    let op = GuestOp::Zero { range: bench.block(0, 16), fua: false };
    bench.feed(Input::Guest { ticket: Ticket(ticket), op });
}

fn zeroes(bench: &Bench, id: u32) -> Vec<(u32, u32)> {
    let mut zeroes = Vec::new();
    for op in bench.asked_of(id) {
        if let ReplicaOp::Zero { range, .. } = op {
            zeroes.push((range.first().get(), range.count()));
        }
    }
    zeroes
}

// rule: volume/zeroes-only-where-something-is
// promise: bounded
#[test]
fn zeroes_cost_nothing_where_nothing_is() {
    let mut bench = Bench::serving(view());
    zero_all(&mut bench, 1);
    // The own disk is looked at, and that is all.
    assert!(bench.asked_of(2).is_empty());
    assert!(matches!(bench.asked_of(1)[..], [ReplicaOp::Scan { .. }]));
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), DONE);
    assert!(bench.asked.is_empty());
    let (first, second) = (bench.block(3, 1), bench.block(6, 2));
    bench.write(2, first, 1);
    bench.write(3, second, 1);
    bench.answer_all();
    zero_all(&mut bench, 4);
    bench.answer_disk(1);
    assert_eq!((zeroes(&bench, 1), zeroes(&bench, 2)), (vec![(3, 5)], vec![(3, 5)]));
    assert_eq!(bench.done.get(&4), None);
    bench.answer_all();
    assert_eq!(bench.done.get(&4), DONE);
    bench.read(5, bench.block(0, 16));
    bench.answer_all();
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&5) else { panic!("{:?}", bench.done) };
    assert!(data.iter().all(|byte| *byte == 0));
    // Holes are there now.
    zero_all(&mut bench, 6);
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&6), DONE);
    assert!(bench.asked.is_empty());
}

// rule: volume/zeroes-only-where-something-is
// rule: volume/lease-after-the-data
// promise: one-register
#[test]
fn that_nothing_is_there_counts_under_the_lease_and_from_a_member_only() {
    let mut bench = Bench::serving(view());
    zero_all(&mut bench, 1);
    bench.feed(Input::Lease { until: bench.now });
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), None, "another owner may have written since");
    bench.feed(Input::Lease { until: Instant::from_nanos(u64::MAX) });
    assert_eq!(bench.asked_of(1).len(), 1, "it is looked at anew");
    // Meanwhile that disk is no member any more.
    bench.feed(Input::NodeDown { node: node(2) });
    bench.asked.retain(|asked| asked.ask.disk == disk(1));
    bench.commit(|view| {
        view.segments[0].in_sync = vec![disk(2)];
    });
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), None);
    bench.feed(Input::LinkUp { node: node(2) });
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);
}

#[test]
fn what_makes_no_sense_is_refused_at_once() {
    let mut bench = Bench::serving(view());
    let size = bench.view.size_bytes;
    let cases = [
        (ByteRange::new(size, 512).unwrap(), IoError::OutOfRange),
        (ByteRange::new(100, 512).unwrap(), IoError::Misaligned),
        (ByteRange::new(0, 100).unwrap(), IoError::Misaligned),
    ];
    for (ticket, (range, error)) in (1..).zip(cases) {
        bench.read(ticket, range);
        assert_eq!(bench.done.get(&ticket), Some(&Err(error)));
    }
    assert!(bench.asked.is_empty());
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

// rule: volume/what-a-link-cannot-take-waits-here
// promise: bounded
#[test]
fn a_link_without_room_is_given_nothing_more_and_blamed_for_nothing() {
    let mut bench = Bench::serving(view());
    let range = bench.block(5, 1);
    bench.write(8, range, 7);
    bench.answer_all();
    bench.no_room = Some(node(2));
    for block in 0..4 {
        let range = bench.block(block, 1);
        bench.write(block, range, 7);
    }
    bench.answer_disk(1);
    assert_eq!((bench.unsent, bench.writes(2)), (1, 0), "the first one told that it is full");
    // What carries no data goes all the same.
    bench.feed(Input::Guest { ticket: Ticket(9), op: GuestOp::Zero { range, fua: false } });
    bench.answer_disk(1);
    assert_eq!(bench.asked_of(2).len(), 1);
    bench.answer_all();
    assert_eq!(bench.done.get(&9), DONE);
    // A disk is not slow because this side cannot send.
    bench.wait(Duration::from_secs(20));
    assert_eq!(bench.proposed, []);
    // As much as there is room, in the order in which it was asked.
    bench.no_room = None;
    let room = |bytes| Input::Room { node: node(2), class: LinkClass::Data, bytes };
    bench.feed(room(4097));
    assert!(bench.volume.waits_for_room(node(2), LinkClass::Data));
    let seqs =
        |bench: &Bench| -> Vec<_> { bench.asked_of(2).into_iter().map(version_of).collect() };
    assert_eq!(seqs(&bench), [(2, 2), (2, 3)]);
    // New ones stand behind the others.
    let range = bench.block(6, 1);
    bench.write(4, range, 7);
    assert_eq!(bench.writes(2), 2);
    bench.feed(room(1 << 20));
    assert!(!bench.volume.waits_for_room(node(2), LinkClass::Data));
    assert_eq!(seqs(&bench), [(2, 2), (2, 3), (2, 4), (2, 5), (2, 7)]);
    bench.answer_all();
    assert!((0..5).all(|ticket| bench.done.get(&ticket) == DONE));
}

// rule: volume/what-a-link-cannot-take-waits-here
#[test]
fn what_waits_for_room_is_dropped_when_the_members_change() {
    let mut bench = Bench::serving(view());
    bench.no_room = Some(node(2));
    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    bench.answer_disk(1);
    bench.feed(Input::NodeDown { node: node(2) });
    bench.commit(|view| {
        let left = view.epoch;
        view.segments.iter_mut().for_each(|members| replace_second(members, left));
    });
    bench.no_room = None;
    bench.feed(Input::LinkUp { node: node(2) });
    bench.feed(Input::Room { node: node(2), class: LinkClass::Data, bytes: 1 << 20 });
    assert_eq!(bench.writes(2), 0);
}
