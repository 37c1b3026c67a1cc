//! Our own timers for heartbeats and elections.
//!
//! openraft 0.9 draws its election timeout once a process: two nodes that drew close to each other
//! would collide at every election. So its own elections are off; here the time is drawn anew for
//! each, and before a node stands for election it asks the others whether they would vote for it. A node
//! that was cut off does not depose a leader that the others hear.

use crate::consensus::disk::ConsensusDisk;
use crate::consensus::network::{Network, VoteAnswer, VoteAsk};
use crate::consensus::types::{LogId, Raft};
use gabion_types::Prng;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Between two heartbeats of a leader.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
/// A leader counts as heard for so long; no one votes for another meanwhile. It is what openraft is
/// told as its longest election timeout, too.
pub const LEADER_HEARD_MS: u64 = 1000;
/// Nobody was heard to lead for so long: there is no majority, as far as this node can know, and what
/// owners hold by their leases has run out.
const NOBODY_LEADS_MS: u64 = 3000;
/// The time of silence after which a node stands for election is drawn between the two.
const ELECTION_MS: (u64, u64) = (1000, 2000);
/// Who has not said whether it would vote by then, would not.
const PRE_VOTE_WAIT: Duration = Duration::from_millis(300);
/// Who was asked by a leader that retires stands so soon after the last word of that leader, when the
/// others may vote, too.
const ASKED_MS: u64 = LEADER_HEARD_MS + 50;
/// So long the asking counts.
const ASKED_FOR: Duration = Duration::from_secs(3);
/// How often is looked whether anything changed, where something may at any moment. A look costs openraft
/// as much as a message.
const LOOK: Duration = Duration::from_millis(25);

/// What a node knows of the leadership at a moment.
struct Heard {
    leading: bool,
    voters: Vec<u64>,
    /// When the leader was last heard; never, if there was none in this term.
    leader: Option<Instant>,
}

/// Errors: `None` when openraft has stopped.
async fn heard(raft: &Raft, me: u64) -> Option<Heard> {
    let state = raft.with_raft_state(move |state| {
        let vote = *state.vote_ref();
        let membership = state.membership_state.effective();
        Heard {
            leading: vote.is_committed() && vote.leader_id().voted_for() == Some(me),
            voters: membership.voter_ids().collect(),
            leader: state.vote_last_modified().filter(|_| vote.is_committed()),
        }
    });
    state.await.ok()
}

/// Whether this node would vote for a node whose log ends at `last`: that log is not behind its own,
/// and it has not heard a leader for a while.
pub async fn would_vote(raft: &Raft, disk: &ConsensusDisk, last: Option<LogId>) -> bool {
    let metrics = raft.metrics().borrow().clone();
    let Some(heard) = heard(raft, metrics.id).await else { return false };
    let Ok((_, own)) = disk.ends().await else { return false };
    let quiet = if heard.leading {
        metrics.millis_since_quorum_ack.is_none_or(|ms| ms > LEADER_HEARD_MS)
    } else {
        heard.leader.is_none_or(|at| at.elapsed() > Duration::from_millis(LEADER_HEARD_MS))
    };
    quiet && last >= own
}

/// What the rest of the node is told, and tells.
pub struct Signals {
    /// Whether somebody leads a majority, as far as this node can know.
    pub led: watch::Sender<bool>,
    /// This node is about to stop. openraft hands no lead over, so a leader falls silent as one and
    /// goes on with its work, until the others have elected another; nobody waits for that.
    pub retires: watch::Receiver<bool>,
    /// When a leader that retires asked this node to stand for election.
    pub asked: watch::Receiver<Option<Instant>>,
    /// Another voter said that this node was removed.
    pub removed: watch::Sender<bool>,
}

