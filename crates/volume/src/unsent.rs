//! Links without room: what carries data waits here, with whoever asked for it, and not in a queue that
//! nobody can take it out of again.

use crate::asks::AskState;
use crate::volume::Volume;
use gabion_types::{Instant, NodeId};
use gabion_wire::{LinkClass, RequestId};

impl Volume {
    /// Data for that link waits here until there is room.
    // rule: volume/what-a-link-cannot-take-waits-here
    pub(crate) fn handle_unsent(&mut self, request: RequestId) {
        if let Some(ask) = self.asks.get_mut(request)
            && ask.state == AskState::Sent
        {
            ask.state = AskState::NoRoom;
            let (node, class) = (ask.node, ask.class);
            self.links.set_full(node, class, true);
        }
    }

    /// In the order in which it was asked; at least one goes.
    pub(crate) fn handle_room(&mut self, now: Instant, node: NodeId, class: LinkClass, bytes: u64) {
        let waiting = self.asks_where(|ask| {
            ask.node == node && ask.class == class && ask.state == AskState::NoRoom
        });
        let mut left = bytes.max(1);
        for request in waiting {
            if left == 0 {
                return;
            }
            let room = self.asks.get(request).map_or(0, |ask| ask.room_bytes());
            left = left.saturating_sub(room);
            self.send_again(now, request);
        }
        self.links.set_full(node, class, false);
    }

    /// Something waits for room there.
    pub fn waits_for_room(&self, node: NodeId, class: LinkClass) -> bool {
        self.links.is_full(node, class)
    }
}
