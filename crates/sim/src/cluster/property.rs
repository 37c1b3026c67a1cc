//! Generated requests and faults over whole nodes and their stores, with a log that works: what breaks
//! a promise is made small by proptest, to the requests and faults that it takes.

use super::fault::FaultKind;
use super::schedule::{Part, Strike};
use super::swarm::{Finale, GuestPlan, Swarm, VolumePlan};
use super::{Options, run_swarm};
use crate::consensus::ConsensusTimes;
use crate::disk::DiskTimes;
use crate::workload::{Mix, OpKind, OpPlan};
use crate::world::Spread;
use gabion_types::{BLOCK_BYTES, Duration, HoldPolicy, Limits, Prng, SegmentSize};
use proptest::collection::vec;
use proptest::prelude::*;

const MACHINES: usize = 3;
/// Of the volume, on two segments.
const BLOCKS: u64 = 96;
const CHAOS: Duration = Duration::from_secs(6);

fn ask() -> impl Strategy<Value = OpPlan> {
    let kind = prop_oneof![
        4 => Just(OpKind::Read),
        6 => any::<bool>().prop_map(|fua| OpKind::Write { fua }),
        1 => Just(OpKind::Zero),
        1 => Just(OpKind::Trim),
        1 => Just(OpKind::Flush),
    ];
    // Most go to few blocks, where they meet.
    let first = prop_oneof![3 => 0..8_u64, 1 => 0..BLOCKS - 16];
    (kind, first, 1..=16_u64).prop_map(|(kind, first, count)| match kind {
        OpKind::Flush => OpPlan { kind, first: 0, count: 0 },
        OpKind::Read | OpKind::Write { .. } | OpKind::Zero | OpKind::Trim | OpKind::Status => {
            OpPlan { kind, first, count }
        }
    })
}

/// No copy is lost for good by it.
fn strike() -> impl Strategy<Value = Strike> {
    let kinds: Vec<_> = FaultKind::ALL.into_iter().filter(|kind| !kind.is_damage()).collect();
    let kind = proptest::sample::select(kinds);
    let machines = (0..MACHINES, 1..MACHINES);
    (kind, 0..4000_u64, 5..6000_u64, machines, any::<u64>()).prop_map(
        |(kind, at_ms, lasts_ms, (one, further), seed)| Strike {
            at: Duration::from_millis(at_ms),
            kind,
            lasts: Duration::from_millis(lasts_ms),
            one,
            other: (one + further) % MACHINES,
            seed,
        },
    )
}

fn finale() -> impl Strategy<Value = Finale> {
    let all = [Finale::None, Finale::Stop, Finale::PowerCut, Finale::Kill];
    proptest::sample::select(all.to_vec())
}

fn guest(asks: Vec<OpPlan>) -> GuestPlan {
    GuestPlan {
        volume: 0,
        mix: Mix::draw(&mut Prng::new(0), BLOCKS, BLOCK_BYTES, BLOCK_BYTES),
        depth: 4,
        think: Spread::new(10_000, 300_000),
        patience: Duration::from_secs(2),
        forgets: false,
        nbd: None,
        asks: Some(asks),
    }
}

fn swarm(asks: Vec<Vec<OpPlan>>, strikes: Vec<Strike>, finale: Finale) -> Swarm {
    Swarm {
        disks: vec![1; MACHINES],
        disk_bytes: 64 << 20,
        limits: Limits {
            segment: SegmentSize::new(256 << 10).expect("a power of two in range"),
            part_bytes: 64 << 10,
            requests_per_volume: 64,
            write_bytes_per_disk: 4 << 20,
        },
        volumes: vec![VolumePlan {
            name: "vm".into(),
            size_bytes: BLOCKS * BLOCK_BYTES,
            rf: 2,
            hold: HoldPolicy::NeverFail,
            exclusive: false,
        }],
        guests: asks.into_iter().map(guest).collect(),
        unit_bytes: BLOCK_BYTES,
        settings: vec![("rebuild.wait", "1s".into())],
        clocks_ppm: vec![1_000_000; MACHINES],
        net: Spread::new(50, 500),
        disk_times: DiskTimes::FAST,
        consensus: ConsensusTimes::CALM,
        strikes,
        chaos: CHAOS,
        frail: Vec::new(),
        over_committed: false,
        disk_dies: false,
        rots: false,
        finale,
        damage_seed: 1,
        part: Part::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // promise: acked-survives
    // promise: one-register
    #[test]
    fn whatever_is_asked_and_goes_wrong(
        asks in vec(vec(ask(), 1..60), 1..3),
        strikes in vec(strike(), 0..8),
        finale in finale(),
        seed in any::<u64>(),
    ) {
        let swarm = swarm(asks, strikes, finale);
        let report = run_swarm(Options { seed, watch: false }, swarm, Prng::new(seed));
        prop_assert!(report.broken.is_none(), "{}", report.summary());
        prop_assert!(report.operations > 0);
    }
}
