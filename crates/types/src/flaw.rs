//! Rules that a test switches off, to show that the simulator finds each of them to be needed.
//!
//! Without the feature `flaws` nothing can be switched off, and `has` is `false` at compile time; a
//! released binary is built without it (`tests/tests/tidy.rs` holds that). A core gets them with
//! its settings, so two nodes of one process may differ and nothing is global.

/// One rule that is broken on purpose, in the way in which it would be got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// A write is acknowledged without the members whose removal is only proposed.
    AcknowledgeBeforeMap,
    /// After a change of members the answers to a write's former version still count.
    AcknowledgeByOldAnswers,
    FenceInMemoryOnly,
    /// The report is made when the fence arrives, not when what is under way has become durable.
    FenceBeforeWritesUnderWay,
    /// A replica does not refuse older owners.
    NoFence,
    /// A member that did not answer the fence in time stays a member.
    KeepUnfencedMember,
    ServeBeforeReconciling,
    /// A delta join looks only at what the source has.
    IgnoreReturningTail,
    /// In a takeover also a joiner's versions from before its J are reconciled.
    JoinerOldTailCounts,
    JoinerNotInWriteSet,
    JoinerSettledAdvances,
    SettledToOneThatLeft,
    /// A replica settles up to the next seq when it makes the start of an epoch durable.
    SettledMovesWithEpochStart,
    NoRestamp,
    /// An install also goes over what was written since J.
    InstallAlways,
    ReadDuringUnresolvedWrite,
    /// The lease is looked at when a read begins only.
    ReadAfterLease,
    WriteMakesSegment,
    /// An owner forgets which of a session's requests it has.
    ForwardedTwice,
    NoSyncAfterReplay,
    SlotFreedUnderRead,
    /// Not a rule of the protocol but one of its promises: durable is said before the sync.
    AnswerBeforeSync,
    /// Data of a disk are used without a look at their checksum.
    TrustTheDisk,
    /// What no copy has any more is read as zeros.
    LostAsZeros,
    /// Where data are a guest is told of a hole.
    DataAsHoles,
    /// The owner counts twice the lease that it got.
    LeaseTwiceAsLong,
    /// What a broken link left unanswered is not asked again.
    LostWakeUp,
    /// What waited as too much was under way is not looked at again when something is done.
    CrowdNotWoken,
    /// A request that was taken back keeps its slots.
    LeakedSlot,
    /// An owner's core is given all that the sessions have.
    AdmitWithoutBound,
    /// An owner begins all that it was given.
    BegunWithoutBound,
    /// A front sends all that its guests ask.
    SentWithoutBound,
    /// All joiners are filled at once.
    FillsWithoutBound,
    /// A fill takes no heed of what others have in flight.
    FillBytesWithoutBound,
    /// A disk is given all data that come, at once.
    WritesWithoutBound,
    /// Map pages stay in memory.
    PagesWithoutBound,
    /// A front keeps a request that was answered, and asks it again when its session opens anew.
    AnsweredTwice,
    /// What a guest held when it hung up counts as held for good.
    LeakedBytes,
    /// What waits for a second has waited too long, whatever the volume asks for.
    HeldFailed,
    /// What a copy is made from is not verified.
    SourceUnchecked,
    /// A copy counts as filled before the last run of blocks was installed.
    LastInstallSkipped,
    /// The map names the last block of an install, and nothing wrote it.
    InstallNotWritten,
    /// A write over a part of a block leaves the data that were in its last 512 bytes.
    TornMerge,
    /// A joiner that has everything is not made a member.
    NeverPromoted,
    /// A node wants to renew its lease also while there is nobody to ask.
    AwakeForNothing,
    /// A copy on a disk that is being emptied goes before another one has its place.
    RemovedBeforeReplaced,
    /// Guests of another node get into an exclusive volume.
    KeepsNobodyOut,
    /// A joiner is made whole by a replica that left at another epoch.
    CombinesAnyPair,
    /// A joiner takes the place of the last base copy with what it has by itself.
    CombinesWithNothing,
    /// An elder that was rolled back is combined all the same.
    ElderUnjudged,
    /// What a new owner finds of before J above the settled seq is not given to the joiner.
    TailMissesJoiner,
    /// Who goes on alone has holes where it never got anything.
    SurvivorUnfilled,
}

impl Flaw {
    pub const ALL: [Self; 52] = [
        Self::AcknowledgeBeforeMap,
        Self::AcknowledgeByOldAnswers,
        Self::FenceInMemoryOnly,
        Self::FenceBeforeWritesUnderWay,
        Self::NoFence,
        Self::KeepUnfencedMember,
        Self::ServeBeforeReconciling,
        Self::IgnoreReturningTail,
        Self::JoinerOldTailCounts,
        Self::JoinerNotInWriteSet,
        Self::JoinerSettledAdvances,
        Self::SettledToOneThatLeft,
        Self::SettledMovesWithEpochStart,
        Self::NoRestamp,
        Self::InstallAlways,
        Self::ReadDuringUnresolvedWrite,
        Self::ReadAfterLease,
        Self::WriteMakesSegment,
        Self::ForwardedTwice,
        Self::NoSyncAfterReplay,
        Self::SlotFreedUnderRead,
        Self::AnswerBeforeSync,
        Self::TrustTheDisk,
        Self::LostAsZeros,
        Self::DataAsHoles,
        Self::LeaseTwiceAsLong,
        Self::LostWakeUp,
        Self::CrowdNotWoken,
        Self::LeakedSlot,
        Self::AdmitWithoutBound,
        Self::BegunWithoutBound,
        Self::SentWithoutBound,
        Self::FillsWithoutBound,
        Self::FillBytesWithoutBound,
        Self::WritesWithoutBound,
        Self::PagesWithoutBound,
        Self::AnsweredTwice,
        Self::LeakedBytes,
        Self::HeldFailed,
        Self::SourceUnchecked,
        Self::LastInstallSkipped,
        Self::InstallNotWritten,
        Self::TornMerge,
        Self::NeverPromoted,
        Self::AwakeForNothing,
        Self::RemovedBeforeReplaced,
        Self::KeepsNobodyOut,
        Self::CombinesAnyPair,
        Self::CombinesWithNothing,
        Self::ElderUnjudged,
        Self::TailMissesJoiner,
        Self::SurvivorUnfilled,
    ];
}

/// Which rules are switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    #[cfg(feature = "flaws")]
    only: Option<Flaw>,
}

impl Flaws {
    #[cfg(feature = "flaws")]
    pub const NONE: Self = Self { only: None };
    #[cfg(not(feature = "flaws"))]
    pub const NONE: Self = Self {};

    #[cfg(feature = "flaws")]
    pub const fn only(flaw: Flaw) -> Self {
        Self { only: Some(flaw) }
    }

    #[cfg(feature = "flaws")]
    pub fn has(self, flaw: Flaw) -> bool {
        self.only == Some(flaw)
    }

    #[cfg(not(feature = "flaws"))]
    #[inline(always)]
    pub const fn has(self, _flaw: Flaw) -> bool {
        false
    }
}
