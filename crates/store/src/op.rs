//! A request that changes the disk: what it asks for, cut to the slots that it got.

use crate::config::LIST_BLOCKS_MAX;
use crate::disk::Asker;
use crate::slots::Extent;
use bytes::Bytes;
use gabion_format::{BlockState, Content, Entry, Rule, SegmentKey, Slot};
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, BlockRange, Crc, Epoch, Seq, Version, block_crc,
};
use gabion_wire::{FenceReport, FencedSegment, Refusal};

/// A request with its entries; in the queue, in the batch, or cancelled with data in flight.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) asker: Asker,
    pub(crate) entries: Vec<Entry>,
    pub(crate) after: After,
    pub(crate) place: OpPlace,
    /// Data writes under way.
    pub(crate) writes_out: u32,
    /// Data that goes to the disk with the frame.
    pub(crate) held: Vec<DataWrite>,
    pub(crate) settled: Option<(SegmentKey, Seq)>,
    /// Slots for the pages that it may make.
    pub(crate) places_coming: u32,
    /// It may make segments.
    pub(crate) makes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpPlace {
    Queued,
    InBatch,
    /// Refused or forgotten; its slots are free when its data writes are in.
    Cancelled,
}

/// What the answer says beyond "durable".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Done,
    Fenced {
        segments: Vec<FencedSegment>,
    },
    /// With what was reported when it came: a rule that tests switch off.
    FencedBefore {
        reports: Vec<FenceReport>,
    },
    JoinStarted {
        key: SegmentKey,
    },
}

impl Op {
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.entries.iter().map(Entry::encoded_bytes).sum()
    }

    pub(crate) fn data_blocks(&self) -> u64 {
        self.extents().map(|(_, count)| u64::from(count)).sum()
    }

    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        self.entries.iter().filter_map(Entry::extent)
    }
}

/// What a request wants written, before it has slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) key: SegmentKey,
    pub(crate) rule: Rule,
    pub(crate) settled: Option<Seq>,
    pub(crate) pieces: Vec<Piece>,
}

/// Blocks behind each other with one version and one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: BlockRange,
    pub(crate) version: Version,
    pub(crate) body: PieceBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PieceBody {
    Data { crcs: Vec<Crc>, data: Bytes },
    Zero,
    Lost,
    Absent,
}

/// Waits for slots.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) asker: Asker,
    pub(crate) plan: Plan,
}

/// What lies in one run of slots, to be written.
pub(crate) type DataWrite = (Slot, Vec<Bytes>);

impl Plan {
    pub(crate) fn data_blocks(&self) -> u32 {
        let data = |piece: &&Piece| matches!(piece.body, PieceBody::Data { .. });
        self.pieces.iter().filter(data).map(|piece| piece.range.count()).sum()
    }

    /// In ascending order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = BlockRange> {
        self.pieces.iter().map(|piece| piece.range)
    }

    /// Cuts the pieces to the slots: the entries and the writes, each within one run of slots.
    pub(crate) fn lay(self, extents: &[Extent]) -> (Vec<Entry>, Vec<DataWrite>) {
        let mut entries = Vec::with_capacity(self.pieces.len());
        let mut writes =
            extents.iter().map(|(slot, _)| (*slot, Vec::new())).collect::<Vec<DataWrite>>();
        let mut at = 0;
        let mut used = 0;
        for piece in self.pieces {
            let (key, rule, version) = (self.key, self.rule, piece.version);
            let mut entry = |range, content| {
                entries.push(Entry::Blocks { key, rule, range, version, content });
            };
            let (crcs, data) = match piece.body {
                PieceBody::Zero => {
                    entry(piece.range, Content::Zero);
                    continue;
                }
                PieceBody::Lost => {
                    entry(piece.range, Content::Lost);
                    continue;
                }
                PieceBody::Absent => {
                    entry(piece.range, Content::Absent);
                    continue;
                }
                PieceBody::Data { crcs, data } => (crcs, data),
            };
            let mut done: u32 = 0;
            while done < piece.range.count() {
                let (slot, length) = extents[at];
                let count = (length - used).min(piece.range.count() - done);
                let range = BlockRange::new(piece.range.first().plus(done), count)
                    .expect("a part of a range is a range");
                let (from, to) = (done as usize, (done + count) as usize);
                let crcs = crcs[from..to].to_vec();
                entry(range, Content::Data { slot: slot.plus(used), crcs });
                writes[at].1.push(data.slice(from * BLOCK..to * BLOCK));
                done += count;
                used += count;
                if used == length {
                    (at, used) = (at + 1, 0);
                }
            }
        }
        (entries, writes)
    }
}

pub(crate) const BLOCK: usize = 4096;

/// Checks the payload of a write. Errors: `Invalid`, `BadPayload`.
pub(crate) fn write_pieces(
    range: BlockRange,
    version: Version,
    crcs: Vec<Crc>,
    data: Bytes,
) -> Result<Vec<Piece>, Refusal> {
    let blocks = range.count() as usize;
    if crcs.len() != blocks || data.len() as u64 != range.bytes() || version == Version::NEVER {
        return Err(Refusal::Invalid);
    }
    verify(&crcs, &data)?;
    Ok(vec![Piece { range, version, body: PieceBody::Data { crcs, data } }])
}

// promise: no-silent-corruption
fn verify(crcs: &[Crc], data: &Bytes) -> Result<(), Refusal> {
    let good = data.chunks_exact(BLOCK).zip(crcs).all(|(block, crc)| block_crc(block) == *crc);
    if good { Ok(()) } else { Err(Refusal::BadPayload) }
}

