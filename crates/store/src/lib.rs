#![doc = include_str!("../README.md")]

mod account;
mod apply;
mod checkpoint;
mod commit;
pub mod config;
mod decide;
mod disk;
mod driver;
mod fence;
mod fresh;
pub mod inspect;
pub mod io;
mod label;
mod load;
mod look;
mod named;
mod op;
mod opening;
mod pages;
mod read;
mod replay;
mod request;
mod ring;
mod slots;
mod store;
mod straighten;
mod verify;

pub use account::{Peek, SlotAccount};
pub use config::{Settings, StoreConfig};
pub use fresh::{NewDisk, format_disk};
pub use io::{
    Damage, During, Effect, Input, Opened, Origin, OutOfService, Part, StoreEvent, StoreStats,
};
pub use label::{LABEL_BYTES, Label, disk_label};
pub use store::{BlockPlace, HeldSegment, HeldVolume, Store};

#[cfg(test)]
mod tests;
