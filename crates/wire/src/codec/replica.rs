//! `ReplicaRequest` to bytes and back.

use super::{Incoming, Outgoing, epoch, read_epoch};
use crate::error::WireError;
use crate::header::Kind;
use crate::message::RequestId;
use crate::replica::{EpochStart, FencedSegment, ReplicaOp, ReplicaRequest};
use bytes::Bytes;
use gabion_types::{BlockIndex, BlockInfo, BlockRange, Crc, Epoch, SegmentIndex, Seq};

pub(super) fn encode(request: RequestId, ask: &ReplicaRequest) -> Outgoing {
    let mut out = match &ask.op {
        ReplicaOp::Create {
            creation,
            first,
            count,
        } => {
            let mut out = on_segment(Kind::Create, request, *first);
            out.aux.u64(creation.get());
            out.aux.u32(*count);
            out
        }
        ReplicaOp::Fence { segments } => encode_fence(request, segments),
        ReplicaOp::Write {
            segment,
            version,
            range,
            crcs,
            data,
            settled,
        } => {
            let mut out = on_range(Kind::Write, request, *segment, *range);
            out.version(*version);
            out.aux.u64(settled.get());
            out.aux.count(crcs.len());
            for crc in crcs {
                out.aux.u32(crc.get());
            }
            out.payload(data);
            out
        }
        ReplicaOp::Zero {
            segment,
            version,
            range,
            settled,
        } => {
            let mut out = on_range(Kind::Zero, request, *segment, *range);
            out.version(*version);
            out.aux.u64(settled.get());
            out
        }
        ReplicaOp::Read { segment, range } => on_range(Kind::Read, request, *segment, *range),
        ReplicaOp::Scan {
            segment,
            from,
            seq_above,
            epoch_from,
            entries_max,
        } => {
            let mut out = on_segment(Kind::Scan, request, *segment);
            out.header.block = from.get();
            out.aux.u64(seq_above.get());
            out.aux.option(epoch_from.map(Epoch::get));
            out.aux.u32(*entries_max);
            out
        }
        ReplicaOp::Settle {
            segment,
            blocks,
            data,
        } => with_blocks(Kind::Settle, request, *segment, blocks, data),
        ReplicaOp::Repair {
            segment,
            blocks,
            data,
        } => with_blocks(Kind::Repair, request, *segment, blocks, data),
        ReplicaOp::Install {
            segment,
            joined,
            blocks,
            data,
        } => {
            let mut out = with_blocks(Kind::Install, request, *segment, blocks, data);
            out.aux.u64(joined.get());
            out
        }
        ReplicaOp::EpochStart { starts } => encode_starts(request, starts),
        ReplicaOp::Advance { settled } => encode_advance(request, settled),
        ReplicaOp::JoinStart {
            segment,
            joined,
            creation,
        } => {
            let mut out = on_segment(Kind::JoinStart, request, *segment);
            out.aux.u64(joined.get());
            out.aux.u64(creation.get());
            out
        }
        ReplicaOp::Promoted {
            segment,
            joined,
            settled,
        } => {
            let mut out = on_segment(Kind::Promoted, request, *segment);
            out.aux.u64(joined.get());
            out.aux.u64(settled.get());
            out
        }
        ReplicaOp::Drop {
            segment,
            creation,
            epoch,
        } => {
            let mut out = on_segment(Kind::Drop, request, *segment);
            out.aux.u64(creation.get());
            out.aux.u64(epoch.get());
            out
        }
    };
    out.header.disk = ask.disk.get();
    out.header.volume = ask.volume.get();
    out.header.owner_epoch = ask.owner_epoch.get();
    out
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
    out.aux.u32(range.count());
    out
}

fn with_blocks(
    kind: Kind,
    request: RequestId,
    segment: SegmentIndex,
    blocks: &[BlockInfo],
    data: &Bytes,
) -> Outgoing {
    let mut out = on_segment(kind, request, segment);
    out.blocks(blocks);
    out.payload(data);
    out
}

fn encode_fence(request: RequestId, segments: &[FencedSegment]) -> Outgoing {
    let mut out = Outgoing::new(Kind::Fence, request);
    out.aux.count(segments.len());
    for fenced in segments {
        out.aux.u32(fenced.segment.get());
        out.aux.u64(fenced.creation.get());
        out.aux.option(fenced.joined.map(Epoch::get));
    }
    out
}

fn encode_starts(request: RequestId, starts: &[EpochStart]) -> Outgoing {
    let mut out = Outgoing::new(Kind::EpochStart, request);
    out.aux.count(starts.len());
    for start in starts {
        out.aux.u32(start.segment.get());
        out.aux.u64(start.epoch.get());
        out.aux.u64(start.next.get());
    }
    out
}

