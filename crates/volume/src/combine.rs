//! Rule 8, last part: the last in-sync copy is gone, and a stale replica and a joiner have all between them.
//!
//! What was acknowledged before J is on the replica that left then, and what was since is on every replica
//! that joined then: the joiner is filled from the elder as it is from a base, and then takes the place of
//! those that are gone. The map checks the pair again. Meanwhile the segment is held: if a base comes back
//! first, the joiner is filled from it as if nothing had been.

use crate::asks::Purpose;
use crate::io::VolumeEvent;
use crate::proposals::Kind;
use crate::segment::JoinStep;
use crate::volume::Volume;
use gabion_types::{
    BlockInfo, BlockKind, Combining, DiskId, Epoch, Flaw, Instant, NodeId, OwnerChange, Pair,
    Removal, SegmentIndex,
};
use gabion_wire::{FenceReport, FencedSegment, LinkClass, ReplicaOp};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Combine {
    pair: Pair,
    /// The elder refuses older owners, and has all that it had when it left.
    elder_ready: bool,
    /// The joiner has been joining since J by its own word; and whether it began with nothing.
    joiner_ready: Option<bool>,
}

/// From whom a joiner is filled that no base is left for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elder {
    pub(crate) disk: DiskId,
    /// All that the joiner has came to it since J.
    pub(crate) joiner_was_empty: bool,
}

impl Combine {
    pub(crate) fn disks(&self) -> [DiskId; 2] {
        [self.pair.elder, self.pair.joiner]
    }

    /// For that joiner, once it may be filled.
    pub(crate) fn elder_for(&self, joiner: DiskId) -> Option<Elder> {
        let ready = self.elder_ready && joiner == self.pair.joiner;
        let joiner_was_empty = self.joiner_ready.filter(|_| ready)?;
        Some(Elder { disk: self.pair.elder, joiner_was_empty })
    }
}

/// Whether a joiner keeps its block. What it has from J on came by writes, or by settling; what one that
/// was empty has from before was given to it since J by a replica that was in-sync then.
// rule: volume/the-joiners-block-is-the-newer-one
pub(crate) fn keeps_own(
    own: &BlockInfo,
    elders: Option<&BlockInfo>,
    joined: Epoch,
    was_empty: bool,
) -> bool {
    let readable = matches!(own.kind, BlockKind::Data | BlockKind::Zero);
    let rotten = |theirs: &&BlockInfo| theirs.kind == BlockKind::Bad;
    let mends = elders.filter(rotten).is_some_and(|theirs| theirs.version == own.version);
    own.version.epoch >= joined || (readable && (was_empty || mends))
}

/// Whether the elder has all that was acknowledged before it left. Once it has begun to join again, what
/// it reaches may have come to it since, and only its settled seq has not: then nobody can tell, and it
/// counts where nothing else is left.
// rule: volume/an-elder-that-lost-something-is-no-elder
fn is_whole(pair: &Pair, report: &FenceReport, for_good: bool) -> bool {
    let dropped = report.dropped_from.is_some_and(|dropped| dropped <= pair.reach);
    let reaches = match report.joined {
        None => {
            let reach = report.highest.max(report.next.previous()).max(report.settled);
            reach >= pair.reach && !dropped
        }
        Some(_) => for_good || (report.settled >= pair.reach && !dropped),
    };
    report.present && !report.damaged && reaches
}

/// Whether the joiner has all that was acknowledged since J. Where the base may come back with all, its
/// process is to be the same since then: nobody could tell if its disk were an older one.
// rule: volume/a-joiner-without-a-break
fn joins_unbroken(pair: &Pair, report: &FenceReport, for_good: bool) -> bool {
    let joins = report.present && report.joined == Some(pair.joined) && !report.damaged;
    joins && (for_good || report.unbroken)
}

