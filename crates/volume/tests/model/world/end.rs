//! Healing, and what must be true then.

use super::{MS, World};
use crate::disk::{Block, Segment};
use gabion_types::{
    BlockKind, ByteRange, DiskId, GuestOp, NodeId, ScrubAsk, ScrubFound, ScrubKind, SegmentIndex,
};

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

    pub(super) fn want_scrub(&mut self, kind: ScrubKind) {
        if self.map.view.scrub.is_none() {
            self.scrubs_wanted += 1;
            self.map.view.scrub = Some(ScrubAsk { number: self.scrubs_wanted, kind });
            self.append(None);
        }
    }

    pub(super) fn on_scrubbed(&mut self, ask: ScrubAsk, found: ScrubFound) -> Result<(), String> {
        if self.map.view.scrub == Some(ask) {
            self.map.view.scrub = None;
            self.append(None);
            self.done.scrubs += 1;
            self.done.scrubbed += found.mended_blocks;
            self.last_scrub = Some((ask, found));
        }
        // Unreadable here, it may be known as lost there.
        let told = found.differing_blocks == 0 || self.rotted;
        told.then_some(()).ok_or_else(|| format!("copies differ: {found:?}"))
    }

    /// Everything is whole: a deep scrub ends, finds nothing behind, and leaves nothing bad that
    /// another copy has.
    pub(super) fn scrub_everything(&mut self) -> Result<(), String> {
        if self.is_hopeless() {
            return Ok(());
        }
        let deadline = self.now + 100_000 * MS;
        // One from before may be under way.
        while self.map.view.scrub.is_some() && self.now < deadline {
            self.step()?;
        }
        self.want_scrub(ScrubKind::Deep);
        let wanted = self.scrubs_wanted;
        while self.last_scrub.is_none_or(|(ask, _)| ask.number != wanted) {
            if self.now > deadline {
                return Err(format!("the scrub does not end: {}", self.describe()));
            }
            self.step()?;
        }
        let found = self.last_scrub.map(|(_, found)| found).unwrap_or_default();
        if (found.behind_blocks, found.skipped) != (0, 0) {
            return Err(format!("a whole volume has {found:?}"));
        }
        for (at, members) in self.map.view.segments.iter().enumerate() {
            let index = SegmentIndex::new(u32::try_from(at).unwrap());
            let copies = members.in_sync.iter().map(|disk| &self.disks[disk].durable);
            let copies: Vec<&Segment> = copies.map(|disk| &disk.segments[&index]).collect();
            for (block, _) in copies[0].blocks.iter().filter(|(_, entry)| entry.bad) {
                if copies.iter().any(|copy| copy.blocks.get(block).is_some_and(is_good)) {
                    return Err(format!("{index} block {} is still bad: {found:?}", block.get()));
                }
            }
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

fn is_good(block: &Block) -> bool {
    block.kind == BlockKind::Data && !block.bad
}
