//! What goes wrong in a run. It is drawn before the first event, so that a part of it can be left
//! out while the rest stays as it was: so a failing seed is shrunk.

use super::fault::{FaultKind, LASTS};
use super::swarm::{Finale, Swarm, pick};
use crate::net::Machine;
use crate::world::index;
use gabion_types::{Duration, Prng};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Faults begin so long after the volumes are made.
const FIRST: Duration = Duration::from_secs(1);

/// One fault of the schedule. Which machines it means holds for every kind: one kind may use
/// neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// After the volumes were made.
    pub at: Duration,
    pub kind: FaultKind,
    pub lasts: Duration,
    pub one: Machine,
    pub other: Machine,
    /// Decides what else is left to chance.
    pub seed: u64,
}

/// What can be left out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// By its number in the schedule.
    Strike(usize),
    DiskDies,
    Rot,
    Finale,
}

/// A part of what a seed decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Only these go wrong; none given: all.
    pub troubles: Option<BTreeSet<Trouble>>,
    /// Only these guests come; none given: all.
    pub guests: Option<BTreeSet<usize>>,
    /// Where there is one store alone: only its first so many requests.
    pub actions: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trouble is the number of a fault in the schedule, or disk-dies, rot or finale")]
pub struct NotATrouble;

impl Strike {
    /// One after the other for as long as faults go on.
    pub fn draw(
        prng: &mut Prng,
        kinds: &[FaultKind],
        (every, chaos): (Duration, Duration),
        (machines, frail): (usize, &[Machine]),
    ) -> Vec<Self> {
        let mut strikes = Vec::new();
        let mut at = FIRST;
        let twice = u64::try_from(every.as_nanos()).expect("some seconds") * 2;
        while at < chaos && !kinds.is_empty() {
            let mut prng = prng.fork();
            let one = index(prng.below(machines as u64));
            let other = one + 1 + index(prng.below(machines as u64 - 1));
            let one = if frail.is_empty() { one } else { pick(&mut prng, frail) };
            strikes.push(Self {
                at,
                kind: pick(&mut prng, kinds),
                lasts: pick(&mut prng, &LASTS).draw(&mut prng),
                one,
                other: other % machines,
                seed: prng.next_u64(),
            });
            at += Duration::from_nanos(prng.between(1, twice));
        }
        strikes
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, kind, lasts, one, other, .. } = self;
        write!(f, "{:>8.3} s  {:<14} {:<6}", at.as_secs_f64(), kind.name(), named(*one))?;
        write!(f, " {:<6} {:>8.3} s", named(*other), lasts.as_secs_f64())
    }
}

/// As people count machines: from 1.
pub fn named(machine: Machine) -> String {
    format!("node{}", machine + 1)
}

impl Swarm {
    /// All that goes wrong in it.
    pub fn troubles(&self) -> BTreeSet<Trouble> {
        let strikes = (0..self.strikes.len()).map(Trouble::Strike);
        let late = [
            self.disk_dies.then_some(Trouble::DiskDies),
            self.rots.then_some(Trouble::Rot),
            (self.finale != Finale::None).then_some(Trouble::Finale),
        ];
        strikes.chain(late.into_iter().flatten()).collect()
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let disks: Vec<_> = self.disks.iter().map(ToString::to_string).collect();
        let copies: BTreeSet<_> = self.volumes.iter().map(|volume| volume.rf.to_string()).collect();
        let strikes = || self.kept_strikes().map(|(_, strike)| strike);
        let kinds: BTreeSet<_> = strikes().map(|strike| strike.kind.name()).collect();
        let guests = (0..self.guests.len()).filter(|guest| self.has_guest(*guest));
        let kinds: Vec<_> = kinds.into_iter().collect();
        format!(
            "{} nodes with {} disks, {} volumes with {} copies, {} guests, {} faults in {} s ({})",
            self.disks.len(),
            disks.join("+"),
            self.volumes.len(),
            copies.into_iter().collect::<Vec<_>>().join(" or "),
            guests.count(),
            strikes().count(),
            self.chaos.as_secs(),
            if kinds.is_empty() { "none".to_string() } else { kinds.join(", ") },
        )
    }

    /// What is left out stays in its place as if it had not been drawn; numbers do not change.
    pub fn keep(&mut self, part: &Part) {
        if let Some(troubles) = &part.troubles {
            self.disk_dies &= troubles.contains(&Trouble::DiskDies);
            self.rots &= troubles.contains(&Trouble::Rot);
            if !troubles.contains(&Trouble::Finale) {
                self.finale = Finale::None;
            }
        }
        self.part = part.clone();
    }

    /// What strikes, with its number.
    pub fn kept_strikes(&self) -> impl Iterator<Item = (usize, &Strike)> {
        self.strikes.iter().enumerate().filter(|(number, _)| self.has(Trouble::Strike(*number)))
    }

    /// What a part names, and is not there.
    pub fn lacks(&self, part: &Part) -> Vec<String> {
        let all = self.troubles();
        let troubles = part.troubles.iter().flatten().filter(|trouble| !all.contains(trouble));
        let guests = part.guests.iter().flatten().filter(|guest| **guest >= self.guests.len());
        let troubles = troubles.map(|trouble| format!("fault {trouble}"));
        troubles.chain(guests.map(|guest| format!("guest {guest}"))).collect()
    }

    pub fn has_guest(&self, guest: usize) -> bool {
        self.part.guests.as_ref().is_none_or(|guests| guests.contains(&guest))
    }

    fn has(&self, trouble: Trouble) -> bool {
        self.part.troubles.as_ref().is_none_or(|troubles| troubles.contains(&trouble))
    }
}

impl Part {
    /// What to type to have this part: options of `gabion sim run`.
    pub fn options(&self) -> String {
        let list = |items: Vec<String>| match items.is_empty() {
            true => "none".to_string(),
            false => items.join(","),
        };
        let mut options = String::new();
        if let Some(troubles) = &self.troubles {
            let items = troubles.iter().map(ToString::to_string).collect();
            options.push_str(&format!(" --only {}", list(items)));
        }
        if let Some(guests) = &self.guests {
            let items = guests.iter().map(ToString::to_string).collect();
            options.push_str(&format!(" --guests {}", list(items)));
        }
        if let Some(actions) = self.actions {
            options.push_str(&format!(" --actions {actions}"));
        }
        options
    }
}

impl Trouble {
    pub fn is_strike(self) -> bool {
        matches!(self, Self::Strike(_))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strike(number) => write!(f, "{number}"),
            Self::DiskDies => f.write_str("disk-dies"),
            Self::Rot => f.write_str("rot"),
            Self::Finale => f.write_str("finale"),
        }
    }
}

impl FromStr for Trouble {
    type Err = NotATrouble;

    fn from_str(typed: &str) -> Result<Self, NotATrouble> {
        match typed {
            "disk-dies" => Ok(Self::DiskDies),
            "rot" => Ok(Self::Rot),
            "finale" => Ok(Self::Finale),
            number => number.parse().map(Self::Strike).map_err(|_| NotATrouble),
        }
    }
}
