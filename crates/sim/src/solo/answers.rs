//! The judge of every answer of the store.

use super::Solo;
use super::asks::{Asked, ChangeKind, What};
use crate::world::Who;
use bytes::Bytes;
use gabion_store::Origin;
use gabion_types::{BlockIndex, BlockInfo, BlockKind, Epoch, Seq, Version};
use gabion_wire::{FenceReport, Refusal, ReplicaAnswer, ReplicaDone, RequestId};

impl Solo {
    pub(super) fn on_answer(&mut self, to: Origin, request: RequestId, answer: ReplicaAnswer) {
        let now = self.queue.now();
        let ok = u64::from(answer.result.is_ok());
        self.trace.note(now, Who::Guest(0), "answer", [request.0, ok, 0]);
        let Some(asked) = self.asks.remove(&request) else {
            self.break_promise("exactly-once", format!("{request:?} was not asked: {answer:?}"));
            return;
        };
        if to != self.origin {
            self.break_promise("exactly-once", format!("{request:?} is answered to {to:?}"));
            return;
        }
        if now.since(asked.began) > super::ANSWER {
            self.break_promise(
                "answers-in-time",
                format!("{asked:?} took {:?}", now.since(asked.began)),
            );
        }
        let result = match answer.result {
            Ok(done) => self.judge(&asked, done),
            Err(refusal) => self.judge_refusal(&asked, refusal),
        };
        if let Err(text) = result {
            self.break_promise("store", format!("{request:?} {asked:?}: {text}"));
        }
    }

    fn judge(&mut self, asked: &Asked, done: ReplicaDone) -> Result<(), String> {
        match (&asked.what, done) {
            (What::Create { segment }, ReplicaDone::Done) => {
                self.segments[*segment].changing -= 1;
                self.segments[*segment].made = true;
                Ok(())
            }
            (What::Fence, ReplicaDone::Fenced { reports }) => self.judge_fence(asked, &reports),
            (What::Change { segment, blocks, kind }, ReplicaDone::Done) => {
                self.on_changed(*segment, blocks, *kind, asked.owner_epoch)
            }
            (What::Read { segment }, ReplicaDone::Blocks { blocks, data }) => {
                self.judge_read(asked, *segment, &blocks, &data)
            }
            (What::Scan { segment, seq_above, from }, ReplicaDone::Table { entries, next }) => {
                self.judge_scan(asked, *segment, (*seq_above, *from), &entries, next)
            }
            (What::Start { segment, next }, ReplicaDone::Done) => {
                let known = &mut self.segments[*segment];
                known.changing -= 1;
                known.started = known.started.max(*next);
                known.settled = known.settled.max(next.previous());
                Ok(())
            }
            (What::JoinStart { segment, joined }, ReplicaDone::JoinStarted { settled }) => {
                let known = &mut self.segments[*segment];
                known.changing -= 1;
                known.joined = Some(*joined);
                known.unsure = false;
                let too_high = settled > known.settled;
                if too_high {
                    Err(format!("settled {settled} of {}", known.settled))
                } else {
                    Ok(())
                }
            }
            (What::Promoted { segment }, ReplicaDone::Done) => {
                let known = &mut self.segments[*segment];
                known.changing -= 1;
                known.joined = None;
                Ok(())
            }
            (_, done) => Err(format!("answered by {done:?}")),
        }
    }

    fn on_changed(
        &mut self,
        segment: usize,
        blocks: &[(usize, Version)],
        kind: ChangeKind,
        owner_epoch: Epoch,
    ) -> Result<(), String> {
        let now = self.queue.now();
        if kind == ChangeKind::Early {
            return Err("a write made its segment".to_string());
        }
        if owner_epoch < self.fenced {
            return Err(format!("done below the fence {}", self.fenced));
        }
        let known = &mut self.segments[segment];
        for (block, version) in blocks {
            let block = &mut known.blocks[*block];
            match kind {
                ChangeKind::Write | ChangeKind::Early => block.done(*version, now),
                ChangeKind::Install { joined } => block.installed(*version, joined, now),
                ChangeKind::Repair { .. } => block.cut_off(*version, now),
            }
            block.mend(*version, kind == (ChangeKind::Repair { needed: true }), now);
            if kind == ChangeKind::Write {
                known.answered = known.answered.max(version.seq);
            }
        }
        if let ChangeKind::Install { .. } = kind {
            known.changing -= 1;
        }
        Ok(())
    }

    fn judge_read(
        &mut self,
        asked: &Asked,
        segment: usize,
        blocks: &[BlockInfo],
        data: &Bytes,
    ) -> Result<(), String> {
        let now = self.queue.now();
        let mut chunks = data.chunks_exact(4096);
        for info in blocks {
            let bytes = if info.kind == BlockKind::Data {
                Some(chunks.next().ok_or("data are missing")?)
            } else {
                None
            };
            let block = &mut self.segments[segment].blocks[info.block.index()];
            block
                .read(info, bytes, asked.began, now)
                .map_err(|text| format!("block {info:?}: {text}; {block:?}"))?;
        }
        if chunks.next().is_some() { Err("data of no block".into()) } else { Ok(()) }
    }

