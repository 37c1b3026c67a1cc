//! Guests in the world: what they ask, and the judge's ear at every answer.

use super::guest::{Flight, GuestState, Orphan};
use super::machine::who;
use super::{Cluster, Event};
use crate::content::{self, Found, Label};
use crate::invariants::hold_not_fail::{self, Failed};
use crate::nbd_guest::NbdGuest;
use crate::net::Machine;
use crate::oracle::{Units, WriteId};
use crate::workload::{OpKind, OpPlan};
use crate::world::{Spread, Who, index};
use bytes::Bytes;
use gabion_cluster::VolumeState;
use gabion_node::{GuestId, Input, OpenError, OpenedVolume};
use gabion_types::{
    ByteRange, Duration, GuestData, GuestOp, GuestResult, HoldPolicy, IoError, MappedExtent,
    VolumeId,
};

/// A handshake that nobody answers is given up after so long.
const OPEN_PATIENCE: Duration = Duration::from_secs(8);
/// A guest looks up at least so often.
const LOOK: Duration = Duration::from_millis(250);

impl Cluster {
    pub(super) fn schedule_act(&mut self, guest: usize, wait: Duration) {
        self.guests[guest].acts += 1;
        let act = self.guests[guest].acts;
        self.queue.after(wait, Event::Act { guest, act });
    }

    pub(super) fn on_act(&mut self, guest: usize, act: u64) {
        if self.guests[guest].acts != act {
            return;
        }
        let now = self.queue.now();
        let one = &self.guests[guest];
        let waited = one.waits_since().map_or(Duration::ZERO, |since| now.since(since));
        match &one.state {
            GuestState::Away if self.phase.is_leaving() || self.stays_away(guest) => {
                self.schedule_act(guest, LOOK);
            }
            GuestState::Away => self.open(guest),
            GuestState::Opening { .. } if waited > OPEN_PATIENCE => self.hang_up(guest),
            GuestState::Attached { .. } if waited > one.plan.patience && self.is_chaos() => {
                self.hang_up(guest);
            }
            GuestState::Opening { .. } => self.schedule_act(guest, LOOK),
            GuestState::Attached { .. } => self.ask_something(guest),
        }
    }

    fn open(&mut self, guest: usize) {
        let now = self.queue.now();
        let machines = self.machines.len() as u64;
        let one = &mut self.guests[guest];
        let machine = index(one.prng.below(machines));
        if !self.machines[machine].has_process() {
            let wait = Spread::new(20_000, 300_000).draw(&mut self.guests[guest].prng);
            self.schedule_act(guest, wait);
            return;
        }
        self.next_guest += 1;
        let id = GuestId(self.next_guest);
        one.state = GuestState::Opening { machine, id, since: now };
        let volume = self.swarm.volumes[one.plan.volume].name.clone();
        self.machines[machine].guests.insert(id, guest);
        self.schedule_act(guest, LOOK);
        self.trace.note(now, guest_who(guest), "open", [machine as u64, id.0, 0]);
        match self.guests[guest].plan.nbd {
            Some(dialect) => {
                self.nbd_open((machine, id), guest, NbdGuest::new(volume, dialect, id.0))
            }
            None => self.feed(machine, Input::GuestOpen { guest: id, volume }),
        }
    }

    /// It gives up on this connection; the node hears of it in the order of its inputs.
    pub(super) fn hang_up(&mut self, guest: usize) {
        let (machine, id) = match &self.guests[guest].state {
            GuestState::Away => return,
            GuestState::Opening { machine, id, .. } | GuestState::Attached { machine, id, .. } => {
                (*machine, *id)
            }
        };
        self.count("hang-up");
        self.machines[machine].guests.remove(&id);
        self.guest_cut_off(guest);
        self.feed(machine, Input::GuestClosed { guest: id });
    }

    /// The connection is gone: what was not answered is asked again elsewhere. As writes of their
    /// own: what was asked first may not land after what is asked now.
    pub(super) fn guest_cut_off(&mut self, guest: usize) {
        let now = self.queue.now();
        let one = &mut self.guests[guest];
        let volume = one.volume;
        if let GuestState::Attached { id, flights, .. } = &mut one.state {
            self.requests.gone(*id);
            let flights = std::mem::take(flights);
            for flight in flights.into_values().rev() {
                self.oracle.end(flight.open);
                if !one.plan.forgets {
                    one.again.push_front(flight.plan);
                }
                if let Some(write) = flight.write {
                    self.orphans.push(Orphan { volume, write, gone_since: now });
                }
            }
        }
        one.state = GuestState::Away;
        one.nbd = None;
        one.wants(now);
        self.trace.note(now, guest_who(guest), "cut off", [one.again.len() as u64, 0, 0]);
        let wait = Spread::new(1_000, 200_000).draw(&mut self.guests[guest].prng);
        self.schedule_act(guest, wait);
    }

