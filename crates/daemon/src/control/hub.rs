//! Where what the data plane says to the control plane is handed on to those who wait for it.

use crate::consensus::{Committed, MetaStore};
use crate::control::event_log::EventLog;
use crate::data::{DataSender, Ended, Published};
use gabion_cluster::{AdminReply, AdminRequest, Command};
use gabion_node::{Effect, GuestId, Input, NodeEvent, OpenError, OpenedVolume};
use gabion_types::{GuestResult, Incarnation, MapIndex};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Proposals of the data plane that were not handed to the leader yet. Full: one more gets lost, and
/// the node proposes it again.
const PROPOSALS_MAX: usize = 1024;
/// Confirmations of the leadership under way. Full: one more is not answered, and asked again.
const CONFIRMATIONS_MAX: usize = 8;
/// Requests of operators under way on this node. Full: one more is refused.
const ADMINS_MAX: usize = 256;
/// How often the data plane hears what time it is.
const TELL_TIME_EVERY: Duration = Duration::from_secs(60);
/// The data plane answers each request of an operator before; this is for a data plane that is stuck.
const ADMIN_WAIT: Duration = Duration::from_secs(60);

/// What a guest's stream hears.
#[derive(Debug)]
pub enum GuestMessage {
    Opened(Result<OpenedVolume, OpenError>),
    Done {
        tag: u64,
        result: GuestResult,
    },
    /// Whether more of its requests may come.
    Room(bool),
    Ended,
}

/// What the process as a whole waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Milestone {
    Running,
    Stopped,
    Superseded(Incarnation),
    /// The node is none of the cluster's any more.
    Removed,
    /// The data plane's thread ended without being asked.
    Died,
}

/// How far the opening of the disks is, and the newest map that one of them has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DisksSeen {
    pub decided: usize,
    pub highest_map: MapIndex,
}

pub struct Hub {
    data: DataSender,
    state: watch::Receiver<Arc<Published>>,
    store: OnceLock<Arc<dyn MetaStore>>,
    proposals: mpsc::Sender<Command>,
    feed: mpsc::Sender<Input>,
    confirmations: Arc<Semaphore>,
    admins: Mutex<BTreeMap<u64, oneshot::Sender<AdminReply>>>,
    guests: Mutex<BTreeMap<GuestId, Streamed>>,
    next: AtomicU64,
    pub events: Arc<EventLog>,
    pub milestone: watch::Sender<Milestone>,
    pub disks: watch::Sender<DisksSeen>,
}

/// A guest by gRPC.
struct Streamed {
    sender: mpsc::Sender<GuestMessage>,
    from: Option<SocketAddr>,
}

/// Removes a guest when its stream ends, whatever ended it.
pub struct Attached {
    hub: Arc<Hub>,
    pub guest: GuestId,
    pub messages: mpsc::Receiver<GuestMessage>,
}

impl Hub {
    /// Starts the tasks that carry inputs and proposals.
    pub fn start(
        data: DataSender,
        state: watch::Receiver<Arc<Published>>,
        effects: mpsc::Receiver<Effect>,
        events: Arc<EventLog>,
    ) -> Arc<Self> {
        let (proposals, proposed) = mpsc::channel(PROPOSALS_MAX);
        let (feed, fed) = mpsc::channel(64);
        let hub = Arc::new(Self {
            data: data.clone(),
            state,
            store: OnceLock::new(),
            proposals,
            feed,
            confirmations: Arc::new(Semaphore::new(CONFIRMATIONS_MAX)),
            admins: Mutex::default(),
            guests: Mutex::default(),
            next: AtomicU64::new(1),
            events,
            milestone: watch::Sender::new(Milestone::Running),
            disks: watch::Sender::new(DisksSeen::default()),
        });
        tokio::spawn(tell_time(data.clone()));
        tokio::spawn(carry_inputs(data, fed));
        tokio::spawn(carry_proposals(Arc::clone(&hub), proposed));
        tokio::spawn(Arc::clone(&hub).carry_effects(effects));
        hub
    }

    /// From now on proposals go there, and the data plane hears who leads.
    pub fn connect(&self, store: Arc<dyn MetaStore>) {
        let (feed, mut leader) = (self.feed.clone(), store.leader());
        tokio::spawn(async move {
            loop {
                let view = *leader.borrow_and_update();
                let input = Input::Leader { term: view.term, leader: view.leader };
                if feed.send(input).await.is_err() || leader.changed().await.is_err() {
                    return;
                }
            }
        });
        let _already = self.store.set(store);
    }

