//! The data plane of a node: one thread with an [`gabion_engine::Engine`] and a
//! [`gabion_node::Node`].
//!
//! The control plane puts inputs in by [`DataSender`] (bounded; full is handed back), gets by
//! [`DataHandle::effects`] what is for it (proposals, answers of admin requests and of guests that
//! came by gRPC, events), and reads [`Published`].
//!
//! Guest ids: NBD guests, made here, are odd; those of other front ends, made by the control plane,
//! are even. Link ids: accepted ones, made here, are odd; dialled ones, made by the node, are even.

mod address;
mod config;
mod guests;
mod handle;
mod links;
mod locate;
mod new_disk;
mod outbox;
mod plane;
mod publish;
#[cfg(test)]
mod tests;

pub use config::{DataConfig, DataError, listen_hint};
pub use handle::{Bound, DataHandle, DataPlane, DataSender, Ended, Full};
pub use locate::{BlockAddress, LocatedCopy};
pub use new_disk::{NewDiskError, format_device, make_disk_file};
pub use publish::Published;
