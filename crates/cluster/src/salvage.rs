//! The map made anew from what the disks say, after every log of it is lost.
//!
//! Which replicas may serve: of a segment the map had named some as in sync, and that is lost. But all
//! who were in sync to the end took part in the segment's last takeover and in its last write, and those
//! name their epochs. So the replicas with the newest epoch are in sync: one that left before it has
//! nothing that counts more, and one that left behind it, when nothing was written any more, has the same.
//! A joiner has not everything, whatever its epoch. Where only a joiner has the newest epoch, or where no
//! disk has the segment, nobody can serve it: it is held, by a disk that stands for the one that is lost.
//!
//! What no disk knows is lost, unless somebody says it: names of volumes, their exact sizes (whole segments
//! instead), how many copies were wanted (as many as most segments have), settings, events, deletions that
//! a disk had not heard of.

use crate::command::VolumeSpec;
use crate::event::Fact;
use crate::map::{
    DISKS_MAX, DiskEntry, Map, RF_MAX, SEGMENTS_MAX, STALE_MAX, Scrubs, VOLUMES_MAX, VolumeEntry,
    VolumeState, is_volume_name,
};
use gabion_types::{
    BLOCK_BYTES, ClusterId, DiskId, Epoch, FoundReplica, HoldPolicy, Limits, MapIndex, NodeId,
    SegmentIndex, SegmentMembers, Stale, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// The map begins so far behind what any disk has seen: one that is found later may have seen more.
const AHEAD: u64 = 1000;

/// A disk that was found, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDisk {
    pub uuid: [u8; 16],
    pub node: NodeId,
    pub path: String,
    pub capacity_bytes: u64,
    pub highest_map: MapIndex,
    pub fences: Vec<(VolumeId, Epoch)>,
    pub replicas: Vec<FoundReplica>,
}

/// What is known beside the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub cluster: ClusterId,
    pub limits: Limits,
    pub volumes: BTreeMap<VolumeId, KnownVolume>,
}

/// What somebody remembers of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownVolume {
    /// Else it is named after its id.
    pub name: Option<String>,
    pub size_bytes: Option<u64>,
    pub rf: Option<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Salvage {
    pub map: Map,
    /// By volume.
    pub doubts: Vec<Doubt>,
    /// Disks refuse older owners of these, and hold nothing of them: they were deleted, or all that they
    /// had is lost.
    pub gone: Vec<VolumeId>,
}

/// What the disks leave open; nothing is guessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No disk has them; they are held.
    Missing { volume: VolumeId, segments: Vec<SegmentIndex> },
    /// Those that have them are no whole copy, or an older one than another that is not here; they are
    /// held.
    NotWhole { volume: VolumeId, segments: Vec<SegmentIndex> },
    /// Fewer disks have them than have other segments of the volume; they are served and made anew.
    FewerCopies { volume: VolumeId, segments: Vec<SegmentIndex> },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SalvageError {
    #[error("two disks have the uuid {}: one is a copy of the other; take it away", hex(.0))]
    Twice([u8; 16]),
    #[error("{found} disks are more than a cluster has ({DISKS_MAX})")]
    TooManyDisks { found: usize },
    #[error("{found} volumes are more than a cluster has ({VOLUMES_MAX})")]
    TooManyVolumes { found: usize },
    #[error("volume {0} has a segment that no volume has: its disk is not read right")]
    TooLong(VolumeId),
    #[error("no disk holds anything of volume {0}")]
    NoSuchVolume(VolumeId),
    #[error("{0:?} is no name of a volume, or is there twice")]
    BadName(String),
    #[error(
        "volume {volume} has {segments} segments of {segment_bytes} bytes, and 1 to 3 copies: its size ends \
         in the last of them"
    )]
    DoesNotFit { volume: VolumeId, segments: u32, segment_bytes: u64 },
}

