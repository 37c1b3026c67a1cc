//! The map of a disk: all segments, and of their map pages those that are in memory. The rest is
//! where the durable checkpoint has it, and comes when it is asked for (`load.rs`).

use crate::named::Named;
use gabion_format::{
    BlockEntry, BlockState, CHUNK_PAGES, ChunkRef, Lsn, MapPage, PAGE_BLOCKS, PageRef, SegmentKey,
    SegmentMeta, Slot,
};
use gabion_types::{BlockIndex, BlockRange, Epoch, Flaws, MapIndex, Prng, Seq, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// 128 blocks.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) entries: [BlockEntry; PAGE_BLOCKS as usize],
    /// The last group commit that changed it.
    pub(crate) lsn: Lsn,
    pub(crate) highest: Seq,
    pub(crate) highest_epoch: Epoch,
    /// As the durable checkpoint names it.
    pub(crate) live: Option<PageRef>,
    /// Where the next checkpoint writes it.
    pub(crate) spare: Option<Slot>,
    /// Where the checkpoint under way has written it.
    pub(crate) pending: Option<PageRef>,
    pub(crate) dirty: bool,
    /// A scrub found it damaged where it lies; told, and cleared when it lies elsewhere.
    pub(crate) rotten: bool,
    /// The checkpoint under way will write it.
    pub(crate) due: bool,
    /// Asked for since the last look for pages that may go.
    pub(crate) recent: bool,
    /// It may have unknown blocks.
    pub(crate) unknown: bool,
}

impl Page {
    pub(crate) fn new() -> Self {
        Self {
            entries: [BlockEntry::ABSENT; PAGE_BLOCKS as usize],
            lsn: Lsn::ZERO,
            highest: Seq::ZERO,
            highest_epoch: Epoch::ZERO,
            live: None,
            spare: None,
            pending: None,
            dirty: false,
            rotten: false,
            due: false,
            recent: true,
            unknown: false,
        }
    }

    pub(crate) fn has_unknown(&self) -> bool {
        self.unknown
    }

    pub(crate) fn set(&mut self, at: usize, entry: BlockEntry) {
        self.entries[at] = entry;
        self.note(entry);
    }

    fn note(&mut self, entry: BlockEntry) {
        let version = entry.version();
        self.highest = self.highest.max(version.seq);
        self.highest_epoch = self.highest_epoch.max(version.epoch);
    }

    /// Draws what is known beyond the entries from them.
    fn recount(&mut self) {
        for at in 0..self.entries.len() {
            self.note(self.entries[at]);
        }
        self.unknown = self.entries.iter().any(|entry| entry.state() == BlockState::Unknown);
    }

    fn places(&self) -> impl Iterator<Item = Slot> {
        let refs = [self.live, self.pending].into_iter().flatten().map(|at| at.slot);
        refs.chain(self.spare)
    }

    /// What is on the disk is all that it says.
    fn away(&self) -> Option<Away> {
        let stays = self.dirty || self.due || self.pending.is_some();
        let live = self.live.filter(|_| !stays)?;
        Some(Away { live, spare: self.spare })
    }
}

/// A map page that is on the disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Away {
    pub(crate) live: PageRef,
    pub(crate) spare: Option<Slot>,
}

#[derive(Debug)]
enum Place {
    /// There is no such page: its blocks were never written.
    None,
    Away(Away),
    Here(Box<Page>),
}

/// A segment page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chunk {
    /// It has map pages.
    pub(crate) used: bool,
    pub(crate) live: Option<ChunkRef>,
    pub(crate) spare: Option<Slot>,
    pub(crate) pending: Option<ChunkRef>,
}

impl Chunk {
    fn places(&self) -> impl Iterator<Item = Slot> {
        let refs = [self.live, self.pending].into_iter().flatten().map(|at| at.slot);
        refs.chain(self.spare)
    }
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) meta: SegmentMeta,
    /// Never the same twice in this life, also not for a segment that was dropped and came back.
    pub(crate) instance: u64,
    /// Its zone: where its next slots are looked for.
    pub(crate) cursor: Slot,
    /// Empty until the first block is written.
    pages: Vec<Place>,
    pub(crate) chunks: Vec<Chunk>,
}

