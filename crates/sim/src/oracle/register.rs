//! One register: the values that it may hold, and when each was seen.

use super::WriteId;
use gabion_types::Instant;
use std::fmt::{self, Write as _};

const NEVER: Instant = Instant::from_nanos(u64::MAX);
/// From so many values on those are looked for that can't be read any more.
const VALUES_BEFORE_PRUNE: usize = 12;

#[derive(Clone, Debug)]
pub(super) struct Register {
    values: Vec<Value>,
    prune_at: usize,
    /// It was zeroed once, after it was made.
    zeroed: bool,
    forgotten: Option<Forgotten>,
    /// Whoever asked until then may be told that it is lost.
    lost_until: Option<Instant>,
}

/// What it holds is not known until it is read, or written: an older copy took the place of its own.
#[derive(Clone, Copy, Debug)]
struct Forgotten {
    at: Instant,
    /// It may be zeros.
    zeros: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    write: WriteId,
    zeros: bool,
    began: Instant,
    /// The earliest end of an operation on it, and the latest begin of one.
    first_end: Instant,
    last_begin: Instant,
    acknowledged: bool,
    /// Acknowledged or read: it happened.
    happened: bool,
    /// If it happens at all, then not after this.
    bound: Instant,
    /// Until it is answered it may happen a second time.
    repeats: bool,
}

/// Why a history is not that of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Garbage,
    /// Nothing in progress can return this value: it was overwritten, refused or never written here.
    Gone {
        this: WriteId,
    },
    /// Each of both comes before the other.
    Contradiction {
        this: WriteId,
        other: WriteId,
        acknowledged: bool,
    },
    ReadBeforeWritten {
        this: WriteId,
    },
    /// Zeros, and no write or zeroing can be the reason.
    Zeros,
    Torn {
        unit: u64,
        this: WriteId,
        other: WriteId,
    },
}

impl Default for Register {
    fn default() -> Self {
        let start = Instant::ZERO;
        let first = Value {
            write: WriteId(0),
            zeros: true,
            began: start,
            first_end: start,
            last_begin: start,
            acknowledged: true,
            happened: true,
            bound: start,
            repeats: false,
        };
        let (prune_at, zeroed, forgotten) = (VALUES_BEFORE_PRUNE, false, None);
        Self { values: vec![first], prune_at, zeroed, forgotten, lost_until: None }
    }
}

impl Register {
    pub fn begin(&mut self, write: WriteId, zeros: bool, now: Instant, horizon: Instant) {
        if self.values.len() >= self.prune_at {
            self.prune(horizon);
            self.prune_at = VALUES_BEFORE_PRUNE.max(self.values.len() * 2);
        }
        self.zeroed |= zeros;
        self.values.push(Value {
            write,
            zeros,
            began: now,
            first_end: NEVER,
            last_begin: now,
            acknowledged: false,
            happened: false,
            bound: NEVER,
            repeats: false,
        });
    }

    pub fn acknowledge(&mut self, write: WriteId, now: Instant) -> Option<Verdict> {
        let at = self.find(write)?;
        self.remember(now);
        let value = &mut self.values[at];
        if std::mem::take(&mut value.repeats) {
            value.first_end = now;
            value.last_begin = value.began;
        }
        value.acknowledged = true;
        value.happened = true;
        value.first_end = value.first_end.min(now);
        self.contradiction(at)
    }

    pub fn void(&mut self, write: WriteId) {
        self.values.retain(|value| value.write != write || value.happened);
    }

    pub fn bound(&mut self, write: WriteId, at: Instant) {
        if let Some(index) = self.find(write) {
            self.values[index].bound = self.values[index].bound.min(at);
        }
    }

    pub fn may_repeat(&mut self, write: WriteId) {
        if let Some(at) = self.find(write)
            && !self.values[at].acknowledged
        {
            self.values[at].repeats = true;
        }
    }

    /// A copy goes on instead of those that are gone: it may have anything that was ever written, and the
    /// zeros that it began with only if it is one that once had all. What has no answer yet may still happen.
    pub fn forget(&mut self, whole: bool, at: Instant) {
        self.forgotten = Some(Forgotten { at, zeros: whole || self.zeroed });
        self.lost_until = (!whole).then_some(NEVER);
        self.values.retain(|value| !value.acknowledged);
        for value in &mut self.values {
            let (happened, repeats, first_end, bound) = (false, true, NEVER, NEVER);
            *value =
                Value { happened, repeats, first_end, bound, last_begin: value.began, ..*value };
        }
    }

    /// Whether the copy that goes on may know nothing of it.
    pub fn may_be_lost(&self, began: Instant) -> bool {
        self.lost_until.is_some_and(|until| began <= until)
    }

    /// It is known what it holds.
    fn remember(&mut self, now: Instant) {
        if self.forgotten.take().is_some() {
            self.lost_until = self.lost_until.map(|until| until.min(now));
        }
    }

    /// Whether it says for the first time what the register holds.
    fn reveals(&mut self, write: WriteId, zeros: bool, (began, ended): (Instant, Instant)) -> bool {
        let Some(forgotten) = self.forgotten else { return false };
        if began < forgotten.at {
            // What was there before.
            return true;
        }
        if zeros && !forgotten.zeros {
            return false;
        }
        self.remember(ended);
        if self.find(write).is_some() {
            return false;
        }
        self.values.push(Value {
            write,
            zeros,
            began: Instant::ZERO,
            first_end: ended,
            last_begin: began,
            acknowledged: true,
            happened: true,
            bound: NEVER,
            repeats: false,
        });
        true
    }

