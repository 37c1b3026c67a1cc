//! Volumes are made, taken, grown and deleted.

use super::{DONE, GIB, MIB, Small, placed, refused};
use crate::command::{Change, VolumeSpec};
use crate::map::room::promised;
use crate::map::{Map, VolumeState};
use crate::placement::{PlacementError, Wanted, free_bytes, place};
use gabion_types::{
    DiskId, Epoch, Incarnation, NodeId, OwnerChange, RefusedChange, SegmentIndex, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

// rule: cluster/owned-only-when-recorded
#[test]
fn a_volume_is_owned_only_when_every_disk_has_recorded_it() {
    let mut small = Small::new(3, 1);
    let id = small.create("vm", 3 * MIB, 2);
    let (node, incarnation) = (NodeId::new(1), small.incarnation(1));
    let epoch = small.volume().epoch;
    let take = Change::TakeOver { volume: id, epoch, node, incarnation };
    assert_eq!(small.by(1, take.clone()), refused(RefusedChange::Busy));
    assert_eq!(small.map.view(id), None);
    let orders = small.map.creates_for(node);
    assert!(!orders.is_empty());
    let (disk, creation) = (orders[0].disk, orders[0].creation);
    let other = Change::Created { volume: id, disk, creation };
    assert_eq!(small.by(2, other), refused(RefusedChange::Invalid), "not that node's disk");
    let wrong = Change::Created { volume: id, disk, creation: Epoch::new(9).unwrap() };
    assert_eq!(small.by(1, wrong), refused(RefusedChange::NotFound));
    small.record(1, id);
    small.record(2, id);
    assert_eq!(small.by(1, take.clone()), refused(RefusedChange::Busy));
    small.record(3, id);
    assert_eq!(small.volume().state, VolumeState::Ready);
    assert_eq!(small.by(1, take), DONE);
    let view = small.map.view(id).unwrap();
    assert!(view.clean, "nobody ever wrote to it");
    assert_eq!(view.segments.len(), 3);
    assert_eq!(view.homes.len(), 3);
    let again = Change::Created { volume: id, disk, creation };
    assert_eq!(small.by(1, again), DONE, "said twice");
}

#[test]
fn creates_come_in_runs() {
    let mut small = Small::new(2, 1);
    let id = small.create("vm", 64 * MIB, 2);
    let orders = small.map.creates_for(NodeId::new(1));
    assert_eq!(orders.len(), 1);
    assert_eq!((orders[0].first, orders[0].count), (SegmentIndex::new(0), 64));
    assert_eq!(orders[0].volume, id);
}

#[test]
fn a_node_that_dies_before_it_recorded_is_left_out() {
    let mut small = Small::new(3, 1);
    let id = small.create("vm", 3 * MIB, 2);
    small.record(1, id);
    small.record(2, id);
    small.silence(3);
    let volume = small.volume();
    assert_eq!(volume.state, VolumeState::Ready);
    assert!(volume.segments.iter().any(|members| members.in_sync.len() == 1));
    let drops = small.map.drops_for(NodeId::new(3));
    assert_eq!(drops.len(), 2, "what it may have made meanwhile");
    assert!(drops.iter().all(|drop| drop.epoch == small.volume().epoch));
    let disk = drops[0].disk;
    let late = Change::Created { volume: id, disk, creation: drops[0].creation };
    assert_eq!(small.by(3, late), DONE);
    assert!(!small.volume().segments.iter().any(|members| members.is_in_sync(disk)));
}

#[test]
fn a_last_copy_in_the_making_is_waited_for() {
    let mut small = Small::new(1, 1);
    let id = small.create("vm", MIB, 1);
    small.silence(1);
    assert!(matches!(small.volume().state, VolumeState::Creating { .. }));
    small.register(1);
    small.record(1, id);
    assert_eq!(small.volume().state, VolumeState::Ready);
}

#[test]
fn a_bad_volume_is_refused() {
    let mut small = Small::new(3, 2);
    let all = |map: &Map| map.disks().keys().copied().collect::<Vec<_>>();
    let disks = all(&small.map);
    let on = |node: u32| {
        let of = small.map.disks().iter().filter(|(_, disk)| disk.node == NodeId::new(node));
        of.map(|(disk, _)| *disk).collect::<Vec<_>>()
    };
    let pair = vec![on(1)[0], on(2)[0]];
    let one_node = on(1);
    let cases = [
        (Small::spec("-vm", MIB, 2), vec![pair.clone()], RefusedChange::Invalid),
        (Small::spec("", MIB, 2), vec![pair.clone()], RefusedChange::Invalid),
        (Small::spec("vm", MIB + 1, 2), vec![pair.clone()], RefusedChange::Invalid),
        (Small::spec("vm", 0, 2), vec![], RefusedChange::Invalid),
        (Small::spec("vm", u64::MAX - 4095, 2), vec![], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 0), vec![vec![]], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 4), vec![disks.clone()], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 2), vec![], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 2), vec![vec![pair[0]]], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 2), vec![one_node], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 2), vec![vec![pair[0], pair[0]]], RefusedChange::Invalid),
        (Small::spec("vm", MIB, 2), vec![vec![pair[0], DiskId::new(77)]], RefusedChange::Invalid),
        (Small::spec("vm", 4 * GIB, 2), vec![pair.clone(); 4096], RefusedChange::NoRoom),
    ];
    for (spec, placement, why) in cases {
        let name = spec.clone();
        assert_eq!(small.by(1, Change::CreateVolume { spec, placement }), refused(why), "{name:?}");
    }
    let spec = Small::spec("vm", MIB, 2);
    let create = Change::CreateVolume { spec, placement: vec![pair] };
    assert_eq!(small.by(1, create.clone()), DONE);
    assert_eq!(small.by(1, create), refused(RefusedChange::NameTaken));
}

