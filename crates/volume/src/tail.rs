//! Reconciling: of each block above the settled seq, the highest version goes to all members.

use crate::asks::Purpose;
use crate::gather::Gather;
use crate::io::MemberFailure;
use crate::takeover::Stage;
use crate::volume::Volume;
use crate::window::{PAGE_ENTRIES, Window};
use bytes::Bytes;
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, DiskId, Epoch, Flaw, Flaws, Instant,
    SegmentIndex, SegmentMembers, Seq, Version,
};
use gabion_wire::{LinkClass, ReplicaOp};
use std::collections::{BTreeMap, VecDeque};

/// Blocks of one run: read and settled together.
pub(crate) const RUN_BLOCKS_MAX: usize = 64;
/// Runs of one segment at a time.
const RUNS_AT_ONCE: usize = 16;

#[derive(Debug)]
pub(crate) struct Tail {
    base: Seq,
    window: Window,
    cut: bool,
    queued: VecDeque<Run>,
    running: BTreeMap<u32, Run>,
    given: u32,
}

/// Consecutive blocks that the same members have and the same ones lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fix {
    pub(crate) blocks: Vec<BlockInfo>,
    /// Who has exactly these versions, and of them who can read them.
    pub(crate) holders: Vec<DiskId>,
    pub(crate) sources: Vec<DiskId>,
    pub(crate) targets: Vec<DiskId>,
    /// All in-sync members have them, so a guest may know: unreadable everywhere, they are lost.
    pub(crate) everywhere: bool,
    /// They are given to all as something written now.
    pub(crate) anew: bool,
}

#[derive(Debug)]
struct Run {
    fix: Fix,
    gather: Option<Gather>,
    missing: Vec<DiskId>,
}

impl Tail {
    pub(crate) fn new(base: Seq, disks: &[DiskId]) -> Self {
        Self {
            base,
            window: Window::new(BlockIndex::new(0), disks.iter().copied()),
            cut: false,
            queued: VecDeque::new(),
            running: BTreeMap::new(),
            given: 0,
        }
    }
}

/// Decides one block: the highest version that counts goes to whoever lacks it. A joiner's
/// versions count from its J on, and only those are owed to it: the rest comes by filling.
// rule: volume/joiner-counts-from-its-j
pub(crate) fn decide(
    row: &[(DiskId, BlockInfo)],
    members: &SegmentMembers,
    flaws: Flaws,
) -> Option<Fix> {
    let floor = |disk: DiskId| match members.joining(disk) {
        Some(joining) => joining.joined,
        None => Epoch::ZERO,
    };
    // A block of which a replica knows nothing any more has no version: others have it, or a read
    // finds that it is lost.
    let counts = |entry: &&(DiskId, BlockInfo)| {
        let since_j = entry.1.version.epoch >= floor(entry.0);
        entry.1.version != Version::NEVER && (since_j || flaws.has(Flaw::JoinerOldTailCounts))
    };
    let highest = row.iter().filter(counts).map(|(_, info)| info.version).max()?;
    let holders = || row.iter().filter(|(_, info)| info.version == highest);
    // rule: volume/a-tail-of-before-j-goes-to-the-joiner
    // Who left at J may lack it, and a guest may read it from now on: so whoever has been joining since
    // then is to have it, too, as something from J on.
    let parted = members.pairs().chain(members.pairs_that_return()).map(|pair| pair.joined).max();
    let anew = parted.is_some_and(|j| highest.epoch < j) && !flaws.has(Flaw::TailMissesJoiner);
    let lacks = |disk: DiskId| !holders().any(|(holder, _)| *holder == disk);
    let targets: Vec<DiskId> = members
        .write_set()
        .filter(|disk| anew || (floor(*disk) <= highest.epoch && lacks(*disk)))
        .collect();
    if targets.is_empty() {
        return None;
    }
    let readable = || holders().filter(|(_, info)| info.kind != BlockKind::Bad);
    let (_, told) = readable().next().or_else(|| holders().next())?;
    let sources = readable().map(|(disk, _)| *disk).collect();
    let holders = holders().map(|(disk, _)| *disk).collect();
    let everywhere = !members.in_sync.iter().any(|disk| lacks(*disk));
    Some(Fix { blocks: vec![*told], holders, sources, targets, everywhere, anew })
}

