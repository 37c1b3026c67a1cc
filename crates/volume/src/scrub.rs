//! Scrub: what nobody reads is looked at all the same. The tables of all in-sync copies are compared
//! window by window; a deep scrub has each disk verify its blocks as well. What is bad or behind on
//! one copy is pulled from another, as a joiner's blocks are, and mended as a read would mend it.

use crate::asks::Purpose;
use crate::fill::ranges;
use crate::io::{Effect, ScrubStats, VolumeEvent};
use crate::mend::Mending;
use crate::tail::{Fix, decide};
use crate::volume::Volume;
use crate::window::{PAGE_ENTRIES, Window};
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, BlockRange, DiskId, Duration, Flaws, Instant,
    ScrubAsk, ScrubFound, ScrubKind, SegmentIndex, SegmentMembers, Seq, Version,
};
use gabion_wire::{LinkClass, ReplicaDone, ReplicaOp};
use std::collections::{BTreeMap, VecDeque};

/// A segment whose copies can't all be asked is waited for so long, and then passed over.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A window in which guests write what is to be mended is looked at so often.
const TRIES_MAX: u32 = 3;
/// Between two windows lies at least so much: others come first.
const REST_MIN: Duration = Duration::from_millis(1);

/// A scrub under way: it goes through the segments in their order, one window at a time.
#[derive(Debug)]
pub(crate) struct Scrub {
    pub(crate) ask: ScrubAsk,
    began: Instant,
    segment: u32,
    from: BlockIndex,
    /// Told apart from what was asked for an earlier window.
    passes: u64,
    pub(crate) pass: Option<Pass>,
    /// How often this window was begun.
    tries: u32,
    /// Since when the segment could not be looked at.
    waits: Option<Instant>,
    /// The next window begins then.
    pub(crate) rests: Instant,
    pub(crate) found: ScrubFound,
}

/// One window of one segment.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) id: u64,
    /// As it was before the tables were asked for: up to it every copy has everything.
    settled: Seq,
    window: Window,
    asked: Instant,
    /// The time that the tables took: they are the part that is paced here.
    took: Duration,
    pub(crate) step: Step,
    /// Guests wrote where something is to be mended: what was seen there counts no more.
    pub(crate) disturbed: bool,
}

#[derive(Debug)]
pub(crate) enum Step {
    /// The tables are on their way.
    Comparing,
    /// The disks read, each one run at a time.
    Verifying {
        left: BTreeMap<DiskId, VecDeque<BlockRange>>,
        out: Vec<DiskId>,
        found: Finds,
    },
    Mending(Mending),
}

/// What is to be mended in a window.
#[derive(Debug, Default)]
pub(crate) struct Finds {
    pub(crate) bad: BTreeMap<BlockIndex, Vec<(DiskId, BlockInfo)>>,
    pub(crate) behind: Vec<Fix>,
}

impl Finds {
    fn touches(&self, range: BlockRange) -> bool {
        let behind = |fix: &Fix| fix.blocks.iter().any(|info| range.contains(info.block));
        self.bad.range(range.first()..range.end()).next().is_some()
            || self.behind.iter().any(behind)
    }
}

/// What the copies' tables say of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// A write to it may be under way.
    Young,
    Behind(Fix),
    Differs,
}

/// All in-sync members answered: who names no version has none.
// rule: volume/scrub-judges-what-is-settled
fn judge(
    row: &[(DiskId, BlockInfo)],
    in_sync: &SegmentMembers,
    settled: Seq,
    flaws: Flaws,
) -> Verdict {
    let known = || row.iter().filter(|(_, info)| info.version != Version::NEVER);
    let Some(highest) = known().map(|(_, info)| info.version).max() else { return Verdict::Same };
    if highest.seq > settled {
        return Verdict::Young;
    }
    if let Some(fix) = decide(row, in_sync, flaws) {
        return Verdict::Behind(fix);
    }
    let mut contents = known().map(|(_, info)| (info.kind, info.crc));
    let first = contents.next();
    if contents.all(|content| Some(content) == first) { Verdict::Same } else { Verdict::Differs }
}

