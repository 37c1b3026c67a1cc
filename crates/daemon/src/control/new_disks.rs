//! A disk more for this node while it runs: made by it, for it holds its directory; then used.

use crate::control::internal::AddingDisk;
use crate::data::{DataSender, Published};
use crate::init::{self, Done, InitedDisk};
use crate::settings::{DISK_BYTES_MIN, DISKS_MAX, Disk, Settings};
use gabion_api::v1::{AddDiskProgress, AddDiskRequest, AddedDisk, ErrorCode, ErrorDetail};
use gabion_node::{DiskCondition, DiskStats};
use gabion_types::DiskId;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, watch};
use tonic::Status;

/// Steps that the caller has not heard yet. Full: some are left out.
const TOLD_MAX: usize = 16;
/// The map has numbered it by then, or there is no majority now.
const NUMBERED_WAIT: Duration = Duration::from_secs(10);
/// How often the caller hears how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// One at a time.
#[derive(Clone)]
pub struct NewDisks {
    settings: Arc<Settings>,
    data: DataSender,
    state: watch::Receiver<Arc<Published>>,
    busy: Arc<Mutex<()>>,
}

type Told = mpsc::Sender<Result<AddDiskProgress, Status>>;

impl NewDisks {
    pub fn new(
        settings: Settings,
        data: DataSender,
        state: watch::Receiver<Arc<Published>>,
    ) -> Self {
        Self { settings: Arc::new(settings), data, state, busy: Arc::default() }
    }

    /// Goes on when nobody listens any more.
    pub fn add(&self, request: AddDiskRequest) -> AddingDisk {
        let (told, steps) = mpsc::channel(TOLD_MAX);
        let new_disks = self.clone();
        tokio::spawn(async move {
            let last = match Arc::clone(&new_disks.busy).try_lock_owned() {
                Ok(_mine) => new_disks.make(request, &told).await,
                Err(_) => Err(refused(
                    "another disk is being added to this node",
                    "try again when it is done",
                )),
            };
            if let Err(status) = &last {
                tracing::warn!(why = status.message(), "a disk is not added");
            }
            let _gone = told.send(last).await;
        });
        steps.into()
    }

    async fn make(&self, request: AddDiskRequest, told: &Told) -> Result<AddDiskProgress, Status> {
        let AddDiskRequest { path, size_bytes, force } = request;
        let size = (size_bytes > 0).then_some(size_bytes);
        if !path.starts_with('/') {
            return Err(bad(format!("the path {path:?} does not begin with /"), "give all of it"));
        }
        if size.is_some_and(|bytes| bytes < DISK_BYTES_MIN || !bytes.is_multiple_of(4096)) {
            let next = "a disk has at least 64MiB, and a multiple of 4KiB";
            return Err(bad(format!("{size_bytes} bytes are no size of a disk"), next));
        }
        if let Some(known) = self.find(&path) {
            return self.kept(&known).map(done);
        }
        if self.state.borrow().stats.disks.len() >= DISKS_MAX {
            let what = format!("this node has {DISKS_MAX} disks, and takes no more");
            return Err(refused(what, "remove one, or add it to another node"));
        }
        let disk = Disk { path: PathBuf::from(&path), size_bytes: size };
        let made = self.init(disk, force, told.clone()).await?;
        let opened = self.data.add_disk(made.path.clone()).await;
        let opened = opened.map_err(|error| refused(error.to_string(), ""))?;
        opened.map_err(|error| refused(error.to_string(), "see this node's log"))?;
        let disk = self.numbered(&path).await?;
        let size_bytes = match made.done {
            Done::Kept => self.find(&path).map_or(0, |disk| disk.store.capacity_bytes),
            Done::MadeFile { bytes } | Done::FormattedDevice { bytes } => bytes,
        };
        let word = word(made.done).to_owned();
        tracing::info!(path, done = word, disk, "a disk was added");
        Ok(done(AddedDisk { done: word, size_bytes, lost: made.lost, disk }))
    }

    /// One that is in service already.
    fn kept(&self, known: &DiskStats) -> Result<AddedDisk, Status> {
        if let DiskCondition::Out(why) = &known.condition {
            let what = format!("{} is a disk of this node, and out of service: {why}", known.path);
            return Err(refused(what, "replace it, and give the new one another path"));
        }
        Ok(AddedDisk {
            done: word(Done::Kept).to_owned(),
            size_bytes: known.store.capacity_bytes,
            lost: None,
            disk: known.id.map(DiskId::get),
        })
    }

    async fn init(&self, disk: Disk, force: bool, told: Told) -> Result<InitedDisk, Status> {
        let settings = Arc::clone(&self.settings);
        let all_bytes = disk.size_bytes.unwrap_or_default();
        let make = move || {
            let mut last = Instant::now();
            init::add(&settings, &disk, force, |written_bytes| {
                if last.elapsed() >= TELL_EVERY {
                    last = Instant::now();
                    let step = AddDiskProgress { written_bytes, all_bytes, added: None };
                    let _full = told.try_send(Ok(step));
                }
            })
        };
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.map_err(|error| refused(error.to_string(), ""))?;
        made.map_err(|error| {
            let text = error.to_string();
            let (what, next) = text.split_once("; ").unwrap_or((&text, ""));
            refused(what, next)
        })
    }

    fn find(&self, path: &str) -> Option<DiskStats> {
        let published = Arc::clone(&self.state.borrow());
        published.stats.disks.iter().find(|disk| disk.path == path).cloned()
    }

    /// What the map calls it. Errors: it went out of service.
    async fn numbered(&self, path: &str) -> Result<Option<u32>, Status> {
        let until = tokio::time::Instant::now() + NUMBERED_WAIT;
        let mut state = self.state.clone();
        loop {
            if let Some(found) = self.find(path) {
                let kept = self.kept(&found)?;
                if kept.disk.is_some() {
                    return Ok(kept.disk);
                }
            }
            let changed = tokio::time::timeout_at(until, state.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Ok(None);
            }
        }
    }
}

fn done(added: AddedDisk) -> AddDiskProgress {
    AddDiskProgress { added: Some(added), ..AddDiskProgress::default() }
}

pub fn word(done: Done) -> &'static str {
    match done {
        Done::Kept => "kept",
        Done::MadeFile { .. } => "made",
        Done::FormattedDevice { .. } => "formatted",
    }
}

fn refused(what: impl Into<String>, next: &str) -> Status {
    ErrorDetail::of(ErrorCode::Refused, what, next).into_status()
}

fn bad(what: impl Into<String>, next: &str) -> Status {
    ErrorDetail::of(ErrorCode::BadRequest, what, next).into_status()
}
