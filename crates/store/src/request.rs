//! Requests of owners: what is refused at once, and what goes into the queue.

use crate::config::{
    REQUEST_BLOCKS_MAX, REQUESTS_MAX, STARTS_MAX, STREAM_BLOCKS, WAITING_BLOCKS_MAX,
};
use crate::disk::{Asker, Disk, Phase, Use};
use crate::io::Origin;
use crate::op::{After, BLOCK, Op, OpPlace, Piece, PieceBody, Plan, Waiting};
use crate::op::{is_fenced, listed_pieces, write_pieces};
use crate::read::Purpose;
use crate::slots::Extent;
use gabion_format::{BlockState, Entry, Rule, SegmentKey};
use gabion_types::{
    BlockIndex, BlockRange, Epoch, Flaw, Instant, SegmentIndex, Seq, Version, VolumeId,
};
use gabion_wire::{
    EpochStart, FencedSegment, Refusal, ReplicaDone, ReplicaOp, ReplicaRequest, RequestId,
};
use std::collections::VecDeque;

/// What becomes of a request at once.
enum Taken {
    /// It is queued, waits, or is answered already.
    UnderWay,
    Answered(ReplicaDone),
    /// Nobody waits for an answer.
    Silent,
}

/// Whether there is room for a plan.
enum Room {
    Now,
    Later,
    Never,
}

impl Disk {
    pub(crate) fn handle_request(
        &mut self,
        now: Instant,
        from: Origin,
        request: RequestId,
        ask: ReplicaRequest,
    ) {
        let asker = Asker {
            from,
            request,
            disk: ask.disk,
            volume: ask.volume,
            owner_epoch: ask.owner_epoch,
            muted: false,
        };
        self.take_request(now, asker, ask.op);
    }

    pub(crate) fn take_request(&mut self, now: Instant, asker: Asker, op: ReplicaOp) {
        let silent = matches!(op, ReplicaOp::Advance { .. });
        if !silent {
            self.note_busy(now);
        }
        match self.take(now, asker, op) {
            Ok(Taken::UnderWay | Taken::Silent) => {}
            Ok(Taken::Answered(done)) => self.answer(&asker, Ok(done)),
            Err(_) if silent => {}
            Err(refusal) => self.answer(&asker, Err(refusal)),
        }
    }

    fn take(&mut self, now: Instant, asker: Asker, op: ReplicaOp) -> Result<Taken, Refusal> {
        match self.phase {
            Phase::Serving => {}
            Phase::Recovering | Phase::Stopping | Phase::Stopped => return Err(Refusal::NotReady),
            Phase::Out => return Err(Refusal::OutOfService),
        }
        let of_owner = !matches!(op, ReplicaOp::Create { .. } | ReplicaOp::Drop { .. })
            && !self.config.flaws.has(Flaw::NoFence);
        if let Some(refusal) =
            is_fenced(self.fence_asked(asker.volume), asker.owner_epoch).filter(|_| of_owner)
        {
            return Err(refusal);
        }
        let held = self.ops.len() + self.waiting.len() + self.reads.len();
        if held + self.verifies.queue.len() + self.loads.parked.len() >= REQUESTS_MAX {
            return Err(Refusal::Busy);
        }
        let Some(op) = self.park(&asker, op)? else { return Ok(Taken::UnderWay) };
        let key = |segment| SegmentKey::new(asker.volume, segment);
        match op {
            ReplicaOp::Create { creation, first, count } => {
                self.take_create(asker, key(first), creation, count)
            }
            ReplicaOp::Fence { segments } => self.take_fence(asker, segments),
            ReplicaOp::Read { segment, range } => {
                self.check_range(range, REQUEST_BLOCKS_MAX)?;
                self.begin_read(asker, key(segment), range, Purpose::Owner)?;
                Ok(Taken::UnderWay)
            }
            ReplicaOp::Verify { segment, range } => {
                self.check_range(range, REQUEST_BLOCKS_MAX)?;
                self.take_verify(now, asker, key(segment), range)?;
                Ok(Taken::UnderWay)
            }
            ReplicaOp::Scan { segment, from, seq_above, epoch_from, entries_max } => self
                .scan(key(segment), from, seq_above, epoch_from, entries_max)
                .map(Taken::Answered),
            ReplicaOp::EpochStart { starts } => self.take_epoch_start(asker, &starts),
            ReplicaOp::Advance { settled } => Ok(self.take_advance(now, asker.volume, &settled)),
            ReplicaOp::JoinStart { segment, joined, creation } => {
                let key = key(segment);
                let entry = Entry::Join { key, joined, creation };
                Ok(self.enqueue(asker, vec![entry], After::JoinStarted { key }, true))
            }
            ReplicaOp::Promoted { segment, joined, settled } => {
                let key = key(segment);
                self.check_there(key)?;
                let entry = Entry::Promoted { key, joined, settled };
                Ok(self.enqueue(asker, vec![entry], After::Done, false))
            }
            ReplicaOp::Drop { segment, creation, epoch } => {
                let key = key(segment);
                if self.makers == 0 && self.table.segment(key).is_none() {
                    return Ok(Taken::Answered(ReplicaDone::Done));
                }
                let entry = Entry::Gone { key, creation, epoch };
                Ok(self.enqueue(asker, vec![entry], After::Done, false))
            }
            ReplicaOp::Write { .. }
            | ReplicaOp::Zero { .. }
            | ReplicaOp::Settle { .. }
            | ReplicaOp::Repair { .. }
            | ReplicaOp::Install { .. } => self.take_blocks(asker, op),
        }
    }

