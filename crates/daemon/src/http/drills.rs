//! Drills from the console, on a cluster of `up`: the node starts this same program for it, and that one lives on
//! when the node is the one that is killed.

use crate::drills::DrillDir;
use crate::http::api::{failed, respond};
use crate::http::console::Console;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Until it runs or was refused.
const BEGINS_MOST: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one node is hurt, at most: an hour.
const FOR_MS_MAX: u64 = 3_600_000;
/// Of a schedule: a minute to a month.
const EVERY_MS: std::ops::RangeInclusive<u64> = 60_000..=2_678_400_000;

type Here = State<Arc<Console>>;

pub fn routes() -> Router<Arc<Console>> {
    Router::new().route("/drills", get(look).post(start)).route("/drills/stop", post(stop))
}

/// What is kept, and what runs.
async fn look(State(console): Here) -> Response {
    let Some(dir) = console.drills.clone() else {
        let none = json!({ "possible": false, "running": null, "kept": [] });
        return respond(StatusCode::OK, &none);
    };
    blocking(move || {
        let told = json!({ "possible": true, "running": dir.running(), "kept": dir.kept() });
        respond(StatusCode::OK, &told)
    })
    .await
}

/// Checked again by the program that it becomes the arguments of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// `kill`, `freeze`, `slow`.
    only: Vec<String>,
    for_ms: u64,
    /// Again and again, from one beginning to the next.
    every_ms: Option<u64>,
    /// `HH:MM-HH:MM`: it begins at no other time.
    between: Option<String>,
    #[serde(default)]
    weekdays: bool,
}

impl Asked {
    /// Errors: what is wrong with it.
    fn arguments(&self) -> Result<Vec<String>, String> {
        if self.only.is_empty() {
            return Err("nothing is to be done to any node".to_owned());
        }
        // Words only: an argument is never taken for an option.
        let plain = |word: &String| word.chars().all(|letter| letter.is_ascii_lowercase());
        if let Some(word) = self.only.iter().find(|word| !plain(word)) {
            return Err(format!("{word:?} is nothing that is done to a node"));
        }
        if self.for_ms == 0 || self.for_ms > FOR_MS_MAX {
            return Err("a node is hurt for a millisecond to an hour".to_owned());
        }
        let mut all = vec![format!("--only={}", self.only.join(","))];
        all.push(format!("--for={}ms", self.for_ms));
        if let Some(every) = self.every_ms {
            if !EVERY_MS.contains(&every) {
                return Err("drills come again after a minute to 31 days".to_owned());
            }
            all.push(format!("--every={every}ms"));
        }
        all.extend(self.between.iter().map(|between| format!("--between={between}")));
        all.extend(self.weekdays.then(|| "--weekdays".to_owned()));
        Ok(all)
    }
}

async fn start(State(console): Here, body: Bytes) -> Response {
    let Some(dir) = console.drills.clone() else { return nowhere() };
    let asked = match serde_json::from_slice::<Asked>(&body) {
        Ok(asked) => asked,
        Err(error) => return failed(400, "bad_request", &error.to_string(), false),
    };
    match asked.arguments() {
        Ok(arguments) => blocking(move || begin(&dir, &arguments)).await,
        Err(what) => failed(400, "bad_request", &what, false),
    }
}

/// What was hurt is well again when this is answered.
async fn stop(State(console): Here) -> Response {
    let Some(dir) = console.drills.clone() else { return nowhere() };
    blocking(move || match program(&dir, "stop", &[]).and_then(Child::wait_with_output) {
        Ok(output) if output.status.success() => respond(StatusCode::OK, &json!({})),
        Ok(_) => refused(&dir, "stop"),
        Err(error) => cannot(&error),
    })
    .await
}

fn begin(dir: &DrillDir, arguments: &[String]) -> Response {
    let mut child = match program(dir, "run", arguments) {
        Ok(child) => child,
        Err(error) => return cannot(&error),
    };
    let of_child = u64::from(child.id());
    let until = Instant::now() + BEGINS_MOST;
    while Instant::now() < until {
        // An end without a word is no refusal: it was over before anybody looked.
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return respond(StatusCode::OK, &json!({})),
            Ok(Some(_)) => return refused(dir, "run"),
            Ok(None) => {}
            Err(error) => return cannot(&error),
        }
        if dir.running().is_some_and(|running| running["pid"] == of_child) {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // Somebody has to hear of its end.
    std::thread::spawn(move || child.wait());
    respond(StatusCode::OK, &json!({}))
}

/// What it says is in `drills/VERB.log`. A signal to the node's group is none to it.
fn program(dir: &DrillDir, verb: &str, arguments: &[String]) -> io::Result<Child> {
    std::fs::create_dir_all(dir.path())?;
    let log = File::create(log_of(dir, verb))?;
    Command::new(std::env::current_exe()?)
        .args(["drill", verb])
        .args(arguments)
        .arg("--dir")
        .arg(&dir.cluster)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
}

fn log_of(dir: &DrillDir, verb: &str) -> PathBuf {
    dir.path().join(format!("{verb}.log"))
}

/// In the program's own words.
fn refused(dir: &DrillDir, verb: &str) -> Response {
    let said = std::fs::read_to_string(log_of(dir, verb)).unwrap_or_default();
    let what = said.lines().find_map(|line| line.strip_prefix("error: "));
    failed(409, "refused", what.unwrap_or("the drill ended at once, and did not say why"), false)
}

fn cannot(error: &io::Error) -> Response {
    failed(500, "failed", &format!("the program for drills cannot be run: {error}"), false)
}

fn nowhere() -> Response {
    let what = "drills are for a cluster of `gabion up`, whose nodes are processes of one machine";
    failed(409, "refused", what, false)
}

async fn blocking(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(response) => response,
        Err(_) => failed(500, "failed", "the node could not look at its drills", true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_becomes_an_argument() {
        let asked = |text: &str| {
            serde_json::from_str::<Asked>(text).map_err(|e| e.to_string())?.arguments()
        };
        assert_eq!(
            asked(r#"{"only":["kill","slow"],"for_ms":4000}"#),
            Ok(vec!["--only=kill,slow".to_owned(), "--for=4000ms".to_owned()])
        );
        let whole = r#"{"only":["kill"],"for_ms":1,"every_ms":3600000,"between":"09:00-17:00","weekdays":true}"#;
        assert_eq!(asked(whole).map(|all| all.len()), Ok(5));
        for text in [
            r#"{"only":[],"for_ms":4000}"#,
            r#"{"only":["--dir"],"for_ms":4000}"#,
            r#"{"only":["kill"],"for_ms":0}"#,
            r#"{"only":["kill"],"for_ms":4000000}"#,
            r#"{"only":["kill"],"for_ms":4,"every_ms":1}"#,
            r#"{"only":["kill"],"for_ms":4,"dir":"/"}"#,
        ] {
            assert!(asked(text).is_err(), "{text}");
        }
    }
}
