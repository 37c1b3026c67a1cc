//! A clean stop: guests go first, then volumes and copies, then disks.

use crate::io::Effect;
use crate::node::Node;
use gabion_cluster::VolumeEntry;
use gabion_types::{Duration, Instant, SegmentMembers, VolumeId};
use std::collections::BTreeSet;

/// The others are waited for so long to do without this node's copies.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// Guests are gone and volumes are let go; disks serve on, for owners elsewhere.
    Quiet,
    /// Guests are gone; the volumes are being released, and owners elsewhere do without this node.
    Releasing {
        until: Instant,
        leaving: Option<Leaving>,
    },
    /// The disks write their checkpoints.
    Closing {
        until: Instant,
    },
    Stopped,
}

/// This node goes while others stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    until: Instant,
    /// They had guests here, so somebody takes them over soon.
    handed: BTreeSet<VolumeId>,
    /// As of the map that was seen last: writes elsewhere wait for disks of this node.
    is_needed: bool,
}

impl Node {
    // rule: node/quiet-before-all-stop — when all nodes stop, each lets go before any leaves: the
    // last release needs every copy.
    pub(crate) fn on_quiesce(&mut self) {
        if self.stage != Stage::Running {
            return;
        }
        self.stage = Stage::Quiet;
        self.guests.stop();
        for volume in self.owners.volumes().collect::<Vec<_>>() {
            self.owners.release(self.now, volume);
        }
    }

    pub(crate) fn on_stop(&mut self) {
        let until = self.now + self.settings.stop_wait;
        match self.stage {
            Stage::Running => {
                let used = self.owners.guests().filter(|(_, guests)| *guests > 0);
                let handed = used.map(|(volume, _)| volume).collect();
                let leave_by = self.now + LEAVE_WAIT;
                let leaving = Leaving { until: leave_by, handed, is_needed: true };
                self.on_quiesce();
                self.stage = Stage::Releasing { until, leaving: Some(leaving) };
                self.links.say_leaving();
                self.look_who_needs_it();
            }
            Stage::Quiet => self.stage = Stage::Releasing { until, leaving: None },
            Stage::Releasing { .. } | Stage::Closing { .. } | Stage::Stopped => {}
        }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Releasing { leaving: Some(_), .. })
    }

    /// The map changed.
    // rule: node/leaves-the-write-sets-first
    pub(crate) fn look_who_needs_it(&mut self) {
        let Stage::Releasing { leaving: Some(leaving), .. } = &self.stage else { return };
        let needed = self.map.volumes().values().any(|volume| self.holds_up(volume, leaving));
        if let Stage::Releasing { leaving: Some(leaving), .. } = &mut self.stage {
            leaving.is_needed = needed;
        }
    }

    /// Its writes would wait for this node when it is gone, and need not.
    fn holds_up(&self, volume: &VolumeEntry, leaving: &Leaving) -> bool {
        let me = self.config.node;
        let owned = volume.owner.is_some_and(|(owner, _)| owner != me);
        let mine = |disk| self.map.disk(disk).is_some_and(|entry| entry.node == me);
        let removable = |segment: &SegmentMembers| {
            segment.write_set().any(mine) && segment.in_sync.iter().any(|disk| !mine(*disk))
        };
        (owned || leaving.handed.contains(&volume.id)) && volume.segments.iter().any(removable)
    }

    /// Guests first, then volumes and copies, then disks; each for as long as there is time.
    pub(crate) fn conclude_stop(&mut self) {
        let now = self.now;
        if let Stage::Releasing { until, leaving } = &self.stage {
            let needed =
                leaving.as_ref().is_some_and(|leaving| leaving.is_needed && now < leaving.until);
            if (self.owners.is_empty() && !needed) || *until <= now {
                let until = now + self.settings.stop_wait;
                self.stage = Stage::Closing { until };
                self.disks.stop(now);
                self.pump();
            }
        }
        if let Stage::Closing { until } = self.stage
            && (self.disks.all_stopped() || until <= now)
        {
            self.stage = Stage::Stopped;
            self.effects.push_back(Effect::Stopped);
        }
    }

    pub(crate) fn stop_deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Releasing { leaving: Some(leaving), .. } if self.now < leaving.until => {
                Some(leaving.until)
            }
            Stage::Releasing { until, .. } | Stage::Closing { until } => Some(*until),
            Stage::Running | Stage::Quiet | Stage::Stopped => None,
        }
    }
}
