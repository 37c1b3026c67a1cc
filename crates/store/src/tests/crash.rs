//! Random requests, power cuts at any point, and a reference of what may be there afterwards.

use super::model::{Seen, World, create, data, epoch, version, without, write_settled, zero};
use crate::{Input, Origin};
use gabion_types::{BlockKind, DiskOpKind, Duration, SegmentIndex, Seq, Version};
use gabion_wire::{EpochStart, FencedSegment, Refusal, ReplicaDone, ReplicaOp};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SEGMENTS: u32 = 4;
const BLOCKS: u32 = 256;
const ORIGINS: u64 = 3;

type Place = (u32, u32);

/// A request under way: the blocks it would change.
#[derive(Clone, Debug)]
struct Sent {
    version: Version,
    kind: BlockKind,
    places: Vec<Place>,
    op: ReplicaOp,
    owner: u64,
    origin: u64,
}

/// What may stand where.
#[derive(Default)]
struct Reference {
    /// Acknowledged, or shown by a read: this or higher.
    floor: BTreeMap<Place, Version>,
    /// Every value that was ever asked for, and may still come to be.
    values: BTreeMap<Place, BTreeMap<Version, BlockKind>>,
    sent: BTreeMap<u64, Sent>,
    seqs: BTreeMap<u32, u64>,
    owner: u64,
    fence: u64,
}

impl Reference {
    fn check(&mut self, (segment, block): Place, seen: Seen, after_crash: bool) {
        let place = (segment, block);
        let floor = self.floor.get(&place).copied().unwrap_or(Version::NEVER);
        assert!(seen.version >= floor, "{place:?}: {seen:?} is older than {floor}");
        let expected = if seen.version == Version::NEVER {
            without(BlockKind::Absent, Version::NEVER)
        } else {
            let values = self.values.get(&place);
            match values.and_then(|values| values.get(&seen.version)) {
                Some(BlockKind::Data) => data(seen.version, block),
                Some(kind) => without(*kind, seen.version),
                None => panic!("{place:?}: {seen:?} was never asked for, or was shown to be gone"),
            }
        };
        assert_eq!(seen, expected, "{place:?}");
        self.floor.insert(place, seen.version);
        if after_crash && let Some(values) = self.values.get_mut(&place) {
            // Nothing is under way any more: what is not there never comes.
            values.retain(|version, _| *version <= seen.version);
        }
    }

    fn acknowledge(&mut self, request: u64) {
        let Some(sent) = self.sent.remove(&request) else { return };
        for place in sent.places {
            let floor = self.floor.entry(place).or_insert(Version::NEVER);
            *floor = (*floor).max(sent.version);
        }
    }
}

