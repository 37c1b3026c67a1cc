//! What processes ask of the world, and what the world tells them.

use super::describe::effect_kind;
use super::fault::Mend;
use super::machine::{State, machine_of, node_id, who};
use super::{Cluster, Event};
use crate::consensus::{ConsensusEvent, ConsensusTold, Reach};
use crate::net::{Conn, Machine, NetEvent, Network, Side, Told};
use crate::world::Who;
use gabion_cluster::{Change, Command};
use gabion_node::{DiskSlot, Effect, Input, LinkId, NodeEvent, message_bytes};
use gabion_types::{DiskOp, Duration, MapIndex, NodeId, Outcome};
use gabion_wire::{Body, Message, SessionMessage};

/// A process that ended by itself is started again after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// So many entries at once come as a map now and then.
const BEHIND: usize = 3;

impl Cluster {
    pub(super) fn perform(&mut self, machine: Machine, effect: Effect) {
        let now = self.queue.now();
        if self.trace.is_watched() {
            let text = self.describe_effect(machine, &effect);
            self.trace.detail_next(text);
        }
        self.trace.note(now, who(machine), effect_kind(&effect), effect_numbers(&effect));
        match effect {
            Effect::Disk { disk, op } => self.submit(machine, disk, op),
            Effect::Connect { link, node, .. } => self.dial(machine, link, node),
            Effect::Send { link, message } => {
                self.watch_message(&message);
                if let Some((conn, side)) = self.machines[machine].end_of(link) {
                    self.judge_window(machine, link, &message);
                    self.net.send(now, conn, side, message);
                }
            }
            Effect::CloseLink { link } => {
                if let Some((conn, side)) = self.machines[machine].unbind(link) {
                    let gently = self.prng.chance(1, 2);
                    self.net.close(now, conn, side, gently);
                }
            }
            Effect::GuestOpened { guest, result } => self.on_guest_opened(machine, guest, result),
            Effect::GuestDone { guest, tag, result } => {
                self.on_guest_done(machine, guest, tag, result);
            }
            // The guests here have few requests, and don't mind.
            Effect::GuestRoom { .. } => {}
            Effect::GuestEnded { guest } => self.on_guest_ended(machine, guest),
            Effect::Propose { command } => self.consensus.propose(now, machine, command),
            Effect::ConfirmLeader { number, term } => {
                self.consensus.confirm(now, machine, number, term);
            }
            Effect::AdminDone { number, reply } => self.on_admin_done(number, reply),
            Effect::Event(event) => self.on_event(machine, &event),
            Effect::Stopped => {
                self.count("stopped");
                self.queue.after(
                    self.no_time(),
                    Event::Exit { machine, life: self.machines[machine].life },
                );
            }
            Effect::NbdWant { guest, bytes } => self.on_nbd_want(machine, guest, bytes),
            Effect::NbdSend { guest, pieces } => self.on_nbd_sent(machine, guest, &pieces),
            Effect::NbdClose { guest } => self.on_guest_ended(machine, guest),
        }
    }

    fn submit(&mut self, machine: Machine, disk: DiskSlot, op: DiskOp) {
        let slot = crate::world::index(u64::from(disk.0));
        let token = op.token;
        self.watch_disk(machine, slot, &op);
        let host = &mut self.machines[machine];
        let wait = host.disks[slot].virtual_disk.submit(op);
        self.queue.after(wait, Event::Disk { machine, slot, life: host.life, token });
    }

    fn dial(&mut self, machine: Machine, link: LinkId, node: NodeId) {
        let to = machine_of(node);
        let conn = self.net.dial(self.queue.now(), machine, to);
        self.machines[machine].bind(link, conn, Side::Dialler);
    }

    fn on_event(&mut self, machine: Machine, event: &NodeEvent) {
        if let NodeEvent::Removed = event {
            let life = self.machines[machine].life;
            self.queue.after(self.no_time(), Event::Exit { machine, life });
        }
        if let NodeEvent::Superseded { .. } = event {
            self.count("superseded");
            let life = self.machines[machine].life;
            self.queue.after(self.no_time(), Event::Exit { machine, life });
            // What an earlier process wanted came late. Somebody who watches over it starts it anew.
            self.queue.after(AGAIN, Event::Mend(Mend::Start(machine)));
        }
        self.note_event(machine, event);
    }

