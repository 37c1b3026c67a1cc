//! What goes wrong with a disk.

use super::flight::{InFlight, Work};
use super::{Cached, VirtualDisk, mixed, pages};
use crate::world::index;
use bytes::{Bytes, BytesMut};
use gabion_types::{BLOCK_BYTES, Prng};
use std::collections::BTreeMap;

/// Of a page.
const SECTORS: u64 = 8;

/// What a power cut leaves of the writes that no sync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerCut {
    /// The cache is gone.
    LosesAll,
    /// The cache had been written out.
    KeepsAll,
    /// Each write is there as a whole or not, whatever their order.
    Writes,
    /// Each 512 bytes stand at any of the states they went through.
    Tears,
}

/// How a page is damaged behind everybody's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// One bit is another.
    Flip {
        bit: u64,
    },
    /// Reading it is an error until it is written again.
    Unreadable,
    /// It holds what another page holds, as after a misdirected write.
    Misdirected {
        from: u64,
    },
    Zeroed,
}

/// What becomes of the next write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextWrite {
    #[default]
    Good,
    /// An error, and the write was done in part or not.
    Fails,
    /// Answered as if it were done, and it never was.
    Vanishes,
    /// It lands in another place.
    GoesAstray,
}

/// All that is durable on a disk at some moment.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<Option<Bytes>>);

impl PowerCut {
    pub fn draw(prng: &mut Prng) -> Self {
        let all = [Self::LosesAll, Self::KeepsAll, Self::Writes, Self::Tears, Self::Tears];
        *prng.pick(&all).expect("there are some")
    }
}

impl VirtualDisk {
    /// The process dies: what it had in flight was done, done in part, or not. The cache stays.
    pub fn lose_process(&mut self) {
        for InFlight { work } in std::mem::take(&mut self.in_flight).into_values() {
            match work {
                Work::Read { .. } => {}
                Work::Write { offset, data } => self.write_in_part(offset, &data),
                Work::Sync { covers } => {
                    if self.prng.chance(1, 2) {
                        let _ = self.sync(covers);
                    }
                }
            }
        }
    }

    /// The power goes: what was in flight may have got into the cache or not; then the cut.
    pub fn lose_power(&mut self, cut: PowerCut) {
        self.lose_process();
        let cache = std::mem::take(&mut self.cache);
        match cut {
            PowerCut::LosesAll => self.counts.sectors_lost += cache.len() as u64 * 8,
            PowerCut::KeepsAll => cache.into_iter().for_each(|(page, mut writes)| {
                self.durable[index(page)] = writes.pop().map(|cached| cached.data);
            }),
            PowerCut::Writes => self.keep_writes(cache),
            PowerCut::Tears => self.tear(cache),
        }
    }

    pub fn set_slow(&mut self, times: u32) {
        self.slow = times.max(1);
    }

    /// Every operation fails from now on.
    pub fn die(&mut self) {
        self.dead = true;
    }

    /// It fails for good, or answers nothing for good.
    pub fn is_dead(&self) -> bool {
        self.dead || self.hung
    }

    pub fn fail_next_sync(&mut self) {
        self.next_sync_fails = true;
    }

    pub fn fail_next_read(&mut self) {
        self.next_read_fails = true;
    }

    /// False: another one is to come first.
    pub fn set_next_write(&mut self, fate: NextWrite) -> bool {
        let free = self.next_write == NextWrite::Good;
        if free {
            self.next_write = fate;
        }
        free
    }

    pub fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    pub fn is_stuck(&self) -> bool {
        self.stuck || self.hung
    }

    /// It answers nothing from now on, and gives no error.
    pub fn hang(&mut self) {
        self.hung = true;
    }

