//! Which copies move so that disks are used evenly, after a node or a disk came. No more of them than it
//! takes: each goes from one of the fullest disks to one of the emptiest, and never so far that the one
//! is emptier than the other was made.

use crate::map::room::{copy_bytes, promised};
use crate::map::{Map, VolumeEntry};
use gabion_types::{DiskId, Move, SegmentIndex, SegmentMembers, VolumeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Disks at either end that are looked at for the next copy.
const ENDS_MAX: usize = 16;

pub type Moves = BTreeMap<VolumeId, BTreeMap<SegmentIndex, Move>>;

/// How full the disks are, by what is promised of them: the fullest and the emptiest may be apart by
/// so much. Units: hundredths of a percent of a disk.
pub fn spread(map: &Map) -> u64 {
    Loads::of(map).spread()
}

/// A disk has less than half of what all have in the mean: it is new, or was emptied. Less uneven than that
/// is how volumes lie that were made where their guests are.
// rule: cluster/levelled-only-when-a-disk-came
pub fn has_newcomer(map: &Map) -> bool {
    let loads = Loads::of(map);
    let all = loads.disks.values().fold(Load { promised: 0, capacity: 0 }, |all, load| Load {
        promised: all.promised.saturating_add(load.promised),
        capacity: all.capacity.saturating_add(load.capacity),
    });
    loads.disks.values().any(|load| load.part().saturating_mul(2) < all.part())
}

/// Nothing is missed, moved, made, dropped or away: what is planned now is planned by what will be.
pub fn is_settled(map: &Map) -> bool {
    let whole = |volume: &VolumeEntry, members: &SegmentMembers| {
        members.in_sync.len() == usize::from(volume.spec.rf)
            && members.joining.is_empty()
            && members.stale.is_empty()
            && members.in_sync.iter().all(|disk| map.disk(*disk).is_some_and(|d| d.is_in_service()))
    };
    is_calm(map)
        && map.disks().values().all(|disk| disk.to_drop() == 0)
        && map.volumes().values().all(|volume| {
            volume.is_ready()
                && volume.growth.is_none()
                && volume.moving.is_empty()
                && volume.segments.iter().all(|members| whole(volume, members))
        })
}

/// Nobody is away, nothing is being emptied, and no segment has fewer copies than it is to have: what
/// moves may go on.
// rule: cluster/nothing-is-levelled-while-something-is-amiss
pub fn is_calm(map: &Map) -> bool {
    let open = |drain: Option<crate::map::Drain>| drain.is_some_and(|drain| !drain.done);
    let rf = |volume: &VolumeEntry| usize::from(volume.spec.rf);
    map.nodes().iter().all(|(id, node)| map.is_alive(*id) && !open(node.drain))
        && map.disks().values().all(|disk| {
            !open(disk.drain) && (disk.is_in_service() || disk.is_failed() || disk.drain.is_some())
        })
        && map
            .volumes()
            .values()
            .all(|volume| volume.segments.iter().all(|members| members.in_sync.len() >= rf(volume)))
}

/// At most so many; none, if there are none that would make it more even, or it is even enough.
// rule: cluster/no-more-copies-move-than-must
pub fn plan(map: &Map, enough: u64, most: usize) -> Moves {
    let mut loads = Loads::of(map);
    let mut moves = Moves::new();
    let copies = copies_by_disk(map);
    for _ in 0..most {
        if loads.spread() <= enough {
            break;
        }
        let Some((copy, moving)) = loads.next_move(map, &copies, &moves) else { break };
        loads.carry(copy.bytes, moving);
        moves.entry(copy.volume).or_default().insert(copy.segment, moving);
    }
    moves
}

#[derive(Clone, Copy)]
struct Copy {
    volume: VolumeId,
    segment: SegmentIndex,
    bytes: u64,
}

fn copies_by_disk(map: &Map) -> BTreeMap<DiskId, Vec<Copy>> {
    let mut copies: BTreeMap<DiskId, Vec<Copy>> = BTreeMap::new();
    for entry in map.volumes().values() {
        let (volume, size) = (entry.id, entry.size_promised());
        for (number, members) in (0..).zip(&entry.segments) {
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            let bytes = copy_bytes(map.limits().segment, size, place);
            for disk in &members.in_sync {
                let copy = Copy { volume, segment: SegmentIndex::new(number), bytes };
                copies.entry(*disk).or_default().push(copy);
            }
        }
    }
    copies
}

/// Disks that may take copies, and those from which they may be taken.
struct Loads {
    disks: BTreeMap<DiskId, Load>,
}

#[derive(Clone, Copy)]
struct Load {
    promised: u64,
    capacity: u64,
}

impl Load {
    /// Units: hundredths of a percent.
    fn part(self) -> u64 {
        let part = u128::from(self.promised) * 10_000 / u128::from(self.capacity.max(1));
        u64::try_from(part).unwrap_or(u64::MAX)
    }

    /// After so much went from the one to the other, the one is still the fuller.
    fn stays_fuller(self, other: Self, bytes: u64) -> bool {
        let left = u128::from(self.promised.saturating_sub(bytes));
        let grown = u128::from(other.promised) + u128::from(bytes);
        left * u128::from(other.capacity) >= grown * u128::from(self.capacity)
    }
}

impl Loads {
    fn of(map: &Map) -> Self {
        let promised = promised(map);
        let usable = |id: DiskId| {
            let disk = map.disk(id);
            let alive = disk.is_some_and(|d| d.is_in_service() && map.is_alive(d.node));
            alive && !map.is_draining(id)
        };
        let load = |id: DiskId, capacity| {
            let promised = promised.get(&id).copied().unwrap_or(0);
            (id, Load { promised, capacity })
        };
        let disks = map.disks().iter().filter(|(id, _)| usable(**id));
        Self { disks: disks.map(|(id, disk)| load(*id, disk.capacity_bytes)).collect() }
    }

    fn spread(&self) -> u64 {
        let parts = || self.disks.values().map(|load| load.part());
        parts().max().unwrap_or(0) - parts().min().unwrap_or(0)
    }

    fn next_move(
        &self,
        map: &Map,
        copies: &BTreeMap<DiskId, Vec<Copy>>,
        planned: &Moves,
    ) -> Option<(Copy, Move)> {
        let mut by_part: Vec<(DiskId, Load)> = self.disks.iter().map(|(id, l)| (*id, *l)).collect();
        by_part.sort_by_key(|(id, load)| (load.part(), *id));
        let emptiest: Vec<(DiskId, Load)> = by_part.iter().take(ENDS_MAX).copied().collect();
        by_part.sort_by_key(|(id, load)| (Reverse(load.part()), *id));
        for (from, fuller) in by_part.into_iter().take(ENDS_MAX) {
            for (to, emptier) in emptiest.iter().copied().filter(|(to, _)| *to != from) {
                let moving = Move { from, to };
                let found = copies.get(&from).into_iter().flatten().find(|copy| {
                    fuller.stays_fuller(emptier, copy.bytes)
                        && !planned.get(&copy.volume).is_some_and(|p| p.contains_key(&copy.segment))
                        && may_go(map, copy, moving, fuller)
                });
                if let Some(copy) = found {
                    return Some((*copy, moving));
                }
            }
        }
        None
    }

    fn carry(&mut self, bytes: u64, moving: Move) {
        if let Some(load) = self.disks.get_mut(&moving.from) {
            load.promised = load.promised.saturating_sub(bytes);
        }
        if let Some(load) = self.disks.get_mut(&moving.to) {
            load.promised = load.promised.saturating_add(bytes);
        }
    }
}

/// A copy beside its volume's guests stays, so that they read their own disk, unless more is promised
/// of that than it has; it may go to another disk of its node.
fn may_go(map: &Map, copy: &Copy, moving: Move, from: Load) -> bool {
    let Some(volume) = map.volume(copy.volume) else { return false };
    let place = usize::try_from(copy.segment.get()).unwrap_or(usize::MAX);
    let Some(members) = volume.segments.get(place) else { return false };
    let home = |disk| map.disk(disk).map(|entry| entry.node);
    let beside_guests = volume.owner.is_some_and(|(owner, _)| home(moving.from) == Some(owner));
    let stays = beside_guests && home(moving.to) != home(moving.from);
    (!stays || from.promised > from.capacity) && map.may_move(volume, copy.segment, members, moving)
}

#[cfg(test)]
mod tests;
