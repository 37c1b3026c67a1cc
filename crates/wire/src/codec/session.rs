//! `SessionMessage` to bytes and back.
//!
//! A guest's data has no block checksums before it reaches the owner of its volume, nor after it left
//! it: between the front node and the owner one checksum covers the payload.

use super::{Incoming, Outgoing};
use crate::error::WireError;
use crate::fields::Writer;
use crate::header::Kind;
use crate::message::RequestId;
use crate::session::{SessionMessage, SessionNumber};
use bytes::Bytes;
use gabion_types::{
    ByteRange, Epoch, GuestData, GuestOp, GuestResult, IoError, MapIndex, MappedExtent, VolumeId,
};

pub(super) fn encode(request: RequestId, session: &SessionMessage) -> Outgoing {
    let kind = kind_of(session);
    let mut out = Outgoing::new(kind, request);
    out.header.volume = session.volume().get();
    out.header.owner_epoch = owner_epoch_of(session).get();
    match session {
        SessionMessage::Open { applied, .. } => out.aux.u64(applied.get()),
        SessionMessage::Opened { .. } | SessionMessage::Closed { .. } => {}
        SessionMessage::Have { next, missing, .. } => {
            out.aux.u64(next.0);
            out.aux.count(missing.len());
            for number in missing {
                out.aux.u64(number.0);
            }
        }
        SessionMessage::Request {
            number, guest, op, ..
        } => {
            out.aux.u64(number.0);
            out.aux.u64(*guest);
            put_op(&mut out, op);
        }
        SessionMessage::Response { number, result, .. } => {
            out.aux.u64(number.0);
            put_result(&mut out, result);
        }
        SessionMessage::HungUp { guest, .. }
        | SessionMessage::Attach { guest, .. }
        | SessionMessage::Attached { guest, .. } => out.aux.u64(*guest),
        SessionMessage::Flush { number, .. } | SessionMessage::Flushed { number, .. } => {
            out.aux.u64(*number);
        }
    }
    out
}

fn kind_of(session: &SessionMessage) -> Kind {
    match session {
        SessionMessage::Open { .. } => Kind::SessionOpen,
        SessionMessage::Have { .. } => Kind::SessionHave,
        SessionMessage::Opened { .. } => Kind::SessionOpened,
        SessionMessage::Request { .. } => Kind::SessionRequest,
        SessionMessage::Response { .. } => Kind::SessionResponse,
        SessionMessage::HungUp { .. } => Kind::SessionHungUp,
        SessionMessage::Attach { .. } => Kind::SessionAttach,
        SessionMessage::Attached { .. } => Kind::SessionAttached,
        SessionMessage::Flush { .. } => Kind::SessionFlush,
        SessionMessage::Flushed { .. } => Kind::SessionFlushed,
        SessionMessage::Closed { .. } => Kind::SessionClosed,
    }
}

fn owner_epoch_of(session: &SessionMessage) -> Epoch {
    match session {
        SessionMessage::Open { owner_epoch, .. }
        | SessionMessage::Have { owner_epoch, .. }
        | SessionMessage::Opened { owner_epoch, .. }
        | SessionMessage::Request { owner_epoch, .. }
        | SessionMessage::Response { owner_epoch, .. }
        | SessionMessage::HungUp { owner_epoch, .. }
        | SessionMessage::Attach { owner_epoch, .. }
        | SessionMessage::Attached { owner_epoch, .. }
        | SessionMessage::Flush { owner_epoch, .. }
        | SessionMessage::Flushed { owner_epoch, .. }
        | SessionMessage::Closed { owner_epoch, .. } => *owner_epoch,
    }
}

fn put_op(out: &mut Outgoing, op: &GuestOp) {
    let mut put = |code: u8, range: &ByteRange, fua: bool| {
        out.aux.u8(code);
        out.aux.u8(u8::from(fua));
        out.aux.u64(range.offset());
        out.aux.u64(range.length());
    };
    match op {
        GuestOp::Read { range } => put(0, range, false),
        GuestOp::Write { range, data, fua } => {
            put(1, range, *fua);
            put_payload(out, data);
        }
        GuestOp::Zero { range, fua } => put(2, range, *fua),
        GuestOp::Trim { range, fua } => put(3, range, *fua),
        GuestOp::Flush => out.aux.u8(4),
        GuestOp::Status { range } => put(5, range, false),
    }
}

fn put_result(out: &mut Outgoing, result: &GuestResult) {
    match result {
        Ok(GuestData::Done) => out.aux.u8(0),
        Ok(GuestData::Read(data)) => {
            out.aux.u8(1);
            put_payload(out, data);
        }
        Ok(GuestData::Status(extents)) => {
            out.aux.u8(2);
            out.aux.count(extents.len());
            for extent in extents {
                out.aux.u64(extent.length);
                out.aux.u8(u8::from(extent.data));
            }
        }
        Err(error) => {
            out.aux.u8(3);
            put_error(&mut out.aux, *error);
        }
    }
}

fn put_payload(out: &mut Outgoing, data: &Bytes) {
    out.aux.u32(crc32fast::hash(data));
    out.payload(data);
}

