//! Operations under way. An operation owns all that the kernel reads or writes meanwhile, and the
//! descriptor that it is done on: none of it can go before the completion is there.
//!
//! This and [`crate::driver::Driver`]'s five methods are the border to the two drivers: both take the
//! same operations and give them back with the same results.

use crate::arena::AlignedBuf;
use crate::disk::DiskJob;
use crate::sockets::{ConnHandle, ListenerHandle};
use crate::sys::SockAddr;
use bytes::{Bytes, BytesMut};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Pieces of one `sendmsg`. Linux takes 1024 in all.
pub(crate) const SEND_PIECES_MAX: usize = 256;
/// Bytes of one `sendmsg`, but for a single piece that is larger.
pub(crate) const SEND_BYTES_MAX: usize = 1 << 20;

/// Names an operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpKey(pub(crate) u64);

pub(crate) enum Op {
    /// Reads the eventfd's 8 bytes.
    Wake {
        fd: Rc<OwnedFd>,
        value: AlignedBuf,
    },
    Accept {
        socket: Rc<OwnedFd>,
        listener: ListenerHandle,
    },
    Connect {
        socket: Rc<OwnedFd>,
        conn: ConnHandle,
        address: Box<SockAddr>,
    },
    /// A poll for hang-up, armed as long as the connection lives.
    Watch {
        socket: Rc<OwnedFd>,
        conn: ConnHandle,
    },
    Receive {
        socket: Rc<OwnedFd>,
        conn: ConnHandle,
        space: Space,
    },
    Send {
        socket: Rc<OwnedFd>,
        conn: ConnHandle,
        message: Outgoing,
    },
    Disk(DiskJob),
}

/// Where received bytes go.
pub(crate) enum Space {
    /// Into a chunk's spare room, for many small messages at once.
    Chunk(BytesMut),
    /// Straight to where they are wanted, aligned.
    Place(Place),
}

pub(crate) struct Place {
    pub(crate) buf: AlignedBuf,
    pub(crate) filled: usize,
}

impl Place {
    pub(crate) fn rest(&mut self) -> &mut [u8] {
        &mut self.buf[self.filled..]
    }
}

/// Some queued pieces on their way.
pub(crate) struct Outgoing {
    pieces: Vec<Bytes>,
    iovecs: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
}

impl Outgoing {
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        let iovecs: Vec<_> = pieces.iter().map(|piece| iovec(piece)).collect();
        let header = Box::new(crate::uring::message_header(&iovecs));
        Self { pieces, iovecs, header }
    }

    pub(crate) fn header(&self) -> &libc::msghdr {
        debug_assert_eq!(self.header.msg_iovlen, self.iovecs.len());
        &self.header
    }

    pub(crate) fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }
}

/// The memory of a piece that is only read from.
pub(crate) fn iovec(piece: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }
}
