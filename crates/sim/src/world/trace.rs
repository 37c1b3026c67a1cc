//! What happened, in order: a hash over all of it and the last lines of it.

use gabion_types::Instant;
use std::collections::VecDeque;
use std::fmt;

/// Lines that are kept of a run that is not being watched.
pub const LINES_KEPT: usize = 4096;

/// Whose line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    World,
    /// Counted from 0.
    Node(u32),
    Disk(u32, u32),
    Guest(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: Instant,
    pub who: Who,
    pub what: &'static str,
    pub numbers: [u64; 3],
    /// Only of a run that is watched; no part of the hash.
    pub detail: String,
}

/// The same seed gives the same hash, watched or not.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    lines: VecDeque<Line>,
    /// All lines are kept, with their details.
    watched: bool,
    /// For the line that comes next.
    detail: String,
}

impl Trace {
    pub fn new(watched: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            lines: VecDeque::new(),
            watched,
            detail: String::new(),
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    pub fn note(&mut self, at: Instant, who: Who, what: &'static str, numbers: [u64; 3]) {
        let detail = std::mem::take(&mut self.detail);
        self.note_with(at, who, what, numbers, || detail);
    }

    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// The detail of the next `note`, where making it needs what the trace is a part of.
    pub fn detail_next(&mut self, detail: String) {
        self.detail = detail;
    }

    /// `detail` is made only when somebody watches.
    pub fn note_with(
        &mut self,
        at: Instant,
        who: Who,
        what: &'static str,
        numbers: [u64; 3],
        detail: impl FnOnce() -> String,
    ) {
        self.count += 1;
        self.mix(at.nanos());
        self.mix(who.number());
        what.bytes().for_each(|byte| self.mix(u64::from(byte)));
        numbers.iter().for_each(|number| self.mix(*number));
        if !self.watched && self.lines.len() >= LINES_KEPT {
            self.lines.pop_front();
        }
        let detail = if self.watched { detail() } else { String::new() };
        self.lines.push_back(Line { at, who, what, numbers, detail });
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

impl Who {
    fn number(self) -> u64 {
        match self {
            Self::World => 0,
            Self::Node(node) => 1 << 32 | u64::from(node),
            Self::Disk(node, disk) => 2 << 32 | u64::from(node) << 8 | u64::from(disk),
            Self::Guest(guest) => 3 << 32 | u64::from(guest),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::World => "world".to_string(),
            Self::Node(node) => format!("node{}", node + 1),
            Self::Disk(node, disk) => format!("node{}/disk{disk}", node + 1),
            Self::Guest(guest) => format!("guest{guest}"),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.at.nanos() / 1_000_000_000, self.at.nanos() % 1_000_000_000);
        write!(f, "{seconds:>4}.{nanos:09} {:<12} {:<16} ", self.who, self.what)?;
        if !self.detail.is_empty() {
            return f.write_str(&self.detail);
        }
        let given = self.numbers.iter().rposition(|number| *number > 0).map_or(0, |last| last + 1);
        let shown: Vec<_> = self.numbers[..given].iter().map(u64::to_string).collect();
        f.write_str(&shown.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watching_does_not_change_the_hash() {
        let run = |watched| {
            let mut trace = Trace::new(watched);
            for number in 0..5000 {
                let at = Instant::from_nanos(number);
                trace.note_with(at, Who::Guest(1), "write", [number, 0, 0], || "more".into());
            }
            (trace.hash(), trace.lines().count())
        };
        assert_eq!(run(false).0, run(true).0);
        assert_eq!((run(false).1, run(true).1), (LINES_KEPT, 5000));
    }
}