/// A map page of one life of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageKey {
    pub(crate) key: SegmentKey,
    pub(crate) instance: u64,
    pub(crate) index: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) segments_max: usize,
    pub(crate) segment_blocks: u32,
    pub(crate) pages_per_segment: usize,
    pub(crate) chunks_per_segment: usize,
    pub(crate) slots: u32,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) geometry: Geometry,
    pub(crate) flaws: Flaws,
    segments: BTreeMap<SegmentKey, Segment>,
    /// How many segments of each volume.
    volumes: BTreeMap<VolumeId, u32>,
    pub(crate) fences: BTreeMap<VolumeId, Epoch>,
    pub(crate) highest_map: MapIndex,
    /// Slots of all blocks with data, of whatever page.
    pub(crate) named: Named,
    dirty: Vec<PageKey>,
    /// Segment pages that the next checkpoint writes anew as they are.
    rotten_chunks: BTreeSet<(SegmentKey, u64, usize)>,
    /// Pages in memory.
    here: usize,
    /// Where the last look for pages that may go ended.
    hand: SegmentKey,
    /// Two for each map page and segment page there is.
    places_needed: u64,
    places_held: u64,
    next_instance: u64,
    prng: Prng,
}

impl Table {
    pub(crate) fn new(geometry: Geometry, seed: u64) -> Self {
        Self {
            geometry,
            flaws: Flaws::NONE,
            segments: BTreeMap::new(),
            volumes: BTreeMap::new(),
            fences: BTreeMap::new(),
            highest_map: MapIndex::default(),
            named: Named::new(geometry.slots),
            dirty: Vec::new(),
            rotten_chunks: BTreeSet::new(),
            here: 0,
            hand: SegmentKey::new(VolumeId::new(0), gabion_types::SegmentIndex::new(0)),
            places_needed: 0,
            places_held: 0,
            next_instance: 0,
            prng: Prng::new(seed),
        }
    }

    pub(crate) fn fence(&self, volume: VolumeId) -> Epoch {
        self.fences.get(&volume).copied().unwrap_or(Epoch::ZERO)
    }

    pub(crate) fn segment(&self, key: SegmentKey) -> Option<&Segment> {
        self.segments.get(&key)
    }

