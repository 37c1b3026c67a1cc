//! Writes: stamped, sent to the whole write set at once, acknowledged when all of it has answered.

use crate::asks::Purpose;
use crate::gather::BLOCK;
use crate::io::MemberFailure;
use crate::order::{OpId, OpKind, OpState, Writing, Yield};
use crate::room::fresh_bytes;
use crate::segment::Joiner;
use crate::volume::Volume;
use bytes::Bytes;
use gabion_types::{
    BlockInfo, DiskId, Flaw, Instant, IoError, SegmentIndex, Seq, Version, block_crc,
};
use gabion_wire::{LinkClass, ReplicaOp};

/// A write whose last member says it is full is sent again so often before its guest is told: by
/// then what it had under older versions has reached the disk.
const FULL_MAX: u32 = 3;
/// What `SECTOR_BYTES` is for a slice.
const SECTOR: usize = 512;

impl Volume {
    pub(crate) fn begin_write(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let (segment, range) = (op.segment, op.range);
        if matches!(op.kind, OpKind::Write { .. })
            && !self.has_room(now, id)
            && let Some(disk) = self.short_of_credit(segment, range, &[])
        {
            self.look_before_write(now, id, disk, Vec::new());
            return;
        }
        self.stamp(now, id, Vec::new(), 0);
    }

    /// Gives the write a new version under the present epoch and sends it to the whole write set.
    // rule: volume/write-goes-to-whole-write-set
    pub(crate) fn stamp(&mut self, now: Instant, id: OpId, mut seqs: Vec<Seq>, full: u32) {
        let Some(op) = self.ops.get(&id) else { return };
        let index = op.segment;
        let mut missing: Vec<DiskId> = self.members(index).write_set().collect();
        if self.settings.flaws.has(Flaw::JoinerNotInWriteSet) {
            missing.clone_from(&self.members(index).in_sync);
        }
        let epoch = self.view.epoch;
        let segment = self.segment_mut(index);
        let seq = segment.seqs.give();
        segment.seqs.tell();
        seqs.push(seq);
        let version = Version::new(epoch, seq);
        let members = missing.clone();
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.state = OpState::Writing(Writing { version, seqs, missing, alone: None, full });
        for disk in members {
            if self.takes_writes(index, disk) {
                self.send_write(now, id, disk);
            }
        }
    }

    fn send_write(&mut self, now: Instant, id: OpId, disk: DiskId) {
        let Some(op) = self.ops.get(&id) else { return };
        let OpState::Writing(writing) = &op.state else { return };
        let (segment, version) = (op.segment, writing.version);
        if let Some(write) = self.write_op(id, disk) {
            let purpose = Purpose::Write { segment, op: id, version };
            self.ask(now, disk, LinkClass::Data, write, purpose);
        }
    }

    /// The write as it is sent now. A joiner is not told what is settled.
    // rule: volume/settled-goes-to-in-sync-only
    pub(crate) fn write_op(&self, id: OpId, disk: DiskId) -> Option<ReplicaOp> {
        let op = self.ops.get(&id)?;
        let OpState::Writing(writing) = &op.state else { return None };
        let (segment, version, range) = (op.segment, writing.version, op.range);
        let all = self.settings.flaws.has(Flaw::JoinerSettledAdvances);
        let settled = if self.members(segment).is_in_sync(disk) || all {
            self.segment(segment).seqs.settled()
        } else {
            Seq::ZERO
        };
        match &op.kind {
            OpKind::Write { data, crcs } => {
                let (crcs, data) = (crcs.clone(), data.clone());
                Some(ReplicaOp::Write { segment, version, range, crcs, data, settled })
            }
            OpKind::Zero => Some(ReplicaOp::Zero { segment, version, range, settled }),
            OpKind::Read { .. } | OpKind::Status { .. } | OpKind::Room | OpKind::Merge { .. } => {
                None
            }
        }
    }

