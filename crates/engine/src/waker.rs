//! Wakes the data plane from another thread.

use crate::sys;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes `Engine::turn` return with `Event::Woken`. Many calls before the engine looks are one event.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    eventfd: OwnedFd,
    /// A wake was written that the engine has not seen yet.
    pending: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let shared = Shared { eventfd: sys::eventfd()?, pending: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Order: what the caller did before is visible to whoever handles the event.
    pub fn wake(&self) {
        if !self.shared.pending.swap(true, Ordering::AcqRel) {
            sys::eventfd_add(&self.shared.eventfd);
        }
    }

    /// Before `Event::Woken` is handed out: a wake after this makes another event, and what was done
    /// before one that came earlier is visible after it (so a swap, and not a store).
    pub(crate) fn seen(&self) {
        self.shared.pending.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.shared.eventfd
    }
}
