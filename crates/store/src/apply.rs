//! What a journal entry does to the map. The same code runs after each group commit and at
//! recovery; so it looks at nothing but the map and the entry.

use crate::pages::{Table, page_of, within};
use gabion_format::{
    BlockEntry, BlockState, Content, Entry, Lsn, Rule, SegmentKey, SegmentMeta, Slot,
};
use gabion_types::{BlockIndex, BlockRange, Epoch, Flaw, Flaws, SegmentIndex, Seq, Version};
use gabion_wire::Refusal;

/// What became free.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Blocks' slots that were replaced, or that lost against a higher version.
    pub(crate) slots: Vec<Slot>,
    /// Places of map pages and segment pages.
    pub(crate) places: Vec<Slot>,
}

impl Table {
    /// Errors: the entry does nothing, also when it is replayed; what it named is freed.
    pub(crate) fn apply(
        &mut self,
        lsn: Lsn,
        entry: &Entry,
        freed: &mut Freed,
    ) -> Result<(), Refusal> {
        let flaws = self.flaws;
        match entry {
            Entry::Blocks { key, rule, range, version, content } => {
                self.apply_blocks(lsn, *key, *rule, *range, *version, content, freed)
            }
            Entry::Fence { volume, epoch } => {
                let fence = self.fences.entry(*volume).or_insert(Epoch::ZERO);
                *fence = (*fence).max(*epoch);
                Ok(())
            }
            Entry::Settled { key, seq } => {
                let meta = self.meta_mut(*key)?;
                // rule: store/joiner-settled-frozen
                if !meta.joining || flaws.has(Flaw::JoinerSettledAdvances) {
                    meta.settled = meta.settled.max(*seq);
                }
                Ok(())
            }
            Entry::Join { key, joined, creation } => {
                self.apply_join(*key, *joined, *creation, freed)
            }
            Entry::Promoted { key, joined, settled } => {
                self.apply_promoted(*key, *joined, *settled)
            }
            Entry::EpochStart { key, epoch, next } => {
                let meta = self.meta_mut(*key)?;
                meta.next = meta.next.max(*next);
                meta.next_epoch = meta.next_epoch.max(*epoch);
                if flaws.has(Flaw::SettledMovesWithEpochStart) {
                    meta.settled = meta.settled.max(next.previous());
                }
                meta.dropped_from = None;
                Ok(())
            }
            Entry::New { first, count, creation } => self.apply_new(*first, *count, *creation),
            Entry::Gone { key, creation, epoch } => self.apply_gone(*key, *creation, *epoch, freed),
            Entry::SawMap { index } => {
                self.highest_map = self.highest_map.max(*index);
                Ok(())
            }
        }
    }

    fn meta_mut(&mut self, key: SegmentKey) -> Result<&mut SegmentMeta, Refusal> {
        self.segment_mut(key).map(|segment| &mut segment.meta).ok_or(Refusal::NoSegment)
    }

    fn apply_join(
        &mut self,
        key: SegmentKey,
        joined: Epoch,
        creation: Epoch,
        freed: &mut Freed,
    ) -> Result<(), Refusal> {
        let kept = self.segment(key).map(|segment| segment.meta);
        let kept = kept.filter(|meta| meta.creation == creation);
        if kept.is_some_and(|meta| meta.joined == joined && meta.joining) {
            return Ok(());
        }
        // A late copy of a join that was promoted since, or that a later join overtook.
        if kept.is_some_and(|meta| meta.joined >= joined) {
            return Err(Refusal::WrongEpoch);
        }
        if kept.is_none() {
            if self.segment(key).is_some_and(|segment| segment.meta.creation > creation) {
                return Err(Refusal::WrongEpoch);
            }
            if self.segment(key).is_none() && self.segments_count() >= self.geometry.segments_max {
                return Err(Refusal::NoSpace);
            }
            self.remove_segment(key, &mut freed.slots, &mut freed.places);
            self.add_segment(key, SegmentMeta::new(creation));
        }
        let old_counts = self.flaws.has(Flaw::JoinerOldTailCounts);
        let meta = self.meta_mut(key)?;
        meta.joined = joined;
        meta.joining = true;
        if !old_counts {
            meta.highest = Seq::ZERO;
        }
        meta.installed = Seq::ZERO;
        Ok(())
    }