    /// In-sync, or a joiner whose `JoinStart` is durable: nothing is sent before that.
    // rule: volume/join-start-before-writes
    fn takes_writes(&self, index: SegmentIndex, disk: DiskId) -> bool {
        self.members(index).is_in_sync(disk)
            || self.segment(index).joiners.get(&disk).is_some_and(Joiner::takes_writes)
    }

    /// A joiner takes writes from now on: it gets those that are under way.
    pub(crate) fn send_writes_to(&mut self, now: Instant, index: SegmentIndex, disk: DiskId) {
        let ids: Vec<OpId> = self.segment(index).ops.iter().copied().collect();
        for id in ids {
            let Some(op) = self.ops.get(&id) else { continue };
            if let OpState::Writing(writing) = &op.state
                && writing.missing.contains(&disk)
            {
                self.send_write(now, id, disk);
            }
        }
    }

    /// A member has this version of the write. An answer to an older version is none. Gives since when
    /// this disk alone was waited for, if it was.
    // rule: volume/only-answers-to-the-present-version-count
    pub(crate) fn on_written(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        id: OpId,
        version: Version,
        disk: DiskId,
    ) -> Option<Instant> {
        let op = self.ops.get_mut(&id)?;
        let OpState::Writing(writing) = &mut op.state else { return None };
        let old = self.settings.flaws.has(Flaw::AcknowledgeByOldAnswers);
        if writing.version != version && !old {
            return None;
        }
        writing.missing.retain(|member| *member != disk);
        let all = writing.missing.is_empty();
        let alone = if all { writing.alone } else { None };
        if writing.missing.len() == 1 {
            writing.alone = Some(now);
        }
        let segment = self.segment_mut(index);
        if let Some(joiner) = segment.joiners.get_mut(&disk) {
            joiner.reached = joiner.reached.max(version.seq);
        }
        if all {
            segment.answered.insert(id);
            self.dirty.insert(index);
        }
        alone
    }

    /// Acknowledges what every member of the current view has, unless a change of these members
    /// is undecided.
    // promise: acked-survives
    // promise: majority-first
    pub(crate) fn acknowledge(&mut self, now: Instant, index: SegmentIndex) {
        let early = self.settings.flaws.has(Flaw::AcknowledgeBeforeMap);
        if self.segment(index).answered.is_empty() || self.proposals.freezes(index) && !early {
            return;
        }
        for id in std::mem::take(&mut self.segment_mut(index).answered) {
            let Some(op) = self.ops.get(&id) else { continue };
            let OpState::Writing(writing) = &op.state else { continue };
            let (seqs, range) = (writing.seqs.clone(), op.range);
            let data = matches!(op.kind, OpKind::Write { .. });
            self.segment_mut(index).seqs.resolve(&seqs);
            if data {
                self.counts.write_bytes += range.bytes();
            }
            self.note_written(index, range);
            if !self.lost.is_empty() {
                range.iter().for_each(|block| {
                    self.lost.remove(&(index, block));
                });
            }
            self.finish(now, id, Ok(Yield::Done));
        }
        self.tell_later(now, index);
    }

    /// Every unresolved write gets a new version for the new members; old answers count no more.
    // rule: volume/restamp-on-change-of-members
    pub(crate) fn restamp(&mut self, now: Instant, index: SegmentIndex) {
        if self.settings.flaws.has(Flaw::NoRestamp) {
            self.keep_stamps(index);
            return;
        }
        if !self.settings.flaws.has(Flaw::AcknowledgeByOldAnswers) {
            self.drop_asks(
                |ask| matches!(ask.purpose, Purpose::Write { segment, .. } if segment == index),
            );
        }
        self.segment_mut(index).answered.clear();
        let ids: Vec<OpId> = self.segment(index).ops.iter().copied().collect();
        for id in ids {
            let Some(op) = self.ops.get(&id) else { continue };
            let OpState::Writing(writing) = &op.state else { continue };
            let (seqs, full) = (writing.seqs.clone(), writing.full);
            let answered = self.answered_by_members(index, writing);
            self.stamp(now, id, seqs, full);
            if answered && self.settings.flaws.has(Flaw::AcknowledgeByOldAnswers) {
                self.segment_mut(index).answered.insert(id);
            }
        }
    }

