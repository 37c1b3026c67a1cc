#![doc = include_str!("../README.md")]

pub mod link;
pub mod message;
pub mod replica;
pub mod session;

pub use link::{Hello, LinkClass, LinkMessage, PROTOCOL};
pub use message::{Body, Message, RequestId};
pub use replica::{
    EpochStart, FenceReport, FencedSegment, Refusal, ReplicaAnswer, ReplicaDone, ReplicaOp,
    ReplicaRequest,
};
pub use session::{SessionMessage, SessionNumber};
