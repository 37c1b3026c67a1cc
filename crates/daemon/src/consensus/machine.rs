//! openraft's state machine: the cluster map, in memory; its snapshots in our file.

use crate::consensus::disk::{AccessError, ConsensusDisk};
use crate::consensus::types::{
    Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::consensus::{Committed, SharedMap};
use bytes::Bytes;
use gabion_cluster::Map;
use gabion_types::{MapIndex, NodeId};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use std::collections::BTreeSet;
use tokio::sync::mpsc;

/// The map as of `last`, and who takes part in the consensus.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub map: Map,
    pub last: Option<LogId>,
    pub membership: StoredMembership,
}

impl Replica {
    /// They are being changed.
    pub fn voters_change(&self) -> bool {
        self.membership.membership().get_joint_config().len() > 1
    }

    /// Of the entry of the log that named them.
    pub fn voters_index(&self) -> MapIndex {
        MapIndex::new(self.membership.log_id().map_or(0, |id| id.index))
    }

    /// Whose vote counts; in the midst of a change of them, the old and the new ones.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let ids = self.membership.membership().voter_ids();
        ids.filter_map(|id| u32::try_from(id).ok()).map(NodeId::new).collect()
    }
}

/// Order: what is applied goes to `committed` in the order of the log, each index once from what it
/// had at the start; a snapshot that was installed takes the place of the entries that it covers.
pub struct Machine {
    disk: ConsensusDisk,
    shared: SharedMap,
    committed: mpsc::Sender<Committed>,
}

/// Takes a copy of the map when it runs: the log goes on meanwhile.
pub struct Builder {
    disk: ConsensusDisk,
    shared: SharedMap,
}

impl Machine {
    /// Begins with the last snapshot, which it tells at once.
    ///
    /// Errors: the snapshot cannot be read.
    pub async fn load(
        disk: ConsensusDisk,
        shared: SharedMap,
        committed: mpsc::Sender<Committed>,
    ) -> Result<Self, AccessError> {
        let machine = Self { disk, shared, committed };
        if let Some((meta, data)) = machine.disk.snapshot().await? {
            machine.restore(&meta, &data).await?;
        }
        Ok(machine)
    }

    async fn restore(&self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), AccessError> {
        let map: Map = serde_json::from_slice(data)?;
        let replica = Replica {
            map: map.clone(),
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        self.shared.replace(replica);
        if let Some(last) = meta.last_log_id {
            let index = MapIndex::new(last.index);
            self.tell(Committed::Restored { index, map: Box::new(map) }).await;
        }
        Ok(())
    }

    /// Waits while the data plane is behind; that holds back the log, and nothing else.
    async fn tell(&self, committed: Committed) {
        // Nobody listens any more only when the process stops.
        let _gone = self.committed.send(committed).await;
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok(self.shared.read(|replica| (replica.last, replica.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        for entry in entries {
            let told = self.shared.apply(entry);
            results.push(());
            if let Some(told) = told {
                self.tell(told).await;
            }
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { disk: self.disk.clone(), shared: self.shared.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Bytes>, StorageError> {
        Ok(Box::new(Bytes::new()))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Bytes>,
    ) -> Result<(), StorageError> {
        let failed = |error: AccessError| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error))
        };
        self.disk.save_snapshot(meta, (*snapshot).clone()).await.map_err(failed)?;
        self.restore(meta, &snapshot).await.map_err(failed)?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let found = self.disk.snapshot().await;
        let found =
            found.map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        Ok(found.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(data) }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let replica = self.shared.read(Replica::clone);
        let meta = SnapshotMeta {
            last_log_id: replica.last,
            last_membership: replica.membership,
            snapshot_id: replica.last.map_or_else(String::new, |last| last.to_string()),
        };
        let map = replica.map;
        let data = tokio::task::spawn_blocking(move || serde_json::to_vec(&map))
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        let data = Bytes::from(data);
        self.disk
            .save_snapshot(&meta, data.clone())
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        Ok(Snapshot { meta, snapshot: Box::new(data) })
    }
}

/// What an entry does to the map, and what the data plane is told of it.
pub(crate) fn apply(replica: &mut Replica, entry: Entry) -> Option<Committed> {
    replica.last = Some(entry.log_id);
    match entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(command) => {
            let index = MapIndex::new(entry.log_id.index);
            replica.map.apply(index, &command);
            Some(Committed::Entry { index, command })
        }
        EntryPayload::Membership(membership) => {
            replica.membership = StoredMembership::new(Some(entry.log_id), membership);
            None
        }
    }
}
