//! Random requests of every kind: what is recovered is exactly what was durable, whatever
//! checkpoint was under way.

use super::model::{
    World, create, epoch, info, payload, range, version, without, write, write_settled, zero,
};
use crate::{HeldSegment, HeldVolume, Input};
use gabion_types::{
    BlockIndex, BlockInfo, BlockKind, MapIndex, Prng, SegmentIndex, Seq, Version, VolumeId,
};
use gabion_wire::{EpochStart, FencedSegment, ReplicaDone, ReplicaOp};
use proptest::prelude::*;

const SEGMENTS: u32 = 5;

/// All that a disk knows.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    volumes: Vec<HeldVolume>,
    segments: Vec<HeldSegment>,
    blocks: Vec<Vec<BlockInfo>>,
    places: Vec<Option<u64>>,
}

fn snapshot(world: &mut World) -> Snapshot {
    let volume = VolumeId::new(1);
    let segments: Vec<_> = world.store.segments().collect();
    let mut blocks = Vec::new();
    let mut places = Vec::new();
    for held in &segments {
        let op = ReplicaOp::Scan {
            segment: held.segment,
            from: BlockIndex::default(),
            seq_above: Seq::ZERO,
            epoch_from: Some(epoch(0)),
            entries_max: 4096,
        };
        let request = world.send(u64::from(u32::MAX), op);
        while world.result(request).is_none() {
            assert!(world.step(), "a quiet disk has answered");
        }
        let Some(Ok(ReplicaDone::Table { entries, next: None })) = world.result(request) else {
            panic!("two pages are looked at in one go")
        };
        blocks.push(entries);
        let place = |block| world.locate(volume, held.segment, BlockIndex::new(block));
        places.extend((0..256).map(|block| place(block).map(|place| place.offset)));
    }
    Snapshot { volumes: world.store.volumes(), segments, blocks, places }
}

struct Script {
    prng: Prng,
    seq: u64,
    owner: u64,
}

impl Script {
    fn version(&mut self) -> Version {
        self.seq += 1;
        let back = self.prng.below(4);
        version(
            self.owner.saturating_sub(back).max(1),
            self.seq - self.prng.below(3).min(self.seq - 1),
        )
    }

    fn blocks(&mut self, absent: bool) -> Vec<BlockInfo> {
        let first = u32::try_from(self.prng.below(240)).unwrap();
        let mut blocks = Vec::new();
        for block in first..first + 8 {
            let version = self.version();
            match self.prng.below(5) {
                0 => blocks.push(info(block, BlockKind::Zero, version)),
                1 => blocks.push(info(block, BlockKind::Lost, version)),
                2 if absent => blocks.push(info(block, BlockKind::Absent, Version::NEVER)),
                2 | 3 => blocks.push(info(block, BlockKind::Data, version)),
                _ => {}
            }
        }
        blocks
    }

