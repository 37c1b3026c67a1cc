//! Page-aligned memory for disk I/O and for large payloads.
#![allow(unsafe_code)]

use crate::buddy::Buddy;
use bytes::Bytes;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// What O_DIRECT wants of addresses, offsets and lengths. Units: bytes.
pub const ALIGN: usize = 4096;

/// One mapping that is registered with the ring, handed out in runs of pages. When it is used up, or
/// a run over 1 MiB is wanted, memory comes from the heap: slower, never refused. What is out at a
/// time is bounded by the limits of those who ask.
#[derive(Clone, Debug)]
pub struct Arena {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    base: NonNull<u8>,
    bytes: usize,
    pages: Mutex<Buddy>,
    /// Keeps the memory mapped; only reached by `base`.
    _map: MmapMut,
}

// SAFETY: the pages behind `base` are only touched through `AlignedBuf`s, each of which owns its run
// alone (the buddy allocator, under the mutex, gives a run to one owner at a time).
unsafe impl Send for Shared {}
// SAFETY: as above; `Shared` itself reads and writes nothing behind `base`.
unsafe impl Sync for Shared {}

impl Arena {
    /// Errors: the mapping was refused.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(ALIGN).next_multiple_of(ALIGN);
        let mut map = MmapMut::map_anon(bytes)?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = u32::try_from(bytes / ALIGN).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pages = Mutex::new(Buddy::new(pages));
        Ok(Self { shared: Arc::new(Shared { base, bytes, pages, _map: map }) })
    }

    /// Aligned memory of `length` bytes with whatever was in it before.
    pub fn take(&self, length: usize) -> AlignedBuf {
        let pages = length.div_ceil(ALIGN).max(1);
        let run = Buddy::order_of(pages).and_then(|order| {
            let mut free = self.shared.pages.lock().unwrap_or_else(PoisonError::into_inner);
            free.take(order).map(|page| (page, order))
        });
        let Some((page, order)) = run else { return AlignedBuf::on_heap(length) };
        // SAFETY: the run lies within the mapping, so the offset does and the sum does not wrap.
        let start = unsafe { self.shared.base.add(page as usize * ALIGN) };
        let home = Home::Arena { shared: Arc::clone(&self.shared), page, order };
        AlignedBuf { start, length, home }
    }

    /// The whole of it, to be registered with the ring.
    pub(crate) fn as_iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.shared.base.as_ptr().cast(), iov_len: self.shared.bytes }
    }

    /// Whether memory lies in the arena.
    pub(crate) fn holds(&self, start: *const u8, length: usize) -> bool {
        let base = self.shared.base.as_ptr() as usize;
        let start = start as usize;
        base <= start && start.saturating_add(length) <= base + self.shared.bytes
    }
}

/// A buffer whose start is a multiple of 4096; nobody else holds its memory.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    length: usize,
    home: Home,
}

#[derive(Debug)]
enum Home {
    Arena { shared: Arc<Shared>, page: u32, order: u8 },
    Heap { layout: Layout },
}

// SAFETY: an `AlignedBuf` owns its memory alone, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references to it only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Zeroed memory from the heap.
    pub fn on_heap(length: usize) -> Self {
        let bytes = length.max(1).next_multiple_of(ALIGN);
        let layout =
            Layout::from_size_align(bytes, ALIGN).expect("lengths are far below isize::MAX");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, length, home: Home::Heap { layout } }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Without a copy.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `length` bytes while self lives; they are initialised, since
        // both the mapping and the heap memory begin as zeros.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match &self.home {
            Home::Arena { shared, page, order } => {
                let mut free = shared.pages.lock().unwrap_or_else(PoisonError::into_inner);
                free.give_back(*page, *order);
            }
            // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed once, here.
            Home::Heap { layout } => unsafe { dealloc(self.start.as_ptr(), *layout) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_the_heap_helps_out() {
        let arena = Arena::new(1 << 20).unwrap();
        let first = arena.take(600 << 10);
        let second = arena.take(8192);
        assert!(arena.holds(first.as_ptr(), first.len()));
        assert!(!arena.holds(second.as_ptr(), second.len()), "a run of 1 MiB was all there is");
        drop(first);
        let third = arena.take(100);
        assert!(arena.holds(third.as_ptr(), third.len()));
        for buf in [&second, &third] {
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        }
        assert_eq!((second.len(), third.len()), (8192, 100));
    }

    #[test]
    fn a_buffer_outlives_its_arena_as_bytes() {
        let arena = Arena::new(1 << 20).unwrap();
        let mut buf = arena.take(4096);
        buf.fill(7);
        let bytes = buf.into_bytes();
        drop(arena);
        let part = bytes.slice(4000..);
        drop(bytes);
        assert_eq!(part.as_ref(), &[7; 96]);
    }
}
