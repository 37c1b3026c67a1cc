//! `volume explain`: why it is as it is, and what would make it worse.

use crate::control::ask::Context;
use crate::control::safety;
use crate::control::show::{self, Told};
use gabion_api::v1::{Copying, ExplainVolumeResponse, LocalFill};
use gabion_cluster::safety::Safety;
use gabion_cluster::{Map, VolumeEntry};
use gabion_types::{DiskId, NodeId};
use tonic::Status;

pub async fn explain(context: &Context, name: &str) -> Result<ExplainVolumeResponse, Status> {
    let owner = |map: &Map| {
        let owner = map.volume_by_name(name).and_then(|entry| entry.owner);
        owner.map(|(node, _)| node).into_iter().collect()
    };
    let told = context.told_by(owner).await;
    let voters = context.voters();
    let explained = context.map.read_map(|map| {
        let entry = map.volume_by_name(name)?;
        let judged = Safety::of_volume(map, &voters, entry);
        Some(ExplainVolumeResponse {
            volume: Some(show::volume(map, &told, entry, true)),
            safety: Some(safety::shown(map, &judged)),
            copying: copying(map, &told, entry),
        })
    });
    explained.ok_or_else(|| told.no_volume(name))
}

/// What its owner tells; without its word, what the map says is joining.
fn copying(map: &Map, told: &Told, entry: &VolumeEntry) -> Vec<Copying> {
    let fills = told.volume(entry).map_or(&[] as &[LocalFill], |stats| stats.fills.as_slice());
    let home = |disk: DiskId| map.disk(disk).map(|entry| entry.node.get());
    let mut found = Vec::new();
    for (index, members) in (0u32..).zip(&entry.segments) {
        for joining in &members.joining {
            let of = |fill: &&LocalFill| fill.segment == index && fill.disk == joining.disk.get();
            let fill = fills.iter().find(of);
            let from_disk = fill.and_then(|fill| fill.source);
            found.push(Copying {
                segment: u64::from(index),
                from_node: from_disk.and_then(|disk| home(DiskId::new(disk))),
                from_disk,
                to_node: home(joining.disk).unwrap_or_else(|| NodeId::new(0).get()),
                to_disk: joining.disk.get(),
                copied_bytes: fill.map_or(0, |fill| fill.copied_bytes),
                total_bytes: fill
                    .map_or_else(|| map.limits().segment.bytes(), |fill| fill.total_bytes),
                waiting: fill.is_none_or(|fill| fill.waiting),
            });
        }
    }
    found
}
