//! Who reads the log and who votes: what the map and `gabion_cluster::voters` say is carried out by the
//! leader, one step at a time.

use crate::consensus::SharedMap;
use crate::consensus::types::{Membership, Raft};
use gabion_cluster::voters::{Electorate, Readers, Reform};
use gabion_types::NodeId;
use openraft::{BasicNode, ChangeMembers};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked at, beside each change of the map: an earlier leader may have got half way.
const LOOK: Duration = Duration::from_secs(1);
/// Changes of the map are looked at no more often.
const PAUSE: Duration = Duration::from_millis(100);
/// A change that a majority has not taken by then is left to itself, and looked at again.
const CHANGE_MOST: Duration = Duration::from_secs(10);
/// Who lacks no more entries than that has the log.
const LAG_MAX: u64 = 64;

/// Runs until openraft stops.
pub async fn follow_map(raft: Raft, map: SharedMap, me: u64) {
    let Some(node) = node_id(me) else { return };
    let (started, mut applied) = (Instant::now(), map.applied());
    let mut electorate = Electorate::default();
    loop {
        applied.mark_unchanged();
        match readers(&raft, me).await {
            Seen::Stopped => return,
            // What it remembers of the others is of another time.
            Seen::NotLeading => electorate = Electorate::default(),
            Seen::Leading(readers) => {
                let now = gabion_types::Instant::ZERO + started.elapsed();
                let decide = |map: &_| electorate.next_reform(now, map, node, &readers);
                if let Some(reform) = map.read_map(decide) {
                    carry_out(&raft, &map, reform).await;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

enum Seen {
    Stopped,
    NotLeading,
    Leading(Readers),
}

/// As the leader sees them; nobody else has anything to do.
async fn readers(raft: &Raft, me: u64) -> Seen {
    let seen = raft.with_raft_state(move |state| {
        let vote = *state.vote_ref();
        let leading = vote.is_committed() && vote.leader_id().voted_for() == Some(me);
        leading.then(|| state.membership_state.effective().membership().clone())
    });
    match seen.await {
        Err(_) => Seen::Stopped,
        Ok(None) => Seen::NotLeading,
        Ok(Some(membership)) => Seen::Leading(of_membership(&membership, caught_up(raft, me))),
    }
}

fn of_membership(membership: &Membership, caught_up: BTreeSet<NodeId>) -> Readers {
    let configs = membership.get_joint_config();
    let ids = |ids: &BTreeSet<u64>| ids.iter().filter_map(|id| node_id(*id)).collect();
    Readers {
        voters: membership.voter_ids().filter_map(node_id).collect(),
        becomes: configs.last().filter(|_| configs.len() > 1).map(ids),
        learners: membership.learner_ids().filter_map(node_id).collect(),
        caught_up,
    }
}

/// Who has, by what the leader was answered, all of the log but a few entries.
fn caught_up(raft: &Raft, me: u64) -> BTreeSet<NodeId> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let last = metrics.last_log_index.unwrap_or(0);
    let near = |matched: u64| matched.saturating_add(LAG_MAX) >= last;
    let others = metrics.replication.iter().flatten();
    let others = others.filter(|(_, matched)| matched.is_some_and(|id| near(id.index)));
    others.map(|(id, _)| *id).chain([me]).filter_map(node_id).collect()
}

async fn carry_out(raft: &Raft, map: &SharedMap, reform: Reform) {
    let text = match &reform {
        Reform::AddLearner(id) => format!("node {} is sent the log", id.get()),
        Reform::Forget(ids) => {
            format!("nodes that were removed vote no more, and are sent no log: {ids:?}")
        }
        Reform::SetVoters(ids) => format!("these vote: {ids:?}; others vote no more"),
    };
    let change = match reform {
        Reform::AddLearner(id) => {
            let found = map.read_map(|map| {
                let api = map.log_readers().find(|(reader, _)| *reader == id);
                api.map(|(_, api)| BasicNode::new(api))
            });
            let Some(node) = found else { return };
            ChangeMembers::AddNodes(BTreeMap::from([(u64::from(id.get()), node)]))
        }
        Reform::Forget(ids) => ChangeMembers::RemoveNodes(raw(ids)),
        Reform::SetVoters(ids) => ChangeMembers::ReplaceAllVoters(raw(ids)),
    };
    let changed = tokio::time::timeout(CHANGE_MOST, raft.change_membership(change, true)).await;
    match changed {
        Ok(Ok(_)) => tracing::info!("{text}"),
        Ok(Err(error)) => tracing::warn!(%error, "not done yet: {text}"),
        Err(_) => tracing::warn!("no majority agrees yet: {text}"),
    }
}

fn raw(ids: BTreeSet<NodeId>) -> BTreeSet<u64> {
    ids.into_iter().map(|id| u64::from(id.get())).collect()
}

fn node_id(raw: u64) -> Option<NodeId> {
    u32::try_from(raw).ok().map(NodeId::new)
}
