//! What a deep scrub looks at beside blocks and their map pages: that the superblocks, the root, the
//! bitmap, the segment pages and the journal lie on the disk as they were written. All of it is in
//! memory, too, so what is damaged costs nothing yet: a checkpoint writes it anew before the next start
//! has to read it.
//!
//! Once for each scrub of a volume, in reads of at most `RING_PART_BYTES`, paced like the scrub's own.
//! What a checkpoint has replaced since it was asked for is not judged.

use crate::config::BITMAP_RUN_MAX;
use crate::disk::{Asker, Disk, Use};
use crate::io::{Damage, Effect, Part, StoreEvent};
use crate::ring::RING_PART_BYTES;
use bytes::Bytes;
use gabion_format::codec::crc_field;
use gabion_format::{
    BitmapPage, ChunkRef, Frame, Layout, Lsn, PAGE_BYTES, Root, SegmentKey, SegmentPage,
    Superblock, frame_pages,
};
use gabion_types::{BLOCK_BYTES, BlockRange, DiskError};

#[derive(Debug)]
pub(crate) struct Look {
    next: At,
    /// Its read that is under way: keeps the slots that were taken when it began, and no checkpoint
    /// begins meanwhile, so nothing is written where it reads.
    guard: Option<u64>,
}

/// Where it goes on.
#[derive(Clone, Copy, Debug)]
enum At {
    Superblock {
        place: u64,
    },
    Root,
    Bitmap {
        first: usize,
    },
    /// The first segment page at or behind this one.
    SegmentPage {
        from: Option<(SegmentKey, usize)>,
    },
    Journal(Walk),
    End,
}

/// Along the frames of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// That of the checkpoint behind which they lie.
    generation: u64,
    /// Where the next frame begins; grows like `Journal::head`.
    at: u64,
    lsn: Lsn,
    /// The last one, and where it ends: what becomes durable later is not waited for.
    until: Lsn,
    end: u64,
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Superblock { generation: u64, place: u64 },
    Root { generation: u64 },
    Bitmap { generation: u64, first: usize },
    SegmentPage { key: SegmentKey, instance: u64, at: ChunkRef },
    Journal { walk: Walk, length: u64 },
}

impl Disk {
    // rule: store/scrub-looks-at-the-rest
    /// A scrub goes through a volume in the order of its blocks: one that is not behind the last one
    /// is of another scrub.
    pub(crate) fn look_with(&mut self, asker: &Asker, key: SegmentKey, range: BlockRange) {
        let at = (key.segment, range.first());
        let looked = &mut self.verifies.looked;
        let before = looked.insert(asker.volume, at);
        let volumes = self.table.volumes();
        looked.retain(|volume, _| volumes.contains_key(volume));
        if before.is_none_or(|before| at <= before) && self.verifies.look.is_none() {
            self.verifies.look = Some(Look { next: At::Superblock { place: 0 }, guard: None });
        }
    }

    pub(crate) fn is_looking(&self) -> bool {
        self.verifies.look.as_ref().is_some_and(|look| look.guard.is_some())
    }

