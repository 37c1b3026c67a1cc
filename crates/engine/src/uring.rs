//! The io_uring driver: starts operations, and gives each back with its result.
#![allow(unsafe_code)]

use crate::arena::Arena;
use crate::disk::{DiskFile, Target};
use crate::op::{Op, OpKey, Space};
use crate::setup::{EngineError, Setup, Warning};
use gabion_types::{Duration, Slab};
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Submission entries; more that are started in one turn are kept back in user space.
const SQ_ENTRIES: u32 = 512;
const CQ_ENTRIES: u32 = 4096;
/// Registered files: the disks.
const FILES_MAX: u32 = 64;
/// User data of cancels, whose own results say nothing. No slab key reaches it.
const CANCEL: u64 = u64::MAX;
/// The kernel would not take all that was started: it is tried again after so long.
const SUBMIT_AGAIN: Duration = Duration::from_millis(1);
/// The one registered buffer.
const ARENA: u16 = 0;
/// How long a dropped ring waits for what is under way before it leaks its memory instead.
const DROP_WAITS: u32 = 50;
const DROP_WAIT: Duration = Duration::from_millis(100);

pub(crate) struct Ring {
    ring: IoUring,
    /// Each under the key that is its user data. What the kernel works on lives in here.
    ops: Slab<Op>,
    /// Entries that found the submission queue full. Bounded by `ops` and a cancel for each.
    kept_back: VecDeque<squeue::Entry>,
    arena: Arena,
    buffers_registered: bool,
    files_used: Option<u32>,
}

