//! The few system calls that the standard library has no safe word for.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Nanoseconds since the machine booted, time asleep included.
pub(crate) fn boottime_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; the call keeps no pointer.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "Linux has had CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(time.tv_sec).expect("the machine booted before now");
    let nanos = u64::try_from(time.tv_nsec).expect("a part of a second is positive");
    seconds * 1_000_000_000 + nanos
}

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call just returned it as a new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// The descriptor that an accept operation of the ring gave as its result.
pub(crate) fn accepted(result: i32) -> OwnedFd {
    assert!(result >= 0, "an accept that failed has no descriptor");
    // SAFETY: the kernel made it for this completion, which is looked at once.
    unsafe { OwnedFd::from_raw_fd(result) }
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers. Blocking: a ring's read of a non-blocking one would not wait.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })
}

pub(crate) fn eventfd_add(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: `one` is valid for reads of its 8 bytes. The counter cannot be near its end, where
    // the write would block: at most one wake is pending.
    let written = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    assert_eq!(written, 8, "an eventfd takes 8 bytes");
}

/// A stream socket for the address. Blocking: the ring waits for it, and would not otherwise.
pub(crate) fn stream_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: takes no pointers.
    owned(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 bytes");
    // SAFETY: `value` is valid for reads of `length` bytes during the call. A refusal is ignored:
    // these options make a connection better, none needs them.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
}

/// Seconds without a sign of life after which the kernel asks a peer, and how it asks on.
const KEEPALIVE_IDLE_S: libc::c_int = 20;
const KEEPALIVE_INTERVAL_S: libc::c_int = 5;
const KEEPALIVE_PROBES: libc::c_int = 4;

/// Small messages go out at once, and a machine that vanished is noticed though nobody writes to it.
pub(crate) fn tune_tcp(fd: &OwnedFd) {
    let fd = fd.as_raw_fd();
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES);
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Shut {
    Write,
    Both,
}

pub(crate) fn shutdown(fd: &OwnedFd, how: Shut) {
    let how = match how {
        Shut::Write => libc::SHUT_WR,
        Shut::Both => libc::SHUT_RDWR,
    };
    // SAFETY: takes no pointers. It fails only for a socket that isn't connected: nothing to shut.
    unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// An address as the kernel reads it. Shape: lives in a box while a connect is under way.
pub(crate) enum SockAddr {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SockAddr {
    pub(crate) fn new(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo().to_be(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    pub(crate) fn as_raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        let (start, bytes): (*const libc::sockaddr, usize) = match self {
            Self::V4(address) => ((&raw const *address).cast(), size_of::<libc::sockaddr_in>()),
            Self::V6(address) => ((&raw const *address).cast(), size_of::<libc::sockaddr_in6>()),
        };
        (start, libc::socklen_t::try_from(bytes).expect("an address has less than 32 bytes"))
    }
}

fn family(value: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(value).expect("address families are small numbers")
}

/// Directories for tests.
#[cfg(test)]
pub(crate) mod scratch {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A new directory on a real file system, gone with this.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("gabion-engine-{}-{number}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
