//! Map pages come from the disk when a request needs them, and go when there are too many.
//!
//! A request whose pages are not all in memory waits, before it has done anything; when they are there
//! it is taken as if it came then, so a fence that came meanwhile refuses it. What is under way needs
//! its pages until it is done: they do not go.

use crate::config::{PAGE_READS_MAX, SCAN_LOADS_MAX, SCAN_PAGES_MAX, WAITING_BLOCKS_MAX};
use crate::disk::{Asker, Disk, Use};
use crate::io::{Damage, Effect, Origin, Part, StoreEvent};
use crate::pages::{PageKey, page_of};
use bytes::Bytes;
use gabion_format::{BlockEntry, Entry, MapPage, PageRef, SegmentKey};
use gabion_types::{BLOCK_BYTES, BlockIndex, BlockRange, DiskError, Flaw, Instant};
use gabion_wire::{Refusal, ReplicaOp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A request that waits for pages.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) asker: Asker,
    op: ReplicaOp,
    /// All that it will look at.
    pages: Vec<PageKey>,
    missing: usize,
    /// Of data.
    blocks: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Loads {
    /// In the order of arrival.
    pub(crate) parked: BTreeMap<u64, Parked>,
    next: u64,
    /// Pages that are read or will be, each with who waits for it.
    waiting: BTreeMap<PageKey, Vec<u64>>,
    queue: VecDeque<PageKey>,
    /// Reads under way.
    out: usize,
    /// All their pages are here.
    ready: VecDeque<u64>,
    /// Blocks of data of those that wait.
    blocks: u64,
    /// So many pages are in memory before it is looked again for some that may go.
    most: usize,
}

impl Loads {
    pub(crate) fn forget(&mut self, origin: Origin) {
        self.parked.retain(|_, parked| parked.asker.from != origin);
        self.blocks = self.parked.values().map(|parked| parked.blocks).sum();
    }
}

impl Disk {
    /// The pages that there are of what this request will look at. They count as used.
    fn pages_of(&mut self, asker: &Asker, op: &ReplicaOp) -> Vec<PageKey> {
        let key = |segment| SegmentKey::new(asker.volume, segment);
        let most = self.table.geometry.pages_per_segment;
        let pages = |range| pages(range).start..pages(range).end.min(most);
        match op {
            ReplicaOp::Read { segment, range }
            | ReplicaOp::Verify { segment, range }
            | ReplicaOp::Write { segment, range, .. }
            | ReplicaOp::Zero { segment, range, .. } => self.there(key(*segment), pages(*range)),
            ReplicaOp::Settle { segment, blocks, .. }
            | ReplicaOp::Repair { segment, blocks, .. }
            | ReplicaOp::Install { segment, blocks, .. } => {
                let mut indices: Vec<_> = blocks.iter().map(|info| page_of(info.block)).collect();
                indices.sort_unstable();
                indices.dedup();
                self.there(key(*segment), indices.into_iter())
            }
            ReplicaOp::Scan { segment, from, .. } => {
                let first = page_of(*from);
                let mut there = self.there(key(*segment), first..most.min(first + SCAN_PAGES_MAX));
                let is_away = |page: &PageKey| self.table.away(*page).is_some();
                let mut away = (0..there.len()).filter(|at| is_away(&there[*at]));
                if let Some(end) = away.nth(SCAN_LOADS_MAX) {
                    there.truncate(end);
                }
                there
            }
            // What they free is named by the segment's pages.
            ReplicaOp::Drop { segment, .. } => self.all_there(key(*segment)),
            ReplicaOp::JoinStart { segment, creation, .. } => {
                let held = self.table.segment(key(*segment));
                if held.is_none_or(|held| held.meta.creation == *creation) {
                    return Vec::new();
                }
                self.all_there(key(*segment))
            }
            ReplicaOp::Create { .. }
            | ReplicaOp::Fence { .. }
            | ReplicaOp::EpochStart { .. }
            | ReplicaOp::Advance { .. }
            | ReplicaOp::Promoted { .. } => Vec::new(),
        }
    }

