//! Requests that no guest needs, most of which have to be refused: no answer to another request may
//! be the worse for them.

use super::Header;
use super::proto::{command, error, flag};
use gabion_types::Prng;

/// What a server takes at most. Units: bytes.
const PAYLOAD_MAX: u32 = 32 << 20;
const SECTOR: u32 = 512;

/// A request with its payload, and the error it has to be answered with; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aside {
    pub header: Header,
    pub payload: usize,
    pub error: u32,
}

/// What of the protocol was agreed on with this server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    pub size_bytes: u64,
    pub structured: bool,
    pub allocation: bool,
}

impl Aside {
    pub fn draw(prng: &mut Prng, agreed: Agreed) -> Self {
        let Agreed { size_bytes, structured, allocation } = agreed;
        let end = size_bytes.next_multiple_of(u64::from(SECTOR));
        let ask = |command, flags, offset, length| Header { command, flags, offset, length };
        let refused = |header, error| Self { header, payload: 0, error };
        let written = |flags, offset, length: u32, error| Self {
            header: ask(command::WRITE, flags, offset, length),
            payload: crate::world::index(length.into()),
            error,
        };
        match prng.below(16) {
            0 => refused(ask(command::UNKNOWN, 0, 0, SECTOR), error::EINVAL),
            1 => refused(ask(command::READ, 0, 1, SECTOR), error::EINVAL),
            2 => refused(ask(command::READ, 0, end, SECTOR), error::EINVAL),
            3 => written(0, end, 16 * SECTOR, error::ENOSPC),
            4 => written(0, 0, 100, error::EINVAL),
            5 => written(flag::UNKNOWN, 0, SECTOR, error::EINVAL),
            6 => refused(ask(command::FLUSH, 0, 0, SECTOR), error::EINVAL),
            7 => {
                let flags = flag::NO_HOLE | flag::FAST_ZERO;
                refused(ask(command::WRITE_ZEROES, flags, 0, SECTOR), error::ENOTSUP)
            }
            8 => {
                let error = if structured { error::EOVERFLOW } else { error::EINVAL };
                refused(ask(command::READ, 0, 0, PAYLOAD_MAX + SECTOR), error)
            }
            9 => {
                let length = if allocation { 0 } else { SECTOR };
                refused(ask(command::BLOCK_STATUS, 0, 0, length), error::EINVAL)
            }
            10 => refused(ask(command::TRIM, 0, end, SECTOR), error::EINVAL),
            11 => refused(ask(command::WRITE_ZEROES, 0, u64::MAX - 511, SECTOR), error::ENOSPC),
            12 => refused(ask(command::WRITE_ZEROES, flag::DF, 0, SECTOR), error::EINVAL),
            13 => refused(ask(command::CACHE, 0, 0, SECTOR.min(short(size_bytes))), 0),
            14 => refused(ask(command::READ, 0, 0, 0), 0),
            _ => written(flag::FUA, 0, 0, 0),
        }
    }
}

fn short(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes).unwrap_or(SECTOR)
}
