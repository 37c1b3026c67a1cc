//! The service `Cluster`.

use crate::control::ask::{Context, Place, passed_on};
use crate::control::breakers;
use crate::control::drain;
use crate::control::event_log::{self, Noted, Origin};
use crate::control::join;
use crate::control::safety;
use crate::control::show::{self, Told};
use crate::control::volumes::all_volumes;
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_api::v1::cluster_server::Cluster;
use gabion_api::v1::{
    Capacity, Disk, DiskSpace, DiskState, DisksRequest, DisksResponse, Drain, DrainDiskRequest,
    DrainDiskResponse, DrainNodeRequest, DrainNodeResponse, Event, EventsRequest, Health,
    JoinRequest, JoinResponse, ListSettingsRequest, ListSettingsResponse, Node, NodeState,
    NodesRequest, NodesResponse, RemoveNodeRequest, RemoveNodeResponse, SetSettingRequest,
    SetSettingResponse, Setting, StatusRequest, StatusResponse, Volume,
};
use gabion_cluster::safety::Safety;
use gabion_cluster::{AdminRequest, Map, settings::SETTINGS};
use gabion_types::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// A node that has not told its events by then is left out.
const EVENTS_WAIT: Duration = Duration::from_secs(1);
/// Events on their way to one reader.
const EVENTS_QUEUED: usize = 64;

pub struct ClusterService {
    context: Arc<Context>,
}

