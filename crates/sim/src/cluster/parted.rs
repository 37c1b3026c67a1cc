//! The last copy that has all goes, and two that have all between them are left: who left first, and who
//! joined when that one left.

use super::machine::machine_of;
use super::script::SEGMENT;
use super::{Cluster, Event, Mend, Script};
use crate::disk::PowerCut;
use crate::net::Machine;
use gabion_types::{DiskId, Duration, SegmentMembers};

/// So much was done before a copy goes, and so much again before the next one does.
const OPERATIONS: u64 = 100;
const OPERATIONS_MORE: u64 = 30;
/// Who has to wait for the right disk waits so long.
const BACK_AFTER: Duration = Duration::from_secs(25);
/// The elder is back after so long: before its owner misses the base, or when nothing else is left for long.
const ELDER_BACK_AFTER: Duration = Duration::from_millis(400);
const ELDER_BACK_LATE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parted {
    /// The base's disk is out of service for good.
    ForGood,
    /// The base's machine has no power for a while.
    Silent,
    /// The same, and the elder went, with its volume's owner, when the
    /// other copy had what it had not.
    Tail,
    /// The base's machine has no power for a while, and what comes back of the elder is an older disk.
    OldElder,
    /// The base's machine has no power for a while, and the joiner came after the elder had left.
    LateJoiner,
}

/// Where the script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartedStep {
    Whole,
    /// The elder's machine has no power.
    Away {
        elder: DiskId,
        since: u64,
    },
}

impl Cluster {
    pub(super) fn part(&mut self, how: Parted, step: PartedStep) {
        let Some(members) = self.map.members(SEGMENT.0, SEGMENT.1).cloned() else { return };
        match step {
            PartedStep::Whole => self.lose_elder(how, &members),
            PartedStep::Away { elder, since } => self.lose_base(how, (elder, since), &members),
        }
    }

    fn lose_elder(&mut self, how: Parted, members: &SegmentMembers) {
        let whole = members.in_sync.len() == 2 && members.write_set().count() == 2;
        let mut prng = self.damage_prng.fork();
        let drawn = match how {
            Parted::Tail => self.owner_that_lacks(members),
            Parted::ForGood | Parted::Silent | Parted::OldElder | Parted::LateJoiner => {
                prng.pick(&members.in_sync).copied()
            }
        };
        let Some(elder) = drawn.filter(|_| whole) else { return };
        let Some(machine) = self.machine_of_disk(elder) else { return };
        let old = &mut self.machines[machine].disks[0];
        if how == Parted::OldElder && old.old.is_none() {
            old.old = Some(old.virtual_disk.snapshot());
        }
        if self.operations < OPERATIONS {
            return;
        }
        self.count("script-elder");
        self.cut_power(machine, &mut prng);
        if how == Parted::LateJoiner {
            let on = |disk: &DiskId| self.machine_of_disk(*disk);
            let copies: Vec<Machine> = members.in_sync.iter().filter_map(on).collect();
            let third = (0..self.machines.len()).find(|one| !copies.contains(one));
            third.into_iter().for_each(|third| self.kill(third));
        }
        if how == Parted::Tail {
            // So that it is not written over; guests look at every block.
            self.guests.iter_mut().for_each(|guest| guest.plan.mix.write = 0);
        }
        let since = self.operations;
        self.script = Script::Parted { how, step: PartedStep::Away { elder, since } };
    }

    /// The owner's own copy, where the other one has a write that it lacks, and that no front that lives on
    /// would ask again.
    fn owner_that_lacks(&self, members: &SegmentMembers) -> Option<DiskId> {
        let owner = self.owner_machine()?;
        let on_owner = |disk: &DiskId| self.machine_of_disk(*disk) == Some(owner);
        let own = members.in_sync.iter().copied().find(on_owner)?;
        let other = members.in_sync.iter().copied().find(|disk| !on_owner(disk))?;
        let lacks = self.segment_of(other)?.highest > self.segment_of(own)?.highest;
        let lives = |one: &Machine| *one != owner;
        (lacks && !self.guests.iter().any(|guest| guest.writes_on(&lives))).then_some(own)
    }

    fn lose_base(&mut self, how: Parted, (elder, since): (DiskId, u64), members: &SegmentMembers) {
        let Some(stale) = members.stale(elder) else { return };
        let [base] = members.in_sync[..] else { return };
        if how == Parted::LateJoiner && members.joining.is_empty() {
            self.start_all_but(&[elder, base]);
            return;
        }
        let joins = members.joining.iter().find(|joining| {
            let held = self.segment_of(joining.disk);
            held.is_some_and(|held| held.joined == Some(joining.joined))
        });
        let Some(joining) = joins.copied() else { return };
        let late = how == Parted::LateJoiner;
        if late != (joining.joined != stale.left)
            || (!late && self.operations < since + OPERATIONS_MORE)
        {
            return;
        }
        let (Some(of_base), Some(of_elder)) =
            (self.machine_of_disk(base), self.machine_of_disk(elder))
        else {
            return;
        };
        self.count("script-parted");
        self.script = Script::None;
        let mut prng = self.damage_prng.fork();
        if how == Parted::ForGood {
            self.machines[of_base].disks[0].virtual_disk.fail_next_sync();
        } else {
            self.cut_power(of_base, &mut prng);
            self.queue.after(BACK_AFTER, Event::Mend(Mend::Start(of_base)));
        }
        if how == Parted::OldElder {
            // Nobody counts on what that one says.
            self.swarm.frail.push(of_elder);
            let disk = &mut self.machines[of_elder].disks[0];
            if let Some(old) = disk.old.take() {
                disk.virtual_disk.lose_power(PowerCut::LosesAll);
                disk.virtual_disk.roll_back(&old);
            }
        }
        let late = matches!(how, Parted::Silent | Parted::Tail);
        let wait = if late { ELDER_BACK_LATE } else { ELDER_BACK_AFTER };
        self.queue.after(wait, Event::Mend(Mend::Start(of_elder)));
    }

    fn start_all_but(&mut self, away: &[DiskId]) {
        let away = away.iter().filter_map(|disk| self.map.disk(*disk));
        let away: Vec<Machine> = away.map(|entry| machine_of(entry.node)).collect();
        for machine in 0..self.machines.len() {
            if !away.contains(&machine) && !self.machines[machine].is_running() {
                self.mend(Mend::Start(machine));
            }
        }
    }
}
