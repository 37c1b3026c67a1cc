//! Bitmap pages: which slots hold blocks' data, so that a store knows what is free before it has read its map.

use crate::PAGE_BYTES;
use crate::codec::{FormatError, Reader, Writer};
use crate::ids::DiskUuid;
use bytes::Bytes;

/// Slots of one bitmap page.
pub const BITMAP_PAGE_SLOTS: u32 = 32_000;
pub const BITMAP_PAGE_BYTES: usize = 4000;
const BITS_BYTES: usize = BITMAP_PAGE_BYTES;

const MAGIC: [u8; 8] = *b"GABIONBM";
pub const VERSION: u16 = 1;

/// Shape: 4 KiB: head, then 32 000 bits, lowest bit of the first byte first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapPage {
    pub uuid: DiskUuid,
    pub generation: u64,
    pub index: u32,
    /// 4000 bytes.
    pub bits: Vec<u8>,
}

impl BitmapPage {
    pub fn encode(&self) -> Bytes {
        assert!(self.bits.len() == BITS_BYTES, "a bitmap page holds 32000 bits");
        let mut writer = Writer::new(MAGIC, VERSION, PAGE_BYTES);
        writer.put(&self.uuid);
        writer.u64(self.generation);
        writer.u32(self.index);
        writer.u32(0);
        writer.put(&self.bits);
        writer.seal(PAGE_BYTES).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let page = bytes.get(..PAGE_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::open(page, MAGIC, VERSION)?;
        let uuid = reader.array()?;
        let generation = reader.u64()?;
        let index = reader.u32()?;
        reader.zeros(4)?;
        let bits = reader.take(BITS_BYTES)?.to_vec();
        reader.end()?;
        Ok(Self { uuid, generation, index, bits })
    }
}
