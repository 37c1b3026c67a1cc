//! Worlds in which one rule of the protocol is needed soon: each flaw has one, with the number of
//! seeds within which it is found.

use crate::cluster::{
    self, FaultKind, Finale, Forsaken, ForsakenStep, GuestPlan, Part, Parted, PartedStep, Script,
    Strike, Swarm, VolumePlan,
};
use crate::consensus::ConsensusTimes;
use crate::disk::DiskTimes;
use crate::nbd_guest::Dialect;
use crate::report::{Options, Report};
use crate::solo::{self, Plan};
use crate::workload::Mix;
use crate::world::Spread;
use gabion_types::{Duration, Flaw, Flaws, HoldPolicy, Limits, Prng, SegmentSize};

/// Of the cluster map.
type Settings = &'static [(&'static str, &'static str)];

/// Three machines with a disk each, one volume, two copies.
#[derive(Clone, Debug)]
pub struct Storm {
    faults: &'static [FaultKind],
    every: Duration,
    guests: u64,
    depth: usize,
    /// From one request of a guest to its next one.
    think: Spread,
    /// Blocks that guests mostly use.
    hot: u64,
    forgets: bool,
    nbd: Option<Dialect>,
    disk_times: DiskTimes,
    rots: bool,
    requests: u32,
    /// Data of writes on their way to a disk at once. Units: bytes.
    write_bytes: u64,
    /// Of the volume, and how many segments they are in.
    blocks: u64,
    segments: u64,
    rf: u8,
    /// The volume is the guests' of one machine at a time.
    exclusive: bool,
    /// Of what guests read and write.
    unit_bytes: u64,
    /// Units of one request.
    count_max: u64,
    /// Requests for the status of blocks, beside some 45 reads and as many writes.
    status: u64,
    /// What damages disks strikes the first machine, all else the last one.
    apart: bool,
    /// Machines with a disk, and beside them those without.
    with_disk: usize,
    witnesses: usize,
    settings: Settings,
    script: Script,
}

#[derive(Clone, Debug)]
pub enum World {
    Solo(fn(&mut Plan)),
    Cluster(Box<Storm>),
}

/// Blocks of a volume.
const BLOCKS: u64 = 64;

const CALM: Storm = Storm {
    faults: &[],
    every: Duration::from_millis(800),
    guests: 3,
    depth: 4,
    think: Spread::new(500, 10_000),
    hot: 16,
    forgets: true,
    nbd: None,
    disk_times: DiskTimes::FAST,
    rots: false,
    requests: 64,
    write_bytes: 4 << 20,
    blocks: BLOCKS,
    segments: 1,
    rf: 2,
    exclusive: false,
    unit_bytes: 4096,
    count_max: 4,
    status: 0,
    apart: false,
    with_disk: 3,
    witnesses: 0,
    settings: &[("rebuild.wait", "1s")],
    script: Script::None,
};

const BUSY: Spread = Spread::new(50, 2000);
const IDLE: Spread = Spread::new(20_000, 80_000);

/// A disk on which filling takes a while.
const SLOW: DiskTimes = DiskTimes {
    read: Spread::new(1000, 5000),
    write: Spread::new(500, 2000),
    sync: Spread::new(3000, 20_000),
};

/// Reads that take long now and then.
const SLOW_READS: DiskTimes = DiskTimes {
    read: Spread::new(60, 150).with_tail(60_000, 6),
    write: DiskTimes::FAST.write,
    sync: DiskTimes::FAST.sync,
};

/// A request over the border of two segments is two ops.
const MUCH_BEGUN: Storm = Storm { depth: 16, think: BUSY, requests: 2, segments: 4, ..CALM };

const MUCH_SENT: Storm =
    Storm { guests: 2, depth: 600, think: Spread::new(1, 20), disk_times: SLOW, ..CALM };

const MANY_SEGMENTS: Storm = Storm { blocks: 256, segments: 16, hot: 256, ..CALM };

const MANY_JOINERS: Storm = Storm { faults: &[FaultKind::Kill], ..MANY_SEGMENTS };

const LONG_FILLS: Storm = Storm {
    blocks: 256,
    segments: 4,
    hot: 256,
    count_max: 16,
    settings: &[("rebuild.wait", "1s"), ("fill.inflight", "256KiB")],
    disk_times: SLOW,
    faults: &[FaultKind::Kill],
    ..CALM
};

