//! Every copy that has all of a segment goes, and an operator accepts the loss: what is left goes on, and those
//! that come back later change nothing of it.

use super::script::SEGMENT;
use super::{Cluster, Event, Mend, Script};
use gabion_cluster::AdminRequest;
use gabion_types::{DiskId, Duration, SegmentMembers};

/// So much was done before a copy goes, and so much again before the next one does.
const OPERATIONS: u64 = 100;
const OPERATIONS_MORE: u64 = 30;
/// Those that went are back so long after their loss was accepted.
const BACK_AFTER: Duration = Duration::from_secs(4);

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forsaken {
    /// A copy that left earlier.
    Older,
    /// One that joined when another left, and has only what was written since.
    Part,
    Nothing,
}

/// Where the script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForsakenStep {
    Whole,
    /// The first copy's machine has no power.
    Away {
        first: DiskId,
        since: u64,
    },
    /// The map is to say that nobody has all any more.
    Gone,
    Asked,
}

impl Cluster {
    pub(super) fn forsake(&mut self, how: Forsaken, step: ForsakenStep) {
        let Some(members) = self.map.members(SEGMENT.0, SEGMENT.1).cloned() else { return };
        match step {
            ForsakenStep::Whole => self.lose_first(how, &members),
            ForsakenStep::Away { first, since } => self.lose_second(how, (first, since), &members),
            ForsakenStep::Gone => self.give_up(),
            ForsakenStep::Asked => {}
        }
    }

    fn lose_first(&mut self, how: Forsaken, members: &SegmentMembers) {
        let [one, other] = members.in_sync[..] else { return };
        if members.write_set().count() != 2 || self.operations < OPERATIONS {
            return;
        }
        let mut prng = self.damage_prng.fork();
        let (first, second) = if prng.chance(1, 2) { (one, other) } else { (other, one) };
        self.without_power(first);
        let step = if how == Forsaken::Nothing {
            self.without_power(second);
            ForsakenStep::Gone
        } else {
            ForsakenStep::Away { first, since: self.operations }
        };
        self.script = Script::Forsaken { how, step };
    }

    fn lose_second(
        &mut self,
        how: Forsaken,
        (first, since): (DiskId, u64),
        members: &SegmentMembers,
    ) {
        let [second] = members.in_sync[..] else { return };
        let left = members.stale(first).is_some();
        if !left || self.operations < since + OPERATIONS_MORE {
            return;
        }
        let joins = members.joining.iter().any(|joining| {
            let held = self.segment_of(joining.disk);
            held.is_some_and(|held| held.joined == Some(joining.joined))
        });
        if joins != (how == Forsaken::Part) {
            return;
        }
        self.without_power(second);
        if how == Forsaken::Older
            && let Some(machine) = self.machine_of_disk(first)
        {
            self.queue.after(Duration::from_millis(300), Event::Mend(Mend::Start(machine)));
        }
        self.script = Script::Forsaken { how, step: ForsakenStep::Gone };
    }

    fn without_power(&mut self, disk: DiskId) {
        let mut prng = self.damage_prng.fork();
        if let Some(machine) = self.machine_of_disk(disk) {
            self.cut_power(machine, &mut prng);
        }
    }

    /// Once every machine that is not without power is there.
    fn give_up(&mut self) {
        let Script::Forsaken { how, .. } = self.script else { return };
        let Some(volume) = self.map.volume(SEGMENT.0) else { return };
        let there = |machine: usize| {
            let node = self.map.node(super::machine::node_id(machine));
            node.is_some_and(|node| node.state == gabion_cluster::NodeState::Alive)
        };
        let mut running = (0..self.machines.len()).filter(|one| self.machines[*one].is_running());
        let stranded = self.map.stranded(volume);
        if stranded.is_empty() || !running.all(there) {
            return;
        }
        let survivors = stranded.iter().map(|one| (one.segment, one.remains.disk())).collect();
        let name = volume.spec.name.clone();
        self.count("script-forsaken");
        self.ask_operator(AdminRequest::AcceptLoss { name, survivors });
        self.script = Script::Forsaken { how, step: ForsakenStep::Asked };
    }

    /// Unless an earlier try did it.
    pub(super) fn look_at_remains_again(&mut self) {
        if let Script::Forsaken { how, step: ForsakenStep::Asked } = self.script {
            self.script = Script::Forsaken { how, step: ForsakenStep::Gone };
        }
    }

    /// Those that went are back: what they have counts no more.
    pub(super) fn on_loss_accepted(&mut self) {
        self.script = Script::None;
        for machine in 0..self.machines.len() {
            if !self.machines[machine].is_running() {
                self.queue.after(BACK_AFTER, Event::Mend(Mend::Start(machine)));
            }
        }
    }
}
