//! A disk that answers nothing, and gives no error either.

use super::model::{CAPACITY, World, config, version, write};
use crate::{Effect, Input, OutOfService, Settings, Store, StoreConfig};
use gabion_types::{DiskOpKind, Duration, Instant};
use gabion_wire::{Refusal, ReplicaDone};

const AFTER: Duration = Duration::from_secs(30);

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

fn is_sync(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Sync)
}

/// Time passes, and the driver does what it is asked to: it wakes the store in time.
fn pass(world: &mut World, seconds: u64) {
    for _ in 0..seconds {
        assert!(world.store.next_deadline().is_some());
        world.tick(Duration::from_secs(1));
    }
}

// rule: store/a-disk-that-hangs-is-out
#[test]
fn a_disk_that_does_not_answer_is_out_of_service() {
    let mut world = World::new(1);
    world.ok(1, write(0, version(1, 1), 0, 1));
    let request = world.send(1, write(0, version(1, 2), 0, 1));
    while world.step_where(|kind| !is_sync(kind)) {}
    pass(&mut world, 29);
    assert_eq!(world.out, None);
    assert_eq!(world.store.stats().oldest, Duration::from_secs(29));
    pass(&mut world, 1);
    assert_eq!(world.out, Some(OutOfService::Hangs { after: AFTER }));
    assert_eq!(world.result(request), Some(Err(Refusal::OutOfService)));
    // What it did in the end counts for nothing.
    world.run();
    assert_eq!(world.ask(1, write(0, version(1, 3), 0, 1)), Err(Refusal::OutOfService));
    world.input(Input::Stop);
    assert!(world.stopped);
}

// rule: store/a-disk-that-hangs-is-out
#[test]
fn one_that_answers_is_not_and_nor_is_one_of_a_node_that_stood_still() {
    let mut world = World::new(1);
    let slow = world.send(1, write(0, version(1, 1), 0, 1));
    // Each answer comes in time.
    pass(&mut world, 29);
    while world.step_where(|kind| !is_sync(kind)) {}
    pass(&mut world, 29);
    world.run();
    assert_eq!(world.result(slow), Some(Ok(ReplicaDone::Done)));
    let request = world.send(1, write(0, version(1, 2), 0, 1));
    pass(&mut world, 28);
    for _ in 0..20 {
        // The node was stopped, or its machine was: what the disk said meanwhile is yet to be fetched.
        world.tick(Duration::from_secs(3600));
    }
    assert_eq!(world.out, None);
    world.run();
    assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
    assert_eq!(world.out, None);
}

// rule: store/a-disk-that-hangs-is-out
#[test]
fn zero_bears_with_it_for_ever() {
    let mut world = World::new(1);
    world.input(Input::HangAfter(Duration::ZERO));
    let request = world.send(1, write(0, version(1, 1), 0, 1));
    (0..600).for_each(|_| world.tick(Duration::from_secs(1)));
    world.run();
    assert_eq!(world.result(request), Some(Ok(ReplicaDone::Done)));
}

/// A node that starts waits for its disks to be open or out.
// rule: store/a-disk-that-hangs-is-out
#[test]
fn one_that_hangs_while_it_is_opened_is_out() {
    let settings = Settings { hang_after: AFTER, ..Settings::default() };
    let config = StoreConfig { capacity_bytes: CAPACITY, settings, ..config() };
    let mut store = Store::new(config, at(100));
    while store.next_effect().is_some() {}
    for second in 101..=130 {
        assert!(store.next_deadline().is_some());
        store.handle(at(second), Input::Tick);
    }
    let why = OutOfService::Hangs { after: AFTER };
    assert_eq!(store.next_effect(), Some(Effect::OutOfService(why)));
    assert_eq!(store.next_deadline(), None);
}