/// Writes of the same blocks would wait for each other.
const MUCH_WRITTEN: Storm = Storm {
    depth: 32,
    think: BUSY,
    blocks: 512,
    hot: 512,
    count_max: 16,
    write_bytes: 256 << 10,
    disk_times: SLOW,
    ..CALM
};

/// The world in which it is found soonest.
pub fn world(flaw: Flaw) -> World {
    use FaultKind::{
        BitRot, Cut, EmptyDisk, EmptyNode, Evict, Isolate, Kill, Move, Pause, PowerCut,
        PowerCutAll, Reset, SlowDisk,
    };
    let storm = |faults| Storm { faults, ..CALM };
    match flaw {
        Flaw::AcknowledgeBeforeMap => storming(storm(&[Isolate, Pause, Cut])),
        Flaw::AcknowledgeByOldAnswers | Flaw::NoRestamp | Flaw::JoinerNotInWriteSet => {
            storming(Storm { depth: 16, ..storm(&[Pause, Kill, Cut]) })
        }
        Flaw::FenceInMemoryOnly => storming(storm(&[Kill, Move])),
        Flaw::KeepUnfencedMember => storming(Storm {
            settings: &[("fence.wait", "100ms")],
            ..storm(&[Pause, Move, SlowDisk, Cut])
        }),
        Flaw::ServeBeforeReconciling => {
            storming(Storm { depth: 16, hot: BLOCKS, ..storm(&[Kill, PowerCutAll, PowerCut]) })
        }
        Flaw::IgnoreReturningTail | Flaw::JoinerOldTailCounts => {
            let strikes_join = flaw == Flaw::JoinerOldTailCounts;
            let script = Script::Orphan { strikes_join };
            let settings = &[("rebuild.wait", "60s")];
            // Without a third disk nobody joins when the copy leaves: else what the owner finds then is
            // written anew, and its seqs pass those that the copy has alone.
            let (with_disk, witnesses) = (2, 1);
            storming(Storm { hot: BLOCKS, script, settings, with_disk, witnesses, ..CALM })
        }
        Flaw::JoinerSettledAdvances | Flaw::SettledToOneThatLeft => {
            let settings = &[("rebuild.wait", "60s")];
            let faults = &[Pause, Kill, Cut, Isolate];
            storming(Storm { disk_times: SLOW, settings, ..storm(faults) })
        }
        Flaw::ReadDuringUnresolvedWrite => storming(Storm {
            guests: 5,
            hot: 3,
            depth: 8,
            ..storm(&[Kill, Pause, Isolate, SlowDisk])
        }),
        Flaw::ReadAfterLease => {
            // Some are under way whenever the owner stands still; that has to outlast its lease.
            let disk_times = DiskTimes { read: Spread::new(5000, 20_000), ..DiskTimes::FAST };
            storming(Storm { disk_times, depth: 16, think: BUSY, ..storm(&[Pause]) })
        }
        Flaw::ForwardedTwice => storming(Storm { guests: 5, hot: 2, ..storm(&[Reset]) }),
        Flaw::LeaseTwiceAsLong => {
            let every = Duration::from_millis(2500);
            storming(Storm { guests: 6, every, ..storm(&[Isolate]) })
        }
        Flaw::LostWakeUp => storming(Storm { depth: 16, ..storm(&[Reset, Kill, Isolate]) }),
        // A request over the border of two segments is two ops.
        Flaw::CrowdNotWoken => storming(Storm {
            depth: 16,
            think: BUSY,
            hot: BLOCKS,
            requests: 2,
            segments: 4,
            ..storm(&[])
        }),
        Flaw::AwakeForNothing => storming(storm(&[Isolate])),
        Flaw::KeepsNobodyOut => storming(Storm { exclusive: true, ..storm(&[Evict, Isolate]) }),
        Flaw::RemovedBeforeReplaced => storming(storm(&[EmptyDisk, EmptyNode])),
        Flaw::LeakedSlot => {
            storming(Storm { depth: 16, think: BUSY, disk_times: SLOW, ..storm(&[Reset]) })
        }
        Flaw::AnswerBeforeSync => storming(storm(&[])),
        Flaw::TrustTheDisk => storming(Storm { rots: true, ..storm(&[]) }),
        Flaw::AdmitWithoutBound => {
            storming(Storm { depth: 16, think: BUSY, requests: 8, ..storm(&[]) })
        }
        Flaw::BegunWithoutBound => storming(MUCH_BEGUN),
        Flaw::SentWithoutBound => storming(MUCH_SENT),
        Flaw::FillsWithoutBound => storming(MANY_JOINERS),
        Flaw::FillBytesWithoutBound => storming(LONG_FILLS),
        Flaw::WritesWithoutBound => storming(MUCH_WRITTEN),
        Flaw::PagesWithoutBound => storming(MANY_SEGMENTS),
        Flaw::DataAsHoles => {
            let nbd = Some(Dialect { structured: true, allocation: true, ..Dialect::PLAIN });
            storming(Storm { status: 10, nbd, ..storm(&[]) })
        }
        Flaw::AnsweredTwice => storming(storm(&[Reset])),
        Flaw::LeakedBytes => storming(Storm { depth: 16, ..storm(&[Isolate, Pause]) }),
        Flaw::HeldFailed => storming(storm(&[Isolate, Kill])),
        // Between a rot and the next write of its block.
        Flaw::SourceUnchecked => storming(Storm {
            rf: 3,
            apart: true,
            hot: BLOCKS,
            every: Duration::from_millis(150),
            think: IDLE,
            ..storm(&[BitRot, Kill])
        }),
        Flaw::LostAsZeros => losing(2, CALM.settings),
        Flaw::LastInstallSkipped => storming(Storm { hot: BLOCKS, ..storm(&[Kill]) }),
        Flaw::TornMerge => storming(Storm { unit_bytes: 512, hot: 2, ..storm(&[]) }),
        // What guests write goes over it; and it takes long until nobody hopes any more.
        Flaw::InstallNotWritten | Flaw::NeverPromoted => {
            storming(Storm { guests: 1, think: IDLE, hot: BLOCKS, ..storm(&[Kill]) })
        }
        Flaw::SettledMovesWithEpochStart => {
            storming(Storm { depth: 16, guests: 6, script: Script::EpochStart, ..storm(&[Kill]) })
        }
        Flaw::CombinesWithNothing => parting(Parted::ForGood),
        Flaw::TailMissesJoiner => parting(Parted::Tail),
        Flaw::ElderUnjudged => parting(Parted::OldElder),
        Flaw::CombinesAnyPair => parting(Parted::LateJoiner),
        Flaw::SurvivorUnfilled => forsaking(Forsaken::Nothing),
        Flaw::FenceBeforeWritesUnderWay
        | Flaw::NoFence
        | Flaw::InstallAlways
        | Flaw::WriteMakesSegment => World::Solo(|_| {}),
        Flaw::NoSyncAfterReplay => World::Solo(|plan| {
            plan.power = true;
            plan.rots = false;
            plan.strikes_superblock = true;
            plan.trouble = Spread::new(5_000, 100_000);
            plan.actions = 2000;
        }),
        Flaw::SlotFreedUnderRead => World::Solo(|plan| {
            plan.disk_bytes = 24 << 20;
            plan.disk_times = SLOW_READS;
            plan.depth = 32;
            plan.think = Spread::new(1, 20);
            plan.trouble = Spread::new(500_000, 3_000_000);
            plan.actions = 6000;
        }),
    }
}

