//! Why bytes of a peer are not a message, or a message does not fit the wire.

use crate::header::Kind;

/// The link that it happened on is closed: nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a message of Gabion (magic {found:#06x}); is another program on that port?")]
    Magic { found: u16 },
    #[error("the header does not match its checksum")]
    HeaderCrc,
    #[error("the peer speaks protocol {found}, which this build does not; upgrade the older node")]
    Protocol { found: u8 },
    #[error("no message has kind {found:#04x}")]
    UnknownKind { found: u8 },
    #[error("{kind:?} with {bytes} bytes of fields; at most {max}")]
    AuxTooLarge { kind: Kind, bytes: u64, max: u64 },
    #[error("{kind:?} with {bytes} bytes of payload; at most {max}")]
    PayloadTooLarge { kind: Kind, bytes: u64, max: u64 },
    #[error("the fields of {kind:?} do not match their checksum")]
    AuxCrc { kind: Kind },
    #[error("the payload of {kind:?} does not match its checksum")]
    PayloadCrc { kind: Kind },
    #[error("the fields of {kind:?} end early")]
    Short { kind: Kind },
    #[error("{bytes} bytes stand behind the fields of {kind:?}")]
    Trailing { kind: Kind, bytes: usize },
    #[error("{kind:?} sets a header field that it has no use for")]
    UnusedField { kind: Kind },
    #[error("{kind:?} has {field} {value}, which cannot be")]
    Value { kind: Kind, field: &'static str, value: u64 },
    #[error("{kind:?} carries {found} bytes of payload where its fields tell of {expected}")]
    PayloadLength { kind: Kind, found: u64, expected: u64 },
    #[error("the driver delivered {found} bytes where {wanted} were wanted")]
    Chunk { found: usize, wanted: usize },
}
