//! Proofs around the calls of the `Internal` service: added where they leave, checked where they
//! arrive, before anything else of a call is read.

use crate::control::proof::{Challenge, Prover, Verifier, hex, unhex};
use gabion_api::v1::{ErrorCode, ErrorDetail};
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use tonic::codegen::{BoxFuture, Service, StdError};
use tonic::server::NamedService;
use tonic::transport::Channel;

/// Of a call: who calls, which call it is, and the proof.
pub const PROOF_KEY: &str = "gabion-proof";
/// Of a refusal: what the secret is to be proven over.
pub const CHALLENGE_KEY: &str = "gabion-challenge";
/// Of an answer: its proof.
pub const ANSWER_KEY: &str = "gabion-answer";
/// A call without a proof, for the challenge that its refusal carries.
const ASK_PATH: &str = "/gabion.v1.Internal/Challenge";

#[derive(Debug, thiserror::Error)]
#[error("who answers there did not prove the cluster's secret")]
struct Unproven;

/// Calls one node with a proof each.
#[derive(Clone)]
pub struct Proving {
    channel: Channel,
    prover: Arc<Prover>,
}

impl Proving {
    pub fn new(channel: Channel, prover: Arc<Prover>) -> Self {
        Self { channel, prover }
    }
}

impl Service<Request<Body>> for Proving {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Response<Body>, StdError>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        // The channel's own readiness is awaited with each call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { channel, prover } = self.clone();
        Box::pin(async move { proven_call(channel, &prover, request).await })
    }
}

async fn proven_call(
    mut channel: Channel,
    prover: &Prover,
    mut request: Request<Body>,
) -> Result<Response<Body>, StdError> {
    let challenge = match prover.challenge() {
        Some(challenge) => challenge,
        None => {
            let refusal = send(&mut channel, ask()?).await?;
            let challenge = challenge_in(refusal.headers()).ok_or(Unproven)?;
            prover.learn(Some(challenge));
            challenge
        }
    };
    let path = request.uri().path().to_owned();
    let (call, proof) = prover.prove(challenge, &path);
    request.headers_mut().insert(PROOF_KEY, HeaderValue::try_from(proof)?);
    // The next process at that address has another challenge.
    let sent = send(&mut channel, request).await.inspect_err(|_| prover.learn(None));
    let response = sent?;
    let answer = response.headers().get(ANSWER_KEY);
    if answer.is_some_and(|answer| prover.is_answer(&call, &path, answer.as_bytes())) {
        return Ok(response);
    }
    // If it is our own, in a new process: this call is lost, the next one knows what to prove.
    prover.learn(challenge_in(response.headers()));
    Err(Unproven.into())
}

async fn send(channel: &mut Channel, request: Request<Body>) -> Result<Response<Body>, StdError> {
    poll_fn(|context| channel.poll_ready(context)).await?;
    Ok(channel.call(request).await?)
}

fn ask() -> Result<Request<Body>, StdError> {
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(ASK_PATH)
        .header(header::TE, "trailers")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(Body::empty())?;
    Ok(request)
}

fn challenge_in(headers: &HeaderMap) -> Option<Challenge> {
    unhex(headers.get(CHALLENGE_KEY)?.as_bytes())
}

/// Lets in who proves the secret, and proves the answer.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    verifier: Arc<Verifier>,
}

impl<S> Guarded<S> {
    pub fn new(inner: S, verifier: Arc<Verifier>) -> Self {
        Self { inner, verifier }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let told = request.headers().get(PROOF_KEY).map(HeaderValue::as_bytes);
        match self.verifier.verify(request.uri().path(), told) {
            Ok(proof) => {
                let answered = self.inner.call(request);
                Box::pin(async move {
                    let mut response = answered.await?;
                    let proof = HeaderValue::try_from(proof).expect("hex digits are ASCII");
                    response.headers_mut().insert(ANSWER_KEY, proof);
                    Ok(response)
                })
            }
            Err(challenge) => Box::pin(async move { Ok(refusal(&challenge)) }),
        }
    }
}

fn refusal(challenge: &Challenge) -> Response<Body> {
    let what = "the caller did not prove the cluster's secret";
    let next = "give all nodes of a cluster the same `secret`";
    let status = ErrorDetail::of(ErrorCode::WrongSecret, what, next).into_status();
    let mut response = status.into_http();
    let challenge = HeaderValue::try_from(hex(challenge)).expect("hex digits are ASCII");
    response.headers_mut().insert(CHALLENGE_KEY, challenge);
    response
}

#[cfg(test)]
mod tests;
