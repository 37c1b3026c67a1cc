//! The order of requests. A request takes its place in all segments that it touches when it
//! arrives, and leaves it when it is done as a whole: if the owner ends before, the next one
//! executes all of it again, so nothing that came later may have been seen over a part of it.

use crate::gather::Gather;
use crate::segment::Segment;
use crate::volume::Volume;
use bytes::Bytes;
use gabion_types::{
    BlockRange, ByteRange, Crc, DiskId, Flaw, Instant, IoError, MappedExtent, SegmentIndex, Seq,
    Version,
};

/// Numbers ops in the order in which they took their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpId(pub(crate) u64);

/// A request's place in the order of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) arrival: u64,
    pub(crate) range: BlockRange,
    pub(crate) write: bool,
}

/// One piece of a request's part in one segment.
#[derive(Debug)]
pub(crate) struct Op {
    /// The request that it is a part of, and the how-manieth.
    pub(crate) arrival: u64,
    pub(crate) part: usize,
    pub(crate) segment: SegmentIndex,
    pub(crate) range: BlockRange,
    pub(crate) kind: OpKind,
    pub(crate) state: OpState,
}

#[derive(Debug)]
pub(crate) enum OpKind {
    /// Units: bytes within the range's blocks.
    Read {
        skip: usize,
        take: usize,
    },
    Status {
        skip: usize,
        take: usize,
    },
    Write {
        data: Bytes,
        crcs: Vec<Crc>,
    },
    Zero,
    /// Room is looked for, and nothing written.
    Room,
    /// Part of one block: the block is read, the patch laid over it, and then it is a write.
    Merge {
        within: usize,
        patch: Bytes,
    },
}

impl OpKind {
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Zero | Self::Merge { .. } => true,
            Self::Read { .. } | Self::Status { .. } | Self::Room => false,
        }
    }
}

#[derive(Debug)]
pub(crate) enum OpState {
    /// For an earlier op, the segment, the lease, or a replica to ask. Stalled: nobody could be
    /// asked; it is tried again when something changes.
    Waiting {
        stalled: bool,
    },
    /// Reading: for a guest, or what a patch is laid over.
    Fetching(Box<Gather>),
    /// Asking for the table: for a guest's status, what a hole is to be made of, or whether a write
    /// only overwrites.
    Looking {
        asked: DiskId,
        /// Disks that were looked at, and the bytes that are new there.
        passed: Vec<(DiskId, u64)>,
    },
    Writing(Writing),
}

#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) version: Version,
    /// All seqs that it had, the present one last.
    pub(crate) seqs: Vec<Seq>,
    /// Members that have not answered this version.
    pub(crate) missing: Vec<DiskId>,
    /// One alone is missing since then.
    pub(crate) alone: Option<Instant>,
    /// How often its last member was full.
    pub(crate) full: u32,
}

/// What an op gives to its request.
#[derive(Debug)]
pub(crate) enum Yield {
    Done,
    Read(Bytes),
    Status(Vec<MappedExtent>),
}

impl Volume {
    /// Gives a request its place in the order of each segment of these bytes.
    // rule: volume/request-keeps-its-place-until-done
    pub(crate) fn place(&mut self, arrival: u64, bytes: ByteRange, write: bool) {
        for (segment, range) in self.parts(bytes) {
            self.segment_mut(segment).order.push(Place { arrival, range, write });
        }
    }

    pub(crate) fn leave(&mut self, arrival: u64, bytes: ByteRange) {
        for (segment, _) in self.parts(bytes) {
            self.segment_mut(segment).leave(arrival);
            self.dirty.insert(segment);
        }
    }

    /// The blocks of each segment that these bytes touch.
    fn parts(&self, bytes: ByteRange) -> Vec<(SegmentIndex, BlockRange)> {
        let size = self.limits.segment;
        let mut parts = Vec::new();
        let mut at = bytes.offset();
        while at < bytes.end() {
            let end = (at - at % size.bytes() + size.bytes()).min(bytes.end());
            let (first, last) = (size.block_of(at), size.block_of(end - 1));
            let range = BlockRange::new(first, last.get() - first.get() + 1);
            parts.extend(size.segment_of(at).zip(range));
            at = end;
        }
        parts
    }

    /// A piece of a request that has its place.
    pub(crate) fn add_op(&mut self, op: Op) {
        self.ops_given += 1;
        let id = OpId(self.ops_given);
        let segment = self.segment_mut(op.segment);
        segment.ops.insert(id);
        segment.waiting.insert(id);
        self.dirty.insert(op.segment);
        self.ops.insert(id, op);
    }

