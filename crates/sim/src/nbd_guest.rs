//! A guest's end of an NBD connection: in its simplest form with simple replies, else as its
//! `Dialect` says.
//!
//! Source: doc/proto.md of the NetworkBlockDevice project.

mod aside;
mod dialect;
mod pending;
mod proto;

use aside::{Agreed, Aside};
use bytes::{Buf, BufMut, Bytes, BytesMut};
pub use dialect::Dialect;
use dialect::Step;
use gabion_types::{GuestOp, GuestResult, Prng};
use pending::{Asked, Over, Pending};
use proto::{
    CAN_DF, CHUNK_BYTES, EXPORT_BYTES, EXPORT_ZEROES, FIXED_NEWSTYLE, GREETING_BYTES, MAGIC,
    NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_BYTES, OPTION_REPLY_MAGIC, REQUEST_MAGIC,
    SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, answer, chunk, command, flag,
    info,
};
use std::collections::{BTreeMap, VecDeque};

/// Cookies of requests that are no guest's.
const ASIDE: u64 = 1 << 63;
/// One request in so many follows one that nobody needs.
const ASIDE_OF: u64 = 12;
/// One in so many is not sent, but something after which the connection is closed.
const LEAVES_OF: u64 = 600;
/// A client flag that does not exist.
const UNKNOWN_FLAG: u32 = 1 << 20;

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Opened {
        size_bytes: u64,
    },
    NotOpened,
    /// The names of all exports.
    Listed {
        names: Vec<String>,
    },
    /// Of the export that it wants, before it opens it.
    Described {
        size_bytes: u64,
    },
    /// What had to be refused was.
    Refused,
    Done {
        tag: u64,
        result: GuestResult,
    },
}

/// What it said before a request, and had better not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carelessness {
    /// It is answered, mostly by an error.
    Aside,
    /// The connection is closed.
    Nonsense,
    /// It is closed when what is open was answered; the request itself is not sent any more.
    GoodBye,
}

/// The stream is not NBD, or answers what was not asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not NBD: {0}")]
pub struct NotNbd(pub(super) &'static str);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    /// An option was sent. What it was answered with so far.
    Option {
        step: Step,
        size_bytes: Option<u64>,
        names: Vec<String>,
    },
    /// By EXPORT_NAME.
    Export,
    Serving,
    /// Nothing is asked any more: it said nonsense, or good-bye, or has not got its export.
    Leaving,
}

/// Of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
}

#[derive(Debug)]
pub struct NbdGuest {
    export: String,
    dialect: Dialect,
    prng: Prng,
    stage: Stage,
    /// Options that it has yet to send.
    steps: VecDeque<Step>,
    /// Wants no zeros behind the answer to EXPORT_NAME.
    no_zeroes: bool,
    structured: bool,
    /// The server's number for `base:allocation`.
    context: Option<u32>,
    size_bytes: u64,
    /// Sent, and not taken by the node yet.
    sent: BytesMut,
    /// How many bytes the node reads next.
    wanted: Option<usize>,
    received: BytesMut,
    /// Requests without an answer.
    open: BTreeMap<u64, Pending>,
    asides: u64,
    chunks: u64,
}

impl NbdGuest {
    /// `number` tells its connections apart.
    pub fn new(export: String, dialect: Dialect, number: u64) -> Self {
        let mut prng = Prng::new(dialect.seed ^ number);
        let steps = dialect::steps(dialect, &mut prng);
        Self {
            export,
            dialect,
            steps,
            no_zeroes: !dialect.old || prng.chance(1, 2),
            prng,
            stage: Stage::Greeting,
            structured: false,
            context: None,
            size_bytes: 0,
            sent: BytesMut::new(),
            wanted: None,
            received: BytesMut::new(),
            open: BTreeMap::new(),
            asides: 0,
            chunks: 0,
        }
    }

    /// The node reads so many bytes next.
    pub fn want(&mut self, bytes: usize) {
        self.wanted = Some(bytes);
    }

    /// What the node reads, once it is all there.
    pub fn take(&mut self) -> Option<Bytes> {
        let wanted = self.wanted.filter(|wanted| *wanted <= self.sent.len())?;
        self.wanted = None;
        Some(self.sent.split_to(wanted).freeze())
    }

    /// Chunks that came since this was asked last.
    pub fn take_chunks(&mut self) -> u64 {
        std::mem::take(&mut self.chunks)
    }

