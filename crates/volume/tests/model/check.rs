//! Is each sector one linearizable register? Every write has a value of its own, so the test of
//! Gibbons and Korach applies: the span from the first answer to the last question about a value
//! must not lie across another value's.

use std::collections::BTreeMap;

/// Zeros: what was never written, and what trim and write-zeroes make. Not a value of its own.
pub const ZERO: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Span {
    asked: u64,
    answered: u64,
}

#[derive(Clone, Debug, Default)]
struct Cluster {
    write: Option<Span>,
    reads: Vec<Span>,
}

#[derive(Default)]
pub struct History {
    /// By sector, then by value.
    values: BTreeMap<u64, BTreeMap<u64, Cluster>>,
    zeros: BTreeMap<u64, Vec<Span>>,
    zero_reads: BTreeMap<u64, Vec<Span>>,
}

impl History {
    /// `answered` is `u64::MAX` for a write that may or may not have happened.
    pub fn wrote(&mut self, sector: u64, value: u64, asked: u64, answered: u64) {
        let span = Span { asked, answered };
        if value == ZERO {
            self.zeros.entry(sector).or_default().push(span);
            return;
        }
        let cluster = self.values.entry(sector).or_default().entry(value).or_default();
        assert!(cluster.write.replace(span).is_none(), "each write has its own value");
    }

    pub fn read(&mut self, sector: u64, value: u64, asked: u64, answered: u64) {
        let span = Span { asked, answered };
        if value == ZERO {
            self.zero_reads.entry(sector).or_default().push(span);
            return;
        }
        let clusters = self.values.entry(sector).or_default();
        clusters.entry(value).or_default().reads.push(span);
    }

    /// What is wrong, if anything.
    pub fn check(&self) -> Result<(), String> {
        for (sector, clusters) in &self.values {
            check_sector(clusters).map_err(|why| format!("sector {sector}: {why}"))?;
            self.check_zeros(*sector, clusters)?;
        }
        Ok(())
    }

    /// A read of zeros needs zeros that no value has for sure covered before it was asked; and a
    /// zeroing that was answered hides what was there.
    fn check_zeros(&self, sector: u64, clusters: &BTreeMap<u64, Cluster>) -> Result<(), String> {
        let none = Vec::new();
        let mut zeros = self.zeros.get(&sector).unwrap_or(&none).clone();
        zeros.push(Span { asked: 0, answered: 0 });
        for read in self.zero_reads.get(&sector).unwrap_or(&none) {
            let fits = |zero: &Span| {
                let covered = clusters.values().any(|cluster| {
                    let write = cluster.write.expect("checked before");
                    let seen = cluster.reads.iter().map(|read| read.answered).min();
                    let over = seen.unwrap_or(u64::MAX).min(write.answered);
                    zero.answered < write.asked && over < read.asked
                });
                zero.asked <= read.answered && !covered
            };
            if !zeros.iter().any(fits) {
                return Err(format!("sector {sector}: zeros read at {read:?} instead of a value"));
            }
        }
        for (value, cluster) in clusters {
            let (first, last) = zone(cluster);
            let hidden = |zero: &&Span| {
                zero.answered != u64::MAX && first < zero.asked && zero.answered < last
            };
            if let Some(zero) = zeros.iter().find(hidden) {
                return Err(format!("sector {sector}: {value} came back after zeros at {zero:?}"));
            }
        }
        Ok(())
    }
}

/// First answer that shows the value, last question that still does.
fn zone(cluster: &Cluster) -> (u64, u64) {
    let write = cluster.write.iter();
    let spans = || write.clone().chain(&cluster.reads);
    let first = spans().map(|span| span.answered).min().unwrap_or(u64::MAX);
    let last = spans().map(|span| span.asked).max().unwrap_or(0);
    (first, last)
}

fn check_sector(clusters: &BTreeMap<u64, Cluster>) -> Result<(), String> {
    for (value, cluster) in clusters {
        let Some(write) = cluster.write else {
            return Err(format!("{value} was read and never written"));
        };
        if let Some(read) = cluster.reads.iter().find(|read| read.answered < write.asked) {
            return Err(format!(
                "{value} was read at {read:?}, before it was written at {write:?}"
            ));
        }
    }
    let zones: Vec<(u64, u64, u64)> = clusters
        .iter()
        .map(|(value, cluster)| {
            let (first, last) = zone(cluster);
            (*value, first, last)
        })
        .collect();
    for (value, first, last) in zones.iter().filter(|(_, first, last)| first < last) {
        for (other, other_first, other_last) in zones.iter().filter(|(other, ..)| other != value) {
            let forward = other_first < other_last;
            let overlap = forward && other_first < last && first < other_last;
            let inside = !forward && first < other_last && other_first < last;
            if overlap || inside {
                return Err(format!(
                    "{value} was seen at {first} and still at {last}, \
                     and {other} at {other_first} and {other_last} in between"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::History;

    #[test]
    fn a_value_that_comes_back_is_found() {
        let mut history = History::default();
        history.wrote(0, 1, 10, 20);
        history.wrote(0, 2, 30, 40);
        history.read(0, 2, 50, 60);
        assert!(history.check().is_ok());
        history.read(0, 1, 70, 80);
        assert!(history.check().is_err());
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut history = History::default();
        history.wrote(0, 1, 10, 20);
        history.read(0, 0, 30, 40);
        assert!(history.check().is_err());
    }

    #[test]
    fn an_unanswered_write_may_be_seen_or_not_but_not_taken_back() {
        let mut history = History::default();
        history.wrote(0, 1, 10, 20);
        history.wrote(0, 2, 30, u64::MAX);
        history.read(0, 1, 40, 50);
        history.read(0, 2, 60, 70);
        assert!(history.check().is_ok());
        history.read(0, 1, 80, 90);
        assert!(history.check().is_err());
    }
}
