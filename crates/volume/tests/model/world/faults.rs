//! What goes wrong.

use super::{Event, MS, World, pair};
use gabion_types::{BlockKind, DiskId, NodeId, Prng, ScrubKind, SegmentIndex};
use gabion_volume::Input;

/// One thing that goes wrong, where a script says what does.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// After the one before.
    pub wait_ms: u64,
    /// Which: see `World::inflict`.
    pub kind: u64,
    pub a: u32,
    pub b: u32,
    /// Decides what else is left to chance in it.
    pub luck: u64,
}

/// Kinds of faults.
pub const KINDS: u64 = 18;

impl World {
    pub(super) fn on_fault(&mut self) -> Result<(), String> {
        if self.healing {
            return Ok(());
        }
        if let Some(script) = &mut self.script {
            let fault = script.pop_front();
            if let Some(next) = script.front() {
                let after = next.wait_ms * MS;
                self.at(after, Event::Fault);
            }
            return fault.map_or(Ok(()), |fault| self.inflict_scripted(fault));
        }
        let after = self.between(50 * MS, 2500 * MS);
        self.at(after, Event::Fault);
        if self.now < self.quiet_until {
            return Ok(());
        }
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (a, b) = (*self.prng.pick(&nodes).unwrap(), *self.prng.pick(&nodes).unwrap());
        let kind = self.prng.below(KINDS);
        self.inflict(kind, a, b)
    }

    /// Its chance is its own: leaving out another fault does not change it.
    fn inflict_scripted(&mut self, fault: Fault) -> Result<(), String> {
        if self.now < self.quiet_until {
            return Ok(());
        }
        let count = self.plan.nodes;
        let node = |number: u32| NodeId::new(1 + number % count);
        let prng = std::mem::replace(&mut self.prng, Prng::new(fault.luck));
        let done = self.inflict(fault.kind, node(fault.a), node(fault.b));
        self.prng = prng;
        done
    }