    fn op(&mut self, world: &mut World) -> ReplicaOp {
        let index = u32::try_from(self.prng.below(u64::from(SEGMENTS))).unwrap();
        let segment = SegmentIndex::new(index);
        let held = world.store.segment(VolumeId::new(1), segment);
        let creation = held.map_or(epoch(1), |held| held.creation);
        let joined = held.and_then(|held| held.joined).unwrap_or(epoch(self.owner));
        let first = u32::try_from(self.prng.below(200)).unwrap();
        let count = u32::try_from(self.prng.below(40)).unwrap() + 1;
        match self.prng.below(40) {
            0..14 => {
                let version = self.version();
                write_settled(index, version, first, count, self.seq.saturating_sub(9))
            }
            14..18 => zero(index, self.version(), first, count),
            18..22 => {
                let blocks = self.blocks(false);
                let data = payload(&blocks);
                ReplicaOp::Settle { segment, blocks, data }
            }
            22..28 => {
                let blocks = self.blocks(true);
                let data = payload(&blocks);
                ReplicaOp::Install { segment, joined, blocks, data }
            }
            28..30 => ReplicaOp::JoinStart { segment, joined: epoch(self.owner), creation },
            30 => {
                let (joined, creation) = (epoch(self.owner), epoch(self.owner));
                ReplicaOp::JoinStart { segment, joined, creation }
            }
            31..33 => ReplicaOp::Promoted { segment, joined, settled: Seq::new(self.seq / 2) },
            33 => ReplicaOp::Drop { segment, creation, epoch: epoch(self.owner) },
            34 => create(self.owner, index, 1),
            35 => {
                let next = Seq::new(self.seq);
                let starts = vec![EpochStart { segment, epoch: epoch(self.owner), next }];
                ReplicaOp::EpochStart { starts }
            }
            36 => ReplicaOp::Advance { settled: vec![(segment, Seq::new(self.seq))] },
            37 => {
                self.owner += 1;
                let segments = vec![FencedSegment { segment, creation, joined: None }];
                ReplicaOp::Fence { segments }
            }
            38 => ReplicaOp::Read { segment, range: range(first, count) },
            _ => {
                self.owner += 1;
                write(index, self.version(), first, 1)
            }
        }
    }
}

/// Each step decides by its own number, so that what is left of a script does the same.
fn run(seed: u64, steps: impl IntoIterator<Item = u64>) {
    let mut world = World::new(seed);
    let mut script = Script { prng: Prng::new(seed), seq: 0, owner: 1 };
    for step in steps {
        script.prng = Prng::new(step);
        let op = script.op(&mut world);
        let silent = matches!(op, ReplicaOp::Advance { .. });
        let mut requests = vec![world.send(script.owner, op)];
        if script.prng.chance(1, 3) {
            let op = script.op(&mut world);
            if !matches!(op, ReplicaOp::Advance { .. }) {
                requests.push(world.send(script.owner, op));
            }
        }
        if silent {
            requests.remove(0);
        }
        // A checkpoint may still be under way when all is answered.
        while requests.iter().any(|request| world.result(*request).is_none()) {
            assert!(world.step(), "a quiet disk has answered");
        }
        world.check_no_leak_now_and_then();
        if script.prng.chance(1, 30) {
            world.input(Input::SawMap(MapIndex::new(script.seq)));
        }
        if script.prng.chance(1, 25) {
            while world.store.stats().pending > 0 {
                world.step();
            }
            let before = snapshot(&mut world);
            world = world.crash();
            let opened = world.opened.as_ref().expect("it opens after a power cut");
            assert!(!opened.damaged);
            assert_eq!(snapshot(&mut world), before);
        }
    }
    let before = snapshot(&mut world);
    let mut world = world.restart();
    let after = snapshot(&mut world);
    assert_eq!((&after.blocks, &after.places), (&before.blocks, &before.places));
    all_slots_return(world, &after);
}

/// Everything dropped: what is left are the places that nothing owns any more, and none of them.
fn all_slots_return(mut world: World, held: &Snapshot) {
    for held in &held.segments {
        let (creation, epoch) = (held.creation, epoch(u64::from(u32::MAX)));
        world.ok(0, ReplicaOp::Drop { segment: held.segment, creation, epoch });
    }
    let mut world = world.restart();
    assert_eq!(world.store.stats().used_bytes, 0, "slots leaked");
    world.ok(u64::from(u32::MAX), create(1, 0, 1));
    assert_eq!(world.read_one(0, 0), without(BlockKind::Absent, Version::NEVER));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // promise: self-describing
    // rule: store/bitmap-behind-map-pages
    #[test]
    fn what_is_recovered_is_what_was(
        seed: u64,
        steps in proptest::collection::vec(any::<u64>(), 1..400),
    ) {
        run(seed, steps);
    }
}

#[test]
fn a_long_script_with_many_checkpoints() {
    let mut prng = Prng::new(5);
    run(5, std::iter::repeat_with(|| prng.next_u64()).take(3000));
}
