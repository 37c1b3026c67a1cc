//! What is there where a disk is to be made.

use gabion_store::{LABEL_BYTES, Label, disk_label};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Read at the start and at the end of a device; what was ever used has something there. Units:
/// bytes.
const ENDS_BYTES: u64 = 4 << 20;
/// Looks between them, evenly spread.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 64 << 10;
/// Claims a block device for this process alone: the kernel refuses it when it is mounted or is a
/// part of something. Source: open(2), O_EXCL without O_CREAT, as on Linux.
const O_EXCL: i32 = 0o200;
const EBUSY: i32 = 16;

/// At a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// Not even a directory for it.
    NoDirectory,
    /// A disk that was made for this node.
    Ours,
    InUse,
    NotADisk,
    /// What it holds; none: nothing.
    File {
        held: Option<String>,
    },
    Device {
        bytes: u64,
        held: Option<String>,
    },
}

/// What a disk says of itself.
pub(super) fn label(path: &Path) -> io::Result<Option<Label>> {
    let mut first = Vec::new();
    File::open(path)?.take(LABEL_BYTES as u64).read_to_end(&mut first)?;
    Ok(disk_label(&first))
}

/// `is_ours` knows the disks that were made for this node.
pub(super) fn look(path: &Path, is_ours: impl Fn(&Label) -> bool) -> io::Result<Found> {
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let there = parent.is_none_or(Path::is_dir);
            return Ok(if there { Found::Nothing } else { Found::NoDirectory });
        }
        Err(error) => return Err(error),
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(Found::NotADisk);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if kind.is_block_device() {
        options.custom_flags(O_EXCL);
    }
    let mut file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(EBUSY) => return Ok(Found::InUse),
        opened => opened?,
    };
    // A node holds this lock while it uses the disk.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Found::InUse),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let bytes = file.seek(SeekFrom::End(0))?;
    let label = label(path)?;
    if label.as_ref().is_some_and(is_ours) {
        return Ok(Found::Ours);
    }
    let ours = label.map(|label| {
        format!("disk {} of Gabion, of cluster {}", crate::identity::hex(label.uuid), label.cluster)
    });
    if kind.is_file() {
        let unknown = || (bytes > 0).then(|| content(&file, bytes)).transpose();
        let held = match ours {
            Some(held) => Some(held),
            None => unknown()?.map(|held| held.unwrap_or_else(|| format!("{bytes} bytes"))),
        };
        return Ok(Found::File { held });
    }
    let held = match ours {
        Some(held) => Some(held),
        None => content(&file, bytes)?,
    };
    Ok(Found::Device { bytes, held })
}

/// Names what lies on a file or device; none: only zeros were found.
fn content(file: &File, bytes: u64) -> io::Result<Option<String>> {
    let read = |offset: u64, length: u64| {
        let length = length.min(bytes.saturating_sub(offset));
        let mut data = vec![0; usize::try_from(length).expect("at most 4 MiB")];
        file.read_exact_at(&mut data, offset).map(|()| data)
    };
    let start = read(0, ENDS_BYTES)?;
    if let Some(name) = signature(&start) {
        return Ok(Some(name.to_owned()));
    }
    let blank = |data: &[u8]| data.iter().all(|byte| *byte == 0);
    let unknown = || Ok(Some(format!("{bytes} bytes of something that is not known here")));
    if !blank(&start) || !blank(&read(bytes.saturating_sub(ENDS_BYTES), ENDS_BYTES)?) {
        return unknown();
    }
    for sample in 0..SAMPLES {
        let offset = bytes / SAMPLES * sample / SAMPLE_BYTES * SAMPLE_BYTES;
        if !blank(&read(offset, SAMPLE_BYTES)?) {
            return unknown();
        }
    }
    Ok(None)
}

/// The usual contents of disks, by what they have at fixed places.
fn signature(start: &[u8]) -> Option<&'static str> {
    const KNOWN: [(usize, &[u8], &str); 12] = [
        (0, b"GABIONSB", "a disk of another version of Gabion, or a damaged one"),
        (4096, b"GABIONSB", "a disk of another version of Gabion, or a damaged one"),
        (0x438, &[0x53, 0xEF], "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (0x10040, b"_BHRfS_M", "a Btrfs file system"),
        (0, b"LUKS\xBA\xBE", "a LUKS volume"),
        (512, b"LABELONE", "a physical volume of LVM"),
        (4086, b"SWAPSPACE2", "swap space"),
        (3, b"NTFS    ", "an NTFS file system"),
        (512, b"EFI PART", "a partition table (GPT)"),
        (0, b"QFI\xFB", "a qcow2 image"),
        (510, &[0x55, 0xAA], "a partition table (MBR) or a FAT file system"),
    ];
    let at = |place: usize, magic: &[u8]| start.get(place..place + magic.len()) == Some(magic);
    KNOWN.iter().find(|(place, magic, _)| at(*place, magic)).map(|(_, _, name)| *name)
}
