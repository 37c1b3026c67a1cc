//! `gabion demo`: the whole story by itself, every step of it checked.

mod report;

use crate::bar::Bar;
use crate::cli::DemoArgs;
use crate::failure::{Exit, Failure};
use crate::grpc_writer::{GrpcOutcome, GrpcPlan, GrpcWriter};
use crate::judge::{BLOCK_BYTES, Judge};
use crate::layout::Plan;
use crate::local::LocalCluster;
use crate::nbd_client::Patience;
use crate::process;
use crate::remote::Remote;
use crate::size::ByteSize;
use crate::span;
use crate::up::{make_disks, stop_signals};
use crate::verbs::volume::copied;
use crate::writer::{self, Outcome, Writer, WriterPlan};
use gabion_api::v1;
use report::{Figures, Report};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const VOLUME: &str = "demo";
const DISK_BYTES: u64 = 512 << 20;
const SEGMENT_BYTES: u64 = 32 << 20;
const VOLUME_BYTES: u64 = 192 << 20;
/// The first part is written through NBD, the rest through gRPC.
const NBD_BYTES: u64 = 128 << 20;
const DEPTH: usize = 16;
/// Between two requests of a writer once its region is full: a guest at work, not a benchmark.
const PACE: Duration = Duration::from_millis(3);
const STORY_MOST: Duration = Duration::from_secs(60);
const STALL_MOST: Duration = Duration::from_secs(10);
/// What is written while the owner is away is what its return must copy.
const AWAY: Duration = Duration::from_secs(2);
const WAIT_MOST: Duration = Duration::from_secs(45);
/// A node tells its figures ten times a second.
const FIGURES_LAG: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// JSON: one object at the end, with the checks and the figures.
pub fn demo(args: &DemoArgs, as_json: bool) -> Result<(), Failure> {
    let own_dir = std::env::temp_dir().join(format!("gabion-demo-{}", std::process::id()));
    let dir: PathBuf = args.dir.clone().unwrap_or_else(|| own_dir.clone());
    let stop = stop_signals()?;
    let started = Instant::now();
    let result = Story::begin(&dir, args, as_json, stop).and_then(|mut story| {
        let told = story.tell();
        story.cluster.stop();
        story.figures.took = started.elapsed();
        told.map(|()| story)
    });
    if args.dir.is_none() {
        // Half a gigabyte a node: it must not stay behind, also after a failure.
        drop(std::fs::remove_dir_all(&own_dir));
    }
    let mut story = result?;
    let took = story.figures.took;
    story.report.check(&format!("under {} s", STORY_MOST.as_secs()), took < STORY_MOST);
    story.report.end(&story.figures);
    let failed = story.report.failed();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(
        format!("{} of {} checks failed: {}", failed.len(), story.report.made(), failed.join("; ")),
        "run it again with --dir DIR and read DIR/node*/log",
    ))
}

struct Story {
    cluster: LocalCluster,
    remote: Remote,
    report: Report,
    figures: Figures,
    stop: Receiver<()>,
}

/// The guests at work.
struct Guests {
    nbd: Writer,
    grpc: GrpcWriter,
}

/// What they left: judges of all that was acknowledged.
struct Left {
    nbd: Judge,
    grpc: Vec<Judge>,
}

impl Story {
    fn begin(
        dir: &Path,
        args: &DemoArgs,
        as_json: bool,
        stop: Receiver<()>,
    ) -> Result<Self, Failure> {
        let report = Report::new(as_json);
        let disk = ByteSize(DISK_BYTES);
        report.say(&format!("Gabion demo: three nodes with a disk of {disk} each"));
        let cluster = lay_out(dir, args)?;
        let remote = Remote::at(&cluster.api_addresses())?;
        Ok(Self { cluster, remote, report, figures: Figures::default(), stop })
    }

    fn tell(&mut self) -> Result<(), Failure> {
        self.form()?;
        let guests = self.write()?;
        self.kill_a_copy(&guests)?;
        let left = self.kill_the_owner(guests)?;
        let left = self.bring_the_owner_back(left)?;
        self.read_all_back(left)
    }

