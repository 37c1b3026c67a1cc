//! The loop's one turn.

use crate::arena::{AlignedBuf, Arena};
use crate::clock::Clock;
use crate::conn::Conn;
use crate::disk::{DISK_OPS_IN_FLIGHT_MAX, DISKS_MAX, Disk, DiskHandle};
use crate::driver::Driver;
use crate::op::Op;
use crate::setup::{EngineConfig, EngineError, Setup};
use crate::sockets::{ConnHandle, Listener, ListenerHandle, OPS_PER_CONN};
use crate::waker::Waker;
use bytes::Bytes;
use gabion_types::{DiskDone, Duration, Instant, Slab};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Completions that one turn hands out.
pub const TURN_COMPLETIONS_MAX: u32 = 256;
/// A turn that handed out so many bytes, which somebody is going to checksum, ends.
pub const TURN_BYTES_MAX: usize = 1 << 20;
/// Operations besides those of connections and disks: the wake, the listeners.
const OTHER_OPS_MAX: u32 = 64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A `Waker` was used.
    Woken,
    Disk {
        disk: DiskHandle,
        done: DiskDone,
    },
    Accepted {
        listener: ListenerHandle,
        conn: ConnHandle,
    },
    Connected {
        conn: ConnHandle,
    },
    /// The handle is void.
    ConnectFailed {
        conn: ConnHandle,
        errno: i32,
    },
    /// Exactly what was expected.
    Received {
        conn: ConnHandle,
        bytes: Bytes,
    },
    /// Some of what is expected came: a sign of life.
    Progress {
        conn: ConnHandle,
    },
    /// The other side is gone, or the connection broke (once). To be closed by the caller; nothing
    /// more comes of it.
    HungUp {
        conn: ConnHandle,
    },
}

/// One thread's I/O: disks, sockets, wakes, the clock. It is made and used on one thread.
///
/// Order: events of one connection come in their order; else none is promised.
pub struct Engine {
    pub(crate) ring: Driver,
    pub(crate) arena: Arena,
    pub(crate) disks: Vec<Disk>,
    pub(crate) conns: Slab<Conn>,
    pub(crate) listeners: Vec<Listener>,
    /// Connections with something new to send.
    pub(crate) to_send: Vec<ConnHandle>,
    /// Connections whose hang-up was seen, while data from before may still be unread.
    pub(crate) hanging_up: Vec<ConnHandle>,
    pub(crate) timers: BTreeSet<(Instant, Timer)>,
    pub(crate) ready: VecDeque<Event>,
    /// Bytes handed out in this turn.
    pub(crate) turn_bytes: usize,
    pub(crate) socket_ops_max: u32,
    clock: Clock,
    waker: Waker,
    wake_fd: Rc<OwnedFd>,
    setup: Setup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Connect(ConnHandle),
    Linger(ConnHandle),
    Accept(ListenerHandle),
}

impl Engine {
    pub fn new(config: &EngineConfig) -> Result<Self, EngineError> {
        let arena = Arena::new(config.arena_bytes).map_err(EngineError::Memory)?;
        let waker = Waker::new().map_err(EngineError::Eventfd)?;
        let wake_fd = waker.eventfd().try_clone().map_err(EngineError::Eventfd)?;
        // Twice what the connections need: those of closed ones end a little later.
        let socket_ops_max = config.connections_max * OPS_PER_CONN * 2 + OTHER_OPS_MAX;
        let disk_ops_max = u32::try_from(DISKS_MAX * DISK_OPS_IN_FLIGHT_MAX).expect("16384");
        let (ring, setup) = Driver::new(config.mode, &arena, socket_ops_max + disk_ops_max)?;
        let mut engine = Self {
            ring,
            arena,
            disks: Vec::new(),
            conns: Slab::new(config.connections_max),
            listeners: Vec::new(),
            to_send: Vec::new(),
            hanging_up: Vec::new(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            turn_bytes: 0,
            socket_ops_max,
            clock: Clock::new(),
            waker,
            wake_fd: Rc::new(wake_fd),
            setup,
        };
        engine.arm_wake(AlignedBuf::on_heap(8));
        Ok(engine)
    }

    /// What the kernel granted and what it did not.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Aligned memory, from the arena while there is some.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Submits what was asked for since the last turn, waits until something happens or `deadline`
    /// is there, and appends what happened to `events`. The caller reads the clock afterwards.
    ///
    /// Errors: the ring is broken; nothing can be done any more.
    pub fn turn(
        &mut self,
        deadline: Option<Instant>,
        events: &mut Vec<Event>,
    ) -> Result<(), EngineError> {
        self.run_timers();
        let mut hanging = std::mem::take(&mut self.hanging_up);
        hanging.retain(|conn| self.is_hanging_up(*conn));
        self.hanging_up.append(&mut hanging);
        for conn in std::mem::take(&mut self.to_send) {
            if let Some(state) = self.conns.get_mut(conn.0) {
                state.outgoing.listed = false;
            }
            self.transmit(conn);
        }
        let timeout = self.timeout(deadline);
        self.ring.wait(timeout).map_err(EngineError::Ring)?;
        self.turn_bytes = 0;
        for _ in 0..TURN_COMPLETIONS_MAX {
            if self.turn_bytes >= TURN_BYTES_MAX {
                break;
            }
            let Some((op, result)) = self.ring.next() else { break };
            self.complete(op, result);
        }
        events.extend(self.ready.drain(..));
        Ok(())
    }

    /// Nothing that has happened by now waits to be handed out: silence may be judged. Looks into the
    /// kernel once more, without a wait; what it finds comes with the next turn.
    pub fn is_drained(&mut self) -> bool {
        self.ready.is_empty()
            && self.ring.wait(Some(Duration::ZERO)).is_ok()
            && self.ring.is_drained()
    }

    fn timeout(&self, deadline: Option<Instant>) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let until = [deadline, timer].into_iter().flatten().min()?;
        Some(until.since(self.now()))
    }

    fn run_timers(&mut self) {
        let Some((first, _)) = self.timers.first() else { return };
        let now = self.now();
        if *first > now {
            return;
        }
        while let Some((at, timer)) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, timer));
                return;
            }
            match timer {
                Timer::Connect(conn) => self.on_connect_timeout(conn),
                Timer::Linger(conn) => self.close(conn),
                Timer::Accept(listener) => self.accept(listener),
            }
        }
    }

    fn complete(&mut self, op: Op, result: i32) {
        match op {
            Op::Wake { value, .. } => {
                self.waker.seen();
                self.arm_wake(value);
                self.ready.push_back(Event::Woken);
            }
            Op::Accept { listener, .. } => self.on_accept(listener, result),
            Op::Connect { conn, .. } => self.on_connect(conn, result),
            Op::Watch { conn, .. } => self.on_watch(conn),
            Op::Receive { conn, space, .. } => self.on_receive(conn, space, result),
            Op::Send { conn, message, .. } => self.on_send(conn, message, result),
            Op::Disk(job) => self.on_disk(job, result),
        }
    }

    fn arm_wake(&mut self, value: AlignedBuf) {
        self.ring.start(Op::Wake { fd: Rc::clone(&self.wake_fd), value });
    }
}

#[cfg(test)]
mod tests;
