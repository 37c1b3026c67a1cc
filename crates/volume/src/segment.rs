//! One segment of the volume as its owner sees it.

use crate::io::MemberFailure;
use crate::order::{OpId, Place};
use crate::settle::Seqs;
use crate::takeover::Takeover;
use gabion_types::{BlockRange, DiskId, Epoch, Instant, SegmentIndex, Seq};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) index: SegmentIndex,
    pub(crate) phase: Phase,
    /// Requests that have their place in the order, oldest first.
    pub(crate) order: Vec<Place>,
    /// Their ops that are not done.
    pub(crate) ops: BTreeSet<OpId>,
    /// Those of them that have not begun.
    pub(crate) waiting: BTreeSet<OpId>,
    /// Writes that every member has answered, and that are not acknowledged yet.
    pub(crate) answered: BTreeSet<OpId>,
    pub(crate) seqs: Seqs,
    pub(crate) joiners: BTreeMap<DiskId, Joiner>,
    /// Members that fail for this segment.
    pub(crate) failed: BTreeMap<DiskId, MemberFailure>,
    /// No usable copy, since then.
    pub(crate) held: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Not reconciled yet: nothing of it is served.
    Taking(Box<Takeover>),
    Serving,
}

/// A replica that the map says is joining.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joiner {
    pub(crate) joined: Epoch,
    /// When this owner first saw it.
    pub(crate) seen: Instant,
    pub(crate) step: JoinStep,
    /// The highest seq that it answered to this owner.
    pub(crate) reached: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinStep {
    /// `JoinStart` is not sent yet: its disk is to be fenced first.
    New,
    /// `JoinStart` is under way.
    Starting,
    /// It takes writes; its settled seq is frozen at this.
    Started { frozen: Seq },
    /// It has everything; to be promoted.
    Filled,
    /// With what an elder had it has everything; to take the place of those that are gone.
    Combined,
}

impl Joiner {
    pub(crate) fn takes_writes(&self) -> bool {
        match self.step {
            JoinStep::New | JoinStep::Starting => false,
            JoinStep::Started { .. } | JoinStep::Filled | JoinStep::Combined => true,
        }
    }
}

impl Segment {
    pub(crate) fn new(index: SegmentIndex, takeover: Takeover) -> Self {
        Self {
            index,
            phase: Phase::Taking(Box::new(takeover)),
            order: Vec::new(),
            ops: BTreeSet::new(),
            waiting: BTreeSet::new(),
            answered: BTreeSet::new(),
            seqs: Seqs::default(),
            joiners: BTreeMap::new(),
            failed: BTreeMap::new(),
            held: None,
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    pub(crate) fn takeover(&self) -> Option<&Takeover> {
        match &self.phase {
            Phase::Taking(takeover) => Some(takeover),
            Phase::Serving => None,
        }
    }

    pub(crate) fn takeover_mut(&mut self) -> Option<&mut Takeover> {
        match &mut self.phase {
            Phase::Taking(takeover) => Some(takeover),
            Phase::Serving => None,
        }
    }

    /// True when an earlier request has to be done first: reads go beside reads, and nothing else
    /// goes beside a request on the same block.
    // rule: volume/overlapping-requests-wait
    pub(crate) fn is_blocked(&self, arrival: u64, range: BlockRange, write: bool) -> bool {
        self.order
            .iter()
            .take_while(|place| place.arrival < arrival)
            .any(|place| (place.write || write) && place.range.overlaps(range))
    }

    /// The request is done as a whole.
    pub(crate) fn leave(&mut self, arrival: u64) {
        if let Ok(at) = self.order.binary_search_by_key(&arrival, |place| place.arrival) {
            self.order.remove(at);
        }
    }

    pub(crate) fn forget(&mut self, id: OpId) {
        self.ops.remove(&id);
        self.waiting.remove(&id);
        self.answered.remove(&id);
    }
}
