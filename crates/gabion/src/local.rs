//! A cluster of child processes on this machine: what `up`, `demo` and the tests of the whole run.

use crate::failure::{Exit, Failure};
use crate::layout::{ClusterDir, Plan};
use crate::nbd_client::Address;
use crate::process::{self, Bond};
use crate::remote::Remote;
use gabion_daemon::init::{init, is_initialised, is_removed};
use gabion_daemon::settings::Settings;
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// A node that has its disks serves within this time, or something is wrong.
const READY_MOST: Duration = Duration::from_secs(60);
/// A clean stop takes at most this long; then the process is killed.
const STOP_MOST: Duration = Duration::from_secs(30);
/// Releasing all volumes takes at most this long; what is owned then is taken over like after a crash.
const RELEASE_MOST: Duration = Duration::from_secs(15);
const RELEASE_PAUSE: Duration = Duration::from_millis(50);
const LOG_TAIL_LINES: usize = 15;

/// Shape: the children that were started here and not yet seen to end, by node.
pub struct LocalCluster {
    pub dir: ClusterDir,
    program: PathBuf,
    children: BTreeMap<u32, Child>,
}

impl LocalCluster {
    /// Lays a new cluster out, or continues the one that lies there.
    pub fn lay_out(dir: &Path, plan: &Plan, program: PathBuf) -> Result<Self, Failure> {
        if !ClusterDir::exists(dir) {
            process::check_ports(&plan.addresses())?;
            let dir = ClusterDir::create(dir, plan)?;
            return Ok(Self { dir, program, children: BTreeMap::new() });
        }
        let dir = ClusterDir::open(dir)?;
        if let Some((node, pid)) = running(&dir).first() {
            return Err(Failure::new(
                Exit::Refused,
                format!(
                    "the cluster in {} runs already: node {node} is process {}",
                    dir.dir.display(),
                    pid.as_raw_pid()
                ),
                "stop that `gabion up`, or give another --dir",
            ));
        }
        process::check_ports(&dir.addresses()?)?;
        Ok(Self { dir, program, children: BTreeMap::new() })
    }

    /// Without those that the cluster has removed: they never run again.
    pub fn ids(&self) -> Vec<u32> {
        let removed = |node: u32| {
            let settings = process::settings(&self.dir.config(node)).ok();
            settings.is_some_and(|settings| is_removed(&settings).unwrap_or(false))
        };
        let ids = self.dir.file.nodes.iter().map(|entry| entry.id);
        ids.filter(|node| !removed(*node)).collect()
    }

    pub fn start(&mut self, node: u32) -> Result<(), Failure> {
        let child = process::start(&self.program, &self.dir, node, Bond::WithParent)?;
        self.children.insert(node, child);
        Ok(())
    }

    pub fn start_all(&mut self) -> Result<(), Failure> {
        self.ids().into_iter().try_for_each(|node| self.start(node))
    }

    /// Makes the identities and disks of those nodes that have none yet, or not all of them.
    /// `progress` hears how many bytes of disk files are written, of all. Takes as long as it takes.
    pub fn make_disks(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), Failure> {
        let mut new = Vec::new();
        for node in self.ids() {
            let settings = process::settings(&self.dir.config(node))?;
            if !is_initialised(&settings).map_err(|e| Failure::failed(e.to_string(), ""))? {
                new.push(settings);
            }
        }
        let bytes_of = |settings: &Settings| -> u64 {
            settings.disks.iter().filter_map(|disk| disk.size_bytes).sum()
        };
        let all: u64 = new.iter().map(bytes_of).sum();
        let mut before = 0;
        for settings in &new {
            init(settings, false, |made, _| progress(before + made, all))
                .map_err(|error| process::cannot_init(&error))?;
            before += bytes_of(settings);
            progress(before, all);
        }
        Ok(())
    }

