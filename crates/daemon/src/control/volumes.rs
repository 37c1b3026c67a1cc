//! The service `Volumes`.

use crate::control::ask::{Context, Place, passed_on};
use crate::control::errors::no_volume;
use crate::control::{clients, explain, show, stranded};
use gabion_api::v1::volumes_client::VolumesClient;
use gabion_api::v1::volumes_server::Volumes;
use gabion_api::v1::{
    Attach, BlockCopy, ClientsRequest, ClientsResponse, CreateVolumeRequest, CreateVolumeResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, ErrorCode, ErrorDetail, EvictRequest, EvictResponse,
    ExplainVolumeRequest, ExplainVolumeResponse, GetVolumeRequest, GetVolumeResponse,
    ListVolumesRequest, ListVolumesResponse, LocalLocateRequest, LocateRequest, LocateResponse,
    MoveVolumeRequest, MoveVolumeResponse, RecoverVolumeRequest, RecoverVolumeResponse,
    ReplicaState, ResizeVolumeRequest, ResizeVolumeResponse, ScrubVolumeRequest,
    ScrubVolumeResponse, Volume,
};
use gabion_cluster::{AdminRequest, Map, VolumeEntry, VolumeSpec, VolumeState};
use gabion_types::{BLOCK_BYTES, DiskId, HoldPolicy, NodeId, ScrubKind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Copies of each block unless said otherwise.
const RF_DEFAULT: u32 = 2;

pub struct VolumesService {
    context: Arc<Context>,
}

impl VolumesService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn volume(&self, name: &str) -> Result<Volume, Status> {
        let owner = |map: &Map| {
            let owner = map.volume_by_name(name).and_then(|entry| entry.owner);
            owner.map(|(node, _)| node).into_iter().collect()
        };
        let told = self.context.told_by(owner).await;
        let shown = self.context.map.read_map(|map| {
            let entry = map.volume_by_name(name)?;
            Some(show::volume(map, &told, entry, true))
        });
        shown.ok_or_else(|| told.no_volume(name))
    }

    fn spec(request: CreateVolumeRequest) -> Result<VolumeSpec, Status> {
        let rf = if request.rf == 0 { RF_DEFAULT } else { request.rf };
        let exclusive = request.attach() == Attach::Exclusive;
        let bad_rf = || ErrorDetail::of(ErrorCode::BadRf, "rf is 1, 2 or 3", "").into_status();
        let hold = match request.hold_ms {
            0 => HoldPolicy::NeverFail,
            ms => HoldPolicy::FailAfter(Duration::from_millis(ms)),
        };
        let rf = u8::try_from(rf).map_err(|_| bad_rf())?;
        Ok(VolumeSpec { name: request.name, size_bytes: request.size_bytes, rf, hold, exclusive })
    }
}

