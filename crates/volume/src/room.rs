//! Room for a request of several parts: found on every copy before any part is written, and kept
//! until the parts are there.

use crate::order::{OpId, Yield};
use crate::volume::Volume;
use gabion_types::{
    BLOCK_BYTES, BlockInfo, BlockKind, BlockRange, ByteRange, DiskId, Duration, Instant, IoError,
    SegmentIndex,
};
use gabion_wire::credit_taken;
use std::collections::BTreeMap;

/// Requests for which room is kept. Full: the one that has waited longest for its next part is
/// forgotten; its parts are judged one by one.
const ROOMS_MAX: usize = 256;
/// Room whose next part does not come within is given up: its guest is gone, or very slow.
const ROOM_KEPT: Duration = Duration::from_secs(10);

/// Room kept for one request. Units: bytes.
#[derive(Debug)]
struct Room {
    bytes: ByteRange,
    /// Of whole blocks, what no part has come for yet.
    to_come: u64,
    by_disk: BTreeMap<DiskId, u64>,
    used: Instant,
    /// All of it was found: parts need not be judged any more.
    found: bool,
}

/// By the arrival of the request that asked for it.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    rooms: BTreeMap<u64, Room>,
}

impl Rooms {
    pub(crate) fn kept(&self, disk: DiskId) -> u64 {
        self.rooms.values().filter_map(|room| room.by_disk.get(&disk)).sum()
    }

    fn open(&mut self, now: Instant, arrival: u64, bytes: ByteRange) {
        if self.rooms.len() >= ROOMS_MAX {
            let oldest = self.rooms.iter().min_by_key(|(_, room)| room.used);
            if let Some(oldest) = oldest.map(|(arrival, _)| *arrival) {
                self.rooms.remove(&oldest);
            }
        }
        let (first, end) = whole_blocks(bytes);
        let room =
            Room { bytes, to_come: end - first, by_disk: BTreeMap::new(), used: now, found: false };
        self.rooms.insert(arrival, room);
    }

    fn keep(&mut self, arrival: u64, disk: DiskId, bytes: u64) {
        if let Some(room) = self.rooms.get_mut(&arrival) {
            *room.by_disk.entry(disk).or_default() += bytes;
        }
    }

    /// The request for room is answered: kept only if it was found.
    pub(crate) fn answered(&mut self, now: Instant, arrival: u64, found: bool) {
        if !found {
            self.rooms.remove(&arrival);
        } else if let Some(room) = self.rooms.get_mut(&arrival) {
            room.found = true;
            room.used = now;
        }
    }

    /// A part of a request whose room was found: it takes its share, from now on in flight.
    fn take(&mut self, now: Instant, first: u64, end: u64, credit: u64) -> bool {
        let covers = |room: &Room| {
            let (from, to) = whole_blocks(room.bytes);
            room.found && from <= first && end <= to
        };
        let found = self.rooms.iter_mut().find(|(_, room)| covers(room));
        let Some((arrival, room)) = found else { return false };
        let (arrival, bytes) = (*arrival, end - first);
        room.used = now;
        room.to_come = room.to_come.saturating_sub(bytes);
        room.by_disk.values_mut().for_each(|kept| *kept = kept.saturating_sub(credit));
        if room.to_come == 0 {
            self.rooms.remove(&arrival);
        }
        true
    }

    pub(crate) fn forget_old(&mut self, now: Instant) {
        self.rooms.retain(|_, room| now.since(room.used) < ROOM_KEPT);
    }
}

/// From the first block's start to the last one's end.
fn whole_blocks(bytes: ByteRange) -> (u64, u64) {
    let first = bytes.offset() - bytes.offset() % BLOCK_BYTES;
    (first, bytes.end().next_multiple_of(BLOCK_BYTES))
}

impl Volume {
    pub(crate) fn open_room(&mut self, now: Instant, arrival: u64, bytes: ByteRange) {
        self.rooms.open(now, arrival, bytes);
    }

    /// This write's room was found when its request began.
    pub(crate) fn has_room(&mut self, now: Instant, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else { return false };
        let start = u64::from(op.segment.get()) * self.limits.segment.bytes();
        let first = start + u64::from(op.range.first().get()) * BLOCK_BYTES;
        let credit = credit_taken(op.range, op.range.bytes());
        self.rooms.take(now, first, first + op.range.bytes(), credit)
    }

