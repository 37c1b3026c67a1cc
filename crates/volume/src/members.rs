//! The members of each segment: what the map says of them, and which of them fail.

use crate::asks::{Ask, Purpose, RETRY_LATER, RETRY_SOON};
use crate::combine::Combine;
use crate::io::{MemberFailure, VolumeEvent};
use crate::order::OpId;
use crate::segment::{JoinStep, Joiner};
use crate::volume::Volume;
use gabion_types::{DiskId, Epoch, Flaw, Instant, SegmentIndex, SegmentMembers, Seq, VolumeView};
use gabion_wire::{FencedSegment, LinkClass, Refusal, ReplicaOp, RequestId};
use std::collections::BTreeSet;

/// A payload that did not match its checksum is sent again so often.
const BAD_PAYLOADS_MAX: u32 = 3;

impl Volume {
    /// The map's word. Another owner: this one ends.
    // promise: one-owner
    pub(crate) fn handle_view(&mut self, now: Instant, view: VolumeView, owned: bool) {
        if !owned || view.owner_epoch != self.view.owner_epoch {
            self.end();
            return;
        }
        if view.epoch < self.view.epoch {
            return;
        }
        for home in self.disks.learn(&view.homes) {
            if !self.links.is_away(home, LinkClass::Data) {
                self.prove_disks(now, home);
            }
        }
        self.follow_homes(now);
        let old = std::mem::replace(&mut self.view, view);
        let mut changed = false;
        for (at, before) in old.segments.iter().enumerate() {
            if self.view.segments.get(at).is_some_and(|after| after != before) {
                let index = self.segments[at].index;
                self.on_members_changed(now, index, before);
                changed = true;
            }
        }
        self.take_new_segments(now, self.settings.fence_wait, false);
        self.follow_scrub(now);
        if changed {
            self.forget_strangers(now);
        }
        self.members_dirty = true;
    }

    fn on_members_changed(&mut self, now: Instant, index: SegmentIndex, before: &SegmentMembers) {
        let after = self.members(index).clone();
        self.end_combine(index);
        if before.alone().map(|one| (one.disk, one.joined))
            != after.alone().map(|one| (one.disk, one.joined))
        {
            self.alone.remove(&index);
        }
        self.unfit.retain(|(segment, _)| *segment != index);
        let member = |disk: DiskId| after.write_set().any(|member| member == disk);
        self.drop_asks(|ask| ask.purpose.segment() == Some(index) && ask.is_void_without(&member));
        let same_roles = before.in_sync == after.in_sync && before.joining == after.joining;
        let joined = |disk: &DiskId| after.joining(*disk).map(|joining| joining.joined);
        let segment = self.segment_mut(index);
        let known = std::mem::take(&mut segment.joiners);
        // A disk that joins anew starts without a stain.
        segment.failed.retain(|disk, _| {
            let anew = joined(disk) != known.get(disk).map(|joiner| joiner.joined);
            member(*disk) && (after.is_in_sync(*disk) || !anew)
        });
        segment.joiners = known;
        segment.joiners.retain(|disk, joiner| joined(disk) == Some(joiner.joined));
        let joiners = segment.joiners.clone();
        self.joiners.retain(|(at, disk)| *at != index || joiners.contains_key(disk));
        self.drop_fills(index);
        self.drop_scrub(index);
        self.learn_joiners(now, index);
        if !same_roles {
            if self.segment(index).is_serving() {
                self.restamp(now, index);
            } else {
                self.restart_takeover(index);
                self.fence_promoted(now, index, before);
            }
        }
        self.confirm_promoted(now, index, before);
        self.dirty.insert(index);
        self.fills_dirty = true;
    }

    /// New entries of `joining` in the map.
    pub(crate) fn learn_joiners(&mut self, now: Instant, index: SegmentIndex) {
        let fresh: Vec<(DiskId, Epoch)> = self
            .members(index)
            .joining
            .iter()
            .map(|joining| (joining.disk, joining.joined))
            .filter(|(disk, _)| !self.segment(index).joiners.contains_key(disk))
            .collect();
        for (disk, joined) in fresh {
            let joiner = Joiner { joined, seen: now, step: JoinStep::New, reached: Seq::ZERO };
            self.segment_mut(index).joiners.insert(disk, joiner);
            self.joiners.insert((index, disk));
            // Those from before this owner are asked for a report first.
            if joined > self.view.owner_epoch {
                self.start_join(now, index, disk);
            }
        }
    }

