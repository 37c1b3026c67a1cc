//! What an owner does to its members.

use super::{DONE, MIB, Small, refused};
use crate::command::Change;
use crate::map::{STALE_MAX, WRITE_SET_MAX};
use gabion_types::{
    DiskId, Epoch, Joining, Move, NodeId, OwnerChange, Promotion, RefusedChange, Removal,
    SegmentIndex, SegmentMembers,
};

const S0: SegmentIndex = SegmentIndex::new(0);

fn removal(segment: SegmentIndex, disk: DiskId) -> Removal {
    Removal { segment, disk, compare_all: false, may_return: false, replaced: false, reach: None }
}

fn remove(small: &mut Small, removals: Vec<Removal>, add_joiner: bool) -> gabion_types::Outcome {
    let epoch = small.volume().epoch;
    small.owner(OwnerChange::RemoveMembers { epoch, removals, add_joiner })
}

fn join(small: &mut Small, disk: Option<DiskId>) -> gabion_types::Outcome {
    let epoch = small.volume().epoch;
    small.owner(OwnerChange::AddJoining { epoch, joins: vec![(S0, disk)] })
}

fn promote(small: &mut Small, disk: DiskId, joined: Epoch) -> gabion_types::Outcome {
    let epoch = small.volume().epoch;
    let promotes = vec![Promotion { segment: S0, disk, joined }];
    small.owner(OwnerChange::Promote { epoch, promotes })
}

fn first(small: &Small) -> &SegmentMembers {
    &small.volume().segments[0]
}

fn owned(nodes: u32, segments: u64) -> Small {
    let mut small = Small::with_volume(nodes, 2, segments);
    let home = small.map.disk(first(&small).in_sync[0]).unwrap().node;
    small.take_over(home.get());
    small
}

// rule: cluster/owner-changes-its-epoch
// promise: majority-first
#[test]
fn only_the_owner_changes_members_and_only_under_the_present_epoch() {
    let mut small = owned(3, 1);
    let (volume, epoch) = (small.id(), small.volume().epoch);
    let disk = first(&small).in_sync[1];
    let at = |epoch| OwnerChange::RemoveMembers {
        epoch,
        removals: vec![removal(S0, disk)],
        add_joiner: false,
    };
    let (owner, _) = small.volume().owner.unwrap();
    let other = (1..=3).find(|node| *node != owner.get()).unwrap();
    let change = Change::Owner { volume, change: at(epoch) };
    assert_eq!(small.by(other, change.clone()), refused(RefusedChange::NotOwner));
    assert_eq!(small.owner(at(epoch.next())), refused(RefusedChange::OtherEpoch));
    assert_eq!(small.owner(at(Epoch::ZERO)), refused(RefusedChange::OtherEpoch));
    assert_eq!(small.owner(at(epoch)), DONE);
    assert_eq!(small.owner(at(epoch)), refused(RefusedChange::OtherEpoch));
    small.silence(owner.get());
    let late = Change::Owner { volume, change: at(epoch.next()) };
    assert_eq!(small.by(owner.get(), late), refused(RefusedChange::NotOwner));
}

// rule: cluster/in-sync-never-empty
#[test]
fn the_last_in_sync_replica_stays_and_so_does_the_whole_entry() {
    let mut small = owned(3, 2);
    let disks = first(&small).in_sync.clone();
    let before = small.volume().clone();
    let both = disks.iter().map(|disk| removal(S0, *disk)).collect();
    assert_eq!(remove(&mut small, both, true), refused(RefusedChange::LastInSync));
    assert_eq!(*small.volume(), before);
    let mut some: Vec<_> = disks.iter().map(|disk| removal(S0, *disk)).collect();
    let other = small.volume().segments[1].in_sync[0];
    some.insert(0, removal(SegmentIndex::new(1), other));
    assert_eq!(remove(&mut small, some, true), refused(RefusedChange::LastInSync));
    assert_eq!(*small.volume(), before);
}

