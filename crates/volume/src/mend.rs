//! Mending what a scrub found: a run is read from the copies that have it, and written anew where it
//! is bad or behind. One run at a time, with the same words as read repair and takeover.

use crate::asks::Purpose;
use crate::gather::Gather;
use crate::io::VolumeEvent;
use crate::scrub::{Finds, Step};
use crate::segment::Segment;
use crate::tail::{Fix, RUN_BLOCKS_MAX, put_together};
use crate::volume::Volume;
use bytes::Bytes;
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, DiskId, Instant, SegmentIndex, Version,
};
use gabion_wire::{LinkClass, ReplicaOp};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub(crate) struct Mending {
    /// The first one is being read.
    jobs: VecDeque<Job>,
    /// Disks that have not answered what was written on them.
    missing: Vec<DiskId>,
}

/// A run: copies that are unreadable, where any version of another copy will do; or with a fix, copies
/// that lack exactly its versions.
#[derive(Debug)]
struct Job {
    gather: Gather,
    fix: Option<Fix>,
}

impl Mending {
    pub(crate) fn new(found: Finds) -> Self {
        let bad = bad_runs(found.bad).into_iter().map(|gather| Job { gather, fix: None });
        let behind = put_together(found.behind).into_iter().filter_map(|fix| {
            let count = u32::try_from(fix.blocks.len()).ok()?;
            let range = BlockRange::new(fix.blocks[0].block, count)?;
            let want = fix.blocks.iter().map(|info| info.version).collect();
            Some(Job { gather: Gather::new(range, Some(want)), fix: Some(fix) })
        });
        Self { jobs: bad.chain(behind).collect(), missing: Vec::new() }
    }

    /// What is being mended lies there.
    pub(crate) fn touches(&self, range: BlockRange) -> bool {
        self.jobs.iter().any(|job| job.gather.range().overlaps(range))
    }
}

impl Job {
    /// A hole, or what is known as lost, has nothing to read.
    fn has_data(&self) -> bool {
        self.fix.as_ref().is_none_or(has_data)
    }
}

fn has_data(fix: &Fix) -> bool {
    matches!(fix.blocks[0].kind, BlockKind::Data | BlockKind::Bad)
}

/// A block, and its copies that are unreadable.
type BadBlock = (BlockIndex, Vec<(DiskId, BlockInfo)>);

/// Runs of neighbours that are bad on the same copies.
fn bad_runs(bad: BTreeMap<BlockIndex, Vec<(DiskId, BlockInfo)>>) -> Vec<Gather> {
    let mut runs: Vec<Vec<BadBlock>> = Vec::new();
    let disks = |copies: &[(DiskId, BlockInfo)]| copies.iter().map(|c| c.0).collect::<Vec<_>>();
    for (block, copies) in bad {
        let fits = |run: &Vec<BadBlock>| {
            run.len() < RUN_BLOCKS_MAX
                && run.last().is_some_and(|(last, of_last)| {
                    last.plus(1) == block && disks(of_last) == disks(&copies)
                })
        };
        match runs.last_mut().filter(|run| fits(run)) {
            Some(run) => run.push((block, copies)),
            None => runs.push(vec![(block, copies)]),
        }
    }
    let gather = |run: Vec<BadBlock>| {
        let count = u32::try_from(run.len()).ok()?;
        let mut gather = Gather::new(BlockRange::new(run.first()?.0, count)?, None);
        for (disk, info) in run.into_iter().flat_map(|(_, copies)| copies) {
            gather.note_bad(disk, info);
        }
        Some(gather)
    };
    runs.into_iter().filter_map(gather).collect()
}

/// What is to be done next about the run that is being mended.
enum Next {
    /// Nothing is left.
    Over,
    /// An answer is awaited.
    Await,
    Read {
        disk: DiskId,
        range: BlockRange,
    },
    /// Somebody has it, only not now.
    Later,
    Write,
}

impl Volume {
    /// True: nothing is left to be mended in this window.
    pub(crate) fn mend(&mut self, now: Instant) -> bool {
        let Some(scrub) = &self.scrub else { return false };
        let segment = scrub.index();
        let Some(pass) = scrub.pass.as_ref().map(|pass| pass.id) else { return false };
        match self.next_mend() {
            Next::Over => return true,
            Next::Await => {}
            Next::Read { disk, range } => {
                if let Some(job) = self.mending(pass).and_then(|mending| mending.jobs.front_mut()) {
                    job.gather.asked = Some(disk);
                }
                let read = ReplicaOp::Read { segment, range };
                self.ask(now, disk, LinkClass::Bulk, read, Purpose::ScrubRead { segment, pass });
            }
            Next::Later => {
                if let Some(job) = self.mending(pass).and_then(|mending| mending.jobs.front_mut()) {
                    job.gather.avoid_nobody();
                }
            }
            Next::Write => self.write_mended(now, segment, pass),
        }
        false
    }

