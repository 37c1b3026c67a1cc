//! The store: opening, then open, then stopped or out of service.

use crate::account::Peek;
use crate::config::StoreConfig;
use crate::disk::{Disk, Phase};
use crate::io::{Effect, Input, OutOfService, StoreStats};
use crate::opening::{Opening, Step};
use gabion_format::{BlockState, SegmentKey, SegmentMeta};
use gabion_types::{BlockIndex, Crc, Epoch, Instant, SegmentIndex, Seq, Version, VolumeId};
use gabion_wire::{Refusal, ReplicaAnswer};
use std::collections::VecDeque;

/// One disk.
#[derive(Debug)]
pub struct Store {
    state: State,
}

#[derive(Debug)]
enum State {
    Opening(Box<Opening>),
    Open(Box<Disk>),
    /// Never opened.
    Closed {
        effects: VecDeque<Effect>,
        refusal: Refusal,
    },
}

/// A segment that a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSegment {
    pub volume: VolumeId,
    pub segment: SegmentIndex,
    pub creation: Epoch,
    /// J, if it is a joiner by its own word.
    pub joined: Option<Epoch>,
    pub settled: Seq,
    pub highest: Seq,
    pub next: Seq,
    pub damaged: bool,
    pub dropped_from: Option<Seq>,
}

/// A volume of which a disk holds segments or a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldVolume {
    pub volume: VolumeId,
    pub segments: u32,
    /// Zero: never fenced.
    pub fence: Epoch,
}

/// Where a block's data lies now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Units: bytes from the start of the disk.
    pub offset: u64,
    pub version: Version,
    pub crc: Crc,
}

impl Store {
    /// Begins to read at once: effects are there before the first input.
    pub fn new(config: StoreConfig, now: Instant) -> Self {
        Self { state: State::Opening(Box::new(Opening::new(config, now))) }
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        match &mut self.state {
            State::Opening(_) => self.handle_opening(now, input),
            State::Open(disk) => {
                let commits = matches!(input, Input::Commit);
                disk.driver.pass(now);
                handle_open(disk, now, input);
                disk.conclude(now, commits);
            }
            State::Closed { effects, refusal } => match input {
                Input::Request { from, request, ask } => {
                    effects.push_back(refused(from, request, &ask, *refusal));
                }
                Input::Stop => effects.push_back(Effect::Stopped),
                Input::Disk(_)
                | Input::OriginGone { .. }
                | Input::SawMap(_)
                | Input::ScrubShare(_)
                | Input::HangAfter(_)
                | Input::WantPage { .. }
                | Input::Commit
                | Input::Tick => {}
            },
        }
    }

    fn handle_opening(&mut self, now: Instant, input: Input) {
        let State::Opening(opening) = &mut self.state else { return };
        opening.driver.pass(now);
        match input {
            Input::Disk(done) => match opening.handle_disk(done) {
                Step::GoesOn => {}
                Step::Open(mut disk) => {
                    disk.driver.pass(now);
                    disk.conclude(now, false);
                    self.state = State::Open(disk);
                }
                Step::Failed(why) => self.close(Effect::OutOfService(why), Refusal::OutOfService),
            },
            Input::Request { from, request, ask } => {
                let effect = refused(from, request, &ask, Refusal::NotReady);
                opening.driver.effects.push_back(effect);
            }
            Input::Stop => self.close(Effect::Stopped, Refusal::NotReady),
            Input::ScrubShare(percent) => opening.settings().scrub_share_percent = percent,
            Input::HangAfter(after) => opening.settings().hang_after = after,
            Input::Tick => {
                let after = opening.settings().hang_after;
                if opening.driver.hangs(after) {
                    let why = OutOfService::Hangs { after };
                    self.close(Effect::OutOfService(why), Refusal::OutOfService);
                }
            }
            Input::OriginGone { .. }
            | Input::SawMap(_)
            | Input::WantPage { .. }
            | Input::Commit => {}
        }
    }

    /// Nothing more is asked of the disk.
    fn close(&mut self, last: Effect, refusal: Refusal) {
        let State::Opening(opening) = &mut self.state else { return };
        let mut effects = std::mem::take(&mut opening.driver.effects);
        effects.retain(|effect| !matches!(effect, Effect::Disk(_)));
        effects.push_back(last);
        self.state = State::Closed { effects, refusal };
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        match &mut self.state {
            State::Opening(opening) => opening.driver.effects.pop_front(),
            State::Open(disk) => disk.driver.effects.pop_front(),
            State::Closed { effects, .. } => effects.pop_front(),
        }
    }

