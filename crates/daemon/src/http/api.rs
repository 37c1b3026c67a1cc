//! The JSON that the console lives on, and programs may use: the services of the API, called in this
//! process, with the names that `--json` has.

use crate::control::ask::Context;
use crate::control::cluster::ClusterService;
use crate::control::history;
use crate::control::volumes::VolumesService;
use crate::http::console::Console;
use crate::http::live;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use gabion_api::error::grpc_code;
use gabion_api::v1::cluster_server::Cluster;
use gabion_api::v1::volumes_server::Volumes;
use gabion_api::v1::{self, ErrorCode, ErrorDetail, LocalSample};
use gabion_api::view;
use gabion_types::SegmentMembers;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};

/// A change is a few words. Units: bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Events that are told at once, the newest.
const EVENTS_MAX: usize = 500;
const EVENTS_WAIT: Duration = Duration::from_secs(3);
/// Segments that the map of all disks tells of.
const SEGMENTS_MAX: usize = 16_384;

/// What answers, once the node runs.
pub struct Services {
    pub context: Arc<Context>,
    pub cluster: ClusterService,
    pub volumes: VolumesService,
}

impl Services {
    pub fn of(context: &Arc<Context>) -> Self {
        let cluster = ClusterService::new(Arc::clone(context));
        let volumes = VolumesService::new(Arc::clone(context));
        Self { context: Arc::clone(context), cluster, volumes }
    }
}

type Answer = Result<Value, Refusal>;