#[test]
fn a_silent_member_is_replaced_in_the_same_entry_and_its_stand_in_waits() {
    let mut small = owned(3, 4);
    let gone = first(&small).in_sync[1];
    let of_gone = |small: &Small| -> Vec<SegmentIndex> {
        let held = small.volume().segments.iter().enumerate();
        held.filter(|(_, members)| members.is_in_sync(gone))
            .map(|(place, _)| SegmentIndex::new(u32::try_from(place).unwrap()))
            .collect()
    };
    let segments = of_gone(&small);
    let removals: Vec<_> = segments
        .iter()
        .map(|segment| Removal { may_return: true, ..removal(*segment, gone) })
        .collect();
    let epoch = small.volume().epoch.next();
    assert_eq!(remove(&mut small, removals, true), DONE);
    assert_eq!(small.volume().epoch, epoch);
    for segment in segments {
        let members = small.map.members(small.id(), segment).unwrap();
        assert_eq!(members.in_sync.len(), 1);
        let joining = members.joining[0];
        assert_ne!(small.map.disk(joining.disk).unwrap().node, small.map.disk(gone).unwrap().node);
        assert_eq!((joining.joined, joining.left, joining.fill_waits), (epoch, None, true));
        assert!(joining.compare_all, "nothing that it may hold is trusted");
        assert_eq!(members.stale[0].left, epoch);
        assert!(!members.stale[0].compare_all);
    }
}

#[test]
fn a_failed_disk_may_be_replaced_on_its_own_node_a_silent_one_not() {
    let two_disks = || {
        let mut small = Small::new(2, 2);
        let id = small.create("vm", MIB, 2);
        small.record_all(id);
        small.take_over(1);
        small
    };
    let mut small = two_disks();
    let gone = first(&small).in_sync[1];
    let node = small.map.disk(gone).unwrap().node;
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    assert_eq!(small.map.disk(first(&small).joining[0].disk).unwrap().node, node);
    let mut small = two_disks();
    let silent = Removal { may_return: true, ..removal(S0, gone) };
    assert_eq!(remove(&mut small, vec![silent], true), DONE);
    assert!(first(&small).joining.is_empty(), "goes on without");
}

#[test]
fn a_new_copy_goes_to_the_owners_node_where_that_has_none() {
    let mut small = owned(5, 1);
    let home = |small: &Small, disk| small.map.disk(disk).unwrap().node;
    let members = first(&small).in_sync.clone();
    let other = NodeId::new(5);
    assert!(members.iter().all(|disk| home(&small, *disk) != other));
    small.owner(OwnerChange::Release { epoch: small.volume().epoch, clean: true });
    small.take_over(5);
    assert_eq!(remove(&mut small, vec![removal(S0, members[0])], true), DONE);
    assert_eq!(home(&small, first(&small).joining[0].disk), other);
}

#[test]
fn nothing_is_rebuilt_while_too_many_are_away() {
    let mut small = owned(5, 1);
    let members = first(&small).in_sync.clone();
    let homes: Vec<_> = members.iter().map(|d| small.map.disk(*d).unwrap().node.get()).collect();
    let others: Vec<_> = (1..=5).filter(|node| !homes.contains(node)).collect();
    small.silence(others[0]);
    small.silence(others[1]);
    assert_eq!(remove(&mut small, vec![removal(S0, members[1])], true), DONE);
    assert!(first(&small).joining.is_empty());
    assert_eq!(join(&mut small, None), refused(RefusedChange::NoRoom));
    let word = Change::SetSetting { name: "rebuild.away".into(), value: "60%".into() };
    assert_eq!(small.by(others[2], word), DONE);
    assert_eq!(join(&mut small, None), DONE);
    assert_eq!(first(&small).joining.len(), 1);
}

#[test]
fn a_stale_replica_comes_back_and_is_promoted_by_its_j_only() {
    let mut small = owned(2, 1);
    let gone = first(&small).in_sync[1];
    let bad = Removal { compare_all: true, ..removal(S0, gone) };
    assert_eq!(remove(&mut small, vec![bad], true), DONE);
    let left = small.volume().epoch;
    assert_eq!(first(&small).stale[0].left, left);
    assert_eq!(join(&mut small, None), refused(RefusedChange::NoRoom), "a stale one is named");
    assert_eq!(join(&mut small, Some(gone)), DONE);
    let joined = small.volume().epoch;
    let expected = Joining {
        disk: gone,
        joined,
        left: Some(left),
        compare_all: true,
        fill_waits: false,
        reach: None,
        alone: false,
    };
    assert_eq!(first(&small).joining, [expected]);
    assert!(first(&small).stale.is_empty());
    assert_eq!(join(&mut small, Some(gone)), refused(RefusedChange::NoRoom));
    assert_eq!(promote(&mut small, gone, left), refused(RefusedChange::NotFound));
    assert_eq!(promote(&mut small, gone, joined), DONE);
    assert_eq!(first(&small).in_sync.len(), 2);
    assert_eq!(promote(&mut small, gone, joined), refused(RefusedChange::NotFound));
}

