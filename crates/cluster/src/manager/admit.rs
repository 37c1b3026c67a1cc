//! Whether a node that proved a token is let in, in words.

use crate::command::{AdminError, NodeInfo};
use crate::map::{Map, NODES_MAX, Ticket};
use gabion_types::RefusedChange;

/// As the map would judge it.
pub(super) fn refusal(
    map: &Map,
    ticket: Ticket,
    at_ms: u64,
    info: &NodeInfo,
) -> Option<AdminError> {
    let refused = map.judge_claim(ticket, at_ms, info).err()?;
    Some(match refused {
        RefusedChange::InUse => {
            let node = map.admitted_by(ticket.token).map_or(info.id, |known| known.id);
            AdminError::TokenUsed { node }
        }
        RefusedChange::Removed => AdminError::NodeRemoved,
        RefusedChange::NameTaken => AdminError::NodeNameTaken,
        RefusedChange::Invalid if ticket.expires_ms <= at_ms => AdminError::TokenExpired,
        RefusedChange::NoRoom => AdminError::TooManyNodes {
            nodes: map.log_readers().count(),
            most: NODES_MAX,
            tokens: map.admitted.len(),
        },
        RefusedChange::OtherEpoch
        | RefusedChange::NotOwner
        | RefusedChange::LastInSync
        | RefusedChange::TooFewCopies
        | RefusedChange::NotGone
        | RefusedChange::NotFound
        | RefusedChange::Invalid
        | RefusedChange::Busy
        | RefusedChange::Attached
        | RefusedChange::OtherIncarnation => AdminError::Map(refused),
    })
}
