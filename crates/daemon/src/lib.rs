#![doc = include_str!("../README.md")]

pub mod consensus;
pub mod control;
pub mod data;
pub mod drills;
mod home;
pub mod http;
pub mod identity;
pub mod init;
pub mod recover;
mod run;
mod service;
pub mod settings;
#[cfg(test)]
mod test_ports;
pub mod token;

pub use home::HomeError;
pub use run::{RunError, run, run_with};