impl Volume {
    /// The map asks for a scrub, or for none any more.
    pub(crate) fn follow_scrub(&mut self, now: Instant) {
        let asked = self.view.scrub.filter(|ask| Some(ask.number) != self.scrub_done);
        if self.scrub.as_ref().map(|scrub| scrub.ask) == asked {
            return;
        }
        self.drop_scrub_asks();
        self.scrub = asked.map(|ask| Scrub {
            ask,
            began: now,
            segment: 0,
            from: BlockIndex::new(0),
            passes: 0,
            pass: None,
            tries: 0,
            waits: None,
            rests: now,
            found: ScrubFound::default(),
        });
        if let Some(ask) = asked {
            self.event(VolumeEvent::ScrubBegan { deep: ask.kind == ScrubKind::Deep });
        }
    }

    pub(crate) fn scrub_stats(&self) -> Option<ScrubStats> {
        let scrub = self.scrub.as_ref()?;
        let segment_bytes = self.limits.segment.bytes();
        let segments = u64::try_from(self.segments.len()).unwrap_or(u64::MAX);
        Some(ScrubStats {
            ask: scrub.ask,
            done_bytes: u64::from(scrub.segment) * segment_bytes
                + u64::from(scrub.from.get()) * BLOCK_BYTES,
            total_bytes: segments * segment_bytes,
            found: scrub.found,
        })
    }

    /// The segment's members changed: its window is looked at anew.
    pub(crate) fn drop_scrub(&mut self, index: SegmentIndex) {
        let Some(scrub) = &mut self.scrub else { return };
        if scrub.segment == index.get() && scrub.pass.take().is_some() {
            scrub.tries = 0;
            self.drop_scrub_asks();
        }
    }

    fn drop_scrub_asks(&mut self) {
        self.drop_asks(|ask| ask.purpose.is_of_scrub());
    }

    /// A guest wrote there.
    pub(crate) fn note_written(&mut self, index: SegmentIndex, range: BlockRange) {
        if let Some(scrub) = &mut self.scrub
            && scrub.segment == index.get()
            && let Some(pass) = &mut scrub.pass
        {
            pass.disturbed |= match &pass.step {
                Step::Comparing => false,
                Step::Verifying { found, .. } => found.touches(range),
                Step::Mending(mending) => mending.touches(range),
            };
        }
    }

    /// Takes the scrub as far as it goes now.
    pub(crate) fn pump_scrub(&mut self, now: Instant) {
        while self.scrub.is_some() {
            let goes_on = self.announced && self.releasing.is_none();
            if !goes_on || !self.may_serve(now) {
                return;
            }
            let Some(scrub) = &mut self.scrub else { return };
            let Some(pass) = &mut scrub.pass else {
                if !self.begin_window(now) {
                    return;
                }
                continue;
            };
            match &mut pass.step {
                Step::Comparing if !pass.window.is_whole() => return,
                Step::Comparing => self.compare(now),
                Step::Verifying { left, out, found } if left.is_empty() && out.is_empty() => {
                    pass.step = Step::Mending(Mending::new(std::mem::take(found)));
                }
                Step::Verifying { .. } => {
                    self.verify_next(now);
                    return;
                }
                Step::Mending(_) => {
                    if !self.mend(now) {
                        return;
                    }
                    self.end_window(now);
                }
            }
        }
    }

