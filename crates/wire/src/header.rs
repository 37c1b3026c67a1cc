//! The 64 bytes at the head of every message. The byte diagram stands in the README.

use crate::error::WireError;

/// "GB", little-endian.
pub const MAGIC: u16 = 0x4247;
pub const HEADER_BYTES: usize = 64;
/// Bytes of fields and checksums behind the header, their own checksum included. Longer: refused.
pub const AUX_BYTES_MAX: u32 = 1 << 20;
/// Bytes of payload of one message. Longer: refused.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// So many entries of any list (blocks, segments, reports, numbers) surely fit one message. Cores
/// split what is longer; what is over `AUX_BYTES_MAX` is not sent.
pub const ENTRIES_MAX: usize = 16 << 10;

/// Where the header's own checksum stands, over all bytes before it.
const CRC_AT: usize = HEADER_BYTES - 4;
/// `PROTOCOL` as it stands in the header. A test holds the two together.
pub(crate) const VERSION: u8 = 1;

macro_rules! kinds {
    ($($name:ident = $code:literal $payload:literal,)*) => {
        /// What a message is. A code is never used again for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $($name = $code,)*
        }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Whether a payload may ride behind.
            pub const fn carries_payload(self) -> bool {
                match self {
                    $(Self::$name => $payload,)*
                }
            }
        }
    };
}

kinds! {
    Hello = 0x01 false,
    Proof = 0x02 false,
    LinkRefused = 0x03 false,
    Ping = 0x04 false,
    Pong = 0x05 false,
    Renew = 0x06 false,
    Renewed = 0x07 false,
    ReleaseVolume = 0x08 false,
    Leaving = 0x09 false,

    Create = 0x20 false,
    Fence = 0x21 false,
    Write = 0x22 true,
    Zero = 0x23 false,
    Read = 0x24 false,
    Scan = 0x25 false,
    Settle = 0x26 true,
    Repair = 0x27 true,
    EpochStart = 0x28 false,
    Advance = 0x29 false,
    JoinStart = 0x2a false,
    Install = 0x2b true,
    Promoted = 0x2c false,
    Drop = 0x2d false,
    Verify = 0x2e false,

    Done = 0x40 false,
    Fenced = 0x41 false,
    Blocks = 0x42 true,
    Table = 0x43 false,
    JoinStarted = 0x44 false,
    Refused = 0x45 false,

    SessionOpen = 0x60 false,
    SessionHave = 0x61 false,
    SessionOpened = 0x62 false,
    SessionRequest = 0x63 true,
    SessionResponse = 0x64 true,
    SessionHungUp = 0x65 false,
    SessionAttach = 0x66 false,
    SessionAttached = 0x67 false,
    SessionFlush = 0x68 false,
    SessionFlushed = 0x69 false,
    SessionClosed = 0x6a false,
    SessionKeptOut = 0x6b false,
    SessionOccupied = 0x6c false,
}

/// A header whose checksum, version, kind and lengths were found right. A field that the kind has
/// no use for is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub aux_len: u32,
    pub request: u64,
    pub volume: u32,
    pub segment: u32,
    pub disk: u32,
    pub block: u32,
    pub owner_epoch: u64,
    pub version_epoch: u64,
    pub version_seq: u64,
    pub payload_len: u32,
}

impl Header {
    pub(crate) const fn new(kind: Kind, request: u64) -> Self {
        Self {
            kind,
            aux_len: 0,
            request,
            volume: 0,
            segment: 0,
            disk: 0,
            block: 0,
            owner_epoch: 0,
            version_epoch: 0,
            version_seq: 0,
            payload_len: 0,
        }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[VERSION, self.kind.code()]);
        put(&self.aux_len.to_le_bytes());
        put(&self.request.to_le_bytes());
        put(&self.volume.to_le_bytes());
        put(&self.segment.to_le_bytes());
        put(&self.disk.to_le_bytes());
        put(&self.block.to_le_bytes());
        put(&self.owner_epoch.to_le_bytes());
        put(&self.version_epoch.to_le_bytes());
        put(&self.version_seq.to_le_bytes());
        put(&self.payload_len.to_le_bytes());
        assert_eq!(at, CRC_AT, "the fields fill the header up to its checksum");
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Errors: all that is wrong with a header by itself. What follows is bounded from here on.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        if magic != MAGIC {
            return Err(WireError::Magic { found: magic });
        }
        if crc32fast::hash(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(WireError::HeaderCrc);
        }
        if bytes[2] != VERSION {
            return Err(WireError::Protocol { found: bytes[2] });
        }
        let kind = Kind::from_code(bytes[3]).ok_or(WireError::UnknownKind { found: bytes[3] })?;
        let header = Self {
            kind,
            aux_len: u32_at(bytes, 4),
            request: u64_at(bytes, 8),
            volume: u32_at(bytes, 16),
            segment: u32_at(bytes, 20),
            disk: u32_at(bytes, 24),
            block: u32_at(bytes, 28),
            owner_epoch: u64_at(bytes, 32),
            version_epoch: u64_at(bytes, 40),
            version_seq: u64_at(bytes, 48),
            payload_len: u32_at(bytes, 56),
        };
        header.check_lengths()?;
        Ok(header)
    }

    /// promise: bounded
    pub(crate) fn check_lengths(&self) -> Result<(), WireError> {
        let kind = self.kind;
        if self.aux_len > AUX_BYTES_MAX {
            let (bytes, max) = (u64::from(self.aux_len), u64::from(AUX_BYTES_MAX));
            return Err(WireError::AuxTooLarge { kind, bytes, max });
        }
        let max = if kind.carries_payload() { PAYLOAD_BYTES_MAX } else { 0 };
        if self.payload_len > max {
            let (bytes, max) = (u64::from(self.payload_len), u64::from(max));
            return Err(WireError::PayloadTooLarge { kind, bytes, max });
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}
