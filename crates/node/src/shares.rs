//! Each volume's share of this node's buffers: a held volume does not eat the node.
//!
//! rule: node/a-full-share-is-not-read — where the requests that a front holds reach its volume's
//! share, its guests are not read any more; a hang-up is still seen. What is asked to be read counts
//! before it is there.

use crate::io::{Effect, GuestId};
use crate::node::{NBD_BYTES_IN_FLIGHT_MAX, Node};
use gabion_types::{Load, VolumeId};
use std::collections::{BTreeMap, VecDeque};

// promise: bounded
/// Payload (of writes that are held, of reads that are to be answered) of one volume's guests on
/// this node. Full: they aren't read. Units: bytes.
pub const VOLUME_BYTES_MAX: u64 = 32 << 20;
/// The same over all volumes: none takes more than is free, so that there is always some for the
/// next. Beyond it each volume has one part. Units: bytes.
pub const NODE_BYTES_MAX: u64 = 128 << 20;

/// A guest that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    /// Its connection wants so many bytes.
    Nbd { guest: GuestId, bytes: usize },
    /// Its front end was told to take no more.
    Direct { guest: GuestId },
}

impl Waiter {
    fn guest(self) -> GuestId {
        match self {
            Self::Nbd { guest, .. } | Self::Direct { guest } => guest,
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Nbd { bytes, .. } => bytes as u64,
            Self::Direct { .. } => 1,
        }
    }
}

#[derive(Debug, Default)]
pub struct Shares {
    /// Asked to be read and not there yet.
    reserved: BTreeMap<GuestId, (VolumeId, u64)>,
    of_volume: BTreeMap<VolumeId, u64>,
    reserved_bytes: u64,
    /// Bounded by the guests.
    waiting: BTreeMap<VolumeId, VecDeque<Waiter>>,
    freed: bool,
}

impl Shares {
    fn reserve(&mut self, guest: GuestId, volume: VolumeId, bytes: u64) {
        self.reserved.insert(guest, (volume, bytes));
        *self.of_volume.entry(volume).or_default() += bytes;
        self.reserved_bytes += bytes;
    }

    /// It came, or the guest is gone.
    pub fn release(&mut self, guest: GuestId) {
        let Some((volume, bytes)) = self.reserved.remove(&guest) else { return };
        self.reserved_bytes -= bytes;
        let left = self.of_volume.get(&volume).map_or(0, |all| all - bytes);
        match left {
            0 => drop(self.of_volume.remove(&volume)),
            left => drop(self.of_volume.insert(volume, left)),
        }
        self.freed = true;
    }

    /// The guest is gone.
    pub fn forget(&mut self, guest: GuestId) {
        self.release(guest);
        self.waiting.retain(|_, waiting| {
            waiting.retain(|waiter| waiter.guest() != guest);
            !waiting.is_empty()
        });
        self.freed = true;
    }

    /// Something that was held is done.
    pub fn freed(&mut self) {
        self.freed = true;
    }

    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    fn reserved_of(&self, volume: VolumeId) -> u64 {
        self.of_volume.get(&volume).copied().unwrap_or(0)
    }

    /// Guests that are not read for want of room.
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Whether a volume that holds `held` of `total` may be given `bytes` more.
    fn admits(&self, volume: VolumeId, (held, total): (u64, u64), bytes: u64) -> bool {
        let held = held + self.reserved_of(volume);
        let free = NODE_BYTES_MAX.saturating_sub(total + self.reserved_bytes);
        held == 0 || held + bytes <= VOLUME_BYTES_MAX.min(free)
    }
}

impl Node {
    /// Each guest may have been read once more while there was a little room.
    pub(crate) fn share_loads(&self) -> impl Iterator<Item = Load> {
        self.fronts.volumes().filter_map(|volume| {
            let front = self.fronts.get(volume)?;
            let used = front.held_bytes() + self.shares.reserved_of(volume);
            let over = front.guests() as u64 * NBD_BYTES_IN_FLIGHT_MAX;
            Some(Load::bytes("bytes of a volume's guests", used, VOLUME_BYTES_MAX + over))
        })
    }