    fn inflict(&mut self, kind: u64, a: NodeId, b: NodeId) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        match kind {
            0..=2 => {
                let after = self.between(50 * MS, 6000 * MS);
                self.crash(a, after);
            }
            3..=6 if a != b => {
                let long = self.prng.chance(1, 3);
                let after =
                    if long { self.between(MS, 5000 * MS) } else { self.between(MS, 150 * MS) };
                self.say(|| format!("fault: cut {a} {b}"));
                self.cuts.insert(pair(a, b));
                self.break_links(a, b);
                self.at(after, Event::Mend { a, b });
            }
            7..=8 => self.isolate(a, &nodes),
            9 => {
                let until = self.now + self.between(10 * MS, 8000 * MS);
                self.say(|| format!("fault: disk of {a} stalls until {until}"));
                self.stalled.insert(DiskId::new(a.get()), until);
            }
            10 => self.power_loss(&nodes),
            11..=12 if self.plan.rot => self.rot(),
            13 if self.plan.disk_loss => self.lose_disk(),
            14 => return self.release(),
            15 => self.take_snapshot(DiskId::new(a.get())),
            // No fault, but something that goes on beside them.
            16 => self.want_scrub(ScrubKind::Deep),
            17 => self.want_scrub(ScrubKind::Light),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn release(&mut self) -> Result<(), String> {
        let Some(owner) = self.latest else { return Ok(()) };
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.releasing = true;
        self.feed(owner, Input::Release)
    }

    pub(super) fn crash(&mut self, node: NodeId, after: u64) {
        if !self.nodes[&node].up {
            return;
        }
        self.say(|| format!("fault: crash {node}"));
        let owners: Vec<u64> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.node == node)
            .map(|(key, _)| *key)
            .collect();
        owners.into_iter().for_each(|owner| self.forget_owner(owner));
        self.nodes.get_mut(&node).unwrap().up = false;
        let id = DiskId::new(node.get());
        let queued = self.disks[&id].queued() as u64;
        let kept = usize::try_from(self.between(0, queued)).unwrap();
        let disk = self.disks.get_mut(&id).unwrap();
        disk.crash(kept);
        disk.ready = false;
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| {
            self.break_links(other, node);
        });
        self.at(after, Event::Restart { node });
    }

    pub(super) fn restart(&mut self, node: NodeId) {
        if self.nodes[&node].up {
            return;
        }
        self.say(|| format!("fault: {node} is back"));
        let state = self.nodes.get_mut(&node).unwrap();
        state.up = true;
        state.life += 1;
        let quiet = self.now < self.quiet_until;
        let after = if quiet { 0 } else { self.between(0, 400 * MS) };
        self.at(after, Event::Ready { disk: DiskId::new(node.get()) });
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| {
            self.restore_links(other, node);
        });
        self.log_later(node);
    }

    pub(super) fn isolate(&mut self, node: NodeId, nodes: &[NodeId]) {
        self.say(|| format!("fault: isolate {node}"));
        self.nodes.get_mut(&node).unwrap().alone = true;
        for other in nodes.iter().filter(|other| **other != node) {
            self.cuts.insert(pair(node, *other));
            self.break_links(node, *other);
        }
        let after = self.between(100 * MS, 7000 * MS);
        self.at(after, Event::Rejoin { node });
    }

    pub(super) fn rejoin(&mut self, node: NodeId) {
        self.say(|| format!("fault: {node} rejoins"));
        self.nodes.get_mut(&node).unwrap().alone = false;
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter(|other| *other != node).for_each(|other| self.mend(node, other));
        self.log_later(node);
    }

    /// A disk that comes back as it was earlier: alone, and all others come back as they were.
    pub(super) fn power_loss(&mut self, nodes: &[NodeId]) {
        self.say(|| "fault: power is lost everywhere".to_owned());
        let healthy = self.map.view.segments.iter().all(|members| {
            members.in_sync.len() == usize::from(self.plan.rf)
                && members.joining.is_empty()
                && members.stale.is_empty()
        });
        let calm = healthy
            && self.cuts.is_empty()
            && self.nodes.values().all(|node| node.up && !node.alone)
            && self.disks.values().all(|disk| !disk.out)
            && self.stalled.values().all(|until| *until < self.now);
        let old = self.snapshot.take().filter(|_| calm && self.plan.rollback);
        for node in nodes {
            // With one copy rolled back, all others must be there.
            let after = if old.is_some() { 50 * MS } else { self.between(50 * MS, 2000 * MS) };
            self.crash(*node, after);
        }
        if let Some((id, old)) = old {
            self.say(|| format!("fault: {id} is rolled back"));
            // What it holds of other creations and joins is as old as the rest.
            let disk = self.disks.get_mut(&id).unwrap();
            disk.durable = old;
            disk.lives_anew();
            self.quiet_until = self.now + 15_000 * MS;
        }
    }

    pub(super) fn take_snapshot(&mut self, id: DiskId) {
        self.snapshot = Some((id, self.disks[&id].durable.clone()));
    }

    /// One copy of a block becomes unreadable, where another in-sync one is good.
    pub(super) fn rot(&mut self) {
        let index = self.prng.below(u64::from(self.plan.segments));
        let index = SegmentIndex::new(u32::try_from(index).unwrap());
        let members = self.map.view.segments[index.get() as usize].clone();
        if members.in_sync.len() < 2 {
            return;
        }
        let (victim, other) = (members.in_sync[0], members.in_sync[1]);
        let good = self.disks[&other].durable.segments.get(&index).cloned().unwrap_or_default();
        let victim = self.disks.get_mut(&victim).unwrap();
        let Some(segment) = victim.durable.segments.get_mut(&index) else { return };
        let candidates: Vec<_> = segment
            .blocks
            .iter()
            .filter(|(block, entry)| {
                let same = good.blocks.get(block);
                entry.kind == BlockKind::Data
                    && same.is_some_and(|same| same.version == entry.version && !same.bad)
            })
            .map(|(block, _)| *block)
            .collect();
        if let Some(block) = self.prng.pick(&candidates) {
            segment.blocks.get_mut(block).unwrap().bad = true;
            self.rotted = true;
        }
    }

    pub(super) fn lose_disk(&mut self) {
        if self.disks.values().any(|disk| disk.out) {
            return;
        }
        let ids: Vec<DiskId> = self.disks.keys().copied().collect();
        let id = *self.prng.pick(&ids).unwrap();
        let spare = self.map.view.segments.iter().all(|members| {
            !members.is_in_sync(id) || members.in_sync.len() == usize::from(self.plan.rf)
        });
        if spare && self.plan.rf >= 2 {
            self.say(|| format!("fault: {id} is out of service"));
            self.disks.get_mut(&id).unwrap().out = true;
        }
    }
}
