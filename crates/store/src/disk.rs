//! An opened disk: its map, its free slots, its journal, and what is under way.

use crate::checkpoint::Checkpoint;
use crate::commit::{Batch, Journal};
use crate::config::{REPAIR_RESERVE_BYTES, REQUEST_SLOTS_MAX, RESERVE_PART, StoreConfig};
use crate::driver::Driver;
use crate::io::{During, Effect, Origin, OutOfService, StoreStats};
use crate::load::Loads;
use crate::look::Piece;
use crate::op::{Op, Waiting};
use crate::pages::{PageKey, Table};
use crate::read::Read;
use crate::slots::{Limbo, Slots};
use crate::straighten::Scattered;
use crate::verify::Verifies;
use gabion_format::{Layout, PageRef, SegmentKey, Slot, Superblock};
use gabion_types::{
    BLOCK_BYTES, DiskDone, DiskError, DiskId, Epoch, Flaw, Instant, MapIndex, Seq, Slab, VolumeId,
};
use gabion_wire::{Refusal, ReplicaAnswer, ReplicaDone, RequestId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What an operation in flight is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Data of a request.
    Data {
        op: u64,
    },
    /// Data of several requests of the batch.
    BatchData,
    Frame,
    BatchSync,
    /// Blocks of a read: the how-manieth on, and how many.
    Read {
        read: u64,
        at: u32,
        count: u32,
    },
    /// The map page that tells of a part of what is verified, as the durable checkpoint has it.
    VerifyPage {
        read: u64,
        index: usize,
        at: PageRef,
    },
    /// What a scrub looks at beside blocks and map pages.
    Look(Piece),
    /// A map page that requests wait for.
    Page {
        page: PageKey,
        at: PageRef,
        again: bool,
    },
    CheckpointWrite,
    CheckpointSync,
    Superblock,
    SuperblockSync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The checkpoint that ends the recovery is under way.
    Recovering,
    Serving,
    Stopping,
    Stopped,
    Out,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) from: Origin,
    pub(crate) request: RequestId,
    pub(crate) disk: DiskId,
    pub(crate) volume: VolumeId,
    pub(crate) owner_epoch: Epoch,
    /// Its origin is gone, or nobody waits for an answer.
    pub(crate) muted: bool,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) config: StoreConfig,
    pub(crate) driver: Driver<Use>,
    pub(crate) phase: Phase,
    pub(crate) layout: Layout,
    /// As it is durable.
    pub(crate) superblock: Superblock,
    /// This life: above the superblock's at the start, and any that a frame names.
    pub(crate) life: u64,
    /// That of the durable checkpoint; or higher, where a newer superblock was lost.
    pub(crate) generation: u64,
    pub(crate) damaged: bool,
    pub(crate) table: Table,
    pub(crate) slots: Slots,
    /// Behind the last small write.
    pub(crate) small_cursor: Slot,
    pub(crate) limbo: Limbo,
    /// Named by frames that may count as not durable; free once a later frame or a checkpoint is.
    pub(crate) quarantine: Vec<Slot>,
    /// Places of dropped segments; free once that checkpoint is durable.
    pub(crate) old_places: VecDeque<(u64, Slot)>,
    pub(crate) bad: BTreeSet<Slot>,
    pub(crate) journal: Journal,
    pub(crate) ops: Slab<Op>,
    /// Blocks of data of `ops`: slots that are taken beside those that they replace.
    pub(crate) blocks_out: u64,
    /// In no frame yet; in the order of arrival.
    pub(crate) queue: VecDeque<u64>,
    /// Wait for slots.
    pub(crate) waiting: VecDeque<Waiting>,
    /// Blocks of data of `waiting`.
    pub(crate) blocks_waiting: u64,
    pub(crate) batch: Option<Batch>,
    pub(crate) reads: Slab<Read>,
    pub(crate) verifies: Verifies,
    /// Something was found damaged as it lies on the disk: so many write it anew.
    pub(crate) checkpoints_wanted: u8,
    pub(crate) loads: Loads,
    pub(crate) scattered: Scattered,
    /// Some are taken that nothing names: the next start reads all of the map.
    pub(crate) slots_lost: bool,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Fences asked for, durable or not.
    pub(crate) fences_asked: BTreeMap<VolumeId, Epoch>,
    /// Segments that were made by joining, in this life, and join. Bounded by the segments.
    pub(crate) joined_here: BTreeSet<SegmentKey>,
    /// Settled seqs that ride with the next frame.
    pub(crate) settled_asked: BTreeMap<SegmentKey, Seq>,
    pub(crate) map_asked: MapIndex,
    /// When something lazy began to wait.
    pub(crate) lazy_since: Option<Instant>,
    /// Requests under way that may make segments.
    pub(crate) makers: u32,
    /// Slots for the map pages and segment pages that requests under way may make.
    pub(crate) places_coming: u64,
    pub(crate) stats: StoreStats,
}

