//! What is asked of replicas and not answered yet.

use crate::io::{Effect, MemberFailure};
use crate::order::OpId;
use crate::volume::Volume;
use gabion_types::{
    BlockIndex, BlockRange, DiskId, Duration, Epoch, Flaw, Instant, NodeId, SegmentIndex, Version,
};
use gabion_wire::{
    LinkClass, Refusal, ReplicaAnswer, ReplicaDone, ReplicaOp, ReplicaRequest, RequestId,
    credit_taken,
};
use std::collections::BTreeMap;

/// A disk that was busy or still recovering is asked again after so long.
pub(crate) const RETRY_SOON: Duration = Duration::from_millis(100);
/// A disk that refused for a reason that rarely goes away.
pub(crate) const RETRY_LATER: Duration = Duration::from_secs(1);

/// Why something was asked: what its answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Write {
        segment: SegmentIndex,
        op: OpId,
        version: Version,
    },
    Read {
        segment: SegmentIndex,
        op: OpId,
    },
    /// A table, for a guest's status or before a write to a full disk.
    Table {
        segment: SegmentIndex,
        op: OpId,
    },
    Fence {
        segments: Vec<SegmentIndex>,
    },
    /// What it has, after its link broke.
    Prove {
        segments: Vec<SegmentIndex>,
    },
    /// A stale replica, or the joiner that its blocks are for.
    FencePair {
        segment: SegmentIndex,
    },
    TailTable {
        segment: SegmentIndex,
        generation: u32,
    },
    TailRead {
        segment: SegmentIndex,
        generation: u32,
        run: u32,
    },
    Settle {
        segment: SegmentIndex,
        generation: u32,
        run: u32,
    },
    EpochStart {
        starts: Vec<(SegmentIndex, u32)>,
    },
    JoinStart {
        segment: SegmentIndex,
        joined: Epoch,
    },
    Promoted {
        segment: SegmentIndex,
    },
    FillTable {
        segment: SegmentIndex,
        joiner: DiskId,
        fill: u64,
        from: BlockIndex,
    },
    FillRead {
        segment: SegmentIndex,
        joiner: DiskId,
        fill: u64,
        run: u32,
    },
    Install {
        segment: SegmentIndex,
        joiner: DiskId,
        fill: u64,
        run: u32,
    },
    /// The seq that comes next, durable on a joiner before it is promoted.
    FillMark {
        segment: SegmentIndex,
        joiner: DiskId,
        fill: u64,
    },
    Repair {
        segment: SegmentIndex,
        blocks: u32,
    },
    ScrubTable {
        segment: SegmentIndex,
        pass: u64,
    },
    ScrubVerify {
        segment: SegmentIndex,
        pass: u64,
        range: BlockRange,
    },
    ScrubRead {
        segment: SegmentIndex,
        pass: u64,
    },
    /// What a scrub found bad or behind, written anew.
    ScrubMend {
        segment: SegmentIndex,
        pass: u64,
        blocks: u32,
    },
}

impl Purpose {
    /// The one segment that it is about, if it is one.
    pub(crate) fn segment(&self) -> Option<SegmentIndex> {
        match self {
            Self::Write { segment, .. }
            | Self::Read { segment, .. }
            | Self::Table { segment, .. }
            | Self::FencePair { segment }
            | Self::TailTable { segment, .. }
            | Self::TailRead { segment, .. }
            | Self::Settle { segment, .. }
            | Self::JoinStart { segment, .. }
            | Self::Promoted { segment }
            | Self::FillTable { segment, .. }
            | Self::FillRead { segment, .. }
            | Self::Install { segment, .. }
            | Self::FillMark { segment, .. }
            | Self::Repair { segment, .. }
            | Self::ScrubTable { segment, .. }
            | Self::ScrubVerify { segment, .. }
            | Self::ScrubRead { segment, .. }
            | Self::ScrubMend { segment, .. } => Some(*segment),
            Self::Fence { .. } | Self::Prove { .. } | Self::EpochStart { .. } => None,
        }
    }

