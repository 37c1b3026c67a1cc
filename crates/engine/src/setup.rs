//! What the engine is made with, what it got, and why it could not be made.

use std::fmt;
use std::io;

/// Which way I/O goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring; the portable driver where it is refused.
    #[default]
    Auto,
    Uring,
    Portable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    pub mode: IoMode,
    /// Aligned memory that is registered with the ring. Beyond it, the heap helps out.
    pub arena_bytes: usize,
    // promise: bounded
    /// Connections at a time; one more is closed as soon as it is accepted, or not dialled.
    pub connections_max: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { mode: IoMode::Auto, arena_bytes: 64 << 20, connections_max: 2048 }
    }
}

/// What the kernel granted. For the log, at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    pub driver: &'static str,
    /// The best set of flags that the kernel took.
    pub ring_flags: &'static str,
    pub warnings: Vec<Warning>,
}

/// Slower than it could be; an operator should look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    BuffersNotRegistered {
        bytes: usize,
        errno: i32,
    },
    FilesNotRegistered {
        errno: i32,
    },
    /// The portable driver does it.
    UringRefused {
        errno: i32,
    },
    KernelTooOld,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuffersNotRegistered { bytes, errno } => write!(
                f,
                "{bytes} bytes of buffers could not be registered with the ring (errno {errno}): disk I/O \
                 costs more CPU; raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK=)"
            ),
            Self::FilesNotRegistered { errno } => write!(
                f,
                "files could not be registered with the ring (errno {errno}): disk I/O costs more CPU"
            ),
            Self::UringRefused { errno } => write!(
                f,
                "io_uring is refused (errno {errno}), so the portable driver is used: I/O costs more CPU and                  time; allow io_uring (sysctl kernel.io_uring_disabled=0, the container's seccomp profile)"
            ),
            Self::KernelTooOld => write!(
                f,
                "the kernel's io_uring lacks what is needed (5.11 or newer), so the portable driver is used: \
                 I/O costs more CPU and time"
            ),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "io_uring is refused ({0}); allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp \
         profile), or use io = \"portable\""
    )]
    UringRefused(#[source] io::Error),
    #[error(
        "the kernel's io_uring lacks what is needed (5.11 or newer); upgrade the kernel, or use io = \"portable\""
    )]
    KernelTooOld,
    #[error(
        "the portable driver could not start ({0}); raise the limits of open files and threads"
    )]
    Portable(#[source] io::Error),
    #[error("no memory for buffers ({0})")]
    Memory(#[source] io::Error),
    #[error("no eventfd ({0}); raise the limit of open files (`ulimit -n`)")]
    Eventfd(#[source] io::Error),
    #[error("the ring failed ({0})")]
    Ring(#[source] io::Error),
}