    /// False: not now.
    fn begin_window(&mut self, now: Instant) -> bool {
        let Some(scrub) = &self.scrub else { return false };
        let index = SegmentIndex::new(scrub.segment);
        let (from, rests, waits) = (scrub.from, scrub.rests, scrub.waits);
        if scrub.segment as usize >= self.segments.len() {
            self.end_scrub(now);
            return true;
        }
        if now < rests {
            return false;
        }
        let class = LinkClass::Bulk;
        let disks = self.members(index).in_sync.clone();
        let ready = self.segment(index).is_serving()
            && disks.iter().all(|disk| self.is_usable(index, *disk, class));
        let settled = self.segment(index).seqs.settled();
        let Some(scrub) = &mut self.scrub else { return false };
        if !ready {
            let since = *scrub.waits.get_or_insert(now);
            if waits.is_none() || now.since(since) < WAIT_MAX {
                return false;
            }
            scrub.found.skipped += 1;
            scrub.go_on_from(None);
            return true;
        }
        scrub.waits = None;
        scrub.passes += 1;
        scrub.tries += 1;
        let pass = scrub.passes;
        scrub.pass = Some(Pass {
            id: pass,
            settled,
            window: Window::new(from, disks.iter().copied()),
            asked: now,
            took: Duration::ZERO,
            step: Step::Comparing,
            disturbed: false,
        });
        for disk in disks {
            let scan = ReplicaOp::Scan {
                segment: index,
                from,
                seq_above: Seq::ZERO,
                epoch_from: None,
                entries_max: PAGE_ENTRIES,
            };
            self.ask(now, disk, class, scan, Purpose::ScrubTable { segment: index, pass });
        }
        true
    }

    fn on_scrub_table(
        &mut self,
        pass: u64,
        disk: DiskId,
        entries: Vec<BlockInfo>,
        next: Option<BlockIndex>,
    ) -> bool {
        match self.scrub_pass(pass) {
            Some(pass) => pass.window.put(disk, entries, next),
            None => true,
        }
    }

    pub(crate) fn scrub_pass(&mut self, id: u64) -> Option<&mut Pass> {
        self.scrub.as_mut()?.pass.as_mut().filter(|pass| pass.id == id)
    }

    /// All tables are here: what differs, and what the disks are to verify.
    fn compare(&mut self, now: Instant) {
        let Some(scrub) = &mut self.scrub else { return };
        let Some(pass) = &mut scrub.pass else { return };
        pass.took = now.since(pass.asked);
        let members = &self.view.segments[scrub.segment as usize];
        let in_sync = SegmentMembers { joining: Vec::new(), ..members.clone() };
        let mut found = Finds::default();
        let mut data: BTreeMap<DiskId, Vec<BlockIndex>> = BTreeMap::new();
        for row in pass.window.rows().values() {
            scrub.found.compared_blocks += 1;
            match judge(row, &in_sync, pass.settled, self.settings.flaws) {
                Verdict::Same | Verdict::Young => {}
                Verdict::Behind(fix) => {
                    scrub.found.behind_blocks += fix.targets.len() as u64;
                    found.behind.push(fix);
                }
                Verdict::Differs => scrub.found.differing_blocks += 1,
            }
            for (disk, info) in row.iter().filter(|(_, info)| info.kind == BlockKind::Data) {
                data.entry(*disk).or_default().push(info.block);
            }
        }
        pass.step = match scrub.ask.kind {
            ScrubKind::Light => Step::Mending(Mending::new(found)),
            ScrubKind::Deep => {
                let left = data.into_iter().map(|(disk, blocks)| (disk, ranges(&blocks)));
                Step::Verifying { left: left.collect(), out: Vec::new(), found }
            }
        };
    }

    /// The disks pace themselves: each has one run at a time.
    fn verify_next(&mut self, now: Instant) {
        let Some(scrub) = &mut self.scrub else { return };
        let segment = SegmentIndex::new(scrub.segment);
        let Some(Pass { id, step: Step::Verifying { left, out, .. }, .. }) = &mut scrub.pass else {
            return;
        };
        let pass = *id;
        let mut next = Vec::new();
        for (disk, runs) in left.iter_mut().filter(|(disk, _)| !out.contains(disk)) {
            next.extend(runs.pop_front().map(|range| (*disk, range)));
        }
        left.retain(|_, runs| !runs.is_empty());
        out.extend(next.iter().map(|(disk, _)| *disk));
        for (disk, range) in next {
            let op = ReplicaOp::Verify { segment, range };
            let purpose = Purpose::ScrubVerify { segment, pass, range };
            self.ask(now, disk, LinkClass::Bulk, op, purpose);
        }
    }

