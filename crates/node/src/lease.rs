//! The node's lease, as the node itself counts it: from the send of a renewal that was answered.
//!
//! rule: node/lease-from-send — the owner's end is 90 % of the lease after the *send* of the renewal
//! that was answered last; the manager's is 110 % after its receipt.

use gabion_types::{Duration, Flaw, Flaws, Instant};
use std::collections::BTreeMap;

/// Renewals without an answer that are remembered.
const UNANSWERED_MAX: usize = 16;

#[derive(Debug)]
pub struct Lease {
    lease: Duration,
    interval: Duration,
    next_number: u64,
    sent: BTreeMap<u64, Instant>,
    until: Option<Instant>,
    next_send: Instant,
    flaws: Flaws,
}

impl Lease {
    pub fn new(now: Instant, lease: Duration, interval: Duration, flaws: Flaws) -> Self {
        let (sent, until) = (BTreeMap::new(), None);
        Self { lease, interval, next_number: 1, sent, until, next_send: now, flaws }
    }

    pub fn set_times(&mut self, lease: Duration, interval: Duration) {
        self.lease = lease;
        self.interval = interval;
    }

    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The number of a renewal to be sent now, if one is due.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        if now < self.next_send {
            return None;
        }
        self.next_send = now + self.interval;
        let number = self.next_number;
        self.next_number += 1;
        while self.sent.len() >= UNANSWERED_MAX {
            self.sent.pop_first();
        }
        self.sent.insert(number, now);
        Some(number)
    }

    /// The leader or the way to it changed: renew at once.
    pub fn hurry(&mut self, now: Instant) {
        self.next_send = self.next_send.min(now);
    }

    /// True if the lease now holds longer.
    pub fn renewed(&mut self, number: u64) -> bool {
        let Some(sent) = self.sent.remove(&number) else {
            return false;
        };
        self.sent = self.sent.split_off(&number);
        let tenths = if self.flaws.has(Flaw::LeaseTwiceAsLong) { 18 } else { 9 };
        let until = sent + self.lease * tenths / 10;
        let longer = self.until.is_none_or(|known| known < until);
        if longer {
            self.until = Some(until);
        }
        longer
    }

    pub fn next_deadline(&self) -> Instant {
        self.next_send
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: node/lease-from-send
    #[test]
    fn the_lease_counts_from_the_send() {
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        let mut lease =
            Lease::new(at(0), Duration::from_secs(3), Duration::from_millis(500), Flaws::NONE);
        let first = lease.due(at(0)).unwrap();
        assert_eq!(lease.due(at(400)), None);
        let second = lease.due(at(500)).unwrap();
        assert!(!lease.holds(at(500)));
        assert!(lease.renewed(second));
        assert_eq!(lease.until(), Some(at(500 + 2700)));
        assert!(!lease.renewed(first), "an older answer tells nothing new");
        assert!(!lease.renewed(second), "an answer counts once");
        assert!(lease.holds(at(3199)) && !lease.holds(at(3200)));
    }
}
