//! What goes wrong with disks and clocks while guests work. Damage that may cost a copy for good
//! strikes the disks of fewer machines than there are copies, and nothing in such a run takes other
//! copies away: so every promise must hold as if nothing had happened.

use super::emptying::Emptied;
use super::fault::{FaultKind, Mend};
use super::machine::{self, State, node_id, who};
use super::schedule::Strike;
use super::{Cluster, Event};
use crate::disk::{NextWrite, PowerCut, VirtualDisk};
use crate::net::Machine;
use crate::world::{Spread, index};
use gabion_node::{DiskCondition, DiskSlot};
use gabion_types::{Duration, Prng};

/// Blocks that rot at one stroke.
const ROTS_MAX: u64 = 8;
/// How far a clock jumps.
const JUMP: Spread = Spread::new(1_000, 5_000_000);

impl Cluster {
    /// False: it was to come already.
    pub(super) fn damage(&mut self, strike: Strike, prng: &mut Prng) -> bool {
        let Strike { kind, lasts, one, .. } = strike;
        let slot = index(prng.below(self.machines[one].disks.len() as u64));
        let disk = &mut self.machines[one].disks[slot].virtual_disk;
        match kind {
            FaultKind::ReadError => disk.fail_next_read(),
            FaultKind::WriteError => return disk.set_next_write(NextWrite::Fails),
            FaultKind::SyncError => disk.fail_next_sync(),
            FaultKind::DeadDisk => disk.die(),
            FaultKind::LostWrite => return disk.set_next_write(NextWrite::Vanishes),
            FaultKind::AstrayWrite => return disk.set_next_write(NextWrite::GoesAstray),
            FaultKind::BitRot if prng.chance(1, 4) => self.rot_anything(one, slot, prng),
            FaultKind::BitRot => self.rot_some(one, ROTS_MAX, prng),
            FaultKind::NewDisk => {
                self.cut_power(one, prng);
                self.replace_disk(one, slot);
                self.use_new_disks(one);
                self.queue.after(lasts, Event::Mend(Mend::Start(one)));
            }
            FaultKind::OldDisk => {
                let now = disk.snapshot();
                self.machines[one].disks[slot].old = Some(now);
                self.queue.after(lasts, Event::Mend(Mend::OldDisk(one, slot)));
            }
            FaultKind::Kill
            | FaultKind::PowerCut
            | FaultKind::PowerCutAll
            | FaultKind::Stop
            | FaultKind::Drain
            | FaultKind::Pause
            | FaultKind::Cut
            | FaultKind::CutOneWay
            | FaultKind::Isolate
            | FaultKind::Reset
            | FaultKind::SlowWay
            | FaultKind::SlowDisk
            | FaultKind::StuckDisk
            | FaultKind::PauseClock
            | FaultKind::ClockJump
            | FaultKind::Unseat
            | FaultKind::Leaderless
            | FaultKind::Move
            | FaultKind::Remake
            | FaultKind::Grow
            | FaultKind::EmptyDisk
            | FaultKind::EmptyNode
            | FaultKind::Evict => return false,
        }
        true
    }

    /// The disk is gone with all that it held, and another one is there.
    fn replace_disk(&mut self, machine: Machine, slot: usize) {
        let prng = self.damage_prng.fork();
        let disk = VirtualDisk::new(self.swarm.disk_bytes, self.swarm.disk_times, prng);
        self.machines[machine].disks[slot] =
            machine::formatted(disk, self.swarm.limits, &mut self.damage_prng);
    }

    /// Power is lost, and what comes back is the disk as it was.
    pub(super) fn roll_back(&mut self, machine: Machine, slot: usize) {
        if self.phase_is_over() {
            return;
        }
        let Some(old) = self.machines[machine].disks[slot].old.take() else { return };
        self.tell(who(machine), format!("disk{slot} is an old one"));
        self.count("disk-rolled-back");
        let mut prng = self.damage_prng.fork();
        self.cut_power(machine, &mut prng);
        self.machines[machine].disks[slot].virtual_disk.lose_power(PowerCut::LosesAll);
        self.machines[machine].disks[slot].virtual_disk.roll_back(&old);
        let wait = Spread::new(1_000, 500_000).draw(&mut prng);
        self.queue.after(wait, Event::Mend(Mend::Start(machine)));
    }

    /// An operator puts new disks in the place of those that are out of service.
    pub(super) fn replace_bad_disks(&mut self) {
        for machine in self.swarm.frail.clone() {
            let bad: Vec<usize> = self.bad_disks(machine);
            if bad.is_empty() {
                continue;
            }
            self.kill(machine);
            self.machines[machine].state = State::Down;
            for slot in bad {
                self.count("disk-replaced");
                self.tell(who(machine), format!("disk{slot} is replaced"));
                self.replace_disk(machine, slot);
            }
            self.queue.after(Duration::from_millis(50), Event::Mend(Mend::Start(machine)));
            self.use_new_disks(machine);
        }
    }

    /// Who puts a new disk into a machine means it to be used.
    fn use_new_disks(&mut self, machine: Machine) {
        if self.map.node(node_id(machine)).is_some_and(|node| node.drain.is_some()) {
            self.use_again(Emptied::Node(machine));
        }
    }

    /// Disks that the process runs without.
    fn bad_disks(&self, machine: Machine) -> Vec<usize> {
        let Some(node) = self.machines[machine].node() else { return Vec::new() };
        let out = |slot: &usize| {
            let place = DiskSlot(u32::try_from(*slot).expect("a few disks"));
            matches!(node.disk_condition(place), Some(DiskCondition::Out(_)))
        };
        (0..self.machines[machine].disks.len()).filter(out).collect()
    }

    /// Guests of this node have asked for something, and it is about to hang.
    pub(super) fn note_frozen(&mut self, machine: Machine) {
        let host = &self.machines[machine];
        let mut guests = host.guests.values().map(|guest| &self.guests[*guest]);
        if host.is_running() && guests.any(|guest| guest.in_flight() > 0) {
            self.count("front-frozen");
        }
    }

    pub(super) fn stick_disks(&mut self, machine: Machine, lasts: Duration) {
        for slot in 0..self.machines[machine].disks.len() {
            self.machines[machine].disks[slot].virtual_disk.set_stuck(true);
            self.queue.after(lasts, Event::Mend(Mend::Disk(machine, slot)));
        }
    }

    pub(super) fn unstick(&mut self, machine: Machine, slot: usize) {
        let disk = &mut self.machines[machine].disks[slot];
        disk.virtual_disk.set_stuck(false);
        for (life, token) in std::mem::take(&mut disk.waiting) {
            let wait = Spread::new(1, 500).draw(&mut self.prng);
            self.queue.after(wait, Event::Disk { machine, slot, life, token });
        }
    }

    pub(super) fn jump_clock(&mut self, machine: Machine, prng: &mut Prng) {
        let now = self.queue.now();
        self.machines[machine].jump_clock(now, JUMP.draw(prng));
        // The manager ends by it the leases of all others.
        if self.consensus.leader() == Some(machine) {
            self.machines.iter_mut().for_each(|host| host.bend(now));
        }
        self.feed(machine, gabion_node::Input::Tick);
    }

    pub(super) fn owns_something(&self, machine: Machine) -> bool {
        let mut volumes = self.map.volumes().values();
        volumes.any(|volume| volume.owner.is_some_and(|(node, _)| node == node_id(machine)))
    }
}