    /// Waits until all of these serve.
    pub fn wait_ready(&mut self, nodes: &[u32]) -> Result<(), Failure> {
        let until = Instant::now() + READY_MOST;
        loop {
            if let Some((node, status)) = self.ended().into_iter().find(|(n, _)| nodes.contains(n))
            {
                return Err(self.died(node, status));
            }
            let waiting = nodes.iter().find(|node| !self.ready(**node));
            let Some(waiting) = waiting else { return Ok(()) };
            if Instant::now() >= until {
                let log = self.dir.log(*waiting);
                return Err(Failure::new(
                    Exit::NotHealthyInTime,
                    format!(
                        "node {waiting} does not serve after {} s; its log ends:\n{}",
                        READY_MOST.as_secs(),
                        process::log_tail(&log, LOG_TAIL_LINES)
                    ),
                    format!("read {}", log.display()),
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn ready(&self, node: u32) -> bool {
        self.dir.entry(node).is_some_and(|entry| process::ready(&entry.http))
    }

    fn died(&self, node: u32, status: ExitStatus) -> Failure {
        let log = self.dir.log(node);
        Failure::failed(
            format!(
                "node {node} ended ({status}); its log ends:\n{}",
                process::log_tail(&log, LOG_TAIL_LINES)
            ),
            format!("read {}", log.display()),
        )
    }

    /// Children that ended since the last call.
    pub fn ended(&mut self) -> Vec<(u32, ExitStatus)> {
        let ended: Vec<(u32, ExitStatus)> = self
            .children
            .iter_mut()
            .filter_map(|(node, child)| Some((*node, child.try_wait().ok().flatten()?)))
            .collect();
        for (node, _) in &ended {
            self.children.remove(node);
        }
        ended
    }

    pub fn pid(&self, node: u32) -> Option<Pid> {
        process::running(&self.dir, node)
    }

    /// Signals a node; of KILL and TERM its end is waited for, of STOP that none of its threads runs.
    pub fn signal(&mut self, node: u32, signal: Signal) -> Result<(), Failure> {
        let pid = self.pid(node).ok_or_else(|| not_running(node))?;
        process::signal(pid, signal)?;
        let ends = signal == Signal::KILL || signal == Signal::TERM;
        if ends && !self.wait_gone(node, pid, STOP_MOST) {
            return Err(Failure::failed(format!("node {node} did not end in time"), ""));
        }
        let stops = signal == Signal::STOP;
        if stops && !process::wait_for(STOP_MOST, || process::is_stopped(pid)) {
            return Err(Failure::failed(format!("node {node} did not stop in time"), ""));
        }
        Ok(())
    }

    pub fn kill(&mut self, node: u32) -> Result<(), Failure> {
        self.signal(node, Signal::KILL)
    }

    /// All at the same moment.
    pub fn kill_all(&mut self) -> Result<(), Failure> {
        let pids = running(&self.dir);
        for (_, pid) in &pids {
            process::signal(*pid, Signal::KILL)?;
        }
        for (node, pid) in pids {
            if !self.wait_gone(node, pid, STOP_MOST) {
                return Err(Failure::failed(format!("node {node} did not end in time"), ""));
            }
        }
        Ok(())
    }

    /// Reaps the child too, so that nothing is left of it.
    fn wait_gone(&mut self, node: u32, pid: Pid, most: Duration) -> bool {
        let gone = process::wait_gone(pid, most);
        if gone && let Some(mut child) = self.children.remove(&node) {
            drop(child.wait());
        }
        gone
    }

    /// First all let go of guests and volumes, while every copy is there; then all leave at once, so
    /// that nobody is taken for a failure by those who stay. Returns those that had to be killed.
    pub fn stop(&mut self) -> Vec<u32> {
        let pids = running(&self.dir);
        for (_, pid) in &pids {
            drop(process::signal(*pid, Signal::CONT));
            drop(process::signal(*pid, Signal::USR1));
        }
        self.wait_released();
        for (_, pid) in &pids {
            // One that ended meanwhile needs no signal; a frozen one must go on to hear it.
            drop(process::signal(*pid, Signal::TERM));
            drop(process::signal(*pid, Signal::CONT));
        }
        let until = Instant::now() + STOP_MOST;
        let mut killed = Vec::new();
        for (node, pid) in pids {
            let left = until.saturating_duration_since(Instant::now());
            if !self.wait_gone(node, pid, left) {
                drop(process::signal(pid, Signal::KILL));
                self.wait_gone(node, pid, STOP_MOST);
                killed.push(node);
            }
        }
        // What has no pid file yet (it was still starting).
        for child in self.children.values_mut() {
            drop(child.kill());
            drop(child.wait());
        }
        self.children.clear();
        killed
    }

    /// Until nobody owns a volume any more. Without a majority nobody can tell, and nothing can be
    /// released either.
    fn wait_released(&self) {
        let Ok(remote) = Remote::at(&self.api_addresses()) else { return };
        let until = Instant::now() + RELEASE_MOST;
        while Instant::now() < until && self.dir.file.nodes.iter().any(|n| self.pid(n.id).is_some())
        {
            match remote.volumes() {
                Ok(volumes) if volumes.iter().any(|volume| volume.owner.is_some()) => {}
                Ok(_) | Err(_) => return,
            }
            std::thread::sleep(RELEASE_PAUSE);
        }
    }

    pub fn api_addresses(&self) -> Vec<String> {
        self.dir.file.nodes.iter().map(|entry| entry.api.clone()).collect()
    }

    pub fn nbd_tcp(&self, node: u32) -> Address {
        let entry = self.dir.entry(node).expect("a node of this cluster");
        Address::Tcp(entry.nbd.clone())
    }

    pub fn nbd_unix(&self, node: u32) -> Address {
        let entry = self.dir.entry(node).expect("a node of this cluster");
        Address::Unix(entry.nbd_unix.clone())
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

pub fn not_running(node: u32) -> Failure {
    Failure::new(Exit::NotFound, format!("node {node} does not run"), "see `gabion node list`")
}

/// The nodes of a directory that run, with their processes.
pub fn running(dir: &ClusterDir) -> Vec<(u32, Pid)> {
    let ids = dir.file.nodes.iter().map(|entry| entry.id);
    ids.filter_map(|node| Some((node, process::running(dir, node)?))).collect()
}
