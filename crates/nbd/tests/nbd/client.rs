//! A client and a volume for tests: it feeds what is wanted, and keeps what comes out.

use bytes::Bytes;
use gabion_nbd::{Connection, Effect, Export, Input, NbdLimits, Tag, Want};
use gabion_types::{ByteRange, GuestData, GuestOp, GuestResult};
use std::collections::VecDeque;

pub const SIZE: u64 = 64 << 20;
pub const LIMITS: NbdLimits =
    NbdLimits { part_bytes: 64 << 10, in_flight_max: 4, bytes_in_flight_max: 1 << 20 };

pub fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).unwrap()
}

/// What the test's volume reads as, everywhere: no two sectors are alike.
pub fn content(range: ByteRange) -> Bytes {
    let byte = |at: u64| u8::try_from((at / 512 * 7 + at % 251) % 256).unwrap();
    (range.offset()..range.end()).map(byte).collect()
}

pub fn answer(op: &GuestOp) -> GuestResult {
    Ok(match op {
        GuestOp::Read { range } => GuestData::Read(content(*range)),
        GuestOp::Status { range } => GuestData::Status(vec![gabion_types::MappedExtent {
            length: range.length(),
            data: true,
        }]),
        GuestOp::Write { .. }
        | GuestOp::Zero { .. }
        | GuestOp::Trim { .. }
        | GuestOp::Flush
        | GuestOp::Room { .. } => GuestData::Done,
    })
}

/// What came from the server, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { cookie: u64, error: u32 },
    None { cookie: u64 },
    Data { cookie: u64, offset: u64, data: Bytes, last: bool },
    Status { cookie: u64, descriptors: Vec<(u32, u32)> },
    Error { cookie: u64, error: u32, offset: Option<u64>, last: bool },
}

impl Reply {
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. }
            | Self::None { cookie }
            | Self::Data { cookie, .. }
            | Self::Status { cookie, .. }
            | Self::Error { cookie, .. } => *cookie,
        }
    }

    pub fn is_last(&self) -> bool {
        match self {
            Self::Simple { .. } | Self::None { .. } | Self::Status { .. } => true,
            Self::Data { last, .. } | Self::Error { last, .. } => *last,
        }
    }

    pub fn error(&self) -> u32 {
        match self {
            Self::Simple { error, .. } | Self::Error { error, .. } => *error,
            Self::None { .. } | Self::Data { .. } | Self::Status { .. } => 0,
        }
    }
}

pub struct Client {
    pub connection: Connection,
    /// Bytes that the client sent and the server did not take yet.
    pub unsent: VecDeque<u8>,
    /// Bytes of the server that no test looked at yet.
    pub received: Vec<u8>,
    /// Parts that the volume has not answered.
    pub requests: Vec<(Tag, GuestOp)>,
    pub others: Vec<Effect>,
    pub closed: bool,
    /// The test answers what is asked for room; else there is always some.
    pub minds_room: bool,
}

impl Client {
    pub fn new(limits: NbdLimits) -> Self {
        let mut client = Self {
            connection: Connection::new(limits),
            unsent: VecDeque::new(),
            received: Vec::new(),
            requests: Vec::new(),
            others: Vec::new(),
            closed: false,
            minds_room: false,
        };
        client.drain();
        assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.send(&3u32.to_be_bytes());
        client
    }

    /// Past the handshake.
    pub fn serving(structured: bool) -> Self {
        Self::serving_with(LIMITS, structured, false)
    }

    pub fn serving_with(limits: NbdLimits, structured: bool, read_only: bool) -> Self {
        let mut client = Self::new(limits);
        if structured {
            client.option(8, &[]);
            client.option(10, &meta("vm1", &["base:allocation"]));
            client.export(read_only);
        }
        client.option(7, &info("vm1", &[3]));
        client.export(read_only);
        client.received.clear();
        client.others.clear();
        assert!(client.connection.export().is_some());
        client
    }

