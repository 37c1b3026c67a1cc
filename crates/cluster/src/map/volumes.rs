//! Volumes: made, grown and deleted (rules 0 and 10).

use crate::command::{Proposer, VolumeSpec};
use crate::event::Fact;
use crate::map::entry::DropMark;
use crate::map::orders::segment_at;
use crate::map::room::{Room, copy_bytes, holders};
use crate::map::{Growth, Map, SEGMENTS_MAX, Scrubs, VOLUMES_MAX, VolumeEntry, VolumeState};
use crate::placement::capacity_bytes;
use gabion_types::{
    BLOCK_BYTES, DiskId, Epoch, RefusedChange, SegmentIndex, SegmentMembers, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Copies of a segment.
pub const RF_MAX: u8 = 3;

/// Shape: 1 to 255 characters out of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
pub fn is_volume_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    first && name.len() <= 255 && name.bytes().all(rest)
}

impl Map {
    /// The largest volume that this cluster can have. Units: bytes.
    pub fn volume_bytes_max(&self) -> u64 {
        self.limits.segment.bytes().saturating_mul(u64::from(SEGMENTS_MAX))
    }

    /// Whether a volume of that size, all copies written full, fits the disks in service.
    pub(crate) fn could_be_full(&self, size_bytes: u64, rf: u8) -> bool {
        u128::from(size_bytes) * u128::from(rf) <= u128::from(capacity_bytes(self))
    }

    pub(crate) fn is_volume_size(&self, size_bytes: u64) -> bool {
        size_bytes > 0
            && size_bytes.is_multiple_of(BLOCK_BYTES)
            && size_bytes <= self.volume_bytes_max()
    }

    pub(crate) fn create_volume(
        &mut self,
        spec: &VolumeSpec,
        placement: &[Vec<DiskId>],
    ) -> Result<(), RefusedChange> {
        let sound = self.cluster.is_some()
            && is_volume_name(&spec.name)
            && (1..=RF_MAX).contains(&spec.rf)
            && self.is_volume_size(spec.size_bytes);
        if !sound {
            return Err(RefusedChange::Invalid);
        }
        if self.volume_by_name(&spec.name).is_some() {
            return Err(RefusedChange::NameTaken);
        }
        if self.volumes.len() >= VOLUMES_MAX || !self.could_be_full(spec.size_bytes, spec.rf) {
            return Err(RefusedChange::NoRoom);
        }
        if self.limits.segment.segments_of(spec.size_bytes) != count(placement) {
            return Err(RefusedChange::Invalid);
        }
        let epoch = Epoch::ZERO.next();
        let segments = self.placed(placement, 0, spec, epoch)?;
        self.last_volume = self.last_volume.checked_add(1).ok_or(RefusedChange::NoRoom)?;
        let id = VolumeId::new(self.last_volume);
        let entry = VolumeEntry {
            id,
            spec: spec.clone(),
            state: VolumeState::Creating { waiting: placement.iter().flatten().copied().collect() },
            epoch,
            owner_epoch: Epoch::ZERO,
            owner: None,
            clean: true,
            segments,
            growth: None,
            voided: BTreeMap::new(),
            barred: BTreeSet::new(),
            scrub: Scrubs::default(),
            moving: BTreeMap::new(),
        };
        self.volumes.insert(id, entry);
        self.note(Fact::VolumeCreated { volume: id, name: spec.name.clone() });
        Ok(())
    }

    /// Checks a placement that the manager chose: it may have chosen by an older map.
    fn placed(
        &self,
        placement: &[Vec<DiskId>],
        had: usize,
        &VolumeSpec { size_bytes, rf, .. }: &VolumeSpec,
        creation: Epoch,
    ) -> Result<Vec<SegmentMembers>, RefusedChange> {
        let mut room = Room::of(self);
        let mut segments = Vec::with_capacity(placement.len());
        for (place, disks) in placement.iter().enumerate() {
            let bytes = copy_bytes(self.limits.segment, size_bytes, had + place);
            let homes: BTreeSet<_> =
                disks.iter().filter_map(|disk| self.disk(*disk)).map(|disk| disk.node).collect();
            if disks.len() != usize::from(rf) || homes.len() != disks.len() {
                return Err(RefusedChange::Invalid);
            }
            if !disks.iter().all(|disk| room.fits(*disk, bytes)) {
                return Err(RefusedChange::NoRoom);
            }
            disks.iter().for_each(|disk| room.take(*disk, bytes));
            segments.push(SegmentMembers {
                creation,
                in_sync: disks.clone(),
                joining: Vec::new(),
                stale: Vec::new(),
            });
        }
        Ok(segments)
    }

