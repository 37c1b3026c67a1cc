//! Scrubs that are wanted, and what came of them.

use super::Map;
use super::entry::Scrubbed;
use crate::command::Proposer;
use crate::event::Fact;
use gabion_types::{Epoch, RefusedChange, ScrubAsk, ScrubKind, VolumeId};

impl Map {
    /// One that is under way is enough, if it looks at as much.
    pub(crate) fn want_scrub(
        &mut self,
        id: VolumeId,
        kind: ScrubKind,
    ) -> Result<(), RefusedChange> {
        let volume = self.volumes.get_mut(&id).ok_or(RefusedChange::NotFound)?;
        if !volume.is_ready() {
            return Err(RefusedChange::Busy);
        }
        let scrub = &mut volume.scrub;
        if scrub.wanted.is_none_or(|ask| ask.kind < kind) {
            scrub.last += 1;
            scrub.wanted = Some(ScrubAsk { number: scrub.last, kind });
        }
        Ok(())
    }

    // rule: cluster/scrubbed-by-its-owner
    pub(crate) fn scrubbed(
        &mut self,
        from: Proposer,
        id: VolumeId,
        owner_epoch: Epoch,
        kind: ScrubKind,
        done: Scrubbed,
    ) -> Result<(), RefusedChange> {
        let volume = self.volume_of_owner(from, id, owner_epoch)?;
        let scrub = &mut volume.scrub;
        if scrub.wanted != Some(ScrubAsk { number: done.number, kind }) {
            return Err(RefusedChange::Invalid);
        }
        scrub.wanted = None;
        scrub.light = Some(done);
        if kind == ScrubKind::Deep {
            scrub.deep = Some(done);
        }
        self.note(Fact::Scrubbed { volume: id, kind, found: done.found });
        Ok(())
    }
}
