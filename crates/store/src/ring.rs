//! Reading the journal ring: every frame of this life that the checkpoint does not cover.

use crate::pages::page_of;
use bytes::Bytes;
use gabion_format::{Entry, Frame, Lsn, PAGE_BYTES, SegmentKey, Superblock, frame_pages};
use gabion_types::{BlockIndex, Epoch, MapIndex, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// The ring is read in parts of so many bytes.
pub(crate) const RING_PART_BYTES: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Highest {
    pub(crate) life: u64,
    pub(crate) generation: u64,
    pub(crate) lsn: Lsn,
}

/// Takes the parts in any order, looks at them in the ring's.
#[derive(Debug, Default)]
pub(crate) struct RingScan {
    pub(crate) frames: BTreeMap<Lsn, Frame>,
    // rule: store/lost-superblock-noticed
    /// Frames of a later life or checkpoint than the superblock's. None is written before the
    /// superblock that it names is durable, so the disk lost that one.
    pub(crate) newer: bool,
    /// The highest numbers of all frames that this disk ever kept, of whatever life.
    pub(crate) highest: Highest,
    /// What frames of a later life say beyond blocks: fences hold for good.
    pub(crate) fences: BTreeMap<VolumeId, Epoch>,
    pub(crate) saw_map: MapIndex,
    /// Where parts could not be read. Units: bytes from the ring's start.
    pub(crate) unreadable: Vec<u64>,
    parts: BTreeMap<u64, Option<Bytes>>,
    looked_to: u64,
    /// The beginning of a frame whose rest is in the next part.
    carry: Vec<u8>,
}

impl RingScan {
    /// `None`: it could not be read.
    pub(crate) fn put(&mut self, superblock: &Superblock, at: u64, part: Option<Bytes>) {
        self.parts.insert(at, part);
        while let Some(part) = self.parts.remove(&self.looked_to) {
            let at = self.looked_to;
            self.looked_to += RING_PART_BYTES;
            match part {
                Some(bytes) if self.carry.is_empty() => self.look(superblock, &bytes, false),
                Some(bytes) => {
                    let mut bytes_all = std::mem::take(&mut self.carry);
                    bytes_all.extend_from_slice(&bytes);
                    self.look(superblock, &bytes_all, false);
                }
                None => {
                    self.unreadable.push(at);
                    self.end(superblock);
                }
            }
        }
    }

    /// No frame goes on behind this.
    pub(crate) fn end(&mut self, superblock: &Superblock) {
        let rest = std::mem::take(&mut self.carry);
        self.look(superblock, &rest, true);
    }

    fn look(&mut self, superblock: &Superblock, bytes: &[u8], is_end: bool) {
        let mut at = 0;
        while at + PAGE_BYTES <= bytes.len() {
            let rest = &bytes[at..];
            let Some(pages) = frame_pages(rest) else {
                at += PAGE_BYTES;
                continue;
            };
            if pages * PAGE_BYTES > rest.len() && !is_end {
                self.carry = rest.to_vec();
                return;
            }
            match Frame::decode(rest, superblock.uuid) {
                Ok(frame) => {
                    self.take(superblock, frame);
                    at += pages * PAGE_BYTES;
                }
                Err(_) => at += PAGE_BYTES,
            }
        }
    }

    // rule: store/other-life-counts-for-nothing
    fn take(&mut self, superblock: &Superblock, frame: Frame) {
        let head = &frame.head;
        self.highest.life = self.highest.life.max(head.life);
        self.highest.generation = self.highest.generation.max(head.generation);
        self.highest.lsn = self.highest.lsn.max(head.lsn);
        self.newer |= head.life > superblock.life || head.generation > superblock.generation;
        if head.life > superblock.life {
            frame.entries.iter().for_each(|entry| self.note_of_later_life(entry));
        } else if head.life == superblock.life && head.lsn > superblock.lsn {
            // Also where it names a lost checkpoint: the chain says what it goes on from.
            self.frames.insert(head.lsn, frame);
        }
    }

    fn note_of_later_life(&mut self, entry: &Entry) {
        match entry {
            Entry::Fence { volume, epoch } => {
                let fence = self.fences.entry(*volume).or_insert(Epoch::ZERO);
                *fence = (*fence).max(*epoch);
            }
            Entry::SawMap { index } => self.saw_map = self.saw_map.max(*index),
            Entry::Blocks { .. }
            | Entry::Settled { .. }
            | Entry::Join { .. }
            | Entry::Promoted { .. }
            | Entry::EpochStart { .. }
            | Entry::New { .. }
            | Entry::Gone { .. } => {}
        }
    }

    /// Map pages that the frames behind the checkpoint change, and all of the segments that they drop.
    pub(crate) fn pages_named(&self, pages_per_segment: usize) -> BTreeSet<(SegmentKey, usize)> {
        let mut named = BTreeSet::new();
        for entry in self.frames.values().flat_map(|frame| &frame.entries) {
            match entry {
                Entry::Blocks { key, range, .. } => {
                    let last = page_of(BlockIndex::new(range.end().get() - 1));
                    let end = pages_per_segment.min(last + 1);
                    named.extend((page_of(range.first())..end).map(|index| (*key, index)));
                }
                Entry::Join { key, .. } | Entry::Gone { key, .. } => {
                    named.extend((0..pages_per_segment).map(|index| (*key, index)));
                }
                Entry::Fence { .. }
                | Entry::Settled { .. }
                | Entry::Promoted { .. }
                | Entry::EpochStart { .. }
                | Entry::New { .. }
                | Entry::SawMap { .. } => {}
            }
        }
        named
    }

    /// Everything up to it was synced, as the frames say.
    pub(crate) fn durable(&self, superblock: &Superblock) -> Lsn {
        let said = self.frames.values().map(|frame| frame.head.durable);
        said.max().unwrap_or_default().max(superblock.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_format::{FrameHead, encode_frame};
    use gabion_types::{ClusterId, Limits};

    const SUPERBLOCK: Superblock = Superblock {
        uuid: [1; 16],
        cluster: ClusterId::new([2; 16]),
        generation: 5,
        life: 7,
        capacity: 0,
        limits: Limits::DEFAULT,
        lsn: Lsn::new(10),
        chain: 0,
        journal_next: 0,
        root_length: 0,
        root_crc: 0,
        highest_map: MapIndex::new(0),
    };

    fn frame(life: u64, generation: u64, lsn: u64, entries: usize) -> Vec<u8> {
        let head = FrameHead {
            uuid: SUPERBLOCK.uuid,
            life,
            lsn: Lsn::new(lsn),
            durable: Lsn::new(lsn - 1),
            generation,
            chain: 0,
        };
        let entries = vec![Entry::SawMap { index: MapIndex::new(1) }; entries];
        encode_frame(&head, entries.iter()).0.to_vec()
    }

    fn lsns(parts: Vec<Vec<u8>>) -> (Vec<u64>, bool) {
        let mut scan = RingScan::default();
        // The last part comes first.
        for (nth, part) in parts.into_iter().enumerate().rev() {
            scan.put(&SUPERBLOCK, nth as u64 * RING_PART_BYTES, Some(part.into()));
        }
        scan.end(&SUPERBLOCK);
        (scan.frames.keys().map(|lsn| lsn.get()).collect(), scan.newer)
    }

    // rule: store/other-life-counts-for-nothing
    #[test]
    fn only_frames_of_this_life_behind_the_checkpoint_count() {
        let ring = [frame(7, 5, 11, 1), frame(6, 5, 12, 1), frame(7, 4, 13, 1), frame(7, 5, 10, 1)];
        assert_eq!(lsns(vec![ring.concat()]), (vec![11, 13], false));
        assert_eq!(lsns(vec![frame(8, 5, 12, 1)]), (vec![], true));
        assert_eq!(lsns(vec![frame(7, 6, 12, 1)]), (vec![12], true));
    }

    #[test]
    fn a_frame_across_two_parts_is_found_and_one_that_is_cut_off_is_not() {
        let part = usize::try_from(RING_PART_BYTES).unwrap();
        let long = frame(7, 5, 12, 1000);
        let cut = 2 * PAGE_BYTES;
        let mut first = vec![0; part - cut];
        first.extend_from_slice(&long[..cut]);
        let mut second = long[cut..].to_vec();
        second.extend(frame(7, 5, 13, 1));
        assert_eq!(lsns(vec![first.clone(), second]), (vec![12, 13], false));
        assert_eq!(lsns(vec![first, frame(7, 5, 13, 1)]), (vec![13], false));
    }
}
