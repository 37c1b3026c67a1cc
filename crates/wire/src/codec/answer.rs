//! `ReplicaAnswer` to bytes and back.

use super::{Incoming, Outgoing, epoch, put_block};
use crate::error::WireError;
use crate::fields::Writer;
use crate::header::Kind;
use crate::message::RequestId;
use crate::replica::{FenceReport, Refusal, ReplicaAnswer, ReplicaDone};
use gabion_types::{BlockIndex, Epoch, SegmentIndex, Seq};

/// Bits of a fence report's flags.
const PRESENT: u8 = 1;
const DAMAGED: u8 = 2;
const JOINED: u8 = 4;
const DROPPED: u8 = 8;
const UNBROKEN: u8 = 16;
/// A fence report without its optional fields.
const REPORT_BYTES_MIN: usize = 29;

pub(super) fn encode(request: RequestId, answer: &ReplicaAnswer) -> Outgoing {
    let kind = match &answer.result {
        Ok(ReplicaDone::Done) => Kind::Done,
        Ok(ReplicaDone::Fenced { .. }) => Kind::Fenced,
        Ok(ReplicaDone::Blocks { .. }) => Kind::Blocks,
        Ok(ReplicaDone::Table { .. }) => Kind::Table,
        Ok(ReplicaDone::JoinStarted { .. }) => Kind::JoinStarted,
        Err(_) => Kind::Refused,
    };
    let mut out = Outgoing::new(kind, request).u64(answer.credit_bytes);
    out.header.disk = answer.disk.get();
    out.header.volume = answer.volume.get();
    match &answer.result {
        Ok(ReplicaDone::Done) => out,
        Ok(ReplicaDone::Fenced { reports }) => out.list(reports, put_report),
        Ok(ReplicaDone::Blocks { blocks, data }) => out.list(blocks, put_block).payload(data),
        Ok(ReplicaDone::Table { entries, next }) => {
            out.list(entries, put_block).option(next.map(|block| u64::from(block.get())))
        }
        Ok(ReplicaDone::JoinStarted { settled }) => out.seq(*settled),
        Err(refusal) => {
            put_refusal(&mut out.aux, *refusal);
            out
        }
    }
}

fn put_report(aux: &mut Writer, report: &FenceReport) {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    aux.u32(report.segment.get());
    aux.u8(flag(report.present, PRESENT)
        | flag(report.damaged, DAMAGED)
        | flag(report.joined.is_some(), JOINED)
        | flag(report.dropped_from.is_some(), DROPPED)
        | flag(report.unbroken, UNBROKEN));
    aux.u64(report.settled.get());
    aux.u64(report.highest.get());
    aux.u64(report.next.get());
    if let Some(joined) = report.joined {
        aux.u64(joined.get());
    }
    if let Some(dropped_from) = report.dropped_from {
        aux.u64(dropped_from.get());
    }
}

fn put_refusal(aux: &mut Writer, refusal: Refusal) {
    aux.u8(match refusal {
        Refusal::Fenced { .. } => 0,
        Refusal::NoSegment => 1,
        Refusal::NoDisk => 2,
        Refusal::NoSpace => 3,
        Refusal::OutOfService => 4,
        Refusal::WrongEpoch => 5,
        Refusal::BadPayload => 6,
        Refusal::NotReady => 7,
        Refusal::Invalid => 8,
        Refusal::Busy => 9,
    });
    if let Refusal::Fenced { by } = refusal {
        aux.u64(by.get());
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other modules'")]
pub(super) fn decode(mut from: Incoming<'_>) -> Result<ReplicaAnswer, WireError> {
    let (disk, volume) = (from.disk(), from.volume());
    let credit_bytes = from.aux.u64()?;
    let result = match from.kind() {
        Kind::Done => Ok(ReplicaDone::Done),
        Kind::Fenced => Ok(ReplicaDone::Fenced { reports: from.reports()? }),
        Kind::Blocks => {
            let (blocks, data) = from.blocks_with_data()?;
            Ok(ReplicaDone::Blocks { blocks, data })
        }
        Kind::Table => {
            let entries = from.blocks()?;
            let next = match from.aux.option("a flag")? {
                None => None,
                Some(value) => match u32::try_from(value) {
                    Ok(block) => Some(BlockIndex::new(block)),
                    Err(_) => return Err(from.value("a next block", value)),
                },
            };
            Ok(ReplicaDone::Table { entries, next })
        }
        Kind::JoinStarted => Ok(ReplicaDone::JoinStarted { settled: from.seq()? }),
        Kind::Refused => Err(from.refusal()?),
        other => {
            return Err(WireError::UnknownKind { found: other.code() });
        }
    };
    from.finish()?;
    Ok(ReplicaAnswer { disk, volume, credit_bytes, result })
}

impl Incoming<'_> {
    fn reports(&mut self) -> Result<Vec<FenceReport>, WireError> {
        let kind = self.kind();
        self.aux.entries(REPORT_BYTES_MIN, |aux| {
            let segment = SegmentIndex::new(aux.u32()?);
            let flags = aux.u8()?;
            if flags & !(PRESENT | DAMAGED | JOINED | DROPPED | UNBROKEN) != 0 {
                let (field, value) = ("a flag", u64::from(flags));
                return Err(WireError::Value { kind, field, value });
            }
            let (settled, highest, next) = (aux.u64()?, aux.u64()?, aux.u64()?);
            let joined: Option<Epoch> = match flags & JOINED {
                0 => None,
                _ => Some(epoch(kind, "an epoch", aux.u64()?)?),
            };
            let dropped_from = match flags & DROPPED {
                0 => None,
                _ => Some(Seq::new(aux.u64()?)),
            };
            Ok(FenceReport {
                segment,
                present: flags & PRESENT != 0,
                settled: Seq::new(settled),
                highest: Seq::new(highest),
                joined,
                next: Seq::new(next),
                dropped_from,
                damaged: flags & DAMAGED != 0,
                unbroken: flags & UNBROKEN != 0,
            })
        })
    }

    fn refusal(&mut self) -> Result<Refusal, WireError> {
        Ok(match self.aux.u8()? {
            0 => Refusal::Fenced { by: self.epoch()? },
            1 => Refusal::NoSegment,
            2 => Refusal::NoDisk,
            3 => Refusal::NoSpace,
            4 => Refusal::OutOfService,
            5 => Refusal::WrongEpoch,
            6 => Refusal::BadPayload,
            7 => Refusal::NotReady,
            8 => Refusal::Invalid,
            9 => Refusal::Busy,
            other => return Err(self.value("a refusal", u64::from(other))),
        })
    }
}
