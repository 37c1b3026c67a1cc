//! A large cluster loses a rack: the real map and the real manager, with owners and copies as a model.
//!
//! Real: every entry is applied by the cluster map; the manager ends leases, finds owners for volumes whose node is
//! gone, and looks each second whether disks are to be levelled. Modelled: an owner asks for what the code in `volume`
//! would ask for, a second after its peers fell silent, in entries of as many copies; consensus answers at once; a copy is filled
//! as fast as the disks and the network that it needs share themselves out evenly. Filling begins when
//! `rebuild.wait` is over, at most four copies a volume at a time.

mod world;

use gabion_cluster::{Command, Map};
use gabion_types::Duration;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub nodes: u32,
    /// Nodes are in them in turn.
    pub racks: u32,
    pub disks_per_node: u32,
    /// Units: bytes.
    pub disk_bytes: u64,
    pub segments: u32,
    pub segments_per_volume: u32,
    pub rf: u8,
    /// What filling may take of a disk, beside guests. Units: bytes a second.
    pub disk_rate: u64,
    /// The same of a node's network, each way.
    pub node_rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    #[error(
        "a rack is lost, and {racks} racks of {nodes} nodes do not leave a place for each copy"
    )]
    TooFewRacks { nodes: u32, racks: u32 },
    #[error("a cluster has at most {most} nodes")]
    TooManyNodes { most: usize },
    #[error("the disks have no room for so many copies")]
    NoRoom,
}

/// What only the caller can tell: the simulator has no clock, and knows no encoding.
pub struct Meter<'a> {
    /// Time since some moment.
    pub clock: &'a mut dyn FnMut() -> Duration,
    /// As an entry of the log. Units: bytes.
    pub entry_bytes: &'a dyn Fn(&Command) -> u64,
    /// As a snapshot. Units: bytes.
    pub map_bytes: &'a dyn Fn(&Map) -> u64,
}

/// Processor time of one kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub times: u64,
    pub sum: Duration,
    pub most: Duration,
}

impl Spent {
    fn add(&mut self, took: Duration) {
        self.times += 1;
        self.sum += took;
        self.most = self.most.max(took);
    }

    pub fn mean(&self) -> Duration {
        self.sum / u32::try_from(self.times).unwrap_or(u32::MAX).max(1)
    }
}

/// Entries of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    pub count: u64,
    pub bytes: u64,
    /// The largest one. Units: bytes.
    pub most: u64,
    /// Those that the map refused.
    pub refused: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub nodes_lost: u32,
    pub copies_lost: u64,
    /// Without a copy until the rack is back.
    pub segments_held: u64,
    /// After the loss.
    pub all_owned: Option<Duration>,
    pub filling_began: Option<Duration>,
    /// Every segment has all its copies.
    pub rebuilt: Duration,
    pub copied_bytes: u64,
    /// After the loss, by what they ask for.
    pub entries: BTreeMap<&'static str, Entries>,
    /// Before it, to make the cluster and its volumes.
    pub entries_before: Entries,
    /// What each node spends on the entries, by what they ask for.
    pub applied: BTreeMap<&'static str, Spent>,
    /// What the manager's node spends, by what it is told; with all that it decides then.
    pub managed: BTreeMap<&'static str, Spent>,
    /// Looks over the whole map: the judgement that status, console and metrics show, the plan for levelling.
    pub looks: BTreeMap<&'static str, Spent>,
    /// When all was whole, and the largest afterwards. Units: bytes of a snapshot.
    pub map_bytes: [u64; 2],
}

/// Errors: a cluster that cannot be, or cannot lose a rack.
pub fn run(plan: &Plan, meter: &mut Meter<'_>) -> Result<Outcome, NoPlan> {
    let racks_needed = u32::from(plan.rf) + 1;
    if plan.racks < racks_needed || plan.nodes < plan.racks {
        let Plan { nodes, racks, .. } = *plan;
        return Err(NoPlan::TooFewRacks { nodes, racks });
    }
    let most = gabion_cluster::map::NODES_MAX;
    if usize::try_from(plan.nodes).is_ok_and(|nodes| nodes > most) {
        return Err(NoPlan::TooManyNodes { most });
    }
    let mut world = world::World::new(plan, meter);
    world.build()?;
    world.lose_a_rack();
    Ok(world.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn plan() -> Plan {
        Plan {
            nodes: 12,
            racks: 4,
            disks_per_node: 2,
            disk_bytes: 200 * GIB,
            segments: 600,
            segments_per_volume: 20,
            rf: 2,
            disk_rate: 100 << 20,
            node_rate: 1 << 30,
        }
    }

    fn run_of(plan: &Plan) -> Result<Outcome, NoPlan> {
        let mut ticks = 0;
        let mut clock = || {
            ticks += 1;
            Duration::from_micros(ticks)
        };
        let (entry_bytes, map_bytes) = (|_: &Command| 100, |_: &Map| 1000);
        run(
            plan,
            &mut Meter { clock: &mut clock, entry_bytes: &entry_bytes, map_bytes: &map_bytes },
        )
    }

    #[test]
    fn a_rack_is_lost_and_every_copy_is_made_anew() {
        let outcome = run_of(&plan()).unwrap();
        assert_eq!((outcome.nodes_lost, outcome.segments_held), (3, 0));
        // A quarter of all copies, about.
        assert!((200..400).contains(&outcome.copies_lost), "{outcome:?}");
        assert_eq!(outcome.copied_bytes, outcome.copies_lost * (256 << 20));
        assert_eq!(outcome.entries["expire"].count, 3);
        assert!(outcome.filling_began.unwrap() >= Duration::from_secs(60));
        assert!(outcome.rebuilt > outcome.filling_began.unwrap());
        // 18 disks read and write what was lost, each at 100 MiB a second: not faster than that.
        let least = outcome.copied_bytes * 2 / (18 * plan().disk_rate);
        assert!(outcome.rebuilt.as_secs() >= 60 + least, "{outcome:?}");
        assert_eq!(run_of(&plan()).unwrap().rebuilt, outcome.rebuilt);
    }

    #[test]
    fn what_cannot_lose_a_rack_is_refused() {
        let refused = |plan| run_of(&plan).unwrap_err();
        let two = Plan { racks: 2, ..plan() };
        assert_eq!(refused(two), NoPlan::TooFewRacks { nodes: 12, racks: 2 });
        let small = Plan { disk_bytes: 2 * GIB, ..plan() };
        assert_eq!(refused(small), NoPlan::NoRoom);
        assert!(matches!(refused(Plan { nodes: 5000, ..plan() }), NoPlan::TooManyNodes { .. }));
    }
}
