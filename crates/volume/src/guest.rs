//! Guests' requests: checked, cut into ops at block and segment borders, answered when all are done.

use crate::gather::BLOCK;
use crate::io::{Effect, Ticket};
use crate::order::{Op, OpKind, OpState, Yield};
use crate::volume::Volume;
use bytes::{Bytes, BytesMut};
use gabion_types::{
    BLOCK_BYTES, BlockRange, ByteRange, Duration, Flaw, GuestData, GuestOp, GuestResult,
    HoldPolicy, Instant, IoError, MappedExtent, SECTOR_BYTES, block_crc,
};

/// Blocks of one op that costs by entries and not by blocks.
const HOLE_BLOCKS_MAX: u64 = 4096;
/// Blocks whose table is looked at by one op.
const ROOM_BLOCKS_MAX: u64 = 1024;
/// Ops of one request at a time; a long one is cut further as they are done.
const PARTS_MAX: usize = 8;

/// A guest's request that is not answered.
#[derive(Debug)]
pub(crate) struct Request {
    ticket: Ticket,
    arrived: Instant,
    /// Its place in the order.
    bytes: ByteRange,
    rest: Rest,
    /// Cut and not done.
    open: usize,
    /// Cut so far.
    parts: usize,
    reads: Vec<Bytes>,
    status: Vec<MappedExtent>,
    wants: Wants,
    error: Option<IoError>,
    /// Its guest has its answer already (held too long); its ops go on.
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Done,
    Room,
    Read,
    Status,
}

/// What is not cut yet. Units: bytes of the volume.
#[derive(Debug)]
struct Rest {
    kind: RestKind,
    next: u64,
    end: u64,
}

#[derive(Debug)]
enum RestKind {
    Read,
    Write { data: Bytes, start: u64 },
    Zero,
    Room,
    Status,
}

impl Volume {
    pub(crate) fn handle_guest(&mut self, now: Instant, ticket: Ticket, op: GuestOp) {
        if let Err(error) = self.check(&op) {
            self.guest_done(ticket, Err(error));
            return;
        }
        let Some((wants, rest)) = prepare(op) else {
            self.flushes.push((ticket, now));
            return;
        };
        if rest.next >= rest.end {
            let nothing = match wants {
                Wants::Done | Wants::Room => GuestData::Done,
                Wants::Read => GuestData::Read(Bytes::new()),
                Wants::Status => GuestData::Status(Vec::new()),
            };
            self.guest_done(ticket, Ok(nothing));
            return;
        }
        self.arrivals += 1;
        let bytes = ByteRange::new(rest.next, rest.end - rest.next).expect("checked");
        let request = Request {
            ticket,
            arrived: now,
            bytes,
            rest,
            open: 0,
            parts: 0,
            reads: Vec::new(),
            status: Vec::new(),
            wants,
            error: None,
            answered: false,
        };
        if wants == Wants::Room {
            // It has no place in the order: nothing is written or shown.
            self.open_room(now, self.arrivals, bytes);
        } else {
            self.place(self.arrivals, bytes, wants == Wants::Done);
        }
        self.requests.insert(self.arrivals, request);
        self.cut(self.arrivals);
    }

    fn check(&self, op: &GuestOp) -> Result<(), IoError> {
        let Some(range) = op.range() else { return Ok(()) };
        if !range.offset().is_multiple_of(SECTOR_BYTES)
            || !range.length().is_multiple_of(SECTOR_BYTES)
        {
            return Err(IoError::Misaligned);
        }
        if range.end() > self.view.size_bytes {
            return Err(IoError::OutOfRange);
        }
        if op.payload_bytes() > u64::from(self.limits.part_bytes) {
            return Err(IoError::TooLarge);
        }
        match op {
            GuestOp::Write { data, range, .. } if data.len() as u64 != range.length() => {
                Err(IoError::Misaligned)
            }
            GuestOp::Write { .. }
            | GuestOp::Read { .. }
            | GuestOp::Zero { .. }
            | GuestOp::Trim { .. }
            | GuestOp::Flush
            | GuestOp::Room { .. }
            | GuestOp::Status { .. } => Ok(()),
        }
    }

