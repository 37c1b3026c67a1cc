//! The portable driver: epoll for sockets, a small pool of threads for disks. It takes the same
//! operations as the ring and gives them back with the same results, where io_uring is refused.
#![allow(unsafe_code)]

use crate::op::{Op, OpKey, Space};
use crate::pool::{Pool, Task, Work};
use crate::setup::EngineError;
use crate::sys;
use gabion_types::{Duration, Slab};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Events that one look takes; more wait for the next.
const EVENTS_MAX: usize = 256;
/// What epoll says for the pool's bell. No descriptor reaches it.
const BELL: u64 = u64::MAX;
const GONE: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
const READABLE: u32 = libc::EPOLLIN.cast_unsigned();
const WRITABLE: u32 = libc::EPOLLOUT.cast_unsigned();

pub(crate) struct Portable {
    epoll: OwnedFd,
    /// Each under its key; with its result, it is complete and waits to be handed out.
    ops: Slab<Started>,
    /// Not tried yet.
    fresh: VecDeque<u64>,
    interests: BTreeMap<RawFd, Interest>,
    ready: VecDeque<u64>,
    pool: Pool,
}

struct Started {
    op: Op,
    result: Option<i32>,
}

/// Who waits for a descriptor, and what epoll was told to look for.
#[derive(Clone, Copy, Default)]
struct Interest {
    read: Option<u64>,
    write: Option<u64>,
    watch: Option<u64>,
    armed: Option<u32>,
}

impl Interest {
    fn events(&self) -> Option<u32> {
        let one = |wanted: Option<u64>, events| if wanted.is_some() { events } else { 0 };
        // Hang-ups and errors come unasked.
        let watched = libc::EPOLLRDHUP.cast_unsigned();
        let events =
            one(self.read, READABLE) | one(self.write, WRITABLE) | one(self.watch, watched);
        (events != 0).then_some(events)
    }
}

impl Portable {
    pub(crate) fn new(ops_max: u32) -> Result<Self, EngineError> {
        let epoll = sys::epoll().map_err(EngineError::Portable)?;
        let pool = Pool::new().map_err(EngineError::Portable)?;
        sys::epoll_control(&epoll, libc::EPOLL_CTL_ADD, pool.bell().as_raw_fd(), READABLE, BELL)
            .map_err(EngineError::Portable)?;
        Ok(Self {
            epoll,
            ops: Slab::new(ops_max),
            fresh: VecDeque::new(),
            interests: BTreeMap::new(),
            ready: VecDeque::new(),
            pool,
        })
    }

    pub(crate) fn under_way(&self) -> usize {
        self.ops.len()
    }

    /// Order: tried by the next `wait`, in the order of the calls.
    pub(crate) fn start(&mut self, op: Op) -> OpKey {
        let Ok(key) = self.ops.insert(Started { op, result: None }) else {
            panic!("connections and disks bound what is under way below the table's size")
        };
        self.fresh.push_back(key);
        OpKey(key)
    }