/// Runs until openraft stops.
pub async fn run(
    raft: Raft,
    disk: ConsensusDisk,
    network: Network,
    me: u64,
    mut prng: Prng,
    mut signals: Signals,
) {
    let mut quiet_since = Instant::now();
    let mut timeout = draw(&mut prng);
    while let Some(heard) = heard(&raft, me).await {
        let leads = is_led(&raft, &heard);
        signals.led.send_if_modified(|led| std::mem::replace(led, leads) != leads);
        if *signals.retires.borrow() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        if heard.leading {
            if raft.trigger().heartbeat().await.is_err() {
                return;
            }
            quiet_since = Instant::now();
            tokio::time::sleep(HEARTBEAT).await;
            continue;
        }
        quiet_since = heard.leader.map_or(quiet_since, |at| at.max(quiet_since));
        let asked = signals.asked.borrow().is_some_and(|at| at.elapsed() < ASKED_FOR);
        let silent = quiet_since.elapsed();
        if silent >= timeout || (asked && silent >= Duration::from_millis(ASKED_MS)) {
            timeout = draw(&mut prng);
            let Ok((_, last)) = disk.ends().await else { return };
            let stands = match majority_would_vote(&network, me, &heard.voters, last).await {
                Word::Yes => true,
                Word::No => false,
                Word::Removed => {
                    signals.removed.send_replace(true);
                    return;
                }
            };
            if stands {
                tracing::info!(silent_ms = ms(silent), asked, "standing for election");
                if raft.trigger().elect().await.is_err() {
                    return;
                }
            }
            if stands || !asked {
                quiet_since = Instant::now();
            }
        }
        let due =
            if leads && !asked { timeout.saturating_sub(quiet_since.elapsed()) } else { LOOK };
        signals.rest(due.max(LOOK)).await;
    }
}

impl Signals {
    /// For so long, or until something is asked of this node.
    async fn rest(&mut self, most: Duration) {
        let told = async {
            tokio::select! {
                Ok(()) = self.retires.changed() => {}
                Ok(()) = self.asked.changed() => {}
                else => std::future::pending().await,
            }
        };
        let _over = tokio::time::timeout(most, told).await;
    }
}

fn is_led(raft: &Raft, heard: &Heard) -> bool {
    if heard.leading {
        let acknowledged = raft.metrics().borrow().millis_since_quorum_ack;
        acknowledged.is_none_or(|ms| ms < NOBODY_LEADS_MS)
    } else {
        let most = Duration::from_millis(NOBODY_LEADS_MS);
        heard.leader.is_some_and(|at| at.elapsed() < most)
    }
}

fn draw(prng: &mut Prng) -> Duration {
    Duration::from_millis(prng.between(ELECTION_MS.0, ELECTION_MS.1))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Asks one of the other voters to stand for election, the lowest that answers: false if none does.
pub async fn ask_another(raft: &Raft, network: &Network, me: u64) -> bool {
    let voters = raft.with_raft_state(|state| {
        state.membership_state.effective().voter_ids().collect::<Vec<_>>()
    });
    for voter in voters.await.into_iter().flatten().filter(|voter| *voter != me) {
        let link = network.to(voter);
        let answer = tokio::time::timeout(PRE_VOTE_WAIT, link.ask(&VoteAsk::Stand)).await;
        if matches!(answer, Ok(Some(VoteAnswer::Stands))) {
            return true;
        }
    }
    false
}

/// What the others say to a node that wants to stand for election.
enum Word {
    Yes,
    No,
    /// It is none of the cluster's any more: the word of one is enough, for it is the map's.
    Removed,
}

async fn majority_would_vote(
    network: &Network,
    me: u64,
    voters: &[u64],
    last: Option<LogId>,
) -> Word {
    let votes = voters.contains(&me);
    let mut asked = JoinSet::new();
    // A node that was never sent the log knows nobody but by its configuration.
    let whom = if voters.is_empty() { network.others() } else { voters.to_vec() };
    for voter in whom.into_iter().filter(|voter| *voter != me) {
        let link = network.to(voter);
        asked.spawn(async move {
            let ask = VoteAsk::Pre { last };
            tokio::time::timeout(PRE_VOTE_WAIT, link.ask(&ask)).await.ok().flatten()
        });
    }
    // Who has no vote asks all the same: one that was removed meanwhile is told so.
    let needed = if votes { voters.len() / 2 + 1 } else { usize::MAX };
    let mut granted = 1;
    while granted < needed {
        match asked.join_next().await {
            Some(Ok(Some(VoteAnswer::Pre { yes: true }))) => granted += 1,
            Some(Ok(Some(VoteAnswer::Removed))) => return Word::Removed,
            Some(_) => {}
            None => return Word::No,
        }
    }
    Word::Yes
}
