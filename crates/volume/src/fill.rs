//! Filling joiners: compare a source's table with the joiner's, and install what differs. Delta,
//! full rebuild and resumed rebuild are this one loop.

use crate::asks::Purpose;
use crate::combine::{Elder, keeps_own};
use crate::gather::{BLOCK, Gather};
use crate::io::VolumeEvent;
use crate::segment::JoinStep;
use crate::tail::RUN_BLOCKS_MAX;
use crate::volume::Volume;
use crate::window::{PAGE_ENTRIES, Window};
use bytes::Bytes;
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, DiskId, Epoch, Flaw, Flaws, Instant,
    SegmentIndex, Seq, Version, block_crc,
};
use gabion_wire::{EpochStart, LinkClass, ReplicaOp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Joiners that are filled at a time.
pub(crate) const FILLS_AT_ONCE: usize = 4;

/// A joiner: its segment and disk.
pub(crate) type JoinerKey = (SegmentIndex, DiskId);

#[derive(Debug)]
pub(crate) struct Fill {
    /// Told apart from what was asked for the same joiner before its members changed.
    id: u64,
    joined: Epoch,
    /// What is compared: seqs above the first, and epochs from the second on.
    seq_above: Seq,
    epoch_from: Option<Epoch>,
    /// Whose table is compared; none: to be picked.
    source: Option<DiskId>,
    /// It is filled from no base, but from a stale replica.
    elder: Option<Elder>,
    /// It is filled from nobody: what it has is all that there is.
    alone: bool,
    window: Window,
    cut: bool,
    queued: VecDeque<BlockRange>,
    running: BTreeMap<u32, Gather>,
    given: u32,
    began: Instant,
    copied_bytes: u64,
    /// All is installed; the seq that comes next is being made durable on it.
    marking: bool,
}

impl Fill {
    /// Everything below is installed.
    pub(crate) fn position(&self) -> BlockIndex {
        self.window.from
    }

    pub(crate) fn source(&self) -> Option<DiskId> {
        self.source
    }

    fn bytes_in_flight(&self) -> u64 {
        self.running.values().map(|gather| gather.range().bytes()).sum()
    }
}

/// The runs of a window in which the joiner differs from its source. What it has from J on came
/// by writes, or by settling, and is as good as the source's.
// rule: volume/compare-both-sides
fn differing(
    window: &Window,
    joiner: DiskId,
    source: DiskId,
    joined: Epoch,
    flaws: Flaws,
) -> VecDeque<BlockRange> {
    let mut blocks = Vec::new();
    for (block, row) in window.rows() {
        let of = |disk: DiskId| row.iter().find(|(side, _)| *side == disk).map(|(_, info)| *info);
        // Where the source's copy is bad, the joiner's of the same version mends it later.
        let same = |own: &BlockInfo, theirs: &BlockInfo| {
            own.version == theirs.version
                && own.kind != BlockKind::Bad
                && (theirs.kind == BlockKind::Bad
                    || (own.kind, own.crc) == (theirs.kind, theirs.crc))
        };
        let skip = match (of(joiner), of(source)) {
            (Some(own), Some(theirs)) if own.version > theirs.version => {
                own.version.epoch >= joined || flaws.has(Flaw::IgnoreReturningTail)
            }
            (Some(own), Some(theirs)) => own.version.epoch >= joined || same(&own, &theirs),
            (Some(_), None) if flaws.has(Flaw::IgnoreReturningTail) => true,
            (Some(own), None) => own.version.epoch >= joined,
            (None, _) => false,
        };
        if !skip {
            blocks.push(block);
        }
    }
    ranges(&blocks)
}

/// The runs of a window that a joiner gets from an elder, or rolls back.
fn wanting(window: &Window, joiner: DiskId, elder: Elder, joined: Epoch) -> VecDeque<BlockRange> {
    let rows = window.rows();
    let wants = |row: &[(DiskId, BlockInfo)]| {
        let of = |disk: DiskId| row.iter().find(|(side, _)| *side == disk).map(|(_, info)| info);
        let keeps = |own| keeps_own(own, of(elder.disk), joined, elder.joiner_was_empty);
        !of(joiner).is_some_and(keeps)
    };
    let blocks = rows.iter().filter(|(_, row)| wants(row));
    let blocks: Vec<BlockIndex> = blocks.map(|(block, _)| *block).collect();
    ranges(&blocks)
}

/// The runs of a window of which its only side says nothing. `blocks`: of the segment.
// rule: volume/what-a-survivor-lacks-is-lost
fn unheard_of(window: &Window, blocks: u32) -> VecDeque<BlockRange> {
    let end = window.end().map_or(blocks, |end| end.get().min(blocks));
    let rows = window.rows();
    let missing = (window.from.get()..end).map(BlockIndex::new);
    let missing: Vec<BlockIndex> = missing.filter(|block| !rows.contains_key(block)).collect();
    ranges(&missing)
}

/// Ascending blocks as runs.
pub(crate) fn ranges(blocks: &[BlockIndex]) -> VecDeque<BlockRange> {
    let mut ranges: VecDeque<(BlockIndex, u32)> = VecDeque::new();
    for block in blocks {
        match ranges.back_mut() {
            Some((first, count))
                if first.plus(*count) == *block && (*count as usize) < RUN_BLOCKS_MAX =>
            {
                *count += 1;
            }
            Some(_) | None => ranges.push_back((*block, 1)),
        }
    }
    ranges.into_iter().filter_map(|(first, count)| BlockRange::new(first, count)).collect()
}

/// With the checksums of the data that came, whatever they were to be: only where that is a flaw.
fn as_they_are(blocks: &[BlockInfo], data: &Bytes) -> Vec<BlockInfo> {
    let mut chunks = data.chunks_exact(BLOCK);
    let mut crc = |info: &BlockInfo| match info.kind {
        BlockKind::Data => chunks.next().map_or(info.crc, block_crc),
        BlockKind::Absent | BlockKind::Zero | BlockKind::Lost | BlockKind::Bad => info.crc,
    };
    blocks.iter().map(|info| BlockInfo { crc: crc(info), ..*info }).collect()
}

impl Volume {
    /// Begins what may begin, and takes all fills as far as they go now.
    pub(crate) fn pump_fills(&mut self, now: Instant) {
        let mut most = FILLS_AT_ONCE.saturating_sub(self.fills.len());
        if self.settings.flaws.has(Flaw::FillsWithoutBound) {
            most = usize::MAX;
        }
        let ready = |key: &&JoinerKey| !self.fills.contains_key(key) && self.may_fill(now, **key);
        let mut ready: Vec<JoinerKey> = self.joiners.iter().filter(ready).copied().collect();
        // What is missing comes before what only moves.
        ready.sort_by_key(|(index, _)| self.is_complete(*index));
        for key in ready.into_iter().take(most) {
            self.begin_fill(now, key);
        }
        let keys: Vec<JoinerKey> = self.fills.keys().copied().collect();
        for key in keys {
            self.pump_fill(now, key);
        }
    }

    /// A stand-in for a silent node's replica waits, and for good where that one is on its way back.
    /// One that is there when all are may only stay to take the place of one that moves.
    fn may_fill(&self, now: Instant, (index, disk): JoinerKey) -> bool {
        let members = self.members(index);
        let segment = self.segment(index);
        let Some(joining) = members.joining(disk) else { return false };
        let Some(joiner) = segment.joiners.get(&disk) else { return false };
        if joining.alone {
            let asked = self.alone.contains_key(&index);
            return asked && joiner.frozen().is_some() && self.releasing.is_none();
        }
        if let Some(combine) = self.combines.get(&index) {
            return combine.elder_for(disk).is_some() && joiner.frozen().is_some();
        }
        let real = members.joining.iter().filter(|joining| !joining.fill_waits).count();
        let enough = members.in_sync.len() + real >= usize::from(self.view.rf);
        let moves = self.is_complete(index) && !self.is_surplus(index, disk);
        let stands_in = joining.fill_waits && !moves;
        let waits = stands_in && (enough || now.since(joiner.seen) < self.settings.rebuild_wait);
        segment.is_serving() && joiner.frozen().is_some() && !waits && self.releasing.is_none()
    }

    fn begin_fill(&mut self, now: Instant, key: JoinerKey) {
        let (index, disk) = key;
        let Some(joining) = self.members(index).joining(disk).copied() else { return };
        let joiner = self.segment(index).joiners.get(&disk);
        let Some(frozen) = joiner.and_then(|joiner| joiner.frozen()) else { return };
        self.fills_given += 1;
        let elder = self.combines.get(&index).and_then(|combine| combine.elder_for(disk));
        let all = joining.compare_all || elder.is_some() || joining.alone;
        let fill = Fill {
            id: self.fills_given,
            joined: joining.joined,
            seq_above: if all { Seq::ZERO } else { frozen },
            epoch_from: joining.left,
            source: None,
            elder,
            alone: joining.alone,
            window: Window::new(BlockIndex::new(0), std::iter::empty()),
            cut: false,
            queued: VecDeque::new(),
            running: BTreeMap::new(),
            given: 0,
            began: now,
            copied_bytes: 0,
            marking: false,
        };
        let full = joining.compare_all || joining.left.is_none();
        self.fills.insert(key, fill);
        self.event(VolumeEvent::FillStarted { disk, segment: index.get(), full });
        if joining.alone && self.alone.get(&index) == Some(&true) {
            self.mark_filled(now, key);
        }
    }

    /// What is under way of it means nothing any more.
    pub(crate) fn remove_fill(&mut self, key: JoinerKey) {
        let Some(fill) = self.fills.remove(&key) else { return };
        self.fill_bytes -= fill.bytes_in_flight();
        let id = fill.id;
        self.drop_asks(|ask| {
            matches!(
                ask.purpose,
                Purpose::FillTable { fill, .. }
                    | Purpose::FillRead { fill, .. }
                    | Purpose::Install { fill, .. }
                    | Purpose::FillMark { fill, .. } if fill == id
            )
        });
    }

    /// The segment's members changed: its fills go on from where they are with a source of now.
    pub(crate) fn drop_fills(&mut self, index: SegmentIndex) {
        let keys: Vec<JoinerKey> =
            self.fills.keys().filter(|(segment, _)| *segment == index).copied().collect();
        for key in keys {
            let joined = self.members(index).joining(key.1).map(|joining| joining.joined);
            let Some(fill) = self.fills.get_mut(&key) else { continue };
            self.fill_bytes -= fill.bytes_in_flight();
            // One that goes on alone begins anew: whether it has all is asked anew as well.
            if fill.alone || joined != Some(fill.joined) {
                self.fills.remove(&key);
                continue;
            }
            self.fills_given += 1;
            fill.id = self.fills_given;
            fill.source = None;
            fill.cut = false;
            fill.marking = false;
            fill.queued.clear();
            fill.running.clear();
            fill.window = Window::new(fill.window.from, std::iter::empty());
        }
        self.drop_asks(|ask| {
            ask.purpose.segment() == Some(index)
                && matches!(
                    ask.purpose,
                    Purpose::FillTable { .. }
                        | Purpose::FillRead { .. }
                        | Purpose::Install { .. }
                        | Purpose::FillMark { .. }
                )
        });
    }

    fn pump_fill(&mut self, now: Instant, key: JoinerKey) {
        let (index, joiner) = key;
        self.retry_fill_reads(now, key);
        loop {
            let elder = self.fills.get(&key).and_then(|fill| fill.elder);
            let alone = self.fills.get(&key).is_some_and(|fill| fill.alone);
            let of_elder = elder.map(|elder| elder.disk).or(alone.then_some(joiner));
            let source = of_elder.or_else(|| self.pick_source(index, LinkClass::Bulk, |_| true));
            let (mut budget, flaws) =
                (self.throttle.budget(self.settings.fill_bytes_in_flight), self.settings.flaws);
            if flaws.has(Flaw::FillBytesWithoutBound) {
                budget = u64::MAX;
            }
            let unfilled = self.settings.flaws.has(Flaw::SurvivorUnfilled);
            let blocks = self.blocks_of(index);
            let Some(fill) = self.fills.get_mut(&key) else { return };
            if fill.marking {
                return;
            }
            let Some(source) = fill.source else {
                if source.is_none() {
                    return;
                }
                fill.source = source;
                self.ask_fill_tables(now, key);
                return;
            };
            if !fill.window.is_whole() {
                return;
            }
            if !fill.cut {
                fill.cut = true;
                fill.queued = match elder {
                    Some(_) if flaws.has(Flaw::CombinesWithNothing) => VecDeque::new(),
                    Some(elder) => wanting(&fill.window, joiner, elder, fill.joined),
                    None if alone && unfilled => VecDeque::new(),
                    None if alone => unheard_of(&fill.window, blocks),
                    None => differing(&fill.window, joiner, source, fill.joined, flaws),
                };
                if fill.window.end().is_none() && flaws.has(Flaw::LastInstallSkipped) {
                    fill.queued.pop_back();
                }
            }
            if let Some(range) = fill.queued.front().copied()
                && (self.fill_bytes == 0 || self.fill_bytes + range.bytes() <= budget)
            {
                fill.queued.pop_front();
                fill.given += 1;
                let run = fill.given;
                fill.running.insert(run, Gather::new(range, None));
                self.fill_bytes += range.bytes();
                self.advance_fill(now, key, run);
                continue;
            }
            if !fill.running.is_empty() || !fill.queued.is_empty() {
                return;
            }
            match fill.window.end() {
                Some(from) => {
                    fill.window = Window::new(from, std::iter::empty());
                    fill.cut = false;
                    self.ask_fill_tables(now, key);
                }
                None => self.mark_filled(now, key),
            }
        }
    }

    fn ask_fill_tables(&mut self, now: Instant, key: JoinerKey) {
        let (segment, joiner) = key;
        let Some(fill) = self.fills.get_mut(&key) else { return };
        let Some(source) = fill.source else { return };
        let (from, id) = (fill.window.from, fill.id);
        let sides: BTreeSet<DiskId> = [source, joiner].into();
        fill.window = Window::new(from, sides.iter().copied());
        let scan = ReplicaOp::Scan {
            segment,
            from,
            seq_above: fill.seq_above,
            epoch_from: fill.epoch_from,
            entries_max: PAGE_ENTRIES,
        };
        for disk in sides {
            let purpose = Purpose::FillTable { segment, joiner, fill: id, from };
            self.ask(now, disk, LinkClass::Bulk, scan.clone(), purpose);
        }
    }

    fn fill_mut(&mut self, key: JoinerKey, id: u64) -> Option<&mut Fill> {
        self.fills.get_mut(&key).filter(|fill| fill.id == id)
    }

    pub(crate) fn on_fill_table(
        &mut self,
        key: JoinerKey,
        (id, from): (u64, BlockIndex),
        disk: DiskId,
        entries: Vec<BlockInfo>,
        next: Option<BlockIndex>,
    ) -> bool {
        self.fills_dirty = true;
        let Some(fill) = self.fill_mut(key, id) else { return true };
        fill.window.from != from || fill.window.put(disk, entries, next)
    }

    /// Reads a run from the next source, or installs it. What is unreadable in every in-sync
    /// replica is lost, and stays so on the joiner.
    fn advance_fill(&mut self, now: Instant, key: JoinerKey, run: u32) {
        let (segment, joiner) = key;
        let Some(fill) = self.fills.get(&key) else { return };
        let Some(gather) = fill.running.get(&run) else { return };
        let (id, range, joined) = (fill.id, gather.range(), fill.joined);
        let (elder, alone) = (fill.elder, fill.alone);
        let all_tried = match elder {
            Some(elder) => gather.was_tried(elder.disk),
            None if alone => true,
            None => self.members(segment).in_sync.iter().all(|disk| gather.was_tried(*disk)),
        };
        let untried = |disk: DiskId| !gather.was_tried(disk) && !gather.avoids(disk);
        let next = match elder {
            Some(elder) => Some(elder.disk).filter(|disk| untried(*disk)),
            None if alone => None,
            None => self.pick_source(segment, LinkClass::Bulk, untried),
        };
        let whole = gather.is_whole();
        // Below J, so that writes go over it, and above what any later joiner skips.
        let before = Epoch::new(joined.get().saturating_sub(1)).unwrap_or(Epoch::ZERO);
        let settled = self.segment(segment).seqs.settled().max(Seq::new(1));
        let unknown = Version::new(before, settled);
        let Some(gather) = self.fills.get_mut(&key).and_then(|fill| fill.running.get_mut(&run))
        else {
            return;
        };
        if !whole && let Some(disk) = next {
            gather.asked = Some(disk);
            let purpose = Purpose::FillRead { segment, joiner, fill: id, run };
            let read = ReplicaOp::Read { segment, range };
            self.ask(now, disk, LinkClass::Bulk, read, purpose);
            return;
        }
        if !whole && !all_tried {
            return;
        }
        let lost = gather.lose_the_rest(unknown);
        let repairs = gather.repairs();
        gather.asked = Some(joiner);
        let (blocks, data) = (gather.infos().collect(), gather.payload());
        lost.iter().for_each(|info| self.note_lost(segment, info.block));
        if lost.is_empty() {
            for (disk, blocks, data) in repairs {
                self.repair(now, segment, disk, blocks, data);
            }
        }
        let op = ReplicaOp::Install { segment, joined, blocks, data };
        let purpose = Purpose::Install { segment, joiner, fill: id, run };
        self.ask(now, joiner, LinkClass::Bulk, op, purpose);
    }

    pub(crate) fn on_fill_read(
        &mut self,
        now: Instant,
        key: JoinerKey,
        (id, run): (u64, u32),
        disk: DiskId,
        blocks: &[BlockInfo],
        data: &Bytes,
    ) -> bool {
        let unchecked = self.settings.flaws.has(Flaw::SourceUnchecked);
        let Some(fill) = self.fill_mut(key, id) else { return true };
        let Some(gather) = fill.running.get_mut(&run) else { return true };
        gather.asked = None;
        let fits = if unchecked {
            gather.absorb(disk, &as_they_are(blocks, data), data).is_ok()
        } else {
            gather.absorb(disk, blocks, data).is_ok()
        };
        self.advance_fill(now, key, run);
        fits
    }

    /// The source did not answer: another one, or later.
    pub(crate) fn on_fill_read_failed(
        &mut self,
        now: Instant,
        key: JoinerKey,
        (id, run): (u64, u32),
        disk: DiskId,
    ) {
        let Some(fill) = self.fill_mut(key, id) else { return };
        let Some(gather) = fill.running.get_mut(&run) else { return };
        gather.asked = None;
        gather.avoid(disk);
        self.advance_fill(now, key, run);
    }

    fn retry_fill_reads(&mut self, now: Instant, key: JoinerKey) {
        let Some(fill) = self.fills.get_mut(&key) else { return };
        let idle = fill.running.iter_mut().filter(|(_, gather)| gather.asked.is_none());
        let idle: Vec<u32> = idle
            .map(|(run, gather)| {
                gather.avoid_nobody();
                *run
            })
            .collect();
        for run in idle {
            self.advance_fill(now, key, run);
        }
    }

    pub(crate) fn on_installed(&mut self, key: JoinerKey, id: u64, run: u32) {
        self.fills_dirty = true;
        let Some(fill) = self.fill_mut(key, id) else { return };
        let Some(gather) = fill.running.remove(&run) else { return };
        let bytes = gather.range().bytes();
        fill.copied_bytes += bytes;
        self.fill_bytes -= bytes;
        self.counts.filled_bytes += bytes;
    }

    /// Everything is installed. Before the promotion the joiner learns which seq comes next: so a
    /// later owner can tell it from one that was rolled back, even if nothing is written meanwhile.
    fn mark_filled(&mut self, now: Instant, key: JoinerKey) {
        let (segment, joiner) = key;
        let epoch = self.view.owner_epoch;
        let alone = self.fills.get(&key).is_some_and(|fill| fill.alone);
        let serving = self.segment(segment).is_serving();
        if !serving && !alone {
            // It is taken over once it has taken the place of the base, and hears of it then.
            self.conclude_fill(now, key);
            return;
        }
        if alone {
            let frozen = self.segment(segment).joiners.get(&joiner).and_then(|one| one.frozen());
            let joined = self.fills.get(&key).map_or(Epoch::ZERO, |fill| fill.joined);
            self.segment_mut(segment).seqs.leap(frozen.unwrap_or_default(), joined);
        }
        let next = self.segment(segment).seqs.next();
        let Some(fill) = self.fills.get_mut(&key) else { return };
        fill.marking = true;
        let purpose = Purpose::FillMark { segment, joiner, fill: fill.id };
        let starts = vec![EpochStart { segment, epoch, next }];
        self.ask(now, joiner, LinkClass::Data, ReplicaOp::EpochStart { starts }, purpose);
    }

    pub(crate) fn on_fill_marked(&mut self, now: Instant, key: JoinerKey, id: u64) {
        if self.fill_mut(key, id).is_some() {
            self.conclude_fill(now, key);
        }
    }

    fn conclude_fill(&mut self, now: Instant, key: JoinerKey) {
        let (index, disk) = key;
        let Some(fill) = self.fills.remove(&key) else { return };
        let (copied_bytes, took) = (fill.copied_bytes, now.since(fill.began));
        let combined = fill.elder.is_some() && !self.settings.flaws.has(Flaw::CombinesAnyPair);
        let step = if combined { JoinStep::Combined } else { JoinStep::Filled };
        self.set_join_step(index, disk, step);
        self.event(VolumeEvent::FillDone { disk, segment: index.get(), copied_bytes, took });
        self.members_dirty = true;
        self.fills_dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::Crc;

    const JOINER: DiskId = DiskId::new(1);
    const SOURCE: DiskId = DiskId::new(2);

    fn epoch(value: u64) -> Epoch {
        Epoch::new(value).unwrap()
    }

    fn entry(block: u32, at: u64, seq: u64) -> BlockInfo {
        let version = Version::new(epoch(at), Seq::new(seq));
        let crc = Crc::default();
        BlockInfo { block: BlockIndex::new(block), kind: BlockKind::Zero, version, crc }
    }

    // rule: volume/what-a-survivor-lacks-is-lost
    #[test]
    fn what_the_only_side_says_nothing_of_is_unheard_of() {
        let side = |entries: &[u32], next: Option<u32>| {
            let mut window = Window::new(BlockIndex::new(2), [JOINER].into_iter());
            let entries = entries.iter().map(|block| entry(*block, 1, 5)).collect();
            assert!(window.put(JOINER, entries, next.map(BlockIndex::new)));
            let runs = unheard_of(&window, 10);
            runs.iter().map(|run| (run.first().get(), run.end().get())).collect::<Vec<_>>()
        };
        assert_eq!(side(&[3, 4, 7], None), [(2, 3), (5, 7), (8, 10)]);
        assert_eq!(side(&[3, 7], Some(5)), [(2, 3), (4, 5)]);
        assert_eq!(side(&[], None), [(2, 10)], "and no block behind the volume's end");
    }

    // rule: volume/compare-both-sides
    #[test]
    fn what_either_side_has_and_the_other_has_not_is_copied() {
        let mut window = Window::new(BlockIndex::new(0), [SOURCE, JOINER].into_iter());
        // Same; newer at the source; only at the source; only the joiner's own tail; its own since J.
        let source = vec![entry(0, 1, 5), entry(1, 2, 9), entry(2, 2, 10), entry(4, 1, 3)];
        let joiner = vec![entry(0, 1, 5), entry(1, 1, 6), entry(3, 1, 99), entry(4, 3, 11)];
        assert!(window.put(SOURCE, source, None));
        assert!(window.put(JOINER, joiner, None));
        let runs = differing(&window, JOINER, SOURCE, epoch(3), Flaws::NONE);
        assert_eq!(runs, [BlockRange::new(BlockIndex::new(1), 3).unwrap()]);
    }
}
