//! promise: no-silent-corruption. A corrupt copy is never a source: whatever one copy gives to
//! another is what a guest wrote there. Source: DESIGN 4.7 ("a source verifies what it sends"), 4.4.

use crate::content::{self, Found};
use crate::oracle::Broken;
use bytes::Bytes;
use gabion_types::{BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, SegmentIndex, SegmentSize};
use gabion_wire::ReplicaOp;

/// Errors: a block with data that no guest wrote there.
pub fn check(op: &ReplicaOp, size: SegmentSize, unit_bytes: u64) -> Result<(), Broken> {
    let (segment, blocks, data) = match op {
        ReplicaOp::Install { segment, blocks, data, .. }
        | ReplicaOp::Settle { segment, blocks, data }
        | ReplicaOp::Repair { segment, blocks, data } => (*segment, blocks, data),
        ReplicaOp::Create { .. }
        | ReplicaOp::Fence { .. }
        | ReplicaOp::Read { .. }
        | ReplicaOp::Scan { .. }
        | ReplicaOp::Verify { .. }
        | ReplicaOp::EpochStart { .. }
        | ReplicaOp::Advance { .. }
        | ReplicaOp::JoinStart { .. }
        | ReplicaOp::Promoted { .. }
        | ReplicaOp::Drop { .. }
        | ReplicaOp::Write { .. }
        | ReplicaOp::Zero { .. } => return Ok(()),
    };
    check_blocks(segment, blocks, data, size, unit_bytes)
}

fn check_blocks(
    segment: SegmentIndex,
    blocks: &[BlockInfo],
    data: &Bytes,
    size: SegmentSize,
    unit_bytes: u64,
) -> Result<(), Broken> {
    let block_bytes = crate::world::index(BLOCK_BYTES);
    let with_data = blocks.iter().filter(|info| info.kind == BlockKind::Data);
    for (info, bytes) in with_data.zip(data.chunks_exact(block_bytes)) {
        let first = first_unit(segment, info.block, size, unit_bytes);
        let units = bytes.chunks_exact(crate::world::index(unit_bytes)).zip(first..);
        for (unit_data, unit) in units {
            if content::identify(unit_data, unit) == Found::Garbage {
                let text =
                    format!("{segment} block {}: copied, and nobody wrote it", info.block.get());
                return Err(Broken { promise: "sound-sources", text });
            }
        }
    }
    Ok(())
}

fn first_unit(segment: SegmentIndex, block: BlockIndex, size: SegmentSize, unit_bytes: u64) -> u64 {
    let at = u64::from(segment.get()) * size.bytes() + u64::from(block.get()) * BLOCK_BYTES;
    at / unit_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Label;
    use gabion_types::{Crc, Version};

    #[test]
    fn what_is_copied_was_written_there() {
        let size = SegmentSize::new(1 << 20).expect("a power of two in range");
        let (segment, block) = (SegmentIndex::new(1), BlockIndex::new(2));
        let (kind, version, crc) = (BlockKind::Data, Version::NEVER, Crc::default());
        let blocks = vec![BlockInfo { block, kind, version, crc }];
        let copy = |data: Bytes| {
            let op = ReplicaOp::Settle { segment, blocks: blocks.clone(), data };
            check(&op, size, 512)
        };
        let good = content::fill(Label(9), 2048 + 16, 512, 8);
        assert_eq!(copy(good.clone()), Ok(()));
        let mut bad = good.to_vec();
        bad[4000] ^= 1;
        assert!(copy(bad.into()).is_err());
        assert!(copy(content::fill(Label(9), 2048, 512, 8)).is_err(), "another place's data");
    }
}
