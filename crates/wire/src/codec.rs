//! Messages to bytes and back.
//!
//! Order: what is encoded here and decoded there is the same message; what decodes encodes to the
//! same bytes again, for fields that are not used are zero and there is one way to write each
//! value.

mod answer;
mod link;
mod replica;
mod session;
#[cfg(test)]
mod tests;

use crate::error::WireError;
use crate::fields::{Reader, Writer};
use crate::header::{HEADER_BYTES, Header, Kind};
use crate::message::{Body, Message, RequestId};
use bytes::Bytes;
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, Crc, DiskId, Epoch, SegmentIndex, Seq, Version,
    VolumeId,
};

/// A message as it goes to the socket: `head`, then `payload`, which is the message's own, not
/// copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub head: Bytes,
    pub payload: Option<Bytes>,
}

impl Encoded {
    /// Both parts. Units: bytes.
    pub fn byte_count(&self) -> usize {
        self.head.len() + self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// Errors: `AuxTooLarge`, `PayloadTooLarge`, when a core made a message over the wire's bounds.
pub fn encode(message: &Message) -> Result<Encoded, WireError> {
    let request = message.request;
    let out = match &message.body {
        Body::Link(link) => link::encode(request, link),
        Body::Replica(ask) => replica::encode(request, ask),
        Body::Answer(answer) => answer::encode(request, answer),
        Body::Session(session) => session::encode(request, session),
    };
    out.finish()
}

/// Errors: anything that is not exactly what `encode` makes. Never panics, whatever the bytes.
pub fn decode(header: &Header, aux: &[u8], payload: Bytes) -> Result<Message, WireError> {
    let found = aux.len().saturating_add(payload.len());
    let wanted = (header.aux_len as usize).saturating_add(header.payload_len as usize);
    if aux.len() != header.aux_len as usize || found != wanted {
        return Err(WireError::Chunk { found, wanted });
    }
    let reader = Reader::new(header.kind, aux)?;
    let incoming = Incoming { header: *header, aux: reader, payload };
    let body = match header.kind {
        Kind::Hello
        | Kind::Proof
        | Kind::LinkRefused
        | Kind::Ping
        | Kind::Pong
        | Kind::Renew
        | Kind::Renewed
        | Kind::ReleaseVolume
        | Kind::Leaving => Body::Link(link::decode(incoming)?),
        Kind::Create
        | Kind::Fence
        | Kind::Write
        | Kind::Zero
        | Kind::Read
        | Kind::Scan
        | Kind::Verify
        | Kind::Settle
        | Kind::Repair
        | Kind::EpochStart
        | Kind::Advance
        | Kind::JoinStart
        | Kind::Install
        | Kind::Promoted
        | Kind::Drop => Body::Replica(replica::decode(incoming)?),
        Kind::Done
        | Kind::Fenced
        | Kind::Blocks
        | Kind::Table
        | Kind::JoinStarted
        | Kind::Refused => Body::Answer(answer::decode(incoming)?),
        Kind::SessionOpen
        | Kind::SessionHave
        | Kind::SessionOpened
        | Kind::SessionRequest
        | Kind::SessionResponse
        | Kind::SessionHungUp
        | Kind::SessionAttach
        | Kind::SessionAttached
        | Kind::SessionFlush
        | Kind::SessionFlushed
        | Kind::SessionClosed
        | Kind::SessionKeptOut
        | Kind::SessionOccupied => Body::Session(session::decode(incoming)?),
    };
    Ok(Message { request: RequestId(header.request), body })
}

/// A message on its way out.
struct Outgoing {
    header: Header,
    aux: Writer,
    payload: Option<Bytes>,
}

impl Outgoing {
    fn new(kind: Kind, request: RequestId) -> Self {
        let header = Header::new(kind, request.0);
        Self { header, aux: Writer::default(), payload: None }
    }

    fn u8(mut self, value: u8) -> Self {
        self.aux.u8(value);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.aux.u32(value);
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.aux.u64(value);
        self
    }

    fn epoch(self, epoch: Epoch) -> Self {
        self.u64(epoch.get())
    }

    fn seq(self, seq: Seq) -> Self {
        self.u64(seq.get())
    }

    fn option(mut self, value: Option<u64>) -> Self {
        self.aux.option(value);
        self
    }

    fn list<T>(mut self, entries: &[T], put: impl Fn(&mut Writer, &T)) -> Self {
        self.aux.count(entries.len());
        entries.iter().for_each(|entry| put(&mut self.aux, entry));
        self
    }

    fn version(mut self, version: Version) -> Self {
        self.header.version_epoch = version.epoch.get();
        self.header.version_seq = version.seq.get();
        self
    }

    /// An empty payload is none.
    fn payload(mut self, payload: &Bytes) -> Self {
        self.payload = Some(payload.clone()).filter(|payload| !payload.is_empty());
        self
    }

    fn finish(mut self) -> Result<Encoded, WireError> {
        let aux = self.aux.finish();
        let payload_len = self.payload.as_ref().map_or(0, Bytes::len);
        self.header.aux_len = u32::try_from(aux.len()).unwrap_or(u32::MAX);
        self.header.payload_len = u32::try_from(payload_len).unwrap_or(u32::MAX);
        self.header.check_lengths()?;
        let mut head = Vec::with_capacity(HEADER_BYTES + aux.len());
        head.extend_from_slice(&self.header.encode());
        head.extend_from_slice(&aux);
        Ok(Encoded { head: Bytes::from(head), payload: self.payload })
    }
}

/// A message on its way in. Whatever is taken out of it is gone; `finish` refuses a rest.
struct Incoming<'a> {
    header: Header,
    aux: Reader<'a>,
    payload: Bytes,
}

impl Incoming<'_> {
    fn kind(&self) -> Kind {
        self.header.kind
    }

