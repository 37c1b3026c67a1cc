//! Messages as people read them: in traces and in golden scripts. No payload is ever shown.

use crate::link::LinkMessage;
use crate::message::{Body, Message};
use crate::replica::{
    EpochStart, FenceReport, FencedSegment, ReplicaAnswer, ReplicaDone, ReplicaOp, ReplicaRequest,
};
use crate::session::SessionMessage;
use gabion_types::{BlockInfo, BlockKind, GuestData, GuestResult};
use std::fmt;

/// Longer lists are cut short, with their length.
const SHOWN_MAX: usize = 8;

impl fmt::Display for ReplicaOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { creation, first, count } => {
                write!(f, "create {count} segments from {first}, made at {creation}")
            }
            Self::Fence { segments } => write!(f, "fence {}", listed(segments)),
            Self::Write { segment, version, range, settled, .. } => {
                write!(f, "write {segment} {range} as {version}, settled {settled}")
            }
            Self::Zero { segment, version, range, settled } => {
                write!(f, "zero {segment} {range} as {version}, settled {settled}")
            }
            Self::Read { segment, range } => write!(f, "read {segment} {range}"),
            Self::Verify { segment, range } => write!(f, "verify {segment} {range}"),
            Self::Scan { segment, from, seq_above, epoch_from, .. } => {
                write!(f, "scan {segment} from b{} for what is above {seq_above}", from.get())?;
                epoch_from.map_or(Ok(()), |epoch| write!(f, " or of {epoch} on"))
            }
            Self::Settle { segment, blocks, .. } => {
                write!(f, "settle {segment}: {}", listed(blocks))
            }
            Self::Repair { segment, blocks, .. } => {
                write!(f, "repair {segment}: {}", listed(blocks))
            }
            Self::EpochStart { starts } => write!(f, "epoch start {}", listed(starts)),
            Self::Advance { settled } => {
                let shown: Vec<_> =
                    settled.iter().map(|(segment, seq)| format!("{segment} {seq}")).collect();
                write!(f, "settled up to {}", listed(&shown))
            }
            Self::JoinStart { segment, joined, creation } => {
                write!(f, "join {segment} from {joined} on, made at {creation}")
            }
            Self::Install { segment, joined, blocks, .. } => {
                write!(f, "install {segment} for the joiner of {joined}: {}", listed(blocks))
            }
            Self::Promoted { segment, joined, settled } => {
                write!(f, "promoted {segment}, joiner of {joined}, settled {settled}")
            }
            Self::Drop { segment, creation, epoch } => {
                write!(f, "drop {segment} made at {creation}, by an order of {epoch}")
            }
        }
    }
}

impl fmt::Display for FencedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.segment)?;
        self.joined.map_or(Ok(()), |joined| write!(f, " (joins from {joined} on)"))
    }
}

impl fmt::Display for EpochStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from {} on", self.segment, self.epoch, self.next)
    }
}

impl fmt::Display for FenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, settled, highest, joined, next, dropped_from, .. } = self;
        let Self { present, damaged, unbroken, .. } = self;
        if !present {
            return write!(f, "{segment} is not here");
        }
        write!(f, "{segment} settled {settled} highest {highest} next {next}")?;
        if let Some(joined) = joined {
            let how = if *unbroken { " unbroken" } else { "" };
            write!(f, " joins from {joined} on{how}")?;
        }
        if let Some(seq) = dropped_from {
            write!(f, " dropped from {seq} on")?;
        }
        f.write_str(if *damaged { " damaged" } else { "" })
    }
}

impl fmt::Display for ReplicaRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, volume, owner_epoch, op } = self;
        write!(f, "{disk} {volume} owner {owner_epoch}: {op}")
    }
}

