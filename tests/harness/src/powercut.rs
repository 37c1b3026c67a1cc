//! Disks of real nodes whose power can be cut: `qemu-storage-daemon` exports a file through its
//! `blklogwrites` driver, which records every write and every flush; `nbdfuse` makes a file of that
//! again. After the cut a state of the disk is made that a real one might have: what was flushed is
//! there; of the rest some is there, some is not, some is torn at 512 bytes, in any order.
//!
//! Not by the FUSE export of `qemu-storage-daemon` itself: up to 10.0 it reads the next request into
//! the buffer of a write that is still under way, and writes (and records) the one's data in the
//! other's place.

use crate::command::Started;
use crate::fixture::wait;
use gabion_types::Prng;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Units: bytes.
const SECTOR: usize = 512;
const EXPORT_MOST: Duration = Duration::from_secs(20);
/// What a killed node had asked for is recorded when the log did not grow for so long. The recorder
/// must not die between two entries of which the later one is written.
const DRAIN: Duration = Duration::from_millis(200);
const DRAIN_MOST: Duration = Duration::from_secs(20);

/// Whether the exporter passes flushes on to the recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    Recorded,
    /// `cache.no-flush=on`: a disk that says "flushed" and has done nothing.
    Ignored,
}

/// The disk file of a node that does not run, behind an exporter.
pub struct CutDisk {
    /// Where the node finds it.
    path: PathBuf,
    flushes: Flushes,
    /// Every write that touches this byte fails with EIO, from the next `power_on` on.
    pub write_fault: Option<u64>,
    /// As it was when the exporter started.
    base: PathBuf,
    /// What the exporter reads and writes.
    live: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    /// The file, and what is behind it.
    exporters: Option<(Started, Started)>,
}

/// What a cut left of the writes that were not flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub flushed: u64,
    pub kept: u64,
    pub torn: u64,
    pub dropped: u64,
}

impl CutDisk {
    /// Takes a disk file that no node uses; the exporter does not run yet.
    #[track_caller]
    pub fn take(path: &Path, flushes: Flushes) -> Self {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (base, live, log) = (beside(".base"), beside(".live"), beside(".log"));
        let socket = beside(".nbd");
        fs::rename(path, &base).expect("a disk file can be renamed");
        File::create(path).expect("a file to mount on can be made");
        Self {
            path: path.to_owned(),
            flushes,
            write_fault: None,
            base,
            live,
            log,
            socket,
            exporters: None,
        }
    }

    /// Power comes: the node may start when this returns.
    #[track_caller]
    pub fn power_on(&mut self) {
        assert!(self.exporters.is_none(), "it is on");
        let bytes = fs::copy(&self.base, &self.live).expect("a disk file can be copied");
        File::create(&self.log).expect("a log can be made");
        drop(fs::remove_file(&self.socket));
        let no_flush = if self.flushes == Flushes::Ignored { "on" } else { "off" };
        let file = |path: &Path| format!("driver=file,filename={}", path.display());
        let socket = self.socket.display();
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &format!("{},node-name=live", file(&self.live))]);
        if let Some(offset) = self.write_fault {
            let sector = offset / SECTOR as u64;
            let layer = format!(
                "driver=blkdebug,node-name=faulty,image=live,inject-error.0.event=none,\
                 inject-error.0.errno=5,inject-error.0.iotype=write,inject-error.0.sector={sector}"
            );
            command.args(["--blockdev", &layer]);
        }
        let under = if self.write_fault.is_some() { "faulty" } else { "live" };
        command
            .args(["--blockdev", &format!("{},node-name=log", file(&self.log))])
            .args([
                "--blockdev",
                &format!(
                    "driver=blklogwrites,node-name=disk,file={under},log=log,log-sector-size=512,\
                     cache.no-flush={no_flush}"
                ),
            ])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={socket}")])
            .args(["--export", "type=nbd,id=disk,node-name=disk,name=,writable=on"]);
        let mut recorder = Started::start(&mut command);
        wait("the recorder listens", EXPORT_MOST, || self.socket.exists() || !recorder.running());
        assert!(recorder.running(), "the recorder ended: {}", recorder.complained());
        let uri = format!("nbd+unix:///?socket={socket}");
        let mut nbdfuse = Started::start(Command::new("nbdfuse").arg(&self.path).arg(&uri));
        let is_there = || fs::metadata(&self.path).is_ok_and(|found| found.len() == bytes);
        wait("the disk is exported", EXPORT_MOST, || is_there() || !nbdfuse.running());
        assert!(is_there(), "nbdfuse ended: {}", nbdfuse.complained());
        self.exporters = Some((nbdfuse, recorder));
    }

    /// Power goes, after the node was killed: the disk is left in a state that the seed chooses.
    #[track_caller]
    pub fn cut(&mut self, seed: u64) -> Left {
        let mut before = None;
        wait("all that was asked is recorded", DRAIN_MOST, || {
            std::thread::sleep(DRAIN);
            let now = fs::metadata(&self.log).map(|log| log.len()).ok();
            std::mem::replace(&mut before, now) == now
        });
        self.unplug();
        let log = fs::read(&self.log).expect("the log can be read");
        let records = records(&log);
        let base = File::options().write(true).open(&self.base).expect("it was made");
        let (writes, left) = crash_state(&records, &mut Prng::new(seed));
        for (offset, data) in writes {
            base.write_all_at(data, offset).expect("the disk file can be written");
        }
        left
    }

    fn unplug(&mut self) {
        if let Some((file, recorder)) = self.exporters.take() {
            drop(recorder);
            drop(file);
            let mut command = Command::new("umount");
            drop(crate::run(command.arg("-l").arg(&self.path), EXPORT_MOST));
        }
    }

    /// The state that the last cut left, for a look at it offline.
    pub fn image(&self) -> &Path {
        &self.base
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        self.unplug();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Record<'a> {
    Write { offset: u64, data: &'a [u8], forced: bool },
    Flush,
}

/// Flags of the log's entries (`dm-log-writes`).
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// The whole log: its head says how many entries there were when it was last brought up to date, so
/// it is read to where no entry begins.
///
/// Shape: a sector of head; then entries, each a sector {sector, sectors, flags, length: u64} and its
/// data.
fn records(log: &[u8]) -> Vec<Record<'_>> {
    let field =
        |at: usize| log.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().expect("8")));
    let mut records = Vec::new();
    let mut at = SECTOR;
    loop {
        let fields = [field(at), field(at + 8), field(at + 16)];
        let [Some(sector), Some(sectors), Some(flags)] = fields else { return records };
        if sectors == 0 && flags == 0 {
            return records;
        }
        assert_eq!(flags & (DISCARD | MARK), 0, "a node neither discards nor marks");
        at += SECTOR;
        let length = usize::try_from(sectors).expect("a write fits the memory") * SECTOR;
        let Some(data) = log.get(at..at + length) else { return records };
        at += length;
        if flags & FLUSH != 0 {
            records.push(Record::Flush);
        }
        if length > 0 {
            let forced = flags & FUA != 0;
            records.push(Record::Write { offset: sector * SECTOR as u64, data, forced });
        }
    }
}

