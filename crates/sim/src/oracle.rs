//! What a read may return: the judge of `acked-survives`, `one-register` and `no-silent-corruption`.
//!
//! Every unit of a volume (512 bytes or a block) is a register, every write to it has a value of its
//! own. Source: Gibbons and Korach, Testing Shared Memories: with unique values a history is
//! linearizable iff no two values come each before the other, where A comes before B when an
//! operation on A (its write or a read of it) ended before one on B began.
//!
//! A write without an answer may have happened or not; it counts from the first read of it. One whose
//! guest is gone can't happen after another guest shook hands: from there on it is bounded.

mod register;

use crate::content::{Found, Label};
use gabion_types::{BLOCK_BYTES, Instant};
use register::{Register, Value, Verdict};
use std::collections::BTreeSet;
use std::fmt;

/// A write (or zero, or trim) of the workload; its data carry it as their label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The tag of DESIGN section 1, or the name of an invariant.
    pub promise: &'static str,
    pub text: String,
}

/// Units of one volume, first and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    pub volume: usize,
    pub first: u64,
    pub count: u64,
}

/// What was written and not answered, by its unit.
#[derive(Clone, Debug, Default)]
pub struct Unanswered(Vec<(u64, Value)>);

/// An operation that may still be in progress; keeps what it may yet return from being forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open(Instant, u64);

#[derive(Debug)]
pub struct Oracle {
    unit_bytes: u64,
    volumes: Vec<Vec<Register>>,
    /// What each covers, by its number; the first is none.
    writes: Vec<Units>,
    open: BTreeSet<Open>,
    opened: u64,
    pub units_checked: u64,
    pub zeros_unclear: u64,
}

impl Oracle {
    /// Units of 512 or 4096 bytes.
    pub fn new(unit_bytes: u64) -> Self {
        let none = Units { volume: 0, first: 0, count: 0 };
        Self {
            unit_bytes,
            volumes: Vec::new(),
            writes: vec![none],
            open: BTreeSet::new(),
            opened: 0,
            units_checked: 0,
            zeros_unclear: 0,
        }
    }

    pub fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    pub fn writes(&self) -> usize {
        self.writes.len() - 1
    }

    /// A new volume, all zeros.
    pub fn add_volume(&mut self, size_bytes: u64) -> usize {
        let units = crate::world::index(size_bytes / self.unit_bytes);
        self.volumes.push(vec![Register::default(); units]);
        self.volumes.len() - 1
    }

    pub fn units(&self, volume: usize) -> u64 {
        self.volumes[volume].len() as u64
    }

    pub fn begin(&mut self, now: Instant) -> Open {
        self.opened += 1;
        let open = Open(now, self.opened);
        self.open.insert(open);
        open
    }

    /// It was answered, or nobody waits for it any more.
    pub fn end(&mut self, open: Open) {
        self.open.remove(&open);
    }

    pub fn write(&mut self, units: Units, zeros: bool, now: Instant) -> WriteId {
        let id = WriteId(self.writes.len() as u64);
        self.writes.push(units);
        let horizon = self.horizon(now);
        for register in self.registers(units) {
            register.begin(id, zeros, now, horizon);
        }
        id
    }

    /// Errors: the acknowledged write contradicts what was read of it before.
    pub fn acknowledged(&mut self, id: WriteId, now: Instant) -> Result<(), Broken> {
        let units = self.writes[crate::world::index(id.0)];
        let verdicts =
            self.registers(units).iter_mut().map(|register| register.acknowledge(id, now));
        let bad = verdicts.zip(units.first..).find_map(|(verdict, unit)| Some((verdict?, unit)));
        bad.map_or(Ok(()), |(verdict, unit)| Err(self.broken(units.volume, unit, verdict)))
    }

    /// It is known that it did not happen and never will.
    pub fn void(&mut self, id: WriteId) {
        let units = self.writes[crate::world::index(id.0)];
        self.registers(units).iter_mut().for_each(|register| register.void(id));
    }

    /// It does not happen after `at` any more.
    pub fn bound(&mut self, id: WriteId, at: Instant) {
        let units = self.writes[crate::world::index(id.0)];
        self.registers(units).iter_mut().for_each(|register| register.bound(id, at));
    }

    /// Until it is answered it may happen a second time: it is open while its volume changes owner,
    /// and the next owner can't know whether the last one did it.
    pub fn may_repeat(&mut self, id: WriteId) {
        let units = self.writes[crate::world::index(id.0)];
        self.registers(units).iter_mut().for_each(|register| register.may_repeat(id));
    }

