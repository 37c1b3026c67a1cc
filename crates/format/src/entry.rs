//! Journal entries: what happened to a disk's blocks, segments and fences, in order.
//!
//! Shape: block entries are 48 bytes and one crc a block of data; all others are 32 bytes.

use crate::codec::{FormatError, Reader, Writer};
use crate::ids::{SegmentKey, Slot};
use gabion_types::{
    BlockIndex, BlockRange, Crc, Epoch, MapIndex, SegmentIndex, Seq, Version, VolumeId,
};

/// When a block takes what an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Its version is smaller.
    Write,
    /// Its version is smaller; `Lost` also over the same version.
    Settle,
    /// Its epoch is below J, and the segment is joining since J.
    Install { joined: Epoch },
    /// It has this very version, or is unknown.
    Repair,
    /// It has this very version: same data in another slot.
    Move,
}

/// What the blocks hold from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In consecutive slots, one crc a block.
    Data {
        slot: Slot,
        crcs: Vec<Crc>,
    },
    Zero,
    Lost,
    /// As if never written; by `Install` only.
    Absent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Blocks {
        key: SegmentKey,
        rule: Rule,
        range: BlockRange,
        version: Version,
        content: Content,
    },
    Fence {
        volume: VolumeId,
        epoch: Epoch,
    },
    Settled {
        key: SegmentKey,
        seq: Seq,
    },
    Join {
        key: SegmentKey,
        joined: Epoch,
        creation: Epoch,
    },
    Promoted {
        key: SegmentKey,
        joined: Epoch,
        settled: Seq,
    },
    EpochStart {
        key: SegmentKey,
        epoch: Epoch,
        next: Seq,
    },
    /// Segments made, from `first` on.
    New {
        first: SegmentKey,
        count: u32,
        creation: Epoch,
    },
    Gone {
        key: SegmentKey,
        creation: Epoch,
        epoch: Epoch,
    },
    SawMap {
        index: MapIndex,
    },
}

const BLOCKS_BYTES: usize = 48;
const OTHER_BYTES: usize = 32;

const BLOCKS: u8 = 1;
const FENCE: u8 = 2;
const SETTLED: u8 = 3;
const JOIN: u8 = 4;
const PROMOTED: u8 = 5;
const EPOCH_START: u8 = 6;
const NEW: u8 = 7;
const GONE: u8 = 8;
const SAW_MAP: u8 = 9;