    /// `JoinStart`, to a disk that refuses older owners: else one of them could still write there
    /// what nobody will roll back. It is fenced first if it was not.
    // rule: volume/joiner-is-fenced-first
    pub(crate) fn start_join(&mut self, now: Instant, index: SegmentIndex, disk: DiskId) {
        let creation = self.members(index).creation;
        let Some(joiner) = self.segment(index).joiners.get(&disk).copied() else { return };
        let alone = self.members(index).joining(disk).is_some_and(|joining| joining.alone);
        if joiner.step != JoinStep::New || (alone && !self.alone.contains_key(&index)) {
            return;
        }
        let joined = joiner.joined;
        if self.disks.get(disk).is_some_and(|state| state.fenced) {
            self.set_join_step(index, disk, JoinStep::Starting);
            let op = ReplicaOp::JoinStart { segment: index, joined, creation };
            self.ask(now, disk, LinkClass::Data, op, Purpose::JoinStart { segment: index, joined });
        } else if !self.is_being_fenced(disk) {
            let segments = vec![FencedSegment { segment: index, creation, joined: Some(joined) }];
            let purpose = Purpose::Fence { segments: vec![index] };
            self.ask(now, disk, LinkClass::Data, ReplicaOp::Fence { segments }, purpose);
        }
    }

    fn is_being_fenced(&self, disk: DiskId) -> bool {
        let fences = |ask: &Ask| ask.disk == disk && matches!(ask.purpose, Purpose::Fence { .. });
        self.asks.iter().any(fences)
    }

    pub(crate) fn set_join_step(&mut self, index: SegmentIndex, disk: DiskId, step: JoinStep) {
        if let Some(joiner) = self.segment_mut(index).joiners.get_mut(&disk) {
            joiner.step = step;
        }
    }

    pub(crate) fn on_join_started(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        joined: Epoch,
        disk: DiskId,
        frozen: Seq,
    ) {
        let joiner = self.segment(index).joiners.get(&disk);
        if joiner.is_none_or(|joiner| joiner.joined != joined) {
            return;
        }
        self.set_join_step(index, disk, JoinStep::Started { frozen });
        self.send_writes_to(now, index, disk);
        self.dirty.insert(index);
        self.fills_dirty = true;
    }

    /// Joiners that the map made in-sync hear of it, and how far they are settled.
    fn confirm_promoted(&mut self, now: Instant, index: SegmentIndex, before: &SegmentMembers) {
        for joining in &before.joining {
            if self.members(index).is_in_sync(joining.disk) {
                let settled = self.segment(index).seqs.settled();
                self.send_promoted(now, index, joining.disk, joining.joined, settled);
            }
        }
    }

    pub(crate) fn send_promoted(
        &mut self,
        now: Instant,
        segment: SegmentIndex,
        disk: DiskId,
        joined: Epoch,
        settled: Seq,
    ) {
        let op = ReplicaOp::Promoted { segment, joined, settled };
        self.ask(now, disk, LinkClass::Data, op, Purpose::Promoted { segment });
    }

    /// What was asked of disks that are in no write set any more.
    fn forget_strangers(&mut self, now: Instant) {
        let mut members: BTreeSet<DiskId> =
            self.view.segments.iter().flat_map(SegmentMembers::write_set).collect();
        members.extend(self.combines.values().flat_map(Combine::disks));
        self.give_up_asks(now, |ask| !members.contains(&ask.disk));
    }

    /// Why a member can't be relied on now, if so.
    pub(crate) fn failure_of(&self, index: SegmentIndex, disk: DiskId) -> Option<MemberFailure> {
        let segment = self.segment(index);
        let members = self.members(index);
        let given_up = members.alone().is_some() && members.is_in_sync(disk);
        if given_up || self.view.out.contains(&disk) {
            return Some(MemberFailure::OutOfService);
        }
        if let Some(why) = segment.failed.get(&disk) {
            return Some(*why);
        }
        if let Some((why, _)) = self.disks.get(disk).and_then(|state| state.failed) {
            return Some(why);
        }
        let takeover = segment.takeover();
        if self.disks.home(disk).is_none_or(|home| self.links.is_down(home)) {
            // After a start of the whole cluster, who is not there yet may only be slower.
            let awaited = takeover.is_some_and(|takeover| takeover.awaits_all(disk));
            return (!awaited).then_some(MemberFailure::NodeDown);
        }
        let overdue = takeover.is_some_and(|takeover| takeover.is_overdue(disk))
            && !self.settings.flaws.has(Flaw::KeepUnfencedMember);
        (overdue && self.needs_report(index, disk)).then_some(MemberFailure::NoFenceAnswer)
    }

