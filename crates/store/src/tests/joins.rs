//! Settle, join, install, promote, repair, drop.

use super::model::{
    World, create, data, epoch, info, payload, version, without, write, write_settled,
};
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, DiskOpKind, SegmentIndex, Seq, Version, VolumeId,
};
use gabion_wire::{EpochStart, FenceReport, FencedSegment, Refusal, ReplicaDone, ReplicaOp};

const NEVER: Version = Version::NEVER;

fn segment(index: u32) -> SegmentIndex {
    SegmentIndex::new(index)
}

fn settle(blocks: Vec<BlockInfo>) -> ReplicaOp {
    let data = payload(&blocks);
    ReplicaOp::Settle { segment: segment(0), blocks, data }
}

fn repair(blocks: Vec<BlockInfo>) -> ReplicaOp {
    let data = payload(&blocks);
    ReplicaOp::Repair { segment: segment(0), blocks, data }
}

fn install(joined: u64, blocks: Vec<BlockInfo>) -> ReplicaOp {
    let data = payload(&blocks);
    ReplicaOp::Install { segment: segment(0), joined: epoch(joined), blocks, data }
}

fn join(index: u32, joined: u64, creation: u64) -> ReplicaOp {
    ReplicaOp::JoinStart {
        segment: segment(index),
        joined: epoch(joined),
        creation: epoch(creation),
    }
}

fn promoted(joined: u64, settled: u64) -> ReplicaOp {
    ReplicaOp::Promoted { segment: segment(0), joined: epoch(joined), settled: Seq::new(settled) }
}

fn gone(index: u32, creation: u64, of: u64) -> ReplicaOp {
    ReplicaOp::Drop { segment: segment(index), creation: epoch(creation), epoch: epoch(of) }
}

fn report(world: &mut World, owner: u64, joined: Option<u64>) -> FenceReport {
    let asked =
        FencedSegment { segment: segment(0), creation: epoch(1), joined: joined.map(epoch) };
    match world.ask(owner, ReplicaOp::Fence { segments: vec![asked] }) {
        Ok(ReplicaDone::Fenced { reports }) => reports[0],
        other => panic!("{other:?}"),
    }
}

// rule: store/apply-rule
#[test]
fn settle_applies_above_and_lost_also_over_the_same_version() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 5), 0, 4));
    world.ok(
        2,
        settle(vec![
            info(0, BlockKind::Data, version(1, 6)),
            info(1, BlockKind::Data, version(1, 4)),
            info(2, BlockKind::Lost, version(1, 5)),
            info(3, BlockKind::Lost, version(1, 4)),
            info(4, BlockKind::Zero, version(1, 7)),
            info(9, BlockKind::Data, version(1, 8)),
            info(10, BlockKind::Data, version(1, 8)),
        ]),
    );
    let mut world = world.crash();
    assert_eq!(
        world.read(0, 0, 5),
        vec![
            data(version(1, 6), 0),
            data(version(1, 5), 1),
            without(BlockKind::Lost, version(1, 5)),
            data(version(1, 5), 3),
            without(BlockKind::Zero, version(1, 7)),
        ]
    );
    assert_eq!(world.read(0, 9, 2), vec![data(version(1, 8), 9), data(version(1, 8), 10)]);
    // A lost block can be written again.
    world.ok(2, write(0, version(2, 9), 2, 1));
    assert_eq!(world.read_one(0, 2), data(version(2, 9), 2));
    let unsorted =
        vec![info(5, BlockKind::Zero, version(3, 1)), info(4, BlockKind::Zero, version(3, 1))];
    assert_eq!(world.ask(2, settle(unsorted)), Err(Refusal::Invalid));
    let absent = vec![info(5, BlockKind::Absent, NEVER)];
    assert_eq!(world.ask(2, settle(absent)), Err(Refusal::Invalid));
}

// rule: store/apply-rule
#[test]
fn install_rolls_back_what_is_below_j_and_nothing_else() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 9), 0, 3));
    assert_eq!(world.ask(5, install(5, vec![])), Err(Refusal::WrongEpoch));
    assert!(matches!(world.ask(5, join(0, 5, 1)), Ok(ReplicaDone::JoinStarted { .. })));
    world.ok(5, write(0, version(5, 10), 1, 1));
    world.ok(
        5,
        install(
            5,
            vec![
                info(0, BlockKind::Data, version(1, 4)),
                info(1, BlockKind::Data, version(1, 4)),
                info(2, BlockKind::Absent, NEVER),
                info(3, BlockKind::Zero, version(1, 6)),
            ],
        ),
    );
    assert_eq!(world.ask(5, install(4, vec![])), Err(Refusal::WrongEpoch));
    let mut world = world.crash();
    assert_eq!(
        world.read(0, 0, 4),
        vec![
            data(version(1, 4), 0),
            data(version(5, 10), 1),
            without(BlockKind::Absent, NEVER),
            without(BlockKind::Zero, version(1, 6)),
        ]
    );
}

