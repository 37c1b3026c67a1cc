//! What the owner proposes to the map: one change of members at a time, made from what is known now.

use crate::asks::RETRY_LATER;
use crate::disks::Disk;
use crate::io::{Effect, MemberFailure, ProposalNumber, VolumeEvent};
use crate::segment::JoinStep;
use crate::volume::Volume;
use gabion_types::{
    DiskId, Duration, Flaw, Instant, Outcome, OwnerChange, Promotion, RefusedChange, Removal,
    SegmentIndex, Stale,
};
use gabion_wire::LinkClass;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Replicas named in one entry of the map's log; the rest follows in the next one.
pub(crate) const REPLICAS_PER_ENTRY: usize = 4096;
/// The map had no room for a copy: asked again after so long, and up to half as long again.
const NO_ROOM_WAIT: Duration = Duration::from_secs(5);
/// A new copy on a disk of the map's choice that fails within so long was a bad choice: the next
/// one waits, each time longer. Else the map and the owner could change places with each other as
/// fast as consensus goes.
const NEW_COPY_PROVED: Duration = Duration::from_secs(5);
const NEW_COPY_WAIT_MAX: Duration = Duration::from_secs(80);

#[derive(Debug, Default)]
pub(crate) struct Proposals {
    open: Option<Open>,
    given: u64,
    /// After a refusal that makes no sense to repeat at once.
    not_before: Instant,
    /// After the map had no room, or its choice failed.
    no_copies_before: Instant,
    /// After the map had no room for a copy that is only to move.
    no_moves_before: Instant,
    copies_failed: u32,
}

#[derive(Debug)]
struct Open {
    number: ProposalNumber,
    kind: Kind,
    segments: BTreeSet<SegmentIndex>,
    /// Stale replicas' disks that are to join again.
    returning: BTreeSet<DiskId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Members,
    NewCopies,
    /// New ones, while all that are wanted are there.
    Moves,
    Forget,
    Release,
}

impl Proposals {
    /// While a change of a segment's members is undecided the owner acts by the larger view; it
    /// can't know the new one's answers, so it acknowledges nothing there.
    // rule: volume/undecided-change-freezes-acknowledgements
    pub(crate) fn freezes(&self, index: SegmentIndex) -> bool {
        self.open.as_ref().is_some_and(|open| match open.kind {
            Kind::Members | Kind::NewCopies | Kind::Moves => open.segments.contains(&index),
            Kind::Forget => false,
            Kind::Release => true,
        })
    }

    pub(crate) fn is_releasing(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.kind == Kind::Release)
    }

    pub(crate) fn is_free(&self, now: Instant) -> bool {
        self.open.is_none() && now >= self.not_before
    }

    /// There is a moment to come at which something can be proposed.
    pub(crate) fn wait_for(&self, now: Instant) -> bool {
        now < self.not_before
    }
}

impl Volume {
    /// Proposes what is needed most, if nothing is under way.
    pub(crate) fn propose(&mut self, now: Instant) {
        if !self.proposals.is_free(now) || self.superseded {
            return;
        }
        let _proposed = self.propose_removals(now)
            || self.propose_combines(now)
            || self.propose_promotions()
            || self.propose_surplus()
            || self.propose_moved_away()
            || self.propose_forgets()
            || self.propose_joins(now)
            || self.propose_moves(now);
    }

    pub(crate) fn emit(
        &mut self,
        kind: Kind,
        segments: impl IntoIterator<Item = SegmentIndex>,
        change: OwnerChange,
    ) -> bool {
        self.proposals.given += 1;
        let number = ProposalNumber(self.proposals.given);
        let segments = segments.into_iter().collect();
        let returning = match &change {
            OwnerChange::AddJoining { joins, .. } => joins.iter().filter_map(|(_, d)| *d).collect(),
            OwnerChange::RemoveMembers { .. }
            | OwnerChange::Promote { .. }
            | OwnerChange::Combine { .. }
            | OwnerChange::Forget { .. }
            | OwnerChange::Release { .. } => BTreeSet::new(),
        };
        self.proposals.open = Some(Open { number, kind, segments, returning });
        self.effects.push_back(Effect::Propose { number, change });
        true
    }

