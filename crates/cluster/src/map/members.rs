//! Changes that a volume's owner makes to its members (rules 2, 7 and 8): a whole entry or nothing.

mod stranded;

pub use stranded::{Remains, Stranded};

use crate::command::Proposer;
use crate::event::Fact;
use crate::map::entry::DropMark;
use crate::map::orders::segment_at;
use crate::map::room::{Avoid, Room, copy_bytes};
use crate::map::{DiskEntry, Map, NodeState, STALE_MAX, VolumeEntry, WRITE_SET_MAX};
use gabion_types::{
    Combining, DiskId, Epoch, Joining, NodeId, OwnerChange, Pair, Promotion, RefusedChange,
    Removal, SegmentIndex, SegmentMembers, Stale, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

impl Map {
    // rule: cluster/owner-changes-its-epoch
    // promise: majority-first
    pub(crate) fn owner_change(
        &mut self,
        from: Proposer,
        id: VolumeId,
        change: &OwnerChange,
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get(&id).ok_or(RefusedChange::NotFound)?;
        if volume.owner != Some((from.node, from.incarnation)) {
            return Err(RefusedChange::NotOwner);
        }
        if volume.epoch != epoch_of(change) {
            return Err(RefusedChange::OtherEpoch);
        }
        let mut draft = Draft::new(self, volume);
        match change {
            OwnerChange::RemoveMembers { removals, add_joiner, .. } => {
                draft.remove_members(removals)?;
                if *add_joiner {
                    draft.replace(removals);
                }
            }
            OwnerChange::AddJoining { joins, .. } => draft.add_joining(joins)?,
            OwnerChange::Promote { promotes, .. } => draft.promote(promotes)?,
            OwnerChange::Combine { combines, .. } => draft.combine(combines)?,
            OwnerChange::Forget { stale, .. } => draft.forget(stale)?,
            OwnerChange::Release { clean, .. } => {
                self.release(id, *clean);
                return Ok(());
            }
        }
        let done = draft.done()?;
        self.carry_out(id, done);
        Ok(())
    }

    fn release(&mut self, id: VolumeId, clean: bool) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.raise_epoch();
            volume.owner = None;
            volume.clean = clean;
            self.note(Fact::Released { volume: id, clean });
        }
    }

    fn carry_out(&mut self, id: VolumeId, done: Done) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let epoch = volume.raise_epoch();
        let size = volume.size_promised();
        for (place, members) in done.touched {
            if let Some(segment) = volume.segments.get_mut(place) {
                let bytes = copy_bytes(self.limits.segment, size, place);
                self.account.replace(segment, &members, bytes);
                *segment = members;
            }
        }
        volume.forget_moved();
        for ((segment, disk), creation) in done.drops {
            self.order_drop(disk, id, segment, DropMark { creation, epoch });
        }
        for ((kind, disk), segments) in done.tally {
            let volume = id;
            self.note(match kind {
                Kind::Removed => Fact::MemberRemoved { volume, disk, segments },
                Kind::Joined => Fact::JoinerAdded { volume, disk, segments },
                Kind::Promoted => Fact::Promoted { volume, disk, segments },
                Kind::Combined { elder } => Fact::Combined { volume, disk, elder, segments },
                Kind::Alone { whole } => Fact::LossAccepted { volume, disk, whole, segments },
                Kind::Forgotten => Fact::Forgotten { volume, disk, segments },
            });
        }
    }

    /// More nodes are silent than `rebuild.away` allows for a rebuild.
    pub(crate) fn too_many_away(&self) -> bool {
        let silent = self.nodes.values().filter(|node| node.state == NodeState::Silent).count();
        let most = self.settings().rebuild_away_percent;
        let silent = u64::try_from(silent).unwrap_or(u64::MAX);
        let nodes = u64::try_from(self.nodes.len()).unwrap_or(u64::MAX);
        silent.saturating_mul(100) > nodes.saturating_mul(most)
    }

    /// What it has is not to be had: it is out, or its node is silent, by the map's own word. That may be
    /// for a moment only: the owner waits before it asks.
    pub(crate) fn is_gone(&self, disk: DiskId) -> bool {
        let there = |entry: &DiskEntry| entry.is_in_service() && self.is_alive(entry.node);
        !self.disks.get(&disk).is_some_and(there)
    }

    /// It does not come back with what it had.
    pub(crate) fn is_out_for_good(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_none_or(DiskEntry::is_failed)
    }

    /// Owners of what nobody has any more but disks that are out for good, the last of them this one, work
    /// by a view that says so.
    pub(crate) fn touch_volumes_held_by(&mut self, disk: DiskId) {
        let out: BTreeSet<DiskId> =
            self.disks.keys().copied().filter(|disk| self.is_out_for_good(*disk)).collect();
        for volume in self.volumes.values_mut() {
            let mut segments = volume.segments.iter();
            if segments.any(|members| {
                members.is_in_sync(disk) && members.in_sync.iter().all(|disk| out.contains(disk))
            }) {
                volume.raise_epoch();
            }
        }
    }

    /// What a failed disk has of segments that it left is of no use any more.
    pub(crate) fn forget_stale_on(&mut self, disk: DiskId) {
        let mut forgotten = Vec::new();
        for volume in self.volumes.values_mut() {
            let mut segments = 0;
            for members in &mut volume.segments {
                let had = members.stale.len();
                members.stale.retain(|stale| stale.disk != disk);
                segments += u32::from(members.stale.len() < had);
            }
            if segments > 0 {
                volume.raise_epoch();
                forgotten.push(Fact::Forgotten { volume: volume.id, disk, segments });
            }
        }
        forgotten.into_iter().for_each(|fact| self.note(fact));
    }
}

