//! `ReplicaRequest` to bytes and back.

use super::{Incoming, Outgoing, epoch, put_block, read_epoch};
use crate::error::WireError;
use crate::header::Kind;
use crate::message::RequestId;
use crate::replica::{EpochStart, FencedSegment, ReplicaOp, ReplicaRequest};
use gabion_types::{BlockIndex, BlockRange, Crc, Epoch, SegmentIndex, Seq};

pub(super) fn encode(request: RequestId, ask: &ReplicaRequest) -> Outgoing {
    let mut out = match &ask.op {
        ReplicaOp::Write { .. }
        | ReplicaOp::Zero { .. }
        | ReplicaOp::Read { .. }
        | ReplicaOp::Scan { .. }
        | ReplicaOp::Verify { .. }
        | ReplicaOp::Settle { .. }
        | ReplicaOp::Repair { .. }
        | ReplicaOp::Install { .. } => encode_blocks(request, &ask.op),
        ReplicaOp::Create { .. }
        | ReplicaOp::Fence { .. }
        | ReplicaOp::EpochStart { .. }
        | ReplicaOp::Advance { .. }
        | ReplicaOp::JoinStart { .. }
        | ReplicaOp::Promoted { .. }
        | ReplicaOp::Drop { .. } => encode_state(request, &ask.op),
    };
    out.header.disk = ask.disk.get();
    out.header.volume = ask.volume.get();
    out.header.owner_epoch = ask.owner_epoch.get();
    out
}

/// What is about blocks of a segment.
#[expect(clippy::wildcard_enum_match_arm, reason = "`encode` has the whole table")]
fn encode_blocks(request: RequestId, op: &ReplicaOp) -> Outgoing {
    match op {
        ReplicaOp::Write { segment, version, range, crcs, data, settled } => {
            on_range(Kind::Write, request, *segment, *range)
                .version(*version)
                .seq(*settled)
                .list(crcs, |aux, crc| aux.u32(crc.get()))
                .payload(data)
        }
        ReplicaOp::Zero { segment, version, range, settled } => {
            on_range(Kind::Zero, request, *segment, *range).version(*version).seq(*settled)
        }
        ReplicaOp::Read { segment, range } => on_range(Kind::Read, request, *segment, *range),
        ReplicaOp::Verify { segment, range } => on_range(Kind::Verify, request, *segment, *range),
        ReplicaOp::Scan { segment, from, seq_above, epoch_from, entries_max } => {
            let mut out = on_segment(Kind::Scan, request, *segment);
            out.header.block = from.get();
            out.seq(*seq_above).option(epoch_from.map(Epoch::get)).u32(*entries_max)
        }
        ReplicaOp::Settle { segment, blocks, data } => {
            on_segment(Kind::Settle, request, *segment).list(blocks, put_block).payload(data)
        }
        ReplicaOp::Repair { segment, blocks, data } => {
            on_segment(Kind::Repair, request, *segment).list(blocks, put_block).payload(data)
        }
        ReplicaOp::Install { segment, joined, blocks, data } => {
            on_segment(Kind::Install, request, *segment)
                .list(blocks, put_block)
                .epoch(*joined)
                .payload(data)
        }
        _ => unreachable!("`encode` has the whole table"),
    }
}

/// What is about the replica itself.
#[expect(clippy::wildcard_enum_match_arm, reason = "`encode` has the whole table")]
fn encode_state(request: RequestId, op: &ReplicaOp) -> Outgoing {
    match op {
        ReplicaOp::Create { creation, first, count } => {
            on_segment(Kind::Create, request, *first).epoch(*creation).u32(*count)
        }
        ReplicaOp::Fence { segments } => {
            Outgoing::new(Kind::Fence, request).list(segments, |aux, fenced| {
                aux.u32(fenced.segment.get());
                aux.u64(fenced.creation.get());
                aux.option(fenced.joined.map(Epoch::get));
            })
        }
        ReplicaOp::EpochStart { starts } => {
            Outgoing::new(Kind::EpochStart, request).list(starts, |aux, start| {
                aux.u32(start.segment.get());
                aux.u64(start.epoch.get());
                aux.u64(start.next.get());
            })
        }
        ReplicaOp::Advance { settled } => {
            Outgoing::new(Kind::Advance, request).list(settled, |aux, (segment, seq)| {
                aux.u32(segment.get());
                aux.u64(seq.get());
            })
        }
        ReplicaOp::JoinStart { segment, joined, creation } => {
            on_segment(Kind::JoinStart, request, *segment).epoch(*joined).epoch(*creation)
        }
        ReplicaOp::Promoted { segment, joined, settled } => {
            on_segment(Kind::Promoted, request, *segment).epoch(*joined).seq(*settled)
        }
        ReplicaOp::Drop { segment, creation, epoch } => {
            on_segment(Kind::Drop, request, *segment).epoch(*creation).epoch(*epoch)
        }
        _ => unreachable!("`encode` has the whole table"),
    }
}

fn on_segment(kind: Kind, request: RequestId, segment: SegmentIndex) -> Outgoing {
    let mut out = Outgoing::new(kind, request);
    out.header.segment = segment.get();
    out
}

