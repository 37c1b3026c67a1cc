//! What goes into a volume's owner and what comes out.

use gabion_types::{
    DiskId, Duration, Flaws, GuestOp, GuestResult, Instant, Latencies, NodeId, Outcome,
    OwnerChange, ScrubAsk, ScrubFound, VolumeView,
};
use gabion_wire::{LinkClass, ReplicaAnswer, ReplicaRequest, RequestId};
use std::fmt;

/// A guest's request that was admitted; chosen by the node, comes back exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Numbers the proposals of one owner; chosen by the owner, grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalNumber(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Takes its place in the order. Never refused but by `GuestDone`.
    Guest {
        ticket: Ticket,
        op: GuestOp,
    },
    /// The committed map's word on this volume, in the order of the log; the first one makes the
    /// owner and begins the takeover. One that names another owner ends it.
    View {
        view: VolumeView,
        owned: bool,
    },
    /// The outcome of a proposal, after the view that it led to.
    Proposed {
        number: ProposalNumber,
        outcome: Outcome,
    },
    Answer {
        request: RequestId,
        answer: ReplicaAnswer,
    },
    /// What is in flight to that node on that class is lost: done or not, no answer will come.
    LinkLost {
        node: NodeId,
        class: LinkClass,
    },
    /// It can be asked (again).
    LinkUp {
        node: NodeId,
    },
    /// The link had no room for what was asked: it was not sent. Data for that link stays here until
    /// `Room`, which comes unless the link is lost before.
    Unsent {
        request: RequestId,
    },
    /// So many bytes may go there now.
    Room {
        node: NodeId,
        class: LinkClass,
        bytes: u64,
    },
    /// It counts as failed: closed for 200 ms of failed reconnects, or silent for 1 s.
    NodeDown {
        node: NodeId,
    },
    /// It is about to go, and answers until then: its copies are to be done without.
    NodeLeaving {
        node: NodeId,
    },
    /// The map says that it is out of service: nobody has to ask it first to find that out.
    DiskOut {
        disk: DiskId,
    },
    /// The lease holds until then; the driver's clock, this node's. Later or earlier than before.
    Lease {
        until: Instant,
    },
    /// A setting changed.
    Settings(Settings),
    /// Finish what is in flight, admit nothing new, settle, propose `Release`.
    Release,
    /// Time passed (nothing else happened).
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a member is waited for when its volume is taken over.
    pub fence_wait: Duration,
    /// A slow answer to a write removes nobody before.
    pub slow_wait: Duration,
    /// A member that answers most writes by so long later than the others is slow; zero: never.
    pub lag: Duration,
    /// Filling of a stand-in for a silent node's replica begins after so long.
    pub rebuild_wait: Duration,
    /// Bytes of filling in flight of this volume.
    pub fill_bytes_in_flight: u64,
    /// Comparing tables takes at most this part of the time; at least 1.
    pub scrub_share_percent: u32,
    /// None but in tests.
    pub flaws: Flaws,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// To the node that the disk hangs on, or to this node's own store.
    Ask {
        node: NodeId,
        class: LinkClass,
        request: RequestId,
        ask: ReplicaRequest,
    },
    GuestDone {
        ticket: Ticket,
        result: GuestResult,
    },
    /// It has waited for too long, and its guest is to hear so. It is under way still: `GuestOver` follows.
    GuestLate {
        ticket: Ticket,
    },
    /// One that was late takes up nothing any more.
    GuestOver,
    Propose {
        number: ProposalNumber,
        change: OwnerChange,
    },
    /// At least one segment serves (once): sessions may be opened.
    Serving,
    /// The scrub that the view asked for is done (once): to be made known to the map.
    Scrubbed {
        ask: ScrubAsk,
        found: ScrubFound,
    },
    /// All is answered and settled; nothing is owned any more (once). The `Release` was committed,
    /// or the map named another owner, or the volume is gone.
    Ended,
    Event(VolumeEvent),
}

/// For the log and the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeEvent {
    TookOver {
        segments: u32,
        settled_blocks: u64,
        lost_blocks: u64,
        took: Duration,
    },
    MemberFailed {
        disk: DiskId,
        why: MemberFailure,
    },
    FillStarted {
        disk: DiskId,
        segment: u32,
        full: bool,
    },
    FillDone {
        disk: DiskId,
        segment: u32,
        copied_bytes: u64,
        took: Duration,
    },
    Repaired {
        disk: DiskId,
        segment: u32,
        blocks: u32,
    },
    ScrubBegan {
        deep: bool,
    },
    Scrubbed {
        deep: bool,
        found: ScrubFound,
        took: Duration,
    },
    /// Readable in no copy, from that block on; found by a scrub.
    Lost {
        segment: u32,
        block: u32,
        blocks: u32,
    },
    Held {
        segment: u32,
    },
    /// No base is left: the joiner is made whole by what the elder has from before.
    Combining {
        segment: u32,
        disk: DiskId,
        elder: DiskId,
    },
    /// It has not all that it would have to have to be combined with another.
    Unfit {
        segment: u32,
        disk: DiskId,
    },
    HoldOver {
        segment: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberFailure {
    NodeDown,
    OutOfService,
    NoSpace,
    Slow,
    RolledBack,
    NoSegment,
    NoFenceAnswer,
    /// Nothing is wrong with it: its node is about to go.
    Leaving,
}

/// Why an owner does without a disk, or takes it back only later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    Failed(MemberFailure),
    /// Most writes wait for it long after all others have answered.
    Lags,
    /// It failed again soon after it had come back.
    Flaps,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(MemberFailure::NodeDown) => "its node cannot be reached",
            Self::Failed(MemberFailure::OutOfService) => "it is out of service",
            Self::Failed(MemberFailure::NoSpace) => "it is full",
            Self::Failed(MemberFailure::Slow) => "slow: it does not answer in time",
            Self::Failed(MemberFailure::RolledBack) => "it lost what it had answered",
            Self::Failed(MemberFailure::NoSegment) => "it lacks a segment that it should have",
            Self::Failed(MemberFailure::NoFenceAnswer) => "it does not say what it has",
            Self::Failed(MemberFailure::Leaving) => "its node is about to go",
            Self::Lags => "slow: writes wait for it long after all others have answered",
            Self::Flaps => "it failed again soon after it had come back, and waits",
        })
    }
}

/// What `volume show` says beyond the map. Units: bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeStats {
    pub serving: bool,
    pub held_requests: u64,
    pub in_flight: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    /// From the arrival at this owner to the answer.
    pub read_latencies: Latencies,
    pub write_latencies: Latencies,
    /// Answered with an error.
    pub errors: u64,
    /// One for each joiner that is being filled or waits for it.
    pub fills: Vec<FillStats>,
    /// Segments without a usable copy.
    pub held_segments: Vec<u32>,
    pub lost: Vec<(u32, u32, u32)>,
    /// Since this owner took over.
    pub filled_bytes: u64,
    pub repaired_blocks: u64,
    /// Scrubs that were finished.
    pub scrubs: u64,
    /// The one that is under way.
    pub scrub: Option<ScrubStats>,
}

/// How far a scrub is. Units: bytes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStats {
    pub ask: ScrubAsk,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub found: ScrubFound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillStats {
    pub segment: u32,
    pub disk: DiskId,
    /// Whose copy it is compared with just now.
    pub source: Option<DiskId>,
    pub copied_bytes: u64,
    pub total_bytes: u64,
    pub waiting: bool,
}
