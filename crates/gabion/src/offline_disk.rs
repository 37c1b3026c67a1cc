//! A disk that no node uses, for reading.

use crate::failure::{Exit, Failure};
use bytes::Bytes;
use gabion_store::OutOfService;
use gabion_types::DiskError;
use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const LOCK_MOST: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// A disk for reading, and nobody writes it meanwhile.
pub struct OfflineDisk {
    file: File,
    pub bytes: u64,
}

/// The lock of a node that was killed goes a moment after it: its ring is taken apart by the kernel
/// in the background.
fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    let until = Instant::now() + LOCK_MOST;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_AGAIN);
            }
            Err(TryLockError::WouldBlock) => {
                let what = format!("a node uses disk {}", path.display());
                return Err(Failure::new(Exit::Refused, what, "stop that node first"));
            }
            Err(TryLockError::Error(error)) => return Err(Failure::io("lock", path, &error)),
        }
    }
}

impl OfflineDisk {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut file = File::open(path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                return Failure::new(Exit::NotFound, format!("there is no {}", path.display()), "");
            }
            Failure::io("open", path, &error)
        })?;
        lock(&file, path)?;
        let bytes =
            file.seek(SeekFrom::End(0)).map_err(|e| Failure::io("find the size of", path, &e))?;
        Ok(Self { file, bytes })
    }

    pub fn read(&self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        let end = offset.saturating_add(length);
        if end > self.bytes {
            return Err(DiskError::PastEnd { end });
        }
        let mut buffer = vec![0; usize::try_from(length).expect("a usize has 64 bits here")];
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer.into()),
            Err(error) => Err(DiskError::Io { errno: error.raw_os_error().unwrap_or(5) }),
        }
    }
}

pub fn refused(path: &Path, why: OutOfService) -> Failure {
    let exit = match why {
        OutOfService::NotFormatted | OutOfService::TooNew { .. } => Exit::Refused,
        OutOfService::OtherCluster { .. }
        | OutOfService::Truncated { .. }
        | OutOfService::Damaged
        | OutOfService::Retired
        | OutOfService::Failed { .. }
        | OutOfService::Hangs { .. } => Exit::Failed,
    };
    let next = "no node would open it; what it held is on the other copies";
    Failure::new(exit, format!("disk {}: {why}", path.display()), next)
}
