//! Nodes that leave for good.

use super::{DONE, GIB, MIB, Small, refused};
use crate::command::Change;
use crate::event::Fact;
use crate::map::DrainReason;
use gabion_types::{NodeId, RefusedChange};

const WHY: Option<DrainReason> = Some(DrainReason::Operator);

fn remove(node: NodeId, force: bool) -> Change {
    Change::RemoveNode { node, force }
}

/// A volume of two copies, and a node that has one of them.
fn with_holder() -> (Small, NodeId) {
    let small = Small::with_volume(3, 2, 1);
    let disk = small.volume().segments[0].in_sync[0];
    let node = small.map.disk(disk).unwrap().node;
    (small, node)
}

fn other(small: &Small, not: NodeId) -> u32 {
    small.map.nodes().keys().find(|node| **node != not).unwrap().get()
}

// rule: cluster/only-what-nobody-needs-is-removed
#[test]
fn a_node_that_is_needed_stays() {
    let (mut small, node) = with_holder();
    let by = other(&small, node);
    assert_eq!(small.by(by, remove(node, false)), refused(RefusedChange::InUse));
    assert_eq!(small.by(by, remove(node, true)), refused(RefusedChange::InUse), "it is alive");
    let spare = small.spare_node();
    assert_eq!(small.by(by, remove(spare, false)), refused(RefusedChange::InUse), "nobody said so");
    small.silence(node.get());
    assert_eq!(small.by(by, remove(node, false)), refused(RefusedChange::InUse));

    let (mut small, node) = with_holder();
    let all: Vec<NodeId> = small.map.nodes().keys().copied().collect();
    let holders = all.into_iter().filter(|id| *id != small.spare_node());
    for holder in holders.collect::<Vec<_>>() {
        small.silence(holder.get());
    }
    let by = small.spare_node().get();
    let last = refused(RefusedChange::LastInSync);
    assert_eq!(small.by(by, remove(node, true)), last, "nobody reaches the other copy");
    assert_eq!(small.map.last_copies_of(node).1, 1);
}

// rule: cluster/only-what-nobody-needs-is-removed
#[test]
fn who_is_gone_with_the_majority_is_removed_unless_it_has_the_last_copies() {
    let (small, node) = with_holder();
    let mut map = small.map.clone();
    let gone = [node, small.spare_node()].into_iter().collect();
    assert!(map.go_on_without(&gone).is_empty());
    assert!(map.is_removed(node) && map.is_removed(small.spare_node()));
    assert_eq!(small.volume().segments[0].in_sync.len(), 2);
    let members = &map.volumes()[&small.id()].segments[0];
    assert_eq!(members.in_sync.len(), 1, "the other one is there");
    assert_eq!(map.volumes()[&small.id()].owner, None);

    let mut map = small.map.clone();
    let holders: Vec<NodeId> =
        map.nodes().keys().copied().filter(|id| *id != small.spare_node()).collect();
    let gone = holders.iter().copied().collect();
    assert_eq!(map.go_on_without(&gone), gone, "both copies are with them");
    assert!(holders.iter().all(|id| !map.is_removed(*id) && !map.is_alive(*id)));
    assert!(matches!(map.events().last().unwrap().what, Fact::MajorityForced { .. }));
}

#[test]
fn a_drained_node_is_removed_and_never_comes_back() {
    let mut small = Small::with_volume(3, 2, 1);
    let node = small.spare_node();
    let by = other(&small, node);
    let again = small.new_process(node.get());
    assert_eq!(small.by(by, Change::DrainNode { node, why: WHY }), DONE);
    let disk = small.map.disks().iter().find(|(_, disk)| disk.node == node).unwrap();
    let (uuid, epoch) = (disk.1.uuid, small.volume().epoch);
    assert_eq!(small.by(by, remove(node, false)), DONE);
    assert!(small.map.node(node).is_none() && small.map.is_removed(node));
    assert!(small.map.disks().values().all(|disk| disk.node != node));
    assert_eq!(small.volume().epoch, epoch, "nothing of it was there");
    let last = &small.map.events().next_back().unwrap().what;
    assert_eq!(*last, Fact::NodeRemoved { node, disks: 1 });
    assert_eq!(small.by(by, remove(node, false)), DONE, "it is");
    assert_eq!(small.append(&again).outcome, refused(RefusedChange::Removed));

    // What was empty may be used elsewhere, as another disk.
    let node = NodeId::new(by);
    let change = Change::AddDisk { node, uuid, capacity_bytes: GIB, path: String::new() };
    assert_eq!(small.by(by, change), DONE);
    assert!(small.map.disk_by_uuid(uuid).unwrap().get() > 3, "ids are used once");
}

#[test]
fn a_dead_node_is_done_without_by_force() {
    let (mut small, node) = with_holder();
    let by = other(&small, node);
    let deleted = small.create("deleted", MIB, 3);
    small.record_all(deleted);
    assert_eq!(small.by(by, Change::DeleteVolume { volume: deleted, force: false }), DONE);
    small.silence(node.get());
    let epoch = small.volume().epoch;
    let disk = small.volume().segments[0].in_sync[0];
    let uuid = small.map.disk(disk).unwrap().uuid;
    assert_eq!(small.by(by, remove(node, true)), DONE);
    assert_eq!(small.volume().segments[0].in_sync.len(), 1);
    assert!(small.volume().epoch > epoch, "its owner has another view");
    let node = NodeId::new(by);
    let change = Change::AddDisk { node, uuid, capacity_bytes: GIB, path: String::new() };
    assert_eq!(small.by(by, change), refused(RefusedChange::Removed), "it has old copies");
    for node in small.map.nodes().keys().copied().collect::<Vec<_>>() {
        for order in small.map.drops_for(node) {
            let replicas = vec![(order.volume, order.segment)];
            let change = Change::Dropped { disk: order.disk, replicas };
            assert_eq!(small.by(node.get(), change), DONE);
        }
    }
    assert!(small.map.volume(deleted).is_none(), "nobody waits for what is gone");
}
