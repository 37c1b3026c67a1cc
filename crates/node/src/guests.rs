//! Guests of this node: NBD connections, and those that come through another front end.

use crate::io::{Effect, GuestId, OpenError, OpenedVolume};
use bytes::Bytes;
use gabion_nbd::{
    Connection, Effect as NbdEffect, Export, Input as NbdInput, NbdLimits, Tag, Want,
};
use gabion_types::{Duration, GuestOp, GuestResult, Instant, IoError, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// Guests on one node. More are refused.
pub const GUESTS_MAX: usize = 1024;
/// A client that has not asked for a volume by then is closed: it takes a guest's place. The time that
/// a volume takes to serve does not count.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// A guest of a volume, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientStats {
    pub guest: GuestId,
    pub volume: VolumeId,
    /// Else it came through another front end.
    pub nbd: bool,
    /// How long it has been connected, as of its node's last look at its guests.
    pub here: Duration,
    /// It is not let in yet.
    pub waits: bool,
}

/// What the guests want of the rest of the node.
#[derive(Clone, Debug, PartialEq)]
pub enum GuestsOutput {
    Effect(Effect),
    /// It can use so many bytes. `volume`: that they are for.
    Want {
        guest: GuestId,
        volume: Option<VolumeId>,
        bytes: usize,
    },
    /// Names of all volumes, for `listed`.
    List {
        guest: GuestId,
    },
    /// What that volume is like, for `described`.
    Describe {
        guest: GuestId,
        name: String,
    },
    /// Attach to it; answered by `opened`.
    Open {
        guest: GuestId,
        name: String,
    },
    Request {
        guest: GuestId,
        volume: VolumeId,
        tag: u64,
        op: GuestOp,
    },
    /// It is gone; if it was on a volume, it left that.
    Detached {
        guest: GuestId,
        volume: Option<VolumeId>,
    },
}

#[derive(Debug)]
enum Kind {
    Nbd { connection: Box<Connection>, wanted: bool, closing: bool },
    Direct,
}

#[derive(Debug)]
struct Guest {
    kind: Kind,
    since: Instant,
    volume: Option<VolumeId>,
}

#[derive(Debug)]
pub struct Guests {
    limits: NbdLimits,
    now: Instant,
    guests: BTreeMap<GuestId, Guest>,
    /// Those that wait for a volume, by name, since when.
    opening: BTreeMap<GuestId, (String, Instant)>,
    /// Clients that have to ask for a volume, since when.
    greeting: BTreeMap<GuestId, Instant>,
    outputs: VecDeque<GuestsOutput>,
}

