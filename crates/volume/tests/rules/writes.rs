//! Writes: who has to have them, in which order, and what is sent again.

use crate::bench::{Bench, disk, node, replace_second, view};
use crate::{DONE, version_of};
use gabion_types::{
    ByteRange, Duration, GuestData, GuestOp, IoError, MappedExtent, Outcome, OwnerChange,
    SegmentIndex, Seq,
};
use gabion_volume::{Input, Ticket};
use gabion_wire::{LinkClass, ReplicaOp};

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
