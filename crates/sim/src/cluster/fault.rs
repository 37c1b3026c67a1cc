//! What goes wrong, and how it is put right again.

use super::emptying::Emptied;
use super::machine::{State, who};
use super::schedule::Strike;
use super::swarm::pick;
use super::{Cluster, Event};
use crate::disk::PowerCut;
use crate::net::Machine;
use crate::world::{Spread, Who};
use gabion_types::{Duration, Prng};

/// One kind of trouble. Those that may lose a copy for good strike one machine of a run only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A process dies and starts again.
    Kill,
    PowerCut,
    /// All machines at once.
    PowerCutAll,
    /// A process stops and comes back.
    Stop,
    /// A process lets go of its volumes and guests, then stops and comes back.
    Drain,
    /// A process hangs and goes on.
    Pause,
    Cut,
    CutOneWay,
    /// A machine is cut off from all others.
    Isolate,
    Reset,
    SlowWay,
    SlowDisk,
    /// A disk answers nothing for a while.
    StuckDisk,
    /// A machine stands still and its clock with it.
    PauseClock,
    /// A clock goes on from a later time.
    ClockJump,
    Unseat,
    /// Nobody leads for seconds.
    Leaderless,
    /// No trouble, but a change of owner that somebody asked for.
    Move,
    /// Nor this: a volume is deleted and made anew under the same name.
    Remake,
    /// Nor this: a volume grows.
    Grow,
    /// Nor these: somebody wants a disk to be empty, or all disks of a machine.
    EmptyDisk,
    EmptyNode,
    /// Nor this: somebody closes all guests of a volume.
    Evict,
    ReadError,
    WriteError,
    SyncError,
    /// A disk answers everything with an error, until another one comes in its place.
    DeadDisk,
    /// A disk says that it has written, and has not.
    LostWrite,
    /// A disk writes to another place.
    AstrayWrite,
    /// Blocks rot while all goes on.
    BitRot,
    /// A disk dies and another one comes in its place.
    NewDisk,
    /// A disk is as it was some time ago.
    OldDisk,
}

/// Puts one thing right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    Start(Machine),
    Resume(Machine),
    /// It was drained: now it stops.
    Stop(Machine),
    Way(Machine, Machine),
    Disk(Machine, usize),
    /// It need not be empty any more.
    Used(Emptied),
    /// No mend: the moment at which an old disk comes in the place of the newer one.
    OldDisk(Machine, usize),
}

/// How long the clock of an owner may stand: less than what lies between the owner's end of its
/// lease and the manager's.
const CLOCK_STANDS: Duration = Duration::from_millis(100);

/// Whoever waits for the end of a process looks again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a trouble lasts.
pub(super) const LASTS: [Spread; 3] = [
    Spread::new(5_000, 300_000),
    Spread::new(300_000, 3_000_000),
    Spread::new(3_000_000, 12_000_000),
];

impl FaultKind {
    pub const ALL: [Self; 32] = [
        Self::Kill,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::Stop,
        Self::Drain,
        Self::Pause,
        Self::Cut,
        Self::CutOneWay,
        Self::Isolate,
        Self::Reset,
        Self::SlowWay,
        Self::SlowDisk,
        Self::StuckDisk,
        Self::PauseClock,
        Self::ClockJump,
        Self::Unseat,
        Self::Leaderless,
        Self::Move,
        Self::Remake,
        Self::Grow,
        Self::EmptyDisk,
        Self::EmptyNode,
        Self::Evict,
        Self::ReadError,
        Self::WriteError,
        Self::SyncError,
        Self::DeadDisk,
        Self::LostWrite,
        Self::AstrayWrite,
        Self::BitRot,
        Self::NewDisk,
        Self::OldDisk,
    ];

    /// Some kinds of trouble, now and then none, now and then all. Where one machine is frail, what
    /// it has is damaged, and so nothing may happen that takes another copy away.
    pub fn draw(prng: &mut Prng, frail: bool) -> Vec<Self> {
        let one_in = pick(prng, &[1, 2, 2, 4, 12]);
        let may = |kind: &Self| if frail { kind.stays_on_one() } else { !kind.is_damage() };
        let all = Self::ALL.into_iter().filter(|kind| !kind.is_drawn_apart());
        all.filter(|kind| prng.chance(1, one_in) && may(kind)).collect()
    }

