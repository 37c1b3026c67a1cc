//! Leases: renewed, ended, and never both.

use super::{ME, Rig, millis};
use crate::command::Change;
use crate::manager::{Effect, Input};
use crate::map::tests::Small;
use gabion_types::{Incarnation, NodeId};

const N2: NodeId = NodeId::new(2);

fn confirm(number: u64) -> Effect {
    Effect::ConfirmLeader { number, term: 5 }
}

// rule: cluster/renewed-after-confirmed
#[test]
fn a_renewal_is_answered_after_leadership_was_confirmed_since_it_arrived() {
    let mut rig = Rig::new(Small::new(3, 1));
    rig.renew(2, 70);
    assert_eq!(rig.take(), [confirm(1)]);
    rig.renew(3, 90);
    assert_eq!(rig.take(), [], "one question at a time");
    rig.handle(Input::LeaderConfirmed { number: 1, term: 5 });
    let answer = Effect::Renewed { node: N2, number: 70 };
    assert_eq!(rig.take(), [answer, confirm(2)], "the second came after it was asked");
    rig.handle(Input::LeaderConfirmed { number: 2, term: 4 });
    assert_eq!(rig.take(), []);
    rig.handle(Input::LeaderConfirmed { number: 2, term: 5 });
    assert_eq!(rig.take(), [Effect::Renewed { node: NodeId::new(3), number: 90 }]);
    rig.handle(Input::LeaderConfirmed { number: 2, term: 5 });
    assert_eq!(rig.take(), [], "once");
}

#[test]
fn a_confirmation_that_is_lost_is_asked_for_again() {
    let mut rig = Rig::new(Small::new(3, 1));
    rig.renew(2, 70);
    assert_eq!(rig.take(), [confirm(1)]);
    rig.pass(millis(499));
    assert_eq!(rig.take(), []);
    rig.pass(millis(1));
    assert_eq!(rig.take(), [confirm(2)]);
    rig.handle(Input::LeaderConfirmed { number: 2, term: 5 });
    assert_eq!(rig.take(), [Effect::Renewed { node: N2, number: 70 }]);
}

#[test]
fn nobody_is_renewed_before_the_term_is_committed_nor_by_a_deposed_leader() {
    let mut rig = Rig::following(Small::new(3, 1));
    rig.renew(2, 69);
    rig.lead(5);
    rig.renew(2, 70);
    assert_eq!(rig.take(), []);
    assert_eq!(rig.proposed.len(), 1);
    assert_eq!(rig.proposed[0].1, Change::Lead { term: 5 });
    rig.commit();
    assert_eq!(rig.take(), [confirm(1)]);
    rig.by(3, Change::Lead { term: 6 });
    rig.handle(Input::LeaderConfirmed { number: 1, term: 5 });
    assert_eq!(rig.take(), [], "another leads by the map");
    assert_eq!(rig.manager.next_deadline(), None);

    let mut rig = Rig::new(Small::new(3, 1));
    rig.renew(2, 70);
    rig.handle(Input::Leader { term: 6, leader: Some(N2) });
    rig.take();
    rig.handle(Input::LeaderConfirmed { number: 1, term: 5 });
    rig.renew(2, 71);
    assert_eq!(rig.take(), []);
}

#[test]
fn a_leader_that_the_map_does_not_name_does_nothing() {
    let mut rig = Rig::following(Small::new(3, 1));
    rig.small.register(ME);
    rig.lead(5);
    rig.renew(2, 70);
    rig.pass(millis(10_000));
    assert_eq!(rig.take(), []);
    assert!(rig.proposed.is_empty());
}

// rule: cluster/new-leader-waits-a-lease
#[test]
fn a_new_leader_waits_one_lease_and_ten_percent() {
    let mut rig = Rig::new(Small::new(3, 1));
    rig.pass(millis(3299));
    assert!(rig.proposed.is_empty());
    rig.pass(millis(1));
    assert_eq!(rig.proposed.len(), 3, "also its own");

    let mut rig = Rig::new(Small::new(3, 1));
    rig.pass(millis(3000));
    rig.handle(Input::Leader { term: 6, leader: None });
    rig.pass(millis(3000));
    rig.lead(7);
    rig.commit();
    rig.pass(millis(3299));
    assert!(rig.proposed.is_empty(), "whoever led between may have renewed them");
}

