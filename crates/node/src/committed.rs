//! What the cluster map says, and what this node does about it.

use crate::disks::DiskCondition;
use crate::fronts::{Front, OfVolume, OwnerNow};
use crate::io::{Effect, NodeEvent};
use crate::node::{Job, Node};
use crate::owners::Beginning;
use crate::proposals::Source;
use crate::stop::Stage;
use gabion_cluster::{
    Change, Command, CreateOrder, DiskState, DrainReason, DropOrder, Map, VolumeState, manager,
};
use gabion_store::Origin;
use gabion_types::{DiskId, Duration, Epoch, Incarnation, MapIndex, NodeId, Outcome, VolumeId};
use gabion_volume::Input as VolumeInput;
use gabion_wire::{ReplicaAnswer, ReplicaOp, ReplicaRequest, RequestId};
use std::collections::{BTreeMap, BTreeSet};

/// The stores know the map's orders by this origin.
pub(crate) const MAP_ORIGIN: Origin = Origin(1 << 62);
/// An order that a disk could not carry out is given again after so long.
const JOB_AGAIN: Duration = Duration::from_secs(1);

impl Node {
    pub(crate) fn on_committed(&mut self, index: MapIndex, command: &Command) {
        if index <= self.index {
            return;
        }
        let before = self.incarnations();
        let applied = self.map.apply(index, command);
        self.index = index;
        self.map_dirty = true;
        self.after_change(&before);
        let outcome = applied.outcome;
        if outcome == Outcome::Done
            && !applied.repeat
            && let Some((volume, nodes)) = command.change.voids(&self.map)
        {
            self.owners.sessions_voided(self.now, volume, &nodes, index);
        }
        if let Change::Owner { volume, .. } | Change::TakeOver { volume, .. } = command.change {
            self.follow_volume(volume);
        }
        self.owners.map_applied(self.now, index);
        if let Some(source) = self.proposals.decided(self.now, command.from) {
            self.on_decided(source, outcome);
        }
        self.manage(manager::Input::Applied);
    }

    pub(crate) fn on_restored(&mut self, index: MapIndex, map: Map) {
        if index <= self.index {
            return;
        }
        let before = self.incarnations();
        // An order may have come, gone and come again in what was skipped.
        self.recorded.clear();
        self.map = map;
        self.index = index;
        self.map_dirty = true;
        self.after_change(&before);
        for volume in self.owners.volumes().collect::<Vec<_>>() {
            self.follow_volume(volume);
            if let Some(entry) = self.map.volume(volume) {
                for (node, at) in entry.voided.clone() {
                    self.owners.sessions_voided(self.now, volume, &[node], at);
                }
            }
        }
        self.owners.map_applied(self.now, index);
        let (me, incarnation) = (self.config.node, self.config.incarnation);
        let decided = |number| self.map.outcome_of(me, incarnation, number);
        let decided = self.proposals.decided_in(self.now, decided);
        for (source, outcome) in decided {
            self.on_decided(source, outcome);
        }
        self.manage(manager::Input::Applied);
    }

    fn incarnations(&self) -> BTreeMap<NodeId, Incarnation> {
        self.map.nodes().iter().map(|(node, entry)| (*node, entry.incarnation)).collect()
    }

    /// Members, settings, this node's own registration.
    fn after_change(&mut self, before: &BTreeMap<NodeId, Incarnation>) {
        let now = self.now;
        let members = self.incarnations();
        if members != *before {
            self.links.set_members(now, &members);
            for (node, incarnation) in before {
                if members.get(node) != Some(incarnation) {
                    self.owners.sessions_restarted(now, *node);
                }
            }
        }
        self.follow_settings();
        let (me, mine) = (self.config.node, self.config.incarnation);
        match members.get(&me) {
            Some(named) if *named == mine && !self.registered => {
                self.registered = true;
                self.proposals.set_registered(now);
                self.renew();
            }
            // rule: node/superseded-stops — the process that the map does not name stops.
            Some(named) if *named != mine && self.registered => {
                self.registered = false;
                let by = *named;
                self.effects.push_back(Effect::Event(NodeEvent::Superseded { by }));
            }
            // rule: node/removed-stops
            None if self.map.is_removed(me) && !self.removed => {
                (self.registered, self.removed) = (false, true);
                self.effects.push_back(Effect::Event(NodeEvent::Removed));
            }
            Some(_) | None => {}
        }
    }

