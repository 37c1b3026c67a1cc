//! The phases of a run, and what has to hold at the end of each.

use super::guest::Guest;
use super::machine::{Host, State};
use super::swarm::{Finale, GuestPlan, KEPT_BLOCKS};
use super::{Cluster, Event};
use crate::invariants::{replicas_equal, whole};
use crate::workload::{Mix, OpKind, OpPlan};
use crate::world::{Spread, Who};
use gabion_types::{Duration, Instant};

/// How often the end of a phase is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A cluster makes its volumes within.
const MAKING: Duration = Duration::from_secs(60);
/// Everything is whole again within, once nothing goes wrong any more.
const HEALING: Duration = Duration::from_secs(300);
/// The last requests are answered within.
const DRAINING: Duration = Duration::from_secs(60);
const READING: Duration = Duration::from_secs(120);
const STOPPING: Duration = Duration::from_secs(60);
/// What the owners still want of the map comes within: then nobody takes a copy away any more for
/// what is over.
const QUIET: Duration = Duration::from_secs(3);
/// Where copies are looked through all the time, the owners always want something: then it is waited
/// for so long only, which is more than the longest `member.slow` and `fence.wait`.
const NEVER_QUIET: Duration = Duration::from_secs(15);
/// After the last trouble guests go on a little while.
const GOES_ON: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Making,
    /// Things go wrong.
    Chaos {
        until: Instant,
    },
    /// Nothing goes wrong any more; guests go on.
    Healing {
        since: Instant,
    },
    /// Guests ask nothing new.
    Draining {
        since: Instant,
    },
    /// Every block is read once more.
    Reading {
        since: Instant,
    },
    /// Guests are gone, and what they held with them.
    Leaving {
        since: Instant,
    },
    /// All machines stop; then they start again.
    Stopping {
        since: Instant,
    },
    End,
}

impl Phase {
    pub fn is_end(self) -> bool {
        self == Self::End
    }

    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Leaving { .. })
    }

    pub fn is_stopping(self) -> bool {
        matches!(self, Self::Stopping { .. })
    }
}

impl Cluster {
    /// Once faults are over guests do not hang up: they would wake what was forgotten.
    pub(super) fn is_chaos(&self) -> bool {
        matches!(self.phase, Phase::Chaos { .. })
    }

    /// Nothing goes wrong from here on.
    pub(super) fn phase_is_over(&self) -> bool {
        !matches!(self.phase, Phase::Chaos { .. })
    }

