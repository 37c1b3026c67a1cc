//! Long work shows how far it is: a bar on a terminal, else a line each ten seconds.

use crate::size::ByteSize;
use crate::span;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// Bytes done of bytes to do.
pub struct Bar {
    label: String,
    bar: ProgressBar,
    plain: bool,
    started: Instant,
    next_line: Instant,
}

impl Bar {
    pub fn new(label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        let style = "  {msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}";
        bar.set_style(
            ProgressStyle::with_template(style).expect("a fixed template").progress_chars("=> "),
        );
        bar.set_message(label.to_owned());
        let plain = bar.is_hidden();
        let now = Instant::now();
        Self { label: label.to_owned(), bar, plain, started: now, next_line: now + LINE_EVERY }
    }

    pub fn set(&mut self, done: u64, all: u64) {
        self.bar.set_length(all);
        self.bar.set_position(done.min(all));
        let now = Instant::now();
        if self.plain && now >= self.next_line {
            self.next_line = now + LINE_EVERY;
            eprintln!("  {}: {} of {}", self.label, ByteSize(done), ByteSize(all));
        }
    }

    /// Leaves one line that says how long it took.
    pub fn done(self, done: u64) -> Duration {
        let took = self.started.elapsed();
        self.bar.finish_and_clear();
        if done > 0 {
            let (bytes, took) = (ByteSize(done), span::shown(took));
            println!("  {}: {bytes} in {took}", self.label);
        }
        took
    }
}

/// Steps done of steps to do, each time with a text that says more.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    next_line: Instant,
}

impl Progress {
    pub fn new(all: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr_with_hz(10));
        let style = "  [{bar:30}] {percent}%  {msg}";
        bar.set_style(
            ProgressStyle::with_template(style).expect("a fixed template").progress_chars("=> "),
        );
        let plain = bar.is_hidden();
        Self { bar, plain, next_line: Instant::now() + LINE_EVERY }
    }

    pub fn set(&mut self, done: u64, text: &str) {
        self.bar.set_position(done);
        self.bar.set_message(text.to_owned());
        let now = Instant::now();
        if self.plain && now >= self.next_line {
            self.next_line = now + LINE_EVERY;
            eprintln!("  {text}");
        }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        if self.plain { eprintln!("  {text}") } else { self.bar.println(text) }
    }

    pub fn done(self) {
        self.bar.finish_and_clear();
    }
}
