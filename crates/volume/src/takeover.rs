//! Taking over: fence every member, judge what they report, reconcile the tail, start the epoch.

use crate::asks::Purpose;
use crate::io::MemberFailure;
use crate::segment::{JoinStep, Joiner, Phase};
use crate::settle::Seqs;
use crate::tail::Tail;
use crate::volume::{SEGMENTS_PER_MESSAGE, Volume};
use gabion_types::{DiskId, Duration, Flaw, Instant, SegmentIndex, SegmentMembers, Seq};
use gabion_wire::{EpochStart, FenceReport, FencedSegment, LinkClass, ReplicaOp};
use std::collections::BTreeMap;

/// Segments whose tails are reconciled at a time.
const TAILS_AT_ONCE: u32 = 16;

#[derive(Debug)]
pub(crate) struct Takeover {
    /// What the members said when they were fenced.
    reports: BTreeMap<DiskId, FenceReport>,
    /// The highest seq that counts, of any member ever in this takeover: what a member that was
    /// removed since had may have been settled on another.
    highest: Seq,
    /// Raised when the members change: answers to what was asked before mean nothing.
    pub(crate) generation: u32,
    /// Who has not answered by then is removed.
    until: Instant,
    overdue: bool,
    /// Also nodes that are down are waited for until then.
    patient: bool,
    /// `Settle`s that members have not answered; nothing is judged anew before they have.
    pub(crate) settles_out: u32,
    pub(crate) stage: Stage,
}

#[derive(Debug)]
pub(crate) enum Stage {
    /// Waiting for reports, for failing members to be removed, for joiners to start.
    Fencing,
    /// For its turn to be reconciled.
    Queued {
        base: Seq,
    },
    Reconciling(Tail),
    /// Making `next` durable on those that have not answered yet.
    Starting {
        next: Seq,
        missing: Vec<DiskId>,
        sent: bool,
    },
}

impl Takeover {
    pub(crate) fn new(until: Instant, patient: bool) -> Self {
        Self {
            reports: BTreeMap::new(),
            highest: Seq::ZERO,
            generation: 0,
            until,
            overdue: false,
            patient,
            settles_out: 0,
            stage: Stage::Fencing,
        }
    }

    pub(crate) fn has_report(&self, disk: DiskId) -> bool {
        self.reports.contains_key(&disk)
    }

    /// It reported, and has the segment.
    pub(crate) fn has_copy(&self, disk: DiskId) -> bool {
        self.reports.get(&disk).is_some_and(|report| report.present)
    }

    /// What an elder has counts, too.
    pub(crate) fn reaches(&mut self, seq: Seq) {
        self.highest = self.highest.max(seq);
    }

    fn next(&self, base: Seq, in_sync: &[DiskId]) -> Seq {
        let starts = in_sync.iter().filter_map(|disk| self.reports.get(disk));
        let started = starts.map(|report| report.next.previous()).max().unwrap_or_default();
        base.max(self.highest).max(started).next()
    }

    pub(crate) fn awaits_all(&self, disk: DiskId) -> bool {
        self.patient && !self.overdue && !self.has_report(disk)
    }

    pub(crate) fn wait_longer(&mut self, by: Duration) {
        self.until = self.until + by;
    }

    pub(crate) fn is_overdue(&self, disk: DiskId) -> bool {
        self.overdue && !self.has_report(disk)
    }
}

/// What in-sync members' reports say together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Everything up to here is on every in-sync member.
    pub(crate) base: Seq,
    /// Who was rolled back, is damaged or has lost the segment, where a good one is left.
    pub(crate) bad: Vec<(DiskId, MemberFailure)>,
}

/// Judges in-sync members. None: none of them has the segment.
// rule: volume/rolled-back-replica-joins-anew
pub(crate) fn judge(reports: &[(DiskId, FenceReport)]) -> Option<Verdict> {
    let present = || reports.iter().filter(|(_, report)| report.present);
    let base = present().map(|(_, report)| report.settled).max()?;
    let fault = |report: &FenceReport| {
        // What it has for sure: a settled seq and the start of an epoch are no less than writes.
        let reach = report.highest.max(report.next.previous()).max(report.settled);
        if !report.present {
            Some(MemberFailure::NoSegment)
        } else if report.damaged
            || reach < base
            || report.dropped_from.is_some_and(|dropped| dropped <= base)
        {
            Some(MemberFailure::RolledBack)
        } else {
            None
        }
    };
    let any_good = reports.iter().any(|(_, report)| fault(report).is_none());
    let bad = reports.iter().filter_map(|(disk, report)| {
        let why = fault(report)?;
        // If all are bad, those that are there are all that is left.
        (any_good || !report.present).then_some((*disk, why))
    });
    Some(Verdict { base, bad: bad.collect() })
}

