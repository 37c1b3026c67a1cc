//! What a client makes use of, and what it says before it opens its export.

use super::NotNbd;
use super::proto::{ALLOCATION, answer, info, option};
use bytes::{Buf, BufMut, BytesMut};
use gabion_types::Prng;
use std::collections::VecDeque;

/// What of the protocol a client makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// It asks which blocks hold data.
    pub allocation: bool,
    /// It opens by EXPORT_NAME, which knows no error.
    pub old: bool,
    /// It looks around before it opens its export.
    pub curious: bool,
    /// Now and then it says what has to be refused.
    pub careless: bool,
    /// Decides all that is drawn for it, apart from the rest of a run.
    pub seed: u64,
}

impl Dialect {
    /// As plain a client as there may be, with simple replies.
    pub const PLAIN: Self = Self {
        structured: false,
        allocation: false,
        old: false,
        curious: false,
        careless: false,
        seed: 0,
    };

    pub fn draw(prng: &mut Prng) -> Self {
        let structured = prng.chance(3, 4);
        Self {
            structured,
            allocation: structured && prng.chance(2, 3),
            old: prng.chance(1, 5),
            curious: prng.chance(1, 2),
            careless: prng.chance(1, 2),
            seed: prng.next_u64(),
        }
    }
}

/// One option of the handshake, with what its last answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Structured,
    List,
    Info,
    ListMeta,
    SetMeta,
    Go,
    ExportName,
    Abort,
    /// To be refused.
    Unknown,
    Tls,
    TooBig,
    ListOfSomething,
    InfoOfNothing,
    MetaTooEarly,
    MetaOfNothing,
}

/// Longer than the server keeps.
const TOO_BIG: usize = (64 << 10) + 1;

/// What it says, one after the other.
pub(super) fn steps(dialect: Dialect, prng: &mut Prng) -> VecDeque<Step> {
    use Step::{
        Abort, ExportName, Go, Info, InfoOfNothing, List, ListMeta, ListOfSomething, MetaOfNothing,
        MetaTooEarly, SetMeta, Structured, Tls, TooBig, Unknown,
    };
    let mut steps = VecDeque::new();
    let mut perhaps = |step, of: u64| {
        if dialect.curious && prng.chance(1, of) {
            steps.push_back(step);
        }
    };
    for step in [List, Info, MetaTooEarly, Unknown, Tls, ListOfSomething, InfoOfNothing] {
        perhaps(step, 3);
    }
    perhaps(TooBig, 12);
    perhaps(Abort, 12);
    if dialect.structured {
        steps.push_back(Structured);
    }
    if dialect.allocation {
        let mut perhaps = |step| {
            if dialect.curious && prng.chance(1, 3) {
                steps.push_back(step);
            }
        };
        [MetaOfNothing, ListMeta].into_iter().for_each(&mut perhaps);
        steps.push_back(SetMeta);
    }
    steps.push_back(if dialect.old { ExportName } else { Go });
    steps
}

impl Step {
    pub fn code(self) -> u32 {
        match self {
            Self::Structured => option::STRUCTURED_REPLY,
            Self::List | Self::ListOfSomething => option::LIST,
            Self::Info | Self::InfoOfNothing => option::INFO,
            Self::ListMeta => option::LIST_META_CONTEXT,
            Self::SetMeta | Self::MetaTooEarly | Self::MetaOfNothing => option::SET_META_CONTEXT,
            Self::Go => option::GO,
            Self::ExportName => option::EXPORT_NAME,
            Self::Abort => option::ABORT,
            Self::Unknown | Self::TooBig => option::UNKNOWN,
            Self::Tls => option::STARTTLS,
        }
    }

    pub fn data(self, export: &str) -> BytesMut {
        let mut data = BytesMut::new();
        let string = |data: &mut BytesMut, text: &[u8]| {
            data.put_u32(u32::try_from(text.len()).expect("names are short"));
            data.put_slice(text);
        };
        match self {
            Self::Structured | Self::List | Self::Abort | Self::Tls => {}
            Self::Info | Self::Go => {
                string(&mut data, export.as_bytes());
                data.put_u16(2);
                data.put_u16(info::NAME);
                data.put_u16(info::DESCRIPTION);
            }
            Self::ListMeta | Self::SetMeta | Self::MetaTooEarly => {
                string(&mut data, export.as_bytes());
                data.put_u32(2);
                string(&mut data, b"other:context");
                string(&mut data, ALLOCATION);
            }
            Self::ExportName => data.put_slice(export.as_bytes()),
            Self::Unknown | Self::ListOfSomething => data.put_u32(7),
            Self::TooBig => data.put_bytes(7, TOO_BIG),
            Self::InfoOfNothing | Self::MetaOfNothing => data.put_u32(u32::MAX),
        }
        data
    }

    /// Errors: it is not the last answer that this option may get.
    pub fn check_last(self, kind: u32) -> Result<(), NotNbd> {
        let refused = match self {
            Self::Structured | Self::List | Self::Abort => None,
            // The node may not have heard of the volume yet.
            Self::Info | Self::ListMeta | Self::SetMeta => Some(answer::ERR_UNKNOWN),
            // Or another machine's guests have it.
            Self::Go if kind == answer::ERR_POLICY => Some(answer::ERR_POLICY),
            Self::Go | Self::ExportName => Some(answer::ERR_UNKNOWN),
            Self::Unknown | Self::Tls => Some(answer::ERR_UNSUP),
            Self::TooBig => Some(answer::ERR_TOO_BIG),
            Self::ListOfSomething
            | Self::InfoOfNothing
            | Self::MetaTooEarly
            | Self::MetaOfNothing => Some(answer::ERR_INVALID),
        };
        let may_go_well = !self.is_wrong();
        let fits = kind == answer::ACK && may_go_well
            || Some(kind) == refused
            || kind == answer::ERR_SHUTDOWN && may_go_well;
        if fits { Ok(()) } else { Err(NotNbd("the last answer to an option")) }
    }

    pub fn is_wrong(self) -> bool {
        match self {
            Self::Unknown
            | Self::Tls
            | Self::TooBig
            | Self::ListOfSomething
            | Self::InfoOfNothing
            | Self::MetaTooEarly
            | Self::MetaOfNothing => true,
            Self::Structured
            | Self::List
            | Self::Info
            | Self::ListMeta
            | Self::SetMeta
            | Self::Go
            | Self::ExportName
            | Self::Abort => false,
        }
    }
}

/// A context that was listed or selected, with the server's number for it.
pub(super) fn context(mut data: BytesMut) -> Result<u32, NotNbd> {
    if data.len() < 4 {
        return Err(NotNbd("a context"));
    }
    let id = data.get_u32();
    if data == ALLOCATION { Ok(id) } else { Err(NotNbd("a context that nobody asked for")) }
}

/// An export's name of a list.
pub(super) fn listed(mut data: BytesMut) -> Result<String, NotNbd> {
    let long = data.try_get_u32().map(|long| crate::world::index(long.into()));
    let name = long.ok().filter(|long| *long == data.len());
    let name = name.and_then(|_| String::from_utf8(data.to_vec()).ok());
    name.ok_or(NotNbd("an export of a list"))
}
