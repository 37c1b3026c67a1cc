//! promise: no-silent-corruption. No slot is written while a read of it is under way: a freed slot
//! is given out again only when every read submitted before has completed. Source: DESIGN 5.

use crate::disk::VirtualDisk;
use crate::oracle::Broken;
use gabion_types::{DiskOp, DiskOpKind};

/// Before the disk takes it. Errors: it would write what is being read.
pub fn check(disk: &VirtualDisk, op: &DiskOp) -> Result<(), Broken> {
    let DiskOpKind::Write { offset, pieces } = &op.kind else { return Ok(()) };
    let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    if !disk.is_read(*offset, length) {
        return Ok(());
    }
    let text = format!("{length} bytes at {offset} are written under a read");
    Err(Broken { promise: "no-write-under-read", text })
}
