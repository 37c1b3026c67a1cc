//! Disks that are not ours, that fail, that lie, and that rot.

use super::model::{
    CAPACITY, CLUSTER, ModelDisk, PAGE, World, config, data, epoch, formatted, info, payload,
    version, without, write,
};
use crate::{During, OutOfService, Part, StoreConfig, StoreEvent};
use gabion_format::{Layout, Superblock};
use gabion_types::{
    BlockKind, ClusterId, DiskError, DiskOpKind, Duration, SegmentIndex, Seq, Version, VolumeId,
};
use gabion_wire::{FenceReport, FencedSegment, Refusal, ReplicaDone, ReplicaOp};

fn why(disk: ModelDisk, config: StoreConfig) -> OutOfService {
    let mut world = World::with(disk, 1, config);
    world.run();
    assert_eq!(world.ask(1, write(0, version(1, 1), 0, 1)), Err(Refusal::OutOfService));
    world.input(crate::Input::Stop);
    assert!(world.stopped);
    world.out.expect("it is refused")
}

fn layout() -> Layout {
    Layout::new(CAPACITY, super::model::limits().segment).unwrap()
}

fn report(world: &mut World, owner: u64) -> FenceReport {
    let asked = FencedSegment { segment: SegmentIndex::new(0), creation: epoch(1), joined: None };
    match world.ask(owner, ReplicaOp::Fence { segments: vec![asked] }) {
        Ok(ReplicaDone::Fenced { reports }) => reports[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_that_is_not_ours_is_refused_by_name() {
    assert_eq!(why(ModelDisk::default(), config()), OutOfService::NotFormatted);
    let other = StoreConfig { cluster: Some(ClusterId::new([8; 16])), ..config() };
    assert_eq!(why(formatted(1), other), OutOfService::OtherCluster { found: CLUSTER });
    let short = StoreConfig { capacity_bytes: CAPACITY - 4096, ..config() };
    let truncated = OutOfService::Truncated { found: CAPACITY - 4096, expected: CAPACITY };
    assert_eq!(why(formatted(1), short), truncated);
    let mut rotten = formatted(1);
    rotten.rot(200);
    assert_eq!(why(rotten, config()), OutOfService::Damaged);
    let mut rootless = formatted(1);
    rootless.rot(layout().root_place(2) + 99);
    assert_eq!(why(rootless, config()), OutOfService::Damaged);
    let mut half = formatted(1);
    let mut other = Superblock::decode(&half.page(0)).unwrap();
    (other.uuid, other.generation) = ([2; 16], 7);
    half.put(PAGE as u64, &other.encode());
    assert_eq!(why(half, config()), OutOfService::NotFormatted);
    let mut newer = formatted(1);
    let mut page = newer.page(0).to_vec();
    page[8] = 9;
    page[12..16].fill(0);
    let crc = gabion_types::block_crc(&page).get();
    page[12..16].copy_from_slice(&crc.to_le_bytes());
    newer.put(0, &page.into());
    assert_eq!(why(newer, config()), OutOfService::TooNew { version: 9 });
    let mut dead = formatted(1);
    dead.unreadable = vec![0, 1];
    let error = DiskError::Io { errno: 5 };
    assert_eq!(why(dead, config()), OutOfService::Failed { during: During::Open, error });
}

#[test]
fn formatting_makes_what_was_there_void() {
    let mut world = World::new(1);
    for seq in 1..50 {
        world.ok(1, write(0, version(1, seq), 0, 8));
    }
    world.cut();
    let mut disk = world.disk;
    for (number, page) in formatted_pages(2) {
        disk.put(number * PAGE as u64, &page);
    }
    let mut world = World::on(disk, 3);
    world.run();
    assert_eq!(world.store.segments().count(), 0);
    world.ok(1, super::model::create(1, 0, 1));
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 0), without(BlockKind::Absent, Version::NEVER));
}

fn formatted_pages(uuid: u8) -> Vec<(u64, bytes::Bytes)> {
    let disk = formatted(uuid);
    let root = layout().root_place(2) / PAGE as u64;
    [0, 1, root].into_iter().map(|number| (number, disk.page(number))).collect()
}

fn is_write(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Write { .. })
}