    fn judge_scan(
        &mut self,
        asked: &Asked,
        segment: usize,
        (seq_above, from): (Seq, BlockIndex),
        entries: &[BlockInfo],
        next: Option<BlockIndex>,
    ) -> Result<(), String> {
        let now = self.queue.now();
        for info in entries {
            let block = &mut self.segments[segment].blocks[info.block.index()];
            block
                .read(info, None, asked.began, now)
                .map_err(|text| format!("block {info:?}: {text}; {block:?}"))?;
            if info.version.seq <= seq_above {
                return Err(format!("{info:?} was not asked for"));
            }
        }
        let end = next.map_or(self.segments[segment].blocks.len(), BlockIndex::index);
        for block in from.index()..end {
            let told = entries.iter().any(|info| info.block.index() == block);
            let certain = self.segments[segment].blocks[block].certain();
            if let Some((version, _)) = certain
                && version.seq > seq_above
                && !told
            {
                return Err(format!("block {block} with {version} is missing; next {next:?}"));
            }
        }
        Ok(())
    }

    fn judge_fence(&mut self, asked: &Asked, reports: &[FenceReport]) -> Result<(), String> {
        self.fencing = false;
        self.fenced = self.fenced.max(asked.owner_epoch);
        if reports.len() != self.segments.len() {
            return Err(format!("{} reports", reports.len()));
        }
        for (known, report) in self.segments.iter_mut().zip(reports) {
            let text = |what: &str| {
                Err(format!(
                    "{what}: {report:?}; next {} answered {} started {} settled {} joined {:?}",
                    known.next, known.answered, known.started, known.settled, known.joined
                ))
            };
            if known.made && !report.present {
                return text("absent");
            }
            if !report.present {
                continue;
            }
            if report.damaged {
                return text("damaged");
            }
            if known.joined.is_none() && !known.unsure && report.highest < known.answered {
                return text("highest is below what was answered");
            }
            if report.highest >= known.next {
                return text("highest is above what was sent");
            }
            if report.next < known.started || report.next > known.starting {
                return text("next");
            }
            if report.settled > known.settled {
                return text("settled");
            }
        }
        // A new owner starts every segment anew.
        for known in &mut self.segments {
            known.needs_start = true;
        }
        Ok(())
    }

    fn judge_refusal(&mut self, asked: &Asked, refusal: Refusal) -> Result<(), String> {
        let now = self.queue.now();
        let newest = self.owner_epoch.max(self.fenced);
        let below = asked.owner_epoch < newest;
        match &asked.what {
            What::Change { segment, blocks, kind } => {
                for (block, version) in blocks {
                    let block = &mut self.segments[*segment].blocks[*block];
                    match kind {
                        ChangeKind::Write | ChangeKind::Early => block.refused(*version, now),
                        // The version may have been there before.
                        ChangeKind::Install { .. } | ChangeKind::Repair { .. } => {
                            block.cut_off(*version, now);
                        }
                    }
                }
                if let ChangeKind::Install { .. } = kind {
                    self.segments[*segment].changing -= 1;
                }
            }
            What::Create { segment }
            | What::Start { segment, .. }
            | What::JoinStart { segment, .. }
            | What::Promoted { segment, .. } => self.segments[*segment].changing -= 1,
            What::Fence => self.fencing = false,
            What::Read { .. } | What::Scan { .. } => {}
        }
        match refusal {
            Refusal::Fenced { by } if below && by <= newest => Ok(()),
            Refusal::Busy => Ok(()),
            Refusal::NoSegment if asked.what.is_early() => Ok(()),
            Refusal::NotReady if self.stopping => Ok(()),
            Refusal::Fenced { .. }
            | Refusal::NoSegment
            | Refusal::NoDisk
            | Refusal::NoSpace
            | Refusal::OutOfService
            | Refusal::WrongEpoch
            | Refusal::BadPayload
            | Refusal::NotReady
            | Refusal::Invalid => Err(format!("refused: {refusal}")),
        }
    }

    /// Nothing that is open will be answered any more.
    pub(super) fn cut_off_all(&mut self) {
        let now = self.queue.now();
        for asked in std::mem::take(&mut self.asks).into_values() {
            match asked.what {
                What::Change { segment, blocks, kind } => {
                    for (block, version) in blocks {
                        self.segments[segment].blocks[block].cut_off(version, now);
                    }
                    if let ChangeKind::Install { .. } = kind {
                        self.segments[segment].changing -= 1;
                    }
                }
                What::Create { segment } | What::Start { segment, .. } => {
                    self.segments[segment].changing -= 1;
                }
                What::JoinStart { segment, .. } | What::Promoted { segment, .. } => {
                    self.segments[segment].changing -= 1;
                    self.segments[segment].unsure = true;
                }
                What::Fence => self.fencing = false,
                What::Read { .. } | What::Scan { .. } => {}
            }
        }
        // The next owner begins with a fence.
        self.owner_epoch = self.epoch.next();
        self.epoch = self.owner_epoch;
    }
}
