//! Leases of nodes, by the manager's clock.
//!
//! A renewal is answered only after leadership was confirmed since it arrived, so that a deposed
//! leader keeps no owner alive; and never to a node that is silent in the map, or whose end was
//! proposed: it must first see its own silence (`Change::Revive`).

use super::{Effect, Proposals, Purpose, by_manager, earlier};
use crate::command::Change;
use crate::map::{Map, NodeEntry, NodeState};
use gabion_types::{Duration, Incarnation, Instant, NodeId};
use std::collections::BTreeMap;

/// A confirmation that does not come is asked for again after so long.
const CONFIRM_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    /// One for each node that is alive by the map.
    leases: BTreeMap<NodeId, Lease>,
    /// Number of the last confirmation asked for; grows.
    confirm: u64,
    /// It has not come yet.
    asked: Option<Instant>,
    /// When the next lease ends whose end has not been proposed.
    next_end: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    incarnation: Incarnation,
    until: Instant,
    renewal: Option<Renewal>,
}

/// The last one of a node; an older one needs no answer any more.
#[derive(Clone, Copy, Debug)]
struct Renewal {
    number: u64,
    /// The first confirmation asked for after it arrived.
    confirm: Option<u64>,
}

impl Leases {
    /// Leadership came or went. Whoever led before may have renewed any lease until now: every one
    /// is waited for in full.
    // rule: cluster/new-leader-waits-a-lease
    pub(super) fn begin(&mut self) {
        self.leases.clear();
        self.asked = None;
        self.next_end = None;
    }

    pub(super) fn on_renew(
        &mut self,
        now: Instant,
        map: &Map,
        proposals: &Proposals,
        from: (NodeId, Incarnation),
        number: u64,
    ) {
        let (node, incarnation) = from;
        let Some(entry) = renewable(map, proposals, node, incarnation) else { return };
        let until = now + by_manager(entry.lease);
        let lease = self.leases.entry(node).or_insert(Lease { incarnation, until, renewal: None });
        lease.incarnation = incarnation;
        lease.until = lease.until.max(until);
        lease.renewal = Some(Renewal { number, confirm: None });
    }

    // rule: cluster/renewed-after-confirmed
    pub(super) fn on_confirmed(
        &mut self,
        map: &Map,
        proposals: &Proposals,
        number: u64,
    ) -> Vec<Effect> {
        if number == self.confirm {
            self.asked = None;
        }
        let mut answers = Vec::new();
        for (node, lease) in &mut self.leases {
            let covered = lease
                .renewal
                .take_if(|renewal| renewal.confirm.is_some_and(|confirm| confirm <= number));
            let Some(renewal) = covered else { continue };
            if renewable(map, proposals, *node, lease.incarnation).is_some() {
                answers.push(Effect::Renewed { node: *node, number: renewal.number });
            }
        }
        answers
    }

    /// Follows the map, and ends what has run out.
    pub(super) fn conclude(
        &mut self,
        now: Instant,
        map: &Map,
        proposals: &mut Proposals,
        term: u64,
    ) {
        let alive = |node: &NodeId| map.is_alive(*node);
        self.leases.retain(|node, _| alive(node));
        self.next_end = None;
        for (node, entry) in map.nodes().iter().filter(|(node, _)| alive(node)) {
            let until = now + by_manager(entry.lease);
            let incarnation = entry.incarnation;
            let fresh = Lease { incarnation, until, renewal: None };
            let lease = self.leases.entry(*node).or_insert(fresh);
            if lease.incarnation != incarnation {
                *lease = fresh;
            }
            let purpose = Purpose::Expire { node: *node };
            if proposals.is_pending(purpose) {
                continue;
            }
            if lease.until <= now {
                proposals.propose(purpose, Change::Expire { node: *node, incarnation, term });
            } else {
                self.next_end = earlier(self.next_end, Some(lease.until));
            }
        }
    }

    /// One confirmation covers all renewals that arrived before it was asked for.
    pub(super) fn next_confirm(&mut self, now: Instant, term: u64) -> Option<Effect> {
        let late = self.asked.is_some_and(|asked| asked + CONFIRM_AGAIN <= now);
        if late {
            self.asked = None;
        }
        let waits = |renewal: &Renewal| late || renewal.confirm.is_none();
        let waiting = self.leases.values().filter_map(|lease| lease.renewal.as_ref()).any(waits);
        if self.asked.is_some() || !waiting {
            return None;
        }
        self.confirm += 1;
        self.asked = Some(now);
        for renewal in self.leases.values_mut().filter_map(|lease| lease.renewal.as_mut()) {
            renewal.confirm.get_or_insert(self.confirm);
        }
        Some(Effect::ConfirmLeader { number: self.confirm, term })
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        earlier(self.next_end, self.asked.map(|asked| asked + CONFIRM_AGAIN))
    }
}

/// The node, if its lease may be renewed: alive by the map, this incarnation, no end under way.
fn renewable<'a>(
    map: &'a Map,
    proposals: &Proposals,
    node: NodeId,
    incarnation: Incarnation,
) -> Option<&'a NodeEntry> {
    let ending = proposals.is_pending(Purpose::Expire { node });
    map.node(node).filter(|entry| {
        entry.incarnation == incarnation && entry.state == NodeState::Alive && !ending
    })
}
