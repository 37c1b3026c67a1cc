//! The network: connections that deliver in order, late, or not at all.
//!
//! Data first: a connection has two directions; each is a queue of messages on their way. A cut is
//! one way from one machine to another: what is sent there waits, as TCP would send it again and
//! again, until the way is open or one side gives up.

mod connection;

use crate::world::Spread;
use connection::{Connection, Direction};
use gabion_types::{Duration, Instant, Prng};
use std::collections::{BTreeMap, BTreeSet};

/// A machine, counted from 0.
pub type Machine = usize;

/// A connection, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conn(pub u64);

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Dialler,
    Acceptor,
}

/// What becomes due; the world keeps it until then and gives it back to `Network::due`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// The dialler's attempt is over, one way or the other.
    Dialled { conn: Conn },
    /// A message may have come in at this side.
    Arrive { conn: Conn, side: Side },
    /// This side learns that the other is gone.
    Hangup { conn: Conn, side: Side },
}

/// What a machine is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<M> {
    Connected {
        machine: Machine,
        conn: Conn,
    },
    Accepted {
        machine: Machine,
        conn: Conn,
    },
    /// Also: could not be dialled.
    Closed {
        machine: Machine,
        conn: Conn,
    },
    Message {
        machine: Machine,
        conn: Conn,
        message: M,
    },
}

/// What stands at the other end of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Up,
    /// The machine runs, the process does not: a dial is refused at once.
    ProcessDown,
    /// Nobody answers.
    Off,
}

/// A dial that nobody answers fails after so long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// As between racks, not between towns.
const LONGER: Spread = Spread::new(0, 500);

/// Until a packet that was lost is sent again with success.
const STRAGGLES: Spread = Spread::new(200_000, 3_000_000);

#[derive(Debug)]
pub struct Network<M> {
    connections: BTreeMap<Conn, Connection<M>>,
    presence: Vec<Presence>,
    cuts: BTreeSet<(Machine, Machine)>,
    /// Ways on which everything takes so much longer.
    slow: BTreeMap<(Machine, Machine), Duration>,
    /// What everything takes longer on a way than on the shortest, for good: some are longer.
    longer: BTreeMap<(Machine, Machine), Duration>,
    delay: Spread,
    prng: Prng,
    next: u64,
    due: Vec<(Instant, NetEvent)>,
    pub messages: u64,
    pub resets: u64,
    /// Connections that were made while one of an earlier process still brought something.
    pub late: u64,
}

impl<M> Network<M> {
    pub fn new(machines: usize, delay: Spread, mut prng: Prng) -> Self {
        let ways = (0..machines).flat_map(|from| (0..machines).map(move |to| (from, to)));
        let mut longer = BTreeMap::new();
        if prng.chance(1, 2) {
            longer = ways.map(|way| (way, LONGER.draw(&mut prng))).collect();
        }
        Self {
            longer,
            connections: BTreeMap::new(),
            presence: vec![Presence::Off; machines],
            cuts: BTreeSet::new(),
            slow: BTreeMap::new(),
            delay,
            prng,
            next: 1,
            due: Vec::new(),
            messages: 0,
            resets: 0,
            late: 0,
        }
    }

