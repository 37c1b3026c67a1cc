//! The map by hand: a small cluster, and each change of it.

mod admit;
mod cluster;
mod combine;
mod drain;
mod leaving;
mod members;
mod random;
mod scrub;
mod stranded;
mod volumes;

pub(crate) use cluster::{GIB, MIB, Small, placed};

use crate::command::{Change, Command, NodeInfo, Proposer};
use crate::map::{DISKS_MAX, Map, NodeState};
use gabion_types::{
    ClusterId, DiskId, Duration, Incarnation, Limits, MapIndex, NodeId, Outcome, RefusedChange,
    SegmentSize,
};

const DONE: Outcome = Outcome::Done;

const fn refused(why: RefusedChange) -> Outcome {
    Outcome::Refused(why)
}

#[test]
fn a_cluster_is_made_once() {
    let mut small = Small::new(1, 1);
    assert_eq!(small.map.cluster(), Some(ClusterId::new([7; 16])));
    let again = Change::Init { cluster: ClusterId::new([8; 16]), limits: Limits::DEFAULT };
    assert_eq!(small.by(1, again), refused(RefusedChange::Invalid));
    assert_eq!(small.map.cluster(), Some(ClusterId::new([7; 16])));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let bad: SegmentSize = serde_json::from_str("0").unwrap();
    let limits = [
        Limits { segment: bad, ..Limits::DEFAULT },
        Limits { part_bytes: 100, ..Limits::DEFAULT },
        Limits { requests_per_volume: 0, ..Limits::DEFAULT },
        Limits { write_bytes_per_disk: 0, ..Limits::DEFAULT },
    ];
    for limits in limits {
        let mut small = Small::empty();
        let change = Change::Init { cluster: ClusterId::new([7; 16]), limits };
        assert_eq!(small.by(1, change), refused(RefusedChange::Invalid));
        assert_eq!(small.map.cluster(), None);
    }
}

// rule: cluster/one-incarnation
#[test]
fn a_new_incarnation_takes_the_place_of_the_old_one() {
    let mut small = Small::with_volume(3, 2, 1);
    let epoch = small.volume().epoch;
    small.take_over(1);
    let before = small.incarnation(1);
    small.register(1);
    assert_eq!(small.volume().owner, None, "its locks prove that it is dead");
    assert_eq!(small.volume().epoch.get(), epoch.get() + 2);
    assert!(!small.volume().clean);

    let change = Change::Lead { term: 9 };
    let old = Proposer { node: NodeId::new(1), incarnation: before, number: 900 };
    let applied = small.apply(old, change);
    assert_eq!(applied.outcome, refused(RefusedChange::OtherIncarnation));
    let late = Change::Register { node: Small::info(1), incarnation: before };
    let late = small.apply(old, late);
    assert_eq!(late.outcome, refused(RefusedChange::OtherIncarnation), "a late entry of the dead");
    assert_ne!(small.map.node(NodeId::new(1)).unwrap().incarnation, before);
}

#[test]
fn a_register_names_its_own_process() {
    let mut small = Small::new(1, 1);
    let other = Change::Register { node: Small::info(2), incarnation: Incarnation::new(5) };
    assert_eq!(small.by(1, other), refused(RefusedChange::Invalid));
    let long = NodeInfo { name: "x".repeat(5000), ..Small::info(1) };
    let incarnation = small.incarnation(1);
    let change = Change::Register { node: long, incarnation };
    assert_eq!(small.by(1, change), refused(RefusedChange::Invalid));
}

// rule: cluster/each-proposal-once
#[test]
fn a_repeat_gets_the_first_outcome_and_changes_nothing() {
    let mut small = Small::with_volume(3, 2, 1);
    let from = small.proposer(1);
    let epoch = small.volume().epoch;
    let (node, incarnation) = (from.node, from.incarnation);
    let change = Change::TakeOver { volume: small.id(), epoch, node, incarnation };
    let first = small.apply(from, change.clone());
    assert_eq!((first.outcome, first.repeat), (DONE, false));
    let before = small.map.clone();
    let again = small.apply(from, change.clone());
    assert_eq!((again.outcome, again.repeat), (DONE, true));
    let at = small.map.applied();
    assert_eq!(Map { applied: at, ..before }, small.map);
    assert_eq!(small.map.outcome_of(node, incarnation, from.number), Some(DONE));

    let anew = small.proposer(1);
    let second = small.apply(anew, change);
    assert_eq!(second.outcome, refused(RefusedChange::Busy));
    let again = small.apply(anew, Change::Lead { term: 77 });
    assert_eq!((again.outcome, again.repeat), (second.outcome, true), "by number, not by content");
}

#[test]
fn a_disk_is_known_by_its_uuid() {
    let mut small = Small::new(2, 1);
    let change = |node, uuid, capacity_bytes| Change::AddDisk {
        node: NodeId::new(node),
        uuid: [uuid; 16],
        capacity_bytes,
        path: "/dev/x".to_string(),
    };
    assert_eq!(small.by(1, change(1, 50, GIB)), DONE);
    let disk = small.map.disk_by_uuid([50; 16]).unwrap();
    assert_eq!(small.by(1, change(1, 50, 2 * GIB)), DONE);
    assert_eq!(small.map.disk(disk).unwrap().capacity_bytes, 2 * GIB);
    assert_eq!(small.by(1, change(2, 51, GIB)), refused(RefusedChange::Invalid));
    assert_eq!(small.by(1, change(1, 51, 0)), refused(RefusedChange::Invalid));
    assert_eq!(small.by(2, change(2, 50, GIB)), DONE, "it was carried to another node");
    assert_eq!(small.map.disk(disk).unwrap().node, NodeId::new(2));
    small.by(1, Change::DiskFailed { disk });
    assert_eq!(small.by(2, change(2, 50, GIB)), refused(RefusedChange::Invalid), "failed for good");
    assert!(small.map.disks().len() < DISKS_MAX);
    assert_eq!(
        small.by(1, Change::DiskFailed { disk: DiskId::new(999) }),
        refused(RefusedChange::NotFound)
    );
}

