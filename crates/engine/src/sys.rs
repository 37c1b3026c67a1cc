//! The few system calls that the standard library has no safe word for.
#![allow(unsafe_code)]

use gabion_types::Duration;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
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

/// A file of a FUSE file system: io_uring would wait for its server while it is handed an operation.
pub(crate) fn is_on_fuse(file: &File) -> bool {
    // SAFETY: `statfs` is plain data for which all zeros is a value; it is valid for writes; the call keeps no pointer.
    let (result, found) = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(file.as_raw_fd(), &raw mut found), found)
    };
    result == 0 && found.f_type == FUSE_MAGIC
}

/// Source: linux/magic.h, FUSE_SUPER_MAGIC.
const FUSE_MAGIC: libc::__fsword_t = 0x6573_5546;

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

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Tcp(SocketAddr),
    /// A process of this machine, over a unix socket.
    Process {
        pid: u32,
        uid: u32,
    },
}

pub(crate) fn caller(fd: &OwnedFd) -> Option<Caller> {
    let copy = TcpStream::from(fd.try_clone().ok()?);
    if let Ok(address) = copy.peer_addr() {
        return Some(Caller::Tcp(address));
    }
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).expect("12 bytes");
    let (level, name, into) = (libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut who).cast());
    // SAFETY: `into` is valid for writes of `length` bytes.
    let got = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, into, &raw mut length) };
    let pid = u32::try_from(who.pid).ok().filter(|pid| got == 0 && *pid != 0)?;
    Some(Caller::Process { pid, uid: who.uid })
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

/// Errors: the number.
type Tried = Result<i32, i32>;

fn tried(result: libc::ssize_t) -> Tried {
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        Ok(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        Err(_) => panic!("operations are far below 2 GiB"),
    }
}

fn tried_int(result: libc::c_int) -> Tried {
    tried(libc::ssize_t::try_from(result).expect("wider"))
}

pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

pub(crate) fn epoll_control(
    epoll: &OwnedFd,
    how: libc::c_int,
    fd: RawFd,
    events: u32,
    about: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: about };
    // SAFETY: `event` is valid during the call.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), how, fd, &raw mut event) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many of `events` are filled in. Units: whole milliseconds, rounded up.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let millis = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    let room = libc::c_int::try_from(events.len()).expect("a short slice");
    let epoll = epoll.as_raw_fd();
    // SAFETY: `events` is valid for writes of `room` events.
    match tried_int(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, millis) }) {
        Ok(count) => Ok(usize::try_from(count).expect("not negative")),
        Err(libc::EINTR) => Ok(0),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Only what the portable driver uses: a ring's operations would not wait.
pub(crate) fn set_nonblocking(fd: &OwnedFd) {
    // SAFETY: takes no pointers.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(result, 0, "a socket or an eventfd can be made non-blocking");
}

pub(crate) fn read(fd: &OwnedFd, into: &mut [u8]) -> Tried {
    // SAFETY: `into` is valid for writes of its length.
    tried(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })
}

pub(crate) fn accept(socket: &OwnedFd) -> Tried {
    let none = std::ptr::null_mut();
    let (address, length) = (none, std::ptr::null_mut());
    let socket = socket.as_raw_fd();
    // SAFETY: no address is asked for.
    tried_int(unsafe { libc::accept4(socket, address, length, libc::SOCK_CLOEXEC) })
}

pub(crate) fn connect(socket: &OwnedFd, address: &SockAddr) -> Tried {
    let (start, bytes) = address.as_raw();
    // SAFETY: the address is valid for reads of so many bytes.
    tried_int(unsafe { libc::connect(socket.as_raw_fd(), start, bytes) })
}

/// How a connect ended that had to wait.
pub(crate) fn pending_error(socket: &OwnedFd) -> Tried {
    let mut error: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 bytes");
    let (into, socket) = ((&raw mut error).cast(), socket.as_raw_fd());
    // SAFETY: `error` is valid for writes of `length` bytes.
    let asked = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, into, &raw mut length)
    };
    tried_int(asked)?;
    if error == 0 { Ok(0) } else { Err(error) }
}

/// Without a wait.
///
/// # Safety
/// `start` is valid for writes of `room` bytes.
pub(crate) unsafe fn receive(socket: &OwnedFd, start: *mut u8, room: usize) -> Tried {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the caller's.
    tried(unsafe { libc::recv(socket.as_raw_fd(), start.cast(), room, flags) })
}

/// Without a wait.
///
/// # Safety
/// What the header points at is valid for reads.
pub(crate) unsafe fn send(socket: &OwnedFd, header: &libc::msghdr) -> Tried {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the caller's.
    tried(unsafe { libc::sendmsg(socket.as_raw_fd(), header, flags) })
}

fn place(offset: u64) -> libc::off_t {
    libc::off_t::try_from(offset).expect("disks are far below 2^63 bytes")
}

/// # Safety
/// `start` is valid for writes of `bytes`, and `fd` is open.
pub(crate) unsafe fn read_at(fd: RawFd, start: *mut u8, bytes: usize, offset: u64) -> Tried {
    let piece = libc::iovec { iov_base: start.cast(), iov_len: bytes };
    // SAFETY: the caller's.
    tried(unsafe { libc::preadv2(fd, &raw const piece, 1, place(offset), 0) })
}

/// # Safety
/// `pieces` has `count` of them, each valid for reads, and `fd` is open.
pub(crate) unsafe fn write_at(
    fd: RawFd,
    pieces: *const libc::iovec,
    count: usize,
    offset: u64,
) -> Tried {
    let count = libc::c_int::try_from(count).expect("at most 1024 pieces");
    // SAFETY: the caller's.
    tried(unsafe { libc::pwritev2(fd, pieces, count, place(offset), 0) })
}

pub(crate) fn data_sync(fd: RawFd) -> Tried {
    // SAFETY: takes no pointers.
    tried_int(unsafe { libc::fdatasync(fd) })
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
