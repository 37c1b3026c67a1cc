//! Disks that rot in each of their parts, under stopped, killed and running nodes: nothing of what guests
//! wrote is lost while another copy has it, and what was found is told, counted and whole again.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion_tests::fixture::{id, program, wait};
use gabion_tests::{Cluster, Shape, run};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 2048;
const BLOCK: u64 = 4096;

struct Rig {
    cluster: Cluster,
    /// What each block was last written with.
    seed: u64,
    /// A node with a copy of both segments.
    node: u32,
    path: PathBuf,
}

fn shown(path: &Path) -> Value {
    let ran = run(Command::new(program()).args(["--json", "disk", "show"]).arg(path), MOST);
    serde_json::from_str(&ran.ok()).unwrap()
}

fn check(path: &Path) -> i32 {
    run(Command::new(program()).args(["--json", "disk", "check"]).arg(path), MOST).code()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Flips a bit, or flips it back.
fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
}

impl Rig {
    /// A volume of 8 MiB in two segments of three nodes, written, and owned by a node without guests.
    fn new() -> Self {
        let cluster = Cluster::of(Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() });
        cluster.create("vm1", BLOCKS >> 8);
        let mut rig = Self { cluster, seed: 0, node: 1, path: PathBuf::new() };
        rig.pick();
        rig.write();
        rig
    }

    /// A node that has a copy of all of it now.
    fn pick(&mut self) {
        self.cluster.wait_healthy("vm1");
        let segments = self.cluster.show("vm1")["segments"].clone();
        let holds = |node: &u32| {
            let in_sync = |segment: &Value| {
                let replicas = segment["in_sync"].as_array().unwrap().iter();
                replicas.filter_map(|replica| id(&replica["node"])).any(|of| of == *node)
            };
            segments.as_array().unwrap().iter().all(in_sync)
        };
        self.node = self.cluster.local.ids().into_iter().find(holds).unwrap();
        self.path = self.cluster.local.dir.node_file(self.node).unwrap().disks[0].path.clone();
    }

    /// Where its copy of block 5 lies. None: it is on two others.
    fn block_place(&self) -> Option<(&'static str, u64)> {
        let found = self.cluster.json(&["volume", "locate", "vm1", &(5 * BLOCK).to_string()]);
        let mut copies = found["copies"].as_array().unwrap().iter();
        let own = copies.find(|copy| copy["path"].as_str() == self.path.to_str());
        own.map(|copy| ("block", number(&copy["byte_offset"])))
    }

    /// All of it anew.
    fn write(&mut self) {
        self.seed += 1;
        let mut guest = self.cluster.client(self.node, "vm1").unwrap();
        for first in (0..BLOCKS).step_by(64) {
            guest.write(first * BLOCK, &fill(self.seed, first, 64)).unwrap();
        }
    }

    /// Through each node, by the scrub's word, and after that the copies are two again.
    fn all_is_there(&self) {
        self.cluster.wait_healthy("vm1");
        for node in self.cluster.local.ids() {
            let mut guest = self.cluster.client(node, "vm1").unwrap();
            for first in (0..BLOCKS).step_by(64) {
                let read = guest.read(first * BLOCK, 64 * 4096).unwrap();
                assert_eq!(read, fill(self.seed, first, 64), "block {first} through node {node}");
            }
        }
        let found = self.scrub();
        assert_eq!(number(&found["lost_blocks"]), 0, "{found}");
        assert_eq!(number(&self.scrub()["bad_blocks"]), 0);
    }

    fn scrub(&self) -> Value {
        let verb = ["--json", "volume", "scrub", "vm1", "--deep", "--wait"];
        let done = self.cluster.gabion_within(&verb, MOST).ok();
        serde_json::from_str::<Value>(&done).unwrap()["found"].clone()
    }

    fn stop(&mut self) {
        assert_eq!(self.cluster.local.stop(), Vec::<u32>::new());
    }

    /// The texts of the events of damage.
    fn damages(&self) -> Vec<String> {
        let events = self.cluster.gabion(&["--json", "events"]).ok();
        let events = serde_json::Deserializer::from_str(&events).into_iter::<Value>();
        let damaged = events.flatten().filter(|event| event["kind"] == "damaged");
        damaged.filter_map(|event| Some(event["text"].as_str()?.to_owned())).collect()
    }

    /// Where each part lies under a running node, by a copy of the disk; something is in its journal.
    fn places_now(&self) -> Vec<(&'static str, u64)> {
        let mut guest = self.cluster.client(self.node, "vm1").unwrap();
        guest.write(0, &fill(self.seed, 0, 64)).unwrap();
        let copy = self.cluster.dir.join("copy");
        std::fs::copy(&self.path, &copy).unwrap();
        let frames = shown(&copy)["frames"].as_array().unwrap().clone();
        let frame = frames.iter().find(|frame| frame["standing"] == "counts").unwrap();
        let mut places = places(&copy);
        places.extend([("journal", number(&frame["offset"])), self.block_place().unwrap()]);
        places
    }

    fn disk_state(&self) -> Value {
        let shown = self.cluster.json(&["disk", "list"]);
        let disks = shown["disks"].as_array().unwrap().iter();
        let own = disks.filter(|disk| id(&disk["node"]) == Some(self.node));
        own.map(|disk| disk["state"].clone()).next().unwrap()
    }
}

