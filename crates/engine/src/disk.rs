//! Disk operations: what a store asks, made into what a file takes, and continued until it is whole.

use crate::arena::{ALIGN, AlignedBuf, Arena};
use crate::engine::{Engine, Event};
use crate::op::{Op, iovec};
use crate::sys;
use bytes::Bytes;
use gabion_types::{DiskDone, DiskError, DiskOp, DiskOpKind, DiskToken, Duration};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Disks of one engine.
pub const DISKS_MAX: usize = 64;
/// Operations that one disk's queue in the kernel holds. More wait in user space; the store that
/// asks for them bounds how many.
pub const DISK_OPS_IN_FLIGHT_MAX: usize = 256;
/// The kernel's limit of pieces in one `writev`; the rest goes with the next.
const WRITE_PIECES_MAX: usize = 1024;
/// EINTR, EAGAIN and ECANCELED in a row, after which they count as the device's word.
const ATTEMPTS_MAX: u32 = 1000;

/// A lock that another holds is tried so often, so far apart.
const LOCK_ATTEMPTS_MAX: u32 = 40;
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// A disk that was added; its place in the order of adding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskHandle(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    pub capacity_bytes: u64,
    /// O_DIRECT is on: asked for, and granted by the file system.
    pub direct: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskOpenError {
    #[error("disk {path} cannot be opened ({error}); check the path and its permissions")]
    Open { path: PathBuf, error: io::Error },
    #[error("disk {path} is in use by another process; stop that one first")]
    InUse { path: PathBuf },
    #[error("disk {path} cannot be locked ({error})")]
    Lock { path: PathBuf, error: io::Error },
    #[error("the size of disk {path} cannot be found ({error})")]
    Size { path: PathBuf, error: io::Error },
    #[error("more than {DISKS_MAX} disks on one node")]
    TooMany,
}

pub(crate) struct DiskFile {
    pub(crate) file: File,
    /// Its place among the ring's registered files.
    pub(crate) slot: Option<u32>,
    /// Its file system makes who hands an operation over wait for it: others are to wait, not this thread.
    pub(crate) blocks: bool,
}

impl DiskFile {
    pub(crate) fn new(file: File, slot: Option<u32>) -> Self {
        let blocks = sys::is_on_fuse(&file);
        Self { file, slot, blocks }
    }
}

pub(crate) struct Disk {
    file: Rc<DiskFile>,
    info: DiskInfo,
    in_flight: usize,
    waiting: VecDeque<DiskJob>,
}

/// One `DiskOp` until its `DiskDone`.
pub(crate) struct DiskJob {
    disk: DiskHandle,
    file: Rc<DiskFile>,
    token: DiskToken,
    work: Work,
    attempts: u32,
}

enum Work {
    Read { offset: u64, buf: AlignedBuf, filled: usize },
    Write { offset: u64, pieces: Vec<Bytes>, written: usize, iovecs: Vec<libc::iovec> },
    Sync,
}

