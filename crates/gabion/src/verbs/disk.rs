//! `gabion disk check` and `disk show`: a disk that no node uses, read from its first byte to its last.

use crate::bar::Bar;
use crate::failure::Failure;
use crate::offline_disk::{OfflineDisk, refused};
use crate::size::ByteSize;
use crate::verbs::show;
use gabion_api::view::table;
use gabion_store::inspect::{self, BadBlock, Check, FrameStanding, Shown, ShownEntry};
use gabion_store::{Damage, Part, StoreEvent};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// Lines about bad blocks that people get; `--json` has all that the check kept.
const BAD_LINES_MAX: usize = 20;
pub fn check(path: &Path, as_json: bool) -> Result<(), Failure> {
    let disk = OfflineDisk::open(path)?;
    let mut bar = Bar::new("reading");
    let mut done = 0;
    let mut progress = |at: inspect::Checked| {
        done = at.done_bytes;
        bar.set(at.done_bytes, at.all_bytes);
    };
    let mut read = |offset, length| disk.read(offset, length);
    let found = inspect::check(disk.bytes, &mut read, &mut progress);
    bar.done(if as_json { 0 } else { done });
    let found = found.map_err(|why| refused(path, why))?;
    show(as_json, &check_json(path, &found), || check_text(path, &found));
    if found.is_clean() {
        return Ok(());
    }
    let what = format!(
        "disk {} is damaged: {} structures, {} blocks",
        path.display(),
        found.damages.len(),
        found.bad_blocks_count + found.unknown_blocks
    );
    Err(Failure::failed(what, "a node that runs on it mends it from the other copies"))
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn damage_json(damage: &Damage) -> Value {
    json!({
        "part": damage.part.to_string(),
        "offset": damage.offset,
        "volume": damage.segment.map(|(volume, _)| volume.get().to_string()),
        "segment": damage.segment.map(|(_, segment)| segment.get()),
    })
}

fn check_json(path: &Path, found: &Check) -> Value {
    let bad = |bad: &BadBlock| {
        json!({
            "volume": bad.volume.get().to_string(),
            "segment": bad.segment.get(),
            "block": bad.block.get(),
            "offset": bad.offset,
            "why": bad.error.map_or("its checksum differs".to_owned(), |error| error.to_string()),
        })
    };
    json!({
        "path": path,
        "clean": found.is_clean(),
        "uuid": hex(found.uuid),
        "cluster_id": found.cluster.to_string(),
        "capacity_bytes": found.capacity_bytes,
        "segments": found.segments,
        "map_pages": found.map_pages,
        "data_blocks": found.data_blocks,
        "zero_blocks": found.zero_blocks,
        "lost_blocks": found.lost_blocks,
        "unknown_blocks": found.unknown_blocks,
        "journal_frames": found.frames,
        "journal_entries_dropped": found.entries_dropped,
        "damages": found.damages.iter().map(damage_json).collect::<Vec<_>>(),
        "bad_blocks": found.bad_blocks.iter().map(bad).collect::<Vec<_>>(),
        "bad_blocks_count": found.bad_blocks_count,
    })
}

fn check_text(path: &Path, found: &Check) -> String {
    let mut text = format!(
        "disk {} ({}) of cluster {}\n  {} segments, {} map pages; {} of data in {} blocks, {} blocks of zeros\n  \
         {} frames of the journal lie behind the newest checkpoint",
        path.display(),
        ByteSize(found.capacity_bytes),
        found.cluster,
        found.segments,
        found.map_pages,
        ByteSize(found.data_blocks * 4096),
        found.data_blocks,
        found.zero_blocks,
        found.frames,
    );
    if found.entries_dropped > 0 {
        let _ = write!(
            text,
            "\n  {} entries of a torn tail were never answered; that is no damage",
            found.entries_dropped
        );
    }
    if found.lost_blocks > 0 {
        let _ = write!(
            text,
            "\n  {} blocks were lost on all copies and answer with an error until they are written",
            found.lost_blocks
        );
    }
    for damage in &found.damages {
        let _ = write!(text, "\n  DAMAGED  {}", damage_text(damage));
    }
    if found.unknown_blocks > 0 {
        let _ = write!(
            text,
            "\n  DAMAGED  of {} blocks this disk does not know what they hold",
            found.unknown_blocks
        );
    }
    for bad in found.bad_blocks.iter().take(BAD_LINES_MAX) {
        let why = bad.error.map_or("its checksum differs".to_owned(), |error| error.to_string());
        let _ = write!(
            text,
            "\n  BAD      block {} of segment {} of volume {}, at byte {}: {why}",
            bad.block.get(),
            bad.segment.get(),
            bad.volume.get(),
            bad.offset
        );
    }
    let told = found.bad_blocks.len().min(BAD_LINES_MAX) as u64;
    if found.bad_blocks_count > told {
        let _ = write!(text, "\n  BAD      {} more blocks", found.bad_blocks_count - told);
    }
    text.push_str(if found.is_clean() { "\nall of it is as it should be" } else { "" });
    text
}

fn damage_text(damage: &Damage) -> String {
    let meaning = match damage.part {
        Part::Superblock => "the other one is good; the next checkpoint writes this one anew",
        Part::Root => {
            "without it the disk can't be opened; its copies are made anew from the others"
        }
        Part::Bitmap => "the next start reads the whole map instead",
        Part::SegmentPage => "the map of up to 124 MiB of the segment is unknown here",
        Part::MapPage => "the map of 512 KiB of the segment is unknown here",
        Part::Journal => {
            "frames that were durable are gone: any block may be older here than it should be, so all that \
             the disk holds joins anew"
        }
        Part::BlockPlace => "two things claim one place: the block is unknown here",
    };
    let of = damage.segment.map_or(String::new(), |(volume, segment)| {
        format!(" (segment {} of volume {})", segment.get(), volume.get())
    });
    format!("{} at byte {}{of}: {meaning}", damage.part, damage.offset)
}

pub fn show_disk(path: &Path, as_json: bool) -> Result<(), Failure> {
    let disk = OfflineDisk::open(path)?;
    let mut read = |offset, length| disk.read(offset, length);
    let shown = inspect::show(disk.bytes, &mut read).map_err(|why| refused(path, why))?;
    show(as_json, &shown_json(path, &shown), || shown_text(path, &shown));
    Ok(())
}

fn standing(standing: FrameStanding) -> &'static str {
    match standing {
        FrameStanding::Covered => "covered",
        FrameStanding::Counts => "counts",
        FrameStanding::Earlier => "earlier",
        FrameStanding::Later => "later",
    }
}

