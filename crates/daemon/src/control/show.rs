//! The map, and what nodes tell of themselves, as operators read it.

use crate::control::errors::{no_majority, no_volume};
use crate::control::{breakers, drain};
use gabion_api::v1::{
    Attach, Disk, DiskSpace, DiskState, Health, LocalDisk, LocalStatsResponse, LocalVolume,
    LostBlocks, Node, NodeState, Owner, Rebuild, Replica, ScrubDone, ScrubFound, ScrubUnderWay,
    Scrubs, Segment, Traffic, Volume, VolumeState,
};
use gabion_cluster::{self as cluster, Map, Remains, Stranded, VolumeEntry};
use gabion_types::{DiskId, HoldPolicy, NodeId, ScrubKind, SegmentMembers, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tonic::Status;

/// What the nodes that could be asked just now say of themselves.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Nobody leads the cluster: leases run out, and all I/O waits.
    pub no_majority: bool,
    /// No leader confirmed that this node's map is up to date.
    pub unconfirmed: bool,
    pub nodes: BTreeMap<NodeId, LocalStatsResponse>,
    /// How long volumes are short of copies, as far as this node knows.
    pub short: BTreeMap<VolumeId, Duration>,
}

impl Told {
    /// The map names no such volume; where it may be behind, nobody can say so.
    pub(super) fn no_volume(&self, name: &str) -> Status {
        let detail = if self.unconfirmed { no_majority() } else { no_volume(name) };
        detail.into_status()
    }

    /// By the volume's owner.
    pub(super) fn volume(&self, entry: &VolumeEntry) -> Option<&LocalVolume> {
        let (owner, _) = entry.owner?;
        let node = self.nodes.get(&owner)?;
        node.volumes.iter().find(|volume| volume.volume == entry.id.get())
    }

    fn disk(&self, node: NodeId, disk: DiskId) -> Option<&LocalDisk> {
        self.nodes.get(&node)?.disks.iter().find(|told| told.disk == disk.get())
    }
}

/// Replicas by disk, over all volumes.
pub fn replicas_by_disk(map: &Map) -> BTreeMap<DiskId, u64> {
    let mut counts = BTreeMap::new();
    for members in map.volumes().values().flat_map(|volume| &volume.segments) {
        for disk in members.write_set().chain(members.stale.iter().map(|stale| stale.disk)) {
            *counts.entry(disk).or_default() += 1;
        }
    }
    counts
}

pub fn disk(
    map: &Map,
    told: &Told,
    (id, entry): (DiskId, &cluster::DiskEntry),
    (replicas, promised_bytes): (u64, u64),
) -> Disk {
    let (all, told) = (told, told.disk(entry.node, id));
    let state = match entry.state {
        cluster::DiskState::Failed => DiskState::Failed,
        cluster::DiskState::Missing => DiskState::Missing,
        cluster::DiskState::InService if map.is_alive(entry.node) => DiskState::InService,
        cluster::DiskState::InService => DiskState::Away,
    };
    Disk {
        id: id.get(),
        node: entry.node.get(),
        uuid: entry.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        path: entry.path.clone(),
        state: state.into(),
        capacity_bytes: entry.capacity_bytes,
        used_bytes: told.map(|told| told.used_bytes),
        corrupt_blocks: told.map(|told| told.corrupt_blocks),
        filled_bytes: told.map(|told| told.filled_bytes),
        replicas,
        free_bytes: told.map(free_bytes),
        promised_bytes,
        space: told.map_or(DiskSpace::Unspecified, |told| space(map, told)).into(),
        drain: drain::of_disk(map, id).into(),
        to_drop: count(entry.to_drop()),
        suspect_blocks: drain::suspect_blocks(entry),
        breaker: breakers::of_disk(all, id, entry),
        doubted: breakers::doubts_of(map, all, id),
    }
}

/// A disk with less for new data than this, or a thirty-second part of it, is full.
const FULL_BYTES: u64 = 16 << 20;

/// For new data.
fn free_bytes(told: &LocalDisk) -> u64 {
    told.free_bytes.saturating_sub(told.reserve_bytes)
}