impl Disk {
    /// Blocks of data that may be on their way to the disk at once, over all owners: the reserve
    /// covers so many. Units: blocks.
    pub(crate) fn blocks_out_max(&self) -> u64 {
        self.superblock.limits.write_bytes_per_disk / BLOCK_BYTES
    }

    pub(crate) fn reserve_slots(&self) -> u64 {
        let pool = u64::from(self.slots.count());
        let wanted =
            (self.superblock.limits.write_bytes_per_disk + REPAIR_RESERVE_BYTES) / BLOCK_BYTES;
        wanted.min(pool / RESERVE_PART)
    }

    /// Free slots beyond what pages there are, or are coming, will need.
    pub(crate) fn slots_usable(&self) -> u64 {
        let owed = self.table.places_owed() + self.places_coming;
        self.slots.free().saturating_sub(owed)
    }

    // promise: bounded
    /// What an owner may send that needs new slots, by `credit_taken`: its share of what is free. One
    /// that looks because it is short of credit has room for the largest request, if two of those are
    /// free: not all owners send that at once.
    fn credit_bytes(&self, looks: bool) -> u64 {
        let free = self.slots_usable().saturating_sub(self.reserve_slots());
        let owners = self.table.volumes().len().max(1) as u64;
        let least = if looks && free >= 2 * REQUEST_SLOTS_MAX { REQUEST_SLOTS_MAX } else { 0 };
        (free / owners).max(least) * BLOCK_BYTES
    }

    pub(crate) fn answer(&mut self, to: &Asker, result: Result<ReplicaDone, Refusal>) {
        if to.muted {
            return;
        }
        let looks = matches!(result, Ok(ReplicaDone::Table { .. }));
        let credit_bytes = self.credit_bytes(looks);
        let answer = ReplicaAnswer { disk: to.disk, volume: to.volume, credit_bytes, result };
        let (to, request) = (to.from, to.request);
        self.driver.effects.push_back(Effect::Answer { to, request, answer });
    }

    pub(crate) fn handle_disk(&mut self, done: DiskDone) {
        let Some(usage) = self.driver.done(done.token) else { return };
        if matches!(self.phase, Phase::Out | Phase::Stopped) {
            return;
        }
        match (usage, done.result) {
            (Use::Read { read, at, count }, result) => self.on_read(read, at, count, result),
            (Use::VerifyPage { read, index, at }, result) => {
                self.on_page_read(read, index, at, result);
            }
            (Use::Look(piece), result) => self.on_looked(piece, result),
            (Use::Page { page, at, again }, result) => {
                self.on_page_loaded(page, at, again, result);
            }
            (
                Use::Data { .. }
                | Use::BatchData
                | Use::Frame
                | Use::CheckpointWrite
                | Use::Superblock,
                Err(error),
            ) => {
                self.fail(During::Write, error);
            }
            (Use::BatchSync | Use::CheckpointSync | Use::SuperblockSync, Err(error)) => {
                self.fail(During::Sync, error);
            }
            (Use::Data { op }, Ok(_)) => self.on_data_written(op),
            (Use::BatchData | Use::Frame, Ok(_)) => self.on_frame_written(),
            (Use::BatchSync, Ok(_)) => self.on_batch_durable(),
            (Use::CheckpointWrite, Ok(_)) => self.on_checkpoint_written(),
            (Use::CheckpointSync, Ok(_)) => self.on_checkpoint_synced(),
            (Use::Superblock, Ok(_)) => self.on_superblock_written(),
            (Use::SuperblockSync, Ok(_)) => self.on_superblock_durable(),
        }
    }

    // rule: store/failed-write-ends-service
    /// A failed write or sync: what the disk's cache holds is unknown, and the next sync would lie.
    fn fail(&mut self, during: During, error: DiskError) {
        self.take_out(OutOfService::Failed { during, error });
    }

    /// What it was asked may still be done at any time: it is no better than one that gave an error.
    pub(crate) fn look_whether_it_hangs(&mut self) {
        let after = self.config.settings.hang_after;
        if self.driver.hangs(after) {
            self.take_out(OutOfService::Hangs { after });
        }
    }