    /// Cuts the next ops off a request, as many as may be open at once.
    fn cut(&mut self, arrival: u64) {
        loop {
            let segment_bytes = self.limits.segment;
            let Some(request) = self.requests.get_mut(&arrival) else { return };
            let rest = &mut request.rest;
            if request.open >= PARTS_MAX || rest.next >= rest.end || request.error.is_some() {
                return;
            }
            let at = rest.next;
            let border = at - at % segment_bytes.bytes() + segment_bytes.bytes();
            let (kind, end) = rest.cut_off(border.min(rest.end));
            rest.next = end;
            if request.wants == Wants::Status {
                rest.next = rest.end;
            }
            request.open += 1;
            request.parts += 1;
            let part = request.parts - 1;
            let segment = segment_bytes.segment_of(at).expect("the range lies in the volume");
            let first = segment_bytes.block_of(at);
            let last = segment_bytes.block_of(end - 1);
            let range = BlockRange::new(first, last.get() - first.get() + 1)
                .expect("at least the block of the first byte");
            let state = OpState::Waiting { stalled: false };
            self.add_op(Op { arrival, part, segment, range, kind, state });
        }
    }

    /// A number for a part that was cut off another one.
    pub(crate) fn one_part_more(&mut self, arrival: u64) -> usize {
        let Some(request) = self.requests.get_mut(&arrival) else { return 0 };
        request.open += 1;
        request.parts += 1;
        request.parts - 1
    }

    /// An op of this request is done.
    pub(crate) fn give(
        &mut self,
        now: Instant,
        arrival: u64,
        part: usize,
        result: Result<Yield, IoError>,
    ) {
        let Some(request) = self.requests.get_mut(&arrival) else { return };
        request.open -= 1;
        match result {
            Ok(Yield::Done) => {}
            Ok(Yield::Read(data)) => {
                if request.reads.len() <= part {
                    request.reads.resize(part + 1, Bytes::new());
                }
                request.reads[part] = data;
            }
            Ok(Yield::Status(extents)) => request.status = extents,
            Err(error) => request.error = request.error.or(Some(error)),
        }
        self.cut(arrival);
        self.answer(now, arrival);
    }

    /// Answers a request of which nothing is open any more.
    fn answer(&mut self, now: Instant, arrival: u64) {
        if self.requests.get(&arrival).is_none_or(|request| request.open > 0) {
            return;
        }
        let Some(request) = self.requests.remove(&arrival) else { return };
        self.leave(arrival, request.bytes);
        if request.wants == Wants::Room {
            self.rooms.answered(now, arrival, request.error.is_none());
        }
        if request.answered {
            self.effects.push_back(Effect::GuestOver);
            return;
        }
        let result = match (request.error, request.wants) {
            (Some(error), _) => Err(error),
            (None, Wants::Done | Wants::Room) => Ok(GuestData::Done),
            (None, Wants::Read) => Ok(GuestData::Read(joined(request.reads))),
            (None, Wants::Status) => Ok(GuestData::Status(request.status)),
        };
        let took = now.since(request.arrived);
        match &result {
            Ok(GuestData::Read(data)) => {
                self.counts.reads += 1;
                self.counts.read_bytes += data.len() as u64;
                self.counts.read_latencies.add(took);
            }
            Ok(GuestData::Done) if request.wants == Wants::Room => {}
            Ok(GuestData::Done) => {
                self.counts.writes += 1;
                self.counts.write_latencies.add(took);
            }
            Ok(GuestData::Status(_)) => {}
            Err(_) => self.counts.errors += 1,
        }
        self.guest_done(request.ticket, result);
    }

    fn guest_done(&mut self, ticket: Ticket, result: GuestResult) {
        self.effects.push_back(Effect::GuestDone { ticket, result });
    }

    /// What was acknowledged is durable on every member, so there is nothing to wait for but the
    /// right to answer.
    // promise: flush-means-flush
    pub(crate) fn finish_flushes(&mut self, now: Instant) {
        if self.may_serve(now) && self.announced {
            for (ticket, _) in std::mem::take(&mut self.flushes) {
                self.guest_done(ticket, Ok(GuestData::Done));
            }
        }
    }

