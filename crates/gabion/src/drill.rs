//! `gabion drill run`: each node of a cluster of `up` is hurt in turn, one at a time, while guests write and verify.

mod report;
pub mod schedule;

use crate::drill_args::{DrillArgs, DrillDirArgs, DrillVerb, Harm};
use crate::failure::{Exit, Failure};
use crate::judge::{BLOCK_BYTES, Judge};
use crate::layout::ClusterDir;
use crate::nbd_client::{Address, Patience};
use crate::process;
use crate::remote::Remote;
use crate::span;
use crate::up::stop_signals;
use crate::verbs::{node, show};
use crate::writer::{self, Writer, WriterPlan};
use gabion_api::v1;
use gabion_daemon::drills::{DrillDir, Running};
use report::{Drilled, Report};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const DEPTH: usize = 8;
/// Between two requests once the volume is full: guests at work, not a benchmark.
const PACE: Duration = Duration::from_millis(2);
const HEALS_MOST: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Whether the cluster is there still is asked after so many looks.
const LOOKS_PER_CHECK: u32 = 100;
/// How often the clock is looked at outside of a drill's hours.
const SCHEDULE_LOOKS: Duration = Duration::from_secs(10);
/// Of a slow node: so long it runs, so long it does not.
const RUNS: Duration = Duration::from_millis(20);
/// Shorter stalls are none.
const NOTICED: Duration = Duration::from_millis(250);
const RESTS: Duration = Duration::from_millis(80);

pub fn run(verb: &DrillVerb, as_json: bool) -> Result<(), Failure> {
    match verb {
        DrillVerb::Run(args) => rounds(args, as_json),
        DrillVerb::List(DrillDirArgs { dir }) => {
            let kept = DrillDir::of(&cluster_in(dir)?.dir).kept();
            show(as_json, &json!({ "kept": kept }), || report::list(&kept));
            Ok(())
        }
        DrillVerb::Stop(DrillDirArgs { dir }) => stop_running(&cluster_in(dir)?, as_json),
    }
}

/// Errors: there is none.
fn cluster_in(dir: &Path) -> Result<ClusterDir, Failure> {
    if !ClusterDir::exists(dir) {
        let what = format!("there is no cluster in {}", dir.display());
        return Err(Failure::new(Exit::NotFound, what, "`gabion up` makes one; else give --dir"));
    }
    ClusterDir::open(dir)
}

fn pid_of(running: &Value) -> Option<Pid> {
    Pid::from_raw(i32::try_from(running["pid"].as_i64()?).ok()?)
}

fn stop_running(cluster: &ClusterDir, as_json: bool) -> Result<(), Failure> {
    let dir = DrillDir::of(&cluster.dir);
    let none = || Failure::new(Exit::NotFound, "no drill runs on this cluster", "");
    let pid = dir.running().as_ref().and_then(pid_of).ok_or_else(none)?;
    process::signal(pid, Signal::TERM)?;
    if !process::wait_gone(pid, HEALS_MOST) {
        let what = format!("process {pid} runs still; the node that it hurts may still be hurt");
        return Err(Failure::new(Exit::NotHealthyInTime, what, "look at `gabion status`"));
    }
    show(as_json, &json!({ "pid": pid.as_raw_pid() }), || "stopped".to_owned());
    Ok(())
}

/// One after the other, as the schedule wants; without one it is one round.
fn rounds(args: &DrillArgs, as_json: bool) -> Result<(), Failure> {
    let cluster = cluster_in(&args.dir)?;
    let dir = DrillDir::of(&cluster.dir);
    let io = |e: &std::io::Error| Failure::io("lock", &dir.path(), e);
    let Some(running) = dir.claim().map_err(|e| io(&e))? else {
        let what = "a drill runs on this cluster already";
        return Err(Failure::new(Exit::Refused, what, "`gabion drill stop` ends it"));
    };
    let stop = stop_signals()?;
    loop {
        let teller = Teller { running: &running, args };
        while !args.between.is_open_now(args.weekdays) {
            teller.tell("waits for its hours", &json!([]))?;
            if stop.recv_timeout(SCHEDULE_LOOKS).is_ok() {
                return Err(interrupted());
            }
        }
        let began = Instant::now();
        let done = Drill::begin(args, &cluster, teller, as_json, &stop).and_then(Drill::round);
        let Some(every) = args.every else { return done };
        match done {
            // It comes again when all is well.
            Err(failure) if failure.exit == Exit::Refused => eprintln!("{failure}"),
            Err(failure) => return Err(failure),
            Ok(()) => {}
        }
        // At once, where this one took longer.
        let rest = every.0.saturating_sub(began.elapsed());
        let next = format!("the next round is in {}", span::shown(rest));
        Teller { running: &running, args }.tell(&next, &json!([]))?;
        if stop.recv_timeout(rest).is_ok() {
            return Err(interrupted());
        }
    }
}