/// One entry's changes before they are carried out.
struct Draft<'a> {
    map: &'a Map,
    volume: &'a VolumeEntry,
    /// What the volume's epoch will be.
    epoch: Epoch,
    rf: usize,
    done: Done,
    room: Option<Room>,
    /// So many nodes are silent that nothing is rebuilt without an operator's word.
    too_many_away: bool,
}

#[derive(Default)]
struct Done {
    touched: BTreeMap<usize, SegmentMembers>,
    /// With the segment's creation epoch.
    drops: BTreeMap<(SegmentIndex, DiskId), Epoch>,
    tally: BTreeMap<(Kind, DiskId), u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Removed,
    Joined,
    Promoted,
    Combined { elder: DiskId },
    Alone { whole: bool },
    Forgotten,
}

impl<'a> Draft<'a> {
    fn new(map: &'a Map, volume: &'a VolumeEntry) -> Self {
        Self {
            map,
            volume,
            epoch: volume.epoch.next(),
            rf: usize::from(volume.spec.rf),
            done: Done::default(),
            room: None,
            too_many_away: map.too_many_away(),
        }
    }

    /// Errors: nothing was changed.
    fn done(self) -> Result<Done, RefusedChange> {
        if self.done.touched.is_empty() { Err(RefusedChange::Invalid) } else { Ok(self.done) }
    }

    fn segment(&mut self, index: SegmentIndex) -> Result<&mut SegmentMembers, RefusedChange> {
        let place = usize::try_from(index.get()).map_err(|_| RefusedChange::NotFound)?;
        let members = self.volume.segments.get(place).ok_or(RefusedChange::NotFound)?;
        Ok(self.done.touched.entry(place).or_insert_with(|| members.clone()))
    }

    /// As this entry leaves it so far.
    fn members(&self, index: SegmentIndex) -> Option<&SegmentMembers> {
        let place = usize::try_from(index.get()).ok()?;
        self.done.touched.get(&place).or_else(|| self.volume.segments.get(place))
    }

    fn count(&mut self, kind: Kind, disk: DiskId) {
        *self.done.tally.entry((kind, disk)).or_insert(0) += 1;
    }

    // rule: cluster/in-sync-never-empty
    // rule: cluster/replaced-before-it-is-removed
    fn remove_members(&mut self, removals: &[Removal]) -> Result<(), RefusedChange> {
        let epoch = self.epoch;
        let mut left = Vec::new();
        for removal in removals {
            let members = self.segment(removal.segment)?;
            left.push((removal.segment, take_member(members, removal, epoch)?));
            self.count(Kind::Removed, removal.disk);
        }
        if self.done.touched.values().any(|members| members.in_sync.is_empty()) {
            return Err(RefusedChange::LastInSync);
        }
        for removal in removals.iter().filter(|removal| removal.replaced) {
            if self.segment(removal.segment)?.in_sync.len() < self.rf {
                return Err(RefusedChange::TooFewCopies);
            }
        }
        for (segment, leaver) in left {
            self.keep_or_drop(segment, leaver)?;
        }
        Ok(())
    }