// rule: store/joiner-settled-frozen
// rule: store/joiner-counts-from-j
#[test]
fn a_joiner_keeps_its_settled_seq_and_counts_from_j_on_until_it_is_promoted() {
    let mut world = World::new(1);
    world.ok(1, write_settled(0, version(1, 9), 0, 1, 7));
    // The settled seq that is not yet in a frame goes into one before the join's.
    let started = world.ask(5, join(0, 5, 1));
    assert_eq!(started, Ok(ReplicaDone::JoinStarted { settled: Seq::new(7) }));
    world.ok(5, write_settled(0, version(5, 8), 1, 1, 8));
    world.ok(5, write_settled(0, version(5, 20), 1, 1, 19));
    world.send(5, ReplicaOp::Advance { settled: vec![(segment(0), Seq::new(20))] });
    world.ok(5, write(0, version(4, 30), 2, 1));
    world.ok(5, install(5, vec![info(0, BlockKind::Data, version(1, 6))]));
    let mut world = world.crash();
    let joining = report(&mut world, 5, Some(5));
    assert_eq!((joining.settled, joining.highest), (Seq::new(7), Seq::new(20)));
    assert_eq!(joining.joined, Some(epoch(5)));
    let again = world.ask(5, join(0, 5, 1));
    assert_eq!(again, Ok(ReplicaDone::JoinStarted { settled: Seq::new(7) }));
    assert_eq!(world.ask(5, promoted(4, 19)), Err(Refusal::WrongEpoch));
    world.ok(5, promoted(5, 19));
    world.ok(5, promoted(5, 18));
    let mut world = world.crash();
    let inside = report(&mut world, 5, None);
    assert_eq!((inside.settled, inside.joined), (Seq::new(19), None));
    // A late copy of the join does not make it a joiner again.
    assert_eq!(world.ask(5, join(0, 5, 1)), Err(Refusal::WrongEpoch));
}

// rule: store/promoted-has-what-is-settled
#[test]
fn a_promoted_replica_that_lacked_nothing_has_no_less_than_before() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 9), 0, 1));
    assert_eq!(report(&mut world, 2, None).highest, Seq::new(9));
    assert!(world.ask(2, join(0, 2, 1)).is_ok());
    world.ok(2, promoted(2, 9));
    assert_eq!(report(&mut world, 3, None).highest, Seq::new(9));
    let mut world = world.crash();
    assert_eq!(report(&mut world, 4, None).highest, Seq::new(9));
}

#[test]
fn a_join_keeps_the_blocks_of_its_own_creation_only() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 2));
    world.ok(1, write(1, version(1, 1), 0, 2));
    assert!(world.ask(5, join(0, 5, 1)).is_ok());
    let other = world.ask(5, join(1, 5, 3));
    assert_eq!(other, Ok(ReplicaDone::JoinStarted { settled: Seq::ZERO }));
    assert!(world.ask(5, join(8, 5, 1)).is_ok(), "and makes what is not there");
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 1), data(version(1, 1), 1));
    assert_eq!(world.read_one(1, 1), without(BlockKind::Absent, NEVER));
    assert_eq!(world.read_one(8, 1), without(BlockKind::Absent, NEVER));
    let held = world.store.segment(VolumeId::new(1), segment(1)).unwrap();
    assert_eq!((held.creation, held.joined), (epoch(3), Some(epoch(5))));
}

#[test]
fn a_write_right_behind_the_join_is_taken() {
    let mut world = World::new(1);
    let joined = world.send(5, join(8, 5, 1));
    let written = world.send(5, write(8, version(5, 1), 0, 1));
    let installed = world.send(
        5,
        ReplicaOp::Install {
            segment: segment(8),
            joined: epoch(5),
            blocks: vec![info(1, BlockKind::Zero, version(1, 1))],
            data: bytes::Bytes::new(),
        },
    );
    world.run();
    assert!(matches!(world.result(joined), Some(Ok(ReplicaDone::JoinStarted { .. }))));
    assert_eq!(world.result(written), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.result(installed), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.read_one(8, 0), data(version(5, 1), 0));
}

