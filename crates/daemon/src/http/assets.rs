//! The console's files, in the binary: nothing of it comes from another address.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Name, kind, contents. The first is also the page at `/`.
const FILES: [(&str, &str, &str); 13] = [
    ("index.html", HTML, include_str!("../../console/index.html")),
    ("style.css", CSS, include_str!("../../console/style.css")),
    ("app.js", JS, include_str!("../../console/app.js")),
    ("api.js", JS, include_str!("../../console/api.js")),
    ("dom.js", JS, include_str!("../../console/dom.js")),
    ("format.js", JS, include_str!("../../console/format.js")),
    ("overview.js", JS, include_str!("../../console/overview.js")),
    ("nodes.js", JS, include_str!("../../console/nodes.js")),
    ("volumes.js", JS, include_str!("../../console/volumes.js")),
    ("drills.js", JS, include_str!("../../console/drills.js")),
    ("records.js", JS, include_str!("../../console/records.js")),
    ("uPlot.iife.min.js", JS, include_str!("../../console/vendor/uPlot.iife.min.js")),
    ("uPlot.min.css", CSS, include_str!("../../console/vendor/uPlot.min.css")),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Everything from this node, and shown in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = Router::new().route("/", get(|| async { file(&FILES[0]) }));
    FILES.iter().fold(page, |router, entry| {
        router.route(&format!("/console/{}", entry.0), get(move || async move { file(entry) }))
    })
}

fn file((_, kind, contents): &'static (&str, &str, &str)) -> Response {
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next version of the node may have another one.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, *contents).into_response()
}
