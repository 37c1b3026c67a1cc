//! Writes, group commit, fences, origins: one promise a test.

use super::model::{
    World, create, data, epoch, fill, limits, range, version, without, write, write_settled, zero,
};
use crate::{Input, Origin};
use bytes::Bytes;
use gabion_types::{
    BlockKind, DiskOpKind, Duration, MapIndex, SegmentIndex, Seq, Version, VolumeId, block_crc,
};
use gabion_wire::{FencedSegment, Refusal, ReplicaDone, ReplicaOp};

fn is_write(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Write { .. })
}

fn is_sync(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Sync)
}

fn fence() -> ReplicaOp {
    let segments = (0..4).map(|segment| FencedSegment {
        segment: SegmentIndex::new(segment),
        creation: epoch(1),
        joined: None,
    });
    ReplicaOp::Fence { segments: segments.collect() }
}

// rule: store/sync-before-answer
// promise: acked-survives
#[test]
fn a_lone_write_is_one_round_of_writes_and_one_sync() {
    let mut world = World::new(1);
    let (writes, syncs) = (world.writes_done, world.syncs_done);
    let request = world.send(1, write(0, version(1, 1), 0, 1));
    assert!(world.step_where(is_write) && world.result(request).is_none());
    assert!(!world.step_where(is_sync), "not before all writes are in");
    assert!(world.step_where(is_write) && world.result(request).is_none());
    assert!(world.is_idle() || world.result(request).is_none());
    assert!(world.step_where(is_sync));
    assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
    assert_eq!((world.writes_done - writes, world.syncs_done - syncs), (2, 1));
}

#[test]
fn what_arrives_during_a_sync_shares_the_next_frame() {
    let mut world = World::new(1);
    world.send(1, write(0, version(1, 1), 0, 1));
    while world.step_where(is_write) {}
    let frames = world.store.stats().frames;
    let requests: Vec<_> =
        (2..40).map(|seq| world.send(1, write(0, version(1, seq), 8, 1))).collect();
    world.run();
    assert!(requests.iter().all(|request| world.result(*request).is_some()));
    assert_eq!(world.store.stats().frames - frames, 1);
}

#[test]
fn a_stream_is_one_write_of_the_disk() {
    let mut world = World::new(1);
    let writes = world.writes_done;
    world.ok(1, write(0, version(1, 1), 10, 64));
    assert_eq!(world.writes_done - writes, 2, "data and frame");
    assert_eq!(
        world.read(0, 9, 2),
        vec![without(BlockKind::Absent, Version::NEVER), data(version(1, 1), 10)]
    );
}

// rule: store/apply-rule
#[test]
fn of_two_writes_in_flight_the_newer_stays() {
    let mut world = World::new(1);
    let newer = world.send(1, write(0, version(1, 9), 0, 4));
    let older = world.send(1, write(0, version(1, 8), 2, 4));
    world.run();
    assert_eq!(world.result(newer), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.result(older), Some(Ok(ReplicaDone::Done)));
    let expected = vec![data(version(1, 9), 3), data(version(1, 8), 4)];
    assert_eq!(world.read(0, 3, 2), expected);
    assert_eq!(world.crash().read(0, 3, 2), expected);
}

// rule: store/known-version-is-done
#[test]
fn a_version_on_its_way_is_answered_when_it_is_durable_and_a_known_one_at_once() {
    let mut world = World::new(1);
    let first = world.send(1, write(0, version(1, 1), 0, 1));
    let again = world.send_from(2, 1, write(0, version(1, 1), 0, 1));
    while world.step_where(is_write) {}
    assert_eq!((world.result(first), world.result(again)), (None, None));
    world.run();
    assert_eq!(world.result(again), Some(Ok(ReplicaDone::Done)));
    let writes = world.writes_done;
    world.ok(1, write(0, version(1, 1), 0, 1));
    assert_eq!(world.writes_done, writes);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::new(1);
    let mut bad = write(0, version(1, 1), 0, 1);
    if let ReplicaOp::Write { data, .. } = &mut bad {
        *data = Bytes::from(fill(version(1, 2), 0));
    }
    assert_eq!(world.ask(1, bad), Err(Refusal::BadPayload));
    assert_eq!(world.ask(1, write(0, version(1, 1), 255, 2)), Err(Refusal::Invalid));
    let mut short = write(0, version(1, 1), 0, 2);
    if let ReplicaOp::Write { crcs, .. } = &mut short {
        crcs.pop();
    }
    assert_eq!(world.ask(1, short), Err(Refusal::Invalid));
    assert_eq!(world.read_one(0, 0), without(BlockKind::Absent, Version::NEVER));
}

