//! The one that does the operations: the ring, or the portable driver where the ring is refused.

use crate::arena::Arena;
use crate::op::{Op, OpKey};
use crate::portable::Portable;
use crate::setup::{EngineError, IoMode, Setup, Warning};
use crate::uring::{self, Ring};
use gabion_types::Duration;
use std::fs::File;
use std::io;

pub(crate) enum Driver {
    Uring(Box<Ring>),
    Portable(Portable),
}

impl Driver {
    pub(crate) fn new(
        mode: IoMode,
        arena: &Arena,
        ops_max: u32,
    ) -> Result<(Self, Setup), EngineError> {
        let ring = || {
            Ring::new(arena.clone(), ops_max)
                .map(|(ring, setup)| (Self::Uring(Box::new(ring)), setup))
        };
        let portable = |warnings| {
            let setup = Setup { driver: "portable", ring_flags: "", warnings };
            Portable::new(ops_max).map(|driver| (Self::Portable(driver), setup))
        };
        match mode {
            IoMode::Uring => ring(),
            IoMode::Portable => portable(Vec::new()),
            IoMode::Auto => match ring() {
                Err(EngineError::UringRefused(error)) => {
                    let errno = error.raw_os_error().unwrap_or_default();
                    portable(vec![Warning::UringRefused { errno }])
                }
                Err(EngineError::KernelTooOld) => portable(vec![Warning::KernelTooOld]),
                made => made,
            },
        }
    }

    /// Errors: none; a file that finds no place is used by its descriptor.
    pub(crate) fn register_file(&mut self, file: &File) -> Option<u32> {
        match self {
            Self::Uring(ring) => ring.register_file(file),
            Self::Portable(_) => None,
        }
    }

    pub(crate) fn under_way(&self) -> usize {
        match self {
            Self::Uring(ring) => ring.under_way(),
            Self::Portable(driver) => driver.under_way(),
        }
    }

    /// Order: submitted by the next `wait`, in the order of the calls.
    pub(crate) fn start(&mut self, op: Op) -> OpKey {
        match self {
            Self::Uring(ring) => ring.start(op),
            Self::Portable(driver) => driver.start(op),
        }
    }

    /// Its completion comes sooner: with ECANCELED, or as if nothing had been said.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        match self {
            Self::Uring(ring) => ring.cancel(key),
            Self::Portable(driver) => driver.cancel(key),
        }
    }

    /// Submits all that was started; returns when something is complete or the time is over.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.wait(timeout),
            Self::Portable(driver) => driver.wait(timeout),
        }
    }

    /// An operation that is complete: nobody works on what it owns any more.
    pub(crate) fn next(&mut self) -> Option<(Op, i32)> {
        let (mut op, result) = match self {
            Self::Uring(ring) => ring.next(),
            Self::Portable(driver) => driver.next(),
        }?;
        uring::count_received(&mut op, result);
        Some((op, result))
    }

    /// Nothing that was complete at the last `wait` is left.
    pub(crate) fn is_drained(&mut self) -> bool {
        match self {
            Self::Uring(ring) => ring.is_drained(),
            Self::Portable(driver) => driver.is_drained(),
        }
    }
}
