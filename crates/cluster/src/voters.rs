//! Who votes in the consensus: up to five, in as many zones as there are, the others only read the log.
//! What the leader decides of it, from what it knows of the log's readers; one change at a time.

use crate::map::Map;
use gabion_types::{Duration, Instant, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Voters that a cluster has at most: any two of them may be away. More would cost each entry more
/// round trips, and a third that is away is a rare thing.
pub const VOTERS_MAX: usize = 5;
/// A node that has come back, or come, has to stay for so long before its vote is worth something.
const STEADY: Duration = Duration::from_secs(5);

/// Who reads the log, as the leader knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    pub voters: BTreeSet<NodeId>,
    /// In the midst of a change there are two sets, and this is the one that is to be.
    pub becomes: Option<BTreeSet<NodeId>>,
    pub learners: BTreeSet<NodeId>,
    /// They have all of the log, or nearly so.
    pub caught_up: BTreeSet<NodeId>,
}

/// What is to be changed next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reform {
    /// They are sent the log from now on; their votes don't count.
    AddLearner(NodeId),
    /// They are sent nothing any more, and have no vote.
    Forget(BTreeSet<NodeId>),
    /// Both the old and the new ones agree on it, by a majority each.
    SetVoters(BTreeSet<NodeId>),
}

/// Remembers since when nodes are as they are. Bounded by the nodes of the map.
#[derive(Clone, Debug, Default)]
pub struct Electorate {
    since: BTreeMap<NodeId, (bool, Instant)>,
}

impl Electorate {
    /// Called by the leader now and then. `me` is the leader: it stays, or the cluster would be without
    /// one for a moment.
    // rule: cluster/one-change-of-voters-at-a-time
    pub fn next_reform(
        &mut self,
        now: Instant,
        map: &Map,
        me: NodeId,
        readers: &Readers,
    ) -> Option<Reform> {
        self.watch(now, map, readers);
        if let Some(becomes) = &readers.becomes {
            return Some(Reform::SetVoters(becomes.clone()));
        }
        if readers.voters.is_empty() || map.cluster().is_none() {
            return None;
        }
        let choice = Choice::of(self, now, map, me, readers);
        let wanted = choice.voters();
        if wanted != readers.voters && choice.is_safe(&wanted) && choice.is_better(&wanted) {
            return Some(Reform::SetVoters(wanted));
        }
        let gone = |node: &&NodeId| map.is_removed(**node) && !readers.voters.contains(node);
        let gone: BTreeSet<NodeId> = readers.learners.iter().filter(gone).copied().collect();
        if !gone.is_empty() {
            return Some(Reform::Forget(gone));
        }
        let reads = |id: NodeId| readers.voters.contains(&id) || readers.learners.contains(&id);
        map.log_readers().map(|(id, _)| id).find(|id| !reads(*id)).map(Reform::AddLearner)
    }

    fn watch(&mut self, now: Instant, map: &Map, readers: &Readers) {
        let all: BTreeSet<NodeId> = readers.voters.union(&readers.learners).copied().collect();
        self.since.retain(|node, _| all.contains(node));
        for node in all {
            let alive = map.is_alive(node);
            let since = self.since.entry(node).or_insert((alive, now));
            if since.0 != alive {
                *since = (alive, now);
            }
        }
    }

    fn has_been(&self, now: Instant, node: NodeId, alive: bool, at_least: Duration) -> bool {
        let since = self.since.get(&node);
        since.is_some_and(|(is, since)| *is == alive && now.since(*since) >= at_least)
    }
}

struct Choice<'a> {
    map: &'a Map,
    me: NodeId,
    now: &'a BTreeSet<NodeId>,
    /// Voters that have to go: removed; or dead for long.
    removed: BTreeSet<NodeId>,
    dead: BTreeSet<NodeId>,
    /// Who may vote from now on, the present ones that need not go included.
    fit: BTreeSet<NodeId>,
}

