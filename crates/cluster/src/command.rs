//! What goes into the consensus log, and what operators ask of the manager.

use crate::map::{DrainReason, Map, Ticket};
use gabion_types::{
    ClusterId, DiskId, Epoch, HoldPolicy, Incarnation, Limits, Move, NodeId, Outcome, OwnerChange,
    RefusedChange, ScrubAsk, ScrubFound, ScrubKind, SegmentIndex, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One entry of the log. The map executes each (incarnation, number) once and answers a repeat with
/// the first outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub from: Proposer,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Proposer {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Grows by one with each new proposal of this incarnation; the same when tried again.
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// The first entry of a cluster; every later one is refused.
    Init {
        cluster: ClusterId,
        limits: Limits,
    },
    /// A process of a node started: the map names this incarnation from now on; what earlier ones
    /// owned is owned by nobody, without a wait (their locks prove that they are dead).
    Register {
        node: NodeInfo,
        incarnation: Incarnation,
    },
    /// By the manager: a node that proved a token gets an id, and the token is used up by it. `info.id`:
    /// the least that the id may be. `at_ms`: what the clock of the leader said. Units: ms since 1970.
    Admit {
        ticket: Ticket,
        at_ms: u64,
        info: NodeInfo,
    },
    /// A formatted disk hangs on a node; the map numbers it. The same uuid again: its place or
    /// capacity changed.
    AddDisk {
        node: NodeId,
        uuid: [u8; 16],
        capacity_bytes: u64,
        path: String,
    },
    /// Its node, which proposes it, runs without this disk.
    DiskMissing {
        disk: DiskId,
    },
    /// The disk failed for good.
    DiskFailed {
        disk: DiskId,
    },
    /// By the manager, or for a suspect one by its node: it is to be emptied, and why; none: it is used
    /// again.
    DrainDisk {
        disk: DiskId,
        why: Option<DrainReason>,
    },
    /// As `DrainDisk`, of all disks of a node; the node also hands over what it owns.
    DrainNode {
        node: NodeId,
        why: Option<DrainReason>,
    },
    /// By the manager: the node is no member any more, and never again; its disks leave the map. Only
    /// one that is drained, or, with `force`, one that is silent and has no last copy.
    RemoveNode {
        node: NodeId,
        force: bool,
    },
    /// By the manager: these copies of a volume are to be on other disks, and no others; none: it is called
    /// off. The owner moves them as it does with those of a disk that is being emptied.
    MoveCopies {
        volume: VolumeId,
        moves: BTreeMap<SegmentIndex, Move>,
    },
    /// Placement was chosen by the manager; checked again here.
    CreateVolume {
        spec: VolumeSpec,
        placement: Vec<Vec<DiskId>>,
    },
    /// This disk has durably recorded all its segments of a volume, or of its growth, that were
    /// made at `creation`.
    Created {
        volume: VolumeId,
        disk: DiskId,
        creation: Epoch,
    },
    ResizeVolume {
        volume: VolumeId,
        size_bytes: u64,
        placement: Vec<Vec<DiskId>>,
    },
    DeleteVolume {
        volume: VolumeId,
        force: bool,
    },
    /// These replicas are gone from this disk, as the map had ordered.
    Dropped {
        disk: DiskId,
        replicas: Vec<(VolumeId, SegmentIndex)>,
    },
    /// Compare and set: nobody owns the volume, and its epoch is `epoch`.
    TakeOver {
        volume: VolumeId,
        epoch: Epoch,
        node: NodeId,
        incarnation: Incarnation,
    },
    /// By the manager, at an operator's word: of these segments every in-sync copy is gone and given up.
    /// With each who goes on with what it has; none: a new copy with nothing.
    AcceptLoss {
        volume: VolumeId,
        survivors: Vec<(SegmentIndex, Option<DiskId>)>,
    },
    /// By the owner only.
    Owner {
        volume: VolumeId,
        change: OwnerChange,
    },
    /// By the owner (checked against the proposer, not against the epoch; raises no epoch): the
    /// sessions that these nodes have with this volume are void. A front that applies it drops
    /// every request of the volume that it holds unanswered and closes those guests' connections,
    /// so that nothing old lands after what newer guests wrote (rule 9). Kept as one map index per
    /// node and volume (`VolumeEntry::voided`).
    VoidSessions {
        volume: VolumeId,
        owner_epoch: Epoch,
        nodes: Vec<NodeId>,
    },
    /// By the manager. Raises no epoch: the sessions of all nodes with the volume are void, as by
    /// `VoidSessions`; not so with `let_back`. The guests of those that are `barred` stay out of an
    /// exclusive one until `LetIn`, or until another list takes the place of this one.
    Evict {
        volume: VolumeId,
        barred: BTreeSet<NodeId>,
        let_back: bool,
    },
    /// By the owner of an exclusive volume, whose guests are those of another node now. Raises no epoch.
    LetIn {
        volume: VolumeId,
        owner_epoch: Epoch,
    },
    /// Raises no epoch. One of the kind, or a deep one, that is under way will do.
    WantScrub {
        volume: VolumeId,
        kind: ScrubKind,
    },
    /// By the owner. Raises no epoch.
    Scrubbed {
        volume: VolumeId,
        owner_epoch: Epoch,
        ask: ScrubAsk,
        /// By the wall clock. Units: ms since 1970; zero: not known.
        at_ms: u64,
        found: ScrubFound,
    },
    /// By the manager of a new consensus leader, before it answers a renewal: from here on an
    /// `Expire` of an earlier term is refused. Else one that was under way could end a lease that
    /// the new leader has renewed.
    Lead {
        term: u64,
    },
    /// By the manager: the lease ended by its clock. What the incarnation owned is owned by nobody,
    /// and the node is silent until it revives. `term`: under which the manager leads.
    Expire {
        node: NodeId,
        incarnation: Incarnation,
        term: u64,
    },
    /// By the node itself, once it has seen in its own map that it is silent. A silent node's lease
    /// is not renewed before: so a renewed lease never meets a map in which it still owns
    /// something.
    Revive {
        node: NodeId,
        incarnation: Incarnation,
    },
    SetSetting {
        name: String,
        value: String,
    },
}

