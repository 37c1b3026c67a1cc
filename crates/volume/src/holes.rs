//! Zeroes and trims: written only where something is. Where nothing is, or a hole, the blocks read as
//! zeros already, and to see that is all there is to do: it is a read, under the same rules. So a
//! volume that was never written costs nothing when it is discarded, and a full disk can be emptied.

use crate::order::{Op, OpId, OpKind, OpState, Yield};
use crate::volume::Volume;
use gabion_types::{BlockIndex, BlockInfo, BlockKind, BlockRange, Instant};

/// Disks keep their map in pages of so many blocks: a run ends before one that holds nothing.
const PAGE_BLOCKS: u32 = 128;

/// What a table says of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    /// The first run of blocks that hold something, each near the one before.
    run: Option<BlockRange>,
    /// What is to be looked at once more.
    rest: Option<BlockRange>,
}

impl Volume {
    /// An in-sync replica said what is there, and the lease holds. Nothing else is under way on these
    /// blocks, so what reads as zeros stays so until this request is done.
    // rule: volume/zeroes-only-where-something-is
    // promise: one-register
    pub(crate) fn on_holes_looked(
        &mut self,
        now: Instant,
        id: OpId,
        table: &[BlockInfo],
        next: Option<BlockIndex>,
    ) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let found = look(op.range, table, next);
        match (found.run, found.rest) {
            (Some(run), rest) => {
                op.range = run;
                if let Some(rest) = rest {
                    let (arrival, segment) = (op.arrival, op.segment);
                    let part = self.one_part_more(arrival);
                    let state = OpState::Waiting { stalled: false };
                    let kind = OpKind::Zero;
                    self.add_op(Op { arrival, part, segment, range: rest, kind, state });
                }
                self.stamp(now, id, Vec::new(), 0);
            }
            (None, Some(rest)) => {
                op.range = rest;
                self.wait_again(id, false);
            }
            (None, None) => self.finish(now, id, Ok(Yield::Done)),
        }
    }
}

fn look(range: BlockRange, table: &[BlockInfo], next: Option<BlockIndex>) -> Found {
    let reached = next.unwrap_or(range.end()).min(range.end());
    if reached <= range.first() {
        // It says nothing: all of it is written.
        return Found { run: Some(range), rest: None };
    }
    let holds = |info: &&BlockInfo| match info.kind {
        BlockKind::Data | BlockKind::Lost | BlockKind::Bad => true,
        BlockKind::Absent | BlockKind::Zero => false,
    };
    let inside = table.iter().filter(|info| range.contains(info.block) && info.block < reached);
    let mut blocks = inside.filter(holds).map(|info| info.block);
    let Some(first) = blocks.next() else {
        return Found { run: None, rest: between(reached, range.end()) };
    };
    let mut last = first;
    let more = blocks.any(|block| {
        let near = block.get() / PAGE_BLOCKS <= last.get() / PAGE_BLOCKS + 1;
        last = if near { block } else { last };
        !near
    });
    let end = last.plus(1);
    let rest = if more { between(end, range.end()) } else { between(reached, range.end()) };
    Found { run: between(first, end), rest }
}

fn between(first: BlockIndex, end: BlockIndex) -> Option<BlockRange> {
    BlockRange::new(first, end.get().checked_sub(first.get())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::{Crc, Version};

    fn range(first: u32, end: u32) -> BlockRange {
        between(BlockIndex::new(first), BlockIndex::new(end)).unwrap()
    }

    fn found(first: u32, end: u32, holding: &[u32], next: Option<u32>) -> Found {
        let of = |kind, block| {
            let (block, version) = (BlockIndex::new(block), Version::NEVER);
            BlockInfo { block, kind, version, crc: Crc::default() }
        };
        let kinds = [BlockKind::Data, BlockKind::Lost, BlockKind::Bad];
        let mut table: Vec<_> =
            kinds.into_iter().cycle().zip(holding).map(|(kind, block)| of(kind, *block)).collect();
        // Holes are none of it, and what lies outside neither.
        table.push(of(BlockKind::Zero, end - 1));
        table.push(of(BlockKind::Data, end));
        look(range(first, end), &table, next.map(BlockIndex::new))
    }

    // rule: volume/zeroes-only-where-something-is
    #[test]
    fn runs_go_as_far_as_something_is() {
        let none = Found { run: None, rest: None };
        assert_eq!(found(0, 4096, &[], None), none);
        let one = Found { run: Some(range(5, 6)), rest: None };
        assert_eq!(found(0, 4096, &[5], None), one);
        let near = Found { run: Some(range(5, 301)), rest: None };
        assert_eq!(found(0, 4096, &[5, 6, 200, 300], None), near);
        let far = Found { run: Some(range(5, 7)), rest: Some(range(7, 4096)) };
        assert_eq!(found(0, 4096, &[5, 6, 256], None), far);
        assert_eq!(found(0, 4096, &[5, 6, 4000], None), far);
        // The table may end early.
        let early = Found { run: Some(range(5, 7)), rest: Some(range(1000, 4096)) };
        assert_eq!(found(0, 4096, &[5, 6], Some(1000)), early);
        let later = Found { run: None, rest: Some(range(1000, 4096)) };
        assert_eq!(found(0, 4096, &[], Some(1000)), later);
        let nothing = Found { run: Some(range(8, 4096)), rest: None };
        assert_eq!(found(8, 4096, &[], Some(8)), nothing);
    }
}