    /// Answers what was held longer than the volume's deadline. What has begun to be written goes
    /// on; what has not is dropped.
    // promise: hold-not-fail
    pub(crate) fn answer_held_too_long(&mut self, now: Instant) {
        let deadline = match self.view.hold {
            HoldPolicy::FailAfter(deadline) => deadline,
            HoldPolicy::NeverFail if self.settings.flaws.has(Flaw::HeldFailed) => {
                Duration::from_secs(1)
            }
            HoldPolicy::NeverFail => return,
        };
        let late = |(_, since): &mut (Ticket, Instant)| now.since(*since) >= deadline;
        let flushes: Vec<_> = self.flushes.extract_if(.., late).collect();
        for (ticket, _) in flushes {
            self.counts.errors += 1;
            self.guest_done(ticket, Err(IoError::HeldTooLong));
        }
        let late: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| !request.answered && now.since(request.arrived) >= deadline)
            .map(|(arrival, _)| *arrival)
            .collect();
        for arrival in late {
            let Some(request) = self.requests.get_mut(&arrival) else { continue };
            request.answered = true;
            request.error = Some(IoError::HeldTooLong);
            let ticket = request.ticket;
            self.counts.errors += 1;
            self.effects.push_back(Effect::GuestLate { ticket });
            let dropped: Vec<_> = self
                .ops
                .iter()
                .filter(|(_, op)| op.arrival == arrival)
                .filter(|(_, op)| !matches!(op.state, OpState::Writing(_)))
                .map(|(id, _)| *id)
                .collect();
            for id in dropped {
                self.finish(now, id, Err(IoError::HeldTooLong));
            }
        }
    }
}

fn prepare(op: GuestOp) -> Option<(Wants, Rest)> {
    let rest = |kind, range: ByteRange| Rest { kind, next: range.offset(), end: range.end() };
    match op {
        GuestOp::Read { range } => Some((Wants::Read, rest(RestKind::Read, range))),
        GuestOp::Write { range, data, fua: _ } => {
            let start = range.offset();
            Some((Wants::Done, rest(RestKind::Write { data, start }, range)))
        }
        GuestOp::Zero { range, fua: _ } => Some((Wants::Done, rest(RestKind::Zero, range))),
        GuestOp::Trim { range, fua: _ } => {
            // Only whole blocks are taken away.
            let next = range.offset().next_multiple_of(BLOCK_BYTES);
            let end = range.end() - range.end() % BLOCK_BYTES;
            Some((Wants::Done, Rest { kind: RestKind::Zero, next, end }))
        }
        GuestOp::Flush => None,
        GuestOp::Room { range } => Some((Wants::Room, rest(RestKind::Room, range))),
        GuestOp::Status { range } => Some((Wants::Status, rest(RestKind::Status, range))),
    }
}

impl Rest {
    /// The next op, and where it ends; at most at `limit`.
    fn cut_off(&self, limit: u64) -> (OpKind, u64) {
        let at = self.next;
        let within = bytes_within(at % BLOCK_BYTES);
        match &self.kind {
            RestKind::Read => {
                (OpKind::Read { skip: within, take: bytes_within(limit - at) }, limit)
            }
            RestKind::Status => {
                let most = at - at % BLOCK_BYTES + HOLE_BLOCKS_MAX * BLOCK_BYTES;
                let end = limit.min(most);
                (OpKind::Status { skip: within, take: bytes_within(end - at) }, end)
            }
            RestKind::Room => {
                (OpKind::Room, limit.min(at - at % BLOCK_BYTES + ROOM_BLOCKS_MAX * BLOCK_BYTES))
            }
            RestKind::Write { .. } | RestKind::Zero if within != 0 || limit - at < BLOCK_BYTES => {
                let end = limit.min(at - at % BLOCK_BYTES + BLOCK_BYTES);
                let patch = match &self.kind {
                    RestKind::Write { data, start } => {
                        data.slice(bytes_within(at - start)..bytes_within(end - start))
                    }
                    RestKind::Zero | RestKind::Room | RestKind::Read | RestKind::Status => {
                        Bytes::from(vec![0; bytes_within(end - at)])
                    }
                };
                (OpKind::Merge { within, patch }, end)
            }
            RestKind::Write { data, start } => {
                let end = limit - limit % BLOCK_BYTES;
                let data = data.slice(bytes_within(at - start)..bytes_within(end - start));
                let crcs = data.chunks(BLOCK).map(block_crc).collect();
                (OpKind::Write { data, crcs }, end)
            }
            RestKind::Zero => {
                let end = limit - limit % BLOCK_BYTES;
                (OpKind::Zero, end.min(at + HOLE_BLOCKS_MAX * BLOCK_BYTES))
            }
        }
    }
}

/// A length within one part.
fn bytes_within(length: u64) -> usize {
    usize::try_from(length).expect("a part is far below 4 GiB")
}

fn joined(mut reads: Vec<Bytes>) -> Bytes {
    if reads.len() == 1 {
        return reads.swap_remove(0);
    }
    let mut all = BytesMut::with_capacity(reads.iter().map(Bytes::len).sum());
    reads.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}