    /// Rule 2: failing members, of all segments in one entry. Where no copy would be left that
    /// works, all stay members: I/O is held until one is back.
    // rule: volume/never-remove-without-a-sound-copy
    fn propose_removals(&mut self, now: Instant) -> bool {
        let mut removals = Vec::new();
        let mut failed: BTreeMap<DiskId, MemberFailure> = BTreeMap::new();
        let (mut add_joiner, mut bad_choice) = (false, false);
        for segment in &self.segments {
            let index = segment.index;
            let members = self.members(index);
            if !members.in_sync.iter().any(|disk| self.is_sound(index, *disk)) {
                continue;
            }
            for disk in members.write_set() {
                let Some(why) = self.reason_to_remove(index, disk) else { continue };
                failed.insert(disk, why);
                let joiner = segment.joiners.get(&disk);
                let bad = joiner.is_some_and(|joiner| now.since(joiner.seen) < NEW_COPY_PROVED);
                let full = joiner.is_some() && why == MemberFailure::NoSpace;
                bad_choice |= bad || full;
                add_joiner |= !bad && !full;
                let reach = self.reach_of_all(index);
                removals.push(Removal { reach, ..removal(index, disk, why) });
            }
            if removals.len() >= REPLICAS_PER_ENTRY {
                break;
            }
        }
        if removals.is_empty() {
            return false;
        }
        for (disk, why) in failed {
            if why != MemberFailure::Leaving {
                self.disks.get_mut(disk).note_failure(now);
            }
            self.event(VolumeEvent::MemberFailed { disk, why });
        }
        if bad_choice {
            self.proposals.copies_failed = self.proposals.copies_failed.saturating_add(1);
            let doubled = 1 << (self.proposals.copies_failed - 1).min(8);
            let wait = NO_ROOM_WAIT.saturating_mul(doubled).min(NEW_COPY_WAIT_MAX);
            self.proposals.no_copies_before = now + wait;
        }
        if self.settings.flaws.has(Flaw::AcknowledgeBeforeMap) {
            for removal in &removals {
                self.without(removal.segment, |disk| disk == removal.disk);
            }
        }
        self.emit_removals(removals, add_joiner)
    }

    /// Joiners that have everything, as many as are missing or have to move.
    fn propose_promotions(&mut self) -> bool {
        let mut promotes: Vec<Promotion> = Vec::new();
        for (segment, disk) in &self.joiners {
            let Some(joiner) = self.segment(*segment).joiners.get(disk) else { continue };
            let same = promotes.iter().rev().take_while(|other| other.segment == *segment).count();
            let in_sync = self.members(*segment).in_sync.len() + same;
            let members = self.members(*segment);
            let alone = members.joining(*disk).is_some_and(|joining| joining.alone);
            let missing = alone || in_sync < usize::from(self.view.rf);
            let moves = !self.leaves(*segment, *disk) && same < self.movers(*segment);
            if joiner.step == JoinStep::Filled
                && (missing || moves)
                && promotes.len() < REPLICAS_PER_ENTRY
            {
                let joined = joiner.joined;
                promotes.push(Promotion { segment: *segment, disk: *disk, joined });
            }
        }
        if promotes.is_empty() || self.settings.flaws.has(Flaw::NeverPromoted) {
            return false;
        }
        self.proposals.copies_failed = 0;
        let segments: Vec<_> = promotes.iter().map(|promotion| promotion.segment).collect();
        let change = OwnerChange::Promote { epoch: self.view.epoch, promotes };
        self.emit(Kind::Members, segments, change)
    }

    /// The map may have room, and its last choice was a good one.
    pub(crate) fn may_place(&self, now: Instant) -> bool {
        now >= self.proposals.no_copies_before.max(self.proposals.no_moves_before)
    }

    /// Joiners of segments that have all their copies.
    fn propose_surplus(&mut self) -> bool {
        let surplus = self.joiners.iter().filter(|(index, disk)| self.is_surplus(*index, *disk));
        let removals: Vec<Removal> = surplus
            .take(REPLICAS_PER_ENTRY)
            .map(|(segment, disk)| Removal {
                segment: *segment,
                disk: *disk,
                compare_all: false,
                may_return: false,
                replaced: false,
                reach: None,
            })
            .collect();
        self.emit_removals(removals, false)
    }

    /// False: there are none.
    pub(crate) fn emit_removals(&mut self, removals: Vec<Removal>, add_joiner: bool) -> bool {
        if removals.is_empty() {
            return false;
        }
        let segments: Vec<_> = removals.iter().map(|removal| removal.segment).collect();
        let epoch = self.view.epoch;
        let change = OwnerChange::RemoveMembers { epoch, removals, add_joiner };
        self.emit(Kind::Members, segments, change)
    }

    /// Stale replicas of segments that have all their copies.
    fn propose_forgets(&mut self) -> bool {
        let stale: Vec<(SegmentIndex, DiskId)> = self
            .segments
            .iter()
            .map(|segment| segment.index)
            .filter(|index| self.is_complete(*index) && self.segment(*index).is_serving())
            .flat_map(|index| {
                self.members(index).stale.iter().map(move |stale| (index, stale.disk))
            })
            .take(REPLICAS_PER_ENTRY)
            .collect();
        if stale.is_empty() {
            return false;
        }
        let segments: Vec<_> = stale.iter().map(|(segment, _)| *segment).collect();
        let change = OwnerChange::Forget { epoch: self.view.epoch, stale };
        self.emit(Kind::Forget, segments, change)
    }