/// Where each part of a stopped disk lies, by `disk show`: what the newest checkpoint uses.
fn places(path: &Path) -> Vec<(&'static str, u64)> {
    let shown = shown(path);
    let superblock = |used: bool| {
        let all = shown["superblocks"].as_array().unwrap().iter();
        let one = all.clone().find(|one| one["used"] == used);
        number(&one.unwrap_or_else(|| panic!("{}", shown["superblocks"]))["offset"])
    };
    let root = number(&shown["root"]["offset"]);
    let roots: Vec<u64> =
        shown["layout"]["root_offsets"].as_array().unwrap().iter().map(number).collect();
    let place = roots.iter().position(|offset| *offset == root).unwrap();
    let bitmap = number(&shown["layout"]["bitmap_offsets"][place]);
    let segments = shown["segments"].as_array().unwrap();
    let pages = segments[0]["map_pages"].as_array().unwrap().iter();
    let full = pages.filter(|page| page["data_blocks"] == 128).map(|page| number(&page["offset"]));
    vec![
        ("superblock", superblock(true)),
        ("superblock", superblock(false)),
        ("root", root),
        ("bitmap", bitmap),
        ("segment page", number(&segments[1]["segment_pages"][0]["offset"])),
        ("map page", full.into_iter().next().unwrap()),
    ]
}

/// Superblock, bitmap, segment page, map page and data, one at a time and all at once.
// promise: no-silent-corruption, self-describing
#[test]
fn what_rots_under_a_stopped_node_costs_nothing() {
    let mut rig = Rig::new();
    for mixed in [false, true] {
        for nth in [0, 1, 3, 4, 5, 6] {
            // A copy that comes back takes the place of its stand-in a moment later.
            let block = loop {
                rig.pick();
                rig.write();
                if let Some(block) = rig.block_place() {
                    break block;
                }
            };
            rig.stop();
            let mut places = places(&rig.path);
            places.push(block);
            let rotten: Vec<_> = match mixed {
                false => vec![places[nth]],
                true => [1, 3, 4, 5, 6].map(|nth| places[nth]).to_vec(),
            };
            rotten.iter().for_each(|(_, offset)| flip(&rig.path, offset + 1000));
            // The bitmap and the older superblock are not needed for a check of what is held.
            let needed = rotten.iter().any(|(part, _)| !["superblock", "bitmap"].contains(part));
            assert!(!needed || check(&rig.path) == 1, "{rotten:?}");
            rig.cluster.start_all();
            rig.all_is_there();
            let told = rig.damages();
            for (part, _) in rotten.iter().filter(|(part, _)| part.ends_with(" page")) {
                assert!(told.iter().any(|text| text.contains(part)), "{part}: {told:?}");
            }
            rig.stop();
            assert_eq!(check(&rig.path), 0, "{rotten:?}");
            rig.cluster.start_all();
            if mixed {
                return;
            }
        }
    }
}