// rule: cluster/unfinished-joiner-keeps-its-left
#[test]
fn a_joiner_that_never_finished_is_trusted_no_more_than_before() {
    let mut small = owned(3, 1);
    let gone = first(&small).in_sync[1];
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    let left = small.volume().epoch;
    let stand_in = first(&small).joining[0].disk;
    assert_eq!(join(&mut small, Some(gone)), DONE);
    assert_eq!(remove(&mut small, vec![removal(S0, gone), removal(S0, stand_in)], false), DONE);
    let back = *first(&small).stale(gone).unwrap();
    assert_eq!((back.left, back.compare_all), (left, false), "as when it was a member");
    let fresh = *first(&small).stale(stand_in).unwrap();
    assert!(fresh.compare_all, "it never was one");
    assert_eq!(join(&mut small, Some(stand_in)), DONE);
    let again = first(&small).joining[0];
    assert!(again.compare_all);
    let lied = Removal { compare_all: true, ..removal(S0, gone) };
    assert_eq!(join(&mut small, Some(gone)), DONE);
    assert_eq!(remove(&mut small, vec![lied], false), DONE);
    let back = *first(&small).stale(gone).unwrap();
    assert_eq!((back.left, back.compare_all), (left, true));
}

#[test]
fn what_is_not_needed_any_more_is_dropped_by_order() {
    let mut small = owned(3, 1);
    let id = small.id();
    let gone = first(&small).in_sync[1];
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    let stand_in = first(&small).joining[0].disk;
    assert_eq!(join(&mut small, Some(gone)), DONE);
    let joined = small.volume().epoch;
    assert_eq!(promote(&mut small, gone, joined), DONE);
    assert_eq!(remove(&mut small, vec![removal(S0, stand_in)], false), DONE);
    assert!(first(&small).joining.is_empty() && first(&small).stale.is_empty());
    let home = small.map.disk(stand_in).unwrap().node;
    let drops = small.map.drops_for(home);
    assert_eq!(drops.len(), 1);
    assert_eq!((drops[0].volume, drops[0].segment, drops[0].disk), (id, S0, stand_in));
    let later = small.volume().epoch;
    assert_eq!(drops[0].epoch, later);

    // Until it has dropped what it has, it gets no new copy of the same segment.
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    assert!(first(&small).joining.is_empty());
    assert_eq!(join(&mut small, Some(stand_in)), refused(RefusedChange::NoRoom));
    let epoch = small.map.drops_for(home)[0].epoch;
    assert!(epoch > later, "a fence up to now is no reason against the order");
    let replicas = vec![(id, S0)];
    assert_eq!(small.by(home.get(), Change::Dropped { disk: stand_in, replicas }), DONE);
    assert!(small.map.drops_for(home).is_empty());
    assert_eq!(join(&mut small, None), DONE);
    assert_eq!(first(&small).joining[0].disk, stand_in);

    let epoch = small.volume().epoch;
    let forget = |disk| OwnerChange::Forget { epoch, stale: vec![(S0, disk)] };
    assert_eq!(small.owner(forget(stand_in)), refused(RefusedChange::NotFound));
    assert_eq!(small.owner(forget(gone)), DONE);
    let home = small.map.disk(gone).unwrap().node;
    assert_eq!(small.map.drops_for(home)[0].disk, gone);
}

#[test]
fn a_failed_disk_leaves_nothing_behind() {
    let mut small = owned(3, 1);
    let gone = first(&small).in_sync[1];
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    let epoch = small.volume().epoch;
    assert_eq!(small.by(1, Change::DiskFailed { disk: gone }), DONE);
    assert!(first(&small).stale.is_empty());
    assert_eq!(small.volume().epoch, epoch.next());
    assert_eq!(join(&mut small, Some(gone)), refused(RefusedChange::NoRoom));
    let joiner = first(&small).joining[0].disk;
    assert_eq!(small.by(1, Change::DiskFailed { disk: joiner }), DONE);
    assert_eq!(remove(&mut small, vec![removal(S0, joiner)], true), DONE);
    assert!(first(&small).stale.is_empty());
    for node in 1..=3 {
        assert!(small.map.drops_for(NodeId::new(node)).is_empty());
    }
}

