//! Clients that nobody here wrote, on a volume with two copies, over the unix and the TCP socket.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::command::needs_loop_devices;
use gabion_tests::fixture::{id, temp_dir};
use gabion_tests::{Cluster, Mounted, Shape, needs, run};
use gabion_types::Prng;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(180);

fn tool(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments), MOST).ok()
}

fn random_file(path: &Path, mib: usize, seed: u64) {
    let mut chance = Prng::new(seed);
    let mut file = File::create(path).unwrap();
    for _ in 0..mib {
        let piece: Vec<u8> = (0..(1 << 17)).flat_map(|_| chance.next_u64().to_le_bytes()).collect();
        file.write_all(&piece).unwrap();
    }
}

fn sha256(path: &Path) -> String {
    let line = tool("sha256sum", &[path.to_str().unwrap()]);
    line.split(' ').next().unwrap().to_owned()
}

#[test]
fn nbdinfo_sees_an_export_with_all_that_it_can() {
    if !needs(&["nbdinfo"]) {
        return;
    }
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    for uri in [cluster.tcp(1, "vm1"), cluster.unix(2, "vm1")] {
        let said = tool("nbdinfo", &["--json", &uri]);
        let info: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed", "{said}");
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 64 << 20, "{said}");
        assert_eq!(export["is_read_only"], false, "{said}");
        for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"] {
            assert_eq!(export[can], true, "{can}: {said}");
        }
        assert_eq!(export["block_size_preferred"], 4096, "{said}");
        let contexts = export["contexts"].as_array().unwrap();
        assert!(contexts.iter().any(|context| context == "base:allocation"), "{said}");
    }
    let root = cluster.tcp(1, "");
    let listed = tool("nbdinfo", &["--list", "--json", &root]);
    assert!(listed.contains("\"vm1\""), "{listed}");
}

