//! A request without its answer, and what came of that.

use super::NotNbd;
use super::proto::{HOLE, ZERO, chunk, error};
use bytes::{Buf, Bytes, BytesMut};
use gabion_types::{ByteRange, GuestData, GuestResult, IoError, MappedExtent};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Pending {
    asked: Asked,
    /// The first error that it was told of.
    error: Option<u32>,
    /// Data by the place where they begin.
    pieces: BTreeMap<u64, Bytes>,
    extents: Vec<MappedExtent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Plain,
    /// `whole`: in one chunk.
    Read {
        range: ByteRange,
        whole: bool,
    },
    /// `one`: one extent; `context`: the number of it.
    Status {
        range: ByteRange,
        one: bool,
        context: u32,
    },
    /// Of no guest: it has to be answered by this error.
    Aside {
        error: u32,
        reads: bool,
    },
}

/// A request is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Guest(GuestResult),
    Aside,
}

impl Pending {
    pub fn new(asked: Asked) -> Self {
        Self { asked, error: None, pieces: BTreeMap::new(), extents: Vec::new() }
    }

    #[cfg(test)]
    pub fn is(&self, asked: Asked) -> bool {
        self.asked == asked
    }

    /// Bytes behind a simple reply without an error.
    pub fn simple_bytes(&self) -> usize {
        match self.asked {
            Asked::Read { range, .. } => crate::world::index(range.length()),
            Asked::Plain | Asked::Status { .. } | Asked::Aside { .. } => 0,
        }
    }

    /// Where replies are structured, what gives data or an error is.
    pub fn may_be_simple(&self, structured: bool, error: u32) -> bool {
        let gives = match self.asked {
            Asked::Read { .. } | Asked::Status { .. } => true,
            Asked::Aside { reads, .. } => reads,
            Asked::Plain => false,
        };
        !structured || error == 0 && !gives
    }

    pub fn on_simple(&mut self, error: u32, data: Bytes) {
        match (error, self.asked) {
            (0, Asked::Read { range, .. }) => drop(self.pieces.insert(range.offset(), data)),
            (0, _) => {}
            (error, _) => self.error = Some(error),
        }
    }

    pub fn on_chunk(&mut self, kind: u16, mut data: BytesMut) -> Result<(), NotNbd> {
        match kind {
            chunk::NONE if data.is_empty() => Ok(()),
            chunk::OFFSET_DATA if data.len() > 8 => {
                let offset = data.get_u64();
                self.on_piece(offset, data.freeze())
            }
            chunk::OFFSET_HOLE if data.len() == 12 => {
                let (offset, length) = (data.get_u64(), data.get_u32());
                self.on_piece(offset, BytesMut::zeroed(crate::world::index(length.into())).freeze())
            }
            chunk::BLOCK_STATUS => self.on_extents(data),
            chunk::ERROR | chunk::ERROR_OFFSET => self.on_error(kind, data),
            _ => Err(NotNbd("a chunk")),
        }
    }

    fn on_piece(&mut self, offset: u64, data: Bytes) -> Result<(), NotNbd> {
        let Asked::Read { range, whole } = self.asked else {
            return Err(NotNbd("data that nobody asked for"));
        };
        let end = offset.saturating_add(data.len() as u64);
        if offset < range.offset() || end > range.end() || data.is_empty() {
            return Err(NotNbd("data of another place"));
        }
        let before = self.pieces.range(..end).next_back();
        if before.is_some_and(|(at, piece)| at + piece.len() as u64 > offset) {
            return Err(NotNbd("data that was there"));
        }
        if whole && data.len() as u64 != range.length() {
            return Err(NotNbd("a part of what was to come as a whole"));
        }
        self.pieces.insert(offset, data);
        Ok(())
    }

    fn on_extents(&mut self, mut data: BytesMut) -> Result<(), NotNbd> {
        let Asked::Status { range, one, context } = self.asked else {
            return Err(NotNbd("a status that nobody asked for"));
        };
        let fits = data.len() >= 12 && data.len() % 8 == 4 && self.extents.is_empty();
        if !fits || data.get_u32() != context {
            return Err(NotNbd("a status"));
        }
        while data.has_remaining() {
            let (length, flags) = (data.get_u32(), data.get_u32());
            // What is not there is zeros, and the other way round, with this server.
            let known = flags == 0 || flags == HOLE | ZERO;
            let differs = self.extents.last().is_none_or(|last| last.data != (flags == 0));
            if length == 0 || !known || !differs {
                return Err(NotNbd("an extent"));
            }
            self.extents.push(MappedExtent { length: length.into(), data: flags == 0 });
        }
        let length: u64 = self.extents.iter().map(|extent| extent.length).sum();
        if length > range.length() || one && self.extents.len() > 1 {
            return Err(NotNbd("more extents than were asked for"));
        }
        Ok(())
    }

    fn on_error(&mut self, kind: u16, mut data: BytesMut) -> Result<(), NotNbd> {
        if data.len() < 6 {
            return Err(NotNbd("an error"));
        }
        let (code, long) = (data.get_u32(), usize::from(data.get_u16()));
        let place = if kind == chunk::ERROR_OFFSET { 8 } else { 0 };
        let text = data.get(..long).map(std::str::from_utf8);
        if code == 0 || data.len() != long + place || !matches!(text, Some(Ok(_))) {
            return Err(NotNbd("an error"));
        }
        data.advance(long);
        if place > 0 {
            let at = data.get_u64();
            let within = |range: ByteRange| (range.offset()..range.end()).contains(&at);
            if !matches!(self.asked, Asked::Read { range, .. } if within(range)) {
                return Err(NotNbd("an error of another place"));
            }
        }
        self.error.get_or_insert(code);
        Ok(())
    }

    /// Nothing more comes.
    pub fn over(self) -> Result<Over, NotNbd> {
        if let Asked::Aside { error, .. } = self.asked {
            let told = self.error.unwrap_or(0);
            return match told {
                // Its node stops, or its volume is gone.
                error::ESHUTDOWN => Ok(Over::Aside),
                told if told == error => Ok(Over::Aside),
                _ => Err(NotNbd("another error than it has to be")),
            };
        }
        Ok(Over::Guest(match self.error {
            None => Ok(self.data()?),
            Some(error::EIO) => Err(IoError::Lost),
            Some(error::EINVAL) => Err(IoError::Misaligned),
            Some(error::ENOSPC) => Err(IoError::NoSpace),
            Some(error::ESHUTDOWN) => Err(IoError::Stopping),
            Some(_) => return Err(NotNbd("its error")),
        }))
    }

    fn data(self) -> Result<GuestData, NotNbd> {
        match self.asked {
            Asked::Plain | Asked::Aside { .. } => Ok(GuestData::Done),
            Asked::Status { .. } if self.extents.is_empty() => Err(NotNbd("no status")),
            Asked::Status { .. } => Ok(GuestData::Status(self.extents)),
            Asked::Read { range, .. } => {
                let mut data = BytesMut::with_capacity(self.simple_bytes());
                self.pieces.values().for_each(|piece| data.extend_from_slice(piece));
                // They lie within, and over each other nowhere: so many bytes are all of them.
                match data.len() as u64 == range.length() {
                    true => Ok(GuestData::Read(data.freeze())),
                    false => Err(NotNbd("some of the data")),
                }
            }
        }
    }
}
