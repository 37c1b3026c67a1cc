//! Letting the volume go.

use crate::volume::Volume;
use gabion_types::{Duration, Instant, SegmentIndex};

/// What is in flight is waited for so long; then the volume is let go without being settled, and
/// the next owner finishes it.
const DRAIN_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Releasing {
    since: Instant,
}

impl Volume {
    pub(crate) fn handle_release(&mut self, now: Instant) {
        if self.releasing.is_none() {
            self.releasing = Some(Releasing { since: now });
        }
    }

    /// Proposes the release when nothing is in flight any more.
    // rule: volume/release-is-clean-only-when-all-is-settled
    pub(crate) fn conclude_release(&mut self, now: Instant) {
        let Some(releasing) = self.releasing else { return };
        if self.ended || !self.proposals.is_free(now) {
            return;
        }
        let drained = self.begun == 0;
        if !drained && now.since(releasing.since) < DRAIN_MAX {
            return;
        }
        let clean = drained
            && self.segments.iter().all(|segment| {
                segment.is_serving() && segment.held.is_none() && !segment.seqs.is_open()
            });
        let all: Vec<SegmentIndex> = self.segments.iter().map(|segment| segment.index).collect();
        self.tell_settled_of(&all);
        self.propose_release(clean);
    }
}
