//! A node that finds itself silent in its own map says that it is back.
//!
//! The first return is taken at once. From the second within ten minutes on it waits, 10 s and then
//! twice as long each time: a node that comes and goes costs more than one that is away.

use gabion_types::{Duration, Instant};

const MEMORY: Duration = Duration::from_secs(600);
const WAIT_LEAST: Duration = Duration::from_secs(10);
const WAIT_MOST: Duration = Duration::from_secs(80);
/// A `Revive` that was refused is tried again after so long.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Revival {
    state: State,
    last: Option<Instant>,
    /// What the next return waits, if it comes within `MEMORY` of the last.
    wait: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Alive,
    Waiting {
        until: Instant,
    },
    Proposed,
}

impl Revival {
    /// Whether to propose it now. `silent`: by the own map.
    pub(super) fn is_due(&mut self, now: Instant, silent: bool) -> bool {
        if !silent {
            if !matches!(self.state, State::Proposed) {
                self.state = State::Alive;
            }
            return false;
        }
        if matches!(self.state, State::Alive) {
            self.state = State::Waiting { until: now + self.next_wait(now) };
        }
        let State::Waiting { until } = self.state else { return false };
        let due = until <= now;
        if due {
            self.state = State::Proposed;
            self.last = Some(now);
        }
        due
    }

    pub(super) fn on_proposed(&mut self, now: Instant) {
        self.state = State::Waiting { until: now + AGAIN };
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Alive | State::Proposed => None,
        }
    }

    fn next_wait(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now.since(last) > MEMORY) {
            self.wait = Duration::ZERO;
        }
        let wait = self.wait;
        self.wait = (wait * 2).clamp(WAIT_LEAST, WAIT_MOST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_first_return_is_taken_at_once_and_later_ones_wait() {
        let mut revival = Revival::default();
        assert!(!revival.is_due(at(0), false));
        assert!(revival.is_due(at(1), true));
        assert!(!revival.is_due(at(1), true), "it is under way");
        revival.on_proposed(at(2));
        assert!(!revival.is_due(at(2), false));
        let mut due = |from: u64| {
            assert!(!revival.is_due(at(from), true));
            let until = revival.next_deadline().unwrap();
            assert!(revival.is_due(until, true));
            revival.on_proposed(until);
            assert!(!revival.is_due(until, false));
            until.since(at(from)).as_secs()
        };
        assert_eq!([due(30), due(60), due(120), due(240), due(480)], [10, 20, 40, 80, 80]);
        assert!(revival.is_due(at(560 + 601), true), "long ago is forgotten");
    }

    #[test]
    fn a_refused_return_is_tried_again() {
        let mut revival = Revival::default();
        assert!(revival.is_due(at(1), true));
        revival.on_proposed(at(2));
        assert!(!revival.is_due(at(2), true));
        assert!(revival.is_due(at(3), true));
    }
}
