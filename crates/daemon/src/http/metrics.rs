//! What `/metrics` says, in base units: guests first, then safety, then machinery.

use crate::data::Published;
use gabion_node::DiskCondition;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// In the OpenMetrics text format.
pub(super) fn text(published: &Arc<Published>) -> String {
    let mut registry = Registry::with_prefix("gabion");
    registry.register_collector(Box::new(Snapshot(Arc::clone(published))));
    let mut text = String::new();
    // A String takes every write.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Snapshot(Arc<Published>);

/// One metric: its name, its help, whether it only grows, and its values by label.
type Samples<'a> = (&'a str, &'a str, bool, Vec<(String, u64)>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (label, samples) in
            [("volume", self.volumes()), ("disk", self.disks()), ("node", self.node())]
        {
            for (name, help, grows, values) in samples {
                family(&mut encoder, (name, help, grows, values), label)?;
            }
        }
        Ok(())
    }
}

fn family(
    encoder: &mut DescriptorEncoder,
    (name, help, grows, values): Samples<'_>,
    label: &str,
) -> Result<(), fmt::Error> {
    let kind = if grows { MetricType::Counter } else { MetricType::Gauge };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (value_of, value) in values {
        let labels = [(label, value_of)];
        let metric = family.encode_family(&labels)?;
        if grows {
            ConstCounter::new(value).encode(metric)?;
        } else {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
    }
    Ok(())
}

impl Snapshot {
    fn volumes(&self) -> Vec<Samples<'static>> {
        let map = &self.0.map;
        let volumes: Vec<_> = self
            .0
            .stats
            .volumes
            .iter()
            .filter_map(|(volume, stats)| Some((map.volume(*volume)?.spec.name.clone(), stats)))
            .collect();
        macro_rules! each {
            ($it:ident => $value:expr) => {
                volumes.iter().map(|(name, $it)| (name.clone(), $value)).collect()
            };
        }
        vec![
            ("volume_reads", "Guests' reads answered by this owner", true, each!(it => it.reads)),
            ("volume_read_bytes", "Bytes read by guests", true, each!(it => it.read_bytes)),
            ("volume_writes", "Guests' writes acknowledged", true, each!(it => it.writes)),
            ("volume_write_bytes", "Bytes written by guests", true, each!(it => it.write_bytes)),
            (
                "volume_requests_in_flight",
                "Admitted, not answered",
                false,
                each!(it => it.in_flight),
            ),
            ("volume_requests_held", "Waiting for a copy", false, each!(it => it.held_requests)),
            (
                "volume_segments_held",
                "Segments without a usable copy",
                false,
                each!(it => it.held_segments.len() as u64),
            ),
            ("volume_filled_bytes", "Bytes copied to joiners", true, each!(it => it.filled_bytes)),
            (
                "volume_repaired_blocks",
                "Bad blocks mended from another copy",
                true,
                each!(it => it.repaired_blocks),
            ),
            ("volume_scrubs", "Scrubs that this owner finished", true, each!(it => it.scrubs)),
            (
                "volume_scrub_done_bytes",
                "How far the scrub under way is; 0: none is",
                false,
                each!(it => it.scrub.map_or(0, |scrub| scrub.done_bytes)),
            ),
            (
                "volume_lost_blocks",
                "Blocks that are known to be readable in no copy",
                false,
                each!(it => it.lost.iter().map(|(_, _, count)| u64::from(*count)).sum()),
            ),
        ]
    }

    fn disks(&self) -> Vec<Samples<'static>> {
        let each = |value: fn(&gabion_node::DiskStats) -> u64| {
            let disks = self.0.stats.disks.iter();
            disks.map(|disk| (disk.path.clone(), value(disk))).collect::<Vec<_>>()
        };
        let in_service = |disk: &gabion_node::DiskStats| {
            u64::from(matches!(disk.condition, DiskCondition::InService { .. }))
        };
        vec![
            ("disk_in_service", "1 while it serves", false, each(in_service)),
            ("disk_capacity_bytes", "Its size", false, each(|it| it.store.capacity_bytes)),
            ("disk_used_bytes", "Data and metadata", false, each(|it| it.store.used_bytes)),
            ("disk_writes", "Replicas' writes", true, each(|it| it.store.writes)),
            ("disk_write_bytes", "Bytes of them", true, each(|it| it.store.write_bytes)),
            (
                "disk_filled_bytes",
                "Of them, copied to joiners",
                true,
                each(|it| it.store.filled_bytes),
            ),
            (
                "disk_moved_bytes",
                "Moved from many pieces into one, while idle",
                true,
                each(|it| it.store.moved_bytes),
            ),
            ("disk_reads", "Replicas' reads", true, each(|it| it.store.reads)),
            ("disk_read_bytes", "Bytes of them", true, each(|it| it.store.read_bytes)),
            ("disk_journal_frames", "Journal frames written", true, each(|it| it.store.frames)),
            ("disk_syncs", "Syncs", true, each(|it| it.store.syncs)),
            ("disk_checkpoints", "Checkpoints", true, each(|it| it.store.checkpoints)),
            (
                "disk_corrupt_blocks",
                "Blocks that failed their checksum",
                true,
                each(|it| it.store.corrupt_blocks),
            ),
            (
                "disk_damaged_pages",
                "Pages of the map that were found damaged, and written anew",
                true,
                each(|it| it.store.damaged_pages),
            ),
            (
                "disk_map_pages_read",
                "Pages of the map that were read because somebody asked for them",
                true,
                each(|it| it.store.pages_loaded),
            ),
            (
                "disk_map_pages",
                "Pages of the map in memory, of 3 KiB each",
                false,
                each(|it| it.store.pages_here),
            ),
            (
                "disk_scrubbed_bytes",
                "Bytes read by scrubs",
                true,
                each(|it| it.store.verified_bytes),
            ),
        ]
    }

    fn node(&self) -> Vec<Samples<'static>> {
        let stats = &self.0.stats;
        let name = stats.node.to_string();
        let one = |value: u64| vec![(name.clone(), value)];
        let up = stats.peers.iter().filter(|peer| peer.up).count() as u64;
        vec![
            ("node_ready", "1 while it serves guests", false, one(u64::from(stats.ready))),
            ("node_map_index", "Last entry of the log applied", true, one(stats.map.get())),
            ("node_peers_up", "Peers with working links", false, one(up)),
            ("node_guests", "Guests connected here", false, one(stats.guests as u64)),
            (
                "node_guest_bytes",
                "Payload of guests that is held here",
                false,
                one(stats.guest_bytes),
            ),
            (
                "node_guests_waiting",
                "Guests that are not read: their volume's share of the buffers is full",
                false,
                one(stats.guests_waiting as u64),
            ),
        ]
    }
}
