//! Who holds a segment: the part of the cluster map that the owner of a volume works by.

use crate::guest::HoldPolicy;
use crate::ids::{DiskId, NodeId, SegmentIndex, VolumeId};
use crate::scrub::ScrubAsk;
use crate::version::{Epoch, Seq};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A replica that takes all new writes while it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    pub disk: DiskId,
    /// J: the epoch that the volume was raised to when this replica began to join.
    pub joined: Epoch,
    /// If it was a member before: the epoch at which it left. Decides, with its frozen settled seq,
    /// what is compared.
    pub left: Option<Epoch>,
    /// Nothing that it holds from before is trusted: every block is compared.
    pub compare_all: bool,
    /// It stands in for a replica whose node is only silent: filling waits for `rebuild_wait`.
    pub fill_waits: bool,
}

/// A replica that left. It never serves; it may come back by joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    pub disk: DiskId,
    /// The epoch that the volume was raised to when it left.
    pub left: Epoch,
    /// It was rolled back, lied or never finished joining: every block is compared when it returns.
    pub compare_all: bool,
}

/// A copy that is to be on another disk: a new one is filled there, and then this one leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: DiskId,
    pub to: DiskId,
}

/// The replicas of one segment. `in_sync` is never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentMembers {
    /// The epoch at which the segment was made.
    pub creation: Epoch,
    pub in_sync: Vec<DiskId>,
    pub joining: Vec<Joining>,
    pub stale: Vec<Stale>,
}

impl SegmentMembers {
    /// In-sync and joining replicas: an acknowledgement needs all of them.
    pub fn write_set(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.in_sync.iter().copied().chain(self.joining.iter().map(|joining| joining.disk))
    }

    pub fn is_in_sync(&self, disk: DiskId) -> bool {
        self.in_sync.contains(&disk)
    }

    pub fn joining(&self, disk: DiskId) -> Option<&Joining> {
        self.joining.iter().find(|joining| joining.disk == disk)
    }

    pub fn stale(&self, disk: DiskId) -> Option<&Stale> {
        self.stale.iter().find(|stale| stale.disk == disk)
    }
}

/// A replica as its disk tells of it, for whoever has lost the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundReplica {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub creation: Epoch,
    /// It began to join and was not promoted.
    pub joining: bool,
    /// Blocks may be missing or old.
    pub damaged: bool,
    /// The newest epoch of what it took part in as a member: its making, takeovers, writes.
    pub last_epoch: Epoch,
    pub highest: Seq,
}

/// What the owner of a volume is told by the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeView {
    pub volume: VolumeId,
    pub size_bytes: u64,
    /// Copies wanted.
    pub rf: u8,
    pub hold: HoldPolicy,
    pub epoch: Epoch,
    /// The epoch at which the present owner took over; replicas fence by it.
    pub owner_epoch: Epoch,
    /// The last owner left after everything was settled: there is no tail to reconcile.
    pub clean: bool,
    /// By segment index; covers the whole volume.
    pub segments: Vec<SegmentMembers>,
    /// Which node each disk that is named above hangs on.
    pub homes: BTreeMap<DiskId, NodeId>,
    /// Disks of those named above that are being emptied: what they hold is to be moved.
    pub draining: BTreeSet<DiskId>,
    /// Single copies that are to be moved.
    pub moving: BTreeMap<SegmentIndex, Move>,
    /// To be done by the owner.
    pub scrub: Option<ScrubAsk>,
}
