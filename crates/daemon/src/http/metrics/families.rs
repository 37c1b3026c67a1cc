//! The metrics themselves.

use super::{Family, Values};
use crate::control::ask::Context;
use crate::control::show;
use crate::data::Published;
use gabion_cluster::safety::Safety;
use gabion_cluster::{Map, VolumeEntry};
use gabion_node::{DiskCondition, DiskStats, NodeStats, PeerStats};
use gabion_types::{Latencies, VolumeId};
use gabion_volume::VolumeStats;
use std::time::Duration;

/// `Context` is there once the node runs.
pub(super) fn all(published: &Published, context: Option<&Context>) -> Vec<Family> {
    let mut all = volumes(published);
    if let Some(context) = context {
        all.extend(safety(context));
        all.extend(consensus(context));
    }
    all.extend(disks(&published.stats.disks));
    all.extend(node(&published.stats));
    all.extend(process(&published.stats.node.to_string()));
    all
}

type One<T> = (&'static str, &'static str, fn(&T) -> u64);

fn counters<T>(label: &'static str, of: &[(String, &T)], all: &[One<T>]) -> Vec<Family> {
    each(of, all, |values| Values::Counter(label, values))
}

fn gauges<T>(label: &'static str, of: &[(String, &T)], all: &[One<T>]) -> Vec<Family> {
    each(of, all, |values| Values::Gauge(label, values))
}

fn each<T>(
    of: &[(String, &T)],
    all: &[One<T>],
    kind: impl Fn(Vec<(String, f64)>) -> Values,
) -> Vec<Family> {
    let family = |(name, help, value): &One<T>| {
        let values = of.iter().map(|(label, it)| (label.clone(), value(it) as f64));
        Family { name, help, values: kind(values.collect()) }
    };
    all.iter().map(family).collect()
}

const VOLUME_COUNTERS: [One<VolumeStats>; 8] = [
    ("volume_reads", "Guests' reads answered by this owner", |it| it.reads),
    ("volume_read_bytes", "Bytes read by guests", |it| it.read_bytes),
    ("volume_writes", "Guests' writes acknowledged", |it| it.writes),
    ("volume_write_bytes", "Bytes written by guests", |it| it.write_bytes),
    ("volume_errors", "Guests' requests answered with an error", |it| it.errors),
    ("volume_filled_bytes", "Bytes copied to joiners", |it| it.filled_bytes),
    ("volume_repaired_blocks", "Bad blocks mended from another copy", |it| it.repaired_blocks),
    ("volume_scrubs", "Scrubs that this owner finished", |it| it.scrubs),
];

const VOLUME_GAUGES: [One<VolumeStats>; 6] = [
    ("volume_requests_in_flight", "Admitted, not answered", |it| it.in_flight),
    ("volume_requests_held", "Waiting for a copy", |it| it.held_requests),
    ("volume_segments_held", "Segments without a usable copy", |it| it.held_segments.len() as u64),
    ("volume_fills", "Copies that are being made, or wait for it", |it| it.fills.len() as u64),
    ("volume_scrub_done_bytes", "How far the scrub under way is; 0: none is", |it| {
        it.scrub.map_or(0, |scrub| scrub.done_bytes)
    }),
    ("volume_lost_blocks", "Blocks that are known to be readable in no copy", |it| {
        it.lost.iter().map(|(_, _, count)| u64::from(*count)).sum()
    }),
];

/// Of the volumes that this node owns.
fn volumes(published: &Published) -> Vec<Family> {
    let name = |id: VolumeId| Some(published.map.volume(id)?.spec.name.clone());
    let owned = published.stats.volumes.iter();
    let owned: Vec<(String, &VolumeStats)> =
        owned.filter_map(|(id, stats)| Some((name(*id)?, stats))).collect();
    let spread = |of: fn(&VolumeStats) -> Latencies| {
        let values = owned.iter().map(|(name, stats)| (name.clone(), of(stats)));
        Values::Histogram("volume", values.collect())
    };
    let mut all = counters("volume", &owned, &VOLUME_COUNTERS);
    all.push(Family {
        name: "volume_read_seconds",
        help: "How long guests' reads took at the owner",
        values: spread(|it| it.read_latencies),
    });
    all.push(Family {
        name: "volume_write_seconds",
        help: "How long guests' writes took at the owner",
        values: spread(|it| it.write_latencies),
    });
    all.extend(gauges("volume", &owned, &VOLUME_GAUGES));
    let doubted =
        |volume: VolumeId| published.stats.doubts.iter().filter(move |(of, ..)| *of == volume);
    let owned = published.stats.volumes.iter();
    let doubted = owned.filter_map(|(id, _)| Some((name(*id)?, doubted(*id).count() as f64)));
    all.push(Family {
        name: "volume_disks_doubted",
        help: "Disks that the owner does without, or takes back only later",
        values: Values::Gauge("volume", doubted.collect()),
    });
    all
}

