//! promise: bounded. A node that its own clock woke does what was due, and then something else is due
//! later: one that is told again and again that it is late keeps a core busy with nothing.
//! Source: DESIGN 7, bounds hold.

use crate::oracle::Broken;
use gabion_types::NodeId;

/// So often one after the other: an answer may wait for two turns of its node's loop.
const TURNS_MAX: u32 = 8;

/// After a turn. `turns`: how many of the last ones left something due; `due`: what. Errors: too many.
pub fn check(node: NodeId, turns: u32, due: &[&str]) -> Result<(), Broken> {
    if turns <= TURNS_MAX {
        return Ok(());
    }
    let text = format!("{node} woke {turns} times, and this is still due: {due:?}");
    Err(Broken { promise: "no-spinning", text })
}