    pub(super) fn on_guest_opened(
        &mut self,
        machine: Machine,
        id: GuestId,
        result: Result<OpenedVolume, OpenError>,
    ) {
        let Some(guest) = self.machines[machine].guests.get(&id).copied() else { return };
        let now = self.queue.now();
        let GuestState::Opening { since, .. } = self.guests[guest].state else {
            self.break_promise("exactly-once", format!("guest {guest} was opened twice"));
            return;
        };
        let size_bytes = self.swarm.volumes[self.guests[guest].plan.volume].size_bytes;
        match result {
            Ok(opened) => {
                // It may have grown.
                let entry = self.map.volume(opened.volume);
                let most = entry.map_or(u64::MAX, |entry| entry.spec.size_bytes);
                if !(size_bytes..=most).contains(&opened.size_bytes) {
                    self.break_promise("volume-size", format!("guest {guest}: {opened:?}"));
                }
                let volume = self.place_of(opened.volume, size_bytes);
                self.guests[guest].volume = volume;
                let (flights, next_tag) = Default::default();
                self.guests[guest].state = GuestState::Attached { machine, id, flights, next_tag };
                self.trace.note(now, guest_who(guest), "attached", [id.0, 0, 0]);
                self.watch_opened(machine, guest);
                self.bound_orphans(volume, since);
                self.schedule_act(guest, self.no_time());
            }
            Err(error) => {
                self.trace.note_with(now, guest_who(guest), "not opened", [id.0, 0, 0], || {
                    error.to_string()
                });
                self.machines[machine].guests.remove(&id);
                self.guests[guest].state = GuestState::Away;
                self.guests[guest].nbd = None;
                let wait = Spread::new(10_000, 300_000).draw(&mut self.guests[guest].prng);
                self.schedule_act(guest, wait);
            }
        }
    }

    /// As the oracle counts it; a new one is all zeros.
    fn place_of(&mut self, volume: VolumeId, size_bytes: u64) -> usize {
        let oracle = &mut self.oracle;
        *self.places.entry(volume).or_insert_with(|| oracle.add_volume(size_bytes))
    }

    /// promise: one-register. A handshake is answered only when nothing of a guest that had hung up
    /// when it was asked for can come any more (rule 9).
    fn bound_orphans(&mut self, volume: usize, asked: gabion_types::Instant) {
        let now = self.queue.now();
        let oracle = &mut self.oracle;
        self.orphans.retain(|orphan| {
            let over = orphan.volume == volume && orphan.gone_since <= asked;
            if over {
                oracle.bound(orphan.write, now);
            }
            !over
        });
    }

    /// What is open now may be done by the old owner and by the new one.
    pub(super) fn on_taken_over(&mut self, volume: VolumeId) {
        let Some(place) = self.places.get(&volume).copied() else { return };
        for guest in self.guests.iter().filter(|one| one.volume == place) {
            if let GuestState::Attached { flights, .. } = &guest.state {
                for write in flights.values().filter_map(|flight| flight.write) {
                    self.oracle.may_repeat(write);
                }
            }
        }
    }

    fn ask_something(&mut self, guest: usize) {
        if self.gives_way(guest) {
            self.hang_up(guest);
            return;
        }
        let unit_bytes = self.oracle.unit_bytes();
        let one = &mut self.guests[guest];
        let units = self.swarm.volumes[one.plan.volume].size_bytes / unit_bytes;
        if one.in_flight() >= one.plan.depth {
            self.schedule_act(guest, LOOK);
            return;
        }
        let plan = match one.again.pop_front() {
            Some(plan) => plan,
            None if one.busy => one.plan.mix.next(&mut one.prng, units),
            None => {
                self.schedule_act(guest, LOOK);
                return;
            }
        };
        let think = one.plan.think;
        let wait = think.draw(&mut one.prng);
        self.ask(guest, plan);
        self.schedule_act(guest, wait);
    }

    pub(super) fn ask(&mut self, guest: usize, plan: OpPlan) {
        let now = self.queue.now();
        let volume = self.guests[guest].volume;
        self.note_asked(volume, &plan);
        let (op, write) = self.request(volume, plan);
        let open = self.oracle.begin(now);
        let one = &mut self.guests[guest];
        one.wants(now);
        let GuestState::Attached { machine, id, flights, next_tag } = &mut one.state else {
            panic!("only attached guests ask");
        };
        let tag = *next_tag;
        *next_tag += 1;
        flights.insert(tag, Flight { plan, write, open, began: now });
        let (machine, id) = (*machine, *id);
        if let Err(broken) = self.requests.asked(id, tag) {
            self.break_promise(broken.promise, broken.text);
        }
        let numbers = [id.0, tag, write.map_or(0, |write| write.0)];
        self.trace.note_with(now, guest_who(guest), "ask", numbers, || format!("{plan:?}"));
        match &mut self.guests[guest].nbd {
            Some(nbd) => {
                let careless = nbd.ask(tag, &op);
                self.count_careless(careless);
                self.flow_soon(machine, id);
            }
            None => self.feed(machine, Input::Guest { guest: id, tag, op }),
        }
    }