    fn form(&mut self) -> Result<(), Failure> {
        self.report.step("1. A cluster forms, and a volume with two copies of each block is made");
        make_disks(&self.cluster, self.report.as_json())?;
        self.cluster.start_all()?;
        let nodes = self.cluster.ids();
        self.cluster.wait_ready(&nodes)?;
        self.set("rebuild.wait", "1s")?;
        let volume = self.remote.create(v1::CreateVolumeRequest {
            name: VOLUME.to_owned(),
            size_bytes: VOLUME_BYTES,
            rf: 2,
            hold_ms: 0,
            attach: v1::Attach::Any.into(),
        })?;
        let serving = self.comes_true("the nodes count as up", |story| {
            Ok(story.remote.nodes()?.iter().filter(|node| is_up(node)).count() == 3)
        })?;
        self.report.check("three nodes serve", serving);
        let volume = self.remote.volume(&volume.name)?;
        let spread = volume.segments.iter().all(|segment| nodes_of(segment).len() == 2);
        let made = format!("{VOLUME}: {}, each segment on two nodes", ByteSize(volume.size_bytes));
        self.report.check(&made, spread && !volume.segments.is_empty());
        Ok(())
    }

    fn write(&mut self) -> Result<Guests, Failure> {
        self.report
            .step("2. Guests fill it, through NBD and through gRPC, and verify what they read");
        let guests = self.start_guests(None, true)?;
        let mut bar = Bar::new("written");
        let all = VOLUME_BYTES;
        self.wait("the guests fill the volume", |_| {
            let (nbd, grpc) = (guests.nbd.progress(), guests.grpc.progress());
            bar.set(nbd.bytes_acknowledged + grpc.bytes_acknowledged, all);
            Ok(nbd.filled && grpc.filled)
        })?;
        bar.done(self.report.on_bar(all));
        self.healthy_guests(&guests);
        Ok(guests)
    }

    fn kill_a_copy(&mut self, guests: &Guests) -> Result<(), Failure> {
        let volume = self.remote.volume(VOLUME)?;
        let owner = owner_of(&volume)?;
        let victim = volume
            .segments
            .iter()
            .flat_map(nodes_of)
            .find(|node| *node != owner)
            .ok_or_else(|| Failure::failed("no node but the owner holds a copy", ""))?;
        self.report.step(&format!(
            "3. kill -9 node {victim}, which holds copies (node {owner} owns the volume)"
        ));
        let filled_before = self.told_filled(|node| node != victim)?;
        guests.nbd.reset_stall();
        guests.grpc.reset_stall();
        let before = acknowledged(guests);
        let killed_at = Instant::now();
        self.cluster.kill(victim)?;
        self.wait("the map drops the dead copies", |story| {
            let volume = story.remote.volume(VOLUME)?;
            Ok(!volume.segments.iter().any(|segment| nodes_of(segment).contains(&victim)))
        })?;
        let mut bar = Bar::new("rebuild");
        self.wait("the survivors hold two copies again", |story| {
            let volume = story.remote.volume(VOLUME)?;
            if let Some((done, all)) = copied(&volume) {
                bar.set(done, all);
            }
            Ok(is_healthy(&volume))
        })?;
        self.figures.rebuild_took = killed_at.elapsed();
        std::thread::sleep(FIGURES_LAG);
        let rebuilt = self.told_filled(|node| node != victim)?.saturating_sub(filled_before);
        bar.done(self.report.on_bar(rebuilt));
        self.figures.rebuilt_bytes = rebuilt;
        self.figures.stall_copy_killed = stall(guests);
        let stalled = span::shown(self.figures.stall_copy_killed);
        let segments = self.remote.volume(VOLUME)?.segments;
        let whole = |segment: &v1::Segment| {
            let nodes: BTreeSet<u32> = nodes_of(segment).into_iter().collect();
            nodes.len() == 2 && !nodes.contains(&victim)
        };
        let rebuilt = !segments.is_empty() && segments.iter().all(whole);
        self.report.check("every segment has two copies on the survivors", rebuilt);
        self.report.check("I/O went on meanwhile", acknowledged(guests) > before);
        let short = self.figures.stall_copy_killed < STALL_MOST;
        self.report.check(&format!("no stall over 10 s (longest {stalled})"), short);
        self.healthy_guests(guests);
        self.bring_back(victim)
    }