    fn next_mend(&self) -> Next {
        let Some(scrub) = &self.scrub else { return Next::Over };
        let segment = scrub.index();
        let Some(Step::Mending(mending)) = scrub.pass.as_ref().map(|pass| &pass.step) else {
            return Next::Over;
        };
        if !mending.missing.is_empty() {
            return Next::Await;
        }
        let Some(job) = mending.jobs.front() else { return Next::Over };
        if job.gather.asked.is_some() {
            return Next::Await;
        }
        let left = |disk: DiskId| {
            let has_it = job.fix.as_ref().is_none_or(|fix| fix.sources.contains(&disk));
            has_it && !job.gather.was_tried(disk)
        };
        let any = self.members(segment).in_sync.iter().any(|disk| left(*disk));
        if !job.has_data() || job.gather.is_whole() || !any {
            return Next::Write;
        }
        let fits = |disk: DiskId| left(disk) && !job.gather.avoids(disk);
        match self.pick_source(segment, LinkClass::Bulk, fits) {
            Some(disk) => Next::Read { disk, range: job.gather.range() },
            None => Next::Later,
        }
    }

    fn mending(&mut self, pass: u64) -> Option<&mut Mending> {
        match &mut self.scrub_pass(pass)?.step {
            Step::Mending(mending) => Some(mending),
            Step::Comparing | Step::Verifying { .. } => None,
        }
    }

    /// False: the answer does not fit the question.
    pub(crate) fn on_scrub_read(
        &mut self,
        pass: u64,
        disk: DiskId,
        blocks: &[BlockInfo],
        data: &Bytes,
    ) -> bool {
        let Some(job) = self.mending(pass).and_then(|mending| mending.jobs.front_mut()) else {
            return true;
        };
        job.gather.asked = None;
        job.gather.absorb(disk, blocks, data).is_ok()
    }

    /// The copy did not answer: another one, or later.
    pub(crate) fn on_scrub_read_failed(&mut self, pass: u64, disk: DiskId) {
        if let Some(job) = self.mending(pass).and_then(|mending| mending.jobs.front_mut()) {
            job.gather.asked = None;
            job.gather.avoid(disk);
        }
    }

    /// Everything that can be read is: it goes where it is bad or missing. What is readable nowhere
    /// is lost: told and listed, and where a copy is behind it must not show the older value.
    // promise: no-silent-corruption
    // rule: volume/scrub-mends
    fn write_mended(&mut self, now: Instant, segment: SegmentIndex, pass: u64) {
        let Some(current) = self.scrub_pass(pass) else { return };
        let disturbed = current.disturbed;
        let written = |segment: &Segment, range: BlockRange| {
            segment.order.iter().any(|place| place.write && place.range.overlaps(range))
        };
        let Some(job) = self.mending(pass).and_then(|mending| mending.jobs.pop_front()) else {
            return;
        };
        let Job { mut gather, fix } = job;
        let plain = fix.as_ref().is_some_and(|fix| !has_data(fix));
        let disturbed = disturbed || written(self.segment(segment), gather.range());
        if !plain && !gather.is_whole() && (disturbed || gather.is_missing_what_is_not_bad()) {
            // It was overwritten meanwhile.
            self.restart_window();
            return;
        }
        let lost = if plain { Vec::new() } else { gather.lose_the_rest(Version::NEVER) };
        self.tell_lost(segment, &lost);
        let mut writes: Vec<(DiskId, ReplicaOp, usize)> = Vec::new();
        match fix {
            None => {
                for (disk, mut blocks, data) in gather.repairs() {
                    blocks.retain(|info| info.kind != BlockKind::Lost);
                    let count = blocks.len();
                    writes.push((disk, ReplicaOp::Repair { segment, blocks, data }, count));
                }
            }
            Some(fix) => {
                let (blocks, data) = if plain {
                    (fix.blocks, Bytes::new())
                } else {
                    (gather.infos().collect(), gather.payload())
                };
                for disk in fix.targets {
                    let (blocks, data) = (blocks.clone(), data.clone());
                    let count = blocks.len() - lost.len();
                    writes.push((disk, ReplicaOp::Settle { segment, blocks, data }, count));
                }
            }
        }
        writes.retain(|(disk, _, count)| {
            (*count > 0 || !lost.is_empty()) && self.members(segment).is_in_sync(*disk)
        });
        if let Some(mending) = self.mending(pass) {
            mending.missing = writes.iter().map(|(disk, ..)| *disk).collect();
        }
        for (disk, op, count) in writes {
            let blocks = u32::try_from(count).unwrap_or(u32::MAX);
            let purpose = Purpose::ScrubMend { segment, pass, blocks };
            self.ask(now, disk, LinkClass::Data, op, purpose);
        }
    }

    fn tell_lost(&mut self, segment: SegmentIndex, lost: &[BlockInfo]) {
        if lost.is_empty() {
            return;
        }
        lost.iter().for_each(|info| self.note_lost(segment, info.block));
        let blocks = u32::try_from(lost.len()).unwrap_or(u32::MAX);
        if let Some(scrub) = &mut self.scrub {
            scrub.found.lost_blocks += u64::from(blocks);
        }
        let first = lost[0].block.get();
        self.event(VolumeEvent::Lost { segment: segment.get(), block: first, blocks });
    }

    pub(crate) fn on_scrub_mended(
        &mut self,
        segment: SegmentIndex,
        pass: u64,
        disk: DiskId,
        blocks: u32,
    ) {
        if let Some(mending) = self.mending(pass) {
            mending.missing.retain(|missing| *missing != disk);
        }
        if blocks > 0 {
            if let Some(scrub) = &mut self.scrub {
                scrub.found.mended_blocks += u64::from(blocks);
            }
            self.on_repaired(segment, disk, blocks);
        }
    }
}