    pub fn export(&mut self, read_only: bool) {
        let export = Export { name: "vm1".into(), size_bytes: SIZE, read_only };
        self.handle(Input::Export(Some(export)));
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
        self.feed();
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.send(b"IHAVEOPT");
        self.send(&option.to_be_bytes());
        self.send(&u32::try_from(data.len()).unwrap().to_be_bytes());
        self.send(data);
    }

    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&header(command, flags, cookie, offset, length));
    }

    pub fn handle(&mut self, input: Input) {
        self.connection.handle(input);
        self.drain();
        self.feed();
    }

    /// Delivers what is wanted while it is there.
    fn feed(&mut self) {
        while let Want::Exactly(wanted) = self.connection.want() {
            assert!(wanted > 0, "nothing is not a want");
            if self.unsent.len() < wanted {
                return;
            }
            let bytes: Bytes = self.unsent.drain(..wanted).collect();
            self.connection.handle(Input::Received(bytes));
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.connection.next_effect() {
            assert!(!self.closed, "nothing comes behind the close");
            match effect {
                Effect::Send { pieces } => {
                    pieces.iter().for_each(|piece| self.received.extend_from_slice(piece));
                }
                Effect::Request { tag, op: GuestOp::Room { .. } } if !self.minds_room => {
                    self.connection.handle(Input::Done { tag, result: Ok(GuestData::Done) });
                }
                Effect::Request { tag, op } => self.requests.push((tag, op)),
                Effect::Close => self.closed = true,
                Effect::List | Effect::Describe { .. } | Effect::Open { .. } => {
                    self.others.push(effect);
                }
            }
        }
        assert_eq!(self.closed, self.connection.want() == Want::Closed);
    }

    /// Answers a part that is out, as the test's volume does.
    pub fn done(&mut self, index: usize) {
        let (tag, op) = self.requests.remove(index);
        self.handle(Input::Done { tag, result: answer(&op) });
    }

    pub fn done_with(&mut self, index: usize, result: GuestResult) {
        let (tag, _) = self.requests.remove(index);
        self.handle(Input::Done { tag, result });
    }

    pub fn done_all(&mut self) {
        while !self.requests.is_empty() {
            self.done(0);
        }
    }

    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        self.received.drain(..bytes).collect()
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn short(&mut self) -> u32 {
        u32::try_from(self.number(4)).unwrap()
    }

    /// The replies to options that came: (option, kind, data).
    pub fn answers(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        let mut answers = Vec::new();
        while !self.received.is_empty() {
            assert_eq!(self.number(8), 0x0003_e889_0455_65a9);
            let (option, kind, length) = (self.short(), self.short(), self.short());
            answers.push((option, kind, self.take(length as usize)));
        }
        answers
    }

    /// The replies to requests that came. None is a simple one with data.
    pub fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !self.received.is_empty() {
            replies.push(match self.short() {
                0x6744_6698 => {
                    let error = self.short();
                    Reply::Simple { error, cookie: self.number(8) }
                }
                0x668e_33ef => self.chunk(),
                magic => panic!("{magic:08x} is no reply"),
            });
        }
        replies
    }

    fn chunk(&mut self) -> Reply {
        let flags = self.number(2);
        assert!(flags <= 1);
        let last = flags == 1;
        let kind = self.number(2);
        let cookie = self.number(8);
        let length = self.short();
        match kind {
            0 => {
                assert!(last && length == 0);
                Reply::None { cookie }
            }
            1 => {
                let offset = self.number(8);
                Reply::Data { cookie, offset, data: self.take(length as usize - 8).into(), last }
            }
            5 => {
                assert!(last && self.short() == 1, "one context, one chunk");
                let count = (length - 4) / 8;
                let descriptors = (0..count).map(|_| (self.short(), self.short())).collect();
                Reply::Status { cookie, descriptors }
            }
            0x8001 | 0x8002 => {
                let error = self.short();
                let text = usize::try_from(self.number(2)).unwrap();
                assert!(!String::from_utf8(self.take(text)).unwrap().is_empty());
                let offset = (kind == 0x8002).then(|| self.number(8));
                let fixed = if offset.is_some() { 14 } else { 6 };
                assert_eq!(length as usize, fixed + text);
                Reply::Error { cookie, error, offset, last }
            }
            other => panic!("{other:04x} is no chunk"),
        }
    }

    /// The error of the one reply that came.
    pub fn one_error(&mut self) -> u32 {
        let replies = self.replies();
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert!(replies[0].is_last());
        replies[0].error()
    }
}

pub fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

pub fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|item| bytes.extend_from_slice(&item.to_be_bytes()));
    bytes
}

pub fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| bytes.extend(string(query)));
    bytes
}
