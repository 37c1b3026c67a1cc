//! What all structures share: a head of magic, version and crc, fields in little-endian, and
//! padding that is zero.
//!
//! Shape of the head: magic 8, version u16, zero u16, crc u32 = 16 bytes. The crc covers the whole
//! structure with its own field taken as zero.

use crate::PAGE_BYTES;
use gabion_types::{Epoch, Seq};

pub const HEAD_BYTES: usize = 16;
const CRC_AT: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it does not begin with the magic of this structure")]
    Magic,
    #[error("its version {found} is newer than this build reads")]
    Version { found: u16 },
    #[error("its checksum does not match")]
    Crc,
    #[error("it ends too early")]
    Short,
    #[error("its padding is too long or not zero")]
    Padding,
    #[error("its field `{0}` is out of range")]
    Field(&'static str),
    #[error("it belongs to another disk")]
    OtherDisk,
}

/// Appends fields.
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(magic: [u8; 8], version: u16, capacity: usize) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(capacity) };
        writer.put(&magic);
        writer.put(&version.to_le_bytes());
        writer.zeros(HEAD_BYTES - 10);
        writer
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// A length or count that is bounded far below 2^32 by whoever made it.
    pub(crate) fn length(&mut self, value: usize) {
        self.u32(u32::try_from(value).expect("lengths on disk are bounded far below 2^32"));
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Pads with zeros to `bytes` and fills in the crc.
    pub(crate) fn seal(mut self, bytes: usize) -> Vec<u8> {
        assert!(self.bytes.len() <= bytes, "a structure outgrew its place");
        self.bytes.resize(bytes, 0);
        let crc = crc_of(&self.bytes);
        self.bytes[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// The crc that stands in a sealed structure; names it in what refers to it.
pub fn crc_field(bytes: &[u8]) -> Option<u32> {
    let field = bytes.get(CRC_AT..HEAD_BYTES)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// The version that stands in a structure's head.
pub(crate) fn version_field(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?))
}

fn crc_of(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC_AT]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[HEAD_BYTES..]);
    hasher.finalize()
}

/// Takes fields off the front.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks magic, version and crc of the whole of `bytes`, which are whole pages.
    pub(crate) fn open(
        bytes: &'a [u8],
        magic: [u8; 8],
        version_max: u16,
    ) -> Result<Self, FormatError> {
        let mut reader = Self { bytes };
        if reader.take(8)? != magic {
            return Err(FormatError::Magic);
        }
        let found = u16::from_le_bytes(reader.array()?);
        reader.zeros(2)?;
        let crc = reader.u32()?;
        if crc != crc_of(bytes) {
            return Err(FormatError::Crc);
        }
        if found == 0 || found > version_max {
            return Err(FormatError::Version { found });
        }
        if !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(FormatError::Short);
        }
        Ok(reader)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(FormatError::Short)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        self.take(N)?.try_into().map_err(|_| FormatError::Short)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn length(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.u32()?).map_err(|_| FormatError::Field("length"))
    }

    pub(crate) fn epoch(&mut self) -> Result<Epoch, FormatError> {
        Epoch::new(self.u64()?).ok_or(FormatError::Field("epoch"))
    }

    pub(crate) fn seq(&mut self) -> Result<Seq, FormatError> {
        Ok(Seq::new(self.u64()?))
    }

    pub(crate) fn zeros(&mut self, count: usize) -> Result<(), FormatError> {
        all_zero(self.take(count)?)
    }

    /// The rest is padding, up to the end of the page: there is one way to write each structure.
    pub(crate) fn end(self) -> Result<(), FormatError> {
        if self.bytes.len() >= PAGE_BYTES {
            return Err(FormatError::Padding);
        }
        all_zero(self.bytes)
    }

    pub(crate) fn within(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn all_zero(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(FormatError::Padding) }
}