// rule: cluster/missing-disk-takes-nothing
#[test]
fn a_missing_disk_takes_nothing_until_it_is_back() {
    let mut small = owned(3, 1);
    let gone = first(&small).in_sync[1];
    let entry = small.map.disk(gone).unwrap().clone();
    let home = entry.node.get();
    let other = if home == 1 { 2 } else { 1 };
    let missing = Change::DiskMissing { disk: gone };
    assert_eq!(small.by(other, missing.clone()), refused(RefusedChange::Invalid));
    assert_eq!(small.by(home, missing), DONE);
    assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
    assert_eq!(first(&small).stale[0].disk, gone, "it may come back");
    assert_eq!(join(&mut small, Some(gone)), refused(RefusedChange::NoRoom));
    let back = Change::AddDisk {
        node: entry.node,
        uuid: entry.uuid,
        capacity_bytes: entry.capacity_bytes,
        path: entry.path,
    };
    let epoch = small.volume().epoch;
    assert_eq!(small.by(home, back), DONE);
    assert!(small.volume().epoch > epoch, "its owner is told");
    assert_eq!(join(&mut small, Some(gone)), DONE);
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let mut small = owned(3, 1);
    let disk = first(&small).in_sync[0];
    let spare = small.spare_node();
    let spare = *small.map.disks().iter().find(|(_, disk)| disk.node == spare).unwrap().0;
    let before = small.volume().clone();
    let epoch = before.epoch;
    let far = SegmentIndex::new(u32::MAX);
    let none = vec![];
    let cases = [
        OwnerChange::RemoveMembers { epoch, removals: vec![], add_joiner: true },
        OwnerChange::RemoveMembers { epoch, removals: vec![removal(far, disk)], add_joiner: true },
        OwnerChange::RemoveMembers { epoch, removals: vec![removal(S0, spare)], add_joiner: true },
        OwnerChange::RemoveMembers {
            epoch,
            removals: vec![removal(S0, disk), removal(S0, disk)],
            add_joiner: true,
        },
        OwnerChange::AddJoining { epoch, joins: vec![] },
        OwnerChange::AddJoining { epoch, joins: vec![(far, None)] },
        OwnerChange::AddJoining { epoch, joins: vec![(S0, None)] },
        OwnerChange::AddJoining { epoch, joins: vec![(S0, Some(disk))] },
        OwnerChange::AddJoining { epoch, joins: vec![(S0, Some(DiskId::new(99)))] },
        OwnerChange::Promote { epoch, promotes: vec![] },
        OwnerChange::Forget { epoch, stale: none },
        OwnerChange::Forget { epoch, stale: vec![(S0, disk)] },
    ];
    for change in cases {
        let outcome = small.owner(change.clone());
        assert_ne!(outcome, DONE, "{change:?}");
        assert_eq!(*small.volume(), before, "{change:?}");
    }
    let third = OwnerChange::AddJoining { epoch, joins: vec![(S0, Some(spare))] };
    assert_eq!(small.owner(third), DONE, "the owner may ask for one more copy");
}

#[test]
fn replicas_of_a_segment_are_bounded() {
    let nodes = 16;
    let mut small = owned(nodes, 1);
    for _ in 0..9 {
        let gone = *first(&small).in_sync.last().unwrap();
        assert_eq!(remove(&mut small, vec![removal(S0, gone)], true), DONE);
        let joining = first(&small).joining[0];
        assert_eq!(promote(&mut small, joining.disk, joining.joined), DONE);
        let members = first(&small);
        assert!(members.write_set().count() <= WRITE_SET_MAX);
        assert!(members.stale.len() <= STALE_MAX);
    }
    let dropped: usize = (1..=nodes).map(|n| small.map.drops_for(NodeId::new(n)).len()).sum();
    assert!(dropped > 0, "the oldest went");
}

// rule: cluster/a-copy-moves-where-it-may-be
#[test]
fn a_copy_that_is_to_move_is_a_copy_until_another_took_its_place() {
    let mut small = owned(4, 1);
    let (moving, other) = (first(&small).in_sync[0], first(&small).in_sync[1]);
    let to = *small.map.disks().keys().find(|disk| !first(&small).in_sync.contains(disk)).unwrap();
    let moves = [(S0, Move { from: moving, to })].into_iter().collect();
    let change = Change::MoveCopies { volume: small.id(), moves };
    assert_eq!(small.by(1, change), DONE);
    // The owner's node is where the next copy would be rather than elsewhere.
    assert_eq!(remove(&mut small, vec![removal(S0, other)], true), DONE);
    let joiner = first(&small).joining[0].disk;
    let home = |disk: DiskId| small.map.disk(disk).unwrap().node;
    assert_ne!(home(joiner), home(moving), "two copies of one segment on one node");
}
