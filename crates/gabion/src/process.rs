//! Node processes on this machine: start, find, signal, wait.

use crate::failure::{Exit, Failure};
use crate::layout::{ClusterDir, Wanted};
use gabion_daemon::HomeError;
use gabion_daemon::identity::IdentityError;
use gabion_daemon::init::InitError;
use gabion_daemon::settings::Settings;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a state that is waited for is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Whether a node goes when the process that started it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// As a child of `up`: it is stopped when `up` dies, however that dies.
    WithParent,
    Alone,
}

/// Starts `gabion node run` in a process group of its own, so that a Ctrl-C in the terminal reaches
/// `up` only, which then stops the nodes in order.
pub fn start(
    program: &Path,
    cluster: &ClusterDir,
    node: u32,
    bond: Bond,
) -> Result<Child, Failure> {
    let log_path = cluster.log(node);
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Failure::io("open", &log_path, &e))?;
    let log_too = log.try_clone().map_err(|e| Failure::io("open", &log_path, &e))?;
    let mut command = Command::new(program);
    command.args(["node", "run", "--config"]).arg(cluster.config(node));
    if bond == Bond::WithParent {
        command.arg("--with-parent");
    }
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::io("start", program, &e))
}

/// What a node's configuration says.
pub fn settings(config: &Path) -> Result<Settings, Failure> {
    Settings::read(config).map_err(|error| Failure::failed(error.to_string(), ""))
}

/// Why a node was not made. Refused are its disks, which hold something or are not there.
pub fn cannot_init(error: &InitError) -> Failure {
    let exit = match error {
        InitError::Refused(_)
        | InitError::Home(HomeError::InUse { .. })
        | InitError::Identity(IdentityError::Other { .. } | IdentityError::Removed { .. }) => {
            Exit::Refused
        }
        InitError::Home(HomeError::Io { .. } | HomeError::Random(_))
        | InitError::Identity(
            IdentityError::Missing { .. }
            | IdentityError::Incomplete { .. }
            | IdentityError::Unreadable { .. }
            | IdentityError::Io { .. },
        )
        | InitError::Disk(_)
        | InitError::Io { .. } => Exit::Failed,
    };
    Failure::new(exit, error.to_string(), "")
}

/// This very program.
pub fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::failed(format!("cannot tell where this program lies: {e}"), ""))
}

/// Called first thing in a node that is bound to its parent.
pub fn go_with_parent() {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        eprintln!("cannot be bound to the parent process, runs on by itself: {error}");
    }
}

/// The process of a node, if one runs: what its pid file says, checked against the command line, for
/// process ids are used again.
pub fn running(cluster: &ClusterDir, node: u32) -> Option<Pid> {
    let text = fs::read_to_string(cluster.node_dir(node).join("pid")).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    let config = cluster.config(node);
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let config = config.as_os_str().as_encoded_bytes();
    (arguments.contains(&config) && alive(pid)).then_some(pid)
}

/// It exists and is more than a zombie. The first thread of a process that was killed is a zombie
/// while others are still ending and hold its files and locks.
fn alive(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    tasks.is_ok_and(|tasks| tasks.flatten().any(|task| runs(&task.path())))
}

/// Whether a thread, by its directory in `/proc`, is not a zombie.
fn runs(task: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(task.join("stat")) else { return false };
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes().first().copied());
    !matches!(state, Some(Some(b'Z' | b'X')))
}

pub fn signal(pid: Pid, signal: Signal) -> Result<(), Failure> {
    kill_process(pid, signal).map_err(|e| {
        Failure::failed(format!("cannot signal process {}: {e}", pid.as_raw_pid()), "")
    })
}

/// On this thread, for what a verb waits for.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| Failure::failed(format!("cannot start what waits for answers: {e}"), ""))
}

/// None of its threads runs: a signal that stops a process is heeded by one of them first, and by the others a
/// moment later. The kernel's workers of its ring do not count.
pub fn is_stopped(pid: Pid) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())) else {
        return true;
    };
    tasks.flatten().all(|task| {
        // Gone meanwhile: it does not run.
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes().first().copied());
        stat.is_empty() || stat.contains("(iou-") || state == Some(Some(b'T'))
    })
}

pub fn wait_gone(pid: Pid, most: Duration) -> bool {
    wait_for(most, || !alive(pid))
}

/// Looks again and again until it is so, or the time is up.
pub fn wait_for(most: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + most;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a node serves I/O: its `/readyz` says 200.
pub fn ready(http: &str) -> bool {
    get(http, "/readyz", Duration::from_secs(1)).is_ok_and(|(status, _)| status == 200)
}

/// A plain HTTP/1.0 GET: status and body.
pub fn get(http: &str, path: &str, most: Duration) -> std::io::Result<(u16, String)> {
    let address = http.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let mut stream = TcpStream::connect_timeout(&address, most)?;
    stream.set_read_timeout(Some(most))?;
    stream.set_write_timeout(Some(most))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|number| number.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.unwrap_or_default()))
}

/// The last lines of a node's log, for an error message.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Every address that the nodes are to listen on must be free, or this says which one is not.
pub fn check_ports(wanted: &[Wanted]) -> Result<(), Failure> {
    for Wanted { node, what, address } in wanted {
        if let Err(error) = std::net::TcpListener::bind(address) {
            return Err(Failure::new(
                Exit::Failed,
                format!("node {node} cannot listen on {address} for {what}: {error}"),
                "stop what listens there (another `gabion up`?), see `ss -ltnp`",
            ));
        }
    }
    Ok(())
}

/// `KILL`, `SIGKILL` and `9` name the same.
pub fn parse_signal(typed: &str) -> Result<Signal, String> {
    let upper = typed.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "KILL" | "9" => Ok(Signal::KILL),
        "TERM" | "15" => Ok(Signal::TERM),
        "INT" | "2" => Ok(Signal::INT),
        "STOP" | "19" => Ok(Signal::STOP),
        "CONT" | "18" => Ok(Signal::CONT),
        "HUP" | "1" => Ok(Signal::HUP),
        _ => Err("a signal is one of KILL, TERM, INT, STOP, CONT, HUP".to_owned()),
    }
}
