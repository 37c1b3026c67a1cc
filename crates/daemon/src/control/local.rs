//! What only this node knows of itself, for whichever node an operator asks.

use crate::control::breakers;
use crate::control::history::History;
use crate::control::hub::Hub;
use crate::control::internal::{AddingDisk, Local};
use crate::control::new_disks::NewDisks;
use crate::control::show::scrub_found;
use crate::data::{BlockAddress, DataSender, LocatedCopy, Published};
use crate::settings::Settings;
use gabion_api::v1::{
    AddDiskRequest, Latencies, LocalClient, LocalCopy, LocalDisk, LocalEvictRequest,
    LocalEvictResponse, LocalFill, LocalLocateRequest, LocalLocateResponse, LocalLost, LocalSample,
    LocalStatsResponse, LocalVolume, ScrubUnderWay,
};
use gabion_engine::Caller;
use gabion_node::{ClientStats, DiskCondition, DiskStats, GuestId, Input};
use gabion_types::{BlockIndex, DiskId, ScrubKind, SegmentIndex, VolumeId};
use gabion_volume::{ScrubStats, VolumeStats};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the speed of filling is measured.
const SAMPLE: Duration = Duration::from_secs(1);

pub struct LocalStats {
    data: DataSender,
    hub: Arc<Hub>,
    state: watch::Receiver<Arc<Published>>,
    /// Of the volumes that this node owns.
    speeds: Mutex<BTreeMap<VolumeId, Speed>>,
    history: Arc<History>,
    new_disks: NewDisks,
}

#[derive(Clone, Copy)]
struct Speed {
    filled_bytes: u64,
    at: Instant,
    bytes_per_s: u64,
}

impl LocalStats {
    pub fn start(
        hub: Arc<Hub>,
        data: DataSender,
        state: watch::Receiver<Arc<Published>>,
        settings: &Settings,
    ) -> Arc<Self> {
        let history = History::start(state.clone());
        let new_disks = NewDisks::new(settings.clone(), data.clone(), state.clone());
        let speeds = Mutex::default();
        let local = Arc::new(Self { data, hub, state, speeds, history, new_disks });
        let weak = Arc::downgrade(&local);
        tokio::spawn(async move {
            while let Some(local) = weak.upgrade() {
                local.sample();
                drop(local);
                tokio::time::sleep(SAMPLE).await;
            }
        });
        local
    }

    fn sample(&self) {
        let published = Arc::clone(&self.state.borrow());
        let mut speeds = self.speeds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let next = |(id, stats): &(VolumeId, VolumeStats)| {
            let before = speeds.get(id).copied();
            let before = before.filter(|before| before.filled_bytes <= stats.filled_bytes);
            let bytes_per_s = before.map_or(0, |before| {
                let took = u64::try_from((now - before.at).as_millis()).unwrap_or(u64::MAX).max(1);
                let latest = (stats.filled_bytes - before.filled_bytes).saturating_mul(1000) / took;
                // Half of what was: a pause of a second does not make it zero.
                if before.bytes_per_s == 0 { latest } else { before.bytes_per_s.midpoint(latest) }
            });
            (*id, Speed { filled_bytes: stats.filled_bytes, at: now, bytes_per_s })
        };
        *speeds = published.stats.volumes.iter().map(next).collect();
    }

    fn client(&self, published: &Published, client: &ClientStats) -> LocalClient {
        let caller = published.callers.get(&client.guest);
        let (protocol, from) = match caller {
            Some(Caller::Tcp(address)) => ("nbd", address.to_string()),
            Some(Caller::Process { pid, uid }) => ("nbd+unix", format!("pid {pid}, uid {uid}")),
            None if client.nbd => ("nbd", String::new()),
            None => {
                let from = self.hub.caller(client.guest).map(|address| address.to_string());
                ("grpc", from.unwrap_or_default())
            }
        };
        LocalClient {
            guest: client.guest.0,
            volume: client.volume.get(),
            protocol: protocol.to_owned(),
            from,
            connected_ms: u64::try_from(client.here.as_millis()).unwrap_or(u64::MAX),
            waiting: client.waits,
        }
    }