/// What to write onto the disk as it was at the beginning, in this order.
fn crash_state<'a>(records: &[Record<'a>], prng: &mut Prng) -> (Vec<(u64, &'a [u8])>, Left) {
    let flushed = records.iter().rposition(|record| *record == Record::Flush).unwrap_or(0);
    let mut left = Left::default();
    let mut writes = Vec::new();
    let mut loose = Vec::new();
    for (nth, record) in records.iter().enumerate() {
        let Record::Write { offset, data, forced } = record else { continue };
        if nth < flushed || *forced {
            left.flushed += 1;
            writes.push((*offset, *data));
        } else {
            loose.push((*offset, *data));
        }
    }
    for last in (1..loose.len()).rev() {
        let other = prng.below(last as u64 + 1);
        loose.swap(last, usize::try_from(other).expect("an index"));
    }
    // Now and then all of it is there, or nothing.
    let keep = prng.below(11);
    for (offset, data) in loose {
        if prng.chance(keep, 10) {
            left.kept += 1;
            writes.push((offset, data));
        } else if prng.chance(1, 2) {
            left.torn += 1;
            let sectors = (offset..).step_by(SECTOR).zip(data.chunks(SECTOR));
            writes.extend(sectors.filter(|_| prng.chance(1, 2)));
        } else {
            left.dropped += 1;
        }
    }
    (writes, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, data: &[u8], flags: u64) -> Vec<u8> {
        let sectors = (data.len() / SECTOR) as u64;
        let mut bytes = [sector, sectors, flags, 0].map(u64::to_le_bytes).concat();
        bytes.resize(SECTOR, 0);
        bytes.extend_from_slice(data);
        bytes
    }

    /// Two writes, a flush, a forced one, and two that nothing covers.
    fn log() -> Vec<u8> {
        let mut log = vec![0; SECTOR];
        log.extend(entry(8, &[1; 4096], 0));
        log.extend(entry(16, &[2; 4096], 0));
        log.extend(entry(0, &[], FLUSH));
        log.extend(entry(8, &[3; 4096], FUA));
        log.extend(entry(24, &[4; 4096], 0));
        log.extend(entry(16, &[5; 8192], 0));
        log.extend(vec![0; 4096]);
        log
    }

    #[test]
    fn the_log_is_read_to_its_end_and_no_further() {
        let log = log();
        let records = records(&log);
        assert_eq!(records.len(), 6);
        assert_eq!(records[2], Record::Flush);
        let forced = Record::Write { offset: 4096, data: &[3; 4096], forced: true };
        assert_eq!(records[3], forced);
        // The last entry was cut off while it was written.
        let cut = &log[..log.len() - 4096 - 512];
        assert_eq!(super::records(cut).len(), 5);
    }

    #[test]
    fn what_was_flushed_is_there_and_of_the_rest_anything_may_be() {
        let log = log();
        let records = records(&log);
        let (mut kept, mut torn, mut dropped) = (false, false, false);
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = vec![0u8; 32 * SECTOR];
            let (writes, left) = crash_state(&records, &mut Prng::new(seed));
            for (offset, data) in writes {
                let at = usize::try_from(offset).unwrap();
                disk[at..at + data.len()].copy_from_slice(data);
            }
            assert_eq!(left.flushed, 3);
            assert_eq!(left.kept + left.torn + left.dropped, 2);
            assert!(disk[4096..8192].iter().all(|byte| *byte == 3), "forced over flushed");
            assert!(disk[8192..12288].iter().all(|byte| [2, 5].contains(byte)));
            kept |= left.kept > 0;
            torn |= left.torn > 0;
            dropped |= left.dropped > 0;
            orders.insert(disk[12288]);
        }
        assert!(kept && torn && dropped);
        assert_eq!(orders, [0, 4, 5].into(), "in any order");
    }
}