    /// When `Input::Tick` is wanted, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Opening(opening) => opening.next_deadline(),
            State::Open(disk) => disk.next_deadline(),
            State::Closed { .. } => None,
        }
    }

    pub fn stats(&self) -> StoreStats {
        self.disk().map(Disk::stats).unwrap_or_default()
    }

    /// Where the data of a block lies; `None` where it has none here.
    /// `peek` reads so many bytes from an offset on, where its map page is on the disk only.
    pub fn locate(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
        peek: &mut Peek<'_>,
    ) -> Option<BlockPlace> {
        let disk = self.disk()?;
        let entry = self.entry(volume, segment, block, peek)?;
        let BlockState::Data { slot, crc } = entry.state() else { return None };
        let offset = disk.layout.slot_offset(slot);
        Some(BlockPlace { offset, version: entry.version(), crc })
    }

    /// Its map page is on the disk only: `Input::WantPage` brings it.
    pub fn is_away(&self, volume: VolumeId, segment: SegmentIndex, block: BlockIndex) -> bool {
        let segment =
            self.disk().and_then(|disk| disk.table.segment(SegmentKey::new(volume, segment)));
        segment.is_some_and(|segment| segment.known_block(block).is_none())
    }

    /// What it holds, durably, in the order of volumes and segments.
    pub fn segments(&self) -> impl Iterator<Item = HeldSegment> {
        let segments = self.disk().into_iter().flat_map(|disk| disk.table.segments());
        segments.map(|(key, segment)| held(key, &segment.meta))
    }

    pub fn segment(&self, volume: VolumeId, segment: SegmentIndex) -> Option<HeldSegment> {
        let key = SegmentKey::new(volume, segment);
        self.disk()?.table.segment(key).map(|segment| held(key, &segment.meta))
    }

    /// Those with segments here, and those that are only fenced.
    pub fn volumes(&self) -> Vec<HeldVolume> {
        let Some(disk) = self.disk() else { return Vec::new() };
        let counted = disk.table.volumes();
        let fenced = disk.table.fences.keys().filter(|volume| !counted.contains_key(volume));
        let mut volumes: Vec<_> = counted
            .iter()
            .map(|(volume, segments)| (*volume, *segments))
            .chain(fenced.map(|volume| (*volume, 0)))
            .map(|(volume, segments)| {
                let fence = disk.table.fence(volume);
                HeldVolume { volume, segments, fence }
            })
            .collect();
        volumes.sort_unstable_by_key(|held| held.volume);
        volumes
    }

    /// The durable fence of a volume; zero where there is none.
    pub fn fence(&self, volume: VolumeId) -> Epoch {
        self.disk().map_or(Epoch::ZERO, |disk| disk.table.fence(volume))
    }

    /// Requests are taken: it was opened, is not stopping and in service.
    pub fn is_serving(&self) -> bool {
        self.disk().is_some_and(|disk| disk.phase == Phase::Serving)
    }

    pub(crate) fn disk(&self) -> Option<&Disk> {
        match &self.state {
            State::Open(disk) => Some(disk),
            State::Opening(_) | State::Closed { .. } => None,
        }
    }
}

fn handle_open(disk: &mut Disk, now: Instant, input: Input) {
    match input {
        Input::Disk(done) => disk.handle_disk(done),
        Input::Request { from, request, ask } => disk.handle_request(now, from, request, ask),
        Input::OriginGone { origin } => disk.handle_origin_gone(origin),
        Input::SawMap(index) => disk.map_asked = disk.map_asked.max(index),
        Input::ScrubShare(percent) => disk.config.settings.scrub_share_percent = percent,
        Input::HangAfter(after) => disk.config.settings.hang_after = after,
        Input::Stop => match disk.phase {
            Phase::Serving => {
                disk.phase = Phase::Stopping;
                disk.refuse_parked(Refusal::NotReady);
            }
            // The journal still has all that the checkpoint under way would cover.
            Phase::Recovering | Phase::Stopped | Phase::Out => {
                if disk.phase != Phase::Out {
                    disk.phase = Phase::Stopped;
                }
                disk.driver.effects.push_back(Effect::Stopped);
            }
            Phase::Stopping => {}
        },
        Input::WantPage { volume, segment, block } => {
            disk.want_page(SegmentKey::new(volume, segment), block);
        }
        Input::Tick => disk.look_whether_it_hangs(),
        Input::Commit => {}
    }
}

fn refused(
    to: crate::io::Origin,
    request: gabion_wire::RequestId,
    ask: &gabion_wire::ReplicaRequest,
    refusal: Refusal,
) -> Effect {
    let answer =
        ReplicaAnswer { disk: ask.disk, volume: ask.volume, credit_bytes: 0, result: Err(refusal) };
    Effect::Answer { to, request, answer }
}

fn held(key: SegmentKey, meta: &SegmentMeta) -> HeldSegment {
    HeldSegment {
        volume: key.volume,
        segment: key.segment,
        creation: meta.creation,
        joined: meta.joining.then_some(meta.joined),
        settled: meta.settled,
        highest: meta.highest,
        next: meta.next,
        damaged: meta.damaged,
        dropped_from: meta.dropped_from,
    }
}
