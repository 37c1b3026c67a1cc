//! A new disk, as `gabion node init` leaves it.

use bytes::Bytes;
use gabion_store::NewDisk;
use gabion_types::{ClusterId, Limits};

pub(crate) fn format_disk(
    cluster: ClusterId,
    uuid: [u8; 16],
    capacity_bytes: u64,
    limits: Limits,
) -> Vec<(u64, Bytes)> {
    let disk = NewDisk { cluster, uuid, capacity_bytes, limits };
    gabion_store::format_disk(&disk).expect("simulated disks have a size that can be formatted")
}
