//! Checkpoints beside guests' writes.

use super::model::{World, create, version, write, writes_map_page};
use gabion_wire::ReplicaDone;

/// Twelve segments with two map pages each, all of them changed.
fn changed() -> World {
    let mut world = World::new(1);
    world.ok(1, create(1, 4, 8));
    let mut seq = 0;
    for segment in 0..12 {
        for first in [0, 128] {
            seq += 1;
            world.ok(1, write(segment, version(1, seq), first, 1));
        }
    }
    world
}

/// One block a frame; what a checkpoint writes of map pages stays under way.
fn write_one(world: &mut World, seq: u64) -> bool {
    let request = world.send(1, write(0, version(1, seq), 0, 1));
    while world.result(request).is_none() {
        if !world.step_where(|op| !writes_map_page(op)) {
            return false;
        }
    }
    assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
    true
}

// rule: store/checkpoint-paced
#[test]
fn it_goes_by_few_while_guests_write_and_faster_when_it_is_late() {
    let mut world = changed();
    let ring = world.store.disk().unwrap().journal.ring_bytes;
    let used = |world: &World| {
        let journal = &world.store.disk().unwrap().journal;
        journal.head - journal.tail
    };
    let mut seq = 100;
    let mut seen = Vec::new();
    while used(&world) < ring / 2 + ring / 4 + 4 * 4096 {
        seq += 1;
        assert!(write_one(&mut world, seq));
        if world.store.disk().unwrap().checkpoint.is_some() {
            seen.push(world.map_pages_out());
        }
    }
    assert_eq!(seen.first(), Some(&2), "{seen:?}");
    assert!(seen.is_sorted() && seen.last() > Some(&4), "later and later: {seen:?}");
    assert!(seen.iter().filter(|out| **out == 2).count() >= 2, "{seen:?}");
    world.run();
    assert!(used(&world) < ring / 2);
}

// rule: store/checkpoint-paced
#[test]
fn it_goes_by_many_once_guests_rest() {
    let mut world = changed();
    let mut seq = 100;
    while world.store.disk().unwrap().checkpoint.is_none() {
        seq += 1;
        assert!(write_one(&mut world, seq));
    }
    assert_eq!(world.map_pages_out(), 2);
    let mut seen = Vec::new();
    while world.step_where(writes_map_page) {
        seen.push(world.map_pages_out());
    }
    assert_eq!((seen[6], seen[7]), (2, 16), "{seen:?}");
}