    fn kill_the_owner(&mut self, guests: Guests) -> Result<Left, Failure> {
        // The owner is to come back before its copies are made anew elsewhere.
        self.set("rebuild.wait", "60s")?;
        let volume = self.remote.volume(VOLUME)?;
        let owner = owner_of(&volume)?;
        self.figures.full_copy_bytes = held_by(&volume, owner);
        self.report.step(&format!("4. kill -9 node {owner}, the owner, under the writers"));
        guests.nbd.reset_stall();
        guests.grpc.reset_stall();
        let connections = guests.nbd.progress().connections;
        self.cluster.kill(owner)?;
        let (nbd, grpc) = (guests.nbd.progress(), guests.grpc.progress());
        self.wait("the guests go on through another node", |_| {
            let nbd_now = guests.nbd.progress();
            let grpc_now = guests.grpc.progress();
            Ok(nbd_now.writes_acknowledged > nbd.writes_acknowledged + 100
                && grpc_now.writes_acknowledged > grpc.writes_acknowledged + 100)
        })?;
        self.figures.stall_owner_killed = stall(&guests);
        let reconnected = guests.nbd.progress().connections > connections;
        self.report.check("the NBD client reconnected to another node", reconnected);
        let stalled = span::shown(self.figures.stall_owner_killed);
        let short = self.figures.stall_owner_killed < STALL_MOST;
        self.report.check(&format!("no stall over 10 s (longest {stalled})"), short);
        let mut left = self.stop_guests(guests);
        let survivor = self.survivor(&[owner])?;
        let sound = self.read_back(survivor, &mut left);
        self.report.check("every acknowledged block is there", sound);
        Ok(left)
    }

    fn bring_the_owner_back(&mut self, left: Left) -> Result<Left, Failure> {
        let ids = self.cluster.ids();
        let away = ids.into_iter().find(|node| self.cluster.pid(*node).is_none());
        let away = away.ok_or_else(|| Failure::failed("no node is away", ""))?;
        self.report.step(&format!(
            "5. Guests write on, then node {away} comes back: only what it missed is copied"
        ));
        let guests = self.start_guests(Some(left), false)?;
        let until = Instant::now() + AWAY;
        self.wait("the guests write on", |_| Ok(Instant::now() >= until))?;
        self.cluster.start(away)?;
        self.cluster.wait_ready(&[away])?;
        let mut bar = Bar::new("delta");
        self.wait("the returned copies are in sync", |story| {
            let volume = story.remote.volume(VOLUME)?;
            if let Some((done, all)) = copied(&volume) {
                bar.set(done, all);
            }
            Ok(is_healthy(&volume))
        })?;
        std::thread::sleep(FIGURES_LAG);
        // Counted by its process, which is a new one.
        let delta = self.told_filled(|node| node == away)?;
        bar.done(self.report.on_bar(delta));
        let volume = self.remote.volume(VOLUME)?;
        self.figures.delta_bytes = delta;
        let held = held_by(&volume, away);
        self.report.check("the node holds copies in sync again", held > 0);
        let full = self.figures.full_copy_bytes;
        let compared =
            format!("{} copied, not the {} of a full copy", ByteSize(delta), ByteSize(full));
        self.report.check(&compared, delta > 0 && delta < full);
        self.healthy_guests(&guests);
        let (nbd, grpc) = (guests.nbd.progress(), guests.grpc.progress());
        self.figures.written_meanwhile_bytes = nbd.bytes_acknowledged + grpc.bytes_acknowledged;
        Ok(self.stop_guests(guests))
    }

    fn read_all_back(&mut self, mut left: Left) -> Result<(), Failure> {
        self.report.step("6. All is read back, through each node");
        for node in self.cluster.ids() {
            let sound = self.read_back(node, &mut left);
            self.report.check(&format!("node {node} serves every acknowledged block"), sound);
        }
        let lost = self.figures.writes_lost;
        self.report.check("no acknowledged write is lost", lost == 0);
        Ok(())
    }
}

