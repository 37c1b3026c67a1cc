//! A cluster whose nodes have all lost their consensus logs gets new ones: each holds the same map, which
//! was made from the disks.

use crate::consensus::disk::{AccessError, ConsensusDisk, DiskError, Identity as LogIdentity};
use crate::consensus::types::{LogId, SnapshotMeta, StoredMembership, Vote};
use crate::home::{Home, HomeError};
use crate::identity::{Identity, IdentityError};
use crate::settings::Settings;
use bytes::Bytes;
use gabion_cluster::Map;
pub use gabion_cluster::salvage::{Doubt, FoundDisk, Known, KnownVolume, Salvage, salvage};
use gabion_types::NodeId;
use openraft::{BasicNode, CommittedLeaderId, Membership};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub mod majority;

/// The log is made here, and gets its name when it is whole.
const UNFINISHED: &str = "meta.recovering";

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Log(#[from] DiskError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("node {node} has its consensus log, in {dir}: what it knows is newer than what disks say; start it",
        dir = dir.display())]
    HasLog { node: u32, dir: PathBuf },
    #[error("node {node} has no consensus log in {dir}", dir = dir.display())]
    NoLog { node: u32, dir: PathBuf },
    #[error("the map cannot be written or read: {0}")]
    Map(serde_json::Error),
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// A node that does not run, and its disks as its identity knows them.
pub struct Stopped {
    pub settings: Settings,
    /// Every path that was ever made a disk of this node, and those that its configuration names.
    pub disks: Vec<PathBuf>,
    identity: Identity,
    _home: Home,
}

impl Stopped {
    /// Holds the node's directory, so that no process runs on it meanwhile. Errors: one does, the
    /// directory is not this node's, or it has its log.
    pub fn hold(settings: Settings) -> Result<Self, RecoverError> {
        let home = Home::hold(&settings.dir)?;
        let identity = Identity::of_initialised(&settings)?;
        let dir = settings.dir.join("meta");
        if ConsensusDisk::exists(&dir) {
            return Err(RecoverError::HasLog { node: settings.info.id.get(), dir });
        }
        let mut disks: Vec<_> = settings.disks.iter().map(|disk| disk.path.clone()).collect();
        disks.extend(identity.disks.iter().map(|disk| disk.path.clone()));
        disks.sort();
        disks.dedup();
        Ok(Self { settings, disks, identity, _home: home })
    }

    /// Gives it a log that holds this map. `term`: above every one that any log of this cluster knows,
    /// also one that is found again later; the first leader has the next. Durable: when it returns.
    ///
    /// Errors: it cannot be written; the node has no log then, and the call may be made again.
    pub async fn give(&mut self, term: u64, map: &Map) -> Result<(), RecoverError> {
        let Settings { info, dir, voters, .. } = &self.settings;
        let leader = voters.first().map_or(info.id, |voter| voter.id);
        let voters = voters
            .iter()
            .map(|voter| (u64::from(voter.id.get()), BasicNode::new(&voter.api)))
            .collect();
        let unfinished = write_log(&self.settings, (term, leader), voters, map).await?;
        let meta_dir = dir.join("meta");
        if meta_dir.exists() {
            std::fs::remove_dir_all(&meta_dir).map_err(failed(&meta_dir))?;
        }
        std::fs::rename(&unfinished, &meta_dir).map_err(failed(&meta_dir))?;
        ConsensusDisk::sync_directories(&meta_dir)?;
        self.identity.log_made = true;
        Ok(self.identity.write(&self.settings.dir)?)
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> RecoverError + use<> {
    let path = path.to_owned();
    move |error| RecoverError::Io { path, error }
}

/// A log that holds this map and nothing else, beside the node's own; where it is. Durable: when it returns.
async fn write_log(
    settings: &Settings,
    (term, leader): (u64, NodeId),
    voters: BTreeMap<u64, BasicNode>,
    map: &Map,
) -> Result<PathBuf, RecoverError> {
    let unfinished = settings.dir.join(UNFINISHED);
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(failed(&unfinished))?;
    }
    let leader = u64::from(leader.get());
    let last = LogId::new(CommittedLeaderId::new(term, leader), map.applied().get());
    let membership = Membership::new(vec![voters.keys().copied().collect()], voters);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), membership),
        snapshot_id: last.to_string(),
    };
    let data = serde_json::to_vec(map).map_err(RecoverError::Map)?;
    let identity = LogIdentity::new(settings.cluster, settings.info.id);
    let disk = ConsensusDisk::open(&unfinished, identity)?;
    disk.save_snapshot(&meta, Bytes::from(data)).await?;
    disk.purge(last).await?;
    disk.save_committed(Some(last)).await?;
    disk.save_vote(&Vote::new(term, leader)).await?;
    Ok(unfinished)
}