    fn take_out(&mut self, why: OutOfService) {
        if matches!(self.phase, Phase::Out | Phase::Stopped) {
            return;
        }
        let stops = self.phase == Phase::Stopping;
        self.phase = Phase::Out;
        self.driver.effects.retain(|effect| !matches!(effect, Effect::Disk(_)));
        self.driver.effects.push_back(Effect::OutOfService(why));
        let ops = self.ops.iter().map(|(_, op)| op.asker);
        let reads = self.reads.iter().map(|(_, read)| read.asker);
        let waiting = self.waiting.iter().map(|waiting| waiting.asker);
        let verifies = self.verifies.queue.iter().map(|verify| verify.asker);
        let askers = ops.chain(reads).chain(waiting).chain(verifies).collect::<Vec<_>>();
        askers.iter().for_each(|asker| self.answer(asker, Err(Refusal::OutOfService)));
        self.refuse_parked(Refusal::OutOfService);
        self.ops = Slab::new(0);
        self.reads = Slab::new(0);
        self.waiting.clear();
        (self.blocks_out, self.blocks_waiting) = (0, 0);
        self.verifies = Verifies::default();
        self.queue.clear();
        self.batch = None;
        self.checkpoint = None;
        self.lazy_since = None;
        // rule: store/stop-is-answered
        if stops {
            self.driver.effects.push_back(Effect::Stopped);
        }
    }

    /// Draws the conclusions after anything changed.
    pub(crate) fn conclude(&mut self, now: Instant, commits: bool) {
        if matches!(self.phase, Phase::Out | Phase::Stopped) {
            return;
        }
        if self.config.flaws.has(Flaw::SlotFreedUnderRead) {
            self.limbo.forget_reads();
        }
        while let Some(slot) = self.limbo.pop() {
            self.slots.release(slot);
        }
        self.go_on_with_loaded(now);
        self.admit_waiting();
        if commits {
            self.begin_batch(now);
        }
        self.verify_when_due(now);
        self.straighten_when_due(now);
        self.go_on_with_checkpoint();
        if self.checkpoint.is_none() && self.checkpoint_due() {
            self.begin_checkpoint();
        }
        self.evict_pages();
        if self.phase == Phase::Stopping && self.is_quiet() && self.is_checkpointed() {
            self.phase = Phase::Stopped;
            self.driver.effects.push_back(Effect::Stopped);
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.ops.is_empty()
            && self.waiting.is_empty()
            && self.batch.is_none()
            && self.settled_asked.is_empty()
    }

    fn is_checkpointed(&self) -> bool {
        self.checkpoint.is_none()
            && self.superblock.lsn == self.journal.durable
            && self.superblock.highest_map == self.map_asked
    }

    fn checkpoint_due(&self) -> bool {
        if self.is_looking() {
            return false;
        }
        match self.phase {
            Phase::Serving => {
                self.journal.is_half_full()
                    || self.quarantine_is_missed()
                    || self.checkpoints_wanted > 0
            }
            Phase::Stopping => {
                let done = self.is_quiet() && !self.is_checkpointed();
                self.journal.is_half_full() || self.quarantine_is_missed() || done
            }
            Phase::Recovering | Phase::Stopped | Phase::Out => false,
        }
    }

    /// Requests wait for slots that no later frame will set free.
    fn quarantine_is_missed(&self) -> bool {
        !self.waiting.is_empty() && self.ops.is_empty() && !self.quarantine.is_empty()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let idle = self.queue.is_empty() && self.batch.is_none();
        let since = self.lazy_since.filter(|_| idle && self.phase == Phase::Serving);
        let lazy = since.map(|since| since + self.config.settings.lazy_after);
        let ended = matches!(self.phase, Phase::Out | Phase::Stopped);
        let look = self.driver.next_look(self.config.settings.hang_after).filter(|_| !ended);
        [lazy, look, self.verify_due(), self.straighten_due()].into_iter().flatten().min()
    }

    /// Of what was named by frames up to `durable`, the slots that lost may be given out again.
    pub(crate) fn release_quarantine(&mut self) {
        for slot in std::mem::take(&mut self.quarantine) {
            self.slots.release(slot);
        }
    }

    pub(crate) fn stats(&self) -> StoreStats {
        let pool = u64::from(self.slots.count());
        StoreStats {
            capacity_bytes: self.layout.capacity,
            used_bytes: (pool - self.slots.free()) * BLOCK_BYTES,
            free_bytes: self.slots_usable() * BLOCK_BYTES,
            reserve_bytes: self.reserve_slots() * BLOCK_BYTES,
            pending: (self.ops.len()
                + self.waiting.len()
                + self.reads.len()
                + self.loads.parked.len()
                + self.verifies.queue.len()) as u64,
            oldest: self.driver.oldest(),
            pages_here: self.table.pages_here() as u64,
            ..self.stats
        }
    }
}
