//! The data plane as the rest of the process holds it.

use super::config::{DataConfig, DataError};
use super::locate::{BlockAddress, LocatedCopy};
use super::outbox::EFFECTS_MAX;
use super::plane::{Plane, Wiring};
use super::publish::Published;
use gabion_engine::{DiskOpenError, Waker};
use gabion_node::{Effect, Input};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs of the control plane that the data plane has not taken yet.
const INPUTS_MAX: usize = 1024;
/// A block is looked for so often while its map page is being read. Then it counts as a hole.
const LOCATE_TRIES_MAX: usize = 200;
const LOCATE_AGAIN: Duration = Duration::from_millis(10);

pub struct DataPlane;

/// Dropped with all its senders, it ends the data plane at once, as a crash would. A clean end is
/// `Input::Stop`, then `Effect::Stopped`, then `join`.
pub struct DataHandle {
    sender: DataSender,
    /// What is for the control plane. Closed: the data plane ended.
    pub effects: mpsc::Receiver<Effect>,
    pub state: watch::Receiver<Arc<Published>>,
    bound: Bound,
    thread: JoinHandle<()>,
}

/// Where it really listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub peer: SocketAddr,
    pub nbd: Option<SocketAddr>,
}

/// Puts inputs in, from any thread.
#[derive(Clone)]
pub struct DataSender {
    shared: Arc<Shared>,
}

struct Shared {
    /// Gone only while this is being dropped.
    inputs: Option<mpsc::Sender<Order>>,
    waker: Waker,
}

/// What the control plane puts in.
pub(crate) enum Order {
    Input(Input),
    /// A formatted disk, which no process has open, is used from now on.
    AddDisk {
        path: PathBuf,
        answer: oneshot::Sender<Result<(), DiskOpenError>>,
    },
    /// The answer: none while map pages are being read; then it is asked again.
    Locate {
        block: BlockAddress,
        answer: oneshot::Sender<Option<Vec<LocatedCopy>>>,
    },
}

/// The queue is full, or the data plane ended: the input comes back.
#[derive(Debug, thiserror::Error)]
#[error("the data plane takes no input now")]
pub struct Full(pub Box<Input>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data plane ended")]
pub struct Ended;

impl DataPlane {
    /// Opens and locks the disks, listens, and starts the thread. Blocks for as long as that takes.
    pub fn spawn(config: DataConfig) -> Result<DataHandle, DataError> {
        let (input_sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (effect_sender, effects) = mpsc::channel(EFFECTS_MAX);
        let (started_sender, started) = sync_channel(1);
        let run = move || {
            match Plane::new(config, Wiring { inputs, effects: effect_sender }) {
                Ok((plane, waker, bound, state)) => {
                    let _ = started_sender.send(Ok((waker, bound, state)));
                    plane.run();
                }
                Err(error) => {
                    let _ = started_sender.send(Err(error));
                }
            };
        };
        let thread = std::thread::Builder::new()
            .name("gabion-data".into())
            .spawn(run)
            .map_err(DataError::Thread)?;
        let (waker, bound, state) = started.recv().map_err(|_| DataError::Died)??;
        let shared = Arc::new(Shared { inputs: Some(input_sender), waker });
        Ok(DataHandle { sender: DataSender { shared }, effects, state, bound, thread })
    }
}

impl DataHandle {
    /// Errors: the queue is full; the input comes back and nothing happened.
    pub fn submit(&self, input: Input) -> Result<(), Full> {
        self.sender.submit(input)
    }

    pub fn sender(&self) -> DataSender {
        self.sender.clone()
    }

    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// Gives up the handle and waits for the thread's end; to be called after `Stopped`, or when all
    /// other senders are gone. Errors: the thread panicked.
    pub fn join(self) -> Result<(), Ended> {
        let Self { sender, effects, state, bound: _, thread } = self;
        drop((sender, effects, state));
        thread.join().map_err(|_| Ended)
    }

    /// The handle in its parts, for tasks that use them apart.
    pub fn into_parts(
        self,
    ) -> (DataSender, mpsc::Receiver<Effect>, watch::Receiver<Arc<Published>>, JoinHandle<()>) {
        (self.sender, self.effects, self.state, self.thread)
    }
}

impl DataSender {
    /// Errors: the queue is full; the input comes back and nothing happened.
    pub fn submit(&self, input: Input) -> Result<(), Full> {
        let Some(inputs) = &self.shared.inputs else { return Err(Full(Box::new(input))) };
        let Ok(place) = inputs.try_reserve() else { return Err(Full(Box::new(input))) };
        place.send(Order::Input(input));
        self.shared.waker.wake();
        Ok(())
    }

    /// Waits while the queue is full. Order: inputs of one task stay in their order.
    pub async fn send(&self, input: Input) -> Result<(), Ended> {
        self.put(Order::Input(input)).await
    }

    /// Where this node's copies of a block lie now; those that are holes are left out.
    pub async fn locate(&self, block: BlockAddress) -> Result<Vec<LocatedCopy>, Ended> {
        for _ in 0..LOCATE_TRIES_MAX {
            let (answer, located) = oneshot::channel();
            self.put(Order::Locate { block, answer }).await?;
            if let Some(located) = located.await.map_err(|_| Ended)? {
                return Ok(located);
            }
            // Its map page is being read.
            tokio::time::sleep(LOCATE_AGAIN).await;
        }
        Ok(Vec::new())
    }

    /// A disk more, which was made for this node. It is opened, and its recovery begins.
    pub async fn add_disk(&self, path: PathBuf) -> Result<Result<(), DiskOpenError>, Ended> {
        let (answer, added) = oneshot::channel();
        self.put(Order::AddDisk { path, answer }).await?;
        added.await.map_err(|_| Ended)
    }

    async fn put(&self, order: Order) -> Result<(), Ended> {
        let Some(inputs) = &self.shared.inputs else { return Err(Ended) };
        inputs.send(order).await.map_err(|_| Ended)?;
        self.shared.waker.wake();
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The thread finds its queue closed when it wakes.
        self.inputs = None;
        self.waker.wake();
    }
}