/// Checks a list of blocks and joins neighbours. Errors: `Invalid`, `BadPayload`.
pub(crate) fn listed_pieces(
    blocks: &[BlockInfo],
    data: &Bytes,
    absent_allowed: bool,
) -> Result<Vec<Piece>, Refusal> {
    let data_blocks = blocks.iter().filter(|info| info.kind == BlockKind::Data).count();
    if data.len() != data_blocks * BLOCK || blocks.len() > LIST_BLOCKS_MAX {
        return Err(Refusal::Invalid);
    }
    let crcs = blocks.iter().filter(|info| info.kind == BlockKind::Data).map(|info| info.crc);
    verify(&crcs.collect::<Vec<_>>(), data)?;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut taken = 0;
    for info in blocks {
        let from = taken;
        let sensible = match info.kind {
            BlockKind::Bad => false,
            BlockKind::Absent => absent_allowed,
            BlockKind::Data | BlockKind::Zero | BlockKind::Lost => info.version != Version::NEVER,
        };
        let ascending = pieces.last().is_none_or(|piece| piece.range.end() <= info.block);
        if !sensible || !ascending {
            return Err(Refusal::Invalid);
        }
        if info.kind == BlockKind::Data {
            taken += BLOCK;
        }
        match pieces.last_mut().filter(|piece| piece.continues(info)) {
            Some(piece) => piece.extend(info, data, taken),
            None => pieces.push(Piece::of(info, data.slice(from..taken))?),
        }
    }
    Ok(pieces)
}

impl Piece {
    fn of(info: &BlockInfo, data: Bytes) -> Result<Self, Refusal> {
        let range = BlockRange::new(info.block, 1).ok_or(Refusal::Invalid)?;
        let body = match info.kind {
            BlockKind::Data => PieceBody::Data { crcs: vec![info.crc], data },
            BlockKind::Zero => PieceBody::Zero,
            BlockKind::Lost => PieceBody::Lost,
            BlockKind::Absent => PieceBody::Absent,
            BlockKind::Bad => return Err(Refusal::Invalid),
        };
        Ok(Self { range, version: info.version, body })
    }

    fn continues(&self, info: &BlockInfo) -> bool {
        let kind = match self.body {
            PieceBody::Data { .. } => BlockKind::Data,
            PieceBody::Zero => BlockKind::Zero,
            PieceBody::Lost => BlockKind::Lost,
            PieceBody::Absent => BlockKind::Absent,
        };
        kind == info.kind && self.version == info.version && self.range.end() == info.block
    }

    /// `taken`: where the block's data ends in the whole payload; this piece's ends one before.
    fn extend(&mut self, info: &BlockInfo, whole: &Bytes, taken: usize) {
        let count = self.range.count() + 1;
        self.range = BlockRange::new(self.range.first(), count).expect("checked to lie behind it");
        if let PieceBody::Data { crcs, data } = &mut self.body {
            crcs.push(info.crc);
            *data = whole.slice(taken - crcs.len() * BLOCK..taken);
        }
    }
}

impl Op {
    /// Not by the map's order: `Create` and `Drop` do not look at the fence.
    pub(crate) fn is_of_owner(&self) -> bool {
        !self.entries.iter().any(|entry| matches!(entry, Entry::New { .. } | Entry::Gone { .. }))
    }
}

impl PieceBody {
    pub(crate) fn state(&self) -> BlockState {
        match self {
            // Which slot does not matter for what applies.
            Self::Data { .. } => BlockState::Data { slot: Slot::default(), crc: Crc::default() },
            Self::Zero => BlockState::Zero,
            Self::Lost => BlockState::Lost,
            Self::Absent => BlockState::Absent,
        }
    }
}

impl Piece {
    /// One piece a block.
    pub(crate) fn into_blocks(self) -> Vec<Self> {
        let Self { range, version, body } = self;
        let one = |block| BlockRange::new(block, 1).expect("one block of a range");
        let blocks = range.iter().enumerate();
        blocks
            .map(|(nth, block)| {
                let body = match &body {
                    PieceBody::Data { crcs, data } => PieceBody::Data {
                        crcs: vec![crcs[nth]],
                        data: data.slice(nth * 4096..(nth + 1) * 4096),
                    },
                    PieceBody::Zero => PieceBody::Zero,
                    PieceBody::Lost => PieceBody::Lost,
                    PieceBody::Absent => PieceBody::Absent,
                };
                Self { range: one(block), version, body }
            })
            .collect()
    }
}

/// How a block's entry is told to others.
pub(crate) fn block_info(block: BlockIndex, state: BlockState, version: Version) -> BlockInfo {
    let (kind, crc) = match state {
        BlockState::Absent => (BlockKind::Absent, Crc::default()),
        BlockState::Zero => (BlockKind::Zero, Crc::default()),
        BlockState::Lost => (BlockKind::Lost, Crc::default()),
        BlockState::Unknown => (BlockKind::Bad, Crc::default()),
        BlockState::Data { crc, .. } => (BlockKind::Data, crc),
    };
    BlockInfo { block, kind, version, crc }
}

/// Whether a request of an owner of that epoch is refused.
pub(crate) fn is_fenced(fence: Epoch, owner_epoch: Epoch) -> Option<Refusal> {
    (owner_epoch < fence).then_some(Refusal::Fenced { by: fence })
}

const _: () = assert!(BLOCK as u64 == BLOCK_BYTES, "a slot is a block");