    /// It works, and is to be done without before its node goes. A takeover counts on it still.
    // rule: volume/who-leaves-is-removed-while-it-answers
    fn is_leaving(&self, index: SegmentIndex, disk: DiskId) -> bool {
        let leaves = |home| home != self.me && self.links.is_leaving(home);
        self.segment(index).is_serving() && self.disks.home(disk).is_some_and(leaves)
    }

    /// Why a member is to be removed, if so. One that only lags is, where another copy is sound: else it
    /// is the copy that there is.
    pub(crate) fn reason_to_remove(
        &self,
        index: SegmentIndex,
        disk: DiskId,
    ) -> Option<MemberFailure> {
        let leaves = self.is_leaving(index, disk).then_some(MemberFailure::Leaving);
        let another = || {
            let mut in_sync = self.members(index).in_sync.iter();
            in_sync.any(|other| *other != disk && self.is_sound(index, *other))
        };
        let lags = (self.is_lagging(index, disk) && another()).then_some(MemberFailure::Slow);
        self.failure_of(index, disk).or(leaves).or(lags)
    }

    /// It lost what it had answered, and is to be removed. A write would make it reach as far as the
    /// others, and so hide that from the next owner; a settled seq would keep the delta from it.
    // rule: volume/nothing-for-a-replica-that-lost-something
    // promise: acked-survives
    pub(crate) fn is_rolled_back(&self, index: SegmentIndex, disk: DiskId) -> bool {
        let segment = self.segment(index);
        segment.is_serving() && segment.failed.get(&disk) == Some(&MemberFailure::RolledBack)
    }

    pub(crate) fn is_usable(&self, index: SegmentIndex, disk: DiskId, class: LinkClass) -> bool {
        let away = |home| self.links.is_away(home, class);
        self.failure_of(index, disk).is_none()
            && !self.disks.is_proving(disk)
            && !self.disks.home(disk).is_none_or(away)
    }

    /// An in-sync replica that works and stays, and has answered the fence that it is there.
    // rule: volume/never-remove-without-a-sound-copy
    pub(crate) fn is_sound(&self, index: SegmentIndex, disk: DiskId) -> bool {
        let there = self.segment(index).takeover().is_none_or(|takeover| takeover.has_copy(disk));
        there && self.failure_of(index, disk).is_none() && !self.is_leaving(index, disk)
    }

    /// Which segments have no usable copy, and whether copies are missing or too many.
    // promise: hold-not-fail
    pub(crate) fn look_at_members(&mut self, now: Instant) {
        self.degraded = false;
        let rf = usize::from(self.view.rf);
        for at in 0..self.segments.len() {
            let index = self.segments[at].index;
            let members = self.members(index);
            let whole = members.in_sync.len() == rf
                && self.movers(index) == 0
                && members.joining.is_empty()
                && members.stale.is_empty();
            let failing = members.write_set().any(|disk| self.failure_of(index, disk).is_some());
            let sound = |disk: &DiskId| self.failure_of(index, *disk).is_none();
            let held = failing && !members.in_sync.iter().any(sound);
            let goes = |disk| self.is_leaving(index, disk) || self.is_lagging(index, disk);
            self.degraded |= !whole || failing || members.write_set().any(goes);
            if held != self.segments[at].held.is_some() {
                self.segments[at].held = held.then_some(now);
                let segment = index.get();
                self.event(if held {
                    VolumeEvent::Held { segment }
                } else {
                    VolumeEvent::HoldOver { segment }
                });
            }
            if !self.segments[at].is_serving() {
                self.dirty.insert(index);
            }
        }
    }

    fn fail_member(&mut self, index: SegmentIndex, disk: DiskId, why: MemberFailure) {
        self.segment_mut(index).failed.insert(disk, why);
        self.members_dirty = true;
    }

