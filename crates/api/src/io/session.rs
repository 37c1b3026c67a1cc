//! The task behind an `IoClient`: one stream at a time, and what it has not answered yet.

use super::{IN_FLIGHT_MAX, IoClientError, IoState};
use crate::v1::io_client::IoClient as IoServiceClient;
use crate::v1::{
    ErrorCode, ErrorDetail, IoRequest, IoResponse, OpenVolume, io_request, io_response,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// A node that took longer to be reached is passed over.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// A node that took longer to open the volume is passed over for now.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// Between two rounds over all nodes.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// A connection on which not even this is answered in time is broken: a frozen machine, a cut cable.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const MESSAGE_BYTES_MAX: usize = 5 << 20;
/// The id of the message that opens the volume.
const OPEN_ID: u64 = 0;

pub(super) type Answer = Result<io_response::Result, IoClientError>;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) op: io_request::Op,
    pub(super) answer: oneshot::Sender<Answer>,
}

struct Node {
    address: String,
    endpoint: Endpoint,
}

/// An open stream.
struct Stream {
    to: mpsc::Sender<IoRequest>,
    from: Streaming<IoResponse>,
}

/// Why a stream is no more.
enum Break {
    /// Try another node.
    Lost(String),
    /// The volume is gone: no node will serve it.
    Refused(ErrorDetail),
    /// The client was dropped.
    Closed,
}

pub(super) struct Session {
    nodes: Vec<Node>,
    /// The one that is tried next.
    at: usize,
    volume: String,
    requests: mpsc::Receiver<Request>,
    state: watch::Sender<IoState>,
    next_id: u64,
    /// By id, which is the order in which they were made.
    unanswered: BTreeMap<u64, Request>,
    /// Of those, the ones that may be sent on this stream and are not yet; in order.
    unsent: VecDeque<u64>,
    /// Of those, the ones that overlap an earlier one without an answer, and wait for it.
    held: BTreeSet<u64>,
}