    /// A joiner that isn't needed any more is dropped at once; everybody else may come back. On a
    /// failed disk nothing is kept and nothing is dropped.
    fn keep_or_drop(&mut self, index: SegmentIndex, leaver: Leaver) -> Result<(), RefusedChange> {
        let disk = leaver.stale.disk;
        if self.map.disk(disk).is_none_or(DiskEntry::is_failed) {
            return Ok(());
        }
        let rf = self.rf;
        let members = self.segment(index)?;
        let creation = members.creation;
        if leaver.was_joining && members.in_sync.len() >= rf {
            self.done.drops.insert((index, disk), creation);
            return Ok(());
        }
        members.stale.push(leaver.stale);
        if members.stale.len() > STALE_MAX {
            let oldest = members.stale.iter().enumerate().min_by_key(|(_, stale)| stale.left);
            if let Some(place) = oldest.map(|(place, _)| place) {
                let stale = members.stale.remove(place);
                self.done.drops.insert((index, stale.disk), creation);
                self.count(Kind::Forgotten, stale.disk);
            }
        }
        Ok(())
    }

    /// Rule 8: a joiner on another disk for each segment that fell below rf, where there is one.
    /// Not on a node that is silent to the owner, nor on the disk that failed.
    fn replace(&mut self, removals: &[Removal]) {
        let mut avoid = Avoid::default();
        avoid.disks.extend(removals.iter().map(|removal| removal.disk));
        for removal in removals.iter().filter(|removal| removal.may_return) {
            avoid.nodes.extend(self.map.disk(removal.disk).map(|disk| disk.node));
        }
        let may_return: BTreeSet<_> = removals
            .iter()
            .filter(|removal| removal.may_return)
            .map(|removal| removal.segment)
            .collect();
        let touched: Vec<_> = self.done.touched.keys().copied().collect();
        for index in touched.into_iter().map(segment_at) {
            let may_return = may_return.contains(&index);
            while self.is_below_rf(index, |_| true) && self.add_picked(index, &avoid, may_return) {}
        }
    }

    fn add_joining(
        &mut self,
        joins: &[(SegmentIndex, Option<DiskId>)],
    ) -> Result<(), RefusedChange> {
        let mut added = false;
        for (index, disk) in joins {
            self.segment(*index)?;
            added |= match disk {
                Some(disk) => self.add_named(*index, *disk)?,
                None => {
                    self.is_below_rf(*index, |disk| !self.map.is_draining(disk))
                        && self.add_picked(*index, &Avoid::default(), false)
                }
            };
        }
        if added { Ok(()) } else { Err(RefusedChange::NoRoom) }
    }

    /// A stale replica comes back, or a disk that the owner chose: false where it can't be.
    fn add_named(&mut self, index: SegmentIndex, disk: DiskId) -> Result<bool, RefusedChange> {
        let entry = self.map.disk(disk).filter(|entry| entry.is_in_service());
        let Some(entry) = entry else { return Ok(false) };
        let moving = self.volume.moving.get(&index).filter(|moving| moving.to == disk);
        let leaves = moving.map(|moving| moving.from);
        let fresh = !entry.is_to_drop(self.volume.id, index)
            && self.fits(index, disk)
            && !self.homes(index, leaves).contains(&entry.node);
        let joined = self.epoch;
        let members = self.segment(index)?;
        let full = members.write_set().count() >= WRITE_SET_MAX;
        if full || members.write_set().any(|member| member == disk) {
            return Ok(false);
        }
        let stale = members.stale.iter().position(|stale| stale.disk == disk);
        let joining = match stale {
            Some(place) => back(members.stale.remove(place), joined),
            None if fresh => new_joiner(disk, joined, false),
            None => return Ok(false),
        };
        members.joining.push(joining);
        self.joined(index, disk, stale.is_none());
        Ok(true)
    }

    /// With its joiners, counted those that `counts` says.
    fn is_below_rf(&self, index: SegmentIndex, counts: impl Fn(DiskId) -> bool) -> bool {
        let Some(members) = self.members(index) else { return false };
        members.write_set().filter(|disk| counts(*disk)).count() < self.rf
    }

