//! Who is connected to a volume, and how an operator ends that.

use crate::control::ask::Context;
use crate::control::errors::no_volume;
use gabion_api::v1::{
    ClientsResponse, ErrorCode, ErrorDetail, EvictRequest, EvictResponse, LocalEvictRequest,
    VolumeClient,
};
use gabion_cluster::{AdminRequest, VolumeEntry};
use gabion_types::NodeId;
use std::collections::BTreeSet;
use tonic::Status;

pub async fn of(context: &Context, name: &str) -> Result<ClientsResponse, Status> {
    let told = context.told_by_all().await;
    let find = |entry: &VolumeEntry| (entry.id, numbers(&entry.barred));
    let found = context.map.read_map(|map| {
        let nodes: Vec<NodeId> = map.nodes().keys().copied().collect();
        map.volume_by_name(name).map(|entry| (find(entry), nodes))
    });
    let ((id, kept_out), nodes) = found.ok_or_else(|| told.no_volume(name))?;
    let silent = nodes.iter().filter(|node| !told.nodes.contains_key(node));
    let clients = told.nodes.iter().flat_map(|(node, told)| {
        let here = told.clients.iter().filter(|client| client.volume == id.get());
        here.map(|client| VolumeClient {
            id: format!("{}-{}", node.get(), client.guest),
            node: node.get(),
            protocol: client.protocol.clone(),
            from: client.from.clone(),
            connected_ms: client.connected_ms,
            waiting: client.waiting,
        })
    });
    let clients = clients.collect();
    Ok(ClientsResponse { clients, silent: silent.map(|node| node.get()).collect(), kept_out })
}

/// On the leader. All: also what a node may have that does not answer now, for that is where a guest
/// may be that nobody hears of.
pub async fn evict(context: &Context, request: EvictRequest) -> Result<EvictResponse, Status> {
    let EvictRequest { name, client, let_back } = request;
    let there = of(context, &name).await?;
    if !client.is_empty() {
        return evict_one(context, &name, &client, &there).await;
    }
    let mut nodes: BTreeSet<u32> = BTreeSet::new();
    let inside = there.clients.iter().filter(|client| !client.waiting);
    let mut clients = 0;
    if !let_back {
        nodes.extend(&there.silent);
        nodes.extend(inside.clone().map(|client| client.node));
        clients = u32::try_from(inside.count()).unwrap_or(u32::MAX);
    }
    let barred = nodes.into_iter().map(NodeId::new).collect();
    let request = AdminRequest::EvictGuests { name: name.clone(), barred, let_back };
    context.admin(request, &name).await?;
    let barred = |entry: &VolumeEntry| numbers(&entry.barred);
    let kept_out = context.map.read_map(|map| map.volume_by_name(&name).map(barred));
    Ok(EvictResponse { clients, kept_out: kept_out.unwrap_or_default() })
}

async fn evict_one(
    context: &Context,
    name: &str,
    client: &str,
    there: &ClientsResponse,
) -> Result<EvictResponse, Status> {
    let none = || {
        let what = format!("{name} has no client {client}");
        ErrorDetail::of(ErrorCode::NoClient, what, "see `gabion volume clients`")
            .about(client)
            .into_status()
    };
    let known = there.clients.iter().find(|known| known.id == client).ok_or_else(none)?;
    let guest = client.split_once('-').and_then(|(_, guest)| guest.parse().ok());
    let guest = guest.ok_or_else(none)?;
    let volume = context.map.read_map(|map| map.volume_by_name(name).map(|entry| entry.id.get()));
    let volume = volume.ok_or_else(|| no_volume(name).into_status())?;
    let request = LocalEvictRequest { guest, volume };
    match context.evicted_by(NodeId::new(known.node), request).await {
        Some(true) => Ok(EvictResponse { clients: 1, kept_out: there.kept_out.clone() }),
        Some(false) => Err(none()),
        None => {
            let what = format!("node {} does not answer now", known.node);
            let next = "evict all clients: those of a node that does not answer are cut off, too";
            Err(ErrorDetail::of(ErrorCode::Unreachable, what, next).about(client).into_status())
        }
    }
}

fn numbers(nodes: &BTreeSet<NodeId>) -> Vec<u32> {
    nodes.iter().map(|node| node.get()).collect()
}
