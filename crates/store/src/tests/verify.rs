//! Scrubs' reads: what they find, and what they leave to others.

use super::model::{World, info, range, version, write, zero};
use crate::{Input, StoreEvent};
use gabion_types::{BlockIndex, BlockKind, Duration, SegmentIndex, VolumeId};
use gabion_wire::{Refusal, ReplicaDone, ReplicaOp};

fn verify(first: u32, count: u32) -> ReplicaOp {
    ReplicaOp::Verify { segment: SegmentIndex::new(0), range: range(first, count) }
}

/// A scrub begins: what is looked at once for each is over.
fn begin(world: &mut World) {
    world.ask_paced(1, verify(0, 1)).unwrap();
    world.tick(Duration::from_secs(1));
}

fn place(world: &World, block: u32) -> u64 {
    let block = BlockIndex::new(block);
    world.locate(VolumeId::new(1), SegmentIndex::new(0), block).unwrap().offset
}

// promise: no-silent-corruption
#[test]
fn a_verify_tells_what_rotted_and_it_can_be_repaired() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    world.ok(1, zero(0, version(1, 2), 2, 1));
    begin(&mut world);
    let before = world.store.stats().verified_bytes;
    let (rotten, unreadable) = (place(&world, 1), place(&world, 3));
    world.disk.rot(rotten);
    world.disk.unreadable = vec![unreadable / 4096];
    let bad = |block| info(block, BlockKind::Bad, version(1, 1));
    let entries = vec![
        info(0, BlockKind::Data, version(1, 1)),
        bad(1),
        info(2, BlockKind::Zero, version(1, 2)),
        bad(3),
    ];
    // What was never written is left out.
    assert_eq!(world.ask_paced(1, verify(0, 8)), Ok(ReplicaDone::Table { entries, next: None }));
    let stats = world.store.stats();
    // The first one read one block, and what is looked at once for each scrub.
    let of_blocks = stats.verified_bytes - (before - 4096) - before;
    assert_eq!((stats.corrupt_blocks, of_blocks), (2, 3 * 4096));
    assert_eq!((stats.reads, stats.pending), (0, 0));
    let corrupt = |event: &&StoreEvent| matches!(event, StoreEvent::Corrupt { .. });
    assert_eq!(world.events.iter().filter(corrupt).count(), 2);

    let blocks = [1, 3].map(|block| info(block, BlockKind::Data, version(1, 1))).to_vec();
    let data = super::model::payload(&blocks);
    world.ok(1, ReplicaOp::Repair { segment: SegmentIndex::new(0), blocks, data });
    world.tick(Duration::from_secs(1));
    let Ok(ReplicaDone::Table { entries, .. }) = world.ask_paced(1, verify(0, 8)) else { panic!() };
    assert!(entries.iter().all(|info| info.kind != BlockKind::Bad), "{entries:?}");
}

// rule: store/scrub-yields
#[test]
fn a_scrub_takes_its_part_of_the_time_however_many_ask() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    begin(&mut world);
    let next = |at: u32| verify(at, 8 - at);
    let asked: Vec<u64> = (1..4).map(|at| world.send_from(u64::from(at), 1, next(at))).collect();
    // One at a time: each read takes 1 ms here, and then nine more belong to others.
    for (nth, request) in asked.iter().enumerate() {
        assert_eq!(world.result(*request), None);
        world.now = world.now + Duration::from_millis(1);
        assert!(world.step() && !world.step(), "{nth}");
        assert!(world.result(*request).is_some());
        world.tick(Duration::from_millis(8));
        assert!(world.is_idle());
        world.tick(Duration::from_millis(2));
    }
    // A larger part, as the settings say.
    world.input(Input::ScrubShare(50));
    let first = world.send(1, next(4));
    let second = world.send(1, next(5));
    world.now = world.now + Duration::from_millis(4);
    world.step();
    assert!(world.result(first).is_some() && world.is_idle());
    let due = world.store.next_deadline().unwrap();
    let left = due.since(world.now);
    assert!(left > Duration::from_millis(3) && left < Duration::from_millis(5), "{left:?}");
    world.tick(left);
    world.run();
    assert!(world.result(second).is_some());
}

