//! A disk as the protocol sees it: requests become durable in order, some time after they came.

use bytes::{Bytes, BytesMut};
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, Crc, DiskId, Epoch, SegmentIndex, Seq, Version,
    block_crc,
};
use gabion_wire::{
    FenceReport, FencedSegment, Refusal, ReplicaAnswer, ReplicaDone, ReplicaOp, ReplicaRequest,
    RequestId,
};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
pub struct Block {
    pub version: Version,
    pub kind: BlockKind,
    pub crc: Crc,
    pub data: Bytes,
    pub bad: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Segment {
    pub creation: Epoch,
    pub blocks: BTreeMap<BlockIndex, Block>,
    pub settled: Seq,
    pub highest: Seq,
    pub installed: Seq,
    pub next: Seq,
    pub joining: bool,
    pub joined: Epoch,
    pub damaged: bool,
    /// It began to join in this life of its process.
    pub joined_here: bool,
}

/// Who asked: a link of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub owner: u64,
    pub link: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    from: Origin,
    request: RequestId,
    ask: ReplicaRequest,
}

#[derive(Clone, Debug, Default)]
pub struct Durable {
    pub fence: Epoch,
    pub segments: BTreeMap<SegmentIndex, Segment>,
}

pub struct Disk {
    pub id: DiskId,
    pub durable: Durable,
    pub out: bool,
    pub ready: bool,
    /// Blocks that it has room for.
    pub room: usize,
    fence_asked: Epoch,
    queue: VecDeque<Pending>,
}

pub type Answer = (Origin, RequestId, ReplicaAnswer);

impl Disk {
    pub fn new(id: DiskId, room: usize) -> Self {
        Self {
            id,
            durable: Durable::default(),
            out: false,
            ready: true,
            room,
            fence_asked: Epoch::ZERO,
            queue: VecDeque::new(),
        }
    }

    pub fn used(&self) -> usize {
        let segments = self.durable.segments.values();
        segments
            .flat_map(|segment| segment.blocks.values())
            .filter(|block| block.kind == BlockKind::Data)
            .count()
    }

    fn answer(
        &self,
        from: Origin,
        request: RequestId,
        ask: &ReplicaRequest,
        result: Result<ReplicaDone, Refusal>,
    ) -> Answer {
        let free = self.room.saturating_sub(self.used());
        let credit_bytes = (free / 2 * 4096) as u64;
        let answer = ReplicaAnswer { disk: self.id, volume: ask.volume, credit_bytes, result };
        (from, request, answer)
    }