impl Volume {
    /// Begins what may be combined, and ends what may not any more.
    pub(crate) fn look_at_combines(&mut self, now: Instant) {
        let held = |index: &SegmentIndex| self.segment(*index).held.is_some();
        let joiners = self.joiners.iter().map(|(index, _)| *index);
        let mut segments: BTreeSet<SegmentIndex> = joiners.filter(held).collect();
        segments.extend(self.combines.keys());
        for index in segments {
            let known = self.combines.get(&index).map(|combine| combine.pair);
            let wanted = self.pair_to_combine(now, index);
            if wanted != known {
                self.end_combine(index);
                wanted.into_iter().for_each(|pair| self.begin_combine(now, index, pair));
            }
        }
    }

    /// None is left that has all, for good or for so long that waiting costs more than a comparison.
    fn may_combine(&self, now: Instant, index: SegmentIndex) -> bool {
        let Some(since) = self.segment(index).held else { return false };
        let waited = now.since(since) >= self.settings.rebuild_wait;
        self.releasing.is_none() && (waited || self.is_lost_for_good(index))
    }

    fn is_lost_for_good(&self, index: SegmentIndex) -> bool {
        self.members(index).in_sync.iter().all(|disk| self.view.out.contains(disk))
    }

    // rule: volume/only-a-pair-is-combined
    fn pair_to_combine(&self, now: Instant, index: SegmentIndex) -> Option<Pair> {
        if !self.may_combine(now, index) {
            return None;
        }
        let mut pairs = self.pairs(index);
        pairs.retain(|pair| self.joins_since(index, pair) && self.may_ask_elder(index, pair.elder));
        let known = self.combines.get(&index).map(|combine| combine.pair);
        known.filter(|pair| pairs.contains(pair)).or_else(|| pairs.first().copied())
    }

    fn pairs(&self, index: SegmentIndex) -> Vec<Pair> {
        let members = self.members(index);
        if !self.settings.flaws.has(Flaw::CombinesAnyPair) {
            return members.pairs().collect();
        }
        let all = members.joining.iter().flat_map(|joining| {
            members.stale.iter().map(|stale| Pair {
                joiner: joining.disk,
                joined: joining.joined,
                elder: stale.disk,
                reach: stale.reach.unwrap_or_default(),
            })
        });
        all.collect()
    }

    /// As far as its owner knows. One that is taken over says so itself.
    fn joins_since(&self, index: SegmentIndex, pair: &Pair) -> bool {
        let segment = self.segment(index);
        let joins = segment.joiners.get(&pair.joiner).is_some_and(|joiner| {
            let started = joiner.takes_writes() || !segment.is_serving();
            joiner.joined == pair.joined && started
        });
        joins
            && self.failure_of(index, pair.joiner).is_none()
            && !self.unfit.contains(&(index, pair.joiner))
    }

    fn may_ask_elder(&self, index: SegmentIndex, elder: DiskId) -> bool {
        let up = self.disks.home(elder).is_some_and(|home| !self.links.is_down(home));
        let works = self.disks.get(elder).is_none_or(|state| state.failed.is_none());
        up && works && !self.unfit.contains(&(index, elder))
    }

    /// Both are fenced, so that no older owner writes there any more, and say what they have.
    fn begin_combine(&mut self, now: Instant, index: SegmentIndex, pair: Pair) {
        let (segment, creation) = (index, self.members(index).creation);
        self.combines.insert(index, Combine { pair, elder_ready: false, joiner_ready: None });
        self.remove_fill((index, pair.joiner));
        for (disk, joined) in [(pair.elder, None), (pair.joiner, Some(pair.joined))] {
            let segments = vec![FencedSegment { segment, creation, joined }];
            let op = ReplicaOp::Fence { segments };
            self.ask(now, disk, LinkClass::Data, op, Purpose::FencePair { segment });
        }
        let (disk, elder) = (pair.joiner, pair.elder);
        self.event(VolumeEvent::Combining { segment: index.get(), disk, elder });
    }