    pub fn unanswered(&self, units: Units) -> Unanswered {
        let first = crate::world::index(units.first);
        let all =
            (units.first..units.first + units.count).zip(&self.volumes[units.volume][first..]);
        let values = all.flat_map(|(unit, one)| one.unanswered().map(move |value| (unit, value)));
        Unanswered(values.collect())
    }

    /// A copy of then is back, and may have some of that, also where another value was read since: of the
    /// copy that had that one nothing is left.
    pub fn may_return(&mut self, volume: usize, unanswered: Unanswered) {
        for (unit, value) in unanswered.0 {
            self.volumes[volume][crate::world::index(unit)].may_return(value);
        }
    }

    /// Of these an older copy is all that is left (`whole`), or one that lacks some.
    pub fn forget(&mut self, units: Units, whole: bool, now: Instant) {
        self.registers(units).iter_mut().for_each(|register| register.forget(whole, now));
    }

    /// Whether a read of them that began then may be told that one of them is lost.
    pub fn may_be_lost(&mut self, units: Units, began: Instant) -> bool {
        self.registers(units).iter().any(|register| register.may_be_lost(began))
    }

    /// A read that began and ended then, and what it found.
    pub fn read(
        &mut self,
        units: Units,
        found: &[Found],
        began: Instant,
        ended: Instant,
    ) -> Result<(), Broken> {
        self.units_checked += found.len() as u64;
        self.check_torn(units, found)?;
        for (unit, found) in (units.first..).zip(found) {
            let covers = |label: u64| {
                let covered = self.writes.get(crate::world::index(label));
                covered.is_some_and(|write| write.volume == units.volume && write.has(unit))
            };
            let strange =
                matches!(found, Found::Label(Label(label)) if *label != 0 && !covers(*label));
            let register = &mut self.volumes[units.volume][crate::world::index(unit)];
            let verdict = match found {
                Found::Garbage => Some(Verdict::Garbage),
                Found::Label(Label(label)) if strange => {
                    Some(Verdict::Gone { this: WriteId(*label) })
                }
                Found::Label(Label::ZEROS) => match register.read_zeros(began, ended) {
                    Ok(clear) => {
                        self.zeros_unclear += u64::from(!clear);
                        None
                    }
                    Err(verdict) => Some(verdict),
                },
                Found::Label(Label(label)) => register.read(WriteId(*label), began, ended),
            };
            if let Some(verdict) = verdict {
                return Err(self.broken(units.volume, unit, verdict));
            }
        }
        Ok(())
    }

    /// Two writes that both cover two units of a block can't each be the last on one of them.
    fn check_torn(&self, units: Units, found: &[Found]) -> Result<(), Broken> {
        let per_block = BLOCK_BYTES / self.unit_bytes;
        if per_block == 1 {
            return Ok(());
        }
        let mut block: Vec<(u64, WriteId)> = Vec::new();
        for (unit, found) in (units.first..).zip(found) {
            if unit.is_multiple_of(per_block) {
                block.clear();
            }
            let Found::Label(Label(label)) = found else {
                continue;
            };
            let Some(write) = self.writes.get(crate::world::index(*label)) else {
                continue;
            };
            if *label == 0 {
                continue;
            }
            for (other, wrote) in &block {
                let covers = self.writes[crate::world::index(wrote.0)];
                if wrote.0 != *label && write.has(*other) && covers.has(unit) {
                    let verdict =
                        Verdict::Torn { unit: *other, this: WriteId(*label), other: *wrote };
                    return Err(self.broken(units.volume, unit, verdict));
                }
            }
            block.push((unit, WriteId(*label)));
        }
        Ok(())
    }

    fn registers(&mut self, units: Units) -> &mut [Register] {
        let first = crate::world::index(units.first);
        let end = first + crate::world::index(units.count);
        &mut self.volumes[units.volume][first..end]
    }

    /// Before this moment nothing began that is still in progress.
    fn horizon(&self, now: Instant) -> Instant {
        self.open.first().map_or(now, |open| open.0)
    }

    fn broken(&self, volume: usize, unit: u64, verdict: Verdict) -> Broken {
        let history = self.volumes[volume][crate::world::index(unit)].history();
        let text = format!("volume {volume} unit {unit}: {verdict}; it knows of {history}");
        Broken { promise: verdict.promise(), text }
    }
}

impl Units {
    fn has(&self, unit: u64) -> bool {
        self.first <= unit && unit < self.first + self.count
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.text)
    }
}

#[cfg(test)]
mod tests;