    /// Room for one run of blocks: on each member by its credit, or, where that is short, by what
    /// its table says is only overwritten.
    // rule: volume/full-disk-refuses-before-anything-is-sent
    pub(crate) fn begin_room(&mut self, now: Instant, id: OpId, passed: Vec<(DiskId, u64)>) {
        let Some(op) = self.ops.get(&id) else { return };
        let (segment, range, arrival) = (op.segment, op.range, op.arrival);
        if let Some(disk) = self.short_of_credit(segment, range, &passed) {
            self.look_before_write(now, id, disk, passed);
            return;
        }
        let members: Vec<DiskId> = self.members(segment).write_set().collect();
        for disk in members {
            let looked = passed.iter().find(|(other, _)| *other == disk);
            let fresh = looked.map_or(range.bytes(), |(_, fresh)| *fresh);
            self.rooms.keep(arrival, disk, credit_taken(range, fresh));
        }
        self.finish(now, id, Ok(Yield::Done));
    }

    /// The table of a disk that was short of credit, and by it a fresh word on its credit.
    pub(crate) fn on_room_looked(
        &mut self,
        now: Instant,
        id: OpId,
        disk: DiskId,
        mut passed: Vec<(DiskId, u64)>,
        table: &[BlockInfo],
    ) {
        let Some(op) = self.ops.get(&id) else { return };
        let fresh = fresh_bytes(op.range, table);
        if fresh > 0 && self.lacks_credit(disk, credit_taken(op.range, fresh)) {
            self.finish(now, id, Err(IoError::NoSpace));
            return;
        }
        passed.push((disk, fresh));
        self.begin_room(now, id, passed);
    }

    /// A member without credit for that run, if all of it is new.
    pub(crate) fn short_of_credit(
        &self,
        segment: SegmentIndex,
        range: BlockRange,
        passed: &[(DiskId, u64)],
    ) -> Option<DiskId> {
        let unseen = |disk: &DiskId| passed.iter().all(|(other, _)| other != disk);
        let taken = credit_taken(range, range.bytes());
        let mut members = self.members(segment).write_set();
        members.find(|disk| unseen(disk) && self.lacks_credit(*disk, taken))
    }

    fn lacks_credit(&self, disk: DiskId, taken: u64) -> bool {
        let Some(state) = self.disks.get(disk) else { return false };
        let Some(credit) = state.credit else { return false };
        let promised = state.credit_out.saturating_add(self.rooms.kept(disk));
        credit < promised.saturating_add(taken)
    }
}

/// Of a run, the bytes that have no slot there yet.
pub(crate) fn fresh_bytes(range: BlockRange, table: &[BlockInfo]) -> u64 {
    let inside = table.iter().filter(|info| range.contains(info.block));
    let data = inside.filter(|info| info.kind == BlockKind::Data).count() as u64;
    range.bytes().saturating_sub(data * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(offset: u64, length: u64) -> ByteRange {
        ByteRange::new(offset, length).expect("it has an end")
    }

    #[test]
    fn parts_use_up_the_room_of_their_request() {
        let (now, disk) = (Instant::ZERO, DiskId::new(1));
        let mut rooms = Rooms::default();
        rooms.open(now, 1, bytes(512, 16384));
        rooms.keep(1, disk, 20480);
        assert!(!rooms.take(now, 0, 8192, 8192), "it is not found yet");
        rooms.answered(now, 1, true);
        assert!(!rooms.take(now, 16384, 24576, 8192), "it is another's");
        assert!(rooms.take(now, 0, 8192, 8192));
        assert_eq!(rooms.kept(disk), 12288);
        assert!(rooms.take(now, 8192, 20480, 12288));
        assert_eq!(rooms.kept(disk), 0);
        assert!(!rooms.take(now, 0, 4096, 4096), "it is used up");
    }

    // promise: bounded
    #[test]
    fn room_is_not_kept_for_ever_nor_for_everybody() {
        let (now, disk) = (Instant::ZERO, DiskId::new(1));
        let mut rooms = Rooms::default();
        for arrival in 0..1000 {
            rooms.open(now, arrival, bytes(0, 4096));
            rooms.keep(arrival, disk, 4096);
            rooms.answered(now, arrival, true);
        }
        assert_eq!(rooms.kept(disk), ROOMS_MAX as u64 * 4096);
        rooms.forget_old(now + ROOM_KEPT);
        assert_eq!(rooms.kept(disk), 0);
    }
}
