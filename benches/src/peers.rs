//! What people use instead, on files of the same file system: QEMU's servers.

use gabion_harness::command::{Started, run};
use gabion_harness::fixture::{temp_dir, wait};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const STARTS_MOST: Duration = Duration::from_secs(10);
const WRITE_MOST: Duration = Duration::from_secs(120);
/// More than the connections of any job.
const CLIENTS_MAX: &str = "16";

/// Servers that run until this is dropped, and where their volume is.
pub struct Peer {
    pub uri: String,
    servers: Vec<Started>,
    dir: PathBuf,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.servers.clear();
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Peer {
    /// One `qemu-nbd` on one file: no copy, nothing is synced by itself.
    pub fn single(mib: u64) -> Self {
        let dir = temp_dir("single");
        let (server, socket) = qemu_nbd(&dir, "a", mib, "none");
        Self { uri: uri(&socket), servers: vec![server], dir }
    }

    /// QEMU's quorum over two `qemu-nbd`, both copies synced before the answer: what a person gets who mirrors a
    /// disk between two machines with QEMU alone.
    pub fn quorum(mib: u64) -> Self {
        let dir = temp_dir("quorum");
        let copies = ["a", "b"].map(|name| (name, qemu_nbd(&dir, name, mib, "directsync")));
        let socket = dir.join("quorum.sock");
        let mut command = Command::new("qemu-storage-daemon");
        for (name, (_, copy)) in &copies {
            let copy = copy.display();
            let node =
                format!("driver=nbd,node-name={name},server.type=unix,server.path={copy},export=v");
            command.args(["--blockdev", &node]);
        }
        let quorum =
            r#"{"driver":"quorum","node-name":"q","vote-threshold":2,"children":["a","b"]}"#;
        command.args(["--blockdev", quorum, "--nbd-server"]);
        command.arg(format!("addr.type=unix,addr.path={},max-connections=16", socket.display()));
        command.args(["--export", "type=nbd,id=e,node-name=q,name=v,writable=on"]);
        let quorum = listens(&mut command, &socket);
        let servers = copies.into_iter().map(|(_, (server, _))| server).chain([quorum]).collect();
        Self { uri: uri(&socket), servers, dir }
    }

    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Started::id).collect()
    }
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///v?socket={}", socket.display())
}

/// The file is written full before.
fn qemu_nbd(dir: &Path, name: &str, mib: u64, cache: &str) -> (Started, PathBuf) {
    let (file, socket) = (dir.join(name), dir.join(format!("{name}.sock")));
    written_file(&file, mib);
    let mut command = Command::new("qemu-nbd");
    command.args(["--export-name=v", "--format=raw", "--aio=io_uring", "--persistent"]);
    command.args([&format!("--cache={cache}"), &format!("--shared={CLIENTS_MAX}")]);
    command.arg("--socket").arg(&socket).arg(&file);
    let server = listens(&mut command, &socket);
    (server, socket)
}

fn listens(command: &mut Command, socket: &Path) -> Started {
    let mut server = Started::start(command);
    wait("QEMU listens", STARTS_MOST, || socket.exists() || !server.running());
    assert!(server.running(), "{}", server.complained());
    server
}

/// Of bytes that no file system can leave out.
pub fn written_file(file: &Path, mib: u64) {
    let mut command = Command::new("dd");
    command.args(["if=/dev/urandom", "bs=1M", "oflag=direct", "status=none"]);
    command.args([&format!("count={mib}"), &format!("of={}", file.display())]);
    run(&mut command, WRITE_MOST).ok();
}

/// One file copied to another one by `dd`, past the page cache. Answers MiB a second.
pub fn copy_speed(mib: u64) -> f64 {
    let dir = temp_dir("copy");
    let (from, to) = (dir.join("from"), dir.join("to"));
    written_file(&from, mib);
    let began = std::time::Instant::now();
    let mut command = Command::new("dd");
    command.args(["bs=1M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none"]);
    command.args([&format!("if={}", from.display()), &format!("of={}", to.display())]);
    run(&mut command, WRITE_MOST).ok();
    let took = began.elapsed();
    drop(std::fs::remove_dir_all(dir));
    mib as f64 / took.as_secs_f64()
}