    /// What another replica can answer as well is not asked again of one that does not answer.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Table { .. }
            | Self::FillRead { .. }
            | Self::ScrubRead { .. }
            | Self::Repair { .. } => true,
            Self::Write { .. }
            | Self::Fence { .. }
            | Self::Prove { .. }
            | Self::FencePair { .. }
            | Self::TailTable { .. }
            | Self::TailRead { .. }
            | Self::Settle { .. }
            | Self::EpochStart { .. }
            | Self::JoinStart { .. }
            | Self::Promoted { .. }
            | Self::FillTable { .. }
            | Self::Install { .. }
            | Self::FillMark { .. }
            | Self::ScrubTable { .. }
            | Self::ScrubVerify { .. }
            | Self::ScrubMend { .. } => false,
        }
    }

    pub(crate) fn is_of_scrub(&self) -> bool {
        matches!(
            self,
            Self::ScrubTable { .. }
                | Self::ScrubVerify { .. }
                | Self::ScrubRead { .. }
                | Self::ScrubMend { .. }
        )
    }
}

#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) node: NodeId,
    pub(crate) disk: DiskId,
    pub(crate) class: LinkClass,
    /// What to send again; none for a write, whose request is made anew from its op.
    op: Option<ReplicaOp>,
    pub(crate) purpose: Purpose,
    pub(crate) state: AskState,
    pub(crate) sent: Instant,
    first_sent: Instant,
    /// Write bytes, of data.
    bytes: u64,
    /// Of its disk's credit, what it takes.
    credit: u64,
    refused: u32,
}

impl Ask {
    /// None: nobody can be blamed for being slow to answer it.
    pub(crate) fn first_sent(&self) -> Option<Instant> {
        (self.state != AskState::NoRoom).then_some(self.first_sent)
    }

    /// What it takes of a link's room.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.op.as_ref().map_or(self.bytes, |op| op.payload().map_or(0, |data| data.len() as u64))
    }

    pub(crate) fn refused(&self) -> u32 {
        self.refused
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.state == AskState::Parked
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskState {
    Sent,
    /// Its link takes no data for the moment: it goes out when there is room.
    NoRoom,
    /// In doubt or never sent: goes out when the link is up.
    Parked,
    /// Was refused for now.
    Again {
        at: Instant,
    },
}

/// Bounded: by requests in flight times members, by fills and takeovers at once, and by one fence,
/// join and promotion a replica.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    table: BTreeMap<RequestId, Ask>,
    given: u64,
}

impl Asks {
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ask> {
        self.table.values()
    }

    pub(crate) fn get(&self, request: RequestId) -> Option<&Ask> {
        self.table.get(&request)
    }

    pub(crate) fn get_mut(&mut self, request: RequestId) -> Option<&mut Ask> {
        self.table.get_mut(&request)
    }

    /// So much longer may the answers take.
    pub(crate) fn put_off_blame(&mut self, by: Duration) {
        for ask in self.table.values_mut() {
            ask.first_sent = ask.first_sent + by;
        }
    }

    pub(crate) fn next_id(&mut self) -> RequestId {
        self.given += 1;
        RequestId(self.given)
    }
}

impl Volume {
    /// Asks a replica; what the link can't take now goes out when it is up, in the same order.
    pub(crate) fn ask(
        &mut self,
        now: Instant,
        disk: DiskId,
        class: LinkClass,
        op: ReplicaOp,
        purpose: Purpose,
    ) {
        let Some(node) = self.disks.home(disk) else { return };
        let request = self.asks.next_id();
        let (bytes, credit) = if let ReplicaOp::Write { data, range, .. } = &op {
            (data.len() as u64, credit_taken(*range, range.bytes()))
        } else {
            (0, 0)
        };
        let full = op.payload().is_some() && self.links.is_full(node, class);
        let state = self.disks.get_mut(disk);
        state.asks_out += 1;
        state.credit_out += credit;
        let is_write = matches!(purpose, Purpose::Write { .. });
        let kept = (!is_write).then(|| op.clone());
        let state = match self.waits(disk, class, &purpose) {
            true => AskState::Parked,
            false if full => AskState::NoRoom,
            false => AskState::Sent,
        };
        let (sent, first_sent, refused) = (now, now, 0);
        let ask = Ask {
            node,
            disk,
            class,
            op: kept,
            purpose,
            state,
            sent,
            first_sent,
            bytes,
            credit,
            refused,
        };
        self.asks.table.insert(request, ask);
        if state == AskState::Sent {
            self.emit_ask(node, class, request, disk, op);
        }
    }

