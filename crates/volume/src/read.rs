//! Reads: from an in-sync replica, the own node's first; a bad copy is passed over and repaired.

use crate::asks::Purpose;
use crate::gather::Gather;
use crate::io::VolumeEvent;
use crate::order::{OpId, OpKind, OpState, Yield};
use crate::volume::Volume;
use bytes::Bytes;
use gabion_types::{
    BLOCK_BYTES, BlockIndex, BlockInfo, BlockKind, BlockRange, DiskId, Flaw, Instant, IoError,
    MappedExtent, SegmentIndex, Seq, Version,
};
use gabion_wire::{LinkClass, ReplicaOp};

impl Volume {
    pub(crate) fn begin_fetch(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.state = OpState::Fetching(Box::new(Gather::new(op.range, None)));
        self.fetch(now, id);
    }

    /// Asks the next replica, or concludes that there is none left.
    fn fetch(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let OpState::Fetching(gather) = &op.state else { return };
        let (segment, range) = (op.segment, op.range);
        let members = &self.members(segment).in_sync;
        let all_tried = members.iter().all(|disk| gather.was_tried(*disk));
        let next = self.pick_source(segment, LinkClass::Data, |disk| {
            !gather.was_tried(disk) && !gather.avoids(disk)
        });
        match next {
            Some(disk) => {
                if let Some(OpState::Fetching(gather)) =
                    self.ops.get_mut(&id).map(|op| &mut op.state)
                {
                    gather.asked = Some(disk);
                }
                let read = ReplicaOp::Read { segment, range };
                self.ask(now, disk, LinkClass::Data, read, Purpose::Read { segment, op: id });
            }
            // There is another copy, only not now: hold, don't fail.
            // promise: hold-not-fail
            None if !all_tried => self.wait_again(id, true),
            None => self.lose(now, id),
        }
    }

    /// Every in-sync copy is unreadable.
    // promise: no-silent-corruption
    fn lose(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let segment = op.segment;
        let OpState::Fetching(gather) = &mut op.state else { return };
        let lost = gather.lose_the_rest(Version::NEVER);
        lost.iter().for_each(|info| self.note_lost(segment, info.block));
        if self.settings.flaws.has(Flaw::LostAsZeros) {
            return self.fetched(now, id);
        }
        self.finish(now, id, Err(IoError::Lost));
    }

    /// An in-sync replica that can be asked: the own node's first, else the least busy.
    pub(crate) fn pick_source(
        &self,
        segment: SegmentIndex,
        class: LinkClass,
        fits: impl Fn(DiskId) -> bool,
    ) -> Option<DiskId> {
        let members = self.members(segment).in_sync.iter().copied();
        members.filter(|disk| fits(*disk) && self.is_usable(segment, *disk, class)).min_by_key(
            |disk| {
                let own = self.disks.home(*disk) == Some(self.me);
                (!own, self.disks.get(*disk).map_or(0, |state| state.asks_out))
            },
        )
    }

    /// False: the answer does not fit the question.
    pub(crate) fn on_read(
        &mut self,
        now: Instant,
        id: OpId,
        disk: DiskId,
        blocks: &[BlockInfo],
        data: &Bytes,
    ) -> bool {
        let Some(op) = self.ops.get_mut(&id) else { return true };
        let segment = op.segment;
        let OpState::Fetching(gather) = &mut op.state else { return true };
        if gather.asked != Some(disk) {
            return true;
        }
        if !self.view.segments[segment.get() as usize].is_in_sync(disk) {
            self.on_fetch_failed(now, id, disk);
            return true;
        }
        gather.asked = None;
        let fits = gather.absorb(disk, blocks, data).is_ok();
        if gather.is_whole() {
            self.fetched(now, id);
        } else {
            self.fetch(now, id);
        }
        fits
    }

    /// The lease is looked at now that the data is here: a new owner may have written since it
    /// was asked for.
    // rule: volume/lease-after-the-data
    // promise: one-register
    fn fetched(&mut self, now: Instant, id: OpId) {
        if !self.may_serve(now) && !self.settings.flaws.has(Flaw::ReadAfterLease) {
            self.wait_again(id, false);
            return;
        }
        let Some(op) = self.ops.get(&id) else { return };
        let OpState::Fetching(gather) = &op.state else { return };
        let segment = op.segment;
        let repairs = gather.repairs();
        let infos = gather.infos();
        let lost = infos.filter(|info| info.kind == BlockKind::Lost).map(|info| info.block);
        let lost: Vec<BlockIndex> = lost.collect();
        let contents = gather.contents();
        let slice = match &op.kind {
            OpKind::Read { skip, take } => Some(contents.slice(*skip..*skip + *take)),
            OpKind::Merge { .. }
            | OpKind::Status { .. }
            | OpKind::Room
            | OpKind::Write { .. }
            | OpKind::Zero => None,
        };
        for (disk, blocks, data) in repairs {
            self.repair(now, segment, disk, blocks, data);
        }
        if !lost.is_empty() && !self.settings.flaws.has(Flaw::LostAsZeros) {
            lost.iter().for_each(|block| self.note_lost(segment, *block));
            self.finish(now, id, Err(IoError::Lost));
            return;
        }
        match slice {
            Some(data) => self.finish(now, id, Ok(Yield::Read(data))),
            None => self.merge(now, id, &contents),
        }
    }

