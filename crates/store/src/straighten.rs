//! Small writes scatter what was a stream: each goes to a slot of its own. Where a read meets that, the
//! MiB is noted, and put into one run again when the disk has nothing else to do.
//!
//! A move is an entry like any other: the same version in another slot. It applies to what still has that
//! version, so a write that comes meanwhile goes first, and its old slots are free like those of a write.

use crate::config::{
    SCATTERED_MAX, SCATTERED_PIECES_PART, STRAIGHTEN_AFTER, STREAM_BLOCKS, STRETCH_BLOCKS,
};
use crate::disk::{Asker, Disk, Phase};
use crate::io::Origin;
use crate::op::{Piece, PieceBody, Plan};
use crate::read::{Purpose, ReadBlock, runs_of};
use gabion_format::{Rule, SegmentKey};
use gabion_types::{BlockIndex, BlockKind, BlockRange, DiskId, Epoch, Instant};
use gabion_wire::RequestId;
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub(crate) struct Scattered {
    /// Stretches of `STRETCH_BLOCKS`, by their number in the segment.
    noted: BTreeSet<(SegmentKey, u32)>,
    /// Owners asked for something, or a stretch was moved.
    busy_last: Instant,
}

/// So many pieces are too many for so many blocks.
fn is_scattered(blocks: usize, pieces: usize) -> bool {
    blocks >= STREAM_BLOCKS as usize && pieces * SCATTERED_PIECES_PART > blocks
}

impl Disk {
    // promise: bounded
    /// A read met these blocks in so many pieces.
    pub(crate) fn note_pieces(
        &mut self,
        key: SegmentKey,
        range: BlockRange,
        blocks: usize,
        pieces: usize,
    ) {
        if !is_scattered(blocks, pieces) {
            return;
        }
        let last = (range.end().get() - 1) / STRETCH_BLOCKS;
        for stretch in range.first().get() / STRETCH_BLOCKS..=last {
            if self.scattered.noted.len() < SCATTERED_MAX {
                self.scattered.noted.insert((key, stretch));
            }
        }
    }

    pub(crate) fn note_busy(&mut self, now: Instant) {
        self.scattered.busy_last = now;
    }

    fn is_idle(&self) -> bool {
        self.phase == Phase::Serving
            && self.is_quiet()
            && self.reads.is_empty()
            && self.verifies.queue.is_empty()
            && self.checkpoint.is_none()
    }

    /// When the next stretch is looked at, if nobody asks for anything before.
    pub(crate) fn straighten_due(&self) -> Option<Instant> {
        let waits = !self.scattered.noted.is_empty() && self.is_idle();
        waits.then(|| self.scattered.busy_last + STRAIGHTEN_AFTER)
    }

    // rule: store/scattered-is-put-in-order
    pub(crate) fn straighten_when_due(&mut self, now: Instant) {
        while self.straighten_due().is_some_and(|due| now >= due) {
            let Some((key, stretch)) = self.scattered.noted.pop_first() else { return };
            let Some(range) = self.worth_moving(key, stretch) else { continue };
            self.note_busy(now);
            let asker = of_its_own(key);
            // Refused: there is always another time.
            let _begun = self.begin_read(asker, key, range, Purpose::Straighten);
            return;
        }
    }

    /// It is still in many pieces, and there is one run for all of it beside the reserve.
    fn worth_moving(&self, key: SegmentKey, stretch: u32) -> Option<BlockRange> {
        let segment = self.table.segment(key)?;
        let first = stretch * STRETCH_BLOCKS;
        let end = (first + STRETCH_BLOCKS).min(self.table.geometry.segment_blocks);
        let range = BlockRange::new(BlockIndex::new(first), end.checked_sub(first)?)?;
        let mut slots = Vec::new();
        for block in range.iter() {
            slots.extend(segment.known_block(block)?.slot());
        }
        let breaks = slots.windows(2).filter(|pair| pair[0].plus(1) != pair[1]).count();
        let scattered = is_scattered(slots.len(), breaks + 1);
        let want = u32::try_from(slots.len()).ok()?;
        let room = u64::from(want) + self.reserve_slots() <= self.slots_usable();
        let run = self.slots.has_run(segment.cursor, want);
        (scattered && room && run).then_some(range)
    }

    /// What was read well goes to one run.
    pub(crate) fn on_stretch_read(&mut self, key: SegmentKey, blocks: Vec<ReadBlock>) {
        let mut pieces: Vec<Piece> = Vec::new();
        let well = |block: &ReadBlock| block.info.kind == BlockKind::Data;
        for ReadBlock { info, data, .. } in blocks.into_iter().filter(well) {
            let Some(data) = data else { continue };
            let range = BlockRange::new(info.block, 1).expect("one block is a range");
            let body = PieceBody::Data { crcs: vec![info.crc], data };
            pieces.push(Piece { range, version: info.version, body });
        }
        let plan = Plan { key, rule: Rule::Move, settled: None, pieces };
        let want = plan.data_blocks();
        let room = u64::from(want) + self.reserve_slots() <= self.slots_usable();
        if want > 0 && room && self.is_idle() {
            self.start(of_its_own(key), plan);
        }
    }
}

/// Nobody waits for it.
fn of_its_own(key: SegmentKey) -> Asker {
    Asker {
        from: Origin(u64::MAX),
        request: RequestId(0),
        disk: DiskId::new(0),
        volume: key.volume,
        owner_epoch: Epoch::ZERO,
        muted: true,
    }
}

/// Of a read as it begins.
pub(crate) fn pieces_of(blocks: &[ReadBlock]) -> (usize, usize) {
    let of_data = blocks.iter().filter(|block| block.has_slot()).count();
    (of_data, runs_of(blocks).len())
}
