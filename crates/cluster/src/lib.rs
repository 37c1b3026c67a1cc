#![doc = include_str!("../README.md")]

pub mod command;
pub mod event;
pub mod level;
pub mod manager;
pub mod map;
pub mod placement;
pub mod safety;
pub mod salvage;
pub mod settings;
pub mod voters;

pub use command::{
    AdminError, AdminReply, AdminRequest, Applied, Change, Command, NodeInfo, Proposer, VolumeSpec,
};
pub use event::{DrainOf, DrainStep, Fact, MapEvent};
pub use manager::Manager;
pub use map::{
    CreateOrder, DiskEntry, DiskState, Drain, DrainReason, DropOrder, Growth, Map, NodeEntry,
    NodeState, Remains, Scrubbed, Scrubs, Stranded, Ticket, VolumeEntry, VolumeState,
};
pub use settings::{Setting, Settings};