/// Says what it does, for who looks from elsewhere.
#[derive(Clone, Copy)]
struct Teller<'a> {
    running: &'a Running,
    args: &'a DrillArgs,
}

impl Teller<'_> {
    fn tell(&self, doing: &str, drills: &Value) -> Result<(), Failure> {
        let every = self.args.every.map(|every| u64::try_from(every.0.as_millis()));
        let told = json!({
            "pid": std::process::id(),
            "doing": doing,
            "every_ms": every.and_then(Result::ok),
            "drills": drills,
        });
        let cannot = |e: std::io::Error| Failure::failed(format!("cannot tell of it: {e}"), "");
        self.running.tell(&told).map_err(cannot)
    }
}

struct Drill<'a> {
    args: &'a DrillArgs,
    cluster: &'a ClusterDir,
    teller: Teller<'a>,
    remote: Remote,
    /// Made for this.
    volume: String,
    report: Report,
    stop: &'a Receiver<()>,
    /// Of what was acknowledged until now.
    judge: Option<Judge>,
}

impl<'a> Drill<'a> {
    /// Errors: the cluster is not healthy.
    fn begin(
        args: &'a DrillArgs,
        cluster: &'a ClusterDir,
        teller: Teller<'a>,
        as_json: bool,
        stop: &'a Receiver<()>,
    ) -> Result<Self, Failure> {
        let apis: Vec<String> = cluster.file.nodes.iter().map(|node| node.api.clone()).collect();
        let remote = Remote::at(&apis)?;
        let volume = format!("drill-{}", std::process::id());
        let report = Report::new(as_json);
        let drill = Self { args, cluster, teller, remote, volume, report, stop, judge: None };
        let wrong = drill.wrong_with_cluster()?;
        if !wrong.is_empty() {
            let what = format!("no drill on a cluster that is not well: {}", wrong.join("; "));
            return Err(Failure::new(Exit::Refused, what, "see `gabion status`"));
        }
        drill.teller.tell("fills a volume", &json!([]))?;
        drill.remote.create(v1::CreateVolumeRequest {
            name: drill.volume.clone(),
            size_bytes: args.size.0,
            rf: 2,
            hold_ms: 0,
            attach: v1::Attach::Any.into(),
        })?;
        Ok(drill)
    }

    fn round(mut self) -> Result<(), Failure> {
        let told = self.tell();
        // Also after a failure: it was made for this alone.
        let deleted = self.remote.delete(&self.volume, true);
        told.and(deleted)?;
        let path = self.report.keep(&DrillDir::of(&self.cluster.dir))?;
        self.report.end(&path);
        let wrong = self.report.wrong();
        if wrong.is_empty() {
            return Ok(());
        }
        let next = format!("read {}/node*/log, and `gabion events`", self.args.dir.display());
        Err(Failure::failed(wrong.join("; "), next))
    }

    fn tell(&mut self) -> Result<(), Failure> {
        for harm in self.args.only.clone() {
            for node in self.nodes() {
                if self.stop.try_recv().is_ok() {
                    return Err(interrupted());
                }
                let drilled = self.one(node, harm)?;
                self.report.add(drilled);
            }
        }
        Ok(())
    }

    fn nodes(&self) -> Vec<u32> {
        self.cluster.file.nodes.iter().map(|node| node.id).collect()
    }