    /// False: the answer does not fit the question.
    fn on_scrub_verified(
        &mut self,
        pass: u64,
        range: BlockRange,
        disk: DiskId,
        entries: &[BlockInfo],
    ) -> bool {
        let Some(scrub) = &mut self.scrub else { return true };
        let Some(pass) = scrub.pass.as_mut().filter(|current| current.id == pass) else {
            return true;
        };
        let Step::Verifying { out, found, .. } = &mut pass.step else { return true };
        out.retain(|asked| *asked != disk);
        let ascending = entries.is_sorted_by(|a, b| a.block < b.block);
        if !ascending || !entries.iter().all(|info| range.contains(info.block)) {
            return false;
        }
        for info in entries {
            match info.kind {
                BlockKind::Data => scrub.found.verified_blocks += 1,
                BlockKind::Bad => {
                    scrub.found.verified_blocks += 1;
                    scrub.found.bad_blocks += 1;
                    found.bad.entry(info.block).or_default().push((disk, *info));
                }
                BlockKind::Absent | BlockKind::Zero | BlockKind::Lost => {}
            }
        }
        true
    }

    /// False: the answer does not fit the question.
    pub(crate) fn on_scrub_done(
        &mut self,
        disk: DiskId,
        purpose: Purpose,
        done: ReplicaDone,
    ) -> bool {
        match (purpose, done) {
            (Purpose::ScrubTable { pass, .. }, ReplicaDone::Table { entries, next }) => {
                self.on_scrub_table(pass, disk, entries, next)
            }
            (Purpose::ScrubVerify { pass, range, .. }, ReplicaDone::Table { entries, .. }) => {
                self.on_scrub_verified(pass, range, disk, &entries)
            }
            (Purpose::ScrubRead { pass, .. }, ReplicaDone::Blocks { blocks, data }) => {
                self.on_scrub_read(pass, disk, &blocks, &data)
            }
            (Purpose::ScrubMend { segment, pass, blocks }, ReplicaDone::Done) => {
                self.on_scrub_mended(segment, pass, disk, blocks);
                true
            }
            (_, _) => false,
        }
    }

    /// Guests wrote there meanwhile: the window begins anew, or is passed over after a few times.
    pub(crate) fn restart_window(&mut self) {
        let Some(scrub) = &mut self.scrub else { return };
        if let Some(pass) = scrub.pass.take()
            && scrub.tries >= TRIES_MAX
        {
            scrub.found.skipped += 1;
            scrub.go_on_from(pass.window.end());
        }
        self.drop_scrub_asks();
    }

    fn end_window(&mut self, now: Instant) {
        let share = self.settings.scrub_share_percent.clamp(1, 100);
        let Some(scrub) = &mut self.scrub else { return };
        let Some(pass) = scrub.pass.take() else { return };
        scrub.rests = now + (pass.took.saturating_mul(100 - share) / share).max(REST_MIN);
        scrub.go_on_from(pass.window.end());
    }

    fn end_scrub(&mut self, now: Instant) {
        let Some(Scrub { ask, began, found, .. }) = self.scrub.take() else { return };
        self.scrub_done = Some(ask.number);
        self.counts.scrubs += 1;
        let (deep, took) = (ask.kind == ScrubKind::Deep, now.since(began));
        self.event(VolumeEvent::Scrubbed { deep, found, took });
        self.effects.push_back(Effect::Scrubbed { ask, found });
    }

    /// When it goes on by itself.
    // rule: node/sleeps-while-it-can-do-nothing
    /// None also while the lease is over: the next one goes on with the scrub.
    pub(crate) fn scrub_deadline(&self, now: Instant) -> Option<Instant> {
        let scrub = self.scrub.as_ref().filter(|scrub| scrub.pass.is_none())?;
        let goes_on = self.announced && self.releasing.is_none() && self.may_serve(now);
        (scrub.waits.is_none() && goes_on).then_some(scrub.rests)
    }
}

impl Scrub {
    /// None: from the next segment.
    fn go_on_from(&mut self, from: Option<BlockIndex>) {
        if from.is_none() {
            self.segment += 1;
        }
        self.from = from.unwrap_or_default();
        self.tries = 0;
        self.waits = None;
    }

    pub(crate) fn index(&self) -> SegmentIndex {
        SegmentIndex::new(self.segment)
    }
}