fn runs(fixes: Vec<Fix>) -> VecDeque<Run> {
    let run = |fix| Run { fix, gather: None, missing: Vec::new() };
    put_together(fixes).into_iter().map(run).collect()
}

/// Puts neighbours with the same sources and targets together.
pub(crate) fn put_together(fixes: Vec<Fix>) -> VecDeque<Fix> {
    let mut runs: VecDeque<Fix> = VecDeque::new();
    for fix in fixes {
        let fits = |last: &Fix| {
            let (end, first) = (last.blocks[last.blocks.len() - 1], fix.blocks[0]);
            let data = |info: BlockInfo| matches!(info.kind, BlockKind::Data | BlockKind::Bad);
            last.sources == fix.sources
                && last.targets == fix.targets
                && last.holders == fix.holders
                && last.anew == fix.anew
                && last.blocks.len() < RUN_BLOCKS_MAX
                && end.block.plus(1) == first.block
                && data(end) == data(first)
        };
        match runs.back_mut() {
            Some(last) if fits(last) => last.blocks.extend(fix.blocks),
            Some(_) | None => runs.push_back(fix),
        }
    }
    runs
}

impl Volume {
    fn tail_mut(&mut self, index: SegmentIndex, generation: u32) -> Option<&mut Tail> {
        let takeover = self.segment_mut(index).takeover_mut()?;
        match &mut takeover.stage {
            Stage::Reconciling(tail) if takeover.generation == generation => Some(tail),
            Stage::Reconciling(_)
            | Stage::Fencing
            | Stage::Queued { .. }
            | Stage::Starting { .. } => None,
        }
    }

    fn generation(&self, index: SegmentIndex) -> u32 {
        self.segment(index).takeover().map_or(0, |takeover| takeover.generation)
    }

    pub(crate) fn ask_tail_tables(&mut self, now: Instant, index: SegmentIndex) {
        let generation = self.generation(index);
        let Some(tail) = self.tail_mut(index, generation) else { return };
        let disks: Vec<DiskId> = tail.window.disks().collect();
        let scan = ReplicaOp::Scan {
            segment: index,
            from: tail.window.from,
            seq_above: tail.base,
            epoch_from: None,
            entries_max: PAGE_ENTRIES,
        };
        for disk in disks {
            let purpose = Purpose::TailTable { segment: index, generation };
            self.ask(now, disk, LinkClass::Data, scan.clone(), purpose);
        }
    }

    pub(crate) fn on_tail_table(
        &mut self,
        index: SegmentIndex,
        generation: u32,
        disk: DiskId,
        entries: Vec<BlockInfo>,
        next: Option<BlockIndex>,
    ) -> bool {
        self.dirty.insert(index);
        let Some(tail) = self.tail_mut(index, generation) else { return true };
        tail.window.put(disk, entries, next)
    }

    /// Takes the reconciling of one segment as far as it goes now.
    pub(crate) fn pump_tail(&mut self, now: Instant, index: SegmentIndex) {
        let generation = self.generation(index);
        let members = self.members(index).clone();
        loop {
            let flaws = self.settings.flaws;
            let Some(tail) = self.tail_mut(index, generation) else { return };
            if !tail.window.is_whole() {
                return;
            }
            if !tail.cut {
                tail.cut = true;
                let rows = tail.window.rows();
                let fixes = rows.values().filter_map(|row| decide(row, &members, flaws));
                tail.queued = runs(fixes.collect());
            }
            if tail.running.len() < RUNS_AT_ONCE
                && let Some(run) = tail.queued.pop_front()
            {
                tail.given += 1;
                let key = tail.given;
                tail.running.insert(key, run);
                self.advance_run(now, index, generation, key);
                continue;
            }
            if !tail.running.is_empty() || !tail.queued.is_empty() {
                return;
            }
            let base = tail.base;
            match tail.window.end() {
                Some(from) => {
                    let disks: Vec<DiskId> = tail.window.disks().collect();
                    tail.window = Window::new(from, disks.into_iter());
                    tail.cut = false;
                    self.ask_tail_tables(now, index);
                }
                None => {
                    self.tails_running -= 1;
                    self.wake_tails();
                    self.start_epoch(index, base);
                }
            }
        }
    }