    /// Begins what waits, oldest first, as far as it can begin.
    pub(crate) fn begin_waiting(&mut self, now: Instant, index: SegmentIndex) {
        if self.releasing.is_some() || self.proposals.is_releasing() {
            return;
        }
        let waiting: Vec<OpId> = self.segment(index).waiting.iter().copied().collect();
        for id in waiting {
            if self.is_full() {
                self.crowded.insert(index);
                return;
            }
            if self.is_ready(index, id) {
                self.begin(now, id);
            }
        }
    }

    // promise: bounded
    fn is_full(&self) -> bool {
        let full = self.begun >= self.limits.requests_per_volume.max(1);
        full && !self.settings.flaws.has(Flaw::BegunWithoutBound)
    }

    /// It waits for nothing but its turn.
    fn is_ready(&self, index: SegmentIndex, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else { return false };
        let OpState::Waiting { stalled: false } = op.state else { return false };
        let (arrival, range, write) = (op.arrival, op.range, op.kind.is_write());
        let room = matches!(op.kind, OpKind::Room);
        let dirty = !write && self.settings.flaws.has(Flaw::ReadDuringUnresolvedWrite);
        room || dirty || !self.segment(index).is_blocked(arrival, range, write)
    }

    /// A segment in which something could go on, and nothing will make it: a wake-up was lost. Never
    /// between two inputs.
    pub fn overlooked(&self, now: Instant) -> Option<SegmentIndex> {
        if self.ended || !self.may_serve(now) {
            return None;
        }
        let leaves = self.releasing.is_some() || self.proposals.is_releasing();
        let full = self.is_full();
        let forgotten = |segment: &&Segment| {
            let index = segment.index;
            let answered = !segment.answered.is_empty() && !self.proposals.freezes(index);
            let mut waiting = segment.waiting.iter();
            let ready = !leaves && !full && waiting.any(|id| self.is_ready(index, *id));
            segment.is_serving() && !self.dirty.contains(&index) && (answered || ready)
        };
        self.segments.iter().find(forgotten).map(|segment| segment.index)
    }

    fn begin(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let segment = op.segment;
        enum Begin {
            Fetch,
            Look,
            Room,
            Write,
        }
        let begin = match op.kind {
            OpKind::Read { .. } | OpKind::Merge { .. } => Begin::Fetch,
            OpKind::Status { .. } | OpKind::Zero => Begin::Look,
            OpKind::Room => Begin::Room,
            OpKind::Write { .. } => Begin::Write,
        };
        self.segment_mut(segment).waiting.remove(&id);
        self.begun += 1;
        match begin {
            Begin::Fetch => self.begin_fetch(now, id),
            Begin::Look => self.begin_look(now, id),
            Begin::Room => self.begin_room(now, id, Vec::new()),
            Begin::Write => self.begin_write(now, id),
        }
    }

    /// Back to waiting, in its old place.
    pub(crate) fn wait_again(&mut self, id: OpId, stalled: bool) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let segment = op.segment;
        op.state = OpState::Waiting { stalled };
        self.make_room();
        self.segment_mut(segment).waiting.insert(id);
        if !stalled {
            self.dirty.insert(segment);
        }
    }

    /// What could ask nobody tries again.
    pub(crate) fn wake_stalled(&mut self) {
        for op in self.ops.values_mut() {
            if let OpState::Waiting { stalled } = &mut op.state
                && *stalled
            {
                *stalled = false;
                self.dirty.insert(op.segment);
            }
        }
    }

    /// One less has begun: what waited for that looks again.
    // rule: volume/whoever-may-go-on-is-woken
    fn make_room(&mut self) {
        self.begun -= 1;
        if !self.settings.flaws.has(Flaw::CrowdNotWoken) {
            let crowded = std::mem::take(&mut self.crowded);
            self.dirty.extend(crowded);
        }
    }

    /// The op is done, and its request gets what it was for.
    pub(crate) fn finish(&mut self, now: Instant, id: OpId, result: Result<Yield, IoError>) {
        let Some(op) = self.ops.remove(&id) else { return };
        if !self.segment(op.segment).waiting.contains(&id) {
            self.make_room();
        }
        self.segment_mut(op.segment).forget(id);
        self.dirty.insert(op.segment);
        self.give(now, op.arrival, op.part, result);
    }
}
