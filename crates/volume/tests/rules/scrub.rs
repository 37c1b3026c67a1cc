//! Scrubs: what nobody reads is found and mended all the same.

use crate::bench::{Bench, disk, epoch, replace_second, view};
use crate::disk::Block;
use bytes::Bytes;
use gabion_types::{
    BlockIndex, BlockKind, Duration, GuestOp, IoError, ScrubAsk, ScrubFound, ScrubKind,
    SegmentIndex, Seq, Version, block_crc,
};
use gabion_volume::{Input, Ticket, VolumeEvent};
use gabion_wire::ReplicaOp;

const LIGHT: ScrubAsk = ScrubAsk { number: 1, kind: ScrubKind::Light };
const DEEP: ScrubAsk = ScrubAsk { number: 1, kind: ScrubKind::Deep };

/// Blocks 0 to 7 of segment 0 are written, and settled.
fn written() -> Bench {
    let mut bench = Bench::serving(view());
    let range = bench.block(0, 8);
    bench.write(1, range, 7);
    bench.answer_all();
    bench.wait(Duration::from_secs(1));
    bench.answer_all();
    bench
}

fn ask(bench: &mut Bench, scrub: ScrubAsk) {
    bench.view.scrub = Some(scrub);
    let view = bench.view.clone();
    bench.feed(Input::View { view, owned: true });
}

/// Answers everything, and lets time pass, until the scrub is done.
fn finish(bench: &mut Bench) -> ScrubFound {
    for _ in 0..1000 {
        bench.answer_all();
        if let Some((_, found)) = bench.scrubbed.pop() {
            return found;
        }
        bench.wait(Duration::from_millis(10));
    }
    panic!("it goes on for ever: {:?}", bench.volume.stats().scrub);
}

fn block(bench: &mut Bench, id: u32, at: u32) -> &mut Block {
    let segments = &mut bench.disks.get_mut(&disk(id)).unwrap().durable.segments;
    let blocks = &mut segments.get_mut(&SegmentIndex::new(0)).unwrap().blocks;
    blocks.get_mut(&BlockIndex::new(at)).unwrap()
}

fn remove(bench: &mut Bench, id: u32, at: u32) {
    let segments = &mut bench.disks.get_mut(&disk(id)).unwrap().durable.segments;
    let blocks = &mut segments.get_mut(&SegmentIndex::new(0)).unwrap().blocks;
    blocks.remove(&BlockIndex::new(at)).unwrap();
}

fn rot(bench: &mut Bench, id: u32, at: u32) {
    block(bench, id, at).bad = true;
}

fn is_read_or_verify(op: &ReplicaOp) -> bool {
    matches!(op, ReplicaOp::Read { .. } | ReplicaOp::Verify { .. })
}

// rule: volume/scrub-judges-what-is-settled
#[test]
fn whole_copies_are_compared_and_nothing_is_written() {
    let mut bench = written();
    ask(&mut bench, LIGHT);
    assert!(bench.events.contains(&VolumeEvent::ScrubBegan { deep: false }));
    assert!(matches!(bench.asked_of(2)[..], [ReplicaOp::Scan { .. }]));
    let found = finish(&mut bench);
    assert_eq!(found, ScrubFound { compared_blocks: 8, ..ScrubFound::default() });
    // The same number is not begun again, for the map may be late to hear of it.
    ask(&mut bench, LIGHT);
    assert!(bench.asked.is_empty());
    ask(&mut bench, ScrubAsk { number: 2, ..DEEP });
    let found = finish(&mut bench);
    let whole = ScrubFound { compared_blocks: 8, verified_blocks: 16, ..ScrubFound::default() };
    assert_eq!(found, whole);
    assert_eq!(bench.volume.stats().scrubs, 2);
}

