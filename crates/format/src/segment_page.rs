//! Segment pages: where the map pages of a segment lie.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, Reader, Writer};
use crate::ids::{DiskUuid, Lsn, SegmentKey, Slot};
use bytes::Bytes;
use gabion_types::{SegmentIndex, VolumeId};

/// Map pages of one segment page: 124 MiB of a volume.
pub const CHUNK_PAGES: usize = 248;

const MAGIC: [u8; 8] = *b"GABIONSP";
pub const VERSION: u16 = 1;

/// Where a map page lies, and the lsn that it must have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    pub slot: Slot,
    pub lsn: Lsn,
}

/// Shape: 4 KiB: head, then 248 x (slot u32, there u32, lsn u64).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPage {
    pub uuid: DiskUuid,
    pub key: SegmentKey,
    /// The how-manieth 248 map pages of the segment.
    pub chunk: u32,
    /// `CHUNK_PAGES` long.
    pub pages: Vec<Option<PageRef>>,
}

impl SegmentPage {
    pub fn encode(&self) -> Bytes {
        assert!(self.pages.len() == CHUNK_PAGES, "a segment page refers to 248 map pages");
        let mut writer = Writer::new(MAGIC, VERSION, PAGE_BYTES);
        writer.put(&self.uuid);
        writer.u32(self.key.volume.get());
        writer.u32(self.key.segment.get());
        writer.u32(self.chunk);
        writer.u32(0);
        for page in &self.pages {
            let (slot, there, lsn) = page.map_or((0, 0, 0), |at| (at.slot.get(), 1, at.lsn.get()));
            writer.u32(slot);
            writer.u32(there);
            writer.u64(lsn);
        }
        writer.seal(PAGE_BYTES).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let page = bytes.get(..PAGE_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::open(page, MAGIC, VERSION)?;
        let uuid = reader.array()?;
        let key = SegmentKey::new(VolumeId::new(reader.u32()?), SegmentIndex::new(reader.u32()?));
        let chunk = reader.u32()?;
        reader.zeros(4)?;
        let mut pages = Vec::with_capacity(CHUNK_PAGES);
        for _ in 0..CHUNK_PAGES {
            let (slot, there, lsn) = (reader.u32()?, reader.u32()?, reader.u64()?);
            pages.push(match (there, slot, lsn) {
                (0, 0, 0) => None,
                (1, slot, lsn) => Some(PageRef { slot: Slot::new(slot), lsn: Lsn::new(lsn) }),
                _ => return Err(FormatError::Field("page ref")),
            });
        }
        reader.end()?;
        Ok(Self { uuid, key, chunk, pages })
    }
}
