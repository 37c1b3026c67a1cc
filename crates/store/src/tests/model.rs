//! A disk that loses, reorders and tears what was not synced, and a driver around a store.

use crate::{
    Effect, Input, NewDisk, Opened, Origin, OutOfService, Settings, Store, StoreConfig, StoreEvent,
    format_disk,
};
use bytes::{Bytes, BytesMut};
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, BlockRange, ClusterId, Crc, DiskDone, DiskError, DiskId,
    DiskOp, DiskOpKind, Duration, Epoch, Instant, Limits, Prng, SegmentIndex, SegmentSize, Seq,
    Version, VolumeId, block_crc,
};
use gabion_wire::{Refusal, ReplicaAnswer, ReplicaDone, ReplicaOp, ReplicaRequest, RequestId};
use std::collections::BTreeMap;

pub(crate) const PAGE: usize = 4096;
pub(crate) const CAPACITY: u64 = 16 << 20;
pub(crate) const CLUSTER: ClusterId = ClusterId::new([3; 16]);

/// Pages by number; absent ones are zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelDisk {
    pages: BTreeMap<u64, Bytes>,
    /// Done but not synced, in the order in which they were done.
    cached: Vec<(u64, Bytes)>,
    /// Pages ever synced.
    synced: usize,
    /// Pages that answer reads with an error.
    pub(crate) unreadable: Vec<u64>,
}

impl ModelDisk {
    pub(crate) fn page(&self, number: u64) -> Bytes {
        let cached = self.cached.iter().rev().find(|(page, _)| *page == number);
        let page = cached.map(|(_, bytes)| bytes.clone());
        page.or_else(|| self.pages.get(&number).cloned()).unwrap_or_else(|| vec![0; PAGE].into())
    }

    pub(crate) fn read(&self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        let mut bytes = BytesMut::new();
        for number in offset / PAGE as u64..(offset + length) / PAGE as u64 {
            if self.unreadable.contains(&number) {
                return Err(DiskError::Io { errno: 5 });
            }
            bytes.extend_from_slice(&self.page(number));
        }
        Ok(bytes.freeze())
    }

    fn write(&mut self, offset: u64, pieces: &[Bytes]) {
        self.cached.extend(split(offset, pieces));
    }

    pub(crate) fn page_numbers(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    pub(crate) fn sync(&mut self) {
        let count = self.cached.len();
        self.sync_first(count);
    }

    /// Pages ever written.
    fn written(&self) -> usize {
        self.synced + self.cached.len()
    }

    fn sync_first(&mut self, count: usize) {
        self.pages.extend(self.cached.drain(..count));
        self.synced += count;
    }

    /// Flips a bit of what is there.
    pub(crate) fn rot(&mut self, offset: u64) {
        self.sync();
        let number = offset / PAGE as u64;
        let mut bytes = self.page(number).to_vec();
        bytes[usize::try_from(offset).unwrap() % PAGE] ^= 1;
        self.pages.insert(number, bytes.into());
    }

    pub(crate) fn put(&mut self, offset: u64, bytes: &Bytes) {
        self.sync();
        self.pages.extend(split(offset, std::slice::from_ref(bytes)));
    }

    /// Power goes: of what was not synced, and of what was under way, some pages are there, some
    /// are torn, some are not.
    fn lose_power(&mut self, prng: &mut Prng, under_way: &[DiskOp]) {
        let mut unsynced = std::mem::take(&mut self.cached);
        for op in under_way {
            if let DiskOpKind::Write { offset, pieces } = &op.kind {
                unsynced.extend(split(*offset, pieces));
            }
        }
        let keep = prng.below(11);
        for (number, bytes) in unsynced {
            if prng.chance(keep, 10) {
                self.pages.insert(number, bytes);
            } else if prng.chance(1, 4) {
                let sectors = usize::try_from(prng.below(8)).unwrap();
                let mut torn = self.page(number).to_vec();
                torn[..sectors * 512].copy_from_slice(&bytes[..sectors * 512]);
                self.pages.insert(number, torn.into());
            }
        }
    }
}

fn split(offset: u64, pieces: &[Bytes]) -> Vec<(u64, Bytes)> {
    let whole: Bytes = pieces.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>().into();
    assert!(offset.is_multiple_of(PAGE as u64) && whole.len().is_multiple_of(PAGE));
    let pages = (0..whole.len() / PAGE).map(|nth| whole.slice(nth * PAGE..(nth + 1) * PAGE));
    (offset / PAGE as u64..).zip(pages).collect()
}

pub(crate) fn writes_map_page(op: &DiskOpKind) -> bool {
    matches!(op, DiskOpKind::Write { pieces, .. } if pieces[0].starts_with(b"GABIONMP"))
}

/// A store, its disk, and what it said.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) disk: ModelDisk,
    pub(crate) prng: Prng,
    pub(crate) now: Instant,
    /// With how many pages had been written when it was issued.
    under_way: Vec<(usize, DiskOp)>,
    next_request: u64,
    pub(crate) answers: BTreeMap<u64, ReplicaAnswer>,
    pub(crate) opened: Option<Opened>,
    pub(crate) out: Option<OutOfService>,
    pub(crate) events: Vec<StoreEvent>,
    pub(crate) stopped: bool,
    /// The next write or sync fails.
    pub(crate) fail_next: Option<DiskError>,
    pub(crate) writes_done: u64,
    pub(crate) syncs_done: u64,
}