#[test]
fn next_is_durable() {
    let mut world = World::new(1);
    let start = |seq| EpochStart { segment: segment(0), epoch: epoch(3), next: Seq::new(seq) };
    world.ok(3, ReplicaOp::EpochStart { starts: vec![start(50)] });
    world.ok(3, ReplicaOp::EpochStart { starts: vec![start(40)] });
    let mut world = world.crash();
    assert_eq!(report(&mut world, 3, None).next, Seq::new(50));
    let mut nowhere = start(1);
    nowhere.segment = segment(9);
    assert_eq!(
        world.ask(3, ReplicaOp::EpochStart { starts: vec![nowhere] }),
        Err(Refusal::NoSegment)
    );
}

// promise: no-silent-corruption
#[test]
fn a_rotten_block_is_bad_until_it_is_repaired() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    let place = world.locate(VolumeId::new(1), segment(0), BlockIndex::new(3)).unwrap();
    world.disk.rot(place.offset + 77);
    // Nothing is known of it yet, so a repair has nothing to mend.
    world.ok(1, repair(vec![info(3, BlockKind::Data, version(1, 1))]));
    let seen = world.read(0, 0, 8);
    assert_eq!(seen[3], without(BlockKind::Bad, version(1, 1)));
    assert_eq!(seen[4], data(version(1, 1), 4));
    assert_eq!(world.store.stats().corrupt_blocks, 1);
    world.ok(1, repair(vec![info(3, BlockKind::Data, version(1, 2))]));
    assert_eq!(world.read_one(0, 3), without(BlockKind::Bad, version(1, 1)));
    world.ok(1, repair((2..5).map(|block| info(block, BlockKind::Data, version(1, 1))).collect()));
    assert_eq!(world.read_one(0, 3), data(version(1, 1), 3));
    let mut world = world.crash();
    assert_eq!(world.read_one(0, 3), data(version(1, 1), 3));
}

// rule: store/bad-only-if-still-named
#[test]
fn an_unreadable_block_is_bad_alone_and_one_that_was_replaced_is_read_anew() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 8));
    let place = world.locate(VolumeId::new(1), segment(0), BlockIndex::new(3)).unwrap();
    world.disk.unreadable.push(place.offset / 4096);
    let seen = world.read(0, 0, 8);
    let bad: Vec<_> = seen.iter().filter(|seen| seen.kind == BlockKind::Bad).collect();
    assert_eq!((bad.len(), seen[3].kind), (1, BlockKind::Bad));
    // A read that began before the block was replaced is no proof against the new copy.
    let range = super::model::range(3, 1);
    let read = world.send(1, ReplicaOp::Read { segment: segment(0), range });
    world.send(1, write(0, version(1, 2), 3, 1));
    while world.step_where(|kind| !matches!(kind, gabion_types::DiskOpKind::Read { .. })) {}
    world.run();
    let Some(Ok(ReplicaDone::Blocks { blocks, .. })) = world.result(read) else { panic!() };
    assert_eq!((blocks[0].kind, blocks[0].version), (BlockKind::Data, version(1, 2)));
}

// rule: store/drop-needs-its-epoch
#[test]
fn a_drop_needs_the_creation_and_an_epoch_above_fence_and_j() {
    let mut world = World::new(1);
    let used = world.store.stats().used_bytes;
    world.ok(1, write(0, version(1, 1), 0, 200));
    assert!(world.ask(5, join(0, 5, 1)).is_ok());
    report(&mut world, 6, None);
    assert_eq!(world.ask(0, gone(0, 2, 9)), Err(Refusal::WrongEpoch));
    assert_eq!(world.ask(0, gone(0, 1, 4)), Err(Refusal::WrongEpoch));
    assert_eq!(world.ask(0, gone(0, 1, 5)), Err(Refusal::WrongEpoch));
    world.ok(0, gone(0, 1, 6));
    world.ok(0, gone(0, 1, 6));
    assert_eq!(world.store.stats().used_bytes, used);
    let world = world.crash();
    assert_eq!(world.store.segments().count(), 3);
    let mut world = world.restart();
    assert_eq!(world.store.segments().count(), 3);
    assert_eq!(world.store.stats().used_bytes, used);
    assert_eq!(world.ask(6, write(0, version(6, 2), 0, 1)), Err(Refusal::NoSegment));
    world.ok(0, create(9, 0, 1));
    assert_eq!(world.read_one(0, 0), without(BlockKind::Absent, NEVER));
}

