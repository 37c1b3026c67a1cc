//! What small writes scattered, in order again.

use super::model::{World, create, range, version, write};
use gabion_format::SegmentKey;
use gabion_types::{BlockIndex, DiskOpKind, Duration, SegmentIndex, VolumeId};
use gabion_wire::{Refusal, ReplicaDone, ReplicaOp};

const BLOCKS: u32 = 128;

/// In how many pieces the blocks lie.
fn pieces(world: &World) -> usize {
    let key = SegmentKey::new(VolumeId::new(1), SegmentIndex::new(0));
    let disk = world.store.disk().unwrap();
    let segment = disk.table.segment(key).unwrap();
    let slots = (0..BLOCKS).filter_map(|at| segment.block(BlockIndex::new(at)).slot());
    let slots: Vec<u32> = slots.map(|slot| slot.get()).collect();
    1 + slots.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count()
}

/// Block by block, in an order of its own.
fn scattered() -> World {
    let mut world = World::new(1);
    for at in 0..BLOCKS {
        let block = at * 53 % BLOCKS;
        world.ok(1, write(0, version(1, u64::from(at) + 1), block, 1));
    }
    assert!(pieces(&world) > 100);
    world
}

fn whole_read() -> ReplicaOp {
    ReplicaOp::Read { segment: SegmentIndex::new(0), range: range(0, BLOCKS) }
}

fn content(world: &mut World) -> ReplicaDone {
    world.ask(1, whole_read()).unwrap()
}

// rule: store/scattered-is-put-in-order
#[test]
fn a_stretch_in_many_pieces_is_put_into_one_when_the_disk_is_idle() {
    let mut world = scattered();
    let before = content(&mut world);
    let stats = world.store.stats();
    world.tick(Duration::from_millis(90));
    assert!(world.is_idle(), "not yet");
    // Settled seqs and the like go first, when a second is over.
    for _ in 0..12 {
        world.tick(Duration::from_millis(100));
        world.run();
    }
    assert_eq!(pieces(&world), 1);
    let after = world.store.stats();
    assert_eq!(after.moved_bytes, u64::from(BLOCKS) * 4096);
    assert_eq!((after.write_bytes, after.reads), (stats.write_bytes, stats.reads));
    assert_eq!((after.used_bytes, after.pending), (stats.used_bytes, 0));
    assert_eq!(content(&mut world), before);
    // Once is enough.
    world.tick(Duration::from_secs(2));
    assert!(world.is_idle() && world.store.next_deadline().is_none());
    let mut world = world.crash_with_all_done();
    assert_eq!(content(&mut world), before);
    assert_eq!(pieces(&world), 1);
}

// rule: store/scattered-is-put-in-order
// promise: acked-survives
#[test]
fn a_write_that_comes_meanwhile_stays() {
    let mut world = scattered();
    let before = content(&mut world);
    for _ in 0..12 {
        world.tick(Duration::from_millis(100));
        while world.step_where(|op| !matches!(op, DiskOpKind::Read { .. })) {}
        if !world.is_idle() {
            break;
        }
    }
    // It is being read; the write gets its place in the queue before the move.
    let written = world.send(1, write(0, version(1, 1000), 7, 1));
    world.run();
    assert_eq!(world.result(written), Some(Ok(ReplicaDone::Done)));
    let after = content(&mut world);
    assert_ne!(after, before);
    for _ in 0..12 {
        world.tick(Duration::from_millis(100));
        world.run();
    }
    assert!(world.store.stats().moved_bytes > 0);
    assert_eq!(content(&mut world), after);
    // A move is on its way to the disk when another write comes.
    let mut world = scattered();
    content(&mut world);
    while world.store.stats().moved_bytes == 0 {
        world.tick(Duration::from_millis(100));
        while world.store.stats().moved_bytes == 0 && world.step() {}
    }
    let written = world.send(1, write(0, version(1, 1000), 7, 1));
    world.run();
    assert_eq!(world.result(written), Some(Ok(ReplicaDone::Done)));
    assert_eq!(content(&mut world), after);
    let mut world = world.crash_with_all_done();
    assert_eq!(content(&mut world), after);
}

// rule: store/scattered-is-put-in-order
#[test]
fn guests_go_first_and_a_full_disk_moves_nothing() {
    let mut world = scattered();
    content(&mut world);
    for _ in 0..20 {
        world.tick(Duration::from_millis(90));
        let one = ReplicaOp::Read { segment: SegmentIndex::new(0), range: range(0, 1) };
        world.ask(1, one).unwrap();
    }
    assert_eq!(world.store.stats().moved_bytes, 0);
    world.ok(1, create(1, 4, 12));
    let full = (1..16).flat_map(|segment| (0..256).step_by(32).map(move |first| (segment, first)));
    let refused = full.zip(2000..).any(|((segment, first), seq)| {
        let written = world.ask(1, write(segment, version(1, seq), first, 32));
        written == Err(Refusal::NoSpace)
    });
    assert!(refused, "it is full");
    for _ in 0..30 {
        world.tick(Duration::from_millis(100));
        world.run();
    }
    assert_eq!(world.store.stats().moved_bytes, 0);
    assert!(world.store.next_deadline().is_none());
}