    /// Asks for the next piece. False: there is none, it is over.
    pub(crate) fn look_on(&mut self) -> bool {
        while let Some(look) = &mut self.verifies.look {
            let next = look.next;
            let generation = self.generation;
            let place = usize::from(generation % 2 == 1);
            let read = match next {
                At::Superblock { place } => {
                    look.next = if place == 0 { At::Superblock { place: 1 } } else { At::Root };
                    let offset = place * BLOCK_BYTES;
                    let newest = Layout::superblock_at(generation) == offset;
                    // The other one is being written, or will be.
                    let piece = Piece::Superblock { generation, place };
                    let settled = newest || self.checkpoint.is_none();
                    settled.then_some((piece, offset, BLOCK_BYTES))
                }
                At::Root => {
                    look.next = At::Bitmap { first: 0 };
                    let offset = self.layout.root_place(generation);
                    Some((Piece::Root { generation }, offset, self.superblock.root_length))
                }
                At::Bitmap { first } if first >= self.table.named.pages() => {
                    look.next = At::SegmentPage { from: None };
                    None
                }
                At::Bitmap { first } => {
                    look.next = At::Bitmap { first: first + BITMAP_RUN_MAX };
                    let count = BITMAP_RUN_MAX.min(self.table.named.pages() - first) as u64;
                    let offset = self.layout.bitmap_at[place] + first as u64 * BLOCK_BYTES;
                    // The root says whether there is one.
                    let piece = Piece::Bitmap { generation, first };
                    (!self.slots_lost).then_some((piece, offset, count * BLOCK_BYTES))
                }
                At::SegmentPage { from } => match self.table.next_chunk(from) {
                    Some((key, instance, at)) => {
                        look.next = At::SegmentPage { from: Some((key, at.chunk as usize + 1)) };
                        let piece = Piece::SegmentPage { key, instance, at };
                        Some((piece, self.layout.slot_offset(at.slot), BLOCK_BYTES))
                    }
                    None => {
                        let (at, lsn) = (self.journal.tail, self.superblock.lsn.next());
                        let end = self.batch.as_ref().map_or(self.journal.head, |it| it.start);
                        let until = self.journal.durable;
                        look.next = At::Journal(Walk { generation, at, lsn, until, end });
                        None
                    }
                },
                At::Journal(walk)
                    if walk.generation != generation
                        || walk.lsn > walk.until
                        || walk.at >= walk.end =>
                {
                    look.next = At::End;
                    None
                }
                At::Journal(walk) => {
                    let at = walk.at % self.journal.ring_bytes;
                    let length = RING_PART_BYTES.min(self.journal.ring_bytes - at);
                    let length = length.min(walk.end - walk.at);
                    Some((Piece::Journal { walk, length }, self.journal.ring_at + at, length))
                }
                At::End => break,
            };
            if let Some((piece, offset, length)) = read {
                look.guard = Some(self.limbo.begin_read());
                self.stats.verified_bytes += length;
                self.driver.read(Use::Look(piece), offset, length);
                return true;
            }
        }
        self.verifies.look = None;
        false
    }

    // promise: no-silent-corruption
    pub(crate) fn on_looked(&mut self, piece: Piece, result: Result<Bytes, DiskError>) {
        self.verifies.over = true;
        let guard = self.verifies.look.as_mut().and_then(|look| look.guard.take());
        guard.into_iter().for_each(|guard| self.limbo.end_read(guard));
        let bytes = result.unwrap_or_default();
        match piece {
            Piece::Superblock { generation, place } if self.generation == generation => {
                let offset = place * BLOCK_BYTES;
                let newest = Layout::superblock_at(generation) == offset;
                let good = match Superblock::decode(&bytes).ok() {
                    Some(there) if newest => there == self.superblock,
                    Some(there) => there.uuid == self.superblock.uuid,
                    None => false,
                };
                if !good {
                    // Of two checkpoints the second goes to the place of the newest.
                    self.found_damaged(Part::Superblock, offset, None, 1 + u8::from(newest));
                }
            }
            Piece::Root { generation } if self.generation == generation => {
                let good = crc_field(&bytes) == Some(self.superblock.root_crc)
                    && Root::decode(&bytes).is_ok();
                if !good {
                    self.found_damaged(Part::Root, self.layout.root_place(generation), None, 1);
                }
            }
            Piece::Bitmap { generation, first } if self.generation == generation => {
                self.look_at_bitmap(generation, first, &bytes);
            }
            Piece::SegmentPage { key, instance, at } => {
                let page = SegmentPage::decode(&bytes).ok().filter(|page| {
                    crc_field(&bytes) == Some(at.crc)
                        && page.uuid == self.superblock.uuid
                        && page.key == key
                });
                if page.is_none() && self.table.chunk_rots(key, instance, at) {
                    let offset = self.layout.slot_offset(at.slot);
                    self.found_damaged(Part::SegmentPage, offset, Some(key), 1);
                }
            }
            Piece::Journal { walk, length } if self.generation == walk.generation => {
                self.look_at_frames(walk, length, &bytes);
            }
            Piece::Superblock { .. }
            | Piece::Root { .. }
            | Piece::Bitmap { .. }
            | Piece::Journal { .. } => {}
        }
    }