    pub(crate) fn on_pair_fenced(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        disk: DiskId,
        reports: &[FenceReport],
    ) {
        if self.members(index).alone().is_some_and(|joining| joining.disk == disk) {
            self.on_alone_fenced(now, index, disk, reports);
            return;
        }
        let for_good = self.is_lost_for_good(index);
        let unjudged = self.settings.flaws.has(Flaw::ElderUnjudged);
        let Some(combine) = self.combines.get_mut(&index) else { return };
        let Some(report) = reports.iter().find(|report| report.segment == index) else { return };
        let pair = combine.pair;
        let fits = if disk == pair.elder {
            combine.elder_ready = is_whole(&pair, report, for_good) || unjudged;
            combine.elder_ready
        } else if disk == pair.joiner {
            let fits = joins_unbroken(&pair, report, for_good);
            combine.joiner_ready = fits.then_some(report.unbroken);
            fits
        } else {
            return;
        };
        if !fits {
            self.unfit.insert((index, disk));
            self.members_dirty = true;
            self.event(VolumeEvent::Unfit { segment: index.get(), disk });
            return;
        }
        if let Some(takeover) = self.segment_mut(index).takeover_mut() {
            takeover.reaches(report.highest);
        }
        // Its `JoinStart` may not have been asked for yet, under this owner.
        self.start_join(now, index, pair.joiner);
        self.fills_dirty = true;
    }

    /// What was copied stays, and does no harm: a base that is there again rolls it back.
    pub(crate) fn end_combine(&mut self, index: SegmentIndex) {
        let Some(Combine { pair, .. }) = self.combines.remove(&index) else { return };
        self.drop_asks(
            |ask| matches!(ask.purpose, Purpose::FencePair { segment } if segment == index),
        );
        self.remove_fill((index, pair.joiner));
        let joiner = self.segment_mut(index).joiners.get_mut(&pair.joiner);
        if let Some(joiner) = joiner.filter(|joiner| joiner.step == JoinStep::Combined) {
            joiner.step = JoinStep::Started { frozen: gabion_types::Seq::ZERO };
        }
        self.fills_dirty = true;
    }

    /// A node's link broke: whoever it was may be another now, and is to say once more what it has.
    pub(crate) fn doubt_combines(&mut self, node: NodeId) {
        let at = |disk: &DiskId| self.disks.home(*disk) == Some(node);
        let doubted = self.combines.iter().filter(|(_, combine)| combine.disks().iter().any(at));
        let doubted: Vec<SegmentIndex> = doubted.map(|(index, _)| *index).collect();
        doubted.into_iter().for_each(|index| self.end_combine(index));
        self.members_dirty = true;
    }

    /// Those that have everything; or elders that join again, and are wanted as they were.
    pub(crate) fn propose_combines(&mut self, now: Instant) -> bool {
        let ready = self.combines.iter().filter(|(index, combine)| {
            let joiner = self.segment(**index).joiners.get(&combine.pair.joiner);
            joiner.is_some_and(|joiner| joiner.step == JoinStep::Combined)
        });
        let combines: Vec<Combining> = ready
            .take(crate::proposals::REPLICAS_PER_ENTRY)
            .map(|(index, combine)| {
                let Pair { joiner, joined, elder, .. } = combine.pair;
                Combining { segment: *index, joiner, joined, elder }
            })
            .collect();
        if combines.is_empty() {
            return self.propose_steps_back(now);
        }
        let segments: Vec<_> = combines.iter().map(|combining| combining.segment).collect();
        let change = OwnerChange::Combine { epoch: self.view.epoch, combines };
        self.emit(Kind::Members, segments, change)
    }

