//! Guests: what they ask, and what they may be told.

use super::{Event, MS, Request, World};
use crate::check::ZERO;
use bytes::Bytes;
use gabion_types::{ByteRange, GuestData, GuestOp, GuestResult, IoError, SECTOR_BYTES};
use gabion_volume::{Input, Ticket};

impl World {
    pub(super) fn on_guest(&mut self) -> Result<(), String> {
        let after = self.between(MS, 30 * MS);
        self.at(after, Event::Guest);
        if self.healing || self.requests.len() >= 12 {
            return Ok(());
        }
        let op = self.draw_op();
        // Now and then somebody still believes in an older owner.
        let owners: Vec<u64> = self.owners.keys().copied().collect();
        let zombie = self.prng.chance(1, 10).then(|| self.prng.pick(&owners).copied()).flatten();
        let zombie = zombie.filter(|owner| Some(*owner) != self.latest);
        let request = self.new_request(op, zombie.is_some());
        match zombie.or(self.latest.filter(|owner| self.owners.contains_key(owner))) {
            Some(owner) => self.submit(owner, request),
            None => Ok(()),
        }
    }

    pub(super) fn draw_op(&mut self) -> GuestOp {
        let size = self.map.view.size_bytes;
        // A few hot blocks, so that requests overlap.
        let hot = self.prng.chance(2, 3);
        let span = if hot { 5 * 4096 } else { size };
        let base = if hot { self.map.view.size_bytes / 2 - 2 * 4096 } else { 0 };
        let aligned = self.prng.chance(2, 3);
        let unit = if aligned { 4096 } else { SECTOR_BYTES };
        let most = if aligned { 6 } else { 12 };
        let first = self.prng.below(span / unit);
        let count = self.between(1, most).min((size - base) / unit - first);
        let range = ByteRange::new(base + first * unit, count * unit).unwrap();
        let fua = self.prng.chance(1, 5);
        match self.prng.below(20) {
            0..=9 => {
                let mut data = Vec::new();
                for _ in 0..range.length() / SECTOR_BYTES {
                    self.values += 1;
                    data.extend_from_slice(&self.values.to_le_bytes().repeat(64));
                }
                GuestOp::Write { range, data: Bytes::from(data), fua }
            }
            10..=16 => GuestOp::Read { range },
            17 => GuestOp::Zero { range, fua },
            18 if self.prng.chance(1, 2) => GuestOp::Trim { range, fua },
            18 => GuestOp::Status { range },
            _ if self.prng.chance(1, 3) => GuestOp::Room { range },
            _ => GuestOp::Flush,
        }
    }

    pub(super) fn new_request(&mut self, op: GuestOp, once: bool) -> u64 {
        let values = match &op {
            GuestOp::Write { data, .. } => values_of(data),
            GuestOp::Zero { range, .. } => vec![ZERO; sectors(*range).count()],
            GuestOp::Trim { .. }
            | GuestOp::Read { .. }
            | GuestOp::Status { .. }
            | GuestOp::Room { .. }
            | GuestOp::Flush => Vec::new(),
        };
        self.serial += 1;
        let (id, asked) = (self.serial, self.now);
        self.requests.insert(id, Request { op, values, asked, once });
        id
    }

    pub(super) fn submit(&mut self, owner: u64, request: u64) -> Result<(), String> {
        let op = self.requests[&request].op.clone();
        self.serial += 1;
        let ticket = Ticket(self.serial);
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.tickets.insert(ticket, request);
        self.feed(owner, Input::Guest { ticket, op })
    }

    pub(super) fn abandon(&mut self, request: u64) {
        let Some(request) = self.requests.remove(&request) else { return };
        self.note_write(&request, u64::MAX);
    }

    pub(super) fn note_write(&mut self, request: &Request, answered: u64) {
        match &request.op {
            GuestOp::Write { range, .. } | GuestOp::Zero { range, .. } => {
                for (sector, value) in sectors(*range).zip(&request.values) {
                    self.history.wrote(sector, *value, request.asked, answered);
                }
            }
            GuestOp::Trim { range, .. } => {
                for sector in trimmed(range) {
                    self.history.wrote(sector, ZERO, request.asked, answered);
                }
            }
            GuestOp::Read { .. }
            | GuestOp::Status { .. }
            | GuestOp::Room { .. }
            | GuestOp::Flush => {}
        }
    }

    pub(super) fn on_guest_done(
        &mut self,
        owner: u64,
        ticket: Ticket,
        result: GuestResult,
    ) -> Result<(), String> {
        let now = self.now;
        let state = self.owners.get_mut(&owner).unwrap();
        let Some(id) = state.tickets.remove(&ticket) else {
            return Err(format!("{ticket:?} answered twice"));
        };
        let (life, epoch) = (state.life, state.epoch);
        let rightful = self.map.owner == Some(life) && self.map.view.owner_epoch == epoch;
        let Some(request) = self.requests.remove(&id) else { return Ok(()) };
        // A trim of no whole block does nothing, whoever answers it.
        let nothing = matches!(request.op, GuestOp::Trim { .. })
            && request.op.range().is_some_and(|range| trimmed(&range).is_empty());
        if result.is_ok() && !rightful && !nothing {
            return Err(format!("owner {owner} answered {:?} after its time", request.op));
        }
        match result {
            Ok(GuestData::Done) => {
                self.done.answered += 1;
                self.note_write(&request, now);
            }
            Ok(GuestData::Read(data)) => {
                self.done.answered += 1;
                let GuestOp::Read { range } = request.op else { panic!("data for no read") };
                if data.len() as u64 != range.length() {
                    return Err("a read of another length".to_owned());
                }
                for (sector, value) in sectors(range).zip(values_of(&data)) {
                    self.history.read(sector, value, request.asked, now);
                }
            }
            Ok(GuestData::Status(extents)) => {
                let total: u64 = extents.iter().map(|extent| extent.length).sum();
                let length = request.op.range().unwrap().length();
                if total == 0 || total > length {
                    return Err(format!("status of {total} bytes for {length}"));
                }
            }
            Err(IoError::NoSpace) if self.plan.full => {
                self.done.failed += 1;
                self.note_write(&request, u64::MAX);
            }
            Err(IoError::Lost) if self.rotted => {
                self.done.failed += 1;
                self.note_write(&request, u64::MAX);
            }
            Err(error) => return Err(format!("{:?} failed: {error}", request.op)),
        }
        Ok(())
    }
}

fn sectors(range: ByteRange) -> impl Iterator<Item = u64> {
    range.offset() / SECTOR_BYTES..range.end() / SECTOR_BYTES
}

/// The sectors of the whole blocks within.
fn trimmed(range: &ByteRange) -> std::ops::Range<u64> {
    range.offset().next_multiple_of(4096) / SECTOR_BYTES..range.end() / 4096 * 8
}

fn values_of(data: &Bytes) -> Vec<u64> {
    data.chunks(512)
        .map(|sector| {
            let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
            let whole = sector.chunks(8).all(|word| word == value.to_le_bytes());
            assert!(whole, "a torn sector");
            value
        })
        .collect()
}