    /// A replica did not do what it was asked.
    pub(crate) fn handle_refusal(&mut self, now: Instant, request: RequestId, refusal: Refusal) {
        let Some(ask) = self.asks.get(request) else { return };
        let (disk, segment, refused) = (ask.disk, ask.purpose.segment(), ask.refused());
        let slow = |since| now.since(since) >= self.settings.slow_wait;
        let patient = !ask.first_sent().is_some_and(slow);
        let write = if let Purpose::Write { op, .. } = ask.purpose { Some(op) } else { None };
        let promoted = matches!(ask.purpose, Purpose::Promoted { .. });
        let mut wait = RETRY_LATER;
        match refusal {
            Refusal::Fenced { by } if by > self.view.owner_epoch => self.superseded = true,
            Refusal::Fenced { .. } => {}
            Refusal::Busy => wait = RETRY_SOON,
            Refusal::NotReady if patient => wait = RETRY_SOON,
            Refusal::BadPayload if refused < BAD_PAYLOADS_MAX => wait = RETRY_SOON,
            // It recovers; only not soon enough.
            Refusal::NotReady => self.fail_disk(now, disk, MemberFailure::Slow),
            Refusal::BadPayload | Refusal::OutOfService | Refusal::NoDisk => {
                self.fail_disk(now, disk, MemberFailure::OutOfService);
            }
            Refusal::NoSpace => {
                wait = RETRY_SOON;
                if self.on_full(now, segment, disk, write) {
                    return;
                }
            }
            Refusal::WrongEpoch if promoted => {
                // It knows itself as in-sync, or as something newer.
                self.give_up(now, request);
                return;
            }
            Refusal::NoSegment | Refusal::WrongEpoch => match segment {
                Some(index) => self.fail_member(index, disk, MemberFailure::NoSegment),
                None => self.fail_disk(now, disk, MemberFailure::OutOfService),
            },
            Refusal::Invalid => match segment {
                Some(index) => self.fail_member(index, disk, MemberFailure::OutOfService),
                None => self.fail_disk(now, disk, MemberFailure::OutOfService),
            },
        }
        self.put_off(now, request, wait);
    }

    /// A full disk is removed from the segment where another in-sync replica has room. True when
    /// its write was given up instead.
    fn on_full(
        &mut self,
        now: Instant,
        segment: Option<SegmentIndex>,
        disk: DiskId,
        write: Option<OpId>,
    ) -> bool {
        self.disks.get_mut(disk).full = Some(now);
        let Some(index) = segment else { return false };
        let members = self.members(index);
        let sound = |other: &&DiskId| **other != disk && self.is_sound(index, **other);
        let last = members.is_in_sync(disk) && !members.in_sync.iter().any(|other| sound(&other));
        if !last {
            self.fail_member(index, disk, MemberFailure::NoSpace);
            return false;
        }
        // What the guest is told must be true of every copy: joiners that may have it go first.
        let joiners: Vec<DiskId> = members.joining.iter().map(|joining| joining.disk).collect();
        if write.is_some() {
            for joiner in joiners {
                self.fail_member(index, joiner, MemberFailure::NoSpace);
            }
        }
        write.is_some_and(|op| self.on_last_is_full(now, op))
    }
}

impl Ask {
    /// It means nothing any more when these are the members of its segment.
    fn is_void_without(&self, member: &impl Fn(DiskId) -> bool) -> bool {
        match self.purpose {
            Purpose::FillTable { joiner, .. }
            | Purpose::FillRead { joiner, .. }
            | Purpose::Install { joiner, .. }
            | Purpose::FillMark { joiner, .. } => !member(joiner) || !member(self.disk),
            Purpose::Write { .. }
            | Purpose::TailTable { .. }
            | Purpose::TailRead { .. }
            | Purpose::Settle { .. }
            | Purpose::JoinStart { .. }
            | Purpose::Promoted { .. }
            | Purpose::Repair { .. }
            | Purpose::ScrubTable { .. }
            | Purpose::ScrubVerify { .. }
            | Purpose::ScrubRead { .. }
            | Purpose::ScrubMend { .. } => !member(self.disk),
            // Whoever fences an elder begins anew by itself, as do those that fill from it.
            Purpose::FencePair { .. } => false,
            // Fetches look elsewhere by themselves; the data of one that just left is discarded.
            Purpose::Read { .. } | Purpose::Table { .. } => false,
            Purpose::Fence { .. } | Purpose::Prove { .. } | Purpose::EpochStart { .. } => false,
        }
    }
}
