//! What the owner knows of disks and of the nodes that they hang on.

use crate::io::{Doubt, MemberFailure};
use crate::pace::Pace;
use gabion_types::{Breaker, DiskId, Duration, Instant, NodeId};
use gabion_wire::LinkClass;
use std::collections::{BTreeMap, BTreeSet};

/// A disk that failed again within so long is taken back more slowly each time.
const FLAP_WINDOW: Duration = Duration::from_secs(600);
const RETURN_AFTER: Duration = Duration::from_secs(10);
const RETURN_AFTER_MAX: Duration = Duration::from_secs(120);
/// After so long a slow or full disk is tried again.
const FORGIVE_AFTER: Duration = Duration::from_secs(30);
/// After so long one that gave errors is, though its node did not come anew.
const FORGIVE_ERRORS_AFTER: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// It has durably refused all older owners of this volume.
    pub(crate) fenced: bool,
    /// The last word on what may be in flight to it.
    pub(crate) credit: Option<u64>,
    /// What writes take of it that it has not answered yet.
    pub(crate) credit_out: u64,
    pub(crate) asks_out: u32,
    /// It fails as a whole, since then.
    pub(crate) failed: Option<(MemberFailure, Instant)>,
    /// It has no room for new replicas, since then.
    pub(crate) full: Option<Instant>,
    /// Its link was lost since it last said what it has.
    pub(crate) unproved: bool,
    /// It was asked what it has, so often, and has not said so yet.
    pub(crate) proofs_out: u32,
    pub(crate) pace: Pace,
    failures: u32,
    failed_last: Instant,
    /// It was not taken back since.
    out: bool,
}

impl Disk {
    // rule: volume/one-outage-one-failure
    /// It was removed for a failure. Of its segments many are, one entry after the other: that is one
    /// failure, until it is taken back.
    pub(crate) fn note_failure(&mut self, now: Instant) {
        if std::mem::replace(&mut self.out, true) {
            return;
        }
        if now.since(self.failed_last) > FLAP_WINDOW {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.failed_last = now;
    }

    // rule: volume/a-breaker-says-what-the-owner-acts-on
    /// Open: the owner does without it. Half-open: it is well again, and not taken back yet.
    pub(crate) fn breaker(&self, now: Instant) -> Breaker<Doubt> {
        if let Some((why, since)) = self.failed {
            Breaker::Open { since, why: Doubt::Failed(why) }
        } else if let Some(since) = self.pace.away_since() {
            Breaker::Open { since, why: Doubt::Lags }
        } else if self.out && !self.may_return(now) {
            Breaker::HalfOpen { since: self.failed_last, why: Doubt::Flaps }
        } else {
            Breaker::Closed
        }
    }

    /// It is asked for again.
    pub(crate) fn note_return(&mut self) {
        self.out = false;
    }

    /// The first return is taken at once, later ones with a growing distance.
    pub(crate) fn may_return(&self, now: Instant) -> bool {
        let Some(doublings) = self.failures.checked_sub(2) else { return true };
        let wait = RETURN_AFTER.saturating_mul(1 << doublings.min(8)).min(RETURN_AFTER_MAX);
        now.since(self.failed_last) >= wait
    }
}

/// Which nodes can be asked.
#[derive(Debug, Default)]
pub(crate) struct Links {
    down: BTreeSet<NodeId>,
    /// They said that they are about to go.
    leaving: BTreeSet<NodeId>,
    away: BTreeSet<(NodeId, LinkClass)>,
    /// Those that take no data for the moment.
    full: BTreeSet<(NodeId, LinkClass)>,
}

const CLASSES: [LinkClass; 3] = [LinkClass::Control, LinkClass::Data, LinkClass::Bulk];

impl Links {
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.down.contains(&node)
    }

    pub(crate) fn is_leaving(&self, node: NodeId) -> bool {
        self.leaving.contains(&node)
    }

    pub(crate) fn note_leaving(&mut self, node: NodeId) {
        self.leaving.insert(node);
    }

    pub(crate) fn is_away(&self, node: NodeId, class: LinkClass) -> bool {
        self.away.contains(&(node, class))
    }

    pub(crate) fn is_full(&self, node: NodeId, class: LinkClass) -> bool {
        self.full.contains(&(node, class))
    }

    pub(crate) fn set_full(&mut self, node: NodeId, class: LinkClass, full: bool) {
        if full {
            self.full.insert((node, class));
        } else {
            self.full.remove(&(node, class));
        }
    }

    pub(crate) fn lose(&mut self, node: NodeId, class: LinkClass) {
        self.away.insert((node, class));
        self.full.remove(&(node, class));
    }

    pub(crate) fn note_down(&mut self, node: NodeId) {
        self.down.insert(node);
        self.leaving.remove(&node);
        self.away.extend(CLASSES.map(|class| (node, class)));
    }

    pub(crate) fn note_up(&mut self, node: NodeId) {
        self.down.remove(&node);
        self.leaving.remove(&node);
        self.away.retain(|(away, _)| *away != node);
        self.full.retain(|(full, _)| *full != node);
    }
}

/// All disks that this owner ever met, and where they hang.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    disks: BTreeMap<DiskId, Disk>,
    homes: BTreeMap<DiskId, NodeId>,
}