// rule: store/failed-write-ends-service
#[test]
fn a_failed_write_or_sync_ends_service_for_all() {
    for during in [During::Write, During::Sync] {
        let mut world = World::new(1);
        let requests = [1, 2].map(|seq| world.send(1, write(0, version(1, seq), 0, 1)));
        if during == During::Sync {
            while world.step_where(is_write) {}
        }
        let error = DiskError::Io { errno: 5 };
        world.fail_next = Some(error);
        world.step();
        assert_eq!(world.out, Some(OutOfService::Failed { during, error }));
        for request in requests {
            assert_eq!(world.result(request), Some(Err(Refusal::OutOfService)));
        }
        // What was under way comes in; nothing more is asked of the disk.
        world.run();
        assert_eq!(world.ask(1, write(0, version(1, 3), 0, 1)), Err(Refusal::OutOfService));
        world.input(crate::Input::Stop);
        assert!(world.stopped);
    }
}

// rule: store/stop-is-answered
#[test]
fn a_disk_that_fails_while_it_stops_has_stopped() {
    for during in [During::Write, During::Sync] {
        let mut world = World::new(1);
        world.ok(1, write(0, version(1, 1), 0, 1));
        world.input(crate::Input::Stop);
        assert!(!world.stopped, "its checkpoint is under way");
        if during == During::Sync {
            while world.step_where(is_write) {}
        }
        world.fail_next = Some(DiskError::Io { errno: 5 });
        world.step();
        assert!(matches!(world.out, Some(OutOfService::Failed { .. })), "{:?}", world.out);
        assert!(world.stopped, "{during}");
        world.run();
    }
}

/// The frames in the ring, by their place, with their lsn.
fn frames(disk: &ModelDisk) -> Vec<(u64, gabion_format::Frame)> {
    let layout = layout();
    let places = (0..layout.journal_bytes).step_by(PAGE).map(|at| layout.journal_at + at);
    places
        .filter_map(|offset| {
            let page = disk.page(offset / PAGE as u64);
            gabion_format::Frame::decode(&page, [9; 16]).ok().map(|frame| (offset, frame))
        })
        .collect()
}

// rule: store/recovery-decides
#[test]
fn a_hole_below_what_was_durable_is_damage_and_what_lies_behind_still_counts() {
    let mut world = World::new(1);
    for seq in 1..=5 {
        world.ok(1, write(0, version(1, seq), u32::try_from(seq).unwrap(), 1));
    }
    world.cut();
    let (third, _) = frames(&world.disk)[3];
    let mut disk = world.disk;
    disk.rot(third + 100);
    let mut world = World::on(disk, 1);
    world.run();
    assert!(world.opened.as_ref().unwrap().damaged);
    assert_eq!(world.read_one(0, 2), data(version(1, 2), 2));
    assert_eq!(world.read_one(0, 3).kind, BlockKind::Absent);
    assert_eq!(world.read_one(0, 5), data(version(1, 5), 5));
    assert!(report(&mut world, 2).damaged);
    // It stays damaged until it has joined anew.
    let mut world = world.crash();
    assert!(report(&mut world, 3).damaged);
    let (segment, joined) = (SegmentIndex::new(0), epoch(3));
    assert!(world.ask(3, ReplicaOp::JoinStart { segment, joined, creation: epoch(1) }).is_ok());
    world.ok(3, ReplicaOp::Promoted { segment, joined, settled: Seq::new(5) });
    assert!(!report(&mut world, 3).damaged);
}

// rule: store/recovery-decides
#[test]
fn a_tail_whose_data_is_not_there_is_dropped_and_told_until_the_next_epoch_starts() {
    let mut world = World::new(1);
    // The checkpoint of the opening is over.
    world.run();
    world.ok(1, write(0, version(1, 1), 0, 1));
    world.ok(1, write(0, version(1, 7), 0, 2));
    // The disk said that it was synced, and lied.
    let volume = VolumeId::new(1);
    let block = gabion_types::BlockIndex::new(1);
    let place = world.locate(volume, SegmentIndex::new(0), block).unwrap();
    world.disk.rot(place.offset);
    world.cut();
    let mut world = World::on(world.disk, 2);
    world.run();
    assert!(!world.opened.as_ref().unwrap().damaged);
    assert!(matches!(world.events[0], StoreEvent::Recovered { frames: 2, entries_dropped: 1 }));
    assert_eq!(world.read_one(0, 0), data(version(1, 1), 0));
    assert_eq!(report(&mut world, 2).dropped_from, Some(Seq::new(7)));
    let mut world = world.crash();
    assert_eq!(report(&mut world, 3).dropped_from, Some(Seq::new(7)));
    let start = gabion_wire::EpochStart {
        segment: SegmentIndex::new(0),
        epoch: epoch(3),
        next: Seq::new(8),
    };
    world.ok(3, ReplicaOp::EpochStart { starts: vec![start] });
    assert_eq!(report(&mut world, 3).dropped_from, None);
}

