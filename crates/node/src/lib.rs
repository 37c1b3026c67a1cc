#![doc = include_str!("../README.md")]

mod committed;
mod disks;
mod flow;
mod fronts;
mod guests;
mod io;
mod lease;
mod links;
mod node;
mod owners;
mod proof;
mod proposals;
mod route;
mod sessions;
mod settings;
mod shares;
mod stats;
mod stop;
#[cfg(test)]
mod tests;

pub use disks::{DiskCondition, DiskTrouble};
pub use flow::message_bytes;
pub use guests::ClientStats;
pub use io::{
    DiskSlot, Effect, GuestId, Input, LinkId, NodeConfig, NodeDisk, NodeEvent, OpenError,
    OpenedVolume, WantedPage,
};
pub use links::PeerTrouble;
pub use node::Node;
pub use settings::NodeSettings;
pub use stats::{DiskStats, NodeStats, PeerStats};
