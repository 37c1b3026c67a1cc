//! What the client asks of the store.

use super::model::Content;
use super::{Event, Solo};
use crate::content::{self, Label};
use crate::world::{Who, index};
use bytes::{Bytes, BytesMut};
use gabion_store::Input;
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, Crc, DiskId, Epoch, Instant, SegmentIndex, Seq,
    Version, VolumeId, block_crc,
};
use gabion_wire::{EpochStart, FencedSegment, ReplicaOp, ReplicaRequest, RequestId};

pub(super) const VOLUME: VolumeId = VolumeId::new(3);
const DISK: DiskId = DiskId::new(9);

/// A request that is not answered.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub began: Instant,
    pub owner_epoch: Epoch,
    pub what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Create { segment: usize },
    Fence,
    Change { segment: usize, blocks: Vec<(usize, Version)>, kind: ChangeKind },
    Read { segment: usize },
    Scan { segment: usize, seq_above: Seq, from: BlockIndex },
    Start { segment: usize, next: Seq },
    JoinStart { segment: usize, joined: Epoch },
    Promoted { segment: usize },
}

impl What {
    pub fn is_early(&self) -> bool {
        matches!(self, Self::Change { kind: ChangeKind::Early, .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    Write,
    /// To a segment that nobody made: it must be refused.
    Early,
    Install {
        joined: Epoch,
    },
    /// Needed: in this life the store has told that the copy is bad.
    Repair {
        needed: bool,
    },
}

pub(super) fn segment(at: usize) -> SegmentIndex {
    SegmentIndex::new(u32::try_from(at).expect("a few segments"))
}

impl Solo {
    pub(super) fn on_ask(&mut self) {
        let wait = self.plan.think.draw(&mut self.prng);
        self.queue.after(wait, Event::Ask);
        if !self.opened || self.asks.len() >= self.plan.depth || self.fencing {
            return;
        }
        if self.finale.is_some() {
            self.go_on_reading();
            return;
        }
        if self.actions >= self.plan.actions && !self.is_rotten() {
            return;
        }
        let at = index(self.prng.below(u64::from(self.plan.segments)));
        self.actions += 1;
        if self.fenced < self.owner_epoch {
            self.fence();
        } else if !self.segments[at].made {
            self.create(at);
        } else if self.segments[at].needs_start {
            self.epoch_start(at);
        } else {
            self.ask_of_segment(at);
        }
    }

    fn ask_of_segment(&mut self, at: usize) {
        match self.prng.below(100) {
            0..44 => self.write(at, false),
            44..47 => self.late_write(at),
            47..50 => self.zombie_write(at),
            50..58 => self.write(at, true),
            58..80 => self.read(at),
            80..85 => self.scan(at),
            85..90 => self.repair(at),
            90..92 => self.advance(at),
            // What the map says of a joiner does not change under a fence.
            92..93 if self.segments.iter().all(|segment| segment.changing == 0) => {
                self.owner_epoch = self.epoch.next();
                self.epoch = self.owner_epoch;
                self.fence();
            }
            93..95 => self.join_start(at),
            _ => self.go_on_joining(at),
        }
    }

    /// Every block once, after the last restart.
    fn go_on_reading(&mut self) {
        let Some((at, block)) = self.finale else { return };
        if self.fenced < self.owner_epoch {
            self.fence();
            return;
        }
        if at == self.segments.len() {
            return;
        }
        let blocks = self.segments[at].blocks.len();
        let count = 16.min(blocks - index(block.into()));
        let narrow = u32::try_from(count).expect("few blocks");
        let end = block + narrow;
        let over = index(end.into()) == blocks;
        self.finale = Some(if over { (at + 1, 0) } else { (at, end) });
        if self.segments[at].made {
            let range = BlockRange::new(BlockIndex::new(block), narrow).expect("not empty");
            self.send(What::Read { segment: at }, ReplicaOp::Read { segment: segment(at), range });
        }
    }

    fn send(&mut self, what: What, op: ReplicaOp) {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let ask = ReplicaRequest { disk: DISK, volume: VOLUME, owner_epoch: self.owner_epoch, op };
        let (began, owner_epoch) = (self.queue.now(), self.owner_epoch);
        self.trace.note(began, Who::Guest(0), "ask", [request.0, 0, 0]);
        self.asks.insert(request, Asked { began, owner_epoch, what });
        self.feed(Input::Request { from: self.origin, request, ask });
    }

    fn create(&mut self, at: usize) {
        if self.segments[at].changing > 0 {
            return;
        }
        let alone = self.segments.iter().all(|known| known.changing == 0);
        if !std::mem::replace(&mut self.segments[at].asked_for, true) && alone {
            self.early_write(at);
        }
        self.segments[at].changing += 1;
        let creation = self.segments[at].creation;
        let op = ReplicaOp::Create { creation, first: segment(at), count: 1 };
        self.send(What::Create { segment: at }, op);
    }

    fn fence(&mut self) {
        self.fencing = true;
        let named = self.segments.iter().enumerate().map(|(at, known)| FencedSegment {
            segment: segment(at),
            creation: known.creation,
            joined: known.joined,
        });
        let op = ReplicaOp::Fence { segments: named.collect() };
        self.send(What::Fence, op);
    }

    fn epoch_start(&mut self, at: usize) {
        if self.segments[at].changing > 0 {
            return;
        }
        let next = self.segments[at].next;
        self.segments[at].starting = next;
        self.segments[at].needs_start = false;
        self.segments[at].changing += 1;
        let start = EpochStart { segment: segment(at), epoch: self.epoch, next };
        self.send(What::Start { segment: at, next }, ReplicaOp::EpochStart { starts: vec![start] });
    }

    fn range(&mut self, at: usize, most: u64) -> BlockRange {
        let blocks = self.segments[at].blocks.len() as u64;
        let hot = if self.prng.chance(3, 4) { blocks.min(12) } else { blocks };
        let first = self.prng.below(hot);
        let count = self.prng.between(1, most).min(blocks - first);
        let narrow = |value: u64| u32::try_from(value).expect("few blocks");
        BlockRange::new(BlockIndex::new(narrow(first)), narrow(count)).expect("not empty")
    }

    fn write(&mut self, at: usize, zero: bool) {
        let most = if self.prng.chance(1, 5) { 64 } else { 3 };
        let range = self.range(at, if zero { 64 } else { most });
        let version = Version::new(self.epoch, self.segments[at].next);
        self.segments[at].next = version.seq.next();
        let label = self.next_label();
        let content = if zero { Content::Zero } else { Content::Data(label) };
        let blocks = range.iter().map(|block| (block.index(), version)).collect::<Vec<_>>();
        for (block, version) in &blocks {
            self.segments[at].blocks[*block].sent(*version, content);
        }
        let settled = self.segments[at].settled;
        let what = What::Change { segment: at, blocks, kind: ChangeKind::Write };
        if zero {
            self.send(what, ReplicaOp::Zero { segment: segment(at), version, range, settled });
            return;
        }
        let data =
            content::fill(label, u64::from(range.first().get()), 4096, index(range.count().into()));
        let crcs = data.chunks_exact(4096).map(block_crc).collect();
        let segment = segment(at);
        self.send(what, ReplicaOp::Write { segment, version, range, crcs, data, settled });
    }

    /// A version that was sent before comes once more, now that newer ones may be there.
    fn late_write(&mut self, at: usize) {
        let block = self.range(at, 1).first();
        let known = &self.segments[at];
        let Some((present, _)) = known.blocks[block.index()].certain() else { return };
        if known.joined.is_some() || known.unsure {
            return;
        }
        let older = known.blocks[block.index()].data_versions();
        let versions: Vec<_> = older.filter(|(version, _)| *version < present).collect();
        if let Some((version, label)) = self.prng.pick(&versions).copied() {
            self.write_one(at, block, version, label);
        }
    }

    /// Nobody has asked for the segment.
    fn early_write(&mut self, at: usize) {
        let version = Version::new(self.epoch, self.segments[at].next);
        let data = content::fill(Label(u64::MAX), 0, 4096, 1);
        let crcs = vec![block_crc(&data)];
        let range = BlockRange::new(BlockIndex::new(0), 1).expect("not empty");
        let what = What::Change { segment: at, blocks: Vec::new(), kind: ChangeKind::Early };
        let (segment, settled) = (segment(at), Seq::ZERO);
        self.send(what, ReplicaOp::Write { segment, version, range, crcs, data, settled });
    }

    /// An owner that was fenced writes: it must be refused.
    fn zombie_write(&mut self, at: usize) {
        let block = self.range(at, 1).first();
        let version = Version::new(self.epoch, self.segments[at].next);
        self.segments[at].next = version.seq.next();
        let label = self.next_label();
        let present = self.owner_epoch;
        self.owner_epoch = Epoch::new(present.get() - 1).expect("above zero");
        self.write_one(at, block, version, label);
        self.owner_epoch = present;
    }

    fn write_one(&mut self, at: usize, block: BlockIndex, version: Version, label: Label) {
        self.segments[at].blocks[block.index()].sent(version, Content::Data(label));
        let data = content::fill(label, u64::from(block.get()), 4096, 1);
        let crcs = vec![block_crc(&data)];
        let range = BlockRange::new(block, 1).expect("not empty");
        let blocks = vec![(block.index(), version)];
        let what = What::Change { segment: at, blocks, kind: ChangeKind::Write };
        let (segment, settled) = (segment(at), self.segments[at].settled);
        self.send(what, ReplicaOp::Write { segment, version, range, crcs, data, settled });
    }

    fn read(&mut self, at: usize) {
        let range = self.range(at, 64);
        self.send(What::Read { segment: at }, ReplicaOp::Read { segment: segment(at), range });
    }

    fn scan(&mut self, at: usize) {
        let most = self.segments[at].next.get();
        let seq_above = Seq::new(self.prng.below(most + 1));
        let from = BlockIndex::new(0);
        let entries_max = if self.prng.chance(1, 2) { 10_000 } else { 5 };
        let op = ReplicaOp::Scan {
            segment: segment(at),
            from,
            seq_above,
            epoch_from: None,
            entries_max,
        };
        self.send(What::Scan { segment: at, seq_above, from }, op);
    }

    fn advance(&mut self, at: usize) {
        let settled = vec![(segment(at), self.segments[at].settled)];
        let owner_epoch = self.owner_epoch;
        let ask = ReplicaRequest {
            disk: DISK,
            volume: VOLUME,
            owner_epoch,
            op: ReplicaOp::Advance { settled },
        };
        self.feed(Input::Request { from: self.origin, request: RequestId(0), ask });
    }

    /// A block that is known for sure is written again as it is.
    fn repair(&mut self, at: usize) {
        let rotten = self.segments[at].blocks.iter().position(|block| block.rotten.is_some());
        let block = match rotten {
            Some(block) => block,
            None => index(self.prng.below(self.segments[at].blocks.len() as u64)),
        };
        let Some((version, content)) = self.segments[at].blocks[block].certain() else { return };
        if content == Content::Absent {
            return;
        }
        let needed = self.segments[at].blocks[block].seen_bad;
        if rotten.is_some() && !needed {
            let block = BlockIndex::new(u32::try_from(block).expect("few blocks"));
            let range = BlockRange::new(block, 1).expect("not empty");
            self.send(What::Read { segment: at }, ReplicaOp::Read { segment: segment(at), range });
            return;
        }
        let (info, data) = block_of(block, version, content);
        self.segments[at].blocks[block].sent(version, content);
        let what = What::Change {
            segment: at,
            blocks: vec![(block, version)],
            kind: ChangeKind::Repair { needed },
        };
        self.send(what, ReplicaOp::Repair { segment: segment(at), blocks: vec![info], data });
    }

    fn join_start(&mut self, at: usize) {
        let changes = |asked: &Asked| match &asked.what {
            What::Change { segment, .. } => *segment == at,
            What::Create { .. }
            | What::Fence
            | What::Read { .. }
            | What::Scan { .. }
            | What::Start { .. }
            | What::JoinStart { .. }
            | What::Promoted { .. } => false,
        };
        let joins = self.segments[at].joined.is_some() && !self.segments[at].unsure;
        if joins || self.segments[at].changing > 0 || self.asks.values().any(changes) {
            return;
        }
        self.epoch = self.epoch.next();
        let joined = self.epoch;
        self.segments[at].changing += 1;
        // From here on only what comes from J on counts for it, and what is installed.
        self.segments[at].answered = Seq::ZERO;
        let op = ReplicaOp::JoinStart {
            segment: segment(at),
            joined,
            creation: self.segments[at].creation,
        };
        self.send(What::JoinStart { segment: at, joined }, op);
    }

    /// Fills some blocks of a joiner, with what another copy may have; now and then it is promoted.
    fn go_on_joining(&mut self, at: usize) {
        let Some(joined) = self.segments[at].joined else { return };
        if self.segments[at].changing > 0 || self.segments[at].unsure {
            return;
        }
        if self.prng.chance(1, 6) {
            let settled = self.segments[at].next.previous();
            self.segments[at].settled = settled;
            self.segments[at].changing += 1;
            let op = ReplicaOp::Promoted { segment: segment(at), joined, settled };
            self.send(What::Promoted { segment: at }, op);
            return;
        }
        let range = self.range(at, 8);
        let (mut infos, mut blocks) = (Vec::new(), Vec::new());
        let mut data = BytesMut::new();
        for block in range.iter().map(BlockIndex::index) {
            let (version, content) = self.install_of(at, block, joined);
            let (info, bytes) = block_of(block, version, content);
            self.segments[at].blocks[block].install_sent(version, content);
            infos.push(info);
            blocks.push((block, version));
            data.extend_from_slice(&bytes);
        }
        self.segments[at].changing += 1;
        let what = What::Change { segment: at, blocks, kind: ChangeKind::Install { joined } };
        let data = data.freeze();
        self.send(what, ReplicaOp::Install { segment: segment(at), joined, blocks: infos, data });
    }

    /// What the source has: what is here too, an older version, or nothing.
    fn install_of(&mut self, at: usize, block: usize, joined: Epoch) -> (Version, Content) {
        let known = self.segments[at].blocks[block].list();
        let older: Vec<_> =
            known.into_iter().filter(|(version, _)| version.epoch < joined).collect();
        if let Some(same) = self.prng.pick(&older)
            && self.prng.chance(2, 3)
        {
            return *same;
        }
        if self.prng.chance(1, 4) {
            return (Version::NEVER, Content::Absent);
        }
        let epoch = Epoch::new(joined.get() - 1).expect("above zero");
        let version = Version::new(epoch, self.segments[at].next);
        self.segments[at].next = version.seq.next();
        let content = match self.prng.below(4) {
            0 => Content::Zero,
            1 => Content::Lost,
            _ => Content::Data(self.next_label()),
        };
        (version, content)
    }
}

/// A block with its data, for repair and install.
fn block_of(block: usize, version: Version, content: Content) -> (BlockInfo, Bytes) {
    let at = BlockIndex::new(u32::try_from(block).expect("few blocks"));
    let info = |kind, crc| BlockInfo { block: at, kind, version, crc };
    match content {
        Content::Absent => (info(BlockKind::Absent, Crc::default()), Bytes::new()),
        Content::Zero => (info(BlockKind::Zero, Crc::default()), Bytes::new()),
        Content::Lost => (info(BlockKind::Lost, Crc::default()), Bytes::new()),
        Content::Data(label) => {
            let data = content::fill(label, block as u64, 4096, 1);
            (info(BlockKind::Data, block_crc(&data)), data)
        }
    }
}