    /// After its export was opened.
    pub fn ask(&mut self, tag: u64, op: &GuestOp) -> Option<Carelessness> {
        let careless = if self.dialect.careless { self.be_careless() } else { None };
        if self.stage == Stage::Leaving {
            return careless;
        }
        let (header, asked) = self.request(op);
        self.send_request(header, tag);
        if let GuestOp::Write { data, .. } = op {
            self.sent.put_slice(data);
        }
        self.open.insert(tag, Pending::new(asked));
        careless
    }

    fn request(&mut self, op: &GuestOp) -> (Header, Asked) {
        let fua_flag = |fua: bool| if fua { flag::FUA } else { 0 };
        let mut asked = Asked::Plain;
        let (command, flags) = match op {
            GuestOp::Read { range } => {
                let whole = self.structured && self.prng.chance(1, 4);
                asked = Asked::Read { range: *range, whole };
                (command::READ, if whole { flag::DF } else { 0 })
            }
            GuestOp::Write { fua, .. } => (command::WRITE, fua_flag(*fua)),
            GuestOp::Trim { fua, .. } => (command::TRIM, fua_flag(*fua)),
            GuestOp::Zero { fua, .. } => (command::WRITE_ZEROES, fua_flag(*fua) | self.zeroes()),
            GuestOp::Status { range } if self.context.is_some() => {
                let one = self.prng.chance(1, 4);
                let context = self.context.unwrap_or_default();
                asked = Asked::Status { range: *range, one, context };
                (command::BLOCK_STATUS, if one { flag::REQ_ONE } else { 0 })
            }
            // Without a context there is no status to ask for, and room is no request.
            GuestOp::Flush | GuestOp::Status { .. } | GuestOp::Room { .. } => (command::FLUSH, 0),
        };
        let range = op.range().filter(|_| command != command::FLUSH);
        let (offset, length) = range.map_or((0, 0), |range| (range.offset(), range.length()));
        let length = u32::try_from(length).expect("requests are small");
        (Header { command, flags, offset, length }, asked)
    }

    /// Zeros as data or as a hole.
    fn zeroes(&mut self) -> u16 {
        match self.structured.then(|| self.prng.below(4)) {
            Some(0) => flag::NO_HOLE,
            Some(1) => flag::FAST_ZERO,
            Some(_) | None => 0,
        }
    }

    fn send_request(&mut self, header: Header, cookie: u64) {
        let Header { command, flags, offset, length } = header;
        self.sent.put_u32(REQUEST_MAGIC);
        self.sent.put_u16(flags);
        self.sent.put_u16(command);
        self.sent.put_u64(cookie);
        self.sent.put_u64(offset);
        self.sent.put_u32(length);
    }

    /// Now and then it says what the server has to close the connection for, or good-bye; or what
    /// nobody needs.
    fn be_careless(&mut self) -> Option<Carelessness> {
        if self.stage != Stage::Serving {
            return None;
        }
        if self.prng.chance(1, LEAVES_OF) {
            self.stage = Stage::Leaving;
            if self.prng.chance(1, 2) {
                self.sent.put_bytes(0x55, 28);
                return Some(Carelessness::Nonsense);
            }
            let header = Header { command: command::DISC, flags: 0, offset: 0, length: 0 };
            self.send_request(header, ASIDE);
            return Some(Carelessness::GoodBye);
        }
        if !self.prng.chance(1, ASIDE_OF) {
            return None;
        }
        let (size_bytes, structured) = (self.size_bytes, self.structured);
        let allocation = self.context.is_some();
        let aside = Aside::draw(&mut self.prng, Agreed { size_bytes, structured, allocation });
        self.asides += 1;
        let cookie = ASIDE | self.asides;
        self.send_request(aside.header, cookie);
        self.sent.put_bytes(0x55, aside.payload);
        let (error, reads) = (aside.error, aside.header.command == command::READ);
        self.open.insert(cookie, Pending::new(Asked::Aside { error, reads }));
        Some(Carelessness::Aside)
    }

    /// Errors: the connection is of no use any more.
    pub fn receive(&mut self, pieces: &[Bytes]) -> Result<VecDeque<Said>, NotNbd> {
        pieces.iter().for_each(|piece| self.received.put_slice(piece));
        let mut said = VecDeque::new();
        while self.step(&mut said)? {}
        Ok(said)
    }