    /// A process ends by itself.
    pub(super) fn on_exit(&mut self, machine: Machine, life: u64) {
        if self.machines[machine].life == life {
            self.kill(machine);
        }
    }

    pub(super) fn on_net(&mut self, event: NetEvent) {
        for told in self.net.due(self.queue.now(), event) {
            match told {
                Told::Connected { machine, conn } => {
                    self.tell_link(machine, conn, Side::Dialler, None)
                }
                Told::Accepted { machine, conn } => {
                    let link = self.machines[machine].accept(conn);
                    self.feed(machine, Input::Accepted { link });
                }
                Told::Closed { machine, conn } => self.on_closed(machine, conn),
                Told::Message { machine, conn, message } => {
                    let side = self.side_of(machine, conn);
                    let bytes = message_bytes(&message);
                    self.tell_link(machine, conn, side, Some(message));
                    self.tell_left(machine, conn, side.other(), bytes);
                }
            }
        }
    }

    fn tell_link(&mut self, machine: Machine, conn: Conn, side: Side, message: Option<Message>) {
        let Some(link) = self.machines[machine].link_of(conn, side) else { return };
        self.feed(
            machine,
            match message {
                Some(message) => Input::Peer { link, message },
                None => Input::Connected { link },
            },
        );
    }

    // promise: bounded
    /// Requests with data are given only to a link that has room.
    fn judge_window(&mut self, machine: Machine, link: LinkId, message: &Message) {
        let before = self.machines[machine].note_sent(link, message_bytes(message));
        let data = match &message.body {
            Body::Replica(ask) => ask.op.payload().is_some(),
            Body::Session(SessionMessage::Request { op, .. }) => op.payload_bytes() > 0,
            Body::Session(_) | Body::Answer(_) | Body::Link(_) => false,
        };
        let window = self.swarm.link_unsent_max();
        if data && before >= window {
            let what = format!("{before} bytes wait for link {} already: {message}", link.0);
            self.break_promise("bounded", what);
        }
    }

    /// What the other side sent has arrived.
    fn tell_left(&mut self, machine: Machine, conn: Conn, side: Side, bytes: u64) {
        let Some((from, to)) = self.net.ends(conn) else { return };
        let sender = if machine == from { to } else { from };
        let Some(link) = self.machines[sender].link_of(conn, side) else { return };
        if let Some(unsent) = self.machines[sender].note_left(link, bytes) {
            self.feed(sender, Input::LinkBacklog { link, unsent });
        }
    }

    fn on_closed(&mut self, machine: Machine, conn: Conn) {
        let side = self.side_of(machine, conn);
        let host = &mut self.machines[machine];
        if let Some(link) = host.link_of(conn, side) {
            host.unbind(link);
            self.feed(machine, Input::LinkClosed { link });
        }
    }

    /// No machine dials itself, so a machine has one end of a connection at most.
    fn side_of(&self, machine: Machine, conn: Conn) -> Side {
        let dialled = self.machines[machine].link_of(conn, Side::Dialler).is_some();
        if dialled { Side::Dialler } else { Side::Acceptor }
    }

    pub(super) fn on_consensus(&mut self, event: ConsensusEvent<Command>) {
        let now = self.queue.now();
        let reach = Ways { net: &self.net, running: &self.running };
        let told = self.consensus.due(now, event, &reach);
        self.apply_committed();
        let told = self.perhaps_as_a_map(told);
        for told in told {
            match told {
                ConsensusTold::Committed { machine, index, entry } => {
                    let index = MapIndex::new(index);
                    self.feed(machine, Input::Committed { index, command: entry });
                }
                ConsensusTold::Leader { machine, term, leader } => {
                    let leader = leader.map(node_id);
                    self.feed(machine, Input::Leader { term, leader });
                }
                ConsensusTold::Confirmed { machine, number, term } => {
                    self.feed(machine, Input::LeaderConfirmed { number, term });
                }
            }
        }
    }

