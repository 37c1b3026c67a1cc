//! The directory of a node: locked for the life of its process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("another process runs on {dir}; stop it first", dir = dir.display())]
    InUse { dir: PathBuf },
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("the system has no random numbers: {0}")]
    Random(std::io::Error),
}

/// Holds `dir/lock`. While it lives no other process runs this node: so what an earlier incarnation
/// owned need not be waited for.
pub struct Home {
    pid: Option<PathBuf>,
    _lock: File,
}

impl Home {
    /// Also writes `dir/pid`. Errors: another process holds it.
    pub fn lock(dir: &Path) -> Result<Self, HomeError> {
        let mut home = Self::hold(dir)?;
        let pid = dir.join("pid");
        let written = File::create(&pid).and_then(|mut file| {
            writeln!(file, "{}", std::process::id())?;
            file.sync_all()
        });
        written.map_err(|error| HomeError::Io { path: pid.clone(), error })?;
        home.pid = Some(pid);
        Ok(home)
    }

    /// For who does not run the node: without `dir/pid`. Errors: as `lock`.
    pub fn hold(dir: &Path) -> Result<Self, HomeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| HomeError::Io { path, error }
        };
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        let path = dir.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = open.map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { pid: None, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(HomeError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(&path)(error)),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(pid) = &self.pid {
            let _left = std::fs::remove_file(pid);
        }
    }
}

/// From the system.
pub fn random() -> Result<u64, HomeError> {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(HomeError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = std::env::temp_dir().join(format!("gabion-home-{}", std::process::id()));
        let home = Home::lock(&dir).unwrap();
        let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
        let refused = Home::lock(&dir).err().unwrap().to_string();
        assert!(refused.contains("another process runs on"), "{refused}");
        drop(home);
        assert!(!dir.join("pid").exists());
        drop(Home::lock(&dir).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
