//! What single losses would cost, in the API's words.

use crate::control::show::node_name;
use gabion_api::v1::{self, VolumeLoss, loss::What};
use gabion_cluster::Map;
use gabion_cluster::safety::{Cost, Loss, Part, Safety};
use gabion_types::VolumeId;

pub fn shown(map: &Map, safety: &Safety) -> v1::Safety {
    v1::Safety {
        survives_any_node: safety.survives_any_node(),
        survives_any_disk: safety.survives_any_disk(),
        losses: safety.losses.iter().map(|loss| shown_loss(map, loss)).collect(),
        why: safety.losses.iter().flat_map(|loss| why(map, safety, loss)).collect(),
    }
}

fn shown_loss(map: &Map, loss: &Loss) -> v1::Loss {
    let volume = |(id, cost): (&VolumeId, &Cost)| VolumeLoss {
        volume: id.get(),
        name: volume_name(map, *id),
        held_segments: cost.held,
        lost_segments: cost.lost,
    };
    v1::Loss {
        name: part_name(map, loss.part),
        what: Some(match loss.part {
            Part::Node(node) => What::Node(node.get()),
            Part::Disk(disk) => What::Disk(disk.get()),
        }),
        stops_cluster: loss.stops_cluster,
        volumes: loss.volumes.iter().map(volume).collect(),
    }
}

/// A disk whose node would cost the same is not told of again.
fn why(map: &Map, safety: &Safety, loss: &Loss) -> Vec<String> {
    let name = part_name(map, loss.part);
    if let Part::Disk(disk) = loss.part {
        let node = map.disk(disk).map(|entry| Part::Node(entry.node));
        let of_node = safety.losses.iter().find(|other| Some(other.part) == node);
        if of_node.is_some_and(|of_node| of_node.volumes == loss.volumes) {
            return Vec::new();
        }
    }
    let mut told = Vec::new();
    for (id, cost) in &loss.volumes {
        let volume = volume_name(map, *id);
        if cost.lost > 0 {
            let segments = segments(cost.lost);
            told.push(format!("{name} holds the only copy of {segments} of volume {volume}"));
        }
        if cost.held > cost.lost {
            let segments = segments(cost.held - cost.lost);
            told.push(format!(
                "{name} holds the only copy that can be read now of {segments} of volume {volume}"
            ));
        }
    }
    if loss.stops_cluster {
        told.push(format!("without {name} no majority of the voters is left: all I/O would wait"));
    }
    told
}

fn segments(count: u64) -> String {
    if count == 1 { "1 segment".to_owned() } else { format!("{count} segments") }
}

fn part_name(map: &Map, part: Part) -> String {
    match part {
        Part::Node(node) => format!("node {}", node_name(map, node)),
        Part::Disk(disk) => match map.disk(disk) {
            Some(entry) => {
                let node = node_name(map, entry.node);
                format!("disk {} ({} on node {node})", disk.get(), entry.path)
            }
            None => format!("disk {}", disk.get()),
        },
    }
}

fn volume_name(map: &Map, id: VolumeId) -> String {
    map.volume(id).map_or_else(|| id.get().to_string(), |entry| entry.spec.name.clone())
}