    /// What became due since the last call, for the world's queue.
    pub fn take_due(&mut self) -> Vec<(Instant, NetEvent)> {
        std::mem::take(&mut self.due)
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub fn is_cut(&self, from: Machine, to: Machine) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub fn cuts(&self) -> usize {
        self.cuts.len()
    }

    /// Open connections, for the judge of leaks.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Who dialled whom.
    pub fn ends(&self, conn: Conn) -> Option<(Machine, Machine)> {
        self.connections.get(&conn).map(|connection| (connection.from, connection.to))
    }

    pub fn dial(&mut self, now: Instant, from: Machine, to: Machine) -> Conn {
        let conn = Conn(self.next);
        self.next += 1;
        let there = self.way(from, to);
        let back = self.way(to, from);
        self.connections.insert(conn, Connection::new(from, to));
        let reachable = !self.is_cut(from, to) && !self.is_cut(to, from);
        let answered = reachable && self.presence[to] != Presence::Off;
        let wait = if answered { there + back } else { DIAL_TIMEOUT };
        self.due.push((now + wait, NetEvent::Dialled { conn }));
        conn
    }

    /// Order: messages of one side arrive in the order in which they were sent.
    pub fn send(&mut self, now: Instant, conn: Conn, side: Side, message: M) {
        let Some(connection) = self.connections.get(&conn) else {
            return;
        };
        if !connection.is_open(side) {
            return;
        }
        let (from, to) = connection.way(side);
        let wait = self.way(from, to);
        self.messages += 1;
        let connection = self.connections.get_mut(&conn).expect("it was there");
        let ready = connection.direction(side).push(now + wait, message);
        self.due.push((ready, NetEvent::Arrive { conn, side: side.other() }));
    }

    /// One side closes. Gently: what it had sent still arrives. Else that may be lost.
    pub fn close(&mut self, now: Instant, conn: Conn, side: Side, gently: bool) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if !connection.close(side) {
            return;
        }
        let (from, to) = connection.way(side);
        if !gently {
            self.resets += 1;
            let keep = usize::try_from(self.prng.below(3)).expect("a small number");
            connection.direction(side).truncate(keep);
        }
        let wait = self.way(from, to);
        let connection = self.connections.get_mut(&conn).expect("it was there");
        let at = (now + wait).max(connection.direction(side).last_ready());
        self.due.push((at, NetEvent::Hangup { conn, side: side.other() }));
        self.forget_if_over(conn);
    }

