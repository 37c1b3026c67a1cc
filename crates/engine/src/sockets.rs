//! Sockets: listening, dialling, exact receives, queued sends, hang-ups.

use crate::conn::{Conn, Hung, Incoming, Phase, Queue};
use crate::disk::Disk;
use crate::engine::{Engine, Event, Timer};
use crate::op::{Op, Outgoing, Space};
use crate::sys::{self, Caller, Shut, SockAddr};
use bytes::Bytes;
use gabion_types::Duration;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

/// A dial that got no answer by then has failed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What was queued before `close_after_send` has so long to go out and be read.
pub const LINGER_MAX: Duration = Duration::from_secs(2);
/// After an accept failed (no descriptor is free, mostly) the next is tried so much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// An address that is in use is tried so often, so far apart.
const BIND_ATTEMPTS_MAX: u32 = 40;
const BIND_AGAIN: Duration = Duration::from_millis(50);
/// Operations that one connection has under way at most: watch, receive (or connect), send.
pub(crate) const OPS_PER_CONN: u32 = 3;

/// A connection; a handle of one that was closed finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnHandle(pub(crate) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerHandle(pub(crate) u32);

/// When the caller learns that the other side hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// As soon as the kernel knows, before the data that lies unread: what a guest that is gone had
    /// asked must not be done any more.
    AtOnce,
    /// After the data that came before, as long as the caller goes on reading.
    AfterData,
}

pub(crate) struct Listener {
    socket: Rc<OwnedFd>,
    tcp: bool,
    hang_up: HangUp,
    address: Option<SocketAddr>,
}

impl Engine {
    /// Each connection comes as `Event::Accepted`. Waits a little for an address that is in use.
    pub fn listen_tcp(&mut self, at: SocketAddr, hang_up: HangUp) -> io::Result<ListenerHandle> {
        let listener = bind(at)?;
        let address = Some(listener.local_addr()?);
        Ok(self.listen(Listener { socket: Rc::new(listener.into()), tcp: true, hang_up, address }))
    }

