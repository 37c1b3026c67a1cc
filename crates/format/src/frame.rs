//! Journal frames: entries that become durable together.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, Reader, Writer, crc_field};
use crate::entry::Entry;
use crate::ids::{DiskUuid, Lsn};
use bytes::Bytes;

/// A frame is so many pages of 4 KiB at most.
pub const FRAME_PAGES_MAX: usize = 16;
/// Bytes of a frame before its entries.
pub const FRAME_HEAD_BYTES: usize = 80;
/// Entries of one frame are at most so many bytes.
pub const FRAME_ENTRIES_BYTES_MAX: usize = FRAME_PAGES_MAX * PAGE_BYTES - FRAME_HEAD_BYTES;

const MAGIC: [u8; 8] = *b"GABIONJF";
pub const VERSION: u16 = 1;
const PAGES_AT: usize = 68;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub uuid: DiskUuid,
    pub life: u64,
    pub lsn: Lsn,
    /// Everything up to this frame was synced when this one was written.
    pub durable: Lsn,
    /// The newest checkpoint that was durable then.
    pub generation: u64,
    /// The crc of the frame before.
    pub chain: u32,
}

/// Shape: head of 80 bytes, entries, zeros up to a multiple of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub head: FrameHead,
    /// Its own crc.
    pub crc: u32,
    pub entries: Vec<Entry>,
}

/// With its own crc, which the next frame names. The entries fit `FRAME_ENTRIES_BYTES_MAX`.
pub fn encode_frame<'a>(
    head: &FrameHead,
    entries: impl Iterator<Item = &'a Entry> + Clone,
) -> (Bytes, u32) {
    let count = entries.clone().count();
    let length = entries.clone().map(Entry::encoded_bytes).sum::<usize>();
    let bytes = (FRAME_HEAD_BYTES + length).next_multiple_of(PAGE_BYTES);
    assert!(bytes <= FRAME_PAGES_MAX * PAGE_BYTES, "a frame was packed too full");
    let mut writer = Writer::new(MAGIC, VERSION, bytes);
    writer.put(&head.uuid);
    writer.u64(head.life);
    writer.u64(head.lsn.get());
    writer.u64(head.durable.get());
    writer.u64(head.generation);
    writer.u32(head.chain);
    writer.length(bytes / PAGE_BYTES);
    writer.length(count);
    writer.length(length);
    for entry in entries {
        entry.encode(&mut writer);
    }
    let sealed = writer.seal(bytes);
    let crc = crc_field(&sealed).expect("a sealed structure has a crc");
    (sealed.into(), crc)
}

/// How many pages the frame that begins with this page says it has; `None`: no frame begins here.
pub fn frame_pages(page: &[u8]) -> Option<usize> {
    if page.get(..8)? != MAGIC {
        return None;
    }
    let field = page.get(PAGES_AT..PAGES_AT + 4)?;
    let pages = usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()?;
    (1..=FRAME_PAGES_MAX).contains(&pages).then_some(pages)
}

impl Frame {
    /// `bytes` is as long as `frame_pages` said.
    pub fn decode(bytes: &[u8], uuid: DiskUuid) -> Result<Self, FormatError> {
        let pages = frame_pages(bytes).ok_or(FormatError::Magic)?;
        let bytes = bytes.get(..pages * PAGE_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        let crc = crc_field(bytes).ok_or(FormatError::Short)?;
        let head = FrameHead {
            uuid: reader.array()?,
            life: reader.u64()?,
            lsn: Lsn::new(reader.u64()?),
            durable: Lsn::new(reader.u64()?),
            generation: reader.u64()?,
            chain: reader.u32()?,
        };
        if head.uuid != uuid {
            return Err(FormatError::OtherDisk);
        }
        reader.u32()?;
        let (count, length) = (reader.length()?, reader.length()?);
        let mut table = Reader::within(reader.take(length)?);
        reader.end()?;
        let mut entries = Vec::new();
        while !table.is_empty() {
            entries.push(Entry::decode(&mut table)?);
        }
        if entries.len() != count {
            return Err(FormatError::Field("entry count"));
        }
        Ok(Self { head, crc, entries })
    }
}
