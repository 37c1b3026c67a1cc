//! promise: never-fewer. A copy that works is never taken away from a segment that needs it: whoever
//! makes it fewer than wanted has said before that it fails. Source: DESIGN 4.2, 4.8.

use crate::oracle::Broken;
use gabion_cluster::{Change, Map};
use gabion_types::{DiskId, OwnerChange, Removal, VolumeId};
use std::collections::BTreeSet;

/// What owners said of copies.
#[derive(Clone, Debug, Default)]
pub struct NeverFewer {
    failed: BTreeSet<(VolumeId, DiskId)>,
}

impl NeverFewer {
    /// An owner misses this disk.
    pub fn on_failed(&mut self, volume: VolumeId, disk: DiskId) {
        self.failed.insert((volume, disk));
    }

    /// What a copy failed for is over when it is a member again.
    pub fn on_change(&mut self, change: &Change) {
        let Change::Owner { volume, change } = change else { return };
        let members: Vec<DiskId> = match change {
            OwnerChange::Promote { promotes, .. } => promotes.iter().map(|one| one.disk).collect(),
            OwnerChange::Combine { combines, .. } => {
                combines.iter().map(|one| one.joiner).collect()
            }
            OwnerChange::RemoveMembers { .. }
            | OwnerChange::AddJoining { .. }
            | OwnerChange::Forget { .. }
            | OwnerChange::Release { .. } => return,
        };
        for disk in members {
            self.failed.remove(&(*volume, disk));
        }
    }

    /// `before`: the map without that change.
    ///
    /// Errors: if it is done, a segment has fewer copies than it wants, and nobody said why.
    pub fn check(&self, before: &Map, change: &Change) -> Result<(), Broken> {
        let Change::Owner { volume, change: OwnerChange::RemoveMembers { removals, .. } } = change
        else {
            return Ok(());
        };
        removals.iter().try_for_each(|removal| self.look(before, *volume, removals, removal))
    }

    fn look(
        &self,
        before: &Map,
        id: VolumeId,
        removals: &[Removal],
        removal: &Removal,
    ) -> Result<(), Broken> {
        let Some(volume) = before.volume(id) else { return Ok(()) };
        let Some(members) = before.members(id, removal.segment) else { return Ok(()) };
        let goes = |disk: DiskId| {
            removals.iter().any(|other| other.segment == removal.segment && other.disk == disk)
        };
        let left = members.in_sync.iter().filter(|disk| !goes(**disk)).count();
        let fewer = left < usize::from(volume.spec.rf) && members.is_in_sync(removal.disk);
        if fewer && !self.failed.contains(&(id, removal.disk)) {
            let (segment, disk) = (removal.segment, removal.disk);
            let text =
                format!("{id} {segment}: {disk} is removed, nobody said why; {left} are left");
            return Err(Broken { promise: "never-fewer", text });
        }
        Ok(())
    }
}