    /// All that are still members of those that it was sent to have answered.
    fn answered_by_members(&self, index: SegmentIndex, writing: &Writing) -> bool {
        let mut members = self.members(index).write_set();
        !members.any(|disk| writing.missing.contains(&disk))
    }

    /// Writes under way without those that left: two rules that tests switch off.
    pub(crate) fn without(&mut self, index: SegmentIndex, gone: impl Fn(DiskId) -> bool) {
        let ids: Vec<OpId> = self.segment(index).ops.iter().copied().collect();
        for id in ids {
            let Some(op) = self.ops.get_mut(&id) else { continue };
            let OpState::Writing(writing) = &mut op.state else { continue };
            writing.missing.retain(|disk| !gone(*disk));
            if writing.missing.is_empty() {
                self.segment_mut(index).answered.insert(id);
            }
        }
        self.dirty.insert(index);
    }

    fn keep_stamps(&mut self, index: SegmentIndex) {
        let members: Vec<DiskId> = self.members(index).write_set().collect();
        self.without(index, |disk| !members.contains(&disk));
    }

    /// The last in-sync replica has no room for it. True when the guest was told so: then no
    /// member has it, or ever will.
    pub(crate) fn on_last_is_full(&mut self, now: Instant, id: OpId) -> bool {
        let Some(op) = self.ops.get_mut(&id) else { return true };
        let index = op.segment;
        let OpState::Writing(writing) = &mut op.state else { return true };
        writing.full += 1;
        let seqs = writing.seqs.clone();
        let alone = self.members(index).write_set().count() == 1;
        if !alone || (seqs.len() > 1 && self.full_count(id) < FULL_MAX) {
            return false;
        }
        self.segment_mut(index).seqs.void(&seqs);
        self.drop_asks(|ask| matches!(ask.purpose, Purpose::Write { op, .. } if op == id));
        self.finish(now, id, Err(IoError::NoSpace));
        true
    }

    fn full_count(&self, id: OpId) -> u32 {
        match self.ops.get(&id).map(|op| &op.state) {
            Some(OpState::Writing(writing)) => writing.full,
            Some(OpState::Waiting { .. } | OpState::Fetching(_) | OpState::Looking { .. })
            | None => 0,
        }
    }

