//! Disks of real nodes, looked at offline: whole ones, damaged ones, and what is no disk of ours.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::fill;
use gabion::nbd_client::{NbdError, Request};
use gabion_tests::fixture::{program, temp_dir, wait};
use gabion_tests::{Cluster, Ran, Shape, run};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 2048;

fn disk(verb: &str, path: &Path) -> Ran {
    run(Command::new(program()).args(["--json", "disk", verb]).arg(path), MOST)
}

fn check(path: &Path) -> (i32, Value) {
    let ran = disk("check", path);
    let json = serde_json::from_str(&ran.out).unwrap_or(Value::Null);
    (ran.code(), json)
}

fn disk_of(cluster: &Cluster, node: u32) -> PathBuf {
    cluster.local.dir.node_file(node).unwrap().disks[0].path.clone()
}

/// Flips a bit of what lies there.
fn rot(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
}

/// A volume of 8 MiB, written.
fn written() -> Cluster {
    let cluster = Cluster::of(Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() });
    cluster.create("vm1", BLOCKS >> 8);
    let mut guest = cluster.client(1, "vm1").unwrap();
    for first in (0..BLOCKS).step_by(64) {
        guest.write(first * 4096, &fill(1, first, 64)).unwrap();
    }
    cluster
}

/// Where the copies of a block lie now: path and byte offset.
fn copies(cluster: &Cluster, block: u64) -> Vec<(PathBuf, u64)> {
    let found = cluster.json(&["volume", "locate", "vm1", &(block * 4096).to_string()]);
    let copies = found["copies"].as_array().unwrap().iter().filter(|copy| copy["data"] == true);
    let place = |copy: &Value| {
        let path = PathBuf::from(copy["path"].as_str().unwrap());
        (path, copy["byte_offset"].as_u64().unwrap())
    };
    copies.map(place).collect()
}

/// Blocks that were met unreadable, over all disks.
fn corrupt_met(cluster: &Cluster) -> u64 {
    let shown = cluster.json(&["disk", "list"]);
    let disks = shown["disks"].as_array().unwrap().iter();
    disks.map(|disk| disk["corrupt_blocks"].as_u64().unwrap_or(0)).sum()
}

fn lost(cluster: &Cluster) -> Vec<(u64, u64, u64)> {
    let shown = cluster.show("vm1");
    let number = |value: &Value| value.as_u64().unwrap();
    let segments = shown["segments"].as_array().unwrap().iter();
    segments
        .flat_map(|segment| {
            let runs = segment["lost"].as_array().unwrap().iter();
            runs.map(|run| {
                (number(&segment["index"]), number(&run["block"]), number(&run["count"]))
            })
        })
        .collect()
}

// promise: no-silent-corruption
#[test]
fn what_rots_under_a_running_cluster_is_mended_and_what_is_lost_is_told() {
    const ROTTEN: u64 = 1030;
    let cluster = written();
    let mut guest = cluster.client(1, "vm1").unwrap();
    let said =
        |what: &str| cluster.local.ids().iter().any(|node| cluster.log(*node).contains(what));
    let name = "gave wrong data for block 6 of segment 1 of volume 1";
    let soon = Duration::from_secs(2);
    // One copy, or the other: the one that the owner reads first.
    for which in 0..2 {
        let before = copies(&cluster, ROTTEN);
        assert_eq!(before.len(), 2, "two copies");
        rot(&before[which].0, before[which].1 + 77);
        assert_eq!(guest.read(ROTTEN * 4096, 4096).unwrap(), fill(1, ROTTEN, 1));
        if !gabion::process::wait_for(soon, || said(name)) {
            rot(&before[which].0, before[which].1 + 77);
            continue;
        }
        wait("it is mended", MOST, || said("were mended on disk"));
        let after = copies(&cluster, ROTTEN);
        assert_ne!(after[which].1, before[which].1, "a new place");
        assert_eq!(after[1 - which].1, before[1 - which].1);
        break;
    }
    wait("it is counted", MOST, || corrupt_met(&cluster) == 1);

    // Both copies: that block alone is lost.
    for (path, offset) in copies(&cluster, ROTTEN) {
        rot(&path, offset + 78);
    }
    let gone = guest.read(ROTTEN * 4096, 4096);
    assert!(matches!(gone, Err(NbdError::Failed(5))), "{gone:?}");
    for near in [ROTTEN - 1, ROTTEN + 1] {
        assert_eq!(guest.read(near * 4096, 4096).unwrap(), fill(1, near, 1));
    }
    wait("it is listed", MOST, || lost(&cluster) == [(1, 6, 1)]);
    guest.write(ROTTEN * 4096, &fill(2, ROTTEN, 1)).unwrap();
    assert_eq!(guest.read(ROTTEN * 4096, 4096).unwrap(), fill(2, ROTTEN, 1));
    wait("it is listed no more", MOST, || lost(&cluster).is_empty());
}