    /// Sentences; none: all nodes run and are up, and every volume is healthy.
    fn wrong_with_cluster(&self) -> Result<Vec<String>, Failure> {
        let runs = |node: &u32| process::running(self.cluster, *node).is_some();
        let away = self.nodes().into_iter().filter(|node| !runs(node));
        let mut wrong: Vec<String> = away.map(|node| format!("node {node} does not run")).collect();
        let status = self.remote.status()?;
        let up = |node: &v1::Node| node.reachable && node.state == i32::from(v1::NodeState::Up);
        let silent = status.nodes.iter().filter(|node| !up(node));
        wrong.extend(silent.map(|node| format!("{} is not up", node.name)));
        let healthy = |volume: &v1::Volume| volume.health == i32::from(v1::Health::Healthy);
        let sick = status.volumes.iter().filter(|volume| !healthy(volume));
        wrong.extend(sick.map(|volume| format!("volume {} is not healthy", volume.name)));
        Ok(wrong)
    }

    /// Until it is. Errors: not in time, or interrupted.
    fn wait_well(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        loop {
            // A question that nobody answers just now is asked again.
            let wrong = self.wrong_with_cluster().unwrap_or_else(|failure| vec![failure.what]);
            if wrong.is_empty() {
                return Ok(began.elapsed());
            }
            if self.stop.try_recv().is_ok() {
                return Err(interrupted());
            }
            if began.elapsed() > HEALS_MOST {
                let what = format!("it did not heal: {}", wrong.join("; "));
                return Err(Failure::new(Exit::NotHealthyInTime, what, "see `gabion status`"));
            }
            std::thread::sleep(LOOK_EVERY * 10);
        }
    }

    fn one(&mut self, node: u32, harm: Harm) -> Result<Drilled, Failure> {
        self.wait_well()?;
        let writer = self.writer();
        wait_for_answers(&writer)?;
        let roles = self.roles(node)?;
        let doing = format!("{} node {node}{roles} …", harm.name());
        self.report.say(&doing);
        self.teller.tell(&doing, &self.report.json()["drills"])?;
        let copied_before = self.copied();
        writer.reset_stall();
        let acknowledged = writer.progress().writes_acknowledged;
        let began = Instant::now();
        let mut felt = Felt::default();
        let hurt = self.hurt(node, harm, || felt.look(&writer, began));
        let ended = hurt?;
        self.wait_well()?;
        let healed = ended.elapsed();
        // Who waited all the time has not told of it yet.
        wait_for_answers(&writer)?;
        felt.look(&writer, began);
        let outcome = writer.stop();
        let mut lost = outcome.wrong.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut judge = outcome.judge;
        let mut verified_bytes = outcome.progress.bytes_verified;
        for node in &self.cluster.file.nodes {
            let address = Address::Tcp(node.nbd.clone());
            match writer::read_back(&address, &self.volume, &mut judge, Patience::default()) {
                Ok(bytes) => verified_bytes += bytes,
                Err(error) => lost.push(format!("through {}: {error}", node.name)),
            }
        }
        self.judge = Some(judge);
        Ok(Drilled {
            node,
            harm,
            roles,
            guests_served_again: felt.served_again,
            longest_stall: felt.longest_stall,
            writes_acknowledged: outcome.progress.writes_acknowledged - acknowledged,
            verified_bytes,
            lost,
            healed_after: healed,
            copied_bytes: since(&copied_before, &self.copied()),
        })
    }

    fn writer(&mut self) -> Writer {
        let nodes = &self.cluster.file.nodes;
        let addresses = nodes.iter().map(|node| Address::Tcp(node.nbd.clone())).collect();
        let judge = self.judge.take();
        let drills = self.report.drills();
        let plan = WriterPlan {
            addresses,
            export: self.volume.clone(),
            first_block: 0,
            blocks: self.args.size.0 / u64::try_from(BLOCK_BYTES).expect("4096 fits"),
            depth: DEPTH,
            // Labels of different seeds never meet.
            seed: u64::try_from(drills).expect("few") + 1,
            reads_percent: 30,
            fill_first: judge.is_none(),
            pace: PACE,
            patience: Patience::default(),
        };
        Writer::start_with(plan, judge)
    }

    /// What the node is just now, for the table.
    fn roles(&self, node: u32) -> Result<String, Failure> {
        let owner = self.remote.volume(&self.volume)?.owner.map(|owner| owner.node);
        let leader = self.remote.status()?.leader;
        let roles = [(owner == Some(node), "owns the volume"), (leader == Some(node), "leads")];
        let roles: Vec<&str> =
            roles.into_iter().filter_map(|(is, role)| is.then_some(role)).collect();
        Ok(if roles.is_empty() { String::new() } else { format!(" ({})", roles.join(", ")) })
    }