    /// A socket that an earlier process left there is taken away: the caller holds the lock of the
    /// directory that it lies in.
    pub fn listen_unix(&mut self, path: &Path, hang_up: HangUp) -> io::Result<ListenerHandle> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = Rc::new(OwnedFd::from(UnixListener::bind(path)?));
        Ok(self.listen(Listener { socket, tcp: false, hang_up, address: None }))
    }

    fn listen(&mut self, listener: Listener) -> ListenerHandle {
        let handle = ListenerHandle(u32::try_from(self.listeners.len()).expect("few listeners"));
        self.listeners.push(listener);
        self.accept(handle);
        handle
    }

    /// Where a TCP listener really listens (port 0 lets the kernel choose).
    pub fn local_address(&self, listener: ListenerHandle) -> Option<SocketAddr> {
        self.listeners[listener.0 as usize].address
    }

    /// Answered by `Event::Connected` or `Event::ConnectFailed`. Errors: too many connections, or
    /// no descriptor is free.
    pub fn connect_tcp(&mut self, to: SocketAddr, hang_up: HangUp) -> io::Result<ConnHandle> {
        if !self.has_room() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let socket = Rc::new(sys::stream_socket(&to)?);
        sys::tune_tcp(&socket);
        let conn = self.insert(Conn::new(Rc::clone(&socket), hang_up));
        let address = Box::new(SockAddr::new(&to));
        let op = self.ring.start(Op::Connect { socket, conn, address });
        let by = self.now() + CONNECT_TIMEOUT;
        self.timers.insert((by, Timer::Connect(conn)));
        self.conn_mut(conn).expect("it was put there just now").phase =
            Phase::Connecting { by, op };
        Ok(conn)
    }

    /// Queues pieces behind what is queued already. Order: they go out in the order of the calls.
    /// The queue is the caller's to bound, by `send_backlog`.
    pub fn send(&mut self, conn: ConnHandle, pieces: impl IntoIterator<Item = Bytes>) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if state.phase != Phase::Open || state.hung == Hung::Told {
            return;
        }
        pieces.into_iter().for_each(|piece| state.outgoing.push(piece));
        if !state.outgoing.listed {
            state.outgoing.listed = true;
            self.to_send.push(conn);
        }
    }

    /// Who is at the other end. None: nothing is known of it.
    pub fn caller(&self, conn: ConnHandle) -> Option<Caller> {
        self.conns.get(conn.0).and_then(|state| sys::caller(&state.socket))
    }

    /// Bytes that were queued and are not yet in the kernel's hands.
    pub fn send_backlog(&self, conn: ConnHandle) -> u64 {
        self.conns.get(conn.0).map_or(0, |state| state.outgoing.bytes())
    }

    /// Wants exactly so many bytes next, in one piece; from 64 KiB on in aligned memory. Returns
    /// them if they are here already, else they come as `Event::Received`. Nothing is read from the
    /// socket that was not asked for this way (but for what comes along with it).
    ///
    /// Order: the next one only after this one's bytes came.
    pub fn expect(&mut self, conn: ConnHandle, bytes: usize) -> Option<Bytes> {
        let state = self.conns.get_mut(conn.0)?;
        if state.phase != Phase::Open || state.hung == Hung::Told {
            return None;
        }
        let there = state.incoming.expect(&self.arena, bytes);
        if there.is_none() {
            self.receive(conn);
        }
        there
    }

    /// At once: what is queued is dropped, what is under way is cancelled. No event comes after it.
    pub fn close(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.remove(conn.0) else { return };
        // The descriptor is closed when the last operation on it has completed; the other side
        // learns of it now.
        sys::shutdown(&state.socket, Shut::Both);
        for op in [state.watch, state.incoming.op, state.outgoing.op].into_iter().flatten() {
            self.ring.cancel(op);
        }
        match state.phase {
            Phase::Connecting { by, op } => {
                self.ring.cancel(op);
                self.timers.remove(&(by, Timer::Connect(conn)));
            }
            Phase::Lingering { until } => {
                self.timers.remove(&(until, Timer::Linger(conn)));
            }
            Phase::Open => {}
        }
    }

    /// Closes when what is queued has gone out, after `LINGER_MAX` at the latest. No event comes
    /// after it.
    pub fn close_after_send(&mut self, conn: ConnHandle) {
        let until = self.now() + LINGER_MAX;
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if state.phase != Phase::Open || state.hung != Hung::No {
            return self.close(conn);
        }
        state.phase = Phase::Lingering { until };
        self.timers.insert((until, Timer::Linger(conn)));
        if state.outgoing.bytes() == 0 {
            sys::shutdown(&state.socket, Shut::Write);
        }
    }

    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    pub(crate) fn on_accept(&mut self, listener: ListenerHandle, result: i32) {
        if result < 0 {
            let at = self.now() + ACCEPT_AGAIN;
            self.timers.insert((at, Timer::Accept(listener)));
            return;
        }
        let socket = sys::accepted(result);
        self.accept(listener);
        if !self.has_room() {
            // Full: dropping the descriptor closes the connection.
            return;
        }
        let Listener { tcp, hang_up, .. } = self.listeners[listener.0 as usize];
        if tcp {
            sys::tune_tcp(&socket);
        }
        let conn = self.insert(Conn::new(Rc::new(socket), hang_up));
        self.watch(conn);
        self.ready.push_back(Event::Accepted { listener, conn });
    }

    pub(crate) fn accept(&mut self, listener: ListenerHandle) {
        let socket = Rc::clone(&self.listeners[listener.0 as usize].socket);
        self.ring.start(Op::Accept { socket, listener });
    }

    pub(crate) fn on_connect(&mut self, conn: ConnHandle, result: i32) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if let Phase::Connecting { by, .. } = state.phase {
            self.timers.remove(&(by, Timer::Connect(conn)));
        }
        if result < 0 {
            self.conns.remove(conn.0);
            self.ready.push_back(Event::ConnectFailed { conn, errno: -result });
            return;
        }
        state.phase = Phase::Open;
        self.watch(conn);
        self.ready.push_back(Event::Connected { conn });
    }

    /// The dial took too long. Its cancel leads to `ConnectFailed`, once.
    pub(crate) fn on_connect_timeout(&mut self, conn: ConnHandle) {
        if let Some(Conn { phase: Phase::Connecting { op, .. }, .. }) = self.conns.get(conn.0) {
            self.ring.cancel(*op);
        }
    }

    pub(crate) fn on_watch(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        state.watch = None;
        match state.phase {
            Phase::Lingering { .. } => self.close(conn),
            Phase::Connecting { .. } | Phase::Open if state.hang_up == HangUp::AfterData => {
                // The receive that is under way meets the end after the data; one that was complete
                // in this turn brought data that the caller has not had yet. Who does not read on
                // by the next turn is told then.
                if state.hung == Hung::No {
                    state.hung = Hung::Seen;
                    self.hanging_up.push(conn);
                }
            }
            Phase::Connecting { .. } | Phase::Open => self.tell_hang_up(conn),
        }
    }

    pub(crate) fn on_receive(&mut self, conn: ConnHandle, space: Space, result: i32) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        state.incoming.op = None;
        let again = matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED);
        let bytes = usize::try_from(result).unwrap_or(0);
        if bytes == 0 && !again {
            return self.tell_hang_up(conn);
        }
        self.turn_bytes += bytes;
        let whole = state.incoming.received(space, bytes);
        if state.hung == Hung::Told || state.phase != Phase::Open {
            return;
        }
        match whole {
            Some(bytes) => self.ready.push_back(Event::Received { conn, bytes }),
            None => {
                if bytes > 0 {
                    self.ready.push_back(Event::Progress { conn });
                }
                self.receive(conn);
            }
        }
    }

    pub(crate) fn on_send(&mut self, conn: ConnHandle, message: Outgoing, result: i32) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        state.outgoing.op = None;
        let again = matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED);
        if result < 0 && !again {
            state.outgoing.clear();
            return match state.phase {
                Phase::Lingering { .. } => self.close(conn),
                Phase::Connecting { .. } | Phase::Open => self.tell_hang_up(conn),
            };
        }
        state.outgoing.sent(message, usize::try_from(result).unwrap_or(0));
        self.transmit(conn);
    }

    /// Starts the next send of a connection, if none is under way.
    pub(crate) fn transmit(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if state.outgoing.op.is_some() {
            return;
        }
        match state.outgoing.next_message() {
            Some(message) => {
                let socket = Rc::clone(&state.socket);
                state.outgoing.op = Some(self.ring.start(Op::Send { socket, conn, message }));
            }
            None if matches!(state.phase, Phase::Lingering { .. }) => {
                sys::shutdown(&state.socket, Shut::Write);
            }
            None => {}
        }
    }

    /// Whether a hang-up that was seen is still to be told: when nobody reads, it is told now.
    pub(crate) fn is_hanging_up(&mut self, conn: ConnHandle) -> bool {
        let Some(state) = self.conns.get(conn.0) else { return false };
        if state.hung != Hung::Seen {
            return false;
        }
        if state.incoming.op.is_none() {
            self.tell_hang_up(conn);
            return false;
        }
        true
    }

    fn tell_hang_up(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if state.hung != Hung::Told && state.phase == Phase::Open {
            state.hung = Hung::Told;
            state.outgoing.clear();
            self.ready.push_back(Event::HungUp { conn });
        }
    }

    fn receive(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        if state.incoming.is_waiting() && state.incoming.op.is_none() {
            let (socket, space) = (Rc::clone(&state.socket), state.incoming.space());
            state.incoming.op = Some(self.ring.start(Op::Receive { socket, conn, space }));
        }
    }

    fn watch(&mut self, conn: ConnHandle) {
        let Some(state) = self.conns.get_mut(conn.0) else { return };
        let socket = Rc::clone(&state.socket);
        state.watch = Some(self.ring.start(Op::Watch { socket, conn }));
    }

    /// Whether one more connection, with all its operations, fits the table of operations.
    fn has_room(&self) -> bool {
        let live = self.conns.len() * OPS_PER_CONN as usize;
        !self.conns.is_full() && self.socket_ops() + live < self.socket_ops_max as usize
    }

    /// Operations under way but for those of disks, which have a bound of their own.
    fn socket_ops(&self) -> usize {
        let of_disks: usize = self.disks.iter().map(Disk::in_flight).sum();
        self.ring.under_way() - of_disks
    }

    fn insert(&mut self, conn: Conn) -> ConnHandle {
        let Ok(key) = self.conns.insert(conn) else { panic!("there is room: it was looked at") };
        ConnHandle(key)
    }

    fn conn_mut(&mut self, conn: ConnHandle) -> Option<&mut Conn> {
        self.conns.get_mut(conn.0)
    }
}

/// The listener of a process that was killed goes a moment after it, like its locks.
fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    for _ in 0..BIND_ATTEMPTS_MAX {
        match TcpListener::bind(at) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                std::thread::sleep(BIND_AGAIN);
            }
            bound => return bound,
        }
    }
    TcpListener::bind(at)
}

impl Conn {
    fn new(socket: Rc<OwnedFd>, hang_up: HangUp) -> Self {
        Self {
            socket,
            hang_up,
            phase: Phase::Open,
            hung: Hung::No,
            watch: None,
            incoming: Incoming::default(),
            outgoing: Queue::default(),
        }
    }
}

#[cfg(test)]
mod tests;
