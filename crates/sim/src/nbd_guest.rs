//! A guest's end of an NBD connection: as plain a client as there may be, with simple replies.
//!
//! Source: doc/proto.md of the NetworkBlockDevice project.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gabion_types::{GuestData, GuestOp, GuestResult, IoError};
use std::collections::{BTreeMap, VecDeque};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const GREETING_BYTES: usize = 18;
const OPTION_REPLY_BYTES: usize = 20;
const SIMPLE_REPLY_BYTES: usize = 16;
const FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Opened { size_bytes: u64 },
    NotOpened,
    Done { tag: u64, result: GuestResult },
}

/// The stream is not NBD, or answers what was not asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not NBD: {0}")]
pub struct NotNbd(&'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Going { size_bytes: u64 },
    Serving,
}

#[derive(Debug)]
pub struct NbdGuest {
    export: String,
    stage: Stage,
    /// Sent, and not taken by the node yet.
    sent: BytesMut,
    /// How many bytes the node reads next.
    wanted: Option<usize>,
    received: BytesMut,
    /// Bytes that the answer to each open request carries, if it is no error.
    open: BTreeMap<u64, usize>,
}

impl NbdGuest {
    pub fn new(export: String) -> Self {
        Self {
            export,
            stage: Stage::Greeting,
            sent: BytesMut::new(),
            wanted: None,
            received: BytesMut::new(),
            open: BTreeMap::new(),
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

    pub fn ask(&mut self, tag: u64, op: &GuestOp) {
        let flags = |fua: bool| if fua { FUA } else { 0 };
        let (command, flags, range) = match op {
            GuestOp::Read { range } => (0, 0, Some(*range)),
            GuestOp::Write { range, fua, .. } => (1, flags(*fua), Some(*range)),
            GuestOp::Trim { range, fua } => (4, flags(*fua), Some(*range)),
            GuestOp::Zero { range, fua } => (6, flags(*fua), Some(*range)),
            // Without structured replies there is no status to ask for, and room is no request.
            GuestOp::Flush | GuestOp::Status { .. } | GuestOp::Room { .. } => (3, 0, None),
        };
        let (offset, length) = range.map_or((0, 0), |range| (range.offset(), range.length()));
        self.sent.put_u32(REQUEST_MAGIC);
        self.sent.put_u16(flags);
        self.sent.put_u16(command);
        self.sent.put_u64(tag);
        self.sent.put_u64(offset);
        self.sent.put_u32(u32::try_from(length).expect("requests are small"));
        if let GuestOp::Write { data, .. } = op {
            self.sent.put_slice(data);
        }
        let reads = matches!(op, GuestOp::Read { .. });
        self.open.insert(tag, if reads { crate::world::index(length) } else { 0 });
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
        match self.stage {
            Stage::Greeting => self.on_greeting(),
            Stage::Going { size_bytes } => self.on_option_reply(size_bytes, said),
            Stage::Serving => self.on_reply(said),
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
        let name = self.export.as_bytes();
        let long = u32::try_from(name.len()).expect("names are short");
        self.sent.put_u32(FIXED_NEWSTYLE_NO_ZEROES);
        self.sent.put_u64(OPTION_MAGIC);
        self.sent.put_u32(GO);
        self.sent.put_u32(4 + long + 2);
        self.sent.put_u32(long);
        self.sent.put_slice(name);
        self.sent.put_u16(0);
        self.stage = Stage::Going { size_bytes: 0 };
        Ok(true)
    }

    fn on_option_reply(
        &mut self,
        size_bytes: u64,
        said: &mut VecDeque<Said>,
    ) -> Result<bool, NotNbd> {
        let Some(header) = self.received.get(..OPTION_REPLY_BYTES) else { return Ok(false) };
        let mut header = header;
        let (magic, option) = (header.get_u64(), header.get_u32());
        let (kind, length) = (header.get_u32(), crate::world::index(header.get_u32().into()));
        if magic != OPTION_REPLY_MAGIC || option != GO {
            return Err(NotNbd("a reply to an option"));
        }
        if self.received.len() < OPTION_REPLY_BYTES + length {
            return Ok(false);
        }
        self.received.advance(OPTION_REPLY_BYTES);
        let mut data = self.received.split_to(length);
        match kind {
            INFO if data.len() >= 10 && data.get_u16() == INFO_EXPORT => {
                self.stage = Stage::Going { size_bytes: data.get_u64() };
            }
            INFO => {}
            ACK => {
                self.stage = Stage::Serving;
                said.push_back(Said::Opened { size_bytes });
            }
            _ => said.push_back(Said::NotOpened),
        }
        Ok(true)
    }

    fn on_reply(&mut self, said: &mut VecDeque<Said>) -> Result<bool, NotNbd> {
        let Some(header) = self.received.get(..SIMPLE_REPLY_BYTES) else { return Ok(false) };
        let mut header = header;
        let (magic, error, tag) = (header.get_u32(), header.get_u32(), header.get_u64());
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(NotNbd("a reply"));
        }
        let Some(answer) = self.open.get(&tag).copied() else {
            return Err(NotNbd("it answers what is not open"));
        };
        let answer = if error == 0 { answer } else { 0 };
        if self.received.len() < SIMPLE_REPLY_BYTES + answer {
            return Ok(false);
        }
        self.received.advance(SIMPLE_REPLY_BYTES);
        self.open.remove(&tag);
        let data = self.received.split_to(answer).freeze();
        let result = match error {
            0 if answer > 0 => Ok(GuestData::Read(data)),
            0 => Ok(GuestData::Done),
            EIO => Err(IoError::Lost),
            EINVAL => Err(IoError::Misaligned),
            ENOSPC => Err(IoError::NoSpace),
            ESHUTDOWN => Err(IoError::Stopping),
            _ => return Err(NotNbd("its error")),
        };
        said.push_back(Said::Done { tag, result });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::ByteRange;

    fn greeted(guest: &mut NbdGuest) {
        let mut bytes = BytesMut::new();
        bytes.put_u64(MAGIC);
        bytes.put_u64(OPTION_MAGIC);
        bytes.put_u16(3);
        assert_eq!(guest.receive(&[bytes.freeze()]), Ok(VecDeque::new()));
    }

    fn option(kind: u32, data: &[u8]) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u64(OPTION_REPLY_MAGIC);
        bytes.put_u32(GO);
        bytes.put_u32(kind);
        bytes.put_u32(u32::try_from(data.len()).expect("short"));
        bytes.put_slice(data);
        bytes.freeze()
    }

    #[test]
    fn it_reads_what_was_sent_in_pieces() {
        let mut guest = NbdGuest::new("vm".into());
        greeted(&mut guest);
        guest.want(4);
        assert_eq!(guest.take().as_deref(), Some(&[0, 0, 0, 3][..]));
        let size = [&[0, 0][..], &4096_u64.to_be_bytes(), &[0, 1]].concat();
        let (info, ack) = (option(INFO, &size), option(ACK, &[]));
        assert_eq!(guest.receive(&[info.slice(..7)]), Ok(VecDeque::new()));
        let said = guest.receive(&[info.slice(7..), ack]).expect("it is NBD");
        assert_eq!(said, [Said::Opened { size_bytes: 4096 }]);
        let range = ByteRange::new(512, 512).expect("small");
        guest.ask(9, &GuestOp::Read { range });
        let mut reply = BytesMut::new();
        reply.put_u32(SIMPLE_REPLY_MAGIC);
        reply.put_u32(0);
        reply.put_u64(9);
        reply.put_bytes(7, 512);
        let said = guest.receive(&[reply.clone().freeze()]).expect("it is NBD");
        let data = GuestData::Read(vec![7; 512].into());
        assert_eq!(said, [Said::Done { tag: 9, result: Ok(data) }]);
        assert!(guest.receive(&[reply.freeze()]).is_err(), "it was answered");
    }

    #[test]
    fn a_refused_volume_and_nonsense_are_told() {
        let mut guest = NbdGuest::new("vm".into());
        assert!(guest.receive(&[Bytes::from_static(&[1; GREETING_BYTES])]).is_err());
        let mut guest = NbdGuest::new("vm".into());
        greeted(&mut guest);
        let said = guest.receive(&[option(1 << 31 | 6, b"no")]).expect("it is NBD");
        assert_eq!(said, [Said::NotOpened]);
    }
}