    fn there(
        &mut self,
        key: SegmentKey,
        indices: impl Iterator<Item = usize> + Clone,
    ) -> Vec<PageKey> {
        self.table.note_use(key, indices.clone());
        let Some(segment) = self.table.segment(key) else { return Vec::new() };
        let instance = segment.instance;
        let there = indices.filter(|index| segment.has_page(*index));
        there.map(|index| PageKey { key, instance, index }).collect()
    }

    fn all_there(&mut self, key: SegmentKey) -> Vec<PageKey> {
        self.there(key, 0..self.table.geometry.pages_per_segment)
    }

    // promise: bounded
    // rule: store/map-pages-come-and-go
    /// The request comes back where nothing is missing. Errors: `Busy`, too much waits already.
    pub(crate) fn park(
        &mut self,
        asker: &Asker,
        op: ReplicaOp,
    ) -> Result<Option<ReplicaOp>, Refusal> {
        let pages = self.pages_of(asker, &op);
        let away = |page: &&PageKey| self.table.away(**page).is_some();
        let missing = pages.iter().filter(away).copied().collect::<Vec<_>>();
        if missing.is_empty() {
            return Ok(Some(op));
        }
        let blocks = op.payload().map_or(0, |data| data.len() as u64 / BLOCK_BYTES);
        let loads = &mut self.loads;
        if loads.blocks > 0 && loads.blocks + blocks > WAITING_BLOCKS_MAX {
            return Err(Refusal::Busy);
        }
        loads.blocks += blocks;
        let number = loads.next;
        loads.next += 1;
        for page in &missing {
            if !loads.waiting.contains_key(page) {
                loads.queue.push_back(*page);
            }
            loads.waiting.entry(*page).or_default().push(number);
        }
        let missing = missing.len();
        loads.parked.insert(number, Parked { asker: *asker, op, pages, missing, blocks });
        self.read_pages();
        Ok(None)
    }

    /// Nobody waits for it, but somebody will look.
    pub(crate) fn want_page(&mut self, key: SegmentKey, block: BlockIndex) {
        let Some(segment) = self.table.segment(key) else { return };
        let page = PageKey { key, instance: segment.instance, index: page_of(block) };
        if self.table.away(page).is_some() && !self.loads.waiting.contains_key(&page) {
            self.loads.waiting.insert(page, Vec::new());
            self.loads.queue.push_back(page);
            self.read_pages();
        }
    }

    fn read_pages(&mut self) {
        while self.loads.out < PAGE_READS_MAX {
            let Some(page) = self.loads.queue.pop_front() else { return };
            match self.table.away(page) {
                Some(away) => self.read_page(page, away.live, false),
                None => self.on_page_settled(page),
            }
        }
    }

    fn read_page(&mut self, page: PageKey, at: PageRef, again: bool) {
        self.loads.out += 1;
        let offset = self.layout.slot_offset(at.slot);
        self.driver.read(Use::Page { page, at, again }, offset, BLOCK_BYTES);
    }

    // promise: no-silent-corruption
    // rule: store/lost-map-write-noticed
    pub(crate) fn on_page_loaded(
        &mut self,
        page: PageKey,
        at: PageRef,
        again: bool,
        result: Result<Bytes, DiskError>,
    ) {
        self.loads.out -= 1;
        let wanted = self.table.away(page).is_some_and(|away| away.live == at);
        if wanted {
            let stored = result.ok().and_then(|bytes| self.page_of_bytes(page, at, &bytes));
            match stored {
                Some(stored) => {
                    self.stats.pages_loaded += 1;
                    self.table.load_page(page.key, page.index, &stored);
                }
                None if !again => {
                    self.read_page(page, at, true);
                    return;
                }
                None => self.lose_page(page, at),
            }
        }
        self.on_page_settled(page);
        self.read_pages();
    }

    /// `None`: not the page that was written there.
    fn page_of_bytes(&self, page: PageKey, at: PageRef, bytes: &[u8]) -> Option<MapPage> {
        let stored = MapPage::decode(bytes).ok()?;
        let of = (stored.uuid, stored.key, stored.index as usize, stored.lsn);
        let is_it = of == (self.superblock.uuid, page.key, page.index, at.lsn);
        let mut slots = stored.entries.iter().filter_map(BlockEntry::slot);
        (is_it && slots.all(|slot| self.table.named.is_set(slot))).then_some(stored)
    }