    /// One that was away for long gets a map now and then, where its leader has no entries any more.
    fn perhaps_as_a_map(
        &mut self,
        told: Vec<ConsensusTold<Command>>,
    ) -> Vec<ConsensusTold<Command>> {
        let last = match &told[..] {
            [.., ConsensusTold::Committed { machine, index, .. }] if told.len() >= BEHIND => {
                (*machine, *index)
            }
            _ => return told,
        };
        if !self.prng.chance(1, 3) {
            return told;
        }
        let (machine, index) = last;
        self.count("restored-while-running");
        let map = Box::new(self.map_at(crate::world::index(index)));
        self.feed(machine, Input::Restored { index: MapIndex::new(index), map });
        Vec::new()
    }

    /// The world's own map follows the log.
    fn apply_committed(&mut self) {
        let (mut taken, mut told, mut broken) = (Vec::new(), Vec::new(), None);
        let mut gone = Vec::new();
        while let Some(command) = self.consensus.log().get(self.applied).cloned() {
            self.applied += 1;
            let index = self.applied as u64;
            let checked = self.copies.check(&self.map, &command.change);
            let applied = self.map.apply(MapIndex::new(index), &command);
            if applied.outcome == Outcome::Done && !applied.repeat {
                self.copies.on_change(&command.change);
                self.note_leavers(&command.change);
                broken = broken.or(checked.err());
            }
            if let Change::RemoveNode { node, .. } = command.change
                && self.map.is_removed(node)
            {
                self.machines[machine_of(node)].removed = true;
                gone.push(machine_of(node));
            }
            if let Change::TakeOver { volume, .. } = command.change
                && applied.outcome == Outcome::Done
                && !applied.repeat
            {
                taken.push(volume);
            }
            let at = self.queue.now();
            self.trace.note_with(at, Who::World, "committed", [index, 0, 0], || {
                format!("{:?} -> {:?}", command.change, applied.outcome)
            });
            told.push(MapIndex::new(index));
        }
        if let Some(broken) = broken {
            self.break_promise(broken.promise, broken.text);
        }
        gone.into_iter().for_each(|machine| self.consensus.remove(machine));
        let any = !told.is_empty();
        told.into_iter().for_each(|index| self.tell_committed(index));
        // Members have changed: what was settled for the old ones has to hold for the new ones.
        if any {
            self.watch();
        }
        taken.into_iter().for_each(|volume| self.on_taken_over(volume));
        if any {
            self.play();
        }
    }

    /// Which machines run a process that is not hanging, kept for consensus.
    pub(super) fn refresh_running(&mut self) {
        self.running.clear();
        self.running
            .extend(self.machines.iter().map(|host| matches!(host.state, State::Running(_))));
    }
}

/// Who reaches whom, for consensus.
struct Ways<'a> {
    net: &'a Network<Message>,
    running: &'a [bool],
}

impl Reach for Ways<'_> {
    fn is_up(&self, machine: Machine) -> bool {
        self.running[machine]
    }

    fn reaches(&self, from: Machine, to: Machine) -> bool {
        let open = !self.net.is_cut(from, to) && !self.net.is_cut(to, from);
        open && self.running[from] && self.running[to]
    }
}

/// What of an effect goes into the hash of the trace.
fn effect_numbers(effect: &Effect) -> [u64; 3] {
    match effect {
        Effect::Disk { disk, op } => [1, u64::from(disk.0), op.token.0],
        Effect::Connect { link, node, .. } => [2, link.0, u64::from(node.get())],
        Effect::Send { link, message } => [3, link.0, message.request.0],
        Effect::CloseLink { link } => [4, link.0, 0],
        Effect::GuestOpened { guest, .. } => [5, guest.0, 0],
        Effect::GuestDone { guest, tag, .. } => [6, guest.0, *tag],
        Effect::GuestRoom { guest, room } => [14, guest.0, u64::from(*room)],
        Effect::GuestEnded { guest } => [7, guest.0, 0],
        Effect::Propose { command } => [8, command.from.number, 0],
        Effect::ConfirmLeader { number, term } => [9, *number, *term],
        Effect::AdminDone { number, .. } => [10, *number, 0],
        Effect::Event(_) => [11, 0, 0],
        Effect::Stopped => [12, 0, 0],
        Effect::NbdWant { guest, bytes } => [13, guest.0, *bytes as u64],
        Effect::NbdSend { guest, pieces } => [15, guest.0, pieces.len() as u64],
        Effect::NbdClose { guest } => [16, guest.0, 0],
    }
}