    /// Written by somebody who has no answer to it.
    pub fn unanswered(&self) -> impl Iterator<Item = Value> + '_ {
        self.values.iter().filter(|value| !value.acknowledged).copied()
    }

    /// A copy that has it is back, and nobody else's is left: what was seen since it left counts no more.
    pub fn may_return(&mut self, value: Value) {
        let (repeats, bound) = (true, NEVER);
        match self.find(value.write) {
            Some(at) if self.values[at].acknowledged => {}
            Some(at) => self.values[at] = Value { repeats, bound, ..self.values[at] },
            None => self.values.push(Value { repeats, bound, happened: false, ..value }),
        }
    }

    pub fn read(&mut self, write: WriteId, began: Instant, ended: Instant) -> Option<Verdict> {
        if self.reveals(write, false, (began, ended)) {
            return None;
        }
        let Some(at) = self.find(write) else {
            return Some(Verdict::Gone { this: write });
        };
        if ended < self.values[at].began {
            return Some(Verdict::ReadBeforeWritten { this: write });
        }
        self.values[at].seen(began, ended);
        let verdict = self.contradiction(at)?;
        if self.forgives(at, began, ended) { None } else { Some(verdict) }
    }

    /// It happened again: what was seen of it before counts no more.
    fn forgives(&mut self, at: usize, began: Instant, ended: Instant) -> bool {
        let value = &mut self.values[at];
        if value.repeats {
            value.first_end = ended.min(value.bound);
            value.last_begin = began;
        }
        value.repeats && self.contradiction(at).is_none()
    }

    /// False: several writes may be the reason, so nothing was learned.
    pub fn read_zeros(&mut self, began: Instant, ended: Instant) -> Result<bool, Verdict> {
        if self.reveals(WriteId(0), true, (began, ended)) {
            return Ok(true);
        }
        let mut fits = Vec::new();
        for at in 0..self.values.len() {
            let value = self.values[at];
            if !value.zeros || ended < value.began {
                continue;
            }
            self.values[at].seen(began, ended);
            if self.contradiction(at).is_none() || value.repeats {
                fits.push(at);
            }
            self.values[at] = value;
        }
        if let [only] = fits[..] {
            self.values[only].seen(began, ended);
            if self.contradiction(only).is_some() {
                self.forgives(only, began, ended);
            }
        }
        if fits.is_empty() { Err(Verdict::Zeros) } else { Ok(fits.len() == 1) }
    }

    pub fn history(&self) -> String {
        self.values.iter().fold(String::new(), |mut text, value| {
            let end = |at: Instant| {
                if at == NEVER { "-".into() } else { at.nanos().to_string() }
            };
            let _ = write!(
                text,
                "[w{} began {} first end {} last begin {}{}{}{}]",
                value.write.0,
                value.began.nanos(),
                end(value.first_end),
                value.last_begin.nanos(),
                if value.acknowledged { " acknowledged" } else { "" },
                if value.zeros { " zeros" } else { "" },
                if value.bound == NEVER {
                    String::new()
                } else {
                    format!(" by {}", end(value.bound))
                },
            );
            text
        })
    }

    fn find(&self, write: WriteId) -> Option<usize> {
        self.values.iter().rposition(|value| value.write == write)
    }

    fn contradiction(&self, at: usize) -> Option<Verdict> {
        let this = &self.values[at];
        let others = self.values.iter().enumerate().filter(|(index, _)| *index != at);
        let bad = others.map(|(_, other)| other).find(|other| {
            other.happened && this.first_end < other.last_begin && other.first_end < this.last_begin
        })?;
        let acknowledged = bad.acknowledged;
        Some(Verdict::Contradiction { this: this.write, other: bad.write, acknowledged })
    }

    /// Forgets what nothing can return any more: another value came after it, and an operation on
    /// that one ended before anything began that is still in progress.
    fn prune(&mut self, horizon: Instant) {
        let over = self.values.iter().filter(|value| value.happened && value.first_end < horizon);
        let Some(newest) = over.max_by_key(|value| value.last_begin).copied() else { return };
        self.values.retain(|value| {
            let last = if value.repeats { NEVER } else { value.first_end }.min(value.bound);
            value.write == newest.write || last >= newest.last_begin
        });
    }
}

impl Value {
    fn seen(&mut self, began: Instant, ended: Instant) {
        self.happened = true;
        self.first_end = self.first_end.min(ended).min(self.bound);
        self.last_begin = self.last_begin.max(began);
    }
}

impl Verdict {
    pub fn promise(&self) -> &'static str {
        match self {
            Self::Garbage | Self::Zeros => "no-silent-corruption",
            Self::Contradiction { acknowledged: true, .. } => "acked-survives",
            Self::Gone { .. }
            | Self::Contradiction { acknowledged: false, .. }
            | Self::ReadBeforeWritten { .. }
            | Self::Torn { .. } => "one-register",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbage => f.write_str("data that no write made"),
            Self::Gone { this } => write!(f, "write {} was read, which can't be", this.0),
            Self::Contradiction { this, other, acknowledged } => {
                let how = if *acknowledged { "acknowledged" } else { "read" };
                write!(f, "write {} came back after {how} write {}", this.0, other.0)
            }
            Self::ReadBeforeWritten { this } => {
                write!(f, "write {} was read before it was asked for", this.0)
            }
            Self::Zeros => f.write_str("zeros where data must be"),
            Self::Torn { unit, this, other } => {
                write!(f, "torn: write {} here, write {} in unit {unit}", this.0, other.0)
            }
        }
    }
}
