//! Copies on disks that are being emptied move, and single ones that level the disks: a new one is
//! filled elsewhere and becomes a member, and only then the old one is removed. So no segment ever has
//! fewer copies because of it.

use crate::fill::FILLS_AT_ONCE;
use crate::proposals::{Kind, REPLICAS_PER_ENTRY};
use crate::volume::Volume;
use gabion_types::{DiskId, Flaw, Instant, OwnerChange, Removal, SegmentIndex};

/// Copies on their way at a time; each takes every write too, before it is filled.
const MOVES_AT_ONCE: usize = FILLS_AT_ONCE;

impl Volume {
    /// A copy that is to move: its disk is being emptied, or it alone is to be elsewhere.
    pub(crate) fn leaves(&self, index: SegmentIndex, disk: DiskId) -> bool {
        let alone = self.view.moving.get(&index).is_some_and(|moving| moving.from == disk);
        alone || self.view.draining.contains(&disk)
    }

    /// In-sync copies that need not move.
    fn staying(&self, index: SegmentIndex) -> usize {
        let in_sync = self.members(index).in_sync.iter();
        in_sync.filter(|disk| !self.leaves(index, **disk)).count()
    }

    pub(crate) fn is_complete(&self, index: SegmentIndex) -> bool {
        let members = self.members(index);
        members.alone().is_none() && members.in_sync.len() >= usize::from(self.view.rf)
    }

    /// Copies that have to move before all is where it belongs.
    pub(crate) fn movers(&self, index: SegmentIndex) -> usize {
        usize::from(self.view.rf).saturating_sub(self.staying(index))
    }

    /// A joiner that has nobody's place to take, of a segment that has all its copies.
    pub(crate) fn is_surplus(&self, index: SegmentIndex, disk: DiskId) -> bool {
        if !self.is_complete(index) {
            return false;
        }
        let joining = self.members(index).joining.iter().map(|joining| joining.disk);
        let mut movers = joining.filter(|disk| !self.leaves(index, *disk));
        self.leaves(index, disk)
            || movers.position(|mover| mover == disk) >= Some(self.movers(index))
    }

    /// New copies for those that are to move, a few at a time. What is missing comes first.
    pub(crate) fn propose_moves(&mut self, now: Instant) -> bool {
        let none = self.view.draining.is_empty() && self.view.moving.is_empty();
        if self.releasing.is_some() || none || !self.may_place(now) {
            return false;
        }
        let on_their_way = self.joiners.iter().filter(|(index, _)| self.is_complete(*index));
        let most = MOVES_AT_ONCE.saturating_sub(on_their_way.count());
        let goes = |index: SegmentIndex| {
            let members = self.members(index);
            let joining = members.joining.iter().filter(|new| !self.leaves(index, new.disk));
            let old = members.in_sync.iter().any(|disk| self.leaves(index, *disk));
            old && self.is_complete(index) && joining.count() < self.movers(index)
        };
        let ready =
            self.segments.iter().filter(|segment| segment.is_serving() && segment.held.is_none());
        let ready = ready.map(|segment| segment.index).filter(|index| goes(*index));
        // Where a single copy goes was chosen; for one that has to leave its disk the map chooses.
        let place = |index| self.view.moving.get(&index).map(|moving| moving.to);
        let joins: Vec<_> = ready.take(most).map(|index| (index, place(index))).collect();
        if joins.is_empty() {
            return false;
        }
        let segments: Vec<_> = joins.iter().map(|(segment, _)| *segment).collect();
        let change = OwnerChange::AddJoining { epoch: self.view.epoch, joins };
        self.emit(Kind::Moves, segments, change)
    }

    /// Copies whose place was taken, and one more than wanted that nobody means to move any more.
    // rule: volume/moved-before-it-is-removed
    pub(crate) fn propose_moved_away(&mut self) -> bool {
        let segments = self.segments.iter().filter(|segment| segment.is_serving());
        let gone = segments.flat_map(|segment| self.moved_away(segment.index));
        let removals: Vec<Removal> = gone.take(REPLICAS_PER_ENTRY).collect();
        self.emit_removals(removals, false)
    }

    fn moved_away(&self, index: SegmentIndex) -> Vec<Removal> {
        let (in_sync, rf) = (&self.members(index).in_sync, usize::from(self.view.rf));
        let replaced = !self.settings.flaws.has(Flaw::RemovedBeforeReplaced);
        let mut going: Vec<DiskId> = in_sync.clone();
        // The own disk last: it is read from. Of others the one that came last.
        let own = |disk: DiskId| self.disks.home(disk) == Some(self.me);
        going.reverse();
        going.sort_by_key(|disk| (!self.leaves(index, *disk), own(*disk)));
        going.truncate(in_sync.len().saturating_sub(if replaced { rf } else { 1 }));
        going.retain(|disk| replaced || self.leaves(index, *disk));
        let stays = |disk: &&DiskId| !going.contains(disk) && self.is_sound(index, **disk);
        if replaced && in_sync.iter().filter(stays).count() < rf {
            return Vec::new();
        }
        let removal = |disk| Removal {
            reach: None,
            segment: index,
            disk,
            compare_all: false,
            may_return: false,
            replaced,
        };
        going.into_iter().map(removal).collect()
    }
}
