#![doc = include_str!("../README.md")]

pub mod arena;
mod buddy;
pub mod clock;
mod conn;
pub mod disk;
pub mod disk_file;
mod driver;
pub mod engine;
mod op;
mod pool;
mod portable;
pub mod setup;
mod sockets;
mod sys;
mod uring;
pub mod waker;

pub use arena::{AlignedBuf, Arena};
pub use clock::Clock;
pub use disk::{DiskHandle, DiskInfo, DiskOpenError};
pub use disk_file::{DiskFileError, create_disk_file, create_formatted_disk_file, write_format};
pub use engine::{Engine, Event};
pub use setup::{EngineConfig, EngineError, IoMode, Setup, Warning};
pub use sockets::{ConnHandle, HangUp, ListenerHandle};
pub use sys::Caller;
pub use waker::Waker;

#[cfg(test)]
mod on_both;
