//! A guest that never gives up: writes and reads a region through NBD, judges all that it reads, and
//! when its connection breaks goes to the next address and sends again what is unanswered, as QEMU
//! and the kernel do.

use crate::judge::{BLOCK_BYTES, Judge, Label, Wrong, fill};
use crate::nbd_client::{Address, Completion, NbdClient, NbdError, Patience, Request};
use gabion_types::Prng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of one request at most.
const RUN_BLOCKS_MAX: u64 = 16;
/// Error numbers of NBD that mean "reconnect": the server is shutting down.
const SHUTTING_DOWN: u32 = 108;
const NO_SPACE: u32 = 28;
/// Between two rounds over all addresses when none answers.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct WriterPlan {
    pub addresses: Vec<Address>,
    pub export: String,
    /// The region, in blocks of 4 KiB; nobody else writes it.
    pub first_block: u64,
    pub blocks: u64,
    /// Requests in flight.
    pub depth: usize,
    pub seed: u64,
    /// Of 100 requests so many are reads.
    pub reads_percent: u64,
    /// Write the whole region once, in order, before the random part.
    pub fill_first: bool,
    /// At least so much time between two requests once it is filled; zero: as fast as it goes.
    pub pace: Duration,
    pub patience: Patience,
}

/// What a writer did so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub writes_acknowledged: u64,
    pub bytes_acknowledged: u64,
    pub bytes_verified: u64,
    pub connections: u64,
    /// All of the first fill was sent.
    pub filled: bool,
    /// The longest time between two answers, while some were waited for.
    pub stall_most: Duration,
    pub last_answer: Option<Instant>,
    /// Requests that the server failed, by error number.
    pub failed: BTreeMap<u32, u64>,
    /// The address that it is connected to.
    pub connected_to: Option<Address>,
    /// Why the last connection broke.
    pub last_break: Option<String>,
}

/// What a writer ends with: the judge, for a last reading of the whole.
#[derive(Debug)]
pub struct Outcome {
    pub judge: Judge,
    pub progress: Progress,
    /// Anything here means that a promise was broken.
    pub wrong: Option<Wrong>,
}

/// A running writer. Dropped, it gives up at once, with whatever is unanswered.
pub struct Writer {
    progress: Arc<Mutex<Progress>>,
    wish: Arc<Wish>,
    /// Gone only when its end was waited for.
    thread: Option<JoinHandle<Outcome>>,
}

/// What the writer is to do from now on.
#[derive(Debug, Default)]
struct Wish {
    /// Bring what is in flight to its end, then stop.
    stop: AtomicBool,
    give_up: AtomicBool,
}

impl Writer {
    pub fn start(plan: WriterPlan) -> Self {
        Self::start_with(plan, None)
    }

    /// Goes on with what an earlier writer of this region left.
    pub fn start_with(plan: WriterPlan, judge: Option<Judge>) -> Self {
        let progress = Arc::new(Mutex::new(Progress::default()));
        let wish = Arc::new(Wish::default());
        let worker = Worker::new(plan, judge, Arc::clone(&progress), Arc::clone(&wish));
        let thread = Some(std::thread::spawn(move || worker.run()));
        Self { progress, wish, thread }
    }

    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The longest stall so far starts anew, to look at one fault by itself.
    pub fn reset_stall(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.stall_most = Duration::ZERO;
    }

    /// It ended by itself: something was wrong.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets it finish what is in flight, and flush.
    pub fn stop(mut self) -> Outcome {
        self.ask_to_stop();
        let thread = self.thread.take().expect("only this takes it");
        thread.join().expect("a writer does not panic")
    }

    /// Leaves what is in flight unanswered.
    pub fn give_up(mut self) -> Outcome {
        self.wish.give_up.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only this takes it");
        thread.join().expect("a writer does not panic")
    }

    /// Tells it to stop without waiting for it.
    pub fn ask_to_stop(&self) {
        self.wish.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.wish.give_up.store(true, Ordering::Relaxed);
        self.ask_to_stop();
    }
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Write { label: Label, first: u64, blocks: usize },
    Read { first: u64, blocks: usize },
}

impl Task {
    fn run(&self) -> (u64, usize) {
        match *self {
            Self::Write { first, blocks, .. } | Self::Read { first, blocks } => (first, blocks),
        }
    }

    fn overlaps(&self, first: u64, blocks: u64) -> bool {
        let (start, length) = self.run();
        start < first + blocks && first < start + blocks_u64(length)
    }
}

