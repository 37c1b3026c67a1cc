//! How long things took, counted in buckets: cheap enough for every request, and what monitoring adds up.

use crate::time::Duration;

/// Buckets with an upper bound; what took longer than the last is counted in one more.
pub const LATENCY_BOUNDS: usize = 21;
/// The first bucket's upper bound; each next is twice as wide. Units: microseconds.
const FIRST_US: u64 = 16;

/// Shape: the bounds are 16 µs, 32 µs, … 16.8 s, and then none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; LATENCY_BOUNDS + 1],
    /// Units: nanoseconds.
    sum_ns: u64,
}

impl Latencies {
    pub fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// An upper bound is part of its bucket.
    pub fn bound(bucket: usize) -> Duration {
        assert!(bucket < LATENCY_BOUNDS, "the last bucket has no bound");
        Duration::from_micros(FIRST_US << bucket)
    }

    /// As they were told. None: of other buckets.
    pub fn of(counts: &[u64], sum: Duration) -> Option<Self> {
        let sum_ns = u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX);
        Some(Self { counts: counts.try_into().ok()?, sum_ns })
    }

    pub fn counts(&self) -> &[u64; LATENCY_BOUNDS + 1] {
        &self.counts
    }

    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `before`; all of it, if `before` is of something else that counted further.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let pairs = || self.counts.iter().zip(&before.counts);
        if pairs().any(|(now, then)| now < then) || self.sum_ns < before.sum_ns {
            return *self;
        }
        let mut newer = Self { sum_ns: self.sum_ns - before.sum_ns, ..*self };
        for (newer, then) in newer.counts.iter_mut().zip(&before.counts) {
            *newer -= then;
        }
        newer
    }

    /// Of two places together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = Self { sum_ns: self.sum_ns.saturating_add(other.sum_ns), ..*self };
        for (all, more) in all.counts.iter_mut().zip(&other.counts) {
            *all += more;
        }
        all
    }

    /// So many in a thousand took at most this long: the bound of the bucket that it falls in. None:
    /// nothing was counted.
    pub fn permille(&self, permille: u64) -> Option<Duration> {
        let wanted = self.count().saturating_mul(permille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(Self::bound(bucket.min(LATENCY_BOUNDS - 1)));
            }
        }
        None
    }
}

fn bucket(ns: u64) -> usize {
    let us = ns.div_ceil(1000);
    // Doublings of the first bound that it takes to reach it.
    let doublings = us.div_ceil(FIRST_US).next_power_of_two().trailing_zeros();
    usize::try_from(doublings).map_or(LATENCY_BOUNDS, |bucket| bucket.min(LATENCY_BOUNDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        for at in 0..LATENCY_BOUNDS {
            let mut latencies = Latencies::default();
            latencies.add(Latencies::bound(at));
            assert_eq!(latencies.counts()[at], 1);
            latencies.add(Latencies::bound(at) + Duration::from_nanos(1));
            assert_eq!(latencies.counts()[at + 1], 1);
        }
        let mut latencies = Latencies::default();
        latencies.add(Duration::ZERO);
        latencies.add(Duration::MAX);
        assert_eq!((latencies.counts()[0], latencies.counts()[LATENCY_BOUNDS]), (1, 1));
    }

    #[test]
    fn the_slowest_are_told_by_their_bound() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.permille(990), None);
        (0..98).for_each(|_| latencies.add(Duration::from_micros(20)));
        (0..2).for_each(|_| latencies.add(Duration::from_millis(3)));
        assert_eq!(latencies.permille(500), Some(Duration::from_micros(32)));
        assert_eq!(latencies.permille(990), Some(Duration::from_micros(4096)));
        assert_eq!(latencies.count(), 100);
    }

    #[test]
    fn what_came_since_is_the_difference_unless_it_began_anew() {
        let mut before = Latencies::default();
        before.add(Duration::from_millis(1));
        let mut now = before;
        now.add(Duration::from_millis(1));
        now.add(Duration::from_secs(1));
        assert_eq!(now.since(&before).count(), 2);
        assert_eq!(now.since(&before).with(&before), now);
        let anew = Latencies::default();
        assert_eq!(anew.since(&now), anew);
    }
}
