//! The transmission phase: requests come in, parts of them go to the volume, answers go out.

use crate::command::{Command, Features, RequestHeader};
use crate::connection::send;
use crate::handshake::Next;
use crate::io::{Effect, Export, Tag, Want};
use crate::limits::{DROP_BYTES_MAX, FILL_PARTS_MAX, NbdLimits};
use crate::open::{Open, Work};
use crate::parts::{first_part, parts, rest};
use crate::proto::{REQUEST_BYTES, command};
use crate::refused::Refused;
use crate::reply;
use bytes::Bytes;
use gabion_types::{ByteRange, GuestOp, GuestResult, Slab};
use std::collections::{BTreeMap, VecDeque};

/// Zeros to write where a hole must not be. Aligned, so that a disk takes them as they are.
#[repr(align(4096))]
struct Zeros([u8; FILL_BYTES_MAX as usize]);
const FILL_BYTES_MAX: u32 = 256 << 10;
static ZEROS: Zeros = Zeros([0; FILL_BYTES_MAX as usize]);

#[derive(Clone, Debug)]
pub(crate) struct Serving {
    limits: NbdLimits,
    export: Export,
    features: Features,
    reading: Reading,
    /// Requests taken and not yet answered; at most `in_flight_max`.
    open: Slab<Open>,
    /// Parts that the volume has: which request, and what of it. Bounded by what is open.
    parts: BTreeMap<Tag, (u64, ByteRange)>,
    next_tag: u64,
    /// Payload of what is open.
    held_bytes: u64,
}

/// What the stream stands at.
#[derive(Clone, Debug)]
enum Reading {
    Header,
    /// It does not fit beside what is open. Nothing is read until it does.
    Waiting(RequestHeader, Command),
    /// A large write waits for the word that there is room for all of it. Its data stays unread.
    Room,
    /// Data of an open write: what is left of its range.
    Payload {
        key: u64,
        left: ByteRange,
    },
    /// Data of a refused write, and what it is answered with when it is over.
    Drop {
        left: u32,
        cookie: u64,
        refused: Refused,
    },
    /// The client said that it leaves. It gets its answers and no more.
    Leaving,
}

impl Serving {
    pub fn new(limits: NbdLimits, export: Export, features: Features) -> Self {
        let open = Slab::new(limits.in_flight_max);
        let (reading, parts) = (Reading::Header, BTreeMap::new());
        Self { limits, export, features, reading, open, parts, next_tag: 0, held_bytes: 0 }
    }

    pub fn export(&self) -> &Export {
        &self.export
    }

    pub fn requests_in_flight(&self) -> usize {
        self.open.len()
    }

    /// promise: bounded. Nothing is read that there is no room for.
    pub fn want(&self) -> Want {
        match &self.reading {
            Reading::Header if self.open.is_full() => Want::Paused,
            Reading::Header => Want::Exactly(REQUEST_BYTES),
            Reading::Payload { left, .. } => {
                let part = first_part(*left, self.limits.part_bytes);
                Want::Exactly(usize::try_from(part.length()).expect("a part fits the memory"))
            }
            Reading::Drop { left, .. } => Want::Exactly((*left).min(DROP_BYTES_MAX) as usize),
            Reading::Waiting(..) | Reading::Room | Reading::Leaving => Want::Paused,
        }
    }

    pub fn received(&mut self, bytes: &Bytes, effects: &mut VecDeque<Effect>) -> Next {
        assert_eq!(self.want(), Want::Exactly(bytes.len()), "the driver delivers what is wanted");
        match &mut self.reading {
            Reading::Header => {
                let head = bytes.first_chunk().expect("as many bytes as wanted are there");
                let Some(header) = RequestHeader::decode(head) else {
                    return Next::Close;
                };
                match Command::check(&header, &self.export, self.features) {
                    Ok(command) => self.admit(header, command, effects),
                    Err(refused) => self.refuse(header, refused, effects),
                }
            }
            Reading::Payload { key, left } => {
                let (key, range) = (*key, *left);
                self.take_payload(key, range, bytes, effects);
            }
            Reading::Drop { left, cookie, refused } => {
                let (cookie, refused) = (*cookie, *refused);
                *left -= u32::try_from(bytes.len()).expect("no more than is left was wanted");
                if *left == 0 {
                    send(effects, reply::error(self.features, cookie, refused));
                    self.reading = Reading::Header;
                }
            }
            Reading::Waiting(..) | Reading::Room | Reading::Leaving => {}
        }
        self.conclude(effects)
    }

