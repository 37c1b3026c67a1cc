//! When volumes are scrubbed without being asked: each so often as the settings say, by the wall
//! clock, because the last time may be weeks and many leaders ago.

use super::{Proposals, Purpose};
use crate::command::Change;
use crate::map::{Map, Scrubbed, VolumeEntry};
use crate::settings::Settings;
use gabion_types::{Duration, Instant, ScrubKind, VolumeId};
use std::collections::BTreeMap;

/// How often volumes are looked at. No deadline of its own: repair has the same, and wakes the manager.
const LOOK: Duration = Duration::from_secs(1);
/// First scrubs are spread over the time between two light ones, in so many steps.
const STEPS: u32 = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    next_look: Option<Instant>,
    /// A moment, and what the wall clock said then. Units: ms since 1970.
    wall: Option<(Instant, u64)>,
    /// Volumes that were never scrubbed, and since when this leader knows them. Bounded by the
    /// volumes of the map.
    fresh: BTreeMap<VolumeId, Instant>,
}

impl Schedule {
    pub(super) fn begin(&mut self, now: Instant) {
        self.next_look = Some(now);
        self.fresh.clear();
    }

    pub(super) fn set_wall(&mut self, now: Instant, unix_ms: u64) {
        self.wall = Some((now, unix_ms));
    }

    /// As many at a time as there are living nodes; the disks pace them anyway.
    pub(super) fn conclude(&mut self, now: Instant, map: &Map, proposals: &mut Proposals) {
        let Some((then, unix_ms)) = self.wall else { return };
        if self.next_look.is_some_and(|look| now < look) {
            return;
        }
        self.next_look = Some(now + LOOK);
        let wall_ms = unix_ms.saturating_add(millis(now.since(then)));
        let settings = map.settings();
        let volumes = || map.volumes().values().filter(|volume| volume.is_ready());
        let never = |id: &VolumeId| map.volume(*id).is_some_and(|v| v.scrub.light.is_none());
        self.fresh.retain(|id, _| never(id));
        let mut under_way = volumes().filter(|volume| volume.scrub.wanted.is_some()).count();
        let at_once_max = map.nodes().keys().filter(|node| map.is_alive(**node)).count();
        for volume in volumes().filter(|volume| volume.scrub.wanted.is_none()) {
            let Some(kind) = self.due(now, wall_ms, &settings, volume) else { continue };
            let purpose = Purpose::Scrub { volume: volume.id };
            if under_way < at_once_max && !proposals.is_pending(purpose) {
                proposals.propose(purpose, Change::WantScrub { volume: volume.id, kind });
                under_way += 1;
            }
        }
    }

    fn due(
        &mut self,
        now: Instant,
        wall_ms: u64,
        settings: &Settings,
        volume: &VolumeEntry,
    ) -> Option<ScrubKind> {
        let (light, deep) = (settings.scrub_light, settings.scrub_deep);
        // One of which it is not known when it was counts as if it had been just now.
        let is_over = |last: Scrubbed, every: Duration| {
            last.at_ms > 0 && wall_ms.saturating_sub(last.at_ms) >= millis(every)
        };
        let Some(last) = volume.scrub.light else {
            let every = if light.is_zero() { deep } else { light };
            let since = *self.fresh.entry(volume.id).or_insert(now);
            let wait = (every / STEPS).saturating_mul(1 + volume.id.get() % STEPS);
            let kind = if deep.is_zero() { ScrubKind::Light } else { ScrubKind::Deep };
            return (!every.is_zero() && now.since(since) >= wait).then_some(kind);
        };
        // The first deep one is the next that is due.
        let deep_is_over = match volume.scrub.deep {
            Some(last) => is_over(last, deep),
            None => is_over(last, if light.is_zero() { deep } else { light.min(deep) }),
        };
        if !deep.is_zero() && deep_is_over {
            return Some(ScrubKind::Deep);
        }
        (!light.is_zero() && is_over(last, light)).then_some(ScrubKind::Light)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