impl<'a> Choice<'a> {
    fn of(
        electorate: &Electorate,
        now: Instant,
        map: &'a Map,
        me: NodeId,
        readers: &'a Readers,
    ) -> Self {
        let wait = map.settings().voter_wait;
        let voters = readers.voters.iter().copied();
        let removed: BTreeSet<NodeId> = voters.clone().filter(|id| map.is_removed(*id)).collect();
        let is_dead = |id: &NodeId| *id != me && electorate.has_been(now, *id, false, wait);
        let dead: BTreeSet<NodeId> = voters.clone().filter(is_dead).collect();
        let stays = voters.filter(|id| !removed.contains(id) && !dead.contains(id));
        let ready = |id: &NodeId| {
            readers.caught_up.contains(id)
                && !map.is_removed(*id)
                && map.node(*id).is_some_and(|node| node.drain.is_none())
                && electorate.has_been(now, *id, true, STEADY)
        };
        let fit = stays.chain(readers.learners.iter().copied().filter(ready)).collect();
        Self { map, me, now: &readers.voters, removed, dead, fit }
    }

    /// An even number of them bears no more losses than one less; one that was made like that is left
    /// as it is while all of them are well.
    fn count(&self) -> usize {
        let odd = match self.fit.len() {
            few @ 0..=2 => few,
            3 | 4 => 3,
            _ => VOTERS_MAX,
        };
        let well = self.removed.is_empty() && self.dead.is_empty() && self.draining(self.now) == 0;
        if well { odd.max(self.now.len().min(VOTERS_MAX)) } else { odd }
    }

    /// One after the other, each in the zone that has the fewest of them by then; of equals one that
    /// stays, that votes already, that has the lower id.
    // rule: cluster/voters-in-different-zones
    fn voters(&self) -> BTreeSet<NodeId> {
        let mut chosen = BTreeSet::from([self.me]);
        while chosen.len() < self.count() {
            let left = self.fit.iter().copied().filter(|id| !chosen.contains(id));
            let best = left.min_by_key(|id| {
                let sharing = chosen.iter().filter(|other| self.share_zone(*id, **other)).count();
                let leaves = self.leaves(*id);
                let is_new = !self.now.contains(id);
                (leaves, sharing, is_new, !self.map.is_alive(*id), *id)
            });
            let Some(best) = best else { break };
            chosen.insert(best);
        }
        chosen
    }

    /// A majority is there before, and after.
    // rule: cluster/a-majority-on-both-sides
    fn is_safe(&self, wanted: &BTreeSet<NodeId>) -> bool {
        self.margin(self.now) >= 0 && self.margin(wanted) >= 0
    }

    /// Worth a change: who was removed goes; else no fewer losses are borne than before, and more of
    /// them, more zones, fewer that are about to leave, or no more voters than there are to be.
    fn is_better(&self, wanted: &BTreeSet<NodeId>) -> bool {
        let (before, after) = (self.margin(self.now), self.margin(wanted));
        if !self.removed.is_empty() {
            return true;
        }
        if self.now.len() > VOTERS_MAX {
            return wanted.iter().all(|id| self.map.is_alive(*id));
        }
        let other = self.zones(wanted) > self.zones(self.now)
            || self.draining(wanted) < self.draining(self.now);
        after > before || (after == before && other)
    }

    /// How many more of them may be lost; below zero there is no majority.
    fn margin(&self, voters: &BTreeSet<NodeId>) -> i64 {
        let alive = voters.iter().filter(|id| **id == self.me || self.map.is_alive(**id)).count();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        count(alive) - count(voters.len() / 2 + 1)
    }

    fn draining(&self, voters: &BTreeSet<NodeId>) -> usize {
        voters.iter().filter(|id| self.leaves(**id)).count()
    }

    fn leaves(&self, id: NodeId) -> bool {
        self.map.node(id).is_some_and(|node| node.drain.is_some())
    }

    fn zone(&self, id: NodeId) -> Option<&str> {
        let zone = self.map.node(id).map(|node| node.info.zone.as_str());
        zone.filter(|zone| !zone.is_empty())
    }

    fn share_zone(&self, one: NodeId, other: NodeId) -> bool {
        self.zone(one).is_some() && self.zone(one) == self.zone(other)
    }

    /// A node without a zone is in one of its own.
    fn zones(&self, voters: &BTreeSet<NodeId>) -> usize {
        let named: BTreeSet<&str> = voters.iter().filter_map(|id| self.zone(*id)).collect();
        named.len() + voters.iter().filter(|id| self.zone(**id).is_none()).count()
    }
}

#[cfg(test)]
mod tests;