/// Becomes the answer with its status.
pub enum Refusal {
    NotYet,
    Refused(Status),
    BadBody(serde_json::Error),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

type Here = State<Arc<Console>>;

pub fn routes() -> Router<Arc<Console>> {
    Router::new()
        .route("/status", get(async |State(c): Here| answer(status(&c).await)))
        .route("/disks", get(async |State(c): Here| answer(disks(&c).await)))
        .route("/segments", get(async |State(c): Here| answer(segments(&c))))
        .route("/history", get(async |State(c): Here| answer(all_history(&c).await)))
        .route("/events", get(async |State(c): Here| answer(events(&c).await)))
        .route("/settings", get(async |State(c): Here| answer(settings(&c).await)))
        .route("/settings/{name}", put(set_setting))
        .route("/volumes", get(async |State(c): Here| answer(list(&c).await)).post(create))
        .route("/volumes/{name}", get(volume).patch(resize).delete(delete))
        .route("/volumes/{name}/explain", get(explain))
        .route("/volumes/{name}/move", post(move_to))
        .route("/volumes/{name}/scrub", post(scrub))
        .route("/live", get(watch))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

async fn watch(State(console): Here) -> Response {
    match console.services() {
        Ok(services) => console.live.watch(services),
        Err(refusal) => answer(Err(refusal)),
    }
}

async fn status(console: &Console) -> Answer {
    let cluster = &console.services()?.cluster;
    let status = cluster.status(Request::new(v1::StatusRequest {})).await?;
    Ok(view::status(status.get_ref()))
}

async fn disks(console: &Console) -> Answer {
    let disks = console.services()?.cluster.disks(Request::new(v1::DisksRequest {})).await?;
    Ok(json!({ "disks": disks.get_ref().disks.iter().map(view::disk).collect::<Vec<_>>() }))
}

async fn settings(console: &Console) -> Answer {
    let cluster = &console.services()?.cluster;
    let found = cluster.list_settings(Request::new(v1::ListSettingsRequest {})).await?;
    let shown: Vec<Value> = found.get_ref().settings.iter().map(view::setting).collect();
    Ok(json!({ "settings": shown }))
}

async fn all_history(console: &Console) -> Answer {
    let samples = history::of_all(&console.services()?.context, 0).await;
    Ok(live::history_json(&samples))
}

/// What one interval's requests did. Units: bytes, microseconds.
pub fn sample(sample: &LocalSample) -> Value {
    json!({
        "time_ms": sample.time_ms,
        "reads": sample.reads,
        "read_bytes": sample.read_bytes,
        "writes": sample.writes,
        "write_bytes": sample.write_bytes,
        "errors": sample.errors,
        "filled_bytes": sample.filled_bytes,
        "read_us_mean": sample.read_sum_us.checked_div(sample.reads),
        "read_us_p99": (sample.reads > 0).then_some(sample.read_p99_us),
        "write_us_mean": sample.write_sum_us.checked_div(sample.writes),
        "write_us_p99": (sample.writes > 0).then_some(sample.write_p99_us),
    })
}

async fn events(console: &Console) -> Answer {
    let request = v1::EventsRequest::default();
    let stream = console.services()?.cluster.events(Request::new(request)).await?;
    let stream = stream.into_inner().filter_map(Result::ok);
    let collected = stream.collect::<Vec<v1::Event>>();
    let all = tokio::time::timeout(EVENTS_WAIT, collected).await.unwrap_or_default();
    let newest = all.len().saturating_sub(EVENTS_MAX);
    let shown: Vec<Value> = all[newest..].iter().map(view::event).collect();
    Ok(json!({ "events": shown }))
}

/// Where all copies are, in few words: ids of disks only.
fn segments(console: &Console) -> Answer {
    let context = &console.services()?.context;
    Ok(context.map.read_map(|map| {
        let mut left = SEGMENTS_MAX;
        let mut volumes = Vec::new();
        for entry in map.volumes().values() {
            let shown: Vec<Value> = entry.segments.iter().take(left).map(members).collect();
            left -= shown.len();
            volumes
                .push(json!({ "name": entry.spec.name, "rf": entry.spec.rf, "segments": shown }));
        }
        let all: usize = map.volumes().values().map(|entry| entry.segments.len()).sum();
        json!({ "volumes": volumes, "left_out": all - (SEGMENTS_MAX - left) })
    }))
}

fn members(members: &SegmentMembers) -> Value {
    let joining = members.joining.iter().map(|joining| joining.disk);
    let stale = members.stale.iter().map(|stale| stale.disk);
    json!({
        "in_sync": members.in_sync.iter().map(|disk| disk.get()).collect::<Vec<_>>(),
        "joining": joining.map(|disk| disk.get()).collect::<Vec<_>>(),
        "stale": stale.map(|disk| disk.get()).collect::<Vec<_>>(),
    })
}

async fn list(console: &Console) -> Answer {
    let volumes = &console.services()?.volumes;
    let found = volumes.list(Request::new(v1::ListVolumesRequest {})).await?;
    Ok(json!({ "volumes": found.get_ref().volumes.iter().map(view::volume).collect::<Vec<_>>() }))
}

async fn volume(State(console): Here, Path(name): Path<String>) -> Response {
    let found = async {
        let volumes = &console.services()?.volumes;
        let found = volumes.get(Request::new(v1::GetVolumeRequest { name })).await?;
        Ok(found.into_inner().volume.as_ref().map_or(Value::Null, view::volume))
    };
    answer(found.await)
}

async fn explain(State(console): Here, Path(name): Path<String>) -> Response {
    let found = async {
        let volumes = &console.services()?.volumes;
        let found = volumes.explain(Request::new(v1::ExplainVolumeRequest { name })).await?;
        Ok(view::explained(found.get_ref()))
    };
    answer(found.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVolume {
    name: String,
    size_bytes: u64,
    #[serde(default)]
    rf: u32,
    #[serde(default)]
    hold_ms: u64,
}

async fn create(State(console): Here, body: Bytes) -> Response {
    let made = async {
        let NewVolume { name, size_bytes, rf, hold_ms } = parse(&body)?;
        let attach = v1::Attach::Any.into();
        let request = v1::CreateVolumeRequest { name, size_bytes, rf, hold_ms, attach };
        let made = console.services()?.volumes.create(Request::new(request)).await?;
        Ok(made.into_inner().volume.as_ref().map_or(Value::Null, view::volume))
    };
    answer(made.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSize {
    size_bytes: u64,
}

async fn resize(State(console): Here, Path(name): Path<String>, body: Bytes) -> Response {
    let resized = async {
        let NewSize { size_bytes } = parse(&body)?;
        let request = v1::ResizeVolumeRequest { name, size_bytes };
        let resized = console.services()?.volumes.resize(Request::new(request)).await?;
        Ok(resized.into_inner().volume.as_ref().map_or(Value::Null, view::volume))
    };
    answer(resized.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Force {
    #[serde(default)]
    force: bool,
}

async fn delete(State(console): Here, Path(name): Path<String>, body: Bytes) -> Response {
    let deleted = async {
        let Force { force } = parse(&body)?;
        let request = v1::DeleteVolumeRequest { name, force };
        console.services()?.volumes.delete(Request::new(request)).await?;
        Ok(json!({}))
    };
    answer(deleted.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOwner {
    to: String,
}

async fn move_to(State(console): Here, Path(name): Path<String>, body: Bytes) -> Response {
    let moved = async {
        let NewOwner { to } = parse(&body)?;
        let request = v1::MoveVolumeRequest { name, to };
        console.services()?.volumes.r#move(Request::new(request)).await?;
        Ok(json!({}))
    };
    answer(moved.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewScrub {
    #[serde(default)]
    deep: bool,
}

async fn scrub(State(console): Here, Path(name): Path<String>, body: Bytes) -> Response {
    let begun = async {
        let NewScrub { deep } = parse(&body)?;
        let request = v1::ScrubVolumeRequest { name, deep };
        let begun = console.services()?.volumes.scrub(Request::new(request)).await?;
        Ok(json!({ "number": begun.get_ref().number }))
    };
    answer(begun.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewValue {
    value: String,
}

async fn set_setting(State(console): Here, Path(name): Path<String>, body: Bytes) -> Response {
    let set = async {
        let NewValue { value } = parse(&body)?;
        let request = v1::SetSettingRequest { name, value };
        console.services()?.cluster.set_setting(Request::new(request)).await?;
        Ok(json!({}))
    };
    answer(set.await)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::BadBody)
}

fn answer(answer: Answer) -> Response {
    match answer {
        Ok(value) => respond(StatusCode::OK, &value),
        Err(Refusal::NotYet) => failed(503, "starting", "the node is starting", true),
        Err(Refusal::BadBody(error)) => failed(400, "bad_request", &error.to_string(), false),
        Err(Refusal::Refused(status)) => {
            let detail = ErrorDetail::from_status(&status);
            let code = detail.code().as_str_name().trim_start_matches("ERROR_CODE_");
            let error = json!({
                "code": code.to_ascii_lowercase(),
                "what": detail.what,
                "next": detail.next,
                "subject": detail.subject,
                "retry": detail.retry,
            });
            respond(http_status(detail.code()), &json!({ "error": error }))
        }
    }
}

/// Source: googleapis, google/rpc/code.proto.
fn http_status(code: ErrorCode) -> StatusCode {
    match grpc_code(code) {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable | Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

pub fn failed(status: u16, code: &str, what: &str, retry: bool) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(status, &json!({ "error": { "code": code, "what": what, "next": "", "retry": retry } }))
}

pub fn respond(status: StatusCode, value: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, value.to_string()).into_response()
}
