//! Scrubs' reads: one at a time, for a part of the disk's time, behind what guests want.

use crate::config::{VERIFIES_MAX, VERIFY_YIELDS_MAX};
use crate::disk::{Asker, Disk, Phase, Use};
use crate::io::{Damage, Effect, Part, StoreEvent};
use crate::look::Look;
use crate::pages::page_of;
use crate::read::Purpose;
use bytes::Bytes;
use gabion_format::{MapPage, PageRef, SegmentKey};
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, BlockRange, DiskError, Duration, Instant,
    SegmentIndex, VolumeId,
};
use gabion_wire::{Refusal, ReplicaDone};
use std::collections::{BTreeMap, VecDeque};

/// What scrubs want verified, of all owners together: so the part of the disk's time that they take
/// is bounded however many there are.
#[derive(Debug, Default)]
pub(crate) struct Verifies {
    pub(crate) queue: VecDeque<Verify>,
    /// Goes before them.
    pub(crate) look: Option<Look>,
    /// Of each volume, where the last one was that was asked for.
    pub(crate) looked: BTreeMap<VolumeId, (SegmentIndex, BlockIndex)>,
    /// Since when the one under way has been.
    began: Option<Instant>,
    /// It is over; how long it took is seen at the next conclusion.
    pub(crate) over: bool,
    /// The next one begins then, or later.
    not_before: Instant,
}

#[derive(Debug)]
pub(crate) struct Verify {
    pub(crate) asker: Asker,
    pub(crate) key: SegmentKey,
    pub(crate) range: BlockRange,
}

impl Disk {
    // promise: bounded
    pub(crate) fn take_verify(
        &mut self,
        now: Instant,
        asker: Asker,
        key: SegmentKey,
        range: BlockRange,
    ) -> Result<(), Refusal> {
        self.table.segment(key).ok_or(Refusal::NoSegment)?;
        if self.verifies.queue.len() >= VERIFIES_MAX {
            return Err(Refusal::Busy);
        }
        let verifies = &mut self.verifies;
        if verifies.queue.is_empty() && verifies.began.is_none() {
            verifies.not_before = verifies.not_before.max(now);
        }
        verifies.queue.push_back(Verify { asker, key, range });
        self.look_with(&asker, key, range);
        Ok(())
    }

    /// After each read the disk belongs to others for so long that scrubs have had their part of the
    /// time; then it waits until nothing else is under way, within a bound.
    // rule: store/scrub-yields
    pub(crate) fn verify_when_due(&mut self, now: Instant) {
        if self.phase != Phase::Serving {
            for Verify { asker, .. } in std::mem::take(&mut self.verifies.queue) {
                self.answer(&asker, Err(Refusal::NotReady));
            }
            if !self.is_looking() {
                self.verifies.look = None;
            }
            return;
        }
        loop {
            if std::mem::take(&mut self.verifies.over)
                && let Some(began) = self.verifies.began.take()
            {
                self.verifies.not_before = now + rest(now.since(began), self.share());
            }
            if self.verify_due().is_none_or(|due| now < due) {
                return;
            }
            self.verifies.began = Some(now);
            if self.look_on() {
                return;
            }
            let Some(Verify { asker, key, range }) = self.verifies.queue.pop_front() else {
                self.verifies.began = None;
                return;
            };
            if let Err(refusal) = self.begin_read(asker, key, range, Purpose::Verify) {
                self.verifies.began = None;
                self.answer(&asker, Err(refusal));
            }
        }
    }

    /// When the next one begins, as it looks now.
    pub(crate) fn verify_due(&self) -> Option<Instant> {
        let verifies = &self.verifies;
        let wanted = verifies.look.is_some() || !verifies.queue.is_empty();
        let waits = verifies.began.is_none() && wanted;
        let busy = !self.ops.is_empty() || !self.reads.is_empty();
        let yields = if busy { VERIFY_YIELDS_MAX } else { Duration::ZERO };
        (waits && self.phase == Phase::Serving).then(|| verifies.not_before + yields)
    }

    /// What is in memory is right; this is for the day when it is read again.
    pub(crate) fn verify_pages(&mut self, read: u64, key: SegmentKey, range: BlockRange) {
        let Some(segment) = self.table.segment(key) else { return };
        let last = page_of(BlockIndex::new(range.end().get() - 1));
        let live = |index| Some((index, segment.live(index)?));
        let pages: Vec<_> = (page_of(range.first())..=last).filter_map(live).collect();
        for (index, at) in pages {
            self.count_read(read, true);
            self.stats.verified_bytes += BLOCK_BYTES;
            let offset = self.layout.slot_offset(at.slot);
            self.driver.read(Use::VerifyPage { read, index, at }, offset, BLOCK_BYTES);
        }
    }

    // promise: no-silent-corruption
    // rule: store/scrub-looks-at-map-pages
    /// A page that is not what was written is written anew from memory, by the next checkpoint, which
    /// comes at once. One that a checkpoint has replaced meanwhile is none of ours.
    pub(crate) fn on_page_read(
        &mut self,
        read: u64,
        index: usize,
        at: PageRef,
        result: Result<Bytes, DiskError>,
    ) {
        let Some(key) = self.count_read(read, false) else { return };
        let page = result.ok().and_then(|bytes| MapPage::decode(&bytes).ok());
        let good = page.is_some_and(|page| {
            let of = (page.uuid, page.key, page.index as usize, page.lsn);
            of == (self.superblock.uuid, key, index, at.lsn)
        });
        let page = self.table.segment(key).and_then(|segment| segment.page(index));
        // It may be read again before the checkpoint has written it.
        if !good && page.is_some_and(|page| page.live == Some(at) && !page.rotten) {
            if let Some(page) = self.table.page_to_change(key, index) {
                page.rotten = true;
            }
            self.checkpoints_wanted = self.checkpoints_wanted.max(1);
            self.stats.damaged_pages += 1;
            let segment = Some((key.volume, key.segment));
            let offset = self.layout.slot_offset(at.slot);
            let damage = Damage { part: Part::MapPage, offset, segment };
            self.driver.effects.push_back(Effect::Event(StoreEvent::Damaged(damage)));
        }
        self.finish_read(read);
    }

    pub(crate) fn on_verified(&mut self, asker: &Asker, blocks: impl Iterator<Item = BlockInfo>) {
        self.verifies.over = true;
        let entries = blocks.filter(|info| info.kind != BlockKind::Absent).collect();
        self.answer(asker, Ok(ReplicaDone::Table { entries, next: None }));
    }

    fn share(&self) -> u32 {
        self.config.settings.scrub_share_percent.clamp(1, 100)
    }
}

/// How long the disk is left alone after a read that took so long.
fn rest(took: Duration, share_percent: u32) -> Duration {
    took.saturating_mul(100 - share_percent) / share_percent
}