    /// What its blocks held is unknown: another copy has it. Their slots stay taken until all of the map
    /// is read again, at the next start.
    fn lose_page(&mut self, page: PageKey, at: PageRef) {
        self.table.lose_away(page.key, page.index);
        self.slots_lost = true;
        self.checkpoints_wanted = self.checkpoints_wanted.max(1);
        self.stats.damaged_pages += 1;
        let segment = Some((page.key.volume, page.key.segment));
        let offset = self.layout.slot_offset(at.slot);
        let damage = Damage { part: Part::MapPage, offset, segment };
        self.driver.effects.push_back(Effect::Event(StoreEvent::Damaged(damage)));
    }

    fn on_page_settled(&mut self, page: PageKey) {
        for number in self.loads.waiting.remove(&page).unwrap_or_default() {
            let Some(parked) = self.loads.parked.get_mut(&number) else { continue };
            parked.missing -= 1;
            if parked.missing == 0 {
                self.loads.ready.push_back(number);
            }
        }
    }

    /// Takes the requests whose pages are here.
    pub(crate) fn go_on_with_loaded(&mut self, now: Instant) {
        while let Some(number) = self.loads.ready.pop_front() {
            let Some(parked) = self.loads.parked.remove(&number) else { continue };
            self.loads.blocks -= parked.blocks;
            self.take_request(now, parked.asker, parked.op);
        }
    }

    /// Nobody waits any longer.
    pub(crate) fn refuse_parked(&mut self, refusal: Refusal) {
        let parked = std::mem::take(&mut self.loads.parked);
        parked.values().for_each(|parked| self.answer(&parked.asker, Err(refusal)));
        self.loads.blocks = 0;
        self.loads.queue.clear();
        self.loads.waiting.clear();
        self.loads.ready.clear();
    }

    // promise: bounded
    /// Some at a time, so that it is not looked for them all the time. Pages that are in use or that a
    /// checkpoint has to write come on top: those are bounded by what is under way and by the journal.
    pub(crate) fn evict_pages(&mut self) {
        let most = self.config.settings.pages_max;
        let stay = self.config.flaws.has(Flaw::PagesWithoutBound);
        if stay || self.table.pages_here() <= self.pages_most() {
            return;
        }
        let step = most / 8 + 1;
        let used = self.pages_in_use();
        self.table.evict(most.saturating_sub(step), &used);
        let left = self.table.pages_here();
        self.loads.most = if left <= most { 0 } else { left + step };
    }

    /// More are not in memory but within one input.
    pub(crate) fn pages_most(&self) -> usize {
        self.config.settings.pages_max.max(self.loads.most)
    }

    /// Pages that could not go can now.
    pub(crate) fn evict_again(&mut self) {
        self.loads.most = 0;
    }

    fn pages_in_use(&self) -> BTreeSet<(SegmentKey, usize)> {
        let mut used = BTreeSet::new();
        let mut add = |key, range| used.extend(pages(range).map(|index| (key, index)));
        self.reads.iter().for_each(|(_, read)| add(read.key, read.range()));
        self.verifies.queue.iter().for_each(|verify| add(verify.key, verify.range));
        for waiting in &self.waiting {
            waiting.plan.ranges().for_each(|range| add(waiting.plan.key, range));
        }
        let mut whole = Vec::new();
        for entry in self.ops.iter().flat_map(|(_, op)| &op.entries) {
            match entry {
                Entry::Blocks { key, range, .. } => add(*key, *range),
                Entry::Join { key, .. } | Entry::Gone { key, .. } => whole.push(*key),
                Entry::Fence { .. }
                | Entry::Settled { .. }
                | Entry::Promoted { .. }
                | Entry::EpochStart { .. }
                | Entry::New { .. }
                | Entry::SawMap { .. } => {}
            }
        }
        for key in whole {
            used.extend((0..self.table.geometry.pages_per_segment).map(|index| (key, index)));
        }
        let parked = self.loads.parked.values().flat_map(|parked| &parked.pages);
        used.extend(parked.map(|page| (page.key, page.index)));
        used
    }
}

fn pages(range: BlockRange) -> std::ops::Range<usize> {
    page_of(range.first())..page_of(BlockIndex::new(range.end().get() - 1)) + 1
}
