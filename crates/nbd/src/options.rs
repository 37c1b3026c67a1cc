//! What options of the handshake carry. Any bytes may come; what is not right is `None`, which is
//! answered with `ERR_INVALID`.

use crate::limits::STRING_BYTES_MAX;
use crate::proto::{OPTION_BYTES, OPTION_MAGIC, allocation, info};
use bytes::Buf;

/// Shape: 16 bytes, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub option: u32,
    pub length: u32,
}

impl OptionHeader {
    /// Errors: `None` for another magic.
    pub fn decode(bytes: &[u8; OPTION_BYTES]) -> Option<Self> {
        let mut bytes = &bytes[..];
        if bytes.get_u64() != OPTION_MAGIC {
            return None;
        }
        Some(Self { option: bytes.get_u32(), length: bytes.get_u32() })
    }
}

/// Data of INFO and GO: name length u32, name, count u16, so many u16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    pub name: String,
    pub wants_name: bool,
    pub wants_description: bool,
}

impl InfoRequest {
    pub fn decode(mut data: &[u8]) -> Option<Self> {
        let name = string(&mut data)?;
        let count = usize::from(data.try_get_u16().ok()?);
        if data.len() != count * 2 {
            return None;
        }
        let mut wanted = data.chunks_exact(2).map(|item| u16::from_be_bytes([item[0], item[1]]));
        let (wants_name, wants_description) = wanted.try_fold((false, false), |seen, item| {
            Some(match item {
                info::NAME => (true, seen.1),
                info::DESCRIPTION => (seen.0, true),
                _ => seen,
            })
        })?;
        Some(Self { name, wants_name, wants_description })
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT: name length u32, name, count u32, so many
/// (length u32, query).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest {
    pub export: String,
    /// No queries at all: lists everything, selects nothing.
    pub no_queries: bool,
    /// `base:`, which lists what is below it.
    pub asks_namespace: bool,
    /// `base:allocation`.
    pub asks_allocation: bool,
}

impl MetaRequest {
    pub fn decode(mut data: &[u8]) -> Option<Self> {
        let export = string(&mut data)?;
        let count = data.try_get_u32().ok()?;
        let mut request =
            Self { export, no_queries: count == 0, asks_namespace: false, asks_allocation: false };
        for _ in 0..count {
            // Ends with the data at the latest, whatever was announced.
            match string(&mut data)?.as_str() {
                allocation::NAME => request.asks_allocation = true,
                allocation::NAMESPACE => request.asks_namespace = true,
                _ => {}
            }
        }
        data.is_empty().then_some(request)
    }
}

fn string(data: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(data.try_get_u32().ok()?).ok()?;
    let (text, rest) = data.split_at_checked(length)?;
    *data = rest;
    name(text)
}

/// A string of the protocol: UTF-8 of at most 4096 bytes, without a NUL.
pub(crate) fn name(text: &[u8]) -> Option<String> {
    let fits = text.len() <= STRING_BYTES_MAX && !text.contains(&0);
    std::str::from_utf8(text).ok().filter(|_| fits).map(str::to_owned)
}
