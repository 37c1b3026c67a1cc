//! What is promised on each disk, kept beside the map: a rebuild changes members in thousands of entries, and each
//! of them asks where there is room.
//!
//! It is no part of the map: what `room::promised` comes to is the truth, and it is made of that whenever it is
//! not there. Changes of members keep it right; all others drop it.

use super::Map;
use super::room::{holders, promised};
use crate::command::Change;
use gabion_types::{DiskId, SegmentMembers};
use std::collections::BTreeMap;

/// Units: bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account(Option<BTreeMap<DiskId, u64>>);

/// Two maps are the same, whether it is there or not.
impl PartialEq for Account {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Account {
    pub(crate) fn get(&self) -> Option<&BTreeMap<DiskId, u64>> {
        self.0.as_ref()
    }

    pub(super) fn add(&mut self, disk: DiskId, bytes: u64) {
        if let Some(account) = &mut self.0 {
            let sum = account.entry(disk).or_insert(0);
            *sum = sum.saturating_add(bytes);
        }
    }

    fn take(&mut self, disk: DiskId, bytes: u64) {
        if let Some(account) = &mut self.0 {
            let sum = account.entry(disk).or_insert(0);
            *sum = sum.saturating_sub(bytes);
            if *sum == 0 {
                account.remove(&disk);
            }
        }
    }

    // rule: cluster/the-account-is-what-the-map-comes-to
    /// A segment has other members. Units: bytes of one copy.
    pub(super) fn replace(&mut self, before: &SegmentMembers, after: &SegmentMembers, bytes: u64) {
        holders(after).for_each(|disk| self.add(disk, bytes));
        holders(before).for_each(|disk| self.take(disk, bytes));
    }
}

/// No copy comes or goes by it, but by `Account::replace` and `Account::add`.
fn keeps(change: &Change) -> bool {
    match change {
        Change::Owner { .. }
        | Change::TakeOver { .. }
        | Change::VoidSessions { .. }
        | Change::Evict { .. }
        | Change::LetIn { .. }
        | Change::WantScrub { .. }
        | Change::Scrubbed { .. }
        | Change::Lead { .. } => true,
        Change::Init { .. }
        | Change::Register { .. }
        | Change::Admit { .. }
        | Change::AddDisk { .. }
        | Change::DiskMissing { .. }
        | Change::DiskFailed { .. }
        | Change::DrainDisk { .. }
        | Change::DrainNode { .. }
        | Change::RemoveNode { .. }
        | Change::MoveCopies { .. }
        | Change::CreateVolume { .. }
        | Change::Created { .. }
        | Change::ResizeVolume { .. }
        | Change::DeleteVolume { .. }
        | Change::Dropped { .. }
        | Change::AcceptLoss { .. }
        | Change::Expire { .. }
        | Change::Revive { .. }
        | Change::SetSetting { .. } => false,
    }
}

impl Map {
    /// Before an entry is executed.
    pub(super) fn keep_account(&mut self, change: &Change) {
        if !keeps(change) {
            self.account = Account::default();
        } else if self.account.get().is_none() && matches!(change, Change::Owner { .. }) {
            self.account = Account(Some(promised(self)));
        }
    }
}