    /// What changes blocks.
    fn take_blocks(&mut self, asker: Asker, op: ReplicaOp) -> Result<Taken, Refusal> {
        let key = |segment| SegmentKey::new(asker.volume, segment);
        let plan = match op {
            ReplicaOp::Write { segment, version, range, crcs, data, settled } => {
                self.check_range(range, REQUEST_BLOCKS_MAX)?;
                let pieces = write_pieces(range, version, crcs, data)?;
                Plan { key: key(segment), rule: Rule::Write, settled: Some(settled), pieces }
            }
            ReplicaOp::Zero { segment, version, range, settled } => {
                if version == Version::NEVER {
                    return Err(Refusal::Invalid);
                }
                let pieces = vec![Piece { range, version, body: PieceBody::Zero }];
                Plan { key: key(segment), rule: Rule::Write, settled: Some(settled), pieces }
            }
            ReplicaOp::Settle { segment, blocks, data } => {
                let pieces = listed_pieces(&blocks, &data, false)?;
                Plan { key: key(segment), rule: Rule::Settle, settled: None, pieces }
            }
            ReplicaOp::Repair { segment, blocks, data } => {
                let pieces = listed_pieces(&blocks, &data, false)?;
                self.repair_plan(key(segment), pieces)?
            }
            ReplicaOp::Install { segment, joined, blocks, data } => {
                let pieces = listed_pieces(&blocks, &data, true)?;
                self.check_joined(key(segment), joined)?;
                let rule = Rule::Install { joined };
                Plan { key: key(segment), rule, settled: None, pieces }
            }
            ReplicaOp::Create { .. }
            | ReplicaOp::Fence { .. }
            | ReplicaOp::Read { .. }
            | ReplicaOp::Scan { .. }
            | ReplicaOp::Verify { .. }
            | ReplicaOp::EpochStart { .. }
            | ReplicaOp::Advance { .. }
            | ReplicaOp::JoinStart { .. }
            | ReplicaOp::Promoted { .. }
            | ReplicaOp::Drop { .. } => return Err(Refusal::Invalid),
        };
        self.take_plan(asker, plan)
    }

    fn fence_asked(&self, volume: VolumeId) -> Epoch {
        let asked = self.fences_asked.get(&volume).copied().unwrap_or(Epoch::ZERO);
        asked.max(self.table.fence(volume))
    }

    fn check_range(&self, range: BlockRange, blocks_max: u32) -> Result<(), Refusal> {
        let fits = range.end().get() <= self.table.geometry.segment_blocks;
        if fits && range.count() <= blocks_max { Ok(()) } else { Err(Refusal::Invalid) }
    }

