//! Operations that were given to the disk and have not been answered.

use bytes::Bytes;

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub work: Work,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    Read {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        data: Bytes,
    },
    /// Makes the writes durable that had completed when it was issued, up to this number.
    Sync {
        covers: u64,
    },
}