// promise: self-describing
/// The same disks, in whatever order, give the same map.
///
/// Errors: what is said cannot be of one cluster.
pub fn salvage(known: &Known, mut disks: Vec<FoundDisk>) -> Result<Salvage, SalvageError> {
    disks.sort_by(|a, b| (a.node, &a.path, a.uuid).cmp(&(b.node, &b.path, b.uuid)));
    // One more stands for those that are lost.
    if disks.len() >= DISKS_MAX {
        return Err(SalvageError::TooManyDisks { found: disks.len() });
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = disks.iter().find(|disk| !seen.insert(disk.uuid)) {
        return Err(SalvageError::Twice(twice.uuid));
    }
    let mut map = Map { cluster: Some(known.cluster), limits: known.limits, ..Map::default() };
    let highest = disks.iter().map(|disk| disk.highest_map).max().unwrap_or_default();
    map.applied = MapIndex::new(highest.get() + AHEAD);
    let mut found: BTreeMap<VolumeId, Volume> = BTreeMap::new();
    for (id, disk) in (1..).map(DiskId::new).zip(&disks) {
        map.last_disk = id.get();
        let entry = DiskEntry::new(disk.uuid, disk.node, disk.capacity_bytes, disk.path.clone());
        map.disks.insert(id, entry);
        for (volume, fence) in &disk.fences {
            map.last_volume = map.last_volume.max(volume.get());
            if let Some(volume) = found.get_mut(volume) {
                volume.epoch = volume.epoch.max(*fence);
            }
        }
        for replica in &disk.replicas {
            map.last_volume = map.last_volume.max(replica.volume.get());
            let volume = found.entry(replica.volume).or_default();
            volume.add(id, replica);
            let fence = disk.fences.iter().find(|(of, _)| *of == replica.volume);
            volume.epoch = volume.epoch.max(fence.map_or(Epoch::ZERO, |(_, fence)| *fence));
        }
    }
    if found.len() > VOLUMES_MAX {
        return Err(SalvageError::TooManyVolumes { found: found.len() });
    }
    if let Some(none) = known.volumes.keys().find(|id| !found.contains_key(id)) {
        return Err(SalvageError::NoSuchVolume(*none));
    }
    let lost = DiskId::new(map.last_disk + 1);
    let fenced: BTreeSet<VolumeId> =
        disks.iter().flat_map(|disk| &disk.fences).map(|(volume, _)| *volume).collect();
    let gone = fenced.into_iter().filter(|volume| !found.contains_key(volume)).collect();
    let mut names = BTreeSet::new();
    let mut doubts = Vec::new();
    for (id, volume) in found {
        let said = known.volumes.get(&id).cloned().unwrap_or_default();
        let name = said.name.clone().unwrap_or_else(|| format!("recovered-{}", id.get()));
        if !is_volume_name(&name) || !names.insert(name.clone()) {
            return Err(SalvageError::BadName(name));
        }
        let entry = volume.entry(id, (name, said), known.limits, lost, &mut doubts)?;
        map.volumes.insert(id, entry);
    }
    let segments = map.volumes.values().flat_map(|volume| &volume.segments);
    let held = segments.filter(|members| members.in_sync == [lost]).count();
    if held > 0 {
        let node = disks.first().map_or(NodeId::new(0), |disk| disk.node);
        map.last_disk = lost.get();
        map.disks.insert(lost, DiskEntry::lost(node));
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let (disks, volumes) = (count(disks.len()), count(map.volumes.len()));
    map.note(Fact::Recovered { disks, volumes, held: count(held) });
    Ok(Salvage { map, doubts, gone })
}

/// A volume as the disks know it.
#[derive(Debug, Default)]
struct Volume {
    /// The highest that any disk knows.
    epoch: Epoch,
    segments: BTreeMap<SegmentIndex, Vec<(DiskId, FoundReplica)>>,
}

impl Volume {
    fn add(&mut self, disk: DiskId, replica: &FoundReplica) {
        self.epoch = self.epoch.max(replica.last_epoch).max(replica.creation);
        self.segments.entry(replica.segment).or_default().push((disk, *replica));
    }

    fn entry(
        self,
        id: VolumeId,
        (name, said): (String, KnownVolume),
        limits: Limits,
        lost: DiskId,
        doubts: &mut Vec<Doubt>,
    ) -> Result<VolumeEntry, SalvageError> {
        let last = self.segments.keys().next_back().copied().unwrap_or_default();
        if last.get() >= SEGMENTS_MAX {
            return Err(SalvageError::TooLong(id));
        }
        // Above all that any disk has seen: what the old map gave out beyond it reached nobody.
        let epoch = self.epoch.next();
        let (mut missing, mut not_whole) = (Vec::new(), Vec::new());
        let segments = (0..=last.get()).map(SegmentIndex::new).map(|index| {
            let replicas = self.segments.get(&index).map_or(&[][..], Vec::as_slice);
            let members = members(replicas, epoch);
            if members.in_sync.is_empty() {
                if replicas.is_empty() { &mut missing } else { &mut not_whole }.push(index);
                return SegmentMembers { in_sync: vec![lost], ..members };
            }
            members
        });
        let mut segments: Vec<SegmentMembers> = segments.collect();
        let rf = said.rf.unwrap_or_else(|| usual_copies(&segments, lost));
        let (segment_bytes, all) = (limits.segment.bytes(), u64::from(last.get()) + 1);
        let size_bytes = said.size_bytes.unwrap_or(all * segment_bytes);
        let fits = limits.segment.segments_of(size_bytes) == Some(last.get() + 1)
            && size_bytes.is_multiple_of(BLOCK_BYTES)
            && (1..=RF_MAX).contains(&rf);
        if !fits {
            let segments = last.get() + 1;
            return Err(SalvageError::DoesNotFit { volume: id, segments, segment_bytes });
        }
        let wanted = usize::from(rf);
        let mut fewer = Vec::new();
        for (index, members) in (0..).map(SegmentIndex::new).zip(&mut segments) {
            let held = members.in_sync == [lost];
            for disk in members.in_sync.split_off(wanted.min(members.in_sync.len())) {
                members.stale.push(Stale { disk, left: epoch, compare_all: true, reach: None });
            }
            if members.in_sync.len() < wanted && !held {
                fewer.push(index);
            }
        }
        if !missing.is_empty() {
            doubts.push(Doubt::Missing { volume: id, segments: missing });
        }
        if !not_whole.is_empty() {
            doubts.push(Doubt::NotWhole { volume: id, segments: not_whole });
        }
        if !fewer.is_empty() {
            doubts.push(Doubt::FewerCopies { volume: id, segments: fewer });
        }
        Ok(VolumeEntry {
            id,
            spec: VolumeSpec {
                name,
                size_bytes,
                rf,
                hold: HoldPolicy::default(),
                exclusive: false,
            },
            state: VolumeState::Ready,
            epoch,
            owner_epoch: epoch,
            owner: None,
            clean: false,
            segments,
            growth: None,
            voided: BTreeMap::new(),
            barred: BTreeSet::new(),
            scrub: Scrubs::default(),
            moving: BTreeMap::new(),
        })
    }
}

/// As many as most segments have; of two numbers that are as frequent the lower.
fn usual_copies(segments: &[SegmentMembers], lost: DiskId) -> u8 {
    let there = || segments.iter().filter(|it| it.in_sync != [lost]);
    let with = |rf: u8| there().filter(|it| it.in_sync.len() == usize::from(rf)).count();
    (1..=RF_MAX).max_by_key(|rf| (with(*rf), std::cmp::Reverse(*rf))).unwrap_or(1)
}

// rule: cluster/newest-epoch-is-in-sync
/// `in_sync` is empty where nobody can serve.
fn members(replicas: &[(DiskId, FoundReplica)], epoch: Epoch) -> SegmentMembers {
    let creation = replicas.iter().map(|(_, replica)| replica.creation).max();
    let creation = creation.unwrap_or(epoch);
    // Left over from an earlier life of the segment: nothing of it counts.
    let of_now = || replicas.iter().filter(|(_, replica)| replica.creation == creation);
    let newest = of_now().map(|(_, replica)| replica.last_epoch).max();
    let is_newest = |replica: &FoundReplica| Some(replica.last_epoch) == newest;
    let mut whole: Vec<&(DiskId, FoundReplica)> =
        of_now().filter(|(_, replica)| is_newest(replica) && !replica.joining).collect();
    whole.sort_by_key(|(disk, replica)| {
        (replica.damaged, std::cmp::Reverse(replica.highest), *disk)
    });
    let in_sync: Vec<DiskId> = whole.iter().map(|(disk, _)| *disk).collect();
    let rest = of_now().filter(|(disk, _)| !in_sync.contains(disk));
    let stale =
        rest.map(|(disk, _)| Stale { disk: *disk, left: epoch, compare_all: true, reach: None });
    let stale = stale.take(STALE_MAX).collect();
    SegmentMembers { creation, in_sync, joining: Vec::new(), stale }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
