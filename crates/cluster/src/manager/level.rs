//! When copies are moved to level the disks: after nothing has been amiss for a while, a few at a time,
//! the next ones when those are done; called off when something is.

use super::{Proposals, Purpose};
use crate::command::Change;
use crate::level::{Moves, has_newcomer, is_calm, is_settled, plan, spread};
use crate::map::{DiskEntry, Map, VolumeEntry};
use gabion_types::{Duration, Instant};
use std::collections::BTreeMap;

/// How often it is looked at. No deadline of its own: repair has the same, and wakes the manager.
const LOOK: Duration = Duration::from_secs(1);
/// Copies on their way at a time, over all volumes.
const AT_ONCE_MAX: usize = 8;

#[derive(Clone, Debug, Default)]
pub(super) struct Levelling {
    next_look: Option<Instant>,
    /// Nothing has been amiss since.
    settled: Option<Instant>,
    /// It began: now it goes on until the disks are as even as half of what it began for.
    going: bool,
}

impl Levelling {
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self { next_look: Some(now), ..Self::default() };
    }

    // rule: cluster/levelling-ends
    pub(super) fn conclude(&mut self, now: Instant, map: &Map, proposals: &mut Proposals) {
        if self.next_look.is_some_and(|look| now < look) || proposals.levels() {
            return;
        }
        self.next_look = Some(now + LOOK);
        let settings = map.settings();
        let most = settings.rebalance_spread_percent.saturating_mul(100);
        if most == 0 || !is_calm(map) {
            self.settled = None;
            self.going = false;
            call_off(map, proposals, |_| true);
            return;
        }
        // Its disk went, or the other copy came there: nobody could carry it out any more.
        call_off(map, proposals, |volume| is_void(map, volume));
        if !is_settled(map) {
            // Copies that are on their way are no reason to wait anew for the next ones.
            if !self.going {
                self.settled = None;
            }
            return;
        }
        let since = *self.settled.get_or_insert(now);
        let begins = || spread(map) > most && has_newcomer(map);
        if now.since(since) < settings.rebalance_wait || !(self.going || begins()) {
            return;
        }
        let moves = plan(map, most / 2, AT_ONCE_MAX);
        self.going = !moves.is_empty();
        propose(moves, proposals);
    }
}

fn propose(moves: Moves, proposals: &mut Proposals) {
    for (volume, moves) in moves {
        proposals.propose(Purpose::Level { volume }, Change::MoveCopies { volume, moves });
    }
}

/// A new copy is not on its way, and may not be.
fn is_void(map: &Map, volume: &VolumeEntry) -> bool {
    volume.moving.iter().any(|(index, moving)| {
        let place = usize::try_from(index.get()).unwrap_or(usize::MAX);
        let Some(members) = volume.segments.get(place) else { return true };
        let there = map.disk(moving.to).is_some_and(DiskEntry::is_in_service)
            && !map.is_draining(moving.to);
        let joins = members.write_set().any(|disk| disk == moving.to);
        !there || !(joins || map.may_move(volume, *index, members, *moving))
    })
}

fn call_off(map: &Map, proposals: &mut Proposals, which: impl Fn(&VolumeEntry) -> bool) {
    let moving = map.volumes().values().filter(|volume| !volume.moving.is_empty() && which(volume));
    propose(moving.map(|volume| (volume.id, BTreeMap::new())).collect(), proposals);
}

impl Proposals {
    fn levels(&self) -> bool {
        self.pending.values().any(|purpose| matches!(purpose, Purpose::Level { .. }))
    }
}
