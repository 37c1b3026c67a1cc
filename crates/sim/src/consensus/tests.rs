use super::*;
use crate::world::Queue;
use std::collections::BTreeSet;

#[derive(Default)]
struct Apart(BTreeSet<Machine>);

impl Reach for Apart {
    fn is_up(&self, _machine: Machine) -> bool {
        true
    }

    fn reaches(&self, from: Machine, to: Machine) -> bool {
        self.0.contains(&from) == self.0.contains(&to)
    }
}

struct World {
    consensus: Consensus<u32>,
    queue: Queue<ConsensusEvent<u32>>,
    apart: Apart,
    logs: Vec<Vec<u32>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let times = ConsensusTimes { lost_of: 10, twice_of: 10, ..ConsensusTimes::FAST };
        let mut consensus = Consensus::new(&[true; 5], times, Prng::new(seed));
        (0..5).for_each(|machine| consensus.start(Instant::ZERO, machine, 0));
        let logs = vec![Vec::new(); 5];
        Self { consensus, queue: Queue::default(), apart: Apart::default(), logs }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.queue.now() + duration;
        loop {
            for (at, event) in self.consensus.take_due() {
                self.queue.at(at, event);
            }
            if self.queue.next_at().is_none_or(|at| at > end) {
                return;
            }
            let event = self.queue.pop().unwrap();
            for told in self.consensus.due(self.queue.now(), event, &self.apart) {
                match told {
                    ConsensusTold::Committed { machine, index, entry } => {
                        self.logs[machine].push(entry);
                        assert_eq!(self.logs[machine].len() as u64, index);
                    }
                    ConsensusTold::Leader { .. } | ConsensusTold::Confirmed { .. } => {}
                }
            }
        }
    }
}

#[test]
fn all_machines_see_one_log() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.run(Duration::from_secs(5));
        for number in 0..50 {
            let now = world.queue.now();
            world.consensus.propose(now, (number % 5) as usize, number);
            world.run(Duration::from_millis(20));
        }
        world.run(Duration::from_secs(5));
        assert!(world.consensus.log().len() > 30);
        assert!(world.logs.iter().all(|log| log == world.consensus.log()));
    }
}

#[test]
fn a_minority_commits_and_hears_nothing() {
    let mut world = World::new(7);
    world.run(Duration::from_secs(5));
    let leader = world.consensus.leader().unwrap();
    let other = (leader + 1) % 5;
    world.apart = Apart(BTreeSet::from([leader, other]));
    let now = world.queue.now();
    world.consensus.propose(now, leader, 1);
    world.run(Duration::from_secs(10));
    let next = world.consensus.leader().unwrap();
    assert!(next != leader && next != other);
    for number in 10..20 {
        let now = world.queue.now();
        world.consensus.propose(now, other, number);
        world.consensus.propose(now, next, number + 10);
        world.run(Duration::from_millis(50));
    }
    world.run(Duration::from_secs(1));
    assert!(world.consensus.log().iter().all(|number| *number >= 20));
    assert!(world.logs[leader].is_empty() && !world.logs[next].is_empty());
    world.apart = Apart::default();
    world.run(Duration::from_secs(2));
    assert!(world.logs.iter().all(|log| log == world.consensus.log()));
}
