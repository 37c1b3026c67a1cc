//! A virtual disk: it does what a real one may do, not what one hopes for.
//!
//! Data first: 4 KiB pages that are durable, and per page the writes that only the cache holds, in
//! the order in which they completed. A power cut picks for each 512 bytes which of those it keeps.

mod faults;
mod flight;

use crate::world::{Spread, index};
use bytes::{Bytes, BytesMut};
use flight::{InFlight, Work};
use gabion_types::{
    BLOCK_BYTES, DiskDone, DiskError, DiskOp, DiskOpKind, DiskToken, Duration, Prng, SECTOR_BYTES,
};
use std::collections::{BTreeMap, BTreeSet};

pub use faults::{NextWrite, PowerCut, Rot, Snapshot};

/// The errno of an I/O error.
const EIO: i32 = 5;

/// How long the disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskTimes {
    pub read: Spread,
    pub write: Spread,
    pub sync: Spread,
}

impl DiskTimes {
    pub const FAST: Self = Self {
        read: Spread::new(60, 150).with_tail(3000, 100),
        write: Spread::new(20, 80).with_tail(3000, 100),
        sync: Spread::new(100, 800).with_tail(20_000, 100),
    };
}

/// Counts since the disk was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub sectors_lost: u64,
    /// Pages of which a power cut kept some sectors only.
    pub torn: u64,
    pub errors: u64,
}

#[derive(Debug)]
pub struct VirtualDisk {
    durable: Vec<Option<Bytes>>,
    /// Writes that completed and that no sync covers yet, by page, oldest first.
    cache: BTreeMap<u64, Vec<Cached>>,
    in_flight: BTreeMap<DiskToken, InFlight>,
    /// Numbers the writes in the order in which they complete.
    completed: u64,
    times: DiskTimes,
    /// Everything takes so many times as long.
    slow: u32,
    /// Gives errors on writes and syncs for good.
    dead: bool,
    rotted: bool,
    next_sync_fails: bool,
    next_read_fails: bool,
    next_write: NextWrite,
    /// Answers nothing; what is asked waits.
    stuck: bool,
    /// The same, for good.
    hung: bool,
    /// Reading these pages is an error until they are written again.
    unreadable: BTreeSet<u64>,
    /// What these pages hold is not what was last written there as far as the disk said.
    spoiled: BTreeSet<u64>,
    prng: Prng,
    counts: DiskCounts,
}

#[derive(Clone, Debug)]
struct Cached {
    write: u64,
    data: Bytes,
}

impl VirtualDisk {
    pub fn new(capacity_bytes: u64, times: DiskTimes, prng: Prng) -> Self {
        Self {
            durable: vec![None; index(capacity_bytes / BLOCK_BYTES)],
            cache: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            completed: 0,
            times,
            slow: 1,
            dead: false,
            rotted: false,
            next_sync_fails: false,
            next_read_fails: false,
            next_write: NextWrite::Good,
            stuck: false,
            hung: false,
            unreadable: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            prng,
            counts: DiskCounts::default(),
        }
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.durable.len() as u64 * BLOCK_BYTES
    }

    pub fn counts(&self) -> DiskCounts {
        self.counts
    }

    /// As a formatter leaves it: durable at once. Shape: multiples of 4096.
    pub fn format(&mut self, pieces: impl IntoIterator<Item = (u64, Bytes)>) {
        for (offset, data) in pieces {
            for (page, chunk) in pages(offset, &data) {
                self.durable[index(page)] = Some(chunk);
            }
        }
    }

    /// Takes an operation; it is due after the time that comes back.
    pub fn submit(&mut self, op: DiskOp) -> Duration {
        let (spread, work) = match op.kind {
            DiskOpKind::Read { offset, length } => (self.times.read, Work::Read { offset, length }),
            DiskOpKind::Write { offset, pieces } => {
                (self.times.write, Work::Write { offset, data: joined(pieces) })
            }
            DiskOpKind::Sync => (self.times.sync, Work::Sync { covers: self.completed }),
        };
        let before = self.in_flight.insert(op.token, InFlight { work });
        assert!(before.is_none(), "a disk token is used twice: {:?}", op.token);
        spread.draw(&mut self.prng) * self.slow
    }

    /// An operation is due. None: it was cut off by a crash.
    pub fn complete(&mut self, token: DiskToken) -> Option<DiskDone> {
        let InFlight { work } = self.in_flight.remove(&token)?;
        let result = match work {
            Work::Read { offset, length } => self.read(offset, length),
            Work::Write { offset, data } => self.write(offset, &data),
            Work::Sync { covers } => self.sync(covers),
        };
        self.counts.errors += u64::from(result.is_err());
        Some(DiskDone { token, result })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What a read of one page would give now, without time or faults.
    pub fn page(&self, page: u64) -> Option<&Bytes> {
        let cached = self.cache.get(&page).and_then(|writes| writes.last());
        cached.map(|cached| &cached.data).or_else(|| self.durable.get(index(page))?.as_ref())
    }

    /// What a power cut may take away: a write of this page that no sync covers.
    pub fn is_cached(&self, offset: u64) -> bool {
        self.cache.contains_key(&(offset / BLOCK_BYTES))
    }

    /// A sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.in_flight.values().any(|flight| matches!(flight.work, Work::Sync { .. }))
    }

