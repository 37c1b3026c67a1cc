use super::*;
use crate::command::{Change, NodeInfo};
use crate::map::DrainReason;
use crate::map::tests::Small;
use gabion_types::Outcome;

const ME: u32 = 1;

fn ids(ids: &[u32]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId::new).collect()
}

/// The map, the readers, and a leader that decides.
struct Rig {
    small: Small,
    electorate: Electorate,
    readers: Readers,
    now: Instant,
}

impl Rig {
    fn new(nodes: u32, voters: &[u32]) -> Self {
        Self::of(Small::new(nodes, 1), voters)
    }

    fn of(small: Small, voters: &[u32]) -> Self {
        let voters = ids(voters);
        let all: BTreeSet<NodeId> = small.map.nodes().keys().copied().collect();
        let learners = all.difference(&voters).copied().collect();
        let readers = Readers { voters, becomes: None, learners, caught_up: all };
        let now = Instant::ZERO + Duration::from_secs(1000);
        Self { small, electorate: Electorate::default(), readers, now }
    }

    /// Node `i` is in the `i`-th zone.
    fn zoned(zones: &[&str], voters: &[u32]) -> Self {
        let mut small = Small::new(u32::try_from(zones.len()).unwrap(), 1);
        for (node, zone) in (1..).zip(zones) {
            let incarnation = small.incarnation(node);
            let info = NodeInfo { zone: (*zone).to_owned(), ..Small::info(node) };
            let change = Change::Register { node: info, incarnation };
            assert_eq!(small.by(node, change), Outcome::Done);
        }
        Self::of(small, voters)
    }

    fn look(&mut self) -> Option<Reform> {
        let me = NodeId::new(ME);
        self.electorate.next_reform(self.now, &self.small.map, me, &self.readers)
    }

    fn after(&mut self, seconds: u64) -> Option<Reform> {
        self.look();
        self.now = self.now + Duration::from_secs(seconds);
        self.look()
    }

    fn drain(&mut self, node: u32) {
        let why = Some(DrainReason::Operator);
        let change = Change::DrainNode { node: NodeId::new(node), why };
        assert_eq!(self.small.by(ME, change), Outcome::Done);
    }

    /// Until nothing is left to do; the sets of voters that were on the way.
    fn settle(&mut self) -> Vec<BTreeSet<NodeId>> {
        let mut seen = Vec::new();
        while let Some(reform) = self.after(10) {
            match reform {
                Reform::SetVoters(voters) => {
                    let all: BTreeSet<NodeId> =
                        self.readers.voters.union(&self.readers.learners).copied().collect();
                    self.readers.learners = all.difference(&voters).copied().collect();
                    self.readers.voters = voters.clone();
                    seen.push(voters);
                }
                Reform::AddLearner(id) => drop(self.readers.learners.insert(id)),
                Reform::Forget(gone) => self.readers.learners.retain(|id| !gone.contains(id)),
            }
            assert!(seen.len() < 20, "it never ends: {seen:?}");
        }
        seen
    }
}

fn set(voters: &[u32]) -> Option<Reform> {
    Some(Reform::SetVoters(ids(voters)))
}