    /// It can't be asked this now: its link is away, it has to say first what it has, or it said that
    /// it lost something.
    fn waits(&self, disk: DiskId, class: LinkClass, purpose: &Purpose) -> bool {
        let says = matches!(purpose, Purpose::Prove { .. } | Purpose::Fence { .. });
        self.disks.home(disk).is_none_or(|node| self.links.is_away(node, class))
            || (!says && self.disks.is_proving(disk))
            || purpose.segment().is_some_and(|index| self.is_rolled_back(index, disk))
    }

    /// What is not answered, and not sent again.
    pub(crate) fn tell(&mut self, disk: DiskId, class: LinkClass, op: ReplicaOp) {
        let Some(node) = self.disks.home(disk) else { return };
        if !self.links.is_away(node, class) && !self.disks.is_proving(disk) {
            let request = self.asks.next_id();
            self.emit_ask(node, class, request, disk, op);
        }
    }

    fn emit_ask(
        &mut self,
        node: NodeId,
        class: LinkClass,
        request: RequestId,
        disk: DiskId,
        op: ReplicaOp,
    ) {
        let (volume, owner_epoch) = (self.view.volume, self.view.owner_epoch);
        let ask = ReplicaRequest { disk, volume, owner_epoch, op };
        self.effects.push_back(Effect::Ask { node, class, request, ask });
    }

    pub(crate) fn send_again(&mut self, now: Instant, request: RequestId) {
        let Some(ask) = self.asks.table.get(&request) else { return };
        let waits = self.waits(ask.disk, ask.class, &ask.purpose);
        let Some(ask) = self.asks.table.get_mut(&request) else { return };
        if waits {
            ask.state = AskState::Parked;
            return;
        }
        if ask.state == AskState::NoRoom {
            ask.first_sent = now;
        }
        ask.state = AskState::Sent;
        ask.sent = now;
        let (node, class, disk) = (ask.node, ask.class, ask.disk);
        let op = match (&ask.op, &ask.purpose) {
            (Some(op), _) => Some(op.clone()),
            (None, Purpose::Write { op, .. }) => {
                let op = *op;
                self.write_op(op, disk)
            }
            (None, _) => None,
        };
        match op {
            Some(op) => self.emit_ask(node, class, request, disk, op),
            None => drop(self.take_ask(request)),
        }
    }

    fn take_ask(&mut self, request: RequestId) -> Option<Ask> {
        let ask = self.asks.table.remove(&request)?;
        let disk = self.disks.get_mut(ask.disk);
        disk.asks_out = disk.asks_out.saturating_sub(1);
        disk.credit_out = disk.credit_out.saturating_sub(ask.credit);
        if let Purpose::Prove { .. } = ask.purpose {
            disk.proofs_out -= 1;
        }
        if let Purpose::Settle { segment, .. } = ask.purpose
            && let Some(takeover) = self.segment_mut(segment).takeover_mut()
        {
            takeover.settles_out -= 1;
        }
        Some(ask)
    }

    /// Forgets what was asked: an answer means nothing any more.
    pub(crate) fn drop_asks(&mut self, unwanted: impl Fn(&Ask) -> bool) {
        for request in self.asks_where(unwanted) {
            self.take_ask(request);
        }
    }

    /// The same, and whoever waits for it looks elsewhere.
    pub(crate) fn give_up_asks(&mut self, now: Instant, unwanted: impl Fn(&Ask) -> bool) {
        for request in self.asks_where(unwanted) {
            self.give_up(now, request);
        }
    }