impl Session {
    pub(super) fn new(
        nodes: &[String],
        volume: &str,
        requests: mpsc::Receiver<Request>,
        state: watch::Sender<IoState>,
    ) -> Result<Self, IoClientError> {
        let nodes = nodes.iter().map(|address| node(address)).collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(IoClientError::NoAddress);
        }
        Ok(Self {
            nodes,
            at: 0,
            volume: volume.to_owned(),
            requests,
            state,
            next_id: OPEN_ID + 1,
            unanswered: BTreeMap::new(),
            unsent: VecDeque::new(),
            held: BTreeSet::new(),
        })
    }

    /// Until the client is dropped, or the volume is gone.
    pub(super) async fn run(mut self, opened: oneshot::Sender<Result<u64, IoClientError>>) {
        let mut opened = Some(opened);
        loop {
            let found = tokio::select! {
                found = find(&self.nodes, &mut self.at, &self.volume, &self.state) => found,
                () = closed(opened.as_mut(), &self.requests) => return,
            };
            let (stream, size_bytes) = match found {
                Ok(found) => found,
                Err(detail) => {
                    let error = IoClientError::Refused(detail);
                    if let Some(opened) = opened.take() {
                        let _gone = opened.send(Err(error.clone()));
                    }
                    return self.fail(&error).await;
                }
            };
            if let Some(opened) = opened.take() {
                let _gone = opened.send(Ok(size_bytes));
            }
            let all = self.unanswered.keys().copied();
            let (held, unsent) = all.partition::<Vec<u64>, _>(|id| self.overlaps_earlier(*id));
            (self.held, self.unsent) = (held.into_iter().collect(), unsent.into());
            match self.serve(stream).await {
                Break::Lost(why) => {
                    tracing::debug!(node = self.nodes[self.at].address, why, "lost a node");
                    self.state.send_modify(|state| {
                        state.connected = None;
                        state.breaks += 1;
                        state.last_break = Some(why);
                    });
                    self.at = (self.at + 1) % self.nodes.len();
                }
                Break::Refused(detail) => return self.fail(&IoClientError::Refused(detail)).await,
                Break::Closed => return,
            }
        }
    }

    async fn serve(&mut self, mut stream: Stream) -> Break {
        loop {
            let room = self.unanswered.len() < IN_FLIGHT_MAX;
            tokio::select! {
                permit = stream.to.reserve(), if !self.unsent.is_empty() => {
                    let Ok(permit) = permit else { return Break::Lost("it hung up".to_owned()) };
                    if let Some(request) = self.next_unsent() {
                        permit.send(request);
                    }
                }
                request = self.requests.recv(), if room => match request {
                    Some(request) => self.take(request),
                    None => return Break::Closed,
                },
                answer = stream.from.message() => match answer {
                    Ok(Some(answer)) => {
                        if let Err(end) = self.on_answer(answer) {
                            return end;
                        }
                    }
                    Ok(None) => return Break::Lost("it hung up".to_owned()),
                    Err(status) => return Break::Lost(status.message().to_owned()),
                },
            }
        }
    }

    fn take(&mut self, request: Request) {
        let id = self.next_id;
        self.next_id += 1;
        self.unanswered.insert(id, request);
        if self.overlaps_earlier(id) {
            self.held.insert(id);
        } else {
            self.unsent.push_back(id);
        }
        self.state.send_if_modified(|state| {
            let first = state.waiting_since.is_none();
            state.waiting_since.get_or_insert_with(Instant::now);
            first
        });
    }

    /// Whether it must not be sent yet. A node answers each request when it is done, so one that is
    /// held back until then is answered only after what it lies over: if the node dies, and all that
    /// is unanswered is sent again, nothing old lands on something newer that was answered.
    fn overlaps_earlier(&self, id: u64) -> bool {
        let Some(request) = self.unanswered.get(&id) else { return false };
        self.unanswered.range(..id).any(|(_, earlier)| conflict(&earlier.op, &request.op))
    }

    fn let_go(&mut self) {
        let free: Vec<u64> =
            self.held.iter().copied().filter(|id| !self.overlaps_earlier(*id)).collect();
        for id in free {
            self.held.remove(&id);
            self.unsent.push_back(id);
        }
    }

    fn next_unsent(&mut self) -> Option<IoRequest> {
        let id = self.unsent.pop_front()?;
        let op = self.unanswered.get(&id)?.op.clone();
        Some(IoRequest { id, op: Some(op) })
    }

    fn on_answer(&mut self, answer: IoResponse) -> Result<(), Break> {
        let result = match answer.result {
            Some(io_response::Result::Ended(detail)) if detail.retry => {
                return Err(Break::Lost(detail.text()));
            }
            Some(io_response::Result::Ended(detail)) => return Err(Break::Refused(detail)),
            // It was not executed, or may be again: over to another node.
            Some(io_response::Result::Error(detail)) if detail.retry => {
                return Err(Break::Lost(detail.text()));
            }
            Some(io_response::Result::Error(detail)) => Err(IoClientError::Refused(detail)),
            Some(result) => Ok(result),
            None => return Err(Break::Lost("it sent an answer without a result".to_owned())),
        };
        if let Some(request) = self.unanswered.remove(&answer.id) {
            // Nobody waits any more when the caller's future was dropped.
            let _gone = request.answer.send(result);
            self.let_go();
        }
        let waiting = !self.unanswered.is_empty();
        self.state.send_modify(|state| {
            state.waiting_since = waiting.then(Instant::now);
        });
        Ok(())
    }

    async fn fail(mut self, error: &IoClientError) {
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            let _gone = request.answer.send(Err(error.clone()));
        }
        for request in self.unanswered.into_values() {
            let _gone = request.answer.send(Err(error.clone()));
        }
    }
}