pub(crate) fn limits() -> Limits {
    Limits {
        segment: SegmentSize::new(1 << 20).unwrap(),
        write_bytes_per_disk: 1 << 20,
        ..Limits::DEFAULT
    }
}

pub(crate) fn config() -> StoreConfig {
    StoreConfig { cluster: Some(CLUSTER), capacity_bytes: CAPACITY, ..StoreConfig::default() }
}

pub(crate) fn formatted(uuid: u8) -> ModelDisk {
    let new =
        NewDisk { cluster: CLUSTER, uuid: [uuid; 16], capacity_bytes: CAPACITY, limits: limits() };
    let mut disk = ModelDisk::default();
    for (offset, bytes) in format_disk(&new).unwrap() {
        disk.put(offset, &bytes);
    }
    disk
}

impl World {
    /// A new disk, opened, with segments 0 to 3 of volume 1.
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self::on(formatted(9), seed);
        world.run();
        assert!(world.opened.is_some(), "{:?}", world.out);
        world.ok(1, create(1, 0, 4));
        world
    }

    pub(crate) fn on(disk: ModelDisk, seed: u64) -> Self {
        // Those that were drawn: most often with fewer map pages in memory than are needed.
        let pages_max = [0, 1, 2, 32_768][usize::try_from(seed % 4).unwrap()];
        let pages_max = if seed < 1000 { 32_768 } else { pages_max };
        let settings = Settings { pages_max, ..Settings::default() };
        Self::with(disk, seed, StoreConfig { seed, settings, ..config() })
    }

    pub(crate) fn with(disk: ModelDisk, seed: u64, config: StoreConfig) -> Self {
        let now = Instant::from_nanos(1);
        let mut world = Self {
            store: Store::new(config, now),
            disk,
            prng: Prng::new(seed),
            now,
            under_way: Vec::new(),
            next_request: 0,
            answers: BTreeMap::new(),
            opened: None,
            out: None,
            events: Vec::new(),
            stopped: false,
            fail_next: None,
            writes_done: 0,
            syncs_done: 0,
        };
        world.drain();
        world
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.now = self.now + Duration::from_micros(10);
        self.store.handle(self.now, input);
        self.store.handle(self.now, Input::Commit);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.store.next_effect() {
            match effect {
                Effect::Disk(op) => {
                    assert!(self.out.is_none(), "nothing is asked of a failed disk: {op:?}");
                    self.under_way.push((self.disk.written(), op));
                }
                Effect::Answer { request, answer, .. } => {
                    let before = self.answers.insert(request.0, answer);
                    assert_eq!(before, None, "answered twice");
                }
                Effect::Opened(opened) => {
                    assert_eq!(self.opened.replace(opened), None, "opened twice");
                }
                Effect::OutOfService(why) => {
                    assert_eq!(self.out.replace(why), None, "out of service twice");
                }
                Effect::Event(event) => self.events.push(event),
                Effect::Stopped => {
                    assert!(!self.stopped, "stopped twice");
                    self.stopped = true;
                }
            }
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// One operation of the disk is done: any of those under way.
    pub(crate) fn step(&mut self) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        let at = self.prng.below(self.under_way.len() as u64);
        self.complete(usize::try_from(at).unwrap());
        true
    }

    /// Completes the first operation for which `wanted` holds.
    pub(crate) fn step_where(&mut self, wanted: impl Fn(&DiskOpKind) -> bool) -> bool {
        let at = self.under_way.iter().position(|(_, op)| wanted(&op.kind));
        at.is_some_and(|at| {
            self.complete(at);
            true
        })
    }

    fn complete(&mut self, at: usize) {
        let (issued, op) = self.under_way.remove(at);
        let writes = !matches!(op.kind, DiskOpKind::Read { .. });
        let result = match self.fail_next.take_if(|_| writes) {
            Some(error) => Err(error),
            None => self.perform(issued, &op),
        };
        self.input(Input::Disk(DiskDone { token: op.token, result }));
    }

    fn perform(&mut self, issued: usize, op: &DiskOp) -> Result<Bytes, DiskError> {
        match &op.kind {
            DiskOpKind::Read { offset, length } => return self.disk.read(*offset, *length),
            DiskOpKind::Write { offset, pieces } => {
                self.disk.write(*offset, pieces);
                self.writes_done += 1;
            }
            DiskOpKind::Sync => {
                self.syncs_done += 1;
                let synced = self.disk.synced;
                self.disk.sync_first(issued.saturating_sub(synced));
            }
        }
        Ok(Bytes::new())
    }

    /// Writes of map pages.
    pub(crate) fn map_pages_out(&self) -> usize {
        self.under_way.iter().filter(|(_, op)| writes_map_page(&op.kind)).count()
    }

    /// Until the disk has nothing more to do.
    pub(crate) fn run(&mut self) {
        while self.step() {}
    }

    pub(crate) fn tick(&mut self, after: Duration) {
        self.now = self.now + after;
        self.input(Input::Tick);
    }

    pub(crate) fn send_from(&mut self, origin: u64, owner: u64, op: ReplicaOp) -> u64 {
        self.send_of(origin, 1, owner, op)
    }

    pub(crate) fn send_of(&mut self, origin: u64, volume: u32, owner: u64, op: ReplicaOp) -> u64 {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let ask = ReplicaRequest {
            disk: DiskId::new(7),
            volume: VolumeId::new(volume),
            owner_epoch: epoch(owner),
            op,
        };
        self.input(Input::Request { from: Origin(origin), request, ask });
        self.next_request
    }

    pub(crate) fn send(&mut self, owner: u64, op: ReplicaOp) -> u64 {
        self.send_from(1, owner, op)
    }

    pub(crate) fn ask(&mut self, owner: u64, op: ReplicaOp) -> Result<ReplicaDone, Refusal> {
        let request = self.send(owner, op);
        self.run();
        self.answers.remove(&request).expect("a quiet disk has answered").result
    }

    /// What takes its time.
    pub(crate) fn ask_paced(&mut self, owner: u64, op: ReplicaOp) -> Result<ReplicaDone, Refusal> {
        let request = self.send(owner, op);
        loop {
            self.run();
            if let Some(answer) = self.answers.remove(&request) {
                return answer.result;
            }
            self.tick(Duration::from_millis(100));
        }
    }

    pub(crate) fn result(&self, request: u64) -> Option<Result<ReplicaDone, Refusal>> {
        self.answers.get(&request).map(|answer| answer.result.clone())
    }

    pub(crate) fn ok(&mut self, owner: u64, op: ReplicaOp) {
        assert_eq!(self.ask(owner, op), Ok(ReplicaDone::Done));
    }

    pub(crate) fn read(&mut self, segment: u32, first: u32, count: u32) -> Vec<Seen> {
        let op =
            ReplicaOp::Read { segment: SegmentIndex::new(segment), range: range(first, count) };
        match self.ask(u64::from(u32::MAX), op) {
            Ok(ReplicaDone::Blocks { blocks, data }) => seen(&blocks, &data),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read_one(&mut self, segment: u32, block: u32) -> Seen {
        self.read(segment, block, 1)[0]
    }

    /// It looks at the whole map, so not at each step.
    pub(crate) fn check_no_leak_now_and_then(&mut self) {
        if self.prng.chance(1, 20) {
            self.check_no_leak();
        }
    }

    pub(crate) fn peek(&self) -> impl FnMut(u64) -> Option<Bytes> {
        |offset| self.disk.read(offset, 4096).ok()
    }

    pub(crate) fn locate(
        &self,
        volume: VolumeId,
        segment: SegmentIndex,
        block: BlockIndex,
    ) -> Option<crate::BlockPlace> {
        self.store.locate(volume, segment, block, &mut self.peek())
    }

    /// Every slot that is taken is taken by something.
    pub(crate) fn check_no_leak(&self) {
        let disk = self.store.disk().unwrap();
        let account = self.store.slot_account(&mut self.peek()).unwrap();
        assert_eq!(account.named_free, 0, "what is named is taken");
        let known = account.data + account.metadata + account.passing;
        assert_eq!(account.taken, known, "slots leaked");
        assert_eq!(disk.table.places_held(), account.metadata, "places are counted right");
    }

    /// Power is cut and comes back; the disk is opened anew. Now and then it goes again meanwhile.
    pub(crate) fn crash(mut self) -> Self {
        loop {
            self.cut();
            let seed = self.prng.next_u64();
            self = Self::on(self.disk, seed);
            if self.prng.chance(2, 3) {
                self.run();
                return self;
            }
            for _ in 0..self.prng.below(100) {
                self.step();
            }
        }
    }

    /// Power is cut with everything that was done on the disk, and nothing that was not.
    pub(crate) fn crash_with_all_done(mut self) -> Self {
        self.disk.sync();
        self.under_way.clear();
        let mut world = Self::on(self.disk, 1);
        world.run();
        world
    }

    /// Power is cut: what is under way may or may not be there.
    pub(crate) fn cut(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        let ops: Vec<_> = under_way.into_iter().map(|(_, op)| op).collect();
        self.disk.lose_power(&mut self.prng, &ops);
    }

    /// A clean stop, and opened anew.
    pub(crate) fn restart(mut self) -> Self {
        self.input(Input::Stop);
        self.run();
        assert!(self.stopped);
        let seed = self.prng.next_u64();
        let mut world = Self::on(self.disk, seed);
        world.run();
        assert!(world.opened.is_some());
        world
    }
}

/// What a read showed of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: BlockKind,
    pub(crate) version: Version,
    /// Of the data as it came.
    pub(crate) crc: Crc,
}

fn seen(blocks: &[BlockInfo], data: &Bytes) -> Vec<Seen> {
    let mut chunks = data.chunks_exact(PAGE);
    blocks
        .iter()
        .map(|info| {
            let crc = match info.kind {
                BlockKind::Data => block_crc(chunks.next().unwrap()),
                BlockKind::Absent | BlockKind::Zero | BlockKind::Lost | BlockKind::Bad => {
                    Crc::default()
                }
            };
            assert_eq!(crc, info.crc, "what is read matches its checksum");
            Seen { kind: info.kind, version: info.version, crc }
        })
        .collect()
}

pub(crate) fn epoch(value: u64) -> Epoch {
    Epoch::new(value).unwrap()
}

pub(crate) fn version(epoch_value: u64, seq: u64) -> Version {
    Version::new(epoch(epoch_value), Seq::new(seq))
}

pub(crate) fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(BlockIndex::new(first), count).unwrap()
}