// promise: no-silent-corruption, self-describing
#[test]
fn a_check_tells_whole_disks_from_damaged_ones() {
    let mut cluster = written();
    assert_eq!(cluster.local.stop(), Vec::<u32>::new());
    let checked: Vec<Value> = cluster
        .local
        .ids()
        .into_iter()
        .map(|node| {
            let (code, found) = check(&disk_of(&cluster, node));
            assert_eq!((code, &found["clean"]), (0, &Value::Bool(true)), "{found}");
            found
        })
        .collect();
    let blocks = checked.iter().map(|found| found["data_blocks"].as_u64().unwrap());
    assert_eq!(blocks.sum::<u64>(), 2 * BLOCKS, "two copies of each block");

    let holder = 1 + checked.iter().position(|found| found["data_blocks"] != 0).unwrap();
    let path = disk_of(&cluster, u32::try_from(holder).unwrap());
    let ran = disk("show", &path);
    let shown: Value = serde_json::from_str(&ran.ok()).unwrap();
    let page = &shown["segments"].as_array().unwrap().iter().find_map(|segment| {
        segment["map_pages"].as_array().unwrap().iter().find(|page| page["data_blocks"] == 128)
    });
    let at = page.unwrap()["offset"].as_u64().unwrap();
    rot(&path, at + 2000);
    let (code, found) = check(&path);
    assert_eq!((code, &found["clean"]), (1, &Value::Bool(false)));
    assert_eq!(found["damages"][0]["part"], "map page", "{found}");
    assert_eq!(found["damages"][0]["offset"].as_u64(), Some(at));
    assert_eq!(found["unknown_blocks"], 128);
    rot(&path, at + 2000);

    // The first slots of the pool that hold data, whatever block that is.
    let pool = shown["layout"]["pool_offset"].as_u64().unwrap();
    let file = std::fs::read(&path).unwrap();
    let slots = (usize::try_from(pool).unwrap()..file.len()).step_by(4096);
    let is_data = |at: &usize| !file[*at..].starts_with(b"GABION") && file[*at..][..8] != [0; 8];
    let data: Vec<u64> = slots.filter(is_data).map(|at| at as u64).take(3).collect();
    data.iter().for_each(|at| rot(&path, at + 4095));
    let (code, found) = check(&path);
    assert_eq!((code, found["bad_blocks_count"].as_u64()), (1, Some(3)), "{found}");
    let mut told: Vec<u64> = found["bad_blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bad| bad["offset"].as_u64().unwrap())
        .collect();
    told.sort_unstable();
    assert_eq!(told, data);
    let text = run(Command::new(program()).args(["disk", "check"]).arg(&path), MOST);
    assert!(text.out.contains("BAD ") && text.err.contains("3 blocks"), "{}{}", text.out, text.err);
}

/// Volumes are thin: what they could grow to is told beside what there is, and a disk that fills is told
/// of before it is full and when it is.
#[test]
fn what_is_promised_is_told_and_a_disk_that_fills_too() {
    const MIB: u64 = 1 << 20;
    let cluster =
        Cluster::of(Shape { nodes: 2, disk_mib: 128, segment_mib: 4, ..Shape::default() });
    cluster.create("vm1", 96);
    cluster.create("vm2", 96);
    let number = |value: &Value| value.as_u64().unwrap();
    let status = || cluster.json(&["status"]);
    let spaces = || {
        let shown = cluster.json(&["disk", "list"]);
        let disks = shown["disks"].as_array().unwrap().iter();
        disks.map(|disk| disk["space"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let capacity = status()["capacity"].clone();
    assert_eq!(number(&capacity["promised_bytes"]), 2 * 2 * 96 * MIB);
    assert!(number(&capacity["promised_bytes"]) > number(&capacity["total_bytes"]), "{capacity}");
    wait("both are empty", MOST, || spaces() == ["ok", "ok"]);
    let text = cluster.gabion(&["status"]).ok();
    assert!(text.contains("384 MiB promised to volumes (150 %)"), "{text}");

    cluster.set("space.near_full", "75%");
    let mut guest = cluster.client(1, "vm1").unwrap();
    let told = |what: &str| {
        let problems = status()["problems"].to_string();
        problems.matches(what).count() == 2
    };
    let mut full = false;
    let mut near = false;
    let mut first = 0;
    while !full && first < 96 << 8 {
        full = guest.write(first * 4096, &fill(1, first, 64)).is_err();
        first += 64;
        if !near && first % 1024 == 0 && first >= 84 << 8 {
            wait("they are near full", MOST, || spaces() == ["near-full", "near-full"]);
            assert!(told("is near full, "), "{}", status()["problems"]);
            near = true;
        }
    }
    if !full {
        let mut other = cluster.client(1, "vm2").unwrap();
        let mut at = (0..96 << 8).step_by(64);
        full = at.any(|first: u64| other.write(first * 4096, &fill(1, first, 64)).is_err());
    }
    assert!(full && near);
    wait("they are full", MOST, || spaces() == ["full", "full"]);
    assert!(told("is full: new data are refused"), "{}", status()["problems"]);
    // Giving back makes room.
    guest.call(Request::Trim { offset: 0, length: 64 << 20 }).unwrap();
    wait("there is room again", MOST, || spaces() == ["ok", "ok"]);
    assert!(status()["problems"].as_array().unwrap().is_empty(), "{}", status());
}

#[test]
fn a_disk_in_use_a_file_and_nothing_are_refused() {
    let cluster = Cluster::of(Shape { disk_mib: 128, segment_mib: 4, ..Shape::default() });
    let used = disk("check", &disk_of(&cluster, 1));
    assert_eq!(used.code(), 5, "{}", used.err);
    assert!(used.err.contains("stop that node first"), "{}", used.err);
    let dir = temp_dir("disks");
    assert_eq!(disk("check", &dir.join("none")).code(), 4);
    std::fs::write(dir.join("text"), vec![b'x'; 16 << 20]).unwrap();
    for verb in ["check", "show"] {
        let ran = disk(verb, &dir.join("text"));
        assert_eq!(ran.code(), 5, "{}", ran.err);
        assert!(ran.err.contains("no superblock of Gabion"), "{}", ran.err);
    }
    std::fs::remove_dir_all(dir).unwrap();
}
