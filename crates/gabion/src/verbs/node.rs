//! `gabion node`.

use crate::bar::Bar;
use crate::cli::NodeVerb;
use crate::failure::{Exit, Failure};
use crate::layout::ClusterDir;
use crate::local;
use crate::process::{self, Bond};
use crate::remote::Remote;
use crate::verbs::{drain, show, status};
use gabion_api::view;
use gabion_daemon::RunError;
use gabion_daemon::init::{Done, InitedDisk, is_initialised};
use gabion_daemon::settings::Settings;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const READY_MOST: Duration = Duration::from_secs(60);
const GONE_MOST: Duration = Duration::from_secs(30);

pub fn run(
    verb: &NodeVerb,
    as_json: bool,
    remote: impl Fn() -> Result<Remote, Failure>,
) -> Result<(), Failure> {
    match verb {
        NodeVerb::Run { config, io, with_parent } => {
            if *with_parent {
                process::go_with_parent();
            }
            run_node(config, io.map(|io| io.name()))
        }
        NodeVerb::Init { config, force } => init(config, *force, as_json),
        NodeVerb::Start { node, dir } => start(*node, dir, as_json),
        NodeVerb::Kill { node, dir, signal } => kill(*node, dir, signal, as_json),
        NodeVerb::Remove { node, force } => drain::remove(&remote()?, node, *force, as_json),
        NodeVerb::Drain { node, wait, cancel } => {
            drain::node(&remote()?, node, drain::Wish::of(*wait, *cancel), as_json)
        }
        NodeVerb::List => {
            let nodes = remote()?.nodes()?;
            let shown: Vec<Value> = nodes.iter().map(view::node).collect();
            show(as_json, &json!({ "nodes": shown }), || status::nodes(&nodes));
            Ok(())
        }
    }
}

fn init(config: &Path, force: bool, as_json: bool) -> Result<(), Failure> {
    let settings = process::settings(config)?;
    let made = make(&settings, force, as_json)?;
    let shown: Vec<Value> = made.iter().map(inited).collect();
    let node = settings.info.id.get();
    show(as_json, &json!({ "node": node.to_string(), "disks": shown }), || {
        let mut lines: Vec<String> = made.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "node {node} is made; `gabion node run --config {}` runs it",
            config.display()
        ));
        lines.join("\n")
    });
    Ok(())
}

/// With a bar for people.
pub fn make(settings: &Settings, force: bool, as_json: bool) -> Result<Vec<InitedDisk>, Failure> {
    let mut bar = Bar::new("disk files");
    let mut written = 0;
    let made = gabion_daemon::init::init(settings, force, |done, all| {
        written = done;
        bar.set(done, all);
    });
    bar.done(if as_json { 0 } else { written });
    made.map_err(|error| process::cannot_init(&error))
}

pub fn inited(disk: &InitedDisk) -> Value {
    let (done, bytes) = match disk.done {
        Done::Kept => ("kept", None),
        Done::MadeFile { bytes } => ("made", Some(bytes)),
        Done::FormattedDevice { bytes } => ("formatted", Some(bytes)),
    };
    let path = disk.path.display().to_string();
    json!({ "path": path, "done": done, "size_bytes": bytes, "lost": disk.lost })
}

fn start(node: u32, dir: &Path, as_json: bool) -> Result<(), Failure> {
    let cluster = known(node, dir)?;
    if let Some(pid) = process::running(&cluster, node) {
        let what = format!("node {node} runs already, as process {}", pid.as_raw_pid());
        return Err(Failure::new(Exit::Refused, what, ""));
    }
    make_disks_of(&cluster, node)?;
    let pid = start_again(&cluster, node)?;
    show(as_json, &json!({ "node": node.to_string(), "pid": pid }), || {
        format!("node {node} serves, as process {pid}")
    });
    Ok(())
}

/// By itself, until it serves. Answers its process.
pub fn start_again(cluster: &ClusterDir, node: u32) -> Result<u32, Failure> {
    let mut child = process::start(&process::program()?, cluster, node, Bond::Alone)?;
    let http = cluster.entry(node).map(|entry| entry.http.clone()).unwrap_or_default();
    let mut ended = None;
    let ready = process::wait_for(READY_MOST, || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || process::ready(&http)
    });
    let log = cluster.log(node);
    if let Some(status) = ended {
        let tail = process::log_tail(&log, 15);
        return Err(Failure::failed(
            format!("node {node} ended ({status}); its log ends:\n{tail}"),
            format!("read {}", log.display()),
        ));
    }
    if !ready {
        return Err(Failure::new(
            Exit::NotHealthyInTime,
            format!("node {node} runs, and does not serve after {} s", READY_MOST.as_secs()),
            format!("read {}, see `gabion status`", log.display()),
        ));
    }
    Ok(child.id())
}

/// Where the `up` that was to make them was interrupted.
fn make_disks_of(cluster: &ClusterDir, node: u32) -> Result<(), Failure> {
    let settings = process::settings(&cluster.config(node))?;
    let cannot = |error: &dyn std::fmt::Display| Failure::failed(error.to_string(), "");
    if is_initialised(&settings).map_err(|error| cannot(&error))? {
        return Ok(());
    }
    let mut bar = Bar::new("disk files");
    let made = gabion_daemon::init::init(&settings, false, |done, all| bar.set(done, all));
    bar.done(0);
    made.map(drop).map_err(|error| process::cannot_init(&error))
}

fn kill(node: u32, dir: &Path, signal: &str, as_json: bool) -> Result<(), Failure> {
    let signal = process::parse_signal(signal)
        .map_err(|wants| Failure::new(Exit::Usage, wants, "for example --signal TERM"))?;
    let cluster = known(node, dir)?;
    let pid = process::running(&cluster, node).ok_or_else(|| local::not_running(node))?;
    process::signal(pid, signal)?;
    let ends = signal == Signal::KILL || signal == Signal::TERM || signal == Signal::INT;
    if ends && !process::wait_gone(pid, GONE_MOST) {
        let what = format!("node {node} did not end within {} s", GONE_MOST.as_secs());
        return Err(Failure::failed(what, "use --signal KILL"));
    }
    show(as_json, &json!({ "node": node.to_string(), "pid": pid.as_raw_pid() }), || {
        format!("node {node}, process {}: signalled", pid.as_raw_pid())
    });
    Ok(())
}

fn known(node: u32, dir: &Path) -> Result<ClusterDir, Failure> {
    if !ClusterDir::exists(dir) {
        let what = format!("there is no cluster in {}", dir.display());
        return Err(Failure::new(Exit::NotFound, what, "`gabion up` makes one; else give --dir"));
    }
    let cluster = ClusterDir::open(dir)?;
    if cluster.entry(node).is_none() {
        let last = cluster.file.nodes.iter().map(|entry| entry.id).max().unwrap_or_default();
        let what = format!("there is no node {node} in {}", dir.display());
        return Err(Failure::new(Exit::NotFound, what, format!("it has nodes 1 to {last}")));
    }
    Ok(cluster)
}

/// The node of a configuration, until it is told to stop. Its log goes to stderr, with its last word.
fn run_node(config: &Path, io: Option<&str>) -> Result<(), Failure> {
    let mut settings = process::settings(config)?;
    if let Some(io) = io {
        settings = settings.with_io(io).expect("the command line knows the same names");
    }
    gabion_daemon::run_with(settings).map_err(|error| {
        // Whoever keeps it running need not start it again.
        let for_good = matches!(error, RunError::Removed { .. });
        let exit = if for_good { Exit::Refused } else { Exit::Failed };
        Failure::new(exit, error.to_string(), "")
    })
}