impl Volume {
    /// Fences the whole write set of these segments, in one message a disk where they fit.
    // rule: volume/fence-the-whole-write-set
    // promise: one-owner
    pub(crate) fn fence(&mut self, now: Instant, segments: &[SegmentIndex]) {
        let mut by_disk: BTreeMap<DiskId, Vec<FencedSegment>> = BTreeMap::new();
        for index in segments {
            let members = self.members(*index);
            let creation = members.creation;
            for disk in members.write_set() {
                let joined = members.joining(disk).map(|joining| joining.joined);
                let fenced = FencedSegment { segment: *index, creation, joined };
                by_disk.entry(disk).or_default().push(fenced);
            }
        }
        for (disk, fenced) in by_disk {
            for chunk in fenced.chunks(SEGMENTS_PER_MESSAGE) {
                let segments = chunk.iter().map(|fenced| fenced.segment).collect();
                let op = ReplicaOp::Fence { segments: chunk.to_vec() };
                self.ask(now, disk, LinkClass::Data, op, Purpose::Fence { segments });
            }
        }
    }

    pub(crate) fn on_fenced(
        &mut self,
        now: Instant,
        disk: DiskId,
        segments: &[SegmentIndex],
        reports: &[FenceReport],
    ) {
        self.disks.get_mut(disk).fenced = true;
        let fresh: Vec<SegmentIndex> = self
            .joiners
            .iter()
            .filter(|(index, joiner)| *joiner == disk && !self.needs_report(*index, disk))
            .map(|(index, _)| *index)
            .collect();
        for index in fresh {
            self.start_join(now, index, disk);
        }
        for report in reports.iter().filter(|report| segments.contains(&report.segment)) {
            self.on_report(disk, report);
        }
    }

    fn on_report(&mut self, disk: DiskId, report: &FenceReport) {
        let index = report.segment;
        let members = self.members(index);
        let counts = match members.joining(disk) {
            // A joiner's seqs from before its J don't count.
            Some(joining) => report.joined == Some(joining.joined),
            None => true,
        };
        let Some(takeover) = self.segment_mut(index).takeover_mut() else { return };
        takeover.reports.insert(disk, *report);
        if counts && report.present {
            takeover.highest = takeover.highest.max(report.highest);
        }
        // One that had failed to answer in time has answered now; or it is the sound one that the
        // removal of others has waited for.
        // rule: volume/who-is-known-to-be-silent-is-not-waited-for
        self.members_dirty = true;
        self.dirty.insert(index);
    }

    /// In-sync members report, and joiners from before this owner.
    pub(crate) fn needs_report(&self, index: SegmentIndex, disk: DiskId) -> bool {
        match self.members(index).joining(disk) {
            Some(joining) => joining.joined <= self.view.owner_epoch,
            None => true,
        }
    }

    pub(crate) fn stop_waiting_for_fences(&mut self, now: Instant) {
        self.members_dirty = true;
        self.fence_until = None;
        for segment in &mut self.segments {
            let index = segment.index;
            let Some(takeover) = segment.takeover_mut().filter(|takeover| !takeover.overdue) else {
                continue;
            };
            if takeover.until <= now {
                takeover.overdue = true;
                self.dirty.insert(index);
            } else {
                let until = takeover.until;
                self.fence_until = Some(self.fence_until.map_or(until, |first| first.min(until)));
            }
        }
    }