// rule: store/writes-make-no-segment
#[test]
fn a_write_makes_no_segment() {
    let mut world = World::new(1);
    assert_eq!(world.ask(1, write(9, version(1, 1), 0, 1)), Err(Refusal::NoSegment));
    assert_eq!(world.ask(1, zero(9, version(1, 1), 0, 1)), Err(Refusal::NoSegment));
    // Also not one that a request under way might have made, but did not.
    let wrong = world.send(1, create(5, 0, 1));
    let write = world.send(1, write(9, version(1, 1), 0, 1));
    world.run();
    assert_eq!(world.result(wrong), Some(Err(Refusal::WrongEpoch)));
    assert_eq!(world.result(write), Some(Err(Refusal::NoSegment)));
    let used = world.store.stats().used_bytes;
    let world = world.crash();
    assert_eq!(world.store.segments().count(), 4);
    assert!(world.store.stats().used_bytes <= used + 4096, "nothing leaks");
}

#[test]
fn a_write_right_behind_a_create_is_taken() {
    let mut world = World::new(1);
    let made = world.send(1, create(1, 9, 1));
    let written = world.send(1, write(9, version(1, 1), 0, 1));
    world.run();
    assert_eq!(world.result(made), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.result(written), Some(Ok(ReplicaDone::Done)));
    world.ok(1, create(1, 9, 1));
    assert_eq!(world.read_one(9, 0), data(version(1, 1), 0));
}

// promise: one-owner
// rule: store/fence-waits-for-frames
#[test]
fn a_fence_refuses_what_is_in_no_frame_and_waits_for_what_is() {
    let mut world = World::new(1);
    let framed = world.send(1, write(0, version(1, 1), 0, 1));
    let queued = world.send(1, write(0, version(1, 2), 0, 1));
    let fence = world.send(2, fence());
    assert_eq!(world.result(queued), Some(Err(Refusal::Fenced { by: epoch(2) })));
    let late = world.send(1, write(0, version(1, 3), 0, 1));
    assert_eq!(world.result(late), Some(Err(Refusal::Fenced { by: epoch(2) })));
    assert_eq!(world.result(fence), None);
    world.run();
    assert_eq!(world.result(framed), Some(Ok(ReplicaDone::Done)));
    let Some(Ok(ReplicaDone::Fenced { reports })) = world.result(fence) else { panic!() };
    assert_eq!(reports[0].highest, Seq::new(1));
    assert_eq!(world.read_one(0, 0), data(version(1, 1), 0));
    let mut world = world.crash();
    assert_eq!(world.ask(1, write(0, version(1, 4), 0, 1)), Err(Refusal::Fenced { by: epoch(2) }));
    world.ok(2, write(0, version(1, 4), 0, 1));
}

#[test]
fn only_a_fence_raises_the_fence() {
    let mut world = World::new(1);
    world.ok(7, write(0, version(7, 1), 0, 1));
    world.ok(1, write(0, version(1, 2), 1, 1));
    assert_eq!(world.store.fence(VolumeId::new(1)), epoch(0));
    assert!(world.ask(7, fence()).is_ok());
    assert!(world.ask(7, fence()).is_ok(), "equal is accepted");
    assert_eq!(world.ask(6, fence()), Err(Refusal::Fenced { by: epoch(7) }));
}

#[test]
fn a_volume_that_the_disk_holds_nothing_of_is_fenced_too() {
    let mut world = World::new(1);
    let request = world.send_of(1, 5, 3, fence());
    world.run();
    let Some(Ok(ReplicaDone::Fenced { reports })) = world.result(request) else { panic!() };
    assert!(reports.iter().all(|report| !report.present));
    let world = world.crash();
    assert_eq!(world.store.fence(VolumeId::new(5)), epoch(3));
    let held = world.store.volumes();
    assert_eq!(held.iter().map(|held| held.segments).collect::<Vec<_>>(), vec![4, 0]);
    // Also past a checkpoint.
    assert_eq!(world.restart().store.fence(VolumeId::new(5)), epoch(3));
}

// rule: store/origin-gone
#[test]
fn of_an_origin_that_is_gone_only_what_is_in_a_frame_happens() {
    let mut world = World::new(1);
    let free = world.store.stats().used_bytes;
    let framed = world.send_from(1, 1, write(0, version(1, 1), 0, 1));
    let queued = world.send_from(1, 1, write(0, version(1, 2), 1, 1));
    let other = world.send_from(2, 1, write(0, version(1, 3), 2, 1));
    world.input(Input::OriginGone { origin: Origin(1) });
    world.run();
    assert_eq!((world.result(framed), world.result(queued)), (None, None));
    assert_eq!(world.result(other), Some(Ok(ReplicaDone::Done)));
    assert_eq!(
        world.read(0, 0, 3),
        vec![
            data(version(1, 1), 0),
            without(BlockKind::Absent, Version::NEVER),
            data(version(1, 3), 2),
        ]
    );
    assert_eq!(world.store.stats().used_bytes - free, 2 * 4096, "its slots are free again");
}