    fn look_at_bitmap(&mut self, generation: u64, first: usize, bytes: &Bytes) {
        let place = usize::from(generation % 2 == 1);
        let end = self.table.named.pages().min(first + BITMAP_RUN_MAX);
        for page in first..end {
            let at = (page - first) as u64 * BLOCK_BYTES;
            let good = bytes.get(slice(at, BLOCK_BYTES)).is_some_and(|bytes| {
                BitmapPage::decode(bytes).is_ok()
                    && crc_field(bytes) == Some(self.table.named.page_crc(place, page))
            });
            if !good {
                self.table.named.rots(place, page);
            }
            // Of a run that cannot be read the first one is told.
            if !good && (page == first || !bytes.is_empty()) {
                let offset = self.layout.bitmap_at[place] + page as u64 * BLOCK_BYTES;
                self.found_damaged(Part::Bitmap, offset, None, 1);
            }
        }
    }

    fn look_at_frames(&mut self, mut walk: Walk, length: u64, bytes: &Bytes) {
        let ring = self.journal.ring_bytes;
        let first = walk.at;
        while walk.lsn <= walk.until {
            let from = walk.at - first;
            let to_ring_end = ring - walk.at % ring;
            let rest = bytes.get(slice(from, length.saturating_sub(from))).unwrap_or_default();
            let frame_bytes = frame_pages(rest).map(|pages| (pages * PAGE_BYTES) as u64);
            if frame_bytes.is_some_and(|frame| frame > rest.len() as u64) && from > 0 {
                // Its end is in the next part.
                break;
            }
            let frame = Frame::decode(rest, self.superblock.uuid).ok();
            let frame = frame.filter(|frame| frame.head.lsn == walk.lsn);
            match (frame, frame_bytes) {
                (Some(_), Some(frame_bytes)) => {
                    walk.at += frame_bytes;
                    walk.lsn = walk.lsn.next();
                }
                // A frame that does not fit before the ring's end lies at its beginning.
                _ if to_ring_end < RING_GAP_MAX && !walk.at.is_multiple_of(ring) => {
                    walk.at += to_ring_end;
                }
                _ => {
                    let offset = self.journal.ring_at + walk.at % ring;
                    self.found_damaged(Part::Journal, offset, None, 1);
                    return self.look_ends_with(None);
                }
            }
            if walk.at - first >= length {
                break;
            }
        }
        self.look_ends_with(Some(walk));
    }

    fn look_ends_with(&mut self, walk: Option<Walk>) {
        if let Some(look) = &mut self.verifies.look {
            look.next = walk.map_or(At::End, At::Journal);
        }
    }

    /// Told and counted; so many checkpoints follow at once.
    fn found_damaged(&mut self, part: Part, offset: u64, key: Option<SegmentKey>, checkpoints: u8) {
        self.checkpoints_wanted = self.checkpoints_wanted.max(checkpoints);
        self.stats.damaged_pages += 1;
        let segment = key.map(|key| (key.volume, key.segment));
        let damage = Damage { part, offset, segment };
        self.driver.effects.push_back(Effect::Event(StoreEvent::Damaged(damage)));
    }
}

/// Where the largest frame may not fit before the ring's end.
const RING_GAP_MAX: u64 = (gabion_format::FRAME_PAGES_MAX * PAGE_BYTES) as u64;

fn slice(from: u64, length: u64) -> std::ops::Range<usize> {
    let index = |at: u64| usize::try_from(at).expect("within one read");
    index(from)..index(from + length)
}