impl Disks {
    /// One that moved is to be asked what it has before it is used there.
    pub(crate) fn learn(&mut self, homes: &BTreeMap<DiskId, NodeId>) -> BTreeSet<NodeId> {
        let mut moved = BTreeSet::new();
        for (disk, home) in homes {
            if self.homes.insert(*disk, *home).is_some_and(|before| before != *home) {
                self.disks.entry(*disk).or_default().unproved = true;
                moved.insert(*home);
            }
        }
        moved
    }

    /// Errors: none for a disk that no view named a home for.
    pub(crate) fn home(&self, disk: DiskId) -> Option<NodeId> {
        self.homes.get(&disk).copied()
    }

    pub(crate) fn get(&self, disk: DiskId) -> Option<&Disk> {
        self.disks.get(&disk)
    }

    pub(crate) fn get_mut(&mut self, disk: DiskId) -> &mut Disk {
        self.disks.entry(disk).or_default()
    }

    pub(crate) fn paces(&mut self) -> impl Iterator<Item = (DiskId, &mut Pace)> {
        self.disks.iter_mut().map(|(disk, state)| (*disk, &mut state.pace))
    }

    /// Those that the owner does without, or takes back only later.
    pub(crate) fn doubts(&self, now: Instant) -> impl Iterator<Item = (DiskId, Breaker<Doubt>)> {
        let known = self.disks.iter().filter(|(disk, _)| self.homes.contains_key(disk));
        let told = known.map(move |(disk, state)| (*disk, state.breaker(now)));
        told.filter(|(_, breaker)| *breaker != Breaker::Closed)
    }

    /// What its disks hold is to be asked for before they are used again.
    pub(crate) fn doubt_node(&mut self, node: NodeId) {
        for (disk, home) in &self.homes {
            if *home == node {
                self.disks.entry(*disk).or_default().unproved = true;
            }
        }
    }

    pub(crate) fn unproved(&self, node: NodeId) -> Vec<DiskId> {
        let here = |disk: &DiskId| self.homes.get(disk) == Some(&node);
        let doubted = self.disks.iter().filter(|(disk, state)| state.unproved && here(disk));
        doubted.map(|(disk, _)| *disk).collect()
    }

    /// Nothing else is asked of it before it has said what it has.
    pub(crate) fn is_proving(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|state| state.unproved || state.proofs_out > 0)
    }

    /// Disks of this node start with a clean slate but for their fences.
    pub(crate) fn forgive_node(&mut self, node: NodeId) {
        for (disk, state) in &mut self.disks {
            if self.homes.get(disk) == Some(&node) {
                state.failed = None;
                state.full = None;
            }
        }
    }

    /// Each gets another chance some time. True when one did.
    pub(crate) fn forgive_old(&mut self, now: Instant) -> bool {
        let mut any = false;
        for state in self.disks.values_mut() {
            let over = |(why, since)| {
                let slow = why == MemberFailure::Slow;
                now.since(since) >= if slow { FORGIVE_AFTER } else { FORGIVE_ERRORS_AFTER }
            };
            let over = state.failed.is_some_and(over);
            let full = state.full.is_some_and(|since| now.since(since) >= FORGIVE_AFTER);
            if over {
                state.failed = None;
            }
            if full {
                state.full = None;
            }
            any |= over || full || state.pace.end_away(now);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: volume/a-breaker-says-what-the-owner-acts-on
    #[test]
    fn who_failed_is_done_without_and_who_flaps_waits() {
        let at = |secs| Instant::ZERO + Duration::from_secs(secs);
        let (mut disks, slow) = (Disks::default(), MemberFailure::Slow);
        let id = DiskId::new(7);
        disks.learn(&[(id, NodeId::new(1))].into());
        let seen = |disks: &Disks, now| disks.doubts(now).collect::<Vec<_>>();
        assert_eq!(seen(&disks, at(0)), []);
        // Removed for the first time: it may come back at once.
        disks.get_mut(id).failed = Some((slow, at(1)));
        disks.get_mut(id).note_failure(at(1));
        let open = Breaker::Open { since: at(1), why: Doubt::Failed(slow) };
        assert_eq!(seen(&disks, at(2)), [(id, open)]);
        disks.forgive_node(NodeId::new(1));
        assert_eq!(seen(&disks, at(3)), []);
        disks.get_mut(id).note_return();
        // For the second time: it waits.
        disks.get_mut(id).note_failure(at(5));
        let half = Breaker::HalfOpen { since: at(5), why: Doubt::Flaps };
        assert_eq!(seen(&disks, at(14)), [(id, half)]);
        assert_eq!(seen(&disks, at(15)), []);
        // A disk that no view names any more is nobody's concern.
        disks.get_mut(DiskId::new(8)).failed = Some((slow, at(1)));
        assert_eq!(seen(&disks, at(15)), []);
    }

    // rule: volume/one-outage-one-failure
    #[test]
    fn the_first_return_is_taken_at_once_and_later_ones_more_slowly() {
        let at = |secs| Instant::ZERO + Duration::from_secs(secs);
        let mut disk = Disk::default();
        assert!(disk.may_return(at(0)));
        disk.note_failure(at(1));
        // Another of its segments.
        disk.note_failure(at(1));
        assert!(disk.may_return(at(1)));
        disk.note_return();
        disk.note_failure(at(5));
        assert!(!disk.may_return(at(14)));
        assert!(disk.may_return(at(15)));
        disk.note_return();
        disk.note_failure(at(20));
        assert!(!disk.may_return(at(39)));
        assert!(disk.may_return(at(40)));
        disk.note_return();
        disk.note_failure(at(1000));
        assert!(disk.may_return(at(1000)));
    }
}
