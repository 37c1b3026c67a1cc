#![doc = include_str!("../README.md")]

pub mod client;
pub mod error;
pub mod io;
pub mod view;

pub use client::{Client, ClientError};
pub use io::{IoClient, IoClientError, IoState};

/// Messages, clients and servers of `proto/gabion/v1`.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, clippy::wildcard_enum_match_arm, missing_docs)]
    tonic::include_proto!("gabion.v1");
}

/// The compiled descriptors of `proto/`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
