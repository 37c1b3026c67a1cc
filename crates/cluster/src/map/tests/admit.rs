//! Nodes that tokens let in.

use super::{DONE, Small, refused};
use crate::command::{Change, NodeInfo};
use crate::map::{TOKENS_MAX, Ticket};
use gabion_types::{NodeId, Outcome, RefusedChange};

const HOUR: u64 = 3_600_000;

fn claim(name: &str) -> NodeInfo {
    NodeInfo { id: NodeId::new(0), name: name.to_string(), ..Small::info(9) }
}

fn admit(small: &mut Small, token: u64, expires_ms: u64, at_ms: u64, info: NodeInfo) -> Outcome {
    let ticket = Ticket { token, expires_ms };
    small.by(1, Change::Admit { ticket, at_ms, info })
}

fn id_of(small: &Small, token: u64) -> u32 {
    small.map.admitted_by(token).unwrap().id.get()
}

// rule: cluster/a-token-lets-one-node-in
#[test]
fn a_token_lets_one_node_in_and_the_same_one_again() {
    let mut small = Small::new(3, 1);
    assert_eq!(admit(&mut small, 7, HOUR, 5, claim("d")), DONE);
    assert_eq!(id_of(&small, 7), 4);
    assert_eq!(admit(&mut small, 7, HOUR, 6, claim("d")), DONE, "its answer got lost");
    assert_eq!(id_of(&small, 7), 4);
    let used = refused(RefusedChange::InUse);
    assert_eq!(admit(&mut small, 7, HOUR, 7, claim("e")), used);
    assert_eq!(small.map.awaited().count(), 1);
    assert_eq!(small.map.log_readers().count(), 4);
    small.register(4);
    assert_eq!(small.map.awaited().count(), 0);
    assert_eq!(small.map.log_readers().count(), 4);
    assert_eq!(admit(&mut small, 7, HOUR, 8, claim("e")), used, "it is used up for good");
}

#[test]
fn ids_are_never_given_twice_and_leave_those_of_the_configuration_out() {
    let mut small = Small::new(2, 1);
    assert_eq!(admit(&mut small, 1, HOUR, 0, NodeInfo { id: NodeId::new(4), ..claim("d") }), DONE);
    assert_eq!(id_of(&small, 1), 4, "node 3 has not started yet");
    let gone = Change::RemoveNode { node: NodeId::new(4), force: false };
    assert_eq!(small.by(1, gone), DONE, "it never came");
    assert!(small.map.is_removed(NodeId::new(4)));
    let removed = refused(RefusedChange::Removed);
    assert_eq!(
        admit(&mut small, 1, HOUR, 0, NodeInfo { id: NodeId::new(9), ..claim("d") }),
        removed
    );
    assert_eq!(admit(&mut small, 2, HOUR, 0, claim("d")), DONE);
    assert_eq!(id_of(&small, 2), 5);
}

#[test]
fn an_expired_token_lets_nobody_in_by_whatever_clock() {
    let mut small = Small::new(1, 1);
    let late = refused(RefusedChange::Invalid);
    assert_eq!(admit(&mut small, 1, 100, 100, claim("b")), late);
    assert_eq!(admit(&mut small, 1, 100, 99, claim("b")), DONE);
    assert_eq!(admit(&mut small, 2, 500, 100, claim("c")), DONE);
    assert_eq!(small.map.admitted_by(1), None, "it is not remembered any more");
    assert_eq!(admit(&mut small, 1, 100, 50, claim("d")), late, "the clock of another leader");
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let mut small = Small::new(1, 1);
    let nobody = NodeInfo { name: String::new(), ..claim("") };
    assert_eq!(admit(&mut small, 1, HOUR, 0, nobody), refused(RefusedChange::Invalid));
    let taken = refused(RefusedChange::NameTaken);
    let name = Small::info(1).name;
    assert_eq!(admit(&mut small, 1, HOUR, 0, claim(&name)), taken);
    for token in 0..TOKENS_MAX as u64 {
        let outcome = admit(&mut small, token, HOUR, 0, claim(&format!("n{token}")));
        if outcome != DONE {
            assert_eq!(outcome, refused(RefusedChange::NoRoom));
            assert_eq!(token, 255, "with the first node that is all");
        }
    }
}
