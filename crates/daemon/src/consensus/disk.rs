//! The file in which a node keeps its part of the consensus: who it is, its vote, the log, the last
//! snapshot of the map.

use crate::consensus::types::{Entry, LogId, SnapshotMeta, TypeConfig, Vote};
use bytes::Bytes;
use gabion_types::{ClusterId, NodeId};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot_meta";
const SNAPSHOT: &str = "snapshot";

/// What this version writes into `Identity::version`.
const FILE_VERSION: u32 = 1;
/// Memory for pages of the file. Units: bytes.
const CACHE_BYTES: usize = 16 << 20;
/// One read of the log for a peer gives at most so many bytes (but at least one entry).
const READ_BYTES_MAX: usize = 1 << 20;

/// Who this node is: it stands in the consensus log's own file, so that who lost the log is a new
/// node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    version: u32,
    cluster: [u8; 16],
    node: NodeId,
}

impl Identity {
    pub fn new(cluster: ClusterId, node: NodeId) -> Self {
        Self { version: FILE_VERSION, cluster: cluster.bytes(), node }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: redb::Error },
    #[error("{path}: {error}", path = path.display())]
    Directory { path: PathBuf, error: std::io::Error },
    #[error(
        "{path} belongs to node {found} and the configuration says node {expected}; give each node \
         a directory of its own", path = path.display()
    )]
    OtherNode { path: PathBuf, found: u32, expected: u32 },
    #[error(
        "{path} belongs to cluster {found} and the configuration says {expected}; use another \
         directory", path = path.display()
    )]
    OtherCluster { path: PathBuf, found: ClusterId, expected: ClusterId },
    #[error("{path} was written by a newer version ({version}) of Gabion", path = path.display())]
    TooNew { path: PathBuf, version: u32 },
    #[error("{path}: {error}; the file is damaged", path = path.display())]
    Damaged { path: PathBuf, error: serde_json::Error },
}

/// Why one read or write failed. openraft stops for good on any of them.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    File(#[from] redb::Error),
    #[error("the consensus file is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("the thread that wrote the consensus file ended")]
    Ended,
}

/// Shared by the log, the state machine and the readers of the log. One write at a time.
#[derive(Clone)]
pub struct ConsensusDisk {
    database: Arc<Database>,
}

