//! A new disk: what is to be written so that it is empty and ours.

use bytes::Bytes;
use gabion_format::{DiskUuid, Layout, LayoutError, Lsn, PAGE_BYTES, Root, Superblock};
use gabion_types::{BLOCK_BYTES, ClusterId, Limits, MapIndex};

/// Of a disk that was formatted and never opened.
pub(crate) const FRESH_GENERATION: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDisk {
    pub cluster: ClusterId,
    /// Random: whatever an earlier format left behind names another one and counts for nothing.
    pub uuid: DiskUuid,
    pub capacity_bytes: u64,
    pub limits: Limits,
}

/// Where to write what; then one sync.
///
/// Order: any; a disk on which this was not finished is not formatted, or still what it was.
pub fn format_disk(disk: &NewDisk) -> Result<Vec<(u64, Bytes)>, LayoutError> {
    let layout = Layout::new(disk.capacity_bytes, disk.limits.segment)?;
    let generation = FRESH_GENERATION;
    let root = Root {
        uuid: disk.uuid,
        generation,
        lsn: Lsn::ZERO,
        bitmap: None,
        fences: Vec::new(),
        segments: Vec::new(),
    };
    let (root_bytes, root_crc) = root.encode();
    let superblock = Superblock {
        uuid: disk.uuid,
        cluster: disk.cluster,
        generation,
        life: 0,
        capacity: layout.capacity,
        limits: disk.limits,
        lsn: Lsn::ZERO,
        chain: 0,
        journal_next: 0,
        root_length: root_bytes.len() as u64,
        root_crc,
        highest_map: MapIndex::default(),
    };
    let nothing = Bytes::from(vec![0; PAGE_BYTES]);
    Ok(vec![
        (layout.root_place(generation), root_bytes),
        (Layout::superblock_at(generation), superblock.encode()),
        ((generation + 1) % 2 * BLOCK_BYTES, nothing),
    ])
}
