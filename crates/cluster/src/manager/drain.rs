//! Emptying disks and nodes: whether it can be done, and the handing over of what a node owns.

use super::Effect;
use crate::command::{AdminError, Change};
use crate::map::{DrainReason, Map, NodeState, VolumeEntry};
use crate::placement::{DrainError, can_empty};
use gabion_types::{DiskId, Duration, Instant, NodeId};
use std::collections::BTreeSet;

/// How often owners are asked. No deadline of its own: repair has the same, and wakes the manager.
const LOOK: Duration = Duration::from_secs(1);
/// Volumes that are asked for at once; the others wait for the next look.
const AT_ONCE_MAX: usize = 16;
/// Volumes that an error names.
const NAMED_MAX: usize = 8;

/// A node that is being emptied lets go of volumes without guests. One with guests of its own keeps it:
/// they would have to go through another node, and die with this one all the same. One with guests of
/// others only is let go without being asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover {
    next_look: Option<Instant>,
}

impl Handover {
    pub(super) fn next_asked(&mut self, now: Instant, map: &Map) -> Vec<Effect> {
        if self.next_look.is_some_and(|look| now < look) {
            return Vec::new();
        }
        self.next_look = Some(now + LOOK);
        let goes = |node: NodeId| map.node(node).is_some_and(|entry| entry.drain.is_some());
        let asked = |volume: &VolumeEntry| {
            let (node, _) = volume.owner.filter(|(owner, _)| goes(*owner))?;
            Some(Effect::AskRelease { node, volume: volume.id, idle: true })
        };
        map.volumes().values().filter_map(asked).take(AT_ONCE_MAX).collect()
    }
}

pub(super) fn of_disk(map: &Map, disk: DiskId, cancel: bool) -> Result<Change, AdminError> {
    let entry = map.disk(disk).ok_or(AdminError::NoDisk)?;
    if entry.is_failed() {
        return Err(AdminError::DiskFailed);
    }
    let why = (!cancel).then_some(DrainReason::Operator);
    if !cancel && entry.drain.is_none() {
        can_empty(map, &BTreeSet::from([disk])).map_err(error_of)?;
    }
    Ok(Change::DrainDisk { disk, why })
}

pub(super) fn of_node(map: &Map, node: NodeId, cancel: bool) -> Result<Change, AdminError> {
    let entry = map.node(node).ok_or(AdminError::NoNode)?;
    let why = (!cancel).then_some(DrainReason::Operator);
    if !cancel && entry.drain.is_none() {
        let disks = map.disks().iter().filter(|(_, disk)| disk.node == node);
        can_empty(map, &disks.map(|(id, _)| *id).collect()).map_err(error_of)?;
    }
    Ok(Change::DrainNode { node, why })
}

/// One that is drained, or dead for good and without a last copy.
pub(super) fn of_removal(map: &Map, node: NodeId, force: bool) -> Result<Change, AdminError> {
    if map.is_removed(node) {
        return Ok(Change::RemoveNode { node, force });
    }
    if map.awaited().any(|info| info.id == node) {
        return Ok(Change::RemoveNode { node, force });
    }
    let entry = map.node(node).ok_or(AdminError::NoNode)?;
    let (copies, volumes) = map.left_on(node);
    if entry.drain.is_none() || copies + volumes > 0 {
        if !force {
            return Err(AdminError::NotDrained { copies, volumes });
        }
        if entry.state == NodeState::Alive {
            return Err(AdminError::NodeLives);
        }
        let (volumes, segments) = map.last_copies_of(node);
        if segments > 0 {
            let names = volumes.into_iter().filter_map(|id| map.volume(id));
            let volumes = names.map(|volume| volume.spec.name.clone()).take(NAMED_MAX).collect();
            return Err(AdminError::LastCopies { segments, volumes });
        }
    }
    Ok(Change::RemoveNode { node, force })
}

fn error_of(error: DrainError) -> AdminError {
    match error {
        DrainError::TooFewNodes { wanted, nodes } => AdminError::TooFewNodesLeft { wanted, nodes },
        DrainError::NoRoom { left, copies, free_bytes } => {
            AdminError::NoRoomLeft { left, copies, free_bytes }
        }
    }
}
