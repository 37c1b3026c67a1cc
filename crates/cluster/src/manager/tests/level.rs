//! Copies that move to level the disks.

use super::{ME, Rig, millis};
use crate::command::Change;
use crate::level::spread;
use crate::map::tests::{GIB, MIB, Small};
use gabion_types::{NodeId, Outcome};
use std::collections::BTreeMap;

fn grown() -> Rig {
    let mut small = Small::of(3, 1, 32 * MIB);
    let id = small.create("vm", 16 * 32 * MIB, 2);
    small.record_all(id);
    small.register(4);
    let (node, uuid, path) = (NodeId::new(4), [99; 16], "/disk".to_owned());
    let change = Change::AddDisk { node, uuid, capacity_bytes: GIB, path };
    assert_eq!(small.by(4, change), Outcome::Done);
    small.by(1, Change::SetSetting { name: "rebalance.wait".into(), value: "20s".into() });
    Rig::new(small)
}

fn planned(rig: &Rig) -> Vec<usize> {
    let moves = rig.proposed.iter().filter_map(|(_, change)| {
        if let Change::MoveCopies { moves, .. } = change { Some(moves.len()) } else { None }
    });
    moves.collect()
}

/// As if the owner had moved them.
fn carry_out(rig: &mut Rig) {
    let entry = rig.small.map.volumes.values_mut().next().unwrap();
    for (index, moving) in std::mem::take(&mut entry.moving) {
        let members = &mut entry.segments[usize::try_from(index.get()).unwrap()];
        members.in_sync.retain(|disk| *disk != moving.from);
        members.in_sync.push(moving.to);
    }
}

// rule: cluster/levelling-ends
#[test]
fn a_few_at_a_time_after_a_while_until_it_is_level() {
    let mut rig = grown();
    assert!(spread(&rig.small.map) > 1000);
    rig.live(millis(19_000), &[]);
    assert!(planned(&rig).is_empty(), "it is not long enough that all is well");
    rig.live(millis(3_000), &[]);
    assert_eq!(planned(&rig), [8]);
    rig.commit();
    rig.live(millis(30_000), &[]);
    assert!(planned(&rig).is_empty(), "the next ones wait for these");
    carry_out(&mut rig);
    rig.live(millis(2_000), &[]);
    let next = planned(&rig);
    assert!(next.len() <= 1 && next.iter().sum::<usize>() < 8, "{next:?}");
    rig.commit();
    carry_out(&mut rig);
    rig.live(millis(120_000), &[]);
    assert!(planned(&rig).is_empty());
    assert!(spread(&rig.small.map) <= 1000, "{}", spread(&rig.small.map));
}

// rule: cluster/nothing-is-levelled-while-something-is-amiss
#[test]
fn it_is_called_off_when_something_is_amiss() {
    let mut rig = grown();
    rig.live(millis(22_000), &[]);
    rig.commit();
    assert!(!rig.small.volume().moving.is_empty());
    rig.live(millis(10_000), &[3]);
    rig.commit();
    rig.live(millis(2_000), &[3]);
    rig.commit();
    assert!(!rig.small.map.is_alive(NodeId::new(3)));
    assert_eq!(rig.small.volume().moving, BTreeMap::new());
    rig.live(millis(60_000), &[3]);
    assert!(planned(&rig).is_empty());
    rig.small.register(3);
    rig.live(millis(19_000), &[]);
    assert!(planned(&rig).is_empty(), "it waits anew");
    rig.live(millis(3_000), &[]);
    assert_eq!(planned(&rig).len(), 1);
    let off = Change::SetSetting { name: "rebalance.spread".into(), value: "0".into() };
    rig.commit();
    rig.by(ME, off);
    rig.live(millis(2_000), &[]);
    rig.commit();
    assert_eq!(rig.small.volume().moving, BTreeMap::new(), "nobody wants it");
}