    /// What was a joiner counts for all that it has now, and says so once more.
    pub(crate) fn fence_promoted(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        before: &SegmentMembers,
    ) {
        let creation = self.members(index).creation;
        for disk in before.joining.iter().map(|joining| joining.disk) {
            if !self.members(index).is_in_sync(disk) {
                continue;
            }
            let Some(takeover) = self.segment_mut(index).takeover_mut() else { return };
            takeover.reports.remove(&disk);
            let segments = vec![FencedSegment { segment: index, creation, joined: None }];
            let purpose = Purpose::Fence { segments: vec![index] };
            self.ask(now, disk, LinkClass::Data, ReplicaOp::Fence { segments }, purpose);
        }
    }

    /// Up to there every in-sync member has every write that may have been acknowledged; while the segment
    /// is taken over, what is above is given to joiners before it is served. None: nobody has said.
    pub(crate) fn reach_of_all(&self, index: SegmentIndex) -> Option<Seq> {
        let segment = self.segment(index);
        let Some(takeover) = segment.takeover() else { return Some(segment.seqs.top()) };
        let in_sync = self.members(index).in_sync.iter();
        let reports = in_sync.filter_map(|disk| takeover.reports.get(disk));
        reports.filter(|report| report.present).map(|report| report.settled).max()
    }

    /// A seq for what is written anew before the segment serves: above all that count.
    pub(crate) fn give_seq(&mut self, index: SegmentIndex, base: Seq) -> Seq {
        let in_sync = self.members(index).in_sync.clone();
        let Some(takeover) = self.segment_mut(index).takeover_mut() else { return base };
        let next = takeover.next(base, &in_sync);
        takeover.highest = next;
        next
    }

    /// The members changed: what was found so far is judged anew.
    pub(crate) fn restart_takeover(&mut self, index: SegmentIndex) {
        let write_set: Vec<DiskId> = self.members(index).write_set().collect();
        let Some(takeover) = self.segment_mut(index).takeover_mut() else { return };
        takeover.generation += 1;
        takeover.reports.retain(|disk, _| write_set.contains(disk));
        let stage = std::mem::replace(&mut takeover.stage, Stage::Fencing);
        if matches!(stage, Stage::Reconciling(_)) {
            self.tails_running -= 1;
            self.wake_tails();
        }
        self.tails_waiting.remove(&index);
        self.starts.remove(&index);
        self.drop_asks(|ask| {
            ask.purpose.segment() == Some(index)
                && matches!(ask.purpose, Purpose::TailTable { .. } | Purpose::TailRead { .. })
        });
        self.dirty.insert(index);
    }

    pub(crate) fn progress_takeover(&mut self, now: Instant, index: SegmentIndex) {
        let Some(takeover) = self.segment(index).takeover() else { return };
        match &takeover.stage {
            Stage::Fencing => self.conclude_fencing(now, index),
            Stage::Queued { base } => {
                let base = *base;
                self.begin_tail(now, index, base);
            }
            Stage::Reconciling(_) => self.pump_tail(now, index),
            Stage::Starting { .. } => {}
        }
    }

    /// Goes on when every member has reported and works, and every joiner has started.
    // rule: volume/serve-only-with-fenced-members
    fn conclude_fencing(&mut self, now: Instant, index: SegmentIndex) {
        let Some(takeover) = self.segment(index).takeover() else { return };
        if takeover.settles_out > 0 {
            return;
        }
        let members = self.members(index);
        let waiting = self.fenced_members(index).any(|disk| {
            self.needs_report(index, disk)
                && !takeover.has_report(disk)
                && self.failure_of(index, disk).is_none()
        });
        if waiting {
            return;
        }
        let working =
            members.in_sync.iter().filter(|disk| self.failure_of(index, **disk).is_none());
        let reports: Vec<(DiskId, FenceReport)> = working
            .filter_map(|disk| takeover.reports.get_key_value(disk))
            .map(|(d, r)| (*d, *r))
            .collect();
        let Some(verdict) = judge(&reports) else {
            // Nobody has it: it is held, and keeps nothing else from being served.
            for (disk, _) in reports {
                self.segment_mut(index).failed.insert(disk, MemberFailure::NoSegment);
                self.members_dirty = true;
            }
            return;
        };
        // One that lost what it got since J begins anew, or it would be taken for whole.
        // rule: volume/a-joiner-without-a-break
        let damaged: Vec<DiskId> = members
            .joining
            .iter()
            .filter(|joining| {
                let Some(report) = takeover.reports.get(&joining.disk) else { return false };
                let pairs = members.pairs().any(|pair| pair.joiner == joining.disk);
                let dropped = report.dropped_from.is_some_and(|dropped| dropped <= verdict.base);
                (report.damaged && (pairs || !joining.compare_all)) || (pairs && dropped)
            })
            .map(|joining| joining.disk)
            .collect();
        let damaged = damaged.into_iter().map(|disk| (disk, MemberFailure::RolledBack));
        for (disk, why) in verdict.bad.into_iter().chain(damaged) {
            if self.segment_mut(index).failed.insert(disk, why).is_none() {
                self.members_dirty = true;
            }
        }
        let joiners: Vec<DiskId> = self.segment(index).joiners.keys().copied().collect();
        joiners.iter().for_each(|disk| self.start_join(now, index, *disk));
        let failing = self.fenced_members(index).any(|disk| self.failure_of(index, disk).is_some());
        let started = self.segment(index).joiners.values().all(Joiner::takes_writes);
        if failing || !started {
            return;
        }
        let highest = self.segment(index).takeover().map_or(Seq::ZERO, |found| found.highest);
        let skips = self.settings.flaws.has(Flaw::ServeBeforeReconciling);
        if highest > verdict.base && !skips {
            self.set_stage(index, Stage::Queued { base: verdict.base });
            self.dirty.insert(index);
        } else {
            self.start_epoch(index, verdict.base);
        }
    }

