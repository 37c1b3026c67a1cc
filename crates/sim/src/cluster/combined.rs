//! What the judge has to know when two copies are combined: only the one that left may have a write that
//! nobody answered, over what the one had that is gone.

use super::Cluster;
use crate::oracle::{Unanswered, Units};
use gabion_cluster::Change;
use gabion_types::{DiskId, OwnerChange, SegmentIndex, VolumeId};
use std::collections::BTreeMap;

/// By the replicas that left, as members: what was unanswered then.
#[derive(Debug, Default)]
pub(super) struct Leavers {
    left: BTreeMap<(VolumeId, SegmentIndex, DiskId), Unanswered>,
}

impl Cluster {
    /// Of a change that is done.
    pub(super) fn note_leavers(&mut self, change: &Change) {
        if let Change::AcceptLoss { volume, survivors } = change {
            self.note_survivors(*volume, survivors.iter().map(|(segment, _)| *segment));
        }
        let Change::Owner { volume, change } = change else { return };
        match change {
            OwnerChange::RemoveMembers { removals, .. } => {
                for removal in removals {
                    let (segment, disk) = (removal.segment, removal.disk);
                    let epoch = self.map.volume(*volume).map(|entry| entry.epoch);
                    let members = self.map.members(*volume, segment);
                    let stale = members.and_then(|members| members.stale(disk));
                    // A joiner keeps the epoch at which it left as a member.
                    if stale.is_some_and(|stale| Some(stale.left) == epoch)
                        && let Some(units) = self.units_of(*volume, segment)
                    {
                        let unanswered = self.oracle.unanswered(units);
                        self.leavers.left.insert((*volume, segment, disk), unanswered);
                    }
                }
            }
            OwnerChange::Combine { combines, .. } => {
                for one in combines {
                    let left = self.leavers.left.remove(&(*volume, one.segment, one.elder));
                    if let (Some(units), Some(left)) = (self.units_of(*volume, one.segment), left) {
                        self.oracle.may_return(units.volume, left);
                    }
                }
            }
            OwnerChange::AddJoining { .. }
            | OwnerChange::Promote { .. }
            | OwnerChange::Forget { .. }
            | OwnerChange::Release { .. } => {}
        }
    }

    /// From now on these segments are what the copy has that goes on alone.
    fn note_survivors(&mut self, volume: VolumeId, segments: impl Iterator<Item = SegmentIndex>) {
        let now = self.queue.now();
        for segment in segments {
            let alone = self.map.members(volume, segment).and_then(|members| members.alone());
            let Some(whole) = alone.map(|joining| !joining.compare_all) else { continue };
            if let Some(units) = self.units_of(volume, segment) {
                self.oracle.forget(units, whole, now);
            }
        }
        self.on_loss_accepted();
    }

    fn units_of(&self, volume: VolumeId, segment: SegmentIndex) -> Option<Units> {
        let place = self.places.get(&volume).copied()?;
        let per_segment = self.swarm.limits.segment.bytes() / self.oracle.unit_bytes();
        let first = u64::from(segment.get()) * per_segment;
        let count = self.oracle.units(place).checked_sub(first)?.min(per_segment);
        Some(Units { volume: place, first, count })
    }
}
