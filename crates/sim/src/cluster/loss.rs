//! Every copy of one block rots, which no promise survives but this one: whoever reads it is told that
//! it is lost, and never gets zeros or anything else. Its neighbours are as they were, its owner lists
//! it, and a write over it makes it a block like any other.

use super::guest::{Flight, Guest};
use super::machine::machine_of;
use super::swarm::GuestPlan;
use super::{Cluster, Script};
use crate::invariants::place::serving;
use crate::oracle::Broken;
use crate::workload::{OpKind, OpPlan};
use crate::world::{Spread, Who};
use gabion_types::{BLOCK_BYTES, BlockIndex, BlockKind, DiskId, Duration, Instant};

/// So much was done before it strikes.
const OPERATIONS: u64 = 200;
/// How often it is looked at before it is written.
const LOOKS: usize = 18;
/// Whoever looks at the block asks for one thing after the other.
const LOOKER_PATIENCE: Duration = Duration::from_secs(600);

/// A block without a good copy.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// As the oracle counts volumes.
    volume: usize,
    block: BlockIndex,
    /// Units of it.
    first: u64,
    count: u64,
    since: Instant,
    /// A write that covers it was asked for: then both may be.
    asked: Option<Instant>,
    /// One was acknowledged: it is lost no more.
    over: Option<Instant>,
}

impl Lost {
    fn overlaps(&self, volume: usize, plan: &OpPlan) -> bool {
        let within = plan.first < self.first + self.count && self.first < plan.first + plan.count;
        self.volume == volume && within
    }

    /// Whether this gives the block new content.
    fn is_replaced_by(&self, volume: usize, plan: &OpPlan) -> bool {
        let writes = match plan.kind {
            OpKind::Write { .. } | OpKind::Zero | OpKind::Trim => true,
            OpKind::Read | OpKind::Flush | OpKind::Status => false,
        };
        let covers = plan.first <= self.first && self.first + self.count <= plan.first + plan.count;
        self.volume == volume && writes && covers
    }

    /// Whoever asked then may be told so.
    fn may_be_told(&self, began: Instant) -> bool {
        self.over.is_none_or(|over| began <= over)
    }

    /// Whoever asked then, and is answered now, has to be told so.
    fn must_be_told(&self, began: Instant) -> bool {
        began > self.since && self.asked.is_none()
    }
}

impl Cluster {
    /// Strikes once there is a block that all copies have, away from where guests mostly write.
    pub(super) fn lose_block(&mut self) {
        if self.operations < OPERATIONS {
            return;
        }
        let (volume, segment) = super::script::SEGMENT;
        let Some(members) = self.map.volume(volume).map(|entry| &entry.segments[0]) else { return };
        let copies = members.in_sync.clone();
        let whole = copies.len() == usize::from(self.swarm.volumes[0].rf);
        if !whole || members.write_set().count() != copies.len() {
            return;
        }
        let Some(place) = self.places.get(&volume).copied() else { return };
        let per_block = BLOCK_BYTES / self.oracle.unit_bytes();
        let hot = self.guests.iter().map(|guest| guest.plan.mix.hot).max().unwrap_or(0);
        // With a neighbour on each side.
        let blocks = hot.max(per_block) / per_block..self.oracle.units(place) / per_block - 1;
        let candidates: Vec<_> =
            blocks.filter(|block| self.is_loss_candidate(&copies, place, *block)).collect();
        let mut prng = self.damage_prng.fork();
        let Some(number) = prng.pick(&candidates).copied() else { return };
        let block = BlockIndex::new(u32::try_from(number).expect("of a small volume"));
        self.count("script-loss");
        self.tell(Who::World, format!("every copy of {volume} {segment} block {number} rots"));
        for disk in copies {
            let Some(machine) = self.map.disk(disk).map(|entry| machine_of(entry.node)) else {
                continue;
            };
            self.rot_block(machine, disk, (volume, segment, block), &mut prng);
        }
        self.script = Script::None;
        let (first, since) = (number * per_block, self.queue.now());
        let (asked, over) = (None, None);
        let lost = Lost { volume: place, block, first, count: per_block, since, asked, over };
        self.lost = Some(lost);
        self.look_at_lost(lost);
    }