impl Guests {
    pub fn new(limits: NbdLimits) -> Self {
        Self {
            limits,
            now: Instant::ZERO,
            guests: BTreeMap::new(),
            opening: BTreeMap::new(),
            greeting: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    pub fn next_output(&mut self) -> Option<GuestsOutput> {
        self.outputs.pop_front()
    }

    pub fn len(&self) -> usize {
        self.guests.len()
    }

    fn effect(&mut self, effect: Effect) {
        self.outputs.push_back(GuestsOutput::Effect(effect));
    }

    pub fn nbd_accepted(&mut self, now: Instant, guest: GuestId) {
        self.now = now;
        if self.guests.len() >= GUESTS_MAX {
            self.effect(Effect::NbdClose { guest });
            return;
        }
        let connection = Box::new(Connection::new(self.limits));
        let kind = Kind::Nbd { connection, wanted: false, closing: false };
        self.guests.insert(guest, Guest { kind, since: now, volume: None });
        self.greeting.insert(guest, now);
        self.drain(guest);
    }

    // rule: node/handshakes-end
    /// Who takes too long to ask for a volume makes room for others.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
        let late = |since: &Instant| now.since(*since) >= HANDSHAKE_MAX;
        let all = self.greeting.iter();
        let late: Vec<_> = all.filter(|(_, since)| late(since)).map(|(guest, _)| *guest).collect();
        for guest in late {
            self.effect(Effect::NbdClose { guest });
            self.closed(guest);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.greeting.values().min().map(|since| *since + HANDSHAKE_MAX)
    }

    pub fn nbd_bytes(&mut self, now: Instant, guest: GuestId, bytes: Bytes) {
        self.now = now;
        if let Some(Guest { kind: Kind::Nbd { connection, wanted, .. }, .. }) =
            self.guests.get_mut(&guest)
        {
            *wanted = false;
            connection.handle(NbdInput::Received(bytes));
            self.drain(guest);
        }
    }

    pub fn direct_open(&mut self, now: Instant, guest: GuestId, name: String) {
        if self.guests.len() >= GUESTS_MAX {
            self.effect(Effect::GuestOpened { guest, result: Err(OpenError::TooMany) });
            return;
        }
        self.opening.insert(guest, (name.clone(), now));
        self.guests.insert(guest, Guest { kind: Kind::Direct, since: now, volume: None });
        self.outputs.push_back(GuestsOutput::Open { guest, name });
    }

    pub fn direct_request(&mut self, guest: GuestId, tag: u64, op: GuestOp) {
        match self.guests.get(&guest) {
            Some(Guest { kind: Kind::Direct, volume: Some(volume), .. })
                if !self.opening.contains_key(&guest) =>
            {
                let volume = *volume;
                self.outputs.push_back(GuestsOutput::Request { guest, volume, tag, op });
            }
            Some(_) | None => {
                self.effect(Effect::GuestDone { guest, tag, result: Err(IoError::Gone) });
            }
        }
    }

    /// An operator wants it to go.
    pub fn evicted(&mut self, guest: GuestId) {
        self.end(guest);
        self.closed(guest);
    }

    /// Its connection is closed without an answer.
    fn end(&mut self, guest: GuestId) {
        match self.guests.get(&guest).map(|entry| &entry.kind) {
            Some(Kind::Nbd { .. }) => self.effect(Effect::NbdClose { guest }),
            Some(Kind::Direct) => self.effect(Effect::GuestEnded { guest }),
            None => {}
        }
    }

    /// Those that are on a volume, or wait for one.
    pub fn clients(&self) -> impl Iterator<Item = ClientStats> + '_ {
        self.guests.iter().filter_map(|(guest, entry)| {
            Some(ClientStats {
                guest: *guest,
                volume: entry.volume?,
                nbd: matches!(entry.kind, Kind::Nbd { .. }),
                here: self.now.since(entry.since),
                waits: self.opening.contains_key(guest),
            })
        })
    }

    /// It hung up, or its socket broke.
    pub fn closed(&mut self, guest: GuestId) {
        self.opening.remove(&guest);
        self.greeting.remove(&guest);
        if let Some(Guest { volume, .. }) = self.guests.remove(&guest) {
            self.outputs.push_back(GuestsOutput::Detached { guest, volume });
        }
    }

    /// Those that wait for a volume to be known, attached or owned.
    pub fn opening(&self) -> impl Iterator<Item = (GuestId, &str, Instant)> + '_ {
        self.opening.iter().map(|(guest, (name, since))| (*guest, name.as_str(), *since))
    }

    /// Its volume is known; it is attached to it once the owner says so.
    pub fn set_volume(&mut self, guest: GuestId, volume: VolumeId) {
        if let Some(entry) = self.guests.get_mut(&guest) {
            entry.volume = Some(volume);
        }
    }

    /// It came through another front end.
    pub fn is_direct(&self, guest: GuestId) -> bool {
        self.guests.get(&guest).is_some_and(|entry| matches!(entry.kind, Kind::Direct))
    }

    pub fn volume(&self, guest: GuestId) -> Option<VolumeId> {
        self.guests.get(&guest)?.volume
    }

    pub fn listed(&mut self, guest: GuestId, exports: Vec<String>) {
        self.nbd(guest, NbdInput::Listed { exports });
    }

    pub fn described(&mut self, guest: GuestId, export: Option<Export>) {
        self.nbd(guest, NbdInput::Export(export));
    }

    pub fn opened(&mut self, guest: GuestId, result: Result<OpenedVolume, OpenError>) {
        let Some(entry) = self.guests.get_mut(&guest) else {
            return;
        };
        self.opening.remove(&guest);
        match &entry.kind {
            Kind::Nbd { .. } => {
                let refused = result.is_err();
                let input = match result {
                    Ok(OpenedVolume { name, size_bytes, .. }) => {
                        NbdInput::Export(Some(Export { name, size_bytes, read_only: false }))
                    }
                    Err(why @ (OpenError::KeptOut(_) | OpenError::Barred)) => {
                        NbdInput::Refused { why: why.to_string() }
                    }
                    Err(_) => NbdInput::Export(None),
                };
                if refused {
                    entry.volume = None;
                    self.greeting.insert(guest, self.now);
                }
                self.nbd(guest, input);
            }
            Kind::Direct => {
                if result.is_err() {
                    self.guests.remove(&guest);
                }
                self.effect(Effect::GuestOpened { guest, result });
            }
        }
    }

    pub fn done(&mut self, guest: GuestId, tag: u64, result: GuestResult) {
        match self.guests.get(&guest).map(|entry| &entry.kind) {
            Some(Kind::Nbd { .. }) => self.nbd(guest, NbdInput::Done { tag: Tag(tag), result }),
            Some(Kind::Direct) => self.effect(Effect::GuestDone { guest, tag, result }),
            None => {}
        }
    }