    /// False: more has to come first.
    fn step(&mut self, said: &mut VecDeque<Said>) -> Result<bool, NotNbd> {
        match &self.stage {
            Stage::Greeting => self.on_greeting(),
            Stage::Option { .. } => self.on_option_reply(said),
            Stage::Export => Ok(self.on_export(said)),
            Stage::Serving | Stage::Leaving => self.on_reply(said),
        }
    }

    fn on_greeting(&mut self) -> Result<bool, NotNbd> {
        if self.received.len() < GREETING_BYTES {
            return Ok(false);
        }
        if self.received.get_u64() != MAGIC || self.received.get_u64() != OPTION_MAGIC {
            return Err(NotNbd("its greeting"));
        }
        let _flags = self.received.get_u16();
        let unknown = self.dialect.careless && self.prng.chance(1, 20);
        let flags = FIXED_NEWSTYLE
            | if self.no_zeroes { NO_ZEROES } else { 0 }
            | if unknown { UNKNOWN_FLAG } else { 0 };
        self.sent.put_u32(flags);
        self.next_option();
        Ok(true)
    }

    fn next_option(&mut self) {
        let Some(step) = self.steps.pop_front() else { return };
        let data = step.data(&self.export);
        self.sent.put_u64(OPTION_MAGIC);
        self.sent.put_u32(step.code());
        self.sent.put_u32(u32::try_from(data.len()).expect("options are short"));
        self.sent.put_slice(&data);
        self.stage = if step == Step::ExportName {
            Stage::Export
        } else {
            Stage::Option { step, size_bytes: None, names: Vec::new() }
        };
    }

    fn on_option_reply(&mut self, said: &mut VecDeque<Said>) -> Result<bool, NotNbd> {
        let Stage::Option { step, size_bytes, names } = &mut self.stage else { return Ok(false) };
        let step = *step;
        let Some(header) = self.received.get(..OPTION_REPLY_BYTES) else { return Ok(false) };
        let mut header = header;
        let (magic, option) = (header.get_u64(), header.get_u32());
        let (kind, length) = (header.get_u32(), crate::world::index(header.get_u32().into()));
        if magic != OPTION_REPLY_MAGIC || option != step.code() {
            return Err(NotNbd("a reply to an option"));
        }
        if self.received.len() < OPTION_REPLY_BYTES + length {
            return Ok(false);
        }
        self.received.advance(OPTION_REPLY_BYTES);
        let mut data = self.received.split_to(length);
        match (kind, step) {
            (answer::INFO, Step::Info | Step::Go) if data.len() >= 2 => match data.get_u16() {
                info::EXPORT if data.len() == 10 => {
                    *size_bytes = Some(data.get_u64());
                    check_flags(data.get_u16(), self.structured)?;
                }
                info::NAME if data != self.export.as_bytes() => {
                    return Err(NotNbd("another export's name"));
                }
                info::EXPORT => return Err(NotNbd("an export")),
                _ => {}
            },
            (answer::SERVER, Step::List) => names.push(dialect::listed(data)?),
            (answer::META_CONTEXT, Step::SetMeta) => self.context = Some(dialect::context(data)?),
            (answer::META_CONTEXT, Step::ListMeta) => drop(dialect::context(data)?),
            (kind, step) => {
                step.check_last(kind)?;
                self.on_option_over(kind, said)?;
            }
        }
        Ok(true)
    }

    /// It was answered to the end.
    fn on_option_over(&mut self, kind: u32, said: &mut VecDeque<Said>) -> Result<(), NotNbd> {
        let Stage::Option { step, size_bytes, names } = &mut self.stage else { return Ok(()) };
        let (step, size_bytes, well) = (*step, *size_bytes, kind == answer::ACK);
        match step {
            Step::Go if well => {
                self.size_bytes = size_bytes.ok_or(NotNbd("an export of no size"))?;
                self.stage = Stage::Serving;
                said.push_back(Said::Opened { size_bytes: self.size_bytes });
                return Ok(());
            }
            // Without the context it has nothing to ask for.
            Step::SetMeta if well && self.context.is_some() => {}
            Step::Go | Step::SetMeta | Step::ExportName | Step::Abort => {
                self.stage = Stage::Leaving;
                said.push_back(Said::NotOpened);
                return Ok(());
            }
            Step::Info if well => {
                let size_bytes = size_bytes.ok_or(NotNbd("an export of no size"))?;
                said.push_back(Said::Described { size_bytes });
            }
            Step::List => said.push_back(Said::Listed { names: std::mem::take(names) }),
            Step::Structured => self.structured = well,
            Step::Info | Step::ListMeta => {}
            Step::Unknown
            | Step::Tls
            | Step::TooBig
            | Step::ListOfSomething
            | Step::InfoOfNothing
            | Step::MetaTooEarly
            | Step::MetaOfNothing => said.push_back(Said::Refused),
        }
        self.next_option();
        Ok(())
    }

