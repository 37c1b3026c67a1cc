//! Each rule of the owner by a script of its own.

// A test fails by a panic; its helpers do too.
#![allow(clippy::unwrap_used)]

mod bench;
#[allow(dead_code)]
#[path = "../model/disk.rs"]
mod disk;
mod golden;
mod members;
mod moves;
mod pace;
mod reads;
mod room;
mod scrub;
mod takeover;
mod writes;
mod zeroes;

use gabion_types::{GuestData, IoError};
use gabion_wire::ReplicaOp;

const DONE: Option<&Result<GuestData, IoError>> = Some(&Ok(GuestData::Done));

fn version_of(op: &ReplicaOp) -> (u64, u64) {
    let ReplicaOp::Write { version, .. } = op else { panic!("{op:?}") };
    (version.epoch.get(), version.seq.get())
}