fn blocks_u64(blocks: usize) -> u64 {
    u64::try_from(blocks).expect("fits")
}

fn bytes_of(blocks: usize) -> u64 {
    blocks_u64(blocks * BLOCK_BYTES)
}

struct Worker {
    plan: WriterPlan,
    judge: Judge,
    chance: Prng,
    next_label: Label,
    /// Where the first fill stands; the end of the region: it is done.
    filled_to: u64,
    next_address: usize,
    /// Unanswered, in the order in which they were first sent.
    open: BTreeMap<u64, Task>,
    next_task: u64,
    next_send: Instant,
    progress: Arc<Mutex<Progress>>,
    wish: Arc<Wish>,
    wrong: Option<Wrong>,
}

impl Worker {
    fn new(
        plan: WriterPlan,
        judge: Option<Judge>,
        progress: Arc<Mutex<Progress>>,
        wish: Arc<Wish>,
    ) -> Self {
        let blocks = usize::try_from(plan.blocks).expect("a region fits the memory");
        let filled_to =
            if plan.fill_first { plan.first_block } else { plan.first_block + plan.blocks };
        Self {
            judge: judge.unwrap_or_else(|| Judge::new(plan.first_block, blocks)),
            chance: Prng::new(plan.seed),
            // Labels of different seeds never meet.
            next_label: (plan.seed << 40) + 1,
            filled_to,
            next_address: 0,
            open: BTreeMap::new(),
            next_task: 0,
            next_send: Instant::now(),
            plan,
            progress,
            wish,
            wrong: None,
        }
    }

    fn run(mut self) -> Outcome {
        let over = |worker: &Self| {
            worker.wish.give_up.load(Ordering::Relaxed)
                || worker.wrong.is_some()
                || (worker.stopping() && worker.open.is_empty())
        };
        while !over(&self) {
            let Some(client) = self.connect() else { continue };
            if let Err(error) = self.serve(client) {
                let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.connected_to = None;
                progress.last_break = Some(error.to_string());
            }
        }
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Outcome { judge: self.judge, progress, wrong: self.wrong }
    }