fn entry_json(entry: &ShownEntry) -> Value {
    json!({
        "kind": entry.kind,
        "volume": entry.volume.to_string(),
        "segment": entry.segment,
        "first_block": entry.blocks.map(|(first, _)| first),
        "blocks": entry.blocks.map(|(_, count)| count),
        "epoch": entry.version.map(|version| version.epoch.get()),
        "seq": entry.version.map(|version| version.seq.get()),
        "data_offset": entry.data_offset,
    })
}

fn shown_json(path: &Path, shown: &Shown) -> Value {
    let superblocks = shown.superblocks.iter().map(|superblock| match &superblock.found {
        Ok(found) => json!({
            "offset": superblock.offset, "used": superblock.used, "uuid": hex(found.uuid),
            "cluster_id": found.cluster.to_string(), "generation": found.generation, "life": found.life,
            "capacity_bytes": found.capacity, "segment_bytes": found.limits.segment.bytes(),
            "lsn": found.lsn.get(), "journal_next": found.journal_next,
            "root_bytes": found.root_length, "root_crc": found.root_crc, "highest_map": found.highest_map.get(),
        }),
        Err(fault) => {
            json!({ "offset": superblock.offset, "used": false, "error": fault.to_string() })
        }
    });
    let frames = shown.frames.iter().map(|frame| {
        json!({
            "offset": frame.offset, "bytes": frame.bytes, "life": frame.life, "lsn": frame.lsn,
            "durable_lsn": frame.durable, "generation": frame.generation, "chain": frame.chain, "crc": frame.crc,
            "standing": standing(frame.standing),
            "entries": frame.entries.iter().map(entry_json).collect::<Vec<_>>(),
        })
    });
    let segments = shown.segments.iter().map(|segment| {
        let meta = &segment.meta;
        let segment_pages = segment.segment_pages.iter();
        let pages = segment.pages.iter();
        json!({
            "volume": segment.key.volume.get().to_string(), "segment": segment.key.segment.get(),
            "creation_epoch": meta.creation.get(), "joined_epoch": meta.joined.get(),
            "joining": meta.joining, "damaged": meta.damaged, "settled_seq": meta.settled.get(),
            "highest_seq": meta.highest.get(), "next_seq": meta.next.get(),
            "segment_pages": segment_pages.map(|page| json!({
                "index": page.index, "offset": page.offset, "crc": page.crc,
            })).collect::<Vec<_>>(),
            "map_pages": pages.map(|page| json!({
                "index": page.index, "offset": page.offset, "lsn": page.lsn, "highest_seq": page.highest,
                "data_blocks": page.data_blocks, "zero_blocks": page.zero_blocks,
                "lost_blocks": page.lost_blocks, "unknown_blocks": page.unknown_blocks,
            })).collect::<Vec<_>>(),
        })
    });
    let layout = &shown.layout;
    json!({
        "path": path,
        "superblocks": superblocks.collect::<Vec<_>>(),
        "layout": {
            "capacity_bytes": layout.capacity, "journal_offset": layout.journal_at,
            "journal_bytes": layout.journal_bytes, "root_offsets": layout.root_at,
            "root_bytes": layout.root_bytes, "bitmap_offsets": layout.bitmap_at,
            "bitmap_bytes": layout.bitmap_bytes, "pool_offset": layout.pool_at, "slots": layout.slots,
        },
        "root": { "offset": shown.root_offset, "bytes": shown.root_bytes },
        "frames": frames.collect::<Vec<_>>(),
        "fences": shown.fences.iter().map(|(volume, epoch)| json!({
            "volume": volume.get().to_string(), "epoch": epoch.get(),
        })).collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "damages": damages(shown).map(damage_json).collect::<Vec<_>>(),
    })
}

