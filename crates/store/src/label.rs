//! Whose disk it is, told from its first bytes alone.

use gabion_format::{DiskUuid, PAGE_BYTES, Superblock};
use gabion_types::ClusterId;

/// What is read from the start of a disk to tell. Units: bytes.
pub const LABEL_BYTES: usize = 2 * PAGE_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    pub cluster: ClusterId,
    pub uuid: DiskUuid,
    pub capacity_bytes: u64,
}

/// By the newer of the superblocks that are readable; none: it is no disk of ours, or of a newer
/// version, or damaged.
pub fn disk_label(first: &[u8]) -> Option<Label> {
    let pages = first.chunks_exact(PAGE_BYTES).take(2);
    let found = pages.filter_map(|page| Superblock::decode(page).ok());
    let newest = found.max_by_key(|superblock| superblock.generation)?;
    let Superblock { cluster, uuid, capacity, .. } = newest;
    Some(Label { cluster, uuid, capacity_bytes: capacity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewDisk, format_disk};
    use gabion_types::Limits;

    #[test]
    fn a_new_disk_says_whose_it_is() {
        let cluster = ClusterId::new([7; 16]);
        let capacity_bytes = 64 << 20;
        let limits = Limits::DEFAULT;
        let new = NewDisk { cluster, uuid: [9; 16], capacity_bytes, limits };
        let mut first = vec![0; LABEL_BYTES];
        assert_eq!(disk_label(&first), None);
        for (offset, bytes) in format_disk(&new).unwrap() {
            let offset = usize::try_from(offset).unwrap();
            if let Some(place) = first.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
        let label = Label { cluster, uuid: [9; 16], capacity_bytes };
        assert_eq!(disk_label(&first), Some(label));
        first[100] ^= 1;
        first[PAGE_BYTES + 100] ^= 1;
        assert_eq!(disk_label(&first), None);
        assert_eq!(disk_label(&[1; 100]), None);
    }
}
