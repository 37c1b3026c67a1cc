//! How long things take: mostly short, now and then long.

use gabion_types::{Duration, Prng};

/// Units: microseconds. One draw in `tail_of` lies between `high` and `tail`, the others between
/// `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub low_us: u64,
    pub high_us: u64,
    pub tail_us: u64,
    pub tail_of: u64,
}

impl Spread {
    pub const fn new(low_us: u64, high_us: u64) -> Self {
        Self { low_us, high_us, tail_us: high_us, tail_of: u64::MAX }
    }

    #[must_use]
    pub const fn with_tail(self, tail_us: u64, tail_of: u64) -> Self {
        Self { tail_us, tail_of, ..self }
    }

    /// To the nanosecond, so that two things rarely happen at once.
    pub fn draw(&self, prng: &mut Prng) -> Duration {
        let tail = self.tail_us > self.high_us && prng.chance(1, self.tail_of);
        let (low, high) =
            if tail { (self.high_us, self.tail_us) } else { (self.low_us, self.high_us) };
        Duration::from_nanos(prng.between(low * 1000, high * 1000))
    }
}