    /// Hurts it for a while, and ends that in every case. Answers when it began to end it. Errors: interrupted.
    fn hurt(&self, node: u32, harm: Harm, mut look: impl FnMut()) -> Result<Instant, Failure> {
        let pid = process::running(self.cluster, node)
            .ok_or_else(|| Failure::failed(format!("node {node} does not run"), ""))?;
        let until = Instant::now() + self.args.lasts.0;
        match harm {
            Harm::Kill => process::signal(pid, Signal::KILL)?,
            Harm::Freeze => process::signal(pid, Signal::STOP)?,
            Harm::Slow => {}
        }
        let (mut stopped, mut looks) = (false, 0u32);
        while Instant::now() < until && !stopped {
            if harm == Harm::Slow {
                process::signal(pid, Signal::STOP)?;
                std::thread::sleep(RESTS);
                process::signal(pid, Signal::CONT)?;
                std::thread::sleep(RUNS);
            } else {
                std::thread::sleep(LOOK_EVERY);
            }
            look();
            looks += 1;
            stopped = self.stop.try_recv().is_ok()
                || (looks.is_multiple_of(LOOKS_PER_CHECK) && self.is_alone(node));
        }
        let ended = Instant::now();
        match harm {
            // Of a cluster that was stopped meanwhile nobody would stop it.
            Harm::Kill if self.is_alone(node) => {
                return Err(Failure::failed("the cluster was stopped during a drill", ""));
            }
            Harm::Kill => node::start_again(self.cluster, node).map(drop)?,
            Harm::Freeze | Harm::Slow => process::signal(pid, Signal::CONT)?,
        }
        if stopped { Err(interrupted()) } else { Ok(ended) }
    }

    /// No other node runs.
    fn is_alone(&self, node: u32) -> bool {
        let mut others = self.nodes().into_iter().filter(|other| *other != node);
        !others.any(|other| process::running(self.cluster, other).is_some())
    }

    /// Copied to each disk since its node's process began. Units: bytes.
    fn copied(&self) -> BTreeMap<u32, u64> {
        let disks = self.remote.disks().unwrap_or_default();
        disks.into_iter().filter_map(|disk| Some((disk.id, disk.filled_bytes?))).collect()
    }
}

/// A process that was started anew counts from zero.
fn since(before: &BTreeMap<u32, u64>, now: &BTreeMap<u32, u64>) -> u64 {
    let one = |(disk, now): (&u32, &u64)| {
        let before = before.get(disk).copied().unwrap_or_default();
        if before <= *now { now - before } else { *now }
    };
    now.iter().map(one).sum()
}

/// What guests felt of one drill.
#[derive(Default)]
struct Felt {
    longest_stall: Duration,
    /// From the harm to the end of the longest stall, if it was one that somebody notices.
    served_again: Duration,
}

impl Felt {
    fn look(&mut self, writer: &Writer, began: Instant) {
        let stall = writer.progress().stall_most;
        if stall > self.longest_stall {
            self.longest_stall = stall;
            if stall >= NOTICED {
                self.served_again = began.elapsed();
            }
        }
    }
}

/// Until the volume is full, and more was acknowledged than before.
fn wait_for_answers(writer: &Writer) -> Result<(), Failure> {
    let before = writer.progress().writes_acknowledged;
    let answered = || {
        let progress = writer.progress();
        progress.filled && progress.writes_acknowledged > before || writer.ended()
    };
    if process::wait_for(HEALS_MOST, answered) {
        return Ok(());
    }
    let why = writer.progress().last_break.unwrap_or_default();
    Err(Failure::failed(format!("nothing of the load is answered: {why}"), "see `gabion status`"))
}

fn interrupted() -> Failure {
    Failure::failed("stopped; the node that was hurt, if any, is well again", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_began_anew_counts_from_zero() {
        let before = BTreeMap::from([(1, 10), (2, 50)]);
        let now = BTreeMap::from([(1, 15), (2, 7), (3, 2)]);
        assert_eq!(since(&before, &now), 5 + 7 + 2);
    }
}