// rule: store/origin-gone
#[test]
fn a_fence_whose_origin_is_gone_before_its_frame_binds_nobody() {
    let mut world = World::new(1);
    let framed = world.send_from(1, 1, write(0, version(1, 1), 0, 1));
    world.send_from(2, 5, ReplicaOp::Fence { segments: Vec::new() });
    world.send_from(3, 4, ReplicaOp::Fence { segments: Vec::new() });
    let kept = world.send_from(1, 7, ReplicaOp::Fence { segments: Vec::new() });
    world.input(Input::OriginGone { origin: Origin(2) });
    assert_eq!(world.ask(6, write(0, version(6, 2), 0, 1)), Err(Refusal::Fenced { by: epoch(7) }));
    assert!(matches!(world.result(kept), Some(Ok(ReplicaDone::Fenced { .. }))));
    assert_eq!(world.result(framed), Some(Ok(ReplicaDone::Done)));
    let framed = world.send_from(1, 7, write(0, version(7, 3), 0, 1));
    world.send_from(2, 9, ReplicaOp::Fence { segments: Vec::new() });
    world.input(Input::OriginGone { origin: Origin(2) });
    world.ok(8, write(0, version(8, 4), 1, 1));
    assert_eq!(world.result(framed), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.crash().store.fence(VolumeId::new(1)), epoch(7));
}

#[test]
fn zeroes_free_slots_and_cost_no_data() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 256));
    let (used, writes) = (world.store.stats().used_bytes, world.writes_done);
    world.ok(1, zero(0, version(1, 2), 0, 255));
    assert_eq!(world.writes_done - writes, 1, "one frame");
    assert_eq!(used - world.store.stats().used_bytes, 255 * 4096);
    let mut world = world.crash();
    assert_eq!(
        world.read(0, 254, 2),
        vec![without(BlockKind::Zero, version(1, 2)), data(version(1, 1), 255),]
    );
}

#[test]
fn the_settled_seq_rides_with_the_next_frame_or_gets_one_when_idle() {
    let mut world = World::new(1);
    let settled = |world: &World| {
        let held = world.store.segment(VolumeId::new(1), SegmentIndex::new(0)).unwrap();
        held.settled.get()
    };
    world.ok(1, write_settled(0, version(1, 5), 0, 1, 4));
    assert_eq!(settled(&world), 0);
    world.ok(1, write_settled(0, version(1, 6), 0, 1, 5));
    assert_eq!(settled(&world), 4);
    let due = world.store.next_deadline().unwrap();
    assert!(due.since(world.now) <= Duration::from_secs(1));
    world.tick(Duration::from_secs(1));
    world.run();
    assert_eq!((settled(&world), world.store.next_deadline()), (5, None));
    world.send(1, ReplicaOp::Advance { settled: vec![(SegmentIndex::new(0), Seq::new(6))] });
    world.tick(Duration::from_secs(1));
    world.run();
    assert_eq!(settled(&world.crash()), 6);
}

#[test]
fn the_highest_map_index_is_kept() {
    let mut world = World::new(1);
    world.input(Input::SawMap(MapIndex::new(77)));
    world.input(Input::SawMap(MapIndex::new(76)));
    world.tick(Duration::from_secs(1));
    world.run();
    let world = world.crash();
    assert_eq!(world.opened.as_ref().unwrap().highest_map, MapIndex::new(77));
    let mut world = world;
    world.input(Input::SawMap(MapIndex::new(78)));
    let world = world.restart();
    let opened = world.opened.as_ref().unwrap();
    assert_eq!((opened.highest_map, opened.limits), (MapIndex::new(78), limits()));
}

