//! promise: bounded. Who was pushed back because something was full, or waits for a lease or for an
//! earlier request, goes on as soon as it may: nothing waits for the next input that happens to come.
//! Source: STYLE, "Handlers change facts; one `conclude(now)` draws the conclusions".
//!
//! Guests that hang up and ask again hide a lost wake-up from the judge of liveness; nothing hides it
//! from this one.

use crate::oracle::Broken;
use gabion_types::{NodeId, VolumeId};

/// Between two inputs of a node. Errors: something could go on, and nothing will make it.
pub fn check(node: NodeId, overlooked: &[VolumeId]) -> Result<(), Broken> {
    match overlooked.first() {
        Some(volume) => {
            let text = format!("{node} could go on with {volume}, and nothing wakes it");
            Err(Broken { promise: "no-sleepers", text })
        }
        None => Ok(()),
    }
}
