//! Disks and nodes that somebody wants to take away.

use super::{ME, Rig, millis};
use crate::command::{AdminError, AdminReply, AdminRequest, Change};
use crate::manager::Effect;
use crate::map::tests::{GIB, MIB, Small};
use gabion_types::{DiskId, NodeId, Outcome, OwnerChange, Removal, SegmentIndex};

fn drain(disk: DiskId) -> AdminRequest {
    AdminRequest::DrainDisk { disk, cancel: false }
}

fn asked(rig: &mut Rig) -> Vec<NodeId> {
    let effects = rig.take();
    let asked = effects.iter().filter_map(|effect| {
        if let Effect::AskRelease { node, idle: true, .. } = effect { Some(*node) } else { None }
    });
    asked.collect()
}

#[test]
fn what_has_nowhere_to_go_is_refused_with_numbers() {
    let mut rig = Rig::new(Small::with_volume(2, 2, 1));
    let disk = rig.small.volume().segments[0].in_sync[0];
    let number = rig.ask(drain(disk));
    let error = AdminError::TooFewNodesLeft { wanted: 2, nodes: 1 };
    assert_eq!(rig.answer(number), Some(AdminReply::Refused(error)));
    let number = rig.ask(drain(DiskId::new(99)));
    assert_eq!(rig.answer(number), Some(AdminReply::Refused(AdminError::NoDisk)));
    let node = NodeId::new(9);
    let number = rig.ask(AdminRequest::DrainNode { node, cancel: false });
    assert_eq!(rig.answer(number), Some(AdminReply::Refused(AdminError::NoNode)));

    // Four copies of 400 MiB on disks of 1 GiB: one more has no room for what is on it.
    let mut small = Small::of(3, 1, 256 * MIB);
    small.by(1, Change::SetSetting { name: "overcommit.ratio".into(), value: "100%".into() });
    for name in ["a", "b", "c"] {
        let volume = small.create(name, 400 * MIB, 2);
        small.record_all(volume);
    }
    let mut rig = Rig::new(small);
    let number = rig.ask(drain(DiskId::new(1)));
    let Some(AdminReply::Refused(AdminError::NoRoomLeft { left, copies, free_bytes })) =
        rig.answer(number)
    else {
        panic!("there is no room")
    };
    assert!(left > 0 && left <= copies && free_bytes < GIB, "{left} of {copies}, {free_bytes}");
    assert!(rig.proposed.is_empty());
}

#[test]
fn a_node_that_a_missing_copy_needs_is_kept() {
    let mut small = Small::with_volume(2, 2, 1);
    let [stays, goes] = small.volume().segments[0].in_sync[..] else { panic!("two copies") };
    let home = |small: &Small, disk| small.map.disk(disk).unwrap().node;
    let (owner, node) = (home(&small, stays), home(&small, goes));
    small.take_over(owner.get());
    let (segment, epoch) = (SegmentIndex::new(0), small.volume().epoch);
    let removals = vec![Removal {
        segment,
        disk: goes,
        compare_all: false,
        may_return: false,
        replaced: false,
        reach: None,
    }];
    let change = OwnerChange::RemoveMembers { epoch, removals, add_joiner: false };
    assert_eq!(small.owner(change), Outcome::Done);
    let mut rig = Rig::new(small);
    let number = rig.ask(AdminRequest::DrainNode { node, cancel: false });
    let error = AdminError::TooFewNodesLeft { wanted: 2, nodes: 1 };
    assert_eq!(rig.answer(number), Some(AdminReply::Refused(error)));
}

#[test]
fn an_unused_volume_gets_an_owner_that_moves_its_copies() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    let [stays, goes] = rig.small.volume().segments[0].in_sync[..] else { panic!("two copies") };
    let node = rig.small.map.disk(goes).unwrap().node;
    let number = rig.ask(AdminRequest::DrainNode { node, cancel: false });
    rig.commit();
    assert_eq!(rig.answer(number), Some(AdminReply::Done));
    rig.live(millis(4_000), &[]);
    let taken = rig.proposed.iter().find_map(|(_, change)| {
        if let Change::TakeOver { node, .. } = change { Some(*node) } else { None }
    });
    let home = rig.small.map.disk(stays).unwrap().node;
    assert_eq!(taken, Some(home), "not the node that hands over what it owns");
}

#[test]
fn a_draining_node_is_asked_to_let_go_of_what_nobody_uses() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    rig.small.take_over(ME);
    rig.live(millis(3_000), &[]);
    assert_eq!(asked(&mut rig), []);
    let node = NodeId::new(ME);
    rig.ask(AdminRequest::DrainNode { node, cancel: false });
    rig.commit();
    rig.live(millis(3_000), &[]);
    let times = asked(&mut rig);
    assert!(times.len() >= 2 && times.iter().all(|asked| *asked == node), "{times:?}");
    rig.ask(AdminRequest::DrainNode { node, cancel: true });
    rig.commit();
    asked(&mut rig);
    rig.live(millis(3_000), &[]);
    assert_eq!(asked(&mut rig), []);
}

#[test]
fn a_node_is_removed_when_nobody_needs_it() {
    let mut rig = Rig::new(Small::with_volume(4, 2, 1));
    let ask = |rig: &mut Rig, node: u32, force| {
        let node = NodeId::new(node);
        let number = rig.ask(AdminRequest::RemoveNode { node, force });
        rig.commit();
        match rig.answer(number) {
            Some(AdminReply::Refused(error)) => Some(error),
            Some(AdminReply::Done | AdminReply::Created { .. }) | None => None,
        }
    };
    assert_eq!(ask(&mut rig, ME, true), Some(AdminError::NodeLeads));
    assert_eq!(ask(&mut rig, 9, true), Some(AdminError::NoNode));
    let holders = rig.small.volume().segments[0].in_sync.clone();
    let homes = holders.iter().map(|disk| rig.small.map.disk(*disk).unwrap().node.get());
    let holder = homes.filter(|node| *node != ME).max().unwrap();
    let error = AdminError::NotDrained { copies: 1, volumes: 0 };
    assert_eq!(ask(&mut rig, holder, false), Some(error));
    assert_eq!(ask(&mut rig, holder, true), Some(AdminError::NodeLives));
    let spare = (1..=4).rev().map(NodeId::new).find(|node| {
        node.get() != ME && holders.iter().all(|d| rig.small.map.disk(*d).unwrap().node != *node)
    });
    let spare = spare.unwrap();
    rig.ask(AdminRequest::DrainNode { node: spare, cancel: false });
    rig.commit();
    assert_eq!(ask(&mut rig, spare.get(), false), None);
    assert!(rig.small.map.is_removed(spare));
    assert_eq!(ask(&mut rig, spare.get(), false), None, "asked twice");
}