#[test]
fn a_scan_goes_page_by_page() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 100));
    world.ok(1, write(0, version(2, 2), 120, 20));
    world.ok(1, zero(0, version(3, 3), 250, 2));
    let mut scan = |from: u32, above: u64, epoch_from: Option<u64>, most: u32| {
        let op = ReplicaOp::Scan {
            segment: SegmentIndex::new(0),
            from: gabion_types::BlockIndex::new(from),
            seq_above: Seq::new(above),
            epoch_from: epoch_from.map(epoch),
            entries_max: most,
        };
        match world.ask(9, op) {
            Ok(ReplicaDone::Table { entries, next }) => {
                let blocks = entries.iter().map(|info| info.block.get()).collect::<Vec<_>>();
                (blocks, next.map(gabion_types::BlockIndex::get))
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(scan(0, 1, None, 1000), ((120..140).chain(250..252).collect(), None));
    assert_eq!(scan(0, 1, None, 5), ((120..125).collect(), Some(125)));
    assert_eq!(scan(125, 1, None, 15), ((125..140).collect(), Some(250)));
    assert_eq!(scan(250, 1, None, 2), (vec![250, 251], None));
    assert_eq!(scan(0, 100, Some(3), 9), (vec![250, 251], None));
    assert_eq!(scan(0, 0, None, 3), (vec![0, 1, 2], Some(3)));
}

// rule: store/slot-freed-after-reads
#[test]
fn a_read_under_way_sees_what_was_there_whatever_happens_to_its_slots() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    let op = ReplicaOp::Read { segment: SegmentIndex::new(0), range: range(0, 8) };
    let read = world.send(1, op);
    // The whole disk is written over and over meanwhile.
    for seq in 2..400 {
        world.send(1, write(0, version(1, seq), 0, 250));
        while world.step_where(|kind| !matches!(kind, DiskOpKind::Read { .. })) {}
    }
    world.run();
    let Some(Ok(ReplicaDone::Blocks { data, blocks })) = world.result(read) else { panic!() };
    assert!(blocks.iter().all(|info| info.version == version(1, 1)));
    let crcs = data.chunks(4096).map(block_crc);
    assert!(crcs.eq((0..8).map(|block| block_crc(&fill(version(1, 1), block)))));
    assert!(world.store.stats().corrupt_blocks == 0);
}

// promise: bounded
#[test]
fn a_full_journal_makes_requests_wait_and_nothing_fail() {
    let mut world = World::new(1);
    let metadata = world.store.stats().checkpoints;
    let mut requests = Vec::new();
    // The checkpoint's superblock does not come to pass, so the tail does not move.
    let is_superblock =
        |kind: &DiskOpKind| matches!(kind, DiskOpKind::Write { offset, .. } if *offset <= 4096);
    for seq in 1..600 {
        requests
            .push(world.send(1, write(0, version(1, seq), u32::try_from(seq % 200).unwrap(), 1)));
        while world.step_where(|kind| !is_superblock(kind)) {}
    }
    assert_eq!(world.store.stats().checkpoints, metadata);
    let waiting = requests.iter().filter(|request| world.result(**request).is_none()).count();
    assert!(waiting > 100, "{waiting} wait for room in the ring");
    world.run();
    assert!(requests.iter().all(|request| world.result(*request) == Some(Ok(ReplicaDone::Done))));
    assert!(world.store.stats().checkpoints > metadata);
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 199), data(version(1, 599), 199));
}

// promise: bounded
// rule: store/full-disk-serves-overwrites
#[test]
fn a_full_disk_refuses_new_data_before_anything_and_serves_the_rest() {
    let mut world = World::new(1);
    world.ok(1, create(1, 4, 20));
    let mut full = None;
    for (segment, first) in (0..24).flat_map(|segment| (0..4).map(move |part| (segment, part * 64)))
    {
        let op = write(segment, version(1, u64::from(first) + 1), first, 64);
        let request = world.send(1, op);
        world.run();
        if world.result(request) == Some(Err(Refusal::NoSpace)) {
            assert!(world.answers[&request].credit_bytes < 1 << 20);
            full = Some((segment, first));
            break;
        }
        assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
    }
    let (segment, first) = full.expect("24 MiB do not fit on 16");
    assert_eq!(world.read_one(segment, first), without(BlockKind::Absent, Version::NEVER));
    for seq in 1000..1100 {
        world.ok(1, write(0, version(1, seq), 0, 128));
    }
    // More overwrites at once than the reserve holds: they wait for each other.
    let many: Vec<_> =
        (2000..2030).map(|seq| world.send(1, write(1, version(1, seq), 0, 64))).collect();
    world.run();
    assert!(many.iter().all(|request| world.result(*request) == Some(Ok(ReplicaDone::Done))));
    world.ok(1, zero(2, version(1, 3000), 0, 256));
    world.ok(1, write(segment, version(1, 3001), first, 64));
    let mut world = world.restart();
    assert_eq!(world.read_one(0, 127), data(version(1, 1099), 127));
    assert_eq!(world.read_one(2, 3), without(BlockKind::Zero, version(1, 3000)));
}

