//! What is lost for good: never more than one copy, and only while all others are whole.

use super::Cluster;
use super::machine::{Host, machine_of};
use super::schedule::named;
use crate::disk::Rot;
use crate::net::Machine;
use crate::world::{Who, index};
use gabion_node::DiskSlot;
use gabion_types::{BlockIndex, DiskId, Prng, SegmentIndex, VolumeId};

/// Blocks that rot at once.
const ROTS_MAX: u64 = 30;

impl Cluster {
    /// False: it is not this run's lot, or there would be too few left for all copies.
    pub(super) fn let_a_disk_die(&mut self) -> bool {
        if !std::mem::take(&mut self.swarm.disk_dies) {
            return false;
        }
        let drawn = index(self.damage_prng.below(self.machines.len() as u64));
        // What a frail one holds may be damaged already.
        let machine = self.swarm.frail.first().copied().unwrap_or(drawn);
        let disks_of = |host: &Host| if host.removed { 0 } else { host.disks.len() };
        let disks = disks_of(&self.machines[machine]);
        let copies = self.swarm.volumes.iter().map(|volume| usize::from(volume.rf)).max();
        let with_disks = self.machines.iter().filter(|host| disks_of(host) > 0).count();
        let left = if disks > 1 { with_disks } else { with_disks - disks };
        if disks == 0 || left < copies.unwrap_or(0) {
            return false;
        }
        if self.swarm.volumes.iter().any(|volume| volume.rf < 2) {
            return false;
        }
        let slot = index(self.damage_prng.below(disks as u64));
        // Drawn apart, so that the rest of a seed is as it was.
        let hangs = Prng::new(self.swarm.damage_seed.rotate_left(56)).chance(1, 2);
        let numbers = [machine as u64, slot as u64, u64::from(hangs)];
        self.trace.note(self.queue.now(), Who::World, "disk dies", numbers);
        let disk = &mut self.machines[machine].disks[slot].virtual_disk;
        if hangs {
            disk.hang();
            self.count("disk-hung");
            let text = format!("disk{slot} of {} answers nothing any more", named(machine));
            self.tell(Who::World, text);
        } else {
            disk.die();
            self.count("disk-died");
            self.tell(Who::World, format!("disk{slot} of {} dies", named(machine)));
        }
        true
    }

    /// promise: no-silent-corruption. Some blocks rot on the disks of one machine; all must still
    /// be readable.
    pub(super) fn rot_something(&mut self) {
        if !std::mem::take(&mut self.swarm.rots) {
            return;
        }
        let mut prng = self.damage_prng.fork();
        let drawn = index(prng.below(self.machines.len() as u64));
        let frail = self.swarm.frail.first().copied();
        let machine = frail.or_else(|| self.dies_unnoticed()).unwrap_or(drawn);
        self.rot_some(machine, ROTS_MAX, &mut prng);
    }

    /// A machine with a disk that died, and that is a member still: nobody has asked it for anything.
    fn dies_unnoticed(&self) -> Option<Machine> {
        let counts = |uuid| {
            let Some(disk) = self.map.disk_by_uuid(uuid) else { return false };
            let mut segments = self.map.volumes().values().flat_map(|volume| &volume.segments);
            segments.any(|members| members.is_in_sync(disk))
        };
        let mut hosts = self.machines.iter();
        hosts.position(|host| {
            host.disks.iter().any(|disk| disk.virtual_disk.is_dead() && counts(disk.uuid))
        })
    }

    pub(super) fn rot_some(&mut self, machine: Machine, most: u64, prng: &mut Prng) {
        for _ in 0..prng.between(1, most) {
            let Some((volume, segment, disk)) = self.pick_copy(machine, prng) else { continue };
            let blocks = u64::from(self.swarm.limits.segment.blocks());
            let block = u32::try_from(prng.below(blocks)).expect("below a u32");
            self.rot_block(machine, disk, (volume, segment, BlockIndex::new(block)), prng);
        }
    }

    /// A copy on a disk of this machine that is not the only one.
    fn pick_copy(
        &mut self,
        machine: Machine,
        prng: &mut Prng,
    ) -> Option<(VolumeId, SegmentIndex, DiskId)> {
        let mut copies = Vec::new();
        for volume in self.map.volumes().values() {
            for (segment, members) in (0..).zip(&volume.segments) {
                let here = |disk: &&DiskId| {
                    let entry = self.map.disk(**disk);
                    entry.is_some_and(|entry| machine_of(entry.node) == machine)
                };
                if members.in_sync.len() > 1
                    && let Some(disk) = members.in_sync.iter().find(here)
                {
                    copies.push((volume.id, SegmentIndex::new(segment), *disk));
                }
            }
        }
        prng.pick(&copies).copied()
    }

    pub(super) fn rot_block(
        &mut self,
        machine: Machine,
        disk: DiskId,
        (volume, segment, block): (VolumeId, SegmentIndex, BlockIndex),
        prng: &mut Prng,
    ) {
        let Some(uuid) = self.map.disk(disk).map(|entry| entry.uuid) else { return };
        let host = &self.machines[machine];
        let Some(slot) = host.disks.iter().position(|disk| disk.uuid == uuid) else { return };
        let disk = &host.disks[slot].virtual_disk;
        let mut peek = |offset: u64| disk.page(offset / 4096).cloned();
        let place = host.node().and_then(|node| {
            let store = node.store(DiskSlot(u32::try_from(slot).expect("a few disks")))?;
            store.locate(volume, segment, block, &mut peek)
        });
        let Some(place) = place else { return };
        let what = || format!("{volume} {segment} block {}", block.get());
        self.rot_page((machine, slot), place.offset / 4096, what, prng);
    }

    /// Whatever it is: also a frame, a page of the map, a root.
    pub(super) fn rot_anything(&mut self, machine: Machine, slot: usize, prng: &mut Prng) {
        let disk = &mut self.machines[machine].disks[slot].virtual_disk;
        if let Some(page) = disk.pick_written() {
            self.rot_page((machine, slot), page, || "any page".to_string(), prng);
        }
    }

    fn rot_page(
        &mut self,
        (machine, slot): (Machine, usize),
        page: u64,
        what: impl Fn() -> String,
        prng: &mut Prng,
    ) {
        let rot = match prng.below(4) {
            0 => Rot::Flip { bit: prng.below(4096 * 8) },
            1 => Rot::Unreadable,
            2 => Rot::Misdirected { from: page.saturating_sub(1) },
            _ => Rot::Zeroed,
        };
        self.count("rot");
        let numbers = [machine as u64, slot as u64, page];
        self.trace.note_with(self.queue.now(), Who::World, "rot", numbers, || {
            format!("{} {rot:?}", what())
        });
        self.machines[machine].disks[slot].virtual_disk.rot(page, rot);
    }
}
