//! Volumes that the guests of one machine have to themselves, guests that are evicted from them, and the
//! proof that nothing is done for those who lost theirs.

use super::Cluster;
use super::guest::{Flight, GuestState};
use super::machine::{node_id, who};
use crate::net::Machine;
use crate::oracle::Broken;
use crate::world::index;
use gabion_cluster::AdminRequest;
use gabion_node::GuestId;
use gabion_types::{Instant, NodeId, Prng};
use std::collections::{BTreeMap, BTreeSet};

/// `one-host`: guests whose volume another machine's guests have, since when. Nothing that they
/// ask for from then on is done.
#[derive(Debug, Default)]
pub(super) struct Expelled(BTreeMap<GuestId, Instant>);

impl Expelled {
    /// Errors: something was done for one that had lost its volume before it asked.
    pub(super) fn check(&self, id: GuestId, flight: &Flight) -> Result<(), Broken> {
        match self.0.get(&id) {
            Some(since) if *since <= flight.began => {
                let text = format!("guest {} lost its volume and is answered: {flight:?}", id.0);
                Err(Broken { promise: "one-host", text })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Cluster {
    /// All guests of some volume are closed. Those on machines that have some, and on those that nobody
    /// hears, are kept out; half of the time not for long.
    pub(super) fn evict(&mut self, prng: &mut Prng) -> bool {
        if !self.operator.is_done() {
            return false;
        }
        let number = index(prng.below(self.swarm.volumes.len() as u64));
        let name = self.swarm.volumes[number].name.clone();
        let attached = self.guests.iter().filter_map(|guest| match guest.state {
            GuestState::Attached { machine, .. } if guest.plan.volume == number => Some(machine),
            GuestState::Attached { .. } | GuestState::Opening { .. } | GuestState::Away => None,
        });
        let machines = 0..self.machines.len();
        let silent = machines.filter(|machine| self.machines[*machine].node().is_none());
        let barred: BTreeSet<NodeId> = attached.chain(silent).map(node_id).collect();
        let all = barred.len() == self.machines.len();
        let request = |barred, let_back| {
            let name = name.clone();
            AdminRequest::EvictGuests { name, barred, let_back }
        };
        self.ask_operator(request(barred, false));
        if all || prng.chance(1, 2) {
            self.ask_operator(request(BTreeSet::new(), true));
        }
        true
    }

    /// Another machine's guests have had it until now.
    pub(super) fn watch_opened(&mut self, machine: Machine, guest: usize) {
        let (now, number) = (self.queue.now(), self.guests[guest].plan.volume);
        if !self.swarm.volumes[number].exclusive {
            return;
        }
        let volume = self.guests[guest].volume;
        for other in self.guests.iter().filter(|other| other.volume == volume) {
            if let GuestState::Attached { machine: there, id, .. } = other.state
                && other.plan.volume == number
                && there != machine
            {
                self.expelled.0.entry(id).or_insert(now);
                *self.counts.entry("guest-expelled").or_default() += 1;
            }
        }
    }

    pub(super) fn judge_expelled(&mut self, machine: Machine, id: GuestId, flight: &Flight) {
        if let Err(broken) = self.expelled.check(id, flight) {
            self.break_promise(broken.promise, format!("{}: {}", who(machine), broken.text));
        }
    }

    /// It lets others in: now and then, and when it has nothing to ask for.
    pub(super) fn gives_way(&mut self, guest: usize) -> bool {
        let one = &mut self.guests[guest];
        self.swarm.volumes[one.plan.volume].exclusive
            && one.in_flight() == 0
            && (one.has_no_wish() || one.prng.chance(1, 40))
    }

    /// It would only keep others out.
    pub(super) fn stays_away(&self, guest: usize) -> bool {
        let one = &self.guests[guest];
        self.swarm.volumes[one.plan.volume].exclusive && one.has_no_wish()
    }
}