struct Run {
    world: World,
    reference: Reference,
    history: Vec<Sent>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let reference = Reference { owner: 1, ..Reference::default() };
        Self { world, reference, history: Vec::new() }
    }

    /// Other segments fill the disk, so that every slot is used again and again.
    fn on_full_disk(seed: u64) -> Self {
        let mut run = Self::new(seed);
        run.world.ok(1, create(1, SEGMENTS, 20));
        let parts = (SEGMENTS..SEGMENTS + 20)
            .flat_map(|segment| (0..BLOCKS).step_by(32).map(move |first| (segment, first)));
        for (segment, first) in parts {
            let op = write_settled(segment, version(1, 1), first, 32, 0);
            let request = run.world.send(1, op);
            run.world.run();
            let answer = run.world.answers.remove(&request);
            if answer.unwrap().result == Err(Refusal::NoSpace) {
                break;
            }
        }
        run
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.world.prng.below(u64::from(bound))).unwrap()
    }

    fn send_new(&mut self) {
        let segment = self.below(SEGMENTS);
        let first = self.below(BLOCKS);
        let longest = if self.world.prng.chance(1, 8) { 64 } else { 4 };
        let count = (self.below(longest) + 1).min(BLOCKS - first);
        let seq = self.reference.seqs.entry(segment).or_insert(0);
        *seq += 1;
        let settled = seq.saturating_sub(3);
        let owner = self.reference.owner;
        let version = version(owner, *seq);
        let (kind, op) = if self.world.prng.chance(1, 5) {
            (BlockKind::Zero, zero(segment, version, first, count))
        } else {
            (BlockKind::Data, write_settled(segment, version, first, count, settled))
        };
        let places = (first..first + count).map(|block| (segment, block)).collect();
        let origin = self.world.prng.below(ORIGINS);
        let sent = Sent { version, kind, places, op, owner, origin };
        self.history.push(sent.clone());
        self.send(sent);
    }

    fn send(&mut self, sent: Sent) {
        for place in &sent.places {
            let values = self.reference.values.entry(*place).or_default();
            values.insert(sent.version, sent.kind);
        }
        let request = self.world.send_from(sent.origin, sent.owner, sent.op.clone());
        self.reference.sent.insert(request, sent);
        self.collect();
    }

    /// An old request again: of a link that broke, or of an owner that was superseded.
    fn send_again(&mut self) {
        let count = u32::try_from(self.history.len()).unwrap();
        if count == 0 {
            return;
        }
        let at = self.below(count);
        let sent = self.history[at as usize].clone();
        // A value that was shown to be gone may come again only by being asked for again.
        self.send(sent);
    }

    fn fence(&mut self) {
        self.reference.owner += 1;
        let segments = (0..SEGMENTS).map(|segment| FencedSegment {
            segment: SegmentIndex::new(segment),
            creation: epoch(1),
            joined: None,
        });
        let op = ReplicaOp::Fence { segments: segments.collect() };
        let owner = self.reference.owner;
        let Ok(ReplicaDone::Fenced { reports }) = self.world.ask(owner, op) else {
            panic!("a higher owner epoch is never refused")
        };
        self.reference.fence = owner;
        self.collect();
        for (report, segment) in reports.iter().zip(0..) {
            assert!(report.present && !report.damaged);
            let floors = self.reference.floor.iter().filter(|((of, _), _)| *of == segment);
            let acked = floors.map(|(_, version)| version.seq).max().unwrap_or_default();
            assert!(report.highest >= acked, "{report:?} knows less than {acked}");
            let next = Seq::new(self.reference.seqs.get(&segment).copied().unwrap_or(0) + 1);
            let start = EpochStart { segment: report.segment, epoch: epoch(owner), next };
            self.world.ok(owner, ReplicaOp::EpochStart { starts: vec![start] });
        }
    }

    /// What it asked may still happen, but is never answered.
    fn origin_gone(&mut self) {
        let gone = self.world.prng.below(ORIGINS);
        self.world.input(Input::OriginGone { origin: Origin(gone) });
        self.collect();
        self.reference.sent.retain(|_, sent| sent.origin != gone);
    }

    fn advance(&mut self) {
        let settled = self
            .reference
            .seqs
            .iter()
            .map(|(segment, seq)| (SegmentIndex::new(*segment), Seq::new(*seq)));
        let op = ReplicaOp::Advance { settled: settled.collect() };
        self.world.send(self.reference.owner, op);
    }

    fn collect(&mut self) {
        self.world.check_no_leak_now_and_then();
        let answers = std::mem::take(&mut self.world.answers);
        for (request, answer) in answers {
            match answer.result {
                Ok(ReplicaDone::Done) => self.reference.acknowledge(request),
                Err(Refusal::Fenced { by }) => {
                    let sent = self.reference.sent.remove(&request);
                    assert!(sent.is_none_or(|sent| epoch(sent.owner) < by), "refused its owner");
                }
                Err(Refusal::NoSpace) => {
                    self.reference.sent.remove(&request);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn read_some(&mut self) {
        let segment = self.below(SEGMENTS);
        let first = self.below(BLOCKS);
        let count = (self.below(32) + 1).min(BLOCKS - first);
        let seen = self.world.read(segment, first, count);
        // What was acknowledged while the read was under way it need not show.
        for (block, seen) in (first..).zip(seen) {
            self.reference.check((segment, block), seen, false);
        }
        self.collect();
    }

    fn check_all(&mut self) {
        for segment in 0..SEGMENTS {
            for (block, seen) in (0..).zip(self.world.read(segment, 0, BLOCKS)) {
                self.reference.check((segment, block), seen, true);
            }
        }
        self.world.answers.clear();
        let held = self.world.store.fence(gabion_types::VolumeId::new(1));
        assert!(held.get() >= self.reference.fence, "a fence is durable");
    }

    fn crash(self) -> Self {
        let world = self.world.crash();
        Self::reopened(Self { world, ..self })
    }

    fn restart(mut self) -> Self {
        self.world.run();
        self.collect();
        let world = self.world.restart();
        Self::reopened(Self { world, ..self })
    }

    fn reopened(mut run: Self) -> Self {
        let opened = run.world.opened.as_ref().expect("it opens after a power cut");
        assert!(!opened.damaged, "a power cut is no damage");
        run.reference.sent.clear();
        run.check_all();
        run.world.check_no_leak();
        run
    }
}

fn run(mut run: Run, steps: u32) {
    for _ in 0..steps {
        match run.below(100) {
            0..45 => run.send_new(),
            45..50 => run.send_again(),
            50..85 => {
                run.world.step();
                run.collect();
            }
            85..90 => run.read_some(),
            90..92 => run.advance(),
            92 => run.origin_gone(),
            93..94 => run.fence(),
            94..96 => {
                run.world.tick(Duration::from_secs(2));
                run.collect();
            }
            96..98 => run.world.run(),
            98 => run = run.crash(),
            _ => {
                if run.world.prng.chance(1, 4) {
                    run = run.restart();
                }
            }
        }
    }
    let mut run = run.crash();
    // Again at once: recovery itself leaves everything as it was.
    run = run.crash();
    run.restart();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // promise: acked-survives
    // promise: one-owner
    // rule: store/sync-before-answer
    // rule: store/other-life-counts-for-nothing
    #[test]
    fn what_was_answered_is_there_after_any_power_cut(seed: u64) {
        run(Run::new(seed), 400);
    }

    // rule: store/quarantine
    // rule: store/slot-freed-after-reads
    #[test]
    fn also_on_a_full_disk(seed: u64) {
        run(Run::on_full_disk(seed), 400);
    }
}

/// Long enough for many checkpoints and turns of the ring.
#[test]
fn a_long_run_with_many_checkpoints() {
    run(Run::new(11), 6000);
}

/// Power goes again during recovery, at each of its steps.
#[test]
fn a_power_cut_during_recovery_changes_nothing() {
    for seed in 0..20 {
        let mut run = if seed < 10 { Run::new(seed) } else { Run::on_full_disk(seed) };
        for _ in 0..60 {
            run.send_new();
            run.world.step();
            run.collect();
        }
        let mut world = run.world;
        world.cut();
        for steps in 0..40 {
            let mut again = World::on(world.disk.clone(), seed + steps);
            for _ in 0..steps * 3 {
                again.step();
            }
            world = again;
            world.cut();
        }
        let mut world = World::on(world.disk, seed);
        world.run();
        Run::reopened(Run { world, ..run });
    }
}

/// A process that died may have left a root and a superblock in the cache only: what a power cut
/// would bring back instead is not written over before a sync.
// rule: store/recovery-syncs-what-it-read
#[test]
fn recovery_writes_nothing_before_what_it_read_is_durable() {
    for seed in 0..20 {
        let mut run = Run::new(seed);
        for _ in 0..60 {
            run.send_new();
            run.world.step();
            run.collect();
        }
        let mut world = World::on(run.world.disk, seed);
        while world.syncs_done == 0 {
            assert!(world.step(), "it goes on");
            assert_eq!(world.writes_done, 0, "seed {seed}");
        }
    }
}

// rule: store/tail-moves-after-superblock
#[test]
fn frames_are_kept_until_the_superblock_that_covers_them_is_durable() {
    for seed in 0..10 {
        let mut run = Run::new(seed);
        let is_superblock =
            |kind: &DiskOpKind| matches!(kind, DiskOpKind::Write { offset, .. } if *offset <= 4096);
        for _ in 0..300 {
            (0..3).for_each(|_| run.send_new());
            while run.world.step_where(|kind| !is_superblock(kind)) {}
            run.collect();
            if run.world.prng.chance(1, 100) {
                run.world.run();
            }
        }
        run.crash();
    }
}