    /// All members, but with a rule switched off only those that answered before it was too late.
    fn fenced_members(&self, index: SegmentIndex) -> impl Iterator<Item = DiskId> {
        let takeover = self.segment(index).takeover();
        let late = move |disk| takeover.is_some_and(|takeover| takeover.is_overdue(disk));
        let keeps = self.settings.flaws.has(Flaw::KeepUnfencedMember);
        self.members(index).write_set().filter(move |disk| !(keeps && late(*disk)))
    }

    pub(crate) fn set_stage(&mut self, index: SegmentIndex, stage: Stage) {
        if let Some(takeover) = self.segment_mut(index).takeover_mut() {
            takeover.stage = stage;
        }
    }

    fn begin_tail(&mut self, now: Instant, index: SegmentIndex, base: Seq) {
        if self.tails_running >= TAILS_AT_ONCE {
            self.tails_waiting.insert(index);
            return;
        }
        self.tails_running += 1;
        let disks: Vec<DiskId> = self.fenced_members(index).collect();
        self.set_stage(index, Stage::Reconciling(Tail::new(base, &disks)));
        self.ask_tail_tables(now, index);
    }

    pub(crate) fn wake_tails(&mut self) {
        let waiting = std::mem::take(&mut self.tails_waiting);
        self.dirty.extend(waiting);
    }

    /// Everything is on every member: the next seq goes out, above all that count.
    pub(crate) fn start_epoch(&mut self, index: SegmentIndex, base: Seq) {
        let missing: Vec<DiskId> = self.fenced_members(index).collect();
        let in_sync = self.members(index).in_sync.clone();
        let Some(takeover) = self.segment_mut(index).takeover_mut() else { return };
        let next = takeover.next(base, &in_sync);
        takeover.stage = Stage::Starting { next, missing, sent: false };
        self.starts.insert(index);
    }

    /// Sends what `start_epoch` prepared, in one message a disk where they fit.
    pub(crate) fn start_epochs(&mut self, now: Instant) {
        let mut by_disk: BTreeMap<DiskId, Vec<(EpochStart, u32)>> = BTreeMap::new();
        let epoch = self.view.owner_epoch;
        for index in std::mem::take(&mut self.starts) {
            let Some(takeover) = self.segment_mut(index).takeover_mut() else { continue };
            let Stage::Starting { next, missing, sent: sent @ false } = &mut takeover.stage else {
                continue;
            };
            *sent = true;
            let start = EpochStart { segment: index, epoch, next: *next };
            for disk in missing {
                by_disk.entry(*disk).or_default().push((start, takeover.generation));
            }
        }
        for (disk, starts) in by_disk {
            for chunk in starts.chunks(SEGMENTS_PER_MESSAGE) {
                let named = chunk.iter().map(|(start, generation)| (start.segment, *generation));
                let purpose = Purpose::EpochStart { starts: named.collect() };
                let starts = chunk.iter().map(|(start, _)| *start).collect();
                self.ask(now, disk, LinkClass::Data, ReplicaOp::EpochStart { starts }, purpose);
            }
        }
    }