fn encode_advance(request: RequestId, settled: &[(SegmentIndex, Seq)]) -> Outgoing {
    let mut out = Outgoing::new(Kind::Advance, request);
    out.aux.count(settled.len());
    for (segment, seq) in settled {
        out.aux.u32(segment.get());
        out.aux.u64(seq.get());
    }
    out
}

pub(super) fn decode(mut from: Incoming<'_>) -> Result<ReplicaRequest, WireError> {
    let (disk, volume) = (from.disk(), from.volume());
    let owner_epoch = from.owner_epoch()?;
    let op = decode_op(&mut from)?;
    from.finish()?;
    Ok(ReplicaRequest {
        disk,
        volume,
        owner_epoch,
        op,
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other kinds are other modules'"
)]
fn decode_op(from: &mut Incoming<'_>) -> Result<ReplicaOp, WireError> {
    // A message about many segments names them in its fields.
    let segment = match from.kind() {
        Kind::Fence | Kind::EpochStart | Kind::Advance => SegmentIndex::default(),
        _ => from.segment(),
    };
    Ok(match from.kind() {
        Kind::Create => {
            let creation = from.epoch()?;
            ReplicaOp::Create {
                creation,
                first: segment,
                count: from.aux.u32()?,
            }
        }
        Kind::Fence => ReplicaOp::Fence {
            segments: from.fenced_segments()?,
        },
        Kind::Write => from.write(segment)?,
        Kind::Zero => {
            let range = from.range()?;
            let version = from.version()?;
            ReplicaOp::Zero {
                segment,
                version,
                range,
                settled: from.seq()?,
            }
        }
        Kind::Read => ReplicaOp::Read {
            segment,
            range: from.range()?,
        },
        Kind::Scan => ReplicaOp::Scan {
            segment,
            from: from.block(),
            seq_above: from.seq()?,
            epoch_from: from.option_epoch()?,
            entries_max: from.aux.u32()?,
        },
        Kind::Settle => {
            let blocks = from.blocks()?;
            let data = from.blocks_payload(&blocks)?;
            ReplicaOp::Settle {
                segment,
                blocks,
                data,
            }
        }
        Kind::Repair => {
            let blocks = from.blocks()?;
            let data = from.blocks_payload(&blocks)?;
            ReplicaOp::Repair {
                segment,
                blocks,
                data,
            }
        }
        Kind::Install => {
            let blocks = from.blocks()?;
            let data = from.blocks_payload(&blocks)?;
            ReplicaOp::Install {
                segment,
                joined: from.epoch()?,
                blocks,
                data,
            }
        }
        Kind::EpochStart => ReplicaOp::EpochStart {
            starts: from.starts()?,
        },
        Kind::Advance => ReplicaOp::Advance {
            settled: from.aux.entries(12, |aux| {
                Ok((SegmentIndex::new(aux.u32()?), Seq::new(aux.u64()?)))
            })?,
        },
        Kind::JoinStart => {
            let joined = from.epoch()?;
            ReplicaOp::JoinStart {
                segment,
                joined,
                creation: from.epoch()?,
            }
        }
        Kind::Promoted => {
            let joined = from.epoch()?;
            ReplicaOp::Promoted {
                segment,
                joined,
                settled: from.seq()?,
            }
        }
        Kind::Drop => {
            let creation = from.epoch()?;
            ReplicaOp::Drop {
                segment,
                creation,
                epoch: from.epoch()?,
            }
        }
        other => {
            return Err(WireError::UnknownKind {
                found: other.code(),
            });
        }
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
        Ok(ReplicaOp::Write {
            segment,
            version,
            range,
            crcs,
            data,
            settled,
        })
    }

    fn option_epoch(&mut self) -> Result<Option<Epoch>, WireError> {
        let kind = self.kind();
        self.aux
            .option("a flag")?
            .map(|value| epoch(kind, "an epoch", value))
            .transpose()
    }

    fn fenced_segments(&mut self) -> Result<Vec<FencedSegment>, WireError> {
        let kind = self.kind();
        self.aux.entries(13, |aux| {
            let segment = SegmentIndex::new(aux.u32()?);
            let creation = read_epoch(kind, aux)?;
            let joined = aux.option("a flag")?;
            let joined = joined
                .map(|value| epoch(kind, "an epoch", value))
                .transpose()?;
            Ok(FencedSegment {
                segment,
                creation,
                joined,
            })
        })
    }

    fn starts(&mut self) -> Result<Vec<EpochStart>, WireError> {
        let kind = self.kind();
        self.aux.entries(20, |aux| {
            let segment = SegmentIndex::new(aux.u32()?);
            let epoch = read_epoch(kind, aux)?;
            Ok(EpochStart {
                segment,
                epoch,
                next: Seq::new(aux.u64()?),
            })
        })
    }
}