    fn follow_settings(&mut self) {
        if self.map.cluster().is_none() {
            return;
        }
        let set = self.map.settings();
        let old = self.settings;
        self.settings.limits = self.map.limits();
        self.settings.ping_interval = set.ping_interval;
        self.settings.ping_silence = set.ping_silence;
        self.settings.fence_wait = set.fence_wait;
        self.settings.slow_wait = set.member_slow;
        self.settings.lag = set.member_lag;
        self.settings.rebuild_wait = set.rebuild_wait;
        self.settings.fill_bytes_in_flight = set.fill_bytes_in_flight;
        self.settings.scrub_share_percent = set.scrub_share_percent;
        self.settings.disk_hang = set.disk_hang;
        self.settings.renew_interval = set.lease_renew;
        let own = self.map.node(self.config.node);
        self.settings.lease = own.map_or(set.lease_duration, |entry| entry.lease);
        if old != self.settings {
            self.links.set_settings(self.settings);
            self.lease.set_times(self.settings.lease, self.settings.renew_interval);
            self.disks.set_settings(self.now, &self.settings);
            let settings = self.owners.volume_settings(&self.settings);
            self.owners.feed_all(self.now, &VolumeInput::Settings(settings));
        }
    }

    fn on_decided(&mut self, source: Source, outcome: Outcome) {
        match source {
            Source::Register | Source::Reconcile | Source::TakeOver { .. } => {
                self.map_dirty = true;
            }
            Source::Void { volume } => {
                if outcome != Outcome::Done {
                    self.owners.sessions_void_undecided(self.now, volume);
                }
            }
            Source::Owner { volume, instance, number } => {
                self.owners.proposed(self.now, volume, instance, number, outcome);
            }
            Source::Manager { key } => self.manage(manager::Input::Proposed { key, outcome }),
        }
    }

    /// Everything that the map asks of this node, compared with what it does.
    pub(crate) fn follow_map(&mut self) {
        self.register();
        if !self.registered {
            return;
        }
        self.follow_disks();
        let (me, mine) = (self.config.node, self.config.incarnation);
        let mut volumes: Vec<_> = self.map.owned_by(me, mine).collect();
        volumes.extend(self.owners.volumes());
        volumes.extend(self.fronts.volumes());
        volumes.sort_unstable();
        volumes.dedup();
        for volume in volumes {
            self.follow_volume(volume);
        }
        self.tell_of_disks_out();
        self.look_at_openings();
        self.disks.saw_map(self.now, self.index);
    }

    // rule: node/owners-hear-of-disks-that-are-out
    /// An owner whose guests are silent would not meet such a disk, and its copies would count.
    fn tell_of_disks_out(&mut self) {
        let out = self.map.disks().iter().filter(|(_, disk)| !disk.is_in_service());
        let out = out.map(|(id, _)| *id).collect();
        let known = std::mem::replace(&mut self.disks_out, out);
        for disk in self.disks_out.difference(&known) {
            self.owners.feed_all(self.now, &VolumeInput::DiskOut { disk: *disk });
        }
    }

    fn register(&mut self) {
        let (me, mine) = (self.config.node, self.config.incarnation);
        if self.map.cluster().is_none()
            || self.map.is_registered(me, mine)
            || self.registered
            || self.removed
            || self.stage != Stage::Running
            || !self.disks.all_decided()
            || self.proposals.is_pending(Source::Register)
        {
            return;
        }
        let change = Change::Register { node: self.config.info.clone(), incarnation: mine };
        self.proposals.propose(self.now, Source::Register, change);
    }

    fn follow_disks(&mut self) {
        for slot in self.disks.slots() {
            let path = self.disks.path(slot).to_owned();
            match self.disks.condition(slot).cloned() {
                Some(DiskCondition::InService { uuid, capacity_bytes }) => {
                    let known = self.map.disk_by_uuid(uuid);
                    let here = known
                        .and_then(|id| self.map.disk(id))
                        .is_some_and(|entry| entry.node == self.config.node);
                    let failed = known
                        .and_then(|id| self.map.disk(id))
                        .is_some_and(|entry| entry.state == DiskState::Failed);
                    let missing = known
                        .and_then(|id| self.map.disk(id))
                        .is_some_and(|entry| entry.state == DiskState::Missing);
                    let failed = failed || self.map.is_retired(uuid);
                    if failed && self.disks.id(slot).is_none() {
                        self.disks.retire(self.now, slot);
                    } else if let (Some(id), true, false) = (known, here, missing) {
                        if self.disks.id(slot) != Some(id) {
                            self.disks.set_id(slot, id);
                        }
                    } else {
                        let node = self.config.node;
                        self.reconcile(Change::AddDisk { node, uuid, capacity_bytes, path });
                    }
                }
                Some(DiskCondition::Out(_)) => {
                    if let Some(disk) = self.disks.id(slot)
                        && self
                            .map
                            .disk(disk)
                            .is_some_and(|entry| entry.state == DiskState::InService)
                    {
                        self.reconcile(Change::DiskFailed { disk });
                    }
                }
                Some(DiskCondition::Opening | DiskCondition::Stopped) | None => {}
            }
        }
        self.miss_disks();
        self.suspect_disks();
        self.order_jobs();
    }