    /// A guest's connection can use so many bytes: they are read if there is room for them.
    pub(crate) fn want(&mut self, guest: GuestId, volume: Option<VolumeId>, bytes: usize) {
        let Some(volume) = volume else {
            return self.effects.push_back(Effect::NbdWant { guest, bytes });
        };
        let waiter = Waiter::Nbd { guest, bytes };
        let queued = self.shares.waiting.contains_key(&volume);
        if queued || !self.has_room(volume, waiter) {
            self.shares.waiting.entry(volume).or_default().push_back(waiter);
        } else {
            self.let_in(volume, waiter);
        }
    }

    /// A guest of another front end asked for something: it may have to stop.
    pub(crate) fn judge_direct(&mut self, guest: GuestId, volume: VolumeId) {
        let waiter = Waiter::Direct { guest };
        let known = self.shares.waiting.get(&volume).is_some_and(|all| all.contains(&waiter));
        if !known && !self.has_room(volume, waiter) {
            self.shares.waiting.entry(volume).or_default().push_back(waiter);
            self.effects.push_back(Effect::GuestRoom { guest, room: false });
        }
    }

    fn has_room(&self, volume: VolumeId, waiter: Waiter) -> bool {
        let held = self.fronts.get(volume).map_or(0, |front| front.held_bytes());
        self.shares.admits(volume, (held, self.fronts.held_bytes()), waiter.bytes())
    }

    fn let_in(&mut self, volume: VolumeId, waiter: Waiter) {
        match waiter {
            Waiter::Nbd { guest, bytes } => {
                self.shares.reserve(guest, volume, bytes as u64);
                self.effects.push_back(Effect::NbdWant { guest, bytes });
            }
            Waiter::Direct { guest } => {
                self.effects.push_back(Effect::GuestRoom { guest, room: true });
            }
        }
    }

    /// Reads on where there is room again; guests of one volume take turns.
    pub(crate) fn conclude_shares(&mut self) {
        if !std::mem::take(&mut self.shares.freed) {
            return;
        }
        for volume in self.shares.waiting.keys().copied().collect::<Vec<_>>() {
            while let Some(waiter) = self.shares.waiting.get(&volume).and_then(VecDeque::front) {
                let waiter = *waiter;
                if !self.has_room(volume, waiter) {
                    break;
                }
                if let Some(waiting) = self.shares.waiting.get_mut(&volume) {
                    waiting.pop_front();
                    if waiting.is_empty() {
                        self.shares.waiting.remove(&volume);
                    }
                }
                self.let_in(volume, waiter);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    // rule: node/a-full-share-is-not-read
    // promise: bounded
    #[test]
    fn held_volumes_leave_room_for_the_next() {
        let mut shares = Shares::default();
        let mut guest = 0;
        let mut fill = |shares: &mut Shares, volume: u32| {
            let mut parts = 0;
            while shares.admits(VolumeId::new(volume), (0, 0), 256 << 10) {
                guest += 1;
                shares.reserve(GuestId(guest), VolumeId::new(volume), 256 << 10);
                parts += 1;
            }
            parts
        };
        let taken: Vec<u64> = (1..=20).map(|volume| fill(&mut shares, volume)).collect();
        let mib: Vec<u64> = taken[..6].iter().map(|parts| parts / 4).collect();
        assert_eq!(mib, [32, 32, 32, 16, 8, 4], "none takes more than is free");
        assert!(taken.iter().all(|parts| *parts > 0), "and each has one part");
        assert!(shares.reserved_bytes <= NODE_BYTES_MAX + 20 * (256 << 10));
        // What one volume gives back is there for the others.
        (1..=128).for_each(|guest| shares.release(GuestId(guest)));
        assert!(shares.admits(VolumeId::new(20), (0, 0), MIB));
        (1..=guest).for_each(|guest| shares.forget(GuestId(guest)));
        assert_eq!(shares.reserved_bytes, 0);
        assert!(shares.of_volume.is_empty());
    }
}
