//! Map pages that come from the disk when they are asked for, and go again.

use super::model::{
    CAPACITY, World, config, create, data, epoch, range, version, without, write, zero,
};
use crate::{Input, Settings, StoreConfig, StoreEvent};
use gabion_format::Layout;
use gabion_types::{BlockKind, DiskOpKind, SegmentIndex, Seq, Version};
use gabion_wire::{Refusal, ReplicaDone, ReplicaOp};

const SEGMENT: SegmentIndex = SegmentIndex::new(0);

fn read(first: u32, count: u32) -> ReplicaOp {
    ReplicaOp::Read { segment: SEGMENT, range: range(first, count) }
}

fn is_read(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Read { .. })
}

/// A store of which no map page is in memory, with two pages in segment 0 and one in each other.
fn opened_with(pages_max: usize) -> World {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    world.ok(1, write(0, version(1, 2), 130, 4));
    world.ok(1, write(1, version(1, 3), 0, 1));
    world.ok(1, write(2, version(1, 4), 0, 1));
    world.input(Input::Stop);
    world.run();
    let settings = Settings { pages_max, ..Settings::default() };
    let mut world = World::with(world.disk, 1, StoreConfig { settings, ..config() });
    world.run();
    assert!(world.opened.is_some());
    assert_eq!((world.store.stats().pages_here, world.store.stats().pages_loaded), (0, 0));
    world
}

// rule: store/map-pages-come-and-go
#[test]
fn a_page_is_read_once_and_its_requests_wait_for_it() {
    let mut world = opened_with(100);
    let first = world.send(1, read(0, 4));
    let second = world.send(1, read(1, 1));
    let other = world.send(1, write(0, version(1, 9), 2, 1));
    assert_eq!(world.store.stats().pending, 3);
    assert!(world.result(first).is_none());
    world.run();
    for (request, blocks) in [(first, 4), (second, 1)] {
        let Some(Ok(ReplicaDone::Blocks { blocks: found, .. })) = world.result(request) else {
            panic!()
        };
        assert_eq!(found.len(), blocks);
        assert!(found.iter().all(|info| info.kind == BlockKind::Data));
    }
    assert_eq!(world.result(other), Some(Ok(ReplicaDone::Done)));
    let stats = world.store.stats();
    assert_eq!((stats.pages_loaded, stats.pages_here, stats.pending), (1, 1, 0));
    assert_eq!(world.read_one(0, 2), data(version(1, 9), 2));
    world.check_no_leak();
}

// rule: store/map-pages-come-and-go
// promise: bounded
#[test]
fn pages_beyond_the_limit_go_and_come_back() {
    let mut world = opened_with(1);
    for round in 0..3 {
        for segment in [1, 2] {
            let seq = if segment == 1 { 3 } else { 4 };
            assert_eq!(world.read_one(segment, 0), data(version(1, seq), 0), "round {round}");
        }
        assert!(world.store.stats().pages_here <= 2);
    }
    assert!(world.store.stats().pages_loaded >= 4, "{:?}", world.store.stats());
    // One that was changed stays until a checkpoint has it.
    for seq in 10..20 {
        world.ok(1, write(0, version(1, seq), 0, 1));
        assert_eq!(world.read_one(1, 0), data(version(1, 3), 0));
        assert_eq!(world.read_one(2, 0), data(version(1, 4), 0));
        assert_eq!(world.read_one(0, 0), data(version(1, seq), 0));
    }
    world.check_no_leak();
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 0), data(version(1, 19), 0));
    assert_eq!(world.read_one(0, 131), data(version(1, 2), 131));
}

// promise: one-owner
// rule: store/fence-waits-for-frames
#[test]
fn what_waits_for_its_page_is_refused_by_a_fence_that_came_meanwhile() {
    let mut world = opened_with(100);
    let late = world.send(1, write(0, version(1, 9), 0, 1));
    let fence = world.send(2, ReplicaOp::Fence { segments: Vec::new() });
    // The fence needs no page, so it is answered before.
    while world.result(fence).is_none() {
        assert!(world.step_where(|kind| !is_read(kind)));
    }
    assert!(world.result(late).is_none());
    world.run();
    assert_eq!(world.result(late), Some(Err(Refusal::Fenced { by: epoch(2) })));
    assert_eq!(world.read_one(0, 0), data(version(1, 1), 0));
}

// rule: store/origin-gone
// rule: store/stop-is-answered
#[test]
fn who_is_gone_gets_no_answer_and_a_stop_refuses_what_waits() {
    let mut world = opened_with(100);
    let gone = world.send_from(7, 1, read(0, 1));
    let waits = world.send_from(8, 1, read(0, 1));
    world.input(Input::OriginGone { origin: crate::Origin(7) });
    world.input(Input::Stop);
    world.run();
    assert_eq!(world.result(waits), Some(Err(Refusal::NotReady)));
    assert_eq!(world.result(gone), None);
    assert!(world.stopped);
}

