use super::*;
use crate::command::Change;
use crate::map::tests::{MIB, Small};
use gabion_types::Outcome;

fn voters(ids: std::ops::RangeInclusive<u32>) -> BTreeSet<NodeId> {
    ids.map(NodeId::new).collect()
}

fn node(id: u32) -> Part {
    Part::Node(NodeId::new(id))
}

fn of(small: &Small) -> Safety {
    Safety::of(&small.map, &voters(1..=3))
}

fn costs(safety: &Safety) -> Vec<(Part, bool, u64, u64)> {
    let of = |loss: &Loss| {
        let (lost, held) = loss.segments();
        (loss.part, loss.stops_cluster, lost, held)
    };
    safety.losses.iter().map(of).collect()
}

#[test]
fn two_copies_on_three_nodes_survive_any_one() {
    let small = Small::with_volume(3, 2, 6);
    assert_eq!(of(&small), Safety::default());
    assert!(of(&small).survives_any_node() && of(&small).survives_any_disk());
}

#[test]
fn one_copy_survives_nothing() {
    let small = Small::with_volume(3, 1, 3);
    let safety = of(&small);
    assert!(!safety.survives_any_node() && !safety.survives_any_disk());
    let (lost, held) = safety
        .losses
        .iter()
        .map(Loss::segments)
        .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    assert_eq!((lost, held), (6, 6), "each segment once by its node, and once by its disk");
    assert_eq!(safety.at_risk(small.id()), 3);
}

/// Its copies may come back with it: what only the others have now waits for them, and is not lost.
#[test]
fn a_silent_node_leaves_the_others_needed() {
    let mut small = Small::with_volume(3, 2, 6);
    small.silence(3);
    let with_the_silent = small
        .volume()
        .segments
        .iter()
        .filter(|it| it.in_sync.contains(&disk_of(&small, 3)))
        .count();
    let safety = of(&small);
    assert!(!safety.survives_any_node(), "two of three voters are left");
    let held: u64 = safety
        .losses
        .iter()
        .filter(|it| matches!(it.part, Part::Node(_)))
        .map(|it| it.segments().1)
        .sum();
    assert_eq!(held, with_the_silent as u64);
    assert!(costs(&safety).iter().all(|(_, _, lost, _)| *lost == 0));
    assert!(costs(&safety).iter().filter(|it| it.1).map(|it| it.0).eq([node(1), node(2)]));
}

#[test]
fn a_disk_that_failed_brings_nothing_back() {
    let mut small = Small::with_volume(3, 2, 6);
    let disk = disk_of(&small, 3);
    assert_eq!(small.by(3, Change::DiskFailed { disk }), Outcome::Done);
    let on_it = small.volume().segments.iter().filter(|it| it.in_sync.contains(&disk)).count();
    let lost: u64 = of(&small).losses.iter().map(|loss| loss.segments().0).sum();
    assert!(on_it > 0);
    assert_eq!(lost, 2 * on_it as u64, "by the node and by the disk of the other copy");
    assert_eq!(of(&small).at_risk(small.id()), on_it as u64);
}

#[test]
fn a_voter_that_never_came_counts_and_a_removed_one_does_not() {
    let small = Small::new(3, 1);
    assert!(of(&small).survives_any_node());
    let five = Safety::of(&small.map, &voters(1..=5));
    assert_eq!(costs(&five), [1, 2, 3].map(|id| (node(id), true, 0, 0)));
    let mut small = Small::new(4, 1);
    small.silence(4);
    let four = Safety::of(&small.map, &voters(1..=4));
    assert!(!four.survives_any_node(), "three of four are just a majority");
    let removed = Change::RemoveNode { node: NodeId::new(4), force: true };
    assert_eq!(small.by(1, removed), Outcome::Done);
    assert!(Safety::of(&small.map, &voters(1..=4)).survives_any_node());
}

#[test]
fn a_volume_that_is_made_or_deleted_risks_nothing() {
    let mut small = Small::new(3, 1);
    let volume = small.create("vm", 3 * MIB, 1);
    assert_eq!(of(&small), Safety::default());
    small.record_all(volume);
    assert_ne!(of(&small), Safety::default());
    assert_eq!(small.by(1, Change::DeleteVolume { volume, force: false }), Outcome::Done);
    assert_eq!(of(&small), Safety::default());
}

fn disk_of(small: &Small, node: u32) -> DiskId {
    let mut disks = small.map.disks().iter();
    let found = disks.find(|(_, entry)| entry.node == NodeId::new(node));
    *found.unwrap().0
}
