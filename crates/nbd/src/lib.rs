#![doc = include_str!("../README.md")]

mod command;
mod connection;
mod handshake;
pub mod io;
pub mod limits;
mod open;
mod options;
mod parts;
mod proto;
mod refused;
mod reply;
mod serving;

pub use connection::Connection;
pub use io::{Effect, Export, Input, Tag, Want};
pub use limits::NbdLimits;
