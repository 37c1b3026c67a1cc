//! How much one client may have under way.

use gabion_types::BLOCK_BYTES;

/// The largest read or write, told to clients as the maximum payload. Units: bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Smallest unit and alignment of a request. Units: bytes.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// What costs no read before a write. Units: bytes.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Data of one option that is kept; longer is read, dropped and answered with `ERR_TOO_BIG`.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longer than this an option is an attack: the connection is closed.
pub const OPTION_BYTES_DROPPED_MAX: u32 = 32 << 20;
/// The specification's limit for every string.
pub const STRING_BYTES_MAX: usize = 4096;
/// Extents in one answer to BLOCK_STATUS; the client asks on from where they end.
pub const STATUS_EXTENTS_MAX: usize = 16 << 10;
/// Bytes that nobody wants are read in pieces of at most so many.
pub const DROP_BYTES_MAX: u32 = 64 << 10;
/// Parts under way of one WRITE_ZEROES that must not make a hole.
pub const FILL_PARTS_MAX: u32 = 4;

/// Limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdLimits {
    /// A request is handed on in parts of at most so many bytes; a multiple of 4 KiB.
    pub part_bytes: u32,
    /// Requests taken and not yet answered. Full: nothing is read.
    pub in_flight_max: u32,
    /// Payload of requests taken and not yet answered. A request that does not fit waits, and
    /// nothing is read meanwhile; one that is larger by itself is taken when it is alone, so that
    /// what is held is at most the larger of this and `PAYLOAD_BYTES_MAX`.
    pub bytes_in_flight_max: u64,
}

impl NbdLimits {
    pub const DEFAULT: Self =
        Self { part_bytes: 256 << 10, in_flight_max: 128, bytes_in_flight_max: 32 << 20 };

    pub(crate) fn check(&self) {
        let whole_blocks = u64::from(self.part_bytes).is_multiple_of(BLOCK_BYTES);
        assert!(self.part_bytes > 0 && whole_blocks, "parts are whole blocks");
        assert!(self.in_flight_max > 0, "at least one request is taken");
    }
}

impl Default for NbdLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