    fn value(&self, field: &'static str, value: u64) -> WireError {
        WireError::Value { kind: self.kind(), field, value }
    }

    fn volume(&mut self) -> VolumeId {
        VolumeId::new(std::mem::take(&mut self.header.volume))
    }

    fn segment(&mut self) -> SegmentIndex {
        SegmentIndex::new(std::mem::take(&mut self.header.segment))
    }

    fn disk(&mut self) -> DiskId {
        DiskId::new(std::mem::take(&mut self.header.disk))
    }

    fn block(&mut self) -> BlockIndex {
        BlockIndex::new(std::mem::take(&mut self.header.block))
    }

    fn owner_epoch(&mut self) -> Result<Epoch, WireError> {
        let value = std::mem::take(&mut self.header.owner_epoch);
        epoch(self.kind(), "an owner epoch", value)
    }

    fn version(&mut self) -> Result<Version, WireError> {
        let value = std::mem::take(&mut self.header.version_epoch);
        let epoch = epoch(self.kind(), "a version epoch", value)?;
        Ok(Version::new(epoch, Seq::new(std::mem::take(&mut self.header.version_seq))))
    }

    fn epoch(&mut self) -> Result<Epoch, WireError> {
        read_epoch(self.kind(), &mut self.aux)
    }

    fn seq(&mut self) -> Result<Seq, WireError> {
        self.aux.u64().map(Seq::new)
    }

    fn blocks(&mut self) -> Result<Vec<BlockInfo>, WireError> {
        let kind = self.kind();
        self.aux.entries(BLOCK_INFO_BYTES, |aux| read_block(kind, aux))
    }

    /// Blocks, and the payload of those among them that have data.
    fn blocks_with_data(&mut self) -> Result<(Vec<BlockInfo>, Bytes), WireError> {
        let blocks = self.blocks()?;
        let count = blocks.iter().filter(|info| info.kind == BlockKind::Data).count();
        let data = self.payload((count as u64).saturating_mul(BLOCK_BYTES))?;
        Ok((blocks, data))
    }

    fn payload(&mut self, expected: u64) -> Result<Bytes, WireError> {
        let found = self.payload.len() as u64;
        if found == expected {
            Ok(std::mem::take(&mut self.payload))
        } else {
            Err(WireError::PayloadLength { kind: self.kind(), found, expected })
        }
    }

    fn finish(self) -> Result<(), WireError> {
        let kind = self.kind();
        if !self.payload.is_empty() {
            let found = self.payload.len() as u64;
            return Err(WireError::PayloadLength { kind, found, expected: 0 });
        }
        let rest = Header { aux_len: 0, payload_len: 0, ..self.header };
        if rest != Header::new(kind, rest.request) {
            return Err(WireError::UnusedField { kind });
        }
        self.aux.finish()
    }
}

/// Shape: block u32, crc u32, epoch u48, kind u8, a zero byte, seq u64.
const BLOCK_INFO_BYTES: usize = 24;
const EPOCH_BITS: u32 = 48;

fn put_block(aux: &mut Writer, info: &BlockInfo) {
    let kind: u64 = match info.kind {
        BlockKind::Absent => 0,
        BlockKind::Zero => 1,
        BlockKind::Data => 2,
        BlockKind::Lost => 3,
        BlockKind::Bad => 4,
    };
    aux.u32(info.block.get());
    aux.u32(info.crc.get());
    aux.u64(kind << EPOCH_BITS | info.version.epoch.get());
    aux.u64(info.version.seq.get());
}

fn read_block(kind: Kind, aux: &mut Reader<'_>) -> Result<BlockInfo, WireError> {
    let block = BlockIndex::new(aux.u32()?);
    let crc = Crc::new(aux.u32()?);
    let word = aux.u64()?;
    let block_kind = match word >> EPOCH_BITS {
        0 => BlockKind::Absent,
        1 => BlockKind::Zero,
        2 => BlockKind::Data,
        3 => BlockKind::Lost,
        4 => BlockKind::Bad,
        value => {
            return Err(WireError::Value { kind, field: "a block's kind", value });
        }
    };
    let epoch = epoch(kind, "a block's epoch", word & Epoch::MAX.get())?;
    let version = Version::new(epoch, Seq::new(aux.u64()?));
    Ok(BlockInfo { block, kind: block_kind, version, crc })
}

fn read_epoch(kind: Kind, aux: &mut Reader<'_>) -> Result<Epoch, WireError> {
    epoch(kind, "an epoch", aux.u64()?)
}

fn epoch(kind: Kind, field: &'static str, value: u64) -> Result<Epoch, WireError> {
    Epoch::new(value).ok_or(WireError::Value { kind, field, value })
}
