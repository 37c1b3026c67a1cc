//! What the demo found: the checks as they come, the figures at the end.

use crate::size::ByteSize;
use crate::span;
use crate::view;
use std::time::Duration;

/// Checks in the order in which they were made.
#[derive(Debug, Default)]
pub struct Report {
    failed: Vec<String>,
    made: usize,
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
    pub fn step(&self, text: &str) {
        println!("\n{text}");
    }

    pub fn check(&mut self, what: &str, holds: bool) {
        self.made += 1;
        println!("  [{}] {what}", if holds { "ok" } else { "FAILED" });
        if !holds {
            self.failed.push(what.to_owned());
        }
    }

    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    pub fn made(&self) -> usize {
        self.made
    }
}

impl Figures {
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
