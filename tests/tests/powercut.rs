//! Power is cut under the real binary: of what was not flushed anything may be gone, and of what was
//! acknowledged nothing.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::Judge;
use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::fixture::{program, wait};
use gabion_tests::powercut::{CutDisk, Flushes, Left};
use gabion_tests::{Cluster, Shape, needs, rounds, run};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 24;
/// A volume that is not back by then has lost something.
const BACK_MOST: Duration = Duration::from_secs(30);

struct Rig {
    /// Dropped first: the cluster's directory can be removed when nothing is mounted in it.
    disks: Vec<(u32, CutDisk)>,
    cluster: Cluster,
    judge: Option<Judge>,
    seed: u64,
    left: Left,
}

impl Rig {
    /// A cluster whose disks are behind exporters; a volume on it with so many copies.
    fn of(nodes: u32, copies: u32, flushes: Flushes, seed: u64) -> Self {
        let shape = Shape { nodes, disk_mib: 96, segment_mib: 8, ..Shape::default() };
        let mut cluster = Cluster::of(shape);
        let (size, copies) = (format!("{MIB}MiB"), copies.to_string());
        cluster.gabion(&["volume", "create", "vm1", "--size", &size, "--rf", &copies]).ok();
        assert_eq!(cluster.local.stop(), Vec::<u32>::new());
        let disks = cluster.local.ids().into_iter().map(|node| {
            let path = &cluster.local.dir.node_file(node).unwrap().disks[0].path;
            (node, CutDisk::take(path, flushes))
        });
        let disks = disks.collect();
        Self { disks, cluster, judge: None, seed, left: Left::default() }
    }

    /// Errors: a node does not come up.
    fn power_on(&mut self) -> Result<(), String> {
        self.disks.iter_mut().for_each(|(_, disk)| disk.power_on());
        let local = &mut self.cluster.local;
        local.start_all().map_err(|error| error.to_string())?;
        let ids = local.ids();
        local.wait_ready(&ids).map_err(|error| error.to_string())
    }

    /// Writes for a while, then power goes everywhere, under load.
    fn write_until_the_cut(&mut self) {
        self.seed += 1;
        let plan = self.cluster.writer_plan("vm1", MIB, 1);
        let fill_first = self.judge.is_none();
        let writer = Writer::start_with(
            WriterPlan { seed: self.seed, fill_first, ..plan },
            self.judge.take(),
        );
        let written = || {
            let now = writer.progress();
            writer.ended() || (now.filled && now.writes_acknowledged > 300 + self.seed * 37 % 400)
        };
        wait("the guest writes", Duration::from_secs(60), written);
        self.cluster.kill_all();
        let ended = writer.give_up();
        assert_eq!(ended.wrong, None);
        self.judge = Some(ended.judge);
        for (node, disk) in &mut self.disks {
            let left = disk.cut(self.seed << 8 | u64::from(*node));
            self.left.flushed += left.flushed;
            self.left.kept += left.kept;
            self.left.torn += left.torn;
            self.left.dropped += left.dropped;
        }
    }

    /// The recorder of what was acknowledged reads all of it, through each node.
    fn all_is_there(&mut self) -> Result<(), String> {
        self.power_on()?;
        let judge = self.judge.as_mut().unwrap();
        let patience = Patience { handshake: BACK_MOST, io: BACK_MOST };
        for node in self.cluster.local.ids() {
            let until = Instant::now() + BACK_MOST;
            loop {
                let read = read_back(&self.cluster.local.nbd_tcp(node), "vm1", judge, patience);
                match read {
                    Ok(_) => break,
                    Err(gabion::writer::ReadBackError::Nbd(_)) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    Err(error) => return Err(format!("through node {node}: {error}")),
                }
            }
        }
        Ok(())
    }

    /// Nothing keeps a node's disk busy any more.
    fn stop(&mut self) {
        self.cluster.local.stop();
    }
}