// rule: volume/scrub-mends
#[test]
fn a_light_scrub_finds_a_lost_write_and_mends_it() {
    for id in [1, 2] {
        let mut bench = written();
        remove(&mut bench, id, 3);
        block(&mut bench, id, 5).version = Version::new(epoch(1), Seq::new(1));
        ask(&mut bench, LIGHT);
        let found = finish(&mut bench);
        let expected = ScrubFound {
            compared_blocks: 8,
            behind_blocks: 2,
            mended_blocks: 2,
            ..ScrubFound::default()
        };
        assert_eq!(found, expected);
        assert_eq!(block(&mut bench, id, 3).data, vec![7; 4096]);
        let versions = [1, 2].map(|id| block(&mut bench, id, 5).version);
        assert_eq!(versions[0], versions[1]);
        assert_eq!(bench.volume.stats().repaired_blocks, 2);
        ask(&mut bench, ScrubAsk { number: 2, ..LIGHT });
        assert_eq!(finish(&mut bench).behind_blocks, 0);
    }
}

// rule: volume/scrub-judges-what-is-settled
#[test]
fn a_write_under_way_is_no_difference() {
    let mut bench = written();
    let range = bench.block(0, 2);
    bench.write(2, range, 8);
    bench.answer_disk(1);
    ask(&mut bench, LIGHT);
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Scan { .. }));
    bench.wait(Duration::from_secs(2));
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Scan { .. }));
    bench.wait(Duration::from_secs(2));
    let (_, found) = bench.scrubbed.pop().unwrap();
    assert_eq!((found.behind_blocks, found.differing_blocks), (0, 0));
    assert!(bench.asked.iter().all(|asked| matches!(asked.ask.op, ReplicaOp::Write { .. })));
}

// rule: volume/scrub-mends
// promise: no-silent-corruption
#[test]
fn a_deep_scrub_finds_what_rotted_on_any_copy() {
    let mut bench = written();
    rot(&mut bench, 1, 0);
    for at in [3, 4, 6] {
        rot(&mut bench, 2, at);
    }
    // A light one does not see it.
    ask(&mut bench, LIGHT);
    assert_eq!(finish(&mut bench).bad_blocks, 0);
    ask(&mut bench, ScrubAsk { number: 2, ..DEEP });
    let found = finish(&mut bench);
    assert_eq!((found.bad_blocks, found.mended_blocks, found.lost_blocks), (4, 4, 0));
    assert!(!block(&mut bench, 1, 0).bad && !block(&mut bench, 2, 4).bad);
    assert_eq!(bench.volume.stats().repaired_blocks, 4);
    let repaired = |id, blocks| VolumeEvent::Repaired { disk: disk(id), segment: 0, blocks };
    for event in [repaired(1, 1), repaired(2, 2), repaired(2, 1)] {
        assert!(bench.events.contains(&event), "{event:?}");
    }
}

// rule: volume/scrub-mends
// promise: no-silent-corruption
#[test]
fn what_is_bad_on_all_copies_is_listed_until_it_is_overwritten() {
    let mut bench = written();
    for at in [2, 3] {
        rot(&mut bench, 1, at);
        rot(&mut bench, 2, at);
    }
    rot(&mut bench, 1, 4);
    ask(&mut bench, DEEP);
    let found = finish(&mut bench);
    assert_eq!((found.bad_blocks, found.mended_blocks, found.lost_blocks), (5, 1, 2));
    assert_eq!(bench.volume.stats().lost, [(0, 2, 2)]);
    assert!(bench.events.contains(&VolumeEvent::Lost { segment: 0, block: 2, blocks: 2 }));
    for (ticket, at, ok) in [(5, 1, true), (6, 2, false), (7, 3, false), (8, 4, true)] {
        let range = bench.block(at, 1);
        bench.read(ticket, range);
        bench.answer_all();
        let lost = bench.done[&ticket] == Err(IoError::Lost);
        assert_eq!(lost, !ok, "{at}");
    }
    let range = bench.block(2, 2);
    bench.write(9, range, 9);
    bench.answer_all();
    assert_eq!(bench.volume.stats().lost, []);
}

/// The newest version was on one copy only, and rots there: the older one must not be shown.
// promise: no-silent-corruption
#[test]
fn an_older_copy_is_not_shown_where_the_newer_one_rotted() {
    let mut bench = written();
    rot(&mut bench, 1, 1);
    block(&mut bench, 2, 1).version = Version::new(epoch(1), Seq::new(1));
    ask(&mut bench, LIGHT);
    let found = finish(&mut bench);
    assert_eq!((found.behind_blocks, found.lost_blocks, found.mended_blocks), (1, 1, 0));
    assert_eq!(block(&mut bench, 2, 1).kind, BlockKind::Lost);
    let range = bench.block(1, 1);
    bench.read(5, range);
    bench.answer_all();
    assert_eq!(bench.done[&5], Err(IoError::Lost));
}

