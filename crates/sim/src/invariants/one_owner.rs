//! promise: one-owner. At most one controller may complete a volume's requests at a time, and it has
//! fenced every in-sync replica of what it serves, durably. Source: DESIGN 1, 4.4 and 4.6.

use super::place::{Place, serving};
use crate::oracle::Broken;
use gabion_cluster::Map;
use gabion_types::{Epoch, NodeId, SegmentIndex, VolumeId};
use std::collections::BTreeMap;

/// A node that would answer guests of these volumes now.
#[derive(Clone, Debug)]
pub struct Completing {
    pub node: NodeId,
    /// Clocks went as a lease asks of them. Else two may take themselves for the owner, and only the
    /// fence holds the older one back.
    pub leased: bool,
    /// With the owner epochs that the node's own map names.
    pub volumes: Vec<(VolumeId, Epoch)>,
    /// Segments of them that it does not serve yet.
    pub unserved: Vec<(VolumeId, SegmentIndex)>,
}

/// Errors: two owners, or a replica that an owner has not fenced.
pub fn check(map: &Map, places: &[Place<'_>], nodes: &[Completing]) -> Result<(), Broken> {
    let mut owners = BTreeMap::new();
    for node in nodes {
        for (volume, epoch) in &node.volumes {
            if node.leased
                && let Some(other) = owners.insert(*volume, node.node)
            {
                return Err(broken(format!("{volume} is owned by {other} and {}", node.node)));
            }
            check_fences(map, places, node, (*volume, *epoch))?;
        }
    }
    Ok(())
}

fn check_fences(
    map: &Map,
    places: &[Place<'_>],
    node: &Completing,
    (volume, epoch): (VolumeId, Epoch),
) -> Result<(), Broken> {
    let Some(entry) = map.volume(volume) else { return Ok(()) };
    // Another one is taking over, or it does so itself again: that one has not fenced all yet.
    let is_owner = entry.owner.is_some_and(|(owner, _)| owner == node.node);
    if !is_owner || entry.owner_epoch != epoch {
        return Ok(());
    }
    for (index, members) in (0..).zip(&entry.segments) {
        if node.unserved.contains(&(volume, SegmentIndex::new(index))) {
            continue;
        }
        for disk in &members.in_sync {
            let fence = serving(map, places, *disk).map(|store| store.fence(volume));
            if let Some(text) = unfenced(fence, entry.owner_epoch) {
                return Err(broken(format!("{volume} segment {index} on {disk}: {text}")));
            }
        }
    }
    Ok(())
}

fn unfenced(fence: Option<Epoch>, owner_epoch: Epoch) -> Option<String> {
    let fence = fence.filter(|fence| *fence < owner_epoch)?;
    Some(format!("served by {owner_epoch}, fenced by {fence} only"))
}

fn broken(text: String) -> Broken {
    Broken { promise: "one-owner", text }
}
