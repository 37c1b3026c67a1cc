//! Scrubs on real nodes: what rots where nobody reads is found and mended, or told.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion::nbd_client::NbdError;
use gabion_tests::fixture::{id, program, wait};
use gabion_tests::{Cluster, Shape, http, run};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 2048;
const BLOCK: u64 = 4096;

/// A volume of 8 MiB in two segments, written.
fn written() -> Cluster {
    let cluster = Cluster::of(Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() });
    cluster.create("vm1", BLOCKS >> 8);
    let mut guest = cluster.client(1, "vm1").unwrap();
    for first in (0..BLOCKS).step_by(64) {
        guest.write(first * BLOCK, &fill(1, first, 64)).unwrap();
    }
    cluster
}

/// A place on a disk file.
type Place = (PathBuf, u64);

/// Where the copies of a block lie now, in the order of their disks.
fn copies(cluster: &Cluster, block: u64) -> Vec<Place> {
    let found = cluster.json(&["volume", "locate", "vm1", &(block * BLOCK).to_string()]);
    let copies = found["copies"].as_array().unwrap().iter().filter(|copy| copy["data"] == true);
    let mut places: Vec<_> = copies
        .map(|copy| {
            let path = PathBuf::from(copy["path"].as_str().unwrap());
            (id(&copy["disk"]), (path, copy["byte_offset"].as_u64().unwrap()))
        })
        .collect();
    places.sort();
    places.into_iter().map(|(_, place)| place).collect()
}

fn put(place: &Place, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(&place.0).unwrap();
    file.write_all_at(bytes, place.1).unwrap();
    file.sync_all().unwrap();
}

fn get(place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let file = std::fs::File::open(&place.0).unwrap();
    file.read_exact_at(&mut bytes, place.1).unwrap();
    bytes
}

/// Flips a bit.
fn rot(place: &Place) {
    let mut bytes = get(place);
    bytes[77] ^= 4;
    put(place, &bytes);
}

/// `deep`: with that exit code. What it found.
fn scrub(cluster: &Cluster, deep: bool, code: i32) -> Value {
    let mut arguments = vec!["--json", "volume", "scrub", "vm1", "--wait"];
    arguments.extend(deep.then_some("--deep"));
    let ran = cluster.gabion_within(&arguments, MOST);
    assert_eq!(ran.code(), code, "{}{}", ran.out, ran.err);
    let done: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(done["at_ms"].as_u64().unwrap() > 1_600_000_000_000, "{done}");
    done["found"].clone()
}

fn numbers<const N: usize>(found: &Value, names: [&str; N]) -> [u64; N] {
    names.map(|name| found[name].as_u64().unwrap_or_else(|| panic!("{name}: {found}")))
}

/// Over all nodes: the values of a metric, added up.
fn metric(cluster: &Cluster, name: &str) -> u64 {
    let of = |node: u32| {
        let http = &cluster.local.dir.entry(node).unwrap().http;
        let text = http::get(http, "/metrics");
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.split('.').next()?.parse::<u64>().ok())
            .sum::<u64>()
    };
    cluster.local.ids().into_iter().map(of).sum()
}

fn kinds(cluster: &Cluster) -> Vec<String> {
    let events = cluster.gabion(&["--json", "events"]).ok();
    let events = serde_json::Deserializer::from_str(&events).into_iter::<Value>();
    events.flatten().filter_map(|event| Some(event["kind"].as_str()?.to_owned())).collect()
}

