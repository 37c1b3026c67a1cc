//! The loop: turn the engine, read the clock, feed the node, do what it says.

use super::address::Resolver;
use super::config::{DataConfig, DataError};
use super::guests::NbdGuests;
use super::handle::Bound;
use super::handle::Order;
use super::links::Links;
use super::locate::{away, locate};
use super::outbox::Outbox;
use super::publish::{Published, Publisher};
use gabion_engine::{
    ConnHandle, DiskHandle, DiskOpenError, Engine, EngineError, Event, HangUp, ListenerHandle,
    Waker,
};
use gabion_node::{DiskSlot, Effect, GuestId, Input, LinkId, Node, NodeDisk};
use gabion_types::{DiskDone, DiskError, DiskOp, Duration, Instant, NodeId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

/// Inputs of the control plane taken in one turn.
const INPUTS_PER_TURN_MAX: u32 = 256;
/// Turns that a tick waits for at most while completions keep coming.
const TICKS_PUT_OFF_MAX: u32 = 16;
/// What operations on a disk that could not be opened are answered with: ENXIO.
const NO_DISK_ERRNO: i32 = 6;

/// After a clean stop, answers have so long to be read.
const GOODBYE_MAX: Duration = Duration::from_millis(200);

pub(crate) struct Plane {
    pub(crate) engine: Engine,
    pub(crate) node: Node,
    /// The clock as read after this turn's completions.
    now: Instant,
    /// By place; none where the disk could not be opened.
    disks: Vec<Option<DiskHandle>>,
    slots: HashMap<DiskHandle, DiskSlot>,
    peer_listener: ListenerHandle,
    pub(crate) who: HashMap<ConnHandle, Who>,
    pub(crate) links: Links,
    pub(crate) nbd: NbdGuests,
    pub(crate) resolver: Resolver,
    pub(crate) voters: BTreeMap<NodeId, String>,
    /// Inputs that effects led to at once. Bounded: each effect leads to at most one.
    pub(crate) local: VecDeque<Input>,
    inputs: mpsc::Receiver<Order>,
    outbox: Outbox,
    publisher: Publisher,
    waker: Waker,
    ticks_put_off: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Link(LinkId),
    Guest(GuestId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// The node stopped clean, or nobody is left to talk to.
    Ended,
}

pub(crate) struct Wiring {
    pub(crate) inputs: mpsc::Receiver<Order>,
    pub(crate) effects: mpsc::Sender<Effect>,
}

type State = watch::Receiver<Arc<Published>>;

impl Plane {
    pub(crate) fn new(
        mut config: DataConfig,
        wiring: Wiring,
    ) -> Result<(Self, Waker, Bound, State), DataError> {
        let mut engine = Engine::new(&config.engine)?;
        let setup = engine.setup();
        tracing::info!(driver = setup.driver, flags = setup.ring_flags, "the data plane's I/O");
        for warning in &engine.setup().warnings {
            tracing::warn!("{warning}");
        }
        let disks = open_disks(&mut engine, &mut config)?;
        let peer_listener =
            listen_tcp(&mut engine, "peers", config.listen_peer, HangUp::AfterData)?;
        let nbd_listener = match config.listen_nbd {
            Some(at) => Some(listen_tcp(&mut engine, "NBD", at, HangUp::AtOnce)?),
            None => None,
        };
        if let Some(path) = &config.listen_nbd_unix {
            listen_unix(&mut engine, path)?;
        }
        let bound = Bound {
            peer: engine.local_address(peer_listener).unwrap_or(config.listen_peer),
            nbd: nbd_listener.and_then(|listener| engine.local_address(listener)),
        };
        let now = engine.now();
        let node = Node::new(config.node, now);
        let (sender, state) = watch::channel(Arc::new(Published::of(&node)));
        let waker = engine.waker();
        let slots = disks.iter().zip(0..).filter_map(|(disk, at)| Some(((*disk)?, DiskSlot(at))));
        let plane = Self {
            slots: slots.collect(),
            disks,
            node,
            now,
            peer_listener,
            who: HashMap::new(),
            links: Links::default(),
            nbd: NbdGuests::default(),
            resolver: Resolver::new(waker.clone()),
            voters: config.voters,
            local: VecDeque::new(),
            inputs: wiring.inputs,
            outbox: Outbox::new(wiring.effects),
            publisher: Publisher::new(sender, now),
            waker: waker.clone(),
            ticks_put_off: 0,
            stage: Stage::Running,
            engine,
        };
        Ok((plane, waker, bound, state))
    }

    pub(crate) fn run(mut self) {
        if let Err(error) = self.turn_until_ended() {
            tracing::error!(%error, "the data plane ends: its I/O is broken");
        }
        self.publisher.publish(self.now, &self.node, &self.nbd.callers);
        self.outbox.finish();
    }

    fn turn_until_ended(&mut self) -> Result<(), EngineError> {
        let mut events = Vec::new();
        self.settle();
        while self.stage == Stage::Running {
            self.engine.turn(self.next_deadline(), &mut events)?;
            self.now = self.engine.now();
            if !events.is_empty() {
                self.publisher.touch();
            }
            // What a guest that is gone had asked must not be taken any more: hang-ups first.
            for event in &events {
                if let Event::HungUp { conn } = event {
                    self.on_hung_up(*conn);
                }
            }
            for event in events.drain(..) {
                self.on_event(event);
            }
            self.take_inputs();
            self.retry_held();
            self.report_backlogs();
            self.tick_when_due();
            self.feed(Input::TurnEnds);
            self.outbox.flush();
            if self.outbox.is_closed() {
                self.stage = Stage::Ended;
            }
            self.publisher.publish_when_due(self.now, &self.node, &self.nbd.callers);
        }
        self.say_goodbye(&mut events)
    }

    /// Silence is judged only when all that came was heard: a tick waits until the sockets are
    /// drained, or, where more comes without end, for as many turns as bring all that was there.
    fn tick_when_due(&mut self) {
        if self.node.next_deadline().is_none_or(|due| due > self.now) {
            self.ticks_put_off = 0;
        } else if self.ticks_put_off >= TICKS_PUT_OFF_MAX || self.engine.is_drained() {
            self.ticks_put_off = 0;
            self.publisher.touch();
            self.feed(Input::Tick);
        } else {
            self.ticks_put_off += 1;
        }
    }

    /// What was said last goes out, if the other sides read it soon.
    fn say_goodbye(&mut self, events: &mut Vec<Event>) -> Result<(), EngineError> {
        for conn in self.who.drain() {
            self.engine.close_after_send(conn.0);
        }
        let until = self.now + GOODBYE_MAX;
        while self.engine.connections() > 0 && self.engine.now() < until {
            self.engine.turn(Some(until), events)?;
            for event in events.drain(..) {
                if let Event::Accepted { conn, .. } = event {
                    self.engine.close(conn);
                }
            }
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.node.next_deadline(),
            self.outbox.next_deadline(self.now),
            self.publisher.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Woken => self.take_resolved(),
            Event::Disk { disk, done } => {
                let disk = self.slots[&disk];
                self.feed(Input::Disk { disk, done });
            }
            Event::Accepted { listener, conn } if listener == self.peer_listener => {
                self.on_link_accepted(conn);
            }
            Event::Accepted { conn, .. } => self.on_guest_accepted(conn),
            Event::Connected { conn } => {
                if let Some(Who::Link(link)) = self.who.get(&conn).copied() {
                    self.on_dialled(conn, link);
                }
            }
            Event::ConnectFailed { conn, .. } => {
                if let Some(Who::Link(link)) = self.who.remove(&conn) {
                    self.on_dial_failed(link);
                }
            }
            Event::Received { conn, bytes } => match self.who.get(&conn).copied() {
                Some(Who::Link(link)) => self.on_link_bytes(link, bytes),
                Some(Who::Guest(guest)) => self.on_guest_bytes(guest, bytes),
                None => {}
            },
            Event::Progress { conn } => {
                if let Some(Who::Link(link)) = self.who.get(&conn).copied() {
                    self.feed(Input::PeerBytes { link });
                }
            }
            Event::HungUp { conn } => {
                if let Some(Who::Link(link)) = self.who.get(&conn).copied() {
                    self.on_link_gone(link);
                }
            }
        }
    }

    /// Before all other events, for guests only: what a peer said before it hung up still counts.
    fn on_hung_up(&mut self, conn: ConnHandle) {
        if let Some(Who::Guest(guest)) = self.who.get(&conn).copied() {
            self.on_guest_gone(guest);
        }
    }

    /// As many as a turn may take; the rest wakes the next turn.
    fn take_inputs(&mut self) {
        if self.outbox.is_blocked() {
            return;
        }
        for _ in 0..INPUTS_PER_TURN_MAX {
            match self.inputs.try_recv() {
                Ok(Order::Input(input)) => {
                    self.publisher.touch();
                    self.feed(input);
                }
                Ok(Order::AddDisk { path, answer }) => {
                    // Nobody waits any more: it is added all the same.
                    let _gone = answer.send(self.add_disk(&path));
                }
                Ok(Order::Locate { block, answer }) => {
                    let wanted = away(&self.node, block);
                    let located = wanted.is_empty().then(|| locate(&self.node, block));
                    wanted.into_iter().for_each(|input| self.feed(input));
                    // Nobody waits any more: the caller gave up.
                    let _gone = answer.send(located);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stage = Stage::Ended;
                    return;
                }
            }
        }
        self.waker.wake();
    }

    fn add_disk(&mut self, path: &Path) -> Result<(), DiskOpenError> {
        let handle = self.engine.add_disk(path, true)?;
        let capacity_bytes = self.engine.disk_info(handle).capacity_bytes;
        let slot = DiskSlot(u32::try_from(self.disks.len()).map_err(|_| DiskOpenError::TooMany)?);
        self.disks.push(Some(handle));
        self.slots.insert(handle, slot);
        self.publisher.touch();
        let disk = NodeDisk { capacity_bytes, path: path.display().to_string() };
        self.feed(Input::DiskAdded { disk });
        Ok(())
    }

    pub(crate) fn feed(&mut self, input: Input) {
        self.node.handle(self.now, input);
        self.settle();
    }

    /// Does all that the node says, and tells it at once what came of it at once.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(effect) = self.node.next_effect() {
                self.execute(effect);
            }
            let Some(input) = self.local.pop_front() else { return };
            self.node.handle(self.now, input);
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Disk { disk, op } => self.disk(disk, op),
            Effect::Connect { link, node, class: _ } => self.dial(link, node),
            Effect::Send { link, message } => self.send_link(link, &message),
            Effect::CloseLink { link } => self.close_link(link),
            Effect::NbdWant { guest, bytes } => self.want_guest(guest, bytes),
            Effect::NbdSend { guest, pieces } => self.send_guest(guest, pieces),
            Effect::NbdClose { guest } => self.close_guest(guest),
            Effect::Stopped => {
                self.stage = Stage::Ended;
                self.outbox.push(Effect::Stopped);
            }
            Effect::GuestOpened { .. }
            | Effect::GuestDone { .. }
            | Effect::GuestRoom { .. }
            | Effect::GuestEnded { .. }
            | Effect::Propose { .. }
            | Effect::ConfirmLeader { .. }
            | Effect::AdminDone { .. }
            | Effect::Event(_) => self.outbox.push(effect),
        }
    }

    fn disk(&mut self, disk: DiskSlot, op: DiskOp) {
        let handle = usize::try_from(disk.0).ok().and_then(|at| self.disks.get(at).copied()?);
        match handle {
            Some(handle) => self.engine.disk(handle, op),
            None => {
                let result = Err(DiskError::Io { errno: NO_DISK_ERRNO });
                let done = DiskDone { token: op.token, result };
                self.local.push_back(Input::Disk { disk, done });
            }
        }
    }
}

