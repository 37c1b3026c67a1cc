//! Disks and nodes that are being emptied: asked for, and shown.

use crate::control::ask::{Context, Place, passed_on};
use crate::control::show::Told;
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_api::v1::{
    Disk, Drain, DrainDiskRequest, DrainDiskResponse, DrainNodeRequest, DrainNodeResponse,
    ErrorCode, ErrorDetail, Node, RemoveNodeRequest, RemoveNodeResponse,
};
use gabion_cluster::{self as cluster, AdminRequest, DrainReason, Map};
use gabion_types::{DiskId, NodeId};
use std::fmt::Display;
use tonic::{Request, Response, Status};

pub async fn disk(
    context: &Context,
    request: Request<DrainDiskRequest>,
) -> Result<Response<DrainDiskResponse>, Status> {
    match context.place(request.metadata())? {
        Place::Here => {
            let DrainDiskRequest { disk, node, cancel } = request.into_inner();
            let (disk, node) = find_disk(context, &disk, &node)?;
            let subject = format!("disk {}", disk.get());
            context.admin(AdminRequest::DrainDisk { disk, cancel }, &subject).await?;
            Ok(context.answer(DrainDiskResponse { disk: disk.get(), node: node.get() }))
        }
        Place::At(leader) => {
            let request = context.forwarded(request.into_inner());
            let answer = ClusterClient::new(leader).drain_disk(request).await.map_err(passed_on)?;
            context.catch_up(answer.metadata()).await;
            Ok(answer)
        }
    }
}

pub async fn node(
    context: &Context,
    request: Request<DrainNodeRequest>,
) -> Result<Response<DrainNodeResponse>, Status> {
    match context.place(request.metadata())? {
        Place::Here => {
            let DrainNodeRequest { node: typed, cancel } = request.into_inner();
            let node = context.node_named(&typed)?;
            let subject = format!("node {typed}");
            context.admin(AdminRequest::DrainNode { node, cancel }, &subject).await?;
            Ok(context.answer(DrainNodeResponse { node: node.get() }))
        }
        Place::At(leader) => {
            let request = context.forwarded(request.into_inner());
            let answer = ClusterClient::new(leader).drain_node(request).await.map_err(passed_on)?;
            context.catch_up(answer.metadata()).await;
            Ok(answer)
        }
    }
}

pub async fn remove(
    context: &Context,
    request: Request<RemoveNodeRequest>,
) -> Result<Response<RemoveNodeResponse>, Status> {
    match context.place(request.metadata())? {
        Place::Here => {
            let RemoveNodeRequest { node: typed, force } = request.into_inner();
            let node = context.node_named(&typed)?;
            let subject = format!("node {typed}");
            context.admin(AdminRequest::RemoveNode { node, force }, &subject).await?;
            Ok(context.answer(RemoveNodeResponse { node: node.get() }))
        }
        Place::At(leader) => {
            let request = context.forwarded(request.into_inner());
            let answer =
                ClusterClient::new(leader).remove_node(request).await.map_err(passed_on)?;
            context.catch_up(answer.metadata()).await;
            Ok(answer)
        }
    }
}

/// By its id, or by its path on that node, or anywhere if no node is named.
fn find_disk(context: &Context, typed: &str, node: &str) -> Result<(DiskId, NodeId), Status> {
    let node = if node.is_empty() { None } else { Some(context.node_named(node)?) };
    let id = typed.parse::<u32>().ok().map(DiskId::new);
    let found: Vec<(DiskId, NodeId)> = context.map.read_map(|map| {
        let fits = |(disk, entry): &(&DiskId, &cluster::DiskEntry)| {
            let named = id.map_or(entry.path == typed, |id| id == **disk);
            named && node.is_none_or(|node| node == entry.node)
        };
        map.disks().iter().filter(fits).map(|(disk, entry)| (*disk, entry.node)).collect()
    });
    let refused = |code, what: String, next| {
        Err(ErrorDetail::of(code, what, next).about(typed).into_status())
    };
    match found[..] {
        [found] => Ok(found),
        [] => {
            let what = format!("there is no disk {typed}");
            refused(ErrorCode::NoDisk, what, "see `gabion disk list`")
        }
        [..] => {
            let what = format!("{} disks have the path {typed}", found.len());
            refused(ErrorCode::BadRequest, what, "name the node with --node, or give the disk's id")
        }
    }
}