    /// Copies that are missing: by the return of a stale replica, else on a disk that the map picks.
    fn propose_joins(&mut self, now: Instant) -> bool {
        if self.releasing.is_some() {
            return false;
        }
        let (mut returns, mut copies) = (Vec::new(), Vec::new());
        for segment in &self.segments {
            let index = segment.index;
            if self.is_complete(index) || !segment.is_serving() || segment.held.is_some() {
                continue;
            }
            let members = self.members(index);
            let real = members.joining.iter().filter(|joining| !joining.fill_waits).count();
            let missing = usize::from(self.view.rf).saturating_sub(members.in_sync.len() + real);
            let mut stale: Vec<&Stale> = members.stale.iter().collect();
            stale.retain(|stale| self.may_join_again(now, stale.disk));
            stale.sort_by_key(|stale| (stale.compare_all, Reverse(stale.left), stale.disk));
            let back = stale.iter().take(missing).map(|stale| (index, Some(stale.disk)));
            returns.extend(back);
            if stale.is_empty() && missing > 0 && members.joining.len() == real {
                copies.push((index, None));
            }
            if returns.len().max(copies.len()) >= REPLICAS_PER_ENTRY {
                break;
            }
        }
        let (kind, joins) = if !returns.is_empty() {
            (Kind::Members, returns)
        } else if now >= self.proposals.no_copies_before {
            (Kind::NewCopies, copies)
        } else {
            return false;
        };
        if joins.is_empty() {
            return false;
        }
        for disk in joins.iter().filter_map(|(_, disk)| *disk) {
            self.disks.get_mut(disk).note_return();
        }
        let segments: Vec<_> = joins.iter().map(|(segment, _)| *segment).collect();
        let change = OwnerChange::AddJoining { epoch: self.view.epoch, joins };
        self.emit(kind, segments, change)
    }

    /// Its node can be asked, its disk works and has not been coming and going.
    fn may_join_again(&self, now: Instant, disk: DiskId) -> bool {
        let Some(home) = self.disks.home(disk) else { return false };
        let works = |state: &Disk| {
            state.failed.is_none()
                && state.full.is_none()
                && !state.pace.is_away()
                && state.may_return(now)
        };
        !self.links.is_down(home)
            && !self.links.is_leaving(home)
            && !self.links.is_away(home, LinkClass::Data)
            && self.disks.get(disk).is_none_or(works)
    }

    pub(crate) fn propose_release(&mut self, clean: bool) {
        let change = OwnerChange::Release { epoch: self.view.epoch, clean };
        self.emit(Kind::Release, [], change);
    }

    pub(crate) fn handle_proposed(
        &mut self,
        now: Instant,
        number: ProposalNumber,
        outcome: Outcome,
    ) {
        let Some(open) = self.proposals.open.take_if(|open| open.number == number) else { return };
        self.members_dirty = true;
        self.dirty.extend(&open.segments);
        if open.kind == Kind::Release {
            if outcome == Outcome::Done {
                self.end();
                return;
            }
            self.wake_all();
        }
        let Outcome::Refused(why) = outcome else { return };
        match why {
            // The view has moved on: what is needed is proposed anew from it.
            RefusedChange::OtherEpoch => {}
            RefusedChange::NotOwner | RefusedChange::OtherIncarnation => self.superseded = true,
            RefusedChange::NoRoom if open.kind == Kind::Moves => {
                let wait = NO_ROOM_WAIT + Duration::from_millis(self.prng.below(2500));
                self.proposals.no_moves_before = now + wait;
            }
            RefusedChange::NoRoom => {
                // A disk that is not there any more, or full: another one takes its place.
                self.bear_with_who_lags();
                for disk in &open.returning {
                    self.disks.get_mut(*disk).note_failure(now);
                }
                let wait = NO_ROOM_WAIT + Duration::from_millis(self.prng.below(2500));
                self.proposals.no_copies_before = now + wait;
                if open.kind != Kind::NewCopies {
                    self.proposals.not_before = now + wait;
                }
            }
            RefusedChange::LastInSync
            | RefusedChange::TooFewCopies
            | RefusedChange::NotGone
            | RefusedChange::InUse
            | RefusedChange::Removed
            | RefusedChange::NotFound
            | RefusedChange::NameTaken
            | RefusedChange::Invalid
            | RefusedChange::Busy
            | RefusedChange::Attached => self.proposals.not_before = now + RETRY_LATER,
        }
    }
}

fn removal(segment: SegmentIndex, disk: DiskId, why: MemberFailure) -> Removal {
    let (compare_all, may_return) = match why {
        MemberFailure::RolledBack | MemberFailure::NoSegment => (true, false),
        MemberFailure::NodeDown | MemberFailure::NoFenceAnswer | MemberFailure::Leaving => {
            (false, true)
        }
        MemberFailure::OutOfService | MemberFailure::NoSpace | MemberFailure::Slow => {
            (false, false)
        }
    };
    Removal { segment, disk, compare_all, may_return, replaced: false, reach: None }
}