#[test]
fn nbdinfo_maps_holes_and_data() {
    if !needs(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let uri = cluster.tcp(1, "vm1");
    let extents = |uri: &str| -> Vec<(u64, u64, u64)> {
        let said = tool("nbdinfo", &["--map", "--json", uri]);
        let map: Value = serde_json::from_str(&said).unwrap();
        let number = |value: &Value| value.as_u64().unwrap();
        let all = map.as_array().unwrap().iter();
        all.map(|e| (number(&e["offset"]), number(&e["length"]), number(&e["type"]))).collect()
    };
    assert_eq!(extents(&uri), [(0, 64 << 20, 3)], "a new volume is one hole that reads as zeros");
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 2M", "-c", "discard 2M 512k", &uri]);
    let expected = [
        (0, 1 << 20, 3),
        (1 << 20, 1 << 20, 0),
        (2 << 20, 512 << 10, 3),
        (2560 << 10, 512 << 10, 0),
        (3 << 20, 61 << 20, 3),
    ];
    assert_eq!(extents(&uri), expected);
    assert_eq!(extents(&cluster.unix(3, "vm1")), expected, "through another node");
}

#[test]
fn nbdcopy_brings_512_mib_in_and_out() {
    if !needs(&["nbdcopy", "sha256sum"]) {
        return;
    }
    let cluster = Cluster::of(Shape { disk_mib: 1536, segment_mib: 256, ..Shape::default() });
    cluster.create("vm1", 512);
    let dir = temp_dir("nbdcopy");
    let (source, back) = (dir.join("in"), dir.join("out"));
    let (unix, tcp) = (cluster.unix(1, "vm1"), cluster.tcp(2, "vm1"));
    for (seed, into) in [(1, &unix), (2, &tcp)] {
        random_file(&source, 512, seed);
        let wanted = sha256(&source);
        tool("nbdcopy", &["--flush", source.to_str().unwrap(), into]);
        for uri in [&unix, &tcp] {
            tool("nbdcopy", &[uri, back.to_str().unwrap()]);
            assert_eq!(sha256(&back), wanted, "in by {into}, out by {uri}");
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn qemu_img_converts_and_compares() {
    if !needs(&["qemu-img"]) {
        return;
    }
    let cluster = Cluster::start();
    cluster.create("vm1", 128);
    let dir = temp_dir("qemu-img");
    let source = dir.join("image");
    random_file(&source, 40, 2);
    File::options().write(true).open(&source).unwrap().set_len(128 << 20).unwrap();
    let source = source.to_str().unwrap();
    for uri in [cluster.tcp(1, "vm1"), cluster.unix(2, "vm1")] {
        tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]);
    }
    let qcow = dir.join("copy.qcow2");
    let qcow = qcow.to_str().unwrap();
    let uri = cluster.tcp(3, "vm1");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", source, qcow]);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn qemu_io_patterns_are_read_as_written() {
    if !needs(&["qemu-io"]) {
        return;
    }
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let patterns = |uri: &str, seed: u8| {
        let pattern = |offset: u8| (seed + offset).to_string();
        let (a, b) = (pattern(1), pattern(2));
        let commands = [
            format!("write -P {a} 0 1M"),
            format!("write -P {b} 512 1536"),
            format!("read -P {a} 0 512"),
            format!("read -P {b} 512 1536"),
            format!("read -P {a} 2k 1022k"),
            "discard 64k 64k".to_owned(),
            "read -P 0 64k 64k".to_owned(),
            format!("read -P {a} 128k 64k"),
            "write -z 256k 100k".to_owned(),
            "write -z -u 512k 64k".to_owned(),
            "read -P 0 256k 100k".to_owned(),
            "read -P 0 512k 64k".to_owned(),
            format!("write -f -P {b} 33M 4M"),
            "flush".to_owned(),
            format!("aio_write -P {a} 40M 1M"),
            format!("aio_write -P {b} 41M 1M"),
            "aio_flush".to_owned(),
            format!("read -P {b} 33M 4M"),
            format!("read -P {a} 40M 1M"),
            format!("read -P {b} 41M 1M"),
        ];
        let mut arguments = vec!["-f", "raw"];
        for command in &commands {
            arguments.extend(["-c", command.as_str()]);
        }
        arguments.push(uri);
        let said = tool("qemu-io", &arguments);
        assert!(!said.contains("verification failed") && !said.contains("rror"), "{said}");
    };
    patterns(&cluster.unix(1, "vm1"), 10);
    patterns(&cluster.tcp(1, "vm1"), 20);
    // Through a node that forwards to the owner.
    patterns(&cluster.tcp(2, "vm1"), 30);
    patterns(&cluster.unix(3, "vm1"), 40);
}

#[test]
fn a_file_system_survives_the_death_of_a_node() {
    if !needs(&["nbdfuse", "nbdcopy", "mkfs.ext4", "e2fsck"]) || !needs_loop_devices() {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.create("vm1", 256);
    let uri = cluster.unix(1, "vm1");
    let size = 256 << 20;
    let mounted = Mounted::of(&uri, size, Some("ext4"));
    let fs = mounted.path();
    random_file(&fs.join("before"), 40, 3);
    let wanted = sha256(&fs.join("before"));
    let owner = cluster.owner("vm1");
    let holders = cluster.holders("vm1");
    let victim = holders.into_iter().find(|node| *node != 1 && Some(*node) != owner).unwrap();
    cluster.kill(victim);
    random_file(&fs.join("after"), 40, 4);
    let wanted_after = sha256(&fs.join("after"));
    tool("sync", &["--file-system", fs.to_str().unwrap()]);
    mounted.unmount();
    let dir = temp_dir("ext4");
    let image = dir.join("image");
    tool("nbdcopy", &[&uri, image.to_str().unwrap()]);
    tool("e2fsck", &["-fn", image.to_str().unwrap()]);
    std::fs::remove_dir_all(&dir).unwrap();
    let mounted = Mounted::of(&uri, size, None);
    assert_eq!(sha256(&mounted.path().join("before")), wanted);
    assert_eq!(sha256(&mounted.path().join("after")), wanted_after);
    mounted.unmount();
}

#[test]
fn a_block_lies_where_locate_says() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let mut client = cluster.client(1, "vm1").unwrap();
    let data = gabion::judge::fill(5, 10, 1);
    client.write(10 * 4096, &data).unwrap();
    let found = cluster.json(&["volume", "locate", "vm1", "40960"]);
    let copies = found["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 2, "{found}");
    assert_ne!(id(&copies[0]["node"]), id(&copies[1]["node"]), "{found}");
    for copy in copies {
        use std::os::unix::fs::FileExt;
        let disk = File::open(copy["path"].as_str().unwrap()).unwrap();
        let mut block = vec![0; 4096];
        disk.read_exact_at(&mut block, copy["byte_offset"].as_u64().unwrap()).unwrap();
        assert_eq!(block, data, "{copy}");
    }
}

#[test]
fn a_mounted_file_system_keeps_what_was_synced() {
    if !needs(&["nbdfuse", "mkfs.ext4"]) || !needs_loop_devices() {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let uri = cluster.unix(1, "vm1");
    let mounted = Mounted::of(&uri, 64 << 20, Some("ext4"));
    std::fs::write(mounted.path().join("first"), [1; 100_000]).unwrap();
    mounted.unmount();
    let mounted = Mounted::of(&uri, 64 << 20, None);
    assert_eq!(std::fs::read(mounted.path().join("first")).unwrap(), [1; 100_000]);
    let mut second = File::create(mounted.path().join("second")).unwrap();
    second.write_all(&[2; 100_000]).unwrap();
    second.sync_all().unwrap();
    File::open(mounted.path()).unwrap().sync_all().unwrap();
    drop(second);
    // The machine that has it mounted is gone, and so is the node that it talked to.
    drop(mounted);
    cluster.kill(1);
    let mounted = Mounted::of(&cluster.unix(2, "vm1"), 64 << 20, None);
    assert_eq!(std::fs::read(mounted.path().join("second")).unwrap(), [2; 100_000]);
    mounted.unmount();
}