    /// A plan as a request, and the write that the oracle has to know of.
    fn request(&mut self, volume: usize, plan: OpPlan) -> (GuestOp, Option<WriteId>) {
        let now = self.queue.now();
        let unit_bytes = self.oracle.unit_bytes();
        let range = ByteRange::new(plan.first * unit_bytes, plan.count * unit_bytes)
            .expect("a volume is far smaller than 2^64 bytes");
        let units = Units { volume, first: plan.first, count: plan.count };
        let fua = plan.first.is_multiple_of(7);
        match plan.kind {
            OpKind::Read => (GuestOp::Read { range }, None),
            OpKind::Flush => (GuestOp::Flush, None),
            OpKind::Status => (GuestOp::Status { range }, None),
            OpKind::Write { fua } => {
                let write = self.oracle.write(units, false, now);
                let (first, count) = (plan.first, index(plan.count));
                let data = content::fill(Label(write.0), first, index(unit_bytes), count);
                (GuestOp::Write { range, data, fua }, Some(write))
            }
            OpKind::Zero => {
                let write = self.oracle.write(units, true, now);
                (GuestOp::Zero { range, fua }, Some(write))
            }
            OpKind::Trim => {
                let trimmed = plan.trimmed(unit_bytes);
                let write = trimmed.map(|(first, count)| {
                    self.oracle.write(Units { volume, first, count }, true, now)
                });
                (GuestOp::Trim { range, fua }, write)
            }
        }
    }

    pub(super) fn on_guest_done(
        &mut self,
        machine: Machine,
        id: GuestId,
        tag: u64,
        result: GuestResult,
    ) {
        let Some(guest) = self.machines[machine].guests.get(&id).copied() else { return };
        if let Err(broken) = self.requests.answered(id, tag) {
            self.break_promise(broken.promise, broken.text);
        }
        let now = self.queue.now();
        let flight = match &mut self.guests[guest].state {
            GuestState::Attached { flights, .. } => flights.remove(&tag),
            GuestState::Away | GuestState::Opening { .. } => None,
        };
        self.guests[guest].was_answered(now);
        let Some(flight) = flight else { return };
        self.trace.note(now, guest_who(guest), "answer", [id.0, tag, u64::from(result.is_ok())]);
        self.oracle.end(flight.open);
        self.guests[guest].answered += 1;
        let volume = self.guests[guest].plan.volume;
        match (&result, flight.plan.kind) {
            (Ok(_), OpKind::Flush) => self.watch_flushed(volume),
            (Ok(_), OpKind::Read) => self.watch_read(machine, volume),
            (Ok(_), _) => self.watch_acknowledged(machine, guest, flight.plan),
            (Err(_), _) => {}
        }
        if result.is_ok() {
            self.judge_expelled(machine, id, &flight);
        }
        let answer = match result {
            Ok(data) => {
                self.judge(guest, &flight, data).and_then(|()| self.judge_done(guest, &flight))
            }
            Err(error) => self.judge_error(guest, &flight, error),
        };
        if let Err(broken) = answer {
            let text = format!("guest {guest} on {}: {}", who(machine), broken.text);
            self.break_promise(broken.promise, text);
        }
    }

    fn judge(
        &mut self,
        guest: usize,
        flight: &Flight,
        data: GuestData,
    ) -> Result<(), crate::oracle::Broken> {
        let now = self.queue.now();
        self.operations += 1;
        match (flight.plan.kind, data) {
            (OpKind::Read, GuestData::Read(bytes)) => self.judge_read(guest, flight, &bytes),
            (OpKind::Write { .. } | OpKind::Zero | OpKind::Trim, GuestData::Done) => {
                flight.write.map_or(Ok(()), |write| self.oracle.acknowledged(write, now))
            }
            (OpKind::Flush, GuestData::Done) => Ok(()),
            (OpKind::Status, GuestData::Status(extents)) => {
                self.judge_status(guest, flight, &extents)
            }
            (_, data) => Err(wrong(format!("{:?} was answered by {data:?}", flight.plan))),
        }
    }