    /// Mends a bad copy; it has still that version, or the replica leaves it.
    pub(crate) fn repair(
        &mut self,
        now: Instant,
        segment: SegmentIndex,
        disk: DiskId,
        blocks: Vec<BlockInfo>,
        data: Bytes,
    ) {
        if !self.members(segment).is_in_sync(disk) {
            return;
        }
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let op = ReplicaOp::Repair { segment, blocks, data };
        self.ask(now, disk, LinkClass::Data, op, Purpose::Repair { segment, blocks: count });
    }

    pub(crate) fn on_repaired(&mut self, segment: SegmentIndex, disk: DiskId, blocks: u32) {
        self.counts.repaired_blocks += u64::from(blocks);
        self.event(VolumeEvent::Repaired { disk, segment: segment.get(), blocks });
    }

    /// A replica did not answer a read or a look: another one, or later.
    pub(crate) fn on_fetch_failed(&mut self, now: Instant, id: OpId, disk: DiskId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        match &mut op.state {
            OpState::Fetching(gather) if gather.asked == Some(disk) => {
                gather.asked = None;
                gather.avoid(disk);
                self.fetch(now, id);
            }
            OpState::Looking { asked, .. } if *asked == disk => self.wait_again(id, true),
            OpState::Fetching(_)
            | OpState::Looking { .. }
            | OpState::Waiting { .. }
            | OpState::Writing(_) => {}
        }
    }

    /// Which blocks hold data: for a guest that asks, or that wants zeros there.
    pub(crate) fn begin_look(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let segment = op.segment;
        let Some(disk) = self.pick_source(segment, LinkClass::Data, |_| true) else {
            self.wait_again(id, true);
            return;
        };
        if let Some(op) = self.ops.get_mut(&id) {
            op.state = OpState::Looking { asked: disk, passed: Vec::new() };
        }
        self.ask_table(now, id, disk);
    }

    pub(crate) fn ask_table(&mut self, now: Instant, id: OpId, disk: DiskId) {
        let Some(op) = self.ops.get(&id) else { return };
        let segment = op.segment;
        let scan = ReplicaOp::Scan {
            segment,
            from: op.range.first(),
            seq_above: Seq::ZERO,
            epoch_from: None,
            entries_max: op.range.count(),
        };
        self.ask(now, disk, LinkClass::Data, scan, Purpose::Table { segment, op: id });
    }

    pub(crate) fn on_table(
        &mut self,
        now: Instant,
        id: OpId,
        disk: DiskId,
        table: &[BlockInfo],
        next: Option<BlockIndex>,
    ) {
        let Some(op) = self.ops.get(&id) else { return };
        // What a former member says is no longer true of the volume.
        let reads = matches!(op.kind, OpKind::Status { .. } | OpKind::Zero);
        let current = !reads || self.members(op.segment).is_in_sync(disk);
        let servable = self.may_serve(now) && current;
        let Some(op) = self.ops.get_mut(&id) else { return };
        let OpState::Looking { asked, passed } = &mut op.state else { return };
        if *asked != disk {
            return;
        }
        if !servable {
            self.wait_again(id, false);
            return;
        }
        match op.kind {
            OpKind::Status { skip, take } => {
                let holes = self.settings.flaws.has(Flaw::DataAsHoles);
                let table = if holes { &[] } else { table };
                let extents = extents(op.range, table, next, skip as u64, take as u64);
                self.finish(now, id, Ok(Yield::Status(extents)));
            }
            OpKind::Room => {
                let passed = std::mem::take(passed);
                self.on_room_looked(now, id, disk, passed, table);
            }
            OpKind::Zero => self.on_holes_looked(now, id, table, next),
            OpKind::Write { .. } => self.on_looked(now, id, disk, table),
            OpKind::Read { .. } | OpKind::Merge { .. } => {}
        }
    }
}

/// Which runs of a range hold data, as far as the table reaches (up to `next`). Units: bytes; `skip`
/// of the first block are left out.
fn extents(
    range: BlockRange,
    table: &[BlockInfo],
    next: Option<BlockIndex>,
    skip: u64,
    take: u64,
) -> Vec<MappedExtent> {
    let mut extents: Vec<MappedExtent> = Vec::new();
    let mut table = table.iter().peekable();
    let (mut skip, mut left) = (skip, take);
    for block in range.iter().filter(|block| next.is_none_or(|next| *block < next)) {
        while table.peek().is_some_and(|info| info.block < block) {
            table.next();
        }
        let data = table.peek().is_some_and(|info| {
            info.block == block && !matches!(info.kind, BlockKind::Absent | BlockKind::Zero)
        });
        let length = (BLOCK_BYTES - skip).min(left);
        skip = 0;
        left -= length;
        match extents.last_mut() {
            Some(last) if last.data == data => last.length += length,
            Some(_) | None => extents.push(MappedExtent { length, data }),
        }
    }
    extents
}
