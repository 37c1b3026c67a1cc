use super::*;
use crate::command::{Change, NodeInfo};
use crate::map::tests::{GIB, MIB, Small};
use gabion_types::{NodeId, Outcome, Prng};

/// Three nodes with a disk of 1 GiB each and a volume of so many segments, then one node more.
fn grown(segments: u64, segment_mib: u64, rf: u8) -> Small {
    let mut small = Small::of(3, 1, segment_mib * MIB);
    let id = small.create("vm", segments * segment_mib * MIB, rf);
    small.record_all(id);
    add_node(&mut small, 4, "");
    small
}

fn add_node(small: &mut Small, node: u32, zone: &str) {
    small.register(node);
    let incarnation = small.incarnation(node);
    let info = NodeInfo { zone: zone.to_owned(), ..Small::info(node) };
    assert_eq!(small.by(node, Change::Register { node: info, incarnation }), Outcome::Done);
    add_disk(small, node, 9, GIB);
}

fn add_disk(small: &mut Small, node: u32, number: u8, capacity_bytes: u64) -> DiskId {
    let uuid = [number, u8::try_from(node).unwrap(), 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let node_id = NodeId::new(node);
    let path = format!("/more{number}");
    let change = Change::AddDisk { node: node_id, uuid, capacity_bytes, path };
    assert_eq!(small.by(node, change), Outcome::Done);
    small.map.disk_by_uuid(uuid).unwrap()
}

fn count(moves: &Moves) -> usize {
    moves.values().map(BTreeMap::len).sum()
}

/// As if they had been carried out.
fn carry_out(small: &mut Small, moves: Moves) {
    for (volume, moves) in moves {
        let change = Change::MoveCopies { volume, moves: moves.clone() };
        assert_eq!(small.by(1, change), Outcome::Done, "what is planned is taken");
        let entry = small.map.volumes.get_mut(&volume).unwrap();
        for (index, Move { from, to }) in moves {
            let members = &mut entry.segments[usize::try_from(index.get()).unwrap()];
            members.in_sync.retain(|disk| *disk != from);
            members.in_sync.push(to);
        }
        entry.forget_moved();
        assert!(entry.moving.is_empty());
    }
}

fn copies_on(small: &Small) -> Vec<usize> {
    let copies = copies_by_disk(&small.map);
    small.map.disks().keys().map(|disk| copies.get(disk).map_or(0, Vec::len)).collect()
}

// rule: cluster/no-more-copies-move-than-must
#[test]
fn a_new_node_gets_its_share_and_not_a_copy_more() {
    let mut small = grown(8, 32, 2);
    assert_eq!(copies_on(&small), [5, 6, 5, 0]);
    assert!(is_settled(&small.map));
    let moves = plan(&small.map, 0, 100);
    assert_eq!(count(&moves), 4, "{moves:?}");
    carry_out(&mut small, moves);
    assert_eq!(copies_on(&small), [4, 4, 4, 4]);
    assert_eq!(count(&plan(&small.map, 0, 100)), 0);
}

#[test]
fn a_disk_counts_by_its_size() {
    let mut small = Small::of(2, 1, 32 * MIB);
    let id = small.create("vm", 12 * 32 * MIB, 2);
    small.record_all(id);
    let large = add_disk(&mut small, 1, 3, 3 * GIB);
    let moves = plan(&small.map, 0, 100);
    assert!(moves.values().flatten().all(|(_, moving)| moving.to == large), "{moves:?}");
    carry_out(&mut small, moves);
    assert_eq!(copies_on(&small), [3, 12, 9], "three times the disk, three times the copies");
}

// rule: cluster/levelled-only-when-a-disk-came
#[test]
fn volumes_that_lie_beside_their_guests_are_left_there() {
    let mut small = Small::of(3, 1, 32 * MIB);
    // Each has a copy on node 1: twice as much is promised there as of each other disk.
    let size_bytes = 8 * 32 * MIB;
    let near = Some(NodeId::new(1));
    let wanted = crate::placement::Wanted { size_bytes, had: 0, rf: 2, near };
    let placement = crate::placement::place(&small.map, wanted).unwrap();
    let change = Change::CreateVolume { spec: Small::spec("vm", size_bytes, 2), placement };
    assert_eq!(small.by(1, change), Outcome::Done);
    let id = small.map.volume_by_name("vm").unwrap().id;
    small.record_all(id);
    assert_eq!(copies_on(&small)[0], 8);
    assert!(spread(&small.map) > 1000 && !has_newcomer(&small.map));
    add_node(&mut small, 4, "");
    assert!(has_newcomer(&small.map));
}

#[test]
fn a_little_uneven_is_even_enough() {
    let small = grown(1, 32, 2);
    assert!(spread(&small.map) < 1000, "{}", spread(&small.map));
    assert_eq!(count(&plan(&small.map, 500, 100)), 0);
    assert_eq!(count(&plan(&small.map, 0, 0)), 0);
}

#[test]
fn copies_that_are_in_different_zones_stay_so() {
    let mut small = Small::of(1, 0, 32 * MIB);
    for (node, zone) in [(1, "a"), (2, "b"), (3, "b")] {
        add_node(&mut small, node, zone);
    }
    let id = small.create("vm", 8 * 32 * MIB, 2);
    small.record_all(id);
    add_node(&mut small, 4, "b");
    let moves = plan(&small.map, 0, 100);
    let a = small.map.disks().iter().find(|(_, disk)| disk.node == NodeId::new(1)).unwrap().0;
    assert!(count(&moves) > 0);
    assert!(moves.values().flatten().all(|(_, moving)| moving.from != *a), "{moves:?}");
    carry_out(&mut small, moves);
    assert_eq!(crate::placement::sharing_zones(&small.map, small.map.volume(id).unwrap()), 0);
    assert_eq!(count(&plan(&small.map, 0, 100)), 0, "it ends, though one zone is fuller");
}

#[test]
fn what_guests_read_beside_them_stays() {
    let mut small = grown(8, 32, 2);
    small.take_over(1);
    let moves = plan(&small.map, 0, 100);
    let own = |disk| small.map.disk(disk).unwrap().node == NodeId::new(1);
    assert!(count(&moves) > 0 && moves.values().flatten().all(|(_, moving)| !own(moving.from)));
    // To another disk of the node it may go.
    let mut small = Small::of(2, 1, 32 * MIB);
    let id = small.create("vm", 8 * 32 * MIB, 2);
    small.record_all(id);
    small.take_over(1);
    add_disk(&mut small, 1, 3, GIB);
    assert_eq!(count(&plan(&small.map, 0, 100)), 4);
}

// rule: cluster/a-copy-moves-where-it-may-be
#[test]
fn the_map_judges_each_move_itself() {
    let mut small = grown(2, 32, 2);
    let members = small.volume().segments[0].clone();
    let (from, other) = (members.in_sync[0], members.in_sync[1]);
    let id = small.id();
    let to = *small.map.disks().keys().next_back().unwrap();
    let ask = |small: &mut Small, index, from, to| {
        let moves = BTreeMap::from([(SegmentIndex::new(index), Move { from, to })]);
        small.by(1, Change::MoveCopies { volume: id, moves })
    };
    for (index, from, to) in [(0, from, other), (0, to, from), (9, from, to), (0, from, from)] {
        assert_ne!(ask(&mut small, index, from, to), Outcome::Done);
    }
    let epoch = small.volume().epoch;
    assert_eq!(ask(&mut small, 0, from, to), Outcome::Done);
    assert_eq!(small.volume().epoch, epoch.next(), "its owner gets a new view");
    assert_eq!(small.map.view(id).unwrap().moving.len(), 1);
    assert!(!is_settled(&small.map) && is_calm(&small.map));
    let off = Change::MoveCopies { volume: id, moves: BTreeMap::new() };
    assert_eq!(small.by(1, off), Outcome::Done);
    assert!(is_settled(&small.map));
    small.silence(3);
    assert!(!is_calm(&small.map));
}

/// Whatever there is: it ends, in as few steps as it takes, and nothing gets worse.
// rule: cluster/levelling-ends
#[test]
fn it_always_ends() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let nodes = u32::try_from(3 + prng.below(4)).unwrap();
        let zones = ["", "a", "b"];
        let mut small = Small::of(1, 0, 16 * MIB);
        for node in 1..=nodes {
            add_node(&mut small, node, zones[usize::try_from(prng.below(3)).unwrap()]);
            if prng.chance(1, 3) {
                add_disk(&mut small, node, 20, GIB / 2 + prng.below(4) * GIB / 2);
            }
        }
        for name in ["a", "b", "c"].iter().take(1 + usize::try_from(prng.below(3)).unwrap()) {
            let rf = u8::try_from(1 + prng.below(3)).unwrap();
            let id = small.create(name, (1 + prng.below(20)) * 16 * MIB, rf);
            small.record_all(id);
        }
        add_node(&mut small, nodes + 1, "b");
        let before = spread(&small.map);
        let mut moved = 0;
        loop {
            let moves = plan(&small.map, 0, 8);
            if moves.is_empty() {
                break;
            }
            moved += count(&moves);
            carry_out(&mut small, moves);
            assert!(moved < 500, "seed {seed} goes on and on");
        }
        assert!(spread(&small.map) <= before, "seed {seed}");
    }
}
