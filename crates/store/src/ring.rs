//! Reading the journal ring: every frame of this life that the checkpoint does not cover.

use bytes::Bytes;
use gabion_format::{Frame, Lsn, PAGE_BYTES, Superblock, frame_pages};
use std::collections::BTreeMap;

/// The ring is read in parts of so many bytes.
pub(crate) const RING_PART_BYTES: u64 = 256 << 10;

/// Takes the parts in any order, looks at them in the ring's.
#[derive(Debug, Default)]
pub(crate) struct RingScan {
    pub(crate) frames: BTreeMap<Lsn, Frame>,
    /// Frames of a later life or checkpoint than the superblock's: a newer superblock was lost.
    pub(crate) newer: bool,
    /// A part could not be read.
    pub(crate) unreadable: bool,
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
            self.looked_to += RING_PART_BYTES;
            match part {
                Some(bytes) => {
                    let mut bytes_all = std::mem::take(&mut self.carry);
                    bytes_all.extend_from_slice(&bytes);
                    self.look(superblock, &bytes_all, false);
                }
                None => {
                    self.unreadable = true;
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
        if head.life > superblock.life || head.generation > superblock.generation {
            self.newer = true;
        } else if head.life == superblock.life && head.lsn > superblock.lsn {
            self.frames.insert(head.lsn, frame);
        }
    }

    /// Everything up to it was synced, as the frames say.
    pub(crate) fn durable(&self, superblock: &Superblock) -> Lsn {
        let said = self.frames.values().map(|frame| frame.head.durable);
        said.max().unwrap_or_default().max(superblock.lsn)
    }
}
