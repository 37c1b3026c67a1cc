//! The clock of the data plane.

use crate::sys;
use gabion_types::Instant;

/// CLOCK_BOOTTIME, counted from when this was made: it goes on while the machine is suspended, so
/// that a lease does not outlive a sleep.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin_nanos: u64,
}

impl Clock {
    #[expect(clippy::new_without_default, reason = "it reads a clock; no value is the default")]
    pub fn new() -> Self {
        Self { origin_nanos: sys::boottime_nanos() }
    }

    pub fn now(&self) -> Instant {
        Instant::from_nanos(sys::boottime_nanos().saturating_sub(self.origin_nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_zero_and_never_goes_back() {
        let clock = Clock::new();
        let first = clock.now();
        let second = clock.now();
        assert!(first <= second);
        assert!(second.nanos() < 60_000_000_000);
    }
}
