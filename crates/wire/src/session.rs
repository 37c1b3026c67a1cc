//! Forwarded guests' requests (rule 9): a front node and the owner of a volume.

use bytes::Bytes;
use gabion_types::{Epoch, GuestOp, GuestResult, MapIndex, NodeId, VolumeId};

/// Numbers the requests of one session; grows by one. A request is executed at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNumber(pub u64);

/// Shape: a session is named by the link's front node and incarnation, the volume and the owner
/// epoch. All go over the front's or the owner's `Data` link, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionMessage {
    /// Owner to each live node before it serves: a nudge, over the owner's own link. Front to
    /// owner, over the front's link, which carries the session from then on both ways: (re)start
    /// it. `applied`: the sender's map index; a front whose session was voided must have seen that.
    Open {
        volume: VolumeId,
        owner_epoch: Epoch,
        applied: MapIndex,
    },
    /// Owner to front: what it has of this session's numbers after it threw away the old link's
    /// rest: all below `next` that aren't in `missing`.
    Have {
        volume: VolumeId,
        owner_epoch: Epoch,
        next: SessionNumber,
        missing: Vec<SessionNumber>,
    },
    /// Front to owner: everything that it held unanswered has been sent.
    Opened {
        volume: VolumeId,
        owner_epoch: Epoch,
    },
    /// Front to owner. `guest` names the connection, so that a hang-up can be told of it.
    Request {
        volume: VolumeId,
        owner_epoch: Epoch,
        number: SessionNumber,
        guest: u64,
        op: GuestOp,
    },
    /// Owner to front. Answered numbers are forgotten by both.
    Response {
        volume: VolumeId,
        owner_epoch: Epoch,
        number: SessionNumber,
        result: GuestResult,
    },
    /// Front to owner: this guest is gone; what has no place in the order yet is dropped.
    HungUp {
        volume: VolumeId,
        owner_epoch: Epoch,
        guest: u64,
    },
    /// Front to owner: a guest shakes hands; answered by `Attached` when every other session has
    /// dropped what gone guests had asked and the owner has all that they had sent.
    Attach {
        volume: VolumeId,
        owner_epoch: Epoch,
        guest: u64,
    },
    Attached {
        volume: VolumeId,
        owner_epoch: Epoch,
        guest: u64,
    },
    /// Owner to front, instead of `Attached`: the guests of that node have the volume to themselves.
    KeptOut {
        volume: VolumeId,
        owner_epoch: Epoch,
        guest: u64,
        by: NodeId,
    },
    /// Owner to every other session on an `Attach`; answered by `Flushed`.
    Flush {
        volume: VolumeId,
        owner_epoch: Epoch,
        number: u64,
    },
    /// `guests`: some of the front's own are attached.
    Flushed {
        volume: VolumeId,
        owner_epoch: Epoch,
        number: u64,
        guests: bool,
    },
    /// Either: not the owner of that epoch (any more), or the session is void.
    Closed {
        volume: VolumeId,
        owner_epoch: Epoch,
    },
}

impl SessionMessage {
    pub fn volume(&self) -> VolumeId {
        match self {
            Self::Open { volume, .. }
            | Self::Have { volume, .. }
            | Self::Opened { volume, .. }
            | Self::Request { volume, .. }
            | Self::Response { volume, .. }
            | Self::HungUp { volume, .. }
            | Self::Attach { volume, .. }
            | Self::Attached { volume, .. }
            | Self::KeptOut { volume, .. }
            | Self::Flush { volume, .. }
            | Self::Flushed { volume, .. }
            | Self::Closed { volume, .. } => *volume,
        }
    }

    /// The payload that rides behind, if any.
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Request { op: GuestOp::Write { data, .. }, .. } => Some(data),
            Self::Response { result: Ok(gabion_types::GuestData::Read(data)), .. } => Some(data),
            Self::Request { .. }
            | Self::Response { .. }
            | Self::Open { .. }
            | Self::Have { .. }
            | Self::Opened { .. }
            | Self::HungUp { .. }
            | Self::Attach { .. }
            | Self::Attached { .. }
            | Self::KeptOut { .. }
            | Self::Flush { .. }
            | Self::Flushed { .. }
            | Self::Closed { .. } => None,
        }
    }
}
