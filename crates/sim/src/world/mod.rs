//! What every simulated world stands on: one queue of events, clocks, chance and a trace.

pub mod clock;
pub mod queue;
pub mod spread;
pub mod trace;

pub use clock::Clock;
pub use queue::Queue;
pub use spread::Spread;
pub use trace::{Trace, Who};

/// What one look brings was there at nearly the same moment. Units: nanoseconds.
pub const TURN_NS_MOST: u64 = 30_000;

/// As an index into a slice; what is counted here fits the memory.
pub fn index(value: u64) -> usize {
    usize::try_from(value).expect("what the simulator counts fits its memory")
}
