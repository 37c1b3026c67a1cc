//! Real nodes on disks that misbehave while they run: sectors that can't be read, writes that the disk
//! loses or puts elsewhere. Found on read or by scrub, mended from the other copy, counted.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion::writer::{Writer, WriterPlan};
use gabion_tests::exported::ExportedDisk;
use gabion_tests::faulty::{FaultyDisk, Mishap};
use gabion_tests::fixture::wait;
use gabion_tests::{Cluster, Shape, needs};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 2048;
const BLOCK: u64 = 4096;

struct Rig<Disk = FaultyDisk> {
    /// Of node 2. Dropped first: then the cluster's directory can be removed.
    disk: Disk,
    cluster: Cluster,
}

impl<Disk> Drop for Rig<Disk> {
    fn drop(&mut self) {
        drop(self.cluster.local.kill_all());
    }
}

fn written(nodes: u32) -> Rig {
    written_on(nodes, FaultyDisk::take)
}

/// Two copies of 8 MiB on nodes 1 and 2 of so many, written; the volume is owned by node 1.
fn written_on<Disk>(nodes: u32, take: impl FnOnce(&Path) -> Disk) -> Rig<Disk> {
    let shape = Shape { nodes, disk_mib: 128, segment_mib: 4, ..Shape::default() };
    let mut cluster = Cluster::of(shape);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let path = &cluster.local.dir.node_file(2).unwrap().disks[0].path;
    let disk = take(path);
    [1, 2].into_iter().for_each(|node| cluster.local.start(node).unwrap());
    cluster.local.wait_ready(&[1, 2]).unwrap();
    wait("the others are known to be away", MOST, || {
        let shown = cluster.json(&["node", "list"]);
        let states = shown["nodes"].as_array().unwrap().iter();
        states.filter(|node| node["state"] == "silent").count()
            == usize::try_from(nodes - 2).unwrap()
    });
    cluster.create("vm1", BLOCKS >> 8);
    (3..=nodes).for_each(|node| cluster.start_node(node));
    let mut guest = cluster.client(1, "vm1").unwrap();
    for first in (0..BLOCKS).step_by(64) {
        guest.write(first * BLOCK, &fill(1, first, 64)).unwrap();
    }
    assert_eq!(cluster.owner("vm1"), Some(1));
    Rig { disk, cluster }
}

impl<Disk> Rig<Disk> {
    /// Where node 2's copy of a block lies.
    fn place(&self, block: u64) -> u64 {
        let offset = (block * BLOCK).to_string();
        let found = self.cluster.json(&["volume", "locate", "vm1", &offset]);
        let copies = found["copies"].as_array().unwrap().iter();
        let copy = copies.into_iter().find(|copy| copy["node"] == "2");
        copy.unwrap()["byte_offset"].as_u64().unwrap()
    }

    /// Bad, mended and lost blocks.
    fn scrub(&self) -> [u64; 3] {
        let done = self.cluster.json(&["volume", "scrub", "vm1", "--deep", "--wait"]);
        ["bad_blocks", "mended_blocks", "lost_blocks"]
            .map(|name| done["found"][name].as_u64().unwrap())
    }

    /// Blocks that were met unreadable, over all disks.
    fn corrupt_met(&self) -> u64 {
        let shown = self.cluster.json(&["disk", "list"]);
        let disks = shown["disks"].as_array().unwrap().iter();
        disks.map(|disk: &Value| disk["corrupt_blocks"].as_u64().unwrap()).sum()
    }
}

fn can_run() -> bool {
    needs(&["nbdfuse", "umount"])
}

// promise: no-silent-corruption
#[test]
fn sectors_that_cannot_be_read_are_so_many_bad_blocks() {
    if !can_run() {
        return;
    }
    let rig = written(2);
    let blocks = [3, 500, 501, 1999];
    let places = blocks.map(|block| rig.place(block));
    places.iter().for_each(|place| rig.disk.fail_reads_of(*place));
    assert_eq!(rig.scrub(), [4, 4, 0]);
    wait("they are counted", MOST, || rig.corrupt_met() == 4);
    assert!(blocks.iter().zip(places).all(|(block, place)| rig.place(*block) != place));
    assert_eq!(rig.scrub(), [0, 0, 0]);
    // Found by a guest that reads there, as well: through the owner on that node.
    rig.disk.fail_reads_of(rig.place(700));
    rig.cluster.gabion(&["volume", "move", "vm1", "--to", "2"]).ok();
    let mut guest = rig.cluster.client(2, "vm1").unwrap();
    for first in (0..BLOCKS).step_by(64) {
        assert_eq!(guest.read(first * BLOCK, 64 * 4096).unwrap(), fill(1, first, 64));
    }
    wait("it is counted", MOST, || rig.corrupt_met() == 5);
    wait("it is mended", MOST, || rig.cluster.log(2).matches("were mended on disk").count() == 1);
    assert_eq!(rig.scrub(), [0, 0, 0]);
}

/// At random, by nbdkit; a retry may go well.
// promise: no-silent-corruption
#[test]
fn reads_that_fail_at_random_are_answered_by_the_other_copy() {
    if !can_run() || !needs(&["nbdkit"]) {
        return;
    }
    let rig = written_on(2, |path| ExportedDisk::failing_reads(path, 25));
    // Only two nodes have disks: nothing could be moved away.
    rig.cluster.set("disk.suspect", "0");
    rig.cluster.gabion(&["volume", "move", "vm1", "--to", "2"]).ok();
    let mut guest = rig.cluster.client(2, "vm1").unwrap();
    let mut read_all = || {
        for first in (0..BLOCKS).step_by(64) {
            assert_eq!(guest.read(first * BLOCK, 64 * 4096).unwrap(), fill(1, first, 64));
        }
    };
    rig.disk.fail_reads(true);
    wait("some are met", MOST, || {
        read_all();
        rig.corrupt_met() > 0
    });
    rig.scrub();
    rig.disk.fail_reads(false);
    read_all();
    // Whatever was bad was written anew, and nothing else was touched.
    rig.scrub();
    assert_eq!(rig.scrub(), [0, 0, 0]);
}

