//! Volumes whose guests are those of one node at a time.

use super::sessions::{ME, World, X, Y, epoch, sessions_that, world, write};
use crate::fronts::{FrontOutput, OfVolume, OwnerNow};
use crate::io::{GuestId, OpenError};
use gabion_types::{HoldPolicy, MapIndex, NodeId};

fn exclusive() -> World {
    let mut world = world();
    own_anew(&mut world, 2);
    world
}

/// Another owner, on the same node.
fn own_anew(world: &mut World, at: u64) {
    world.epoch = epoch(at);
    world.owner = sessions_that(world.now, epoch(at), 256, true);
    world.owner.core_serves(world.now);
    world.tell_map();
    world.pump();
    world.pass(30);
}

fn evict(world: &mut World, nodes: &[NodeId]) {
    world.index = MapIndex::new(world.index.get() + 1);
    world.barred = nodes.iter().copied().collect();
    world.voided.extend(nodes.iter().map(|node| (*node, world.index)));
    world.owner.voided(world.now, nodes, world.index);
    world.tell_map();
    world.pump();
    world.pass(200);
}

fn refused(world: &World, node: NodeId, guest: u64) -> Option<OpenError> {
    world.outputs.iter().find_map(|(who, output)| match output {
        FrontOutput::Refused { guest: GuestId(id), why } if (*who, *id) == (node, guest) => {
            Some(*why)
        }
        _ => None,
    })
}

// rule: node/exclusive-to-one-node
#[test]
fn guests_of_another_node_are_kept_out_as_long_as_one_is_in() {
    let mut world = exclusive();
    world.attach(X, 1);
    world.attach(X, 2);
    assert!(world.is_attached(X, 1) && world.is_attached(X, 2));
    world.attach(Y, 3);
    world.attach(ME, 4);
    assert_eq!(refused(&world, Y, 3), Some(OpenError::KeptOut(X)));
    assert_eq!(refused(&world, ME, 4), Some(OpenError::KeptOut(X)));
    world.fronts.get_mut(&X).unwrap().detach(GuestId(1));
    world.attach(Y, 5);
    assert!(!world.is_attached(Y, 5), "one is left");
    world.fronts.get_mut(&X).unwrap().detach(GuestId(2));
    world.attach(Y, 6);
    assert!(world.is_attached(Y, 6));
    world.attach(X, 7);
    assert_eq!(refused(&world, X, 7), Some(OpenError::KeptOut(Y)));
}

// rule: node/exclusive-to-one-node
#[test]
fn of_two_that_come_together_one_gets_in() {
    let mut world = exclusive();
    for (node, guest) in [(X, 1), (Y, 2)] {
        world.fronts.get_mut(&node).unwrap().attach(GuestId(guest));
    }
    world.pump();
    world.pass(100);
    assert!(world.is_attached(X, 1) != world.is_attached(Y, 2));
}

// rule: node/exclusive-to-one-node
#[test]
fn the_next_owner_hears_of_guests_that_ask_for_nothing() {
    let mut world = exclusive();
    world.attach(X, 1);
    own_anew(&mut world, 3);
    world.attach(Y, 2);
    assert_eq!(refused(&world, Y, 2), Some(OpenError::KeptOut(X)));
}

// rule: node/exclusive-to-one-node
#[test]
fn a_guest_that_hung_up_while_its_link_was_broken_keeps_nobody_out() {
    let mut world = exclusive();
    world.attach(X, 1);
    world.cut.push(X);
    world.fronts.get_mut(&X).unwrap().detach(GuestId(1));
    world.pump();
    world.relink(X);
    world.attach(Y, 2);
    assert!(world.is_attached(Y, 2));
}

// rule: node/exclusive-to-one-node
#[test]
fn who_was_evicted_writes_nothing_and_stays_out_until_another_is_in() {
    let mut world = exclusive();
    world.attach(X, 1);
    evict(&mut world, &[X]);
    assert!(world.outputs.contains(&(X, FrontOutput::Drop { guest: GuestId(1) })));
    world.request(X, 1, 100, write(1));
    assert_eq!(world.admitted, []);
    world.attach(X, 2);
    assert_eq!(refused(&world, X, 2), Some(OpenError::Barred));
    world.attach(Y, 3);
    assert!(world.is_attached(Y, 3));
    assert!(world.barred.is_empty(), "the owner says so to the map");
    world.tell_map();
    world.attach(X, 4);
    assert_eq!(refused(&world, X, 4), Some(OpenError::KeptOut(Y)));
}

// rule: node/exclusive-to-one-node
#[test]
fn a_front_that_is_cut_off_when_its_guests_are_evicted_keeps_nobody_out() {
    let mut world = exclusive();
    world.attach(X, 1);
    world.cut.push(X);
    let index = MapIndex::new(world.index.get() + 1);
    world.owner.voided(world.now, &[X], index);
    world.attach(Y, 2);
    assert!(world.is_attached(Y, 2));
    // It comes back with what its guest had asked, and knows nothing of the map.
    world.request(X, 1, 100, write(1));
    world.relink(X);
    world.pass(300);
    assert_eq!(world.admitted, []);
}

// rule: node/a-void-comes-before-what-follows-it
#[test]
fn a_front_that_is_ahead_of_its_owner_waits_for_it() {
    let mut world = exclusive();
    world.attach(X, 1);
    // The map evicts all; the fronts hear of it first.
    let index = MapIndex::new(world.index.get() + 1);
    let owner = OwnerNow { node: ME, owner_epoch: world.epoch };
    let front = world.fronts.get_mut(&X).unwrap();
    let (owner, voided, hold) = (Some(owner), index, HoldPolicy::NeverFail);
    front.set_map(world.now, index, OfVolume { owner, voided, barred: false, hold });
    world.pump();
    world.attach(X, 2);
    world.request(X, 2, 100, write(1));
    assert!(!world.is_attached(X, 2), "the old session is not taken for a new one");
    world.owner.voided(world.now, &[ME, X, Y], index);
    world.owner.set_applied(world.now, index);
    world.voided = [ME, X, Y].map(|node| (node, index)).into();
    world.index = index;
    world.tell_map();
    world.pump();
    world.pass(200);
    assert!(world.is_attached(X, 2));
    world.request(X, 2, 101, write(2));
    let ops: Vec<_> = world.admitted.iter().map(|(_, op)| op.clone()).collect();
    assert_eq!(ops, [write(2)], "once");
}