    // rule: node/a-disk-that-rots-is-suspect
    /// One that gave wrong data too often is to be emptied. If somebody wants it used all the same, it
    /// takes as many again.
    fn suspect_disks(&mut self) {
        let most = self.map.settings().suspect_blocks;
        for slot in self.disks.slots() {
            let Some(disk) = self.disks.id(slot) else { continue };
            let corrupt_blocks = self.disks.stats(slot).map_or(0, |stats| stats.corrupt_blocks);
            let judged = self.suspected.entry(disk).or_default();
            if most == 0 || corrupt_blocks.saturating_sub(*judged) < most {
                continue;
            }
            *judged = corrupt_blocks;
            if self.map.disk(disk).is_some_and(|entry| entry.drain.is_none()) {
                let why = Some(DrainReason::Suspect { corrupt_blocks });
                self.reconcile(Change::DrainDisk { disk, why });
            }
        }
    }

    /// Disks that the map knows on this node and that it does not have.
    fn miss_disks(&mut self) {
        if !self.disks.all_decided() {
            return;
        }
        let here = |uuid, id: DiskId| {
            self.disks.slots().into_iter().any(|slot| match self.disks.condition(slot) {
                Some(DiskCondition::InService { uuid: has, .. }) => *has == uuid,
                // One that failed in service is told so.
                Some(DiskCondition::Out(_)) => self.disks.id(slot) == Some(id),
                Some(DiskCondition::Opening | DiskCondition::Stopped) | None => true,
            })
        };
        let mine = self.map.disks().iter().filter(|(_, entry)| {
            entry.node == self.config.node && entry.state == DiskState::InService
        });
        let missing: Vec<DiskId> =
            mine.filter(|(id, entry)| !here(entry.uuid, **id)).map(|(id, _)| *id).collect();
        for disk in missing {
            self.reconcile(Change::DiskMissing { disk });
        }
    }

    pub(crate) fn reconcile(&mut self, change: Change) {
        if !self.proposals.has_change(&change) {
            self.proposals.propose(self.now, Source::Reconcile, change);
        }
    }

    /// Rules 0 and 10: what the map orders this node's own disks to make and to drop.
    fn order_jobs(&mut self) {
        let creates = self.map.creates_for(self.config.node);
        let drops = self.map.drops_for(self.config.node);
        let ordered: BTreeSet<Job> =
            creates.iter().map(create_job).chain(drops.iter().map(drop_job)).collect();
        self.recorded.retain(|job| ordered.contains(job));
        for order in &creates {
            let (creation, first, count) = (order.creation, order.first, order.count);
            self.order(create_job(order), ReplicaOp::Create { creation, first, count });
        }
        for order in &drops {
            let (segment, creation, epoch) = (order.segment, order.creation, order.epoch);
            self.order(drop_job(order), ReplicaOp::Drop { segment, creation, epoch });
        }
        let mut made = BTreeMap::new();
        for order in &creates {
            let whole = made.entry((order.volume, order.disk, order.creation)).or_insert(true);
            *whole &= self.recorded.contains(&create_job(order));
        }
        for ((volume, disk, creation), _) in made.into_iter().filter(|(_, whole)| *whole) {
            self.reconcile(Change::Created { volume, disk, creation });
        }
        if !self.jobs.values().any(|job| matches!(job, Job::Drop { .. })) {
            let mut dropped: BTreeMap<DiskId, Vec<_>> = BTreeMap::new();
            for order in drops.iter().filter(|order| self.recorded.contains(&drop_job(order))) {
                dropped.entry(order.disk).or_default().push((order.volume, order.segment));
            }
            for (disk, replicas) in dropped {
                self.reconcile(Change::Dropped { disk, replicas });
            }
        }
    }

    fn order(&mut self, job: Job, op: ReplicaOp) {
        let (Job::Create { volume, disk, .. } | Job::Drop { volume, disk, .. }) = job;
        let running = self.jobs.values().any(|running| *running == job);
        if self.jobs_again.is_some() || running || self.recorded.contains(&job) {
            return;
        }
        let request = RequestId(self.next_job);
        self.next_job += 1;
        self.jobs.insert(request, job);
        let ask = ReplicaRequest { disk, volume, owner_epoch: Epoch::ZERO, op };
        self.disks.request(self.now, MAP_ORIGIN, request, ask);
    }

    /// A disk answered an order of the map.
    pub(crate) fn on_job_done(&mut self, request: RequestId, answer: &ReplicaAnswer) {
        let Some(job) = self.jobs.remove(&request) else {
            return;
        };
        if answer.result.is_err() {
            self.jobs_again = Some(self.now + JOB_AGAIN);
            return;
        }
        self.recorded.insert(job);
        self.map_dirty = true;
    }

