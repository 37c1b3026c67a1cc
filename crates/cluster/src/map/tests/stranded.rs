//! Segments that nobody can serve, and an operator's word to go on with what is left.

use super::{DONE, Small, refused};
use crate::command::Change;
use crate::event::Fact;
use crate::map::Remains;
use gabion_types::{
    DiskId, Outcome, OwnerChange, Promotion, RefusedChange, Removal, SegmentIndex, SegmentMembers,
    Seq,
};

const S0: SegmentIndex = SegmentIndex::new(0);

fn first(small: &Small) -> &SegmentMembers {
    &small.volume().segments[0]
}

fn silence(small: &mut Small, disk: DiskId) {
    let node = small.map.disk(disk).unwrap().node;
    small.silence(node.get());
}

fn remove(small: &mut Small, disk: DiskId, reach: Option<Seq>, add_joiner: bool) {
    let (segment, epoch) = (S0, small.volume().epoch);
    let (compare_all, may_return, replaced) = (false, true, false);
    let removals = vec![Removal { segment, disk, compare_all, may_return, replaced, reach }];
    let change = OwnerChange::RemoveMembers { epoch, removals, add_joiner };
    assert_eq!(small.owner(change), DONE);
}

fn remains(small: &Small) -> Vec<Remains> {
    let stranded = small.map.stranded(small.volume());
    stranded.iter().map(|one| one.remains).collect()
}

fn accept(small: &mut Small, survivor: Option<DiskId>) -> Outcome {
    let volume = small.id();
    small.by(
        small.spare_node().get(),
        Change::AcceptLoss { volume, survivors: vec![(S0, survivor)] },
    )
}

/// Of four nodes one owns, and has no copy.
fn owned() -> (Small, DiskId, DiskId) {
    let mut small = Small::with_volume(4, 2, 1);
    let [one, other] = first(&small).in_sync[..] else { panic!("two copies") };
    let owner = small.spare_node();
    small.take_over(owner.get());
    (small, one, other)
}

// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn while_one_copy_is_there_nothing_is_given_up() {
    let (mut small, one, other) = owned();
    remove(&mut small, other, Some(Seq::ZERO), false);
    assert_eq!(remains(&small), []);
    assert_eq!(accept(&mut small, Some(other)), refused(RefusedChange::NotGone));
    silence(&mut small, one);
    assert_eq!(remains(&small).len(), 1);
    assert_eq!(accept(&mut small, Some(one)), refused(RefusedChange::NotFound), "it is gone");
}

// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn an_older_copy_goes_on_and_those_that_had_more_are_compared() {
    let (mut small, one, other) = owned();
    remove(&mut small, other, Some(Seq::ZERO), false);
    let left = first(&small).stale(other).unwrap().left;
    silence(&mut small, one);
    assert_eq!(remains(&small), [Remains::Older { disk: other, left }]);
    assert_eq!(accept(&mut small, Some(other)), DONE);
    assert_eq!(remains(&small), [], "an operator has spoken");
    let joining = *first(&small).alone().unwrap();
    assert_eq!((joining.disk, joining.left, joining.compare_all), (other, Some(left), false));
    let (volume, whole, segments) = (small.id(), true, 1);
    let told = Fact::LossAccepted { volume, disk: other, whole, segments };
    assert!(small.map.events().any(|event| event.what == told));
    assert_eq!(first(&small).in_sync, [one], "never empty");
    let promotes = vec![Promotion { segment: S0, disk: other, joined: joining.joined }];
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Promote { epoch, promotes }), DONE);
    let members = first(&small);
    assert_eq!((&members.in_sync[..], members.joining.len()), (&[other][..], 0));
    assert!(members.stale(one).unwrap().compare_all);
}

// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn a_pair_that_has_all_goes_before_what_has_less() {
    let (mut small, one, other) = owned();
    remove(&mut small, other, Some(Seq::ZERO), true);
    let joiner = first(&small).joining[0].disk;
    silence(&mut small, one);
    assert_eq!(remains(&small), [Remains::Whole { joiner, elder: other }]);
    silence(&mut small, other);
    assert_eq!(remains(&small), [Remains::Part { disk: joiner }]);
    assert_eq!(accept(&mut small, Some(joiner)), DONE);
    let alone = first(&small).alone().unwrap();
    assert!(alone.compare_all && alone.joined == small.volume().epoch);
    assert!(first(&small).stale(other).unwrap().compare_all, "and is the elder of nobody");
    silence(&mut small, joiner);
    assert_eq!(remains(&small), [Remains::Nothing], "who was to go on is gone as well");
}

// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn where_nothing_is_left_a_new_copy_goes_on() {
    let (mut small, one, other) = owned();
    silence(&mut small, one);
    silence(&mut small, other);
    assert_eq!(remains(&small), [Remains::Nothing]);
    assert_eq!(accept(&mut small, None), DONE);
    let alone = *first(&small).alone().unwrap();
    assert!(![one, other].contains(&alone.disk) && alone.compare_all);
    let promotes = vec![Promotion { segment: S0, disk: alone.disk, joined: alone.joined }];
    let epoch = small.volume().epoch;
    assert_eq!(small.owner(OwnerChange::Promote { epoch, promotes }), DONE);
    assert_eq!((&first(&small).in_sync[..], first(&small).stale.len()), (&[alone.disk][..], 2));
}
