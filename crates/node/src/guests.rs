//! Guests of this node: NBD connections, and those that come through another front end.

use crate::io::{Effect, GuestId, OpenError, OpenedVolume};
use bytes::Bytes;
use gabion_nbd::{
    Connection, Effect as NbdEffect, Export, Input as NbdInput, NbdLimits, Tag, Want,
};
use gabion_types::{GuestOp, GuestResult, Instant, IoError, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// Guests on one node. More are refused.
pub const GUESTS_MAX: usize = 1024;

/// What the guests want of the rest of the node.
#[derive(Clone, Debug, PartialEq)]
pub enum GuestsOutput {
    Effect(Effect),
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
    /// It left the volume.
    Detached {
        guest: GuestId,
        volume: VolumeId,
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
    volume: Option<VolumeId>,
}

#[derive(Debug)]
pub struct Guests {
    limits: NbdLimits,
    now: Instant,
    guests: BTreeMap<GuestId, Guest>,
    /// Those that wait for a volume, by name, since when.
    opening: BTreeMap<GuestId, (String, Instant)>,
    outputs: VecDeque<GuestsOutput>,
}

impl Guests {
    pub fn new(limits: NbdLimits) -> Self {
        Self {
            limits,
            now: Instant::ZERO,
            guests: BTreeMap::new(),
            opening: BTreeMap::new(),
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

    pub fn nbd_accepted(&mut self, guest: GuestId) {
        if self.guests.len() >= GUESTS_MAX {
            self.effect(Effect::NbdClose { guest });
            return;
        }
        let connection = Box::new(Connection::new(self.limits));
        let kind = Kind::Nbd { connection, wanted: false, closing: false };
        self.guests.insert(guest, Guest { kind, volume: None });
        self.drain(guest);
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
        self.guests.insert(guest, Guest { kind: Kind::Direct, volume: None });
        self.outputs.push_back(GuestsOutput::Open { guest, name });
    }

    pub fn direct_request(&mut self, guest: GuestId, tag: u64, op: GuestOp) {
        match self.guests.get(&guest) {
            Some(Guest { kind: Kind::Direct, volume: Some(volume) })
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

    /// It hung up, or its socket broke.
    pub fn closed(&mut self, guest: GuestId) {
        self.opening.remove(&guest);
        if let Some(Guest { volume: Some(volume), .. }) = self.guests.remove(&guest) {
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
                let export = result.ok().map(|opened| Export {
                    name: opened.name,
                    size_bytes: opened.size_bytes,
                    read_only: false,
                });
                self.nbd(guest, NbdInput::Export(export));
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
        let Some(entry) = self.guests.remove(&guest) else {
            return;
        };
        self.effect(match entry.kind {
            Kind::Nbd { .. } => Effect::NbdClose { guest },
            Kind::Direct => Effect::GuestEnded { guest },
        });
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
            self.effect(Effect::NbdWant { guest, bytes });
        }
    }
}
