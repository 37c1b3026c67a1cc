//! The control plane's gRPC: what operators, guests and other nodes ask of this node.

pub mod ask;
mod breakers;
mod clients;
pub mod cluster;
mod drain;
pub mod errors;
mod event_file;
pub mod event_log;
pub mod events;
mod explain;
pub mod guard;
pub mod guest;
pub mod history;
pub mod hub;
pub mod internal;
mod join;
pub mod known;
pub mod local;
pub mod new_disks;
pub mod observer;
pub mod peers;
pub mod proof;
pub mod safety;
pub mod server;
pub mod show;
mod stranded;
pub mod volumes;
