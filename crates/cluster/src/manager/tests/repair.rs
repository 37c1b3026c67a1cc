//! Volumes that nobody uses get an owner when there is something to mend.

use super::{ME, Rig, millis};
use crate::command::Change;
use crate::map::tests::{MIB, Small};
use gabion_types::{DiskId, NodeId, OwnerChange, Removal, SegmentIndex};

fn takeovers(rig: &Rig) -> Vec<NodeId> {
    let proposed = rig.proposed.iter();
    proposed
        .filter_map(
            |(_, change)| {
                if let Change::TakeOver { node, .. } = change { Some(*node) } else { None }
            },
        )
        .collect()
}

fn home(rig: &Rig, disk: DiskId) -> NodeId {
    rig.small.map.disk(disk).unwrap().node
}

/// Its owner removes a member and leaves.
fn abandon(rig: &mut Rig, add_joiner: bool) {
    let disk = rig.small.volume().segments[0].in_sync[1];
    let owner = home(rig, rig.small.volume().segments[0].in_sync[0]);
    rig.small.take_over(owner.get());
    let epoch = rig.small.volume().epoch;
    let segment = SegmentIndex::new(0);
    let removal = Removal {
        segment,
        disk,
        compare_all: false,
        may_return: false,
        replaced: false,
        reach: None,
    };
    let removals = vec![removal];
    rig.small.owner(OwnerChange::RemoveMembers { epoch, removals, add_joiner });
    let epoch = rig.small.volume().epoch;
    rig.small.owner(OwnerChange::Release { epoch, clean: true });
}

#[test]
fn a_whole_volume_is_left_alone() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 3));
    rig.live(millis(100_000), &[]);
    assert!(rig.proposed.is_empty());
}

#[test]
fn a_volume_below_its_copies_gets_an_owner_that_holds_one() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    abandon(&mut rig, true);
    let holder = home(&rig, rig.small.volume().segments[0].in_sync[0]);
    rig.live(millis(1_500), &[]);
    assert!(rig.proposed.is_empty(), "a guest's node may want it");
    rig.live(millis(2_000), &[]);
    assert_eq!(takeovers(&rig), [holder]);
    rig.live(millis(5_000), &[]);
    assert_eq!(takeovers(&rig).len(), 1, "it is under way");
    rig.commit();
    assert_eq!(rig.small.volume().owner.unwrap().0, holder);
    rig.live(millis(5_000), &[]);
    let epoch = rig.small.volume().epoch;
    rig.small.owner(OwnerChange::Release { epoch, clean: true });
    rig.live(millis(8_000), &[]);
    assert!(rig.proposed.is_empty(), "it was given up just now");
    rig.live(millis(12_000), &[]);
    assert_eq!(takeovers(&rig), [holder]);
}

#[test]
fn nobody_is_bothered_where_nothing_can_be_done() {
    let mut rig = Rig::new(Small::with_volume(2, 2, 1));
    abandon(&mut rig, true);
    let away = home(&rig, rig.small.volume().segments[0].stale[0].disk).get();
    rig.small.silence(away);
    assert_eq!(rig.small.map.term(), 6);
    rig.lead(7);
    rig.commit();
    rig.live(millis(90_000), &[away]);
    assert!(rig.proposed.is_empty(), "no disk to copy to, nobody to bring up");
    rig.small.register(away);
    rig.live(millis(4_000), &[]);
    assert_eq!(takeovers(&rig).len(), 1);
}

#[test]
fn a_member_that_stays_away_is_work_after_the_wait() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    let homes = rig.small.volume().segments[0].in_sync.iter().map(|disk| home(&rig, *disk));
    let homes: Vec<_> = homes.collect();
    let (away, other) =
        if homes[0].get() == ME { (homes[1], homes[0]) } else { (homes[0], homes[1]) };
    let away = away.get();
    rig.live(millis(4_000), &[away]);
    assert_eq!(rig.commit(), 1);
    rig.live(millis(55_000), &[away]);
    assert!(rig.proposed.is_empty(), "it may return, and then nothing is missing");
    rig.live(millis(10_000), &[away]);
    assert_eq!(takeovers(&rig), [other]);
}

#[test]
fn a_member_on_a_failed_disk_is_work_at_once() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    let disk = rig.small.volume().segments[0].in_sync[0];
    rig.by(1, Change::DiskFailed { disk });
    rig.live(millis(4_000), &[]);
    let other = home(&rig, rig.small.volume().segments[0].in_sync[1]);
    assert_eq!(takeovers(&rig), [other]);
}

#[test]
fn another_disk_of_a_node_takes_the_place_of_one_that_is_out() {
    let mut rig = Rig::new(Small::new(2, 2));
    let id = rig.small.create("vm", MIB, 2);
    rig.small.record_all(id);
    let disk = rig.small.volume().segments[0].in_sync[0];
    rig.by(1, Change::DiskFailed { disk });
    rig.live(millis(4_000), &[]);
    assert_eq!(takeovers(&rig).len(), 1, "both nodes hold a copy, and one has another disk");
}
