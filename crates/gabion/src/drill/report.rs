//! What drills found: a table, and a file that is kept for comparison.

use crate::drill_args::Harm;
use crate::failure::Failure;
use crate::size::ByteSize;
use crate::span;
use crate::verbs::show;
use gabion_api::view;
use gabion_daemon::drills::DrillDir;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One of them.
#[derive(Clone, Debug)]
pub struct Drilled {
    pub node: u32,
    pub harm: Harm,
    /// What the node was before, in parentheses; may be empty.
    pub roles: String,
    /// RTO as guests feel it: from the harm to the end of the longest stall; zero: none was noticed.
    pub guests_served_again: Duration,
    pub longest_stall: Duration,
    pub writes_acknowledged: u64,
    pub verified_bytes: u64,
    /// RPO: what of the acknowledged writes was not there. Empty: nothing is lost.
    pub lost: Vec<String>,
    /// From the end of the harm until every copy was there again.
    pub healed_after: Duration,
    pub copied_bytes: u64,
}

pub struct Report {
    drilled: Vec<Drilled>,
    as_json: bool,
}

impl Report {
    pub fn new(as_json: bool) -> Self {
        Self { drilled: Vec::new(), as_json }
    }

    pub fn say(&self, text: &str) {
        if !self.as_json {
            println!("{text}");
        }
    }

    pub fn add(&mut self, drilled: Drilled) {
        self.drilled.push(drilled);
    }

    pub fn drills(&self) -> usize {
        self.drilled.len()
    }

    /// Sentences, one for each promise that was broken.
    pub fn wrong(&self) -> Vec<String> {
        let of = |drilled: &Drilled| {
            let (harm, node) = (drilled.harm.name(), drilled.node);
            drilled.lost.iter().map(|lost| format!("{harm} of node {node}: {lost}")).collect()
        };
        self.drilled.iter().flat_map(|drilled: &Drilled| -> Vec<String> { of(drilled) }).collect()
    }

    /// Beside the cluster's files, by the time.
    pub fn keep(&self, dir: &DrillDir) -> Result<PathBuf, Failure> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = dir.keep(since.as_millis(), &self.json());
        kept.map_err(|e| Failure::io("keep what was found in", &dir.path(), &e))
    }

    pub fn end(&self, kept: &Path) {
        show(self.as_json, &self.json(), || {
            format!("\n{}\nkept as {}", self.table(), kept.display())
        });
    }

    pub fn json(&self) -> Value {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let one = |drilled: &Drilled| {
            json!({
                "harm": drilled.harm.name(),
                "node": drilled.node.to_string(),
                "roles": drilled.roles.trim_matches([' ', '(', ')']),
                "rto_ms": ms(drilled.guests_served_again),
                "rpo_writes_lost": drilled.lost.len(),
                "lost": drilled.lost,
                "longest_stall_ms": ms(drilled.longest_stall),
                "writes_acknowledged": drilled.writes_acknowledged,
                "verified_bytes": drilled.verified_bytes,
                "rebuild_ms": ms(drilled.healed_after),
                "copied_bytes": drilled.copied_bytes,
            })
        };
        json!({ "drills": self.drilled.iter().map(one).collect::<Vec<_>>() })
    }

    fn table(&self) -> String {
        let row = |drilled: &Drilled| {
            let ms = drilled.healed_after.as_millis().max(1);
            let speed = u128::from(drilled.copied_bytes) * 1000 / ms;
            let speed = ByteSize(u64::try_from(speed).unwrap_or(u64::MAX));
            vec![
                format!("{} node {}{}", drilled.harm.name(), drilled.node, drilled.roles),
                if drilled.guests_served_again.is_zero() {
                    "0".to_owned()
                } else {
                    span::shown(drilled.guests_served_again)
                },
                if drilled.lost.is_empty() { "0, verified".to_owned() } else { "LOST".to_owned() },
                span::shown(drilled.longest_stall),
                span::shown(drilled.healed_after),
                format!("{}, {speed}/s", ByteSize(drilled.copied_bytes)),
            ]
        };
        let rows: Vec<Vec<String>> = self.drilled.iter().map(row).collect();
        view::table(&["DRILL", "RTO", "RPO", "LONGEST STALL", "REBUILD", "COPIED"], &rows)
    }
}

/// What was kept, a line each: the worst of each round.
pub fn list(kept: &[Value]) -> String {
    if kept.is_empty() {
        return "no drill was run here yet; `gabion drill run` does".to_owned();
    }
    let row = |round: &Value| {
        let drills = round["drills"].as_array().map_or(&[][..], Vec::as_slice);
        let worst = |field: &str| {
            let worst = drills.iter().filter_map(|drill| drill[field].as_u64()).max();
            span::shown(Duration::from_millis(worst.unwrap_or_default()))
        };
        let lost: u64 = drills.iter().filter_map(|drill| drill["rpo_writes_lost"].as_u64()).sum();
        let at = round["time_ms"].as_i64().and_then(chrono::DateTime::from_timestamp_millis);
        let at = at.map(|at| at.with_timezone(&chrono::Local));
        vec![
            at.map_or(String::new(), |at| at.format("%F %H:%M").to_string()),
            drills.len().to_string(),
            worst("rto_ms"),
            if lost == 0 { "0, verified".to_owned() } else { "LOST".to_owned() },
            worst("longest_stall_ms"),
            worst("rebuild_ms"),
        ]
    };
    let rows: Vec<Vec<String>> = kept.iter().map(row).collect();
    let head = ["ENDED", "DRILLS", "WORST RTO", "RPO", "LONGEST STALL", "LONGEST REBUILD"];
    view::table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_by_name() {
        let drilled = |lost: Vec<String>| Drilled {
            node: 2,
            harm: Harm::Freeze,
            roles: " (leads)".to_owned(),
            guests_served_again: Duration::from_millis(1500),
            longest_stall: Duration::from_millis(1400),
            writes_acknowledged: 10,
            verified_bytes: 40_960,
            lost,
            healed_after: Duration::from_secs(2),
            copied_bytes: 8 << 20,
        };
        let mut report = Report::new(true);
        report.add(drilled(Vec::new()));
        assert!(report.wrong().is_empty());
        assert!(report.table().contains("freeze node 2 (leads)"), "{}", report.table());
        assert!(report.table().contains("8 MiB, 4 MiB/s"), "{}", report.table());
        report.add(drilled(vec!["block 7 is old".to_owned()]));
        assert_eq!(report.wrong(), ["freeze of node 2: block 7 is old"]);
        assert_eq!(report.json()["drills"][1]["rpo_writes_lost"], 1);
        assert_eq!(report.json()["drills"][0]["rto_ms"], 1500);
    }
}