/// Whether the order of two requests can be told from what they leave or find.
fn conflict(one: &io_request::Op, other: &io_request::Op) -> bool {
    let (Some((a, a_changes)), Some((b, b_changes))) = (reach(one), reach(other)) else {
        return false;
    };
    (a_changes || b_changes) && a.start < b.end && b.start < a.end
}

/// The bytes that a request touches, and whether it changes them.
fn reach(op: &io_request::Op) -> Option<(Range<u64>, bool)> {
    let (offset, length, changes) = match op {
        io_request::Op::Read(read) => (read.offset, u64::from(read.length), false),
        io_request::Op::Write(write) => (write.offset, write.data.len() as u64, true),
        io_request::Op::Zero(zero) => (zero.offset, zero.length, true),
        io_request::Op::Trim(trim) => (trim.offset, trim.length, true),
        io_request::Op::Open(_) | io_request::Op::Flush(_) => return None,
    };
    Some((offset..offset.saturating_add(length), changes))
}

fn node(address: &str) -> Result<Node, IoClientError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| IoClientError::BadAddress(address.to_owned()))?
        .connect_timeout(CONNECT_WAIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_connection_window_size(16 << 20)
        .initial_stream_window_size(16 << 20);
    Ok(Node { address: address.to_owned(), endpoint })
}

/// Until nobody waits for the opening, or the client was dropped.
async fn closed(
    opening: Option<&mut oneshot::Sender<Result<u64, IoClientError>>>,
    requests: &mpsc::Receiver<Request>,
) {
    match opening {
        Some(opened) => opened.closed().await,
        None => {
            while !(requests.is_closed() && requests.is_empty()) {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }
}

/// Tries all nodes in turn until one serves the volume. Errors: one said for good that it can't be.
async fn find(
    nodes: &[Node],
    at: &mut usize,
    volume: &str,
    state: &watch::Sender<IoState>,
) -> Result<(Stream, u64), ErrorDetail> {
    loop {
        for _ in 0..nodes.len() {
            let node = &nodes[*at];
            let tried = tokio::time::timeout(OPEN_WAIT, open(node, volume)).await;
            let why = match tried {
                Ok(Ok(found)) => {
                    let address = node.address.clone();
                    state.send_modify(|state| state.connected = Some(address));
                    return Ok(found);
                }
                Ok(Err(detail)) if !detail.retry => return Err(detail),
                Ok(Err(detail)) => detail.text(),
                Err(_) => "it did not open the volume in time".to_owned(),
            };
            tracing::debug!(node = node.address, why, "passed over");
            state.send_modify(|state| state.last_break = Some(why));
            *at = (*at + 1) % nodes.len();
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

async fn open(node: &Node, volume: &str) -> Result<(Stream, u64), ErrorDetail> {
    let unreachable = |error: tonic::transport::Error| {
        let what = format!("{} cannot be reached: {error}", node.address);
        ErrorDetail::of(ErrorCode::Unreachable, what, "")
    };
    let channel: Channel = node.endpoint.connect().await.map_err(unreachable)?;
    let (to, requests) = mpsc::channel(4);
    let op = io_request::Op::Open(OpenVolume { volume: volume.to_owned() });
    let first = IoRequest { id: OPEN_ID, op: Some(op) };
    let ended = || ErrorDetail::of(ErrorCode::Unreachable, "the node hung up", "");
    to.send(first).await.map_err(|_| ended())?;
    let mut client = IoServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let answer = client.attach(ReceiverStream::new(requests)).await;
    let mut from = answer.map_err(|status| ErrorDetail::from_status(&status))?.into_inner();
    let first = from.message().await.map_err(|status| ErrorDetail::from_status(&status))?;
    match first.and_then(|answer| answer.result) {
        Some(io_response::Result::Opened(opened)) => Ok((Stream { to, from }, opened.size_bytes)),
        Some(io_response::Result::Error(detail) | io_response::Result::Ended(detail)) => {
            Err(detail)
        }
        Some(io_response::Result::Done(_) | io_response::Result::Read(_)) | None => Err(ended()),
    }
}
