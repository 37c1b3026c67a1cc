//! A request that was taken and is not answered yet.

use crate::command::Features;
use crate::connection::send;
use crate::io::Effect;
use crate::limits::STATUS_EXTENTS_MAX;
use crate::proto::allocation;
use crate::refused::Refused;
use crate::reply;
use bytes::Bytes;
use gabion_types::{ByteRange, GuestData, GuestResult, MappedExtent};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub cookie: u64,
    pub work: Work,
    /// Parts that the volume has.
    pub parts_out: u32,
    /// The first error; the answer, in the end.
    pub failed: Option<Refused>,
    pub held_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Each part is answered by a chunk of its own as it comes.
    ReadChunks,
    /// The answer goes out in one piece, when all parts are here; they are kept by their offset.
    ReadWhole {
        range: ByteRange,
        pieces: BTreeMap<u64, Bytes>,
    },
    Write {
        fua: bool,
        all_here: bool,
        /// Room for all of it is asked for, and no part is handed on.
        room: bool,
    },
    /// `left` is what no part was made of yet.
    Fill {
        fua: bool,
        left: ByteRange,
        room: bool,
    },
    Status {
        range: ByteRange,
        one: bool,
    },
    Plain {
        writes: bool,
    },
}

impl Work {
    pub fn read_whole(range: ByteRange) -> Self {
        Self::ReadWhole { range, pieces: BTreeMap::new() }
    }

    fn writes(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Fill { .. } => true,
            Self::Plain { writes } => *writes,
            Self::ReadChunks | Self::ReadWhole { .. } | Self::Status { .. } => false,
        }
    }
}

impl Open {
    pub fn new(cookie: u64, work: Work, held_bytes: u64) -> Self {
        Self { cookie, work, parts_out: 0, failed: None, held_bytes }
    }

    /// What was asked of the volume is only whether there is room.
    pub fn awaits_room(&self) -> bool {
        matches!(self.work, Work::Write { room: true, .. } | Work::Fill { room: true, .. })
    }

    /// No part is out and none will be made.
    pub fn is_over(&self) -> bool {
        self.parts_out == 0
            && match &self.work {
                Work::Write { all_here, .. } => *all_here,
                Work::Fill { room: true, .. } => false,
                Work::Fill { left, .. } => self.failed.is_some() || left.length() == 0,
                Work::ReadChunks
                | Work::ReadWhole { .. }
                | Work::Status { .. }
                | Work::Plain { .. } => true,
            }
    }

    /// The result may come from another node: one that does not fit is an error, not a bug of ours.
    pub fn part_done(
        &mut self,
        part: ByteRange,
        result: GuestResult,
        effects: &mut VecDeque<Effect>,
    ) {
        let writes = self.work.writes();
        let result = result.map_err(|error| Refused::Guest { error, writes });
        let last = self.parts_out == 0;
        let cookie = self.cookie;
        match (&mut self.work, result) {
            (Work::ReadChunks, result) => {
                let data = result.and_then(|data| read_data(data, part));
                let pieces = match data {
                    Ok(data) => {
                        let head = reply::data_chunk(cookie, part.offset(), data.len(), last);
                        vec![head, data]
                    }
                    Err(refused) => {
                        vec![reply::error_chunk(cookie, refused, Some(part.offset()), last)]
                    }
                };
                effects.push_back(Effect::Send { pieces });
            }
            (_, Err(refused)) => {
                self.failed.get_or_insert(refused);
            }
            (Work::ReadWhole { pieces, .. }, Ok(data)) => match read_data(data, part) {
                Ok(data) => {
                    pieces.insert(part.offset(), data);
                }
                Err(refused) => {
                    self.failed.get_or_insert(refused);
                }
            },
            (Work::Status { range, one }, Ok(GuestData::Status(extents))) => {
                let descriptors = descriptors(&extents, *range, *one);
                if descriptors.is_empty() {
                    self.failed = Some(Refused::WrongAnswer);
                } else {
                    send(effects, reply::status_chunk(cookie, &descriptors));
                }
            }
            (Work::Write { .. } | Work::Fill { .. } | Work::Plain { .. }, Ok(GuestData::Done)) => {}
            (
                Work::Write { .. } | Work::Fill { .. } | Work::Plain { .. } | Work::Status { .. },
                Ok(_),
            ) => {
                self.failed.get_or_insert(Refused::WrongAnswer);
            }
        }
    }

    /// The answer as a whole, or what is missing of it.
    pub fn answer(self, features: Features, effects: &mut VecDeque<Effect>) {
        if let Some(refused) = self.failed {
            return send(effects, reply::error(features, self.cookie, refused));
        }
        match self.work {
            // Their last chunk said so.
            Work::ReadChunks | Work::Status { .. } => {}
            Work::ReadWhole { range, pieces } => {
                let head = if features.structured {
                    let bytes = usize::try_from(range.length()).expect("a read is at most 32 MiB");
                    reply::data_chunk(self.cookie, range.offset(), bytes, true)
                } else {
                    reply::done(self.cookie)
                };
                let pieces = std::iter::once(head).chain(pieces.into_values()).collect();
                effects.push_back(Effect::Send { pieces });
            }
            Work::Write { .. } | Work::Fill { .. } | Work::Plain { .. } => {
                send(effects, reply::done(self.cookie));
            }
        }
    }
}

fn read_data(data: GuestData, part: ByteRange) -> Result<Bytes, Refused> {
    match data {
        GuestData::Read(bytes) if bytes.len() as u64 == part.length() => Ok(bytes),
        GuestData::Read(_) | GuestData::Done | GuestData::Status(_) => Err(Refused::WrongAnswer),
    }
}

/// (length, flags) from the start of the range on, no further than its end; neighbours that are
/// alike are one.
fn descriptors(extents: &[MappedExtent], range: ByteRange, one: bool) -> Vec<(u32, u32)> {
    let mut left = u32::try_from(range.length()).expect("a request's length has 32 bits");
    let mut found: Vec<(u32, u32)> = Vec::new();
    for extent in extents {
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        if length == 0 {
            continue;
        }
        let flags = if extent.data { 0 } else { allocation::HOLE | allocation::ZERO };
        let is_full = one || found.len() == STATUS_EXTENTS_MAX;
        match found.last_mut() {
            Some(previous) if previous.1 == flags => previous.0 += length,
            Some(_) if is_full => break,
            Some(_) | None => found.push((length, flags)),
        }
        left -= length;
    }
    found
}