    /// As a disk image is saved: only what a sync covers.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.durable.clone())
    }

    /// The disk is as it was then. Order: without power only.
    pub fn roll_back(&mut self, to: &Snapshot) {
        assert!(self.in_flight.is_empty() && self.cache.is_empty(), "it lost power before");
        self.durable.clone_from(&to.0);
        self.unreadable.clear();
    }

    /// A page that holds something, by chance.
    pub fn pick_written(&mut self) -> Option<u64> {
        let pages = self.durable.iter().enumerate();
        let written: Vec<_> = pages.filter(|(_, data)| data.is_some()).map(|(at, _)| at).collect();
        self.prng.pick(&written).map(|page| *page as u64)
    }

    /// After a failed sync: what it was to cover is gone, or not.
    pub(super) fn drop_cache(&mut self) {
        let prng = &mut self.prng;
        let lost = &mut self.counts.sectors_lost;
        self.cache.retain(|_, writes| {
            writes.retain(|_| prng.chance(1, 2));
            *lost += u64::from(writes.is_empty()) * 8;
            !writes.is_empty()
        });
    }

    /// Where a write lands that goes astray.
    pub(super) fn astray(&mut self, bytes: u64) -> u64 {
        let pages = (self.capacity_bytes() - bytes) / BLOCK_BYTES;
        match self.pick_written() {
            Some(page) if self.prng.chance(1, 2) => page.min(pages) * BLOCK_BYTES,
            Some(_) | None => self.prng.between(0, pages) * BLOCK_BYTES,
        }
    }

    pub fn rot(&mut self, page: u64, rot: Rot) {
        self.rotted = true;
        self.spoiled.insert(page);
        let old = self.page(page).cloned();
        let mut data = old
            .map_or_else(|| BytesMut::zeroed(index(BLOCK_BYTES)), |old| BytesMut::from(&old[..]));
        match rot {
            Rot::Flip { bit } => {
                let bit = bit % (BLOCK_BYTES * 8);
                data[index(bit / 8)] ^= 1 << (bit % 8);
            }
            Rot::Unreadable => {
                self.unreadable.insert(page);
                return;
            }
            Rot::Misdirected { from } => {
                let other = self.page(from).cloned();
                data = other.map_or_else(|| data, |other| BytesMut::from(&other[..]));
            }
            Rot::Zeroed => data.fill(0),
        }
        self.cache.remove(&page);
        self.durable[index(page)] = Some(data.freeze());
    }

    /// Something on it changed by itself.
    pub fn has_rotted(&self) -> bool {
        self.rotted
    }

    /// A page holds what nobody wrote there: it rotted, or the disk lied about a write.
    pub fn is_spoiled(&self, page: u64) -> bool {
        self.spoiled.contains(&page)
    }

    pub(super) fn write_in_part(&mut self, offset: u64, data: &Bytes) {
        let fate = self.prng.below(3);
        if fate == 0 {
            return;
        }
        self.completed += 1;
        for (page, chunk) in pages(offset, data) {
            let chunk = if fate == 1 {
                chunk
            } else {
                let mut prng = self.prng.fork();
                mixed(self.page(page), &chunk, || prng.chance(1, 2))
            };
            self.cache_page(page, chunk);
        }
    }

    fn keep_writes(&mut self, cache: BTreeMap<u64, Vec<Cached>>) {
        let mut fates = BTreeMap::new();
        for (page, writes) in cache {
            for Cached { write, data } in writes {
                let prng = &mut self.prng;
                if *fates.entry(write).or_insert_with(|| prng.chance(1, 2)) {
                    self.durable[index(page)] = Some(data);
                } else {
                    self.counts.sectors_lost += 8;
                }
            }
        }
    }

    fn tear(&mut self, cache: BTreeMap<u64, Vec<Cached>>) {
        for (page, writes) in cache {
            let mut prng = self.prng.fork();
            for Cached { data, .. } in writes {
                let old = self.durable[index(page)].take();
                let mut lost = 0;
                let torn = mixed(old.as_ref(), &data, || {
                    let keeps = prng.chance(1, 2);
                    lost += u64::from(!keeps);
                    keeps
                });
                self.counts.sectors_lost += lost;
                self.counts.torn += u64::from((1..SECTORS).contains(&lost));
                self.durable[index(page)] = Some(torn);
            }
        }
    }
}
