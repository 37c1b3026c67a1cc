//! Who holds a segment: the part of the cluster map that the owner of a volume works by.

use crate::guest::HoldPolicy;
use crate::ids::{DiskId, NodeId, SegmentIndex, VolumeId};
use crate::scrub::ScrubAsk;
use crate::version::{Epoch, Seq};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A replica that takes all new writes while it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    pub disk: DiskId,
    /// J: the epoch that the volume was raised to when this replica began to join.
    pub joined: Epoch,
    /// If it was a member before: the epoch at which it left. Decides, with its frozen settled seq,
    /// what is compared.
    pub left: Option<Epoch>,
    /// Nothing that it holds from before is trusted: every block is compared.
    pub compare_all: bool,
    /// It stands in for a replica whose node is only silent: filling waits for `rebuild_wait`.
    pub fill_waits: bool,
    /// As `Stale::reach`, of a replica that was a member before.
    #[serde(default)]
    pub reach: Option<Seq>,
    /// An operator gave up the in-sync replicas, which are gone: this one goes on instead, with what it has.
    /// With `compare_all` nobody knows what it never got: a block that it has nothing of is lost.
    #[serde(default)]
    pub alone: bool,
}

/// A replica that left. It never serves; it may come back by joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    pub disk: DiskId,
    /// The epoch that the volume was raised to when it left.
    pub left: Epoch,
    /// It was rolled back, lied or never finished joining: every block is compared when it returns.
    pub compare_all: bool,
    /// Every acknowledged write up to here was durable on it when it left; what was acknowledged above, by
    /// an earlier owner, is on every replica that joined then. None: nobody knew.
    #[serde(default)]
    pub reach: Option<Seq>,
}

/// A copy that is to be on another disk: a new one is filled there, and then this one leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: DiskId,
    pub to: DiskId,
}

/// A replica that left, and one that has been joining since that same moment: of what was acknowledged one
/// has all from before, and the other one all since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub joiner: DiskId,
    /// J of the one, and the epoch at which the other left.
    pub joined: Epoch,
    pub elder: DiskId,
    /// How far the elder has to reach to have all.
    pub reach: Seq,
}

/// The replicas of one segment. `in_sync` is never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentMembers {
    /// The epoch at which the segment was made.
    pub creation: Epoch,
    pub in_sync: Vec<DiskId>,
    pub joining: Vec<Joining>,
    pub stale: Vec<Stale>,
}

impl SegmentMembers {
    /// In-sync and joining replicas: an acknowledgement needs all of them.
    pub fn write_set(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.in_sync.iter().copied().chain(self.joining.iter().map(|joining| joining.disk))
    }

    pub fn is_in_sync(&self, disk: DiskId) -> bool {
        self.in_sync.contains(&disk)
    }

    pub fn joining(&self, disk: DiskId) -> Option<&Joining> {
        self.joining.iter().find(|joining| joining.disk == disk)
    }

    pub fn stale(&self, disk: DiskId) -> Option<&Stale> {
        self.stale.iter().find(|stale| stale.disk == disk)
    }

    /// Who goes on instead of the in-sync replicas, by an operator's word.
    pub fn alone(&self) -> Option<&Joining> {
        self.joining.iter().find(|joining| joining.alone)
    }