fn rounds_hold(mut rig: Rig, rounds: usize) {
    rig.power_on().unwrap();
    for round in 0..rounds {
        rig.write_until_the_cut();
        rig.all_is_there().unwrap_or_else(|why| panic!("round {round}: {why}"));
    }
    rig.stop();
    let Left { flushed, kept, torn, dropped } = rig.left;
    eprintln!(
        "{rounds} rounds: {flushed} writes flushed; of the rest {kept} kept, {torn} torn, {dropped} dropped"
    );
    assert!(flushed > 0);
    assert!(kept + torn + dropped > 0, "the cuts came while something was under way");
}

// promise: acked-survives, flush-means-flush
#[test]
fn one_node_loses_power() {
    if needs(&["qemu-storage-daemon", "nbdfuse", "umount"]) {
        rounds_hold(Rig::of(1, 1, Flushes::Recorded, 1000), rounds(4, 100));
    }
}

// promise: acked-survives, flush-means-flush
#[test]
fn all_nodes_lose_power() {
    if needs(&["qemu-storage-daemon", "nbdfuse", "umount"]) {
        rounds_hold(Rig::of(3, 2, Flushes::Recorded, 2000), rounds(3, 100));
    }
}

/// The tests above would notice a node that does not flush.
#[test]
fn a_disk_that_ignores_flushes_loses_what_was_acknowledged() {
    if !needs(&["qemu-storage-daemon", "nbdfuse", "umount"]) {
        return;
    }
    let mut rig = Rig::of(1, 1, Flushes::Ignored, 3000);
    rig.power_on().unwrap();
    let caught = (0..5).any(|_| {
        rig.write_until_the_cut();
        rig.all_is_there().is_err()
    });
    rig.stop();
    assert!(caught, "five cuts without any flush, and nothing is missing: the cuts cut nothing");
}

/// Three nodes with two copies, of which the disk of one fails writes at a byte of it.
fn with_fault(node: u32, offset: impl Fn(&Value) -> u64) -> (Rig, Writer) {
    let mut rig = Rig::of(3, 2, Flushes::Recorded, 4000);
    let (_, disk) = rig.disks.iter_mut().find(|(of, _)| *of == node).unwrap();
    let shown = run(
        Command::new(program()).args(["--json", "disk", "show"]).arg(disk.image()),
        Duration::from_secs(30),
    );
    let offset = offset(&serde_json::from_str(&shown.ok()).unwrap());
    disk.write_fault = Some(offset);
    rig.power_on().unwrap();
    let plan = rig.cluster.writer_plan("vm1", MIB, 1);
    let writer = Writer::start(WriterPlan { pace: Duration::from_millis(1), ..plan });
    (rig, writer)
}

fn all_stands(rig: &mut Rig, writer: Writer) {
    let before = writer.progress().writes_acknowledged;
    wait("the guest gets on", Duration::from_secs(60), || {
        let now = writer.progress();
        writer.ended() || (now.filled && now.writes_acknowledged > before + 300)
    });
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    for node in rig.cluster.local.ids() {
        let address = rig.cluster.local.nbd_tcp(node);
        read_back(&address, "vm1", &mut left.judge, Patience::default())
            .unwrap_or_else(|error| panic!("through node {node}: {error}"));
    }
    rig.stop();
}

// rule: store/failed-write-ends-service
#[test]
fn a_write_that_fails_takes_the_disk_out_at_once_and_for_good() {
    if !needs(&["qemu-storage-daemon", "nbdfuse", "umount"]) {
        return;
    }
    // The 30th page of the journal: some frames go well.
    let (mut rig, writer) = with_fault(2, |shown| {
        let journal = shown["layout"]["journal_offset"].as_u64().unwrap();
        journal + 30 * 4096
    });
    wait("the disk is out of service", Duration::from_secs(60), || {
        rig.cluster.log(2).contains("a write failed")
    });
    wait("its copies are removed", Duration::from_secs(30), || {
        !rig.cluster.holders("vm1").contains(&2)
    });
    all_stands(&mut rig, writer);
    let log = rig.cluster.log(2);
    assert_eq!(log.matches("a write failed").count(), 1, "it is told once");
}
