//! New nodes: a token is looked at by whoever is asked, and counted by the leader.

use crate::control::ask::{Context, Place, passed_on};
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_api::v1::{ErrorCode, ErrorDetail, JoinRequest, JoinResponse, JoinedVoter};
use gabion_cluster::{AdminRequest, Map, NodeInfo, Ticket};
use gabion_types::NodeId;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::{Request, Response, Status};

const ANOTHER: &str = "make another with `gabion cluster token` on a member of this cluster";

pub async fn join(
    context: &Context,
    request: Request<JoinRequest>,
) -> Result<Response<JoinResponse>, Status> {
    let asked = request.get_ref();
    let ticket = Ticket { token: asked.token, expires_ms: asked.expires_ms };
    let token = context.peers.join_token(ticket);
    if !token.is_request(asked) {
        let what = "the token is none of this cluster's, or it was changed on its way";
        return Err(ErrorDetail::of(ErrorCode::WrongSecret, what, ANOTHER).into_status());
    }
    match context.place(request.metadata())? {
        Place::Here => {
            let info = admit(context, ticket, request.into_inner()).await?;
            let voters = context.voters();
            let answer = context.map.read_map(|map| answer(map, &voters, &info));
            let answer = context.peers.seal(&token, answer);
            Ok(context.answer(answer))
        }
        Place::At(leader) => {
            let request = context.forwarded(request.into_inner());
            let answer = ClusterClient::new(leader).join(request).await.map_err(passed_on)?;
            context.catch_up(answer.metadata()).await;
            Ok(answer)
        }
    }
}

async fn admit(context: &Context, ticket: Ticket, asked: JoinRequest) -> Result<NodeInfo, Status> {
    let at_ms = unix_ms();
    if ticket.expires_ms <= at_ms {
        let ago = at_ms.abs_diff(ticket.expires_ms).div_ceil(1000);
        let what = format!("the token has expired, {ago} s ago by this node's clock");
        return Err(ErrorDetail::of(ErrorCode::TokenVoid, what, ANOTHER).into_status());
    }
    let JoinRequest { name, peer, api, nbd, http, zone, .. } = asked;
    let subject = format!("node {name}");
    let above = context.peers.highest().get().saturating_add(1);
    let info = NodeInfo { id: NodeId::new(above), name, peer, api, nbd, http, zone };
    context.admin(AdminRequest::AdmitNode { ticket, at_ms, info }, &subject).await?;
    let found = context.map.read_map(|map| map.admitted_by(ticket.token).cloned());
    found.ok_or_else(|| {
        let what = format!("{subject} was let in, and this node does not know it yet");
        ErrorDetail::of(ErrorCode::TimedOut, what, "try again").into_status()
    })
}

fn answer(map: &Map, voters: &BTreeSet<NodeId>, info: &NodeInfo) -> JoinResponse {
    let voter = |id: &NodeId| {
        let NodeInfo { name, api, peer, nbd, http, .. } = map.node(*id)?.info.clone();
        Some(JoinedVoter { node: id.get(), name, api, peer, nbd, http })
    };
    JoinResponse {
        cluster_id: map.cluster().map_or_else(String::new, |cluster| cluster.to_string()),
        node: info.id.get(),
        segment_bytes: map.limits().segment.bytes(),
        voters: voters.iter().filter_map(voter).collect(),
        ..JoinResponse::default()
    }
}

/// For `status`: who was let in and has not started.
pub fn notes(map: &Map) -> Vec<String> {
    let note = |info: &NodeInfo| {
        let (id, name) = (info.id.get(), &info.name);
        format!(
            "node {name} was let in as node {id} and has not started yet; if it never will: `gabion \
             node remove {id}`"
        )
    };
    map.awaited().map(note).collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