    // rule: cluster/owned-only-when-recorded
    pub(crate) fn created(
        &mut self,
        from: Proposer,
        id: VolumeId,
        disk: DiskId,
        creation: Epoch,
    ) -> Result<(), RefusedChange> {
        let home = self.disks.get(&disk).ok_or(RefusedChange::NotFound)?.node;
        if home != from.node {
            return Err(RefusedChange::Invalid);
        }
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        let made_at = |segments: &[SegmentMembers]| {
            segments.first().is_some_and(|members| members.creation == creation)
        };
        if let VolumeState::Creating { waiting } = &mut volume.state
            && made_at(&volume.segments)
        {
            waiting.remove(&disk);
        } else if let Some(growth) = &mut volume.growth
            && made_at(&growth.segments)
        {
            growth.waiting.remove(&disk);
        } else if !volume.segments.iter().any(|members| members.creation == creation) {
            return Err(RefusedChange::NotFound);
        }
        self.conclude_making(id);
        Ok(())
    }

    /// Every disk has recorded its segments: the volume is ready, or has grown.
    pub(super) fn conclude_making(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if let VolumeState::Creating { waiting } = &volume.state
            && waiting.is_empty()
        {
            volume.state = VolumeState::Ready;
            self.note(Fact::VolumeReady { volume: id });
            return;
        }
        if let Some(growth) = volume.growth.take_if(|growth| growth.waiting.is_empty()) {
            volume.segments.extend(growth.segments);
            volume.spec.size_bytes = growth.size_bytes;
            volume.raise_epoch();
            self.note(Fact::VolumeResized { volume: id, size_bytes: growth.size_bytes });
        }
    }

    pub(crate) fn resize_volume(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        placement: &[Vec<DiskId>],
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get(&id).ok_or(RefusedChange::NotFound)?;
        match volume.state {
            VolumeState::Creating { .. } => return Err(RefusedChange::Busy),
            VolumeState::Deleting => return Err(RefusedChange::NotFound),
            VolumeState::Ready => {}
        }
        if volume.growth.is_some() {
            return Err(RefusedChange::Busy);
        }
        let had = count(&volume.segments).ok_or(RefusedChange::Invalid)?;
        let wanted = self.limits.segment.segments_of(size_bytes).ok_or(RefusedChange::Invalid)?;
        let grows = self.is_volume_size(size_bytes) && size_bytes >= volume.spec.size_bytes;
        if !grows || count(placement) != Some(wanted.saturating_sub(had)) {
            return Err(RefusedChange::Invalid);
        }
        if size_bytes == volume.spec.size_bytes {
            return Ok(());
        }
        let full = self.full_at_the_end(volume, size_bytes).is_some();
        if full || !self.could_be_full(size_bytes, volume.spec.rf) {
            return Err(RefusedChange::NoRoom);
        }
        let grown = VolumeSpec { size_bytes, ..volume.spec.clone() };
        let had = volume.segments.len();
        let segments = self.placed(placement, had, &grown, volume.epoch.next())?;
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if !segments.is_empty() {
            volume.raise_epoch();
        }
        let waiting = placement.iter().flatten().copied().collect();
        volume.growth = Some(Growth { size_bytes, segments, waiting });
        self.conclude_making(id);
        Ok(())
    }

    /// A disk that has the last segment of the volume, and no room for what that would grow by, and
    /// the room that it has. One that is away is not judged. Units: bytes.
    pub(crate) fn full_at_the_end(
        &self,
        volume: &VolumeEntry,
        size_bytes: u64,
    ) -> Option<(DiskId, u64)> {
        let last = volume.segments.len().checked_sub(1)?;
        let copy = |size| copy_bytes(self.limits.segment, size, last);
        let more = copy(size_bytes).saturating_sub(copy(volume.spec.size_bytes));
        let room = Room::of(self);
        let holders = volume.segments.last().into_iter().flat_map(SegmentMembers::write_set);
        let mut left = holders.filter_map(|disk| Some((disk, room.left(disk)?)));
        left.find(|(_, left)| *left < more)
    }

