//! Disks and nodes that are being emptied.

use super::{DONE, MIB, Small, refused};
use crate::command::Change;
use crate::event::{DrainOf, DrainStep, Fact};
use crate::map::{Drain, DrainReason, Map};
use gabion_types::{
    DiskId, NodeId, Outcome, OwnerChange, Promotion, RefusedChange, Removal, SegmentIndex,
    SegmentMembers,
};

const S0: SegmentIndex = SegmentIndex::new(0);
const WANTED: Option<DrainReason> = Some(DrainReason::Operator);

fn first(small: &Small) -> &SegmentMembers {
    &small.volume().segments[0]
}

fn home(small: &Small, disk: DiskId) -> NodeId {
    small.map.disk(disk).unwrap().node
}

/// Owned by the node of the first copy; the second is on the disk that is drained.
fn draining() -> (Small, DiskId) {
    let mut small = Small::with_volume(3, 2, 1);
    let [stays, goes] = first(&small).in_sync[..] else { panic!("two copies") };
    small.take_over(home(&small, stays).get());
    assert_eq!(small.by(1, Change::DrainDisk { disk: goes, why: WANTED }), DONE);
    (small, goes)
}

fn remove_replaced(small: &mut Small, disk: DiskId) -> Outcome {
    let epoch = small.volume().epoch;
    let removal = Removal {
        segment: S0,
        disk,
        compare_all: false,
        may_return: false,
        replaced: true,
        reach: None,
    };
    small.owner(OwnerChange::RemoveMembers { epoch, removals: vec![removal], add_joiner: false })
}

/// The map picks a place, and the copy there becomes a member.
fn add_copy(small: &mut Small) -> DiskId {
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::AddJoining { epoch, joins: vec![(S0, None)] }), DONE);
    let joining = first(small).joining[0];
    let promotes = vec![Promotion { segment: S0, disk: joining.disk, joined: joining.joined }];
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Promote { epoch, promotes }), DONE);
    joining.disk
}

fn forget(small: &mut Small, disk: DiskId) {
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Forget { epoch, stale: vec![(S0, disk)] }), DONE);
}

fn drop_all(small: &mut Small, disk: DiskId) {
    let node = home(small, disk).get();
    let replicas = vec![(small.id(), S0)];
    assert_eq!(small.by(node, Change::Dropped { disk, replicas }), DONE);
}

fn is_done(small: &Small, disk: DiskId) -> bool {
    small.map.disk(disk).unwrap().drain.is_some_and(|drain| drain.done)
}

fn step(of: DrainOf, step: DrainStep) -> Fact {
    Fact::Drain { of, step }
}

fn last_fact(map: &Map) -> &Fact {
    &map.events().next_back().unwrap().what
}

// rule: cluster/replaced-before-it-is-removed
#[test]
fn a_copy_leaves_a_draining_disk_when_another_has_its_place() {
    let (mut small, goes) = draining();
    let view = small.map.view(small.id()).unwrap();
    assert!(view.draining.contains(&goes), "the owner knows");
    assert_eq!(remove_replaced(&mut small, goes), refused(RefusedChange::TooFewCopies));
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::AddJoining { epoch, joins: vec![(S0, None)] }), DONE);
    assert_eq!(remove_replaced(&mut small, goes), refused(RefusedChange::TooFewCopies));
    let joining = first(&small).joining[0];
    let epoch = small.volume().epoch;
    let more = OwnerChange::AddJoining { epoch, joins: vec![(S0, None)] };
    assert_eq!(small.owner(more), refused(RefusedChange::NoRoom), "one is on its way");
    let promotes = vec![Promotion { segment: S0, disk: joining.disk, joined: joining.joined }];
    assert_eq!(small.owner(OwnerChange::Promote { epoch, promotes }), DONE);
    assert_eq!(first(&small).in_sync.len(), 3);
    assert_eq!(remove_replaced(&mut small, goes), DONE);
    forget(&mut small, goes);
    assert!(!is_done(&small, goes), "it has yet to be dropped");
    drop_all(&mut small, goes);
    assert!(is_done(&small, goes));
    assert_eq!(*last_fact(&small.map), step(DrainOf::Disk(goes), DrainStep::Done));
    assert!(!first(&small).in_sync.contains(&goes));
}

