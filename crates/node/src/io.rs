//! What goes into a node and what comes out: the border that the daemon and the simulator share.

use bytes::Bytes;
use gabion_cluster::{AdminReply, AdminRequest, Command, Map, NodeInfo};
use gabion_store::OutOfService;
use gabion_types::{
    BlockIndex, ClusterId, DiskDone, DiskId, DiskOp, GuestOp, GuestResult, Incarnation, MapIndex,
    NodeId, SegmentIndex, VolumeId,
};
use gabion_wire::{LinkClass, Message};

/// A connection to or from a peer, never used twice. One that this node dials gets an even number
/// from the node; an accepted one gets an odd number from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A guest's connection; chosen by the driver, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub u64);

/// A disk of this node, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskSlot(pub u32);

/// A block whose map page somebody wants to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedPage {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub block: BlockIndex,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Disk {
        disk: DiskSlot,
        done: DiskDone,
    },
    /// One disk more, in the next slot.
    DiskAdded {
        disk: NodeDisk,
    },
    /// Somebody looks at where a block lies, and its map page is not in memory.
    WantPage {
        disk: DiskSlot,
        wanted: WantedPage,
    },

    /// A link that this node dialled is there.
    Connected {
        link: LinkId,
    },
    /// It could not be dialled, or it is gone. No more comes of it.
    LinkClosed {
        link: LinkId,
    },
    /// Somebody dialled this node.
    Accepted {
        link: LinkId,
    },
    Peer {
        link: LinkId,
        message: Message,
    },
    /// Bytes came in that are not a whole message yet: a sign of life.
    PeerBytes {
        link: LinkId,
    },

    /// So many bytes of what the link was given have not left this machine. Comes whenever
    /// `Node::link_report_bytes` more have left.
    LinkBacklog {
        link: LinkId,
        unsent: u64,
    },

    /// An NBD client connected; its bytes come by `NbdBytes`, exactly as many as asked for.
    NbdAccepted {
        guest: GuestId,
    },
    NbdBytes {
        guest: GuestId,
        bytes: Bytes,
    },
    /// A guest by another front end (gRPC, the simulator) wants a volume.
    GuestOpen {
        guest: GuestId,
        volume: String,
    },
    Guest {
        guest: GuestId,
        tag: u64,
        op: GuestOp,
    },
    /// It hung up (or its socket broke): of either kind.
    GuestClosed {
        guest: GuestId,
    },

    /// An operator wants its connection closed.
    EvictGuest {
        guest: GuestId,
    },

    /// A committed entry of the consensus log; each once, in order.
    Committed {
        index: MapIndex,
        command: Command,
    },
    /// The log was compacted: the whole map as of `index`.
    Restored {
        index: MapIndex,
        map: Box<Map>,
    },
    /// Who leads the consensus, as far as this node knows.
    Leader {
        term: u64,
        leader: Option<NodeId>,
    },
    /// This node's leadership was confirmed with a majority after `ConfirmLeader` was asked.
    LeaderConfirmed {
        number: u64,
        term: u64,
    },
    /// An operator's request; answered by `AdminDone`.
    Admin {
        number: u64,
        request: AdminRequest,
    },

    /// What the wall clock says now: for what happens so seldom that no process lives as long.
    /// Units: ms since 1970.
    WallClock {
        unix_ms: u64,
    },

    /// Drain guests, release volumes clean, and stay for the volumes of others.
    Quiesce,
    /// The same, then checkpoint the disks, then `Stopped`.
    Stop,
    Tick,
    /// One look brought nothing more: what the disks were asked becomes durable together. A driver says
    /// it after each input, or once after several that it found at the same moment.
    TurnEnds,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Disk {
        disk: DiskSlot,
        op: DiskOp,
    },

    /// Dial a peer (its address stands in the map); answered by `Connected` or `LinkClosed`.
    Connect {
        link: LinkId,
        node: NodeId,
        class: LinkClass,
    },
    Send {
        link: LinkId,
        message: Message,
    },
    CloseLink {
        link: LinkId,
    },

    /// Read exactly so many bytes next and deliver them by `NbdBytes`. One at a time.
    NbdWant {
        guest: GuestId,
        bytes: usize,
    },
    NbdSend {
        guest: GuestId,
        pieces: Vec<Bytes>,
    },
    NbdClose {
        guest: GuestId,
    },

    GuestOpened {
        guest: GuestId,
        result: Result<OpenedVolume, OpenError>,
    },
    GuestDone {
        guest: GuestId,
        tag: u64,
        result: GuestResult,
    },
    /// A guest of another front end may ask for more, or shall ask for nothing more for now: its
    /// volume's share of the buffers is full. It may at first.
    GuestRoom {
        guest: GuestId,
        room: bool,
    },
    /// The volume is gone or the node stops: nothing more is served on it.
    GuestEnded {
        guest: GuestId,
    },

    /// Into the consensus log, by way of the leader. May get lost; the node proposes it again.
    Propose {
        command: Command,
    },
    ConfirmLeader {
        number: u64,
        term: u64,
    },
    AdminDone {
        number: u64,
        reply: AdminReply,
    },

    Event(NodeEvent),
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedVolume {
    pub volume: VolumeId,
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("there is no volume of that name; see `gabion volume list`")]
    NotFound,
    #[error("the volume is still being made, or being deleted")]
    NotReady,
    #[error("this node has no majority to ask and does not know of that volume yet; try again")]
    NoMajority,
    #[error(
        "guests of node {by} have the volume to themselves (--attach exclusive); stop them, or see \
         `gabion volume evict`", by = .0.get()
    )]
    KeptOut(NodeId),
    #[error(
        "this node's guests were evicted and stay out until one of another node is in; see \
         `gabion volume evict --let-back`"
    )]
    Barred,
    #[error("this node is stopping; connect to another")]
    Stopping,
    #[error("too many guests on this node")]
    TooMany,
}

/// What a node is told when it is made.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub secret: [u8; 32],
    pub seed: u64,
    pub settings: crate::NodeSettings,
    /// The node's name and addresses, for the map.
    pub info: NodeInfo,
    /// By place.
    pub disks: Vec<NodeDisk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDisk {
    pub capacity_bytes: u64,
    pub path: String,
}

/// For the log and `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    PeerUp {
        node: NodeId,
    },
    PeerDown {
        node: NodeId,
    },
    LinkRefused {
        node: Option<NodeId>,
        reason: gabion_wire::link::LinkRefusal,
    },
    DiskOpened {
        disk: DiskSlot,
        id: Option<DiskId>,
        map: MapIndex,
    },
    DiskOut {
        disk: DiskSlot,
        why: OutOfService,
    },
    Store {
        disk: DiskSlot,
        event: gabion_store::StoreEvent,
    },
    Volume {
        volume: VolumeId,
        event: gabion_volume::VolumeEvent,
    },
    Owning {
        volume: VolumeId,
    },
    OwningEnded {
        volume: VolumeId,
    },
    /// The map names another incarnation of this node: this process must stop.
    Superseded {
        by: Incarnation,
    },
    /// This node is no member any more, and never again: this process must stop.
    Removed,
}
