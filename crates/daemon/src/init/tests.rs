//! Disks that are made, kept, gone and full of somebody's data.

use super::*;
use gabion_types::ClusterId;
use std::io::Write;
use std::os::unix::fs::FileExt;

const DISK: u64 = 64 << 20;

/// A directory that goes away with the test.
struct TestDir(PathBuf);

impl Drop for TestDir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

impl TestDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("gabion-init-{name}-{}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn settings(&self, disks: &[&str]) -> Settings {
        let voter = "name = \"a\"\napi = \"127.0.0.1:1\"\npeer = \"127.0.0.1:2\"\n\
                     nbd = \"127.0.0.1:3\"\nhttp = \"127.0.0.1:4\"\n";
        let mut text = format!(
            "node = 1\ncluster = \"{}\"\nsecret = \"{}\"\ndir = {:?}\n",
            "01".repeat(16),
            "02".repeat(32),
            self.0.join("home")
        );
        for disk in disks {
            text += &format!("[[disks]]\npath = {:?}\nsize_bytes = {DISK}\n", self.0.join(disk));
        }
        text += &format!("[[voters]]\nnode = 1\n{voter}");
        Settings::parse(Path::new("node.toml"), &text).unwrap()
    }
}

fn made(settings: &Settings, force: bool) -> Vec<InitedDisk> {
    init(settings, force, |_, _| {}).unwrap()
}

fn refused(settings: &Settings) -> String {
    let error = init(settings, false, |_, _| {}).unwrap_err();
    assert!(matches!(error, InitError::Refused(_)), "{error}");
    error.to_string()
}

#[test]
fn a_node_is_made_once_and_its_disks_are_kept() {
    let dir = TestDir::new("once");
    let settings = dir.settings(&["disk0", "disk1"]);
    assert!(!is_initialised(&settings).unwrap());
    let mut told = Vec::new();
    let done = init(&settings, false, |bytes, all| told.push((bytes, all))).unwrap();
    assert!(done.iter().all(|disk| disk.done == Done::MadeFile { bytes: DISK }), "{done:?}");
    assert!(is_initialised(&settings).unwrap());
    assert!(told.iter().all(|(_, all)| *all == 2 * DISK));
    assert!(told.is_sorted() && told.iter().any(|(bytes, _)| (1..DISK).contains(bytes)));
    assert_eq!(told.last(), Some(&(2 * DISK, 2 * DISK)));
    let before = std::fs::read(&settings.disks[0].path).unwrap();
    for force in [false, true] {
        assert!(made(&settings, force).iter().all(|disk| disk.done == Done::Kept));
    }
    assert!(std::fs::read(&settings.disks[0].path).unwrap() == before);
    // Disks may change places: they say who they are.
    std::fs::rename(&settings.disks[0].path, dir.0.join("moved")).unwrap();
    let moved = dir.settings(&["moved", "disk1"]);
    assert!(made(&moved, false).iter().all(|disk| disk.done == Done::Kept));
}

#[test]
fn what_was_interrupted_is_gone_on_with() {
    let dir = TestDir::new("interrupted");
    let settings = dir.settings(&["disk0", "disk1"]);
    made(&settings, false);
    // As a kill leaves it, in the middle of the second disk.
    let mut identity = Identity::read(&settings).unwrap().unwrap();
    identity.complete = false;
    identity.write(&settings.dir).unwrap();
    std::fs::rename(&settings.disks[1].path, dir.0.join("disk1.new")).unwrap();
    let error = Identity::of_initialised(&settings).unwrap_err();
    assert!(matches!(error, IdentityError::Incomplete { node: 1 }), "{error}");
    assert!(!is_initialised(&settings).unwrap());
    let done = made(&settings, false);
    assert_eq!(done[0].done, Done::Kept);
    assert_eq!(done[1].done, Done::MadeFile { bytes: DISK });
    assert!(is_initialised(&settings).unwrap() && !dir.0.join("disk1.new").exists());
}

#[test]
fn a_disk_that_is_gone_is_not_made_again_unless_forced() {
    let dir = TestDir::new("gone");
    let settings = dir.settings(&["disk0", "disk1"]);
    made(&settings, false);
    std::fs::remove_file(&settings.disks[1].path).unwrap();
    let error = refused(&settings);
    assert!(error.contains("is not there") && error.contains("disk1"), "{error}");
    assert!(!settings.disks[1].path.exists());
    let done = made(&settings, true);
    assert_eq!((done[0].done, &done[0].lost), (Done::Kept, &None));
    assert!(done[1].lost.as_ref().unwrap().contains("which is not there"), "{done:?}");
    // The one that comes back is not the node's any more.
    assert_eq!(Identity::read(&settings).unwrap().unwrap().disks.len(), 2);
}

#[test]
fn what_holds_data_is_named_and_left_alone() {
    let dir = TestDir::new("holds");
    let other = Settings { cluster: ClusterId::new([9; 16]), ..dir.settings(&["theirs"]) };
    made(&other, false);
    std::fs::remove_dir_all(&other.dir).unwrap();
    std::fs::write(dir.0.join("letter"), "dear all").unwrap();
    let ext4 = std::fs::File::create(dir.0.join("ext4")).unwrap();
    ext4.set_len(DISK).unwrap();
    ext4.write_all_at(&[0x53, 0xEF], 0x438).unwrap();
    std::fs::File::create(dir.0.join("empty")).unwrap();
    let settings = dir.settings(&["theirs", "letter", "ext4", "empty", "nowhere/disk", "home"]);
    std::fs::create_dir_all(&settings.dir).unwrap();
    let error = refused(&settings);
    for told in [
        "theirs holds disk ",
        "of cluster 09090909090909090909090909090909",
        "letter holds 8 bytes",
        "ext4 holds an ext2, ext3 or ext4 file system",
        "no directory for the disk file",
        "home is no file and no block device",
    ] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert!(!error.contains("empty"), "{error}");
    assert_eq!(std::fs::read(dir.0.join("letter")).unwrap(), b"dear all");
    assert!(Identity::read(&settings).unwrap().is_none(), "nothing was touched");

    let settings = dir.settings(&["theirs", "letter", "ext4", "empty"]);
    let done = made(&settings, true);
    let lost: Vec<bool> = done.iter().map(|disk| disk.lost.is_some()).collect();
    assert_eq!(lost, [true, true, true, false]);
    assert!(done[0].to_string().contains("lost: disk "), "{}", done[0]);
    assert!(made(&settings, false).iter().all(|disk| disk.done == Done::Kept));
}

#[test]
fn a_disk_in_use_and_another_nodes_directory_are_refused_by_force_too() {
    let dir = TestDir::new("in-use");
    let settings = dir.settings(&["disk0"]);
    let mut file = std::fs::File::create(&settings.disks[0].path).unwrap();
    file.write_all(&[1]).unwrap();
    file.lock().unwrap();
    let error = init(&settings, true, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    drop(file);
    made(&settings, true);
    let other = Settings { cluster: ClusterId::new([9; 16]), ..settings.clone() };
    let error = init(&other, true, |_, _| {}).unwrap_err();
    assert!(matches!(error, InitError::Identity(IdentityError::Other { .. })), "{error}");
    let held = Home::hold(&settings.dir).unwrap();
    let error = init(&settings, false, |_, _| {}).unwrap_err();
    assert!(matches!(error, InitError::Home(HomeError::InUse { .. })), "{error}");
    drop(held);
}