#[test]
fn volumes_are_thin_up_to_a_limit() {
    let mut small = Small::new(2, 1);
    for name in ["a", "b", "c", "d"] {
        small.create(name, GIB, 2);
    }
    let full = placed(&small.map, MIB, 0, 2);
    assert_eq!(full, Err(PlacementError::NoRoom));
    let pair = vec![DiskId::new(1), DiskId::new(2)];
    let change = Change::CreateVolume { spec: Small::spec("e", MIB, 2), placement: vec![pair] };
    assert_eq!(small.by(1, change.clone()), refused(RefusedChange::NoRoom));
    let more = Change::SetSetting { name: "overcommit.ratio".into(), value: "500%".into() };
    assert_eq!(small.by(1, more), DONE);
    assert_eq!(small.by(1, change), DONE);
}

#[test]
fn segments_spread_evenly_and_the_first_copy_takes_turns() {
    let mut small = Small::new(3, 2);
    small.create("vm", 60 * MIB, 2);
    let promised = promised(&small.map);
    assert_eq!(promised.values().copied().collect::<Vec<_>>(), [20 * MIB; 6]);
    let mut first: BTreeMap<NodeId, u32> = BTreeMap::new();
    for members in &small.volume().segments {
        let home = |disk: DiskId| small.map.disk(disk).unwrap().node;
        assert_ne!(home(members.in_sync[0]), home(members.in_sync[1]));
        *first.entry(home(members.in_sync[0])).or_insert(0) += 1;
    }
    assert_eq!(first.len(), 3);
    assert!(first.values().all(|count| (15..=25).contains(count)), "{first:?}");
    let few = placed(&Small::new(2, 3).map, MIB, 0, 3);
    assert_eq!(few, Err(PlacementError::TooFewNodes { nodes: 2 }));
}

#[test]
fn one_copy_is_where_the_guest_is_while_there_is_room() {
    let small = Small::new(3, 2);
    let near = NodeId::new(2);
    let wanted = Wanted { size_bytes: 9 * MIB - 4096, had: 0, rf: 2, near: Some(near) };
    let home = |disk: &DiskId| small.map.disk(*disk).unwrap().node;
    let placement = place(&small.map, wanted).unwrap();
    assert_eq!(placement.len(), 9);
    for disks in &placement {
        assert_eq!(disks.iter().filter(|disk| home(disk) == near).count(), 1, "{placement:?}");
    }
    let others: BTreeSet<_> = placement.iter().flatten().map(home).collect();
    assert_eq!(others.len(), 3, "the other copies spread");
    let near = Some(NodeId::new(99));
    assert!(place(&small.map, Wanted { near, ..wanted }).is_ok(), "a node without disks");
}

