//! Disks of real nodes that do what bad disks do, when a test says so: a small NBD server of our own in
//! front of the file, and `nbdfuse` makes a file of that again. (`qemu-storage-daemon` hangs up on a
//! client whose read fails: with `blkdebug` the whole disk is gone for a moment, not one sector.)

use crate::command::Started;
use crate::fixture::wait;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(20);
const BLOCK: u64 = 4096;
/// No process that uses the disk ends meanwhile, whatever kills it.
const HANGS_MOST: Duration = Duration::from_secs(90);

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const UNSUPPORTED: u32 = 0x8000_0001;
const EXPORT_NAME: u32 = 1;
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
const HAS_FLAGS_FLUSH_FUA: u16 = 13;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const EIO: u32 = 5;

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It is answered, and nothing is written.
    Lost,
    /// It is written there instead. Units: bytes.
    Astray(u64),
}

#[derive(Debug, Default)]
struct Faults {
    /// Blocks, by their first byte. A write mends them, as a disk that gives a sector another place.
    unreadable: BTreeSet<u64>,
    /// Of the next write of one block of data: the head of metadata is known.
    next_data_write: Option<Mishap>,
    /// Each write and each sync takes so much longer.
    slow: Duration,
    writes_fail: bool,
    /// Nothing is answered: since when.
    hangs: Option<Instant>,
}

/// The disk file of a node that does not run yet, behind a server that can be told to misbehave.
pub struct FaultyDisk {
    path: PathBuf,
    socket: PathBuf,
    faults: Arc<Mutex<Faults>>,
    nbdfuse: Option<Started>,
}

