//! What a disk tells a new owner.

use crate::disk::Disk;
use gabion_format::{SegmentKey, SegmentMeta};
use gabion_types::{Epoch, SegmentIndex, Seq, VolumeId};
use gabion_wire::{FenceReport, FencedSegment};

impl Disk {
    pub(crate) fn reports(&self, volume: VolumeId, segments: &[FencedSegment]) -> Vec<FenceReport> {
        let report = |asked: &FencedSegment| {
            let key = SegmentKey::new(volume, asked.segment);
            let meta = self.table.segment(key).map(|segment| &segment.meta);
            match meta.filter(|meta| meta.creation == asked.creation) {
                Some(meta) => {
                    let unbroken = meta.joining && self.joined_here.contains(&key);
                    FenceReport { unbroken, ..report_of(asked.segment, meta, asked.joined) }
                }
                None => absent(asked.segment),
            }
        };
        segments.iter().map(report).collect()
    }
}

// rule: store/map-says-who-joins
/// Whether the replica is joining is what the map says; what counts of it depends on that.
fn report_of(segment: SegmentIndex, meta: &SegmentMeta, joined: Option<Epoch>) -> FenceReport {
    let own = meta.joining.then_some(meta.joined);
    let highest = match (joined, own) {
        (None, None) => meta.highest,
        // Promoted by the map, which it did not hear: what was installed counts as well.
        (None, Some(_)) => meta.highest.max(meta.installed).max(meta.settled),
        (Some(map), Some(own)) if map == own => meta.highest,
        // It never heard of this join: it has nothing from J on.
        (Some(_), Some(_) | None) => Seq::ZERO,
    };
    FenceReport {
        segment,
        present: true,
        settled: meta.settled,
        highest,
        joined: own,
        next: meta.next,
        dropped_from: meta.dropped_from,
        damaged: meta.damaged,
        unbroken: false,
    }
}

fn absent(segment: SegmentIndex) -> FenceReport {
    FenceReport {
        segment,
        present: false,
        settled: Seq::ZERO,
        highest: Seq::ZERO,
        joined: None,
        next: Seq::ZERO,
        dropped_from: None,
        damaged: false,
        unbroken: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq_of(meta: &SegmentMeta, joined: Option<u64>) -> u64 {
        let joined = joined.map(|epoch| Epoch::new(epoch).unwrap());
        report_of(SegmentIndex::new(0), meta, joined).highest.get()
    }

    // rule: store/map-says-who-joins
    #[test]
    fn what_counts_depends_on_what_the_map_says() {
        let mut meta = SegmentMeta::new(Epoch::new(1).unwrap());
        meta.highest = Seq::new(10);
        meta.installed = Seq::new(20);
        meta.settled = Seq::new(5);
        assert_eq!(seq_of(&meta, None), 10);
        assert_eq!(seq_of(&meta, Some(7)), 0);
        meta.joining = true;
        meta.joined = Epoch::new(7).unwrap();
        assert_eq!(seq_of(&meta, Some(7)), 10);
        assert_eq!(seq_of(&meta, Some(8)), 0);
        assert_eq!(seq_of(&meta, None), 20);
    }
}