    /// The map picks: false where none has room.
    fn add_picked(&mut self, index: SegmentIndex, avoid: &Avoid, fill_waits: bool) -> bool {
        let (joined, volume) = (self.epoch, self.volume.id);
        if self.too_many_away {
            return false;
        }
        let homes = self.homes(index, None);
        let Ok(members) = self.segment(index) else {
            return false;
        };
        if members.write_set().count() >= WRITE_SET_MAX {
            return false;
        }
        let stale: Vec<_> = members.stale.iter().map(|stale| stale.disk).collect();
        let mut avoid = avoid.clone();
        avoid.zones_of.extend(homes.iter().copied());
        avoid.nodes.extend(homes);
        avoid.rather = self.owner();
        avoid.rather_not.extend(stale.iter().filter_map(|disk| self.home(*disk)));
        avoid.disks.extend(stale);
        let pending = self.map.disks.iter();
        let pending = pending.filter(|(_, disk)| disk.is_to_drop(volume, index));
        avoid.disks.extend(pending.map(|(disk, _)| *disk));
        let of_it = (index, DiskId::new(0))..=(index, DiskId::new(u32::MAX));
        avoid.disks.extend(self.done.drops.range(of_it).map(|((_, disk), _)| *disk));
        let bytes = self.bytes(index);
        let Some(disk) = self.room().pick(&avoid, bytes) else {
            return false;
        };
        let Ok(members) = self.segment(index) else {
            return false;
        };
        members.joining.push(new_joiner(disk, joined, fill_waits));
        self.joined(index, disk, true);
        true
    }

    fn joined(&mut self, index: SegmentIndex, disk: DiskId, fresh: bool) {
        if fresh {
            let bytes = self.bytes(index);
            self.room().take(disk, bytes);
        }
        self.count(Kind::Joined, disk);
    }

    fn promote(&mut self, promotes: &[Promotion]) -> Result<(), RefusedChange> {
        for promotion in promotes {
            let members = self.segment(promotion.segment)?;
            let place = members.joining.iter().position(|joining| {
                joining.disk == promotion.disk && joining.joined == promotion.joined
            });
            let joining = members.joining.remove(place.ok_or(RefusedChange::NotFound)?);
            members.in_sync.push(promotion.disk);
            if joining.alone {
                self.keep_only(promotion.segment, promotion.disk)?;
            }
            self.count(Kind::Promoted, promotion.disk);
        }
        Ok(())
    }

    /// The joiner has all that was acknowledged: since J by itself, and from before by the elder. What else
    /// there is may differ from it where nobody knows any more, so every block of it is compared.
    // rule: cluster/only-a-pair-is-combined
    // promise: acked-survives
    fn combine(&mut self, combines: &[Combining]) -> Result<(), RefusedChange> {
        for Combining { segment: index, joiner, joined, elder } in combines.iter().copied() {
            let map = self.map;
            let members = self.segment(index)?;
            if members.in_sync.iter().any(|disk| !map.is_gone(*disk)) {
                return Err(RefusedChange::NotGone);
            }
            let named =
                |pair: &Pair| (pair.joiner, pair.joined, pair.elder) == (joiner, joined, elder);
            members.pairs().find(named).ok_or(RefusedChange::NotFound)?;
            members.joining.retain(|joining| joining.disk != joiner);
            members.in_sync.push(joiner);
            self.keep_only(index, joiner)?;
            self.count(Kind::Combined { elder }, joiner);
        }
        Ok(())
    }

    /// What it has is the segment now. Of all the others every block is compared if they come back.
    fn keep_only(&mut self, index: SegmentIndex, kept: DiskId) -> Result<(), RefusedChange> {
        let members = self.segment(index)?;
        let others: Vec<_> = members.write_set().filter(|disk| *disk != kept).collect();
        for leaver in self.trust_no_more(index, &others)? {
            self.keep_or_drop(index, leaver)?;
        }
        Ok(())
    }

    /// Of these, who leave, and of all that left before, every block is compared if they come back.
    fn trust_no_more(
        &mut self,
        index: SegmentIndex,
        leave: &[DiskId],
    ) -> Result<Vec<Leaver>, RefusedChange> {
        let epoch = self.epoch;
        let members = self.segment(index)?;
        members.stale.iter_mut().for_each(|stale| stale.compare_all = true);
        let one = |disk: &DiskId| take_member(members, &unlike_any(index, *disk), epoch);
        leave.iter().map(one).collect()
    }