    /// Takes a request; what it can answer at once it answers.
    pub fn take(&mut self, from: Origin, request: RequestId, ask: ReplicaRequest) -> Vec<Answer> {
        if self.out {
            return vec![self.answer(from, request, &ask, Err(Refusal::OutOfService))];
        }
        if !self.ready {
            return vec![self.answer(from, request, &ask, Err(Refusal::NotReady))];
        }
        let fence = self.durable.fence.max(self.fence_asked);
        if ask.owner_epoch < fence {
            return vec![self.answer(from, request, &ask, Err(Refusal::Fenced { by: fence }))];
        }
        match &ask.op {
            ReplicaOp::Read { segment, range } => {
                let result = self.read(*segment, *range);
                vec![self.answer(from, request, &ask, result)]
            }
            ReplicaOp::Verify { segment, range } => {
                let inner = self.durable.segments.get(segment).ok_or(Refusal::NoSegment);
                let table = inner.map(|inner| {
                    let infos = range.iter().map(|block| inner.info(block));
                    let entries = infos.filter(|info| info.kind != BlockKind::Absent).collect();
                    ReplicaDone::Table { entries, next: None }
                });
                vec![self.answer(from, request, &ask, table)]
            }
            ReplicaOp::Scan { segment, from: first, seq_above, epoch_from, entries_max } => {
                // Small pages, whatever was asked for.
                let most = (*entries_max).min(5) as usize;
                let all = *entries_max as usize;
                let most = if *seq_above == Seq::ZERO && epoch_from.is_none() { all } else { most };
                let result = self.scan(*segment, *first, *seq_above, *epoch_from, most);
                vec![self.answer(from, request, &ask, result)]
            }
            ReplicaOp::Advance { settled } => {
                for (segment, seq) in settled {
                    self.settle_to(*segment, *seq);
                }
                Vec::new()
            }
            ReplicaOp::Fence { .. } => {
                self.fence_asked = ask.owner_epoch;
                let queue = std::mem::take(&mut self.queue);
                let (old, kept): (VecDeque<_>, _) = queue
                    .into_iter()
                    .partition(|pending| pending.ask.owner_epoch < ask.owner_epoch);
                self.queue = kept;
                self.queue.push_back(Pending { from, request, ask: ask.clone() });
                let refusal = Err(Refusal::Fenced { by: ask.owner_epoch });
                old.iter()
                    .map(|p| self.answer(p.from, p.request, &p.ask, refusal.clone()))
                    .collect()
            }
            ReplicaOp::Create { .. }
            | ReplicaOp::Write { .. }
            | ReplicaOp::Zero { .. }
            | ReplicaOp::Settle { .. }
            | ReplicaOp::Repair { .. }
            | ReplicaOp::EpochStart { .. }
            | ReplicaOp::JoinStart { .. }
            | ReplicaOp::Install { .. }
            | ReplicaOp::Promoted { .. }
            | ReplicaOp::Drop { .. } => {
                self.queue.push_back(Pending { from, request, ask });
                Vec::new()
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The first so many requests become durable and are answered.
    pub fn commit(&mut self, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        for _ in 0..count {
            let Some(pending) = self.queue.pop_front() else { break };
            let Pending { from, request, ask } = pending;
            let result = self.apply(&ask);
            answers.push(self.answer(from, request, &ask, result));
        }
        answers
    }

    /// Power is lost: some of what was under way is there, none of it is answered.
    pub fn crash(&mut self, kept: usize) {
        self.commit(kept);
        self.queue.clear();
        self.fence_asked = Epoch::ZERO;
        self.lives_anew();
    }

    /// Its process is another one.
    pub fn lives_anew(&mut self) {
        self.durable.segments.values_mut().for_each(|segment| segment.joined_here = false);
    }

    pub fn origin_gone(&mut self, gone: impl Fn(Origin) -> bool) {
        self.queue.retain(|pending| !gone(pending.from));
    }

    fn segment(&mut self, index: SegmentIndex) -> Result<&mut Segment, Refusal> {
        self.durable.segments.get_mut(&index).ok_or(Refusal::NoSegment)
    }

    fn settle_to(&mut self, index: SegmentIndex, seq: Seq) {
        if let Ok(segment) = self.segment(index)
            && !segment.joining
        {
            segment.settled = segment.settled.max(seq);
        }
    }

    fn apply(&mut self, ask: &ReplicaRequest) -> Result<ReplicaDone, Refusal> {
        match &ask.op {
            ReplicaOp::Fence { segments } => {
                self.durable.fence = self.durable.fence.max(ask.owner_epoch);
                let reports = segments.iter().map(|fenced| self.report(fenced)).collect();
                Ok(ReplicaDone::Fenced { reports })
            }
            ReplicaOp::Write { segment, version, range, crcs, data, settled } => {
                let used = self.used();
                let room = self.room;
                let inner = self.segment(*segment)?;
                let fresh = range.iter().filter(|block| {
                    inner.blocks.get(block).is_none_or(|old| old.kind != BlockKind::Data)
                });
                let fresh = fresh.count();
                if fresh > 0 && used + fresh > room {
                    return Err(Refusal::NoSpace);
                }
                for (nth, block) in range.iter().enumerate() {
                    let data = data.slice(nth * 4096..(nth + 1) * 4096);
                    assert_eq!(block_crc(&data), crcs[nth], "the checksum travels with the data");
                    inner.write(block, *version, BlockKind::Data, crcs[nth], data);
                }
                self.settle_to(*segment, *settled);
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Zero { segment, version, range, settled } => {
                let inner = self.segment(*segment)?;
                for block in range.iter() {
                    inner.write(block, *version, BlockKind::Zero, Crc::default(), Bytes::new());
                }
                self.settle_to(*segment, *settled);
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Settle { segment, blocks, data } => {
                let inner = self.segment(*segment)?;
                for (info, data) in with_data(blocks, data) {
                    inner.write(info.block, info.version, info.kind, info.crc, data);
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Repair { segment, blocks, data } => {
                let inner = self.segment(*segment)?;
                for (info, data) in with_data(blocks, data) {
                    if let Some(block) = inner.blocks.get_mut(&info.block)
                        && block.version == info.version
                        && block.bad
                    {
                        block.bad = false;
                        block.data = data;
                        block.kind = info.kind;
                        block.crc = info.crc;
                    }
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::EpochStart { starts } => {
                for start in starts {
                    let inner = self.segment(start.segment)?;
                    inner.next = inner.next.max(start.next);
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::JoinStart { segment, joined, creation } => {
                self.join(*segment, *joined, *creation)
            }
            ReplicaOp::Install { segment, joined, blocks, data } => {
                let inner = self.segment(*segment)?;
                if !inner.joining || inner.joined != *joined {
                    return Err(Refusal::WrongEpoch);
                }
                for (info, data) in with_data(blocks, data) {
                    inner.install(info, data, *joined);
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Promoted { segment, joined, settled } => {
                let inner = self.segment(*segment)?;
                if inner.joined != *joined {
                    return Err(Refusal::WrongEpoch);
                }
                if inner.joining {
                    inner.joining = false;
                    inner.damaged = false;
                    inner.highest = inner.highest.max(inner.installed);
                    inner.settled = *settled;
                } else {
                    inner.settled = inner.settled.max(*settled);
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Drop { segment, creation, epoch } => {
                let fence = self.durable.fence;
                if let Ok(inner) = self.segment(*segment) {
                    if inner.creation != *creation || inner.joined > *epoch || fence > *epoch {
                        return Err(Refusal::WrongEpoch);
                    }
                    self.durable.segments.remove(segment);
                }
                Ok(ReplicaDone::Done)
            }
            ReplicaOp::Create { .. }
            | ReplicaOp::Read { .. }
            | ReplicaOp::Scan { .. }
            | ReplicaOp::Verify { .. }
            | ReplicaOp::Advance { .. } => Err(Refusal::Invalid),
        }
    }

    fn join(
        &mut self,
        index: SegmentIndex,
        joined: Epoch,
        creation: Epoch,
    ) -> Result<ReplicaDone, Refusal> {
        let known = self.durable.segments.get(&index).filter(|inner| inner.creation == creation);
        match known {
            Some(inner) if inner.joining && inner.joined == joined => {}
            Some(inner) if inner.joined >= joined => return Err(Refusal::WrongEpoch),
            Some(_) => {}
            None => {
                let fresh = Segment { creation, joined_here: true, ..Segment::default() };
                self.durable.segments.insert(index, fresh);
            }
        }
        let inner = self.segment(index)?;
        if !inner.joining || inner.joined != joined {
            inner.joined_here &= inner.joined == Epoch::ZERO;
            inner.joining = true;
            inner.joined = joined;
            inner.highest = Seq::ZERO;
            inner.installed = Seq::ZERO;
        }
        Ok(ReplicaDone::JoinStarted { settled: inner.settled })
    }

    fn report(&self, fenced: &FencedSegment) -> FenceReport {
        let inner = self.durable.segments.get(&fenced.segment);
        let Some(inner) = inner.filter(|inner| inner.creation == fenced.creation) else {
            return FenceReport {
                segment: fenced.segment,
                present: false,
                settled: Seq::ZERO,
                highest: Seq::ZERO,
                joined: None,
                next: Seq::ZERO,
                dropped_from: None,
                damaged: false,
                unbroken: false,
            };
        };
        let own = inner.joining.then_some(inner.joined);
        let highest = match (fenced.joined, own) {
            (None, None) => inner.highest,
            (None, Some(_)) => inner.highest.max(inner.installed).max(inner.settled),
            (Some(map), Some(own)) if map == own => inner.highest,
            (Some(_), _) => Seq::ZERO,
        };
        FenceReport {
            segment: fenced.segment,
            present: true,
            settled: inner.settled,
            highest,
            joined: own,
            next: inner.next,
            dropped_from: None,
            damaged: inner.damaged,
            unbroken: inner.joining && inner.joined_here,
        }
    }

    fn read(&self, index: SegmentIndex, range: BlockRange) -> Result<ReplicaDone, Refusal> {
        let inner = self.durable.segments.get(&index).ok_or(Refusal::NoSegment)?;
        let mut blocks = Vec::new();
        let mut data = BytesMut::new();
        for block in range.iter() {
            let info = inner.info(block);
            if info.kind == BlockKind::Data {
                data.extend_from_slice(&inner.blocks[&block].data);
            }
            blocks.push(info);
        }
        Ok(ReplicaDone::Blocks { blocks, data: data.freeze() })
    }

    fn scan(
        &self,
        index: SegmentIndex,
        from: BlockIndex,
        seq_above: Seq,
        epoch_from: Option<Epoch>,
        most: usize,
    ) -> Result<ReplicaDone, Refusal> {
        let inner = self.durable.segments.get(&index).ok_or(Refusal::NoSegment)?;
        let mut entries = Vec::new();
        for (block, entry) in inner.blocks.range(from..) {
            let version = entry.version;
            if version.seq > seq_above || epoch_from.is_some_and(|from| version.epoch >= from) {
                if entries.len() == most {
                    return Ok(ReplicaDone::Table { entries, next: Some(*block) });
                }
                // The table does not know which data is unreadable.
                let (kind, crc) = (entry.kind, entry.crc);
                entries.push(BlockInfo { block: *block, kind, version, crc });
            }
        }
        Ok(ReplicaDone::Table { entries, next: None })
    }
}

impl Segment {
    fn write(&mut self, at: BlockIndex, version: Version, kind: BlockKind, crc: Crc, data: Bytes) {
        self.highest = self.highest.max(version.seq);
        if self.blocks.get(&at).is_none_or(|old| old.version < version) {
            self.blocks.insert(at, Block { version, kind, crc, data, bad: false });
        }
    }

    fn install(&mut self, info: BlockInfo, data: Bytes, joined: Epoch) {
        if self.blocks.get(&info.block).is_some_and(|old| old.version.epoch >= joined) {
            return;
        }
        if info.kind == BlockKind::Absent {
            self.blocks.remove(&info.block);
            return;
        }
        self.installed = self.installed.max(info.version.seq);
        let BlockInfo { block, kind, version, crc } = info;
        self.blocks.insert(block, Block { version, kind, crc, data, bad: false });
    }

    pub fn info(&self, block: BlockIndex) -> BlockInfo {
        let Some(entry) = self.blocks.get(&block) else { return BlockInfo::absent(block) };
        let (version, crc) = (entry.version, entry.crc);
        if entry.bad {
            return BlockInfo { block, kind: BlockKind::Bad, version, crc: Crc::default() };
        }
        BlockInfo { block, kind: entry.kind, version, crc }
    }
}

fn with_data(blocks: &[BlockInfo], data: &Bytes) -> Vec<(BlockInfo, Bytes)> {
    let mut at = 0;
    let mut with = Vec::new();
    for info in blocks {
        let bytes = if info.kind == BlockKind::Data {
            at += 4096;
            let bytes = data.slice(at - 4096..at);
            assert_eq!(block_crc(&bytes), info.crc, "the checksum travels with the data");
            bytes
        } else {
            Bytes::new()
        };
        with.push((*info, bytes));
    }
    assert_eq!(at, data.len());
    with
}
