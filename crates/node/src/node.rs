//! The node: its cores, and the one door in and out.

use crate::disks::Disks;
use crate::flow::Flow;
use crate::fronts::Fronts;
use crate::guests::Guests;
use crate::io::{Effect, Input, NodeConfig};
use crate::lease::Lease;
use crate::links::Links;
use crate::owners::Owners;
use crate::proposals::Proposals;
use crate::settings::NodeSettings;
use crate::shares::Shares;
use crate::stop::Stage;
use gabion_cluster::{Manager, Map, manager};
use gabion_nbd::NbdLimits;
use gabion_types::{DiskId, Epoch, Instant, MapIndex, NodeId, Prng, SegmentIndex, VolumeId};
use gabion_wire::{RequestId, SessionMessage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// NBD requests in flight of one connection, in parts. Full: its socket is not read.
const NBD_IN_FLIGHT_MAX: u32 = 128;
/// Payload bytes in flight of one connection: as much as its volume may hold on this node.
pub(crate) const NBD_BYTES_IN_FLIGHT_MAX: u64 = crate::shares::VOLUME_BYTES_MAX;

/// What the map ordered a disk of this node to do and is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    Create { volume: VolumeId, disk: DiskId, creation: Epoch, first: SegmentIndex },
    Drop { volume: VolumeId, disk: DiskId, segment: SegmentIndex },
}

/// A message that stays within the node.
#[derive(Clone, Debug)]
pub(crate) enum Local {
    ToOwner(SessionMessage),
    ToFront(SessionMessage),
}

/// One machine's cores and what routes between them.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) settings: NodeSettings,
    pub(crate) prng: Prng,
    pub(crate) now: Instant,
    /// A moment, and what the wall clock said then.
    pub(crate) wall: Option<(Instant, u64)>,
    pub(crate) map: Map,
    pub(crate) index: MapIndex,
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    pub(crate) registered: bool,
    /// How many blocks of each disk had been corrupt when it was called suspect.
    pub(crate) suspected: BTreeMap<DiskId, u64>,
    /// The map says that this node is none of the cluster's any more.
    pub(crate) removed: bool,
    pub(crate) stage: Stage,
    pub(crate) links: Links,
    pub(crate) flow: Flow,
    pub(crate) proposals: Proposals,
    pub(crate) disks: Disks,
    pub(crate) owners: Owners,
    pub(crate) fronts: Fronts,
    pub(crate) guests: Guests,
    pub(crate) shares: Shares,
    pub(crate) lease: Lease,
    pub(crate) manager: Manager,
    /// By the request id that went to the store.
    pub(crate) jobs: BTreeMap<RequestId, Job>,
    pub(crate) next_job: u64,
    /// Jobs that are done, for as long as the map orders them still.
    pub(crate) recorded: BTreeSet<Job>,
    /// Jobs that a disk refused are tried again then.
    pub(crate) jobs_again: Option<Instant>,
    /// Those that the map said were out of service when it was followed last.
    pub(crate) disks_out: BTreeSet<DiskId>,
    pub(crate) map_dirty: bool,
    pub(crate) local: VecDeque<Local>,
    pub(crate) effects: VecDeque<Effect>,
}