    pub(super) fn look(&mut self) {
        let now = self.queue.now();
        self.queue.after(LOOK_EVERY, Event::Look);
        self.watch();
        match self.phase {
            Phase::Making => self.look_making(now),
            Phase::Chaos { until } if now >= until => {
                if !self.is_whole() {
                    self.story.mended_at = Some(now);
                }
                self.mend_all();
                self.tell(Who::World, "all faults are over");
                self.give_back();
                self.enter(Phase::Healing { since: now });
            }
            Phase::Chaos { .. } => {
                self.is_whole();
            }
            Phase::End => {}
            Phase::Healing { since } => self.look_healing(now, since),
            Phase::Draining { since } => self.look_draining(now, since),
            Phase::Reading { since } => self.look_reading(now, since),
            Phase::Leaving { since } => self.look_leaving(now, since),
            Phase::Stopping { since } => self.look_stopping(now, since),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.trace
            .note_with(self.queue.now(), Who::World, "phase", [0, 0, 0], || format!("{phase:?}"));
        self.phase = phase;
    }

    fn look_making(&mut self, now: Instant) {
        if self.operator.is_done() && self.volumes_are_ready() {
            let come: Vec<_> =
                (0..self.guests.len()).filter(|guest| self.swarm.has_guest(*guest)).collect();
            for guest in come {
                let wait = Spread::new(0, 100_000).draw(&mut self.prng);
                self.schedule_act(guest, wait);
            }
            self.enter(Phase::Chaos { until: now + self.swarm.chaos });
            for (number, strike) in self.swarm.kept_strikes() {
                self.queue.after(strike.at, Event::Strike { number });
            }
        } else if now.since(Instant::ZERO) > MAKING {
            let text = format!("volumes are not made; last answer {:?}", self.last_refusal);
            self.break_promise("liveness", text);
        }
    }

    fn look_healing(&mut self, now: Instant, since: Instant) {
        self.replace_bad_disks();
        let missing = self.missing().or_else(|| self.not_given_back());
        self.is_whole();
        let most = if self.swarm.scrubs() { NEVER_QUIET } else { HEALING / 2 };
        let calm = now.since(since) > most || self.consensus.is_quiet(now, QUIET);
        if missing.is_none() && now.since(since) > GOES_ON && calm {
            if self.add_disk() || self.use_all_again() || self.let_a_disk_die() {
                self.enter(Phase::Healing { since: now });
                return;
            }
            self.guests.iter_mut().for_each(|guest| guest.busy = false);
            self.enter(Phase::Draining { since: now });
        } else if now.since(since) > HEALING {
            let text = missing.unwrap_or_default();
            let whole = whole::missing(&self.map).is_none();
            let promise = if whole { "liveness" } else { "whole" };
            self.break_promise(promise, format!("not whole after {HEALING:?}: {text}"));
        }
    }

    /// Notes since when it is, too.
    fn is_whole(&mut self) -> bool {
        let whole = self.missing().is_none();
        match (whole, self.story.whole_at) {
            (true, None) => {
                self.story.whole_at = Some(self.queue.now());
                self.tell(Who::World, "every copy is there");
            }
            (true, Some(_)) => {}
            (false, _) => self.story.whole_at = None,
        }
        whole
    }

    /// What keeps the cluster from being whole.
    fn missing(&self) -> Option<String> {
        let wrong = |host: &Host| host.has_process() == host.removed;
        if let Some(machine) =
            self.machines.iter().position(|host| !host.is_running() && !host.removed)
        {
            return Some(format!("machine {machine} does not run"));
        }
        if let Some(machine) = self.machines.iter().position(wrong) {
            return Some(format!("machine {machine} was removed, and runs"));
        }
        let ends = |host: &Host| host.stopping || host.drained;
        if let Some(machine) = self.machines.iter().position(ends) {
            return Some(format!("machine {machine} does not stop"));
        }
        if !self.operator.is_done() {
            return Some("the operator is not done".to_string());
        }
        whole::missing(&self.map)
    }

    fn look_draining(&mut self, now: Instant, since: Instant) {
        if self.guests.iter().all(Guest::is_idle) {
            self.rot_something();
            self.begin_reading();
            self.enter(Phase::Reading { since: now });
        } else if now.since(since) > DRAINING {
            self.break_promise("liveness", format!("held requests: {}", self.held()));
        }
    }

    fn held(&self) -> String {
        let waiting = self.guests.iter().enumerate().filter(|(_, guest)| !guest.is_idle());
        waiting.map(|(number, guest)| format!("guest {number} {:?}; ", guest.state)).collect()
    }

    /// A reader for each volume, through any machine.
    fn begin_reading(&mut self) {
        self.go_through(OpKind::Read, 0);
    }

    /// Volumes that are promised more than there is keep what has room on few disks; guests write
    /// nothing new.
    fn give_back(&mut self) {
        if self.swarm.over_committed {
            self.guests.iter_mut().for_each(|guest| guest.busy = false);
            self.go_through(OpKind::Trim, KEPT_BLOCKS * gabion_types::BLOCK_BYTES);
        }
    }

    fn not_given_back(&self) -> Option<String> {
        let trims = |plan: &OpPlan| plan.kind == OpKind::Trim;
        let gives = |guest: &Guest| !guest.busy && guest.plans().any(trims);
        let gives = self.guests.iter().any(gives);
        gives.then(|| format!("not all is given back: {}", self.held()))
    }

    /// What has no room now may have it when others have given back theirs.
    pub(super) fn trim_again(&mut self, guest: usize, plan: OpPlan) {
        let guest = &mut self.guests[guest];
        if plan.kind == OpKind::Trim && !guest.busy {
            guest.again.push_back(plan);
        }
    }

    /// One more guest for each volume, which does this all over it, from so many bytes on.
    fn go_through(&mut self, kind: OpKind, from: u64) {
        let unit_bytes = self.oracle.unit_bytes();
        let part = u64::from(self.swarm.limits.part_bytes) / unit_bytes;
        for volume in 0..self.swarm.volumes.len() {
            let units = self.swarm.volumes[volume].size_bytes / unit_bytes;
            let from = (from / unit_bytes).min(units);
            let mut prng = self.prng.fork();
            let firsts = (from..units).step_by(crate::world::index(part));
            let asks = firsts.map(|first| {
                let count = part.min(units - first);
                OpPlan { kind, first, count }
            });
            let plan = GuestPlan {
                volume,
                mix: Mix::draw(&mut prng, units, unit_bytes, part * unit_bytes),
                depth: 8,
                think: Spread::new(1, 20),
                patience: READING * 2,
                forgets: false,
                nbd: None,
                asks: Some(asks.collect()),
            };
            self.guests.push(Guest::new(plan, prng));
            self.schedule_act(self.guests.len() - 1, Duration::from_micros(1));
        }
    }

    fn look_reading(&mut self, now: Instant, since: Instant) {
        if !self.guests.iter().all(Guest::is_idle) {
            if now.since(since) > READING {
                self.break_promise("liveness", format!("data is not readable: {}", self.held()));
            }
            return;
        }
        if self.missing().is_some() {
            self.enter(Phase::Healing { since: now });
            return;
        }
        let equal = replicas_equal::check(&self.map, &self.places());
        if let Err(broken) = equal.and_then(|()| self.check_leaks()) {
            // What is not settled yet may be on its way.
            if now.since(since) > READING {
                self.break_promise(broken.promise, broken.text);
            }
            return;
        }
        (0..self.guests.len()).for_each(|guest| self.hang_up(guest));
        self.enter(Phase::Leaving { since: now });
    }

    fn look_leaving(&mut self, now: Instant, since: Instant) {
        match self.check_empty() {
            Ok(()) => self.next_finale(now),
            Err(broken) if now.since(since) > READING => {
                self.break_promise(broken.promise, broken.text);
            }
            // What is under way without a guest may go on for a moment.
            Err(_) => {}
        }
    }

    fn next_finale(&mut self, now: Instant) {
        let finale = std::mem::replace(&mut self.swarm.finale, Finale::None);
        self.tell(
            Who::World,
            match finale {
                Finale::None => "every block was read once more, all copies are equal",
                Finale::Stop => "all machines stop cleanly and come back",
                Finale::PowerCut => "all machines lose power and come back",
                Finale::Kill => "all processes are killed and come back",
            },
        );
        match finale {
            Finale::None => self.enter(Phase::End),
            Finale::Stop => {
                (0..self.machines.len()).for_each(|machine| self.stop(machine));
                self.enter(Phase::Stopping { since: now });
            }
            Finale::PowerCut => {
                let mut prng = self.damage_prng.fork();
                self.cut_power_all(&mut prng);
                self.enter(Phase::Stopping { since: now });
            }
            Finale::Kill => {
                (0..self.machines.len()).for_each(|machine| self.kill(machine));
                self.enter(Phase::Stopping { since: now });
            }
        }
    }

    fn look_stopping(&mut self, now: Instant, since: Instant) {
        let down = |state: &State| matches!(state, State::Off | State::Down);
        let all_down = self.machines.iter().all(|host| down(&host.state));
        if all_down {
            self.mend_all();
            self.enter(Phase::Healing { since: now });
        } else if now.since(since) > STOPPING {
            self.break_promise("liveness", "a machine does not stop".to_string());
        }
    }
}
