//! The manager: runs on every node and is active where the node leads the consensus.

use crate::command::{AdminReply, AdminRequest, Change};
use crate::map::Map;
use gabion_types::{Incarnation, Instant, NodeId, Outcome, VolumeId};
use std::collections::VecDeque;

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Who leads the consensus, as far as this node knows.
    Leader {
        term: u64,
        leader: Option<NodeId>,
    },
    /// A node renews its lease; this node's own renewals come in by the same door.
    Renew {
        node: NodeId,
        incarnation: Incarnation,
        number: u64,
        term: u64,
    },
    /// This node led at a moment after `ConfirmLeader` was asked.
    LeaderConfirmed {
        number: u64,
        term: u64,
    },
    /// Entries were applied to the map (or a whole map was restored).
    Applied,
    /// What became of `Effect::Propose`; the map has it already.
    Proposed {
        key: u64,
        outcome: Outcome,
    },
    /// An operator's request; answered by `AdminDone`, exactly once.
    Admin {
        number: u64,
        request: AdminRequest,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Into the log, tried until its outcome is known; answered by `Proposed`, exactly once.
    Propose {
        key: u64,
        change: Change,
    },
    ConfirmLeader {
        number: u64,
        term: u64,
    },
    /// To the node that renewed, with its number.
    Renewed {
        node: NodeId,
        number: u64,
    },
    AdminDone {
        number: u64,
        reply: AdminReply,
    },
    /// Ask the owner's node to let the volume go. `idle`: only if no guest is attached to it; else
    /// it drains, releases and leaves it to the manager for a while.
    AskRelease {
        node: NodeId,
        volume: VolumeId,
        idle: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Manager {
    effects: VecDeque<Effect>,
}

impl Manager {
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        let _ = (node, incarnation);
        Self {
            effects: VecDeque::new(),
        }
    }

    pub fn handle(&mut self, now: Instant, map: &Map, input: Input) {
        let _ = (now, map, input);
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