    fn forget(&mut self, stale: &[(SegmentIndex, DiskId)]) -> Result<(), RefusedChange> {
        for (index, disk) in stale {
            let members = self.segment(*index)?;
            let place = members.stale.iter().position(|stale| stale.disk == *disk);
            members.stale.remove(place.ok_or(RefusedChange::NotFound)?);
            let creation = members.creation;
            self.done.drops.insert((*index, *disk), creation);
            self.count(Kind::Forgotten, *disk);
        }
        Ok(())
    }

    /// New copies go there before other nodes: it reads its own.
    fn owner(&self) -> Option<NodeId> {
        self.volume.owner.map(|(node, _)| node)
    }

    fn room(&mut self) -> &mut Room {
        self.room.get_or_insert_with(|| Room::of(self.map))
    }

    fn fits(&mut self, index: SegmentIndex, disk: DiskId) -> bool {
        let bytes = self.bytes(index);
        self.room().fits(disk, bytes)
    }

    /// Of a copy of the segment.
    fn bytes(&self, index: SegmentIndex) -> u64 {
        let place = usize::try_from(index.get()).unwrap_or(usize::MAX);
        copy_bytes(self.map.limits.segment, self.volume.size_promised(), place)
    }

    fn home(&self, disk: DiskId) -> Option<NodeId> {
        self.map.disk(disk).map(|entry| entry.node)
    }

    /// Nodes that hold an in-sync or joining copy that stays there; `leaves`: one whose place is taken.
    fn homes(&self, index: SegmentIndex, leaves: Option<DiskId>) -> BTreeSet<NodeId> {
        let write_set = self.members(index).into_iter().flat_map(SegmentMembers::write_set);
        let stay = write_set.filter(|disk| !self.map.is_draining(*disk) && Some(*disk) != leaves);
        stay.filter_map(|disk| self.home(disk)).collect()
    }
}

struct Leaver {
    stale: Stale,
    was_joining: bool,
}

/// Takes a replica out of a segment, with what is known of how far it can be trusted.
///
/// A joiner that was a member before keeps the epoch at which it left *as a member*: its settled
/// seq is frozen since then, so comparing from there covers all that it missed and all that it got
/// as a joiner. A joiner that never was a member has nothing that is trusted.
// rule: cluster/unfinished-joiner-keeps-its-left
fn take_member(
    members: &mut SegmentMembers,
    removal: &Removal,
    epoch: Epoch,
) -> Result<Leaver, RefusedChange> {
    let disk = removal.disk;
    let (compare_all, reach) = (removal.compare_all, removal.reach);
    if let Some(place) = members.in_sync.iter().position(|member| *member == disk) {
        members.in_sync.remove(place);
        let stale = Stale { disk, left: epoch, compare_all, reach };
        return Ok(Leaver { stale, was_joining: false });
    }
    let place = members.joining.iter().position(|joining| joining.disk == disk);
    let joining = members.joining.remove(place.ok_or(RefusedChange::NotFound)?);
    let stale = match joining.left {
        Some(left) => {
            let (compare_all, reach) = (compare_all || joining.compare_all, joining.reach);
            Stale { disk, left, compare_all, reach }
        }
        None => Stale { disk, left: joining.joined, compare_all: true, reach: None },
    };
    Ok(Leaver { stale, was_joining: true })
}

/// It may differ anywhere from what the segment is from now on.
fn unlike_any(segment: SegmentIndex, disk: DiskId) -> Removal {
    let (compare_all, may_return, replaced, reach) = (true, false, false, None);
    Removal { segment, disk, compare_all, may_return, replaced, reach }
}

fn back(stale: Stale, joined: Epoch) -> Joining {
    let Stale { disk, left, compare_all, reach } = stale;
    Joining { disk, joined, left: Some(left), compare_all, fill_waits: false, reach, alone: false }
}

fn new_joiner(disk: DiskId, joined: Epoch, fill_waits: bool) -> Joining {
    Joining { disk, joined, left: None, compare_all: true, fill_waits, reach: None, alone: false }
}

fn epoch_of(change: &OwnerChange) -> Epoch {
    match change {
        OwnerChange::RemoveMembers { epoch, .. }
        | OwnerChange::AddJoining { epoch, .. }
        | OwnerChange::Promote { epoch, .. }
        | OwnerChange::Combine { epoch, .. }
        | OwnerChange::Forget { epoch, .. }
        | OwnerChange::Release { epoch, .. } => *epoch,
    }
}