// promise: no-silent-corruption
#[test]
fn writes_that_get_lost_or_go_astray_are_found_and_mended() {
    if !can_run() {
        return;
    }
    let rig = written(2);
    let mut guest = rig.cluster.client(1, "vm1").unwrap();
    rig.disk.mishap(Mishap::Lost);
    guest.write(100 * BLOCK, &fill(2, 100, 1)).unwrap();
    assert!(rig.disk.happened());
    // Two blocks are bad: the one that is not there, and the one that it went over.
    rig.disk.mishap(Mishap::Astray(rig.place(1500)));
    guest.write(200 * BLOCK, &fill(3, 200, 1)).unwrap();
    assert!(rig.disk.happened());
    assert_eq!(rig.scrub(), [3, 3, 0]);
    assert_eq!(rig.scrub(), [0, 0, 0]);
    wait("they are counted", MOST, || rig.corrupt_met() == 3);
    // What node 2 has is right again: it alone is asked.
    drop(guest);
    rig.cluster.gabion(&["volume", "move", "vm1", "--to", "2"]).ok();
    let mut guest = rig.cluster.client(2, "vm1").unwrap();
    for (block, number) in [(100, 2), (200, 3), (1500, 1), (101, 1)] {
        assert_eq!(guest.read(block * BLOCK, 4096).unwrap(), fill(number, block, 1));
    }
    assert_eq!(rig.corrupt_met(), 3);
}

// rule: volume/who-lags-for-long-is-done-without
#[test]
fn a_disk_for_which_all_writes_wait_is_replaced_while_it_answers() {
    if !can_run() {
        return;
    }
    let rig = written(3);
    rig.disk.slow_down(Duration::from_millis(150));
    is_replaced_while_it_answers(rig);
}

// rule: volume/who-lags-for-long-is-done-without
#[test]
fn a_disk_that_qemu_throttles_is_replaced_while_it_answers() {
    if !can_run() || !needs(&["qemu-storage-daemon"]) {
        return;
    }
    let rig = written_on(3, |path| ExportedDisk::throttled(path, 20));
    rig.cluster.set("member.lag", "20ms");
    is_replaced_while_it_answers(rig);
}

/// By guests that write and are answered all the time; what they wrote is read from the copies that are left.
fn is_replaced_while_it_answers<Disk>(mut rig: Rig<Disk>) {
    assert_eq!(rig.cluster.holders("vm1"), [1, 2]);
    let mut guest = rig.cluster.client(1, "vm1").unwrap();
    let mut blocks = (0..BLOCKS).cycle();
    let (mut round, mut latest) = (1, vec![1; usize::try_from(BLOCKS).unwrap()]);
    let end = Instant::now() + Duration::from_secs(120);
    while rig.cluster.holders("vm1").contains(&2) {
        assert!(Instant::now() < end, "it still has copies: {}", rig.cluster.log(1));
        round += 1;
        for block in blocks.by_ref().take(20) {
            guest.write(block * BLOCK, &fill(round, block, 1)).unwrap();
            latest[usize::try_from(block).unwrap()] = round;
        }
    }
    rig.cluster.wait_healthy("vm1");
    assert_eq!(rig.cluster.holders("vm1"), [1, 3]);
    assert!(rig.cluster.log(1).contains("failed: Slow"));
    rig.cluster.kill(1);
    let mut guest = rig.cluster.client(3, "vm1").unwrap();
    for (block, round) in (0..BLOCKS).zip(latest) {
        assert_eq!(guest.read(block * BLOCK, 4096).unwrap(), fill(round, block, 1));
    }
}

/// Handing a request to a slow disk must not hold up who does: leases, peers and other disks wait for the same thread.
#[test]
fn slow_disks_everywhere_silence_no_node() {
    if !can_run() {
        return;
    }
    let shape = Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() };
    let mut cluster = Cluster::of(shape);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let path = |node| cluster.local.dir.node_file(node).unwrap().disks[0].path.clone();
    let disks = [1, 2, 3].map(|node| FaultyDisk::take(&path(node)));
    cluster.local.start_all().unwrap();
    cluster.local.wait_ready(&[1, 2, 3]).unwrap();
    cluster.create("vm1", BLOCKS >> 8);
    let plan = WriterPlan { depth: 32, pace: Duration::ZERO, ..cluster.writer_plan("vm1", 8, 1) };
    let writer = Writer::start(plan);
    wait("it is filled", MOST, || writer.progress().filled);
    let unreached = |cluster: &Cluster| cluster.log_of_all().matches("cannot be reached").count();
    let before = unreached(&cluster);
    disks.iter().for_each(|disk| disk.slow_down(Duration::from_millis(300)));
    let written = writer.progress().writes_acknowledged;
    std::thread::sleep(Duration::from_secs(12));
    assert!(writer.progress().writes_acknowledged > written, "it goes on, slowly");
    assert_eq!(unreached(&cluster), before, "{}", cluster.log(1));
    disks.iter().for_each(|disk| disk.slow_down(Duration::ZERO));
    assert_eq!(writer.stop().wrong, None);
    cluster.wait_healthy("vm1");
    drop(cluster.local.kill_all());
}
