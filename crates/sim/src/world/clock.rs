//! A node's own clock, as it stands to the world's.

use gabion_types::{Duration, Instant};

/// Parts in a million that make up one second of the world.
const MILLION: u64 = 1_000_000;

/// Never goes back, may run fast or slow, and may stand still or jump forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The world's time and the node's at the last change of rate.
    world: Instant,
    local: Instant,
    /// Local nanoseconds a million of the world's.
    rate_ppm: u64,
}

impl Clock {
    pub fn new(world: Instant, local: Instant, rate_ppm: u64) -> Self {
        assert!(rate_ppm > 0, "a clock that stands still never fires a timer");
        Self { world, local, rate_ppm }
    }

    pub fn local(&self, world: Instant) -> Instant {
        let passed = u128::from(world.nanos().saturating_sub(self.world.nanos()));
        let scaled = passed * u128::from(self.rate_ppm) / u128::from(MILLION);
        self.local + Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// The first moment of the world at which this clock shows `local` or more.
    pub fn world(&self, local: Instant) -> Instant {
        let ahead = u128::from(local.nanos().saturating_sub(self.local.nanos()));
        let scaled = (ahead * u128::from(MILLION)).div_ceil(u128::from(self.rate_ppm));
        self.world + Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// The clock jumps forward, as after a virtual machine was resumed.
    pub fn jump(&mut self, world: Instant, forward: Duration) {
        *self = Self::new(world, self.local(world) + forward, self.rate_ppm);
    }

    /// The clock stood still for so long.
    pub fn hold_back(&mut self, world: Instant, stood: Duration) {
        let local = self.local(world).nanos();
        let stood = u64::try_from(stood.as_nanos()).unwrap_or(u64::MAX);
        let local = Instant::from_nanos(local.saturating_sub(stood));
        *self = Self::new(world, local, self.rate_ppm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_at_its_local_time() {
        for rate_ppm in [909_091, 1_000_000, 1_099_999] {
            let clock = Clock::new(Instant::from_nanos(77), Instant::from_nanos(5000), rate_ppm);
            for ahead in [1, 999, 1_000_000_007] {
                let deadline = Instant::from_nanos(5000 + ahead);
                let world = clock.world(deadline);
                assert!(clock.local(world) >= deadline);
                assert!(clock.local(Instant::from_nanos(world.nanos() - 2)) < deadline);
            }
        }
    }

    #[test]
    fn a_jump_keeps_the_rate() {
        let mut clock = Clock::new(Instant::ZERO, Instant::ZERO, 1_000_000);
        clock.jump(Instant::from_nanos(10), Duration::from_nanos(100));
        assert_eq!(clock.local(Instant::from_nanos(11)), Instant::from_nanos(111));
    }
}