    /// So that the rest of a seed is as it was before there were these.
    fn is_drawn_apart(self) -> bool {
        matches!(self, Self::EmptyDisk | Self::EmptyNode | Self::Evict)
    }

    /// A copy may be lost for good.
    pub fn is_damage(self) -> bool {
        match self {
            Self::ReadError
            | Self::WriteError
            | Self::SyncError
            | Self::DeadDisk
            | Self::LostWrite
            | Self::AstrayWrite
            | Self::BitRot
            | Self::NewDisk
            | Self::OldDisk => true,
            Self::Kill
            | Self::PowerCut
            | Self::PowerCutAll
            | Self::Stop
            | Self::Drain
            | Self::Pause
            | Self::Cut
            | Self::CutOneWay
            | Self::Isolate
            | Self::Reset
            | Self::SlowWay
            | Self::SlowDisk
            | Self::StuckDisk
            | Self::PauseClock
            | Self::ClockJump
            | Self::Unseat
            | Self::Leaderless
            | Self::Move
            | Self::Remake
            | Self::Grow
            | Self::EmptyDisk
            | Self::EmptyNode
            | Self::Evict => false,
        }
    }

    /// No other machine than the one it strikes loses its place among the copies by it.
    fn stays_on_one(self) -> bool {
        match self {
            Self::Kill
            | Self::PowerCut
            | Self::Stop
            | Self::Drain
            | Self::Pause
            | Self::SlowDisk
            | Self::StuckDisk
            | Self::PauseClock
            | Self::Unseat
            | Self::Leaderless
            | Self::Move
            | Self::PowerCutAll
            | Self::Reset
            | Self::SlowWay
            | Self::ClockJump
            | Self::Remake
            | Self::Grow
            | Self::EmptyDisk
            | Self::EmptyNode
            | Self::Evict => true,
            Self::Cut | Self::CutOneWay | Self::Isolate => false,
            Self::ReadError
            | Self::WriteError
            | Self::SyncError
            | Self::DeadDisk
            | Self::LostWrite
            | Self::AstrayWrite
            | Self::BitRot
            | Self::NewDisk
            | Self::OldDisk => true,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::PowerCut => "power-cut",
            Self::PowerCutAll => "power-cut-all",
            Self::Stop => "stop",
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::Isolate => "isolate",
            Self::Reset => "reset",
            Self::SlowWay => "slow-way",
            Self::SlowDisk => "slow-disk",
            Self::StuckDisk => "stuck-disk",
            Self::PauseClock => "pause-clock",
            Self::ClockJump => "clock-jump",
            Self::Unseat => "unseat",
            Self::Leaderless => "leaderless",
            Self::Move => "move",
            Self::Remake => "remake",
            Self::Grow => "grow",
            Self::EmptyDisk => "empty-disk",
            Self::EmptyNode => "empty-node",
            Self::Evict => "evict",
            Self::ReadError => "read-error",
            Self::WriteError => "write-error",
            Self::SyncError => "sync-error",
            Self::DeadDisk => "dead-disk",
            Self::LostWrite => "lost-write",
            Self::AstrayWrite => "astray-write",
            Self::BitRot => "bit-rot",
            Self::NewDisk => "new-disk",
            Self::OldDisk => "old-disk",
        }
    }