    /// Joiners, each with a stale replica that it makes whole (rule 8). A joiner that was away for a moment
    /// has another J since then, and one that was removed is none any more. One that was a member before has
    /// blocks of its own from then; it never joins in the very entry in which another one leaves.
    // rule: types/a-pair-parted-at-one-epoch
    pub fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        let elders = self.stale.iter().filter(|stale| !stale.compare_all);
        self.pair_up(elders.filter_map(|stale| Some((stale.disk, stale.left, stale.reach?))))
    }

    /// The same, where the elder joins again already: what it got since makes it no worse.
    pub fn pairs_that_return(&self) -> impl Iterator<Item = Pair> + '_ {
        let elders = self.joining.iter().filter(|joining| !joining.compare_all);
        self.pair_up(elders.filter_map(|elder| Some((elder.disk, elder.left?, elder.reach?))))
    }

    fn pair_up<'a>(
        &'a self,
        elders: impl Iterator<Item = (DiskId, Epoch, Seq)> + 'a,
    ) -> impl Iterator<Item = Pair> + 'a {
        elders.flat_map(move |(elder, left, reach)| {
            let fits = move |joining: &&Joining| joining.joined == left && joining.left.is_none();
            let joiners = self.joining.iter().filter(fits);
            joiners.map(move |joining| Pair { joiner: joining.disk, joined: left, elder, reach })
        })
    }
}

/// A replica as its disk tells of it, for whoever has lost the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundReplica {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub creation: Epoch,
    /// It began to join and was not promoted.
    pub joining: bool,
    /// Blocks may be missing or old.
    pub damaged: bool,
    /// The newest epoch of what it took part in as a member: its making, takeovers, writes.
    pub last_epoch: Epoch,
    pub highest: Seq,
}

/// What the owner of a volume is told by the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeView {
    pub volume: VolumeId,
    pub size_bytes: u64,
    /// Copies wanted.
    pub rf: u8,
    pub hold: HoldPolicy,
    pub epoch: Epoch,
    /// The epoch at which the present owner took over; replicas fence by it.
    pub owner_epoch: Epoch,
    /// The last owner left after everything was settled: there is no tail to reconcile.
    pub clean: bool,
    /// By segment index; covers the whole volume.
    pub segments: Vec<SegmentMembers>,
    /// Which node each disk that is named above hangs on.
    pub homes: BTreeMap<DiskId, NodeId>,
    /// Disks of those named above that are being emptied: what they hold is to be moved.
    pub draining: BTreeSet<DiskId>,
    /// Single copies that are to be moved.
    pub moving: BTreeMap<SegmentIndex, Move>,
    /// Disks of those named above that are out for good.
    pub out: BTreeSet<DiskId>,
    /// To be done by the owner.
    pub scrub: Option<ScrubAsk>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(value: u64) -> Epoch {
        Epoch::new(value).unwrap()
    }

    // rule: types/a-pair-parted-at-one-epoch
    #[test]
    fn a_pair_is_who_left_and_who_joined_at_one_epoch() {
        let disk = DiskId::new;
        let joining = |id, joined, left: Option<u64>| {
            let (compare_all, fill_waits) = (left.is_none(), false);
            let reach = left.map(|_| Seq::new(7));
            let (disk, joined, left) = (disk(id), epoch(joined), left.map(epoch));
            Joining { disk, joined, left, compare_all, fill_waits, reach, alone: false }
        };
        let stale = |id, left, compare_all, reach: Option<u64>| {
            let (disk, left, reach) = (disk(id), epoch(left), reach.map(Seq::new));
            Stale { disk, left, compare_all, reach }
        };
        let mut members = SegmentMembers {
            creation: epoch(1),
            in_sync: vec![disk(1)],
            joining: vec![joining(2, 5, None), joining(3, 7, None)],
            stale: vec![
                stale(4, 5, false, Some(30)),
                stale(5, 6, false, Some(30)),
                stale(6, 7, true, Some(30)),
                stale(7, 7, false, None),
            ],
        };
        let pair = Pair { joiner: disk(2), joined: epoch(5), elder: disk(4), reach: Seq::new(30) };
        assert_eq!(members.pairs().collect::<Vec<_>>(), [pair]);
        assert_eq!(members.pairs_that_return().count(), 0);
        members.stale.clear();
        members.joining.push(joining(8, 9, Some(5)));
        let back = Pair { elder: disk(8), reach: Seq::new(7), ..pair };
        assert_eq!(members.pairs().count(), 0);
        assert_eq!(members.pairs_that_return().collect::<Vec<_>>(), [back]);
    }
}