    // rule: store/writes-make-no-segment
    /// A segment that a request under way may still make is judged when that one is durable.
    fn check_there(&self, key: SegmentKey) -> Result<(), Refusal> {
        let makes = self.config.flaws.has(Flaw::WriteMakesSegment);
        if self.makers > 0 || self.table.segment(key).is_some() || makes {
            Ok(())
        } else {
            Err(Refusal::NoSegment)
        }
    }

    fn check_joined(&self, key: SegmentKey, joined: Epoch) -> Result<(), Refusal> {
        self.check_there(key)?;
        let other = |meta: &gabion_format::SegmentMeta| !meta.joining || meta.joined != joined;
        match self.table.segment(key) {
            Some(segment) if self.makers == 0 && other(&segment.meta) => Err(Refusal::WrongEpoch),
            Some(_) | None => Ok(()),
        }
    }

    fn take_create(
        &mut self,
        asker: Asker,
        first: SegmentKey,
        creation: Epoch,
        count: u32,
    ) -> Result<Taken, Refusal> {
        if count == 0 || first.segment.get().checked_add(count).is_none() {
            return Err(Refusal::Invalid);
        }
        if count as usize > self.table.geometry.segments_max {
            return Err(Refusal::NoSpace);
        }
        let entry = Entry::New { first, count, creation };
        Ok(self.enqueue(asker, vec![entry], After::Done, true))
    }

    // promise: one-owner
    // rule: store/fence-waits-for-frames
    /// What older owners asked and is in no frame yet is refused; what is in a frame is durable
    /// before the fence's own frame is, and so before its answer.
    fn take_fence(&mut self, asker: Asker, segments: Vec<FencedSegment>) -> Result<Taken, Refusal> {
        let (volume, epoch) = (asker.volume, asker.owner_epoch);
        let known = self.table.fences.contains_key(&volume);
        let fences = self.table.fences.len() + self.fences_asked.len();
        if !known && fences >= self.table.geometry.segments_max {
            return Err(Refusal::NoSpace);
        }
        self.fences_asked.insert(volume, epoch);
        let older = |other: &Asker| other.volume == volume && other.owner_epoch < epoch;
        let refusal = Err(Refusal::Fenced { by: epoch });
        if !self.config.flaws.has(Flaw::NoFence) {
            self.cancel_where(|op| older(&op.asker) && op.is_of_owner(), Some(refusal.clone()));
        }
        let waiting = std::mem::take(&mut self.waiting);
        let (gone, kept): (VecDeque<Waiting>, _) =
            waiting.into_iter().partition(|waiting| older(&waiting.asker));
        self.waiting = kept;
        self.count_waiting();
        gone.iter().for_each(|waiting| self.answer(&waiting.asker, refusal.clone()));
        let mut entries = vec![Entry::Fence { volume, epoch }];
        if self.config.flaws.has(Flaw::FenceInMemoryOnly) {
            entries.clear();
        }
        let after = if self.config.flaws.has(Flaw::FenceBeforeWritesUnderWay) {
            After::FencedBefore { reports: self.reports(volume, &segments) }
        } else {
            After::Fenced { segments }
        };
        Ok(self.enqueue(asker, entries, after, false))
    }

    fn take_epoch_start(&mut self, asker: Asker, starts: &[EpochStart]) -> Result<Taken, Refusal> {
        if starts.len() > STARTS_MAX {
            return Err(Refusal::Invalid);
        }
        let mut entries = Vec::with_capacity(starts.len());
        for start in starts {
            let key = SegmentKey::new(asker.volume, start.segment);
            self.check_there(key)?;
            entries.push(Entry::EpochStart { key, epoch: start.epoch, next: start.next });
        }
        if entries.is_empty() {
            return Ok(Taken::Answered(ReplicaDone::Done));
        }
        Ok(self.enqueue(asker, entries, After::Done, false))
    }

