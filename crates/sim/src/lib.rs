#![doc = include_str!("../README.md")]

pub mod consensus;
pub mod content;
pub mod disk;
pub mod net;
pub mod oracle;
pub mod world;
