//! Owners for volumes that nobody uses and that have work: copies to fill, to make anew, to forget,
//! or all of them to look through.
//! An owner does that work; a volume with guests has one anyway.

use super::{Proposals, Purpose};
use crate::command::Change;
use crate::map::room::{Avoid, Room, copy_bytes};
use crate::map::{Map, NodeState, VolumeEntry};
use gabion_types::{DiskId, Duration, Instant, NodeId, SegmentMembers, VolumeId};
use std::collections::BTreeMap;

/// How often volumes are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// So long a volume with work waits for a guest's node to take it.
const UNOWNED: Duration = Duration::from_secs(2);
/// A volume that lost its owner again with work left is left alone for so long.
const AGAIN: Duration = Duration::from_secs(15);
/// Takeovers under way at once; the others wait for the next look.
const AT_ONCE_MAX: usize = 16;

#[derive(Clone, Debug, Default)]
pub(super) struct Repair {
    next_look: Option<Instant>,
    /// Bounded by the volumes of the map.
    unowned: BTreeMap<VolumeId, Instant>,
    not_before: BTreeMap<VolumeId, Instant>,
    silent: BTreeMap<NodeId, Instant>,
}

impl Repair {
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self { next_look: Some(now), ..Self::default() };
    }

    pub(super) fn on_proposed(&mut self, now: Instant, volume: VolumeId) {
        self.not_before.insert(volume, now + AGAIN);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_look
    }

    pub(super) fn conclude(&mut self, now: Instant, map: &Map, proposals: &mut Proposals) {
        if self.next_look.is_some_and(|look| now < look) {
            return;
        }
        self.next_look = Some(now + LOOK);
        self.watch_nodes(now, map);
        let mut under_way = proposals.repairs();
        let room = Room::of(map);
        self.unowned.retain(|id, _| map.volume(*id).is_some_and(is_unowned));
        self.not_before.retain(|id, until| map.volume(*id).is_some() && now < *until);
        for volume in map.volumes().values().filter(|volume| is_unowned(volume)) {
            if !self.has_work(now, map, &room, volume) {
                self.unowned.remove(&volume.id);
                continue;
            }
            let since = *self.unowned.entry(volume.id).or_insert(now);
            let purpose = Purpose::Repair { volume: volume.id };
            let ripe = now.since(since) >= UNOWNED && !self.not_before.contains_key(&volume.id);
            if !ripe || under_way >= AT_ONCE_MAX || proposals.is_pending(purpose) {
                continue;
            }
            let Some(node) = best_owner(map, volume) else { continue };
            let Some(incarnation) = map.node(node).map(|entry| entry.incarnation) else { continue };
            let (volume, epoch) = (volume.id, volume.epoch);
            proposals.propose(purpose, Change::TakeOver { volume, epoch, node, incarnation });
            under_way += 1;
        }
    }

    fn watch_nodes(&mut self, now: Instant, map: &Map) {
        self.silent.retain(|node, _| map.node(*node).is_some_and(|e| e.state == NodeState::Silent));
        for (node, entry) in map.nodes() {
            if entry.state == NodeState::Silent {
                self.silent.entry(*node).or_insert(now);
            }
        }
    }

    /// Something that an owner could do now.
    fn has_work(&self, now: Instant, map: &Map, room: &Room, volume: &VolumeEntry) -> bool {
        let rf = usize::from(volume.spec.rf);
        let gone = |disk: DiskId| self.is_gone(now, map, disk);
        if volume.scrub.wanted.is_some() || !volume.moving.is_empty() {
            return true;
        }
        let segment = map.limits().segment;
        volume.segments.iter().enumerate().any(|(place, members)| {
            let bytes = copy_bytes(segment, volume.size_promised(), place);
            let below = members.in_sync.len() < rf;
            let joins = members.joining.iter().any(|joining| is_there(map, joining.disk));
            let returns = members.stale.iter().any(|stale| is_there(map, stale.disk));
            let stays = |disk: &&DiskId| !gone(**disk) && !map.is_draining(**disk);
            let left = members.in_sync.iter().filter(|disk| !gone(**disk)).count();
            let staying = members.in_sync.iter().filter(stays).count();
            let surplus = !members.joining.is_empty()
                || !members.stale.is_empty()
                || members.in_sync.len() > rf;
            if below {
                joins || returns || has_place(map, room, members, bytes)
            } else {
                surplus || (staying < rf && left > 0 && has_place(map, room, members, bytes))
            }
        })
    }

    /// In the map it is a member, but it will not be back soon.
    fn is_gone(&self, now: Instant, map: &Map, disk: DiskId) -> bool {
        let Some(entry) = map.disk(disk) else { return true };
        let wait = map.settings().rebuild_wait;
        let silent = self.silent.get(&entry.node).is_some_and(|since| now.since(*since) >= wait);
        silent || !entry.is_in_service()
    }
}

impl Proposals {
    fn repairs(&self) -> usize {
        let repairs = |purpose: &&Purpose| matches!(purpose, Purpose::Repair { .. });
        self.pending.values().filter(repairs).count()
    }
}

fn is_unowned(volume: &VolumeEntry) -> bool {
    volume.is_ready() && volume.owner.is_none()
}

fn is_there(map: &Map, disk: DiskId) -> bool {
    map.disk(disk).is_some_and(|entry| entry.is_in_service() && map.is_alive(entry.node))
}

/// A disk could take another copy of the segment.
fn has_place(map: &Map, room: &Room, members: &SegmentMembers, bytes: u64) -> bool {
    let mut avoid = Avoid::default();
    avoid.disks.extend(members.stale.iter().map(|stale| stale.disk));
    // Another disk of a node takes the place of one that is out, or is being emptied.
    let stay = members.write_set().filter(|disk| !map.is_draining(*disk));
    let there = stay.filter_map(|disk| map.disk(disk));
    avoid.nodes.extend(there.filter(|disk| disk.is_in_service()).map(|disk| disk.node));
    !map.too_many_away() && room.pick(&avoid, bytes).is_some()
}

/// The living node with the most in-sync copies; of equals the one that owns the least, then the
/// lower id. One that is being emptied hands over what it owns: any other comes before it.
fn best_owner(map: &Map, volume: &VolumeEntry) -> Option<NodeId> {
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    for disk in volume.segments.iter().flat_map(|members| &members.in_sync) {
        if is_there(map, *disk)
            && let Some(entry) = map.disk(*disk)
        {
            *copies.entry(entry.node).or_insert(0) += 1;
        }
    }
    let stays = |node: &NodeId| map.node(*node).is_some_and(|entry| entry.drain.is_none());
    if !copies.keys().any(stays) {
        let others = map.nodes().keys().filter(|node| stays(node) && map.is_alive(**node));
        copies.extend(others.map(|node| (*node, 0)));
    }
    let owned = |node: NodeId| {
        map.volumes().values().filter(|v| v.owner.is_some_and(|(owner, _)| owner == node)).count()
    };
    copies
        .into_iter()
        .max_by_key(|(node, copies)| {
            let fewest = (std::cmp::Reverse(owned(*node)), std::cmp::Reverse(*node));
            (stays(node), *copies, fewest)
        })
        .map(|(node, _)| node)
}