#[test]
fn a_fourth_node_reads_and_a_fifth_makes_five_voters() {
    let mut rig = Rig::new(4, &[1, 2, 3]);
    assert_eq!(rig.settle(), [], "an even number bears no more");
    let mut rig = Rig::new(5, &[1, 2, 3]);
    assert_eq!(rig.settle(), [ids(&[1, 2, 3, 4, 5])]);
    let mut rig = Rig::new(9, &[1, 2, 3, 4, 5]);
    assert_eq!(rig.settle(), []);
    let mut rig = Rig::new(3, &[1, 2]);
    assert_eq!(rig.settle(), [ids(&[1, 2, 3])]);
    let mut rig = Rig::new(7, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(rig.settle(), [ids(&[1, 2, 3, 4, 5])]);
    for voters in [&[1_u32][..], &[1, 2], &[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4, 5]] {
        let mut rig = Rig::new(u32::try_from(voters.len()).unwrap(), voters);
        assert_eq!(rig.settle(), [], "what was made so stays while all are well");
    }
}

#[test]
fn a_new_node_reads_first_and_votes_when_it_has_the_log() {
    let mut rig = Rig::new(3, &[1, 2]);
    rig.readers.learners.clear();
    assert_eq!(rig.look(), Some(Reform::AddLearner(NodeId::new(3))));
    rig.readers.learners = ids(&[3]);
    rig.readers.caught_up = ids(&[1, 2]);
    assert_eq!(rig.after(60), None, "it has not got the log");
    rig.readers.caught_up = ids(&[1, 2, 3]);
    rig.electorate = Electorate::default();
    assert_eq!(rig.look(), None, "it has just come");
    assert_eq!(rig.after(5), set(&[1, 2, 3]));
}

// rule: cluster/one-change-of-voters-at-a-time
#[test]
fn a_change_that_is_half_done_is_done_first() {
    let mut rig = Rig::new(5, &[1, 2, 3]);
    rig.readers.voters = ids(&[1, 2, 3, 4]);
    rig.readers.becomes = Some(ids(&[1, 2, 4]));
    assert_eq!(rig.after(600), set(&[1, 2, 4]));
}

#[test]
fn a_voter_that_is_dead_for_long_is_replaced() {
    let mut rig = Rig::new(4, &[1, 2, 3]);
    rig.small.silence(2);
    assert_eq!(rig.after(299), None);
    assert_eq!(rig.after(2), set(&[1, 3, 4]));
    let change = Change::SetSetting { name: "voter.wait".into(), value: "10s".into() };
    rig.small.by(ME, change);
    rig.electorate = Electorate::default();
    assert_eq!(rig.after(10), set(&[1, 3, 4]));
    rig.readers = Readers { voters: ids(&[1, 3, 4]), learners: ids(&[2]), ..rig.readers };
    assert_eq!(rig.after(600), None);
    rig.small.register(2);
    assert_eq!(rig.after(600), None, "it came back, and nobody needs it");
}

#[test]
fn nobody_to_replace_it_means_that_it_stays() {
    let mut rig = Rig::new(3, &[1, 2, 3]);
    rig.small.silence(2);
    assert_eq!(rig.after(9999), None);
    let mut rig = Rig::new(4, &[1, 2, 3]);
    rig.small.silence(2);
    rig.small.silence(4);
    assert_eq!(rig.after(9999), None, "a dead one does not replace a dead one");
    let mut rig = Rig::new(4, &[1, 2, 3, 4]);
    rig.small.silence(2);
    assert_eq!(rig.after(9999), set(&[1, 3, 4]), "three bear one more loss than three of four");
}

// rule: cluster/a-majority-on-both-sides
#[test]
fn without_a_majority_nothing_is_changed() {
    let mut rig = Rig::new(5, &[1, 2, 3]);
    rig.small.silence(2);
    rig.small.silence(3);
    assert_eq!(rig.after(9999), None, "one of three");
    let mut rig = Rig::new(7, &[1, 2, 3, 4, 5]);
    rig.small.silence(2);
    rig.small.silence(3);
    assert_eq!(rig.after(9999), set(&[1, 4, 5, 6, 7]));
}

#[test]
fn a_removed_voter_goes_at_once_and_is_replaced_in_the_same_change() {
    let mut rig = Rig::new(4, &[1, 2, 3]);
    rig.drain(2);
    assert_eq!(rig.look(), None);
    let change = Change::RemoveNode { node: NodeId::new(2), force: false };
    assert_eq!(rig.small.by(ME, change), Outcome::Done);
    assert_eq!(rig.after(5), set(&[1, 3, 4]));
    assert_eq!(rig.settle(), [ids(&[1, 3, 4])]);
    assert_eq!(rig.readers.learners, ids(&[]), "it is sent nothing any more");
    let mut rig = Rig::new(3, &[1, 2, 3]);
    rig.drain(2);
    let change = Change::RemoveNode { node: NodeId::new(2), force: false };
    assert_eq!(rig.small.by(ME, change), Outcome::Done);
    assert_eq!(rig.look(), set(&[1, 3]));
}

#[test]
fn who_is_about_to_leave_votes_only_where_nobody_else_is_there() {
    let mut rig = Rig::new(4, &[1, 2, 3]);
    rig.drain(3);
    assert_eq!(rig.settle(), [ids(&[1, 2, 4])]);
    let mut rig = Rig::new(3, &[1, 2, 3]);
    rig.drain(3);
    assert_eq!(rig.settle(), []);
    let mut rig = Rig::new(4, &[1, 2, 3]);
    rig.drain(1);
    assert_eq!(rig.settle(), [], "the leader stays; the next one sees to it");
}

// rule: cluster/voters-in-different-zones
#[test]
fn voters_are_in_as_many_zones_as_there_are() {
    let mut rig = Rig::zoned(&["a", "a", "b", "c"], &[1, 2, 3]);
    assert_eq!(rig.settle(), [ids(&[1, 3, 4])]);
    let mut rig = Rig::zoned(&["a", "a", "b", "b"], &[1, 2, 3]);
    assert_eq!(rig.settle(), [], "no zone is won");
    let mut rig = Rig::zoned(&["a", "a", "a", "a", "a", "b", "b", "c"], &[1, 2, 3, 4, 5]);
    let settled = rig.settle();
    let last = settled.last().unwrap();
    assert!(last.is_superset(&ids(&[1, 6, 8])), "{settled:?}");
    assert_eq!(settled.len(), 1);
    let mut rig = Rig::zoned(&["a", "b", "c", "c"], &[1, 2, 3]);
    rig.small.silence(3);
    assert_eq!(rig.after(301), set(&[1, 2, 4]));
}

/// Whatever comes and goes: a majority of the voters is always there, and it ends.
#[test]
fn no_order_of_events_loses_the_majority() {
    for seed in 0..200 {
        let mut prng = gabion_types::Prng::new(seed);
        let zones = ["", "a", "b", "c"];
        let nodes = 3 + prng.below(6);
        let zoned: Vec<&str> =
            (0..nodes).map(|_| zones[usize::try_from(prng.below(4)).unwrap()]).collect();
        let mut rig = Rig::zoned(&zoned, &[1, 2, 3]);
        rig.settle();
        for _ in 0..10 {
            let alive = |rig: &Rig| {
                rig.readers.voters.iter().filter(|id| rig.small.map.is_alive(**id)).count()
            };
            let node = 2 + u32::try_from(prng.below(nodes - 1)).unwrap();
            let id = NodeId::new(node);
            let needed = rig.readers.voters.len() / 2 + 1;
            if !rig.small.map.is_alive(id) {
                rig.small.register(node);
            } else if !rig.readers.voters.contains(&id) || alive(&rig) > needed {
                rig.small.silence(node);
            }
            if prng.chance(1, 2) {
                rig.after(600);
                rig.settle();
            }
            let needed = rig.readers.voters.len() / 2 + 1;
            assert!(alive(&rig) >= needed, "seed {seed}: {:?}", rig.readers);
            assert!(rig.readers.voters.len() <= VOTERS_MAX);
        }
    }
}