/// Bit rot, a write that the disk lost and one that went astray, each on one copy or the other, at
/// blocks that nobody reads.
// promise: no-silent-corruption
#[test]
fn what_rots_where_nobody_reads_is_found_and_mended() {
    let cluster = written();
    let [compared, bad] = numbers(&scrub(&cluster, false, 0), ["compared_blocks", "bad_blocks"]);
    assert_eq!((compared, bad), (BLOCKS, 0));
    let one = |block, copy: usize| copies(&cluster, block)[copy].clone();
    rot(&one(3, 0));
    rot(&one(4, 0));
    rot(&one(1500, 1));
    put(&one(700, 1), &[0; 4096]);
    let astray = get(&one(900, 0));
    put(&one(901, 0), &astray);
    // Tables alone don't tell.
    assert_eq!(numbers(&scrub(&cluster, false, 0), ["bad_blocks"]), [0]);
    let found = scrub(&cluster, true, 0);
    let names = ["verified_blocks", "bad_blocks", "mended_blocks", "lost_blocks", "skipped"];
    assert_eq!(numbers(&found, names), [2 * BLOCKS, 5, 5, 0, 0]);
    assert_eq!(numbers(&scrub(&cluster, true, 0), ["bad_blocks", "mended_blocks"]), [0, 0]);

    let mut guest = cluster.client(2, "vm1").unwrap();
    for first in (0..BLOCKS).step_by(64) {
        assert_eq!(guest.read(first * BLOCK, 64 * 4096).unwrap(), fill(1, first, 64));
    }
    assert_eq!(metric(&cluster, "gabion_volume_repaired_blocks_total"), 5);
    assert_eq!(metric(&cluster, "gabion_disk_corrupt_blocks_total"), 5);
    // A node tells its figures ten times a second.
    wait("the last one is told", MOST, || metric(&cluster, "gabion_volume_scrubs_total") == 4);
    assert!(metric(&cluster, "gabion_disk_scrubbed_bytes_total") >= 4 * BLOCKS * BLOCK);
    let kinds = kinds(&cluster);
    for (kind, least) in [("corrupt", 5), ("repaired", 4), ("scrub_began", 4), ("scrubbed", 4)] {
        let count = kinds.iter().filter(|told| *told == kind).count();
        assert!(count >= least, "{kind}: {count} of {kinds:?}");
    }
    let shown = cluster.gabion(&["volume", "show", "vm1"]).ok();
    assert!(shown.contains("last deep scrub, "), "{shown}");
}

// promise: no-silent-corruption
#[test]
fn what_rotted_on_every_copy_is_listed_until_it_is_overwritten() {
    let cluster = written();
    for block in [1030, 1031] {
        copies(&cluster, block).iter().for_each(rot);
    }
    rot(&copies(&cluster, 1032)[0]);
    let names = ["bad_blocks", "mended_blocks", "lost_blocks"];
    assert_eq!(numbers(&scrub(&cluster, true, 1), names), [5, 1, 2]);
    let lost = || cluster.show("vm1")["segments"][1]["lost"].clone();
    wait("they are listed", MOST, || lost() == serde_json::json!([{ "block": 6, "count": 2 }]));
    assert_eq!(cluster.show("vm1")["health"], "lost");
    let mut guest = cluster.client(1, "vm1").unwrap();
    for block in 1029..1034 {
        let read = guest.read(block * BLOCK, 4096);
        match block {
            1030 | 1031 => assert!(matches!(read, Err(NbdError::Failed(5))), "{read:?}"),
            _ => assert_eq!(read.unwrap(), fill(1, block, 1)),
        }
    }
    guest.write(1030 * BLOCK, &fill(2, 1030, 2)).unwrap();
    wait("they are listed no more", MOST, || lost() == serde_json::json!([]));
    assert_eq!(numbers(&scrub(&cluster, true, 0), names), [0, 0, 0]);
    assert!(kinds(&cluster).iter().any(|kind| kind == "lost"));
}

/// A cluster that was started anew, with the place of a map page on each of its disks.
struct Mapped {
    cluster: Cluster,
    paths: Vec<PathBuf>,
    place: (PathBuf, u64),
}

fn disk(verb: &str, path: &Path) -> gabion_tests::Ran {
    run(Command::new(program()).args(["--json", "disk", verb]).arg(path), MOST)
}

