#![doc = include_str!("../README.md")]

pub mod command;
pub mod exported;
pub mod faulty;
pub mod fixture;
pub mod machines;
pub mod mounted;
pub mod net;
pub mod ports;
pub mod powercut;

pub use command::{Ran, Started, left_out, needs, rounds, run};
pub use fixture::{Cluster, Shape};
pub use machines::Machines;
pub use mounted::Mounted;
pub use net::Net;
