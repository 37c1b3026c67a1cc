//! What a run is asked for, and what it says.

use crate::cluster::{Told, Wait};
use crate::oracle::Broken;
use crate::world::trace::Line;
use gabion_types::{Duration, Instant};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub seed: u64,
    /// Keep every line of the trace, with its details.
    pub watch: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    /// Over everything that happened: equal for equal seeds.
    pub hash: u64,
    pub events: u64,
    pub virtual_time: Duration,
    /// Guests' operations that were answered and checked.
    pub operations: u64,
    /// Faults injected, and other things worth counting, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    pub broken: Option<Broken>,
    /// What people want to hear of it, in order.
    pub story: Vec<Told>,
    /// The longest wait of each guest.
    pub waits: Vec<Wait>,
    /// When faults were over, and when every copy was there again.
    pub mended_at: Option<Instant>,
    pub whole_at: Option<Instant>,
    /// The last lines, or all of them when watched.
    pub lines: Vec<Line>,
}

impl Report {
    /// One line for a table of many.
    pub fn summary(&self) -> String {
        let result = self
            .broken
            .as_ref()
            .map_or("ok".to_string(), |broken| broken.to_string().chars().take(300).collect());
        format!(
            "seed {} hash {:016x} events {} virtual {:.1}s operations {} {result}",
            self.seed,
            self.hash,
            self.events,
            self.virtual_time.as_secs_f64(),
            self.operations,
        )
    }
}