impl ConsensusDisk {
    /// Opens or makes `dir/consensus.redb`.
    ///
    /// Errors: it belongs to another node or cluster, or it cannot be read.
    pub fn open(dir: &Path, identity: Identity) -> Result<Self, DiskError> {
        std::fs::create_dir_all(dir)
            .map_err(|error| DiskError::Directory { path: dir.to_owned(), error })?;
        let path = dir.join("consensus.redb");
        let file = |error: redb::Error| DiskError::File { path: path.clone(), error };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|error| file(error.into()))?;
        let disk = Self { database: Arc::new(database) };
        let found = disk.identity(identity).map_err(|error| match error {
            AccessError::File(error) => file(error),
            AccessError::Damaged(error) => DiskError::Damaged { path: path.clone(), error },
            AccessError::Ended => unreachable!("no thread takes part"),
        })?;
        if found.version > FILE_VERSION {
            return Err(DiskError::TooNew { path, version: found.version });
        }
        if found.cluster != identity.cluster {
            let (found, expected) = (found.cluster, identity.cluster);
            let (found, expected) = (ClusterId::new(found), ClusterId::new(expected));
            return Err(DiskError::OtherCluster { path, found, expected });
        }
        if found.node != identity.node {
            let (found, expected) = (found.node.get(), identity.node.get());
            return Err(DiskError::OtherNode { path, found, expected });
        }
        Ok(disk)
    }

    /// Whether a directory holds a consensus file already.
    pub fn exists(dir: &Path) -> bool {
        dir.join("consensus.redb").exists()
    }

    /// The file's name, and its directory's, are there after a power cut.
    pub fn sync_directories(dir: &Path) -> Result<(), DiskError> {
        let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
        let failed = |error| DiskError::Directory { path: dir.to_owned(), error };
        dir.ancestors().take(2).try_for_each(sync).map_err(failed)
    }

    /// How many others hold the file open in this process.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.database)
    }

    /// The identity that stands in the file; the given one if it is new.
    fn identity(&self, identity: Identity) -> Result<Identity, AccessError> {
        let found = write(&self.database, Durability::Immediate, |transaction| {
            transaction.open_table(LOG)?;
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(IDENTITY)?.map(|bytes| bytes.value().to_vec());
            if found.is_none() {
                meta.insert(IDENTITY, encode(&identity).as_slice())?;
            }
            Ok(found)
        })?;
        found.map_or(Ok(identity), |bytes| Ok(serde_json::from_slice(&bytes)?))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, AccessError> + Send + 'static,
    ) -> Result<T, AccessError> {
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || work(&database))
            .await
            .map_err(|_| AccessError::Ended)?
    }

    async fn meta<T: DeserializeOwned + Send + 'static>(
        &self,
        key: &'static str,
    ) -> Result<Option<T>, AccessError> {
        self.run(move |database| {
            let bytes = read(database, |transaction| {
                let meta = transaction.open_table(META)?;
                Ok(meta.get(key)?.map(|bytes| bytes.value().to_vec()))
            })?;
            bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose().map_err(Into::into)
        })
        .await
    }

    async fn set_meta(
        &self,
        key: &'static str,
        value: Vec<u8>,
        durability: Durability,
    ) -> Result<(), AccessError> {
        self.run(move |database| {
            write(database, durability, |transaction| {
                transaction.open_table(META)?.insert(key, value.as_slice())?;
                Ok(())
            })
        })
        .await
    }

    pub async fn vote(&self) -> Result<Option<Vote>, AccessError> {
        self.meta(VOTE).await
    }

    /// Durable: when it returns.
    pub async fn save_vote(&self, vote: &Vote) -> Result<(), AccessError> {
        self.set_meta(VOTE, encode(vote), Durability::Immediate).await
    }

    pub async fn committed(&self) -> Result<Option<LogId>, AccessError> {
        Ok(self.meta::<Option<LogId>>(COMMITTED).await?.flatten())
    }

    /// Durable: with the next write that is. It may be lost, for the leader tells it again; it never
    /// runs ahead of the log, for the file keeps the order of its writes.
    pub async fn save_committed(&self, committed: Option<LogId>) -> Result<(), AccessError> {
        self.set_meta(COMMITTED, encode(&committed), Durability::None).await
    }

    /// The last entry that was purged, and the last that there is (or was).
    pub async fn ends(&self) -> Result<(Option<LogId>, Option<LogId>), AccessError> {
        let purged = self.meta::<LogId>(PURGED).await?;
        let last = self
            .run(|database| {
                let bytes = read(database, |transaction| {
                    let log = transaction.open_table(LOG)?;
                    Ok(log.last()?.map(|(_, bytes)| bytes.value().to_vec()))
                })?;
                decode_entry(bytes)
            })
            .await?;
        Ok((purged, last.map(|entry| entry.log_id).or(purged)))
    }

    /// Entries in order; with `bounded` it may end early, but never before the first.
    pub async fn entries<R: RangeBounds<u64>>(
        &self,
        range: R,
        bounded: bool,
    ) -> Result<Vec<Entry>, AccessError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.run(move |database| {
            let found = read(database, |transaction| read_range(transaction, range, bounded))?;
            found.iter().map(|bytes| Ok(serde_json::from_slice(bytes)?)).collect()
        })
        .await
    }

    /// Durable: when it returns.
    pub async fn append(&self, entries: Vec<Entry>) -> Result<(), AccessError> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                let mut log = transaction.open_table(LOG)?;
                for entry in &entries {
                    log.insert(entry.log_id.index, encode(entry).as_slice())?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Takes away the entries from `index` on. Durable: when it returns.
    pub async fn truncate(&self, index: u64) -> Result<(), AccessError> {
        self.remove(index.., None).await
    }

    /// Takes away the entries up to `last`. Durable: when it returns.
    pub async fn purge(&self, last: LogId) -> Result<(), AccessError> {
        self.remove(..=last.index, Some(last)).await
    }

    async fn remove<R: RangeBounds<u64> + Send + 'static>(
        &self,
        range: R,
        purged: Option<LogId>,
    ) -> Result<(), AccessError> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                transaction.open_table(LOG)?.retain_in::<u64, _>(range, |_, _| false)?;
                if let Some(purged) = purged {
                    transaction.open_table(META)?.insert(PURGED, encode(&purged).as_slice())?;
                }
                Ok(())
            })
        })
        .await
    }

    pub async fn snapshot(&self) -> Result<Option<(SnapshotMeta, Bytes)>, AccessError> {
        let Some(meta) = self.meta(SNAPSHOT_META).await? else { return Ok(None) };
        let data = self
            .run(|database| {
                read(database, |transaction| {
                    let meta = transaction.open_table(META)?;
                    Ok(meta.get(SNAPSHOT)?.map(|bytes| Bytes::copy_from_slice(bytes.value())))
                })
            })
            .await?;
        Ok(data.map(|data| (meta, data)))
    }

    /// Durable: when it returns. One that was built meanwhile never takes the place of a newer one
    /// that was installed.
    pub async fn save_snapshot(&self, meta: &SnapshotMeta, data: Bytes) -> Result<(), AccessError> {
        let newest = self.meta::<SnapshotMeta>(SNAPSHOT_META).await?;
        if newest.is_some_and(|newest| newest.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        let head = encode(meta);
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                let mut meta = transaction.open_table(META)?;
                meta.insert(SNAPSHOT_META, head.as_slice())?;
                meta.insert(SNAPSHOT, data.as_ref())?;
                Ok(())
            })
        })
        .await
    }
}

fn read_range(
    transaction: &redb::ReadTransaction,
    range: (Bound<u64>, Bound<u64>),
    bounded: bool,
) -> Result<Vec<Vec<u8>>, redb::Error> {
    let log = transaction.open_table(LOG)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in log.range::<u64>(range)? {
        let value = entry?.1.value().to_vec();
        bytes += value.len();
        if bounded && !found.is_empty() && bytes > READ_BYTES_MAX {
            break;
        }
        found.push(value);
    }
    Ok(found)
}

fn read<T>(
    database: &Database,
    work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
) -> Result<T, AccessError> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    Ok(work(&transaction)?)
}

fn write<T>(
    database: &Database,
    durability: Durability,
    work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, AccessError> {
    let mut transaction = database.begin_write().map_err(redb::Error::from)?;
    transaction.set_durability(durability).map_err(redb::Error::from)?;
    let result = work(&transaction)?;
    transaction.commit().map_err(redb::Error::from)?;
    Ok(result)
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and no failing parts")
}

fn decode_entry(bytes: Option<Vec<u8>>) -> Result<Option<Entry>, AccessError> {
    Ok(bytes
        .map(|bytes| serde_json::from_slice::<openraft::Entry<TypeConfig>>(&bytes))
        .transpose()?)
}