/// By the map: each node tells the same, of all volumes.
fn safety(context: &Context) -> Vec<Family> {
    let voters = context.voters();
    let short_for = context.observer.short();
    context.map.read_map(|map| {
        let safety = Safety::of(map, &voters);
        let by_volume = |name, help, value: &dyn Fn(&VolumeEntry) -> f64| {
            let volumes = map.volumes().values();
            let values = volumes.map(|entry| (entry.spec.name.clone(), value(entry)));
            Family { name, help, values: Values::Gauge("volume", values.collect()) }
        };
        let mut all = vec![
            by_volume("volume_segments", "Its segments", &|entry| entry.segments.len() as f64),
            by_volume(
                "volume_segments_short",
                "Segments with fewer copies that can be reached than they are to have",
                &|entry| show::short_segments(map, entry) as f64,
            ),
            by_volume(
                "volume_segments_at_risk",
                "Segments that the loss of one more node or disk would make unreadable",
                &|entry| safety.at_risk(entry.id) as f64,
            ),
            by_volume(
                "volume_short_seconds",
                "For how long copies are missing, as far as this process knows; 0: none is",
                &|entry| short_for.get(&entry.id).map_or(0.0, Duration::as_secs_f64),
            ),
        ];
        all.push(Family {
            name: "volume_last_scrub_timestamp_seconds",
            help: "When all of its data was last read and verified; none until it was",
            values: Values::Gauge("volume", scrubbed(map)),
        });
        let answer = |name, help, yes: bool| Family {
            name,
            help,
            values: Values::Gauge("node", vec![(context.me.to_string(), f64::from(u8::from(yes)))]),
        };
        all.push(answer(
            "cluster_survives_any_node",
            "1 while the loss of any one node leaves everything served",
            safety.survives_any_node(),
        ));
        all.push(answer(
            "cluster_survives_any_disk",
            "1 while the loss of any one disk leaves everything served",
            safety.survives_any_disk(),
        ));
        all
    })
}

fn scrubbed(map: &Map) -> Vec<(String, f64)> {
    let at = |entry: &VolumeEntry| {
        let at_ms = entry.scrub.deep.map(|deep| deep.at_ms).filter(|at_ms| *at_ms > 0)?;
        Some((entry.spec.name.clone(), at_ms as f64 / 1000.0))
    };
    map.volumes().values().filter_map(at).collect()
}

fn consensus(context: &Context) -> Vec<Family> {
    let (view, led) = (*context.store.leader().borrow(), context.store.is_led());
    let leads = view.leader == Some(context.me);
    let applied = context.map.read_map(|map| map.applied().get());
    let one = |name, help, value: f64| Family {
        name,
        help,
        values: Values::Gauge("node", vec![(context.me.to_string(), value)]),
    };
    vec![
        one("consensus_term", "Term of the consensus", view.term as f64),
        one("consensus_leads", "1 on the node that leads", f64::from(u8::from(leads))),
        one("consensus_led", "1 while a majority follows a leader", f64::from(u8::from(led))),
        one("consensus_applied", "Last entry that this node's map has", applied as f64),
    ]
}

const DISK_COUNTERS: [One<DiskStats>; 13] = [
    ("disk_writes", "Replicas' writes", |it| it.store.writes),
    ("disk_write_bytes", "Bytes of them", |it| it.store.write_bytes),
    ("disk_filled_bytes", "Of them, copied to joiners", |it| it.store.filled_bytes),
    ("disk_moved_bytes", "Moved from many pieces into one, while idle", |it| it.store.moved_bytes),
    ("disk_reads", "Replicas' reads", |it| it.store.reads),
    ("disk_read_bytes", "Bytes of them", |it| it.store.read_bytes),
    ("disk_journal_frames", "Journal frames written", |it| it.store.frames),
    ("disk_syncs", "Syncs", |it| it.store.syncs),
    ("disk_checkpoints", "Checkpoints", |it| it.store.checkpoints),
    ("disk_corrupt_blocks", "Blocks that failed their checksum", |it| it.store.corrupt_blocks),
    ("disk_damaged_pages", "Pages of the map that were found damaged, and written anew", |it| {
        it.store.damaged_pages
    }),
    ("disk_map_pages_read", "Pages of the map that were read when somebody asked", |it| {
        it.store.pages_loaded
    }),
    ("disk_scrubbed_bytes", "Bytes read by scrubs", |it| it.store.verified_bytes),
];