// rule: cluster/nothing-new-on-what-is-emptied
#[test]
fn a_draining_disk_gets_nothing_new_until_it_is_used_again() {
    let (mut small, goes) = draining();
    let spec = Small::spec("other", MIB, 3);
    assert!(super::placed(&small.map, MIB, 0, 3).is_err(), "two disks are left for three copies");
    let all = small.map.disks().keys().copied().collect();
    let change = Change::CreateVolume { spec, placement: vec![all] };
    assert_eq!(small.by(1, change.clone()), refused(RefusedChange::NoRoom));
    let epoch = small.volume().epoch;
    let moved = add_copy(&mut small);
    assert_eq!(remove_replaced(&mut small, moved), DONE);
    forget(&mut small, moved);
    assert!(small.volume().epoch > epoch);
    assert_eq!(small.by(1, Change::DrainDisk { disk: goes, why: None }), DONE);
    assert_eq!(*last_fact(&small.map), step(DrainOf::Disk(goes), DrainStep::Cancelled));
    assert!(small.map.view(small.id()).unwrap().draining.is_empty());
    assert_eq!(small.by(1, change), DONE);
}

/// It may be the only one that can be brought up soon.
#[test]
fn a_copy_that_left_comes_back_to_a_draining_disk() {
    let (mut small, goes) = draining();
    let epoch = small.volume().epoch;
    let removal = Removal {
        segment: S0,
        disk: goes,
        compare_all: false,
        may_return: true,
        replaced: false,
        reach: None,
    };
    let removals = vec![removal];
    assert_eq!(small.owner(OwnerChange::RemoveMembers { epoch, removals, add_joiner: true }), DONE);
    let epoch = small.volume().epoch;
    let back = OwnerChange::AddJoining { epoch, joins: vec![(S0, Some(goes))] };
    assert_eq!(small.owner(back), DONE);
    assert!(first(&small).joining(goes).is_some());
}

#[test]
fn a_node_is_drained_when_its_disks_are_empty_and_it_owns_nothing() {
    let mut small = Small::with_volume(4, 2, 1);
    let disks = first(&small).in_sync.clone();
    let owner = home(&small, disks[0]);
    small.take_over(owner.get());
    assert_eq!(small.by(1, Change::DrainNode { node: owner, why: WANTED }), DONE);
    let drain = |small: &Small| small.map.node(owner).unwrap().drain;
    assert!(small.map.is_draining(disks[0]));
    add_copy(&mut small);
    assert_eq!(remove_replaced(&mut small, disks[0]), DONE);
    forget(&mut small, disks[0]);
    drop_all(&mut small, disks[0]);
    let why = DrainReason::Operator;
    assert_eq!(drain(&small), Some(Drain { why, done: false }), "it owns the volume");
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Release { epoch, clean: true }), DONE);
    assert_eq!(drain(&small), Some(Drain { why, done: true }));
    assert_eq!(*last_fact(&small.map), step(DrainOf::Node(owner), DrainStep::Done));
    small.take_over(owner.get());
    assert_eq!(drain(&small), Some(Drain { why, done: false }), "a guest came");
    assert_eq!(small.by(1, Change::DrainNode { node: owner, why: None }), DONE);
    assert!(!small.map.is_draining(disks[0]));
}

/// As they were written before disks could be drained.
#[test]
fn an_older_map_is_read() {
    let small = Small::with_volume(3, 2, 1);
    let mut map = serde_json::to_value(&small.map).unwrap();
    for table in ["nodes", "disks"] {
        for entry in map[table].as_object_mut().unwrap().values_mut() {
            assert!(entry.as_object_mut().unwrap().remove("drain").is_some());
        }
    }
    assert_eq!(serde_json::from_value::<Map>(map).unwrap(), small.map);
}

#[test]
fn a_suspect_disk_is_emptied_by_the_word_of_its_node() {
    let mut small = Small::with_volume(3, 2, 1);
    let disk = first(&small).in_sync[0];
    let node = home(&small, disk).get();
    let other = (1..=3).find(|other| *other != node).unwrap();
    let why = DrainReason::Suspect { corrupt_blocks: 70 };
    let change = Change::DrainDisk { disk, why: Some(why) };
    assert_eq!(small.by(other, change.clone()), refused(RefusedChange::Invalid));
    assert_eq!(small.by(node, change.clone()), DONE);
    assert_eq!(small.map.disk(disk).unwrap().drain, Some(Drain { why, done: false }));
    assert_eq!(small.by(1, Change::DrainDisk { disk, why: None }), DONE);
    assert_eq!(small.by(1, Change::DrainDisk { disk, why: WANTED }), DONE);
    assert_eq!(small.by(node, change), DONE);
    let why = DrainReason::Operator;
    assert_eq!(small.map.disk(disk).unwrap().drain, Some(Drain { why, done: false }), "as it was");
}