    /// rule: nbd/refused-payload-is-dropped. The payload of a refused write comes all the same.
    fn refuse(&mut self, header: RequestHeader, refused: Refused, effects: &mut VecDeque<Effect>) {
        let cookie = header.cookie;
        match header.payload_bytes() {
            0 => send(effects, reply::error(self.features, cookie, refused)),
            left => self.reading = Reading::Drop { left, cookie, refused },
        }
    }

    /// rule: nbd/whole-request-fits. Room is kept for the whole of a request before any of it is
    /// handed on: two that are half taken never wait for each other.
    fn admit(&mut self, header: RequestHeader, asked: Command, effects: &mut VecDeque<Effect>) {
        let held = self.held_bytes.saturating_add(asked.held_bytes());
        if self.held_bytes > 0 && held > self.limits.bytes_in_flight_max {
            self.reading = Reading::Waiting(header, asked);
            return;
        }
        self.reading = Reading::Header;
        let cookie = header.cookie;
        match asked {
            Command::Nothing if header.command == command::READ && self.features.structured => {
                send(effects, reply::none_chunk(cookie));
            }
            Command::Nothing => send(effects, reply::done(cookie)),
            Command::Disconnect => self.reading = Reading::Leaving,
            Command::Read { range, whole } => {
                let work = if whole { Work::read_whole(range) } else { Work::ReadChunks };
                let key = self.open(cookie, work, asked);
                for part in parts(range, self.limits.part_bytes) {
                    self.ask(key, part, GuestOp::Read { range: part }, effects);
                }
            }
            Command::Write { range, fua } => {
                let key = self.open(
                    cookie,
                    Work::Write { fua, all_here: false, room: self.is_large(range) },
                    asked,
                );
                if self.is_large(range) {
                    self.reading = Reading::Room;
                    self.ask(key, range, GuestOp::Room { range }, effects);
                } else {
                    self.reading = Reading::Payload { key, left: range };
                }
            }
            Command::Fill { range, fua } => {
                let large = self.is_large(range);
                let key = self.open(cookie, Work::Fill { fua, left: range, room: large }, asked);
                if large {
                    self.ask(key, range, GuestOp::Room { range }, effects);
                } else {
                    self.fill_some(key, effects);
                }
            }
            Command::Flush => self.ask_plain(cookie, asked, GuestOp::Flush, effects),
            Command::Trim { range, fua } => {
                self.ask_plain(cookie, asked, GuestOp::Trim { range, fua }, effects);
            }
            Command::Zero { range, fua } => {
                self.ask_plain(cookie, asked, GuestOp::Zero { range, fua }, effects);
            }
            Command::Status { range, one } => {
                let key = self.open(cookie, Work::Status { range, one }, asked);
                self.ask(key, range, GuestOp::Status { range }, effects);
            }
        }
    }

    fn open(&mut self, cookie: u64, work: Work, asked: Command) -> u64 {
        let held_bytes = asked.held_bytes();
        self.held_bytes += held_bytes;
        let open = Open::new(cookie, work, held_bytes);
        self.open.insert(open).expect("no header is read while all places are taken")
    }

    /// One part, as the volume takes it: no payload, whatever its length.
    ///
    /// promise: flush-means-flush
    ///
    /// rule: nbd/flush-covers-completed. A flush is handed on when it is read, behind all writes
    /// that were answered before, on any connection; the volume's owner is the barrier.
    fn ask_plain(
        &mut self,
        cookie: u64,
        asked: Command,
        op: GuestOp,
        effects: &mut VecDeque<Effect>,
    ) {
        let key = self.open(cookie, Work::Plain { writes: op.is_write() }, asked);
        let nothing = ByteRange::new(0, 0).expect("an empty range has an end");
        let range = op.range().unwrap_or(nothing);
        self.ask(key, range, op, effects);
    }

    fn ask(&mut self, key: u64, range: ByteRange, op: GuestOp, effects: &mut VecDeque<Effect>) {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        self.parts.insert(tag, (key, range));
        self.open.get_mut(key).expect("the request is open while parts are made").parts_out += 1;
        effects.push_back(Effect::Request { tag, op });
    }

    /// A part of a write is handed on as soon as it is whole; not after an earlier one failed.
    fn take_payload(
        &mut self,
        key: u64,
        range: ByteRange,
        bytes: &Bytes,
        effects: &mut VecDeque<Effect>,
    ) {
        let part = first_part(range, self.limits.part_bytes);
        let left = rest(range, part);
        let open = self.open.get_mut(key).expect("a write is open until all of it is here");
        let failed = open.failed.is_some();
        let Work::Write { fua, all_here, .. } = &mut open.work else {
            unreachable!("only a write has a payload");
        };
        let fua = *fua;
        *all_here = left.length() == 0;
        self.reading = match left.length() {
            0 => Reading::Header,
            _ => Reading::Payload { key, left },
        };
        if failed {
            self.finish_if_over(key, effects);
        } else {
            let data = bytes.clone();
            self.ask(key, part, GuestOp::Write { range: part, data, fua }, effects);
        }
    }

