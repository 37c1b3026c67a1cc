//! What a scrub looks at beside blocks and their map pages.

use super::model::{World, range, version, write};
use crate::{Damage, Part, StoreEvent};
use gabion_format::{Layout, SegmentKey};
use gabion_types::{Duration, SegmentIndex, VolumeId};
use gabion_wire::{ReplicaDone, ReplicaOp};

fn verify(segment: u32, first: u32, count: u32) -> ReplicaOp {
    ReplicaOp::Verify { segment: SegmentIndex::new(segment), range: range(first, count) }
}

/// Each call is a scrub of its own: it begins at the first block.
fn scrub(world: &mut World) {
    for segment in 0..2 {
        let Ok(ReplicaDone::Table { .. }) = world.ask_paced(1, verify(segment, 0, 8)) else {
            panic!()
        };
    }
}

fn told(world: &World) -> Vec<Damage> {
    let mut damages = Vec::new();
    for event in &world.events {
        if let StoreEvent::Damaged(damage) = event {
            damages.push(*damage);
        }
    }
    damages
}

/// Two segments with data, of a checkpoint and of a journal behind it.
fn written() -> World {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 4));
    world.ok(1, write(1, version(1, 1), 0, 4));
    let mut world = world.restart();
    world.ok(1, write(0, version(1, 2), 4, 4));
    world.ok(1, write(0, version(1, 3), 4, 4));
    world
}

/// Where each part lies now.
fn places(world: &World) -> Vec<(Part, u64)> {
    let disk = world.store.disk().unwrap();
    let layout = &disk.layout;
    let generation = disk.generation;
    let place = usize::from(generation % 2 == 1);
    let key = SegmentKey::new(VolumeId::new(1), SegmentIndex::new(1));
    let chunk = disk.table.segment(key).unwrap().chunks[0].live.unwrap();
    let tail = disk.journal.tail % disk.journal.ring_bytes;
    vec![
        (Part::Superblock, Layout::superblock_at(generation)),
        (Part::Superblock, Layout::superblock_at(generation + 1)),
        (Part::Root, layout.root_place(generation)),
        (Part::Bitmap, layout.bitmap_at[place]),
        (Part::SegmentPage, layout.slot_offset(chunk.slot)),
        (Part::Journal, layout.journal_at + tail),
        (Part::Journal, layout.journal_at + tail + 4096),
    ]
}

// promise: no-silent-corruption, self-describing
// rule: store/scrub-looks-at-the-rest
#[test]
fn each_part_that_rots_under_a_running_store_is_told_once_and_written_anew() {
    for which in 0..places(&written()).len() {
        for whole in [false, true] {
            let mut world = written();
            let (part, offset) = places(&world)[which];
            match whole {
                false => world.disk.rot(offset + 100),
                true => world.disk.unreadable = vec![offset / 4096],
            }
            scrub(&mut world);
            let damages = told(&world);
            assert_eq!(damages.len(), 1, "{part:?}: {damages:?}");
            assert_eq!(damages[0].part, part);
            // An unreadable part of the journal hides where it begins.
            assert!(damages[0].offset == offset || part == Part::Journal, "{damages:?}");
            assert_eq!(world.store.stats().damaged_pages, 1);
            world.disk.unreadable.clear();
            scrub(&mut world);
            assert_eq!(told(&world).len(), 1, "{part:?} {whole}: it is whole again");
            // And so says the next start.
            let mut world = world.crash_with_all_done();
            assert_eq!(told(&world), [], "{part:?} {whole}");
            assert_eq!(world.read(0, 4, 4).len(), 4);
        }
    }
}

/// All around the ring, beside writes and checkpoints, at any moment of theirs.
// rule: store/scrub-looks-at-the-rest
#[test]
fn nothing_is_told_of_a_disk_that_is_whole() {
    for seed in 1..5 {
        let mut world = World::new(seed);
        let mut asked = Vec::new();
        let mut number = 0;
        while world.store.stats().checkpoints < 12 {
            number += 1;
            let count = 1 + u32::try_from(world.prng.below(60)).unwrap();
            world.send(1, write(u32::try_from(number % 2).unwrap(), version(1, number), 0, count));
            if world.prng.chance(1, 20) {
                asked.push(world.send(1, verify(0, 0, 8)));
                world.tick(Duration::from_millis(200));
            }
            for _ in 0..world.prng.below(12) {
                world.step();
            }
        }
        world.run();
        assert_eq!(told(&world), [], "seed {seed}");
        assert!(world.store.stats().verified_bytes > 1 << 20);
    }
}