impl fmt::Display for ReplicaDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Fenced { reports } => write!(f, "fenced: {}", listed(reports)),
            Self::Blocks { blocks, .. } => write!(f, "{}", listed(blocks)),
            Self::Table { entries, next } => {
                write!(f, "table: {}", listed(entries))?;
                next.map_or(Ok(()), |next| write!(f, ", goes on at b{}", next.get()))
            }
            Self::JoinStarted { settled } => write!(f, "joins, settled {settled}"),
        }
    }
}

impl fmt::Display for ReplicaAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(done) => write!(f, "{} {}: {done}", self.disk, self.volume),
            Err(refusal) => write!(f, "{} {}: refused, {refusal}", self.disk, self.volume),
        }
    }
}

impl fmt::Display for LinkMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(hello) => {
                write!(f, "hello from {} to {}, {:?}", hello.node, hello.to, hello.class)
            }
            Self::Proof { .. } => f.write_str("proof"),
            Self::Refused { reason } => write!(f, "refused: {reason:?}"),
            Self::Ping { number } => write!(f, "ping {number}"),
            Self::Pong { number } => write!(f, "pong {number}"),
            Self::Renew { number, term, .. } => write!(f, "renew {number} in term {term}"),
            Self::Renewed { number } => write!(f, "renewed {number}"),
            Self::ReleaseVolume { volume, idle } => {
                write!(f, "release {volume}{}", if *idle { " if it is idle" } else { "" })
            }
            Self::Leaving => f.write_str("leaving"),
        }
    }
}

impl fmt::Display for SessionMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.volume())?;
        match self {
            Self::Open { owner_epoch, applied, .. } => {
                write!(f, "open session of {owner_epoch}, map {applied}")
            }
            Self::Have { next, missing, .. } => {
                write!(f, "has all below {}", next.0)?;
                let missing: Vec<_> = missing.iter().map(|number| number.0).collect();
                if missing.is_empty() { Ok(()) } else { write!(f, " without {}", listed(&missing)) }
            }
            Self::Opened { .. } => f.write_str("session open"),
            Self::Request { number, guest, op, .. } => {
                write!(f, "request {} of guest {guest}: {op}", number.0)
            }
            Self::Response { number, result, .. } => {
                write!(f, "response {}: {}", number.0, Answered(result))
            }
            Self::HungUp { guest, .. } => write!(f, "guest {guest} hung up"),
            Self::Attach { guest, .. } => write!(f, "attach guest {guest}"),
            Self::Attached { guest, .. } => write!(f, "attached guest {guest}"),
            Self::Flush { number, .. } => write!(f, "flush sessions {number}"),
            Self::KeptOut { guest, by, .. } => {
                write!(f, "kept out guest {guest}: those of {by} are in")
            }
            Self::Flushed { number, guests: true, .. } => {
                write!(f, "flushed sessions {number}, guests are in")
            }
            Self::Flushed { number, .. } => write!(f, "flushed sessions {number}"),
            Self::Closed { owner_epoch, .. } => write!(f, "session of {owner_epoch} is closed"),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Link(link) => write!(f, "{link}"),
            Body::Replica(request) => write!(f, "#{} {request}", self.request.0),
            Body::Answer(answer) => write!(f, "#{} {answer}", self.request.0),
            Body::Session(session) => write!(f, "{session}"),
        }
    }
}

/// How a guest's request ended.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a>(pub &'a GuestResult);

impl fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(GuestData::Done) => f.write_str("done"),
            Ok(GuestData::Read(data)) => write!(f, "{} bytes", data.len()),
            Ok(GuestData::Status(extents)) => write!(f, "{} extents", extents.len()),
            Err(error) => write!(f, "failed, {error}"),
        }
    }
}

/// The first few, and how many there are. Runs of blocks of one kind and version are put together.
struct Listed<'a, T>(&'a [T]);

fn listed<T: Shown>(items: &[T]) -> Listed<'_, T> {
    Listed(items)
}

/// How a run of items is shown; most stand alone.
trait Shown: Sized {
    /// How many of the items, from the first one on, are shown as one.
    fn run(_items: &[Self]) -> usize {
        1
    }