/// All of this many copies of one block rot.
fn losing(rf: u8, settings: Settings) -> World {
    storming(Storm { rf, script: Script::Loss, think: IDLE, settings, ..CALM })
}

/// The last copy that has all goes. Where it comes back, it is waited for a second, so that a joiner begins
/// to be filled then.
fn parting(how: Parted) -> World {
    let script = Script::Parted { how, step: PartedStep::Whole };
    let settings: Settings = match how {
        Parted::ForGood => &[("rebuild.wait", "60s")],
        Parted::Tail => &[("rebuild.wait", "2s")],
        Parted::Silent | Parted::OldElder | Parted::LateJoiner => &[("rebuild.wait", "1s")],
    };
    // Elder and joiner are away at once, and a majority is left.
    let witnesses = if how == Parted::LateJoiner { 2 } else { 0 };
    let depth = if how == Parted::Tail { 4 } else { 16 };
    storming(Storm { depth, hot: BLOCKS, script, settings, witnesses, ..CALM })
}

/// Every copy that has all goes, and an operator accepts the loss.
fn forsaking(how: Forsaken) -> World {
    let script = Script::Forsaken { how, step: ForsakenStep::Whole };
    // Nobody joins where an older copy is to be left; a joiner is not filled.
    let (with_disk, witnesses) = match how {
        Forsaken::Older => (2, 3),
        Forsaken::Part => (3, 2),
        Forsaken::Nothing => (4, 1),
    };
    let settings = &[("rebuild.wait", "60s")];
    storming(Storm { hot: BLOCKS, script, settings, with_disk, witnesses, ..CALM })
}

