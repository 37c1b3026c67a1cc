//! The cluster map's part in it: one volume, changed by compare and set.

use gabion_types::{
    Combining, DiskId, Epoch, HoldPolicy, Joining, NodeId, Outcome, OwnerChange, Pair,
    RefusedChange, Removal, SegmentMembers, Stale, VolumeId, VolumeView,
};
use std::collections::{BTreeMap, BTreeSet};

/// One life of one node.
pub type Life = (NodeId, u64);

pub struct Map {
    pub view: VolumeView,
    pub owner: Option<Life>,
    clean_release: bool,
    executed: BTreeMap<(Life, u64), Outcome>,
}

impl Map {
    pub fn new(homes: BTreeMap<DiskId, NodeId>, rf: u8, segments: u32, segment: u64) -> Self {
        let disks: Vec<DiskId> = homes.keys().copied().collect();
        let creation = Epoch::new(1).unwrap();
        let members = |index: u32| SegmentMembers {
            creation,
            in_sync: (0..usize::from(rf))
                .map(|copy| disks[(index as usize + copy) % disks.len()])
                .collect(),
            joining: Vec::new(),
            stale: Vec::new(),
        };
        let view = VolumeView {
            volume: VolumeId::new(1),
            size_bytes: u64::from(segments) * segment,
            rf,
            hold: HoldPolicy::NeverFail,
            epoch: creation,
            owner_epoch: creation,
            clean: false,
            segments: (0..segments).map(members).collect(),
            homes,
            draining: BTreeSet::new(),
            moving: BTreeMap::new(),
            out: BTreeSet::new(),
            scrub: None,
        };
        Self { view, owner: None, clean_release: true, executed: BTreeMap::new() }
    }

    pub fn take_over(&mut self, life: Life, epoch: Epoch) -> bool {
        if self.owner.is_some() || epoch != self.view.epoch {
            return false;
        }
        self.owner = Some(life);
        self.view.epoch = epoch.next();
        self.view.owner_epoch = self.view.epoch;
        self.view.clean = self.clean_release;
        self.clean_release = false;
        true
    }

    pub fn expire(&mut self) {
        self.owner = None;
        self.view.epoch = self.view.epoch.next();
        self.view.clean = false;
    }

    pub fn apply(
        &mut self,
        life: Life,
        number: u64,
        change: &OwnerChange,
        alive: &[NodeId],
    ) -> Outcome {
        if let Some(outcome) = self.executed.get(&(life, number)) {
            return *outcome;
        }
        let outcome = match self.change(life, change, alive) {
            Ok(()) => Outcome::Done,
            Err(refused) => Outcome::Refused(refused),
        };
        self.executed.insert((life, number), outcome);
        outcome
    }