fn space(map: &Map, told: &LocalDisk) -> DiskSpace {
    if told.capacity_bytes == 0 {
        // It is not open.
        return DiskSpace::Unspecified;
    }
    let free = free_bytes(told);
    let percent = u128::from(map.settings().near_full_percent);
    let all = u128::from(told.used_bytes) + u128::from(free);
    // An owner is given credit for a part of what is free: before nothing is left, new data are
    // refused.
    if free < FULL_BYTES.min(told.capacity_bytes / 32) {
        DiskSpace::Full
    } else if u128::from(told.used_bytes) * 100 >= all * percent {
        DiskSpace::NearFull
    } else {
        DiskSpace::Ok
    }
}

pub fn disks(map: &Map, told: &Told) -> Vec<Disk> {
    let replicas = replicas_by_disk(map);
    let promised = map.promised_bytes();
    let count = |counts: &BTreeMap<DiskId, u64>, id| counts.get(id).copied().unwrap_or_default();
    let counts = |id| (count(&replicas, id), count(&promised, id));
    map.disks().iter().map(|(id, entry)| disk(map, told, (*id, entry), counts(id))).collect()
}

/// `since` says how long a node has been in its state.
pub fn nodes(
    map: &Map,
    told: &Told,
    (leader, voters): (Option<NodeId>, &BTreeSet<NodeId>),
    since: impl Fn(NodeId) -> Duration,
) -> Vec<Node> {
    let (disks, told_all) = (disks(map, told), told);
    let node = |(id, entry): (&NodeId, &cluster::NodeEntry)| {
        let told = told_all.nodes.get(id);
        let state = match entry.state {
            cluster::NodeState::Alive => NodeState::Up,
            cluster::NodeState::Silent => NodeState::Silent,
        };
        Node {
            id: id.get(),
            name: entry.info.name.clone(),
            state: state.into(),
            since_ms: ms(since(*id)),
            api: entry.info.api.clone(),
            peer: entry.info.peer.clone(),
            nbd: entry.info.nbd.clone(),
            http: entry.info.http.clone(),
            disks: disks.iter().filter(|disk| disk.node == id.get()).cloned().collect(),
            leader: leader == Some(*id),
            reachable: told.is_some(),
            pid: told.map(|told| told.pid),
            version: told.map_or_else(String::new, |told| told.version.clone()),
            guests: told.map_or(0, |told| told.guests),
            drain: drain::of_node(entry).into(),
            zone: entry.info.zone.clone(),
            voter: voters.contains(id),
            peers: breakers::peers_of(told_all, *id),
            drain_waits: drain::waits(map, told_all, *id, &disks),
        }
    };
    map.nodes().iter().map(node).collect()
}

/// `segments`: also what holds each of them.
pub fn volume(map: &Map, told: &Told, entry: &VolumeEntry, segments: bool) -> Volume {
    let stats = told.volume(entry);
    let spec = &entry.spec;
    let rf = usize::from(spec.rf);
    let short = entry.segments.iter().filter(|members| members.in_sync.len() < rf).count();
    let (health, reasons) = health(map, told, entry, short);
    Volume {
        id: entry.id.get(),
        name: spec.name.clone(),
        size_bytes: spec.size_bytes,
        rf: u32::from(spec.rf),
        hold_ms: match spec.hold {
            HoldPolicy::NeverFail => 0,
            HoldPolicy::FailAfter(after) => ms(after),
        },
        attach: if spec.exclusive { Attach::Exclusive } else { Attach::Any }.into(),
        state: match entry.state {
            cluster::VolumeState::Creating { .. } => VolumeState::Creating,
            cluster::VolumeState::Ready => VolumeState::Ready,
            cluster::VolumeState::Deleting => VolumeState::Deleting,
        }
        .into(),
        owner: entry.owner.map(|(node, _)| Owner {
            node: node.get(),
            name: node_name(map, node),
            epoch: entry.owner_epoch.get(),
        }),
        epoch: entry.epoch.get(),
        health: health.into(),
        segments_total: count(entry.segments.len()),
        segments_degraded: count(short),
        segments: if segments { all_segments(map, entry, stats) } else { Vec::new() },
        rebuild: rebuild(map, entry, stats),
        traffic: stats.map(traffic),
        guests: stats.map_or(0, |stats| stats.guests),
        short_ms: told.short.get(&entry.id).map(|since| ms(*since)),
        segments_sharing_zones: count(cluster::placement::sharing_zones(map, entry)),
        reasons,
        scrub: Some(scrubs(entry, stats)),
    }
}