    fn judge_read(
        &mut self,
        guest: usize,
        flight: &Flight,
        bytes: &Bytes,
    ) -> Result<(), crate::oracle::Broken> {
        let unit_bytes = self.oracle.unit_bytes();
        let OpPlan { first, count, .. } = flight.plan;
        if bytes.len() as u64 != count * unit_bytes {
            return Err(wrong(format!("{:?} was answered by {} bytes", flight.plan, bytes.len())));
        }
        let units = bytes.chunks_exact(index(unit_bytes));
        let found: Vec<_> =
            units.zip(first..).map(|(data, unit)| content::identify(data, unit)).collect();
        let volume = self.guests[guest].volume;
        let units = Units { volume, first, count };
        self.oracle.read(units, &found, flight.began, self.queue.now())
    }

    /// promise: no-silent-corruption. A hole reads as zeros; what holds data may, too.
    fn judge_status(
        &mut self,
        guest: usize,
        flight: &Flight,
        extents: &[MappedExtent],
    ) -> Result<(), crate::oracle::Broken> {
        let unit_bytes = self.oracle.unit_bytes();
        let (volume, now) = (self.guests[guest].volume, self.queue.now());
        let begin = flight.plan.first * unit_bytes;
        let mut at = begin;
        for extent in extents {
            let (from, end) = (at, at + extent.length);
            at = end;
            let (first, over) = (from.div_ceil(unit_bytes), end / unit_bytes);
            if !extent.data && first < over {
                let units = Units { volume, first, count: over - first };
                let zeros = vec![Found::Label(Label::ZEROS); index(units.count)];
                self.oracle.read(units, &zeros, flight.began, now)?;
            }
        }
        let told = extents.iter().all(|extent| extent.length > 0) && at > begin;
        if !told || at - begin > flight.plan.count * unit_bytes {
            return Err(wrong(format!("{:?} was answered by {extents:?}", flight.plan)));
        }
        Ok(())
    }

    /// Errors that may be: the rest breaks a promise.
    fn judge_error(
        &mut self,
        guest: usize,
        flight: &Flight,
        error: IoError,
    ) -> Result<(), crate::oracle::Broken> {
        let now = self.queue.now();
        self.count("guest-error");
        if error == IoError::Lost && self.judge_lost(guest, flight)? {
            return Ok(());
        }
        let Flight { plan, .. } = *flight;
        let volume = self.guests[guest].volume;
        let units = Units { volume, first: plan.first, count: plan.count };
        let reads = plan.kind == OpKind::Read;
        if error == IoError::Lost && reads && self.oracle.may_be_lost(units, flight.began) {
            self.count("given-up-told");
            return Ok(());
        }
        let ends = self.ends_somewhere(guest);
        let late = self.may_be_late(guest);
        // What waited too long and what is lost is one error of NBD.
        let nbd = self.guests[guest].plan.nbd.is_some();
        let error =
            if error == IoError::Lost && late && nbd { IoError::HeldTooLong } else { error };
        match hold_not_fail::check(error, ends, late, &format!("{:?}", flight.plan))? {
            Failed::TooLong => {
                self.count("held-too-long");
                self.guests[guest].again.push_back(flight.plan);
            }
            Failed::NoSpace => {
                self.count("no-space");
                self.trim_again(guest, flight.plan);
                if let Some(write) = flight.write {
                    self.oracle.bound(write, now);
                }
            }
            Failed::Elsewhere => {
                let volume = self.guests[guest].volume;
                if let Some(write) = flight.write {
                    self.orphans.push(Orphan { volume, write, gone_since: now });
                }
                self.guests[guest].again.push_back(flight.plan);
            }
        }
        Ok(())
    }

    /// By the clock of a machine, and those jump: it cannot be told when.
    fn may_be_late(&self, guest: usize) -> bool {
        let volume = self.guests[guest].plan.volume;
        self.swarm.volumes[volume].hold != HoldPolicy::NeverFail
    }

    /// Its process stops, or its volume is deleted.
    fn ends_somewhere(&self, guest: usize) -> bool {
        let one = &self.guests[guest];
        let ready = |entry: &gabion_cluster::VolumeEntry| entry.state == VolumeState::Ready;
        let mut volumes = self.map.volumes().values().filter(|entry| ready(entry));
        let lives = volumes.any(|entry| self.places.get(&entry.id) == Some(&one.volume));
        match &one.state {
            GuestState::Away | GuestState::Opening { .. } => false,
            GuestState::Attached { machine, .. } => {
                let host = &self.machines[*machine];
                host.stopping || host.drained || !lives
            }
        }
    }

    /// The node ended the connection.
    pub(super) fn on_guest_ended(&mut self, machine: Machine, id: GuestId) {
        if let Some(guest) = self.machines[machine].guests.remove(&id) {
            self.count("guest-ended");
            self.guest_cut_off(guest);
        }
    }
}

fn wrong(text: String) -> crate::oracle::Broken {
    crate::oracle::Broken { promise: "whole-answers", text }
}

fn guest_who(guest: usize) -> Who {
    Who::Guest(u32::try_from(guest).expect("a few guests"))
}
