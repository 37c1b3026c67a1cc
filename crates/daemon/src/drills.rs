//! What drills leave beside a cluster on one machine: one file for each that was run, `running.json` while
//! one runs, and `lock`, which its process holds.

use crate::identity::write_whole;
use serde_json::Value;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The newest that are told; older files stay where they are.
const KEPT_MAX: usize = 100;
/// A page of results is far below that. Units: bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `drills/` of a cluster that `up` made.
#[derive(Clone, Debug)]
pub struct DrillDir {
    pub cluster: PathBuf,
}

/// Held by who runs drills; nobody else does meanwhile.
#[derive(Debug)]
pub struct Running {
    path: PathBuf,
    _lock: File,
}

impl DrillDir {
    pub fn of(cluster: &Path) -> Self {
        Self { cluster: cluster.to_owned() }
    }

    /// None: the node with this directory is none of `up`.
    pub fn beside(node: &Path) -> Option<Self> {
        let cluster = node.parent()?;
        cluster.join("cluster.toml").exists().then(|| Self::of(cluster))
    }

    pub fn path(&self) -> PathBuf {
        self.cluster.join("drills")
    }

    fn running_path(&self) -> PathBuf {
        self.path().join("running.json")
    }

    fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(self.path())?;
        File::options().write(true).create(true).truncate(false).open(self.path().join("lock"))
    }

    /// None: another process runs drills.
    pub fn claim(&self) -> io::Result<Option<Running>> {
        let lock = self.lock()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Running { path: self.running_path(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What the process that runs drills says of itself. None: there is none.
    pub fn running(&self) -> Option<Value> {
        // What a killed one left behind counts for nothing.
        if !self.path().exists() || self.claim().ok()?.is_some() {
            return None;
        }
        read(&self.running_path())
    }

    /// Each with `time_ms`, since 1970, when it ended; the newest first.
    pub fn kept(&self) -> Vec<Value> {
        let files = fs::read_dir(self.path()).into_iter().flatten().filter_map(Result::ok);
        let named = files.filter_map(|file| {
            let path = file.path();
            let time: u64 = path.file_stem()?.to_str()?.parse().ok()?;
            (path.extension()? == "json").then_some((time, path))
        });
        let mut named: Vec<(u64, PathBuf)> = named.collect();
        named.sort_unstable_by(|a, b| b.cmp(a));
        let whole = named.into_iter().take(KEPT_MAX).filter_map(|(time, path)| {
            let mut told = read(&path)?;
            told.as_object_mut()?.insert("time_ms".to_owned(), time.into());
            Some(told)
        });
        whole.collect()
    }

    /// Answers where it is.
    pub fn keep(&self, time_ms: u128, told: &Value) -> io::Result<PathBuf> {
        let path = self.path().join(format!("{time_ms}.json"));
        write_whole(&path, format!("{told}\n").as_bytes(), 0o644)?;
        Ok(path)
    }
}

impl Running {
    pub fn tell(&self, told: &Value) -> io::Result<()> {
        write_whole(&self.path, told.to_string().as_bytes(), 0o644)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Else it is of no process, and counts for nothing.
        let _ = fs::remove_file(&self.path);
    }
}

fn read(path: &Path) -> Option<Value> {
    let length = fs::metadata(path).ok()?.len();
    (length <= FILE_BYTES_MAX)
        .then(|| fs::read(path).ok())?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dir(what: &str) -> DrillDir {
        let path = std::env::temp_dir().join(format!("gabion-{what}-{}", std::process::id()));
        DrillDir::of(&path)
    }

    #[test]
    fn one_runs_drills_at_a_time_and_a_killed_one_counts_for_nothing() {
        let drills = dir("drills-one");
        assert_eq!(drills.running(), None);
        let first = drills.claim().expect("a lock").expect("nobody has it");
        first.tell(&json!({ "doing": "kill" })).expect("written");
        assert!(drills.claim().expect("a lock").is_none());
        assert_eq!(drills.running(), Some(json!({ "doing": "kill" })));
        drop(first);
        assert_eq!(drills.running(), None);
        fs::write(drills.running_path(), "{}").expect("written");
        assert_eq!(drills.running(), None);
        fs::remove_dir_all(&drills.cluster).expect("removed");
    }

    #[test]
    fn the_newest_come_first_and_other_files_are_none() {
        let drills = dir("drills-kept");
        drop(drills.claim());
        for time in [5, 100, 20] {
            drills.keep(time, &json!({ "drills": [] })).expect("kept");
        }
        for (name, text) in [("x.json", "{}"), ("7.txt", "{}"), ("9.json", "not json")] {
            fs::write(drills.path().join(name), text).expect("written");
        }
        let times: Vec<Value> = drills.kept().iter().map(|kept| kept["time_ms"].clone()).collect();
        assert_eq!(times, [100, 20, 5]);
        fs::remove_dir_all(&drills.cluster).expect("removed");
    }
}
