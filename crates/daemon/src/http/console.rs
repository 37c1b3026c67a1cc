//! The console and its JSON: who may use it, and what answers.

use crate::control::ask::Context;
use crate::drills::DrillDir;
use crate::http::access::{self, Role, Tokens};
use crate::http::api::{self, Refusal, Services};
use crate::http::live::Live;
use crate::http::{assets, drills};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::json;
use std::sync::{Arc, OnceLock};

pub struct Console {
    tokens: Tokens,
    /// Where others are told to find this port.
    own_host: String,
    /// None: not a cluster of `up`.
    pub drills: Option<DrillDir>,
    services: OnceLock<Arc<Services>>,
    pub live: Arc<Live>,
}

impl Console {
    pub fn new(tokens: Tokens, own_host: String, drills: Option<DrillDir>) -> Arc<Self> {
        let (services, live) = (OnceLock::new(), Arc::default());
        Arc::new(Self { tokens, own_host, drills, services, live })
    }

    /// The node runs: from now on there is something to tell.
    pub fn serve(&self, context: &Arc<Context>) {
        let services = Arc::new(Services::of(context));
        assert!(self.services.set(services).is_ok(), "a node starts once");
    }

    pub fn services(&self) -> Result<&Arc<Services>, Refusal> {
        self.services.get().ok_or(Refusal::NotYet)
    }
}

/// The page itself holds no secret: it is everybody's.
pub fn routes(console: Arc<Console>) -> Router {
    let guard = middleware::from_fn_with_state(Arc::clone(&console), guard);
    let api = api::routes().merge(drills::routes()).route("/session", get(session)).layer(guard);
    assets::routes().nest("/api/v1", api.with_state(console))
}

// rule: http/no-foreign-page, http/token
async fn guard(State(console): State<Arc<Console>>, mut request: Request, next: Next) -> Response {
    let (method, headers) = (request.method(), request.headers());
    match access::judge(&console.tokens, &console.own_host, method, headers) {
        Ok(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(denied) => api::respond(denied.status(), &denied.json()),
    }
}

/// Who the caller is.
async fn session(
    State(console): State<Arc<Console>>,
    Extension(role): Extension<Role>,
) -> Response {
    let node = console.services.get().map(|services| services.context.me.get().to_string());
    let version = env!("CARGO_PKG_VERSION");
    api::respond(StatusCode::OK, &json!({ "role": role.name(), "node": node, "version": version }))
}
