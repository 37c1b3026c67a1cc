//! Looks at a disk that no node uses: what is on it, and whether all of it is as it should be.
//!
//! Reads only. Its map is the one that recovery would make of the disk, by the same code; the
//! checkpoint with which a recovery ends is not written.

mod check;
mod holdings;
mod show;

pub use check::{BadBlock, Check, Checked, check};
pub use holdings::{Holdings, holdings};
pub use show::{
    FrameShown, FrameStanding, PageShown, SegmentPageShown, SegmentShown, Shown, ShownEntry,
    SuperblockShown, show,
};

use crate::config::{Settings, StoreConfig};
use crate::io::{Effect, Input, OutOfService, StoreEvent};
use crate::store::Store;
use bytes::Bytes;
use gabion_types::{DiskDone, DiskError, DiskOpKind, Instant};

/// Reads so many bytes from an offset on; both multiples of 4096.
pub type ReadDisk<'a> = dyn FnMut(u64, u64) -> Result<Bytes, DiskError> + 'a;

/// A disk as recovery leaves it in memory, and what recovery said.
struct Offline {
    store: Store,
    events: Vec<StoreEvent>,
}

/// Recovers in memory: up to the first write, which is not done.
fn recover(capacity_bytes: u64, read: &mut ReadDisk<'_>) -> Result<Offline, OutOfService> {
    let settings = Settings { pages_max: usize::MAX, ..Settings::default() };
    let config =
        StoreConfig { capacity_bytes, settings, whole_map: true, ..StoreConfig::default() };
    let now = Instant::from_nanos(0);
    let mut store = Store::new(config, now);
    let mut events = Vec::new();
    while let Some(effect) = store.next_effect() {
        let op = match effect {
            Effect::Disk(op) => op,
            Effect::Event(event) => {
                events.push(event);
                continue;
            }
            Effect::OutOfService(why) => return Err(why),
            Effect::Answer { .. } | Effect::Opened(_) | Effect::Stopped => continue,
        };
        let result = match op.kind {
            DiskOpKind::Read { offset, length } => read(offset, length),
            // Nothing was written, so there is nothing to make durable.
            DiskOpKind::Sync => Ok(Bytes::new()),
            DiskOpKind::Write { .. } => break,
        };
        store.handle(now, Input::Disk(DiskDone { token: op.token, result }));
    }
    Ok(Offline { store, events })
}

#[cfg(test)]
mod tests;