fn damages(shown: &Shown) -> impl Iterator<Item = &Damage> {
    shown.events.iter().filter_map(|event| match event {
        StoreEvent::Damaged(damage) => Some(damage),
        StoreEvent::Recovered { .. }
        | StoreEvent::Corrupt { .. }
        | StoreEvent::Checkpointed { .. } => None,
    })
}

fn shown_text(path: &Path, shown: &Shown) -> String {
    let layout = &shown.layout;
    let mut text = format!("disk {}, {}\n", path.display(), ByteSize(layout.capacity));
    for superblock in &shown.superblocks {
        let mark = if superblock.used { "  <- the newest" } else { "" };
        let _ = match &superblock.found {
            Ok(found) => writeln!(
                text,
                "superblock at {}: cluster {}, disk {}, generation {}, life {}, lsn {}{mark}",
                superblock.offset,
                found.cluster,
                hex(found.uuid),
                found.generation,
                found.life,
                found.lsn.get()
            ),
            Err(fault) => writeln!(text, "superblock at {}: {fault}", superblock.offset),
        };
    }
    let _ = writeln!(
        text,
        "journal    at {}, {}\nroot       at {} and {}, now {} bytes at {}\nbitmap     at {} and {}\n\
         pool       at {}, {} slots of 4 KiB\n",
        layout.journal_at,
        ByteSize(layout.journal_bytes),
        layout.root_at[0],
        layout.root_at[1],
        shown.root_bytes,
        shown.root_offset,
        layout.bitmap_at[0],
        layout.bitmap_at[1],
        layout.pool_at,
        layout.slots
    );
    for damage in damages(shown) {
        let _ = writeln!(text, "DAMAGED    {}", damage_text(damage));
    }
    text.push_str(&frames_text(shown));
    for (volume, epoch) in &shown.fences {
        let _ = writeln!(text, "volume {} is fenced at epoch {}", volume.get(), epoch.get());
    }
    text.push_str(&segments_text(shown));
    text.trim_end().to_owned()
}

fn frames_text(shown: &Shown) -> String {
    let rows: Vec<Vec<String>> = shown
        .frames
        .iter()
        .map(|frame| {
            let mut kinds: Vec<(&str, u32)> = Vec::new();
            for entry in &frame.entries {
                match kinds.iter_mut().find(|(kind, _)| *kind == entry.kind) {
                    Some((_, count)) => *count += 1,
                    None => kinds.push((entry.kind, 1)),
                }
            }
            let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
            vec![
                frame.offset.to_string(),
                frame.bytes.to_string(),
                frame.life.to_string(),
                frame.lsn.to_string(),
                frame.durable.to_string(),
                standing(frame.standing).to_owned(),
                kinds.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "the journal is empty\n\n".to_owned();
    }
    let head = ["FRAME AT", "BYTES", "LIFE", "LSN", "DURABLE", "STANDING", "ENTRIES"];
    format!("{}\n\n", table(&head, &rows))
}

fn segments_text(shown: &Shown) -> String {
    let mut text = String::new();
    for segment in &shown.segments {
        let meta = &segment.meta;
        let joining = if meta.joining { ", joining" } else { "" };
        let damaged = if meta.damaged { ", DAMAGED" } else { "" };
        let _ = writeln!(
            text,
            "\nvolume {} segment {}: made at epoch {}, settled seq {}, highest {}{joining}{damaged}",
            segment.key.volume.get(),
            segment.key.segment.get(),
            meta.creation.get(),
            meta.settled.get(),
            meta.highest.get()
        );
        for page in &segment.segment_pages {
            let _ = writeln!(text, "  segment page {} at {}", page.index, page.offset);
        }
        let rows: Vec<Vec<String>> = segment
            .pages
            .iter()
            .map(|page| {
                vec![
                    format!("  {}", page.index),
                    page.offset.map_or("journal only".to_owned(), |offset| offset.to_string()),
                    page.lsn.to_string(),
                    page.highest.to_string(),
                    page.data_blocks.to_string(),
                    page.zero_blocks.to_string(),
                    page.lost_blocks.to_string(),
                    page.unknown_blocks.to_string(),
                ]
            })
            .collect();
        if !rows.is_empty() {
            let head = ["  PAGE", "AT", "LSN", "SEQ", "DATA", "ZERO", "LOST", "UNKNOWN"];
            text.push_str(&table(&head, &rows));
            text.push('\n');
        }
    }
    text
}
