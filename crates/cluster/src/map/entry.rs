//! What the map holds of a node, a disk and a volume.

use crate::command::{NodeInfo, VolumeSpec};
use crate::map::executed::Executed;
use gabion_types::{
    DiskId, Duration, Epoch, Incarnation, MapIndex, Move, NodeId, ScrubAsk, ScrubFound,
    SegmentIndex, SegmentMembers, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub info: NodeInfo,
    /// The process that counts; every other one of this node stops.
    pub incarnation: Incarnation,
    pub state: NodeState,
    /// The entry that brought it into this state.
    pub since: MapIndex,
    /// How long a renewal holds. Fixed when the incarnation registers, so that the node and every
    /// manager mean the same by it, however far behind the node's map is.
    pub lease: Duration,
    /// All its disks are being emptied, and its volumes handed over.
    #[serde(default)]
    pub drain: Option<Drain>,
    pub(crate) past: VecDeque<Incarnation>,
    pub(crate) executed: Executed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    Alive,
    /// Its lease ended; it owns nothing until it revives.
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    pub uuid: [u8; 16],
    pub node: NodeId,
    pub capacity_bytes: u64,
    pub path: String,
    pub state: DiskState,
    /// It is being emptied by itself; see also its node.
    #[serde(default)]
    pub drain: Option<Drain>,
    /// Replicas that this disk is to drop, each until `Dropped` says that it has. None of them is a
    /// member or stale in the map.
    pub(crate) to_drop: BTreeMap<VolumeId, BTreeMap<SegmentIndex, DropMark>>,
}

/// What is being emptied gets no new copy, and its own move elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub why: DrainReason,
    /// Nothing is left on it: it may be taken away.
    pub done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DrainReason {
    /// Somebody wants it so.
    Operator,
    /// So many blocks of the disk were corrupt since its node's process began.
    Suspect { corrupt_blocks: u64 },
}

/// Which replica is dropped: its creation epoch, and the volume's epoch when it was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DropMark {
    pub(crate) creation: Epoch,
    pub(crate) epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiskState {
    InService,
    /// Its node runs without it: not found, not readable, or not this cluster's any more. It is in
    /// service again when a node adds it.
    Missing,
    /// For good: what its cache held is unknown. Formatted anew it is another disk.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    pub id: VolumeId,
    /// `size_bytes` is what guests see now; while it grows, the new size stands in `growth`.
    pub spec: VolumeSpec,
    pub state: VolumeState,
    /// Raised by one on every change of owner or of members.
    pub epoch: Epoch,
    /// The epoch at which the present (or last) owner took over.
    pub owner_epoch: Epoch,
    pub owner: Option<(NodeId, Incarnation)>,
    /// Nobody owns it: the last owner settled everything before it left, or there was none yet.
    /// Owned: the owner took it over like that, and nothing of the volume has changed since.
    pub clean: bool,
    pub segments: Vec<SegmentMembers>,
    pub growth: Option<Growth>,
    /// Nodes whose sessions with this volume were declared void, and the last entry that did it.
    pub voided: BTreeMap<NodeId, MapIndex>,
    /// Its guests were evicted, and stay out until a guest of another node is in.
    #[serde(default)]
    pub barred: BTreeSet<NodeId>,
    #[serde(default)]
    pub scrub: Scrubs,
    /// Copies that are to be on another disk, each until it is gone from the one. Bounded by
    /// `MOVES_MAX`.
    #[serde(default)]
    pub moving: BTreeMap<SegmentIndex, Move>,
}

/// What is to be looked through, and when it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubs {
    /// The number of the last one that was asked for.
    pub last: u64,
    /// The owner is at it, or an owner is to be found for it.
    pub wanted: Option<ScrubAsk>,
    /// The last that were finished. A deep one is a light one, too.
    pub light: Option<Scrubbed>,
    pub deep: Option<Scrubbed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    pub number: u64,
    /// By the wall clock of its owner's node. Units: ms since 1970; zero: it knew none.
    pub at_ms: u64,
    pub found: ScrubFound,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeState {
    /// These disks have not recorded their segments yet (rule 0). Nobody may own it.
    Creating {
        waiting: BTreeSet<DiskId>,
    },
    Ready,
    /// It has no segments any more; disks have replicas of it left to drop. Its name is free.
    Deleting,
}

/// New segments behind the end of a volume, before all disks have recorded them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    pub size_bytes: u64,
    pub segments: Vec<SegmentMembers>,
    pub waiting: BTreeSet<DiskId>,
}

impl DiskEntry {
    /// Stands for disks that nobody found again.
    pub(crate) fn lost(node: NodeId) -> Self {
        let mut entry = Self::new([0; 16], node, 0, "a disk that was not found".to_owned());
        entry.state = DiskState::Failed;
        entry
    }

    pub fn is_in_service(&self) -> bool {
        self.state == DiskState::InService
    }

    pub fn is_failed(&self) -> bool {
        self.state == DiskState::Failed
    }

    /// It has a replica of that segment that it is still to drop.
    pub fn is_to_drop(&self, volume: VolumeId, segment: SegmentIndex) -> bool {
        self.to_drop.get(&volume).is_some_and(|segments| segments.contains_key(&segment))
    }

    /// Replicas that it is still to drop.
    pub fn to_drop(&self) -> usize {
        self.to_drop.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn dropped(&mut self, (volume, segment): (VolumeId, SegmentIndex)) {
        let Some(segments) = self.to_drop.get_mut(&volume) else { return };
        segments.remove(&segment);
        if segments.is_empty() {
            self.to_drop.remove(&volume);
        }
    }
}

impl VolumeEntry {
    /// On every change of owner or of members.
    pub(crate) fn raise_epoch(&mut self) -> Epoch {
        self.epoch = self.epoch.next();
        // Nobody has written yet to one that is in the making.
        self.clean = matches!(self.state, VolumeState::Creating { .. });
        self.epoch
    }

    /// What has moved, or is to be moved no more.
    pub(crate) fn forget_moved(&mut self) {
        let segments = &self.segments;
        self.moving.retain(|index, moving| {
            let place = usize::try_from(index.get()).unwrap_or(usize::MAX);
            segments.get(place).is_some_and(|members| members.is_in_sync(moving.from))
        });
    }

    pub fn is_ready(&self) -> bool {
        self.state == VolumeState::Ready
    }

    /// Also those that it is yet to get.
    pub(crate) fn all_segments(&self) -> impl Iterator<Item = &SegmentMembers> {
        let growth = self.growth.iter().flat_map(|growth| &growth.segments);
        self.segments.iter().chain(growth)
    }

    /// How many segments guests see.
    pub fn segment_count(&self) -> u32 {
        u32::try_from(self.segments.len()).expect("a volume has as many as an index can tell")
    }
}
