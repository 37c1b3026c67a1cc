//! Room: on disks that are full, on links that take no more.

use crate::bench::{Bench, disk, node, replace_second, view};
use crate::{DONE, version_of};
use gabion_types::{BlockIndex, Duration, GuestOp, Instant, IoError, SegmentIndex};
use gabion_volume::{Input, Ticket};
use gabion_wire::LinkClass;

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