impl FaultyDisk {
    /// The node may start when this returns.
    #[track_caller]
    pub fn take(path: &Path) -> Self {
        let beside = |ending: &str| path.with_extension(ending);
        let (image, socket) = (beside("image"), beside("socket"));
        std::fs::rename(path, &image).expect("a disk file can be renamed");
        File::create(path).expect("a file to mount on can be made");
        let file = File::options().read(true).write(true).open(&image).expect("it was there");
        let bytes = file.metadata().expect("it is a file").len();
        let listener = UnixListener::bind(&socket).expect("a socket can be made");
        let faults = Arc::new(Mutex::new(Faults::default()));
        let shared = Arc::clone(&faults);
        std::thread::spawn(move || {
            // Ends when the socket's file is gone and nobody connects: with the test's process.
            for stream in listener.incoming().flatten() {
                let (file, faults) = (file.try_clone().expect("a file"), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &file, bytes, &faults));
            }
        });
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let mut nbdfuse = Started::start(Command::new("nbdfuse").arg(path).arg(uri));
        let is_there = || std::fs::metadata(path).is_ok_and(|found| found.len() == bytes);
        wait("the disk is exported", MOST, || is_there() || !nbdfuse.running());
        assert!(is_there(), "nbdfuse ended: {}", nbdfuse.complained());
        Self { path: path.to_owned(), socket, faults, nbdfuse: Some(nbdfuse) }
    }

    /// Reads of the block at this byte fail until it is written.
    pub fn fail_reads_of(&self, offset: u64) {
        self.with(|faults| faults.unreadable.insert(offset - offset % BLOCK));
    }

    /// Of the next write of one block of data.
    pub fn mishap(&self, mishap: Mishap) {
        self.with(|faults| faults.next_data_write = Some(mishap));
    }

    /// From now on each write and each sync takes so much longer, one after the other.
    pub fn slow_down(&self, by: Duration) {
        self.with(|faults| faults.slow = by);
    }

    /// Each write is an error from now on.
    pub fn fail_writes(&self) {
        self.with(|faults| faults.writes_fail = true);
    }

    /// Nothing is answered, for as long as that is so, or `HANGS_MOST`.
    pub fn hang(&self, hangs: bool) {
        self.with(|faults| faults.hangs = hangs.then(Instant::now));
    }

    /// The mishap has happened.
    pub fn happened(&self) -> bool {
        self.with(|faults| faults.next_data_write.is_none())
    }

    fn with<T>(&self, what: impl FnOnce(&mut Faults) -> T) -> T {
        what(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        drop(self.nbdfuse.take());
        drop(crate::run(Command::new("umount").arg("-l").arg(&self.path), MOST));
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Until the client goes.
fn serve(mut stream: UnixStream, file: &File, bytes: u64, faults: &Mutex<Faults>) {
    let served = greet(&mut stream, bytes).and_then(|()| transmit(&mut stream, file, faults));
    // Whoever hangs up is done.
    drop(served);
}

fn number<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The oldest way to name an export is enough: every client falls back to it.
fn greet(stream: &mut UnixStream, bytes: u64) -> io::Result<()> {
    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
    let no_zeroes = u32::from_be_bytes(number(stream)?) & 2 != 0;
    loop {
        let _magic: [u8; 8] = number(stream)?;
        let option = u32::from_be_bytes(number(stream)?);
        let length = u32::from_be_bytes(number(stream)?);
        io::copy(&mut Read::by_ref(stream).take(u64::from(length)), &mut io::sink())?;
        if option == EXPORT_NAME {
            stream.write_all(&bytes.to_be_bytes())?;
            stream.write_all(&HAS_FLAGS_FLUSH_FUA.to_be_bytes())?;
            return if no_zeroes { Ok(()) } else { stream.write_all(&[0; 124]) };
        }
        stream.write_all(&REPLY_MAGIC.to_be_bytes())?;
        stream.write_all(&option.to_be_bytes())?;
        stream.write_all(&UNSUPPORTED.to_be_bytes())?;
        stream.write_all(&0_u32.to_be_bytes())?;
    }
}

fn transmit(stream: &mut UnixStream, file: &File, shared: &Mutex<Faults>) -> io::Result<()> {
    loop {
        if u32::from_be_bytes(number(stream)?) != REQUEST_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let _flags: [u8; 2] = number(stream)?;
        let kind = u16::from_be_bytes(number(stream)?);
        let cookie: [u8; 8] = number(stream)?;
        let offset = u64::from_be_bytes(number(stream)?);
        let length = u32::from_be_bytes(number(stream)?);
        let mut data = vec![0; length as usize];
        let mut faults = match kind {
            1 => {
                stream.read_exact(&mut data)?;
                shared.lock().unwrap_or_else(PoisonError::into_inner)
            }
            2 => return Ok(()),
            _ => shared.lock().unwrap_or_else(PoisonError::into_inner),
        };
        while faults.hangs.is_some_and(|since| since.elapsed() < HANGS_MOST) {
            drop(faults);
            std::thread::sleep(Duration::from_millis(20));
            faults = shared.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let range = offset - offset % BLOCK..offset + u64::from(length);
        let mut error = 0;
        match kind {
            0 if faults.unreadable.range(range.clone()).next().is_some() => error = EIO,
            0 => file.read_exact_at(&mut data, offset)?,
            1 if faults.writes_fail => error = EIO,
            1 => {
                let is_data = data.len() as u64 == BLOCK && !data.starts_with(b"GABION");
                let mishap = is_data.then(|| faults.next_data_write.take()).flatten();
                match mishap {
                    Some(Mishap::Lost) => {}
                    Some(Mishap::Astray(elsewhere)) => file.write_all_at(&data, elsewhere)?,
                    None => file.write_all_at(&data, offset)?,
                }
                faults.unreadable.retain(|block| !range.contains(block));
            }
            _ => file.sync_data()?,
        }
        let wait = if kind == 0 { Duration::ZERO } else { faults.slow };
        drop(faults);
        std::thread::sleep(wait);
        stream.write_all(&SIMPLE_REPLY_MAGIC.to_be_bytes())?;
        stream.write_all(&error.to_be_bytes())?;
        stream.write_all(&cookie)?;
        if kind == 0 && error == 0 {
            stream.write_all(&data)?;
        }
    }
}