impl Node {
    /// Begins the recovery of the disks at once.
    pub fn new(config: NodeConfig, now: Instant) -> Self {
        let settings = config.settings;
        let (node, incarnation) = (config.node, config.incarnation);
        let mut prng = Prng::new(config.seed);
        let links =
            Links::new(config.cluster, node, incarnation, config.secret, prng.fork(), settings);
        let nbd = NbdLimits {
            part_bytes: settings.limits.part_bytes,
            in_flight_max: NBD_IN_FLIGHT_MAX,
            bytes_in_flight_max: NBD_BYTES_IN_FLIGHT_MAX,
        };
        let mut node = Self {
            settings,
            now,
            wall: None,
            map: Map::default(),
            index: MapIndex::new(0),
            term: 0,
            leader: None,
            registered: false,
            suspected: BTreeMap::new(),
            removed: false,
            stage: Stage::Running,
            links,
            flow: Flow::new(settings.link_unsent_max),
            proposals: Proposals::new(node, incarnation, settings.propose_again),
            disks: Disks::new(
                now,
                config.cluster,
                &config.disks,
                prng.next_u64(),
                (settings.flaws, settings.map_pages_max),
            ),
            owners: Owners::new(node),
            fronts: Fronts::new(settings.flaws),
            guests: Guests::new(nbd),
            shares: Shares::default(),
            lease: Lease::new(now, settings.lease, settings.renew_interval, settings.flaws),
            manager: Manager::new(node, incarnation),
            jobs: BTreeMap::new(),
            next_job: 1,
            recorded: BTreeSet::new(),
            jobs_again: None,
            disks_out: BTreeSet::new(),
            map_dirty: false,
            local: VecDeque::new(),
            effects: VecDeque::new(),
            prng,
            config,
        };
        node.pump();
        node
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        // A clock that goes back is the driver's bug; nothing here may see it.
        self.now = self.now.max(now);
        let now = self.now;
        match input {
            Input::Disk { disk, done } => self.disks.done(now, disk, done),
            Input::DiskAdded { disk } => {
                self.disks.add(now, &disk, self.prng.next_u64(), &self.settings);
            }
            Input::WantPage { disk, wanted } => self.disks.want_page(now, disk, wanted),
            Input::Connected { link } => {
                self.flow.opened(now, link);
                self.links.connected(now, link);
            }
            Input::LinkClosed { link } => {
                self.flow.closed(link);
                self.links.closed(now, link);
            }
            Input::Accepted { link } => {
                self.flow.opened(now, link);
                self.links.accepted(now, link);
            }
            Input::LinkBacklog { link, unsent } => self.on_link_backlog(link, unsent),
            Input::Peer { link, message } => self.links.message(now, link, message),
            Input::PeerBytes { link } => self.links.bytes(now, link),
            Input::NbdAccepted { guest } => self.on_nbd_accepted(guest),
            Input::NbdBytes { guest, bytes } => {
                self.shares.release(guest);
                self.guests.nbd_bytes(now, guest, bytes);
            }
            Input::GuestOpen { guest, volume } => self.on_guest_open(guest, volume),
            Input::Guest { guest, tag, op } => self.guests.direct_request(guest, tag, op),
            Input::GuestClosed { guest } => self.guests.closed(guest),
            Input::EvictGuest { guest } => self.guests.evicted(guest),
            Input::Committed { index, command } => self.on_committed(index, &command),
            Input::Restored { index, map } => self.on_restored(index, *map),
            Input::Leader { term, leader } => self.on_leader(term, leader),
            Input::LeaderConfirmed { number, term } => {
                self.manage(manager::Input::LeaderConfirmed { number, term });
            }
            Input::Admin { number, request } => {
                self.manage(manager::Input::Admin { number, request });
            }
            Input::WallClock { unix_ms } => {
                self.wall = Some((now, unix_ms));
                self.manage(manager::Input::WallClock { unix_ms });
            }
            Input::Quiesce => self.on_quiesce(),
            Input::Stop => self.on_stop(),
            Input::Tick => self.on_tick(),
            Input::TurnEnds => self.disks.commit(now),
        }
        self.conclude();
    }

    /// What follows from the facts, whatever changed them.
    fn conclude(&mut self) {
        self.pump();
        if self.map_dirty {
            self.map_dirty = false;
            self.follow_map();
            self.look_who_needs_it();
            self.pump();
        }
        self.conclude_stop();
        self.pump();
        self.conclude_shares();
    }

    fn on_leader(&mut self, term: u64, leader: Option<NodeId>) {
        if leader.is_some() && (term, leader) != (self.term, self.leader) {
            self.proposals.leader_changed(self.now);
        }
        self.term = term;
        self.leader = leader;
        self.lease.hurry(self.now);
        self.manage(manager::Input::Leader { term, leader });
        self.renew();
    }

    pub(crate) fn manage(&mut self, input: manager::Input) {
        self.manager.handle(self.now, &self.map, input);
    }

    fn on_tick(&mut self) {
        let now = self.now;
        self.links.tick(now);
        self.close_stalled();
        self.proposals.tick(now);
        self.disks.tick(now);
        self.owners.tick(now);
        self.guests.tick(now);
        self.fronts.for_each(|front| front.tick(now));
        self.manage(manager::Input::Tick);
        self.renew();
        self.look_at_openings();
        self.judge_idle_owners();
        if self.jobs_again.is_some_and(|again| again <= now) {
            self.jobs_again = None;
            self.map_dirty = true;
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines().into_iter().filter_map(|(_, at)| at).min()
    }

    /// The parts of it that want to be woken by then.
    pub fn due(&self, now: Instant) -> Vec<&'static str> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let parts = self.deadlines().into_iter().filter(|(_, at)| due(*at));
        parts.map(|(part, _)| part).collect()
    }

    fn deadlines(&self) -> [(&'static str, Option<Instant>); 12] {
        [
            ("links", self.links.next_deadline()),
            ("flow", self.flow.next_deadline(self.settings.ping_silence)),
            ("proposals", self.proposals.next_deadline()),
            ("disks", self.disks.next_deadline()),
            ("owners", self.owners.next_deadline()),
            ("manager", self.manager.next_deadline()),
            ("fronts", self.fronts.next_deadline()),
            ("guests", self.guests.next_deadline()),
            ("lease", self.renew_deadline()),
            ("stop", self.stop_deadline()),
            ("openings", self.openings_deadline()),
            ("jobs", self.jobs_again),
        ]
    }
}
