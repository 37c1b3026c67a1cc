//! The root of a checkpoint: every fence and every segment, and where its segment pages lie.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, Reader, Writer, crc_field, version_field};
use crate::ids::{DiskUuid, Lsn, SegmentKey, Slot};
use bytes::Bytes;
use gabion_types::{Epoch, SegmentIndex, Seq, VolumeId};

const MAGIC: [u8; 8] = *b"GABIONRT";
/// 2: it may name a bitmap. In version 1 there are zeros in its place.
pub const VERSION: u16 = 2;

const HAS_BITMAP: u32 = 1;

pub(crate) const ROOT_HEAD_BYTES: usize = 64;
pub(crate) const FENCE_BYTES: usize = 16;
pub(crate) const SEGMENT_BYTES: usize = 88;
pub(crate) const CHUNK_REF_BYTES: usize = 12;

const JOINING: u32 = 1;
const DAMAGED: u32 = 2;
const DROPPED: u32 = 4;

/// What a disk knows of a segment beyond its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    pub creation: Epoch,
    /// The J of the latest join; zero: it never joined.
    pub joined: Epoch,
    /// Joined and not promoted yet.
    pub joining: bool,
    /// Recovery met damage: blocks may be missing or old at any seq.
    pub damaged: bool,
    pub settled: Seq,
    /// Highest seq written; of a joiner among versions from J on.
    pub highest: Seq,
    /// Highest seq installed since the latest join.
    pub installed: Seq,
    /// The latest `EpochStart`.
    pub next: Seq,
    pub next_epoch: Epoch,
    /// Lowest seq that a recovery had to drop since the latest `EpochStart`.
    pub dropped_from: Option<Seq>,
}

impl SegmentMeta {
    pub const fn new(creation: Epoch) -> Self {
        Self {
            creation,
            joined: Epoch::ZERO,
            joining: false,
            damaged: false,
            settled: Seq::ZERO,
            highest: Seq::ZERO,
            installed: Seq::ZERO,
            next: Seq::ZERO,
            next_epoch: Epoch::ZERO,
            dropped_from: None,
        }
    }
}

/// Where a segment page lies, and the crc that it must have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    pub chunk: u32,
    pub slot: Slot,
    pub crc: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    pub key: SegmentKey,
    pub meta: SegmentMeta,
    pub chunks: Vec<ChunkRef>,
}

/// Shape: head of 64 bytes, fences of 16, segments of 88 and their segment pages of 12; padded to
/// 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub uuid: DiskUuid,
    pub generation: u64,
    /// The last frame that it covers.
    pub lsn: Lsn,
    /// The crc over the crcs of all pages of the bitmap in this generation's place; `None`: what lies
    /// there says nothing.
    pub bitmap: Option<u32>,
    pub fences: Vec<(VolumeId, Epoch)>,
    pub segments: Vec<SegmentRecord>,
}

impl Root {
    /// With the crc that the superblock names it by.
    pub fn encode(&self) -> (Bytes, u32) {
        let capacity = ROOT_HEAD_BYTES
            + self.fences.len() * FENCE_BYTES
            + self.segments.len() * (SEGMENT_BYTES + CHUNK_REF_BYTES);
        let mut writer = Writer::new(MAGIC, VERSION, capacity + PAGE_BYTES);
        writer.put(&self.uuid);
        writer.u64(self.generation);
        writer.u64(self.lsn.get());
        writer.length(self.fences.len());
        writer.length(self.segments.len());
        writer.u32(if self.bitmap.is_some() { HAS_BITMAP } else { 0 });
        writer.u32(self.bitmap.unwrap_or(0));
        for (volume, epoch) in &self.fences {
            writer.u32(volume.get());
            writer.u32(0);
            writer.u64(epoch.get());
        }
        for record in &self.segments {
            encode_segment(&mut writer, record);
        }
        let bytes = writer.len().next_multiple_of(PAGE_BYTES);
        let sealed = writer.seal(bytes);
        let crc = crc_field(&sealed).expect("a sealed structure has a crc");
        (sealed.into(), crc)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        let uuid = reader.array()?;
        let generation = reader.u64()?;
        let lsn = Lsn::new(reader.u64()?);
        let (fences_count, segments_count) = (reader.length()?, reader.length()?);
        let bitmap = match (reader.u32()?, reader.u32()?) {
            (0, 0) => None,
            (HAS_BITMAP, crc) if version_field(bytes) != Some(1) => Some(crc),
            _ => return Err(FormatError::Field("bitmap")),
        };
        let mut fences = Vec::new();
        for _ in 0..fences_count {
            let volume = VolumeId::new(reader.u32()?);
            reader.zeros(4)?;
            fences.push((volume, reader.epoch()?));
        }
        let mut segments = Vec::new();
        for _ in 0..segments_count {
            segments.push(decode_segment(&mut reader)?);
        }
        reader.end()?;
        Ok(Self { uuid, generation, lsn, bitmap, fences, segments })
    }
}

fn encode_segment(writer: &mut Writer, record: &SegmentRecord) {
    let meta = &record.meta;
    let flag = |set, bit| if set { bit } else { 0 };
    writer.u32(record.key.volume.get());
    writer.u32(record.key.segment.get());
    writer.u32(
        flag(meta.joining, JOINING)
            | flag(meta.damaged, DAMAGED)
            | flag(meta.dropped_from.is_some(), DROPPED),
    );
    writer.length(record.chunks.len());
    writer.u64(meta.creation.get());
    writer.u64(meta.joined.get());
    writer.u64(meta.settled.get());
    writer.u64(meta.highest.get());
    writer.u64(meta.installed.get());
    writer.u64(meta.next.get());
    writer.u64(meta.next_epoch.get());
    writer.u64(meta.dropped_from.map_or(0, Seq::get));
    writer.u64(0);
    for chunk in &record.chunks {
        writer.u32(chunk.chunk);
        writer.u32(chunk.slot.get());
        writer.u32(chunk.crc);
    }
}

fn decode_segment(reader: &mut Reader<'_>) -> Result<SegmentRecord, FormatError> {
    let key = SegmentKey::new(VolumeId::new(reader.u32()?), SegmentIndex::new(reader.u32()?));
    let flags = reader.u32()?;
    if flags & !(JOINING | DAMAGED | DROPPED) != 0 {
        return Err(FormatError::Field("segment flags"));
    }
    let chunks_count = reader.length()?;
    let mut meta = SegmentMeta::new(reader.epoch()?);
    meta.joined = reader.epoch()?;
    meta.joining = flags & JOINING != 0;
    meta.damaged = flags & DAMAGED != 0;
    meta.settled = reader.seq()?;
    meta.highest = reader.seq()?;
    meta.installed = reader.seq()?;
    meta.next = reader.seq()?;
    meta.next_epoch = reader.epoch()?;
    let dropped = reader.seq()?;
    match (flags & DROPPED != 0, dropped) {
        (true, seq) => meta.dropped_from = Some(seq),
        (false, Seq::ZERO) => {}
        (false, _) => return Err(FormatError::Field("dropped_from")),
    }
    reader.zeros(8)?;
    let mut chunks = Vec::new();
    for _ in 0..chunks_count {
        let (chunk, slot, crc) = (reader.u32()?, reader.u32()?, reader.u32()?);
        chunks.push(ChunkRef { chunk, slot: Slot::new(slot), crc });
    }
    Ok(SegmentRecord { key, meta, chunks })
}
