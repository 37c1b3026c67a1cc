//! Why a command is answered with an error, and with which.

use gabion_types::IoError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("no such command")]
    UnknownCommand,
    #[error("a flag that this command does not have")]
    UnknownFlag,
    #[error("a flush has neither offset nor length")]
    FlushWithRange,
    #[error("the export is read-only")]
    ReadOnly,
    #[error("a read or write has at most 32 MiB; split it")]
    TooLarge { command: Payload },
    #[error("offset and length must be multiples of 512 bytes")]
    Misaligned,
    #[error("the range reaches past the end of the export")]
    PastEnd { writes: bool },
    #[error("block status without a context selected for this export")]
    NoContext,
    #[error("block status of nothing")]
    EmptyStatus,
    #[error("zeros that must not be a hole are written as data, which is not fast")]
    NotFast,
    #[error("{error}")]
    Guest { error: IoError, writes: bool },
    #[error("the volume gave an answer that does not fit the request")]
    WrongAnswer,
    #[error("the server is shutting down, or this client was evicted")]
    Shutdown,
}

/// What carries the payload that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    SimpleRead,
    StructuredRead,
    Write,
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

impl Refused {
    /// Source: "Error values".
    pub fn code(self) -> u32 {
        match self {
            Self::UnknownCommand
            | Self::UnknownFlag
            | Self::FlushWithRange
            | Self::Misaligned
            | Self::NoContext
            | Self::EmptyStatus
            | Self::PastEnd { writes: false } => EINVAL,
            Self::PastEnd { writes: true } => ENOSPC,
            Self::ReadOnly => EPERM,
            Self::TooLarge { command: Payload::SimpleRead | Payload::Write } => EINVAL,
            Self::TooLarge { command: Payload::StructuredRead } => EOVERFLOW,
            Self::NotFast => ENOTSUP,
            Self::WrongAnswer => EIO,
            Self::Shutdown => ESHUTDOWN,
            Self::Guest { error, writes } => match error {
                IoError::OutOfRange if writes => ENOSPC,
                IoError::OutOfRange | IoError::Misaligned | IoError::TooLarge => EINVAL,
                IoError::NoSpace => ENOSPC,
                IoError::Lost | IoError::HeldTooLong => EIO,
                IoError::Gone | IoError::Stopping => ESHUTDOWN,
            },
        }
    }
}
