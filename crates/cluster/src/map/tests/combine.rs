//! A joiner and the replica that left when it began to join become one, where nobody else has all.

use super::{DONE, Small, refused};
use crate::command::Change;
use crate::event::Fact;
use gabion_types::{
    Combining, DiskId, Epoch, NodeId, Outcome, OwnerChange, RefusedChange, Removal, SegmentIndex,
    SegmentMembers, Seq,
};

const S0: SegmentIndex = SegmentIndex::new(0);

fn first(small: &Small) -> &SegmentMembers {
    &small.volume().segments[0]
}

fn home(small: &Small, disk: DiskId) -> NodeId {
    small.map.disk(disk).unwrap().node
}

fn remove(small: &mut Small, disk: DiskId, reach: Option<Seq>) -> Outcome {
    let (segment, epoch) = (S0, small.volume().epoch);
    let (compare_all, may_return, replaced) = (false, true, false);
    let removals = vec![Removal { segment, disk, compare_all, may_return, replaced, reach }];
    small.owner(OwnerChange::RemoveMembers { epoch, removals, add_joiner: true })
}

fn combine(small: &mut Small, joiner: DiskId, joined: Epoch, elder: DiskId) -> Outcome {
    let epoch = small.volume().epoch;
    let combines = vec![Combining { segment: S0, joiner, joined, elder }];
    small.owner(OwnerChange::Combine { epoch, combines })
}

/// One left, another took its place, and the third, which has all, is left: on another node than the
/// owner's. The joiner, the elder, the base.
fn parted(reach: Option<Seq>) -> (Small, DiskId, DiskId, DiskId) {
    let mut small = Small::with_volume(4, 2, 1);
    let [base, elder] = first(&small).in_sync[..] else { panic!("two copies") };
    let owner = small.spare_node();
    small.take_over(owner.get());
    assert_eq!(remove(&mut small, elder, reach), DONE);
    let joiner = first(&small).joining[0].disk;
    (small, joiner, elder, base)
}

// rule: cluster/only-a-pair-is-combined
// promise: acked-survives
#[test]
fn a_pair_is_combined_where_nobody_else_has_all() {
    let (mut small, joiner, elder, base) = parted(Some(Seq::new(9)));
    let joined = first(&small).joining[0].joined;
    let not_gone = refused(RefusedChange::NotGone);
    assert_eq!(combine(&mut small, joiner, joined, elder), not_gone, "the base is there");
    let failed = Change::DiskFailed { disk: base };
    let epoch = small.volume().epoch;
    assert_eq!(small.by(home(&small, base).get(), failed), DONE);
    assert_eq!(small.volume().epoch, epoch.next(), "its owner hears of it");
    assert!(small.map.view(small.id()).unwrap().out.contains(&base));
    let other = refused(RefusedChange::NotFound);
    assert_eq!(combine(&mut small, joiner, joined.next(), elder), other, "another J");
    assert_eq!(combine(&mut small, joiner, joined, joiner), other);
    assert_eq!(combine(&mut small, elder, joined, elder), other);
    assert_eq!(combine(&mut small, joiner, joined, elder), DONE);
    let members = first(&small);
    assert_eq!((&members.in_sync[..], members.joining.len()), (&[joiner][..], 0));
    let [stale] = members.stale[..] else { panic!("only what is on a disk that works") };
    assert_eq!((stale.disk, stale.compare_all), (elder, true));
    let told = Fact::Combined { volume: small.id(), disk: joiner, elder, segments: 1 };
    assert!(small.map.events().any(|event| event.what == told));
    assert_eq!(combine(&mut small, joiner, joined, elder), refused(RefusedChange::NotGone));
}

// rule: cluster/only-a-pair-is-combined
#[test]
fn the_base_that_comes_back_joins_anew() {
    let (mut small, joiner, elder, base) = parted(Some(Seq::ZERO));
    let joined = first(&small).joining[0].joined;
    let node = home(&small, base);
    small.silence(node.get());
    assert_eq!(combine(&mut small, joiner, joined, elder), DONE, "by the map's word it is silent");
    let of_base = first(&small).stale(base).copied().unwrap();
    assert_eq!((of_base.compare_all, of_base.left), (true, small.volume().epoch));
    assert_eq!(first(&small).pairs().count(), 0, "and is the elder of nobody");
}

// rule: cluster/only-a-pair-is-combined
#[test]
fn no_other_pair_is_combined() {
    let gone = |small: &mut Small, base| {
        let node = home(small, base);
        assert_eq!(small.by(node.get(), Change::DiskFailed { disk: base }), DONE);
    };
    let other = refused(RefusedChange::NotFound);
    // Nobody knows how far the elder has to reach.
    let (mut small, joiner, elder, base) = parted(None);
    let joined = first(&small).joining[0].joined;
    gone(&mut small, base);
    assert_eq!(combine(&mut small, joiner, joined, elder), other);
    // The joiner was away for a moment.
    let (mut small, joiner, elder, base) = parted(Some(Seq::ZERO));
    let joined = first(&small).joining[0].joined;
    assert_eq!(remove(&mut small, joiner, None), DONE);
    let joins = vec![(S0, Some(joiner))];
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::AddJoining { epoch, joins }), DONE);
    let again = first(&small).joining(joiner).unwrap().joined;
    assert!(again > joined);
    gone(&mut small, base);
    assert_eq!(combine(&mut small, joiner, joined, elder), other);
    assert_eq!(combine(&mut small, joiner, again, elder), other);
    // The elder joins again: it has to step back first.
    let (mut small, joiner, elder, base) = parted(Some(Seq::ZERO));
    let joined = first(&small).joining[0].joined;
    let (joins, epoch) = (vec![(S0, Some(elder))], small.volume().epoch);
    assert_eq!(small.owner(OwnerChange::AddJoining { epoch, joins }), DONE);
    gone(&mut small, base);
    assert_eq!(combine(&mut small, joiner, joined, elder), other);
    assert_eq!(first(&small).pairs_that_return().count(), 1);
    assert_eq!(remove(&mut small, elder, None), DONE);
    assert_eq!(combine(&mut small, joiner, joined, elder), DONE);
}