    fn take_advance(
        &mut self,
        now: Instant,
        volume: VolumeId,
        settled: &[(SegmentIndex, Seq)],
    ) -> Taken {
        for (segment, seq) in settled {
            self.ask_settled(SegmentKey::new(volume, *segment), *seq);
        }
        if !self.settled_asked.is_empty() {
            self.lazy_since.get_or_insert(now);
        }
        Taken::Silent
    }

    /// It becomes the segment's settled seq with the next frame.
    pub(crate) fn ask_settled(&mut self, key: SegmentKey, seq: Seq) {
        let Some(segment) = self.table.segment(key) else { return };
        let asked = self.settled_asked.get(&key).copied().unwrap_or(Seq::ZERO);
        let frozen = segment.meta.joining && !self.table.flaws.has(Flaw::JoinerSettledAdvances);
        if !frozen && seq > segment.meta.settled.max(asked) {
            self.settled_asked.insert(key, seq);
        }
    }

    /// Keeps of a repair what is bad here; the rest is as it should be.
    fn repair_plan(&self, key: SegmentKey, pieces: Vec<Piece>) -> Result<Plan, Refusal> {
        let Some(segment) = self.table.segment(key) else { return Err(Refusal::NoSegment) };
        let is_bad = |block: BlockIndex| {
            let entry = segment.block(block);
            let bad = entry.slot().is_some_and(|slot| self.bad.contains(&slot));
            bad || entry.state() == BlockState::Unknown
        };
        let pieces = pieces.into_iter().flat_map(Piece::into_blocks);
        let pieces: Vec<_> = pieces.filter(|piece| is_bad(piece.range.first())).collect();
        Ok(Plan { key, rule: Rule::Repair, settled: None, pieces })
    }

    // rule: store/known-version-is-done
    fn take_plan(&mut self, asker: Asker, plan: Plan) -> Result<Taken, Refusal> {
        self.check_there(plan.key)?;
        for piece in &plan.pieces {
            self.check_range(piece.range, u32::MAX)?;
        }
        if plan.data_blocks() > REQUEST_BLOCKS_MAX {
            return Err(Refusal::Invalid);
        }
        if self.has_all_of(&plan) {
            if let Some(seq) = plan.settled {
                self.ask_settled(plan.key, seq);
            }
            return Ok(Taken::Answered(ReplicaDone::Done));
        }
        if !self.waiting.is_empty() && plan.data_blocks() > 0 {
            return self.put_in_line(asker, plan);
        }
        match self.room_for(&plan) {
            Room::Now => self.start(asker, plan),
            Room::Later => return self.put_in_line(asker, plan),
            Room::Never => return Err(Refusal::NoSpace),
        }
        Ok(Taken::UnderWay)
    }

    // promise: bounded
    /// So much waits for what is on its way. More: its owner asks again.
    fn put_in_line(&mut self, asker: Asker, plan: Plan) -> Result<Taken, Refusal> {
        let blocks = u64::from(plan.data_blocks());
        if self.blocks_waiting > 0 && self.blocks_waiting + blocks > WAITING_BLOCKS_MAX {
            return Err(Refusal::Busy);
        }
        self.blocks_waiting += blocks;
        self.waiting.push_back(Waiting { asker, plan });
        Ok(Taken::UnderWay)
    }

    fn next_in_line(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.blocks_waiting -= u64::from(waiting.plan.data_blocks());
        Some(waiting)
    }

    /// After more than one has left the line.
    fn count_waiting(&mut self) {
        let blocks = self.waiting.iter().map(|waiting| u64::from(waiting.plan.data_blocks()));
        self.blocks_waiting = blocks.sum();
    }

    /// Durably so: what is in the map is synced.
    fn has_all_of(&self, plan: &Plan) -> bool {
        let Some(segment) = self.table.segment(plan.key) else { return false };
        if self.makers > 0 {
            return false;
        }
        plan.pieces.iter().all(|piece| {
            let state = piece.body.state();
            piece.range.iter().all(|block| {
                !self.table.applies(plan.rule, segment.block(block), piece.version, state)
            })
        })
    }