    fn volume(&self, id: VolumeId, stats: &VolumeStats, guests: usize) -> LocalVolume {
        let speeds = self.speeds.lock().unwrap_or_else(PoisonError::into_inner);
        let fill = |fill: &gabion_volume::FillStats| LocalFill {
            segment: fill.segment,
            disk: fill.disk.get(),
            copied_bytes: fill.copied_bytes,
            total_bytes: fill.total_bytes,
            waiting: fill.waiting,
            source: fill.source.map(DiskId::get),
        };
        let lost = |(segment, block, count): &(u32, u32, u32)| LocalLost {
            segment: *segment,
            block: *block,
            count: *count,
        };
        LocalVolume {
            volume: id.get(),
            serving: stats.serving,
            held_requests: stats.held_requests,
            in_flight: stats.in_flight,
            reads: stats.reads,
            read_bytes: stats.read_bytes,
            writes: stats.writes,
            write_bytes: stats.write_bytes,
            filled_bytes: stats.filled_bytes,
            repaired_blocks: stats.repaired_blocks,
            fills: stats.fills.iter().map(fill).collect(),
            held_segments: stats.held_segments.clone(),
            lost: stats.lost.iter().map(lost).collect(),
            fill_bytes_per_s: speeds.get(&id).map_or(0, |speed| speed.bytes_per_s),
            guests: u64::try_from(guests).unwrap_or(u64::MAX),
            scrub: stats.scrub.as_ref().map(scrub),
            read_latencies: Some(latencies(&stats.read_latencies)),
            write_latencies: Some(latencies(&stats.write_latencies)),
            errors: stats.errors,
            doubted: Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl Local for LocalStats {
    fn stats(&self) -> LocalStatsResponse {
        let published = Arc::clone(&self.state.borrow());
        let stats = &published.stats;
        LocalStatsResponse {
            node: stats.node.get(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            guests: u64::try_from(stats.guests).unwrap_or(u64::MAX),
            disks: stats.disks.iter().map(disk).collect(),
            volumes: stats
                .volumes
                .iter()
                .map(|(id, volume)| {
                    let guests = stats.guests_of.get(id).copied().unwrap_or_default();
                    let doubted = breakers::doubted(stats, *id);
                    LocalVolume { doubted, ..self.volume(*id, volume, guests) }
                })
                .collect(),
            peers: breakers::peers(&stats.peers),
            clients: stats.clients.iter().map(|client| self.client(&published, client)).collect(),
        }
    }

    fn history(&self, since_ms: u64) -> Vec<LocalSample> {
        self.history.samples(since_ms)
    }

    fn add_disk(&self, request: AddDiskRequest) -> AddingDisk {
        self.new_disks.add(request)
    }

    async fn locate(&self, block: LocalLocateRequest) -> LocalLocateResponse {
        let address = BlockAddress {
            volume: VolumeId::new(block.volume),
            segment: SegmentIndex::new(block.segment),
            block: BlockIndex::new(block.block),
        };
        let found = self.data.locate(address).await.unwrap_or_default();
        LocalLocateResponse { copies: found.into_iter().map(copy).collect() }
    }

    async fn evict(
        &self,
        LocalEvictRequest { guest, volume }: LocalEvictRequest,
    ) -> LocalEvictResponse {
        let published = Arc::clone(&self.state.borrow());
        let is_it = |client: &ClientStats| (client.guest.0, client.volume.get()) == (guest, volume);
        let found = published.stats.clients.iter().any(is_it)
            && self.hub.send(Input::EvictGuest { guest: GuestId(guest) }).await.is_ok();
        LocalEvictResponse { found }
    }
}

fn copy(found: LocatedCopy) -> LocalCopy {
    LocalCopy {
        disk: found.disk.get(),
        path: found.path,
        data: true,
        byte_offset: found.place.offset,
        version_epoch: found.place.version.epoch.get(),
        version_seq: found.place.version.seq.get(),
        crc: found.place.crc.get(),
    }
}

fn latencies(found: &gabion_types::Latencies) -> Latencies {
    let sum_ns = u64::try_from(found.sum().as_nanos()).unwrap_or(u64::MAX);
    Latencies { counts: found.counts().to_vec(), sum_ns }
}

fn scrub(stats: &ScrubStats) -> ScrubUnderWay {
    ScrubUnderWay {
        number: stats.ask.number,
        deep: stats.ask.kind == ScrubKind::Deep,
        done_bytes: stats.done_bytes,
        total_bytes: stats.total_bytes,
        found: Some(scrub_found(&stats.found)),
    }
}

fn disk(stats: &DiskStats) -> LocalDisk {
    let store = &stats.store;
    LocalDisk {
        disk: stats.id.map_or(0, DiskId::get),
        path: stats.path.clone(),
        in_service: matches!(stats.condition, DiskCondition::InService { .. }),
        capacity_bytes: store.capacity_bytes,
        used_bytes: store.used_bytes,
        free_bytes: store.free_bytes,
        reserve_bytes: store.reserve_bytes,
        reads: store.reads,
        read_bytes: store.read_bytes,
        writes: store.writes,
        write_bytes: store.write_bytes,
        filled_bytes: store.filled_bytes,
        syncs: store.syncs,
        checkpoints: store.checkpoints,
        corrupt_blocks: store.corrupt_blocks,
        verified_bytes: store.verified_bytes,
        pending: store.pending,
        breaker: Some(breakers::breaker(&stats.breaker)),
    }
}
