//! What `gabion top` knows: the cluster as it was told last, and what each volume did since it was told before.

pub mod draw;

use gabion_api::{v1, view};
use gabion_types::Latencies;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Of the cluster's requests, for the line that is drawn of them.
const HISTORY_MAX: usize = 240;

/// What a volume did for a second, over the time between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    pub reads: f64,
    pub read_bytes: f64,
    pub writes: f64,
    pub write_bytes: f64,
    /// Copied to make or to mend its copies.
    pub filled_bytes: f64,
    /// Of those requests. None: there were none.
    pub read_p99: Option<Duration>,
    pub write_p99: Option<Duration>,
}

impl Rates {
    pub fn requests(&self) -> f64 {
        self.reads + self.writes
    }

    /// None: the owner counts anew, for it is another one.
    fn between(before: &v1::Traffic, now: &v1::Traffic, passed: Duration) -> Option<Self> {
        let per_second = |before: u64, now: u64| {
            // Counters of one process: far below what a float holds exactly.
            #[allow(clippy::cast_precision_loss)]
            now.checked_sub(before).map(|more| more as f64 / passed.as_secs_f64().max(0.001))
        };
        let p99 = |before: Option<&v1::Latencies>, now: Option<&v1::Latencies>| {
            let newer = latencies(now)?.since(&latencies(before).unwrap_or_default());
            newer.permille(990)
        };
        Some(Self {
            reads: per_second(before.reads, now.reads)?,
            read_bytes: per_second(before.read_bytes, now.read_bytes)?,
            writes: per_second(before.writes, now.writes)?,
            write_bytes: per_second(before.write_bytes, now.write_bytes)?,
            filled_bytes: per_second(before.filled_bytes, now.filled_bytes)?,
            read_p99: p99(before.read_latencies.as_ref(), now.read_latencies.as_ref()),
            write_p99: p99(before.write_latencies.as_ref(), now.write_latencies.as_ref()),
        })
    }
}

fn latencies(told: Option<&v1::Latencies>) -> Option<Latencies> {
    let told = told?;
    Latencies::of(&told.counts, Duration::from_nanos(told.sum_ns))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Busiest,
    Name,
}

/// All that is drawn. Pure: time comes with what is told.
#[derive(Debug, Default)]
pub struct Top {
    status: Option<v1::StatusResponse>,
    at: Option<Instant>,
    rates: BTreeMap<u32, Rates>,
    /// The most that was left of a rebuild since it began. Units: bytes.
    rebuilds: BTreeMap<u32, u64>,
    /// Requests a second of the whole cluster, oldest first.
    history: Vec<u64>,
    /// Why the last look failed.
    failed: Option<String>,
    pub order: Order,
    /// The first volume that is shown.
    pub first: usize,
}

impl Top {
    pub fn failed(&mut self, why: String) {
        self.failed = Some(why);
    }

    pub fn told(&mut self, status: v1::StatusResponse, now: Instant) {
        self.failed = None;
        let passed = self.at.map(|at| now.saturating_duration_since(at));
        let before = self.status.take();
        self.rates = match (&before, passed) {
            (Some(before), Some(passed)) => rates(before, &status, passed),
            (Some(_) | None, Some(_) | None) => BTreeMap::new(),
        };
        self.rebuilds = status
            .volumes
            .iter()
            .filter_map(|volume| {
                let left = volume.rebuild.as_ref()?.remaining_bytes;
                let most = self.rebuilds.get(&volume.id).copied().unwrap_or_default();
                Some((volume.id, most.max(left)))
            })
            .collect();
        if before.is_some() {
            let all: f64 = self.rates.values().map(Rates::requests).sum();
            // Not negative, and a cluster answers less than 2^63 requests a second.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            self.history.push(all as u64);
            let over = self.history.len().saturating_sub(HISTORY_MAX);
            self.history.drain(..over);
        }
        (self.status, self.at) = (Some(status), Some(now));
        self.scroll(0);
    }

    pub fn scroll(&mut self, by: isize) {
        let most = self.status.as_ref().map_or(0, |status| status.volumes.len().saturating_sub(1));
        self.first = self.first.saturating_add_signed(by).min(most);
    }

    pub fn turn_order(&mut self) {
        self.order = if self.order == Order::Busiest { Order::Name } else { Order::Busiest };
    }

    /// None: not known yet.
    pub fn rates(&self, volume: u32) -> Option<&Rates> {
        self.rates.get(&volume)
    }

    /// In the order in which they are shown.
    fn volumes<'a>(&self, status: &'a v1::StatusResponse) -> Vec<&'a v1::Volume> {
        let mut volumes: Vec<&v1::Volume> = status.volumes.iter().collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        if self.order == Order::Busiest {
            // Whole requests: else those with none would change places all the time.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let busy = |volume: &&v1::Volume| {
                Reverse(self.rates(volume.id).map_or(0, |rates| rates.requests() as u64))
            };
            volumes.sort_by_key(busy);
        }
        volumes
    }

    /// How far a rebuild is, of what was left when it was first seen.
    fn rebuilt(&self, volume: &v1::Volume) -> Option<f64> {
        let left = volume.rebuild.as_ref()?.remaining_bytes;
        let most = self.rebuilds.get(&volume.id).copied()?.max(1);
        // A part of a whole.
        #[allow(clippy::cast_precision_loss)]
        Some(1.0 - left as f64 / most as f64)
    }

    /// What was told last, with the rates of each volume.
    pub fn json(&self) -> Option<Value> {
        let status = self.status.as_ref()?;
        let us = |span: Option<Duration>| span.map(|span| span.as_micros());
        let volumes = self.volumes(status).into_iter().map(|volume| {
            let rates = self.rates(volume.id);
            json!({
                "id": volume.id.to_string(),
                "name": volume.name,
                "health": view::health(volume.health),
                "owner": volume.owner.as_ref().map(|owner| owner.node.to_string()),
                "guests": volume.guests,
                "reads_per_s": rates.map(|rates| rates.reads.round()),
                "read_bytes_per_s": rates.map(|rates| rates.read_bytes.round()),
                "writes_per_s": rates.map(|rates| rates.writes.round()),
                "write_bytes_per_s": rates.map(|rates| rates.write_bytes.round()),
                "filled_bytes_per_s": rates.map(|rates| rates.filled_bytes.round()),
                "read_p99_us": us(rates.and_then(|rates| rates.read_p99)),
                "write_p99_us": us(rates.and_then(|rates| rates.write_p99)),
                "held_requests": volume.traffic.as_ref().map(|traffic| traffic.held_requests),
                "rebuild": view::rebuild(volume),
            })
        });
        Some(json!({
            "health": view::health(status.health),
            "problems": status.problems,
            "notes": status.notes,
            "nodes": status.nodes.iter().map(view::node).collect::<Vec<_>>(),
            "volumes": volumes.collect::<Vec<_>>(),
        }))
    }
}

fn rates(
    before: &v1::StatusResponse,
    now: &v1::StatusResponse,
    passed: Duration,
) -> BTreeMap<u32, Rates> {
    let of = |volume: &v1::Volume| {
        let then = before.volumes.iter().find(|then| then.id == volume.id)?;
        let rates = Rates::between(then.traffic.as_ref()?, volume.traffic.as_ref()?, passed)?;
        Some((volume.id, rates))
    };
    now.volumes.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests;
