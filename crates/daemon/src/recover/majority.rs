//! A majority of the voters is gone for good: the nodes that are left go on with the newest map that one of
//! their logs gives. What was decided without them is lost.

use super::{RecoverError, failed, write_log};
use crate::consensus::disk::{ConsensusDisk, Identity as LogIdentity};
use crate::consensus::types::LogId;
use crate::consensus::{Replica, apply};
use crate::home::Home;
use crate::identity::Identity;
use crate::settings::Settings;
use gabion_cluster::Map;
use gabion_types::NodeId;
use openraft::BasicNode;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A node that does not run, with its log.
pub struct Survivor {
    pub settings: Settings,
    /// Where its log ends.
    last: Option<LogId>,
    /// With all entries, also those of which it does not know that a majority has them: that may have had.
    replica: Replica,
    _home: Home,
}

/// Why the nodes that are here do not go on by themselves.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("no node was named")]
    Nobody,
    #[error("{here} of {voters} voters are here, which is a majority: start them")]
    Majority { here: usize, voters: usize },
    #[error("the voters that are not here are {missing:?}, and {typed:?} was typed")]
    OtherLost { missing: Vec<u32>, typed: Vec<u32> },
    #[error(
        "no log of those that are here knows node {0}: it never was of this cluster, or was removed"
    )]
    Unknown(u32),
}

/// What they go on with.
pub struct Plan {
    pub map: Map,
    voters: BTreeMap<u64, BasicNode>,
    /// Not removed: what only they have is held.
    pub kept: BTreeSet<NodeId>,
    /// Whose log it is.
    pub newest: NodeId,
}

impl Survivor {
    /// Holds the node's directory, so that no process runs on it meanwhile.
    ///
    /// Errors: one does, the directory is not this node's, or its log cannot be read.
    pub async fn hold(settings: Settings) -> Result<Self, RecoverError> {
        let home = Home::hold(&settings.dir)?;
        Identity::of_initialised(&settings)?;
        let dir = settings.dir.join("meta");
        if !ConsensusDisk::exists(&dir) {
            return Err(RecoverError::NoLog { node: settings.info.id.get(), dir });
        }
        let identity = LogIdentity::new(settings.cluster, settings.info.id);
        let disk = ConsensusDisk::open(&dir, identity)?;
        let (_, last) = disk.ends().await?;
        let mut replica = Replica::default();
        if let Some((meta, data)) = disk.snapshot().await? {
            replica.map = serde_json::from_slice(&data).map_err(RecoverError::Map)?;
            replica.last = meta.last_log_id;
            replica.membership = meta.last_membership;
        }
        let from = replica.last.map_or(0, |last| last.index + 1);
        for entry in disk.entries(from.., false).await? {
            apply(&mut replica, entry);
        }
        Ok(Self { settings, last, replica, _home: home })
    }

    fn id(&self) -> NodeId {
        self.settings.info.id
    }

    /// Its log has the plan's map from now on, and what it had before lies beside it. `term`: above every one
    /// that any log of this cluster knows. Durable: when it returns; the first that is given it leads.
    ///
    /// Errors: it cannot be written; the node has its old log then, or none, and the old one beside it.
    pub async fn go_on(&self, plan: &Plan, term: u64) -> Result<PathBuf, RecoverError> {
        let leader = plan.newest;
        let new = write_log(&self.settings, (term, leader), plan.voters.clone(), &plan.map).await?;
        let meta = self.settings.dir.join("meta");
        let before = self.settings.dir.join(format!("meta.before-{term}"));
        std::fs::rename(&meta, &before).map_err(failed(&meta))?;
        std::fs::rename(&new, &meta).map_err(failed(&new))?;
        ConsensusDisk::sync_directories(&meta)?;
        Ok(before)
    }
}

/// `lost`: as the operator typed them, all voters that are not here.
pub fn plan(survivors: &[Survivor], lost: &BTreeSet<NodeId>) -> Result<Plan, Refused> {
    let newest = survivors.iter().max_by_key(|survivor| survivor.last).ok_or(Refused::Nobody)?;
    let here: BTreeSet<NodeId> = survivors.iter().map(Survivor::id).collect();
    let voters = newest.replica.voters();
    let missing: BTreeSet<NodeId> = voters.difference(&here).copied().collect();
    let there = voters.len() - missing.len();
    if there > missing.len() {
        return Err(Refused::Majority { here: there, voters: voters.len() });
    }
    if missing != *lost {
        return Err(Refused::OtherLost { missing: numbers(&missing), typed: numbers(lost) });
    }
    let mut map = newest.replica.map.clone();
    let api = |id: &NodeId| {
        let node = map.node(*id).ok_or(Refused::Unknown(id.get()))?;
        Ok((u64::from(id.get()), BasicNode::new(&node.info.api)))
    };
    let voters = here.iter().map(api).collect::<Result<_, _>>()?;
    let kept = map.go_on_without(lost);
    Ok(Plan { map, voters, kept, newest: newest.id() })
}

fn numbers(ids: &BTreeSet<NodeId>) -> Vec<u32> {
    ids.iter().map(|id| id.get()).collect()
}