impl Mapped {
    fn new() -> Self {
        let mut cluster = written();
        assert_eq!(cluster.local.stop(), Vec::<u32>::new());
        let files = cluster.local.ids().into_iter();
        let paths: Vec<PathBuf> = files
            .map(|node| cluster.local.dir.node_file(node).unwrap().disks[0].path.clone())
            .collect();
        let page_of = |path: &PathBuf| {
            let shown: Value = serde_json::from_str(&disk("show", path).ok()).unwrap();
            let segments = shown["segments"].as_array().unwrap().iter();
            let mut pages = segments.flat_map(|segment| segment["map_pages"].as_array().unwrap());
            let page = pages.find(|page| page["data_blocks"] == 128)?;
            Some((path.clone(), page["offset"].as_u64().unwrap() + 1900))
        };
        let place = paths.iter().find_map(page_of).unwrap();
        cluster.start_all();
        Self { cluster, paths, place }
    }

    fn damaged(&self) -> u64 {
        metric(&self.cluster, "gabion_disk_damaged_pages_total")
    }

    /// What was found damaged is told, counted once, and whole again on the disks.
    fn ends_whole(mut self) {
        wait("it is counted", MOST, || self.damaged() == 1);
        assert!(kinds(&self.cluster).iter().any(|kind| kind == "damaged"));
        assert_eq!(numbers(&scrub(&self.cluster, true, 0), ["bad_blocks"]), [0]);
        assert_eq!(self.damaged(), 1);
        assert_eq!(self.cluster.local.stop(), Vec::<u32>::new());
        for path in &self.paths {
            let checked = disk("check", path);
            assert_eq!(checked.code(), 0, "{}{}", checked.out, checked.err);
        }
    }
}

/// A map page that is in memory: what lies on the disk is for the day when it is read again.
// promise: no-silent-corruption, self-describing
#[test]
fn a_map_page_that_rots_under_a_running_node_is_written_anew() {
    let mapped = Mapped::new();
    assert_eq!(numbers(&scrub(&mapped.cluster, true, 0), ["bad_blocks"]), [0]);
    rot(&mapped.place);
    let found = scrub(&mapped.cluster, true, 0);
    assert_eq!(numbers(&found, ["verified_blocks", "bad_blocks"]), [2 * BLOCKS, 0]);
    mapped.ends_whole();
}

/// A map page that is on the disk only: what its blocks held is unknown there, and another copy has it.
// promise: no-silent-corruption, self-describing
#[test]
fn a_map_page_that_rots_before_it_is_read_costs_its_blocks_which_are_mended() {
    let mapped = Mapped::new();
    rot(&mapped.place);
    let found = scrub(&mapped.cluster, true, 0);
    assert_eq!(numbers(&found, ["mended_blocks", "lost_blocks"]), [128, 0]);
    mapped.ends_whole();
}

/// By its own schedule, beside a guest that writes all the time, and after a restart of all nodes
/// that left the volume without an owner.
#[test]
fn it_goes_on_by_itself() {
    let mut cluster = written();
    rot(&copies(&cluster, 2000)[1]);
    for (name, value) in [("scrub.light", "1s"), ("scrub.deep", "2s"), ("scrub.share", "50%")] {
        cluster.set(name, value);
    }
    let mut guest = cluster.client(3, "vm1").unwrap();
    let mut number = 1;
    wait("it is mended", MOST, || {
        number += 1;
        guest.write(0, &fill(number, 0, 64)).unwrap();
        cluster.show("vm1")["scrub"]["deep"]["found"]["mended_blocks"] == 1
    });
    let at = |kind: &str| cluster.show("vm1")["scrub"][kind]["number"].as_u64().unwrap_or(0);
    let (light, deep) = (at("light"), at("deep"));
    wait("both go on", MOST, || at("light") > light + 1 && at("deep") > deep + 1);
    assert_eq!(guest.read(0, 64 * 4096).unwrap(), fill(number, 0, 64));
    drop(guest);

    cluster.set("scrub.light", "0");
    cluster.set("scrub.deep", "0");
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    cluster.start_all();
    assert_eq!(cluster.owner("vm1"), None);
    assert_eq!(numbers(&scrub(&cluster, true, 0), ["bad_blocks", "skipped"]), [0, 0]);
    let none = cluster.gabion(&["volume", "scrub", "none"]);
    assert_eq!(none.code(), 4, "{}", none.err);
}