#[test]
fn copies_that_differ_under_one_version_are_told_and_left() {
    let mut bench = written();
    let other = Bytes::from(vec![9; 4096]);
    let entry = block(&mut bench, 2, 0);
    (entry.crc, entry.data) = (block_crc(&other), other.clone());
    ask(&mut bench, LIGHT);
    assert_eq!(finish(&mut bench).differing_blocks, 1);
    assert_eq!(block(&mut bench, 2, 0).data, other);
}

/// What a scrub saw before a guest wrote there does not count.
// rule: volume/scrub-mends
#[test]
fn a_guest_that_overwrites_meanwhile_wins() {
    let mut bench = written();
    rot(&mut bench, 1, 2);
    rot(&mut bench, 2, 2);
    ask(&mut bench, DEEP);
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Scan { .. }));
    bench.answer(|ask| ask.disk == disk(1) && is_read_or_verify(&ask.op));
    let range = bench.block(2, 1);
    bench.write(2, range, 8);
    bench.answer(|ask| matches!(ask.op, ReplicaOp::Write { .. }));
    assert!(bench.done.contains_key(&2));
    let found = finish(&mut bench);
    assert_eq!((found.lost_blocks, bench.volume.stats().lost.len()), (0, 0));
    assert_eq!(block(&mut bench, 1, 2).data, vec![8; 4096]);
}

#[test]
fn a_change_of_members_begins_the_window_anew_and_a_joiner_is_left_alone() {
    let mut bench = written();
    ask(&mut bench, DEEP);
    assert_eq!(bench.asked_of(2).len(), 1);
    bench.feed(Input::NodeDown { node: crate::bench::node(2) });
    bench.commit(|view| {
        view.segments.iter_mut().for_each(|members| replace_second(members, epoch(3)));
    });
    rot(&mut bench, 1, 1);
    let found = finish(&mut bench);
    assert_eq!((found.compared_blocks, found.verified_blocks), (8, 8));
    // The only in-sync copy.
    assert_eq!((found.bad_blocks, found.lost_blocks), (1, 1));
}

#[test]
fn a_copy_that_cannot_be_asked_is_waited_for_and_then_passed_over() {
    let mut bench = written();
    let node = crate::bench::node(2);
    bench.feed(Input::LinkLost { node, class: gabion_wire::LinkClass::Bulk });
    ask(&mut bench, DEEP);
    bench.wait(Duration::from_secs(9));
    assert_eq!((bench.scrubbed.len(), bench.asked.len()), (0, 0));
    // Each of the two segments.
    bench.wait(Duration::from_secs(22));
    let (_, found) = bench.scrubbed.pop().unwrap();
    assert_eq!(found, ScrubFound { skipped: 2, ..ScrubFound::default() });
    bench.feed(Input::LinkUp { node });
    bench.answer_all();
    ask(&mut bench, ScrubAsk { number: 2, ..DEEP });
    assert_eq!(finish(&mut bench).verified_blocks, 16);
}

/// Between windows others have their time: nine parts of ten.
#[test]
fn comparing_takes_its_part_of_the_time() {
    let mut bench = written();
    ask(&mut bench, LIGHT);
    bench.wait(Duration::from_millis(20));
    bench.answer_all();
    let rests = bench.volume.next_deadline().unwrap().since(bench.now);
    assert!(rests <= Duration::from_millis(100));
    bench.wait(Duration::from_millis(170));
    assert!(bench.asked.is_empty());
    bench.wait(Duration::from_millis(15));
    assert_eq!(bench.asked.len(), 2);
}

#[test]
fn a_release_does_not_wait_for_a_scrub() {
    let mut bench = written();
    ask(&mut bench, DEEP);
    bench.feed(Input::Release);
    assert!(!bench.proposed.is_empty());
    let read = GuestOp::Read { range: bench.block(0, 1) };
    bench.feed(Input::Guest { ticket: Ticket(9), op: read });
    assert!(bench.scrubbed.is_empty());
}