#[test]
fn a_disk_that_moved_gives_its_volumes_a_new_view() {
    let mut small = Small::with_volume(3, 2, 1);
    small.take_over(1);
    let members = small.volume().segments[0].clone();
    let disk = members.in_sync[1];
    let entry = small.map.disk(disk).unwrap().clone();
    let epoch = small.volume().epoch;
    let to = small.spare_node();
    let change = Change::AddDisk {
        node: to,
        uuid: entry.uuid,
        capacity_bytes: entry.capacity_bytes,
        path: entry.path,
    };
    assert_eq!(small.by(to.get(), change), DONE);
    assert_eq!(small.volume().epoch, epoch.next());
    assert_eq!(small.map.view(small.id()).unwrap().homes.get(&disk), Some(&to));
}

// rule: cluster/expire-in-its-term
#[test]
fn only_the_present_term_ends_leases() {
    let mut small = Small::with_volume(3, 2, 1);
    small.take_over(1);
    let (node, incarnation) = (NodeId::new(1), small.incarnation(1));
    let expire = |term| Change::Expire { node, incarnation, term };
    assert_eq!(small.by(2, Change::Lead { term: 4 }), DONE);
    assert_eq!(small.by(3, Change::Lead { term: 5 }), DONE);
    assert_eq!(small.by(2, Change::Lead { term: 5 }), refused(RefusedChange::Invalid));
    assert_eq!(small.by(2, expire(4)), refused(RefusedChange::Invalid), "it led once");
    assert!(small.volume().owner.is_some());
    let epoch = small.volume().epoch;
    assert_eq!(small.by(3, expire(5)), DONE);
    assert_eq!(small.volume().owner, None);
    assert_eq!(small.volume().epoch, epoch.next());
    assert!(!small.map.is_alive(node));
    let other = Change::Expire { node, incarnation: Incarnation::new(1), term: 5 };
    assert_eq!(small.by(3, other), refused(RefusedChange::OtherIncarnation));
}

// rule: cluster/revive-by-itself
#[test]
fn a_silent_node_revives_itself_and_takes_nothing_before() {
    let mut small = Small::with_volume(3, 2, 1);
    small.silence(1);
    let (node, incarnation) = (NodeId::new(1), small.incarnation(1));
    let epoch = small.volume().epoch;
    let take = Change::TakeOver { volume: small.id(), epoch, node, incarnation };
    assert_eq!(small.by(2, take.clone()), refused(RefusedChange::Busy));
    let revive = Change::Revive { node, incarnation };
    assert_eq!(small.by(2, revive.clone()), refused(RefusedChange::Invalid));
    assert_eq!(small.by(1, revive), DONE);
    assert_eq!(small.map.node(node).unwrap().state, NodeState::Alive);
    assert_eq!(small.by(2, take), DONE);
}

#[test]
fn a_lease_is_as_long_as_when_the_process_registered() {
    let mut small = Small::new(2, 1);
    let lease = |small: &Small, node| small.map.node(NodeId::new(node)).unwrap().lease;
    let change = Change::SetSetting { name: "lease.duration".into(), value: "9s".into() };
    assert_eq!(small.by(1, change), DONE);
    assert_eq!(lease(&small, 1), Duration::from_secs(3));
    small.register(1);
    assert_eq!(lease(&small, 1), Duration::from_secs(9));
    assert_eq!(lease(&small, 2), Duration::from_secs(3));
}

#[test]
fn settings_are_checked_again_here() {
    let mut small = Small::new(1, 1);
    let set = |name: &str, value: &str| Change::SetSetting {
        name: name.to_string(),
        value: value.to_string(),
    };
    assert_eq!(small.by(1, set("rebuild.wait", "3s")), DONE);
    assert_eq!(small.by(1, set("rebuild.wait", "3")), refused(RefusedChange::Invalid));
    assert_eq!(small.by(1, set("rebuild.weight", "3s")), refused(RefusedChange::NotFound));
    assert_eq!(small.map.settings().rebuild_wait, Duration::from_secs(3));
}

#[test]
fn the_map_and_its_commands_survive_json() {
    let mut small = Small::with_volume(3, 2, 5);
    small.take_over(2);
    small.silence(1);
    let disk = small.volume().segments[0].in_sync[0];
    small.by(3, Change::DiskFailed { disk });
    small.by(2, Change::DeleteVolume { volume: small.id(), force: true });
    small.create("other", 4 * MIB, 2);
    let text = serde_json::to_string(&small.map).unwrap();
    let back: Map = serde_json::from_str(&text).unwrap();
    assert_eq!(back, small.map);

    for command in &small.log {
        let text = serde_json::to_string(command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), *command);
    }
}

#[test]
fn the_same_log_gives_the_same_map() {
    let mut small = Small::with_volume(3, 2, 5);
    small.take_over(2);
    small.silence(1);
    let mut again = Map::default();
    for (index, command) in small.log.iter().enumerate() {
        again.apply(MapIndex::new(index as u64 + 1), command);
    }
    assert_eq!(again, small.map);
}