    /// All copies have the same data of it, and nothing is about to be written there.
    fn is_loss_candidate(&self, copies: &[DiskId], place: usize, block: u64) -> bool {
        let (volume, segment) = super::script::SEGMENT;
        let block = BlockIndex::new(u32::try_from(block).expect("of a small volume"));
        let places = self.places();
        let infos: Vec<_> = copies
            .iter()
            .filter_map(|disk| {
                let store = serving(&self.map, &places, *disk)?;
                let at = crate::invariants::place::find(&self.map, &places, *disk)?;
                let info = store.block(volume, segment, block, &mut at.peek())?;
                (info.kind == BlockKind::Data).then_some(info.version)
            })
            .collect();
        let same = infos.iter().all(|version| *version == infos[0]);
        let per_block = BLOCK_BYTES / self.oracle.unit_bytes();
        let plan = OpPlan {
            kind: OpKind::Read,
            first: u64::from(block.get()) * per_block,
            count: per_block,
        };
        let touches = |other: &OpPlan| {
            other.first < plan.first + plan.count && plan.first < other.first + other.count
        };
        let quiet =
            !self.guests.iter().any(|guest| guest.volume == place && guest.plans().any(&touches));
        infos.len() == copies.len() && same && quiet
    }

    /// One more guest reads it and what is beside it, writes over it, and reads again.
    fn look_at_lost(&mut self, lost: Lost) {
        let Lost { first, count, .. } = lost;
        let plan = |kind, first, count| OpPlan { kind, first, count };
        let read = |first, count| plan(OpKind::Read, first, count);
        let around = read(first - count, 3 * count);
        let (before, after) = (read(first - count, count), read(first + count, count));
        let write = plan(OpKind::Write { fua: false }, first, count);
        let status = OpPlan { kind: OpKind::Status, ..around };
        let block = read(first, count);
        // For long enough that a scrub comes upon it, too.
        let looks = [block, around, status].into_iter().cycle().take(LOOKS);
        let mut asks: Vec<_> = [before, after].into_iter().chain(looks).collect();
        asks.extend([write, block, around, before, after]);
        let prng = self.prng.fork();
        let guest = GuestPlan {
            volume: 0,
            mix: self.guests[0].plan.mix,
            depth: 1,
            think: Spread::new(1, 20),
            patience: LOOKER_PATIENCE,
            forgets: false,
            nbd: None,
            asks: Some(asks),
        };
        self.guests.push(Guest::new(guest, prng));
        self.schedule_act(self.guests.len() - 1, Duration::from_micros(1));
    }

    pub(super) fn note_asked(&mut self, volume: usize, plan: &OpPlan) {
        let now = self.queue.now();
        if let Some(lost) = self.lost.as_mut().filter(|lost| lost.is_replaced_by(volume, plan)) {
            lost.asked.get_or_insert(now);
        }
    }

    /// promise: no-silent-corruption. Errors: a lost block was answered with data, or is not forgotten
    /// when it was written.
    pub(super) fn judge_done(&mut self, guest: usize, flight: &Flight) -> Result<(), Broken> {
        let volume = self.guests[guest].volume;
        let Some(lost) = self.lost else { return Ok(()) };
        let reads = flight.plan.kind == OpKind::Read && lost.overlaps(volume, &flight.plan);
        if reads && lost.must_be_told(flight.began) {
            return Err(broken(format!("{:?} of a lost block went well", flight.plan)));
        }
        if lost.is_replaced_by(volume, &flight.plan) && flight.began >= lost.since {
            self.lost = Some(Lost { over: lost.over.or(Some(self.queue.now())), ..lost });
            self.count("lost-written");
            if let Some(listed) = self.lost_listed().filter(|listed| !listed.is_empty()) {
                return Err(broken(format!("written, and listed as lost: {listed:?}")));
            }
        }
        Ok(())
    }

    /// False: what it asked for is not lost. Errors: it is, and its owner does not list it.
    pub(super) fn judge_lost(&mut self, guest: usize, flight: &Flight) -> Result<bool, Broken> {
        let volume = self.guests[guest].volume;
        let may = |lost: &Lost| {
            let reads = flight.plan.kind == OpKind::Read;
            reads && lost.overlaps(volume, &flight.plan) && lost.may_be_told(flight.began)
        };
        let Some(lost) = self.lost.filter(may) else { return Ok(false) };
        self.count("lost-told");
        let (_, segment) = super::script::SEGMENT;
        let run = (segment.get(), lost.block.get(), 1);
        match self.lost_listed() {
            Some(listed) if lost.asked.is_none() && listed != [run] => {
                Err(broken(format!("{run:?} is lost, and listed are {listed:?}")))
            }
            Some(_) | None => Ok(true),
        }
    }

    /// What the owner lists as lost.
    fn lost_listed(&self) -> Option<Vec<(u32, u32, u32)>> {
        let (volume, _) = super::script::SEGMENT;
        let (owner, _) = self.map.volume(volume)?.owner?;
        let volumes = self.machines[machine_of(owner)].node()?.stats().volumes;
        volumes.into_iter().find(|(id, _)| *id == volume).map(|(_, stats)| stats.lost)
    }
}

fn broken(text: String) -> Broken {
    Broken { promise: "no-silent-corruption", text }
}
