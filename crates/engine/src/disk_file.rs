//! Makes a file that stands for a disk, and writes what a formatter says onto a disk.

use crate::arena::AlignedBuf;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of one write; the size of a disk file is a multiple of 4096, so of the last one too.
const STEP_BYTES: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DiskFileError {
    #[error("the size of a disk file must be a multiple of 4096 bytes and not {bytes}")]
    Misaligned { bytes: u64 },
    #[error("disk file {path} cannot be made ({error})")]
    Create { path: PathBuf, error: io::Error },
    #[error(
        "disk file {path} cannot be filled beyond byte {written} ({error}); nothing of it is left; free some \
         space or make the disk smaller"
    )]
    Fill { path: PathBuf, written: u64, error: io::Error },
    #[error("disk file {path} cannot be made durable ({error})")]
    Sync { path: PathBuf, error: io::Error },
    #[error("disk {path} cannot be formatted ({error})")]
    Format { path: PathBuf, error: io::Error },
}

/// Writes a new file full of zeros, so that no later write has to find space for it; `progress` is
/// told how many bytes are there. Blocks; not for the data plane's thread.
///
/// Durable: the file and its name are, when it returns. Errors: a file is there already; no space.
pub fn create_disk_file(
    path: &Path,
    bytes: u64,
    mut progress: impl FnMut(u64),
) -> Result<(), DiskFileError> {
    if !bytes.is_multiple_of(4096) {
        return Err(DiskFileError::Misaligned { bytes });
    }
    let file =
        create(path).map_err(|error| DiskFileError::Create { path: path.to_owned(), error })?;
    fill(&file, bytes, &mut progress).map_err(|(written, error)| {
        // A half-made disk must not be taken for a whole one at the next start.
        let _ = std::fs::remove_file(path);
        DiskFileError::Fill { path: path.to_owned(), written, error }
    })?;
    let synced = file.sync_all().and_then(|()| sync_name(path));
    synced.map_err(|error| DiskFileError::Sync { path: path.to_owned(), error })
}

/// A new disk file, full and formatted: `format` has what to write where. It gets its name only when
/// all of it is durable, so that a file of that name is never half a disk.
///
/// Errors: as `create_disk_file`; what an interrupted call left is overwritten.
pub fn create_formatted_disk_file(
    path: &Path,
    bytes: u64,
    format: &[(u64, Bytes)],
    progress: impl FnMut(u64),
) -> Result<(), DiskFileError> {
    let failed = |error| DiskFileError::Create { path: path.to_owned(), error };
    if path.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    create_disk_file(&new, bytes, progress)?;
    write_format(&new, format)?;
    let named = std::fs::rename(&new, path).and_then(|()| sync_name(path));
    named.map_err(failed)
}

/// Writes what a formatter says onto a disk that is there: all of it, then a sync.
pub fn write_format(path: &Path, format: &[(u64, Bytes)]) -> Result<(), DiskFileError> {
    let write = || {
        let file = OpenOptions::new().write(true).open(path)?;
        for (offset, bytes) in format {
            file.write_all_at(bytes, *offset)?;
        }
        file.sync_all()
    };
    write().map_err(|error| DiskFileError::Format { path: path.to_owned(), error })
}

fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// O_DIRECT where it is to be had: zeros of gigabytes would push all else out of the page cache.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // Some file systems refuse the flag only after they made the file.
            let _ = std::fs::remove_file(path);
            options.open(path)
        }
        opened => opened,
    }
}

fn fill(file: &File, bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<(), (u64, io::Error)> {
    let zeros = AlignedBuf::on_heap(usize::try_from(STEP_BYTES.min(bytes)).expect("4 MiB"));
    let mut written = 0;
    while written < bytes {
        let step = usize::try_from(STEP_BYTES.min(bytes - written)).expect("at most 4 MiB");
        (&*file).write_all(&zeros[..step]).map_err(|error| (written, error))?;
        written += step as u64;
        progress(written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::scratch::Scratch;

    #[test]
    fn a_disk_file_is_full_and_never_made_twice() {
        let scratch = Scratch::new("disk-file");
        let path = scratch.path("disk0");
        let mut told = Vec::new();
        create_disk_file(&path, (9 << 20) + 4096, |bytes| told.push(bytes)).unwrap();
        assert_eq!(told, [4 << 20, 8 << 20, (9 << 20) + 4096]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (9 << 20) + 4096);
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        let again = create_disk_file(&path, 4096, |_| {});
        assert!(matches!(again, Err(DiskFileError::Create { .. })));
        let odd = create_disk_file(&scratch.path("disk1"), 4097, |_| {});
        assert!(matches!(odd, Err(DiskFileError::Misaligned { bytes: 4097 })));
    }

    #[test]
    fn a_formatted_disk_file_appears_whole() {
        let scratch = Scratch::new("disk-file");
        let path = scratch.path("disk0");
        std::fs::write(scratch.path("disk0.new"), "left by an interrupted start").unwrap();
        let format = [(4096, Bytes::from(vec![7; 4096])), (0, Bytes::from(vec![1; 100]))];
        create_formatted_disk_file(&path, 1 << 20, &format, |_| {}).unwrap();
        let data = std::fs::read(&path).unwrap();
        assert_eq!(data.len(), 1 << 20);
        assert!(data[..100].iter().all(|byte| *byte == 1));
        assert!(data[4096..8192].iter().all(|byte| *byte == 7));
        assert!(data[8192..].iter().all(|byte| *byte == 0));
        assert!(!scratch.path("disk0.new").exists());
        let again = create_formatted_disk_file(&path, 1 << 20, &format, |_| {});
        assert!(matches!(again, Err(DiskFileError::Create { .. })));
    }
}