    /// Its session is void, or the volume is gone: the connection ends without an answer.
    pub fn dropped(&mut self, guest: GuestId) {
        self.opening.remove(&guest);
        self.greeting.remove(&guest);
        self.end(guest);
        self.guests.remove(&guest);
    }

    /// The node stops: what is open is answered so, then the connection ends.
    pub fn stop(&mut self) {
        for guest in self.guests.keys().copied().collect::<Vec<_>>() {
            match self.guests.get(&guest).map(|entry| &entry.kind) {
                Some(Kind::Nbd { .. }) => self.nbd(guest, NbdInput::Shutdown),
                Some(Kind::Direct) => {
                    self.effect(Effect::GuestEnded { guest });
                    self.closed(guest);
                }
                None => {}
            }
        }
    }

    fn nbd(&mut self, guest: GuestId, input: NbdInput) {
        if let Some(Guest { kind: Kind::Nbd { connection, .. }, .. }) = self.guests.get_mut(&guest)
        {
            connection.handle(input);
            self.drain(guest);
        }
    }

    /// Until the connection has nothing more to say, then ask for what it can use next.
    fn drain(&mut self, guest: GuestId) {
        while let Some(entry) = self.guests.get_mut(&guest) {
            let Kind::Nbd { connection, closing, .. } = &mut entry.kind else {
                return;
            };
            let Some(effect) = connection.next_effect() else {
                break;
            };
            let output = match effect {
                NbdEffect::Send { pieces } => {
                    GuestsOutput::Effect(Effect::NbdSend { guest, pieces })
                }
                NbdEffect::List => GuestsOutput::List { guest },
                NbdEffect::Describe { name } => GuestsOutput::Describe { guest, name },
                NbdEffect::Open { name } => {
                    self.greeting.remove(&guest);
                    self.opening.insert(guest, (name.clone(), self.now));
                    GuestsOutput::Open { guest, name }
                }
                NbdEffect::Request { tag, op } => match entry.volume {
                    Some(volume) => GuestsOutput::Request { guest, volume, tag: tag.0, op },
                    None => continue,
                },
                NbdEffect::Close => {
                    *closing = true;
                    GuestsOutput::Effect(Effect::NbdClose { guest })
                }
            };
            self.outputs.push_back(output);
        }
        self.conclude(guest);
    }

    fn conclude(&mut self, guest: GuestId) {
        let Some(entry) = self.guests.get_mut(&guest) else {
            return;
        };
        let Kind::Nbd { connection, wanted, closing } = &mut entry.kind else {
            return;
        };
        if *closing {
            self.closed(guest);
        } else if !*wanted && let Want::Exactly(bytes) = connection.want() {
            *wanted = true;
            let volume = entry.volume;
            self.outputs.push_back(GuestsOutput::Want { guest, volume, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: GuestId = GuestId(1);

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn guests() -> Guests {
        let limits = NbdLimits { part_bytes: 4096, in_flight_max: 4, bytes_in_flight_max: 4 << 20 };
        let mut guests = Guests::new(limits);
        guests.nbd_accepted(at(1), GUEST);
        guests
    }

    fn is_closed(guests: &mut Guests) -> bool {
        let mut closed = false;
        while let Some(output) = guests.next_output() {
            closed |= output == GuestsOutput::Effect(Effect::NbdClose { guest: GUEST });
        }
        closed
    }

    /// The client's flags, and `NBD_OPT_EXPORT_NAME` of a volume "v".
    fn ask_for_a_volume(guests: &mut Guests) {
        let mut option = b"IHAVEOPT".to_vec();
        option.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        for bytes in [vec![0, 0, 0, 3], option, b"v".to_vec()] {
            guests.nbd_bytes(at(2), GUEST, Bytes::from(bytes));
        }
        assert_eq!(guests.opening().count(), 1);
    }

    // rule: node/handshakes-end
    // promise: bounded
    #[test]
    fn a_client_that_asks_for_nothing_is_closed() {
        let mut guests = guests();
        guests.nbd_bytes(at(9), GUEST, Bytes::from_static(&[0, 0, 0, 3]));
        guests.tick(at(10));
        assert!(!is_closed(&mut guests));
        assert_eq!(guests.next_deadline(), Some(at(11)));
        guests.tick(at(11));
        assert!(is_closed(&mut guests), "a few bytes make it no longer");
        assert_eq!((guests.len(), guests.next_deadline()), (0, None));
    }

    // rule: node/handshakes-end
    // promise: hold-not-fail
    #[test]
    fn a_client_that_waits_for_its_volume_is_not_closed() {
        let mut guests = guests();
        ask_for_a_volume(&mut guests);
        assert_eq!(guests.next_deadline(), None);
        guests.tick(at(1000));
        assert!(!is_closed(&mut guests));
        assert_eq!(guests.len(), 1);
    }
}
