//! The superblock: whose disk it is, and where the newest checkpoint lies.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, Reader, Writer};
use crate::ids::{DiskUuid, Lsn};
use bytes::Bytes;
use gabion_types::{BLOCK_BYTES, ClusterId, Limits, MapIndex, SegmentSize};

const MAGIC: [u8; 8] = *b"GABIONSB";
/// 2: the root may name a bitmap. What is of version 1 is read.
pub const VERSION: u16 = 2;

/// Shape: 4 KiB, at places A and B in turn by `generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: DiskUuid,
    pub cluster: ClusterId,
    /// Counts checkpoints.
    pub generation: u64,
    /// Counts the starts of a store on this disk.
    pub life: u64,
    pub capacity: u64,
    pub limits: Limits,
    /// The last frame that the checkpoint covers.
    pub lsn: Lsn,
    /// The crc of that frame: the next one names it.
    pub chain: u32,
    /// Where in the ring the next frame goes. Units: bytes from the ring's start.
    pub journal_next: u64,
    pub root_length: u64,
    pub root_crc: u32,
    pub highest_map: MapIndex,
}

impl Superblock {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new(MAGIC, VERSION, PAGE_BYTES);
        writer.put(&self.uuid);
        writer.put(&self.cluster.bytes());
        writer.u64(self.generation);
        writer.u64(self.life);
        writer.u64(self.capacity);
        writer.u64(self.limits.segment.bytes());
        writer.u32(self.limits.part_bytes);
        writer.u32(self.limits.requests_per_volume);
        writer.u64(self.limits.write_bytes_per_disk);
        writer.u64(self.lsn.get());
        writer.u64(self.journal_next);
        writer.u64(self.root_length);
        writer.u32(self.root_crc);
        writer.u32(self.chain);
        writer.u64(self.highest_map.get());
        writer.seal(PAGE_BYTES).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let page = bytes.get(..PAGE_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::open(page, MAGIC, VERSION)?;
        let uuid = reader.array()?;
        let cluster = ClusterId::new(reader.array()?);
        let generation = reader.u64()?;
        let life = reader.u64()?;
        let capacity = reader.u64()?;
        let segment = SegmentSize::new(reader.u64()?).ok_or(FormatError::Field("segment"))?;
        let limits = Limits {
            segment,
            part_bytes: reader.u32()?,
            requests_per_volume: reader.u32()?,
            write_bytes_per_disk: reader.u64()?,
        };
        let superblock = Self {
            uuid,
            cluster,
            generation,
            life,
            capacity,
            limits,
            lsn: Lsn::new(reader.u64()?),
            journal_next: reader.u64()?,
            root_length: reader.u64()?,
            root_crc: reader.u32()?,
            chain: reader.u32()?,
            highest_map: MapIndex::new(reader.u64()?),
        };
        reader.end()?;
        if !superblock.journal_next.is_multiple_of(BLOCK_BYTES) {
            return Err(FormatError::Field("journal_next"));
        }
        Ok(superblock)
    }
}
