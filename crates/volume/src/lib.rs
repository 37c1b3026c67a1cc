#![doc = include_str!("../README.md")]

mod alone;
mod asks;
mod combine;
mod disks;
mod fill;
mod gather;
mod guest;
mod holes;
mod io;
mod members;
mod mend;
mod moves;
mod order;
mod pace;
mod proof;
mod proposals;
mod read;
mod release;
mod room;
mod scrub;
mod segment;
mod settle;
mod tail;
mod takeover;
mod throttle;
mod unsent;
mod volume;
mod window;
mod write;

pub use io::{
    Doubt, Effect, FillStats, Input, MemberFailure, ProposalNumber, ScrubStats, Settings, Ticket,
    VolumeEvent, VolumeStats,
};
pub use volume::{Volume, VolumeConfig};