fn scrubs(entry: &VolumeEntry, stats: Option<&LocalVolume>) -> Scrubs {
    let done = |done: cluster::Scrubbed| ScrubDone {
        number: done.number,
        at_ms: done.at_ms,
        found: Some(scrub_found(&done.found)),
    };
    let scrub = &entry.scrub;
    let told = stats.and_then(|stats| stats.scrub);
    let under_way = scrub.wanted.map(|ask| {
        let told = told.filter(|told| told.number == ask.number).unwrap_or_default();
        ScrubUnderWay { number: ask.number, deep: ask.kind == ScrubKind::Deep, ..told }
    });
    Scrubs { under_way, light: scrub.light.map(done), deep: scrub.deep.map(done) }
}

pub fn scrub_found(found: &gabion_types::ScrubFound) -> ScrubFound {
    ScrubFound {
        compared_blocks: found.compared_blocks,
        verified_blocks: found.verified_blocks,
        bad_blocks: found.bad_blocks,
        behind_blocks: found.behind_blocks,
        mended_blocks: found.mended_blocks,
        differing_blocks: found.differing_blocks,
        lost_blocks: found.lost_blocks,
        skipped: found.skipped,
    }
}

fn all_segments(map: &Map, entry: &VolumeEntry, stats: Option<&LocalVolume>) -> Vec<Segment> {
    let numbered = (0u32..).zip(&entry.segments);
    numbered.map(|(index, members)| segment(map, index, members, stats)).collect()
}

fn segment(
    map: &Map,
    index: u32,
    members: &SegmentMembers,
    stats: Option<&LocalVolume>,
) -> Segment {
    let segment_bytes = map.limits().segment.bytes();
    let plain = |disk: DiskId| Replica {
        node: home(map, disk).map_or(0, NodeId::get),
        disk: disk.get(),
        ..Replica::default()
    };
    let joining = |joining: &gabion_types::Joining| {
        let fill = stats.and_then(|stats| {
            let mut fills = stats.fills.iter();
            fills.find(|fill| fill.segment == index && fill.disk == joining.disk.get())
        });
        Replica {
            copied_bytes: fill.map_or(0, |fill| fill.copied_bytes),
            total_bytes: fill.map_or(segment_bytes, |fill| fill.total_bytes),
            waiting: fill.map_or(joining.fill_waits, |fill| fill.waiting),
            ..plain(joining.disk)
        }
    };
    let lost = stats.into_iter().flat_map(|stats| &stats.lost);
    let lost = lost.filter(|lost| lost.segment == index);
    Segment {
        index: u64::from(index),
        in_sync: members.in_sync.iter().map(|disk| plain(*disk)).collect(),
        joining: members.joining.iter().map(joining).collect(),
        stale: members.stale.iter().map(|stale| plain(stale.disk)).collect(),
        lost: lost
            .map(|lost| LostBlocks { block: lost.block.into(), count: lost.count.into() })
            .collect(),
        held: stats.is_some_and(|stats| stats.held_segments.contains(&index))
            || !has_usable_copy(map, members),
    }
}

fn traffic(stats: &LocalVolume) -> Traffic {
    Traffic {
        serving: stats.serving,
        held_requests: stats.held_requests,
        in_flight: stats.in_flight,
        reads: stats.reads,
        read_bytes: stats.read_bytes,
        writes: stats.writes,
        write_bytes: stats.write_bytes,
        filled_bytes: stats.filled_bytes,
        repaired_blocks: stats.repaired_blocks,
        read_latencies: stats.read_latencies.clone(),
        write_latencies: stats.write_latencies.clone(),
    }
}

/// What is left to copy. A joiner of which nothing is told counts as a whole segment.
fn rebuild(map: &Map, entry: &VolumeEntry, stats: Option<&LocalVolume>) -> Option<Rebuild> {
    let segment_bytes = map.limits().segment.bytes();
    let mut remaining_bytes = 0u64;
    let mut joiners = 0u64;
    for (index, members) in (0u32..).zip(&entry.segments) {
        for joining in &members.joining {
            joiners += 1;
            let fill = stats.and_then(|stats| {
                let mut fills = stats.fills.iter();
                fills.find(|fill| fill.segment == index && fill.disk == joining.disk.get())
            });
            let left = fill.map(|fill| fill.total_bytes.saturating_sub(fill.copied_bytes));
            remaining_bytes = remaining_bytes.saturating_add(left.unwrap_or(segment_bytes));
        }
    }
    if joiners == 0 {
        return None;
    }
    let bytes_per_s = stats.map_or(0, |stats| stats.fill_bytes_per_s);
    let eta_ms =
        (bytes_per_s > 0).then(|| remaining_bytes.saturating_mul(1000).div_ceil(bytes_per_s));
    Some(Rebuild { remaining_bytes, bytes_per_s, eta_ms })
}

