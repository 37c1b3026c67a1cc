//! A guest by gRPC: one volume, many requests in flight, over to another node by itself.

mod session;
#[cfg(test)]
mod tests;

use crate::v1::{
    ErrorCode, ErrorDetail, FlushOp, ReadOp, TrimOp, WriteOp, ZeroOp, io_request, io_response,
};
use bytes::Bytes;
use session::Request;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests of one client that wait for an answer. Full: the next one waits before it is sent.
pub const IN_FLIGHT_MAX: usize = 256;
/// A larger read or write is refused. Units: bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;

/// Why a request failed. What may go well at another node, or later, was tried again before.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IoClientError {
    /// The cluster's own word.
    #[error("{}", .0.text())]
    Refused(ErrorDetail),
    #[error("no address of a node is given; give host:port of the API of one or more nodes")]
    NoAddress,
    #[error("{0} is no address; an address is host:port, such as 127.0.0.1:7401")]
    BadAddress(String),
    #[error("the client was closed")]
    Closed,
}

impl IoClientError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(detail) => detail.code(),
            Self::NoAddress | Self::BadAddress(_) => ErrorCode::BadRequest,
            Self::Closed => ErrorCode::Stopping,
        }
    }
}

/// How it goes just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoState {
    /// The node that serves; none while it looks for one.
    pub connected: Option<String>,
    /// How often a connection was lost.
    pub breaks: u64,
    /// Why the last one was lost, or why none is found.
    pub last_break: Option<String>,
    /// Answers are waited for, and since when none came.
    pub waiting_since: Option<std::time::Instant>,
}

/// An open volume. Cheap to share by reference: all its methods take `&self`.
///
/// Order: requests that overlap take effect in the order in which their calls were first polled; one
/// that overlaps an earlier one without an answer (unless both read) is sent when that is answered.
/// When a node is lost, what is unanswered is sent again, in that order, to another one: a request is
/// idempotent by its range, so nothing old lands on something new of this client.
#[derive(Debug)]
pub struct IoClient {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<IoState>,
    volume: String,
    size_bytes: u64,
}

impl IoClient {
    /// Opens a volume at the first of these nodes (`host:port` of their API) that serves it; tries
    /// them all for as long as a try may go well later.
    ///
    /// Errors: a bad address, or the cluster's word (there is no such volume).
    pub async fn open(nodes: &[String], volume: &str) -> Result<Self, IoClientError> {
        let (request_sender, requests) = mpsc::channel(IN_FLIGHT_MAX);
        let (state_sender, state) = watch::channel(IoState::default());
        let (opened_sender, opened) = oneshot::channel();
        let session = session::Session::new(nodes, volume, requests, state_sender)?;
        tokio::spawn(session.run(opened_sender));
        let size_bytes = opened.await.map_err(|_| IoClientError::Closed)??;
        Ok(Self { requests: request_sender, state, volume: volume.to_owned(), size_bytes })
    }

    /// As `open`, but gives up after a while.
    pub async fn open_within(
        nodes: &[String],
        volume: &str,
        within: Duration,
    ) -> Result<Self, IoClientError> {
        let opened = tokio::time::timeout(within, Self::open(nodes, volume)).await;
        opened.unwrap_or_else(|_| {
            let what = format!("volume {volume} could not be opened within {within:?}");
            let next = "is the cluster up? see `gabion status`";
            Err(IoClientError::Refused(ErrorDetail::of(ErrorCode::TimedOut, what, next)))
        })
    }

    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// As of the opening.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// For those who tell stalls.
    pub fn state(&self) -> watch::Receiver<IoState> {
        self.state.clone()
    }

    /// Units: bytes; multiples of 512.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, IoClientError> {
        let result = self.ask(io_request::Op::Read(ReadOp { offset, length })).await?;
        if let io_response::Result::Read(read) = result {
            return Ok(read.data);
        }
        Err(unexpected(&result))
    }

    /// Durable: on every copy, when it returns.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoClientError> {
        self.done(io_request::Op::Write(WriteOp { offset, data })).await
    }

    /// Covers everything that was answered before.
    pub async fn flush(&self) -> Result<(), IoClientError> {
        self.done(io_request::Op::Flush(FlushOp {})).await
    }

    /// Reads as zeros afterwards.
    pub async fn zero(&self, offset: u64, length: u64) -> Result<(), IoClientError> {
        self.done(io_request::Op::Zero(ZeroOp { offset, length })).await
    }

    /// Whole blocks of 4 KiB within read as zeros afterwards and take no space.
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), IoClientError> {
        self.done(io_request::Op::Trim(TrimOp { offset, length })).await
    }

    async fn done(&self, op: io_request::Op) -> Result<(), IoClientError> {
        let result = self.ask(op).await?;
        if let io_response::Result::Done(_) = result {
            return Ok(());
        }
        Err(unexpected(&result))
    }

    async fn ask(&self, op: io_request::Op) -> Result<io_response::Result, IoClientError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { op, answer };
        self.requests.send(request).await.map_err(|_| IoClientError::Closed)?;
        answered.await.map_err(|_| IoClientError::Closed)?
    }
}

fn unexpected(result: &io_response::Result) -> IoClientError {
    let what = format!("a node gave an answer to another kind of request: {}", kind(result));
    IoClientError::Refused(ErrorDetail::of(ErrorCode::Internal, what, "is it another version?"))
}

fn kind(result: &io_response::Result) -> &'static str {
    match result {
        io_response::Result::Opened(_) => "opened",
        io_response::Result::Done(_) => "done",
        io_response::Result::Read(_) => "read",
        io_response::Result::Error(_) => "error",
        io_response::Result::Ended(_) => "ended",
    }
}