/// A frame that does not name the one before it is not its successor.
#[test]
fn a_frame_behind_another_than_it_names_counts_for_nothing() {
    let mut world = World::new(1);
    for seq in 1..=3 {
        world.ok(1, write(0, version(1, seq), u32::try_from(seq).unwrap(), 1));
    }
    world.cut();
    let (offset, second) = &frames(&world.disk)[2];
    let head = gabion_format::FrameHead { durable: second.head.lsn, ..second.head };
    let (forged, _) = gabion_format::encode_frame(&head, second.entries.iter());
    let mut disk = world.disk;
    disk.put(*offset, &forged);
    let mut world = World::on(disk, 1);
    world.run();
    assert_eq!(world.read_one(0, 2), data(version(1, 2), 2));
    assert_eq!(world.read_one(0, 3).kind, BlockKind::Absent);
}

// promise: no-silent-corruption
// rule: store/lost-map-write-noticed
// rule: store/lost-page-is-bad-not-empty
#[test]
fn a_map_page_that_the_disk_lost_makes_its_blocks_bad_not_empty() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    world.ok(1, write(0, version(1, 2), 130, 4));
    let mut world = world.restart();
    world.ok(1, write(0, version(1, 3), 1, 1));
    let before = world.disk.clone();
    let mut world = world.restart();
    // The write of the first map page is undone, as if the disk had lost it.
    let is_page = |disk: &ModelDisk, number: u64| {
        gabion_format::MapPage::decode(&disk.page(number)).is_ok_and(|page| page.index == 0)
    };
    let pool = layout().pool_at / PAGE as u64;
    let numbers: Vec<_> = (pool..CAPACITY / PAGE as u64)
        .filter(|number| is_page(&world.disk, *number))
        .filter(|number| world.disk.page(*number) != before.page(*number))
        .collect();
    assert_eq!(numbers.len(), 1, "one place was written");
    world.cut();
    let mut disk = world.disk;
    disk.put(numbers[0] * PAGE as u64, &before.page(numbers[0]));
    // Who reads the whole map when it opens says so at once.
    let mut whole = World::with(disk.clone(), 1, StoreConfig { whole_map: true, ..config() });
    whole.run();
    assert!(whole.opened.as_ref().unwrap().damaged && report(&mut whole, 2).damaged);
    let mut world = World::on(disk, 1);
    world.run();
    assert!(!report(&mut world, 2).damaged, "nobody has looked");
    assert_eq!(world.read_one(0, 0), without(BlockKind::Bad, Version::NEVER));
    assert_eq!(world.read_one(0, 130), data(version(1, 2), 130));
    assert!(report(&mut world, 2).damaged);
    assert!(world.events.iter().any(|event| matches!(event, StoreEvent::Damaged(_))));
    assert_eq!(world.store.stats().damaged_pages, 1);
    let scan = ReplicaOp::Scan {
        segment: SegmentIndex::new(0),
        from: gabion_types::BlockIndex::default(),
        seq_above: Seq::new(1000),
        epoch_from: None,
        entries_max: 1000,
    };
    let Ok(ReplicaDone::Table { entries, .. }) = world.ask(2, scan) else { panic!() };
    assert_eq!(entries.len(), 128, "what is unknown is told");
    let blocks = vec![info(0, BlockKind::Data, version(1, 1))];
    let data_bytes = payload(&blocks);
    world.ok(2, ReplicaOp::Repair { segment: SegmentIndex::new(0), blocks, data: data_bytes });
    world.ok(2, write(0, version(2, 9), 1, 1));
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 0), data(version(1, 1), 0));
    assert_eq!(world.read_one(0, 1), data(version(2, 9), 1));
    assert_eq!(world.read_one(0, 2), without(BlockKind::Bad, Version::NEVER));
}

