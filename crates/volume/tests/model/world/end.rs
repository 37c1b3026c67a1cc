//! Healing, and what must be true then.

use super::{MS, World};
use crate::disk::Segment;
use gabion_types::{BlockKind, ByteRange, DiskId, GuestOp, NodeId, SegmentIndex};

impl World {
    pub(super) fn heal(&mut self) {
        self.say(|| "heal".to_owned());
        self.healing = true;
        self.stalled.clear();
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in &nodes {
            self.restart(*node);
            self.rejoin(*node);
        }
        for id in self.disks.keys().copied().collect::<Vec<_>>() {
            self.committing.remove(&id);
            self.commit_later(id);
        }
    }

    /// A copy may be beyond recovery: its only in-sync disk is out of service.
    pub fn is_hopeless(&self) -> bool {
        self.map
            .view
            .segments
            .iter()
            .any(|members| members.in_sync.iter().all(|disk| self.disks[disk].out))
    }

    pub(super) fn is_whole(&self) -> bool {
        let owner = self.map.owner.is_some();
        let members = self.map.view.segments.iter().all(|members| {
            members.in_sync.len() == usize::from(self.plan.rf)
                && members.joining.is_empty()
                && members.stale.is_empty()
        });
        self.is_hopeless() || (owner && members && self.requests.is_empty())
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "owner {:?} {}, {} open, owners {:?}, {:?}",
            self.map.owner,
            self.map.view.epoch,
            self.requests.len(),
            self.owners
                .iter()
                .map(|(key, owner)| (*key, owner.node, owner.epoch))
                .collect::<Vec<_>>(),
            self.map.view.segments,
        )
    }

    pub(super) fn read_everything(&mut self) -> Result<(), String> {
        if !self.is_hopeless() {
            self.read_each()?;
        }
        // Settled seqs and promotions reach their disks, and what is under way, also where some
        // segment is beyond hope.
        let until = self.now + 3000 * MS;
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    fn read_each(&mut self) -> Result<(), String> {
        for segment in 0..self.plan.segments {
            let range = ByteRange::new(u64::from(segment) << 16, 64 << 10).unwrap();
            let request = self.new_request(GuestOp::Read { range }, false);
            if let Some(owner) = self.latest.filter(|owner| self.owners.contains_key(owner)) {
                self.submit(owner, request)?;
            }
        }
        let deadline = self.now + 60_000 * MS;
        while !self.requests.is_empty() {
            if self.now > deadline {
                return Err(format!("reads are held: {}", self.describe()));
            }
            self.step()?;
        }
        Ok(())
    }

    /// In-sync replicas hold the same.
    pub(super) fn compare_replicas(&self) -> Result<(), String> {
        for (at, members) in self.map.view.segments.iter().enumerate() {
            let index = SegmentIndex::new(u32::try_from(at).unwrap());
            let tables: Vec<(DiskId, &Segment)> = members
                .in_sync
                .iter()
                .filter(|disk| !self.disks[disk].out)
                .map(|disk| (*disk, &self.disks[disk].durable.segments[&index]))
                .collect();
            for (disk, other) in tables.iter().skip(1) {
                let (first, one) = tables[0];
                let blocks = one.blocks.keys().chain(other.blocks.keys());
                for block in blocks {
                    let of = |segment: &Segment| {
                        segment
                            .blocks
                            .get(block)
                            .map(|entry| (entry.version, entry.kind, entry.crc))
                    };
                    // Unreadable here, it may be known as lost there.
                    let bad = |segment: &Segment| {
                        let entry = segment.blocks.get(block);
                        entry.is_some_and(|entry| {
                            entry.bad || (entry.kind == BlockKind::Lost && self.rotted)
                        })
                    };
                    if of(one) != of(other) && !bad(one) && !bad(other) {
                        return Err(format!(
                            "{index} block {}: {first} has {:?}, {disk} has {:?}",
                            block.get(),
                            of(one),
                            of(other)
                        ));
                    }
                }
            }
            if let Some((disk, _)) = tables.iter().find(|(_, segment)| segment.joining) {
                return Err(format!("{index}: {disk} still believes that it joins"));
            }
        }
        Ok(())
    }
}