// rule: store/scrub-yields
#[test]
fn guests_go_first_within_a_bound() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    begin(&mut world);
    let before = world.store.stats().verified_bytes;
    let guest = ReplicaOp::Read { segment: SegmentIndex::new(0), range: range(0, 1) };
    let read = world.send(1, guest.clone());
    let scrub = world.send(1, verify(1, 7));
    assert!(world.step() && world.result(read).is_some(), "the only one under way");
    assert!(world.step() && world.result(scrub).is_some(), "it begins when all is quiet");
    // The disk never is: it begins all the same, a moment later.
    world.tick(Duration::from_secs(1));
    world.send(1, guest);
    let scrub = world.send(1, verify(2, 6));
    world.tick(Duration::from_millis(99));
    assert_eq!(world.store.stats().verified_bytes, before + 7 * 4096);
    let due = world.store.next_deadline().unwrap();
    world.tick(due.since(world.now));
    assert_eq!(world.store.stats().verified_bytes, before + 13 * 4096);
    world.run();
    assert!(world.result(scrub).is_some());
}

// promise: bounded
#[test]
fn more_than_the_line_holds_and_what_is_not_there_are_refused() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    let elsewhere = ReplicaOp::Verify { segment: SegmentIndex::new(9), range: range(0, 1) };
    assert_eq!(world.ask(1, elsewhere), Err(Refusal::NoSegment));
    assert_eq!(world.ask(1, verify(250, 8)), Err(Refusal::Invalid));
    begin(&mut world);
    let next = |at: u32| {
        let segment = SegmentIndex::new(at / 200);
        ReplicaOp::Verify { segment, range: range(at % 200, 8) }
    };
    let asked: Vec<u64> = (1..301).map(|at| world.send(1, next(at))).collect();
    let busy = asked.iter().filter(|request| world.result(**request) == Some(Err(Refusal::Busy)));
    assert_eq!(busy.count(), 300 - 1 - crate::config::VERIFIES_MAX);
    // Whoever asked is gone: so is what it wanted. A stop answers the rest.
    world.send_from(2, 1, next(301));
    world.input(Input::OriginGone { origin: crate::Origin(1) });
    world.run();
    let last = world.send_from(2, 1, next(302));
    world.input(Input::Stop);
    world.run();
    assert_eq!(world.result(last), Some(Err(Refusal::NotReady)));
    assert!(world.stopped);
}

// rule: store/scrub-looks-at-map-pages
// promise: no-silent-corruption
#[test]
fn a_map_page_that_rotted_under_a_running_store_is_written_anew() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    let mut world = world.restart();
    let key = gabion_format::SegmentKey::new(VolumeId::new(1), SegmentIndex::new(0));
    let live = |world: &World| {
        let disk = world.store.disk().unwrap();
        let at = disk.table.segment(key).unwrap().live(0).unwrap();
        disk.layout.slot_offset(at.slot)
    };
    // It is in memory.
    world.ask_paced(1, verify(0, 8)).unwrap();
    let before = live(&world);
    world.disk.rot(before + 1000);
    world.tick(Duration::from_secs(1));
    let checkpoints = world.store.stats().checkpoints;
    let Ok(ReplicaDone::Table { entries, .. }) = world.ask_paced(1, verify(0, 8)) else { panic!() };
    assert!(entries.iter().all(|info| info.kind == BlockKind::Data));
    let stats = world.store.stats();
    assert_eq!((stats.damaged_pages, stats.corrupt_blocks), (1, 0));
    assert_eq!(stats.checkpoints, checkpoints + 1);
    assert!(world.events.iter().any(|event| matches!(event, StoreEvent::Damaged(_))));
    assert_ne!(live(&world), before);
    world.tick(Duration::from_secs(1));
    world.ask_paced(1, verify(0, 8)).unwrap();
    assert_eq!(world.store.stats().damaged_pages, 1);
    // What is on the disk is whole: nothing is told when it is opened.
    let world = world.crash_with_all_done();
    assert!(!world.opened.as_ref().unwrap().damaged);
    assert!(!world.events.iter().any(|event| matches!(event, StoreEvent::Damaged(_))));
}
