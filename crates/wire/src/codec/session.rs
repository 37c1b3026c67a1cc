//! `SessionMessage` to bytes and back.
//!
//! A guest's data has no block checksums before it reaches the owner of its volume, nor after it
//! left it: between the front node and the owner one checksum covers the payload.

use super::{Incoming, Outgoing};
use crate::error::WireError;
use crate::header::Kind;
use crate::message::RequestId;
use crate::session::{SessionMessage, SessionNumber};
use bytes::Bytes;
use gabion_types::{
    ByteRange, Epoch, GuestData, GuestOp, GuestResult, IoError, MapIndex, MappedExtent, NodeId,
    VolumeId,
};

pub(super) fn encode(request: RequestId, session: &SessionMessage) -> Outgoing {
    let kind = kind_of(session);
    let mut out = Outgoing::new(kind, request);
    out.header.volume = session.volume().get();
    out.header.owner_epoch = owner_epoch_of(session).get();
    match session {
        SessionMessage::Open { applied, .. } => out.u64(applied.get()),
        SessionMessage::Opened { .. } | SessionMessage::Closed { .. } => out,
        SessionMessage::Have { next, missing, .. } => {
            out.u64(next.0).list(missing, |aux, number| aux.u64(number.0))
        }
        SessionMessage::Request { number, guest, op, .. } => {
            put_op(out.u64(number.0).u64(*guest), op)
        }
        SessionMessage::Response { number, result, .. } => put_result(out.u64(number.0), result),
        SessionMessage::HungUp { guest, .. }
        | SessionMessage::Attach { guest, .. }
        | SessionMessage::Attached { guest, .. } => out.u64(*guest),
        SessionMessage::KeptOut { guest, by, .. } => out.u64(*guest).u32(by.get()),
        SessionMessage::Flush { number, .. } | SessionMessage::Flushed { number, .. } => {
            out.u64(*number)
        }
    }
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
        SessionMessage::KeptOut { .. } => Kind::SessionKeptOut,
        SessionMessage::Flush { .. } => Kind::SessionFlush,
        SessionMessage::Flushed { guests: true, .. } => Kind::SessionOccupied,
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
        | SessionMessage::KeptOut { owner_epoch, .. }
        | SessionMessage::Flush { owner_epoch, .. }
        | SessionMessage::Flushed { owner_epoch, .. }
        | SessionMessage::Closed { owner_epoch, .. } => *owner_epoch,
    }
}

fn put_op(out: Outgoing, op: &GuestOp) -> Outgoing {
    let put = |out: Outgoing, code: u8, range: &ByteRange, fua: bool| {
        out.u8(code).u8(u8::from(fua)).u64(range.offset()).u64(range.length())
    };
    match op {
        GuestOp::Read { range } => put(out, 0, range, false),
        GuestOp::Write { range, data, fua } => put_payload(put(out, 1, range, *fua), data),
        GuestOp::Zero { range, fua } => put(out, 2, range, *fua),
        GuestOp::Trim { range, fua } => put(out, 3, range, *fua),
        GuestOp::Flush => out.u8(4),
        GuestOp::Status { range } => put(out, 5, range, false),
        GuestOp::Room { range } => put(out, 6, range, false),
    }
}

fn put_result(out: Outgoing, result: &GuestResult) -> Outgoing {
    match result {
        Ok(GuestData::Done) => out.u8(0),
        Ok(GuestData::Read(data)) => put_payload(out.u8(1), data),
        Ok(GuestData::Status(extents)) => out.u8(2).list(extents, |aux, extent| {
            aux.u64(extent.length);
            aux.u8(u8::from(extent.data));
        }),
        Err(error) => out.u8(3).u8(error_code(*error)),
    }
}

fn put_payload(out: Outgoing, data: &Bytes) -> Outgoing {
    out.u32(crc32fast::hash(data)).payload(data)
}

