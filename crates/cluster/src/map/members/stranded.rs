//! Segments that nobody can serve, and an operator's word to go on with what is left of them (rule 8).

use super::{Draft, Kind, Leaver, new_joiner};
use crate::map::room::{Avoid, holders};
use crate::map::{Map, VolumeEntry, VolumeState};
use gabion_types::{
    DiskId, Epoch, Joining, Pair, RefusedChange, SegmentIndex, SegmentMembers, VolumeId,
};
use std::cmp::Reverse;

/// A segment whose in-sync copies are all gone: their disks are out, or their nodes are silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranded {
    pub segment: SegmentIndex,
    pub remains: Remains,
}

/// The best that can be had of it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// Two copies have all between them, and are made one by themselves (rule 8).
    Whole {
        joiner: DiskId,
        elder: DiskId,
    },
    /// All as it was when this copy left, at that epoch.
    Older {
        disk: DiskId,
        left: Epoch,
    },
    /// A copy that never had all, or may have lost some.
    Part {
        disk: DiskId,
    },
    Nothing,
}

impl Remains {
    /// Who would go on; none: a new copy, or nobody has to.
    pub fn disk(&self) -> Option<DiskId> {
        match self {
            Self::Older { disk, .. } | Self::Part { disk } => Some(*disk),
            Self::Whole { .. } | Self::Nothing => None,
        }
    }
}

impl Map {
    /// Of a volume; those for which an operator has spoken, and whose survivor is there, are none of them.
    pub fn stranded(&self, volume: &VolumeEntry) -> Vec<Stranded> {
        let segments = (0..).map(SegmentIndex::new).zip(&volume.segments);
        let stranded = segments.filter(|(_, members)| self.is_stranded(members));
        stranded
            .map(|(segment, members)| Stranded { segment, remains: self.remains(members) })
            .collect()
    }

    fn is_stranded(&self, members: &SegmentMembers) -> bool {
        let decided = members.alone().is_some_and(|joining| !self.is_gone(joining.disk));
        !decided && members.in_sync.iter().all(|disk| self.is_gone(*disk))
    }

    fn remains(&self, members: &SegmentMembers) -> Remains {
        let there = |disk: DiskId| !self.is_gone(disk);
        let mut pairs = members.pairs().chain(members.pairs_that_return());
        if let Some(pair) = pairs.find(|pair| there(pair.joiner) && there(pair.elder)) {
            let Pair { joiner, elder, .. } = pair;
            return Remains::Whole { joiner, elder };
        }
        let stale = members.stale.iter().map(|s| (s.disk, Some(s.left), s.compare_all));
        let joining = members.joining.iter().map(|j| (j.disk, j.left, j.compare_all));
        let left: Vec<_> = joining.chain(stale).filter(|(disk, ..)| there(*disk)).collect();
        let older = left.iter().filter_map(|(disk, left, compare_all)| {
            left.filter(|_| !compare_all).map(|left| (*disk, left))
        });
        if let Some((disk, left)) = older.max_by_key(|(disk, left)| (*left, Reverse(*disk))) {
            return Remains::Older { disk, left };
        }
        left.first().map_or(Remains::Nothing, |(disk, ..)| Remains::Part { disk: *disk })
    }

    /// By an operator's word: what only copies have that are gone is given up, and these go on with what
    /// they have; none: a new copy.
    // rule: cluster/only-what-is-stranded-is-given-up
    pub(crate) fn accept_loss(
        &mut self,
        id: VolumeId,
        survivors: &[(SegmentIndex, Option<DiskId>)],
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get(&id).ok_or(RefusedChange::NotFound)?;
        if volume.state != VolumeState::Ready {
            return Err(RefusedChange::Busy);
        }
        let mut draft = Draft::new(self, volume);
        for (index, survivor) in survivors {
            draft.go_on_alone(*index, *survivor)?;
        }
        let done = draft.done()?;
        self.carry_out(id, done);
        Ok(())
    }
}

impl Draft<'_> {
    fn go_on_alone(
        &mut self,
        index: SegmentIndex,
        survivor: Option<DiskId>,
    ) -> Result<(), RefusedChange> {
        let (map, joined) = (self.map, self.epoch);
        if !map.is_stranded(self.segment(index)?) {
            return Err(RefusedChange::NotGone);
        }
        let joining = match survivor {
            Some(disk) if map.is_gone(disk) => return Err(RefusedChange::NotFound),
            Some(disk) => {
                let members = self.segment(index)?;
                let known = take_known(members, disk, joined).ok_or(RefusedChange::NotFound)?;
                Joining { alone: true, ..known }
            }
            None => {
                let disk = self.pick_for_nothing(index).ok_or(RefusedChange::NoRoom)?;
                Joining { alone: true, ..new_joiner(disk, joined, false) }
            }
        };
        let others = self.segment(index)?.joining.iter().map(|other| other.disk);
        let others: Vec<DiskId> = others.collect();
        let left = self.trust_no_more(index, &others)?;
        self.segment(index)?.joining.push(joining);
        // While nobody is in-sync each may be the next one that is all there is.
        for leaver in left {
            self.keep_or_drop(index, Leaver { was_joining: false, ..leaver })?;
        }
        self.count(Kind::Alone { whole: !joining.compare_all }, joining.disk);
        Ok(())
    }

    /// Those that are gone may be on its node.
    fn pick_for_nothing(&mut self, index: SegmentIndex) -> Option<DiskId> {
        let volume = self.volume.id;
        let pending = self.map.disks.iter().filter(|(_, disk)| disk.is_to_drop(volume, index));
        let mut avoid = Avoid { rather: self.owner(), ..Avoid::default() };
        avoid.disks.extend(pending.map(|(disk, _)| *disk));
        avoid.disks.extend(self.members(index).into_iter().flat_map(holders));
        let bytes = self.bytes(index);
        let disk = self.room().pick(&avoid, bytes)?;
        self.room().take(disk, bytes);
        Some(disk)
    }
}

/// A stale replica or a joiner, as one that joins at that epoch.
fn take_known(members: &mut SegmentMembers, disk: DiskId, joined: Epoch) -> Option<Joining> {
    if let Some(place) = members.stale.iter().position(|stale| stale.disk == disk) {
        return Some(super::back(members.stale.remove(place), joined));
    }
    let place = members.joining.iter().position(|joining| joining.disk == disk)?;
    Some(Joining { joined, fill_waits: false, ..members.joining.remove(place) })
}
