//! New disks: a file that stands for one, or a device.

use gabion_engine::{DiskFileError, create_formatted_disk_file, write_format};
use gabion_store::{NewDisk, format_disk};
use std::error::Error;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum NewDiskError {
    #[error(transparent)]
    Size(Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    File(#[from] DiskFileError),
}

/// Makes a disk file: full of zeros, formatted, durable; it has its name only then. `progress` is
/// told the bytes written. Blocks for as long as the disk takes.
///
/// Errors: a file of that name is there; no space; a size that can't be a disk's.
pub fn make_disk_file(
    path: &Path,
    disk: &NewDisk,
    progress: impl FnMut(u64),
) -> Result<(), NewDiskError> {
    let format = format_disk(disk).map_err(|error| NewDiskError::Size(error.into()))?;
    Ok(create_formatted_disk_file(path, disk.capacity_bytes, &format, progress)?)
}

/// Makes what is on a raw device void and formats it. Whether that may be done is the caller's to
/// know.
pub fn format_device(path: &Path, disk: &NewDisk) -> Result<(), NewDiskError> {
    let format = format_disk(disk).map_err(|error| NewDiskError::Size(error.into()))?;
    Ok(write_format(path, &format)?)
}