    /// Reads what is not read yet from the next source, or settles it. What nobody can read and an
    /// in-sync member never had was not acknowledged: what that member has counts, and who has it
    /// begins anew.
    // rule: volume/a-rotten-tail-hides-nothing
    // promise: acked-survives
    fn advance_run(&mut self, now: Instant, index: SegmentIndex, generation: u32, key: u32) {
        let Some(tail) = self.tail_mut(index, generation) else { return };
        let Some(run) = tail.running.get_mut(&key) else { return };
        let blocks = &run.fix.blocks;
        let data = matches!(blocks[0].kind, BlockKind::Data | BlockKind::Bad);
        if !data {
            let (blocks, data) = (blocks.clone(), Bytes::new());
            self.settle(now, index, generation, key, blocks, data);
            return;
        }
        let count = u32::try_from(blocks.len()).expect("a run is short");
        let range = BlockRange::new(blocks[0].block, count).expect("a run is never empty");
        let want: Vec<Version> = blocks.iter().map(|info| info.version).collect();
        let gather = run.gather.get_or_insert_with(|| Gather::new(range, Some(want)));
        let next = run.fix.sources.iter().copied().find(|disk| !gather.was_tried(*disk));
        if !gather.is_whole()
            && let Some(disk) = next
        {
            gather.asked = Some(disk);
            let purpose = Purpose::TailRead { segment: index, generation, run: key };
            let read = ReplicaOp::Read { segment: index, range };
            self.ask(now, disk, LinkClass::Data, read, purpose);
            return;
        }
        let lost = gather.lose_the_rest(Version::NEVER);
        if !lost.is_empty() && !run.fix.everywhere {
            for disk in run.fix.holders.clone() {
                self.segment_mut(index).failed.insert(disk, MemberFailure::RolledBack);
            }
            self.members_dirty = true;
            return;
        }
        let (infos, payload) = (gather.infos().collect(), gather.payload());
        for info in lost {
            self.lost_blocks += 1;
            self.note_lost(index, info.block);
        }
        self.settle(now, index, generation, key, infos, payload);
    }

    pub(crate) fn on_tail_read(
        &mut self,
        now: Instant,
        (index, generation, key): (SegmentIndex, u32, u32),
        disk: DiskId,
        blocks: &[BlockInfo],
        data: &Bytes,
    ) -> bool {
        let Some(tail) = self.tail_mut(index, generation) else { return true };
        let Some(run) = tail.running.get_mut(&key) else { return true };
        let Some(gather) = &mut run.gather else { return true };
        gather.asked = None;
        let fits = gather.absorb(disk, blocks, data).is_ok();
        self.advance_run(now, index, generation, key);
        fits
    }

    fn settle(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        generation: u32,
        key: u32,
        mut blocks: Vec<BlockInfo>,
        data: Bytes,
    ) {
        let epoch = self.view.epoch;
        let Some(tail) = self.tail_mut(index, generation) else { return };
        let base = tail.base;
        let Some(run) = tail.running.get_mut(&key) else { return };
        let targets = run.fix.targets.clone();
        run.missing.clone_from(&targets);
        if run.fix.anew {
            for info in &mut blocks {
                info.version = Version::new(epoch, self.give_seq(index, base));
            }
        }
        self.settled_blocks += blocks.len() as u64;
        for disk in targets {
            if let Some(takeover) = self.segment_mut(index).takeover_mut() {
                takeover.settles_out += 1;
            }
            let (blocks, data) = (blocks.clone(), data.clone());
            let op = ReplicaOp::Settle { segment: index, blocks, data };
            let purpose = Purpose::Settle { segment: index, generation, run: key };
            self.ask(now, disk, LinkClass::Data, op, purpose);
        }
    }