fn put_error(aux: &mut Writer, error: IoError) {
    aux.u8(match error {
        IoError::OutOfRange => 0,
        IoError::Misaligned => 1,
        IoError::TooLarge => 2,
        IoError::NoSpace => 3,
        IoError::Lost => 4,
        IoError::HeldTooLong => 5,
        IoError::Gone => 6,
        IoError::Stopping => 7,
    });
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other kinds are other modules'"
)]
pub(super) fn decode(mut from: Incoming<'_>) -> Result<SessionMessage, WireError> {
    let volume: VolumeId = from.volume();
    let owner_epoch = from.owner_epoch()?;
    let session = match from.kind() {
        Kind::SessionOpen => {
            let applied = MapIndex::new(from.aux.u64()?);
            SessionMessage::Open {
                volume,
                owner_epoch,
                applied,
            }
        }
        Kind::SessionHave => {
            let next = SessionNumber(from.aux.u64()?);
            let missing = from.aux.entries(8, |aux| aux.u64().map(SessionNumber))?;
            SessionMessage::Have {
                volume,
                owner_epoch,
                next,
                missing,
            }
        }
        Kind::SessionOpened => SessionMessage::Opened {
            volume,
            owner_epoch,
        },
        Kind::SessionRequest => {
            let number = SessionNumber(from.aux.u64()?);
            let guest = from.aux.u64()?;
            SessionMessage::Request {
                volume,
                owner_epoch,
                number,
                guest,
                op: from.op()?,
            }
        }
        Kind::SessionResponse => {
            let number = SessionNumber(from.aux.u64()?);
            SessionMessage::Response {
                volume,
                owner_epoch,
                number,
                result: from.result()?,
            }
        }
        Kind::SessionHungUp => SessionMessage::HungUp {
            volume,
            owner_epoch,
            guest: from.aux.u64()?,
        },
        Kind::SessionAttach => SessionMessage::Attach {
            volume,
            owner_epoch,
            guest: from.aux.u64()?,
        },
        Kind::SessionAttached => SessionMessage::Attached {
            volume,
            owner_epoch,
            guest: from.aux.u64()?,
        },
        Kind::SessionFlush => SessionMessage::Flush {
            volume,
            owner_epoch,
            number: from.aux.u64()?,
        },
        Kind::SessionFlushed => SessionMessage::Flushed {
            volume,
            owner_epoch,
            number: from.aux.u64()?,
        },
        Kind::SessionClosed => SessionMessage::Closed {
            volume,
            owner_epoch,
        },
        other => {
            return Err(WireError::UnknownKind {
                found: other.code(),
            });
        }
    };
    from.finish()?;
    Ok(session)
}

impl Incoming<'_> {
    fn op(&mut self) -> Result<GuestOp, WireError> {
        let code = self.aux.u8()?;
        if code == 4 {
            return Ok(GuestOp::Flush);
        }
        let fua = self.aux.bool("a FUA flag")?;
        let (offset, length) = (self.aux.u64()?, self.aux.u64()?);
        let range = ByteRange::new(offset, length).ok_or(self.value("a length", length))?;
        match code {
            0 | 5 if fua => Err(self.value("a FUA flag", 1)),
            0 => Ok(GuestOp::Read { range }),
            1 => {
                let data = self.checked_payload(Some(length))?;
                Ok(GuestOp::Write { range, data, fua })
            }
            2 => Ok(GuestOp::Zero { range, fua }),
            3 => Ok(GuestOp::Trim { range, fua }),
            5 => Ok(GuestOp::Status { range }),
            other => Err(self.value("an operation", u64::from(other))),
        }
    }

    fn result(&mut self) -> Result<GuestResult, WireError> {
        match self.aux.u8()? {
            0 => Ok(Ok(GuestData::Done)),
            1 => Ok(Ok(GuestData::Read(self.checked_payload(None)?))),
            2 => {
                let extents = self.aux.entries(9, |aux| {
                    let length = aux.u64()?;
                    Ok(MappedExtent {
                        length,
                        data: aux.bool("a data flag")?,
                    })
                })?;
                Ok(Ok(GuestData::Status(extents)))
            }
            3 => Ok(Err(self.error()?)),
            other => Err(self.value("a result", u64::from(other))),
        }
    }

    /// promise: no-silent-corruption
    fn checked_payload(&mut self, expected: Option<u64>) -> Result<Bytes, WireError> {
        let crc = self.aux.u32()?;
        let data = self.payload(expected.unwrap_or(self.payload.len() as u64))?;
        if crc32fast::hash(&data) == crc {
            Ok(data)
        } else {
            Err(WireError::PayloadCrc { kind: self.kind() })
        }
    }

    fn error(&mut self) -> Result<IoError, WireError> {
        Ok(match self.aux.u8()? {
            0 => IoError::OutOfRange,
            1 => IoError::Misaligned,
            2 => IoError::TooLarge,
            3 => IoError::NoSpace,
            4 => IoError::Lost,
            5 => IoError::HeldTooLong,
            6 => IoError::Gone,
            7 => IoError::Stopping,
            other => return Err(self.value("an error", u64::from(other))),
        })
    }
}
