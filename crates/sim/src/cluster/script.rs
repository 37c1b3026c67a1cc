//! A schedule that waits for its moment: faults that strike when the copies are in a certain state,
//! which chance hardly ever meets.

use super::forsaken::{Forsaken, ForsakenStep};
use super::machine::machine_of;
use super::parted::{Parted, PartedStep};
use super::{Cluster, Event, Mend};
use crate::invariants::place::held;
use crate::net::Machine;
use gabion_store::HeldSegment;
use gabion_types::{DiskId, Duration, SegmentIndex, VolumeId};

/// The first segment of the first volume is looked at.
pub(super) const SEGMENT: (VolumeId, SegmentIndex) = (VolumeId::new(1), SegmentIndex::new(0));

/// A copy is left with a write that the others do not have and that nobody asks for again: owner
/// and copy lose their processes when the copy has it and the owner's own disk has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Script {
    /// No script.
    #[default]
    None,
    /// `strikes_join`: when that copy comes back and has begun to join, the owner dies again.
    Orphan { strikes_join: bool },
    /// Power is cut between two answers to the start of an epoch: one copy has it durably, and the
    /// other one, whose highest seq lies below, loses it.
    EpochStart,
    /// Every copy of one block rots.
    Loss,
    /// The last copy that has all goes.
    Parted { how: Parted, step: PartedStep },
    /// Every copy that has all goes, and an operator accepts the loss.
    Forsaken { how: Forsaken, step: ForsakenStep },
    /// The owner and the copy are back; the copy is to join.
    Returning { disk: DiskId, strikes_join: bool },
}

impl Cluster {
    /// After a disk did something, or the map changed.
    pub(super) fn play(&mut self) {
        match self.script {
            Script::None => {}
            Script::Orphan { .. } if self.phase_is_over() => {}
            Script::Orphan { strikes_join } => self.leave_orphan(strikes_join),
            Script::EpochStart
            | Script::Loss
            | Script::Parted { .. }
            | Script::Forsaken { step: ForsakenStep::Whole, .. }
                if self.phase_is_over() => {}
            Script::EpochStart => self.part_epoch_start(),
            Script::Loss => self.lose_block(),
            Script::Parted { how, step } => self.part(how, step),
            Script::Forsaken { how, step } => self.forsake(how, step),
            Script::Returning { disk, strikes_join } => self.strike_join(disk, strikes_join),
        }
    }

    fn leave_orphan(&mut self, strikes_join: bool) {
        let Some(owner) = self.owner_machine() else { return };
        let Some(members) = self.map.volume(SEGMENT.0).map(|entry| &entry.segments[0]) else {
            return;
        };
        if members.write_set().count() != 2 {
            return;
        }
        let on_owner = |disk: &&DiskId| self.machine_of_disk(**disk) == Some(owner);
        let own = members.in_sync.iter().find(on_owner);
        let other = members.in_sync.iter().find(|disk| !on_owner(disk));
        let (Some(own), Some(other)) = (own.copied(), other.copied()) else { return };
        let (Some(ours), Some(theirs)) = (self.segment_of(own), self.segment_of(other)) else {
            return;
        };
        let Some(machine) = self.machine_of_disk(other) else { return };
        // What a front that lives on holds unanswered, the next owner would do again.
        let lives = |one: &Machine| *one != owner && *one != machine;
        if theirs.highest <= ours.highest || self.guests.iter().any(|guest| guest.writes_on(&lives))
        {
            return;
        }
        self.count("script-orphan");
        // What the owner's disk had under way is lost, most likely.
        let mut prng = self.prng.fork();
        self.cut_power(owner, &mut prng);
        self.kill(machine);
        let soon = Event::Mend(Mend::Start(owner));
        self.queue.after(Duration::from_millis(300), soon);
        self.queue.after(Duration::from_secs(4), Event::Mend(Mend::Start(machine)));
        // From now on nothing is written, so that nothing is settled; guests look at every block.
        self.guests.iter_mut().for_each(|guest| guest.plan.mix.write = 0);
        self.script = Script::Returning { disk: other, strikes_join };
    }

    fn part_epoch_start(&mut self) {
        let Some(owner) = self.owner_machine() else { return };
        let Some(members) = self.map.volume(SEGMENT.0).map(|entry| &entry.segments[0]) else {
            return;
        };
        let copies = members.in_sync.iter().map(|disk| (*disk, self.segment_of(*disk)));
        let copies: Vec<_> =
            copies.filter_map(|(disk, held)| Some((self.machine_of_disk(disk)?, held?))).collect();
        let first = |held: &HeldSegment| held.next.previous();
        let late = copies.iter().find(|(_, late)| {
            let reaches = late.highest.max(first(late)).max(late.settled);
            copies.iter().any(|(_, early)| first(early) > reaches)
        });
        let Some((late, _)) = late.copied() else { return };
        self.count("script-epoch-start");
        self.script = Script::None;
        for machine in [owner, late] {
            let mut prng = self.prng.fork();
            self.cut_power(machine, &mut prng);
            self.queue.after(Duration::from_millis(300), Event::Mend(Mend::Start(machine)));
        }
    }

    fn strike_join(&mut self, disk: DiskId, strikes: bool) {
        let joins = self.map.volume(SEGMENT.0).and_then(|entry| entry.segments[0].joining(disk));
        let Some(joined) = joins.map(|joining| joining.joined) else { return };
        if self.segment_of(disk).is_none_or(|held| held.joined != Some(joined)) {
            return;
        }
        self.count("script-join");
        self.script = Script::None;
        if let Some(owner) = self.owner_machine().filter(|_| strikes) {
            self.kill(owner);
            self.queue.after(Duration::from_millis(300), Event::Mend(Mend::Start(owner)));
        }
    }

    pub(super) fn owner_machine(&self) -> Option<Machine> {
        self.map.volume(SEGMENT.0)?.owner.map(|(node, _)| machine_of(node))
    }

    pub(super) fn machine_of_disk(&self, disk: DiskId) -> Option<Machine> {
        self.map.disk(disk).map(|entry| machine_of(entry.node))
    }

    pub(super) fn segment_of(&self, disk: DiskId) -> Option<HeldSegment> {
        held(&self.map, &self.places(), disk, SEGMENT).map(|(_, held)| held)
    }
}
