//! Disks and nodes that an operator wants to be empty, for good or until he changes his mind; and the
//! proof that they become so.

use super::fault::Mend;
use super::machine::{disk_config, formatted, machine_of, node_id};
use super::schedule::Strike;
use super::{Cluster, Event};
use crate::disk::VirtualDisk;
use crate::net::Machine;
use crate::oracle::Broken;
use crate::world::{Who, index};
use gabion_cluster::{AdminRequest, DiskEntry, NodeEntry};
use gabion_node::Input;
use gabion_types::{DiskId, Prng};

/// Emptied by itself, or with all that its node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emptied {
    Disk(DiskId),
    Node(Machine),
}

impl Emptied {
    fn request(self, cancel: bool) -> AdminRequest {
        match self {
            Self::Disk(disk) => AdminRequest::DrainDisk { disk, cancel },
            Self::Node(machine) => AdminRequest::DrainNode { node: node_id(machine), cancel },
        }
    }
}

impl Cluster {
    /// Asks for it once, of a machine that works with all its disks, if nothing else is asked; half of the time it is used again a while later.
    pub(super) fn empty(&mut self, strike: &Strike, whole_node: bool, prng: &mut Prng) -> bool {
        let node = node_id(strike.one);
        let there = |disk: &DiskEntry| disk.node == node && disk.is_in_service();
        let disks = self.map.disks().iter().filter(|(_, disk)| there(disk));
        let disks: Vec<DiskId> = disks.map(|(id, _)| *id).collect();
        let machine = &self.machines[strike.one];
        let works = machine.node().is_some() && disks.len() == machine.disks.len();
        if !self.operator.is_done() || disks.is_empty() || self.swarm.is_small() || !works {
            return false;
        }
        let disk = disks[index(prng.below(disks.len() as u64))];
        let what = if whole_node { Emptied::Node(strike.one) } else { Emptied::Disk(disk) };
        self.ask_operator(what.request(false));
        if prng.chance(1, 2) {
            self.queue.after(strike.lasts, Event::Mend(Mend::Used(what)));
        }
        true
    }

    pub(super) fn is_emptying(&self) -> bool {
        self.map.disks().keys().any(|disk| self.map.is_draining(*disk))
            || self.map.nodes().values().any(|node| node.drain.is_some())
    }

    pub(super) fn use_again(&mut self, what: Emptied) {
        self.ask_operator(what.request(true));
    }

    /// All that was to be empty is, as far as it can be: it is used again, or some of it is taken away
    /// for good. False: there is nothing.
    pub(super) fn use_all_again(&mut self) -> bool {
        if self.remove_one() {
            return true;
        }
        let disks =
            self.map.disks().iter().filter(|(_, disk)| disk.drain.is_some() && !disk.is_failed());
        let disks = disks.map(|(id, _)| AdminRequest::DrainDisk { disk: *id, cancel: true });
        let nodes = self.map.nodes().iter().filter(|(_, node)| node.drain.is_some());
        let nodes = nodes.map(|(id, _)| AdminRequest::DrainNode { node: *id, cancel: true });
        let requests: Vec<_> = disks.chain(nodes).collect();
        if requests.is_empty() {
            return false;
        }
        if let Err(broken) = self.check_emptied() {
            self.break_promise(broken.promise, broken.text);
        }
        self.tell(Who::World, "what is empty is used again");
        requests.into_iter().for_each(|request| self.ask_operator(request));
        true
    }

    /// A machine that is empty, once a run, where enough are left; not one whose disks are damaged: the
    /// others would be, then.
    fn remove_one(&mut self) -> bool {
        let mut prng = Prng::new(self.swarm.damage_seed.rotate_left(48));
        if self.removal_tried || !prng.chance(1, 2) {
            return false;
        }
        let drained = |node: &NodeEntry| node.drain.is_some_and(|drain| drain.done);
        let drained = self.map.nodes().iter().filter(|(_, node)| drained(node));
        let machines = drained.map(|(node, _)| machine_of(*node));
        let sound: Vec<Machine> =
            machines.filter(|machine| !self.swarm.frail.contains(machine)).collect();
        let copies = self.swarm.volumes.iter().map(|volume| usize::from(volume.rf)).max();
        let with_disks = self.machines.iter().filter(|host| !host.disks.is_empty()).count();
        let Some(machine) = prng.pick(&sound).filter(|_| with_disks > copies.unwrap_or(0)) else {
            return false;
        };
        self.removal_tried = true;
        self.count("node-removed");
        self.ask_operator(AdminRequest::RemoveNode { node: node_id(*machine), force: false });
        true
    }

    /// A machine gets a disk more, once, while its process serves and guests work: copies move there.
    pub(super) fn add_disk(&mut self) -> bool {
        let Some(mut prng) = self.swarm.levels().filter(|_| !self.disk_added) else { return false };
        self.disk_added = true;
        let with_disks = self.machines.iter().enumerate();
        let with_disks = with_disks.filter(|(_, host)| !host.disks.is_empty() && !host.removed);
        let machines: Vec<Machine> = with_disks.map(|(machine, _)| machine).collect();
        let Some(machine) = prng.pick(&machines).copied() else { return false };
        let disk = VirtualDisk::new(self.swarm.disk_bytes, self.swarm.disk_times, prng.fork());
        let disk = formatted(disk, self.swarm.limits, &mut prng);
        let host = &mut self.machines[machine];
        host.disks.push(disk);
        let added = host.disks.iter().enumerate().map(disk_config).next_back();
        if let Some(disk) = added {
            self.count("disk-added");
            self.tell(Who::World, format!("node{} gets a disk more", machine + 1));
            self.feed(machine, Input::DiskAdded { disk });
        }
        true
    }

    /// What the map calls empty holds nothing.
    fn check_emptied(&mut self) -> Result<(), Broken> {
        let (mut empty, places) = (0, self.places());
        let there = |(_, disk): &(&DiskId, &DiskEntry)| disk.is_in_service();
        for (id, entry) in self.map.disks().iter().filter(there) {
            if !self.map.is_draining(*id) || !self.map.is_empty_disk(*id) {
                continue;
            }
            let place = places.iter().find(|place| place.uuid == entry.uuid);
            let store = place.and_then(|place| place.store).filter(|store| store.is_serving());
            if let Some(held) = store.and_then(|store| store.segments().next()) {
                let text = format!("{id} is empty by the map, and holds {held:?}");
                return Err(Broken { promise: "drained", text });
            }
            empty += 1;
        }
        *self.counts.entry("disk-emptied").or_default() += empty;
        Ok(())
    }
}