/// The first block stands in the header, the count is the first field.
fn on_range(kind: Kind, request: RequestId, segment: SegmentIndex, range: BlockRange) -> Outgoing {
    let mut out = on_segment(kind, request, segment);
    out.header.block = range.first().get();
    out.u32(range.count())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other functions'")]
pub(super) fn decode(mut from: Incoming<'_>) -> Result<ReplicaRequest, WireError> {
    let (disk, volume) = (from.disk(), from.volume());
    let owner_epoch = from.owner_epoch()?;
    let op = match from.kind() {
        // They name their segments in their fields.
        Kind::Fence => ReplicaOp::Fence { segments: from.fenced_segments()? },
        Kind::EpochStart => ReplicaOp::EpochStart { starts: from.starts()? },
        Kind::Advance => ReplicaOp::Advance { settled: from.advances()? },
        kind @ (Kind::Create | Kind::JoinStart | Kind::Promoted | Kind::Drop) => {
            decode_state(kind, &mut from)?
        }
        kind => decode_blocks(kind, &mut from)?,
    };
    from.finish()?;
    Ok(ReplicaRequest { disk, volume, owner_epoch, op })
}

/// What is about one replica itself.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other functions'")]
fn decode_state(kind: Kind, from: &mut Incoming<'_>) -> Result<ReplicaOp, WireError> {
    let segment = from.segment();
    let epoch = from.epoch()?;
    Ok(match kind {
        Kind::Create => {
            let count = from.aux.u32()?;
            ReplicaOp::Create { creation: epoch, first: segment, count }
        }
        Kind::JoinStart => {
            let creation = from.epoch()?;
            ReplicaOp::JoinStart { segment, joined: epoch, creation }
        }
        Kind::Promoted => {
            let settled = from.seq()?;
            ReplicaOp::Promoted { segment, joined: epoch, settled }
        }
        Kind::Drop => {
            let left = from.epoch()?;
            ReplicaOp::Drop { segment, creation: epoch, epoch: left }
        }
        other => return Err(WireError::UnknownKind { found: other.code() }),
    })
}

/// What is about blocks of a segment.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other functions'")]
fn decode_blocks(kind: Kind, from: &mut Incoming<'_>) -> Result<ReplicaOp, WireError> {
    let segment = from.segment();
    Ok(match kind {
        Kind::Write => from.write(segment)?,
        Kind::Zero => {
            let range = from.range()?;
            let version = from.version()?;
            let settled = from.seq()?;
            ReplicaOp::Zero { segment, version, range, settled }
        }
        Kind::Read => {
            let range = from.range()?;
            ReplicaOp::Read { segment, range }
        }
        Kind::Verify => {
            let range = from.range()?;
            ReplicaOp::Verify { segment, range }
        }
        Kind::Scan => ReplicaOp::Scan {
            segment,
            from: from.block(),
            seq_above: from.seq()?,
            epoch_from: from.option_epoch()?,
            entries_max: from.aux.u32()?,
        },
        Kind::Settle => {
            let (blocks, data) = from.blocks_with_data()?;
            ReplicaOp::Settle { segment, blocks, data }
        }
        Kind::Repair => {
            let (blocks, data) = from.blocks_with_data()?;
            ReplicaOp::Repair { segment, blocks, data }
        }
        Kind::Install => {
            let (blocks, data) = from.blocks_with_data()?;
            let joined = from.epoch()?;
            ReplicaOp::Install { segment, joined, blocks, data }
        }
        other => return Err(WireError::UnknownKind { found: other.code() }),
    })
}

impl Incoming<'_> {
    fn range(&mut self) -> Result<BlockRange, WireError> {
        let first: BlockIndex = self.block();
        let count = self.aux.u32()?;
        BlockRange::new(first, count).ok_or(self.value("a block count", u64::from(count)))
    }

    /// One checksum a block, and as much data as there are blocks. The checksums themselves are the
    /// store's to compare: it answers `BadPayload`, and the link goes on.
    fn write(&mut self, segment: SegmentIndex) -> Result<ReplicaOp, WireError> {
        let range = self.range()?;
        let version = self.version()?;
        let settled = self.seq()?;
        let crcs = self.aux.entries(4, |aux| aux.u32().map(Crc::new))?;
        if crcs.len() != range.count() as usize {
            return Err(self.value("a number of checksums", crcs.len() as u64));
        }
        let data = self.payload(range.bytes())?;
        Ok(ReplicaOp::Write { segment, version, range, crcs, data, settled })
    }

    fn option_epoch(&mut self) -> Result<Option<Epoch>, WireError> {
        let kind = self.kind();
        self.aux.option("a flag")?.map(|value| epoch(kind, "an epoch", value)).transpose()
    }

    fn fenced_segments(&mut self) -> Result<Vec<FencedSegment>, WireError> {
        let kind = self.kind();
        self.aux.entries(13, |aux| {
            let segment = SegmentIndex::new(aux.u32()?);
            let creation = read_epoch(kind, aux)?;
            let joined = aux.option("a flag")?;
            let joined = joined.map(|value| epoch(kind, "an epoch", value)).transpose()?;
            Ok(FencedSegment { segment, creation, joined })
        })
    }

    fn advances(&mut self) -> Result<Vec<(SegmentIndex, Seq)>, WireError> {
        self.aux.entries(12, |aux| Ok((SegmentIndex::new(aux.u32()?), Seq::new(aux.u64()?))))
    }

    fn starts(&mut self) -> Result<Vec<EpochStart>, WireError> {
        let kind = self.kind();
        self.aux.entries(20, |aux| {
            let segment = SegmentIndex::new(aux.u32()?);
            let epoch = read_epoch(kind, aux)?;
            Ok(EpochStart { segment, epoch, next: Seq::new(aux.u64()?) })
        })
    }
}
