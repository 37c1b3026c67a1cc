//! Parts of a node against each other, without a cluster.

#![allow(clippy::wildcard_enum_match_arm)] // a test names what it looks for

mod exclusive;
mod incarnation;
mod links;
mod sessions;
