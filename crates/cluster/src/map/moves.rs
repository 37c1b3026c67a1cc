//! Single copies that are to be on other disks, so that the disks are used evenly.

use super::room::{Room, copy_bytes};
use super::{Map, VolumeEntry};
use crate::event::Fact;
use gabion_types::{Move, RefusedChange, SegmentIndex, SegmentMembers, VolumeId};
use std::collections::BTreeMap;

/// Copies of one volume that are to move at a time. More are refused.
pub const MOVES_MAX: usize = 64;

impl Map {
    // rule: cluster/a-copy-moves-where-it-may-be
    pub(super) fn move_copies(
        &mut self,
        id: VolumeId,
        moves: &BTreeMap<SegmentIndex, Move>,
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get(&id).ok_or(RefusedChange::NotFound)?;
        if !volume.is_ready() || moves.len() > MOVES_MAX {
            return Err(RefusedChange::Invalid);
        }
        if volume.moving == *moves {
            return Ok(());
        }
        let mut room = Room::of(self);
        for (index, moving) in moves {
            let place = usize::try_from(index.get()).map_err(|_| RefusedChange::NotFound)?;
            let members = volume.segments.get(place).ok_or(RefusedChange::NotFound)?;
            let bytes = copy_bytes(self.limits.segment, volume.size_promised(), place);
            if !self.may_move(volume, *index, members, *moving) || !room.fits(moving.to, bytes) {
                return Err(RefusedChange::Invalid);
            }
            room.take(moving.to, bytes);
        }
        let copies = u32::try_from(moves.len()).unwrap_or(u32::MAX);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.moving.clone_from(moves);
            volume.raise_epoch();
        }
        self.note(Fact::Levelling { volume: id, copies });
        Ok(())
    }

    /// On another node than the other copies, and in no zone with more of them than before.
    pub(crate) fn may_move(
        &self,
        volume: &VolumeEntry,
        index: SegmentIndex,
        members: &SegmentMembers,
        Move { from, to }: Move,
    ) -> bool {
        let (Some(old), Some(new)) = (self.disks.get(&from), self.disks.get(&to)) else {
            return false;
        };
        let named = members.write_set().any(|disk| disk == to) || members.stale(to).is_some();
        if !members.is_in_sync(from) || named || new.is_to_drop(volume.id, index) {
            return false;
        }
        let others = || {
            let others = members.write_set().filter(|disk| *disk != from);
            others.filter_map(|disk| self.disks.get(&disk)).map(|disk| disk.node)
        };
        let zone = |node| self.nodes.get(&node).map_or("", |entry| entry.info.zone.as_str());
        let shares =
            |node| others().any(|other| !zone(node).is_empty() && zone(node) == zone(other));
        others().all(|other| other != new.node) && (shares(old.node) || !shares(new.node))
    }
}