/// Without a root or any superblock a disk can't be opened: it is out, and the others go on and make its
/// copies anew. It is back when it is whole again.
// promise: no-silent-corruption, acked-survives
#[test]
fn a_disk_without_root_or_superblocks_is_out_and_its_copies_are_made_anew() {
    let mut rig = Rig::new();
    for parts in [vec![2], vec![0, 1]] {
        rig.stop();
        let places = places(&rig.path);
        let rotten: Vec<u64> = parts.iter().map(|nth| places[*nth].1 + 1000).collect();
        rotten.iter().for_each(|offset| flip(&rig.path, *offset));
        assert_ne!(check(&rig.path), 0);
        rig.cluster.start_all();
        wait("the disk is out", MOST, || rig.disk_state() == "missing");
        rig.all_is_there();
        assert!(!rig.cluster.holders("vm1").contains(&rig.node));
        let problems = rig.cluster.json(&["status"])["problems"].to_string();
        assert!(problems.contains("disk"), "{problems}");
        rig.write();
        rig.stop();
        rotten.iter().for_each(|offset| flip(&rig.path, *offset));
        rig.cluster.start_all();
        wait("the disk is back", MOST, || rig.disk_state() == "in_service");
        rig.all_is_there();
        // What it had is old, and the copies are to be on it again for the next round.
        rig = Rig::new();
    }
}

/// A node is killed: its journal is needed. A frame in the middle, the newest one, or all of it rots.
// promise: no-silent-corruption, acked-survives
#[test]
fn a_journal_that_rots_under_a_killed_node_is_damage_and_nothing_old_is_served() {
    for which in 0..3 {
        let mut rig = Rig::new();
        rig.write();
        rig.cluster.kill(rig.node);
        let shown = shown(&rig.path);
        let frames = shown["frames"].as_array().unwrap().iter();
        let counts = frames.filter(|frame| frame["standing"] == "counts");
        let offsets: Vec<u64> = counts.map(|frame| number(&frame["offset"])).collect();
        assert!(offsets.len() > 3, "{}", offsets.len());
        let rotten = match which {
            0 => vec![offsets[offsets.len() / 2]],
            1 => vec![*offsets.last().unwrap()],
            _ => offsets,
        };
        rotten.iter().for_each(|offset| flip(&rig.path, offset + 60));
        let owner = rig.cluster.local.ids().into_iter().find(|node| *node != rig.node).unwrap();
        let mut guest = rig.cluster.client(owner, "vm1").unwrap();
        guest.write(0, &fill(rig.seed, 0, 1)).unwrap();
        drop(guest);
        rig.cluster.start_node(rig.node);
        rig.all_is_there();
        if which == 0 {
            let told = rig.damages();
            assert!(told.iter().any(|text| text.contains("journal")), "{told:?}");
        }
    }
}

/// All nodes are killed at once, and one of them has a rotten journal as well: what the others have counts.
// promise: no-silent-corruption, acked-survives
#[test]
fn a_journal_that_rots_while_all_are_down_costs_nothing_that_another_has() {
    let mut rig = Rig::new();
    for newest in [false, true] {
        rig.write();
        rig.cluster.kill_all();
        let shown = shown(&rig.path);
        let frames = shown["frames"].as_array().unwrap().iter();
        let counts = frames.filter(|frame| frame["standing"] == "counts");
        let offsets: Vec<u64> = counts.map(|frame| number(&frame["offset"])).collect();
        let at = if newest { offsets.len() - 1 } else { offsets.len() / 2 };
        flip(&rig.path, offsets[at] + 60);
        rig.cluster.start_all();
        rig.all_is_there();
    }
}

/// One part after the other, then all at once, under a node that has them in memory: a scrub finds them and
/// has them written anew.
// promise: no-silent-corruption, self-describing
// rule: store/scrub-looks-at-the-rest
#[test]
fn what_rots_under_a_running_node_is_found_by_a_scrub_and_written_anew() {
    let mut rig = Rig::new();
    rig.stop();
    rig.cluster.start_all();
    assert_eq!(number(&rig.scrub()["bad_blocks"]), 0);
    assert_eq!(rig.damages(), Vec::<String>::new());
    for nth in 0..8 {
        let (part, offset) = rig.places_now()[nth];
        flip(&rig.path, offset + 60);
        let found = rig.scrub();
        let (mended, told) = (number(&found["mended_blocks"]), rig.damages());
        if part == "block" {
            assert_eq!((mended, told.len()), (1, nth), "{told:?}");
            continue;
        }
        assert_eq!((mended, told.len()), (0, nth + 1), "{part}: {told:?}");
        assert!(told.iter().any(|text| text.contains(part)), "{part}: {told:?}");
    }
    for (_, offset) in rig.places_now() {
        flip(&rig.path, offset + 60);
    }
    rig.all_is_there();
    rig.stop();
    assert_eq!(check(&rig.path), 0);
}
