//! What has to hold at every moment, looked at while a run goes on.

use super::machine::node_id;
use super::{Cluster, GuestPlan};
use crate::invariants::one_owner::Completing;
use crate::invariants::place::Place;
use crate::invariants::{
    bounded, durable_on_all, flush_means_flush, majority_first, no_leaks, no_sleepers,
    no_write_under_read, one_owner, settled_on_all, sound_sources,
};
use crate::net::Machine;
use crate::oracle::Broken;
use crate::workload::{OpKind, OpPlan};
use gabion_cluster::VolumeEntry;
use gabion_node::DiskSlot;
use gabion_types::{BLOCK_BYTES, BlockIndex, ByteRange, DiskOp, SegmentIndex};
use gabion_wire::{Body, Message};

/// Writes that a flush looks at: the last ones before it.
const FLUSHED_MAX: usize = 32;

/// A block of a volume, by the plan's number of the volume.
pub type Acked = (usize, SegmentIndex, BlockIndex);

impl Cluster {
    pub(super) fn places(&self) -> Vec<Place<'_>> {
        let mut places = Vec::new();
        for host in &self.machines {
            for (slot, disk) in (0..).zip(&host.disks) {
                let store = host.node().and_then(|node| node.store(DiskSlot(slot)));
                places.push(Place { uuid: disk.uuid, store, disk: &disk.virtual_disk });
            }
        }
        places
    }

    /// Without the stores of the machines on which disks lie, rot and go back: what they say is not
    /// what anybody can count on, and the copies elsewhere make up for it.
    fn sound_places(&self) -> Vec<Place<'_>> {
        let frail = self.swarm.frail.iter().flat_map(|machine| &self.machines[*machine].disks);
        let frail: Vec<_> = frail.map(|disk| disk.uuid).collect();
        let is_frail = |uuid| frail.contains(&uuid);
        let mut places = self.places();
        let frail = places.iter_mut().filter(|place| is_frail(place.uuid));
        frail.for_each(|place| place.store = None);
        places
    }

    /// Now and then.
    pub(super) fn watch(&mut self) {
        let places = self.sound_places();
        let result = settled_on_all::check(&self.map, &places)
            .and_then(|()| one_owner::check(&self.map, &places, &self.completing()))
            .and_then(|()| {
                let mut nodes = self.machines.iter().filter_map(|host| host.node());
                nodes.try_for_each(|node| bounded::check(&node.loads()))
            })
            .and_then(|()| self.check_sleepers());
        self.judge_watch(result);
    }

    /// A process that hangs has not heard of what came meanwhile.
    fn check_sleepers(&self) -> Result<(), Broken> {
        let now = self.queue.now();
        let machines = self.machines.iter().enumerate().filter(|(_, host)| host.is_running());
        for (machine, host) in machines {
            let overlooked = host.node().map(|node| node.overlooked(host.local(now)));
            no_sleepers::check(node_id(machine), &overlooked.unwrap_or_default())?;
        }
        Ok(())
    }

    /// When nothing is under way any more.
    pub(super) fn check_leaks(&self) -> Result<(), Broken> {
        let nodes = self.machines.iter().filter_map(|host| host.node());
        let held = nodes.map(|node| node.held_requests()).sum::<usize>();
        no_leaks::check(&self.places(), held + self.requests.open())
    }

    /// When guests are gone, too.
    pub(super) fn check_empty(&self) -> Result<(), Broken> {
        let mut hosts = self.machines.iter().enumerate();
        hosts.try_for_each(|(machine, host)| {
            let Some(node) = host.node() else { return Ok(()) };
            let bytes = node.stats().guest_bytes;
            no_leaks::check_empty(node_id(machine), &node.loads(), bytes)
        })
    }

    fn completing(&self) -> Vec<Completing> {
        let now = self.queue.now();
        let machines = self.machines.iter().enumerate();
        let node = |(machine, host): (Machine, &super::machine::Host)| {
            let node = host.node().filter(|_| host.is_running())?;
            let (mut volumes, mut unserved) = (Vec::new(), Vec::new());
            for (volume, segments) in node.completing(host.local(now)) {
                let known = node.map().volume(volume);
                volumes.extend(known.map(|entry| (volume, entry.owner_epoch)));
                // It has yet to hear that the volume is longer.
                let count =
                    |entry: Option<&VolumeEntry>| entry.map_or(0, VolumeEntry::segment_count);
                let longer = count(known)..count(self.map.volume(volume));
                let segments = segments.into_iter().chain(longer.map(SegmentIndex::new));
                unserved.extend(segments.map(|segment| (volume, segment)));
            }
            let id = node_id(machine);
            let entry = self.map.nodes().get(&id);
            let leased = entry.is_none_or(|entry| !host.is_bent(now, entry.lease));
            Some(Completing { node: id, leased, volumes, unserved })
        };
        machines.filter_map(node).collect()
    }

    /// A guest was told that its write is done, on the node of the owner: no other write of these
    /// blocks can be under way. Unless its node made several requests of it: they are done one by one,
    /// with others' between them.
    pub(super) fn watch_acknowledged(&mut self, machine: Machine, guest: usize, plan: OpPlan) {
        let Some(bytes) = self.written(plan) else { return };
        let GuestPlan { volume, nbd, .. } = self.guests[guest].plan;
        let part = u64::from(self.swarm.limits.part_bytes);
        let in_parts = nbd.is_some() && bytes.offset() / part != (bytes.end() - 1) / part;
        let blocks = durable_on_all::blocks(&self.map, bytes);
        let Some(entry) = self.entry(volume) else { return };
        let incarnation = self.machines[machine].incarnation;
        if !in_parts && entry.owner == Some((node_id(machine), incarnation)) {
            let aligned = [bytes.offset(), bytes.end()].iter().all(|at| at % BLOCK_BYTES == 0);
            let one_segment = blocks.iter().all(|(segment, _)| *segment == blocks[0].0);
            let whole = aligned && one_segment;
            let (map, places) = (&self.map, self.sound_places());
            let node = self.machines[machine].node();
            let undecided = |segment| node.is_some_and(|node| node.is_undecided(entry.id, segment));
            let result = majority_first::check(map, &places, entry, &blocks, undecided)
                .and_then(|()| durable_on_all::check(map, &places, entry, (&blocks, whole)))
                .and_then(|()| flush_means_flush::check(map, &places, entry, (&blocks, whole)));
            self.judge_watch(result);
        }
        for (segment, block) in blocks {
            self.acked.push_back((volume, segment, block));
        }
        let over = self.acked.len().saturating_sub(FLUSHED_MAX);
        self.acked.drain(..over);
    }

    /// promise: flush-means-flush. What was acknowledged before is in no disk's cache.
    pub(super) fn watch_flushed(&mut self, volume: usize) {
        let Some(entry) = self.entry(volume) else { return };
        let acked = self.acked.iter().filter(|(of, _, _)| *of == volume);
        let blocks: Vec<_> = acked.map(|(_, segment, block)| (*segment, *block)).collect();
        let places = self.sound_places();
        let result = flush_means_flush::check(&self.map, &places, entry, (&blocks, false));
        self.judge_watch(result);
    }

    /// promise: one-owner. A node that takes itself for the owner answers a read only while its lease
    /// holds (rule 4); the data may be old else.
    pub(super) fn watch_read(&mut self, machine: Machine, volume: usize) {
        let (now, host) = (self.queue.now(), &self.machines[machine]);
        let me = Some((node_id(machine), host.incarnation));
        let Some(node) = host.node() else { return };
        let Some(entry) = node.map().volume_by_name(&self.swarm.volumes[volume].name) else {
            return;
        };
        if entry.owner == me && !node.holds_lease(host.local(now)) {
            let text =
                format!("{} answers a read of {} without a lease", node_id(machine), entry.id);
            self.judge_watch(Err(Broken { promise: "one-owner", text }));
        }
    }

    pub(super) fn watch_message(&mut self, message: &Message) {
        if let Body::Replica(ask) = &message.body {
            let size = self.swarm.limits.segment;
            let result = sound_sources::check(&ask.op, size, self.oracle.unit_bytes());
            self.judge_watch(result);
        }
    }

    pub(super) fn watch_disk(&mut self, machine: Machine, slot: usize, op: &DiskOp) {
        let disk = &self.machines[machine].disks[slot].virtual_disk;
        let result = no_write_under_read::check(disk, op);
        self.judge_watch(result);
    }

    pub(super) fn judge_watch(&mut self, result: Result<(), Broken>) {
        if let Err(broken) = result {
            self.broken.get_or_insert(broken);
        }
    }

    fn entry(&self, volume: usize) -> Option<&VolumeEntry> {
        self.map.volume_by_name(&self.swarm.volumes[volume].name)
    }

    /// The bytes that a plan writes. Zeros and trims are written only where something is.
    fn written(&self, plan: OpPlan) -> Option<ByteRange> {
        let unit_bytes = self.oracle.unit_bytes();
        match plan.kind {
            OpKind::Write { .. } => {
                ByteRange::new(plan.first * unit_bytes, plan.count * unit_bytes)
            }
            OpKind::Zero | OpKind::Trim | OpKind::Read | OpKind::Flush | OpKind::Status => None,
        }
    }
}
