//! What lies on a disk, with byte offsets: superblocks, journal, map.

use super::{ReadDisk, recover};
use crate::io::{OutOfService, StoreEvent};
use crate::pages::{Page, Segment};
use crate::ring::RING_PART_BYTES;
use bytes::BytesMut;
use gabion_format::{
    BlockState, Content, Entry, FormatError, Frame, Layout, PAGE_BYTES, Rule, SegmentKey,
    SegmentMeta, Superblock, frame_pages,
};
use gabion_types::{BLOCK_BYTES, DiskError, Epoch, Version, VolumeId};

/// All offsets and lengths. Units: bytes from the start of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub superblocks: [SuperblockShown; 2],
    /// Of the superblock that recovery would take.
    pub layout: Layout,
    pub root_offset: u64,
    pub root_bytes: u64,
    /// In the order of the ring.
    pub frames: Vec<FrameShown>,
    pub fences: Vec<(VolumeId, Epoch)>,
    /// As recovery would leave them: the checkpoint, and the journal behind it.
    pub segments: Vec<SegmentShown>,
    pub events: Vec<StoreEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockShown {
    pub offset: u64,
    pub found: Result<Superblock, SuperblockFault>,
    /// Recovery takes this one.
    pub used: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockFault {
    #[error("{0}")]
    Format(FormatError),
    #[error("{0}")]
    Disk(DiskError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameShown {
    pub offset: u64,
    pub bytes: u64,
    pub life: u64,
    pub lsn: u64,
    pub durable: u64,
    pub generation: u64,
    pub chain: u32,
    pub crc: u32,
    pub standing: FrameStanding,
    pub entries: Vec<ShownEntry>,
}

/// What recovery makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameStanding {
    /// The newest checkpoint has its outcome.
    Covered,
    /// Of this life, behind the checkpoint.
    Counts,
    /// Left by an earlier life.
    Earlier,
    /// A newer superblock was lost.
    Later,
}

/// An entry of the journal in plain words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownEntry {
    pub kind: &'static str,
    pub volume: u32,
    pub segment: u32,
    /// Blocks from the first on; absent where the entry is not of blocks.
    pub blocks: Option<(u32, u32)>,
    pub version: Option<Version>,
    /// Where its data lies.
    pub data_offset: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentShown {
    pub key: SegmentKey,
    pub meta: SegmentMeta,
    pub segment_pages: Vec<SegmentPageShown>,
    pub pages: Vec<PageShown>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPageShown {
    pub index: u32,
    pub offset: u64,
    pub crc: u32,
}

/// A map page. `offset`: absent where only the journal has it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShown {
    pub index: u32,
    pub offset: Option<u64>,
    pub lsn: u64,
    pub highest: u64,
    pub data_blocks: u32,
    pub zero_blocks: u32,
    pub lost_blocks: u32,
    pub unknown_blocks: u32,
}

/// Errors: it could not be opened at all, by any node.
pub fn show(capacity_bytes: u64, read: &mut ReadDisk<'_>) -> Result<Shown, OutOfService> {
    let superblocks = [0, 1].map(|place| {
        let offset = place * BLOCK_BYTES;
        let found = read(offset, BLOCK_BYTES)
            .map_err(SuperblockFault::Disk)
            .and_then(|bytes| Superblock::decode(&bytes).map_err(SuperblockFault::Format));
        SuperblockShown { offset, found, used: false }
    });
    let offline = recover(capacity_bytes, read)?;
    let disk = offline.store.disk().ok_or(OutOfService::Damaged)?;
    let superblock = &disk.superblock;
    let superblocks = superblocks.map(|shown| {
        let used = shown.found.is_ok_and(|found| found.generation == superblock.generation);
        SuperblockShown { used, ..shown }
    });
    Ok(Shown {
        superblocks,
        layout: disk.layout,
        root_offset: disk.layout.root_place(superblock.generation),
        root_bytes: superblock.root_length,
        frames: frames(&disk.layout, superblock, read),
        fences: disk.table.fences.iter().map(|(volume, epoch)| (*volume, *epoch)).collect(),
        segments: disk
            .table
            .segments()
            .map(|(key, segment)| segment_shown(&disk.layout, key, segment))
            .collect(),
        events: offline.events,
    })
}

fn frames(layout: &Layout, superblock: &Superblock, read: &mut ReadDisk<'_>) -> Vec<FrameShown> {
    let mut shown = Vec::new();
    let mut bytes = BytesMut::new();
    // Where `bytes` begins, in the ring.
    let mut start = 0;
    let mut next = 0;
    loop {
        while next < layout.journal_bytes && (bytes.len() as u64) < 2 * RING_PART_BYTES {
            let length = RING_PART_BYTES.min(layout.journal_bytes - next);
            match read(layout.journal_at + next, length) {
                Ok(part) => bytes.extend_from_slice(&part),
                Err(_) => bytes.resize(bytes.len() + usize::try_from(length).expect("256 KiB"), 0),
            }
            next += length;
        }
        if bytes.is_empty() {
            return shown;
        }
        let frame = frame_pages(&bytes).and_then(|pages| {
            Some((Frame::decode(&bytes, superblock.uuid).ok()?, pages * PAGE_BYTES))
        });
        let step = frame.as_ref().map_or(PAGE_BYTES, |(_, length)| *length);
        if let Some((frame, length)) = frame {
            let offset = layout.journal_at + start;
            shown.push(frame_shown(layout, superblock, &frame, offset, length as u64));
        }
        bytes = bytes.split_off(step.min(bytes.len()));
        start += step as u64;
    }
}

fn frame_shown(
    layout: &Layout,
    superblock: &Superblock,
    frame: &Frame,
    offset: u64,
    bytes: u64,
) -> FrameShown {
    let head = &frame.head;
    let standing = if head.life > superblock.life || head.generation > superblock.generation {
        FrameStanding::Later
    } else if head.lsn <= superblock.lsn {
        FrameStanding::Covered
    } else if head.life < superblock.life {
        FrameStanding::Earlier
    } else {
        FrameStanding::Counts
    };
    FrameShown {
        offset,
        bytes,
        life: head.life,
        lsn: head.lsn.get(),
        durable: head.durable.get(),
        generation: head.generation,
        chain: head.chain,
        crc: frame.crc,
        standing,
        entries: frame.entries.iter().map(|entry| entry_shown(layout, entry)).collect(),
    }
}

fn entry_shown(layout: &Layout, entry: &Entry) -> ShownEntry {
    let of = |kind, key: SegmentKey| ShownEntry {
        kind,
        volume: key.volume.get(),
        segment: key.segment.get(),
        blocks: None,
        version: None,
        data_offset: None,
    };
    match entry {
        Entry::Blocks { key, rule, range, version, content } => ShownEntry {
            blocks: Some((range.first().get(), range.count())),
            version: Some(*version),
            data_offset: entry.extent().map(|(slot, _)| layout.slot_offset(slot)),
            ..of(blocks_kind(*rule, content), *key)
        },
        Entry::Fence { volume, .. } => ShownEntry {
            kind: "fence",
            volume: volume.get(),
            segment: 0,
            blocks: None,
            version: None,
            data_offset: None,
        },
        Entry::Settled { key, .. } => of("settled", *key),
        Entry::Join { key, .. } => of("join", *key),
        Entry::Promoted { key, .. } => of("promoted", *key),
        Entry::EpochStart { key, .. } => of("epoch_start", *key),
        Entry::New { first, .. } => of("segments_new", *first),
        Entry::Gone { key, .. } => of("segment_gone", *key),
        Entry::SawMap { .. } => ShownEntry {
            kind: "saw_map",
            volume: 0,
            segment: 0,
            blocks: None,
            version: None,
            data_offset: None,
        },
    }
}

fn blocks_kind(rule: Rule, content: &Content) -> &'static str {
    match (rule, content) {
        (Rule::Write, Content::Data { .. }) => "write",
        (Rule::Write, Content::Zero) => "zero",
        (Rule::Settle, _) => "settle",
        (Rule::Install { .. }, _) => "install",
        (Rule::Repair, _) => "repair",
        (Rule::Move, _) => "move",
        (Rule::Write, Content::Lost | Content::Absent) => "lost",
    }
}

fn segment_shown(layout: &Layout, key: SegmentKey, segment: &Segment) -> SegmentShown {
    let live = segment.chunks.iter().filter_map(|chunk| chunk.live);
    SegmentShown {
        key,
        meta: segment.meta,
        segment_pages: live
            .map(|at| SegmentPageShown {
                index: at.chunk,
                offset: layout.slot_offset(at.slot),
                crc: at.crc,
            })
            .collect(),
        pages: segment.pages().map(|(index, page)| page_shown(layout, index, page)).collect(),
    }
}

fn page_shown(layout: &Layout, index: usize, page: &Page) -> PageShown {
    let mut shown = PageShown {
        index: u32::try_from(index).expect("a segment has few pages"),
        offset: page.live.map(|at| layout.slot_offset(at.slot)),
        lsn: page.lsn.get(),
        highest: page.highest.get(),
        data_blocks: 0,
        zero_blocks: 0,
        lost_blocks: 0,
        unknown_blocks: 0,
    };
    for entry in &page.entries {
        match entry.state() {
            BlockState::Absent => {}
            BlockState::Data { .. } => shown.data_blocks += 1,
            BlockState::Zero => shown.zero_blocks += 1,
            BlockState::Lost => shown.lost_blocks += 1,
            BlockState::Unknown => shown.unknown_blocks += 1,
        }
    }
    shown
}