    /// A patch meets the block that it is laid over: from now on it is a write of the whole block.
    pub(crate) fn merge(&mut self, now: Instant, id: OpId, block: &Bytes) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let OpKind::Merge { within, patch } = &op.kind else { return };
        let mut merged = block.to_vec();
        merged.resize(BLOCK, 0);
        let mut bytes = patch.len();
        if self.settings.flaws.has(Flaw::TornMerge) && bytes > SECTOR {
            let last = *within + bytes - SECTOR..*within + bytes;
            let is_data = merged[last].iter().any(|byte| *byte != 0);
            bytes -= if is_data { SECTOR } else { 0 };
        }
        merged[*within..*within + bytes].copy_from_slice(&patch[..bytes]);
        let crcs = vec![block_crc(&merged)];
        op.kind = OpKind::Write { data: Bytes::from(merged), crcs };
        self.begin_write(now, id);
    }

    /// A disk without credit is asked whether the write only overwrites there: that its reserve
    /// covers. Bytes in flight are waited for first: their answers bring credit.
    pub(crate) fn look_before_write(
        &mut self,
        now: Instant,
        id: OpId,
        disk: DiskId,
        passed: Vec<(DiskId, u64)>,
    ) {
        let in_flight = self.disks.get(disk).is_some_and(|state| state.credit_out > 0);
        let Some(op) = self.ops.get_mut(&id) else { return };
        if in_flight
            || self.links.is_away(self.disks.home(disk).unwrap_or(self.me), LinkClass::Data)
        {
            self.wait_again(id, true);
            return;
        }
        op.state = OpState::Looking { asked: disk, passed };
        self.ask_table(now, id, disk);
    }

    /// The table of a disk that was short of credit, and by it a fresh word on its credit.
    // rule: volume/full-disk-refuses-before-anything-is-sent
    pub(crate) fn on_looked(&mut self, now: Instant, id: OpId, disk: DiskId, table: &[BlockInfo]) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let (segment, range) = (op.segment, op.range);
        let OpState::Looking { passed, .. } = &mut op.state else { return };
        let fresh = fresh_bytes(range, table);
        let mut passed = std::mem::take(passed);
        let short = |volume: &Self, passed: &[(DiskId, u64)]| {
            volume.short_of_credit(segment, range, passed)
        };
        if fresh > 0 && short(self, &passed) == Some(disk) {
            self.finish(now, id, Err(IoError::NoSpace));
            return;
        }
        passed.push((disk, fresh));
        match short(self, &passed) {
            None => self.stamp(now, id, Vec::new(), 0),
            Some(next) => {
                if let Some(op) = self.ops.get_mut(&id) {
                    op.state = OpState::Looking { asked: next, passed };
                }
                self.ask_table(now, id, next);
            }
        }
    }

    /// Who alone is slow while the own disk answers is taken out.
    pub(crate) fn look_for_slow(&mut self, now: Instant) {
        let wait = self.settings.slow_wait;
        // Another copy may answer what is only read; whether this disk is to go, its writes tell.
        // rule: volume/slow-read-goes-elsewhere
        let late = |since| now.since(since) >= wait;
        self.give_up_asks(now, |ask| {
            ask.purpose.is_elsewhere() && ask.first_sent().is_some_and(late)
        });
        let mut slow: Vec<DiskId> = Vec::new();
        for ask in self.asks.iter().filter(|ask| ask.first_sent().is_some_and(late)) {
            let counts = match &ask.purpose {
                Purpose::Write { op, .. } => self.own_disk_answered(*op, ask.disk),
                Purpose::Prove { .. }
                | Purpose::FencePair { .. }
                | Purpose::TailTable { .. }
                | Purpose::TailRead { .. }
                | Purpose::Settle { .. }
                | Purpose::EpochStart { .. }
                | Purpose::JoinStart { .. }
                | Purpose::FillTable { .. }
                | Purpose::Install { .. }
                | Purpose::FillMark { .. } => self.disks.home(ask.disk) != Some(self.me),
                Purpose::Read { .. }
                | Purpose::Table { .. }
                | Purpose::Fence { .. }
                | Purpose::Promoted { .. }
                | Purpose::FillRead { .. }
                | Purpose::Repair { .. }
                | Purpose::ScrubTable { .. }
                | Purpose::ScrubVerify { .. }
                | Purpose::ScrubRead { .. }
                | Purpose::ScrubMend { .. } => false,
            };
            if counts && !slow.contains(&ask.disk) {
                slow.push(ask.disk);
            }
        }
        for disk in slow {
            self.fail_disk(now, disk, MemberFailure::Slow);
        }
    }

    /// The own disk has answered this version, or, where none is a member, any other has.
    fn own_disk_answered(&self, id: OpId, slow: DiskId) -> bool {
        let Some(op) = self.ops.get(&id) else { return false };
        let OpState::Writing(writing) = &op.state else { return false };
        let members = || self.members(op.segment).write_set();
        let own = members().find(|disk| self.disks.home(*disk) == Some(self.me));
        match own {
            Some(own) => own != slow && !writing.missing.contains(&own),
            None => members().any(|disk| !writing.missing.contains(&disk)),
        }
    }
}
