//! The operator: makes volumes and sets settings, and tries again until it is done.

use super::machine::node_id;
use super::swarm::VolumePlan;
use super::{Cluster, Event};
use crate::net::Machine;
use crate::world::{Spread, Who};
use gabion_cluster::{AdminError, AdminReply, AdminRequest, VolumeSpec};
use gabion_node::Input;
use gabion_types::{Duration, Prng};
use std::collections::VecDeque;

/// Without an answer it asks again, elsewhere.
const PATIENCE: Duration = Duration::from_secs(12);
/// A volume grows by so much at once. Units: blocks.
const GROWS_MAX: u64 = 300;

#[derive(Debug, Default)]
pub struct Operator {
    tasks: VecDeque<AdminRequest>,
    /// The number of the request that is out.
    number: u64,
    answered: bool,
}

impl Operator {
    pub fn is_done(&self) -> bool {
        self.tasks.is_empty()
    }

    pub fn push(&mut self, task: AdminRequest) {
        self.tasks.push_back(task);
    }
}

impl Cluster {
    pub(super) fn first_tasks(&mut self) {
        for (name, value) in &self.swarm.settings {
            let (name, value) = ((*name).to_string(), value.clone());
            self.operator.push(AdminRequest::SetSetting { name, value });
        }
        if let Some(mut prng) = self.swarm.levels() {
            let wait = if prng.chance(1, 2) { "0s" } else { "2s" };
            for (name, value) in [("rebalance.wait", wait), ("rebalance.spread", "1%")] {
                let (name, value) = (name.to_string(), value.to_string());
                self.operator.push(AdminRequest::SetSetting { name, value });
            }
        }
        for (place, volume) in self.swarm.volumes.iter().enumerate() {
            let near = Some(node_id(place % self.swarm.machines()));
            self.operator.push(AdminRequest::CreateVolume { spec: spec(volume), near });
        }
        self.queue.after(Duration::from_secs(2), Event::Operate { number: 0 });
    }

    /// A volume is deleted and made anew under its name, if nothing else is asked, and nothing is to be
    /// empty: there might be no place for it before that is over.
    pub(super) fn remake_volume(&mut self, prng: &mut Prng) -> bool {
        if !self.operator.is_done() || self.is_emptying() {
            return false;
        }
        let volume = prng.pick(&self.swarm.volumes).expect("there is a volume").clone();
        let delete = AdminRequest::DeleteVolume { name: volume.name.clone(), force: true };
        self.operator.push(delete);
        self.operator.push(AdminRequest::CreateVolume { spec: spec(&volume), near: None });
        self.begin_operating();
        true
    }

    /// A volume becomes larger, if nothing else is asked and there is room for it. Guests stay where
    /// they are.
    pub(super) fn grow_volume(&mut self, prng: &mut Prng) -> bool {
        if !self.operator.is_done() || self.swarm.is_small() {
            return false;
        }
        let name = prng.pick(&self.swarm.volumes).expect("there is a volume").name.clone();
        let Some(entry) = self.map.volume_by_name(&name) else { return false };
        let more = prng.between(1, GROWS_MAX) * gabion_types::BLOCK_BYTES;
        let size_bytes = entry.spec.size_bytes + more;
        self.operator.push(AdminRequest::ResizeVolume { name, size_bytes });
        self.begin_operating();
        true
    }

    /// After all that is asked already.
    pub(super) fn ask_operator(&mut self, request: AdminRequest) {
        let idle = self.operator.is_done();
        self.operator.push(request);
        if idle {
            self.begin_operating();
        }
    }

    fn begin_operating(&mut self) {
        let number = self.operator.number;
        self.queue.after(self.no_time(), Event::Operate { number });
    }

    /// Asks that a machine owns some volume, if nothing else is asked.
    pub(super) fn move_volume(&mut self, machine: Machine, prng: &mut Prng) -> bool {
        if !self.operator.is_done() {
            return false;
        }
        let name = prng.pick(&self.swarm.volumes).expect("there is a volume").name.clone();
        self.operator.push(AdminRequest::MoveVolume { name, to: node_id(machine) });
        self.begin_operating();
        true
    }

    /// Asks the next thing, or the last one again. `number`: of the request that is given up.
    pub(super) fn operate(&mut self, number: u64) {
        if number != self.operator.number {
            return;
        }
        let Some(request) = self.operator.tasks.front().cloned() else {
            return;
        };
        self.operator.number += 1;
        self.operator.answered = false;
        let number = self.operator.number;
        let anybody = crate::world::index(self.prng.below(self.machines.len() as u64));
        let machine = self.consensus.leader().unwrap_or(anybody);
        self.queue.after(PATIENCE, Event::Operate { number });
        self.trace.note_with(self.queue.now(), Who::World, "admin", [number, 0, 0], || {
            format!("{request:?}")
        });
        self.feed(machine, Input::Admin { number, request });
    }

    pub(super) fn on_admin_done(&mut self, number: u64, reply: AdminReply) {
        if number != self.operator.number || self.operator.answered {
            return;
        }
        self.operator.answered = true;
        self.trace.note_with(self.queue.now(), Who::World, "admin done", [number, 0, 0], || {
            format!("{reply:?}")
        });
        // Whatever comes of these, they are not asked again.
        let asked_once = matches!(
            self.operator.tasks.front(),
            Some(
                AdminRequest::MoveVolume { .. }
                    | AdminRequest::ResizeVolume { .. }
                    | AdminRequest::DrainDisk { cancel: false, .. }
                    | AdminRequest::DrainNode { cancel: false, .. }
                    | AdminRequest::RemoveNode { .. }
                    | AdminRequest::EvictGuests { let_back: false, .. }
            )
        );
        let gone_is_done = matches!(
            self.operator.tasks.front(),
            Some(AdminRequest::DeleteVolume { .. } | AdminRequest::EvictGuests { .. })
        );
        let done = asked_once
            || match &reply {
                AdminReply::Done | AdminReply::Created { .. } => true,
                // An earlier try did it.
                AdminReply::Refused(AdminError::NoVolume) => gone_is_done,
                AdminReply::Refused(AdminError::RemainsChanged) => {
                    self.look_at_remains_again();
                    true
                }
                AdminReply::Refused(error) => {
                    matches!(error, AdminError::NameTaken | AdminError::DiskFailed)
                }
            };
        if done {
            self.operator.tasks.pop_front();
        } else {
            self.count("admin-refused");
            self.last_refusal = Some(reply);
        }
        let wait = Spread::new(10_000, 500_000).draw(&mut self.prng);
        self.queue.after(wait, Event::Operate { number });
    }

    /// All volumes can be opened.
    pub(super) fn volumes_are_ready(&self) -> bool {
        self.swarm.volumes.iter().all(|volume| {
            let entry = self.map.volume_by_name(&volume.name);
            entry.is_some_and(|entry| self.map.view(entry.id).is_some())
        })
    }
}

fn spec(volume: &VolumePlan) -> VolumeSpec {
    VolumeSpec {
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        rf: volume.rf,
        hold: volume.hold,
        exclusive: volume.exclusive,
    }
}
