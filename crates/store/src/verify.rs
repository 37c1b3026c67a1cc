//! Scrubs' reads: one at a time, for a part of the disk's time, behind what guests want.

use crate::config::{VERIFIES_MAX, VERIFY_YIELDS_MAX};
use crate::disk::{Asker, Disk, Phase};
use gabion_format::SegmentKey;
use gabion_types::{BlockInfo, BlockKind, BlockRange, Duration, Instant};
use gabion_wire::{Refusal, ReplicaDone};
use std::collections::VecDeque;

/// What scrubs want verified, of all owners together: so the part of the disk's time that they take
/// is bounded however many there are.
#[derive(Debug, Default)]
pub(crate) struct Verifies {
    pub(crate) queue: VecDeque<Verify>,
    /// Since when the one under way has been.
    began: Option<Instant>,
    /// It is over; how long it took is seen at the next conclusion.
    over: bool,
    /// The next one begins then, or later.
    not_before: Instant,
}

#[derive(Debug)]
pub(crate) struct Verify {
    pub(crate) asker: Asker,
    key: SegmentKey,
    range: BlockRange,
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
            let Some(Verify { asker, key, range }) = self.verifies.queue.pop_front() else {
                return;
            };
            self.verifies.began = Some(now);
            if let Err(refusal) = self.begin_read(asker, key, range, true) {
                self.verifies.began = None;
                self.answer(&asker, Err(refusal));
            }
        }
    }

    /// When the next one begins, as it looks now.
    pub(crate) fn verify_due(&self) -> Option<Instant> {
        let verifies = &self.verifies;
        let waits = verifies.began.is_none() && !verifies.queue.is_empty();
        let busy = !self.ops.is_empty() || !self.reads.is_empty();
        let yields = if busy { VERIFY_YIELDS_MAX } else { Duration::ZERO };
        (waits && self.phase == Phase::Serving).then(|| verifies.not_before + yields)
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
