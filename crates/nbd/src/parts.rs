//! Large requests are cut into parts.

use gabion_types::{BLOCK_BYTES, ByteRange};

/// The first part of what is left of a range: at most `part_bytes`.
///
/// rule: nbd/parts-share-no-block. It ends at a border of blocks or of the range: else two parts of
/// one write would wait for each other at its owner, and each would cost a read.
pub(crate) fn first_part(range: ByteRange, part_bytes: u32) -> ByteRange {
    let length = range.length().min(u64::from(part_bytes) - range.offset() % BLOCK_BYTES);
    ByteRange::new(range.offset(), length).expect("a part ends where its range does, or before")
}

/// What comes behind a part.
pub(crate) fn rest(range: ByteRange, part: ByteRange) -> ByteRange {
    ByteRange::new(part.end(), range.end() - part.end()).expect("the end is that of a range")
}

pub(crate) fn parts(range: ByteRange, part_bytes: u32) -> impl Iterator<Item = ByteRange> {
    let mut left = range;
    std::iter::from_fn(move || {
        if left.length() == 0 {
            return None;
        }
        let part = first_part(left, part_bytes);
        left = rest(left, part);
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // rule: nbd/parts-share-no-block
    #[test]
    fn parts_meet_at_borders_of_blocks() {
        let range = ByteRange::new(512, 20_480).unwrap();
        let cut: Vec<_> = parts(range, 8192).map(|part| (part.offset(), part.length())).collect();
        assert_eq!(cut, [(512, 7680), (8192, 8192), (16384, 4608)]);
    }

    proptest! {
        #[test]
        fn parts_cover_the_range(sectors in 0u64..1000, length in 0u64..2000, blocks in 1u32..65) {
            let range = ByteRange::new(sectors * 512, length * 512).unwrap();
            let mut at = range.offset();
            for part in parts(range, blocks * 4096) {
                prop_assert_eq!(part.offset(), at);
                prop_assert!(part.length() > 0 && part.length() <= u64::from(blocks) * 4096);
                at = part.end();
                prop_assert!(at == range.end() || at.is_multiple_of(4096));
            }
            prop_assert_eq!(at, range.end());
        }
    }
}