    /// What is under way on a disk goes on to its end.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        let Some(started) = self.ops.get(key.0) else { return };
        if started.result.is_some() || matches!(started.op, Op::Disk(_)) {
            return;
        }
        if let Some((fd, _)) = waits_for(&started.op) {
            self.change(fd, |interest| {
                for waiting in [&mut interest.read, &mut interest.write, &mut interest.watch] {
                    if *waiting == Some(key.0) {
                        *waiting = None;
                    }
                }
            });
        }
        self.complete(key.0, -libc::ECANCELED);
    }

    /// Tries all that was started; returns when something is complete or the time is over.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while let Some(key) = self.fresh.pop_front() {
            let Some(started) = self.ops.get(key).filter(|started| started.result.is_none()) else {
                continue;
            };
            let waits_for = waits_for(&started.op);
            if let Some(result) = self.attempt(key, true) {
                self.complete(key, result);
            } else if let Some((fd, role)) = waits_for {
                self.change(fd, |interest| *role.of(interest) = Some(key));
            }
        }
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let count = sys::epoll_wait(&self.epoll, &mut events, timeout)?;
        for event in &events[..count] {
            let (about, happened) = (event.u64, event.events);
            if about == BELL {
                for (key, result) in self.pool.take_done() {
                    self.complete(key, result);
                }
            } else if let Ok(fd) = RawFd::try_from(about) {
                self.on_event(fd, happened);
            }
        }
        Ok(())
    }

    fn on_event(&mut self, fd: RawFd, happened: u32) {
        let Some(interest) = self.interests.get(&fd).copied() else { return };
        let looks = [
            (interest.read, happened & (READABLE | GONE) != 0, Role::Read),
            (interest.write, happened & (WRITABLE | GONE) != 0, Role::Write),
            (interest.watch, happened & GONE != 0, Role::Watch),
        ];
        for (key, concerned, role) in looks {
            let Some(key) = key.filter(|_| concerned) else { continue };
            let result = match role {
                Role::Watch => Some(1),
                Role::Read | Role::Write => self.attempt(key, false),
            };
            if let Some(result) = result {
                self.change(fd, |interest| *role.of(interest) = None);
                self.complete(key, result);
            }
        }
    }

    /// Changes who waits for a descriptor, and tells epoll where that matters.
    fn change(&mut self, fd: RawFd, change: impl FnOnce(&mut Interest)) {
        let mut interest = self.interests.get(&fd).copied().unwrap_or_default();
        change(&mut interest);
        let wanted = interest.events();
        let told = match (interest.armed, wanted) {
            (None, None) => Ok(()),
            (Some(armed), Some(events)) if armed == events => Ok(()),
            (before, Some(events)) => {
                let how = match before {
                    None => libc::EPOLL_CTL_ADD,
                    Some(_) => libc::EPOLL_CTL_MOD,
                };
                let about = u64::try_from(fd).expect("descriptors are not negative");
                sys::epoll_control(&self.epoll, how, fd, events, about)
            }
            (Some(_), None) => sys::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, fd, 0, 0),
        };
        // No memory for it in the kernel: nobody would ever be woken.
        told.expect("epoll takes what is a socket or an eventfd");
        interest.armed = wanted;
        match wanted {
            Some(_) => self.interests.insert(fd, interest),
            None => self.interests.remove(&fd),
        };
    }

    fn complete(&mut self, key: u64, result: i32) {
        if let Some(started) = self.ops.get_mut(key).filter(|started| started.result.is_none()) {
            started.result = Some(result);
            self.ready.push_back(key);
        }
    }

    /// Does it, without a wait. `None`: it would have to wait, or a thread of the pool does it.
    fn attempt(&mut self, key: u64, first: bool) -> Option<i32> {
        let started = self.ops.get_mut(key)?;
        let result = match &mut started.op {
            Op::Wake { fd, value } => {
                sys::set_nonblocking(fd);
                sys::read(fd, value)
            }
            Op::Accept { socket, .. } => {
                sys::set_nonblocking(socket);
                sys::accept(socket)
            }
            Op::Connect { socket, address, .. } if first => {
                sys::set_nonblocking(socket);
                sys::connect(socket, address)
            }
            Op::Connect { socket, .. } => sys::pending_error(socket),
            Op::Watch { .. } => return None,
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
                // SAFETY: the memory is the operation's own, `room` bytes from `start` on.
                unsafe { sys::receive(socket, start, room) }
            }
            Op::Send { socket, message, .. } => {
                // SAFETY: the header and what it points at are the operation's own.
                unsafe { sys::send(socket, message.header()) }
            }
            Op::Disk(job) => {
                let fd = job.file().file.as_raw_fd();
                self.pool.give(Task { key, fd, work: Work::of(job.target()) });
                return None;
            }
        };
        match result {
            Ok(result) => Some(result),
            Err(libc::EAGAIN | libc::EINPROGRESS) => None,
            Err(errno) => Some(-errno),
        }
    }

    /// An operation that is complete.
    pub(crate) fn next(&mut self) -> Option<(Op, i32)> {
        let key = self.ready.pop_front()?;
        let Started { op, result } = self.ops.remove(key).expect("each operation completes once");
        Some((op, result.expect("it has its result before it is ready")))
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.ready.is_empty()
    }
}

impl Drop for Portable {
    /// Waits for the threads. What they don't let go of in time is leaked, never freed under them.
    fn drop(&mut self) {
        if !self.pool.stop() {
            std::mem::forget(std::mem::replace(&mut self.ops, Slab::new(0)));
        }
    }
}

#[derive(Clone, Copy)]
enum Role {
    Read,
    Write,
    Watch,
}

impl Role {
    fn of(self, interest: &mut Interest) -> &mut Option<u64> {
        match self {
            Self::Read => &mut interest.read,
            Self::Write => &mut interest.write,
            Self::Watch => &mut interest.watch,
        }
    }
}

/// The descriptor that an operation waits for; a disk's does not wait for one.
fn waits_for(op: &Op) -> Option<(RawFd, Role)> {
    match op {
        Op::Wake { fd, .. } => Some((fd.as_raw_fd(), Role::Read)),
        Op::Accept { socket, .. } | Op::Receive { socket, .. } => {
            Some((socket.as_raw_fd(), Role::Read))
        }
        Op::Connect { socket, .. } | Op::Send { socket, .. } => {
            Some((socket.as_raw_fd(), Role::Write))
        }
        Op::Watch { socket, .. } => Some((socket.as_raw_fd(), Role::Watch)),
        Op::Disk(_) => None,
    }
}
