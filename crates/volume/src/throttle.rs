//! How much filling is in flight: as much as guests hardly feel, all of it where nobody asks.

use crate::volume::Volume;
use gabion_types::{Duration, Latencies};

/// So many answers to guests are judged at once: 990 of 1000 took no longer.
const ANSWERS: u64 = 100;
const PERMILLE: u64 = 990;
/// Where they are fewer, those of so many looks are judged: 900 of 1000 took no longer.
const LOOKS_MAX: u32 = 10;
const PERMILLE_OF_FEW: u64 = 900;
/// Still fewer say nothing: whoever is there hardly asks.
const ANSWERS_MIN: u64 = 8;
/// Guests feel it when they wait more than so much longer than without filling. Half of it: the bounds
/// of what is counted are doublings.
const LONGER_PERCENT: u32 = 50;
/// What the mean of the usual moves by, towards each new one.
const WEIGHT: u32 = 8;
/// Never less, or a copy is never whole. Units: bytes.
const LEAST: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Throttle {
    /// What guests wait while nothing is filled, or as little as can be.
    usual: Option<Duration>,
    /// Units: bytes.
    budget: u64,
    /// All answers up to the last judgement.
    judged: Latencies,
    looks: u32,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { usual: None, budget: LEAST, judged: Latencies::default(), looks: 0 }
    }
}

impl Throttle {
    // rule: volume/fills-yield-to-guests
    pub(crate) fn budget(&self, most: u64) -> u64 {
        self.budget.min(most)
    }

    /// Again and again, with all answers to guests since the volume began.
    fn look(&mut self, answers: &Latencies, fills: bool, most: u64) {
        let window = answers.since(&self.judged);
        self.looks += 1;
        let count = window.count();
        if count < ANSWERS && count > 0 && self.looks < LOOKS_MAX {
            return;
        }
        self.judged = *answers;
        self.looks = 0;
        let permille = if count >= ANSWERS { PERMILLE } else { PERMILLE_OF_FEW };
        let slow = window.permille(permille).filter(|_| count >= ANSWERS_MIN);
        if !fills {
            // The next one begins with little.
            self.budget = LEAST;
            self.learn(slow);
            return;
        }
        if self.budget == LEAST && self.usual.is_none() {
            self.usual = slow;
        }
        let limit = self.usual.map(|usual| usual + usual * LONGER_PERCENT / 100);
        let felt = slow.zip(limit).is_some_and(|(slow, limit)| slow > limit);
        self.budget = if felt {
            (self.budget / 2).max(LEAST)
        } else if slow.is_some() {
            (self.budget + self.budget / 8).min(most.max(LEAST))
        } else {
            self.budget.saturating_mul(2).min(most.max(LEAST))
        };
    }

    fn learn(&mut self, slow: Option<Duration>) {
        let Some(slow) = slow else { return };
        let usual = self.usual.unwrap_or(slow);
        let sum = usual.saturating_mul(WEIGHT - 1) + slow;
        self.usual = Some(sum / WEIGHT);
    }
}

impl Volume {
    pub(crate) fn look_at_throttle(&mut self) {
        let answers = self.counts.read_latencies.with(&self.counts.write_latencies);
        let most = self.settings.fill_bytes_in_flight;
        self.throttle.look(&answers, !self.fills.is_empty(), most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;

    struct Guests {
        throttle: Throttle,
        answers: Latencies,
    }

    impl Guests {
        fn new() -> Self {
            Self { throttle: Throttle::default(), answers: Latencies::default() }
        }

        fn look(&mut self, answers: u64, took_us: u64, fills: bool) -> u64 {
            (0..answers).for_each(|_| self.answers.add(Duration::from_micros(took_us)));
            self.throttle.look(&self.answers, fills, MOST);
            self.throttle.budget(MOST)
        }
    }

    // rule: volume/fills-yield-to-guests
    #[test]
    fn it_takes_all_within_a_second_where_nobody_asks() {
        let mut guests = Guests::new();
        assert_eq!(guests.look(0, 0, true), 512 << 10);
        assert_eq!((0..9).map(|_| guests.look(0, 0, true)).last(), Some(MOST));
    }

    // rule: volume/fills-yield-to-guests
    #[test]
    fn it_gives_way_when_guests_wait_twice_as_long_and_comes_back() {
        let mut guests = Guests::new();
        for _ in 0..20 {
            guests.look(500, 400, false);
        }
        let grown = (0..40).map(|_| guests.look(500, 400, true)).last().unwrap();
        assert_eq!(grown, MOST);
        assert_eq!(guests.look(500, 3000, true), MOST / 2);
        let least = (0..20).map(|_| guests.look(500, 3000, true)).last().unwrap();
        assert_eq!(least, LEAST);
        assert!(guests.look(500, 500, true) > LEAST);
    }

    // rule: volume/fills-yield-to-guests
    #[test]
    fn what_is_usual_is_learned_with_little_in_flight_if_not_before() {
        let mut guests = Guests::new();
        assert!(guests.look(500, 400, true) > LEAST);
        assert_eq!(guests.look(500, 3000, true), LEAST);
    }

    // rule: volume/fills-yield-to-guests
    #[test]
    fn few_answers_are_waited_for_but_not_for_ever() {
        let mut guests = Guests::new();
        for _ in 0..9 {
            assert_eq!(guests.look(1, 400, true), LEAST);
        }
        assert!(guests.look(1, 400, true) > LEAST);
        let grown = (0..600).map(|_| guests.look(1, 400, true)).last().unwrap();
        assert_eq!(grown, MOST);
        let slow = (0..10).map(|_| guests.look(1, 3000, true)).last().unwrap();
        assert_eq!(slow, MOST / 2, "a guest that asks ten times a second is heard, too");
    }
}
