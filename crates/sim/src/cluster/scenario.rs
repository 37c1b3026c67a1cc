//! What would my cluster do: a world as an operator describes it, and what goes wrong in it.

use super::fault::FaultKind;
use super::schedule::{Part, Strike, named};
use super::swarm::{Finale, GuestPlan, Swarm, VolumePlan};
use crate::consensus::ConsensusTimes;
use crate::disk::DiskTimes;
use crate::net::Machine;
use crate::workload::Mix;
use crate::world::{Spread, index};
use gabion_types::{BLOCK_BYTES, Duration, HoldPolicy, Limits, Prng, SegmentSize};

/// Machines of a scenario.
pub const NODES_MAX: usize = 9;
/// Guests work in peace for so long first, and again at the end.
const PEACE: Duration = Duration::from_secs(5);
/// Each machine has one guest, with a volume of this size.
const VOLUME_BYTES: u64 = 16 << 20;
const DISK_BYTES: u64 = 256 << 20;

/// One machine, one disk, one volume, one guest: times that many nodes. All settings are those that
/// a new cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub nodes: usize,
    /// The last node has no disk.
    pub witness: bool,
    pub rf: u8,
    /// How many machines die.
    pub kill: usize,
    /// Which machines do not hear each other.
    pub cuts: Vec<(Machine, Machine)>,
    /// How long each of these lasts.
    pub down: Duration,
    /// From one to the next.
    pub apart: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoScenario {
    #[error("a cluster has 3 to {NODES_MAX} nodes here, not {nodes}")]
    Nodes { nodes: usize },
    #[error("{rf} copies need {rf} nodes with a disk; there are {with_disk}")]
    Copies { rf: u8, with_disk: usize },
    #[error("{kill} of {nodes} nodes cannot be killed: somebody has to be left")]
    Kill { kill: usize, nodes: usize },
    #[error("there is no {name} among {nodes} nodes")]
    NoNode { name: String, nodes: usize },
    #[error("{name} cannot be cut off from itself")]
    Itself { name: String },
    #[error("faults of this scenario would go on for {seconds} s; {most} s is the most")]
    TooLong { seconds: u64, most: u64 },
}

/// Faults go on for at most.
const FAULTS_MAX: Duration = Duration::from_secs(3600);

impl Scenario {
    /// The world of it. `seed` decides which machines die, and all that is left to chance.
    pub fn swarm(&self, seed: u64) -> Result<Swarm, NoScenario> {
        self.check()?;
        let mut prng = Prng::new(seed);
        let strikes = self.strikes(&mut prng);
        let last = strikes.iter().map(|strike| strike.at + strike.lasts).max();
        let chaos = last.unwrap_or_default() + PEACE;
        if chaos > FAULTS_MAX {
            let (seconds, most) = (chaos.as_secs(), FAULTS_MAX.as_secs());
            return Err(NoScenario::TooLong { seconds, most });
        }
        let mut disks = vec![1; self.nodes];
        disks[self.nodes - 1] = usize::from(!self.witness);
        let segment = SegmentSize::new(1 << 20).expect("a power of two in range");
        Ok(Swarm {
            disks,
            disk_bytes: DISK_BYTES,
            limits: Limits { segment, ..Limits::DEFAULT },
            volumes: (1..=self.nodes).map(|number| self.volume(number)).collect(),
            guests: (0..self.nodes).map(|volume| guest(volume, &mut prng)).collect(),
            unit_bytes: BLOCK_BYTES,
            settings: Vec::new(),
            clocks_ppm: vec![1_000_000; self.nodes],
            net: Spread::new(50, 200),
            disk_times: DiskTimes::FAST,
            consensus: ConsensusTimes::CALM,
            frail: Vec::new(),
            over_committed: false,
            strikes,
            chaos,
            disk_dies: false,
            rots: false,
            finale: Finale::None,
            damage_seed: prng.next_u64(),
            part: Part::default(),
        })
    }

