//! What the demo found: the checks as they come, the figures at the end.

use crate::size::ByteSize;
use crate::span;
use crate::verbs::show;
use gabion_api::view;
use serde_json::{Value, json};
use std::time::Duration;

/// Checks in the order in which they were made.
#[derive(Debug)]
pub struct Report {
    checks: Vec<(String, bool)>,
    as_json: bool,
}

/// The figures of the last table.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub stall_copy_killed: Duration,
    pub stall_owner_killed: Duration,
    pub writes_acknowledged: u64,
    pub writes_lost: u64,
    pub bytes_verified: u64,
    pub rebuilt_bytes: u64,
    pub rebuild_took: Duration,
    pub delta_bytes: u64,
    pub written_meanwhile_bytes: u64,
    pub full_copy_bytes: u64,
    pub took: Duration,
}

impl Report {
    pub fn new(as_json: bool) -> Self {
        Self { checks: Vec::new(), as_json }
    }

    pub fn as_json(&self) -> bool {
        self.as_json
    }

    /// As JSON the story is told at its end.
    pub fn say(&self, text: &str) {
        if !self.as_json {
            println!("{text}");
        }
    }

    pub fn step(&self, text: &str) {
        self.say(&format!("\n{text}"));
    }

    /// What a bar's last line is to say: nothing as JSON. Units: bytes.
    pub fn on_bar(&self, bytes: u64) -> u64 {
        if self.as_json { 0 } else { bytes }
    }

    pub fn check(&mut self, what: &str, holds: bool) {
        self.say(&format!("  [{}] {what}", if holds { "ok" } else { "FAILED" }));
        self.checks.push((what.to_owned(), holds));
    }

    pub fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|(_, holds)| !holds);
        failed.map(|(what, _)| what.as_str()).collect()
    }

    pub fn made(&self) -> usize {
        self.checks.len()
    }

    pub fn end(&self, figures: &Figures) {
        let check = |(what, holds): &(String, bool)| json!({ "check": what, "holds": holds });
        let checks: Vec<_> = self.checks.iter().map(check).collect();
        let shown = json!({ "checks": checks, "figures": figures.as_json() });
        show(self.as_json, &shown, || {
            let held = match self.failed().len() {
                0 => format!("\n\nall {} checks held", self.made()),
                _ => String::new(),
            };
            format!("\n{}{held}", figures.table())
        });
    }
}

impl Figures {
    fn as_json(&self) -> Value {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        json!({
            "stall_copy_killed_ms": ms(self.stall_copy_killed),
            "stall_owner_killed_ms": ms(self.stall_owner_killed),
            "writes_acknowledged": self.writes_acknowledged,
            "writes_lost": self.writes_lost,
            "verified_bytes": self.bytes_verified,
            "rebuilt_bytes": self.rebuilt_bytes,
            "rebuild_ms": ms(self.rebuild_took),
            "delta_bytes": self.delta_bytes,
            "written_meanwhile_bytes": self.written_meanwhile_bytes,
            "full_copy_bytes": self.full_copy_bytes,
            "took_ms": ms(self.took),
        })
    }

    pub fn table(&self) -> String {
        let row = |what: &str, value: String| vec![what.to_owned(), value];
        let rows = [
            row("longest stall, a copy's node killed", span::shown(self.stall_copy_killed)),
            row("longest stall, the owner killed", span::shown(self.stall_owner_killed)),
            row("acknowledged writes", self.writes_acknowledged.to_string()),
            row("acknowledged writes lost", self.writes_lost.to_string()),
            row("read and verified", ByteSize(self.bytes_verified).to_string()),
            row(
                "rebuilt onto the survivors",
                format!(
                    "{} in {}, {}/s",
                    ByteSize(self.rebuilt_bytes),
                    span::shown(self.rebuild_took),
                    ByteSize(per_second(self.rebuilt_bytes, self.rebuild_took))
                ),
            ),
            row(
                "copied for the owner's return",
                format!(
                    "{} of {} that it holds; {} were written meanwhile",
                    ByteSize(self.delta_bytes),
                    ByteSize(self.full_copy_bytes),
                    ByteSize(self.written_meanwhile_bytes)
                ),
            ),
            row("the whole story", span::shown(self.took)),
        ];
        let table = view::table(&["WHAT", "FIGURE"], &rows);
        // The first one's copies were made anew on the survivors before it came back.
        format!(
            "{table}\nthe node killed first came back to no copies of its own: all of them had \
             been made anew elsewhere; the owner's return shows the delta"
        )
    }
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    let ms = took.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / ms).unwrap_or(u64::MAX)
}