pub fn of_disk(map: &Map, disk: DiskId) -> Drain {
    if !map.is_draining(disk) {
        Drain::Unspecified
    } else if map.is_empty_disk(disk) {
        Drain::Drained
    } else {
        Drain::Draining
    }
}

pub fn suspect_blocks(entry: &cluster::DiskEntry) -> Option<u64> {
    match entry.drain?.why {
        DrainReason::Operator => None,
        DrainReason::Suspect { corrupt_blocks } => Some(corrupt_blocks),
    }
}

pub fn of_node(entry: &cluster::NodeEntry) -> Drain {
    match entry.drain {
        None => Drain::Unspecified,
        Some(drain) if drain.done => Drain::Drained,
        Some(_) => Drain::Draining,
    }
}

/// What is left to do before a node is drained. `disks`: of all nodes.
pub fn waits(map: &Map, told: &Told, node: NodeId, disks: &[Disk]) -> Vec<String> {
    if map.node(node).is_none_or(|entry| entry.drain.is_none()) {
        return Vec::new();
    }
    let here = disks.iter().filter(|disk| disk.node == node.get());
    let mut waits: Vec<String> = here.filter_map(copies_left).collect();
    let owned = map.volumes().values().filter(|v| v.owner.is_some_and(|(owner, _)| owner == node));
    waits.extend(owned.map(|volume| {
        let name = &volume.spec.name;
        match told.volume(volume).map_or(0, |told| told.guests) {
            0 => format!("it owns volume {name}, and is about to hand it over"),
            guests => format!(
                "it owns volume {name} for {}: move or stop them, and another node takes it",
                counted(guests, "guest", "guests")
            ),
        }
    }));
    waits
}

fn copies_left(disk: &Disk) -> Option<String> {
    let Disk { id, replicas, to_drop, .. } = disk;
    (disk.drain() == Drain::Draining).then(|| match replicas {
        0 => format!("disk {id} has {} to drop", counted(*to_drop, "copy", "copies")),
        left => format!("disk {id} has {} left", counted(*left, "copy", "copies")),
    })
}

/// For `status`.
pub fn notes(nodes: &[Node]) -> Vec<String> {
    let mut notes = Vec::new();
    for node in nodes {
        let name = &node.name;
        match node.drain() {
            Drain::Draining => {
                notes
                    .push(format!("node {name} is being drained: {}", node.drain_waits.join("; ")));
                continue;
            }
            Drain::Drained => {
                notes.push(safe_to_take(format!("node {name}")));
                continue;
            }
            Drain::Unspecified => {}
        }
        for disk in &node.disks {
            let what = || format!("disk {} ({}) on node {name}", disk.id, disk.path);
            notes.extend(match disk.drain() {
                Drain::Unspecified => None,
                Drain::Drained => Some(safe_to_take(what())),
                Drain::Draining => {
                    copies_left(disk).map(|left| format!("{} is being drained: {left}", what()))
                }
            });
        }
    }
    notes
}

/// For `status`: copies that move to level the disks.
pub fn levelling(map: &Map) -> Option<String> {
    let volumes = || map.volumes().values().filter(|volume| !volume.moving.is_empty());
    let copies: u64 = volumes().map(|v| u64::try_from(v.moving.len()).unwrap_or(u64::MAX)).sum();
    let names: Vec<&str> = volumes().map(|volume| volume.spec.name.as_str()).take(8).collect();
    (copies > 0).then(|| {
        let copies = counted(copies, "copy moves", "copies move");
        format!(
            "disks are being levelled: {copies} to emptier ones, of volumes {}",
            names.join(", ")
        )
    })
}

fn safe_to_take(what: impl Display) -> String {
    format!("{what} is drained: nothing is left on it, it is safe to take it away")
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