#[test]
fn a_small_volume_takes_what_it_can_grow_to_and_no_more() {
    let mut small = Small::of(2, 1, 256 * MIB);
    let most = small.map.disks().values().map(|disk| disk.capacity_bytes).min().unwrap();
    for place in 0..100 {
        small.create(&format!("v{place}"), MIB, 2);
    }
    let promised = promised(&small.map);
    assert_eq!(promised.values().copied().collect::<Vec<_>>(), [100 * MIB; 2]);
    let left = free_bytes(&small.map, 2);
    assert_eq!(left, (4 * most - 100 * MIB).min(most) / MIB * MIB, "{most}");
}

#[test]
fn the_end_of_a_volume_grows_only_where_it_has_room() {
    let mut small = Small::of(3, 1, 256 * MIB);
    let once = Change::SetSetting { name: "overcommit.ratio".into(), value: "100%".into() };
    assert_eq!(small.by(1, once), DONE);
    let id = small.create("vm", 4096, 2);
    small.record_all(id);
    let used: Vec<_> = small.volume().segments[0].in_sync.clone();
    let full = free_bytes(&small.map, 2);
    small.create("rest", full, 2);
    let entry = small.map.volume(id).unwrap();
    assert_eq!(small.map.full_at_the_end(entry, MIB), None, "within what was counted");
    let (disk, _) = small.map.full_at_the_end(entry, 256 * MIB).unwrap();
    assert!(used.contains(&disk));
    let grow = |size_bytes| Change::ResizeVolume { volume: id, size_bytes, placement: vec![] };
    assert_eq!(small.by(1, grow(256 * MIB)), refused(RefusedChange::NoRoom));
    assert_eq!(small.by(1, grow(MIB)), DONE);
}

#[test]
fn the_end_of_a_volume_grows_also_while_a_node_is_away() {
    let mut small = Small::of(2, 1, 256 * MIB);
    let id = small.create("vm", MIB, 2);
    small.record_all(id);
    small.silence(2);
    let placement = placed(&small.map, 9 * MIB, 1, 2).unwrap();
    assert!(placement.is_empty());
    let grow = Change::ResizeVolume { volume: id, size_bytes: 9 * MIB, placement };
    assert_eq!(small.by(1, grow), DONE);
    assert_eq!(small.volume().spec.size_bytes, 9 * MIB);
    let more = placed(&small.map, 257 * MIB, 1, 2);
    assert_eq!(more, Err(PlacementError::TooFewNodes { nodes: 1 }));
}

// rule: cluster/take-over-unowned-only
// promise: one-owner
#[test]
fn of_two_that_want_a_volume_one_gets_it() {
    let mut small = Small::with_volume(3, 2, 1);
    let (volume, epoch) = (small.id(), small.volume().epoch);
    let take = |small: &Small, node: u32| Change::TakeOver {
        volume,
        epoch,
        node: NodeId::new(node),
        incarnation: small.incarnation(node),
    };
    let (one, two) = (take(&small, 1), take(&small, 2));
    assert_eq!(small.by(1, one.clone()), DONE);
    assert_eq!(small.volume().owner_epoch, epoch.next());
    assert_eq!(small.by(2, two.clone()), refused(RefusedChange::Busy));
    let release = OwnerChange::Release { epoch: epoch.next(), clean: true };
    assert_eq!(small.owner(release), DONE);
    assert_eq!(small.by(2, two), refused(RefusedChange::OtherEpoch), "it saw an older map");
    let gone = Incarnation::new(1);
    let epoch = small.volume().epoch;
    let dead = Change::TakeOver { volume, epoch, node: NodeId::new(2), incarnation: gone };
    assert_eq!(small.by(2, dead), refused(RefusedChange::OtherIncarnation));
    let nobody = Change::TakeOver { volume, epoch, node: NodeId::new(9), incarnation: gone };
    assert_eq!(small.by(2, nobody), refused(RefusedChange::NotFound));
}