    /// Carries the log to the data plane, in its order.
    pub async fn carry_log(&self, mut committed: mpsc::Receiver<Committed>) {
        while let Some(committed) = committed.recv().await {
            let input = match committed {
                Committed::Entry { index, command } => Input::Committed { index, command },
                Committed::Restored { index, map } => Input::Restored { index, map },
            };
            if self.feed.send(input).await.is_err() {
                return;
            }
        }
    }

    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.state.borrow())
    }

    /// What the data plane publishes from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.state.clone()
    }

    /// An input that changes nothing else: who takes it is not stuck.
    pub async fn tell_time(&self) -> Result<(), Ended> {
        self.data.send(wall_clock()).await
    }

    pub async fn send(&self, input: Input) -> Result<(), Ended> {
        self.data.send(input).await
    }

    /// Asks the manager on this node. Errors: `None` when the data plane does not take it.
    pub async fn admin(&self, request: AdminRequest) -> Option<AdminReply> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        {
            let mut admins = lock(&self.admins);
            if admins.len() >= ADMINS_MAX {
                return None;
            }
            admins.insert(number, sender);
        }
        let answered = match self.send(Input::Admin { number, request }).await {
            Ok(()) => tokio::time::timeout(ADMIN_WAIT, reply).await,
            Err(Ended) => return None,
        };
        lock(&self.admins).remove(&number);
        answered.ok()?.ok()
    }

    /// Room for so many messages is kept: the guest has at most so many requests in flight.
    pub fn attach(self: &Arc<Self>, room: usize, from: Option<SocketAddr>) -> Attached {
        // Even ids are for guests of the control plane.
        let guest = GuestId(2 * self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, messages) = mpsc::channel(room);
        lock(&self.guests).insert(guest, Streamed { sender, from });
        Attached { hub: Arc::clone(self), guest, messages }
    }

    /// Where a guest by gRPC came from.
    pub fn caller(&self, guest: GuestId) -> Option<SocketAddr> {
        lock(&self.guests).get(&guest)?.from
    }

    async fn carry_effects(self: Arc<Self>, mut effects: mpsc::Receiver<Effect>) {
        while let Some(effect) = effects.recv().await {
            self.on_effect(effect);
        }
        self.milestone.send_if_modified(|milestone| {
            let running = *milestone == Milestone::Running;
            if running {
                *milestone = Milestone::Died;
            }
            running
        });
    }

    fn on_effect(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Propose { command } => {
                if self.proposals.try_send(command).is_err() {
                    tracing::debug!("a proposal gets lost: too many wait");
                }
            }
            Effect::ConfirmLeader { number, term } => self.confirm(number, term),
            Effect::AdminDone { number, reply } => {
                if let Some(waiting) = lock(&self.admins).remove(&number) {
                    let _gone = waiting.send(reply);
                }
            }
            Effect::GuestOpened { guest, result } => {
                self.tell_guest(guest, GuestMessage::Opened(result));
            }
            Effect::GuestDone { guest, tag, result } => {
                self.tell_guest(guest, GuestMessage::Done { tag, result });
            }
            Effect::GuestRoom { guest, room } => self.tell_guest(guest, GuestMessage::Room(room)),
            Effect::GuestEnded { guest } => self.tell_guest(guest, GuestMessage::Ended),
            Effect::Event(event) => self.on_event(event),
            Effect::Stopped => {
                self.milestone.send_replace(Milestone::Stopped);
            }
            Effect::Disk { .. }
            | Effect::Connect { .. }
            | Effect::Send { .. }
            | Effect::CloseLink { .. }
            | Effect::NbdWant { .. }
            | Effect::NbdSend { .. }
            | Effect::NbdClose { .. } => {
                tracing::error!("the data plane's own effect came to the control plane");
            }
        }
    }

    fn tell_guest(&self, guest: GuestId, message: GuestMessage) {
        let mut guests = lock(&self.guests);
        let Some(guest_of) = guests.get(&guest) else { return };
        // It has room for all that may come; a stream that is gone needs nothing more.
        if guest_of.sender.try_send(message).is_err() {
            guests.remove(&guest);
        }
    }

    fn on_event(&self, event: NodeEvent) {
        match &event {
            NodeEvent::DiskOpened { map, .. } => {
                let map = *map;
                self.disks.send_modify(|seen| {
                    seen.decided += 1;
                    seen.highest_map = seen.highest_map.max(map);
                });
            }
            NodeEvent::DiskOut { .. } => self.disks.send_modify(|seen| seen.decided += 1),
            NodeEvent::Superseded { by } => {
                self.milestone.send_replace(Milestone::Superseded(*by));
            }
            NodeEvent::Removed => {
                self.milestone.send_replace(Milestone::Removed);
            }
            NodeEvent::PeerUp { .. }
            | NodeEvent::PeerDown { .. }
            | NodeEvent::LinkRefused { .. }
            | NodeEvent::Store { .. }
            | NodeEvent::Volume { .. }
            | NodeEvent::Owning { .. }
            | NodeEvent::OwningEnded { .. } => {}
        }
        self.events.on_node_event(&event);
    }

    fn confirm(self: &Arc<Self>, number: u64, term: u64) {
        let Some(store) = self.store.get().cloned() else { return };
        let Ok(permit) = Arc::clone(&self.confirmations).try_acquire_owned() else { return };
        let feed = self.feed.clone();
        tokio::spawn(async move {
            if store.confirm_leader().await == Some(term) {
                // Behind the entries that were committed before, which are in the same queue.
                let _ended = feed.send(Input::LeaderConfirmed { number, term }).await;
            }
            drop(permit);
        });
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        lock(&self.hub.guests).remove(&self.guest);
        let (hub, guest) = (Arc::clone(&self.hub), self.guest);
        tokio::spawn(async move {
            let _ended = hub.send(Input::GuestClosed { guest }).await;
        });
    }
}

/// What happens so seldom that no process lives as long goes by the wall clock.
async fn tell_time(data: DataSender) {
    while data.send(wall_clock()).await.is_ok() {
        tokio::time::sleep(TELL_TIME_EVERY).await;
    }
}

fn wall_clock() -> Input {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Input::WallClock { unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}

/// One queue for the log, the leadership and its confirmations: they keep their order.
async fn carry_inputs(data: DataSender, mut fed: mpsc::Receiver<Input>) {
    while let Some(input) = fed.recv().await {
        if data.send(input).await.is_err() {
            return;
        }
    }
}

/// One after the other: the log sees them in the order in which they were made.
async fn carry_proposals(hub: Arc<Hub>, mut proposed: mpsc::Receiver<Command>) {
    while let Some(command) = proposed.recv().await {
        let Some(store) = hub.store.get() else { continue };
        if let Err(error) = store.propose(command).await {
            tracing::debug!(%error, "a proposal got lost");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
