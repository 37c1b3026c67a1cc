//! `gabion bench`: a volume measured through NBD.
//!
//! Source: fio's words: random or sequential, block size, requests in flight.

use crate::cli::{BenchArgs, BenchMode};
use crate::failure::Failure;
use crate::nbd_client::{NbdClient, NbdError, Patience, Request, Uri};
use crate::size::ByteSize;
use gabion_types::Prng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a run measured. Latencies in microseconds, sorted.
pub struct Measured {
    pub requests: u64,
    pub bytes: u64,
    pub took: Duration,
    latencies_us: Vec<u32>,
}

pub fn run(args: &BenchArgs, uri: &Uri) -> Result<Measured, Failure> {
    let failed = |e: NbdError| {
        Failure::failed(format!("cannot measure {} at {}: {e}", uri.export, uri.address), "")
    };
    let mut client =
        NbdClient::connect(&uri.address, &uri.export, Patience::default()).map_err(failed)?;
    let measured = measure(args, &mut client).map_err(failed)?;
    client.disconnect();
    Ok(measured)
}

fn measure(args: &BenchArgs, client: &mut NbdClient) -> Result<Measured, NbdError> {
    let length = u64::from(args.bs);
    let slots = (client.size_bytes() / length).max(1);
    let mut chance = Prng::new(1);
    let data: Vec<u8> = (0..args.bs / 8).flat_map(|_| chance.next_u64().to_le_bytes()).collect();
    let random = matches!(args.rw, BenchMode::RandRead | BenchMode::RandWrite);
    let writes = matches!(args.rw, BenchMode::Write | BenchMode::RandWrite);
    let mut sent: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut next_slot = 0;
    let started = Instant::now();
    let until = started + Duration::from_secs(args.seconds);
    let mut measured =
        Measured { requests: 0, bytes: 0, took: Duration::ZERO, latencies_us: Vec::new() };
    let depth = usize::try_from(args.depth).expect("at most 256");
    loop {
        while sent.len() < depth && Instant::now() < until {
            let slot = if random { chance.below(slots) } else { next_slot };
            next_slot = (slot + 1) % slots;
            let offset = slot * length;
            let request = if writes {
                Request::Write { offset, data: &data, fua: false }
            } else {
                Request::Read { offset, length: args.bs }
            };
            sent.insert(client.submit(request)?, Instant::now());
        }
        if sent.is_empty() {
            break;
        }
        let completion = client.receive()?;
        completion.result.map_err(NbdError::Failed)?;
        let since = sent.remove(&completion.cookie).ok_or(NbdError::Confused)?;
        let latency = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        measured.latencies_us.push(latency);
        measured.requests += 1;
        measured.bytes += length;
    }
    measured.took = started.elapsed();
    measured.latencies_us.sort_unstable();
    Ok(measured)
}

impl Measured {
    /// The latency that so many of 1000 requests stay below.
    pub fn permille_us(&self, permille: usize) -> u32 {
        let at = self.latencies_us.len() * permille / 1000;
        let last = self.latencies_us.len().saturating_sub(1);
        self.latencies_us.get(at.min(last)).copied().unwrap_or_default()
    }

    fn per_second(&self, count: u64) -> u64 {
        let micros = self.took.as_micros().max(1);
        u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }

    pub fn iops(&self) -> u64 {
        self.per_second(self.requests)
    }

    pub fn bytes_per_s(&self) -> u64 {
        self.per_second(self.bytes)
    }

    pub fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "bytes": self.bytes,
            "ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "iops": self.iops(),
            "bytes_per_s": self.bytes_per_s(),
            "latency_us": {
                "p50": self.permille_us(500),
                "p99": self.permille_us(990),
                "p99_9": self.permille_us(999),
                "most": self.permille_us(1000),
            },
        })
    }

    pub fn text(&self) -> String {
        format!(
            "{} IOPS, {}/s; latency p50 {} us, p99 {} us, p99.9 {} us, most {} us",
            self.iops(),
            ByteSize(self.bytes_per_s()),
            self.permille_us(500),
            self.permille_us(990),
            self.permille_us(999),
            self.permille_us(1000)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let measured = Measured {
            requests: 1000,
            bytes: 1000 * 4096,
            took: Duration::from_millis(500),
            latencies_us: (1..=1000).collect(),
        };
        assert_eq!(measured.permille_us(500), 501);
        assert_eq!(measured.permille_us(999), 1000);
        assert_eq!(measured.permille_us(1000), 1000);
        assert_eq!(measured.iops(), 2000);
    }
}