    fn check(&self) -> Result<(), NoScenario> {
        let Self { nodes, rf, kill, .. } = *self;
        if !(3..=NODES_MAX).contains(&nodes) {
            return Err(NoScenario::Nodes { nodes });
        }
        let with_disk = nodes - usize::from(self.witness);
        if rf == 0 || usize::from(rf) > with_disk {
            return Err(NoScenario::Copies { rf, with_disk });
        }
        if kill >= nodes {
            return Err(NoScenario::Kill { kill, nodes });
        }
        for (one, other) in &self.cuts {
            if let Some(missing) = [*one, *other].into_iter().find(|node| *node >= nodes) {
                return Err(NoScenario::NoNode { name: named(missing), nodes });
            }
            if one == other {
                return Err(NoScenario::Itself { name: named(*one) });
            }
        }
        Ok(())
    }

    /// First the machines that die, then the cuts.
    fn strikes(&self, prng: &mut Prng) -> Vec<Strike> {
        let mut left: Vec<Machine> = (0..self.nodes).collect();
        let mut strikes = Vec::new();
        let mut at = PEACE;
        let mut push = |kind, one, other, seed| {
            strikes.push(Strike { at, kind, lasts: self.down, one, other, seed });
            at += self.apart;
        };
        for _ in 0..self.kill {
            let victim = left.remove(index(prng.below(left.len() as u64)));
            push(FaultKind::Kill, victim, victim, prng.next_u64());
        }
        for (one, other) in &self.cuts {
            push(FaultKind::Cut, *one, *other, prng.next_u64());
        }
        strikes
    }

    fn volume(&self, number: usize) -> VolumePlan {
        VolumePlan {
            name: format!("vm{number}"),
            size_bytes: VOLUME_BYTES,
            rf: self.rf,
            hold: HoldPolicy::NeverFail,
            exclusive: false,
        }
    }
}

/// One request after the other, so that a wait of the guest is one of its requests.
fn guest(volume: usize, prng: &mut Prng) -> GuestPlan {
    let units = VOLUME_BYTES / BLOCK_BYTES;
    GuestPlan {
        volume,
        mix: Mix { hot: units, ..Mix::draw(prng, units, BLOCK_BYTES, 64 << 10) },
        depth: 1,
        think: Spread::new(2_000, 10_000),
        patience: Duration::from_secs(3600),
        forgets: false,
        nbd: None,
        asks: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::run_swarm;
    use crate::report::Options;

    fn scenario() -> Scenario {
        Scenario {
            nodes: 4,
            witness: false,
            rf: 2,
            kill: 1,
            cuts: vec![(0, 2)],
            down: Duration::from_secs(8),
            apart: Duration::from_secs(12),
        }
    }

    #[test]
    fn a_node_is_killed_and_a_way_is_cut_and_nothing_is_lost() {
        let swarm = scenario().swarm(1).expect("it can be");
        let report = run_swarm(Options { seed: 1, watch: false }, swarm, Prng::new(1));
        assert_eq!(report.broken, None);
        assert_eq!((report.counts["kill"], report.counts["cut"]), (1, 1));
        // A cut between two nodes may concern no volume: then all was whole before it.
        assert!(report.mended_at.is_some() && report.whole_at.is_some());
        assert_eq!(report.waits.len(), 4);
        let told = |text: &str| report.story.iter().any(|line| line.text.contains(text));
        assert!(told("is killed for 8.0 s") && told("do not hear each other"));
        assert!(told("counts as silent") && told("removed") && told("in sync"));
        // The killed node's volume goes on elsewhere: by its lease, not by its return.
        let longest = report.waits.iter().map(|wait| wait.took).max().expect("some guests");
        assert!(
            longest > Duration::from_secs(1) && longest < Duration::from_secs(8),
            "{longest:?}"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let wrong = |change: &dyn Fn(&mut Scenario)| {
            let mut scenario = scenario();
            change(&mut scenario);
            scenario.swarm(1).map(|_| ()).expect_err("it cannot be")
        };
        assert_eq!(wrong(&|one| one.nodes = 2), NoScenario::Nodes { nodes: 2 });
        assert_eq!(wrong(&|one| one.kill = 4), NoScenario::Kill { kill: 4, nodes: 4 });
        assert!(matches!(wrong(&|one| one.rf = 5), NoScenario::Copies { .. }));
        assert!(matches!(wrong(&|one| one.cuts = vec![(0, 4)]), NoScenario::NoNode { .. }));
        assert!(matches!(wrong(&|one| one.cuts = vec![(3, 3)]), NoScenario::Itself { .. }));
        let long = Duration::from_secs(5000);
        assert!(matches!(wrong(&|one| one.down = long), NoScenario::TooLong { .. }));
    }
}