    fn show_run(items: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

macro_rules! shown_alone {
    ($($item:ty),*) => {
        $(impl Shown for $item {
            fn show_run(items: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result {
                items.iter().try_for_each(|item| write!(f, "{item}"))
            }
        })*
    };
}

shown_alone!(FencedSegment, EpochStart, FenceReport, String, u64);

impl Shown for BlockInfo {
    fn run(items: &[Self]) -> usize {
        let [first, rest @ ..] = items else { return 0 };
        let same = |(info, block): &(&Self, u32)| {
            (info.kind, info.version, info.block.get()) == (first.kind, first.version, *block)
        };
        1 + rest.iter().zip(first.block.get() + 1..).take_while(same).count()
    }

    fn show_run(items: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return Ok(()) };
        write!(f, "b{}", first.block.get())?;
        if items.len() > 1 {
            write!(f, "-{}", last.block.get())?;
        }
        match first.kind {
            BlockKind::Absent => f.write_str(" absent"),
            BlockKind::Zero => write!(f, " zero {}", first.version),
            BlockKind::Data => write!(f, " data {}", first.version),
            BlockKind::Lost => write!(f, " lost {}", first.version),
            BlockKind::Bad => write!(f, " bad {}", first.version),
        }
    }
}

impl<T: Shown> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let mut rest = self.0;
        for number in 0.. {
            if rest.is_empty() {
                break;
            }
            if number == SHOWN_MAX {
                return write!(f, ", … {} in all", self.0.len());
            }
            let (run, behind) = rest.split_at(T::run(rest).clamp(1, rest.len()));
            f.write_str(if number == 0 { "" } else { ", " })?;
            T::show_run(run, f)?;
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RequestId;
    use bytes::Bytes;
    use gabion_types::{
        BlockIndex, BlockRange, Crc, DiskId, Epoch, SegmentIndex, Seq, Version, VolumeId,
    };

    fn info(block: u32, kind: BlockKind, seq: u64) -> BlockInfo {
        let version = Version { epoch: Epoch::new(2).expect("small"), seq: Seq::new(seq) };
        BlockInfo { block: BlockIndex::new(block), kind, version, crc: Crc::default() }
    }

    #[test]
    fn runs_of_blocks_are_one_and_long_lists_are_cut() {
        let blocks = vec![
            info(0, BlockKind::Data, 5),
            info(1, BlockKind::Data, 5),
            info(3, BlockKind::Data, 5),
            info(4, BlockKind::Lost, 6),
        ];
        let settle =
            ReplicaOp::Settle { segment: SegmentIndex::new(1), blocks, data: Bytes::new() };
        assert_eq!(settle.to_string(), "settle s1: b0-1 data 2.5, b3 data 2.5, b4 lost 2.6");
        let many: Vec<_> = (0..20).map(|block| info(block * 2, BlockKind::Zero, 1)).collect();
        let table = ReplicaDone::Table { entries: many, next: None }.to_string();
        assert!(table.ends_with("b14 zero 2.1, … 20 in all"), "{table}");
    }

    #[test]
    fn a_write_is_shown_without_its_data() {
        let op = ReplicaOp::Write {
            segment: SegmentIndex::new(0),
            version: Version { epoch: Epoch::new(2).expect("small"), seq: Seq::new(9) },
            range: BlockRange::new(BlockIndex::new(4), 2).expect("not empty"),
            crcs: vec![Crc::default(); 2],
            data: Bytes::from(vec![b'x'; 8192]),
            settled: Seq::new(8),
        };
        let (disk, volume) = (DiskId::new(3), VolumeId::new(1));
        let owner_epoch = Epoch::new(2).expect("small");
        let body = Body::Replica(ReplicaRequest { disk, volume, owner_epoch, op });
        let message = Message { request: RequestId(7), body };
        assert_eq!(message.to_string(), "#7 d3 v1 owner e2: write s0 b4-5 as 2.9, settled q8");
    }
}