/// Checkpoints, drops and rebirths of the same segment, with power cuts.
#[test]
fn a_segment_that_was_dropped_and_made_again_is_empty_after_any_power_cut() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        let mut creation = 1;
        for round in 0..20u64 {
            let op = write(0, version(round + 2, round + 1), 0, 16);
            world.ok(round + 2, op);
            let steps = world.prng.below(6);
            world.send(0, gone(0, creation, round + 2));
            creation = round + 10;
            world.send(0, create(creation, 0, 1));
            let acked = world.send(round + 2, write(0, version(round + 2, 1), 3, 1));
            (0..steps).for_each(|_| {
                world.step();
            });
            if world.prng.chance(1, 2) {
                world = if world.prng.chance(1, 2) { world.crash() } else { world.restart() };
            } else {
                world.run();
                assert_eq!(world.result(acked), Some(Ok(ReplicaDone::Done)));
            }
            let held = world.store.segment(VolumeId::new(1), segment(0));
            let Some(held) = held else {
                world.ok(0, create(creation, 0, 1));
                continue;
            };
            if held.creation == epoch(creation) {
                let others = world.read(0, 4, 12);
                assert!(others.iter().all(|seen| seen.kind == BlockKind::Absent));
            } else {
                assert_eq!(world.read_one(0, 5), data(version(round + 2, round + 1), 5));
                world.ok(0, gone(0, held.creation.get(), round + 2));
                world.ok(0, create(creation, 0, 1));
            }
        }
    }
}

fn is_superblock(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Write { offset, .. } if *offset <= 4096)
}

/// Writes frames until a checkpoint has begun, and lets all of it be done but the superblock.
fn checkpoint_up_to_the_superblock(world: &mut World, seq: &mut u64) {
    for _ in 0..140 {
        *seq += 1;
        world.send(9, write(1, version(9, *seq), 0, 1));
        while world.step_where(|kind| !is_superblock(kind)) {}
    }
    assert!(!world.is_idle(), "a superblock waits");
}

// rule: store/dropped-places-outlive-their-root
#[test]
fn the_places_of_a_dropped_segment_are_kept_while_a_root_names_them() {
    for early in [false, true] {
        let mut world = World::new(1);
        let mut seq = 0;
        world.ok(1, write(0, version(1, 1), 0, 200));
        if early {
            world = world.restart();
        } else {
            checkpoint_up_to_the_superblock(&mut world, &mut seq);
        }
        // The durable root names its pages, or that of the checkpoint under way does.
        world.send(0, gone(0, 1, 1));
        while world.step_where(|kind| !is_superblock(kind)) {}
        world.run();
        world.ok(9, write(2, version(9, 1), 0, 200));
        world.ok(9, write(3, version(9, 1), 0, 200));
        checkpoint_up_to_the_superblock(&mut world, &mut seq);
        let world = world.crash_with_all_done();
        assert!(!world.opened.as_ref().unwrap().damaged);
        assert_eq!(world.store.segments().count(), 3);
    }
}

// rule: store/a-join-of-this-life-is-unbroken
#[test]
fn a_joiner_that_was_made_in_this_life_says_so_until_its_life_ends() {
    let empty = || {
        let mut world = World::new(1);
        world.ok(0, gone(0, 1, 1));
        world
    };
    let mut world = empty();
    let started = |world: &mut World, joined| {
        assert!(matches!(world.ask(5, join(0, joined, 1)), Ok(ReplicaDone::JoinStarted { .. })));
    };
    started(&mut world, 5);
    assert!(report(&mut world, 5, Some(5)).unbroken);
    started(&mut world, 5);
    assert!(report(&mut world, 5, Some(5)).unbroken, "said twice");
    let mut again = world.crash();
    assert!(!report(&mut again, 5, Some(5)).unbroken, "another process");
    started(&mut again, 5);
    assert!(!report(&mut again, 5, Some(5)).unbroken, "it had joined before");

    let mut world = empty();
    started(&mut world, 5);
    started(&mut world, 7);
    assert!(!report(&mut world, 7, Some(7)).unbroken, "it had something from the join before");

    let mut world = World::new(1);
    started(&mut world, 5);
    assert!(!report(&mut world, 5, Some(5)).unbroken, "it was a member");
}
