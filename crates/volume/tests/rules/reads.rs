//! Reads: from whom, under which lease, and what is done about a bad copy.

use crate::DONE;
use crate::bench::{Bench, disk, view};
use gabion_types::{
    BlockIndex, Duration, GuestData, GuestOp, HoldPolicy, Instant, IoError, SegmentIndex,
};
use gabion_volume::{Input, Ticket, VolumeEvent};
use gabion_wire::ReplicaOp;

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

/// Its guest hears so, and it takes up what it took: else nothing would bound what waits.
// promise: bounded
#[test]
fn a_late_write_counts_until_it_is_over() {
    let mut with_deadline = view();
    with_deadline.hold = HoldPolicy::FailAfter(Duration::from_secs(3));
    let mut bench = Bench::serving(with_deadline);
    let range = bench.block(0, 1);
    bench.write(1, range, 7);
    bench.wait(Duration::from_secs(4));
    assert_eq!(bench.done.get(&1).cloned(), Some(Err(IoError::HeldTooLong)));
    assert_eq!((bench.late, bench.volume.in_flight()), (1, 1));
    bench.answer_all();
    assert_eq!((bench.late, bench.volume.in_flight()), (0, 0));
    bench.read(2, range);
    bench.wait(Duration::from_secs(4));
    assert_eq!((bench.late, bench.volume.in_flight()), (0, 0), "what has not begun is dropped");
}