    /// Its replicas become orders to drop; the name is free at once.
    pub(crate) fn delete_volume(&mut self, id: VolumeId, force: bool) -> Result<(), RefusedChange> {
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if volume.state == VolumeState::Deleting {
            return Err(RefusedChange::NotFound);
        }
        if volume.owner.is_some() && !force {
            return Err(RefusedChange::Attached);
        }
        let epoch = volume.raise_epoch();
        volume.owner = None;
        volume.state = VolumeState::Deleting;
        let mut segments = std::mem::take(&mut volume.segments);
        segments.extend(volume.growth.take().into_iter().flat_map(|growth| growth.segments));
        let name = volume.spec.name.clone();
        for (place, members) in segments.iter().enumerate() {
            for disk in holders(members) {
                let mark = DropMark { creation: members.creation, epoch };
                self.order_drop(disk, id, segment_at(place), mark);
            }
        }
        self.note(Fact::VolumeDeleted { volume: id, name });
        self.finish_deleted(BTreeSet::from([id]));
        Ok(())
    }

    // rule: cluster/drop-by-order-only
    pub(crate) fn order_drop(
        &mut self,
        id: DiskId,
        volume: VolumeId,
        segment: SegmentIndex,
        mark: DropMark,
    ) {
        if let Some(disk) = self.disks.get_mut(&id).filter(|disk| !disk.is_failed()) {
            let marks = disk.to_drop.entry(volume).or_default();
            if marks.insert(segment, mark).is_none() {
                let place = usize::try_from(segment.get()).unwrap_or(usize::MAX);
                let size = self.volumes.get(&volume).map_or(u64::MAX, VolumeEntry::size_promised);
                self.account.add(id, copy_bytes(self.limits.segment, size, place));
            }
        }
    }

    pub(crate) fn dropped(
        &mut self,
        from: Proposer,
        disk: DiskId,
        replicas: &[(VolumeId, SegmentIndex)],
    ) -> Result<(), RefusedChange> {
        let disk = self.disks.get_mut(&disk).ok_or(RefusedChange::NotFound)?;
        if disk.node != from.node {
            return Err(RefusedChange::Invalid);
        }
        for replica in replicas {
            disk.dropped(*replica);
        }
        self.finish_deleted(replicas.iter().map(|(volume, _)| *volume).collect());
        Ok(())
    }

    /// A deleted volume is gone from the map when no disk has anything of it left to drop.
    pub(crate) fn finish_deleted(&mut self, volumes: BTreeSet<VolumeId>) {
        for id in volumes {
            let deleting =
                self.volumes.get(&id).is_some_and(|entry| entry.state == VolumeState::Deleting);
            let left = self.disks.values().any(|disk| disk.to_drop.contains_key(&id));
            if deleting && !left {
                self.volumes.remove(&id);
            }
        }
    }

    /// These disks will not record what they were to record, at least not soon: segments that were
    /// never served go on without them, and the owner gives them new copies. The last one of a
    /// segment is waited for.
    pub(crate) fn give_up_unmade_on(&mut self, disks: &[DiskId]) {
        let mut drops = Vec::new();
        let mut changed = Vec::new();
        for volume in self.volumes.values_mut() {
            let (waiting, segments, first) = match (&mut volume.state, &mut volume.growth) {
                (VolumeState::Creating { waiting }, _) => (waiting, &mut volume.segments, 0),
                (VolumeState::Ready, Some(growth)) => {
                    (&mut growth.waiting, &mut growth.segments, volume.segments.len())
                }
                (VolumeState::Ready, None) | (VolumeState::Deleting, _) => continue,
            };
            for disk in disks {
                if !waiting.contains(disk) {
                    continue;
                }
                let mut kept = false;
                for (offset, members) in segments.iter_mut().enumerate() {
                    if members.is_in_sync(*disk) && members.in_sync.len() > 1 {
                        members.in_sync.retain(|member| member != disk);
                        let segment = segment_at(first + offset);
                        drops.push((*disk, volume.id, segment, members.creation));
                    } else {
                        kept |= members.is_in_sync(*disk);
                    }
                }
                if !kept {
                    waiting.remove(disk);
                }
                changed.push(volume.id);
            }
        }
        changed.dedup();
        for id in &changed {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.raise_epoch();
            }
        }
        for (disk, volume, segment, creation) in drops {
            let epoch = self.volumes.get(&volume).map_or(Epoch::ZERO, |volume| volume.epoch);
            self.order_drop(disk, volume, segment, DropMark { creation, epoch });
        }
        changed.into_iter().for_each(|id| self.conclude_making(id));
    }
}

fn count<T>(items: &[T]) -> Option<u32> {
    u32::try_from(items.len()).ok()
}
