//! Which proposals of a node were executed: each once, and a repeat gets the first outcome.

use gabion_types::{Outcome, RefusedChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Numbers of an incarnation whose outcomes are remembered. A node has fewer proposals in flight.
/// One that comes later than so many newer ones is refused, executed or not.
pub const EXECUTED_MAX: u64 = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Executed {
    /// Every number below is answered as a repeat.
    floor: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

impl Executed {
    /// The outcome of a number that must not be executed (again).
    pub(crate) fn outcome(&self, number: u64) -> Option<Outcome> {
        if let Some(outcome) = self.outcomes.get(&number) {
            return Some(*outcome);
        }
        (number < self.floor).then_some(Outcome::Refused(RefusedChange::Invalid))
    }

    pub(crate) fn record(&mut self, number: u64, outcome: Outcome) {
        self.outcomes.insert(number, outcome);
        self.floor = self.floor.max(number.saturating_sub(EXECUTED_MAX - 1));
        self.outcomes = self.outcomes.split_off(&self.floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: cluster/each-proposal-once
    #[test]
    fn a_number_is_known_until_it_is_too_old_to_tell() {
        let mut executed = Executed::default();
        assert_eq!(executed.outcome(7), None);
        executed.record(7, Outcome::Done);
        assert_eq!(executed.outcome(7), Some(Outcome::Done));
        assert_eq!(executed.outcome(6), None, "a hole may still be filled");
        executed.record(7 + EXECUTED_MAX, Outcome::Done);
        assert_eq!(executed.outcome(7), Some(Outcome::Refused(RefusedChange::Invalid)));
        assert_eq!(executed.outcome(8), None);
        executed.record(u64::MAX, Outcome::Done);
        assert_eq!(executed.outcome(8), Some(Outcome::Refused(RefusedChange::Invalid)));
    }
}