#[test]
fn a_takeover_is_clean_only_right_after_a_clean_release() {
    let mut small = Small::with_volume(3, 2, 2);
    let id = small.id();
    let clean = |small: &Small| small.map.view(id).unwrap().clean;
    small.take_over(1);
    assert!(clean(&small));
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Release { epoch, clean: false }), DONE);
    small.take_over(2);
    assert!(!clean(&small));
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Release { epoch, clean: true }), DONE);
    small.take_over(2);
    assert!(clean(&small));
    small.silence(2);
    small.take_over(1);
    assert!(!clean(&small), "the owner died: there is a tail");
}

#[test]
fn a_volume_grows_when_its_new_segments_are_recorded() {
    let mut small = Small::with_volume(3, 2, 2);
    let id = small.id();
    small.take_over(1);
    let resize = |small: &Small, size_bytes| {
        let had = u32::try_from(small.volume().segments.len()).unwrap();
        let placement = placed(&small.map, size_bytes, had, 2).unwrap();
        Change::ResizeVolume { volume: id, size_bytes, placement }
    };
    let shrink = resize(&small, MIB);
    assert_eq!(small.by(2, shrink), refused(RefusedChange::Invalid));
    let grow = resize(&small, 5 * MIB - 4096);
    assert_eq!(small.by(2, grow.clone()), DONE);
    assert_eq!(small.by(2, grow), refused(RefusedChange::Busy));
    assert_eq!(small.volume().spec.size_bytes, 2 * MIB, "not yet");
    let growth = small.volume().growth.clone().unwrap();
    let creation = growth.segments[0].creation;
    assert!(growth.segments.iter().all(|members| members.creation == creation));
    assert!(creation > small.volume().segments[0].creation);
    let disk = growth.segments[0].in_sync[0];
    let segment = SegmentIndex::new(2);
    assert!(small.map.is_wanted(disk, id, segment, creation));
    let old = Change::Created { volume: id, disk, creation: Epoch::new(1).unwrap() };
    let home = small.map.disk(disk).unwrap().node.get();
    assert_eq!(small.by(home, old), DONE, "said of the first segments");
    assert_eq!(small.volume().growth, Some(growth), "which is not these");
    small.record_all(id);
    assert_eq!(small.volume().spec.size_bytes, 5 * MIB - 4096);
    assert_eq!(small.volume().segments.len(), 5);
    assert!(small.volume().owner.is_some());
    let epoch = small.volume().epoch;
    let within = resize(&small, 5 * MIB);
    assert_eq!(small.by(2, within), DONE);
    assert_eq!((small.volume().spec.size_bytes, small.volume().epoch), (5 * MIB, epoch.next()));
}

// rule: cluster/drop-by-order-only
#[test]
fn a_deleted_volume_is_gone_when_every_disk_has_dropped_it() {
    let mut small = Small::with_volume(3, 2, 3);
    let id = small.id();
    small.take_over(1);
    let delete = |force| Change::DeleteVolume { volume: id, force };
    assert_eq!(small.by(2, delete(false)), refused(RefusedChange::Attached));
    assert_eq!(small.by(2, delete(true)), DONE);
    assert_eq!(small.by(2, delete(true)), refused(RefusedChange::NotFound));
    assert_eq!(small.map.view(id), None);
    assert_eq!(small.map.volume_by_name("vm"), None);
    let other = small.create("vm", MIB, 2);
    assert_ne!(other, id, "ids are never used twice");
    for node in 1..=3 {
        assert!(small.map.volume(id).is_some());
        let orders = small.map.drops_for(NodeId::new(node));
        assert_eq!(orders.len(), 2);
        assert!(orders.iter().all(|order| order.volume == id));
        let order = orders[0];
        assert!(!small.map.is_wanted(order.disk, id, order.segment, order.creation));
        let replicas: Vec<_> = orders.iter().map(|order| (id, order.segment)).collect();
        let dropped = Change::Dropped { disk: order.disk, replicas };
        let wrong = if node == 1 { 2 } else { 1 };
        assert_eq!(small.by(wrong, dropped.clone()), refused(RefusedChange::Invalid));
        assert_eq!(small.by(node, dropped), DONE);
    }
    assert_eq!(small.map.volume(id), None);
}

