//! The service `Io`: one stream is one guest of one volume.

use crate::control::ask::Context;
use crate::control::errors::{io_error, open_error};
use crate::control::hub::{Attached, GuestMessage};
use bytes::{Bytes, BytesMut};
use gabion_api::v1::io_server::Io;
use gabion_api::v1::{
    Done, ErrorCode, ErrorDetail, IoRequest, IoResponse, OpenedVolume, ReadData, io_request,
    io_response,
};
use gabion_cluster::VolumeState;
use gabion_node::Input;
use gabion_types::{ByteRange, GuestData, GuestOp, GuestResult, IoError, VolumeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// Requests in flight of one guest. Full: its stream isn't read.
const REQUESTS_MAX: usize = 64;
/// Payload bytes in flight of one guest. Full: its stream isn't read; a single request always goes.
const BYTES_MAX: u64 = 16 << 20;
/// One read or write. Units: bytes.
const PAYLOAD_BYTES_MAX: u64 = 4 << 20;
/// Parts of all requests in flight: each of them has at most this many.
const PARTS_MAX: usize = REQUESTS_MAX * 65;
/// What the data plane may say before the guest takes it: an answer for each part, and twice
/// whether there is room; opened and ended.
const MESSAGES_MAX: usize = 3 * PARTS_MAX + 2;
/// Answers that the guest has not taken. Full: no more of its requests are answered.
const ANSWERS_MAX: usize = 16;
/// A stream whose first message does not come by then is closed.
const OPEN_WAIT: Duration = Duration::from_secs(10);

pub struct IoService {
    context: Arc<Context>,
}

impl IoService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Io for IoService {
    type AttachStream = ReceiverStream<Result<IoResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<IoRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let (context, from) = (Arc::clone(&self.context), request.remote_addr());
        let requests = request.into_inner();
        tokio::spawn(async move {
            // Errors: the guest is gone.
            let _ended = serve(context, from, requests, answers).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

type Answers = mpsc::Sender<Result<IoResponse, Status>>;

/// The guest hung up.
struct HungUp;

/// From its first message to its last.
async fn serve(
    context: Arc<Context>,
    from: Option<SocketAddr>,
    mut requests: Streaming<IoRequest>,
    answers: Answers,
) -> Result<(), HungUp> {
    let first = tokio::time::timeout(OPEN_WAIT, requests.message()).await;
    let Ok(Ok(Some(IoRequest { id, op: Some(io_request::Op::Open(open)) }))) = first else {
        let what = "the first message of a stream opens a volume";
        let status = ErrorDetail::of(ErrorCode::BadRequest, what, "").into_status();
        return answers.send(Err(status)).await.map_err(|_| HungUp);
    };
    let mut attached = context.hub.attach(MESSAGES_MAX, from);
    let guest = attached.guest;
    let input = Input::GuestOpen { guest, volume: open.volume.clone() };
    let mut opened = None;
    if context.hub.send(input).await.is_ok() {
        opened = tokio::select! {
            message = attached.messages.recv() => message,
            () = answers.closed() => return Err(HungUp),
        };
    }
    let result = match opened {
        Some(GuestMessage::Opened(Ok(volume))) => Ok(volume),
        Some(GuestMessage::Opened(Err(error))) => Err(open_error(error, &open.volume)),
        Some(GuestMessage::Done { .. } | GuestMessage::Room(_) | GuestMessage::Ended) | None => {
            Err(stopping())
        }
    };
    match result {
        Ok(volume) => {
            let result = io_response::Result::Opened(OpenedVolume {
                volume: volume.volume.get(),
                name: volume.name.clone(),
                size_bytes: volume.size_bytes,
                in_flight_most: u32::try_from(REQUESTS_MAX).unwrap_or(u32::MAX),
                payload_most_bytes: u32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX),
            });
            answer(&answers, id, result).await?;
            let part_bytes = u64::from(context.map.read_map(|map| map.limits().part_bytes));
            let guest = Guest {
                context,
                attached,
                answers,
                volume: volume.volume,
                name: volume.name,
                part_bytes,
                open: BTreeMap::new(),
                parts: BTreeMap::new(),
                bytes: 0,
                room: true,
                next_tag: 0,
            };
            guest.run(requests).await
        }
        Err(detail) => answer(&answers, id, io_response::Result::Error(detail)).await,
    }
}

async fn answer(answers: &Answers, id: u64, result: io_response::Result) -> Result<(), HungUp> {
    let response = IoResponse { id, result: Some(result) };
    answers.send(Ok(response)).await.map_err(|_| HungUp)
}

fn stopping() -> ErrorDetail {
    ErrorDetail::of(ErrorCode::Stopping, "this node is stopping", "reconnect to another")
}

struct Guest {
    context: Arc<Context>,
    attached: Attached,
    answers: Answers,
    volume: VolumeId,
    name: String,
    part_bytes: u64,
    /// By the guest's id.
    open: BTreeMap<u64, Open>,
    /// By tag: the request that a part belongs to, and which part it is.
    parts: BTreeMap<u64, (u64, usize)>,
    bytes: u64,
    /// Its volume's share of the node's buffers is not full.
    room: bool,
    next_tag: u64,
}

/// A request in flight.
struct Open {
    parts_left: usize,
    payload_bytes: u64,
    /// The first error counts.
    failed: Option<IoError>,
    /// Of a read, in order.
    data: Vec<Bytes>,
    reads: bool,
    /// A large write's parts: handed on when the volume has said that there is room for all.
    waiting: Vec<GuestOp>,
}

impl Guest {
    async fn run(mut self, mut requests: Streaming<IoRequest>) -> Result<(), HungUp> {
        // A guest that has sent all that it will ever send still gets its answers.
        let mut more = true;
        while more || !self.open.is_empty() {
            let room = self.room && self.open.len() < REQUESTS_MAX && self.bytes < BYTES_MAX;
            tokio::select! {
                request = requests.message(), if room && more => match request {
                    Ok(Some(request)) => self.on_request(request).await?,
                    Ok(None) => more = false,
                    Err(status) => {
                        let told = not_a_request(&status).about(&self.name).into_status();
                        let _gone = self.answers.send(Err(told)).await;
                        return Err(HungUp);
                    }
                },
                message = self.attached.messages.recv() => match message {
                    Some(GuestMessage::Done { tag, result }) => self.on_done(tag, result).await?,
                    Some(GuestMessage::Room(room)) => self.room = room,
                    Some(GuestMessage::Opened(_)) => {}
                    Some(GuestMessage::Ended) | None => return self.end().await,
                },
                () = self.answers.closed() => return Err(HungUp),
            }
        }
        Ok(())
    }

    async fn on_request(&mut self, request: IoRequest) -> Result<(), HungUp> {
        let IoRequest { id, op } = request;
        let parts = match op.map(|op| split(op, self.part_bytes)) {
            Some(Ok(parts)) if !self.open.contains_key(&id) => parts,
            Some(Err(detail)) => {
                let detail = detail.about(&self.name);
                return answer(&self.answers, id, io_response::Result::Error(detail)).await;
            }
            Some(Ok(_)) | None => {
                let what = "the request has no operation, or its id is in use by another one";
                let detail = ErrorDetail::of(ErrorCode::BadRequest, what, "").about(&self.name);
                return answer(&self.answers, id, io_response::Result::Error(detail)).await;
            }
        };
        let payload_bytes = parts.iter().map(GuestOp::payload_bytes).sum();
        let reads = parts.iter().any(|part| matches!(part, GuestOp::Read { .. }));
        let data = vec![Bytes::new(); parts.len()];
        let parts_left = parts.len();
        self.bytes += payload_bytes;
        let mut open =
            Open { parts_left, payload_bytes, failed: None, data, reads, waiting: Vec::new() };
        let room = room_of(&parts);
        let first = match room {
            Some(room) => {
                open.parts_left = 1;
                open.waiting = parts;
                vec![room]
            }
            None => parts,
        };
        self.open.insert(id, open);
        self.hand_on(id, first).await
    }

    async fn hand_on(&mut self, id: u64, parts: Vec<GuestOp>) -> Result<(), HungUp> {
        for (index, op) in parts.into_iter().enumerate() {
            let tag = self.next_tag;
            self.next_tag += 1;
            self.parts.insert(tag, (id, index));
            let input = Input::Guest { guest: self.attached.guest, tag, op };
            if self.context.hub.send(input).await.is_err() {
                return self.end_now(stopping()).await;
            }
        }
        Ok(())
    }

    async fn on_done(&mut self, tag: u64, result: GuestResult) -> Result<(), HungUp> {
        let Some((id, index)) = self.parts.remove(&tag) else { return Ok(()) };
        let Some(open) = self.open.get_mut(&id) else { return Ok(()) };
        open.parts_left -= 1;
        match result {
            Ok(GuestData::Read(data)) => open.data[index] = data,
            Ok(GuestData::Done | GuestData::Status(_)) => {}
            Err(error) => open.failed = open.failed.or(Some(error)),
        }
        if open.parts_left > 0 {
            return Ok(());
        }
        let waiting = std::mem::take(&mut open.waiting);
        if open.failed.is_none() && !waiting.is_empty() {
            open.parts_left = waiting.len();
            return self.hand_on(id, waiting).await;
        }
        let Some(open) = self.open.remove(&id) else { return Ok(()) };
        self.bytes -= open.payload_bytes;
        let result = match open.failed {
            Some(error) => io_response::Result::Error(io_error(error, &self.name)),
            None if open.reads => io_response::Result::Read(ReadData { data: join(open.data) }),
            None => io_response::Result::Done(Done {}),
        };
        answer(&self.answers, id, result).await
    }

    /// The data plane serves it no more.
    async fn end(self) -> Result<(), HungUp> {
        let gone = self.context.map.read_map(|map| {
            let entry = map.volume(self.volume);
            entry.is_none_or(|entry| entry.state == VolumeState::Deleting)
        });
        let detail = if gone { io_error(IoError::Gone, &self.name) } else { stopping() };
        self.end_now(detail).await
    }

    async fn end_now(&self, detail: ErrorDetail) -> Result<(), HungUp> {
        answer(&self.answers, 0, io_response::Result::Ended(detail)).await?;
        Err(HungUp)
    }
}

/// It hung up and hears nothing, or sent what is no request and is told so. With that the stream is
/// over: what follows in it can't be told apart.
fn not_a_request(status: &Status) -> ErrorDetail {
    let what = format!("the stream ends at a message that cannot be read: {}", status.message());
    if status.code() == Code::OutOfRange {
        let next = "a request carries at most 4 MiB: send more as several";
        ErrorDetail::of(ErrorCode::TooLarge, what, next)
    } else {
        ErrorDetail::of(ErrorCode::BadRequest, what, "see proto/gabion/v1/io.proto")
    }
}

/// What is asked before the parts of a large write: a full volume takes the whole of it or nothing.
fn room_of(parts: &[GuestOp]) -> Option<GuestOp> {
    let [GuestOp::Write { range: first, .. }, .., GuestOp::Write { range: last, .. }] = parts
    else {
        return None;
    };
    let range = ByteRange::new(first.offset(), last.end() - first.offset())?;
    Some(GuestOp::Room { range })
}

/// A request in parts of at most `part_bytes`; never none.
fn split(op: io_request::Op, part_bytes: u64) -> Result<Vec<GuestOp>, ErrorDetail> {
    match op {
        io_request::Op::Read(read) => {
            let range = range(read.offset, u64::from(read.length))?;
            let pieces = pieces(range, part_bytes)?;
            Ok(pieces.into_iter().map(|range| GuestOp::Read { range }).collect())
        }
        io_request::Op::Write(mut write) => {
            let length = u64::try_from(write.data.len()).unwrap_or(u64::MAX);
            let pieces = pieces(range(write.offset, length)?, part_bytes)?;
            let part = |range: ByteRange| {
                let length = usize::try_from(range.length()).expect("it is part of a Bytes");
                let data = write.data.split_to(length);
                GuestOp::Write { range, data, fua: false }
            };
            Ok(pieces.into_iter().map(part).collect())
        }
        io_request::Op::Flush(_) => Ok(vec![GuestOp::Flush]),
        io_request::Op::Zero(zero) => {
            Ok(vec![GuestOp::Zero { range: range(zero.offset, zero.length)?, fua: false }])
        }
        io_request::Op::Trim(trim) => {
            Ok(vec![GuestOp::Trim { range: range(trim.offset, trim.length)?, fua: false }])
        }
        io_request::Op::Open(_) => {
            let what = "a stream opens one volume, with its first message";
            Err(ErrorDetail::of(ErrorCode::BadRequest, what, "open another stream"))
        }
    }
}

fn range(offset: u64, length: u64) -> Result<ByteRange, ErrorDetail> {
    let found = ByteRange::new(offset, length).filter(|range| range.length() > 0);
    found.ok_or_else(|| {
        let what = format!("the range at {offset} of {length} bytes is empty, or has no end");
        ErrorDetail::of(ErrorCode::BadRequest, what, "")
    })
}

/// Cut where the volume's own parts would be cut, so that a large aligned request keeps its blocks.
fn pieces(range: ByteRange, part_bytes: u64) -> Result<Vec<ByteRange>, ErrorDetail> {
    if range.length() > PAYLOAD_BYTES_MAX {
        let what = format!("a request carries at most {PAYLOAD_BYTES_MAX} bytes");
        return Err(ErrorDetail::of(ErrorCode::TooLarge, what, "split it"));
    }
    let mut pieces = Vec::new();
    let mut offset = range.offset();
    while offset < range.end() {
        let border = (offset / part_bytes + 1).saturating_mul(part_bytes);
        let end = border.min(range.end());
        pieces.extend(ByteRange::new(offset, end - offset));
        offset = end;
    }
    Ok(pieces)
}

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_api::v1::{ReadOp, WriteOp};

    const PART: u64 = 256 << 10;

    #[test]
    fn a_large_write_is_cut_at_the_borders_of_parts() {
        let data = Bytes::from(vec![1; 600 << 10]);
        let write = io_request::Op::Write(WriteOp { offset: 4096, data });
        let parts = split(write, PART).unwrap();
        let ranges: Vec<_> = parts.iter().filter_map(GuestOp::range).collect();
        let ends: Vec<_> = ranges.iter().map(|range| (range.offset(), range.end())).collect();
        let end = 4096 + (600 << 10);
        assert_eq!(ends, [(4096, PART), (PART, 2 * PART), (2 * PART, end)]);
        assert!(parts.iter().all(|part| part.payload_bytes() == part.range().unwrap().length()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let read = |offset, length| split(io_request::Op::Read(ReadOp { offset, length }), PART);
        assert_eq!(read(0, 0).unwrap_err().code(), ErrorCode::BadRequest);
        assert_eq!(read(u64::MAX, 2).unwrap_err().code(), ErrorCode::BadRequest);
        assert_eq!(read(0, 5 << 20).unwrap_err().code(), ErrorCode::TooLarge);
        assert_eq!(read(512, 4 << 20).unwrap().len(), 17);
        const { assert!(PARTS_MAX >= REQUESTS_MAX * 17) };
    }
}