/// Tells the node of each disk's size; of one that can't be opened, none.
fn open_disks(
    engine: &mut Engine,
    config: &mut DataConfig,
) -> Result<Vec<Option<DiskHandle>>, DataError> {
    let mut handles = Vec::new();
    for path in &config.disks {
        let handle = match engine.add_disk(path, true) {
            Ok(handle) => Some(handle),
            Err(error @ (DiskOpenError::InUse { .. } | DiskOpenError::TooMany)) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::error!(%error, "a disk is out of service");
                None
            }
        };
        let info = handle.map(|handle| engine.disk_info(handle));
        if info.is_some_and(|info| !info.direct) {
            tracing::warn!(path = %path.display(), "its file system has no O_DIRECT: writes go by the page cache");
        }
        let capacity_bytes = info.map_or(0, |info| info.capacity_bytes);
        config.node.disks.push(NodeDisk { capacity_bytes, path: path.display().to_string() });
        handles.push(handle);
    }
    Ok(handles)
}

fn listen_tcp(
    engine: &mut Engine,
    whom: &'static str,
    at: std::net::SocketAddr,
    hang_up: HangUp,
) -> Result<ListenerHandle, DataError> {
    let failed = |error| DataError::Listen { whom, at: at.to_string(), error };
    engine.listen_tcp(at, hang_up).map_err(failed)
}

fn listen_unix(engine: &mut Engine, path: &Path) -> Result<ListenerHandle, DataError> {
    let at = path.display().to_string();
    let failed = |error| DataError::Listen { whom: "NBD", at, error };
    engine.listen_unix(path, HangUp::AtOnce).map_err(failed)
}