    fn stopping(&self) -> bool {
        self.wish.stop.load(Ordering::Relaxed)
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn connect(&mut self) -> Option<NbdClient> {
        let addresses = self.plan.addresses.len();
        let address = self.plan.addresses[self.next_address % addresses].clone();
        match NbdClient::connect(&address, &self.plan.export, self.plan.patience) {
            Ok(client) => {
                self.note(|progress| {
                    progress.connections += 1;
                    progress.connected_to = Some(address);
                });
                Some(client)
            }
            Err(error) => {
                self.note(|progress| progress.last_break = Some(format!("{address}: {error}")));
                self.next_address += 1;
                if self.next_address.is_multiple_of(addresses) {
                    std::thread::sleep(RETRY_PAUSE);
                }
                None
            }
        }
    }

    /// Works on one connection until it breaks or all is done.
    fn serve(&mut self, mut client: NbdClient) -> Result<(), NbdError> {
        let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
        for (number, task) in self.open.clone() {
            sent.insert(send(&mut client, task)?, number);
        }
        loop {
            while !self.stopping() && self.open.len() < self.plan.depth && self.due(&sent) {
                let Some((number, task)) = self.next() else { break };
                sent.insert(send(&mut client, task)?, number);
            }
            if sent.is_empty() {
                if self.stopping() {
                    client.flush()?;
                    client.disconnect();
                    return Ok(());
                }
                continue;
            }
            let completion = client.receive()?;
            let number = sent.remove(&completion.cookie).ok_or(NbdError::Confused)?;
            if completion.result == Err(SHUTTING_DOWN) {
                self.next_address += 1;
                return Err(NbdError::Failed(SHUTTING_DOWN));
            }
            self.on_answer(number, completion);
            if self.wrong.is_some() {
                return Ok(());
            }
        }
    }

    /// Keeps the pace: waits where nothing is in flight, else says "not yet". The fill has none.
    fn due(&mut self, sent: &BTreeMap<u64, u64>) -> bool {
        if self.plan.pace.is_zero() || self.filled_to < self.end() {
            return true;
        }
        let now = Instant::now();
        if now < self.next_send {
            if !sent.is_empty() {
                return false;
            }
            std::thread::sleep(self.next_send - now);
        }
        self.next_send = Instant::now() + self.plan.pace;
        true
    }

    fn end(&self) -> u64 {
        self.plan.first_block + self.plan.blocks
    }

    fn next(&mut self) -> Option<(u64, Task)> {
        let end = self.end();
        let task = if self.filled_to < end {
            let blocks = RUN_BLOCKS_MAX.min(end - self.filled_to);
            let first = self.filled_to;
            self.filled_to += blocks;
            self.write(first, blocks)
        } else {
            let (first, blocks) = self.free_run()?;
            if self.chance.chance(self.plan.reads_percent, 100) {
                let blocks = usize::try_from(blocks).expect("a run is short");
                Task::Read { first, blocks }
            } else {
                self.write(first, blocks)
            }
        };
        let number = self.next_task;
        self.next_task += 1;
        self.open.insert(number, task);
        Some((number, task))
    }

    fn write(&mut self, first: u64, blocks: u64) -> Task {
        let label = self.next_label;
        self.next_label += 1;
        let blocks = usize::try_from(blocks).expect("a run is short");
        self.judge.begin(label, first, blocks);
        Task::Write { label, first, blocks }
    }

    /// A run that no request in flight touches; none after some tries.
    fn free_run(&mut self) -> Option<(u64, u64)> {
        for _ in 0..64 {
            let blocks = self.chance.between(1, RUN_BLOCKS_MAX.min(self.plan.blocks));
            let first = self.plan.first_block + self.chance.below(self.plan.blocks - blocks + 1);
            if !self.open.values().any(|task| task.overlaps(first, blocks)) {
                return Some((first, blocks));
            }
        }
        None
    }

    fn on_answer(&mut self, number: u64, completion: Completion) {
        let task = self.open.remove(&number).expect("it was sent");
        match (task, &completion.result) {
            (Task::Write { label, first, blocks }, Ok(_)) => {
                self.judge.acknowledge(label, first, blocks);
            }
            (Task::Write { label, first, blocks }, Err(NO_SPACE)) => {
                self.judge.refuse(label, first, blocks);
            }
            (Task::Write { .. } | Task::Read { .. }, Err(_)) => {}
            (Task::Read { first, .. }, Ok(data)) => {
                self.wrong = self.judge.check(first, data).err();
            }
        }
        let filled = self.filled_to >= self.end();
        let (_, blocks) = task.run();
        let now = Instant::now();
        self.note(|progress| {
            let stall = progress.last_answer.map_or(Duration::ZERO, |last| now - last);
            progress.stall_most = progress.stall_most.max(stall);
            progress.last_answer = Some(now);
            progress.filled |= filled;
            match (task, completion.result) {
                (_, Err(error)) => *progress.failed.entry(error).or_default() += 1,
                (Task::Write { .. }, Ok(_)) => {
                    progress.writes_acknowledged += 1;
                    progress.bytes_acknowledged += bytes_of(blocks);
                }
                (Task::Read { .. }, Ok(_)) => progress.bytes_verified += bytes_of(blocks),
            }
        });
    }
}

fn send(client: &mut NbdClient, task: Task) -> Result<u64, NbdError> {
    let (first, blocks) = task.run();
    let offset = first * bytes_of(1);
    match task {
        Task::Write { label, .. } => {
            let data = fill(label, first, blocks);
            client.submit(Request::Write { offset, data: &data, fua: false })
        }
        Task::Read { .. } => {
            let length = u32::try_from(blocks * BLOCK_BYTES).expect("a run is short");
            client.submit(Request::Read { offset, length })
        }
    }
}

/// Reads a whole region through one address and judges it. Returns the bytes read.
pub fn read_back(
    address: &Address,
    export: &str,
    judge: &mut Judge,
    patience: Patience,
) -> Result<u64, ReadBackError> {
    const STEP_BLOCKS: u64 = 256;
    let mut client = NbdClient::connect(address, export, patience)?;
    let blocks = judge.blocks();
    let mut at = blocks.start;
    while at < blocks.end {
        let count = STEP_BLOCKS.min(blocks.end - at);
        let length = u32::try_from(count * bytes_of(1)).expect("a step is short");
        let data = client.read(at * bytes_of(1), length)?;
        judge.check(at, &data)?;
        at += count;
    }
    client.disconnect();
    Ok((blocks.end - blocks.start) * bytes_of(1))
}

#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    #[error(transparent)]
    Nbd(#[from] NbdError),
    #[error(transparent)]
    Wrong(#[from] Wrong),
}