    /// A read of some of these bytes is under way.
    pub fn is_read(&self, offset: u64, length: u64) -> bool {
        self.in_flight.values().any(|flight| match flight.work {
            Work::Read { offset: at, length: long } => at < offset + length && offset < at + long,
            Work::Write { .. } | Work::Sync { .. } => false,
        })
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        self.counts.reads += 1;
        self.check_range(offset, length)?;
        let (first, end) = (offset / BLOCK_BYTES, (offset + length) / BLOCK_BYTES);
        let fails = std::mem::take(&mut self.next_read_fails);
        if self.dead || fails || self.unreadable.range(first..end).next().is_some() {
            return Err(DiskError::Io { errno: EIO });
        }
        if end - first == 1
            && let Some(data) = self.page(first)
        {
            return Ok(data.clone());
        }
        let mut data = BytesMut::with_capacity(index(length));
        for page in first..end {
            match self.page(page) {
                Some(bytes) => data.extend_from_slice(bytes),
                None => data.resize(data.len() + index(BLOCK_BYTES), 0),
            }
        }
        Ok(data.freeze())
    }

    fn write(&mut self, offset: u64, data: &Bytes) -> Result<Bytes, DiskError> {
        self.counts.writes += 1;
        self.check_range(offset, data.len() as u64)?;
        let fate = std::mem::take(&mut self.next_write);
        if self.dead || fate == NextWrite::Fails {
            self.write_in_part(offset, data);
            return Err(DiskError::Io { errno: EIO });
        }
        let told = pages(offset, data).map(|(page, _)| page);
        let offset = match fate {
            NextWrite::Good | NextWrite::Fails => offset,
            NextWrite::Vanishes => {
                self.spoiled.extend(told);
                return Ok(Bytes::new());
            }
            NextWrite::GoesAstray => {
                self.spoiled.extend(told);
                let offset = self.astray(data.len() as u64);
                self.spoiled.extend(pages(offset, data).map(|(page, _)| page));
                offset
            }
        };
        self.completed += 1;
        for (page, chunk) in pages(offset, data) {
            self.unreadable.remove(&page);
            if fate == NextWrite::Good {
                self.spoiled.remove(&page);
            }
            self.cache_page(page, chunk);
        }
        Ok(Bytes::new())
    }

    fn sync(&mut self, covers: u64) -> Result<Bytes, DiskError> {
        self.counts.syncs += 1;
        if self.dead || std::mem::take(&mut self.next_sync_fails) {
            self.drop_cache();
            return Err(DiskError::Io { errno: EIO });
        }
        let durable = &mut self.durable;
        self.cache.retain(|page, writes| {
            let covered = writes.partition_point(|cached| cached.write <= covers);
            if let Some(last) = writes.drain(..covered).next_back() {
                durable[index(*page)] = Some(last.data);
            }
            !writes.is_empty()
        });
        Ok(Bytes::new())
    }

    fn cache_page(&mut self, page: u64, data: Bytes) {
        let cached = Cached { write: self.completed, data };
        self.cache.entry(page).or_default().push(cached);
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES);
        assert!(aligned && length > 0, "disk access of {length} bytes at {offset}: not aligned");
        let end = offset.saturating_add(length);
        if end > self.capacity_bytes() { Err(DiskError::PastEnd { end }) } else { Ok(()) }
    }
}

fn joined(pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.into_iter().next().expect("its length was looked at");
    }
    let mut data = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| data.extend_from_slice(piece));
    data.freeze()
}

/// The pages of a write, without copying.
fn pages(offset: u64, data: &Bytes) -> impl Iterator<Item = (u64, Bytes)> {
    let page_bytes = index(BLOCK_BYTES);
    (0..data.len() / page_bytes).map(move |at| {
        let chunk = data.slice(at * page_bytes..(at + 1) * page_bytes);
        (offset / BLOCK_BYTES + at as u64, chunk)
    })
}

/// A page made of sectors of two.
fn mixed(old: Option<&Bytes>, new: &Bytes, mut takes_new: impl FnMut() -> bool) -> Bytes {
    let sector = index(SECTOR_BYTES);
    let mut page = match old {
        Some(old) => BytesMut::from(&old[..]),
        None => BytesMut::zeroed(new.len()),
    };
    for at in (0..new.len()).step_by(sector) {
        if takes_new() {
            page[at..at + sector].copy_from_slice(&new[at..at + sector]);
        }
    }
    page.freeze()
}

#[cfg(test)]
mod tests;