/// A block's data, unique to the version and the block.
pub(crate) fn fill(version: Version, block: u32) -> Vec<u8> {
    let mut bytes = vec![0u8; PAGE];
    bytes[..8].copy_from_slice(&version.epoch.get().to_le_bytes());
    bytes[8..16].copy_from_slice(&version.seq.get().to_le_bytes());
    bytes[16..20].copy_from_slice(&block.to_le_bytes());
    bytes[4088..].copy_from_slice(&version.seq.get().to_le_bytes());
    bytes
}

pub(crate) fn data(version: Version, block: u32) -> Seen {
    Seen { kind: BlockKind::Data, version, crc: block_crc(&fill(version, block)) }
}

pub(crate) fn without(kind: BlockKind, version: Version) -> Seen {
    Seen { kind, version, crc: Crc::default() }
}

pub(crate) fn create(creation: u64, first: u32, count: u32) -> ReplicaOp {
    ReplicaOp::Create { creation: epoch(creation), first: SegmentIndex::new(first), count }
}

pub(crate) fn write(segment: u32, version: Version, first: u32, count: u32) -> ReplicaOp {
    write_settled(segment, version, first, count, 0)
}

pub(crate) fn write_settled(
    segment: u32,
    version: Version,
    first: u32,
    count: u32,
    settled: u64,
) -> ReplicaOp {
    let blocks: Vec<_> = (first..first + count).map(|block| fill(version, block)).collect();
    ReplicaOp::Write {
        segment: SegmentIndex::new(segment),
        version,
        range: range(first, count),
        crcs: blocks.iter().map(|block| block_crc(block)).collect(),
        data: blocks.concat().into(),
        settled: Seq::new(settled),
    }
}

pub(crate) fn zero(segment: u32, version: Version, first: u32, count: u32) -> ReplicaOp {
    ReplicaOp::Zero {
        segment: SegmentIndex::new(segment),
        version,
        range: range(first, count),
        settled: Seq::ZERO,
    }
}

pub(crate) fn info(block: u32, kind: BlockKind, version: Version) -> BlockInfo {
    let crc = match kind {
        BlockKind::Data => block_crc(&fill(version, block)),
        BlockKind::Absent | BlockKind::Zero | BlockKind::Lost | BlockKind::Bad => Crc::default(),
    };
    BlockInfo { block: BlockIndex::new(block), kind, version, crc }
}

/// A payload for the `Data` blocks.
pub(crate) fn payload(blocks: &[BlockInfo]) -> Bytes {
    let of_data = blocks.iter().filter(|info| info.kind == BlockKind::Data);
    let bytes: Vec<_> = of_data.map(|info| fill(info.version, info.block.get())).collect();
    bytes.concat().into()
}
