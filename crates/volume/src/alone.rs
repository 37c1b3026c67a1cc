//! Joiners that go on instead of all in-sync replicas, which an operator gave up (`Joining::alone`): filled from
//! nobody, they say first whether they are what the map takes them for.

use crate::asks::{Ask, Purpose};
use crate::io::VolumeEvent;
use crate::volume::Volume;
use gabion_types::{DiskId, Instant, Joining, NodeId, SegmentIndex, Seq};
use gabion_wire::{FenceReport, FencedSegment, LinkClass, ReplicaOp};

/// Whether it has all as it was when it left. One that lost the segment is made anew by `JoinStart`, and
/// would pass for one that never had anything: once it has begun to join, only what is settled tells. One that
/// never did reaches as far as it did then, or is an older disk.
// rule: volume/what-a-survivor-lacks-is-lost
fn has_all(report: &FenceReport, reach: Option<Seq>) -> bool {
    let sound = match (report.joined, reach) {
        (Some(_), _) => report.settled > Seq::ZERO,
        (None, None) => true,
        (None, Some(reach)) => {
            let reaches = report.highest.max(report.next.previous()).max(report.settled) >= reach;
            reaches && report.dropped_from.is_none_or(|dropped| dropped > reach)
        }
    };
    report.present && !report.damaged && sound
}

impl Volume {
    /// Each is fenced and asked, and joins then.
    pub(crate) fn start_alone(&mut self, now: Instant) {
        let alone = |(index, disk): &(SegmentIndex, DiskId)| {
            let joining = self.members(*index).joining(*disk).filter(|joining| joining.alone)?;
            Some((*index, *joining))
        };
        let all: Vec<(SegmentIndex, Joining)> = self.joiners.iter().filter_map(alone).collect();
        for (segment, Joining { disk, .. }) in all {
            if self.alone.contains_key(&segment) {
                self.start_join(now, segment, disk);
                continue;
            }
            let asked = |ask: &Ask| {
                let same =
                    matches!(ask.purpose, Purpose::FencePair { segment: of } if of == segment);
                same && ask.disk == disk
            };
            if self.asks.iter().any(asked) {
                continue;
            }
            // As what it was: nothing of before this join would count else.
            let (creation, joined) = (self.members(segment).creation, None);
            let op =
                ReplicaOp::Fence { segments: vec![FencedSegment { segment, creation, joined }] };
            self.ask(now, disk, LinkClass::Data, op, Purpose::FencePair { segment });
        }
    }

    /// A node's link broke: whoever it was may be another now, and is to say once more what it has.
    pub(crate) fn doubt_alone(&mut self, node: NodeId) {
        let at = |index: &SegmentIndex| {
            let alone = self.members(*index).alone();
            alone.is_some_and(|joining| self.disks.home(joining.disk) == Some(node))
        };
        let doubted: Vec<SegmentIndex> = self.alone.keys().copied().filter(at).collect();
        for index in doubted {
            self.alone.remove(&index);
            if let Some(disk) = self.members(index).alone().map(|joining| joining.disk) {
                self.remove_fill((index, disk));
                self.fill_anew(index, disk);
            }
        }
        self.members_dirty = true;
    }

    pub(crate) fn on_alone_fenced(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        disk: DiskId,
        reports: &[FenceReport],
    ) {
        let Some(report) = reports.iter().find(|report| report.segment == index) else { return };
        let Some(joining) = self.members(index).joining(disk).copied() else { return };
        let whole = !joining.compare_all && has_all(report, joining.reach);
        if !whole && !joining.compare_all {
            self.event(VolumeEvent::Unfit { segment: index.get(), disk });
        }
        self.alone.insert(index, whole);
        self.disks.get_mut(disk).fenced = true;
        self.start_join(now, index, disk);
        self.fills_dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::Epoch;

    // rule: volume/what-a-survivor-lacks-is-lost
    #[test]
    fn one_that_lost_the_segment_does_not_pass_for_one_that_had_all() {
        let epoch = |value| Epoch::new(value).unwrap();
        let good = FenceReport {
            segment: SegmentIndex::new(0),
            present: true,
            settled: Seq::ZERO,
            highest: Seq::new(3),
            joined: None,
            next: Seq::new(1),
            dropped_from: None,
            damaged: false,
            unbroken: false,
        };
        assert!(has_all(&good, None) && has_all(&good, Some(Seq::new(3))));
        assert!(!has_all(&good, Some(Seq::new(4))), "an older disk");
        let dropped = FenceReport { dropped_from: Some(Seq::new(3)), ..good };
        assert!(!has_all(&dropped, Some(Seq::new(3))) && has_all(&dropped, Some(Seq::new(2))));
        assert!(!has_all(&FenceReport { present: false, ..good }, None));
        assert!(!has_all(&FenceReport { damaged: true, ..good }, None));
        for joined in [5, 7].map(epoch) {
            let joins = FenceReport { joined: Some(joined), ..good };
            assert!(!has_all(&joins, None), "a join may have made it");
            assert!(has_all(&FenceReport { settled: Seq::new(1), ..joins }, None));
        }
    }
}