fn storming(storm: Storm) -> World {
    World::Cluster(Box::new(storm))
}

/// Runs one seed of the world that belongs to a flaw, with another one or none in it.
pub fn run(world: &World, seed: u64, flaws: Flaws) -> Report {
    let options = Options { seed, watch: false };
    match world {
        World::Solo(change) => solo::run_drill(options, flaws, *change),
        World::Cluster(storm) => {
            let mut prng = Prng::new(seed);
            let swarm = storm.swarm(&mut prng);
            cluster::run_flawed(options, swarm, prng, (flaws, storm.script))
        }
    }
}

impl Storm {
    fn swarm(&self, prng: &mut Prng) -> Swarm {
        let chaos = if self.script == Script::None { 12 } else { 15 };
        let chaos = Duration::from_secs(chaos);
        let machines = self.with_disk + self.witnesses;
        let segment =
            SegmentSize::new(self.blocks / self.segments * 4096).expect("a power of two in range");
        let mut strikes = prng.fork();
        Swarm {
            disks: (0..machines).map(|machine| usize::from(machine < self.with_disk)).collect(),
            disk_bytes: 64 << 20,
            limits: Limits {
                segment,
                part_bytes: 64 << 10,
                requests_per_volume: self.requests,
                write_bytes_per_disk: self.write_bytes,
            },
            volumes: vec![VolumePlan {
                name: "vm".into(),
                size_bytes: self.blocks * 4096,
                rf: self.rf,
                hold: HoldPolicy::NeverFail,
                exclusive: self.exclusive,
            }],
            guests: (0..self.guests).map(|_| self.guest(prng)).collect(),
            unit_bytes: self.unit_bytes,
            settings: self.settings.iter().map(|(name, value)| (*name, (*value).into())).collect(),
            clocks_ppm: (0..machines).map(|_| prng.between(920_000, 1_080_000)).collect(),
            net: Spread::new(50, 500).with_tail(20_000, 200),
            disk_times: self.disk_times,
            consensus: ConsensusTimes::FAST,
            strikes: self.strikes(&mut strikes, chaos, machines),
            chaos,
            frail: Vec::new(),
            over_committed: false,
            disk_dies: false,
            rots: self.rots,
            finale: Finale::None,
            damage_seed: prng.next_u64(),
            part: Part::default(),
        }
    }

    fn strikes(&self, prng: &mut Prng, chaos: Duration, machines: usize) -> Vec<Strike> {
        let mut strikes = Strike::draw(prng, self.faults, (self.every, chaos), (machines, &[]));
        if self.apart {
            strikes.iter_mut().for_each(|strike| {
                strike.one = if strike.kind.is_damage() { 0 } else { machines - 1 };
            });
        }
        strikes
    }

    fn guest(&self, prng: &mut Prng) -> GuestPlan {
        let (zero, trim, flush) = (0, 0, 2);
        let mix = Mix {
            read: prng.between(30, 60),
            write: prng.between(30, 60),
            zero,
            trim,
            flush,
            status: self.status,
            cold_of: 10,
            hot: self.hot,
            count_max: self.count_max,
        };
        let patience = Duration::from_secs(prng.between(1, 8));
        let (depth, think) = (self.depth, self.think);
        GuestPlan {
            volume: 0,
            mix,
            depth,
            think,
            patience,
            forgets: self.forgets,
            nbd: self.nbd,
            asks: None,
        }
    }
}

#[cfg(test)]
mod tests;