    fn apply_promoted(
        &mut self,
        key: SegmentKey,
        joined: Epoch,
        settled: Seq,
    ) -> Result<(), Refusal> {
        let meta = self.meta_mut(key)?;
        if meta.joined != joined {
            return Err(Refusal::WrongEpoch);
        }
        if meta.joining {
            meta.joining = false;
            meta.damaged = false;
            meta.dropped_from = None;
            // rule: store/promoted-has-what-is-settled
            // Where nothing differed, nothing was installed: it has all of it all the same.
            meta.highest = meta.highest.max(meta.installed).max(settled);
            meta.settled = settled;
        } else {
            meta.settled = meta.settled.max(settled);
        }
        Ok(())
    }

    fn apply_new(&mut self, first: SegmentKey, count: u32, creation: Epoch) -> Result<(), Refusal> {
        let indices = first.segment.get()..first.segment.get() + count;
        let keys = indices.map(|index| SegmentKey::new(first.volume, SegmentIndex::new(index)));
        let mut missing = Vec::new();
        for key in keys {
            match self.segment(key) {
                None => missing.push(key),
                Some(segment) if segment.meta.creation == creation => {}
                Some(_) => return Err(Refusal::WrongEpoch),
            }
        }
        if self.segments_count() + missing.len() > self.geometry.segments_max {
            return Err(Refusal::NoSpace);
        }
        missing.into_iter().for_each(|key| self.add_segment(key, SegmentMeta::new(creation)));
        Ok(())
    }

    // rule: store/drop-needs-its-epoch
    fn apply_gone(
        &mut self,
        key: SegmentKey,
        creation: Epoch,
        epoch: Epoch,
        freed: &mut Freed,
    ) -> Result<(), Refusal> {
        let Some(segment) = self.segment(key) else { return Ok(()) };
        let meta = &segment.meta;
        if meta.creation != creation || meta.joined > epoch || self.fence(key.volume) > epoch {
            return Err(Refusal::WrongEpoch);
        }
        self.remove_segment(key, &mut freed.slots, &mut freed.places);
        Ok(())
    }

    fn apply_blocks(
        &mut self,
        lsn: Lsn,
        key: SegmentKey,
        rule: Rule,
        range: BlockRange,
        version: Version,
        content: &Content,
        freed: &mut Freed,
    ) -> Result<(), Refusal> {
        if self.flaws.has(Flaw::WriteMakesSegment) && self.segment(key).is_none() {
            self.add_segment(key, SegmentMeta::new(version.epoch));
        }
        let admitted = self.admit(key, rule, range);
        if let Err(refusal) = admitted {
            if let Content::Data { slot, .. } = content {
                freed.slots.extend((0..range.count()).map(|index| slot.plus(index)));
            }
            return Err(refusal);
        }
        let mut done = 0;
        while done < range.count() {
            let first = range.first().plus(done);
            let in_page = gabion_format::PAGE_BLOCKS - first.get() % gabion_format::PAGE_BLOCKS;
            let count = in_page.min(range.count() - done);
            let part = Part { rule, version, content, first, skipped: done, count };
            self.apply_part(lsn, key, &part, freed);
            done += count;
        }
        let Some(segment) = self.segment_mut(key) else { return Err(Refusal::NoSegment) };
        note_seq(&mut segment.meta, rule, version, content);
        Ok(())
    }

    pub(crate) fn applies(
        &self,
        rule: Rule,
        current: BlockEntry,
        version: Version,
        state: BlockState,
    ) -> bool {
        applies(self.flaws, rule, current, version, state)
    }

    /// Whether the segment takes such an entry at all.
    fn admit(&self, key: SegmentKey, rule: Rule, range: BlockRange) -> Result<(), Refusal> {
        let segment = self.segment(key).ok_or(Refusal::NoSegment)?;
        if range.end().get() > self.geometry.segment_blocks {
            return Err(Refusal::Invalid);
        }
        match rule {
            Rule::Install { joined } if !segment.meta.joining || segment.meta.joined != joined => {
                Err(Refusal::WrongEpoch)
            }
            Rule::Install { .. } | Rule::Write | Rule::Settle | Rule::Repair | Rule::Move => Ok(()),
        }
    }

