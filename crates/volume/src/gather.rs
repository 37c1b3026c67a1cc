//! A run of blocks, gathered from as many replicas as it takes until each block is readable.

use bytes::{Bytes, BytesMut};
use gabion_types::{BLOCK_BYTES, BlockInfo, BlockKind, BlockRange, DiskId, Version, block_crc};

/// What `BLOCK_BYTES` is for a slice.
pub(crate) const BLOCK: usize = 4096;

const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);

#[derive(Debug)]
pub(crate) struct Gather {
    range: BlockRange,
    /// Only blocks of exactly these versions count, where given.
    want: Option<Vec<Version>>,
    blocks: Vec<Option<(BlockInfo, Bytes)>>,
    /// The data of the first answer, where it had all of the blocks.
    direct: Option<Bytes>,
    /// Who was asked, and has answered.
    tried: Vec<DiskId>,
    /// Who did not answer for now.
    avoided: Vec<DiskId>,
    /// Unreadable copies that were met.
    bad: Vec<(DiskId, BlockInfo)>,
    /// Who is being asked.
    pub(crate) asked: Option<DiskId>,
}

/// An answer that does not fit its question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Gather {
    pub(crate) fn new(range: BlockRange, want: Option<Vec<Version>>) -> Self {
        Self {
            range,
            want,
            blocks: (0..range.count()).map(|_| None).collect(),
            direct: None,
            tried: Vec::new(),
            avoided: Vec::new(),
            bad: Vec::new(),
            asked: None,
        }
    }

    pub(crate) fn range(&self) -> BlockRange {
        self.range
    }

    pub(crate) fn was_tried(&self, disk: DiskId) -> bool {
        self.tried.contains(&disk)
    }

    pub(crate) fn avoid(&mut self, disk: DiskId) {
        self.avoided.push(disk);
    }

    pub(crate) fn avoids(&self, disk: DiskId) -> bool {
        self.avoided.contains(&disk)
    }

    /// A copy that is known as unreadable: it isn't asked, and mended once another one was.
    pub(crate) fn note_bad(&mut self, disk: DiskId, info: BlockInfo) {
        if !self.tried.contains(&disk) {
            self.tried.push(disk);
        }
        self.bad.push((disk, info));
    }

    /// A block is there in no copy that was asked, and is not unreadable there: it has another
    /// version than was wanted.
    pub(crate) fn is_missing_what_is_not_bad(&self) -> bool {
        let mut missing =
            self.range.iter().enumerate().filter(|(index, _)| self.blocks[*index].is_none());
        missing.any(|(index, block)| {
            let wanted = |version: Version| self.want.as_ref().is_none_or(|w| w[index] == version);
            !self.bad.iter().any(|(_, info)| info.block == block && wanted(info.version))
        })
    }

    /// Whoever did not answer may be asked again.
    pub(crate) fn avoid_nobody(&mut self) {
        self.avoided.clear();
    }

    /// Takes in one replica's answer: what is readable and not there yet.
    ///
    /// Errors: the answer's shape is wrong; nothing was taken.
    // promise: no-silent-corruption
    pub(crate) fn absorb(
        &mut self,
        disk: DiskId,
        answer: &[BlockInfo],
        data: &Bytes,
    ) -> Result<(), Malformed> {
        self.tried.push(disk);
        let data_blocks = answer.iter().filter(|info| info.kind == BlockKind::Data).count();
        let in_order = answer.iter().map(|info| info.block).eq(self.range.iter());
        if !in_order || data.len() != data_blocks * BLOCK {
            return Err(Malformed);
        }
        let first = self.blocks.iter().all(Option::is_none);
        let mut at = 0;
        for (index, info) in answer.iter().enumerate() {
            let bytes = if info.kind == BlockKind::Data {
                at += BLOCK;
                data.slice(at - BLOCK..at)
            } else {
                Bytes::new()
            };
            self.absorb_block(disk, index, info, bytes);
        }
        if first && self.is_whole() {
            self.direct = Some(data.clone());
        }
        Ok(())
    }

    fn absorb_block(&mut self, disk: DiskId, index: usize, info: &BlockInfo, bytes: Bytes) {
        let wanted = self.want.as_ref().is_none_or(|want| want[index] == info.version);
        let readable = match info.kind {
            BlockKind::Absent | BlockKind::Zero | BlockKind::Lost => true,
            BlockKind::Data => block_crc(&bytes) == info.crc,
            BlockKind::Bad => false,
        };
        if !readable {
            self.bad.push((disk, *info));
        } else if wanted && self.blocks[index].is_none() {
            self.blocks[index] = Some((*info, bytes));
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.blocks.iter().all(Option::is_some)
    }

    /// Gives up on what is still missing: `Lost`, with the highest version that was told of, or else
    /// with `unknown`.
    pub(crate) fn lose_the_rest(&mut self, unknown: Version) -> Vec<BlockInfo> {
        let mut lost = Vec::new();
        for (index, block) in self.range.iter().enumerate() {
            if self.blocks[index].is_some() {
                continue;
            }
            let told = self.bad.iter().filter(|(_, info)| info.block == block);
            let told = told.map(|(_, info)| info.version).max().unwrap_or_default();
            let told = if told == Version::NEVER { unknown } else { told };
            let version = self.want.as_ref().map_or(told, |want| want[index]);
            let info = BlockInfo { kind: BlockKind::Lost, version, ..BlockInfo::absent(block) };
            self.blocks[index] = Some((info, Bytes::new()));
            lost.push(info);
        }
        lost
    }

    /// The gathered blocks; call it when `is_whole`.
    pub(crate) fn infos(&self) -> impl Iterator<Item = BlockInfo> + '_ {
        self.blocks.iter().flatten().map(|(info, _)| *info)
    }

    /// The data of the `Data` blocks, in order.
    pub(crate) fn payload(&self) -> Bytes {
        if let Some(direct) = &self.direct {
            return direct.clone();
        }
        let mut payload = BytesMut::new();
        for (_, bytes) in self.blocks.iter().flatten() {
            payload.extend_from_slice(bytes);
        }
        payload.freeze()
    }

    /// The whole run as a guest reads it: holes are zeros.
    pub(crate) fn contents(&self) -> Bytes {
        if let Some(direct) = &self.direct
            && direct.len() == self.blocks.len() * BLOCK
        {
            return direct.clone();
        }
        let mut contents = BytesMut::with_capacity(self.blocks.len() * BLOCK);
        for (_, bytes) in self.blocks.iter().flatten() {
            if bytes.is_empty() {
                contents.resize(contents.len() + BLOCK, 0);
            } else {
                contents.extend_from_slice(bytes);
            }
        }
        contents.freeze()
    }

    /// For each replica with unreadable copies: what they should be.
    pub(crate) fn repairs(&self) -> Vec<(DiskId, Vec<BlockInfo>, Bytes)> {
        let mut repairs: Vec<(DiskId, Vec<BlockInfo>, BytesMut)> = Vec::new();
        for (disk, bad) in &self.bad {
            let index = (bad.block.get() - self.range.first().get()) as usize;
            let Some((good, bytes)) = &self.blocks[index] else { continue };
            if good.kind == BlockKind::Absent {
                continue;
            }
            let entry = repairs.iter().position(|(target, ..)| target == disk);
            let entry = entry.unwrap_or_else(|| {
                repairs.push((*disk, Vec::new(), BytesMut::new()));
                repairs.len() - 1
            });
            repairs[entry].1.push(*good);
            repairs[entry].2.extend_from_slice(bytes);
        }
        repairs.into_iter().map(|(disk, infos, bytes)| (disk, infos, bytes.freeze())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::{BlockIndex, Crc, Epoch, Seq};

    fn range(first: u32, count: u32) -> BlockRange {
        BlockRange::new(BlockIndex::new(first), count).unwrap()
    }

    fn info(block: u32, kind: BlockKind, crc: Crc) -> BlockInfo {
        let version = Version::new(Epoch::new(1).unwrap(), Seq::new(1));
        BlockInfo { block: BlockIndex::new(block), kind, version, crc }
    }

    // promise: no-silent-corruption
    #[test]
    fn a_bad_block_comes_from_the_other_copy_and_is_repaired() {
        let data = Bytes::from(vec![7; BLOCK]);
        let good = info(4, BlockKind::Data, block_crc(&data));
        let hole = info(5, BlockKind::Zero, Crc::default());
        let mut gather = Gather::new(range(4, 2), None);
        let wrong = Bytes::from(vec![8; BLOCK]);
        gather.absorb(DiskId::new(1), &[good, hole], &wrong).unwrap();
        assert!(!gather.is_whole());
        gather.absorb(DiskId::new(2), &[good, hole], &data).unwrap();
        assert!(gather.is_whole());
        assert_eq!(&gather.contents()[..BLOCK], &data[..]);
        assert!(gather.contents()[BLOCK..].iter().all(|byte| *byte == 0));
        assert_eq!(gather.repairs(), vec![(DiskId::new(1), vec![good], data)]);
    }

    #[test]
    fn an_answer_of_another_shape_is_refused() {
        let mut gather = Gather::new(range(0, 1), None);
        let none = Bytes::new();
        assert_eq!(gather.absorb(DiskId::new(1), &[], &none), Err(Malformed));
        let data = info(0, BlockKind::Data, Crc::default());
        assert_eq!(gather.absorb(DiskId::new(1), &[data], &none), Err(Malformed));
        assert!(!gather.is_whole());
    }

    #[test]
    fn what_is_readable_nowhere_is_lost() {
        let mut gather = Gather::new(range(3, 1), None);
        let bad = info(3, BlockKind::Bad, Crc::default());
        gather.absorb(DiskId::new(1), &[bad], &Bytes::new()).unwrap();
        let lost = gather.lose_the_rest(Version::NEVER);
        assert_eq!(lost, vec![BlockInfo { kind: BlockKind::Lost, ..bad }]);
        assert!(gather.is_whole());
    }
}