    pub(crate) fn on_settled(
        &mut self,
        index: SegmentIndex,
        generation: u32,
        key: u32,
        disk: DiskId,
    ) {
        self.dirty.insert(index);
        let Some(tail) = self.tail_mut(index, generation) else { return };
        let Some(run) = tail.running.get_mut(&key) else { return };
        run.missing.retain(|target| *target != disk);
        if run.missing.is_empty() {
            tail.running.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fix, decide, runs};
    use gabion_types::{
        BlockIndex, BlockInfo, BlockKind, Crc, DiskId, Epoch, Flaws, Joining, SegmentMembers, Seq,
        Version,
    };

    const A: DiskId = DiskId::new(1);
    const B: DiskId = DiskId::new(2);
    const JOINER: DiskId = DiskId::new(3);

    fn epoch(value: u64) -> Epoch {
        Epoch::new(value).unwrap()
    }

    fn entry(block: u32, kind: BlockKind, at: u64, seq: u64) -> BlockInfo {
        let version = Version::new(epoch(at), Seq::new(seq));
        BlockInfo { block: BlockIndex::new(block), kind, version, crc: Crc::default() }
    }

    /// The joiner's J is 5.
    fn members() -> SegmentMembers {
        let joined = epoch(5);
        let (left, compare_all, fill_waits, reach) = (None, false, false, None);
        SegmentMembers {
            creation: epoch(1),
            in_sync: vec![A, B],
            joining: vec![Joining {
                disk: JOINER,
                joined,
                left,
                compare_all,
                fill_waits,
                reach,
                alone: false,
            }],
            stale: Vec::new(),
        }
    }

    // rule: volume/joiner-counts-from-its-j
    #[test]
    fn the_highest_version_that_counts_goes_to_who_lacks_it() {
        let data = |at, seq| entry(0, BlockKind::Data, at, seq);
        let decided = |row: &[(DiskId, BlockInfo)]| {
            decide(row, &members(), Flaws::NONE)
                .map(|fix| (fix.blocks[0].version, fix.sources, fix.targets))
        };
        // From before J it is not owed to the joiner, and the joiner's own tail does not count.
        let old = data(4, 9);
        assert_eq!(decided(&[(A, old)]), Some((old.version, vec![A], vec![B])));
        assert_eq!(decided(&[(A, old), (B, old), (JOINER, data(4, 99))]), None);
        assert_eq!(decided(&[(JOINER, data(4, 99))]), None);
        // From J on it is and does.
        let new = data(5, 10);
        assert_eq!(decided(&[(A, new), (B, old)]), Some((new.version, vec![A], vec![B, JOINER])));
        let row = [(A, old), (JOINER, new)];
        assert_eq!(decided(&row), Some((new.version, vec![JOINER], vec![A, B])));
        assert_eq!(decided(&[(A, new), (B, new), (JOINER, new)]), None);
        // What a replica knows nothing of any more does not count, and is owed to it.
        let unknown = BlockInfo { kind: BlockKind::Bad, ..BlockInfo::absent(BlockIndex::new(0)) };
        assert_eq!(decided(&[(A, unknown)]), None);
        let row = [(A, unknown), (B, old)];
        assert_eq!(decided(&row), Some((old.version, vec![B], vec![A])));
    }

    #[test]
    fn neighbours_of_the_same_kind_are_one_run() {
        let fix = |block, kind| Fix {
            blocks: vec![entry(block, kind, 5, 1)],
            holders: vec![A],
            sources: vec![A],
            targets: vec![B],
            everywhere: false,
            anew: false,
        };
        let fixes = vec![
            fix(0, BlockKind::Data),
            fix(1, BlockKind::Data),
            fix(2, BlockKind::Zero),
            fix(4, BlockKind::Data),
        ];
        let lengths: Vec<usize> = runs(fixes).iter().map(|run| run.fix.blocks.len()).collect();
        assert_eq!(lengths, [2, 1, 1]);
    }
}
