//! Programs that nobody here wrote, run with a limit on their time.

use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a program said before it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its output; fails the test if it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.out, self.err);
        self.out
    }

    /// Its output as JSON; fails the test if it failed, or said something else.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("not JSON: {e}\n{out}"))
    }

    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// Runs a program to its end. Fails the test when it takes too long.
#[track_caller]
pub fn run(command: &mut Command, most: Duration) -> Ran {
    Started::start(command).finish(most)
}

/// A program that runs; killed when dropped.
pub struct Started {
    child: Child,
    name: String,
    /// What it says goes to files: a pipe that nobody reads would stop it.
    out: PathBuf,
    err: PathBuf,
}

impl Started {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let dir = crate::fixture::temp_dir("said");
        let (out, err) = (dir.join("out"), dir.join("err"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file in the temporary directory"))
            .stderr(File::create(&err).expect("a file in the temporary directory"))
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Self { child, name, out, err }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&self) -> &Child {
        &self.child
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// What it said on its standard output until now.
    pub fn said(&self) -> String {
        read(&self.out)
    }

    /// What it said on its standard error until now.
    pub fn complained(&self) -> String {
        read(&self.err)
    }

    #[track_caller]
    pub fn finish(mut self, most: Duration) -> Ran {
        let until = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Ran { status, out: read(&self.out), err: read(&self.err) };
            }
            if Instant::now() >= until {
                let (out, err) = (read(&self.out), read(&self.err));
                panic!("still running after {most:?}: {}\n{out}\n{err}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(dir) = self.out.parent() {
            drop(std::fs::remove_dir_all(dir));
        }
    }
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        drop(file.read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether these programs are there. Without one the test fails, unless `tests/run
/// --without-clients` said that they may be missing; then it is left out, and says so.
#[track_caller]
pub fn needs(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|program| !found(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let may_miss = std::env::var_os("GABION_TESTS_WITHOUT_CLIENTS").is_some();
    assert!(may_miss, "missing: {missing:?}; install them, or use tests/run --without-clients");
    left_out(&format!("{missing:?} is missing"));
    false
}

/// A test does nothing here, and why: `tests/run` says so in its last line.
#[track_caller]
pub fn left_out(why: &str) {
    let at = std::panic::Location::caller();
    let line = format!("{}:{}: {why}", at.file(), at.line());
    eprintln!("left out: {line}");
    let Some(path) = std::env::var_os("GABION_TESTS_LEFT_OUT") else { return };
    let opened = File::options().create(true).append(true).open(path);
    let told = opened.and_then(|mut file| writeln!(file, "{line}"));
    told.expect("the list of what was left out can be written");
}

/// Root, and loop devices to make block devices of; else the test is left out.
#[track_caller]
pub fn needs_loop_devices() -> bool {
    let root = rustix::process::geteuid().is_root();
    if root && Path::new("/dev/loop-control").exists() {
        return needs(&["losetup"]);
    }
    left_out("it needs root and loop devices");
    false
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

/// `tests/run --long` does more rounds.
pub fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os("GABION_TESTS_LONG").is_some() { long } else { short }
}
