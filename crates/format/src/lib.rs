#![doc = include_str!("../README.md")]

pub mod bitmap;
pub mod codec;
pub mod entry;
pub mod frame;
pub mod ids;
pub mod layout;
pub mod map_page;
pub mod root;
pub mod segment_page;
pub mod superblock;

pub use bitmap::{BITMAP_PAGE_BYTES, BITMAP_PAGE_SLOTS, BitmapPage};
pub use codec::FormatError;
pub use entry::{Content, Entry, Rule};
pub use frame::{FRAME_PAGES_MAX, Frame, FrameHead, encode_frame, frame_pages};
pub use ids::{DiskUuid, Lsn, SegmentKey, Slot};
pub use layout::{CAPACITY_MAX, CAPACITY_MIN, Layout, LayoutError};
pub use map_page::{BlockEntry, BlockState, MapPage, PAGE_BLOCKS};
pub use root::{ChunkRef, Root, SegmentMeta, SegmentRecord};
pub use segment_page::{CHUNK_PAGES, PageRef, SegmentPage};
pub use superblock::Superblock;

/// Unit of everything on disk. Units: bytes.
pub const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
