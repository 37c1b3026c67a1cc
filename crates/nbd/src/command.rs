//! A request's header, and what it asks for if it may ask for it.

use crate::io::Export;
use crate::limits::{BLOCK_BYTES_MIN, PAYLOAD_BYTES_MAX};
use crate::proto::{REQUEST_BYTES, REQUEST_MAGIC, command, flag};
use crate::refused::{Payload, Refused};
use bytes::Buf;
use gabion_types::ByteRange;

/// Shape: 28 bytes, big-endian, behind a magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHeader {
    /// Errors: `None` for another magic: the stream can't be understood any more.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut bytes = &bytes[..];
        if bytes.get_u32() != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: bytes.get_u16(),
            command: bytes.get_u16(),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: bytes.get_u32(),
        })
    }

    /// Bytes that follow, whether the request is refused or not.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }
}

/// What a client may rely on after the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub structured: bool,
    /// `base:allocation` was selected for this export.
    pub allocation: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Done as soon as it is understood: a hint, or a range of no bytes.
    Nothing,
    /// `whole`: in one chunk.
    Read {
        range: ByteRange,
        whole: bool,
    },
    Write {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    Trim {
        range: ByteRange,
        fua: bool,
    },
    Zero {
        range: ByteRange,
        fua: bool,
    },
    /// Zeros as data, so that space is taken.
    Fill {
        range: ByteRange,
        fua: bool,
    },
    /// `one`: the first extent only.
    Status {
        range: ByteRange,
        one: bool,
    },
    Disconnect,
}

impl Command {
    /// Payload that it makes us hold.
    pub fn held_bytes(self) -> u64 {
        match self {
            Self::Read { range, .. } | Self::Write { range, .. } => range.length(),
            Self::Nothing
            | Self::Flush
            | Self::Trim { .. }
            | Self::Zero { .. }
            | Self::Fill { .. }
            | Self::Status { .. }
            | Self::Disconnect => 0,
        }
    }

    /// Source: "Request types". FUA is accepted with every command, as is asked of servers.
    pub fn check(
        header: &RequestHeader,
        export: &Export,
        features: Features,
    ) -> Result<Self, Refused> {
        let fua = header.flags & flag::FUA != 0;
        let allow = |flags: u16| match header.flags & !(flag::FUA | flags) {
            0 => Ok(()),
            _ => Err(Refused::UnknownFlag),
        };
        match header.command {
            command::READ => {
                allow(if features.structured { flag::DF } else { 0 })?;
                let payload = match features.structured {
                    true => Payload::StructuredRead,
                    false => Payload::SimpleRead,
                };
                check_payload(header, payload)?;
                let range = check_range(header, export, false)?;
                let whole = header.flags & flag::DF != 0 || !features.structured;
                Ok(unless_empty(range, Self::Read { range, whole }))
            }
            command::WRITE => {
                allow(0)?;
                check_writable(export)?;
                check_payload(header, Payload::Write)?;
                let range = check_range(header, export, true)?;
                Ok(unless_empty(range, Self::Write { range, fua }))
            }
            command::DISC => Ok(Self::Disconnect),
            command::FLUSH => {
                allow(0)?;
                match (header.offset, header.length) {
                    (0, 0) => Ok(Self::Flush),
                    _ => Err(Refused::FlushWithRange),
                }
            }
            command::TRIM => {
                allow(0)?;
                check_writable(export)?;
                let range = check_range(header, export, false)?;
                Ok(unless_empty(range, Self::Trim { range, fua }))
            }
            command::CACHE => {
                allow(0)?;
                check_range(header, export, false).map(|_| Self::Nothing)
            }
            command::WRITE_ZEROES => Self::check_zeroes(header, export, fua),
            command::BLOCK_STATUS => {
                allow(flag::REQ_ONE)?;
                if !features.allocation {
                    return Err(Refused::NoContext);
                }
                let range = check_range(header, export, false)?;
                if range.length() == 0 {
                    return Err(Refused::EmptyStatus);
                }
                Ok(Self::Status { range, one: header.flags & flag::REQ_ONE != 0 })
            }
            _ => Err(Refused::UnknownCommand),
        }
    }

    fn check_zeroes(header: &RequestHeader, export: &Export, fua: bool) -> Result<Self, Refused> {
        if header.flags & !(flag::FUA | flag::NO_HOLE | flag::FAST_ZERO) != 0 {
            return Err(Refused::UnknownFlag);
        }
        check_writable(export)?;
        let range = check_range(header, export, true)?;
        let no_hole = header.flags & flag::NO_HOLE != 0;
        if no_hole && header.flags & flag::FAST_ZERO != 0 {
            return Err(Refused::NotFast);
        }
        let command = match no_hole {
            true => Self::Fill { range, fua },
            false => Self::Zero { range, fua },
        };
        Ok(unless_empty(range, command))
    }
}

fn unless_empty(range: ByteRange, command: Command) -> Command {
    if range.length() == 0 { Command::Nothing } else { command }
}

fn check_writable(export: &Export) -> Result<(), Refused> {
    if export.read_only { Err(Refused::ReadOnly) } else { Ok(()) }
}

fn check_payload(header: &RequestHeader, command: Payload) -> Result<(), Refused> {
    match header.length {
        0..=PAYLOAD_BYTES_MAX => Ok(()),
        _ => Err(Refused::TooLarge { command }),
    }
}

fn check_range(
    header: &RequestHeader,
    export: &Export,
    writes: bool,
) -> Result<ByteRange, Refused> {
    let min = u64::from(BLOCK_BYTES_MIN);
    let length = u64::from(header.length);
    if !header.offset.is_multiple_of(min) || !length.is_multiple_of(min) {
        return Err(Refused::Misaligned);
    }
    ByteRange::new(header.offset, length)
        .filter(|range| range.end() <= export.size_bytes)
        .ok_or(Refused::PastEnd { writes })
}