fn error_code(error: IoError) -> u8 {
    match error {
        IoError::OutOfRange => 0,
        IoError::Misaligned => 1,
        IoError::TooLarge => 2,
        IoError::NoSpace => 3,
        IoError::Lost => 4,
        IoError::HeldTooLong => 5,
        IoError::Gone => 6,
        IoError::Stopping => 7,
    }
}

pub(super) fn decode(mut from: Incoming<'_>) -> Result<SessionMessage, WireError> {
    let volume = from.volume();
    let owner_epoch = from.owner_epoch()?;
    let session = from.session(volume, owner_epoch)?;
    from.finish()?;
    Ok(session)
}

impl Incoming<'_> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other modules'")]
    fn session(
        &mut self,
        volume: VolumeId,
        owner_epoch: Epoch,
    ) -> Result<SessionMessage, WireError> {
        use SessionMessage as Is;
        let (kind, aux) = (self.kind(), &mut self.aux);
        Ok(match kind {
            Kind::SessionOpen => {
                let applied = MapIndex::new(aux.u64()?);
                Is::Open { volume, owner_epoch, applied }
            }
            Kind::SessionHave => {
                let next = SessionNumber(aux.u64()?);
                let missing = aux.entries(8, |aux| aux.u64().map(SessionNumber))?;
                Is::Have { volume, owner_epoch, next, missing }
            }
            Kind::SessionOpened => Is::Opened { volume, owner_epoch },
            Kind::SessionRequest => {
                let (number, guest) = (SessionNumber(aux.u64()?), aux.u64()?);
                let op = self.op()?;
                Is::Request { volume, owner_epoch, number, guest, op }
            }
            Kind::SessionResponse => {
                let number = SessionNumber(aux.u64()?);
                let result = self.result()?;
                Is::Response { volume, owner_epoch, number, result }
            }
            Kind::SessionHungUp | Kind::SessionAttach | Kind::SessionAttached => {
                let guest = aux.u64()?;
                match kind {
                    Kind::SessionHungUp => Is::HungUp { volume, owner_epoch, guest },
                    Kind::SessionAttach => Is::Attach { volume, owner_epoch, guest },
                    _ => Is::Attached { volume, owner_epoch, guest },
                }
            }
            Kind::SessionKeptOut => {
                let (guest, by) = (aux.u64()?, NodeId::new(aux.u32()?));
                Is::KeptOut { volume, owner_epoch, guest, by }
            }
            Kind::SessionFlush => {
                let number = aux.u64()?;
                Is::Flush { volume, owner_epoch, number }
            }
            Kind::SessionFlushed | Kind::SessionOccupied => {
                let number = aux.u64()?;
                Is::Flushed { volume, owner_epoch, number, guests: kind == Kind::SessionOccupied }
            }
            Kind::SessionClosed => Is::Closed { volume, owner_epoch },
            other => return Err(WireError::UnknownKind { found: other.code() }),
        })
    }

    fn op(&mut self) -> Result<GuestOp, WireError> {
        let code = self.aux.u8()?;
        if code == 4 {
            return Ok(GuestOp::Flush);
        }
        let fua = self.aux.bool("a FUA flag")?;
        let (offset, length) = (self.aux.u64()?, self.aux.u64()?);
        let range = ByteRange::new(offset, length).ok_or(self.value("a length", length))?;
        match code {
            0 | 5 | 6 if fua => Err(self.value("a FUA flag", 1)),
            0 => Ok(GuestOp::Read { range }),
            1 => {
                let data = self.checked_payload(Some(length))?;
                Ok(GuestOp::Write { range, data, fua })
            }
            2 => Ok(GuestOp::Zero { range, fua }),
            3 => Ok(GuestOp::Trim { range, fua }),
            5 => Ok(GuestOp::Status { range }),
            6 => Ok(GuestOp::Room { range }),
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
                    Ok(MappedExtent { length, data: aux.bool("a data flag")? })
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