// promise: no-silent-corruption
// rule: store/lost-map-write-noticed
#[test]
fn a_page_that_rotted_while_it_was_away_is_bad_until_it_is_mended() {
    let mut world = opened_with(100);
    let disk = world.store.disk().unwrap();
    let key = gabion_format::SegmentKey::new(gabion_types::VolumeId::new(1), SEGMENT);
    let at = disk.table.segment(key).unwrap().live(0).unwrap();
    let offset = disk.layout.slot_offset(at.slot);
    world.disk.rot(offset + 1100);
    assert_eq!(world.read_one(0, 1), without(BlockKind::Bad, Version::NEVER));
    assert_eq!(world.read_one(0, 130), data(version(1, 2), 130));
    assert!(world.events.iter().any(|event| matches!(event, StoreEvent::Damaged(_))));
    let blocks = (0..4).map(|block| super::model::info(block, BlockKind::Data, version(1, 1)));
    let blocks: Vec<_> = blocks.collect();
    let payload = super::model::payload(&blocks);
    world.ok(1, ReplicaOp::Repair { segment: SEGMENT, blocks, data: payload });
    assert_eq!(world.read_one(0, 1), data(version(1, 1), 1));
    // What the page named is free again once the whole map was read.
    let mut world = world.restart();
    assert_eq!(world.read_one(0, 1), data(version(1, 1), 1));
    world.check_no_leak();
    let used = world.store.stats().used_bytes;
    let mut world = world.restart();
    assert_eq!(world.read_one(0, 3), data(version(1, 1), 3));
    assert_eq!(world.store.stats().used_bytes, used);
}

#[test]
fn a_page_that_could_not_be_read_once_is_read_again() {
    let mut world = opened_with(100);
    let request = world.send(1, read(0, 1));
    let all = (0..CAPACITY / 4096).collect();
    world.disk.unreadable = all;
    assert!(world.step_where(is_read));
    world.disk.unreadable = Vec::new();
    world.run();
    assert!(matches!(world.result(request), Some(Ok(ReplicaDone::Blocks { .. }))));
    assert_eq!(world.store.stats().damaged_pages, 0);
}

/// What a drop frees is named by pages that are read first.
#[test]
fn a_dropped_segment_gives_all_back_though_none_of_it_was_in_memory() {
    let mut world = opened_with(0);
    for segment in 0..4 {
        let segment = SegmentIndex::new(segment);
        world.ok(1, ReplicaOp::Drop { segment, creation: epoch(1), epoch: epoch(1) });
    }
    let mut world = world.restart();
    assert_eq!(world.store.stats().used_bytes, 0);
    world.ok(2, create(2, 0, 1));
    world.ok(2, zero(0, version(2, 1), 0, 256));
    assert_eq!(world.read_one(0, 0), without(BlockKind::Zero, version(2, 1)));
}

/// The table of a segment is told in parts where its pages have to be read first.
#[test]
fn a_scan_reads_the_pages_that_it_looks_at() {
    let mut world = opened_with(0);
    let mut from = gabion_types::BlockIndex::default();
    let mut told = Vec::new();
    loop {
        let (seq_above, epoch_from, entries_max) = (Seq::ZERO, None, 100);
        let op = ReplicaOp::Scan { segment: SEGMENT, from, seq_above, epoch_from, entries_max };
        let Ok(ReplicaDone::Table { entries, next }) = world.ask(1, op) else { panic!() };
        told.extend(entries.iter().map(|info| info.block.get()));
        let Some(next) = next else { break };
        assert!(next > from, "it goes on");
        from = next;
    }
    assert_eq!(told, vec![0, 1, 2, 3, 130, 131, 132, 133]);
}

// rule: store/odd-disk-is-read-whole
// promise: self-describing
#[test]
fn without_a_bitmap_that_can_be_used_the_whole_map_is_read() {
    let world = opened_with(100);
    let layout = Layout::new(CAPACITY, super::model::limits().segment).unwrap();
    let used = world.store.stats().used_bytes;
    for place in layout.bitmap_at {
        let mut disk = world.disk.clone();
        disk.sync();
        disk.rot(place + 2000);
        let mut world = World::on(disk, 1);
        world.run();
        let opened = world.opened.as_ref().unwrap();
        assert!(!opened.damaged, "another one is made of the map");
        assert_eq!(world.store.stats().used_bytes, used);
        assert_eq!(world.read_one(0, 131), data(version(1, 2), 131));
        world.check_no_leak();
    }
}
