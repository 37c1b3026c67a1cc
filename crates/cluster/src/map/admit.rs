//! Nodes that a token lets in: each gets an id of its own, and the token is used up by it.

use super::{Map, NODES_MAX, TEXT_MAX};
use crate::command::NodeInfo;
use crate::event::Fact;
use gabion_types::{NodeId, RefusedChange};
use serde::{Deserialize, Serialize};

/// Tokens that were used and have not expired yet. Full: no other node is let in until one does.
pub const TOKENS_MAX: usize = 256;

/// What names a token. It is proven before it comes here; the secret of it stays where it was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Drawn at random.
    pub token: u64,
    /// By the wall clock. Units: ms since 1970.
    pub expires_ms: u64,
}

/// Who was let in by a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// With the id that it was given.
    pub info: NodeInfo,
    pub expires_ms: u64,
}

impl Map {
    /// Who was let in by a token that has not been forgotten.
    pub fn admitted_by(&self, token: u64) -> Option<&NodeInfo> {
        self.admitted.get(&token).map(|admitted| &admitted.info)
    }

    /// Nodes that were let in and have not started yet.
    pub fn awaited(&self) -> impl Iterator<Item = &NodeInfo> {
        let awaited = |id: NodeId| !self.nodes.contains_key(&id) && !self.is_removed(id);
        self.awaited.values().filter(move |info| awaited(info.id))
    }

    /// Where the API of each node is, also of those that are awaited: all of them need the log.
    pub fn log_readers(&self) -> impl Iterator<Item = (NodeId, &str)> {
        let here = self.nodes.iter().map(|(id, node)| (*id, node.info.api.as_str()));
        here.chain(self.awaited().map(|info| (info.id, info.api.as_str())))
    }

    /// `at_ms`: what the clock of the leader says. `info.id`: the least that the node may get, for
    /// those of the configuration need not have started yet. The same claim again changes nothing.
    // rule: cluster/a-token-lets-one-node-in
    pub(super) fn admit(
        &mut self,
        ticket: Ticket,
        at_ms: u64,
        info: &NodeInfo,
    ) -> Result<(), RefusedChange> {
        let Some(id) = self.judge_claim(ticket, at_ms, info)? else { return Ok(()) };
        self.forget_tokens(at_ms);
        let info = NodeInfo { id, ..info.clone() };
        self.last_node = id.get();
        self.note(Fact::NodeAdmitted { node: id, name: info.name.clone() });
        self.awaited.insert(id, info.clone());
        self.admitted.insert(ticket.token, Admitted { info, expires_ms: ticket.expires_ms });
        Ok(())
    }

    /// The id that the node would get; none: it has one already by that token.
    pub(crate) fn judge_claim(
        &self,
        ticket: Ticket,
        at_ms: u64,
        info: &NodeInfo,
    ) -> Result<Option<NodeId>, RefusedChange> {
        let texts = [&info.name, &info.peer, &info.api, &info.nbd, &info.http, &info.zone];
        if info.name.is_empty() || texts.iter().any(|text| text.len() > TEXT_MAX) {
            return Err(RefusedChange::Invalid);
        }
        if let Some(known) = self.admitted_by(ticket.token) {
            return match is_same_claim(known, info) {
                true if self.is_removed(known.id) => Err(RefusedChange::Removed),
                true => Ok(None),
                false => Err(RefusedChange::InUse),
            };
        }
        // One that was forgotten may have been used.
        if ticket.expires_ms <= at_ms.max(self.tokens_forgotten_ms) {
            return Err(RefusedChange::Invalid);
        }
        if self.is_node_name(&info.name) {
            return Err(RefusedChange::NameTaken);
        }
        let good = self.admitted.values().filter(|admitted| admitted.expires_ms > at_ms).count();
        if good >= TOKENS_MAX || self.log_readers().count() >= NODES_MAX {
            return Err(RefusedChange::NoRoom);
        }
        let next = self.last_node_id().checked_add(1).ok_or(RefusedChange::NoRoom)?;
        Ok(Some(NodeId::new(next.max(info.id.get()))))
    }

    /// A node that was let in and never came is let in no more.
    pub(super) fn give_up_awaited(&mut self, id: NodeId) -> bool {
        let awaited = !self.nodes.contains_key(&id) && self.awaited.remove(&id).is_some();
        if awaited {
            self.removed.insert(id);
            self.note(Fact::NodeRemoved { node: id, disks: 0 });
        }
        awaited
    }

    fn is_node_name(&self, name: &str) -> bool {
        let named = self.nodes.values().any(|node| node.info.name == name);
        named || self.awaited().any(|info| info.name == name)
    }

    fn forget_tokens(&mut self, at_ms: u64) {
        let over = self.admitted.values().map(|admitted| admitted.expires_ms);
        let newest = over.filter(|expires| *expires <= at_ms).max().unwrap_or(0);
        self.tokens_forgotten_ms = self.tokens_forgotten_ms.max(newest);
        self.admitted.retain(|_, admitted| admitted.expires_ms > at_ms);
    }

    /// No id above it was ever given.
    fn last_node_id(&self) -> u32 {
        let nodes = self.nodes.keys().next_back().map_or(0, |id| id.get());
        let removed = self.removed.iter().next_back().map_or(0, |id| id.get());
        self.last_node.max(nodes).max(removed)
    }
}

/// It is the node that used the token before: its answer got lost.
fn is_same_claim(known: &NodeInfo, claims: &NodeInfo) -> bool {
    NodeInfo { id: known.id, ..claims.clone() } == *known
}