    fn propose_steps_back(&mut self, now: Instant) -> bool {
        let held = self.segments.iter().filter(|segment| segment.held.is_some());
        let held = held.map(|segment| segment.index).filter(|index| self.may_combine(now, *index));
        let back = held.filter_map(|index| {
            let members = self.members(index);
            let pairs = members.pairs_that_return();
            let fits = |pair: &Pair| self.joins_since(index, pair);
            let elder = pairs.filter(|_| members.pairs().next().is_none()).find(fits)?.elder;
            Some(Removal {
                segment: index,
                disk: elder,
                compare_all: false,
                may_return: true,
                replaced: false,
                reach: None,
            })
        });
        let removals: Vec<Removal> = back.take(crate::proposals::REPLICAS_PER_ENTRY).collect();
        self.emit_removals(removals, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::{BlockIndex, Seq, Version};

    fn epoch(value: u64) -> Epoch {
        Epoch::new(value).unwrap()
    }

    fn report() -> FenceReport {
        FenceReport {
            segment: SegmentIndex::new(0),
            present: true,
            settled: Seq::new(4),
            highest: Seq::new(10),
            joined: None,
            next: Seq::new(1),
            dropped_from: None,
            damaged: false,
            unbroken: false,
        }
    }

    // rule: volume/the-joiners-block-is-the-newer-one
    #[test]
    fn a_joiner_keeps_what_it_has_since_j_and_what_it_was_given_then() {
        let block = |kind, at| {
            let version = Version::new(epoch(at), Seq::new(9));
            BlockInfo { kind, version, ..BlockInfo::absent(BlockIndex::new(0)) }
        };
        let keeps = |own, elders: Option<BlockInfo>, was_empty| {
            keeps_own(&own, elders.as_ref(), epoch(5), was_empty)
        };
        let elders = Some(block(BlockKind::Data, 3));
        for kind in [BlockKind::Data, BlockKind::Zero, BlockKind::Lost, BlockKind::Bad] {
            assert!(keeps(block(kind, 5), elders, false), "{kind:?}");
            let readable = matches!(kind, BlockKind::Data | BlockKind::Zero);
            assert_eq!(keeps(block(kind, 4), elders, true), readable, "{kind:?}");
            assert!(!keeps(block(kind, 4), elders, false), "of its own from before: {kind:?}");
        }
        let rotten = Some(block(BlockKind::Bad, 4));
        assert!(keeps(block(BlockKind::Data, 4), rotten, false), "the same version");
        assert!(!keeps(block(BlockKind::Data, 3), rotten, false));
    }

    // rule: volume/a-joiner-without-a-break
    #[test]
    fn a_joiner_says_that_it_joins_since_j() {
        let (joiner, joined, elder) = (DiskId::new(1), epoch(5), DiskId::new(2));
        let pair = Pair { joiner, joined, elder, reach: Seq::ZERO };
        let good = FenceReport { joined: Some(joined), unbroken: true, ..report() };
        let broken = FenceReport { unbroken: false, ..good };
        assert!(joins_unbroken(&pair, &good, false));
        assert!(!joins_unbroken(&pair, &broken, false) && joins_unbroken(&pair, &broken, true));
        for bad in [
            FenceReport { present: false, ..good },
            FenceReport { joined: None, ..good },
            FenceReport { joined: Some(epoch(6)), ..good },
            FenceReport { damaged: true, ..good },
        ] {
            assert!(!joins_unbroken(&pair, &bad, true), "{bad:?}");
        }
    }

    // rule: volume/an-elder-that-lost-something-is-no-elder
    #[test]
    fn an_elder_reaches_as_far_as_it_did_when_it_left() {
        let (joiner, joined, elder) = (DiskId::new(1), epoch(5), DiskId::new(2));
        let pair = Pair { joiner, joined, elder, reach: Seq::new(10) };
        let good = report();
        let whole = |report| is_whole(&pair, &report, false);
        let left = |report| is_whole(&pair, &report, true);
        let dropped = |from| FenceReport { dropped_from: Some(Seq::new(from)), ..good };
        assert!(whole(good) && whole(dropped(11)));
        assert!(!whole(dropped(10)));
        assert!(!whole(FenceReport { highest: Seq::new(9), ..good }), "an older disk");
        assert!(whole(FenceReport { highest: Seq::new(9), next: Seq::new(11), ..good }));
        let returning = FenceReport { joined: Some(epoch(7)), highest: Seq::new(30), ..good };
        assert!(!whole(returning) && whole(FenceReport { settled: Seq::new(10), ..returning }));
        assert!(left(returning) && !left(FenceReport { highest: Seq::new(9), ..good }));
        assert!(!left(FenceReport { damaged: true, ..returning }));
        assert!(!whole(FenceReport { damaged: true, ..good }));
        assert!(!whole(FenceReport { present: false, ..good }));
    }
}
