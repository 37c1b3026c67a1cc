//! What the console shows as it happens, by server-sent events. Asked for once, however many look; while
//! nobody does, nothing runs.

use crate::control::ask::Context;
use crate::control::history::{self, INTERVAL_MS, now_ms};
use crate::http::api::{self, Services};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use gabion_api::v1::cluster_server::Cluster;
use gabion_api::v1::{EventsRequest, StatusRequest};
use gabion_api::view;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Request;

/// Who looks at the same time. Full: the next one is refused.
const VIEWERS_MAX: usize = 64;
/// What a viewer may be behind; the oldest is left out then.
const QUEUED_MAX: usize = 256;
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// After a sample's end, until all nodes have theirs.
const SAMPLE_LAG_MS: u64 = 600;
/// Events that are older when the first viewer comes are not news.
const NEWS_MS: u64 = 3000;

/// One thing to tell: its name, and JSON.
type Told = (&'static str, Arc<str>);

pub struct Live {
    seats: Arc<Semaphore>,
    told: broadcast::Sender<Told>,
    /// Somebody tells.
    telling: Mutex<bool>,
}

impl Default for Live {
    fn default() -> Self {
        let seats = Arc::new(Semaphore::new(VIEWERS_MAX));
        Self { seats, told: broadcast::Sender::new(QUEUED_MAX), telling: Mutex::new(false) }
    }
}

impl Live {
    pub fn watch(self: &Arc<Self>, services: &Arc<Services>) -> Response {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            return api::failed(503, "too_many", "too many look at this node already", true);
        };
        let told = self.told.subscribe();
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if !*telling {
            *telling = true;
            tokio::spawn(Arc::clone(self).tell(Arc::clone(services)));
        }
        drop(telling);
        let stream = BroadcastStream::new(told).filter_map(Result::ok).map(shown);
        Sse::new(Seated { stream: Box::pin(stream), _seat: seat })
            .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
            .into_response()
    }

    /// Ends when nobody looks any more.
    async fn tell(self: Arc<Self>, services: Arc<Services>) {
        let request = EventsRequest { follow: true, ..EventsRequest::default() };
        let events = services.cluster.events(Request::new(request)).await;
        let news_from = now_ms().saturating_sub(NEWS_MS);
        let news = events.map(|events| events.into_inner().filter_map(Result::ok));
        let news = news.map(|events| events.filter(move |event| event.time_ms >= news_from));
        let mut news = pin!(news.ok().into_iter().next().map_or_else(
            || Box::pin(tokio_stream::pending()) as EventStream,
            |events| Box::pin(events) as EventStream,
        ));
        let mut tick = tokio::time::interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sampled = now_ms();
        loop {
            tokio::select! {
                Some(event) = news.next() => self.say("event", &view::event(&event)),
                _ = tick.tick() => {
                    if self.nobody_looks() {
                        return;
                    }
                    if let Ok(status) = services.cluster.status(Request::new(StatusRequest {})).await {
                        self.say("status", &view::status(&status.into_inner()));
                    }
                    self.tell_samples(&services.context, &mut sampled).await;
                }
            }
        }
    }

    async fn tell_samples(&self, context: &Context, sampled: &mut u64) {
        let last = now_ms().saturating_sub(SAMPLE_LAG_MS) / INTERVAL_MS * INTERVAL_MS;
        if last <= *sampled {
            return;
        }
        let samples = history::of_all(context, *sampled).await;
        *sampled = last;
        let until = samples.iter().filter(|sample| sample.time_ms <= last);
        until.for_each(|sample| self.say("sample", &api::sample(sample)));
    }

    fn say(&self, name: &'static str, value: &Value) {
        // Nobody looks: seen at the next tick.
        let _ = self.told.send((name, value.to_string().into()));
    }

    /// Under the lock, so that who comes now either is seen here or starts it anew.
    fn nobody_looks(&self) -> bool {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        *telling = self.told.receiver_count() > 0;
        !*telling
    }
}

type EventStream = std::pin::Pin<Box<dyn Stream<Item = gabion_api::v1::Event> + Send>>;

fn shown((name, json): Told) -> Result<Event, Infallible> {
    Ok(Event::default().event(name).data(&*json))
}

/// A stream that keeps its viewer's seat.
struct Seated<S> {
    stream: std::pin::Pin<Box<S>>,
    _seat: OwnedSemaphorePermit,
}

impl<S: Stream> Stream for Seated<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

/// How many samples make up what, for who draws them.
pub fn history_json(samples: &[gabion_api::v1::LocalSample]) -> Value {
    let shown: Vec<Value> = samples.iter().map(api::sample).collect();
    json!({ "interval_ms": INTERVAL_MS, "samples": shown })
}