    // promise: bounded
    // rule: store/full-disk-serves-overwrites
    // rule: store/writes-under-way-are-bounded
    /// New data leaves the reserve alone. What takes more room for good and is no new data (a hole
    /// where nothing was, a takeover's tail) leaves half of it: what replaces, empties or mends what
    /// is there gives back what it takes, and always has room.
    fn room_for(&self, plan: &Plan) -> Room {
        let segment = self.table.segment(plan.key);
        let is_fresh = |block| segment.is_none_or(|segment| segment.block(block).slot().is_none());
        let data = |piece: &&Piece| matches!(piece.body, PieceBody::Data { .. });
        let mut of_data = plan.pieces.iter().filter(data);
        let fresh = of_data.any(|piece| piece.range.iter().any(is_fresh));
        let places = self.table.places_missing(plan.key, plan.ranges());
        let need = u64::from(plan.data_blocks()) + u64::from(places);
        let out = self.blocks_out + u64::from(plan.data_blocks());
        let unbound = self.config.flaws.has(Flaw::WritesWithoutBound);
        let full = out > self.blocks_out_max() && !unbound;
        if self.blocks_out > 0 && plan.data_blocks() > 0 && full {
            return Room::Later;
        }
        let kept = match plan.rule {
            Rule::Write | Rule::Install { .. } if fresh => self.reserve_slots(),
            Rule::Write | Rule::Install { .. } | Rule::Settle if fresh || places > 0 => {
                self.reserve_slots() / 2
            }
            Rule::Write | Rule::Install { .. } | Rule::Settle | Rule::Repair | Rule::Move => 0,
        };
        if need + kept <= self.slots_usable() {
            return Room::Now;
        }
        if fresh && plan.rule != Rule::Settle && plan.rule != Rule::Repair {
            return Room::Never;
        }
        let coming = !self.ops.is_empty() || !self.limbo.is_empty() || !self.quarantine.is_empty();
        if coming || self.checkpoint.is_some() { Room::Later } else { Room::Never }
    }

    pub(crate) fn admit_waiting(&mut self) {
        while let Some(waiting) = self.waiting.front() {
            match self.room_for(&waiting.plan) {
                Room::Later => return,
                Room::Now => {
                    let Some(waiting) = self.next_in_line() else { return };
                    self.start(waiting.asker, waiting.plan);
                }
                Room::Never => {
                    let Some(waiting) = self.next_in_line() else { return };
                    self.answer(&waiting.asker, Err(Refusal::NoSpace));
                }
            }
        }
    }

    /// Gives the plan its slots, sends its data to the disk and queues it for the next frame.
    pub(crate) fn start(&mut self, asker: Asker, plan: Plan) {
        let blocks = plan.data_blocks();
        let fills = matches!(plan.rule, Rule::Install { .. });
        let moves = plan.rule == Rule::Move;
        let extents = self.allocate(plan.key, blocks);
        let places_coming = self.table.places_missing(plan.key, plan.ranges());
        let settled = plan.settled.map(|seq| (plan.key, seq));
        let (entries, mut writes) = plan.lay(&extents);
        if fills && self.config.flaws.has(Flaw::InstallNotWritten) {
            let last = writes.last_mut().and_then(|(_, pieces)| pieces.last_mut());
            if let Some(run) = last.filter(|run| run.len() > BLOCK) {
                run.truncate(run.len() - BLOCK);
            }
        }
        self.places_coming += u64::from(places_coming);
        let bytes = u64::from(blocks) * gabion_types::BLOCK_BYTES;
        if moves {
            self.stats.moved_bytes += bytes;
        } else {
            self.stats.writes += 1;
            self.stats.write_bytes += bytes;
        }
        if fills {
            self.stats.filled_bytes += bytes;
        }
        let mut op = Op {
            asker,
            entries,
            after: After::Done,
            place: OpPlace::Queued,
            writes_out: 0,
            held: Vec::new(),
            settled,
            places_coming,
            makes: false,
        };
        self.blocks_out += u64::from(blocks);
        if blocks < STREAM_BLOCKS {
            op.held = std::mem::take(&mut writes);
        }
        op.writes_out = u32::try_from(writes.len()).expect("at most one a block");
        let key = self.ops.insert(op).expect("counted against REQUESTS_MAX before");
        self.queue.push_back(key);
        for (slot, pieces) in writes {
            let offset = self.layout.slot_offset(slot);
            self.driver.write(Use::Data { op: key }, offset, pieces);
        }
    }