    /// In words, for a list.
    pub fn text(self) -> &'static str {
        match self {
            Self::Kill => "a process dies at once and starts again",
            Self::PowerCut => "a machine loses power: what was not synced is lost, kept or torn",
            Self::PowerCutAll => "all machines lose power at once",
            Self::Stop => "a process is stopped cleanly and comes back",
            Self::Drain => "a process lets go of its volumes first, then stops and comes back",
            Self::Pause => "a process hangs and goes on",
            Self::Cut => "two machines do not hear each other",
            Self::CutOneWay => "one machine does not hear another, which hears it",
            Self::Isolate => "a machine is cut off from all others",
            Self::Reset => "connections of a machine break",
            Self::SlowWay => "all that one machine sends to another is late",
            Self::SlowDisk => "the disks of a machine are 10 to 1000 times as slow",
            Self::StuckDisk => "the disks of a machine answer nothing for a while",
            Self::PauseClock => "a machine stands still, and its clock with it",
            Self::ClockJump => "the clock of a machine jumps ahead",
            Self::Unseat => "the consensus leader is voted out",
            Self::Leaderless => "nobody leads for some seconds",
            Self::Move => "somebody asks that another node owns a volume",
            Self::Remake => "a volume is deleted and made anew under the same name",
            Self::Grow => "a volume grows while guests use it",
            Self::EmptyDisk => "somebody wants a disk to be empty, and may use it again later",
            Self::Evict => "somebody closes all guests of a volume, and may keep some out",
            Self::EmptyNode => "somebody wants all disks of a machine to be empty",
            Self::ReadError => "a read of a disk is an error, once",
            Self::WriteError => "a write to a disk is an error: it is out for good",
            Self::SyncError => "a sync of a disk is an error: it is out for good",
            Self::DeadDisk => "a disk answers everything with an error, until it is replaced",
            Self::LostWrite => "a disk says that it has written, and has not",
            Self::AstrayWrite => "a disk writes to another place than it was told",
            Self::BitRot => "blocks of a machine rot while guests work",
            Self::NewDisk => "a disk is gone, and an empty one is in its place",
            Self::OldDisk => "after a power cut a disk is as it was some time before",
        }
    }
}

impl Cluster {
    /// One trouble of the schedule happens.
    pub(super) fn strike(&mut self, number: usize) {
        if self.phase_is_over() {
            return;
        }
        let strike = self.swarm.strikes[number];
        let Strike { kind, lasts, one, other, seed, .. } = strike;
        let mut prng = Prng::new(seed);
        if !self.can_strike(kind, one) {
            return;
        }
        let numbers = [one as u64, other as u64, u64::from(lasts.subsec_millis())];
        self.trace.note_with(self.queue.now(), Who::World, kind.name(), numbers, || {
            format!("number {number} of the schedule, for {:.3} s", lasts.as_secs_f64())
        });
        self.tell_strike(&strike);
        if self.inflict(strike, &mut prng) {
            self.count(kind.name());
        }
    }

