#![doc = include_str!("../README.md")]

pub mod caught;
pub mod cluster;
pub mod consensus;
pub mod content;
pub mod disk;
pub mod drill;
mod formatting;
pub mod invariants;
pub mod list;
pub mod many;
pub mod nbd_guest;
pub mod net;
pub mod oracle;
pub mod report;
pub mod scale;
pub mod shrink;
pub mod solo;
pub mod workload;
pub mod world;

pub use report::{Options, Report};