// rule: cluster/expire-in-its-term
#[test]
fn a_lease_that_ran_out_is_ended_once() {
    let mut rig = Rig::new(Small::new(3, 1));
    rig.live(millis(2000), &[]);
    rig.live(millis(3000), &[2]);
    assert!(rig.proposed.is_empty());
    rig.live(millis(500), &[2]);
    let incarnation = rig.small.incarnation(2);
    let expire = Change::Expire { node: N2, incarnation, term: 5 };
    assert_eq!(rig.proposed.len(), 1);
    assert_eq!(rig.proposed[0].1, expire);
    rig.live(millis(5000), &[2]);
    assert_eq!(rig.proposed.len(), 1, "it is under way");
    rig.commit();
    assert!(!rig.small.map.is_alive(N2));
    rig.live(millis(5000), &[2]);
    assert!(rig.proposed.is_empty());
}

// rule: cluster/revive-by-itself
#[test]
fn a_node_whose_end_is_under_way_is_not_renewed_before_it_revived() {
    let mut rig = Rig::new(Small::new(3, 1));
    let renewed = |rig: &mut Rig, number| {
        rig.renew_all();
        rig.renew(2, number);
        let asked = rig.take();
        for effect in asked {
            if let Effect::ConfirmLeader { number, term } = effect {
                rig.handle(Input::LeaderConfirmed { number, term });
            }
        }
        rig.take().contains(&Effect::Renewed { node: N2, number })
    };
    assert!(renewed(&mut rig, 1));
    rig.live(millis(3500), &[2]);
    assert_eq!(rig.proposed.len(), 1);
    assert!(!renewed(&mut rig, 2), "it may be committed any moment");
    rig.handle(Input::Leader { term: 5, leader: None });
    rig.lead(5);
    assert!(!renewed(&mut rig, 3), "also after the lead was lost and found");
    rig.commit();
    assert!(!renewed(&mut rig, 4), "it has to see that it is silent");
    let incarnation = rig.small.incarnation(2);
    rig.by(2, Change::Revive { node: N2, incarnation });
    assert!(renewed(&mut rig, 5));
    rig.live(millis(3000), &[2]);
    assert!(rig.proposed.is_empty(), "and has a whole lease again");
}

#[test]
fn only_the_incarnation_that_the_map_names_is_renewed() {
    let mut rig = Rig::new(Small::new(3, 1));
    let node = N2;
    let incarnation = Incarnation::new(4711);
    rig.handle(Input::Renew { node, incarnation, number: 1, term: 5 });
    rig.handle(Input::Renew { node: NodeId::new(9), incarnation, number: 1, term: 5 });
    assert_eq!(rig.take(), []);
    rig.renew(2, 70);
    assert_eq!(rig.take(), [confirm(1)]);
    rig.small.register(2);
    rig.handle(Input::Applied);
    rig.handle(Input::LeaderConfirmed { number: 1, term: 5 });
    assert_eq!(rig.take(), [], "the process that asked is gone");
    let incarnation = rig.small.incarnation(2);
    rig.handle(Input::Renew { node, incarnation, number: 1, term: 6 });
    assert_eq!(rig.take(), [], "it knows of a later leader");
}

#[test]
fn a_node_that_is_silent_in_its_own_map_revives_itself() {
    let mut rig = Rig::following(Small::new(3, 1));
    rig.small.silence(ME);
    rig.handle(Input::Applied);
    let (node, incarnation) = (NodeId::new(ME), rig.small.incarnation(ME));
    assert_eq!(rig.proposed.len(), 1);
    assert_eq!(rig.proposed[0].1, Change::Revive { node, incarnation });
    rig.commit();
    assert!(rig.small.map.is_alive(node));
    rig.pass(millis(2000));
    rig.small.silence(ME);
    rig.handle(Input::Applied);
    assert!(rig.proposed.is_empty(), "the second time it waits");
    rig.pass(millis(10_000));
    assert_eq!(rig.commit(), 1);
    assert!(rig.small.map.is_alive(node));
}
