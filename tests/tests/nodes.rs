//! Real nodes: a cluster laid out by hand, made by `cluster init` and `node init`, and run by
//! `node run` alone.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::command::needs_loop_devices;
use gabion_tests::fixture::wait;
use gabion_tests::machines::{DISK, Machines};
use gabion_tests::run;
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

#[test]
fn three_machines_laid_out_by_hand_become_a_cluster() {
    let mut machines = Machines::on_loopback();
    let said = machines.found().ok();
    assert!(said.contains("export GABION_CLUSTER="), "{said}");
    let shared = machines.dir.join("etc/cluster.toml");
    assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&shared).unwrap();
    let again = machines.found();
    assert_eq!((again.code(), fs::read_to_string(&shared).unwrap()), (5, secret), "{}", again.err);

    for node in 1..=3 {
        let config = machines.configure(node, &machines.disk(node));
        let early = machines.gabion(&["node", "run", "--config", &config]);
        assert_eq!(early.code(), 1, "{}", early.err);
        assert!(early.err.contains("`gabion node init`"), "{}", early.err);
        assert!(!machines.disk(node).exists(), "only `node init` makes a disk");
        machines.gabion(&["node", "init", "--config", &config]).ok();
        assert_eq!(fs::metadata(machines.disk(node)).unwrap().len(), DISK);
        machines.start(node);
    }
    (1..=3).for_each(|node| machines.wait_ready(node));
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB"]).ok();
    let mut guest = machines.nbd(1, "vm1");
    guest.write(4096, &[7; 8192]).unwrap();
    let init = machines.gabion(&["node", "init", "--config", "etc/node1.toml", "--force"]);
    assert_eq!(init.code(), 5, "it runs: {}{}", init.out, init.err);

    machines.kill(3);
    guest.write(0, &[8; 4096]).unwrap();
    assert_eq!(guest.read(4096, 8192).unwrap(), [7; 8192]);
    guest.disconnect();

    // The mount of its disk is missing when it comes back: it serves without, and makes nothing.
    let (disk, kept) = (machines.disk(3), machines.dir.join("unmounted"));
    fs::rename(&disk, &kept).unwrap();
    machines.start(3);
    machines.wait_ready(3);
    let state = |machines: &Machines| {
        let disks = machines.json(&["disk", "list"]);
        let disks = disks["disks"].as_array().unwrap().clone();
        let own = disks.iter().find(|disk| disk["node"] == "3").unwrap();
        own["state"].as_str().unwrap().to_owned()
    };
    wait("the map knows that it is missing", MOST, || state(&machines) == "missing");
    assert!(!disk.exists());
    assert!(machines.log(3).contains("out of service"), "{}", machines.log(3));
    let mut guest = machines.nbd(3, "vm1");
    assert_eq!(guest.read(0, 4096).unwrap(), [8; 4096]);
    guest.disconnect();
    let gone = machines.gabion(&["node", "init", "--config", "etc/node3.toml"]);
    assert_eq!(gone.code(), 5, "it runs: {}", gone.err);
    machines.kill(3);
    let gone = machines.gabion(&["node", "init", "--config", "etc/node3.toml"]);
    assert_eq!(gone.code(), 5, "{}", gone.err);
    assert!(gone.err.contains("is not there") && !disk.exists(), "{}", gone.err);

    fs::rename(&kept, &disk).unwrap();
    machines.start(3);
    machines.gabion(&["volume", "wait", "vm1", "--healthy", "--timeout", "50s"]).ok();
    // The volume has been whole without it.
    wait("the map knows that it is back", MOST, || state(&machines) == "in_service");
    let mut guest = machines.nbd(3, "vm1");
    assert_eq!(guest.read(4096, 8192).unwrap(), [7; 8192]);
    guest.disconnect();
}

/// A file as a block device; detached when dropped.
struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Self {
        let mut command = Command::new("losetup");
        let said = run(command.args(["--find", "--show"]).arg(file), MOST).ok();
        Self(said.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["--detach", &self.0]).status());
    }
}

#[test]
fn a_block_device_is_formatted_if_it_holds_nothing_or_that_may_be_lost() {
    if !needs_loop_devices() {
        return;
    }
    let mut machines = Machines::on_loopback();
    machines.found().ok();
    let backing = machines.dir.join("backing");
    File::create(&backing).unwrap().set_len(DISK).unwrap();
    let ext4 = File::options().write(true).open(&backing).unwrap();
    ext4.write_all_at(&[0x53, 0xEF], 0x438).unwrap();
    drop(ext4);
    let device = Loop::on(&backing);
    let config = machines.configure(1, Path::new(&device.0));
    let init = |more: &[&str]| {
        let mut verb = vec!["--json", "node", "init", "--config", &config];
        verb.extend(more);
        machines.gabion(&verb)
    };
    let refused = init(&[]);
    assert_eq!(refused.code(), 5, "{}", refused.err);
    assert!(refused.err.contains("ext4 file system; --force"), "{}", refused.err);
    let forced: Value = serde_json::from_str(&init(&["--force"]).ok()).unwrap();
    assert_eq!(forced["disks"][0]["done"], "formatted", "{forced}");
    assert_eq!(forced["disks"][0]["size_bytes"], DISK, "{forced}");
    assert!(forced["disks"][0]["lost"].as_str().unwrap().contains("ext4"), "{forced}");
    let again: Value = serde_json::from_str(&init(&[]).ok()).unwrap();
    assert_eq!(again["disks"][0]["done"], "kept", "{again}");

    for node in 2..=3 {
        let config = machines.configure(node, &machines.disk(node));
        machines.gabion(&["node", "init", "--config", &config]).ok();
    }
    (1..=3).for_each(|node| machines.start(node));
    (1..=3).for_each(|node| machines.wait_ready(node));
    machines.gabion(&["volume", "create", "vm1", "--size", "64MiB", "--rf", "3"]).ok();
    let mut guest = machines.nbd(1, "vm1");
    guest.write(0, &[9; 4096]).unwrap();
    guest.disconnect();
    let shown = machines.json(&["disk", "list"]);
    assert!(shown.to_string().contains(&device.0), "{shown}");
    (1..=3).for_each(|node| machines.kill(node));
    let found = machines.gabion(&["disk", "check", &device.0]);
    assert_eq!(found.code(), 0, "{}{}", found.out, found.err);
}