impl ClusterService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn nodes_of(&self, map: &Map, told: &Told, voters: &BTreeSet<NodeId>) -> Vec<Node> {
        let leader = self.context.leader().leader;
        show::nodes(map, told, (leader, voters), |node| self.context.observer.since(node))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let told = self.context.told_by_all().await;
        let view = self.context.leader();
        let voters = self.context.voters();
        let mut status = self.context.map.read_map(|map| StatusResponse {
            cluster_id: map.cluster().unwrap_or(self.context.peers.cluster).to_string(),
            leader: view.leader.map(NodeId::get),
            term: view.term,
            map_index: map.applied().get(),
            answered_by: self.context.me.get(),
            nodes: self.nodes_of(map, &told, &voters),
            volumes: all_volumes(map, &told),
            capacity: Some(capacity(map, &told)),
            safety: Some(safety::shown(map, &Safety::of(map, &voters))),
            ..StatusResponse::default()
        });
        status.problems = problems(&status, told.unconfirmed);
        status.health = worst(&status).into();
        status.notes = drain::notes(&status.nodes);
        status.notes.extend(breakers::notes(&status.nodes));
        status.notes.extend(self.context.map.read_map(join::notes));
        status.notes.extend(self.context.map.read_map(drain::levelling));
        status.notes.extend(status.volumes.iter().filter_map(zone_note));
        Ok(Response::new(status))
    }

    async fn nodes(
        &self,
        _request: Request<NodesRequest>,
    ) -> Result<Response<NodesResponse>, Status> {
        let told = self.context.told_by_all().await;
        let voters = self.context.voters();
        let nodes = self.context.map.read_map(|map| self.nodes_of(map, &told, &voters));
        Ok(Response::new(NodesResponse { nodes }))
    }

    async fn disks(
        &self,
        _request: Request<DisksRequest>,
    ) -> Result<Response<DisksResponse>, Status> {
        let told = self.context.told_by_all().await;
        let disks = self.context.map.read_map(|map| show::disks(map, &told));
        Ok(Response::new(DisksResponse { disks }))
    }

    async fn list_settings(
        &self,
        _request: Request<ListSettingsRequest>,
    ) -> Result<Response<ListSettingsResponse>, Status> {
        self.context.confirm_map().await;
        let set = self.context.map.read_map(|map| map.settings_set().clone());
        let settings = SETTINGS.iter().map(|setting| {
            let default_value = setting.text(setting.default);
            Setting {
                name: setting.name.to_owned(),
                value: set.get(setting.name).cloned().unwrap_or_else(|| default_value.clone()),
                default_value,
                least: setting.text(setting.least),
                most: setting.text(setting.most),
                help: setting.meaning.to_owned(),
            }
        });
        Ok(Response::new(ListSettingsResponse { settings: settings.collect() }))
    }

    async fn set_setting(
        &self,
        request: Request<SetSettingRequest>,
    ) -> Result<Response<SetSettingResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let SetSettingRequest { name, value } = request.into_inner();
                let change = AdminRequest::SetSetting { name: name.clone(), value };
                self.context.admin(change, &name).await?;
                Ok(self.context.answer(SetSettingResponse {}))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let mut client = ClusterClient::new(leader);
                let answer = client.set_setting(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn drain_disk(
        &self,
        request: Request<DrainDiskRequest>,
    ) -> Result<Response<DrainDiskResponse>, Status> {
        drain::disk(&self.context, request).await
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        drain::node(&self.context, request).await
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        drain::remove(&self.context, request).await
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        join::join(&self.context, request).await
    }

    type EventsStream = ReceiverStream<Result<Event, Status>>;

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let EventsRequest { follow, local_only, own } = request.into_inner();
        let (sender, stream) = mpsc::channel(EVENTS_QUEUED);
        let wanted = move |noted: &Noted| !local_only || noted.origin == Origin::Node;
        let (kept, live) = self.context.hub.events.follow();
        let kept = kept.into_iter().filter(wanted).map(|noted| noted.event);
        let alone = local_only || own;
        let others = if alone { BTreeMap::new() } else { self.others_events().await };
        let last: BTreeMap<NodeId, (u64, u64)> =
            others.iter().map(|(node, events)| (*node, events.last().map_or((0, 0), at))).collect();
        let events = event_log::merged(kept.chain(others.into_values().flatten()));
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            for event in events {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            for (node, last) in last {
                tokio::spawn(follow_other(Arc::clone(&context), node, last, sender.clone()));
            }
            follow_own(live, wanted, sender).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl ClusterService {
    /// What the other nodes keep, by node; those that do not answer are left out.
    async fn others_events(&self) -> BTreeMap<NodeId, Vec<Event>> {
        let me = self.context.me;
        let nodes =
            self.context.map.read_map(|map| map.nodes().keys().copied().collect::<Vec<_>>());
        let mut found = BTreeMap::new();
        for node in nodes.into_iter().filter(|node| *node != me) {
            let Some(channel) = self.context.peers.channel(node) else { continue };
            let events = async {
                let request = EventsRequest { own: true, ..EventsRequest::default() };
                let mut stream = ClusterClient::new(channel).events(request).await?.into_inner();
                let mut events = Vec::new();
                while let Some(event) = stream.message().await? {
                    events.push(event);
                }
                Ok::<_, Status>(events)
            };
            let events = tokio::time::timeout(EVENTS_WAIT, events).await;
            found.insert(node, events.ok().and_then(Result::ok).unwrap_or_default());
        }
        found
    }
}

async fn follow_own(
    mut live: tokio::sync::broadcast::Receiver<Noted>,
    wanted: impl Fn(&Noted) -> bool,
    sender: mpsc::Sender<Result<Event, Status>>,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let noted = tokio::select! {
            noted = live.recv() => noted,
            () = sender.closed() => return,
        };
        match noted {
            Ok(noted) if wanted(&noted) => {
                if sender.send(Ok(noted.event)).await.is_err() {
                    return;
                }
            }
            // A reader that is too slow misses some; their numbers tell.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// In the order in which a node notices them.
fn at(event: &Event) -> (u64, u64) {
    (event.time_ms, event.number)
}

/// Also across restarts of that node.
async fn follow_other(
    context: Arc<Context>,
    node: NodeId,
    mut last: (u64, u64),
    sender: mpsc::Sender<Result<Event, Status>>,
) {
    while !sender.is_closed() {
        if let Some(channel) = context.peers.channel(node) {
            let request = EventsRequest { follow: true, local_only: true, own: false };
            let stream = ClusterClient::new(channel).events(request).await;
            if let Ok(stream) = stream {
                let mut stream = stream.into_inner();
                while let Ok(Some(event)) = stream.message().await {
                    if at(&event) > last {
                        last = at(&event);
                        if sender.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(EVENTS_WAIT).await;
    }
}

/// Whether all copies would still fit after the loss of the largest node.
fn capacity(map: &Map, told: &Told) -> Capacity {
    let disks = show::disks(map, told);
    let stays =
        |disk: &&Disk| disk.state() == DiskState::InService && disk.drain() == Drain::Unspecified;
    let in_service: Vec<&Disk> = disks.iter().filter(stays).collect();
    let total_bytes: u64 = in_service.iter().map(|disk| disk.capacity_bytes).sum();
    let used_bytes: u64 = in_service.iter().filter_map(|disk| disk.used_bytes).sum();
    let mut by_node = BTreeMap::<u32, u64>::new();
    for disk in &in_service {
        *by_node.entry(disk.node).or_default() += disk.capacity_bytes;
    }
    let largest = by_node.values().copied().max().unwrap_or_default();
    let copies = map.volumes().values().map(|volume| usize::from(volume.spec.rf)).max();
    let nodes_left = by_node.len().saturating_sub(1) >= copies.unwrap_or_default();
    let survives_largest_node = nodes_left && used_bytes <= total_bytes - largest;
    let free_bytes = in_service.iter().filter_map(|disk| disk.free_bytes).sum();
    let promised_bytes = in_service.iter().map(|disk| disk.promised_bytes).sum();
    Capacity { total_bytes, used_bytes, survives_largest_node, free_bytes, promised_bytes }
}

/// Worst first.
fn problems(status: &StatusResponse, unconfirmed: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if status.leader.is_none() {
        problems.push("the cluster has no leader: no majority of the voters answers".to_owned());
    } else if unconfirmed {
        problems.push(format!(
            "node {} may know what is old: no leader confirmed it; ask another node, or again",
            status.answered_by
        ));
    }
    let rank = |volume: &&Volume| match volume.health() {
        Health::Lost => 0,
        Health::Held => 1,
        Health::Degraded | Health::Unspecified => 2,
        Health::Healthy => 3,
    };
    let mut volumes: Vec<&Volume> = status.volumes.iter().collect();
    volumes.sort_by_key(rank);
    for volume in volumes {
        let reasons = volume.reasons.iter();
        problems.extend(reasons.map(|reason| format!("volume {}: {reason}", volume.name)));
    }
    for node in &status.nodes {
        if node.state() == NodeState::Silent {
            let seconds = node.since_ms / 1000;
            problems.push(format!("node {} is silent for {seconds} s", node.name));
        } else if !node.reachable {
            problems.push(format!("node {} does not answer", node.name));
        }
        let in_state = |state| node.disks.iter().filter(move |disk| disk.state() == state);
        for disk in in_state(DiskState::InService) {
            problems.extend(space_problem(disk, &node.name));
        }
        for disk in in_state(DiskState::Failed) {
            let why = disk.breaker.as_ref().map(|breaker| breaker.why.as_str());
            let why =
                why.filter(|why| !why.is_empty()).map_or(String::new(), |why| format!(": {why}"));
            problems.push(format!("disk {} on node {} failed{why}", disk.id, node.name));
        }
        for disk in &node.disks {
            if let Some(blocks) = disk.suspect_blocks {
                problems.push(format!(
                    "disk {} on node {} is suspect, {blocks} blocks of it were corrupt: its copies move \
                     elsewhere; replace it, or use it again with `gabion disk drain {} --cancel`",
                    disk.id, node.name, disk.id
                ));
            }
        }
        for disk in in_state(DiskState::Missing) {
            let (id, path, name) = (disk.id, &disk.path, &node.name);
            problems.push(format!(
                "disk {id} ({path}) is missing: node {name} runs without it, its log says why"
            ));
        }
    }
    problems
}

/// Where the loss of one zone would cost more than one copy.
fn zone_note(volume: &Volume) -> Option<String> {
    let (sharing, all) = (volume.segments_sharing_zones, volume.segments_total);
    (sharing > 0).then(|| {
        let name = &volume.name;
        format!("volume {name}: {sharing} of {all} segments have two copies in one zone")
    })
}

/// What a disk's space asks of an operator.
fn space_problem(disk: &Disk, node: &str) -> Option<String> {
    let id = disk.id;
    match disk.space() {
        DiskSpace::Unspecified | DiskSpace::Ok => None,
        DiskSpace::NearFull => {
            let used = disk.used_bytes.unwrap_or_default();
            let all = used + disk.free_bytes.unwrap_or_default();
            let percent = u128::from(used) * 100 / u128::from(all.max(1));
            Some(format!(
                "disk {id} on node {node} is near full, {percent} % are used: trim or delete what is not \
                 needed, or add a disk"
            ))
        }
        DiskSpace::Full => Some(format!(
            "disk {id} on node {node} is full: new data are refused, overwrites, trims and repairs go \
             on; trim or delete what is not needed, or add a disk"
        )),
    }
}

fn worst(status: &StatusResponse) -> Health {
    let of = |health: Health| status.volumes.iter().any(|volume| volume.health() == health);
    if of(Health::Lost) {
        Health::Lost
    } else if of(Health::Held) || status.leader.is_none() {
        Health::Held
    } else if status.problems.is_empty() {
        Health::Healthy
    } else {
        Health::Degraded
    }
}
