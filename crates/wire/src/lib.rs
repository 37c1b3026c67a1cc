#![doc = include_str!("../README.md")]

pub mod assembler;

pub mod codec;
pub mod error;
mod fields;
pub mod header;
pub mod link;
pub mod message;
pub mod replica;
pub mod session;
mod shown;

pub use assembler::{Assembler, LARGE_PAYLOAD_BYTES};
pub use codec::{Encoded, decode, encode};
pub use error::WireError;
pub use header::{AUX_BYTES_MAX, ENTRIES_MAX, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX};
pub use link::{Hello, LinkClass, LinkMessage, PROTOCOL};
pub use message::{Body, Message, RequestId};
pub use replica::{
    EpochStart, FenceReport, FencedSegment, Refusal, ReplicaAnswer, ReplicaDone, ReplicaOp,
    ReplicaRequest, credit_taken,
};
pub use session::{SessionMessage, SessionNumber};
pub use shown::Answered;
