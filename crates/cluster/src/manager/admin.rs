//! What operators ask: checked, placed, proposed, and answered when the whole of it is done.

use super::{Effect, Proposals, Purpose, admit, drain};
use crate::command::{AdminError, AdminReply, AdminRequest, Change, NodeInfo, VolumeSpec};
use crate::map::{Map, RF_MAX, Ticket, VolumeEntry, VolumeState, is_volume_name};
use crate::placement::{PlacementError, Wanted, free_bytes, place};
use crate::settings::{SettingError, Settings};
use gabion_types::{
    DiskId, Duration, Instant, NodeId, Outcome, RefusedChange, ScrubKind, SegmentIndex, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Requests under way. Full: refused as `TooMany`.
pub const JOBS_MAX: usize = 256;
/// A request is answered within so long, done or not.
const ANSWER: Duration = Duration::from_secs(10);
/// So long the owner of a volume has to let it go.
const RELEASE: Duration = Duration::from_secs(4);
/// An owner that doesn't let go is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A volume that was let go is deleted only if nobody takes it again for so long: a node with a
/// guest on it does, whatever the owner knew of it.
const UNWANTED: Duration = Duration::from_millis(1500);
/// How often a plan that the map refused, because the map had moved on, is made anew.
const PLANS_MAX: u32 = 4;

#[derive(Clone, Debug)]
pub(super) struct Admin {
    me: NodeId,
    jobs: BTreeMap<u64, Job>,
    pub(super) done: Vec<Effect>,
}

#[derive(Clone, Debug)]
struct Job {
    until: Instant,
    plans: u32,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// A change is in the log's hands.
    Proposed(Task),
    /// Committed; disks have to record their segments.
    Making { volume: VolumeId, created: bool },
    /// The owner was asked to let the volume go.
    /// `free`: since when nobody owns it.
    Releasing { task: Task, volume: VolumeId, until: Instant, ask: Instant, free: Option<Instant> },
}

#[derive(Clone, Debug)]
enum Task {
    Create { spec: VolumeSpec, near: Option<NodeId> },
    Resize { volume: VolumeId, size_bytes: u64 },
    Delete { volume: VolumeId, force: bool },
    Move { volume: VolumeId, to: NodeId },
    Set { name: String, value: String },
    Scrub { volume: VolumeId, kind: ScrubKind },
    Evict { volume: VolumeId, barred: BTreeSet<NodeId>, let_back: bool },
    AcceptLoss { volume: VolumeId, survivors: Vec<(SegmentIndex, Option<DiskId>)> },
    DrainDisk { disk: DiskId, cancel: bool },
    DrainNode { node: NodeId, cancel: bool },
    RemoveNode { node: NodeId, force: bool },
    Admit { ticket: Ticket, at_ms: u64, info: NodeInfo },
}

/// What comes next of a job.
enum Step {
    Propose(Task, Change),
    Release(Task, VolumeId),
    Make { volume: VolumeId, created: bool },
    Answer(AdminReply),
}

impl Admin {
    pub(super) fn new(me: NodeId) -> Self {
        Self { me, jobs: BTreeMap::new(), done: Vec::new() }
    }

    pub(super) fn on_request(
        &mut self,
        now: Instant,
        map: &Map,
        proposals: &mut Proposals,
        number: u64,
        request: AdminRequest,
    ) {
        let step = if map.cluster().is_none() {
            refused(AdminError::NoMajority)
        } else if self.jobs.len() >= JOBS_MAX {
            refused(AdminError::TooMany)
        } else {
            let myself =
                matches!(request, AdminRequest::RemoveNode { node, .. } if node == self.me);
            let task = if myself { Err(AdminError::NodeLeads) } else { task_of(map, request) };
            task.map_or_else(refused, |task| plan(map, task))
        };
        self.go_on(now, proposals, (number, now + ANSWER, 1), step);
    }

    pub(super) fn refuse(&mut self, number: u64, error: AdminError) {
        self.done.push(Effect::AdminDone { number, reply: AdminReply::Refused(error) });
    }

    pub(super) fn on_proposed(
        &mut self,
        now: Instant,
        map: &Map,
        proposals: &mut Proposals,
        number: u64,
        outcome: Outcome,
    ) {
        let Some(Job { until, mut plans, stage }) = self.jobs.remove(&number) else { return };
        let Stage::Proposed(task) = stage else {
            self.jobs.insert(number, Job { until, plans, stage });
            return;
        };
        let step = match outcome {
            Outcome::Done => on_done(map, &task),
            Outcome::Refused(why) if plans < PLANS_MAX && task.may_plan_anew(why) => {
                plans += 1;
                plan(map, task)
            }
            Outcome::Refused(why) => refused(task.error_of(why)),
        };
        self.go_on(now, proposals, (number, until, plans), step);
    }

    /// Looks at what the map came to meanwhile, and at the clock.
    pub(super) fn conclude(&mut self, now: Instant, map: &Map, proposals: &mut Proposals) {
        let numbers: Vec<_> = self.jobs.keys().copied().collect();
        for number in numbers {
            let Some(mut job) = self.jobs.remove(&number) else { continue };
            match self.look(now, map, &mut job) {
                Some(step) => self.go_on(now, proposals, (number, job.until, job.plans), step),
                None if job.until <= now => self.refuse(number, late(map, &job.stage)),
                None => drop(self.jobs.insert(number, job)),
            }
        }
    }

    fn look(&mut self, now: Instant, map: &Map, job: &mut Job) -> Option<Step> {
        match &mut job.stage {
            Stage::Proposed(_) => None,
            Stage::Making { volume, created } => made(map, *volume, *created),
            Stage::Releasing { task, volume, until, ask, free } => {
                let Some((node, _)) = map.volume(*volume).and_then(|entry| entry.owner) else {
                    let since = *free.get_or_insert(now);
                    let patience = task.unwanted_for();
                    return (now.since(since) >= patience).then(|| plan(map, task.clone()));
                };
                *free = None;
                if task.wants_at(node) {
                    return Some(plan(map, task.clone()));
                }
                if *until <= now {
                    return Some(refused(task.not_released()));
                }
                if *ask <= now {
                    *ask = now + ASK_AGAIN;
                    let idle = matches!(task, Task::Delete { .. });
                    self.done.push(Effect::AskRelease { node, volume: *volume, idle });
                }
                None
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.jobs.values().map(|job| match &job.stage {
            Stage::Proposed(_) | Stage::Making { .. } => job.until,
            Stage::Releasing { task, free: Some(since), .. } => {
                job.until.min(*since + task.unwanted_for())
            }
            Stage::Releasing { until, ask, free: None, .. } => job.until.min(*until).min(*ask),
        });
        deadlines.min()
    }

    fn go_on(
        &mut self,
        now: Instant,
        proposals: &mut Proposals,
        (number, until, plans): (u64, Instant, u32),
        step: Step,
    ) {
        let stage = match step {
            Step::Propose(task, change) => {
                proposals.propose(Purpose::Admin { number }, change);
                Stage::Proposed(task)
            }
            Step::Release(task, volume) => {
                Stage::Releasing { task, volume, until: now + RELEASE, ask: now, free: None }
            }
            Step::Make { volume, created } => Stage::Making { volume, created },
            Step::Answer(reply) => {
                self.done.push(Effect::AdminDone { number, reply });
                return;
            }
        };
        self.jobs.insert(number, Job { until, plans, stage });
    }
}

impl Task {
    /// The map refused what was planned by an older map.
    fn may_plan_anew(&self, why: RefusedChange) -> bool {
        match self {
            Self::Create { .. } | Self::Resize { .. } => {
                matches!(why, RefusedChange::NoRoom | RefusedChange::Invalid)
            }
            Self::Move { .. } => matches!(
                why,
                RefusedChange::Busy | RefusedChange::OtherEpoch | RefusedChange::OtherIncarnation
            ),
            Self::Delete { .. }
            | Self::Set { .. }
            | Self::Evict { .. }
            | Self::Scrub { .. }
            | Self::DrainDisk { .. }
            | Self::DrainNode { .. }
            | Self::RemoveNode { .. } => false,
            // An operator was told of something else.
            Self::AcceptLoss { .. } => false,
            // Another was let in meanwhile: the plan says what that means.
            Self::Admit { .. } => true,
        }
    }

    fn error_of(&self, why: RefusedChange) -> AdminError {
        let remains = matches!(why, RefusedChange::NotGone | RefusedChange::NotFound);
        if remains && matches!(self, Self::AcceptLoss { .. }) {
            return AdminError::RemainsChanged;
        }
        error_of(why)
    }

    fn unwanted_for(&self) -> Duration {
        if matches!(self, Self::Delete { .. }) { UNWANTED } else { Duration::ZERO }
    }

    fn wants_at(&self, node: NodeId) -> bool {
        matches!(self, Self::Move { to, .. } if *to == node)
    }

    fn not_released(&self) -> AdminError {
        match self {
            Self::Delete { .. } => AdminError::Attached,
            Self::Create { .. }
            | Self::Resize { .. }
            | Self::Move { .. }
            | Self::Set { .. }
            | Self::Evict { .. }
            | Self::AcceptLoss { .. }
            | Self::Scrub { .. }
            | Self::DrainDisk { .. }
            | Self::DrainNode { .. }
            | Self::RemoveNode { .. }
            | Self::Admit { .. } => AdminError::NotReleased,
        }
    }
}

fn task_of(map: &Map, request: AdminRequest) -> Result<Task, AdminError> {
    let find = |name: &str| map.volume_by_name(name).map(|entry| entry.id);
    let find = |name: &str| find(name).ok_or(AdminError::NoVolume);
    Ok(match request {
        AdminRequest::CreateVolume { spec, near } => Task::Create { spec, near },
        AdminRequest::ResizeVolume { name, size_bytes } => {
            Task::Resize { volume: find(&name)?, size_bytes }
        }
        AdminRequest::DeleteVolume { name, force } => Task::Delete { volume: find(&name)?, force },
        AdminRequest::MoveVolume { name, to } => Task::Move { volume: find(&name)?, to },
        AdminRequest::SetSetting { name, value } => Task::Set { name, value },
        AdminRequest::EvictGuests { name, barred, let_back } => {
            Task::Evict { volume: find(&name)?, barred, let_back }
        }
        AdminRequest::AcceptLoss { name, survivors } => {
            Task::AcceptLoss { volume: find(&name)?, survivors }
        }
        AdminRequest::ScrubVolume { name, kind } => Task::Scrub { volume: find(&name)?, kind },
        AdminRequest::DrainDisk { disk, cancel } => Task::DrainDisk { disk, cancel },
        AdminRequest::DrainNode { node, cancel } => Task::DrainNode { node, cancel },
        AdminRequest::RemoveNode { node, force } => Task::RemoveNode { node, force },
        AdminRequest::AdmitNode { ticket, at_ms, info } => Task::Admit { ticket, at_ms, info },
    })
}

/// By the map as it is now.
fn plan(map: &Map, task: Task) -> Step {
    let step = match task {
        Task::Create { spec, near } => plan_create(map, spec, near),
        Task::Resize { volume, size_bytes } => plan_resize(map, volume, size_bytes),
        Task::Delete { volume, force } => plan_delete(map, volume, force),
        Task::Move { volume, to } => plan_move(map, volume, to),
        Task::Set { name, value } => plan_set(map, name, value),
        Task::Evict { volume, barred, let_back } => {
            let change = Change::Evict { volume, barred: barred.clone(), let_back };
            Ok(Step::Propose(Task::Evict { volume, barred, let_back }, change))
        }
        Task::Scrub { volume, kind } => {
            let change = Change::WantScrub { volume, kind };
            Ok(Step::Propose(Task::Scrub { volume, kind }, change))
        }
        Task::AcceptLoss { survivors, .. } if survivors.is_empty() => {
            Err(AdminError::NothingStranded)
        }
        Task::AcceptLoss { volume, survivors } => {
            let change = Change::AcceptLoss { volume, survivors: survivors.clone() };
            Ok(Step::Propose(Task::AcceptLoss { volume, survivors }, change))
        }
        Task::DrainDisk { disk, cancel } => drain::of_disk(map, disk, cancel)
            .map(|change| Step::Propose(Task::DrainDisk { disk, cancel }, change)),
        Task::DrainNode { node, cancel } => drain::of_node(map, node, cancel)
            .map(|change| Step::Propose(Task::DrainNode { node, cancel }, change)),
        Task::RemoveNode { node, force } => drain::of_removal(map, node, force)
            .map(|change| Step::Propose(Task::RemoveNode { node, force }, change)),
        Task::Admit { ticket, at_ms, info } => admit::refusal(map, ticket, at_ms, &info)
            .map_or_else(
                || {
                    let change = Change::Admit { ticket, at_ms, info: info.clone() };
                    Ok(Step::Propose(Task::Admit { ticket, at_ms, info }, change))
                },
                Err,
            ),
    };
    step.unwrap_or_else(refused)
}

fn plan_create(map: &Map, spec: VolumeSpec, near: Option<NodeId>) -> Result<Step, AdminError> {
    if !is_volume_name(&spec.name) {
        return Err(AdminError::BadName);
    }
    if !(1..=RF_MAX).contains(&spec.rf) {
        return Err(AdminError::BadRf);
    }
    segments_of(map, spec.size_bytes)?;
    if map.volume_by_name(&spec.name).is_some() {
        return Err(AdminError::NameTaken);
    }
    let wanted = Wanted { size_bytes: spec.size_bytes, had: 0, rf: spec.rf, near };
    let placement = placed(map, wanted, spec.size_bytes)?;
    let change = Change::CreateVolume { spec: spec.clone(), placement };
    Ok(Step::Propose(Task::Create { spec, near }, change))
}

fn plan_resize(map: &Map, volume: VolumeId, size_bytes: u64) -> Result<Step, AdminError> {
    let entry = volume_of(map, volume)?;
    segments_of(map, size_bytes)?;
    let had = entry.spec.size_bytes;
    if size_bytes < had {
        return Err(AdminError::Shrinks { size_bytes: had });
    }
    if entry.growth.is_some() || !entry.is_ready() {
        return Err(AdminError::Map(RefusedChange::Busy));
    }
    if size_bytes == had {
        return Ok(Step::Answer(AdminReply::Done));
    }
    if let Some((disk, free_bytes)) = map.full_at_the_end(entry, size_bytes) {
        return Err(AdminError::NoRoomAtEnd { disk, free_bytes });
    }
    let near = entry.owner.map(|(owner, _)| owner);
    let wanted = Wanted { size_bytes, had: segments_of(map, had)?, rf: entry.spec.rf, near };
    let placement = placed(map, wanted, size_bytes - had)?;
    let change = Change::ResizeVolume { volume, size_bytes, placement };
    Ok(Step::Propose(Task::Resize { volume, size_bytes }, change))
}

fn plan_delete(map: &Map, volume: VolumeId, force: bool) -> Result<Step, AdminError> {
    let owned = volume_of(map, volume)?.owner.is_some();
    let task = Task::Delete { volume, force };
    if owned && !force {
        return Ok(Step::Release(task, volume));
    }
    Ok(Step::Propose(task, Change::DeleteVolume { volume, force }))
}

fn plan_move(map: &Map, volume: VolumeId, to: NodeId) -> Result<Step, AdminError> {
    let entry = volume_of(map, volume)?;
    let node = map.node(to).ok_or(AdminError::NoNode)?;
    if !map.is_alive(to) {
        return Err(AdminError::NodeAway { node: to });
    }
    let task = Task::Move { volume, to };
    Ok(match entry.owner {
        Some((owner, _)) if owner == to => Step::Answer(AdminReply::Done),
        Some(_) => Step::Release(task, volume),
        None => {
            let (epoch, incarnation) = (entry.epoch, node.incarnation);
            Step::Propose(task, Change::TakeOver { volume, epoch, node: to, incarnation })
        }
    })
}

fn plan_set(map: &Map, name: String, value: String) -> Result<Step, AdminError> {
    match Settings::check(map.settings_set(), &name, &value) {
        Ok(_) => {
            let change = Change::SetSetting { name: name.clone(), value: value.clone() };
            Ok(Step::Propose(Task::Set { name, value }, change))
        }
        Err(SettingError::NoSuch) => Err(AdminError::NoSetting),
        Err(SettingError::BadValue { wants }) => Err(AdminError::BadValue { value, wants }),
    }
}

fn volume_of(map: &Map, volume: VolumeId) -> Result<&VolumeEntry, AdminError> {
    map.volume(volume)
        .filter(|entry| entry.state != VolumeState::Deleting)
        .ok_or(AdminError::NoVolume)
}

fn segments_of(map: &Map, size_bytes: u64) -> Result<u32, AdminError> {
    let most = map.volume_bytes_max();
    let segments = map.limits().segment.segments_of(size_bytes);
    segments.filter(|_| map.is_volume_size(size_bytes)).ok_or(AdminError::BadSize { most })
}

/// `more_bytes`: what the volume has more than before, for the error.
fn placed(map: &Map, wanted: Wanted, more_bytes: u64) -> Result<Vec<Vec<DiskId>>, AdminError> {
    let Wanted { size_bytes, rf, .. } = wanted;
    let no_room = || {
        let free_bytes = free_bytes(map, rf);
        AdminError::NoRoom { wanted_bytes: more_bytes, free_bytes, rf }
    };
    let placement = place(map, wanted).map_err(|error| match error {
        PlacementError::TooFewNodes { nodes } => AdminError::TooFewNodes { wanted: rf, nodes },
        PlacementError::NoRoom => no_room(),
    })?;
    if map.could_be_full(size_bytes, rf) { Ok(placement) } else { Err(no_room()) }
}

fn on_done(map: &Map, task: &Task) -> Step {
    match task {
        Task::Create { spec, .. } => match map.volume_by_name(&spec.name) {
            Some(entry) => Step::Make { volume: entry.id, created: true },
            None => refused(AdminError::NoVolume),
        },
        Task::Resize { volume, .. } => Step::Make { volume: *volume, created: false },
        Task::Delete { .. }
        | Task::Move { .. }
        | Task::Set { .. }
        | Task::Evict { .. }
        | Task::AcceptLoss { .. }
        | Task::Scrub { .. }
        | Task::DrainDisk { .. }
        | Task::DrainNode { .. }
        | Task::RemoveNode { .. }
        | Task::Admit { .. } => Step::Answer(AdminReply::Done),
    }
}

/// Every disk has recorded it, or it is gone meanwhile.
fn made(map: &Map, volume: VolumeId, created: bool) -> Option<Step> {
    match volume_of(map, volume) {
        Err(error) => Some(refused(error)),
        Ok(entry) if !entry.is_ready() || entry.growth.is_some() => None,
        Ok(_) if created => Some(Step::Answer(AdminReply::Created { volume })),
        Ok(_) => Some(Step::Answer(AdminReply::Done)),
    }
}

fn late(map: &Map, stage: &Stage) -> AdminError {
    match stage {
        Stage::Proposed(_) => AdminError::NoMajority,
        Stage::Releasing { task, .. } => task.not_released(),
        Stage::Making { volume, .. } => {
            let mut waiting = Vec::new();
            if let Some(entry) = map.volume(*volume) {
                if let VolumeState::Creating { waiting: disks } = &entry.state {
                    waiting.extend(disks);
                }
                waiting.extend(entry.growth.iter().flat_map(|growth| &growth.waiting));
            }
            AdminError::StillMaking { waiting }
        }
    }
}

fn error_of(why: RefusedChange) -> AdminError {
    match why {
        RefusedChange::NameTaken => AdminError::NameTaken,
        RefusedChange::Attached => AdminError::Attached,
        RefusedChange::NotFound => AdminError::NoVolume,
        RefusedChange::OtherEpoch
        | RefusedChange::NotOwner
        | RefusedChange::LastInSync
        | RefusedChange::TooFewCopies
        | RefusedChange::NotGone
        | RefusedChange::InUse
        | RefusedChange::Removed
        | RefusedChange::NoRoom
        | RefusedChange::Invalid
        | RefusedChange::Busy
        | RefusedChange::OtherIncarnation => AdminError::Map(why),
    }
}

fn refused(error: AdminError) -> Step {
    Step::Answer(AdminReply::Refused(error))
}