    /// Only when all have answered does the settled seq move past the gap.
    // rule: volume/epoch-start-on-all-before-settled-moves
    pub(crate) fn on_epoch_started(
        &mut self,
        now: Instant,
        disk: DiskId,
        starts: &[(SegmentIndex, u32)],
    ) {
        for (index, generation) in starts {
            let Some(takeover) = self.segment_mut(*index).takeover_mut() else { continue };
            if takeover.generation != *generation {
                continue;
            }
            let Stage::Starting { next, missing, .. } = &mut takeover.stage else { continue };
            missing.retain(|member| *member != disk);
            if missing.is_empty() {
                let next = *next;
                self.serve(now, *index, next);
            }
        }
    }

    fn serve(&mut self, now: Instant, index: SegmentIndex, next: Seq) {
        let members = self.members(index).clone();
        let segment = self.segment_mut(index);
        // Promoted by a former owner that did not live to tell them.
        let unaware: Vec<(DiskId, _)> = segment
            .takeover()
            .map(|takeover| &takeover.reports)
            .into_iter()
            .flatten()
            .filter(|(disk, _)| members.is_in_sync(**disk))
            .filter_map(|(disk, report)| report.joined.map(|joined| (*disk, joined)))
            .collect();
        segment.phase = Phase::Serving;
        segment.seqs = Seqs::start(next);
        self.serving_segments += 1;
        for (disk, joined) in unaware {
            self.send_promoted(now, index, disk, joined, next.previous());
        }
        self.tell_later(now, index);
        self.dirty.insert(index);
        self.members_dirty = true;
        self.fills_dirty = true;
    }
}

impl Joiner {
    pub(crate) fn frozen(&self) -> Option<Seq> {
        match self.step {
            JoinStep::Started { frozen } => Some(frozen),
            JoinStep::New | JoinStep::Starting | JoinStep::Filled | JoinStep::Combined => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FenceReport, MemberFailure, judge};
    use gabion_types::{DiskId, SegmentIndex, Seq};

    const A: DiskId = DiskId::new(1);
    const B: DiskId = DiskId::new(2);

    fn report(settled: u64, highest: u64, next: u64) -> FenceReport {
        FenceReport {
            segment: SegmentIndex::new(0),
            present: true,
            settled: Seq::new(settled),
            highest: Seq::new(highest),
            joined: None,
            next: Seq::new(next),
            dropped_from: None,
            damaged: false,
            unbroken: false,
        }
    }

    /// Who is bad of two members.
    fn bad(a: FenceReport, b: FenceReport) -> Vec<(DiskId, MemberFailure)> {
        judge(&[(A, a), (B, b)]).unwrap().bad
    }

    // rule: volume/rolled-back-replica-joins-anew
    #[test]
    fn who_lacks_what_another_has_settled_is_removed() {
        use MemberFailure::{NoSegment, RolledBack};
        let good = report(10, 15, 1);
        assert_eq!(bad(good, report(10, 12, 1)), []);
        assert_eq!(bad(good, report(4, 10, 1)), []);
        assert_eq!(bad(good, report(4, 9, 1)), [(B, RolledBack)]);
        // The start of an epoch is as good as a write: the seqs below it are void.
        assert_eq!(bad(good, report(4, 9, 11)), []);
        let dropped = |from| FenceReport { dropped_from: Some(Seq::new(from)), ..report(8, 15, 1) };
        assert_eq!(bad(good, dropped(11)), []);
        assert_eq!(bad(good, dropped(10)), [(B, RolledBack)]);
        let damaged = FenceReport { damaged: true, ..good };
        assert_eq!(bad(good, damaged), [(B, RolledBack)]);
        let absent = FenceReport { present: false, ..report(0, 0, 0) };
        assert_eq!(bad(good, absent), [(B, NoSegment)]);
        // All that is left is kept, if it is there at all.
        assert_eq!(bad(damaged, damaged), []);
        assert_eq!(bad(damaged, absent), [(B, NoSegment)]);
        assert_eq!(judge(&[(A, absent), (B, absent)]), None);
    }
}