    pub(crate) fn asks_where(&self, fits: impl Fn(&Ask) -> bool) -> Vec<RequestId> {
        let asks = self.asks.table.iter().filter(|(_, ask)| fits(ask));
        asks.map(|(request, _)| *request).collect()
    }

    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        request: RequestId,
        answer: ReplicaAnswer,
    ) {
        let Some(ask) = self.asks.table.get(&request) else { return };
        if ask.state != AskState::Sent || ask.disk != answer.disk {
            return;
        }
        let (disk, sent) = (ask.disk, ask.sent);
        let state = self.disks.get_mut(disk);
        // One that can't serve now has no word on its space.
        if matches!(answer.result, Ok(_) | Err(Refusal::NoSpace)) {
            state.credit = Some(answer.credit_bytes);
        }
        match answer.result {
            Ok(done) => {
                let over = |(why, since)| why == MemberFailure::Slow || sent > since;
                if state.failed.is_some_and(over) {
                    state.failed = None;
                    self.members_dirty = true;
                }
                if let Some(ask) = self.take_ask(request) {
                    self.on_done(now, ask, done);
                }
            }
            Err(refusal) => self.handle_refusal(now, request, refusal),
        }
    }

    fn on_done(&mut self, now: Instant, ask: Ask, done: ReplicaDone) {
        let (disk, sent) = (ask.disk, ask.first_sent());
        let fits = match (ask.purpose, done) {
            (Purpose::Write { segment, op, version }, ReplicaDone::Done) => {
                let alone = self.on_written(now, segment, op, version, disk);
                self.note_pace(now, segment, disk, [sent, alone]);
                true
            }
            (Purpose::Read { op, .. }, ReplicaDone::Blocks { blocks, data }) => {
                self.on_read(now, op, disk, &blocks, &data)
            }
            (Purpose::Table { op, .. }, ReplicaDone::Table { entries, next }) => {
                self.on_table(now, op, disk, &entries, next);
                true
            }
            (Purpose::Fence { segments }, ReplicaDone::Fenced { reports }) => {
                self.on_fenced(now, disk, &segments, &reports);
                true
            }
            (Purpose::Prove { segments }, ReplicaDone::Fenced { reports }) => {
                self.on_proved(now, disk, &segments, &reports);
                true
            }
            (Purpose::FencePair { segment }, ReplicaDone::Fenced { reports }) => {
                self.on_pair_fenced(now, segment, disk, &reports);
                true
            }
            (Purpose::TailTable { segment, generation }, ReplicaDone::Table { entries, next }) => {
                self.on_tail_table(segment, generation, disk, entries, next)
            }
            (
                Purpose::TailRead { segment, generation, run },
                ReplicaDone::Blocks { blocks, data },
            ) => self.on_tail_read(now, (segment, generation, run), disk, &blocks, &data),
            (Purpose::Settle { segment, generation, run }, ReplicaDone::Done) => {
                self.on_settled(segment, generation, run, disk);
                true
            }
            (Purpose::EpochStart { starts }, ReplicaDone::Done) => {
                self.on_epoch_started(now, disk, &starts);
                true
            }
            (Purpose::JoinStart { segment, joined }, ReplicaDone::JoinStarted { settled }) => {
                self.on_join_started(now, segment, joined, disk, settled);
                true
            }
            (Purpose::Promoted { .. }, ReplicaDone::Done) => true,
            (
                Purpose::FillTable { segment, joiner, fill, from },
                ReplicaDone::Table { entries, next },
            ) => self.on_fill_table((segment, joiner), (fill, from), disk, entries, next),
            (
                Purpose::FillRead { segment, joiner, fill, run },
                ReplicaDone::Blocks { blocks, data },
            ) => self.on_fill_read(now, (segment, joiner), (fill, run), disk, &blocks, &data),
            (Purpose::Install { segment, joiner, fill, run }, ReplicaDone::Done) => {
                self.on_installed((segment, joiner), fill, run);
                true
            }
            (Purpose::FillMark { segment, joiner, fill }, ReplicaDone::Done) => {
                self.on_fill_marked(now, (segment, joiner), fill);
                true
            }
            (Purpose::Repair { segment, blocks }, ReplicaDone::Done) => {
                self.on_repaired(segment, disk, blocks);
                true
            }
            (purpose, done) => self.on_scrub_done(disk, purpose, done),
        };
        if !fits {
            // A replica that answers nonsense can't be relied on.
            self.fail_disk(now, disk, MemberFailure::OutOfService);
        }
    }

    /// Asks again later, or tells whoever asked to look elsewhere.
    pub(crate) fn put_off(&mut self, now: Instant, request: RequestId, wait: Duration) {
        let Some(ask) = self.asks.table.get_mut(&request) else { return };
        if ask.purpose.is_elsewhere() {
            self.give_up(now, request);
        } else {
            ask.refused += 1;
            ask.state = AskState::Again { at: now + wait };
        }
    }

    pub(crate) fn give_up(&mut self, now: Instant, request: RequestId) {
        let Some(ask) = self.take_ask(request) else { return };
        match ask.purpose {
            Purpose::Read { op, .. } | Purpose::Table { op, .. } => {
                self.on_fetch_failed(now, op, ask.disk);
            }
            Purpose::FillRead { segment, joiner, fill, run } => {
                self.on_fill_read_failed(now, (segment, joiner), (fill, run), ask.disk);
            }
            Purpose::ScrubRead { pass, .. } => self.on_scrub_read_failed(pass, ask.disk),
            Purpose::Write { .. }
            | Purpose::Fence { .. }
            | Purpose::Prove { .. }
            | Purpose::FencePair { .. }
            | Purpose::TailTable { .. }
            | Purpose::TailRead { .. }
            | Purpose::Settle { .. }
            | Purpose::EpochStart { .. }
            | Purpose::JoinStart { .. }
            | Purpose::Promoted { .. }
            | Purpose::FillTable { .. }
            | Purpose::Install { .. }
            | Purpose::FillMark { .. }
            | Purpose::Repair { .. }
            | Purpose::ScrubTable { .. }
            | Purpose::ScrubVerify { .. }
            | Purpose::ScrubMend { .. } => {}
        }
    }

    /// What is in flight there is done or not: it is sent again, and a replica knows a version
    /// that it has.
    // rule: volume/in-doubt-is-asked-again
    pub(crate) fn handle_link_lost(&mut self, now: Instant, node: NodeId, class: LinkClass) {
        if node == self.me {
            return;
        }
        self.links.lose(node, class);
        if class == LinkClass::Data {
            self.disks.doubt_node(node);
            self.doubt_combines(node);
            self.doubt_alone(node);
        }
        let lost: Vec<RequestId> = self
            .asks
            .table
            .iter()
            .filter(|(_, ask)| ask.node == node && ask.class == class)
            .map(|(request, _)| *request)
            .collect();
        for request in lost {
            let Some(ask) = self.asks.table.get_mut(&request) else { continue };
            if ask.purpose.is_elsewhere() {
                self.give_up(now, request);
            } else {
                ask.state = AskState::Parked;
            }
        }
        self.members_dirty = true;
    }

    pub(crate) fn handle_node_down(&mut self, now: Instant, node: NodeId) {
        if node == self.me {
            return;
        }
        self.links.note_down(node);
        for class in [LinkClass::Control, LinkClass::Data, LinkClass::Bulk] {
            self.handle_link_lost(now, node, class);
        }
    }

    pub(crate) fn handle_link_up(&mut self, now: Instant, node: NodeId) {
        self.links.note_up(node);
        self.disks.forgive_node(node);
        self.members_dirty = true;
        self.fills_dirty = true;
        self.prove_disks(now, node);
        if !self.settings.flaws.has(Flaw::LostWakeUp) {
            self.send_all_again(now, |ask| ask.node == node && ask.state != AskState::Sent);
        }
        self.wake_stalled();
    }

    pub(crate) fn send_all_again(&mut self, now: Instant, which: impl Fn(&Ask) -> bool) {
        for request in self.asks_where(which) {
            self.send_again(now, request);
        }
    }

    /// A disk hangs on another node now: what it was asked goes there.
    // rule: volume/asks-follow-their-disk
    pub(crate) fn follow_homes(&mut self, now: Instant) {
        let disks = &self.disks;
        let moved =
            self.asks_where(|ask| disks.home(ask.disk).is_some_and(|home| home != ask.node));
        for request in moved {
            let Some(ask) = self.asks.table.get_mut(&request) else { continue };
            if ask.purpose.is_elsewhere() {
                self.give_up(now, request);
            } else if let Some(home) = self.disks.home(ask.disk) {
                ask.node = home;
                self.send_again(now, request);
            }
        }
    }

    /// What was refused for now and is due. Returns when the next one is.
    pub(crate) fn ask_again(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (request, ask) in &self.asks.table {
            if let AskState::Again { at } = ask.state {
                if at <= now {
                    due.push(*request);
                } else {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
        }
        for request in due {
            self.send_again(now, request);
        }
        next
    }
}