#[test]
fn a_failed_disk_has_nothing_left_to_drop() {
    let mut small = Small::with_volume(2, 2, 1);
    let id = small.id();
    let disks = small.volume().segments[0].in_sync.clone();
    small.by(1, Change::DeleteVolume { volume: id, force: false });
    small.by(1, Change::DiskFailed { disk: disks[0] });
    assert!(small.map.volume(id).is_some());
    small.by(1, Change::DiskFailed { disk: disks[1] });
    assert_eq!(small.map.volume(id), None);
}

#[test]
fn sessions_are_void_by_the_owners_word() {
    let mut small = Small::with_volume(3, 2, 1);
    let id = small.id();
    small.take_over(1);
    let owner_epoch = small.volume().owner_epoch;
    let nodes = vec![NodeId::new(2), NodeId::new(99)];
    let void = |owner_epoch| Change::VoidSessions { volume: id, owner_epoch, nodes: nodes.clone() };
    assert_eq!(small.by(2, void(owner_epoch)), refused(RefusedChange::NotOwner));
    assert_eq!(small.by(1, void(Epoch::ZERO)), refused(RefusedChange::OtherEpoch));
    let epoch = small.volume().epoch;
    assert_eq!(small.by(1, void(owner_epoch)), DONE);
    assert_eq!(small.volume().epoch, epoch);
    let voided = BTreeMap::from([(NodeId::new(2), small.map.applied())]);
    assert_eq!(small.volume().voided, voided);
    let nothing = Change::VoidSessions { volume: VolumeId::new(9), owner_epoch, nodes: vec![] };
    assert_eq!(small.by(1, nothing), refused(RefusedChange::NotFound));
}

// rule: node/exclusive-to-one-node
#[test]
fn evicted_guests_stay_out_until_the_owner_lets_another_in() {
    let mut small = Small::new(3, 1);
    let spec = VolumeSpec { exclusive: true, ..Small::spec("vm", MIB, 2) };
    let placement = placed(&small.map, MIB, 0, 2).unwrap();
    assert_eq!(small.by(1, Change::CreateVolume { spec, placement }), DONE);
    let id = small.id();
    small.record_all(id);
    small.take_over(1);
    let (epoch, owner_epoch) = (small.volume().epoch, small.volume().owner_epoch);
    let barred = BTreeSet::from([NodeId::new(2), NodeId::new(99)]);
    let evict = |let_back| Change::Evict { volume: id, barred: barred.clone(), let_back };
    let change = evict(false);
    assert_eq!(small.by(3, change.clone()), DONE);
    let index = small.map.applied();
    let all = BTreeMap::from([1, 2, 3].map(|node| (NodeId::new(node), index)));
    assert_eq!(small.volume().voided, all, "those that came a moment ago as well");
    assert_eq!(change.voids(&small.map).map(|(_, nodes)| nodes.len()), Some(3));
    assert_eq!(small.volume().barred, BTreeSet::from([NodeId::new(2)]));
    let let_in = |owner_epoch| Change::LetIn { volume: id, owner_epoch };
    assert_eq!(small.by(2, let_in(owner_epoch)), refused(RefusedChange::NotOwner));
    assert_eq!(small.by(1, let_in(Epoch::ZERO)), refused(RefusedChange::OtherEpoch));
    assert_eq!(small.by(1, let_in(owner_epoch)), DONE);
    assert!(small.volume().barred.is_empty());
    assert_eq!(small.by(3, evict(true)), DONE);
    assert_eq!((&small.volume().voided, small.volume().epoch), (&all, epoch), "nobody is evicted");
    assert_eq!(evict(true).voids(&small.map), None);
}
