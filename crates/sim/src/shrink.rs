//! Makes a failing seed small: leaves out faults, then guests, as long as the same promise breaks; of
//! a store's run all but its first requests.
//!
//! Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input (ddmin).

use crate::caught;
use crate::cluster::{self, Part, Swarm};
use crate::many::World;
use crate::oracle::Broken;
use crate::report::Options;
use crate::solo;
use std::collections::BTreeSet;
use std::time::Instant;

/// How much may be spent on it.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub runs_max: u32,
    pub until: Instant,
}

/// The smallest part that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    pub part: Part,
    pub runs: u32,
    /// The budget ended before nothing more could be left out.
    pub cut_short: bool,
}

/// A part of what a seed decides that still breaks what the whole of it breaks.
pub fn shrink(world: World, seed: u64, broken: &Broken, budget: Budget) -> Shrunk {
    let run = |part: &Part| {
        let report = world.run(Options { seed, watch: false }, part);
        report.broken.is_some_and(|other| is_same(broken, &other))
    };
    let mut search = Search { run: &run, budget, runs: 0, cut_short: false };
    let part = match world {
        World::Cluster => search.smallest_schedule(&cluster::plan(seed)),
        World::Store => search.shortest(solo::plan(seed).actions),
    };
    Shrunk { part, runs: search.runs, cut_short: search.cut_short }
}

/// The same promise; of a panic, the same place.
fn is_same(one: &Broken, other: &Broken) -> bool {
    let place = |broken: &Broken| {
        let panicked = broken.promise == caught::PROMISE;
        panicked.then(|| broken.text.split(": ").next().map(str::to_owned))
    };
    one.promise == other.promise && place(one) == place(other)
}

struct Search<'a> {
    run: &'a dyn Fn(&Part) -> bool,
    budget: Budget,
    runs: u32,
    cut_short: bool,
}

impl Search<'_> {
    /// First fewer faults, then fewer guests.
    fn smallest_schedule(&mut self, swarm: &Swarm) -> Part {
        let of = |troubles| Part { troubles: Some(troubles), ..Part::default() };
        let part = of(self.smallest(swarm.troubles(), of));
        let guests = (0..swarm.guests.len()).collect();
        let guests = self.smallest(guests, |guests| Part { guests: Some(guests), ..part.clone() });
        Part { guests: (guests.len() < swarm.guests.len()).then_some(guests), ..part }
    }

    /// Requests come one after the other: the first that have to be there. Halves what is left
    /// between what is enough and what is not.
    fn shortest(&mut self, all: u64) -> Part {
        let of = |actions| Part { actions: Some(actions), ..Part::default() };
        let (mut too_few, mut enough) = (0, all);
        while too_few + 1 < enough {
            let half = u64::midpoint(too_few, enough);
            if self.fails(&of(half)) {
                enough = half;
            } else {
                too_few = half;
            }
        }
        of(enough)
    }

    /// Leaves out halves, quarters and so on, down to single items.
    fn smallest<T: Ord + Copy>(
        &mut self,
        all: BTreeSet<T>,
        part: impl Fn(BTreeSet<T>) -> Part,
    ) -> BTreeSet<T> {
        let mut kept: Vec<T> = all.into_iter().collect();
        if kept.is_empty() || self.fails(&part(BTreeSet::new())) {
            return BTreeSet::new();
        }
        let mut size = kept.len().div_ceil(2);
        loop {
            let mut start = 0;
            let mut smaller = false;
            while start < kept.len() {
                let end = (start + size).min(kept.len());
                let rest: Vec<T> = [&kept[..start], &kept[end..]].concat();
                if !rest.is_empty() && self.fails(&part(rest.iter().copied().collect())) {
                    kept = rest;
                    smaller = true;
                } else {
                    start = end;
                }
            }
            if size == 1 && !smaller || self.cut_short {
                return kept.into_iter().collect();
            }
            size = size.div_ceil(2).min(kept.len());
        }
    }

    fn fails(&mut self, part: &Part) -> bool {
        if self.runs >= self.budget.runs_max || Instant::now() >= self.budget.until {
            self.cut_short = true;
            return false;
        }
        self.runs += 1;
        (self.run)(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Trouble;
    use std::time::Duration;

    fn search(run: &dyn Fn(&Part) -> bool, runs_max: u32) -> (BTreeSet<Trouble>, u32, bool) {
        let budget = Budget { runs_max, until: Instant::now() + Duration::from_secs(60) };
        let mut search = Search { run, budget, runs: 0, cut_short: false };
        let all = (0..40).map(Trouble::Strike).chain([Trouble::Rot, Trouble::Finale]).collect();
        let of = |troubles| Part { troubles: Some(troubles), ..Part::default() };
        let left = search.smallest(all, of);
        (left, search.runs, search.cut_short)
    }

    /// What fails only with all of these.
    fn needs(wanted: &[Trouble]) -> impl Fn(&Part) -> bool {
        |part| {
            let troubles = part.troubles.as_ref().expect("always given");
            wanted.iter().all(|trouble| troubles.contains(trouble))
        }
    }

    #[test]
    fn only_what_is_needed_is_left() {
        let wanted = [Trouble::Strike(3), Trouble::Strike(31), Trouble::Finale];
        let (left, runs, cut_short) = search(&needs(&wanted), 200);
        assert_eq!((left, cut_short), (wanted.into(), false));
        assert!(runs < 100, "{runs} runs");
        assert_eq!(search(&|_| true, 200).0, BTreeSet::new());
    }

    #[test]
    fn the_shortest_run_is_found() {
        let run = |part: &Part| part.actions.is_some_and(|actions| actions >= 123);
        let budget = Budget { runs_max: 50, until: Instant::now() + Duration::from_secs(60) };
        let mut search = Search { run: &run, budget, runs: 0, cut_short: false };
        assert_eq!(search.shortest(6000).actions, Some(123));
        assert!(search.runs < 14, "{} runs", search.runs);
    }

    #[test]
    fn it_ends_with_its_budget() {
        let wanted = [Trouble::Strike(3), Trouble::Strike(31)];
        let (left, runs, cut_short) = search(&needs(&wanted), 4);
        assert!(cut_short && runs == 4 && left.len() > 2);
        assert!(wanted.iter().all(|trouble| left.contains(trouble)));
    }

    #[test]
    fn panics_are_told_apart_by_their_place() {
        let broken = |promise, text: &str| Broken { promise, text: text.to_string() };
        let one = broken(caught::PROMISE, "at a.rs:3:1: no slot 7");
        assert!(is_same(&one, &broken(caught::PROMISE, "at a.rs:3:1: no slot 9")));
        assert!(!is_same(&one, &broken(caught::PROMISE, "at b.rs:3:1: no slot 7")));
        assert!(is_same(&broken("liveness", "a"), &broken("liveness", "b")));
    }
}