    /// False: nothing came of it.
    fn inflict(&mut self, strike: Strike, prng: &mut Prng) -> bool {
        let Strike { kind, lasts, one, other, .. } = strike;
        match kind {
            FaultKind::Kill => {
                self.kill(one);
                self.queue.after(lasts, Event::Mend(Mend::Start(one)));
            }
            FaultKind::PowerCut => {
                self.cut_power(one, prng);
                self.queue.after(lasts, Event::Mend(Mend::Start(one)));
            }
            FaultKind::PowerCutAll => self.cut_power_all(prng),
            FaultKind::Stop => {
                self.stop(one);
                self.queue.after(lasts + Duration::from_secs(10), Event::Mend(Mend::Start(one)));
            }
            FaultKind::Drain => {
                self.drain(one);
                self.queue.after(lasts, Event::Mend(Mend::Stop(one)));
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
            FaultKind::Reset => self.reset_some(one, prng),
            FaultKind::SlowWay => {
                let more = Spread::new(1_000, 400_000).draw(prng);
                self.net.set_slow(one, other, more);
                self.queue.after(lasts, Event::Mend(Mend::Way(one, other)));
            }
            FaultKind::SlowDisk => {
                let times = pick(prng, &[10, 100, 1000]);
                for slot in 0..self.machines[one].disks.len() {
                    self.machines[one].disks[slot].virtual_disk.set_slow(times);
                    self.queue.after(lasts, Event::Mend(Mend::Disk(one, slot)));
                }
            }
            FaultKind::StuckDisk => self.stick_disks(one, lasts),
            FaultKind::PauseClock => {
                // An owner whose clock stands reads on for as long as its lease seems to hold.
                let lasts = if self.owns_something(one) { lasts.min(CLOCK_STANDS) } else { lasts };
                self.pause(one);
                self.machines[one].clock_stands_since(self.queue.now());
                self.queue.after(lasts, Event::Mend(Mend::Resume(one)));
            }
            FaultKind::ClockJump => self.jump_clock(one, prng),
            FaultKind::Unseat => self.consensus.unseat(self.queue.now(), Duration::ZERO),
            FaultKind::Leaderless => self.consensus.unseat(self.queue.now(), lasts),
            FaultKind::Move => return self.move_volume(one, prng),
            FaultKind::Remake => return self.remake_volume(prng),
            FaultKind::Grow => return self.grow_volume(prng),
            FaultKind::EmptyDisk => return self.empty(&strike, false, prng),
            FaultKind::EmptyNode => return self.empty(&strike, true, prng),
            FaultKind::Evict => return self.evict(prng),
            FaultKind::ReadError
            | FaultKind::WriteError
            | FaultKind::SyncError
            | FaultKind::DeadDisk
            | FaultKind::LostWrite
            | FaultKind::AstrayWrite
            | FaultKind::BitRot
            | FaultKind::NewDisk
            | FaultKind::OldDisk => return self.damage(strike, prng),
        }
        true
    }

    /// What is down already does not go down again; a witness has no disk that could be slow.
    fn can_strike(&self, kind: FaultKind, machine: Machine) -> bool {
        let host = &self.machines[machine];
        match kind {
            FaultKind::Kill | FaultKind::PauseClock | FaultKind::Pause => host.is_running(),
            FaultKind::Stop | FaultKind::Drain => host.is_running() && !host.stopping,
            FaultKind::SlowDisk | FaultKind::StuckDisk => !host.disks.is_empty(),
            FaultKind::PowerCut
            | FaultKind::PowerCutAll
            | FaultKind::Cut
            | FaultKind::CutOneWay
            | FaultKind::Isolate
            | FaultKind::Reset
            | FaultKind::SlowWay
            | FaultKind::ClockJump
            | FaultKind::Unseat
            | FaultKind::Leaderless
            | FaultKind::Move
            | FaultKind::Remake
            | FaultKind::Grow
            | FaultKind::EmptyDisk
            | FaultKind::EmptyNode
            | FaultKind::Evict => true,
            FaultKind::ReadError
            | FaultKind::WriteError
            | FaultKind::SyncError
            | FaultKind::DeadDisk
            | FaultKind::LostWrite
            | FaultKind::AstrayWrite
            | FaultKind::BitRot
            | FaultKind::NewDisk
            | FaultKind::OldDisk => true,
        }
    }

    /// All machines lose power at once, and come back one after the other.
    pub(super) fn cut_power_all(&mut self, prng: &mut Prng) {
        for machine in 0..self.machines.len() {
            self.cut_power(machine, prng);
            let lasts = Spread::new(100_000, 8_000_000).draw(prng);
            self.queue.after(lasts, Event::Mend(Mend::Start(machine)));
        }
    }

    pub(super) fn cut_power(&mut self, machine: Machine, prng: &mut Prng) {
        let cut = PowerCut::draw(prng);
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
                if self.phase.is_stopping() {
                    return;
                }
                if self.machines[machine].has_process() {
                    self.start_once_stopped(machine);
                } else {
                    self.tell(who(machine), "starts again");
                    self.start(machine);
                }
            }
            Mend::Resume(machine) => self.resume(machine),
            Mend::Stop(machine) => {
                if self.machines[machine].drained && !self.phase.is_stopping() {
                    self.stop(machine);
                    self.start_once_stopped(machine);
                }
            }
            Mend::Way(from, to) => self.net.mend(self.queue.now(), from, to),
            Mend::Disk(machine, slot) => {
                self.machines[machine].disks[slot].virtual_disk.set_slow(1);
                self.unstick(machine, slot);
            }
            Mend::Used(what) => self.use_again(what),
            Mend::OldDisk(machine, slot) => self.roll_back(machine, slot),
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
            self.mend(Mend::Stop(from));
            self.start_once_stopped(from);
        }
    }

    /// Whoever stopped it waits until it is gone.
    fn start_once_stopped(&mut self, machine: Machine) {
        if self.machines[machine].stopping {
            self.queue.after(AGAIN, Event::Mend(Mend::Start(machine)));
        }
    }

    fn cut_for(&mut self, from: Machine, to: Machine, lasts: Duration) {
        self.net.cut(from, to);
        self.queue.after(lasts, Event::Mend(Mend::Way(from, to)));
    }

    fn reset_some(&mut self, machine: Machine, prng: &mut Prng) {
        let conns: Vec<_> = self
            .net
            .conns()
            .filter(|(_, from, to)| *from == machine || *to == machine)
            .map(|(conn, _, _)| conn)
            .collect();
        for conn in conns {
            if prng.chance(1, 2) {
                self.net.reset(self.queue.now(), conn);
            }
        }
    }
}
