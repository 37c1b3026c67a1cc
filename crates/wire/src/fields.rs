//! Writes and reads the fields that stand between the header and the payload.

use crate::error::WireError;
use crate::header::Kind;

/// The checksum at the end.
const CRC_BYTES: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// How many entries follow.
    pub fn count(&mut self, count: usize) {
        // More than 2^32 entries are over `AUX_BYTES_MAX`, which `encode` refuses in the end.
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub fn option(&mut self, value: Option<u64>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.u64(value);
        }
    }

    /// The fields and their checksum; nothing at all where there are no fields.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.bytes.is_empty() {
            let crc = crc32fast::hash(&self.bytes);
            self.u32(crc);
        }
        self.bytes
    }
}

/// Reads fields one by one; past the end is an error, and so is a rest.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Errors: the checksum at the end is not that of the fields.
    pub fn new(kind: Kind, aux: &'a [u8]) -> Result<Self, WireError> {
        if aux.is_empty() {
            return Ok(Self { kind, rest: aux });
        }
        // A checksum over nothing is never written.
        let Some((fields, crc)) =
            aux.split_last_chunk::<CRC_BYTES>().filter(|(f, _)| !f.is_empty())
        else {
            return Err(WireError::Short { kind });
        };
        if crc32fast::hash(fields) != u32::from_le_bytes(*crc) {
            return Err(WireError::AuxCrc { kind });
        }
        Ok(Self { kind, rest: fields })
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(WireError::Short { kind: self.kind });
        };
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Value { kind: self.kind, field, value: u64::from(other) }),
        }
    }

    pub fn option(&mut self, field: &'static str) -> Result<Option<u64>, WireError> {
        if self.bool(field)? { self.u64().map(Some) } else { Ok(None) }
    }

    /// As many entries as were announced. The announced number is compared with the bytes that are
    /// there before room is made for it.
    pub fn entries<T>(
        &mut self,
        entry_bytes_min: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / entry_bytes_min {
            return Err(WireError::Short { kind: self.kind });
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(read(self)?);
        }
        Ok(entries)
    }

    pub fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { kind: self.kind, bytes }),
        }
    }
}
