//! The front's side of sessions (rule 9): guests of this node, on volumes owned here or elsewhere.
//!
//! rule: node/held-requests-follow-the-owner — what was not answered is sent to the next owner, in
//! the order in which it came.
//! rule: node/gone-guest-is-never-sent — a request whose guest is gone is not sent (again).
//! rule: node/void-session-closes-guests — a front that the map declares void drops what it holds.
//! rule: node/requests-go-as-there-is-room — a request leaves its front when the link to the owner has
//! room; until then it can still be dropped with its guest. Fronts take turns.

mod front;

pub use front::{Front, FrontOutput, OfVolume, OwnerNow};

use crate::sessions::OUTSTANDING_MAX;
use front::Turn;
use gabion_types::{Flaws, Instant, Load, MapIndex, NodeId, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The fronts of this node, and which of them may have something to say.
#[derive(Debug, Default)]
pub struct Fronts {
    fronts: BTreeMap<VolumeId, Front>,
    dirty: BTreeSet<VolumeId>,
    /// Those with requests to send take turns. Bounded by the fronts.
    sending: VecDeque<VolumeId>,
    /// Those whose link had no room when it was their turn. Bounded by the fronts.
    stuck: VecDeque<VolumeId>,
    flaws: Flaws,
}

impl Fronts {
    pub fn new(flaws: Flaws) -> Self {
        Self { flaws, ..Self::default() }
    }

    pub fn get(&self, volume: VolumeId) -> Option<&Front> {
        self.fronts.get(&volume)
    }

    pub fn get_mut(&mut self, volume: VolumeId) -> Option<&mut Front> {
        let front = self.fronts.get_mut(&volume)?;
        self.dirty.insert(volume);
        Some(front)
    }

    pub fn or_insert(&mut self, volume: VolumeId, voided: MapIndex) -> &mut Front {
        self.dirty.insert(volume);
        let flaws = self.flaws;
        self.fronts.entry(volume).or_insert_with(|| Front::new(volume, voided).with(flaws))
    }

    pub fn for_each(&mut self, each: impl FnMut(&mut Front)) {
        self.dirty.extend(self.fronts.keys().copied());
        self.fronts.values_mut().for_each(each);
    }

    pub fn remove(&mut self, volume: VolumeId) {
        self.fronts.remove(&volume);
    }

    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.fronts.keys().copied()
    }

    pub fn len(&self) -> usize {
        self.fronts.len()
    }

    pub fn loads(&self) -> impl Iterator<Item = Load> {
        let what = "requests of a front that were sent";
        self.fronts
            .values()
            .map(move |front| Load::new(what, front.requests.len(), OUTSTANDING_MAX))
    }

    pub fn held(&self) -> usize {
        self.fronts.values().map(Front::held).sum()
    }

    /// Payload of all that is held, or to be answered.
    pub fn held_bytes(&self) -> u64 {
        self.fronts.values().map(|front| front.bytes).sum()
    }

    /// `has_room`: whether the link to that node takes a request now.
    pub fn next_output(&mut self, has_room: impl Fn(NodeId) -> bool) -> Option<FrontOutput> {
        while let Some(volume) = self.dirty.first().copied() {
            let output = self.fronts.get_mut(&volume).and_then(|front| front.outputs.pop_front());
            if output.is_some() {
                return output;
            }
            self.dirty.remove(&volume);
            self.take_turns(volume, &has_room);
        }
        while let Some(volume) = self.sending.pop_front() {
            let Some(front) = self.fronts.get_mut(&volume) else { continue };
            front.turn = Turn::None;
            let Some(node) = front.sends_to() else { continue };
            if !has_room(node) {
                front.turn = Turn::Stuck;
                self.stuck.push_back(volume);
                continue;
            }
            let output = front.next_to_send();
            if front.sends_to().is_some() {
                front.turn = Turn::Sending;
                self.sending.push_back(volume);
            }
            self.dirty.insert(volume);
            if output.is_some() {
                return output;
            }
        }
        None
    }

    /// One that may have something to send gets its turn, unless it is known to be stuck.
    fn take_turns(&mut self, volume: VolumeId, has_room: &impl Fn(NodeId) -> bool) {
        let Some(front) = self.fronts.get_mut(&volume) else { return };
        let Some(node) = front.sends_to() else { return };
        match front.turn {
            Turn::Sending => return,
            Turn::Stuck if !has_room(node) => return,
            Turn::Stuck => self.stuck.retain(|stuck| *stuck != volume),
            Turn::None => {}
        }
        front.turn = Turn::Sending;
        self.sending.push_back(volume);
    }

    /// Somebody waits for room on the link to that node.
    pub fn wait_for(&self, node: NodeId) -> bool {
        let fronts = self.stuck.iter().filter_map(|volume| self.fronts.get(volume));
        fronts.filter_map(Front::sends_to).any(|to| to == node)
    }

    /// There may be room for those that were stuck.
    pub fn look_again(&mut self) {
        for volume in self.stuck.drain(..) {
            if let Some(front) = self.fronts.get_mut(&volume) {
                front.turn = Turn::Sending;
                self.sending.push_back(volume);
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.fronts.values().filter_map(Front::next_deadline).min()
    }
}
