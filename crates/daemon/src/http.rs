//! The HTTP port: `/healthz`, `/readyz`, `/metrics`, and the console.

pub mod access;
mod api;
mod assets;
pub mod console;
mod drills;
mod live;
mod metrics;

use crate::data::Published;
use crate::http::console::Console;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How far the start has come.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Not there yet: what it is at.
    Starting(&'static str),
    Running(watch::Receiver<Arc<Published>>),
}

/// What the pages are made of.
#[derive(Clone)]
pub struct HttpState {
    pub stage: watch::Receiver<Stage>,
    pub console: Arc<Console>,
}

impl HttpState {
    fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }
}

/// Serves until it is dropped. Errors: the listener broke.
pub async fn serve(listener: TcpListener, state: HttpState) -> std::io::Result<()> {
    axum::serve(listener, router(state)).await
}

fn router(state: HttpState) -> Router {
    let console = console::routes(Arc::clone(&state.console));
    let own = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    own.merge(console)
}

/// Alive: this process answers, and its data plane has not ended.
async fn healthz(State(http): State<HttpState>) -> (StatusCode, &'static str) {
    match http.stage() {
        Stage::Running(state) if state.has_changed().is_err() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the data plane ended\n")
        }
        Stage::Running(_) | Stage::Starting(_) => (StatusCode::OK, "alive\n"),
    }
}

/// Serves guests' I/O: what a load balancer's check asks.
async fn readyz(State(http): State<HttpState>) -> (StatusCode, String) {
    let missing = match http.stage() {
        Stage::Starting(at) => Some(format!("the node is starting: {at}")),
        Stage::Running(state) => missing(&state).map(str::to_owned),
    };
    match missing {
        None => (StatusCode::OK, "ready\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

/// What keeps a node that runs from serving.
pub(crate) fn missing(state: &watch::Receiver<Arc<Published>>) -> Option<&'static str> {
    let stats = &state.borrow().stats;
    if state.has_changed().is_err() {
        Some("the data plane ended")
    } else if stats.ready {
        None
    } else if stats.leader.is_none() {
        Some("no leader is known: a majority of the nodes must be up")
    } else if !stats.registered {
        Some("the cluster map does not name this process yet: its disks are being recovered")
    } else if stats.lease_left.is_none() {
        Some("the lease has ended: the leader cannot be reached")
    } else {
        Some("the node is stopping")
    }
}

async fn metrics(State(http): State<HttpState>) -> Response {
    let Stage::Running(state) = http.stage() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node is starting\n").into_response();
    };
    let published = Arc::clone(&state.borrow());
    let services = http.console.services().ok();
    let text = metrics::text(&published, services.map(|services| &*services.context));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
