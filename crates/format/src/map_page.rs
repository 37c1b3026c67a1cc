//! Map pages: where the blocks of 512 KiB of a volume lie on this disk.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, HEAD_BYTES, Reader, Writer};
use crate::ids::{DiskUuid, Lsn, SegmentKey, Slot};
use bytes::Bytes;
use gabion_types::{Crc, Epoch, SegmentIndex, Seq, Version, VolumeId};

/// Blocks of one map page.
pub const PAGE_BLOCKS: u32 = 128;

const MAGIC: [u8; 8] = *b"GABIONMP";
pub const VERSION: u16 = 1;
const TABLE_AT: usize = 1024;

/// What stands at a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    Absent,
    Zero,
    Lost,
    /// What stood here is unknown: the map page that told of it was lost. Its version is `NEVER`.
    Unknown,
    Data {
        slot: Slot,
        crc: Crc,
    },
}

/// Shape: 24 bytes, as on disk: slot u32, crc u32, epoch 48 bits and state 16 bits, seq u64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockEntry {
    slot: u32,
    crc: u32,
    epoch_state: u64,
    seq: u64,
}

const EPOCH_BITS: u32 = 48;
const ABSENT: u64 = 0;
const ZERO: u64 = 1;
const LOST: u64 = 2;
const UNKNOWN: u64 = 3;
const DATA: u64 = 4;

impl BlockEntry {
    pub const ABSENT: Self = Self { slot: 0, crc: 0, epoch_state: 0, seq: 0 };
    pub const UNKNOWN: Self = Self { slot: 0, crc: 0, epoch_state: UNKNOWN << EPOCH_BITS, seq: 0 };

    pub fn new(version: Version, state: BlockState) -> Self {
        let (tag, slot, crc) = match state {
            BlockState::Absent => return Self::ABSENT,
            BlockState::Unknown => return Self::UNKNOWN,
            BlockState::Zero => (ZERO, 0, 0),
            BlockState::Lost => (LOST, 0, 0),
            BlockState::Data { slot, crc } => (DATA, slot.get(), crc.get()),
        };
        let epoch_state = version.epoch.get() | tag << EPOCH_BITS;
        Self { slot, crc, epoch_state, seq: version.seq.get() }
    }

    pub fn state(&self) -> BlockState {
        match self.epoch_state >> EPOCH_BITS {
            ABSENT => BlockState::Absent,
            ZERO => BlockState::Zero,
            LOST => BlockState::Lost,
            DATA => BlockState::Data { slot: Slot::new(self.slot), crc: Crc::new(self.crc) },
            // `decode` lets no other in.
            _ => BlockState::Unknown,
        }
    }

    pub fn version(&self) -> Version {
        let epoch = Epoch::new(self.epoch_state & Epoch::MAX.get()).expect("masked to 48 bits");
        Version::new(epoch, Seq::new(self.seq))
    }

    pub fn slot(&self) -> Option<Slot> {
        match self.state() {
            BlockState::Data { slot, .. } => Some(slot),
            BlockState::Absent | BlockState::Zero | BlockState::Lost | BlockState::Unknown => None,
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let entry = Self {
            slot: reader.u32()?,
            crc: reader.u32()?,
            epoch_state: reader.u64()?,
            seq: reader.u64()?,
        };
        if entry.epoch_state >> EPOCH_BITS > DATA
            || entry != Self::new(entry.version(), entry.state())
        {
            return Err(FormatError::Field("block entry"));
        }
        Ok(entry)
    }
}

/// Shape: 4 KiB: head of 1024 bytes, 128 entries of 24 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPage {
    pub uuid: DiskUuid,
    pub key: SegmentKey,
    /// Which 512 KiB of the segment.
    pub index: u32,
    /// The last frame of which it holds the outcome.
    pub lsn: Lsn,
    pub highest: Seq,
    pub entries: [BlockEntry; PAGE_BLOCKS as usize],
}

impl MapPage {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new(MAGIC, VERSION, PAGE_BYTES);
        writer.put(&self.uuid);
        writer.u32(self.key.volume.get());
        writer.u32(self.key.segment.get());
        writer.u32(self.index);
        writer.u32(0);
        writer.u64(self.lsn.get());
        writer.u64(self.highest.get());
        writer.zeros(TABLE_AT - writer.len());
        for entry in &self.entries {
            writer.u32(entry.slot);
            writer.u32(entry.crc);
            writer.u64(entry.epoch_state);
            writer.u64(entry.seq);
        }
        writer.seal(PAGE_BYTES).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let page = bytes.get(..PAGE_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::open(page, MAGIC, VERSION)?;
        let uuid = reader.array()?;
        let key = SegmentKey::new(VolumeId::new(reader.u32()?), SegmentIndex::new(reader.u32()?));
        let index = reader.u32()?;
        reader.zeros(4)?;
        let lsn = Lsn::new(reader.u64()?);
        let highest = reader.seq()?;
        reader.zeros(TABLE_AT - HEAD_BYTES - 48)?;
        let mut entries = [BlockEntry::ABSENT; PAGE_BLOCKS as usize];
        for entry in &mut entries {
            *entry = BlockEntry::decode(&mut reader)?;
        }
        reader.end()?;
        Ok(Self { uuid, key, index, lsn, highest, entries })
    }
}
