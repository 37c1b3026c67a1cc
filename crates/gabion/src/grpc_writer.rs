//! The same kind of guest as `writer`, through gRPC: some workers share one stream, each with a part
//! of the region of its own. The client library reconnects and sends again by itself.

use crate::failure::Failure;
use crate::judge::{BLOCK_BYTES, Judge, Label, Wrong, fill};
use crate::writer::Progress;
use bytes::Bytes;
use gabion_api::{IoClient, IoClientError};
use gabion_types::Prng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of one request at most.
const RUN_BLOCKS_MAX: u64 = 16;
const OPEN_MOST: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct GrpcPlan {
    pub addresses: Vec<String>,
    pub volume: String,
    /// The region, in blocks of 4 KiB; a multiple of `depth` blocks.
    pub first_block: u64,
    pub blocks: u64,
    /// Workers, each with one request in flight.
    pub depth: usize,
    pub seed: u64,
    pub reads_percent: u64,
    pub fill_first: bool,
    /// At least so much time between two requests of all workers once it is filled.
    pub pace: Duration,
}

#[derive(Debug)]
pub struct GrpcOutcome {
    pub judges: Vec<Judge>,
    pub progress: Progress,
    pub wrong: Option<Wrong>,
}

/// A running guest.
pub struct GrpcWriter {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Judge>>,
}

struct Shared {
    stop: AtomicBool,
    progress: Mutex<Progress>,
    wrong: Mutex<Option<Wrong>>,
    /// Workers that have not filled their part yet.
    filling: Mutex<usize>,
}

impl GrpcWriter {
    pub fn start(plan: GrpcPlan, judges: Option<Vec<Judge>>) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::failed(format!("cannot start a client: {e}"), ""))?;
        let client = runtime
            .block_on(IoClient::open_within(&plan.addresses, &plan.volume, OPEN_MOST))
            .map_err(|e| Failure::failed(format!("cannot open {}: {e}", plan.volume), ""))?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            progress: Mutex::new(Progress::default()),
            wrong: Mutex::new(None),
            filling: Mutex::new(if plan.fill_first { plan.depth } else { 0 }),
        });
        let judges = judges.unwrap_or_else(|| parts(&plan));
        let for_thread = Arc::clone(&shared);
        let thread =
            std::thread::spawn(move || runtime.block_on(work(&plan, client, judges, &for_thread)));
        Ok(Self { shared, thread })
    }

    pub fn progress(&self) -> Progress {
        let mut progress = lock(&self.shared.progress).clone();
        progress.filled = *lock(&self.shared.filling) == 0;
        progress
    }

    pub fn reset_stall(&self) {
        lock(&self.shared.progress).stall_most = Duration::ZERO;
    }

    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn stop(self) -> GrpcOutcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let judges = self.thread.join().expect("a guest does not panic");
        let progress = lock(&self.shared.progress).clone();
        GrpcOutcome { judges, progress, wrong: lock(&self.shared.wrong).take() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parts(plan: &GrpcPlan) -> Vec<Judge> {
    let depth = u64::try_from(plan.depth).expect("a few");
    let each = plan.blocks / depth;
    let blocks = usize::try_from(each).expect("a region fits the memory");
    (0..depth).map(|part| Judge::new(plan.first_block + part * each, blocks)).collect()
}

async fn work(
    plan: &GrpcPlan,
    client: IoClient,
    judges: Vec<Judge>,
    shared: &Arc<Shared>,
) -> Vec<Judge> {
    let client = Arc::new(client);
    let mut workers = Vec::new();
    for (part, judge) in (0u64..).zip(judges) {
        let worker = Worker {
            client: Arc::clone(&client),
            shared: Arc::clone(shared),
            chance: Prng::new(plan.seed ^ (part << 32)),
            next_label: (plan.seed << 40) + (part << 32) + 1,
            filled_to: if plan.fill_first { judge.blocks().start } else { judge.blocks().end },
            fills: plan.fill_first,
            judge,
            reads_percent: plan.reads_percent,
            pace: plan.pace * u32::try_from(plan.depth).expect("a few"),
        };
        workers.push(tokio::spawn(worker.run()));
    }
    let mut judges = Vec::new();
    for worker in workers {
        judges.push(worker.await.expect("a worker does not panic"));
    }
    judges
}

struct Worker {
    client: Arc<IoClient>,
    shared: Arc<Shared>,
    judge: Judge,
    chance: Prng,
    next_label: Label,
    filled_to: u64,
    fills: bool,
    reads_percent: u64,
    pace: Duration,
}

impl Worker {
    async fn run(mut self) -> Judge {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let filled = self.filled_to >= self.judge.blocks().end;
            if filled && std::mem::take(&mut self.fills) {
                *lock(&self.shared.filling) -= 1;
            }
            if filled && !self.pace.is_zero() {
                tokio::time::sleep(self.pace).await;
            }
            let (first, blocks) = self.next_run();
            let started = Instant::now();
            let result = if filled && self.chance.chance(self.reads_percent, 100) {
                self.read(first, blocks).await
            } else {
                self.write(first, blocks).await
            };
            let took = started.elapsed();
            let mut progress = lock(&self.shared.progress);
            // A request that waits is a stall, whatever the other workers do.
            progress.stall_most = progress.stall_most.max(took);
            progress.last_answer = Some(Instant::now());
            if let Err(error) = result {
                *progress.failed.entry(0).or_default() += 1;
                progress.last_break = Some(error.to_string());
            }
            drop(progress);
            if lock(&self.shared.wrong).is_some() {
                break;
            }
        }
        self.judge
    }

    fn next_run(&mut self) -> (u64, usize) {
        let region = self.judge.blocks();
        let (first, blocks) = if self.filled_to < region.end {
            let blocks = RUN_BLOCKS_MAX.min(region.end - self.filled_to);
            let first = self.filled_to;
            self.filled_to += blocks;
            (first, blocks)
        } else {
            let length = region.end - region.start;
            let blocks = self.chance.between(1, RUN_BLOCKS_MAX.min(length));
            (region.start + self.chance.below(length - blocks + 1), blocks)
        };
        (first, usize::try_from(blocks).expect("a run is short"))
    }

    async fn write(&mut self, first: u64, blocks: usize) -> Result<(), IoClientError> {
        let label = self.next_label;
        self.next_label += 1;
        self.judge.begin(label, first, blocks);
        let data = Bytes::from(fill(label, first, blocks));
        let length = byte_count(blocks);
        self.client.write(first * byte_count(1), data).await?;
        self.judge.acknowledge(label, first, blocks);
        let mut progress = lock(&self.shared.progress);
        progress.writes_acknowledged += 1;
        progress.bytes_acknowledged += length;
        Ok(())
    }

    async fn read(&mut self, first: u64, blocks: usize) -> Result<(), IoClientError> {
        let length = u32::try_from(blocks * BLOCK_BYTES).expect("a run is short");
        let data = self.client.read(first * byte_count(1), length).await?;
        if let Err(wrong) = self.judge.check(first, &data) {
            *lock(&self.shared.wrong) = Some(wrong);
        }
        lock(&self.shared.progress).bytes_verified += u64::from(length);
        Ok(())
    }
}

fn byte_count(blocks: usize) -> u64 {
    u64::try_from(blocks * BLOCK_BYTES).expect("fits")
}
