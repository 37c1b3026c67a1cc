//! A large disk: what it takes of memory, and how soon it serves again with a full journal. Its file is
//! sparse: guests' data are zeros, and are not written. `GABION_TESTS_LONG=1` does it with 200 GiB, of
//! which 100 hold data; else it is small. What was measured is printed.

// A test fails by a panic; its helpers do too.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use gabion_store::{Effect, Input, NewDisk, Origin, Store, StoreConfig, StoreEvent, format_disk};
use gabion_types::{
    BlockIndex, BlockKind, BlockRange, ClusterId, Crc, DiskDone, DiskId, DiskOp, DiskOpKind, Epoch,
    Limits, SegmentIndex, Seq, Version, VolumeId, block_crc,
};
use gabion_wire::{Refusal, ReplicaDone, ReplicaOp, ReplicaRequest, RequestId};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CLUSTER: ClusterId = ClusterId::new([3; 16]);
const MIB: u64 = 1 << 20;
const WRITE_BLOCKS: u32 = 1024;

struct World {
    store: Store,
    file: File,
    began: Instant,
    answers: BTreeMap<u64, Result<ReplicaDone, Refusal>>,
    next: u64,
    seq: u64,
    frames_replayed: u64,
    /// Pages of a checkpoint are not written any more: it never ends, and the journal fills up.
    holds: bool,
    zeros: Bytes,
}

fn epoch() -> Epoch {
    Epoch::new(1).unwrap()
}

impl World {
    fn open(path: &PathBuf, capacity_bytes: u64) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let config =
            StoreConfig { cluster: Some(CLUSTER), capacity_bytes, ..StoreConfig::default() };
        let began = Instant::now();
        let mut world = Self {
            store: Store::new(config, gabion_types::Instant::from_nanos(1)),
            file,
            began,
            answers: BTreeMap::new(),
            next: 0,
            seq: 0,
            frames_replayed: 0,
            holds: false,
            zeros: vec![0; 4 << 20].into(),
        };
        world.run();
        world
    }

    fn now(&self) -> gabion_types::Instant {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap();
        gabion_types::Instant::from_nanos(1 + nanos)
    }

    fn run(&mut self) {
        while let Some(effect) = self.store.next_effect() {
            match effect {
                Effect::Disk(op) => {
                    if let Some(done) = self.perform(op) {
                        let now = self.now();
                        self.store.handle(now, Input::Disk(done));
                        self.store.handle(now, Input::Commit);
                    }
                }
                Effect::Answer { request, answer, .. } => {
                    self.answers.insert(request.0, answer.result);
                }
                Effect::OutOfService(why) => panic!("{why}"),
                Effect::Event(StoreEvent::Recovered { frames, .. }) => {
                    self.frames_replayed = frames
                }
                Effect::Event(StoreEvent::Damaged(damage)) => panic!("{damage:?}"),
                Effect::Opened(_) | Effect::Event(_) | Effect::Stopped => {}
            }
        }
    }

    /// None: it is held back.
    fn perform(&self, op: DiskOp) -> Option<DiskDone> {
        let data = match op.kind {
            DiskOpKind::Read { offset, length } => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                self.file.read_exact_at(&mut bytes, offset).unwrap();
                Bytes::from(bytes)
            }
            DiskOpKind::Write { offset, pieces } => {
                let mut at = offset;
                if self.holds && pieces[0].starts_with(b"GABIONMP") {
                    return None;
                }
                for piece in pieces {
                    if piece.iter().any(|byte| *byte != 0) {
                        self.file.write_all_at(&piece, at).unwrap();
                    }
                    at += piece.len() as u64;
                }
                Bytes::new()
            }
            DiskOpKind::Sync => Bytes::new(),
        };
        Some(DiskDone { token: op.token, result: Ok(data) })
    }

    fn ask(&mut self, op: ReplicaOp) -> Option<Result<ReplicaDone, Refusal>> {
        self.next += 1;
        let (disk, volume) = (DiskId::new(7), VolumeId::new(1));
        let ask = ReplicaRequest { disk, volume, owner_epoch: epoch(), op };
        let request = RequestId(self.next);
        let now = self.now();
        self.store.handle(now, Input::Request { from: Origin(1), request, ask });
        self.store.handle(now, Input::Commit);
        self.run();
        self.answers.remove(&self.next)
    }

    fn write(&mut self, segment: u32, first: u32, count: u32) -> Option<()> {
        self.seq += 1;
        let version = Version::new(epoch(), Seq::new(self.seq));
        let range = BlockRange::new(BlockIndex::new(first), count).unwrap();
        let crc = zero_crc();
        let data = self.zeros.slice(..count as usize * 4096);
        let settled = Seq::new(self.seq - 1);
        let segment = SegmentIndex::new(segment);
        let crcs = vec![crc; count as usize];
        let op = ReplicaOp::Write { segment, version, range, crcs, data, settled };
        match self.ask(op) {
            Some(Ok(ReplicaDone::Done)) => Some(()),
            None => None,
            other => panic!("{other:?}"),
        }
    }
}

