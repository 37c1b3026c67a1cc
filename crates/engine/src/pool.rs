//! Threads that do disk operations for the portable driver, one at a time each.
#![allow(unsafe_code)]

use crate::disk::Target;
use crate::sys;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Disk operations at a time, over all disks.
const THREADS: usize = 8;
/// How long a pool that ends waits for what is under way.
const STOP_MOST: Duration = Duration::from_secs(5);

/// One operation; its memory and its descriptor are the driver's, which keeps both until it is done.
pub(crate) struct Task {
    pub(crate) key: u64,
    pub(crate) fd: RawFd,
    pub(crate) work: Work,
}

pub(crate) enum Work {
    Read { start: *mut u8, bytes: usize, offset: u64 },
    Write { pieces: *const libc::iovec, count: usize, offset: u64 },
    Sync,
}

// SAFETY: what the pointers show belongs to an operation that the driver neither touches nor frees
// before the task is done; each task is worked on by one thread.
unsafe impl Send for Task {}

impl Work {
    pub(crate) fn of(target: Target<'_>) -> Self {
        match target {
            Target::Read { rest, offset } => {
                Self::Read { start: rest.as_mut_ptr(), bytes: rest.len(), offset }
            }
            Target::Write { iovecs, offset } => {
                Self::Write { pieces: iovecs.as_ptr(), count: iovecs.len(), offset }
            }
            Target::Sync => Self::Sync,
        }
    }
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// A task came, or one was done, or all is to end.
    changed: Condvar,
    /// Rung when something is done.
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    /// Bounded by the driver's table of operations.
    tasks: VecDeque<Task>,
    running: usize,
    done: Vec<(u64, i32)>,
    stopping: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = sys::eventfd()?;
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { state, changed: Condvar::new(), bell });
        let mut threads = Vec::with_capacity(THREADS);
        for nth in 0..THREADS {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name(format!("gabion-disk{nth}"));
            threads.push(named.spawn(move || work(&shared))?);
        }
        Ok(Self { shared, threads })
    }

    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.shared.bell
    }

    pub(crate) fn give(&self, task: Task) {
        self.shared.lock().tasks.push_back(task);
        self.shared.changed.notify_one();
    }

    /// Keys and results of what was done since the last call.
    pub(crate) fn take_done(&self) -> Vec<(u64, i32)> {
        // Before the look: what is done after it rings again.
        let mut count = [0; 8];
        let _ = sys::read(&self.shared.bell, &mut count);
        std::mem::take(&mut self.shared.lock().done)
    }

    /// What has not begun does not begin. False: something is still under way.
    pub(crate) fn stop(&mut self) -> bool {
        let until = Instant::now() + STOP_MOST;
        let mut state = self.shared.lock();
        state.stopping = true;
        state.tasks.clear();
        self.shared.changed.notify_all();
        while state.running > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.threads.drain(..).all(|thread| thread.join().is_ok())
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.stopping {
            return;
        }
        let Some(task) = state.tasks.pop_front() else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.running += 1;
        drop(state);
        let result = match task.work {
            // SAFETY: the driver keeps the memory until the task is done.
            Work::Read { start, bytes, offset } => unsafe {
                sys::read_at(task.fd, start, bytes, offset)
            },
            // SAFETY: as above; the pieces too.
            Work::Write { pieces, count, offset } => unsafe {
                sys::write_at(task.fd, pieces, count, offset)
            },
            Work::Sync => sys::data_sync(task.fd),
        };
        state = shared.lock();
        state.running -= 1;
        let rings = state.done.is_empty();
        state.done.push((task.key, result.unwrap_or_else(|errno| -errno)));
        if rings {
            sys::eventfd_add(&shared.bell);
        }
        if state.stopping {
            shared.changed.notify_all();
        }
    }
}