    /// Who owns a volume by the map, compared with who serves it here.
    pub(crate) fn follow_volume(&mut self, volume: VolumeId) {
        let (me, mine) = (self.config.node, self.config.incarnation);
        let owner = self.map.volume(volume).and_then(|entry| {
            let (node, incarnation) = entry.owner?;
            Some((node, incarnation, entry.owner_epoch))
        });
        let owned_here = owner.filter(|(node, incarnation, _)| *node == me && *incarnation == mine);
        let serving = self.owners.owner_epoch(volume);
        match (owned_here, serving) {
            (Some((_, _, epoch)), Some(known)) if epoch == known => {
                let entry = self.map.volume(volume);
                let shape =
                    entry.map(|entry| (entry.epoch, entry.spec.size_bytes, entry.scrub.wanted));
                if shape != self.owners.shape(volume) {
                    self.feed_view(volume, true);
                }
            }
            (Some(_), Some(_)) => {
                self.feed_view(volume, false);
                self.owners.end(volume);
                self.begin_owning(volume);
            }
            (Some(_), None) => self.begin_owning(volume),
            (None, Some(_)) => {
                self.feed_view(volume, false);
                self.owners.end(volume);
            }
            (None, None) => {}
        }
        self.follow_front(volume);
    }

    fn feed_view(&mut self, volume: VolumeId, owned: bool) {
        match self.map.view(volume) {
            Some(view) => self.owners.view(self.now, view, owned),
            None => self.owners.end(volume),
        }
    }

    fn begin_owning(&mut self, volume: VolumeId) {
        let Some(view) = self.map.view(volume) else {
            return;
        };
        let exclusive = self.map.volume(volume).is_some_and(|entry| entry.spec.exclusive);
        if self.stage != Stage::Running {
            return;
        }
        let members: Vec<_> = self.map.nodes().keys().copied().collect();
        let down = self.links.peers().filter(|node| self.links.is_down(*node)).collect();
        let beginning = Beginning {
            view,
            exclusive,
            index: self.index,
            members,
            down,
            cluster_start: self.links.awaits_first_sight(),
            lease: self.lease.until(),
            seed: self.prng.next_u64(),
            settings: &self.settings,
        };
        self.owners.begin(self.now, beginning);
        for disk in &self.disks_out {
            self.owners.disk_out(self.now, volume, *disk);
        }
        for node in self.links.leaving().collect::<Vec<_>>() {
            self.owners.feed_all(self.now, &VolumeInput::NodeLeaving { node });
        }
    }

    fn follow_front(&mut self, volume: VolumeId) {
        let Some(front) = self.fronts.get_mut(volume) else {
            return;
        };
        let ready = self.map.volume(volume).filter(|entry| entry.state == VolumeState::Ready);
        let Some(entry) = ready else {
            // One that the map has not told of yet may be asked for by its owner already.
            if front.is_known() {
                front.end();
                self.pump();
                self.fronts.remove(volume);
            }
            return;
        };
        let owner = entry.owner.map(|(node, _)| OwnerNow { node, owner_epoch: entry.owner_epoch });
        let voided = entry.voided.get(&self.config.node).copied().unwrap_or_default();
        let barred = entry.barred.contains(&self.config.node);
        let hold = entry.spec.hold;
        front.set_map(self.now, self.index, OfVolume { owner, voided, barred, hold });
        if owner.is_none() {
            front.want_owner();
        }
    }

    /// Guests wait and nobody owns the volume: take it (compare and set on its epoch).
    pub(crate) fn want_owner(&mut self, volume: VolumeId) {
        let Some(entry) = self.map.volume(volume) else {
            return;
        };
        let source = Source::TakeOver { volume };
        if entry.owner.is_some()
            || entry.state != VolumeState::Ready
            || !self.registered
            || self.stage != Stage::Running
            || !self.lease.holds(self.now)
            || self.proposals.is_pending(source)
        {
            return;
        }
        let change = Change::TakeOver {
            volume,
            epoch: entry.epoch,
            node: self.config.node,
            incarnation: self.config.incarnation,
        };
        self.proposals.propose(self.now, source, change);
    }

    pub(crate) fn front(&mut self, volume: VolumeId) -> &mut Front {
        let voided = self
            .map
            .volume(volume)
            .and_then(|entry| entry.voided.get(&self.config.node).copied())
            .unwrap_or_default();
        self.fronts.or_insert(volume, voided)
    }
}

fn create_job(order: &CreateOrder) -> Job {
    let CreateOrder { volume, disk, creation, first, .. } = *order;
    Job::Create { volume, disk, creation, first }
}

fn drop_job(order: &DropOrder) -> Job {
    let DropOrder { volume, disk, segment, .. } = *order;
    Job::Drop { volume, disk, segment }
}