#[test]
fn a_lost_segment_page_makes_its_blocks_bad() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    world.ok(1, write(1, version(1, 1), 0, 4));
    let mut world = world.restart();
    world.cut();
    let pool = layout().pool_at / PAGE as u64;
    let number = (pool..CAPACITY / PAGE as u64)
        .find(|number| {
            let page = gabion_format::SegmentPage::decode(&world.disk.page(*number));
            page.is_ok_and(|page| page.key.segment == SegmentIndex::new(0))
        })
        .unwrap();
    let mut disk = world.disk;
    disk.unreadable.push(number);
    let mut world = World::on(disk, 1);
    world.run();
    assert_eq!(world.read_one(0, 0), without(BlockKind::Bad, Version::NEVER));
    assert_eq!(world.read_one(1, 0), data(version(1, 1), 0));
}

#[test]
fn a_lost_newer_superblock_is_noticed() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 1));
    let mut world = world.restart();
    world.ok(1, write(0, version(1, 2), 0, 1));
    world.cut();
    let generation = |number: u64| {
        Superblock::decode(&world.disk.page(number)).map(|superblock| superblock.generation)
    };
    let newest = u64::from(generation(1).unwrap() > generation(0).unwrap());
    let mut disk = world.disk;
    disk.rot(newest * PAGE as u64 + 50);
    let mut world = World::on(disk, 1);
    world.run();
    assert!(world.opened.as_ref().unwrap().damaged);
}

/// The places of both superblocks, read.
fn superblocks(disk: &ModelDisk) -> [Superblock; 2] {
    [0, 1].map(|number| Superblock::decode(&disk.page(number)).unwrap())
}

fn checkpoint_of_a_full_journal(world: &mut World, seq: &mut u64) -> ModelDisk {
    let checkpoints = world.store.stats().checkpoints;
    loop {
        let before = world.disk.clone();
        *seq += 1;
        world.ok(1, write(0, version(1, *seq), u32::try_from(*seq % 200).unwrap(), 1));
        if world.store.stats().checkpoints > checkpoints {
            return before;
        }
    }
}

/// What the disk did not do of its newest superblock's write: that place is as it was before.
fn lose_superblock(disk: &mut ModelDisk, before: &ModelDisk) {
    let newest = superblocks(disk).map(|superblock| superblock.generation);
    let newest = u64::from(newest[1] > newest[0]);
    disk.put(newest * PAGE as u64, &before.page(newest));
}

// promise: no-silent-corruption
// rule: store/lost-superblock-noticed
#[test]
fn a_lost_write_of_the_superblock_is_noticed_and_the_journal_still_counts() {
    let mut world = World::new(1);
    world.run();
    let mut seq = 0;
    let before = checkpoint_of_a_full_journal(&mut world, &mut seq);
    for _ in 0..20 {
        seq += 1;
        world.ok(1, write(0, version(1, seq), u32::try_from(seq % 200).unwrap(), 1));
    }
    assert!(!report(&mut world, 9).damaged);
    let expected = world.read(0, 0, 256);
    world.cut();
    let mut disk = world.disk;
    lose_superblock(&mut disk, &before);
    let mut world = World::on(disk, 1);
    world.run();
    // Both places decode, and say nothing of it.
    assert!(world.opened.as_ref().unwrap().damaged);
    assert!(report(&mut world, 10).damaged);
    let place = u64::from(superblocks(&before)[1].generation < superblocks(&before)[0].generation);
    let told = world.events.iter().filter_map(|event| match event {
        StoreEvent::Damaged(damage) => Some((damage.part, damage.offset)),
        StoreEvent::Recovered { .. }
        | StoreEvent::Corrupt { .. }
        | StoreEvent::Checkpointed { .. } => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), vec![(Part::Superblock, place * PAGE as u64)]);
    // The frames behind the lost checkpoint are all there.
    assert_eq!(world.read(0, 0, 256), expected);
    assert_eq!(
        world.ask(8, write(0, version(8, 99_999), 0, 1)),
        Err(Refusal::Fenced { by: epoch(10) })
    );
}

