//! What the volumes of this node did in the last hour, for charts. Taken whether or not somebody looks:
//! a few additions every five seconds.

use crate::control::ask::Context;
use crate::data::Published;
use gabion_api::v1::LocalSample;
use gabion_types::{Duration, Latencies, VolumeId};
use gabion_volume::VolumeStats;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How long one sample covers. They end at multiples of it by the clock, so those of several nodes add up.
pub const INTERVAL_MS: u64 = 5000;
/// Samples that are kept; the oldest go first.
const SAMPLES_MAX: usize = 720;

#[derive(Default)]
pub struct History {
    samples: Mutex<VecDeque<LocalSample>>,
}

impl History {
    pub fn start(state: watch::Receiver<Arc<Published>>) -> Arc<Self> {
        let history = Arc::new(Self::default());
        let weak = Arc::downgrade(&history);
        tokio::spawn(async move {
            let mut before = Counted::of(&state.borrow());
            loop {
                let now = now_ms();
                let due = (now / INTERVAL_MS + 1) * INTERVAL_MS;
                tokio::time::sleep(Duration::from_millis(due - now)).await;
                let Some(history) = weak.upgrade() else { return };
                let next = Counted::of(&state.borrow());
                history.keep(next.since(&before, due));
                before = next;
            }
        });
        history
    }

    fn keep(&self, sample: LocalSample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(sample);
        let over = samples.len().saturating_sub(SAMPLES_MAX);
        samples.drain(..over);
    }

    /// Those that ended later than `since_ms`, oldest first.
    pub fn samples(&self, since_ms: u64) -> Vec<LocalSample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.time_ms > since_ms).copied().collect()
    }
}

/// Of the whole cluster, as far as its nodes could be asked: the sums of what they say.
pub async fn of_all(context: &Context, since_ms: u64) -> Vec<LocalSample> {
    let mut all = BTreeMap::<u64, LocalSample>::new();
    for samples in context.histories(since_ms).await {
        for sample in samples {
            let sum = all.entry(sample.time_ms).or_default();
            *sum = add(*sum, sample);
        }
    }
    all.into_values().collect()
}

/// Of the slowest in a hundred only what the worse node says is known.
fn add(sum: LocalSample, more: LocalSample) -> LocalSample {
    LocalSample {
        time_ms: more.time_ms,
        reads: sum.reads + more.reads,
        read_bytes: sum.read_bytes + more.read_bytes,
        writes: sum.writes + more.writes,
        write_bytes: sum.write_bytes + more.write_bytes,
        errors: sum.errors + more.errors,
        filled_bytes: sum.filled_bytes + more.filled_bytes,
        read_sum_us: sum.read_sum_us + more.read_sum_us,
        read_p99_us: sum.read_p99_us.max(more.read_p99_us),
        write_sum_us: sum.write_sum_us + more.write_sum_us,
        write_p99_us: sum.write_p99_us.max(more.write_p99_us),
    }
}

/// The counters that a sample is the difference of.
struct Counted {
    volumes: BTreeMap<VolumeId, VolumeStats>,
}

impl Counted {
    fn of(published: &Published) -> Self {
        // What may be long is left out.
        let plain = |stats: &VolumeStats| VolumeStats {
            fills: Vec::new(),
            held_segments: Vec::new(),
            lost: Vec::new(),
            ..stats.clone()
        };
        let volumes = published.stats.volumes.iter();
        Self { volumes: volumes.map(|(id, stats)| (*id, plain(stats))).collect() }
    }

    fn since(&self, before: &Self, time_ms: u64) -> LocalSample {
        let none = VolumeStats::default();
        let mut sample = LocalSample { time_ms, ..LocalSample::default() };
        let (mut reads, mut writes) = (Latencies::default(), Latencies::default());
        for (id, now) in &self.volumes {
            let then = before.volumes.get(id).unwrap_or(&none);
            // An owner that took over again counts from zero.
            let then =
                if then.reads > now.reads || then.writes > now.writes { &none } else { then };
            let more = |now: u64, then: u64| now.saturating_sub(then);
            sample.reads += more(now.reads, then.reads);
            sample.read_bytes += more(now.read_bytes, then.read_bytes);
            sample.writes += more(now.writes, then.writes);
            sample.write_bytes += more(now.write_bytes, then.write_bytes);
            sample.errors += more(now.errors, then.errors);
            sample.filled_bytes += more(now.filled_bytes, then.filled_bytes);
            reads = reads.with(&now.read_latencies.since(&then.read_latencies));
            writes = writes.with(&now.write_latencies.since(&then.write_latencies));
        }
        LocalSample {
            read_sum_us: us(reads.sum()),
            read_p99_us: reads.permille(990).map_or(0, us),
            write_sum_us: us(writes.sum()),
            write_p99_us: writes.permille(990).map_or(0, us),
            ..sample
        }
    }
}

pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(reads: u64, took: Duration) -> Counted {
        let mut stats = VolumeStats { reads, read_bytes: reads * 4096, ..VolumeStats::default() };
        (0..reads).for_each(|_| stats.read_latencies.add(took));
        Counted { volumes: BTreeMap::from([(VolumeId::new(1), stats)]) }
    }

    #[test]
    fn a_sample_is_what_came_in_between() {
        let (before, now) =
            (counted(5, Duration::from_micros(10)), counted(8, Duration::from_micros(10)));
        let sample = now.since(&before, 5000);
        assert_eq!((sample.reads, sample.read_bytes, sample.time_ms), (3, 3 * 4096, 5000));
        assert_eq!((sample.read_sum_us, sample.read_p99_us, sample.write_p99_us), (30, 16, 0));
        let anew = before.since(&now, 10_000);
        assert_eq!(anew.reads, 5, "an owner that took over counts from zero");
    }

    #[test]
    fn the_oldest_go_first() {
        let history = History::default();
        for time_ms in 1..=800 {
            history.keep(LocalSample { time_ms, ..LocalSample::default() });
        }
        assert_eq!(history.samples(0).len(), SAMPLES_MAX);
        assert_eq!(history.samples(798).first().map(|sample| sample.time_ms), Some(799));
    }

    #[test]
    fn nodes_add_up() {
        let one = LocalSample { time_ms: 5, reads: 1, read_p99_us: 7, ..LocalSample::default() };
        let two = LocalSample { time_ms: 5, reads: 2, read_p99_us: 3, ..LocalSample::default() };
        let sum = add(add(LocalSample::default(), one), two);
        assert_eq!((sum.reads, sum.read_p99_us, sum.time_ms), (3, 7, 5));
    }
}