/// The parts of the story's steps.
impl Story {
    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        self.remote.set_setting(name, value)
    }

    /// The same, once they all tell: a node that came back may not be heard at the first call.
    fn told_filled(&mut self, of: impl Fn(u32) -> bool) -> Result<u64, Failure> {
        let mut filled = 0;
        self.wait("the nodes tell what was copied to them", |story| {
            filled = story.filled_bytes(&of)?;
            Ok(true)
        })?;
        Ok(filled)
    }

    /// Copied to the disks of these nodes since their processes began.
    ///
    /// Errors: one of them does not tell just now.
    fn filled_bytes(&mut self, of: impl Fn(u32) -> bool) -> Result<u64, Failure> {
        let disks = self.remote.disks()?;
        let filled: Option<Vec<u64>> =
            disks.iter().filter(|disk| of(disk.node)).map(|disk| disk.filled_bytes).collect();
        let silent = || Failure::failed("a node does not tell what was copied to it", "");
        Ok(filled.ok_or_else(silent)?.into_iter().sum())
    }

    /// Until it is so; an interrupt or the time ends the story. A question that nobody answers just
    /// now is asked again.
    fn wait(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let until = Instant::now() + WAIT_MOST;
        loop {
            if self.stop.try_recv().is_ok() {
                return Err(Failure::failed("interrupted", ""));
            }
            let last = match is_so(self) {
                Ok(true) => return Ok(()),
                Ok(false) => String::new(),
                Err(failure) => format!(" ({})", failure.what),
            };
            if Instant::now() >= until {
                let what = format!("after {} s still not: {what}{last}", WAIT_MOST.as_secs());
                return Err(Failure::new(
                    Exit::NotHealthyInTime,
                    what,
                    "run it with --dir DIR and read DIR/node*/log",
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// For what is checked: in time or not. Errors: interrupted.
    fn comes_true(
        &mut self,
        what: &str,
        is_so: impl FnMut(&mut Self) -> Result<bool, Failure>,
    ) -> Result<bool, Failure> {
        match self.wait(what, is_so) {
            Ok(()) => Ok(true),
            Err(failure) if failure.exit == Exit::NotHealthyInTime => {
                self.report.say(&format!("  {}", failure.what));
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    fn start_guests(&mut self, left: Option<Left>, fill: bool) -> Result<Guests, Failure> {
        let up: Vec<u32> = self
            .cluster
            .ids()
            .into_iter()
            .filter(|node| self.cluster.pid(*node).is_some())
            .collect();
        let seed = if fill { 1 } else { 3 };
        let mut addresses: Vec<_> = up.iter().map(|node| self.cluster.nbd_tcp(*node)).collect();
        addresses.extend(up.first().map(|node| self.cluster.nbd_unix(*node)));
        addresses.rotate_right(1);
        let plan = WriterPlan {
            addresses,
            export: VOLUME.to_owned(),
            first_block: 0,
            blocks: NBD_BYTES / block_bytes(),
            depth: DEPTH,
            seed,
            reads_percent: 30,
            fill_first: fill,
            pace: PACE,
            patience: Patience::default(),
        };
        let grpc = GrpcPlan {
            addresses: self.cluster.api_addresses(),
            volume: VOLUME.to_owned(),
            first_block: NBD_BYTES / block_bytes(),
            blocks: (VOLUME_BYTES - NBD_BYTES) / block_bytes(),
            depth: DEPTH / 2,
            seed: seed + 1,
            reads_percent: 30,
            fill_first: fill,
            pace: PACE,
        };
        let (nbd_judge, grpc_judges) = left.map_or((None, None), |l| (Some(l.nbd), Some(l.grpc)));
        let nbd = Writer::start_with(plan, nbd_judge);
        // The first to attach owns the volume: it shall be the NBD guest's node, for the story.
        let until = Instant::now() + WAIT_MOST;
        while nbd.progress().connected_to.is_none() && !nbd.ended() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(Guests { nbd, grpc: GrpcWriter::start(grpc, grpc_judges)? })
    }

    fn stop_guests(&mut self, guests: Guests) -> Left {
        guests.nbd.ask_to_stop();
        let grpc: GrpcOutcome = guests.grpc.stop();
        let nbd: Outcome = guests.nbd.stop();
        for (name, wrong) in [("NBD", &nbd.wrong), ("gRPC", &grpc.wrong)] {
            if let Some(wrong) = wrong {
                self.figures.writes_lost += 1;
                self.report.check(&format!("the {name} guest reads what it wrote: {wrong}"), false);
            }
        }
        for progress in [&nbd.progress, &grpc.progress] {
            self.figures.writes_acknowledged += progress.writes_acknowledged;
            self.figures.bytes_verified += progress.bytes_verified;
        }
        Left { nbd: nbd.judge, grpc: grpc.judges }
    }

    fn healthy_guests(&mut self, guests: &Guests) {
        let (nbd, grpc) = (guests.nbd.progress(), guests.grpc.progress());
        let failed: u64 = nbd.failed.values().chain(grpc.failed.values()).sum();
        let sound = failed == 0 && !guests.nbd.ended() && !guests.grpc.ended();
        let verified = ByteSize(nbd.bytes_verified + grpc.bytes_verified);
        let what = format!("no error seen by the guests, {verified} verified");
        self.report.check(&what, sound);
    }

    fn read_back(&mut self, node: u32, left: &mut Left) -> bool {
        let address = self.cluster.nbd_tcp(node);
        let judges = std::iter::once(&mut left.nbd).chain(&mut left.grpc);
        for judge in judges {
            match writer::read_back(&address, VOLUME, judge, Patience::default()) {
                Ok(bytes) => self.figures.bytes_verified += bytes,
                Err(error) => {
                    self.report.say(&format!("  {error}"));
                    self.figures.writes_lost += 1;
                    return false;
                }
            }
        }
        true
    }

    fn bring_back(&mut self, node: u32) -> Result<(), Failure> {
        self.cluster.start(node)?;
        self.cluster.wait_ready(&[node])?;
        let pid = self.cluster.pid(node).and_then(|pid| u32::try_from(pid.as_raw_pid()).ok());
        let back = self.comes_true("the node counts as up", |story| {
            let nodes = story.remote.nodes()?;
            Ok(nodes.iter().any(|told| told.id == node && is_up(told) && told.pid == pid))
        })?;
        self.report.check(&format!("node {node} is back as a new process"), back);
        Ok(())
    }

    fn survivor(&self, away: &[u32]) -> Result<u32, Failure> {
        let mut ids = self.cluster.ids().into_iter();
        ids.find(|node| !away.contains(node)).ok_or_else(|| Failure::failed("no node is left", ""))
    }
}

/// Beside another cluster on this machine the ports are moved until they are free.
fn lay_out(dir: &Path, args: &DemoArgs) -> Result<LocalCluster, Failure> {
    const PORTS_APART: u16 = 300;
    const TRIES: u16 = 40;
    if crate::layout::ClusterDir::exists(dir) {
        let what = format!("{} holds a cluster already", dir.display());
        return Err(Failure::new(Exit::Refused, what, "give an empty --dir, or none"));
    }
    let plan = |port_offset| Plan {
        nodes: 3,
        disks: 1,
        disk_bytes: DISK_BYTES,
        witness: false,
        port_offset,
        segment_bytes: args.hidden.segment_size.map_or(SEGMENT_BYTES, |size| size.0),
        io: args.hidden.io.name().to_owned(),
        zones: Vec::new(),
    };
    let plans = (0..TRIES).map(|step| plan(args.hidden.base_port_offset + step * PORTS_APART));
    let free = plans.clone().find(|plan| process::check_ports(&plan.addresses()).is_ok());
    // None is free: the first one's error says what is in the way.
    let plan = free.unwrap_or_else(|| plan(args.hidden.base_port_offset));
    LocalCluster::lay_out(dir, &plan, process::program()?)
}

fn block_bytes() -> u64 {
    u64::try_from(BLOCK_BYTES).expect("4096 fits")
}

fn nodes_of(segment: &v1::Segment) -> Vec<u32> {
    segment.in_sync.iter().map(|replica| replica.node).collect()
}

fn is_up(node: &v1::Node) -> bool {
    node.reachable && node.state == i32::from(v1::NodeState::Up)
}

fn owner_of(volume: &v1::Volume) -> Result<u32, Failure> {
    let owner = volume.owner.as_ref().map(|owner| owner.node);
    owner.ok_or_else(|| Failure::failed("nobody owns the volume", ""))
}

fn held_by(volume: &v1::Volume, node: u32) -> u64 {
    let held = volume.segments.iter().filter(|segment| nodes_of(segment).contains(&node)).count();
    u64::try_from(held).expect("fits") * SEGMENT_BYTES
}

fn is_healthy(volume: &v1::Volume) -> bool {
    volume.health == i32::from(v1::Health::Healthy)
}

fn acknowledged(guests: &Guests) -> u64 {
    guests.nbd.progress().writes_acknowledged + guests.grpc.progress().writes_acknowledged
}

fn stall(guests: &Guests) -> Duration {
    guests.nbd.progress().stall_most.max(guests.grpc.progress().stall_most)
}