    /// The connection breaks in the middle, for both.
    pub fn reset(&mut self, now: Instant, conn: Conn) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        self.resets += 1;
        connection.broken = true;
        for side in [Side::Dialler, Side::Acceptor] {
            let wait = self.delay.draw(&mut self.prng);
            self.due.push((now + wait, NetEvent::Hangup { conn, side }));
        }
    }

    pub fn conns(&self) -> impl Iterator<Item = (Conn, Machine, Machine)> {
        self.connections.iter().map(|(conn, one)| (*conn, one.from, one.to))
    }

    /// The process of a machine came up or went away, the machine stays.
    pub fn set_process(&mut self, now: Instant, machine: Machine, up: bool) {
        let was = self.presence[machine];
        self.presence[machine] = if up { Presence::Up } else { Presence::ProcessDown };
        if was == Presence::Off {
            self.wake(now, machine);
        }
        if !up {
            for (conn, side) in self.ends_at(machine) {
                let gently = self.prng.chance(1, 2);
                if gently && self.prng.chance(1, 3) {
                    self.straggle(now, conn, side);
                }
                self.close(now, conn, side, gently);
            }
        }
    }

    /// A packet is lost, and is sent again by the machine of a process that is gone: what that said
    /// last comes in when its successor has been heard of.
    fn straggle(&mut self, now: Instant, conn: Conn, side: Side) {
        let at = now + STRAGGLES.draw(&mut self.prng);
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let waiting = connection.direction(side).delay_until(at);
        let arrive = (at, NetEvent::Arrive { conn, side: side.other() });
        self.due.extend(std::iter::repeat_n(arrive, waiting));
    }

    /// The machine is gone without a word; others find out when nothing comes any more.
    pub fn power_off(&mut self, machine: Machine) {
        self.presence[machine] = Presence::Off;
        for (conn, side) in self.ends_at(machine) {
            let keep = usize::try_from(self.prng.below(4)).expect("a small number");
            let connection = self.connections.get_mut(&conn).expect("it was listed");
            connection.direction(side).truncate(keep);
            connection.silent.insert(side);
        }
    }

    pub fn cut(&mut self, from: Machine, to: Machine) {
        self.cuts.insert((from, to));
    }

    /// The way is open again: what waited goes on.
    pub fn mend(&mut self, now: Instant, from: Machine, to: Machine) {
        self.cuts.remove(&(from, to));
        self.slow.remove(&(from, to));
        let mut due = Vec::new();
        for (conn, connection) in &mut self.connections {
            for side in [Side::Dialler, Side::Acceptor] {
                if connection.way(side) != (from, to) {
                    continue;
                }
                let wait = self.delay.draw(&mut self.prng);
                let other = side.other();
                let direction: &mut Direction<M> = connection.direction(side);
                let waiting = direction.delay_until(now + wait);
                let arrivals = (0..waiting)
                    .map(|_| (now + wait, NetEvent::Arrive { conn: *conn, side: other }));
                due.extend(arrivals);
                if connection.hangup_waits.remove(&other) {
                    let at = connection.direction(side).last_ready().max(now + wait);
                    due.push((at, NetEvent::Hangup { conn: *conn, side: other }));
                }
            }
        }
        self.due.extend(due);
    }

    pub fn set_slow(&mut self, from: Machine, to: Machine, more: Duration) {
        self.slow.insert((from, to), more);
    }

    /// Something became due. Returns what a machine is to be told now.
    pub fn due(&mut self, now: Instant, event: NetEvent) -> Vec<Told<M>> {
        match event {
            NetEvent::Dialled { conn } => self.on_dialled(now, conn),
            NetEvent::Arrive { conn, side } => self.on_arrive(now, conn, side),
            NetEvent::Hangup { conn, side } => self.on_hangup(conn, side),
        }
    }

    fn on_dialled(&mut self, now: Instant, conn: Conn) -> Vec<Told<M>> {
        let Some(connection) = self.connections.get(&conn) else {
            return Vec::new();
        };
        let (from, to) = (connection.from, connection.to);
        let reachable = !self.is_cut(from, to) && !self.is_cut(to, from);
        let alive = connection.is_alive(Side::Dialler);
        let answered = connection.is_alive(Side::Acceptor) && self.presence[to] == Presence::Up;
        if !alive || !reachable || !answered {
            self.connections.remove(&conn);
            let told = Told::Closed { machine: from, conn };
            return if alive { vec![told] } else { Vec::new() };
        }
        let old = |other: &Connection<M>| (other.from, other.to) == (from, to) && other.is_late();
        self.late += u64::from(self.connections.values().any(old));
        let connection = self.connections.get_mut(&conn).expect("it was there");
        let arrivals = connection.establish(now);
        let side = Side::Acceptor;
        self.due.extend((0..arrivals).map(|_| (now, NetEvent::Arrive { conn, side })));
        vec![Told::Accepted { machine: to, conn }, Told::Connected { machine: from, conn }]
    }

    fn on_arrive(&mut self, now: Instant, conn: Conn, side: Side) -> Vec<Told<M>> {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return Vec::new();
        };
        let (from, to) = connection.way(side.other());
        if self.cuts.contains(&(from, to)) || !connection.takes(side) {
            return Vec::new();
        }
        let message = connection.direction(side.other()).pop(now);
        message.map(|message| Told::Message { machine: to, conn, message }).into_iter().collect()
    }

    fn on_hangup(&mut self, conn: Conn, side: Side) -> Vec<Told<M>> {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return Vec::new();
        };
        let (from, to) = connection.way(side.other());
        if self.cuts.contains(&(from, to)) && !connection.broken {
            connection.hangup_waits.insert(side);
            return Vec::new();
        }
        let told = connection.is_alive(side);
        connection.close(side);
        let broken = connection.broken;
        if !broken {
            // What comes after this end was closed is thrown away.
            connection.close(side.other());
        }
        self.forget_if_over(conn);
        if told { vec![Told::Closed { machine: to, conn }] } else { Vec::new() }
    }

    /// A machine is back after a power cut: the others' next packets are answered by a reset.
    fn wake(&mut self, now: Instant, machine: Machine) {
        for (conn, side) in self.ends_at(machine) {
            let connection = self.connections.get_mut(&conn).expect("it was listed");
            connection.close(side);
            let wait = Duration::from_millis(self.prng.between(1, 400));
            self.due.push((now + wait, NetEvent::Hangup { conn, side: side.other() }));
        }
    }

    fn ends_at(&self, machine: Machine) -> Vec<(Conn, Side)> {
        let mut ends = Vec::new();
        for (conn, connection) in &self.connections {
            if connection.from == machine {
                ends.push((*conn, Side::Dialler));
            }
            if connection.to == machine {
                ends.push((*conn, Side::Acceptor));
            }
        }
        ends
    }

    fn way(&mut self, from: Machine, to: Machine) -> Duration {
        let of = |ways: &BTreeMap<_, Duration>| ways.get(&(from, to)).copied().unwrap_or_default();
        let more = of(&self.slow) + of(&self.longer);
        self.delay.draw(&mut self.prng) + more
    }

    fn forget_if_over(&mut self, conn: Conn) {
        if self.connections.get(&conn).is_some_and(Connection::is_over) {
            self.connections.remove(&conn);
        }
    }
}

impl Side {
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

#[cfg(test)]
mod tests;