#[tonic::async_trait]
impl Volumes for VolumesService {
    async fn create(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let near = self.context.asked(request.metadata());
                let spec = Self::spec(request.into_inner())?;
                let name = spec.name.clone();
                self.context.admin(AdminRequest::CreateVolume { spec, near }, &name).await?;
                let volume = Some(self.volume(&name).await?);
                Ok(self.context.answer(CreateVolumeResponse { volume }))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).create(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn list(
        &self,
        _request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let told = self.context.told_by_owners().await;
        let volumes = self.context.map.read_map(|map| all_volumes(map, &told));
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn get(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<GetVolumeResponse>, Status> {
        let volume = Some(self.volume(&request.into_inner().name).await?);
        Ok(Response::new(GetVolumeResponse { volume }))
    }

    async fn explain(
        &self,
        request: Request<ExplainVolumeRequest>,
    ) -> Result<Response<ExplainVolumeResponse>, Status> {
        let name = request.into_inner().name;
        Ok(Response::new(explain::explain(&self.context, &name).await?))
    }

    async fn resize(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<ResizeVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let ResizeVolumeRequest { name, size_bytes } = request.into_inner();
                let change = AdminRequest::ResizeVolume { name: name.clone(), size_bytes };
                self.context.admin(change, &name).await?;
                let volume = Some(self.volume(&name).await?);
                Ok(self.context.answer(ResizeVolumeResponse { volume }))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).resize(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn delete(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let DeleteVolumeRequest { name, force } = request.into_inner();
                let change = AdminRequest::DeleteVolume { name: name.clone(), force };
                self.context.admin(change, &name).await?;
                Ok(self.context.answer(DeleteVolumeResponse {}))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).delete(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn r#move(
        &self,
        request: Request<MoveVolumeRequest>,
    ) -> Result<Response<MoveVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let MoveVolumeRequest { name, to } = request.into_inner();
                let to = self.context.node_named(&to)?;
                let change = AdminRequest::MoveVolume { name: name.clone(), to };
                self.context.admin(change, &name).await?;
                Ok(self.context.answer(MoveVolumeResponse {}))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).r#move(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn scrub(
        &self,
        request: Request<ScrubVolumeRequest>,
    ) -> Result<Response<ScrubVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let ScrubVolumeRequest { name, deep } = request.into_inner();
                let kind = if deep { ScrubKind::Deep } else { ScrubKind::Light };
                let change = AdminRequest::ScrubVolume { name: name.clone(), kind };
                self.context.admin(change, &name).await?;
                let last = |map: &Map| map.volume_by_name(&name).map(|entry| entry.scrub.last);
                let number = self.context.map.read_map(last);
                let number = number.ok_or_else(|| no_volume(&name).into_status())?;
                Ok(self.context.answer(ScrubVolumeResponse { number }))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).scrub(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn recover(
        &self,
        request: Request<RecoverVolumeRequest>,
    ) -> Result<Response<RecoverVolumeResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let answer = stranded::recover(&self.context, request.into_inner()).await?;
                Ok(self.context.answer(answer))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer =
                    VolumesClient::new(leader).recover(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn clients(
        &self,
        request: Request<ClientsRequest>,
    ) -> Result<Response<ClientsResponse>, Status> {
        let name = request.into_inner().name;
        Ok(Response::new(clients::of(&self.context, &name).await?))
    }

    async fn evict(
        &self,
        request: Request<EvictRequest>,
    ) -> Result<Response<EvictResponse>, Status> {
        match self.context.place(request.metadata())? {
            Place::Here => {
                let answer = clients::evict(&self.context, request.into_inner()).await?;
                Ok(self.context.answer(answer))
            }
            Place::At(leader) => {
                let request = self.context.forwarded(request.into_inner());
                let answer = VolumesClient::new(leader).evict(request).await.map_err(passed_on)?;
                self.context.catch_up(answer.metadata()).await;
                Ok(answer)
            }
        }
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateResponse>, Status> {
        let LocateRequest { name, offset } = request.into_inner();
        let place = self.context.map.read_map(|map| {
            map.volume_by_name(&name)
                .ok_or_else(|| no_volume(&name))
                .and_then(|entry| copies(map, entry, offset))
        });
        let (ask, mut copies) = place.map_err(ErrorDetail::into_status)?;
        let nodes: BTreeSet<u32> = copies.iter().map(|copy| copy.node).collect();
        for node in nodes {
            let Some(told) = self.context.located_by(NodeId::new(node), ask).await else {
                continue;
            };
            for copy in copies.iter_mut().filter(|copy| copy.node == node) {
                copy.known = true;
                // One that it does not name is a hole, or was never written.
                let Some(told) = told.copies.iter().find(|told| told.disk == copy.disk) else {
                    continue;
                };
                copy.data = true;
                copy.byte_offset = told.byte_offset;
                copy.version_epoch = told.version_epoch;
                copy.version_seq = told.version_seq;
                copy.crc = told.crc;
            }
        }
        let (segment, block) = (u64::from(ask.segment), u64::from(ask.block));
        Ok(Response::new(LocateResponse { segment, block, copies }))
    }
}

/// In the order of names; without those that are being deleted.
pub fn all_volumes(map: &Map, told: &show::Told) -> Vec<Volume> {
    let shown = map.volumes().values().filter(|entry| entry.state != VolumeState::Deleting);
    let mut volumes: Vec<_> = shown.map(|entry| show::volume(map, told, entry, false)).collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    volumes
}

/// Where the copies of a block belong, by the map.
fn copies(
    map: &Map,
    entry: &VolumeEntry,
    offset: u64,
) -> Result<(LocalLocateRequest, Vec<BlockCopy>), ErrorDetail> {
    let size = map.limits().segment;
    let segment = size.segment_of(offset).filter(|_| offset < entry.spec.size_bytes);
    let members = segment.and_then(|segment| map.members(entry.id, segment));
    let (Some(segment), Some(members)) = (segment, members) else {
        let what = format!("volume {} has {} bytes", entry.spec.name, entry.spec.size_bytes);
        return Err(ErrorDetail::of(ErrorCode::OutOfRange, what, "give an offset below that"));
    };
    let block = size.block_of(offset);
    let copy = |disk: DiskId, state: ReplicaState| BlockCopy {
        node: map.disk(disk).map_or(0, |entry| entry.node.get()),
        disk: disk.get(),
        state: state.into(),
        path: map.disk(disk).map_or_else(String::new, |entry| entry.path.clone()),
        length: BLOCK_BYTES,
        ..BlockCopy::default()
    };
    let in_sync = members.in_sync.iter().map(|disk| copy(*disk, ReplicaState::InSync));
    let joining = members.joining.iter().map(|join| copy(join.disk, ReplicaState::Joining));
    let stale = members.stale.iter().map(|stale| copy(stale.disk, ReplicaState::Stale));
    let ask =
        LocalLocateRequest { volume: entry.id.get(), segment: segment.get(), block: block.get() };
    Ok((ask, in_sync.chain(joining).chain(stale).collect()))
}