    /// rule: nbd/room-before-parts. What is handed on in several parts is not begun before there is
    /// room for all of it: a full volume takes the whole of a write or nothing.
    fn is_large(&self, range: ByteRange) -> bool {
        first_part(range, self.limits.part_bytes) != range
    }

    /// The volume's word on the room for a large write.
    fn on_room(
        &mut self,
        key: u64,
        range: ByteRange,
        result: GuestResult,
        effects: &mut VecDeque<Effect>,
    ) {
        let open = self.open.get_mut(key).expect("a request is open while parts of it are out");
        let failed = result.err().map(|error| Refused::Guest { error, writes: true });
        let cookie = open.cookie;
        match (&mut open.work, failed) {
            (Work::Fill { room, .. }, failed) => {
                *room = false;
                open.failed = failed;
                self.fill_some(key, effects);
                self.finish_if_over(key, effects);
            }
            (Work::Write { room, .. }, None) => {
                *room = false;
                self.reading = Reading::Payload { key, left: range };
            }
            (_, None) => {}
            (_, Some(refused)) => {
                let open = self.open.remove(key).expect("it was there");
                self.held_bytes -= open.held_bytes;
                let left = u32::try_from(range.length()).expect("a payload's length has 32 bits");
                self.reading = Reading::Drop { left, cookie, refused };
            }
        }
    }

    fn fill_some(&mut self, key: u64, effects: &mut VecDeque<Effect>) {
        for _ in 0..FILL_PARTS_MAX {
            self.fill(key, effects);
        }
    }

    /// The next part of zeros, if there is one.
    fn fill(&mut self, key: u64, effects: &mut VecDeque<Effect>) {
        let Some(open) = self.open.get_mut(key).filter(|open| open.failed.is_none()) else {
            return;
        };
        let Work::Fill { fua, left, .. } = &mut open.work else {
            return;
        };
        if left.length() == 0 {
            return;
        }
        let part = first_part(*left, self.limits.part_bytes.min(FILL_BYTES_MAX));
        *left = rest(*left, part);
        let length = usize::try_from(part.length()).expect("a part fits the memory");
        let data = Bytes::from_static(&ZEROS.0[..length]);
        let op = GuestOp::Write { range: part, data, fua: *fua };
        self.ask(key, part, op, effects);
    }

    pub fn done(&mut self, tag: Tag, result: GuestResult, effects: &mut VecDeque<Effect>) -> Next {
        let Some((key, part)) = self.parts.remove(&tag) else {
            return Next::Stay;
        };
        let open = self.open.get_mut(key).expect("a request is open while parts of it are out");
        open.parts_out -= 1;
        if open.awaits_room() {
            self.on_room(key, part, result, effects);
            return self.conclude(effects);
        }
        open.part_done(part, result, effects);
        self.fill(key, effects);
        self.finish_if_over(key, effects);
        self.conclude(effects)
    }

    fn finish_if_over(&mut self, key: u64, effects: &mut VecDeque<Effect>) {
        if self.open.get(key).is_some_and(Open::is_over) {
            let open = self.open.remove(key).expect("it was there");
            self.held_bytes -= open.held_bytes;
            open.answer(self.features, effects);
        }
    }

    /// What waits for others to be over may go on.
    fn conclude(&mut self, effects: &mut VecDeque<Effect>) -> Next {
        if let Reading::Waiting(header, asked) = self.reading {
            self.admit(header, asked, effects);
        }
        let leaves = matches!(self.reading, Reading::Leaving);
        if leaves && self.open.is_empty() { Next::Close } else { Next::Stay }
    }

    /// rule: nbd/shutdown-answers-everything. What is not done is answered with ESHUTDOWN.
    pub fn shutdown(&mut self, effects: &mut VecDeque<Effect>) {
        let cookies = self.open.iter().map(|(_, open)| open.cookie);
        let unread = match self.reading {
            Reading::Waiting(header, _) => Some(header.cookie),
            Reading::Drop { cookie, .. } => Some(cookie),
            Reading::Header | Reading::Payload { .. } | Reading::Room | Reading::Leaving => None,
        };
        for cookie in cookies.chain(unread) {
            send(effects, reply::error(self.features, cookie, Refused::Shutdown));
        }
    }
}
