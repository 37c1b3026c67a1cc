//! Joiners that go on instead of all in-sync replicas, which an operator gave up (`Joining::alone`): filled from
//! nobody, they say first whether they are what the map takes them for.

use crate::asks::{Ask, Purpose};
use crate::volume::Volume;
use gabion_types::{DiskId, Epoch, Instant, Joining, SegmentIndex, Seq};
use gabion_wire::{FenceReport, FencedSegment, LinkClass, ReplicaOp};

/// Whether it has all as it was when it left. One that lost the segment is made anew by `JoinStart`, and
/// would pass for one that never had anything; once it has begun to join, only what is settled tells.
// rule: volume/what-a-survivor-lacks-is-lost
fn has_all(report: &FenceReport, joined: Epoch) -> bool {
    let known = report.joined != Some(joined) || report.settled > Seq::ZERO;
    report.present && !report.damaged && known
}

impl Volume {
    /// Each is fenced and asked, and joins then.
    pub(crate) fn start_alone(&mut self, now: Instant) {
        let alone = |(index, disk): &(SegmentIndex, DiskId)| {
            let joining = self.members(*index).joining(*disk).filter(|joining| joining.alone)?;
            Some((*index, *joining))
        };
        let all: Vec<(SegmentIndex, Joining)> = self.joiners.iter().filter_map(alone).collect();
        for (segment, Joining { disk, joined, .. }) in all {
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
            let (creation, joined) = (self.members(segment).creation, Some(joined));
            let op =
                ReplicaOp::Fence { segments: vec![FencedSegment { segment, creation, joined }] };
            self.ask(now, disk, LinkClass::Data, op, Purpose::FencePair { segment });
        }
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
        let whole = !joining.compare_all && has_all(report, joining.joined);
        self.alone.insert(index, whole);
        self.disks.get_mut(disk).fenced = true;
        self.start_join(now, index, disk);
        self.fills_dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: volume/what-a-survivor-lacks-is-lost
    #[test]
    fn one_that_lost_the_segment_does_not_pass_for_one_that_had_all() {
        let epoch = |value| Epoch::new(value).unwrap();
        let joined = epoch(7);
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
        assert!(has_all(&good, joined));
        assert!(
            has_all(&FenceReport { joined: Some(epoch(5)), ..good }, joined),
            "an earlier join"
        );
        assert!(!has_all(&FenceReport { present: false, ..good }, joined));
        assert!(!has_all(&FenceReport { damaged: true, ..good }, joined));
        let joins = FenceReport { joined: Some(joined), ..good };
        assert!(!has_all(&joins, joined), "it may have been made a moment ago");
        assert!(has_all(&FenceReport { settled: Seq::new(1), ..joins }, joined));
    }
}
