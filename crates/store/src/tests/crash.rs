//! Random requests, power cuts at any point, and a reference of what may be there afterwards.

use super::model::{Seen, World, create, data, epoch, version, without, write_settled, zero};
use crate::{Input, Origin};
use gabion_types::{BlockKind, DiskOpKind, Duration, SegmentIndex, Seq, Version};
use gabion_wire::{EpochStart, FencedSegment, Refusal, ReplicaDone, ReplicaOp};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
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

/// One thing that happens. Numbers are cut to what there is, so that a script stays one when a part of
/// it is left out.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        segment: u32,
        first: u32,
        count: u32,
        origin: u64,
    },
    Zero {
        segment: u32,
        first: u32,
        count: u32,
        origin: u64,
    },
    /// An old request again: of a link that broke, or of an owner that was superseded.
    Again {
        which: usize,
    },
    /// So many operations of the disk are done.
    Disk {
        operations: u8,
    },
    Read {
        segment: u32,
        first: u32,
        count: u32,
    },
    Advance,
    OriginGone {
        origin: u64,
    },
    Fence,
    /// Two seconds pass.
    Wait,
    /// Until the disk has nothing more to do.
    Quiet,
    Crash,
    Restart,
}

impl Step {
    /// Operations of the disk that it waits for.
    fn operations(&self) -> usize {
        if let Self::Disk { operations } = self { usize::from(*operations) } else { 0 }
    }

    /// How many steps of a script come before its so manieth operation of the disk, and what of the
    /// next step still does.
    fn up_to(script: &[Self], operation: usize) -> (usize, Option<Self>) {
        let mut left = operation;
        for (number, step) in script.iter().enumerate() {
            if step.operations() > left {
                let operations = u8::try_from(left).unwrap();
                return (number, (left > 0).then_some(Self::Disk { operations }));
            }
            left -= step.operations();
        }
        (script.len(), None)
    }
}

fn place() -> impl Strategy<Value = (u32, u32, u32)> {
    let count = prop_oneof![7 => 1_u32..=4, 1 => 1_u32..=64];
    (0..SEGMENTS, 0..BLOCKS, count)
        .prop_map(|(segment, first, count)| (segment, first, count.min(BLOCKS - first)))
}

fn step() -> impl Strategy<Value = Step> {
    let asked = || (place(), 0..ORIGINS);
    prop_oneof![
        36 => asked().prop_map(|((segment, first, count), origin)| Step::Write {
            segment, first, count, origin,
        }),
        9 => asked().prop_map(|((segment, first, count), origin)| Step::Zero {
            segment, first, count, origin,
        }),
        5 => any::<usize>().prop_map(|which| Step::Again { which }),
        20 => (1_u8..5).prop_map(|operations| Step::Disk { operations }),
        5 => place().prop_map(|(segment, first, count)| Step::Read { segment, first, count }),
        2 => Just(Step::Advance),
        1 => (0..ORIGINS).prop_map(|origin| Step::OriginGone { origin }),
        1 => Just(Step::Fence),
        2 => Just(Step::Wait),
        2 => Just(Step::Quiet),
        2 => Just(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..400)
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

    /// A write or a zero drawn by the world's own chance.
    fn send_new(&mut self) {
        let segment = self.below(SEGMENTS);
        let first = self.below(BLOCKS);
        let longest = if self.world.prng.chance(1, 8) { 64 } else { 4 };
        let count = (self.below(longest) + 1).min(BLOCKS - first);
        let kind = if self.world.prng.chance(1, 5) { BlockKind::Zero } else { BlockKind::Data };
        let origin = self.world.prng.below(ORIGINS);
        self.ask(kind, (segment, first, count), origin);
    }

    fn ask(&mut self, kind: BlockKind, (segment, first, count): (u32, u32, u32), origin: u64) {
        let seq = self.reference.seqs.entry(segment).or_insert(0);
        *seq += 1;
        let settled = seq.saturating_sub(3);
        let owner = self.reference.owner;
        let version = version(owner, *seq);
        let op = if kind == BlockKind::Zero {
            zero(segment, version, first, count)
        } else {
            write_settled(segment, version, first, count, settled)
        };
        let places = (first..first + count).map(|block| (segment, block)).collect();
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

    fn send_again(&mut self, which: usize) {
        // A value that was shown to be gone may come again only by being asked for again.
        let count = self.history.len().max(1);
        if let Some(sent) = self.history.get(which % count).cloned() {
            self.send(sent);
        }
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
    fn origin_gone(&mut self, gone: u64) {
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

    fn read_some(&mut self, segment: u32, first: u32, count: u32) {
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

fn run(mut run: Run, script: &[Step]) {
    for step in script {
        match *step {
            Step::Write { segment, first, count, origin } => {
                run.ask(BlockKind::Data, (segment, first, count), origin);
            }
            Step::Zero { segment, first, count, origin } => {
                run.ask(BlockKind::Zero, (segment, first, count), origin);
            }
            Step::Again { which } => run.send_again(which),
            Step::Disk { operations } => {
                for _ in 0..operations {
                    run.world.step();
                    run.collect();
                }
            }
            Step::Read { segment, first, count } => run.read_some(segment, first, count),
            Step::Advance => run.advance(),
            Step::OriginGone { origin } => run.origin_gone(origin),
            Step::Fence => run.fence(),
            Step::Wait => {
                run.world.tick(Duration::from_secs(2));
                run.collect();
            }
            Step::Quiet => run.world.run(),
            Step::Crash => run = run.crash(),
            Step::Restart => run = run.restart(),
        }
    }
    let mut run = run.crash();
    // Again at once: recovery itself leaves everything as it was.
    run = run.crash();
    run.restart();
}

/// A script of so many steps from a seed, where it shall be the same each time.
fn script_of(seed: u64, steps: usize) -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let strategy = proptest::collection::vec(step(), steps);
    strategy.new_tree(&mut runner).unwrap().current()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // promise: acked-survives
    // promise: one-owner
    // rule: store/sync-before-answer
    // rule: store/other-life-counts-for-nothing
    #[test]
    fn what_was_answered_is_there_after_any_power_cut(script in script(), seed in 0_u64..1000) {
        run(Run::new(seed), &script);
    }

    // rule: store/quarantine
    // rule: store/slot-freed-after-reads
    #[test]
    fn also_on_a_full_disk(script in script(), seed in 0_u64..1000) {
        run(Run::on_full_disk(seed), &script);
    }
}

/// The power goes at every boundary between two operations of the disk, one after the other.
#[test]
fn a_power_cut_at_each_operation_loses_nothing() {
    for seed in 0..4 {
        let script = script_of(seed, 60);
        let operations: usize = script.iter().map(Step::operations).sum();
        for cut in 0..operations {
            let (before, part) = Step::up_to(&script, cut);
            let mut cut_short = script[..before].to_vec();
            cut_short.extend(part);
            run(Run::new(seed), &cut_short);
        }
    }
}

/// Long enough for many checkpoints and turns of the ring.
#[test]
fn a_long_run_with_many_checkpoints() {
    run(Run::new(11), &script_of(11, 6000));
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
