//! What the owner of a volume proposes to the cluster map.

use crate::ids::{DiskId, SegmentIndex};
use crate::version::{Epoch, Seq};
use serde::{Deserialize, Serialize};

/// A change of one volume's members or ownership, proposed by its owner. `epoch` is the volume's
/// epoch under which it was made: the map refuses it at any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerChange {
    /// Rule 2. Takes replicas out of `in_sync` or `joining`; all segments of a failed disk in one
    /// entry. With `add_joiner` the map picks another disk for each segment that falls below rf and
    /// makes it a joiner in the same entry (rule 8), where there is one with room.
    RemoveMembers { epoch: Epoch, removals: Vec<Removal>, add_joiner: bool },
    /// Rule 7. Each becomes a joiner with J = the new epoch. Without a disk, the map picks one.
    AddJoining { epoch: Epoch, joins: Vec<(SegmentIndex, Option<DiskId>)> },
    /// Each is in-sync from now on. Refused for one whose J is another.
    Promote { epoch: Epoch, promotes: Vec<Promotion> },
    /// Rule 8, where every in-sync replica is gone: each joiner has been filled from the stale replica that
    /// left when it joined, and is in-sync from now on, alone.
    Combine { epoch: Epoch, combines: Vec<Combining> },
    /// Drops stale replicas that are not needed any more: their disks may forget them.
    Forget { epoch: Epoch, stale: Vec<(SegmentIndex, DiskId)> },
    /// Nobody owns it from now on. Clean: everything is settled on every member.
    Release { epoch: Epoch, clean: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub segment: SegmentIndex,
    pub disk: DiskId,
    /// It was rolled back or lied: every block is compared when it returns.
    pub compare_all: bool,
    /// It may be back soon (its node is only silent): filling of its stand-in waits.
    pub may_return: bool,
    /// Another copy has its place: refused where fewer in-sync copies than wanted would be left.
    #[serde(default)]
    pub replaced: bool,
    /// What becomes of `Stale::reach`.
    #[serde(default)]
    pub reach: Option<Seq>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Combining {
    pub segment: SegmentIndex,
    pub joiner: DiskId,
    pub joined: Epoch,
    pub elder: DiskId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    pub segment: SegmentIndex,
    pub disk: DiskId,
    pub joined: Epoch,
}

/// What became of a proposal, known from the committed log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Refused(RefusedChange),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefusedChange {
    #[error("proposed under another epoch than the volume's")]
    OtherEpoch,
    #[error("the proposer does not own the volume")]
    NotOwner,
    #[error("the last in-sync replica of a segment cannot be removed")]
    LastInSync,
    #[error("fewer in-sync copies than wanted would be left")]
    TooFewCopies,
    #[error("an in-sync replica of the segment is not gone")]
    NotGone,
    #[error("no disk has room for the segment on a node without a copy")]
    NoRoom,
    #[error("no such volume, segment, disk, node or replica")]
    NotFound,
    #[error("the name is taken")]
    NameTaken,
    #[error("the request breaks a limit or makes no sense")]
    Invalid,
    #[error("the volume is owned, or still being made or deleted")]
    Busy,
    #[error("guests are attached")]
    Attached,
    #[error("the incarnation is not the one that the map names")]
    OtherIncarnation,
    #[error("it holds copies, or owns volumes")]
    InUse,
    #[error("the node was removed from the cluster")]
    Removed,
}