/// Fills the disk: new data has no room any more.
fn fill_disk(world: &mut World, segments: u32) {
    for (segment, first) in (0..segments).flat_map(|at| (0..4).map(move |part| (at, part * 64))) {
        let request = world.send(1, write(segment, version(1, u64::from(first) + 1), first, 64));
        world.run();
        if world.result(request) == Some(Err(Refusal::NoSpace)) {
            return;
        }
    }
    panic!("it is too small for this");
}

// promise: bounded
// rule: store/holes-leave-room-for-overwrites
#[test]
fn holes_where_nothing_was_do_not_eat_what_overwrites_need() {
    let mut world = World::new(1);
    let segments = u32::try_from(world.store.disk().unwrap().table.geometry.segments_max).unwrap();
    world.ok(1, create(1, 4, segments - 4));
    fill_disk(&mut world, 24);
    let reserve = world.store.disk().unwrap().reserve_slots();
    let mut refused = 0;
    for segment in 24..segments {
        match world.ask(1, zero(segment, version(1, 5000), 0, 256)) {
            Ok(done) => assert_eq!(done, ReplicaDone::Done),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::NoSpace);
                refused += 1;
            }
        }
        let disk = world.store.disk().unwrap();
        assert!(disk.slots_usable() >= reserve / 2, "{}", disk.slots_usable());
    }
    assert!(refused > 0, "{segments} segments' pages do not fit");
    // All that is there may be written over, and emptied; and the map has room.
    for seq in 6000..6050 {
        world.ok(1, write(0, version(1, seq), 0, 128));
    }
    world.ok(1, zero(2, version(1, 6100), 0, 256));
    let mut world = world.restart();
    assert_eq!(world.read_one(0, 127), data(version(1, 6049), 127));
    assert_eq!(world.read_one(2, 3), without(BlockKind::Zero, version(1, 6100)));
    world.check_no_leak();
}

/// A segment page takes two places as well: what is owed never exceeds what is free.
// rule: store/metadata-has-room
#[test]
fn a_full_disk_always_has_room_for_its_map() {
    let mut world = World::new(1);
    let segments = u32::try_from(world.store.disk().unwrap().table.geometry.segments_max).unwrap();
    world.ok(1, create(1, 4, segments - 4));
    // One block in each segment: of five slots four are for pages.
    let mut many = Vec::new();
    for seq in 1..40 {
        for segment in 0..segments {
            let first = u32::try_from(seq * 6 % 256).unwrap();
            many.push(world.send(1, write(segment, version(1, seq), first, 6.min(256 - first))));
            let disk = world.store.disk().unwrap();
            let owed = disk.table.places_owed() + disk.places_coming;
            assert!(owed <= disk.slots.free(), "{owed} of {}", disk.slots.free());
        }
        world.run();
    }
    let answers: Vec<_> = many.iter().map(|request| world.result(*request)).collect();
    assert!(answers.contains(&Some(Err(Refusal::NoSpace))));
    let world = world.restart();
    world.crash().check_no_leak();
}

// rule: store/writes-under-way-are-bounded
// promise: bounded
#[test]
fn no_more_is_on_its_way_to_a_disk_than_its_reserve_covers() {
    let mut world = World::new(1);
    let blocks_max = u32::try_from(limits().write_bytes_per_disk / 4096).unwrap();
    let count = u64::from(blocks_max / 8);
    let send = |world: &mut World, seq: u64| world.send(1, write(0, version(1, seq), 0, 8));
    let first: Vec<_> = (1..=count).map(|seq| send(&mut world, seq)).collect();
    assert_eq!(world.store.disk().unwrap().blocks_out, u64::from(blocks_max));
    // Some more waits in line; what comes then is asked again by its owner.
    let large = |world: &mut World, seq: u64| world.send(1, write(1, version(1, seq), 0, 256));
    let lined = crate::config::WAITING_BLOCKS_MAX / 256;
    let second: Vec<_> = (1..=lined).map(|seq| large(&mut world, seq)).collect();
    assert_eq!(world.store.disk().unwrap().blocks_out, u64::from(blocks_max));
    let refused = large(&mut world, lined + 1);
    assert_eq!(world.result(refused), Some(Err(Refusal::Busy)));
    // What has no data is not held up.
    let hole = world.send(1, zero(0, version(1, count + 2), 20, 1));
    world.run();
    for request in first.into_iter().chain(second).chain([hole]) {
        assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
    }
    let disk = world.store.disk().unwrap();
    assert_eq!((disk.blocks_out, disk.blocks_waiting), (0, 0));
}
