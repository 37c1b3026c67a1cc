//! Links between owners and disks: delays, cuts, what is lost with them.

use super::{Event, MS, World, pair};
use crate::disk::{Answer, Origin};
use gabion_types::{DiskId, NodeId};
use gabion_volume::Input;
use gabion_wire::{LinkClass, ReplicaRequest, RequestId};

impl World {
    pub(super) fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        a != b && (self.cuts.contains(&pair(a, b)) || !self.nodes[&a].up || !self.nodes[&b].up)
    }

    pub(super) fn has_link(&self, owner: u64, node: NodeId, link: u64, cut: bool) -> bool {
        self.owners.get(&owner).is_some_and(|state| state.links.get(&node) == Some(&(link, cut)))
    }

    pub(super) fn send(
        &mut self,
        owner: u64,
        node: NodeId,
        class: LinkClass,
        request: RequestId,
        ask: ReplicaRequest,
    ) {
        let own = self.owners[&owner].node == node;
        let (link, cut) = self.owners[&owner].links.get(&node).copied().unwrap_or((0, false));
        if cut {
            self.at(0, Event::LinkLost { owner, node, link, class });
            return;
        }
        if !own && ask.op.payload().is_some() && self.prng.chance(1, 8) {
            self.at(0, Event::Unsent { owner, node, link, class, request });
            return;
        }
        let delay = if own { self.between(1000, 50_000) } else { self.between(20_000, 3 * MS) };
        let after = self.in_order(owner, (node, true, class), delay);
        self.at(after, Event::Request { owner, link, node, request, ask });
    }

    /// The link takes nothing for a while.
    pub(super) fn on_unsent(
        &mut self,
        owner: u64,
        (node, link, class): (NodeId, u64, LinkClass),
        request: RequestId,
    ) -> Result<(), String> {
        if !self.has_link(owner, node, link, false) {
            return Ok(());
        }
        let after = self.between(0, 20 * MS);
        self.at(after, Event::Room { owner, node, link, class });
        self.feed(owner, Input::Unsent { request })
    }

    pub(super) fn on_room(
        &mut self,
        owner: u64,
        (node, link, class): (NodeId, u64, LinkClass),
    ) -> Result<(), String> {
        let waits = |world: &Self| {
            world.owners.get(&owner).is_some_and(|state| state.volume.waits_for_room(node, class))
        };
        if !self.has_link(owner, node, link, false) || !waits(self) {
            return Ok(());
        }
        let bytes = self.between(1, 64 << 10);
        self.feed(owner, Input::Room { node, class, bytes })?;
        if waits(self) {
            let after = self.between(0, 20 * MS);
            self.at(after, Event::Room { owner, node, link, class });
        }
        Ok(())
    }

    /// Messages of one link arrive in their order.
    pub(super) fn in_order(
        &mut self,
        owner: u64,
        lane: (NodeId, bool, LinkClass),
        delay: u64,
    ) -> u64 {
        let now = self.now;
        let Some(state) = self.owners.get_mut(&owner) else { return delay };
        let last = state.arrivals.entry(lane).or_insert(0);
        *last = (now + delay).max(*last + 1);
        *last - now
    }

    pub(super) fn on_request(
        &mut self,
        owner: u64,
        link: u64,
        node: NodeId,
        request: RequestId,
        ask: ReplicaRequest,
    ) {
        // An owner that is gone may still have something under way, while its link lasts.
        let stale = match self.owners.get(&owner) {
            Some(state) => state.node != node && state.links[&node] != (link, false),
            None => self.prng.chance(1, 2),
        };
        if !self.nodes[&node].up || stale {
            return;
        }
        let id = ask.disk;
        let disk = self.disks.get_mut(&id).unwrap();
        disk.origin_gone(|origin| origin.owner == owner && origin.link < link);
        let answers = disk.take(Origin { owner, link }, request, ask);
        self.answer_all(node, answers);
        self.commit_later(id);
    }

    pub(super) fn answer_all(&mut self, node: NodeId, answers: Vec<Answer>) {
        for (from, request, answer) in answers {
            let delay = self.between(1000, 2 * MS) + self.stall(answer.disk);
            let after = self.in_order(from.owner, (node, false, LinkClass::Data), delay);
            let (owner, link) = (from.owner, from.link);
            self.at(after, Event::Answer { owner, link, node, request, answer });
        }
    }

    /// How long a stalled disk does nothing yet.
    fn stall(&self, id: DiskId) -> u64 {
        self.stalled.get(&id).map_or(0, |until| until.saturating_sub(self.now))
    }

    pub(super) fn commit_later(&mut self, id: DiskId) {
        if self.disks[&id].is_idle() || !self.committing.insert(id) {
            return;
        }
        let after = self.between(50_000, 5 * MS) + self.stall(id);
        self.at(after, Event::Commit { disk: id });
    }

    pub(super) fn on_commit(&mut self, id: DiskId) {
        self.committing.remove(&id);
        let node = self.map.view.homes[&id];
        if !self.nodes[&node].up {
            return;
        }
        let queued = self.disks[&id].queued() as u64;
        let count = usize::try_from(self.between(1, queued.max(1))).unwrap();
        let answers = self.disks.get_mut(&id).unwrap().commit(count);
        self.answer_all(node, answers);
        self.commit_later(id);
    }

    pub(super) fn break_links(&mut self, a: NodeId, b: NodeId) {
        let owners: Vec<(u64, NodeId)> = self
            .owners
            .iter()
            .filter(|(_, state)| state.node == a || state.node == b)
            .map(|(owner, state)| (*owner, if state.node == a { b } else { a }))
            .collect();
        for (owner, peer) in owners {
            let state = self.owners.get_mut(&owner).unwrap();
            let Some(entry) = state.links.get_mut(&peer) else { continue };
            if !entry.1 {
                *entry = (entry.0 + 1, true);
                let link = entry.0;
                for class in [LinkClass::Data, LinkClass::Bulk, LinkClass::Control] {
                    let after = self.between(0, 20 * MS);
                    self.at(after, Event::LinkLost { owner, node: peer, link, class });
                }
                let after = self.between(200 * MS, 1200 * MS);
                self.at(after, Event::NodeDown { owner, node: peer, link });
            }
        }
    }

    pub(super) fn restore_links(&mut self, a: NodeId, b: NodeId) {
        if self.is_cut(a, b) {
            return;
        }
        let owners: Vec<(u64, NodeId)> = self
            .owners
            .iter()
            .filter(|(_, state)| state.node == a || state.node == b)
            .map(|(owner, state)| (*owner, if state.node == a { b } else { a }))
            .collect();
        for (owner, peer) in owners {
            let state = self.owners.get_mut(&owner).unwrap();
            let Some(entry) = state.links.get_mut(&peer) else { continue };
            if entry.1 {
                // A loss that was not told yet is told now.
                *entry = (entry.0 + 1, false);
                let link = entry.0;
                let after = self.between(MS, 50 * MS);
                self.at(after, Event::LinkUp { owner, node: peer, link });
                for class in [LinkClass::Data, LinkClass::Bulk, LinkClass::Control] {
                    let _ = self.feed(owner, Input::LinkLost { node: peer, class });
                }
            }
        }
    }

    pub(super) fn mend(&mut self, a: NodeId, b: NodeId) {
        self.cuts.remove(&pair(a, b));
        self.restore_links(a, b);
    }
}
