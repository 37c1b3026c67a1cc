//! Copies on a disk that is being emptied move, and none is missed meanwhile.

use crate::DONE;
use crate::bench::{Bench, disk};
use gabion_types::{
    DiskId, Duration, Epoch, Joining, Move, Outcome, OwnerChange, RefusedChange, SegmentIndex,
    SegmentMembers, VolumeView,
};
use gabion_volume::Input;

fn view() -> VolumeView {
    let mut view = crate::bench::view();
    view.segments.truncate(1);
    view.size_bytes = 64 << 10;
    view
}

fn last(bench: &Bench) -> OwnerChange {
    bench.proposed.last().unwrap().1.clone()
}

fn drain_second(bench: &mut Bench) {
    bench.show(|view| {
        view.draining.insert(disk(2));
    });
}

fn join_third(view: &mut VolumeView) {
    let joined = view.epoch;
    view.segments.iter_mut().for_each(|members| members.joining = vec![joining(joined)]);
}

fn joining(joined: Epoch) -> Joining {
    Joining {
        disk: disk(3),
        joined,
        left: None,
        compare_all: true,
        fill_waits: false,
        reach: None,
        alone: false,
    }
}

fn promote(members: &mut SegmentMembers) {
    let joined = members.joining.drain(..).map(|joining| joining.disk);
    members.in_sync.extend(joined.collect::<Vec<DiskId>>());
}

/// On disks 1, 2 and 3, of which 2 is to be emptied: the map knows, and the owner's word is out.
fn moved() -> Bench {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 4);
    bench.write(1, range, 1);
    bench.answer_all();
    drain_second(&mut bench);
    let OwnerChange::AddJoining { joins, .. } = last(&bench) else { panic!("{:?}", last(&bench)) };
    assert!(joins.len() == 1 && joins.iter().all(|(_, place)| place.is_none()), "{joins:?}");
    bench.commit(join_third);
    bench.answer_all();
    let OwnerChange::Promote { promotes, .. } = last(&bench) else { panic!("{:?}", last(&bench)) };
    assert_eq!(promotes[0].disk, disk(3));
    bench.commit(|view| view.segments.iter_mut().for_each(promote));
    bench.answer_all();
    bench
}

// rule: volume/moved-before-it-is-removed
#[test]
fn a_copy_is_removed_when_another_has_its_place() {
    let mut bench = moved();
    assert_eq!(bench.proposed.len(), 3, "{:?}", bench.proposed);
    let OwnerChange::RemoveMembers { removals, add_joiner: false, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert!(removals.iter().all(|one| one.disk == disk(2) && one.replaced), "{removals:?}");
    let range = bench.block(2, 1);
    bench.write(2, range, 2);
    assert_eq!((bench.writes(2), bench.writes(3)), (1, 1), "it is a member until the map says so");
    bench.commit(|view| {
        view.segments.iter_mut().for_each(|members| members.in_sync.retain(|m| *m != disk(2)));
        view.draining.clear();
    });
    bench.answer_all();
    assert_eq!(bench.done.get(&2), DONE);
    assert_eq!(bench.proposed.len(), 3, "all is where it belongs");
}

#[test]
fn a_copy_stays_while_the_one_in_its_place_does_not_work() {
    let mut bench = moved();
    // The map did not come to it before the new one was gone.
    let (number, _) = *bench.proposed.last().unwrap();
    bench.feed(Input::DiskOut { disk: disk(3) });
    let outcome = Outcome::Refused(RefusedChange::OtherEpoch);
    bench.feed(Input::Proposed { number, outcome });
    let OwnerChange::RemoveMembers { removals, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert!(removals.iter().all(|one| one.disk == disk(3) && !one.replaced), "{removals:?}");
}

#[test]
fn what_nobody_means_to_move_any_more_stays_once() {
    let mut bench = moved();
    let (number, _) = *bench.proposed.last().unwrap();
    bench.show(|view| view.draining.clear());
    let outcome = Outcome::Refused(RefusedChange::OtherEpoch);
    bench.feed(Input::Proposed { number, outcome });
    let OwnerChange::RemoveMembers { removals, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert_eq!(removals.len(), 1);
    assert!(removals.iter().all(|one| one.disk == disk(3) && one.replaced), "{removals:?}");
}

#[test]
fn a_joiner_whose_place_is_not_free_any_more_is_dropped() {
    let mut bench = Bench::serving(view());
    drain_second(&mut bench);
    bench.commit(join_third);
    bench.show(|view| view.draining.clear());
    let OwnerChange::RemoveMembers { removals, add_joiner: false, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert!(removals.iter().all(|one| one.disk == disk(3)), "{removals:?}");
}

#[test]
fn where_there_is_no_room_it_is_asked_again_later() {
    let mut bench = Bench::serving(view());
    drain_second(&mut bench);
    for _ in 0..3 {
        let (number, change) = bench.proposed.pop().unwrap();
        assert!(matches!(change, OwnerChange::AddJoining { .. }), "{change:?}");
        bench.feed(Input::Proposed { number, outcome: Outcome::Refused(RefusedChange::NoRoom) });
        assert!(bench.proposed.is_empty());
        bench.wait(Duration::from_secs(9));
    }
}

/// It was to wait for the other one's return; now it has a place of its own to take.
#[test]
fn a_stand_in_that_came_too_late_moves_in() {
    let mut bench = Bench::serving(view());
    bench.show(|view| {
        let joined = view.epoch;
        let stand_in = Joining { fill_waits: true, ..joining(joined) };
        view.segments[0].joining.push(stand_in);
        view.draining.insert(disk(2));
    });
    bench.answer_all();
    bench.wait(Duration::from_secs(2));
    bench.answer_all();
    let OwnerChange::Promote { promotes, .. } = last(&bench) else { panic!("{:?}", last(&bench)) };
    assert_eq!(promotes[0].disk, disk(3));
}

// rule: volume/moved-before-it-is-removed
#[test]
fn a_single_copy_moves_where_it_is_told_to() {
    let mut bench = Bench::serving(view());
    bench.show(|view| {
        let moving = Move { from: disk(2), to: disk(3) };
        view.moving.insert(SegmentIndex::new(0), moving);
    });
    let joins = vec![(SegmentIndex::new(0), Some(disk(3)))];
    let OwnerChange::AddJoining { joins: asked, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert_eq!(asked, joins);
    bench.commit(join_third);
    bench.answer_all();
    assert!(matches!(last(&bench), OwnerChange::Promote { .. }), "{:?}", last(&bench));
    bench.commit(|view| view.segments.iter_mut().for_each(promote));
    bench.answer_all();
    let OwnerChange::RemoveMembers { removals, .. } = last(&bench) else {
        panic!("{:?}", last(&bench))
    };
    assert_eq!((removals[0].disk, removals[0].replaced), (disk(2), true));
}