fn zero_crc() -> Crc {
    block_crc(&[0; 4096])
}

/// Units: bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Formatted, and open.
fn made(capacity_bytes: u64) -> (PathBuf, World) {
    let path = std::env::temp_dir().join(format!("gabion-large-{}", std::process::id()));
    let limits = Limits::DEFAULT;
    let new = NewDisk { cluster: CLUSTER, uuid: [9; 16], capacity_bytes, limits };
    let file = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
    file.set_len(capacity_bytes).unwrap();
    for (offset, bytes) in format_disk(&new).unwrap() {
        file.write_all_at(&bytes, offset).unwrap();
    }
    let mut world = World::open(&path, capacity_bytes);
    let segments = u32::try_from(capacity_bytes / limits.segment.bytes()).unwrap();
    let create =
        ReplicaOp::Create { creation: epoch(), first: SegmentIndex::new(0), count: segments };
    assert_eq!(world.ask(create), Some(Ok(ReplicaDone::Done)));
    (path, world)
}

fn per_mib(bytes: u64, mib: u64) -> u64 {
    bytes / mib.max(1)
}

/// Memory by the data that the disk holds: 24 bytes a block, and what lies around them. Time to serve by
/// the data as well, for the map is read when the disk is opened; and by the journal.
// promise: bounded
#[test]
fn a_large_disk_with_a_full_journal_serves_again() {
    let long = std::env::var_os("GABION_TESTS_LONG").is_some();
    let (disk_mib, data_mib) = if long { (200 << 10, 100 << 10) } else { (8 << 10, 2 << 10) };
    let (path, mut world) = made(disk_mib * MIB);
    let empty = resident();
    let segment_blocks = u32::try_from(Limits::DEFAULT.segment.bytes() / 4096).unwrap();
    let segments = u32::try_from(data_mib * MIB / Limits::DEFAULT.segment.bytes()).unwrap();
    for segment in 0..segments {
        for first in (0..segment_blocks).step_by(WRITE_BLOCKS as usize) {
            world.write(segment, first, WRITE_BLOCKS).unwrap();
        }
    }
    let filled = resident();
    // One block a frame, until nothing goes any more: the whole ring is full of them.
    world.holds = true;
    let mut written = 0;
    let mut last;
    let stride = 7919;
    loop {
        let at = written * stride % (u64::from(segments) * u64::from(segment_blocks));
        let block = u32::try_from(at).unwrap();
        last = (block / segment_blocks, block % segment_blocks);
        if world.write(last.0, last.1, 1).is_none() {
            break;
        }
        written += 1;
    }
    drop(world);

    let began = Instant::now();
    let mut world = World::open(&path, disk_mib * MIB);
    let (segment, block) = (SegmentIndex::new(last.0), BlockIndex::new(last.1));
    let read = ReplicaOp::Read { segment, range: BlockRange::new(block, 1).unwrap() };
    let Some(Ok(ReplicaDone::Blocks { blocks, .. })) = world.ask(read) else { panic!("no answer") };
    let took = began.elapsed();
    assert_eq!(blocks[0].kind, BlockKind::Data);
    assert!(world.frames_replayed >= written.min(1000), "{} frames", world.frames_replayed);
    let open = resident();
    let used = per_mib(filled.saturating_sub(empty), data_mib);
    println!(
        "{disk_mib} MiB with {data_mib} MiB of data: {} MiB of memory while filled ({used} bytes for \
         each MiB of data, {} MiB for the empty disk); {written} frames in the journal, {} replayed, \
         serves {took:?} after it was opened, then with {} MiB",
        filled / MIB,
        empty / MIB,
        world.frames_replayed,
        open / MIB
    );
    std::fs::remove_file(&path).unwrap();
    // 24 bytes for each of 256 blocks, two pages' heads, and what the allocator takes.
    assert!(used < 10 << 10, "{used} bytes of memory for each MiB of data");
    // Generous, for other tests run beside it: the figure that counts is the one printed.
    assert!(long || took < Duration::from_secs(20), "{took:?}");
}