    pub(crate) fn segment_mut(&mut self, key: SegmentKey) -> Option<&mut Segment> {
        self.segments.get_mut(&key)
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = (SegmentKey, &Segment)> {
        self.segments.iter().map(|(key, segment)| (*key, segment))
    }

    pub(crate) fn segments_mut(&mut self) -> impl Iterator<Item = (SegmentKey, &mut Segment)> {
        self.segments.iter_mut().map(|(key, segment)| (*key, segment))
    }

    pub(crate) fn segments_count(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn volumes(&self) -> &BTreeMap<VolumeId, u32> {
        &self.volumes
    }

    /// Slots that map pages and segment pages will still need.
    pub(crate) fn places_owed(&self) -> u64 {
        self.places_needed.saturating_sub(self.places_held)
    }

    #[cfg(test)]
    pub(crate) fn places_held(&self) -> u64 {
        self.places_held
    }

    pub(crate) fn add_held(&mut self, places: u64) {
        self.places_held += places;
    }

    pub(crate) fn add_segment(&mut self, key: SegmentKey, meta: SegmentMeta) {
        let instance = self.next_instance;
        self.next_instance += 1;
        let cursor = Slot::new(
            u32::try_from(self.prng.below(u64::from(self.geometry.slots.max(1))))
                .expect("below a u32"),
        );
        let segment = Segment { meta, instance, cursor, pages: Vec::new(), chunks: Vec::new() };
        if self.segments.insert(key, segment).is_none() {
            *self.volumes.entry(key.volume).or_insert(0) += 1;
        }
    }

    /// Takes a segment away; what its blocks and its pages held is free.
    pub(crate) fn remove_segment(
        &mut self,
        key: SegmentKey,
        freed: &mut Vec<Slot>,
        places: &mut Vec<Slot>,
    ) {
        let Some(segment) = self.segments.remove(&key) else { return };
        if let Some(count) = self.volumes.get_mut(&key.volume) {
            *count -= 1;
            if *count == 0 {
                self.volumes.remove(&key.volume);
            }
        }
        let before = places.len();
        for place in &segment.pages {
            let page = match place {
                Place::None => continue,
                Place::Away(_) => unreachable!("all its pages are read before a segment goes"),
                Place::Here(page) => page,
            };
            let slots = page.entries.iter().filter_map(BlockEntry::slot);
            slots.clone().for_each(|slot| self.named.clear(slot));
            freed.extend(slots);
            places.extend(page.places());
            self.places_needed -= 2;
            self.here -= 1;
        }
        for chunk in segment.chunks.iter().filter(|chunk| chunk.used) {
            places.extend(chunk.places());
            self.places_needed -= 2;
        }
        self.places_held -= (places.len() - before) as u64;
    }

    pub(crate) fn block(&self, key: SegmentKey, block: BlockIndex) -> Option<BlockEntry> {
        Some(self.segments.get(&key)?.block(block))
    }

    /// The page of a segment that is there; made when it isn't. It counts as changed.
    pub(crate) fn page_to_change(&mut self, key: SegmentKey, index: usize) -> Option<&mut Page> {
        self.page_slots(key)?;
        let segment = self.segments.get_mut(&key)?;
        let chunk = segment.chunks.get_mut(index / CHUNK_PAGES)?;
        if !chunk.used {
            chunk.used = true;
            self.places_needed += 2;
        }
        let place = segment.pages.get_mut(index)?;
        if matches!(place, Place::None) {
            self.places_needed += 2;
            self.here += 1;
            *place = Place::Here(Box::new(Page::new()));
        }
        let Place::Here(page) = place else { unreachable!("a page is read before it changes") };
        if !page.dirty {
            page.dirty = true;
            self.dirty.push(PageKey { key, instance: segment.instance, index });
        }
        Some(page)
    }

    /// A page of which a segment page tells where it is.
    pub(crate) fn add_away(&mut self, key: SegmentKey, index: usize, live: PageRef) {
        let place = self.segments.get_mut(&key).and_then(|segment| segment.pages.get_mut(index));
        let Some(place) = place.filter(|place| matches!(place, Place::None)) else { return };
        *place = Place::Away(Away { live, spare: None });
        self.places_needed += 2;
        self.places_held += 1;
    }

    /// A page that was away, as it was read.
    pub(crate) fn load_page(&mut self, key: SegmentKey, index: usize, stored: &MapPage) {
        let place = self.segments.get_mut(&key).and_then(|segment| segment.pages.get_mut(index));
        let Some(place) = place else { return };
        let Place::Away(away) = *place else { return };
        let mut page = Page::new();
        page.entries = stored.entries;
        page.lsn = stored.lsn;
        page.highest = stored.highest;
        (page.live, page.spare) = (Some(away.live), away.spare);
        page.recount();
        *place = Place::Here(Box::new(page));
        self.here += 1;
    }

    // rule: store/lost-page-is-bad-not-empty
    /// A page that was away, and is not what was written, in a disk that serves. Its places stay its own.
    pub(crate) fn lose_away(&mut self, key: SegmentKey, index: usize) {
        let segment = self.segments.get_mut(&key);
        let Some(segment) = segment else { return };
        let Some(place) = segment.pages.get_mut(index) else { return };
        let Place::Away(away) = *place else { return };
        let mut page = Page::new();
        page.entries = [BlockEntry::UNKNOWN; PAGE_BLOCKS as usize];
        page.unknown = true;
        page.lsn = away.live.lsn;
        (page.live, page.spare) = (Some(away.live), away.spare);
        *place = Place::Here(Box::new(page));
        segment.meta.damaged = true;
        self.here += 1;
        self.page_to_change(key, index);
    }

    // rule: store/lost-page-is-bad-not-empty
    /// A page that cannot be read: what stood in its blocks is unknown.
    pub(crate) fn lose_page(
        &mut self,
        key: SegmentKey,
        index: usize,
        place: Option<Slot>,
        lsn: Lsn,
    ) {
        let segment = self.segments.get_mut(&key);
        let away = segment.and_then(|segment| segment.pages.get_mut(index));
        if let Some(away @ Place::Away(_)) = away {
            *away = Place::None;
            self.places_needed -= 2;
            self.places_held -= 1;
        }
        let Some(page) = self.page_to_change(key, index) else { return };
        page.entries = [BlockEntry::UNKNOWN; PAGE_BLOCKS as usize];
        page.unknown = true;
        page.lsn = lsn;
        page.spare = place;
        self.places_held += u64::from(place.is_some());
        if let Some(segment) = self.segments.get_mut(&key) {
            segment.meta.damaged = true;
        }
    }

    pub(crate) fn load_chunk(&mut self, key: SegmentKey, at: ChunkRef) {
        let Some(chunk) = self.chunk_to_load(key, at.chunk as usize) else { return };
        chunk.live = Some(at);
        self.places_held += 1;
    }

    /// A segment page that cannot be read: all that it told of is unknown.
    pub(crate) fn lose_chunk(&mut self, key: SegmentKey, at: ChunkRef) {
        let in_pool = at.slot.get() < self.geometry.slots;
        let Some(chunk) = self.chunk_to_load(key, at.chunk as usize) else { return };
        chunk.spare = in_pool.then_some(at.slot);
        self.places_held += u64::from(in_pool);
        let first = at.chunk as usize * CHUNK_PAGES;
        let end = (first + CHUNK_PAGES).min(self.geometry.pages_per_segment);
        (first..end).for_each(|index| self.lose_page(key, index, None, Lsn::ZERO));
    }

    fn chunk_to_load(&mut self, key: SegmentKey, chunk: usize) -> Option<&mut Chunk> {
        self.page_slots(key)?;
        let chunk = self.segments.get_mut(&key)?.chunks.get_mut(chunk)?;
        if !chunk.used {
            chunk.used = true;
            self.places_needed += 2;
        }
        Some(chunk)
    }

    /// Makes room for the pages of a segment that had none.
    fn page_slots(&mut self, key: SegmentKey) -> Option<()> {
        let segment = self.segments.get_mut(&key)?;
        if segment.pages.is_empty() {
            segment.pages.resize_with(self.geometry.pages_per_segment, || Place::None);
            segment.chunks.resize(self.geometry.chunks_per_segment, Chunk::default());
        }
        Some(())
    }

    /// Of the very segment that the key was made for.
    pub(crate) fn page_mut(&mut self, at: PageKey) -> Option<&mut Page> {
        let segment = self.segments.get_mut(&at.key).filter(|is| is.instance == at.instance)?;
        match segment.pages.get_mut(at.index)? {
            Place::None | Place::Away(_) => None,
            Place::Here(page) => Some(page),
        }
    }

    /// The place of a page of that very segment, if it is on the disk only.
    pub(crate) fn away(&self, at: PageKey) -> Option<Away> {
        self.segments.get(&at.key).filter(|is| is.instance == at.instance)?.away(at.index)
    }

    pub(crate) fn pages_here(&self) -> usize {
        self.here
    }

    // promise: bounded
    // rule: store/map-pages-come-and-go
    /// Lets go of pages that are on the disk as they are here, and that nobody asked for since the
    /// last look, until so many are left. Those of `used` stay.
    pub(crate) fn evict(&mut self, left: usize, used: &BTreeSet<(SegmentKey, usize)>) {
        // In the second round what was asked for goes as well.
        for _ in 0..2 {
            let from = self.hand;
            let keys = self.segments.range(from..).chain(self.segments.range(..from));
            for key in keys.map(|(key, _)| *key).collect::<Vec<_>>() {
                if self.here <= left {
                    self.hand = key;
                    return;
                }
                let Some(segment) = self.segments.get_mut(&key) else { continue };
                for (index, place) in segment.pages.iter_mut().enumerate() {
                    let Place::Here(page) = place else { continue };
                    let Some(away) = page.away() else { continue };
                    if used.contains(&(key, index)) || std::mem::take(&mut page.recent) {
                        continue;
                    }
                    *place = Place::Away(away);
                    self.here -= 1;
                }
            }
        }
    }

    /// Somebody asks for these pages.
    pub(crate) fn note_use(&mut self, key: SegmentKey, indices: impl Iterator<Item = usize>) {
        let Some(segment) = self.segments.get_mut(&key) else { return };
        for index in indices {
            if let Some(Place::Here(page)) = segment.pages.get_mut(index) {
                page.recent = true;
            }
        }
    }

    pub(crate) fn chunk_mut(
        &mut self,
        key: SegmentKey,
        instance: u64,
        chunk: usize,
    ) -> Option<&mut Chunk> {
        let segment = self.segments.get_mut(&key).filter(|is| is.instance == instance)?;
        segment.chunks.get_mut(chunk)
    }

    /// The first segment page at or behind this one that the durable checkpoint has.
    pub(crate) fn next_chunk(
        &self,
        from: Option<(SegmentKey, usize)>,
    ) -> Option<(SegmentKey, u64, ChunkRef)> {
        let segments = match from {
            Some((key, _)) => self.segments.range(key..),
            None => self.segments.range(..),
        };
        segments.into_iter().find_map(|(key, segment)| {
            let first = from.filter(|(at, _)| at == key).map_or(0, |(_, chunk)| chunk);
            let live = segment.chunks.iter().skip(first).find_map(|chunk| chunk.live);
            Some((*key, segment.instance, live?))
        })
    }

    /// A segment page is not there as it was written. False: it lies elsewhere by now, or is known.
    pub(crate) fn chunk_rots(&mut self, key: SegmentKey, instance: u64, at: ChunkRef) -> bool {
        let chunk = at.chunk as usize;
        let live = self.chunk_mut(key, instance, chunk).and_then(|chunk| chunk.live);
        live == Some(at) && self.rotten_chunks.insert((key, instance, chunk))
    }

    pub(crate) fn take_rotten_chunks(&mut self) -> BTreeSet<(SegmentKey, u64, usize)> {
        std::mem::take(&mut self.rotten_chunks)
    }

    /// The pages changed since this was last asked.
    pub(crate) fn take_dirty(&mut self) -> Vec<PageKey> {
        let mut taken = std::mem::take(&mut self.dirty);
        taken.retain(|at| match self.page_mut(*at) {
            Some(page) => {
                (page.dirty, page.due) = (false, true);
                true
            }
            None => false,
        });
        taken.sort_unstable();
        taken
    }

    /// Slots for the map pages and segment pages that these ranges, in ascending order, would have
    /// to be made: two for each.
    pub(crate) fn places_missing(
        &self,
        key: SegmentKey,
        ranges: impl Iterator<Item = BlockRange>,
    ) -> u32 {
        let segment = self.segments.get(&key);
        let no_page = |index| segment.is_none_or(|is| !is.has_page(index));
        let no_chunk =
            |at| segment.and_then(|is| is.chunks.get(at)).is_none_or(|chunk: &Chunk| !chunk.used);
        let mut places = 0;
        let mut next_page = 0;
        let mut next_chunk = 0;
        for range in ranges {
            let last = page_of(range.first().plus(range.count() - 1));
            for page in page_of(range.first()).max(next_page)..=last {
                let chunk = page / CHUNK_PAGES;
                if chunk >= next_chunk && no_chunk(chunk) {
                    places += 2;
                }
                if no_page(page) {
                    places += 2;
                }
                next_chunk = next_chunk.max(chunk + 1);
            }
            next_page = next_page.max(last + 1);
        }
        places
    }
}

impl Segment {
    /// Of a page that is in memory, or that there is none of.
    pub(crate) fn block(&self, block: BlockIndex) -> BlockEntry {
        self.known_block(block).expect("a page is read before it is asked")
    }

    /// `None`: its page is on the disk only.
    pub(crate) fn known_block(&self, block: BlockIndex) -> Option<BlockEntry> {
        match self.pages.get(page_of(block)) {
            None | Some(Place::None) => Some(BlockEntry::ABSENT),
            Some(Place::Away(_)) => None,
            Some(Place::Here(page)) => Some(page.entries[within(block)]),
        }
    }

    /// In memory or not.
    pub(crate) fn has_page(&self, index: usize) -> bool {
        self.pages.get(index).is_some_and(|place| !matches!(place, Place::None))
    }

    /// One that is in memory.
    pub(crate) fn page(&self, index: usize) -> Option<&Page> {
        match self.pages.get(index)? {
            Place::None | Place::Away(_) => None,
            Place::Here(page) => Some(page),
        }
    }

    pub(crate) fn away(&self, index: usize) -> Option<Away> {
        match self.pages.get(index)? {
            Place::None | Place::Here(_) => None,
            Place::Away(away) => Some(*away),
        }
    }

    /// Where the durable checkpoint has a page.
    pub(crate) fn live(&self, index: usize) -> Option<PageRef> {
        match self.pages.get(index)? {
            Place::None => None,
            Place::Away(away) => Some(away.live),
            Place::Here(page) => page.live,
        }
    }

    pub(crate) fn pages(&self) -> impl Iterator<Item = (usize, &Page)> {
        (0..self.pages.len()).filter_map(|index| Some((index, self.page(index)?)))
    }

    pub(crate) fn pages_away(&self) -> impl Iterator<Item = (usize, Away)> {
        (0..self.pages.len()).filter_map(|index| Some((index, self.away(index)?)))
    }
}

pub(crate) fn page_of(block: BlockIndex) -> usize {
    block.index() / PAGE_BLOCKS as usize
}

pub(crate) fn within(block: BlockIndex) -> usize {
    block.index() % PAGE_BLOCKS as usize
}