/// By the map it has fewer copies than it is to have, or some where nobody reaches them.
pub fn is_short(map: &Map, entry: &VolumeEntry) -> bool {
    short_segments(map, entry) > 0
}

pub fn short_segments(map: &Map, entry: &VolumeEntry) -> usize {
    let rf = usize::from(entry.spec.rf);
    let alive = |disk: &&DiskId| home(map, **disk).is_none_or(|node| map.is_alive(node));
    let copies = |members: &SegmentMembers| members.in_sync.iter().filter(alive).count();
    entry.segments.iter().filter(|members| copies(members) < rf).count()
}

/// And why it is not healthy, worst first.
fn health(map: &Map, told: &Told, entry: &VolumeEntry, short: usize) -> (Health, Vec<String>) {
    let stats = told.volume(entry);
    let mut reasons = Vec::new();
    let lost: u64 =
        stats.into_iter().flat_map(|stats| &stats.lost).map(|lost| u64::from(lost.count)).sum();
    if lost > 0 {
        reasons.push(format!("{lost} blocks are lost: no copy of them is readable"));
    }
    let held = entry.segments.iter().filter(|members| !has_usable_copy(map, members)).count();
    let held = held.max(stats.map_or(0, |stats| stats.held_segments.len()));
    if held > 0 {
        reasons.push(format!("{held} segments have no usable copy now: their I/O waits"));
    }
    let stranded = map.stranded(entry);
    let whole = |one: &&Stranded| matches!(one.remains, Remains::Whole { .. });
    let whole = stranded.iter().filter(whole).count();
    if whole > 0 {
        reasons
            .push(format!("{whole} of them are made whole from two older copies, by themselves"));
    }
    if stranded.len() > whole {
        let (lost, name) = (stranded.len() - whole, &entry.spec.name);
        reasons.push(format!(
            "{lost} segments wait for a disk or node that had all: if none comes back, `gabion volume recover \
             {name}` tells what is left"
        ));
    }
    if told.no_majority {
        reasons.push("no majority of the voters is heard: its I/O waits".to_owned());
    } else if told.unconfirmed {
        reasons.push("no leader confirms that what this node knows is up to date".to_owned());
    }
    let since = told.short.get(&entry.id);
    let since = since.map_or(String::new(), |since| format!(", for {} s", since.as_secs()));
    if short > 0 {
        let (of, rf) = (entry.segments.len(), entry.spec.rf);
        reasons.push(format!("{short} of {of} segments have fewer than {rf} copies{since}"));
    }
    let away = away_nodes(map, entry);
    if !away.is_empty() {
        reasons.push(format!("copies are on nodes that are silent: {}{since}", away.join(", ")));
    }
    if let cluster::VolumeState::Creating { waiting } = &entry.state {
        reasons.push(format!("it is being made: {} disks have not recorded it", waiting.len()));
    }
    let health = if lost > 0 {
        Health::Lost
    } else if held > 0 || told.no_majority {
        Health::Held
    } else if reasons.is_empty() {
        Health::Healthy
    } else {
        Health::Degraded
    };
    (health, reasons)
}

fn away_nodes(map: &Map, entry: &VolumeEntry) -> Vec<String> {
    let in_sync = entry.segments.iter().flat_map(|members| &members.in_sync);
    let mut nodes: Vec<NodeId> = in_sync.filter_map(|disk| home(map, *disk)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|node| !map.is_alive(*node));
    nodes.into_iter().map(|node| node_name(map, node)).collect()
}

fn has_usable_copy(map: &Map, members: &SegmentMembers) -> bool {
    let usable = |disk: &DiskId| {
        let entry = map.disk(*disk);
        entry.is_some_and(|entry| entry.is_in_service() && map.is_alive(entry.node))
    };
    members.in_sync.iter().any(usable)
}

fn home(map: &Map, disk: DiskId) -> Option<NodeId> {
    map.disk(disk).map(|entry| entry.node)
}

pub fn node_name(map: &Map, node: NodeId) -> String {
    map.node(node).map_or_else(|| format!("node {}", node.get()), |entry| entry.info.name.clone())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