    fn apply_part(&mut self, lsn: Lsn, key: SegmentKey, part: &Part<'_>, freed: &mut Freed) {
        let index = page_of(part.first);
        let stored = self.segment(key).and_then(|segment| segment.live(index));
        // rule: store/replay-above-page-lsn
        if stored.is_some_and(|at| at.lsn >= lsn) {
            return;
        }
        let there = self.segment(key).is_some_and(|segment| segment.has_page(index));
        if *part.content == Content::Absent && !there {
            return;
        }
        let flaws = self.flaws;
        let Some(page) = self.page_to_change(key, index) else { return };
        page.lsn = page.lsn.max(lsn);
        let mut replaced = Vec::new();
        for offset in 0..part.count {
            let at = within(part.first.plus(offset));
            let state = part.state(offset);
            let current = page.entries[at];
            let entry = BlockEntry::new(part.version, state);
            if applies(flaws, part.rule, current, part.version, state) {
                replaced.push((current.slot(), entry.slot()));
                page.set(at, entry);
            } else {
                freed.slots.extend(entry.slot());
            }
        }
        for (old, new) in replaced {
            old.into_iter().for_each(|slot| self.named.clear(slot));
            new.into_iter().for_each(|slot| {
                self.named.set(slot);
            });
            freed.slots.extend(old);
        }
    }
}

/// What one entry says of one map page.
struct Part<'a> {
    rule: Rule,
    version: Version,
    content: &'a Content,
    first: BlockIndex,
    /// Blocks of the entry before `first`.
    skipped: u32,
    count: u32,
}

impl Part<'_> {
    fn state(&self, offset: u32) -> BlockState {
        let nth = self.skipped + offset;
        match self.content {
            Content::Data { slot, crcs } => {
                BlockState::Data { slot: slot.plus(nth), crc: crcs[nth as usize] }
            }
            Content::Zero => BlockState::Zero,
            Content::Lost => BlockState::Lost,
            Content::Absent => BlockState::Absent,
        }
    }
}

// rule: store/apply-rule
/// Whether a block takes what an entry says.
fn applies(
    flaws: Flaws,
    rule: Rule,
    current: BlockEntry,
    version: Version,
    state: BlockState,
) -> bool {
    let unknown = current.state() == BlockState::Unknown;
    match rule {
        Rule::Write => version > current.version(),
        // The copies that had this version are gone, also the one here.
        Rule::Settle if state == BlockState::Lost => version >= current.version(),
        Rule::Settle => version > current.version(),
        Rule::Install { .. } if flaws.has(Flaw::InstallAlways) => true,
        Rule::Install { joined } => current.version().epoch < joined,
        Rule::Repair => version == current.version() || unknown,
        Rule::Move => version == current.version() && current.slot().is_some(),
    }
}

fn note_seq(meta: &mut SegmentMeta, rule: Rule, version: Version, content: &Content) {
    match rule {
        // rule: store/joiner-counts-from-j
        Rule::Write | Rule::Settle => {
            if !meta.joining || version.epoch >= meta.joined {
                meta.highest = meta.highest.max(version.seq);
            }
        }
        Rule::Install { .. } => {
            if *content != Content::Absent {
                meta.installed = meta.installed.max(version.seq);
            }
        }
        Rule::Repair | Rule::Move => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Geometry, PageKey};
    use gabion_format::PageRef;
    use gabion_types::VolumeId;

    fn version(epoch: u64, seq: u64) -> Version {
        Version::new(Epoch::new(epoch).unwrap(), Seq::new(seq))
    }

    // rule: store/replay-above-page-lsn
    #[test]
    fn a_page_takes_only_entries_above_its_stored_lsn() {
        let geometry = Geometry {
            segments_max: 4,
            segment_blocks: 256,
            pages_per_segment: 2,
            chunks_per_segment: 1,
            slots: 100,
        };
        let mut table = Table::new(geometry, 1);
        let key = SegmentKey::new(VolumeId::new(1), SegmentIndex::new(0));
        table.add_segment(key, SegmentMeta::new(Epoch::ZERO));
        let range = BlockRange::new(BlockIndex::new(126), 4).unwrap();
        let zero = |seq| Entry::Blocks {
            key,
            rule: Rule::Write,
            range,
            version: version(1, seq),
            content: Content::Zero,
        };
        let mut freed = Freed::default();
        table.apply(Lsn::new(5), &zero(1), &mut freed).unwrap();
        let instance = table.segment(key).unwrap().instance;
        let page = table.page_mut(PageKey { key, instance, index: 0 }).unwrap();
        page.live = Some(PageRef { slot: Slot::new(1), lsn: Lsn::new(6) });
        table.apply(Lsn::new(6), &zero(2), &mut freed).unwrap();
        let seqs = [126, 127, 128, 129]
            .map(|block| table.block(key, BlockIndex::new(block)).unwrap().version().seq.get());
        assert_eq!(seqs, [1, 1, 2, 2]);
    }
}
