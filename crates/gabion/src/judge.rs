//! The judge of a volume's contents: what may be read from each block, by what was acknowledged.
//!
//! A write's blocks carry its label, so that what is read names the write that it came from. For each
//! block the judge keeps the last value that is known to stand, and the writes that are still open:
//! sent and unanswered, which may have happened or not.

use gabion_types::Prng;

/// Units: bytes.
pub const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;

/// Names a write; each is used once. 0: never written, reads as zeros.
pub type Label = u64;

/// Fills one block with what the write `label` puts there.
pub fn fill_block(label: Label, block: u64, into: &mut [u8]) {
    assert_eq!(into.len(), BLOCK_BYTES);
    if label == 0 {
        into.fill(0);
        return;
    }
    let mut words = Prng::new(label.rotate_left(32) ^ block);
    let (head, rest) = into.split_at_mut(16);
    head[..8].copy_from_slice(&label.to_le_bytes());
    head[8..].copy_from_slice(&block.to_le_bytes());
    for word in rest.chunks_exact_mut(8) {
        word.copy_from_slice(&words.next_u64().to_le_bytes());
    }
}

/// The data of a write over a run of blocks.
pub fn fill(label: Label, first_block: u64, blocks: usize) -> Vec<u8> {
    let mut data = vec![0; blocks * BLOCK_BYTES];
    for (block, into) in (first_block..).zip(data.chunks_exact_mut(BLOCK_BYTES)) {
        fill_block(label, block, into);
    }
    data
}

/// Which write a block's contents come from; none: they come from no one write.
pub fn label_of(block: u64, contents: &[u8]) -> Option<Label> {
    assert_eq!(contents.len(), WORDS * 8);
    let label = Label::from_le_bytes(contents[..8].try_into().expect("8 bytes"));
    let mut expected = [0; BLOCK_BYTES];
    fill_block(label, block, &mut expected);
    (expected == contents).then_some(label)
}

#[derive(Clone, Debug, Default)]
struct Register {
    stands: Label,
    /// In the order in which they were sent.
    open: Vec<Label>,
}

/// What was read and must not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("block {block} holds a mixture: no one write made it")]
    Torn { block: u64 },
    #[error("block {block} reads write {read}, but {stands} stands and only {open:?} are open")]
    Flipped { block: u64, read: Label, stands: Label, open: Vec<Label> },
}

/// The registers of a run of blocks.
///
/// Invariant: while a write of a block is in flight, the caller sends no other request to that block.
#[derive(Clone, Debug)]
pub struct Judge {
    first: u64,
    registers: Vec<Register>,
}

impl Judge {
    pub fn new(first: u64, blocks: usize) -> Self {
        Self { first, registers: vec![Register::default(); blocks] }
    }

    pub fn blocks(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::try_from(self.registers.len()).expect("fits")
    }

    /// A write is about to be sent.
    pub fn begin(&mut self, label: Label, first: u64, blocks: usize) {
        for register in self.run(first, blocks) {
            register.open.push(label);
        }
    }

    /// It was acknowledged: it stands, and what was open before it can never show up again.
    pub fn acknowledge(&mut self, label: Label, first: u64, blocks: usize) {
        for register in self.run(first, blocks) {
            register.settle(label);
        }
    }

    /// It was refused, as a full disk does: nothing of it may be there.
    pub fn refuse(&mut self, label: Label, first: u64, blocks: usize) {
        for register in self.run(first, blocks) {
            register.open.retain(|open| *open != label);
        }
    }

    /// Checks what was read, and takes it as what stands from now on: a value that was read stays.
    pub fn check(&mut self, first: u64, data: &[u8]) -> Result<(), Wrong> {
        let blocks = data.len() / BLOCK_BYTES;
        let registers = self.run(first, blocks).iter_mut();
        for ((block, contents), register) in
            (first..).zip(data.chunks_exact(BLOCK_BYTES)).zip(registers)
        {
            let read = label_of(block, contents).ok_or(Wrong::Torn { block })?;
            if read != register.stands && !register.open.contains(&read) {
                let (stands, open) = (register.stands, register.open.clone());
                return Err(Wrong::Flipped { block, read, stands, open });
            }
            register.settle(read);
        }
        Ok(())
    }

    fn run(&mut self, first: u64, blocks: usize) -> &mut [Register] {
        let start = usize::try_from(first - self.first).expect("within the judge's blocks");
        &mut self.registers[start..start + blocks]
    }
}

impl Register {
    fn settle(&mut self, label: Label) {
        self.stands = label;
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: Label) -> Vec<u8> {
        fill(label, 5, 1)
    }

    #[test]
    fn an_open_write_may_be_there_or_not_but_not_both() {
        let mut judge = Judge::new(0, 10);
        judge.begin(1, 5, 1);
        judge.acknowledge(1, 5, 1);
        judge.begin(2, 5, 1);
        let mut other = judge.clone();
        judge.check(5, &block(2)).unwrap();
        assert!(judge.check(5, &block(1)).is_err(), "the new value was read: it stays");
        other.check(5, &block(1)).unwrap();
        assert!(other.check(5, &block(2)).is_err(), "the old value was read: the new one is void");
    }

    #[test]
    fn an_acknowledged_write_stands() {
        let mut judge = Judge::new(0, 10);
        judge.begin(1, 5, 1);
        assert!(judge.clone().check(5, &block(0)).is_ok());
        judge.acknowledge(1, 5, 1);
        assert!(judge.clone().check(5, &block(0)).is_err());
        judge.begin(2, 5, 1);
        judge.begin(3, 5, 1);
        judge.acknowledge(3, 5, 1);
        assert!(judge.check(5, &block(2)).is_err(), "an older write landed late");
    }

    #[test]
    fn a_mixture_is_torn() {
        let mut judge = Judge::new(0, 10);
        judge.begin(1, 5, 1);
        judge.begin(2, 5, 1);
        let mut mixed = block(1);
        mixed[2048..].copy_from_slice(&block(2)[2048..]);
        assert_eq!(judge.check(5, &mixed), Err(Wrong::Torn { block: 5 }));
        let elsewhere = fill(1, 6, 1);
        assert_eq!(judge.check(5, &elsewhere), Err(Wrong::Torn { block: 5 }));
    }
}