impl Entry {
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Blocks { content: Content::Data { crcs, .. }, .. } => {
                BLOCKS_BYTES + 4 * crcs.len()
            }
            Self::Blocks { .. } => BLOCKS_BYTES,
            Self::Fence { .. }
            | Self::Settled { .. }
            | Self::Join { .. }
            | Self::Promoted { .. }
            | Self::EpochStart { .. }
            | Self::New { .. }
            | Self::Gone { .. }
            | Self::SawMap { .. } => OTHER_BYTES,
        }
    }

    /// The slots that it names.
    pub fn extent(&self) -> Option<(Slot, u32)> {
        match self {
            Self::Blocks { content: Content::Data { slot, .. }, range, .. } => {
                Some((*slot, range.count()))
            }
            Self::Blocks { .. }
            | Self::Fence { .. }
            | Self::Settled { .. }
            | Self::Join { .. }
            | Self::Promoted { .. }
            | Self::EpochStart { .. }
            | Self::New { .. }
            | Self::Gone { .. }
            | Self::SawMap { .. } => None,
        }
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        let none = SegmentIndex::new(0);
        match self {
            Self::Blocks { key, rule, range, version, content } => {
                encode_blocks(writer, *key, *rule, *range, *version, content);
            }
            Self::Fence { volume, epoch } => {
                other(writer, FENCE, SegmentKey::new(*volume, none), 0, epoch.get(), 0);
            }
            Self::Settled { key, seq } => other(writer, SETTLED, *key, 0, seq.get(), 0),
            Self::Join { key, joined, creation } => {
                other(writer, JOIN, *key, 0, joined.get(), creation.get());
            }
            Self::Promoted { key, joined, settled } => {
                other(writer, PROMOTED, *key, 0, joined.get(), settled.get());
            }
            Self::EpochStart { key, epoch, next } => {
                other(writer, EPOCH_START, *key, 0, epoch.get(), next.get());
            }
            Self::New { first, count, creation } => {
                other(writer, NEW, *first, *count, creation.get(), 0);
            }
            Self::Gone { key, creation, epoch } => {
                other(writer, GONE, *key, 0, creation.get(), epoch.get());
            }
            Self::SawMap { index } => {
                let key = SegmentKey::new(VolumeId::new(0), none);
                other(writer, SAW_MAP, key, 0, index.get(), 0);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let kind = reader.u8()?;
        let (rule, content, zero) = (reader.u8()?, reader.u8()?, reader.u8()?);
        if zero != 0 || (kind != BLOCKS && (rule, content) != (0, 0)) {
            return Err(FormatError::Padding);
        }
        let key = SegmentKey::new(VolumeId::new(reader.u32()?), SegmentIndex::new(reader.u32()?));
        if kind == BLOCKS {
            return decode_blocks(reader, key, rule, content);
        }
        let count = reader.u32()?;
        let mut fields = Fields { a: reader.u64()?, b: reader.u64()? };
        let entry = match kind {
            FENCE => Self::Fence { volume: key.volume, epoch: fields.epoch()? },
            SETTLED => Self::Settled { key, seq: fields.seq() },
            JOIN => Self::Join { key, joined: fields.epoch()?, creation: fields.epoch()? },
            PROMOTED => Self::Promoted { key, joined: fields.epoch()?, settled: fields.seq() },
            EPOCH_START => Self::EpochStart { key, epoch: fields.epoch()?, next: fields.seq() },
            NEW => Self::New { first: key, count, creation: fields.epoch()? },
            GONE => Self::Gone { key, creation: fields.epoch()?, epoch: fields.epoch()? },
            SAW_MAP => Self::SawMap { index: MapIndex::new(fields.seq().get()) },
            _ => return Err(FormatError::Field("entry kind")),
        };
        check_unused(kind, key, count, &fields)?;
        Ok(entry)
    }
}

/// What a kind does not use is zero.
fn check_unused(kind: u8, key: SegmentKey, count: u32, fields: &Fields) -> Result<(), FormatError> {
    let makes = kind == NEW;
    if makes != (count > 0) || key.segment.get().checked_add(count).is_none() {
        return Err(FormatError::Field("entry count"));
    }
    let bare = (kind == FENCE && key.segment.get() != 0)
        || (kind == SAW_MAP && (key.volume.get(), key.segment.get()) != (0, 0));
    if bare || *fields != (Fields { a: 0, b: 0 }) {
        return Err(FormatError::Padding);
    }
    Ok(())
}

/// Two numbers, taken one after the other; what is not taken must be zero.
#[derive(PartialEq, Eq)]
struct Fields {
    a: u64,
    b: u64,
}

impl Fields {
    fn next(&mut self) -> u64 {
        let taken = self.a;
        self.a = self.b;
        self.b = 0;
        taken
    }

    fn epoch(&mut self) -> Result<Epoch, FormatError> {
        Epoch::new(self.next()).ok_or(FormatError::Field("epoch"))
    }

    fn seq(&mut self) -> Seq {
        Seq::new(self.next())
    }
}

fn other(writer: &mut Writer, kind: u8, key: SegmentKey, count: u32, a: u64, b: u64) {
    writer.put(&[kind, 0, 0, 0]);
    writer.u32(key.volume.get());
    writer.u32(key.segment.get());
    writer.u32(count);
    writer.u64(a);
    writer.u64(b);
}

fn encode_blocks(
    writer: &mut Writer,
    key: SegmentKey,
    rule: Rule,
    range: BlockRange,
    version: Version,
    content: &Content,
) {
    let (rule, joined) = match rule {
        Rule::Write => (1, 0),
        Rule::Settle => (2, 0),
        Rule::Install { joined } => (3, joined.get()),
        Rule::Repair => (4, 0),
        Rule::Move => (5, 0),
    };
    let (content, slot, crcs) = match content {
        Content::Data { slot, crcs } => (1, slot.get(), crcs.as_slice()),
        Content::Zero => (2, 0, [].as_slice()),
        Content::Lost => (3, 0, [].as_slice()),
        Content::Absent => (4, 0, [].as_slice()),
    };
    writer.u8(BLOCKS);
    writer.put(&[rule, content, 0]);
    writer.u32(key.volume.get());
    writer.u32(key.segment.get());
    writer.u32(range.first().get());
    writer.u32(range.count());
    writer.u32(slot);
    writer.u64(version.epoch.get());
    writer.u64(version.seq.get());
    writer.u64(joined);
    for crc in crcs {
        writer.u32(crc.get());
    }
}

fn decode_blocks(
    reader: &mut Reader<'_>,
    key: SegmentKey,
    rule: u8,
    content: u8,
) -> Result<Entry, FormatError> {
    let first = BlockIndex::new(reader.u32()?);
    let range = BlockRange::new(first, reader.u32()?).ok_or(FormatError::Field("block range"))?;
    let slot = reader.u32()?;
    let version = Version::new(reader.epoch()?, reader.seq()?);
    let joined = reader.epoch()?;
    let rule = match (rule, joined) {
        (1, Epoch::ZERO) => Rule::Write,
        (2, Epoch::ZERO) => Rule::Settle,
        (3, joined) => Rule::Install { joined },
        (4, Epoch::ZERO) => Rule::Repair,
        (5, Epoch::ZERO) => Rule::Move,
        _ => return Err(FormatError::Field("rule")),
    };
    let content = match (content, slot) {
        (1, slot) => {
            slot.checked_add(range.count()).ok_or(FormatError::Field("slot"))?;
            let mut crcs = Vec::new();
            for _ in 0..range.count() {
                crcs.push(Crc::new(reader.u32()?));
            }
            Content::Data { slot: Slot::new(slot), crcs }
        }
        (2, 0) => Content::Zero,
        (3, 0) => Content::Lost,
        (4, 0) => Content::Absent,
        _ => return Err(FormatError::Field("content")),
    };
    Ok(Entry::Blocks { key, rule, range, version, content })
}