/// What is left to do of a job, for the driver.
pub(crate) enum Target<'a> {
    Read { rest: &'a mut [u8], offset: u64 },
    Write { iovecs: &'a [libc::iovec], offset: u64 },
    Sync,
}

impl Disk {
    /// Operations that the kernel has.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

enum Step {
    Again(DiskJob),
    Done(Result<Bytes, DiskError>),
}

impl Engine {
    /// Opens a disk and locks it for life (flock; a block device also with O_EXCL). O_DIRECT is left
    /// out where the file system refuses it; `DiskInfo` says so.
    pub fn add_disk(&mut self, path: &Path, direct: bool) -> Result<DiskHandle, DiskOpenError> {
        if self.disks.len() >= DISKS_MAX {
            return Err(DiskOpenError::TooMany);
        }
        let (mut file, direct) = open(path, direct)?;
        lock(&file, path)?;
        let capacity_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|error| DiskOpenError::Size { path: path.to_owned(), error })?;
        let slot = self.ring.register_file(&file);
        let handle = DiskHandle(u32::try_from(self.disks.len()).expect("few disks"));
        self.disks.push(Disk {
            file: Rc::new(DiskFile::new(file, slot)),
            info: DiskInfo { capacity_bytes, direct },
            in_flight: 0,
            waiting: VecDeque::new(),
        });
        Ok(handle)
    }

    pub fn disk_info(&self, disk: DiskHandle) -> DiskInfo {
        self.disk_of(disk).info
    }

    /// Order: none between operations. Exactly one `Event::Disk` comes for each.
    pub fn disk(&mut self, disk: DiskHandle, op: DiskOp) {
        let DiskOp { token, kind } = op;
        let state = self.disk_of(disk);
        let (offset, length) = match &kind {
            DiskOpKind::Read { offset, length } => (*offset, *length),
            DiskOpKind::Write { offset, pieces } => {
                (*offset, pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            DiskOpKind::Sync => (0, 0),
        };
        let end = offset.saturating_add(length);
        let file = Rc::clone(&state.file);
        let past_end = end > state.info.capacity_bytes;
        let empty = length == 0 && kind != DiskOpKind::Sync;
        if past_end || empty {
            let result = if past_end { Err(DiskError::PastEnd { end }) } else { Ok(Bytes::new()) };
            self.ready.push_back(Event::Disk { disk, done: DiskDone { token, result } });
            return;
        }
        let work = match kind {
            DiskOpKind::Read { offset, length } => {
                let length = usize::try_from(length).expect("a usize has 64 bits here");
                Work::Read { offset, buf: self.arena.take(length), filled: 0 }
            }
            DiskOpKind::Write { offset, pieces } => {
                let direct = state.info.direct;
                let pieces = if direct { align(&self.arena, pieces) } else { pieces };
                Work::Write { offset, pieces, written: 0, iovecs: Vec::new() }
            }
            DiskOpKind::Sync => Work::Sync,
        };
        let job = DiskJob { disk, file, token, work, attempts: 0 };
        let state = self.disk_of_mut(disk);
        if state.in_flight < DISK_OPS_IN_FLIGHT_MAX {
            state.in_flight += 1;
            self.ring.start(Op::Disk(job));
        } else {
            state.waiting.push_back(job);
        }
    }

    pub(crate) fn on_disk(&mut self, job: DiskJob, result: i32) {
        let (disk, token) = (job.disk, job.token);
        match job.advance(result) {
            Step::Again(job) => {
                self.ring.start(Op::Disk(job));
            }
            Step::Done(result) => {
                self.turn_bytes += result.as_ref().map_or(0, Bytes::len);
                let done = DiskDone { token, result };
                self.ready.push_back(Event::Disk { disk, done });
                let state = self.disk_of_mut(disk);
                match state.waiting.pop_front() {
                    Some(next) => {
                        self.ring.start(Op::Disk(next));
                    }
                    None => state.in_flight -= 1,
                }
            }
        }
    }

    fn disk_of(&self, disk: DiskHandle) -> &Disk {
        &self.disks[disk.0 as usize]
    }

    fn disk_of_mut(&mut self, disk: DiskHandle) -> &mut Disk {
        &mut self.disks[disk.0 as usize]
    }
}

fn open(path: &Path, direct: bool) -> Result<(File, bool), DiskOpenError> {
    let failed = |error| DiskOpenError::Open { path: path.to_owned(), error };
    let device = path.metadata().map_err(failed)?.file_type().is_block_device();
    let exclusive = if device { libc::O_EXCL } else { 0 };
    let with = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    if direct {
        match with(exclusive | libc::O_DIRECT) {
            Ok(file) => return Ok((file, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(DiskOpenError::InUse { path: path.to_owned() });
            }
            Err(error) => return Err(failed(error)),
        }
    }
    with(exclusive).map(|file| (file, false)).map_err(failed)
}

/// The lock of a process that was killed goes a moment after it: its ring is taken apart by the
/// kernel in the background.
fn lock(file: &File, path: &Path) -> Result<(), DiskOpenError> {
    for attempt in 0.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_ATTEMPTS_MAX => {
                std::thread::sleep(LOCK_AGAIN);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(DiskOpenError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(error)) => {
                return Err(DiskOpenError::Lock { path: path.to_owned(), error });
            }
        }
    }
    Ok(())
}

impl DiskJob {
    pub(crate) fn file(&self) -> &Rc<DiskFile> {
        &self.file
    }

    /// What to ask of the kernel now. It may do less; `advance` counts.
    pub(crate) fn target(&mut self) -> Target<'_> {
        match &mut self.work {
            Work::Read { offset, buf, filled } => {
                Target::Read { rest: &mut buf[*filled..], offset: *offset + *filled as u64 }
            }
            Work::Write { offset, pieces, written, iovecs } => {
                *iovecs = rest_of(pieces, *written);
                Target::Write { iovecs, offset: *offset + *written as u64 }
            }
            Work::Sync => Target::Sync,
        }
    }

    fn advance(mut self, result: i32) -> Step {
        let Ok(bytes) = usize::try_from(result) else {
            return self.on_error(-result);
        };
        self.attempts = 0;
        let (left, end) = match &mut self.work {
            Work::Read { offset, buf, filled } => {
                *filled += bytes;
                (buf.len() - *filled, *offset + buf.len() as u64)
            }
            Work::Write { offset, pieces, written, .. } => {
                *written += bytes;
                let whole: usize = pieces.iter().map(Bytes::len).sum();
                (whole - *written, *offset + whole as u64)
            }
            Work::Sync => (0, 0),
        };
        match self.work {
            Work::Read { .. } | Work::Write { .. } if left > 0 && bytes > 0 => Step::Again(self),
            Work::Read { .. } if left > 0 => Step::Done(Err(DiskError::PastEnd { end })),
            Work::Write { .. } if left > 0 => Step::Done(Err(DiskError::Io { errno: libc::EIO })),
            Work::Read { buf, .. } => Step::Done(Ok(buf.into_bytes())),
            Work::Write { .. } | Work::Sync => Step::Done(Ok(Bytes::new())),
        }
    }

    fn on_error(mut self, errno: i32) -> Step {
        self.attempts += 1;
        match errno {
            libc::EINTR | libc::EAGAIN | libc::ECANCELED if self.attempts < ATTEMPTS_MAX => {
                Step::Again(self)
            }
            libc::ENOSPC | libc::EDQUOT => Step::Done(Err(DiskError::NoSpace)),
            _ => Step::Done(Err(DiskError::Io { errno })),
        }
    }
}

/// The pieces beyond the first `written` bytes.
fn rest_of(pieces: &[Bytes], mut written: usize) -> Vec<libc::iovec> {
    let mut rest = Vec::with_capacity(pieces.len().min(WRITE_PIECES_MAX));
    for piece in pieces {
        let skipped = written.min(piece.len());
        written -= skipped;
        if skipped < piece.len() && rest.len() < WRITE_PIECES_MAX {
            rest.push(iovec(&piece[skipped..]));
        }
    }
    rest
}

/// As O_DIRECT wants it: what is not aligned is copied together into memory that is.
fn align(arena: &Arena, pieces: Vec<Bytes>) -> Vec<Bytes> {
    let fits = |piece: &Bytes| {
        (piece.as_ptr() as usize).is_multiple_of(ALIGN) && piece.len().is_multiple_of(ALIGN)
    };
    if pieces.iter().all(fits) {
        return pieces;
    }
    let mut aligned = Vec::with_capacity(pieces.len());
    let mut run: Vec<Bytes> = Vec::new();
    let mut run_bytes = 0usize;
    for piece in pieces {
        if run_bytes.is_multiple_of(ALIGN) && fits(&piece) {
            aligned.extend(copy_together(arena, &mut run, run_bytes));
            run_bytes = 0;
            aligned.push(piece);
        } else {
            run_bytes += piece.len();
            run.push(piece);
        }
    }
    aligned.extend(copy_together(arena, &mut run, run_bytes));
    aligned
}

fn copy_together(arena: &Arena, run: &mut Vec<Bytes>, bytes: usize) -> Option<Bytes> {
    if run.is_empty() {
        return None;
    }
    let mut copy = arena.take(bytes);
    let mut at = 0;
    for piece in run.drain(..) {
        copy[at..at + piece.len()].copy_from_slice(&piece);
        at += piece.len();
    }
    Some(copy.into_bytes())
}

#[cfg(test)]
mod tests;