impl Change {
    /// The nodes whose sessions with a volume are void by it.
    pub fn voids(&self, map: &Map) -> Option<(VolumeId, Vec<NodeId>)> {
        if let Self::VoidSessions { volume, nodes, .. } = self {
            return Some((*volume, nodes.clone()));
        }
        let Self::Evict { volume, let_back: false, .. } = self else { return None };
        Some((*volume, map.nodes().keys().copied().collect()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: NodeId,
    pub name: String,
    /// `host:port` where peers, the API and NBD clients find it.
    pub peer: String,
    pub api: String,
    pub nbd: String,
    pub http: String,
    /// What fails together: a rack, a room. Copies go to different zones where they can. Empty: a zone
    /// of its own.
    #[serde(default)]
    pub zone: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub name: String,
    pub size_bytes: u64,
    pub rf: u8,
    pub hold: HoldPolicy,
    pub exclusive: bool,
}

/// What an operator asks of the manager; only the consensus leader's node takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    CreateVolume {
        spec: VolumeSpec,
        /// The node that was asked: one copy of all goes there where there is room, so that a
        /// guest on it reads its own disk.
        near: Option<NodeId>,
    },
    ResizeVolume {
        name: String,
        size_bytes: u64,
    },
    DeleteVolume {
        name: String,
        force: bool,
    },
    /// Ask the present owner to release it and the named node to take it.
    MoveVolume {
        name: String,
        to: NodeId,
    },
    SetSetting {
        name: String,
        value: String,
    },
    /// Answered when the map has it; the copies move by themselves. `cancel`: it is used again.
    DrainDisk {
        disk: DiskId,
        cancel: bool,
    },
    DrainNode {
        node: NodeId,
        cancel: bool,
    },
    RemoveNode {
        node: NodeId,
        force: bool,
    },
    /// A node that proved a token; answered when it has an id. As `Change::Admit`.
    AdmitNode {
        ticket: Ticket,
        at_ms: u64,
        info: NodeInfo,
    },
    /// Of all nodes; those of `barred` stay out of an exclusive volume. `let_back`: nobody is evicted.
    EvictGuests {
        name: String,
        barred: BTreeSet<NodeId>,
        let_back: bool,
    },
    /// Of these segments, whose in-sync copies are all gone: what only those have is given up. With who goes
    /// on, as the operator was told (`Map::stranded`).
    AcceptLoss {
        name: String,
        survivors: Vec<(SegmentIndex, Option<DiskId>)>,
    },
    /// Answered when it is asked for; it goes on by itself.
    ScrubVolume {
        name: String,
        kind: ScrubKind,
    },
}

/// Answered when the whole of it is committed (a volume: when it is ready to be owned).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    Done,
    Created { volume: VolumeId },
    Refused(AdminError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AdminError {
    #[error("this node does not lead the cluster; node {leader:?} does")]
    NotLeader { leader: Option<NodeId> },
    #[error(
        "a volume's name has 1 to 255 characters out of A-Z a-z 0-9 . _ - and begins with a letter \
         or digit"
    )]
    BadName,
    #[error("a volume of that name exists already")]
    NameTaken,
    #[error("there is no volume of that name; see `gabion volume list`")]
    NoVolume,
    #[error("a volume's size is a multiple of 4096 bytes, above zero and at most {most} bytes")]
    BadSize { most: u64 },
    #[error("a volume only grows: it has {size_bytes} bytes already")]
    Shrinks { size_bytes: u64 },
    #[error("{wanted} copies need {wanted} nodes with a disk in service; there are {nodes}")]
    TooFewNodes { wanted: u8, nodes: u32 },
    #[error("rf is 1, 2 or 3")]
    BadRf,
    #[error(
        "{wanted_bytes} bytes with {rf} copies do not fit: the disks have room for {free_bytes} \
         more; add a disk or delete a volume"
    )]
    NoRoom { wanted_bytes: u64, free_bytes: u64, rf: u8 },
    #[error(
        "the end of the volume is on disk {disk}, which has room for {free_bytes} bytes more; \
         delete a volume, or raise overcommit.ratio"
    )]
    NoRoomAtEnd { disk: DiskId, free_bytes: u64 },
    #[error(
        "no segment of the volume has lost what would have to be given up, or that was accepted already; there is \
         nothing to accept"
    )]
    NothingStranded,
    #[error("what is left of it has changed meanwhile; look again with `gabion volume recover`")]
    RemainsChanged,
    #[error("guests are attached; detach them, or use --force")]
    Attached,
    #[error("no setting of that name; see `gabion settings list`")]
    NoSetting,
    #[error("the value {value:?} does not fit the setting: {wants}")]
    BadValue { value: String, wants: String },
    #[error("there is no such node")]
    NoNode,
    #[error(
        "it is not drained: {copies} copies are on its disks, and it owns {volumes} volumes; drain it first, \
         or, if it is dead for good, use --force"
    )]
    NotDrained { copies: u64, volumes: u64 },
    #[error(
        "it is alive, and --force is for one that is dead for good; drain it, and remove it then"
    )]
    NodeLives,
    #[error(
        "the last copy of {segments} segments is there (of volumes {}): without it they are lost; bring \
         it back, or accept that with `gabion volume recover`", volumes.join(", ")
    )]
    LastCopies { segments: u64, volumes: Vec<String> },
    #[error("it leads the cluster now; stop it, and remove it when another node leads")]
    NodeLeads,
    #[error(
        "the token was used already, by node {node}; each lets one node in: make another with `gabion \
         cluster token` on a member", node = .node.get()
    )]
    TokenUsed { node: NodeId },
    #[error("the token has expired; make another with `gabion cluster token` on a member")]
    TokenExpired,
    #[error("a node of that name is in the cluster already; give the new one another `name`")]
    NodeNameTaken,
    #[error(
        "the cluster takes no more nodes now: it has {nodes} of at most {most}, and {tokens} tokens were \
         used of late; try again when those have expired, or remove a node"
    )]
    TooManyNodes { nodes: usize, most: usize, tokens: usize },
    #[error("that node was removed, and is never a member again; make another token for a new one")]
    NodeRemoved,
    #[error("there is no such disk")]
    NoDisk,
    #[error("the disk failed for good: what it held is copied elsewhere already, or on its way")]
    DiskFailed,
    #[error(
        "its copies have nowhere to go: {wanted} copies need {wanted} nodes with a disk that stays in \
         service, and {nodes} would be left"
    )]
    TooFewNodesLeft { wanted: u8, nodes: u32 },
    #[error(
        "its copies have nowhere to go: {left} of {copies} find no room on the other disks, which have \
         {free_bytes} bytes left to promise"
    )]
    NoRoomLeft { left: u32, copies: u32, free_bytes: u64 },
    #[error("the cluster has no majority now; try again when more nodes are up")]
    NoMajority,
    #[error(
        "the disks {waiting:?} have not recorded it yet; it goes on by itself, \
         see `gabion volume list`"
    )]
    StillMaking { waiting: Vec<DiskId> },
    #[error("the owner did not let it go in time; it stays where it is, try again")]
    NotReleased,
    #[error("node {node} does not answer now; see `gabion status`")]
    NodeAway { node: NodeId },
    #[error("too many requests of operators at once; try again")]
    TooMany,
    #[error("refused by the cluster map: {0}")]
    Map(RefusedChange),
}

/// What applying one command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Outcome,
    /// The proposer's number was executed before: nothing changed now.
    pub repeat: bool,
}
