//! What goes wrong, and how it is put right again.

use super::machine::State;
use super::swarm::pick;
use super::{Cluster, Event};
use crate::disk::PowerCut;
use crate::net::Machine;
use crate::world::{Spread, Who};
use gabion_types::{Duration, Prng};

/// One kind of trouble. None of them loses a copy for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A process dies and starts again.
    Kill,
    PowerCut,
    /// All machines at once.
    PowerCutAll,
    /// A process stops and comes back.
    Stop,
    /// A process hangs and goes on.
    Pause,
    Cut,
    CutOneWay,
    /// A machine is cut off from all others.
    Isolate,
    Reset,
    SlowWay,
    SlowDisk,
    Unseat,
    /// No trouble, but a change of owner that somebody asked for.
    Move,
}

const ALL: [FaultKind; 13] = [
    FaultKind::Kill,
    FaultKind::PowerCut,
    FaultKind::PowerCutAll,
    FaultKind::Stop,
    FaultKind::Pause,
    FaultKind::Cut,
    FaultKind::CutOneWay,
    FaultKind::Isolate,
    FaultKind::Reset,
    FaultKind::SlowWay,
    FaultKind::SlowDisk,
    FaultKind::Unseat,
    FaultKind::Move,
];

/// Puts one thing right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    Start(Machine),
    Resume(Machine),
    Way(Machine, Machine),
    Disk(Machine, usize),
}

/// How long a trouble lasts.
const LASTS: [Spread; 3] = [
    Spread::new(5_000, 300_000),
    Spread::new(300_000, 3_000_000),
    Spread::new(3_000_000, 12_000_000),
];

impl FaultKind {
    /// Some kinds of trouble, now and then none, now and then all.
    pub fn draw(prng: &mut Prng) -> Vec<Self> {
        let one_in = pick(prng, &[1, 2, 2, 4, 12]);
        ALL.into_iter().filter(|_| prng.chance(1, one_in)).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::PowerCut => "power-cut",
            Self::PowerCutAll => "power-cut-all",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::Isolate => "isolate",
            Self::Reset => "reset",
            Self::SlowWay => "slow-way",
            Self::SlowDisk => "slow-disk",
            Self::Unseat => "unseat",
            Self::Move => "move",
        }
    }
}

impl Cluster {
    /// One trouble happens, and the next is put on the list.
    pub(super) fn strike(&mut self) {
        if self.phase_is_over() {
            return;
        }
        let every = self.swarm.fault_every;
        let wait = Duration::from_nanos(
            self.prng.between(1, u64::try_from(every.as_nanos()).expect("some seconds") * 2),
        );
        self.queue.after(wait, Event::Strike);
        let Some(kind) = self.prng.pick(&self.swarm.faults).copied() else { return };
        let lasts = pick(&mut self.prng, &LASTS).draw(&mut self.prng);
        self.inflict(kind, lasts);
    }

    fn inflict(&mut self, kind: FaultKind, lasts: Duration) {
        let machines = self.machines.len() as u64;
        let one = crate::world::index(self.prng.below(machines));
        let other =
            (one + 1 + crate::world::index(self.prng.below(machines - 1))) % self.machines.len();
        self.count(kind.name());
        let numbers = [one as u64, other as u64, u64::from(lasts.subsec_millis())];
        self.trace.note(self.queue.now(), Who::World, kind.name(), numbers);
        match kind {
            FaultKind::Kill => {
                self.kill(one);
                self.queue.after(lasts, Event::Mend(Mend::Start(one)));
            }
            FaultKind::PowerCut => {
                self.cut_power(one);
                self.queue.after(lasts, Event::Mend(Mend::Start(one)));
            }
            FaultKind::PowerCutAll => self.cut_power_all(),
            FaultKind::Stop => {
                self.stop(one);
                self.queue.after(lasts + Duration::from_secs(10), Event::Mend(Mend::Start(one)));
            }
            FaultKind::Pause => {
                self.pause(one);
                self.queue.after(lasts, Event::Mend(Mend::Resume(one)));
            }
            FaultKind::Cut => {
                self.cut_for(one, other, lasts);
                self.cut_for(other, one, lasts);
            }
            FaultKind::CutOneWay => self.cut_for(one, other, lasts),
            FaultKind::Isolate => {
                for other in (0..self.machines.len()).filter(|other| *other != one) {
                    self.cut_for(one, other, lasts);
                    self.cut_for(other, one, lasts);
                }
            }
            FaultKind::Reset => self.reset_some(one),
            FaultKind::SlowWay => {
                let more = Spread::new(1_000, 400_000).draw(&mut self.prng);
                self.net.set_slow(one, other, more);
                self.queue.after(lasts, Event::Mend(Mend::Way(one, other)));
            }
            FaultKind::SlowDisk => {
                let times = pick(&mut self.prng, &[10, 100, 1000]);
                for slot in 0..self.machines[one].disks.len() {
                    self.machines[one].disks[slot].virtual_disk.set_slow(times);
                    self.queue.after(lasts, Event::Mend(Mend::Disk(one, slot)));
                }
            }
            FaultKind::Unseat => self.consensus.unseat(self.queue.now()),
            FaultKind::Move => self.move_volume(one),
        }
    }

    /// All machines lose power at once, and come back one after the other.
    pub(super) fn cut_power_all(&mut self) {
        for machine in 0..self.machines.len() {
            self.cut_power(machine);
            let lasts = Spread::new(100_000, 8_000_000).draw(&mut self.prng);
            self.queue.after(lasts, Event::Mend(Mend::Start(machine)));
        }
    }

    pub(super) fn cut_power(&mut self, machine: Machine) {
        let cut = PowerCut::draw(&mut self.prng);
        self.lose_process(machine);
        self.machines[machine].state = State::Off;
        self.net.power_off(machine);
        for disk in &mut self.machines[machine].disks {
            disk.virtual_disk.lose_power(cut);
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            // When all stop for the finale, nobody starts on his own.
            Mend::Start(machine) => {
                if !self.phase.is_stopping() {
                    self.start(machine);
                }
            }
            Mend::Resume(machine) => self.resume(machine),
            Mend::Way(from, to) => self.net.mend(self.queue.now(), from, to),
            Mend::Disk(machine, slot) => {
                self.machines[machine].disks[slot].virtual_disk.set_slow(1)
            }
        }
    }

    /// Everything is put right at once.
    pub(super) fn mend_all(&mut self) {
        for from in 0..self.machines.len() {
            for to in 0..self.machines.len() {
                self.mend(Mend::Way(from, to));
            }
            for slot in 0..self.machines[from].disks.len() {
                self.mend(Mend::Disk(from, slot));
            }
            self.resume(from);
            self.start(from);
        }
    }

    fn cut_for(&mut self, from: Machine, to: Machine, lasts: Duration) {
        self.net.cut(from, to);
        self.queue.after(lasts, Event::Mend(Mend::Way(from, to)));
    }

    fn reset_some(&mut self, machine: Machine) {
        let conns: Vec<_> = self
            .net
            .conns()
            .filter(|(_, from, to)| *from == machine || *to == machine)
            .map(|(conn, _, _)| conn)
            .collect();
        for conn in conns {
            if self.prng.chance(1, 2) {
                self.net.reset(self.queue.now(), conn);
            }
        }
    }
}