const DISK_GAUGES: [One<DiskStats>; 8] = [
    ("disk_in_service", "1 while it serves", |it| {
        u64::from(matches!(it.condition, DiskCondition::InService { .. }))
    }),
    ("disk_breaker", "0: it is used; 1: it is being opened; 2: nothing is asked of it", |it| {
        u64::from(it.breaker.state.level())
    }),
    ("disk_oldest_seconds", "For how long the oldest operation has been with it", |it| {
        it.store.oldest.as_secs()
    }),
    ("disk_capacity_bytes", "Its size", |it| it.store.capacity_bytes),
    ("disk_used_bytes", "Data and metadata", |it| it.store.used_bytes),
    ("disk_free_bytes", "Left for new data", |it| {
        it.store.free_bytes.saturating_sub(it.store.reserve_bytes)
    }),
    ("disk_requests", "Requests taken and not yet answered", |it| it.store.pending),
    ("disk_map_pages", "Pages of the map in memory, of 3 KiB each", |it| it.store.pages_here),
];

fn disks(disks: &[DiskStats]) -> Vec<Family> {
    let disks: Vec<(String, &DiskStats)> =
        disks.iter().map(|disk| (disk.path.clone(), disk)).collect();
    let mut all = gauges("disk", &disks, &DISK_GAUGES);
    all.extend(counters("disk", &disks, &DISK_COUNTERS));
    all
}

const NODE_GAUGES: [One<NodeStats>; 7] = [
    ("node_ready", "1 while it serves guests", |it| u64::from(it.ready)),
    ("node_map_index", "Last entry of the log that its data plane applied", |it| it.map.get()),
    ("node_volumes", "Volumes that it owns", |it| it.volumes.len() as u64),
    ("node_peers_up", "Peers with working links", |it| {
        it.peers.iter().filter(|peer| peer.up).count() as u64
    }),
    ("node_guests", "Guests connected here", |it| it.guests as u64),
    ("node_guest_bytes", "Payload of guests that is held here", |it| it.guest_bytes),
    (
        "node_guests_waiting",
        "Guests that are not read: their volume's share of the buffers is full",
        |it| it.guests_waiting as u64,
    ),
];

fn node(stats: &NodeStats) -> Vec<Family> {
    let mut all = gauges("node", &[(stats.node.to_string(), stats)], &NODE_GAUGES);
    let lease = stats.lease_left.map_or(0.0, |left| left.as_secs_f64());
    all.push(Family {
        name: "node_lease_seconds",
        help: "What is left of its lease; 0: it has none, and its guests wait",
        values: Values::Gauge("node", vec![(stats.node.to_string(), lease)]),
    });
    let up = stats.peers.iter().map(|peer| (peer.node.to_string(), f64::from(u8::from(peer.up))));
    all.push(Family {
        name: "peer_up",
        help: "1 while links with that peer work",
        values: Values::Gauge("peer", up.collect()),
    });
    let level = |peer: &PeerStats| f64::from(peer.breaker.state.level());
    let breakers = stats.peers.iter().map(|peer| (peer.node.to_string(), level(peer)));
    all.push(Family {
        name: "peer_breaker",
        help: "0: that peer is asked; 1: it is being tried again; 2: it is done without",
        values: Values::Gauge("peer", breakers.collect()),
    });
    all
}

/// Source: proc_pid_stat(5), with USER_HZ of 100 and pages of 4 KiB.
fn process(node: &str) -> Vec<Family> {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may have blanks in it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok());
    let of = |value: Option<f64>| value.map(|value| (node.to_owned(), value)).into_iter().collect();
    let cpu = field(11).zip(field(12)).map(|(user, system)| (user + system) / 100.0);
    vec![
        Family {
            name: "process_cpu_seconds",
            help: "Processor time of the node's process",
            values: Values::Counter("node", of(cpu)),
        },
        Family {
            name: "process_resident_bytes",
            help: "Memory that the node's process holds",
            values: Values::Gauge("node", of(field(21).map(|pages| pages * 4096.0))),
        },
    ]
}