    fn change(
        &mut self,
        life: Life,
        change: &OwnerChange,
        alive: &[NodeId],
    ) -> Result<(), RefusedChange> {
        if self.owner != Some(life) {
            return Err(RefusedChange::NotOwner);
        }
        let at = match change {
            OwnerChange::RemoveMembers { epoch, .. }
            | OwnerChange::AddJoining { epoch, .. }
            | OwnerChange::Promote { epoch, .. }
            | OwnerChange::Combine { epoch, .. }
            | OwnerChange::Forget { epoch, .. }
            | OwnerChange::Release { epoch, .. } => *epoch,
        };
        if at != self.view.epoch {
            return Err(RefusedChange::OtherEpoch);
        }
        let mut next = self.view.clone();
        next.epoch = at.next();
        next.clean = false;
        match change {
            OwnerChange::RemoveMembers { removals, add_joiner, .. } => {
                for removal in removals {
                    let members = &mut next.segments[removal.segment.get() as usize];
                    let removed = remove(members, removal, next.epoch);
                    if !removed {
                        return Err(RefusedChange::NotFound);
                    }
                    if members.in_sync.is_empty() {
                        return Err(RefusedChange::LastInSync);
                    }
                }
                for removal in removals.iter().filter(|_| *add_joiner) {
                    let members = &next.segments[removal.segment.get() as usize];
                    let copies = members.in_sync.len() + members.joining.len();
                    if copies < usize::from(next.rf)
                        && let Some(disk) = pick(&next, members, alive)
                    {
                        let fill_waits = removal.may_return;
                        let joined = next.epoch;
                        let (left, compare_all) = (None, false);
                        let joining = Joining {
                            disk,
                            joined,
                            left,
                            compare_all,
                            fill_waits,
                            reach: None,
                            alone: false,
                        };
                        next.segments[removal.segment.get() as usize].joining.push(joining);
                    }
                }
            }
            OwnerChange::AddJoining { joins, .. } => {
                let mut found = false;
                for (segment, disk) in joins {
                    let members = &next.segments[segment.get() as usize];
                    let Some(disk) = disk.or_else(|| pick(&next, members, alive)) else { continue };
                    found = true;
                    let joined = next.epoch;
                    let members = &mut next.segments[segment.get() as usize];
                    if members.write_set().any(|member| member == disk) {
                        return Err(RefusedChange::Invalid);
                    }
                    let stale = members.stale(disk).copied();
                    members.stale.retain(|stale| stale.disk != disk);
                    members.joining.push(Joining {
                        disk,
                        joined,
                        left: stale.map(|stale| stale.left),
                        compare_all: stale.is_some_and(|stale| stale.compare_all),
                        fill_waits: false,
                        reach: stale.and_then(|stale| stale.reach),
                        alone: false,
                    });
                }
                if !found {
                    return Err(RefusedChange::NoRoom);
                }
            }
            OwnerChange::Promote { promotes, .. } => {
                for promotion in promotes {
                    let members = &mut next.segments[promotion.segment.get() as usize];
                    let joining = members.joining(promotion.disk).copied();
                    if joining.is_none_or(|joining| joining.joined != promotion.joined) {
                        return Err(RefusedChange::NotFound);
                    }
                    members.joining.retain(|joining| joining.disk != promotion.disk);
                    members.in_sync.push(promotion.disk);
                }
            }
            OwnerChange::Combine { combines, .. } => {
                for Combining { segment, joiner, joined, elder } in combines {
                    let members = &mut next.segments[segment.get() as usize];
                    let there = |disk: &DiskId| alive.contains(&self.view.homes[disk]);
                    if members.in_sync.iter().any(there) {
                        return Err(RefusedChange::NotGone);
                    }
                    let named = (*joiner, *joined, *elder);
                    let pair = |pair: Pair| (pair.joiner, pair.joined, pair.elder) == named;
                    if !members.pairs().any(pair) {
                        return Err(RefusedChange::NotFound);
                    }
                    let (left, compare_all, reach) = (next.epoch, true, None);
                    let others = members.write_set().filter(|disk| disk != joiner);
                    let others: Vec<DiskId> = others.collect();
                    let others =
                        others.into_iter().map(|disk| Stale { disk, left, compare_all, reach });
                    members.stale.extend(others.collect::<Vec<_>>());
                    members.stale.iter_mut().for_each(|stale| stale.compare_all = true);
                    members.joining.clear();
                    members.in_sync = vec![*joiner];
                }
            }
            OwnerChange::Forget { stale, .. } => {
                for (segment, disk) in stale {
                    let members = &mut next.segments[segment.get() as usize];
                    members.stale.retain(|stale| stale.disk != *disk);
                }
            }
            OwnerChange::Release { clean, .. } => {
                self.owner = None;
                self.clean_release = *clean;
            }
        }
        self.view = next;
        Ok(())
    }
}

fn remove(members: &mut SegmentMembers, removal: &Removal, left: Epoch) -> bool {
    let Removal { disk, compare_all, reach, .. } = *removal;
    if let Some(joining) = members.joining(disk).copied() {
        members.joining.retain(|joining| joining.disk != disk);
        members.stale.push(Stale {
            disk,
            left: joining.left.unwrap_or(members.creation),
            compare_all: compare_all || joining.compare_all,
            reach: joining.reach,
        });
        return true;
    }
    if members.is_in_sync(disk) {
        members.in_sync.retain(|member| *member != disk);
        members.stale.push(Stale { disk, left, compare_all, reach });
        return true;
    }
    false
}

fn pick(view: &VolumeView, members: &SegmentMembers, alive: &[NodeId]) -> Option<DiskId> {
    let used = |node: NodeId| members.write_set().any(|disk| view.homes[&disk] == node);
    let known = |disk: DiskId| members.stale(disk).is_some();
    view.homes
        .iter()
        .filter(|(disk, node)| !used(**node) && !known(**disk) && alive.contains(node))
        .map(|(disk, _)| *disk)
        .next_back()
}
