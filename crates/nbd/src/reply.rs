//! Bytes to the client. All numbers are big-endian.

use crate::command::Features;
use crate::io::Export;
use crate::limits::{BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX};
use crate::proto::{
    MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, RESERVED_ZEROES, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, allocation, answer, chunk, handshake, info, transmission,
};
use crate::refused::Refused;
use bytes::{BufMut, Bytes};

pub(crate) fn greeting() -> Bytes {
    let mut bytes = Vec::with_capacity(18);
    bytes.put_u64(MAGIC);
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    bytes.into()
}

pub(crate) fn option(option: u32, kind: u32, data: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.put_u64(OPTION_REPLY_MAGIC);
    bytes.put_u32(option);
    bytes.put_u32(kind);
    bytes.put_u32(length_of(data.len()));
    bytes.put_slice(data);
    bytes.into()
}

/// One export of a list.
pub(crate) fn server(option_code: u32, name: &str) -> Bytes {
    let mut data = Vec::with_capacity(4 + name.len());
    data.put_u32(length_of(name.len()));
    data.put_slice(name.as_bytes());
    option(option_code, answer::SERVER, &data)
}

pub(crate) fn info_export(option_code: u32, export: &Export, structured: bool) -> Bytes {
    let mut data = Vec::with_capacity(12);
    data.put_u16(info::EXPORT);
    data.put_u64(export.size_bytes);
    data.put_u16(transmission_flags(export, structured));
    option(option_code, answer::INFO, &data)
}

pub(crate) fn info_text(option_code: u32, kind: u16, text: &str) -> Bytes {
    let mut data = Vec::with_capacity(2 + text.len());
    data.put_u16(kind);
    data.put_slice(text.as_bytes());
    option(option_code, answer::INFO, &data)
}

pub(crate) fn info_block_size(option_code: u32) -> Bytes {
    let mut data = Vec::with_capacity(14);
    data.put_u16(info::BLOCK_SIZE);
    data.put_u32(BLOCK_BYTES_MIN);
    data.put_u32(BLOCK_BYTES_PREFERRED);
    data.put_u32(PAYLOAD_BYTES_MAX);
    option(option_code, answer::INFO, &data)
}

pub(crate) fn meta_context(option_code: u32, id: u32) -> Bytes {
    let mut data = Vec::with_capacity(4 + allocation::NAME.len());
    data.put_u32(id);
    data.put_slice(allocation::NAME.as_bytes());
    option(option_code, answer::META_CONTEXT, &data)
}

/// What follows EXPORT_NAME, which has no reply of the usual form.
pub(crate) fn export_name(export: &Export, structured: bool, no_zeroes: bool) -> Bytes {
    let mut bytes = Vec::with_capacity(10 + RESERVED_ZEROES);
    bytes.put_u64(export.size_bytes);
    bytes.put_u16(transmission_flags(export, structured));
    if !no_zeroes {
        bytes.put_bytes(0, RESERVED_ZEROES);
    }
    bytes.into()
}

fn transmission_flags(export: &Export, structured: bool) -> u16 {
    transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::SEND_TRIM
        | transmission::SEND_WRITE_ZEROES
        | transmission::CAN_MULTI_CONN
        | transmission::SEND_CACHE
        | transmission::SEND_FAST_ZERO
        | if structured { transmission::SEND_DF } else { 0 }
        | if export.read_only { transmission::READ_ONLY } else { 0 }
}

/// Success without data. Never for a read where structured replies were negotiated.
pub(crate) fn done(cookie: u64) -> Bytes {
    simple(cookie, 0)
}

fn simple(cookie: u64, error: u32) -> Bytes {
    let mut bytes = Vec::with_capacity(16);
    bytes.put_u32(SIMPLE_REPLY_MAGIC);
    bytes.put_u32(error);
    bytes.put_u64(cookie);
    bytes.into()
}

/// The whole answer to a request that fails.
pub(crate) fn error(features: Features, cookie: u64, refused: Refused) -> Bytes {
    if features.structured {
        error_chunk(cookie, refused, None, true)
    } else {
        simple(cookie, refused.code())
    }
}

/// With an offset: only what begins there failed.
pub(crate) fn error_chunk(cookie: u64, refused: Refused, offset: Option<u64>, last: bool) -> Bytes {
    let text = refused.to_string();
    let text_length = u16::try_from(text.len()).expect("our texts are a line long");
    let (kind, fixed) = match offset {
        None => (chunk::ERROR, 6),
        Some(_) => (chunk::ERROR_OFFSET, 14),
    };
    let mut bytes = chunk_head(cookie, kind, last, fixed + text.len());
    bytes.put_u32(refused.code());
    bytes.put_u16(text_length);
    bytes.put_slice(text.as_bytes());
    if let Some(offset) = offset {
        bytes.put_u64(offset);
    }
    bytes.into()
}

/// An empty read.
pub(crate) fn none_chunk(cookie: u64) -> Bytes {
    chunk_head(cookie, chunk::NONE, true, 0).into()
}

/// The head of a chunk with so much data of the export from `offset` on.
pub(crate) fn data_chunk(cookie: u64, offset: u64, data_bytes: usize, last: bool) -> Bytes {
    let mut bytes = chunk_head(cookie, chunk::OFFSET_DATA, last, 8 + data_bytes);
    bytes.put_u64(offset);
    bytes.into()
}

/// Descriptors are (length, flags).
pub(crate) fn status_chunk(cookie: u64, descriptors: &[(u32, u32)]) -> Bytes {
    let mut bytes = chunk_head(cookie, chunk::BLOCK_STATUS, true, 4 + 8 * descriptors.len());
    bytes.put_u32(allocation::ID);
    for (length, flags) in descriptors {
        bytes.put_u32(*length);
        bytes.put_u32(*flags);
    }
    bytes.into()
}

fn chunk_head(cookie: u64, kind: u16, last: bool, payload_bytes: usize) -> Vec<u8> {
    // Data rides in a piece of its own.
    let own = if kind == chunk::OFFSET_DATA { 8 } else { payload_bytes };
    let mut bytes = Vec::with_capacity(20 + own);
    bytes.put_u32(STRUCTURED_REPLY_MAGIC);
    bytes.put_u16(if last { chunk::DONE } else { 0 });
    bytes.put_u16(kind);
    bytes.put_u64(cookie);
    bytes.put_u32(length_of(payload_bytes));
    bytes
}

fn length_of(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no reply is near 4 GiB")
}