    /// Streams go on where their segment's last one ended; what is small goes behind the last small
    /// one of any segment, so that a frame's data is few writes.
    fn allocate(&mut self, key: SegmentKey, blocks: u32) -> Vec<Extent> {
        let streams = blocks >= STREAM_BLOCKS;
        let of_segment = self.table.segment(key).map(|segment| segment.cursor);
        let hint = if streams { of_segment.unwrap_or_default() } else { self.small_cursor };
        let extents = self.slots.allocate(hint, blocks);
        let extents = extents.expect("`room_for` said that there is room");
        if let Some(end) = extents.last().map(|(slot, count)| slot.plus(*count)) {
            match self.table.segment_mut(key) {
                Some(segment) if streams => segment.cursor = end,
                _ => self.small_cursor = end,
            }
        }
        extents
    }

    fn enqueue(&mut self, asker: Asker, entries: Vec<Entry>, after: After, makes: bool) -> Taken {
        let op = Op {
            asker,
            entries,
            after,
            place: OpPlace::Queued,
            writes_out: 0,
            held: Vec::new(),
            settled: None,
            places_coming: 0,
            makes,
        };
        self.makers += u32::from(makes);
        let key = self.ops.insert(op).expect("counted against REQUESTS_MAX before");
        self.queue.push_back(key);
        Taken::UnderWay
    }

    /// Takes queued requests back; those in a frame go on.
    pub(crate) fn cancel_where(
        &mut self,
        mut gone: impl FnMut(&Op) -> bool,
        answer: Option<Result<ReplicaDone, Refusal>>,
    ) {
        let queue = std::mem::take(&mut self.queue);
        for key in queue {
            let Some(op) = self.ops.get_mut(key) else { continue };
            if !gone(op) {
                self.queue.push_back(key);
                continue;
            }
            op.place = OpPlace::Cancelled;
            let asker = op.asker;
            self.places_coming -= u64::from(op.places_coming);
            self.makers -= u32::from(op.makes);
            if op.writes_out == 0 {
                self.forget_cancelled(key);
            }
            if let Some(answer) = answer.clone() {
                self.answer(&asker, answer);
            }
        }
    }

    /// Its slots were never named by a frame, and nothing is in flight to them any more.
    pub(crate) fn forget_cancelled(&mut self, key: u64) {
        let Some(op) = self.ops.remove(key) else { return };
        self.blocks_out -= op.data_blocks();
        if self.config.flaws.has(Flaw::LeakedSlot) {
            return;
        }
        for (first, count) in op.extents() {
            (0..count).for_each(|index| self.slots.release(first.plus(index)));
        }
    }

    /// A fence that will not be durable was never answered, and binds nobody.
    fn forget_cancelled_fences(&mut self) {
        self.fences_asked.clear();
        let ops = self.ops.iter().filter(|(_, op)| op.place != OpPlace::Cancelled);
        for entry in ops.flat_map(|(_, op)| &op.entries) {
            if let Entry::Fence { volume, epoch } = entry {
                let asked = self.fences_asked.entry(*volume).or_insert(Epoch::ZERO);
                *asked = (*asked).max(*epoch);
            }
        }
    }

    // rule: store/origin-gone
    pub(crate) fn handle_origin_gone(&mut self, origin: Origin) {
        self.cancel_where(|op| op.asker.from == origin, None);
        self.forget_cancelled_fences();
        self.waiting.retain(|waiting| waiting.asker.from != origin);
        self.count_waiting();
        self.verifies.queue.retain(|verify| verify.asker.from != origin);
        self.loads.forget(origin);
        let ops = self.ops.iter_mut().map(|(_, op)| &mut op.asker);
        let reads = self.reads.iter_mut().map(|(_, read)| &mut read.asker);
        ops.chain(reads).filter(|asker| asker.from == origin).for_each(|asker| asker.muted = true);
    }
}