    fn on_export(&mut self, said: &mut VecDeque<Said>) -> bool {
        let zeroes = if self.no_zeroes { 0 } else { EXPORT_ZEROES };
        if self.received.len() < EXPORT_BYTES + zeroes {
            return false;
        }
        self.size_bytes = self.received.get_u64();
        self.received.advance(2 + zeroes);
        self.stage = Stage::Serving;
        said.push_back(Said::Opened { size_bytes: self.size_bytes });
        true
    }

    fn on_reply(&mut self, said: &mut VecDeque<Said>) -> Result<bool, NotNbd> {
        let Some(mut magic) = self.received.get(..4) else { return Ok(false) };
        let over = match magic.get_u32() {
            SIMPLE_REPLY_MAGIC => self.on_simple_reply()?,
            STRUCTURED_REPLY_MAGIC if self.structured => self.on_chunk()?,
            _ => return Err(NotNbd("a reply")),
        };
        match over {
            Reply::Later => return Ok(false),
            Reply::Part => {}
            Reply::Last { tag, pending } => said.push_back(match pending.over()? {
                Over::Guest(result) => Said::Done { tag, result },
                Over::Aside => Said::Refused,
            }),
        }
        Ok(true)
    }

    fn on_simple_reply(&mut self) -> Result<Reply, NotNbd> {
        let Some(header) = self.received.get(..SIMPLE_REPLY_BYTES) else {
            return Ok(Reply::Later);
        };
        let mut header = &header[4..];
        let (error, tag) = (header.get_u32(), header.get_u64());
        let pending = self.open.get(&tag).ok_or(NOT_OPEN)?;
        if !pending.may_be_simple(self.structured, error) {
            return Err(NotNbd("a simple reply"));
        }
        let bytes = if error == 0 { pending.simple_bytes() } else { 0 };
        if self.received.len() < SIMPLE_REPLY_BYTES + bytes {
            return Ok(Reply::Later);
        }
        self.received.advance(SIMPLE_REPLY_BYTES);
        let data = self.received.split_to(bytes).freeze();
        let mut pending = self.open.remove(&tag).ok_or(NOT_OPEN)?;
        pending.on_simple(error, data);
        Ok(Reply::Last { tag, pending })
    }

    fn on_chunk(&mut self) -> Result<Reply, NotNbd> {
        let Some(header) = self.received.get(..CHUNK_BYTES) else { return Ok(Reply::Later) };
        let mut header = &header[4..];
        let (flags, kind, tag) = (header.get_u16(), header.get_u16(), header.get_u64());
        let length = crate::world::index(header.get_u32().into());
        if self.received.len() < CHUNK_BYTES + length {
            return Ok(Reply::Later);
        }
        self.received.advance(CHUNK_BYTES);
        let data = self.received.split_to(length);
        let pending = self.open.get_mut(&tag).ok_or(NOT_OPEN)?;
        pending.on_chunk(kind, data)?;
        self.chunks += 1;
        if flags & chunk::DONE == 0 {
            return Ok(Reply::Part);
        }
        let pending = self.open.remove(&tag).ok_or(NOT_OPEN)?;
        Ok(Reply::Last { tag, pending })
    }
}

const NOT_OPEN: NotNbd = NotNbd("it answers what is not open");

enum Reply {
    /// Not all of it is there.
    Later,
    Part,
    Last {
        tag: u64,
        pending: Pending,
    },
}

fn check_flags(flags: u16, structured: bool) -> Result<(), NotNbd> {
    let can = flags & CAN_DF != 0;
    if can == structured { Ok(()) } else { Err(NotNbd("whole reads of an export")) }
}

#[cfg(test)]
mod tests;