impl Ring {
    pub(crate) fn new(arena: Arena, ops_max: u32) -> Result<(Self, Setup), EngineError> {
        let (ring, ring_flags) = build().map_err(EngineError::UringRefused)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(EngineError::KernelTooOld);
        }
        let mut warnings = Vec::new();
        let memory = arena.as_iovec();
        // SAFETY: the memory stays mapped while `arena` lives, and the ring, which is dropped with
        // `self`, is closed before it (or both are leaked).
        let registered = unsafe { ring.submitter().register_buffers(&[memory]) };
        if let Err(error) = &registered {
            let errno = error.raw_os_error().unwrap_or_default();
            warnings.push(Warning::BuffersNotRegistered { bytes: memory.iov_len, errno });
        }
        let files = ring.submitter().register_files_sparse(FILES_MAX);
        if let Err(error) = &files {
            let errno = error.raw_os_error().unwrap_or_default();
            warnings.push(Warning::FilesNotRegistered { errno });
        }
        let driver = Self {
            ring,
            ops: Slab::new(ops_max),
            kept_back: VecDeque::new(),
            arena,
            buffers_registered: registered.is_ok(),
            files_used: files.is_ok().then_some(0),
        };
        Ok((driver, Setup { driver: "io_uring", ring_flags, warnings }))
    }

    /// Errors: none; a file that finds no place is used by its descriptor.
    pub(crate) fn register_file(&mut self, file: &File) -> Option<u32> {
        let slot = self.files_used.filter(|used| *used < FILES_MAX)?;
        self.ring.submitter().register_files_update(slot, &[file.as_raw_fd()]).ok()?;
        self.files_used = Some(slot + 1);
        Some(slot)
    }

    pub(crate) fn under_way(&self) -> usize {
        self.ops.len()
    }

    /// Order: submitted by the next `wait`, in the order of the calls.
    pub(crate) fn start(&mut self, op: Op) -> OpKey {
        let Ok(key) = self.ops.insert(op) else {
            panic!("connections and disks bound what is under way below the table's size")
        };
        let op = self.ops.get_mut(key).expect("it was put there just now");
        let registered = self.buffers_registered.then_some(&self.arena);
        let entry = entry(op, registered).user_data(key);
        self.push(entry);
        OpKey(key)
    }

    /// Its completion comes sooner: with ECANCELED, or as if nothing had been said.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        if self.ops.get(key.0).is_some() {
            let entry = opcode::AsyncCancel::new(key.0).build().user_data(CANCEL);
            self.push(entry);
        }
    }

    /// Submits all that was started; returns when something is complete or the time is over.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.submit_kept_back()?;
        let timeout = match timeout {
            // Completions wait to be looked at: no sleep.
            _ if !self.is_drained() => Some(Duration::ZERO),
            // The kernel took no more for the moment; soon again.
            _ if !self.kept_back.is_empty() => Some(SUBMIT_AGAIN),
            timeout => timeout,
        };
        let done = match timeout {
            Some(timeout) => {
                let time = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            None => self.ring.submit_and_wait(1),
        };
        match done {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) || comes_back(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn submit_kept_back(&mut self) -> io::Result<()> {
        while !self.kept_back.is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if comes_back(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            let before = self.kept_back.len();
            while let Some(entry) = self.kept_back.pop_front() {
                // SAFETY: as in `push`.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    self.kept_back.push_front(entry);
                    break;
                }
            }
            if self.kept_back.len() == before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// An operation that is complete: the kernel is done with all that it owns.
    pub(crate) fn next(&mut self) -> Option<(Op, i32)> {
        loop {
            let completion = self.ring.completion().next()?;
            let (key, result) = (completion.user_data(), completion.result());
            if key == CANCEL {
                continue;
            }
            let op = self.ops.remove(key).expect("each operation completes once");
            return Some((op, result));
        }
    }

    /// Nothing that was complete at the last `wait` is left.
    pub(crate) fn is_drained(&mut self) -> bool {
        self.ring.completion().is_empty()
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: what the entry points at is owned by an operation in `ops` (heap memory, which
        // stays in place when the operation moves) and goes only in `next`, after the completion.
        let pushed =
            self.kept_back.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok();
        if !pushed {
            self.kept_back.push_back(entry);
        }
    }
}

impl Drop for Ring {
    /// Cancels and waits. What the kernel won't let go of in time is leaked, never freed under it.
    fn drop(&mut self) {
        let keys: Vec<_> = self.ops.iter().map(|(key, _)| OpKey(key)).collect();
        keys.into_iter().for_each(|key| self.cancel(key));
        for _ in 0..DROP_WAITS {
            if self.ops.is_empty() || self.wait(Some(DROP_WAIT)).is_err() {
                break;
            }
            while self.next().is_some() {}
        }
        // The kernel takes a ring apart in the background; locks on its files must not outlive this.
        let _ = self.ring.submitter().unregister_files();
        if !self.ops.is_empty() {
            std::mem::forget(std::mem::replace(&mut self.ops, Slab::new(0)));
            std::mem::forget(self.arena.clone());
        }
    }
}

/// What was received into a chunk's spare room belongs to the chunk from now on.
pub(crate) fn count_received(op: &mut Op, result: i32) {
    if let Op::Receive { space: Space::Chunk(chunk), .. } = op
        && let Ok(received) = usize::try_from(result)
    {
        let length = chunk.len() + received;
        assert!(length <= chunk.capacity(), "the kernel keeps to the room it was given");
        // SAFETY: the kernel wrote `received` bytes behind the chunk's length.
        unsafe { chunk.set_len(length) };
    }
}

/// `POLLIN` isn't asked for: data that nobody wants to read yet must not wake the loop.
const HANG_UP: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR).cast_unsigned() as u32;

/// Flags are tried from the best down: an old kernel refuses those that it does not know.
fn build() -> io::Result<(IoUring, &'static str)> {
    let best = IoUring::builder()
        .setup_clamp()
        .setup_cqsize(CQ_ENTRIES)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SQ_ENTRIES);
    if let Ok(ring) = best {
        return Ok((ring, "single_issuer defer_taskrun submit_all"));
    }
    let good = IoUring::builder()
        .setup_clamp()
        .setup_cqsize(CQ_ENTRIES)
        .setup_submit_all()
        .setup_coop_taskrun()
        .build(SQ_ENTRIES);
    if let Ok(ring) = good {
        return Ok((ring, "coop_taskrun submit_all"));
    }
    let plain = IoUring::builder().setup_clamp().setup_cqsize(CQ_ENTRIES).build(SQ_ENTRIES)?;
    Ok((plain, "none"))
}

/// Interrupted, or the completion queue or memory is full for the moment: the caller reaps and comes
/// again.
fn comes_back(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn raw(fd: &OwnedFd) -> Fd {
    Fd(fd.as_raw_fd())
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("operations are far below 4 GiB")
}

/// A header for `sendmsg` of pieces that stay where they are while it is used.
pub(crate) fn message_header(iovecs: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeros (no name, no control data) is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iovecs.as_ptr().cast_mut();
    header.msg_iovlen = iovecs.len();
    header
}

/// What the kernel is told of an operation; it points at memory that the operation owns.
fn entry(op: &mut Op, registered: Option<&Arena>) -> squeue::Entry {
    match op {
        Op::Wake { fd, value } => {
            opcode::Read::new(raw(fd), value.start(), length(value.len())).build()
        }
        Op::Accept { socket, .. } => {
            opcode::Accept::new(raw(socket), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Connect { socket, address, .. } => {
            let (address, bytes) = address.as_raw();
            opcode::Connect::new(raw(socket), address, bytes).build()
        }
        Op::Watch { socket, .. } => opcode::PollAdd::new(raw(socket), HANG_UP).build(),
        Op::Receive { socket, space, .. } => {
            let (start, room) = match space {
                Space::Chunk(chunk) => {
                    let spare = chunk.spare_capacity_mut();
                    (spare.as_mut_ptr().cast(), spare.len())
                }
                Space::Place(place) => {
                    let rest = place.rest();
                    (rest.as_mut_ptr(), rest.len())
                }
            };
            opcode::Recv::new(raw(socket), start, length(room)).build()
        }
        Op::Send { socket, message, .. } => {
            let flags = libc::MSG_NOSIGNAL.cast_unsigned();
            opcode::SendMsg::new(raw(socket), message.header()).flags(flags).build()
        }
        Op::Disk(job) => {
            let file = std::rc::Rc::clone(job.file());
            let entry = disk_entry(&file, job.target(), registered);
            if file.blocks { entry.flags(squeue::Flags::ASYNC) } else { entry }
        }
    }
}

/// The same entry on a registered file or on a descriptor, which are two types.
macro_rules! on_file {
    ($file:ident, |$fd:ident| $entry:expr) => {
        match $file.slot {
            Some(slot) => {
                let $fd = Fixed(slot);
                $entry
            }
            None => {
                let $fd = Fd($file.file.as_raw_fd());
                $entry
            }
        }
    };
}

fn disk_entry(file: &DiskFile, target: Target<'_>, registered: Option<&Arena>) -> squeue::Entry {
    let fixed = |start: *const u8, bytes| registered.is_some_and(|arena| arena.holds(start, bytes));
    match target {
        Target::Sync => {
            on_file!(file, |fd| opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build())
        }
        Target::Read { rest, offset } => {
            let (start, bytes) = (rest.as_mut_ptr(), length(rest.len()));
            if fixed(start, rest.len()) {
                on_file!(file, |fd| {
                    opcode::ReadFixed::new(fd, start, bytes, ARENA).offset(offset).build()
                })
            } else {
                on_file!(file, |fd| opcode::Read::new(fd, start, bytes).offset(offset).build())
            }
        }
        Target::Write { iovecs: [one], offset } if fixed(one.iov_base.cast(), one.iov_len) => {
            let (start, bytes) = (one.iov_base.cast::<u8>(), length(one.iov_len));
            on_file!(file, |fd| {
                opcode::WriteFixed::new(fd, start, bytes, ARENA).offset(offset).build()
            })
        }
        Target::Write { iovecs, offset } => {
            let count = length(iovecs.len());
            on_file!(file, |fd| {
                opcode::Writev::new(fd, iovecs.as_ptr(), count).offset(offset).build()
            })
        }
    }
}
