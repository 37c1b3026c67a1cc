//! What happened to the map, for `gabion events`.

use crate::map::DrainReason;
use gabion_types::{DiskId, Epoch, Incarnation, MapIndex, NodeId, ScrubFound, ScrubKind, VolumeId};
use serde::{Deserialize, Serialize};

/// Events that the map remembers; the oldest go first.
pub const EVENTS_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEvent {
    /// The entry of the log that did it.
    pub index: MapIndex,
    pub what: Fact,
}

/// What is being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainOf {
    Disk(DiskId),
    Node(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainStep {
    Begun {
        why: DrainReason,
    },
    /// It is used again.
    Cancelled,
    /// Nothing is left on it.
    Done,
}

/// Plain facts; `segments` counts how many segments of the volume one entry changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    Initialized,
    /// The map was made anew from what the disks say.
    Recovered {
        disks: u32,
        volumes: u32,
        /// Segments that nobody can serve.
        held: u32,
    },
    /// By an operator's word, the cluster goes on without these voters, though they were a majority.
    MajorityForced {
        lost: Vec<NodeId>,
    },
    /// A token let it in.
    NodeAdmitted {
        node: NodeId,
        name: String,
    },
    NodeRegistered {
        node: NodeId,
        incarnation: Incarnation,
    },
    NodeSilent {
        node: NodeId,
    },
    NodeRevived {
        node: NodeId,
    },
    /// This node manages from now on.
    Led {
        node: NodeId,
        term: u64,
    },
    DiskAdded {
        disk: DiskId,
        node: NodeId,
    },
    DiskMoved {
        disk: DiskId,
        node: NodeId,
    },
    DiskMissing {
        disk: DiskId,
    },
    DiskFailed {
        disk: DiskId,
    },
    NodeRemoved {
        node: NodeId,
        disks: u32,
    },
    Drain {
        of: DrainOf,
        step: DrainStep,
    },
    /// So many copies are to be on other disks, so that the disks are used evenly; zero: called off.
    Levelling {
        volume: VolumeId,
        copies: u32,
    },
    VolumeCreated {
        volume: VolumeId,
        name: String,
    },
    VolumeReady {
        volume: VolumeId,
    },
    VolumeResized {
        volume: VolumeId,
        size_bytes: u64,
    },
    VolumeDeleted {
        volume: VolumeId,
        name: String,
    },
    TakenOver {
        volume: VolumeId,
        node: NodeId,
        epoch: Epoch,
    },
    Released {
        volume: VolumeId,
        clean: bool,
    },
    /// Its owner's lease ended, or its owner's process was replaced.
    Disowned {
        volume: VolumeId,
        node: NodeId,
    },
    MemberRemoved {
        volume: VolumeId,
        disk: DiskId,
        segments: u32,
    },
    JoinerAdded {
        volume: VolumeId,
        disk: DiskId,
        segments: u32,
    },
    Promoted {
        volume: VolumeId,
        disk: DiskId,
        segments: u32,
    },
    /// No in-sync copy was there any more: what that one has, which joined when the elder left, and what the
    /// elder has from before are the segments now, on `disk`.
    Combined {
        volume: VolumeId,
        disk: DiskId,
        elder: DiskId,
        segments: u32,
    },
    /// By an operator's word these segments go on with what this disk has of them; those that had all are
    /// gone. `whole`: all as it was when that copy left; else what it does not have is lost.
    LossAccepted {
        volume: VolumeId,
        disk: DiskId,
        whole: bool,
        segments: u32,
    },
    Forgotten {
        volume: VolumeId,
        disk: DiskId,
        segments: u32,
    },
    /// All guests were closed.
    Evicted {
        volume: VolumeId,
    },
    Scrubbed {
        volume: VolumeId,
        kind: ScrubKind,
        found: ScrubFound,
    },
    SettingChanged {
        name: String,
        value: String,
    },
}
