//! Voters that the map has removed leave the consensus, too: by the word of its leader.

use crate::consensus::SharedMap;
use crate::consensus::types::Raft;
use gabion_types::NodeId;
use openraft::ChangeMembers;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often it is looked at, beside each change of the map: an earlier leader may have got half way.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until openraft stops. Two steps of the log: both the old and the new voters agree on the first.
pub async fn follow_map(raft: Raft, map: SharedMap, me: u64) {
    let mut applied = map.applied();
    loop {
        applied.mark_unchanged();
        let Some(gone) = removed_voters(&raft, &map, me).await else { return };
        if !gone.is_empty() {
            let change = ChangeMembers::RemoveVoters(gone.clone());
            match raft.change_membership(change, false).await {
                Ok(_) => tracing::info!(?gone, "voters that were removed vote no more"),
                Err(error) => tracing::warn!(%error, ?gone, "removed voters still vote"),
            }
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// As the leader sees them; nobody else has anything to do. Errors: `None` when openraft has stopped.
async fn removed_voters(raft: &Raft, map: &SharedMap, me: u64) -> Option<BTreeSet<u64>> {
    let voters = raft.with_raft_state(move |state| {
        let vote = *state.vote_ref();
        let leading = vote.is_committed() && vote.leader_id().voted_for() == Some(me);
        let voters = state.membership_state.effective().voter_ids().collect::<BTreeSet<_>>();
        if leading { voters } else { BTreeSet::new() }
    });
    let voters = voters.await.ok()?;
    let is_removed = |voter: &u64| {
        let id = u32::try_from(*voter).map(NodeId::new);
        id.is_ok_and(|id| map.read_map(|map| map.is_removed(id)))
    };
    Some(voters.into_iter().filter(is_removed).collect())
}