// rule: store/lost-superblock-noticed
// rule: store/numbers-of-a-lost-superblock-never-again
#[test]
fn a_lost_superblock_of_a_life_is_noticed_and_its_numbers_are_not_used_again() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 1));
    let mut world = world.restart();
    world.cut();
    let before = world.disk.clone();
    let mut world = World::on(world.disk, 2);
    world.run();
    for seq in 2..30 {
        world.ok(1, write(0, version(1, seq), u32::try_from(seq).unwrap(), 1));
    }
    assert!(world.ask(7, ReplicaOp::Fence { segments: Vec::new() }).is_ok());
    let lost = frames(&world.disk).into_iter().map(|(_, frame)| frame.head);
    let lost = lost.max_by_key(|head| head.lsn).unwrap();
    world.cut();
    let mut disk = world.disk;
    lose_superblock(&mut disk, &before);
    let durable = superblocks(&disk).into_iter().max_by_key(|is| is.generation).unwrap();
    let mut world = World::on(disk, 3);
    // The place that is durable stays until the other one is.
    while world.opened.is_none() {
        assert!(superblocks(&world.disk).contains(&durable));
        assert!(world.step());
    }
    world.run();
    assert!(world.opened.as_ref().unwrap().damaged);
    let fenced = world.ask(6, write(0, version(6, 99), 0, 1));
    assert_eq!(fenced, Err(Refusal::Fenced { by: epoch(7) }), "a fence holds for good");
    world.ok(7, write(0, version(7, 100), 0, 1));
    let expected = world.read(0, 0, 256);
    world.cut();
    let newest = superblocks(&world.disk).into_iter().max_by_key(|is| is.generation).unwrap();
    assert!(newest.life > lost.life && newest.generation > lost.generation, "{newest:?}");
    assert!(newest.lsn >= lost.lsn, "{newest:?}");
    let mut world = World::on(world.disk, 4);
    world.run();
    // The frames of the lost life are still in the ring, and mean nothing any more.
    assert!(!world.opened.as_ref().unwrap().damaged);
    assert_eq!(world.read(0, 0, 256), expected);
}

// rule: store/lost-map-write-noticed
#[test]
fn a_lost_write_of_a_root_or_of_a_segment_page_is_noticed() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    let mut world = world.restart();
    world.ok(1, write(0, version(1, 2), 1, 1));
    let before = world.disk.clone();
    let mut world = world.restart();
    world.cut();
    let newest = superblocks(&world.disk).into_iter().max_by_key(|is| is.generation).unwrap();
    let root = layout().root_place(newest.generation);
    let mut rootless = world.disk.clone();
    rootless.put(root, &before.page(root / PAGE as u64));
    assert_eq!(why(rootless, config()), OutOfService::Damaged);
    let pool = layout().pool_at / PAGE as u64;
    let chunk =
        |disk: &ModelDisk, number: u64| gabion_format::SegmentPage::decode(&disk.page(number)).ok();
    let numbers: Vec<_> = (pool..CAPACITY / PAGE as u64)
        .filter(|number| chunk(&world.disk, *number).is_some())
        .filter(|number| world.disk.page(*number) != before.page(*number))
        .collect();
    assert_eq!(numbers.len(), 1, "one place was written");
    let mut disk = world.disk;
    disk.put(numbers[0] * PAGE as u64, &before.page(numbers[0]));
    let mut world = World::on(disk, 1);
    world.run();
    assert!(world.opened.as_ref().unwrap().damaged && report(&mut world, 2).damaged);
    assert_eq!(world.read_one(0, 0), without(BlockKind::Bad, Version::NEVER));
}

/// Any one page of a disk at rest may rot: it opens or is refused by name, and what it shows is
/// right or bad.
#[test]
fn any_rotten_page_is_noticed() {
    let mut world = World::new(1);
    for seq in 1..=20 {
        world.ok(1, write(0, version(1, seq), u32::try_from(seq * 7 % 200).unwrap(), 3));
    }
    let mut world = world.restart();
    for seq in 21..=40 {
        world.ok(1, write(0, version(1, seq), u32::try_from(seq * 7 % 200).unwrap(), 3));
    }
    // A last frame that rots looks like one that was torn; so let it be one that says little.
    let settled = vec![(SegmentIndex::new(0), Seq::new(40))];
    world.send(1, ReplicaOp::Advance { settled });
    world.tick(Duration::from_secs(1));
    let expected = world.read(0, 0, 256);
    world.cut();
    let disk = world.disk;
    for number in disk.page_numbers() {
        let mut rotten = disk.clone();
        rotten.rot(number * PAGE as u64 + 1234);
        let mut world = World::on(rotten, 1);
        world.run();
        if world.opened.is_none() {
            assert!(world.out.is_some());
            continue;
        }
        let damaged = report(&mut world, 2);
        for (seen, right) in world.read(0, 0, 256).iter().zip(&expected) {
            let told = damaged.damaged || damaged.dropped_from.is_some();
            assert!(seen == right || seen.kind == BlockKind::Bad || told, "{number}: {seen:?}");
        }
    }
}
