//! Which disk is slow for long, against the others that were given the very same writes.

use crate::volume::Volume;
use gabion_types::{DiskId, Duration, Instant, SegmentIndex};

/// So long is looked at before anything is concluded of it.
const WINDOW: Duration = Duration::from_secs(10);
/// Windows in a row in which a disk lagged, before it is to go.
const WINDOWS: u32 = 3;
/// Fewer writes say nothing.
const WRITES_MIN: u32 = 8;
/// It lags with a write for which it takes so many times as long as the one that was slowest but for it.
const TIMES: u32 = 8;
/// It stays away for so long, or is borne with, and twice as long each time.
const AWAY: Duration = Duration::from_secs(5 * 60);
const AWAY_MAX: Duration = Duration::from_secs(60 * 60);

/// How a disk keeps up with the others.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    writes: u32,
    /// Those for which all others were waiting, for long.
    lagged: u32,
    windows: u32,
    /// It is to be done without, from when on and until when.
    away: Option<(Instant, Instant)>,
    /// There is no other place for its copies: it is borne with until then.
    borne_until: Option<Instant>,
    times: u32,
}

impl Pace {
    /// It answered a write; `lagged`: long after all others.
    fn note_write(&mut self, lagged: bool) {
        self.writes = self.writes.saturating_add(1);
        self.lagged = self.lagged.saturating_add(u32::from(lagged));
    }

    /// The writes of a window are over. How many lagged, if it was so for long.
    fn end_window(&mut self, now: Instant) -> Option<u32> {
        let (writes, lagged) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.lagged));
        if writes < WRITES_MIN {
            return None;
        }
        self.windows = if lagged > writes / 2 { self.windows.saturating_add(1) } else { 0 };
        let borne = self.borne_until.is_some_and(|until| now < until);
        (self.windows >= WINDOWS && !borne).then_some(lagged)
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    pub(crate) fn away_since(&self) -> Option<Instant> {
        self.away.map(|(since, _)| since)
    }

    fn send_away(&mut self, now: Instant) {
        let away = AWAY.saturating_mul(1 << self.times.min(8)).min(AWAY_MAX);
        self.times = self.times.saturating_add(1);
        self.windows = 0;
        self.away = Some((now, now + away));
    }

    /// A second copy is worth more than speed.
    fn bear_with(&mut self) {
        if let Some((_, until)) = self.away.take() {
            self.borne_until = Some(until);
        }
    }

    /// True: it may come again.
    pub(crate) fn end_away(&mut self, now: Instant) -> bool {
        let over = self.away.is_some_and(|(_, until)| until <= now);
        if over {
            self.away = None;
        }
        over
    }
}

impl Volume {
    /// It answered a write that was `first_sent` then, and for which it was waited for `alone` since
    /// then; none: others still are.
    pub(crate) fn note_pace(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        disk: DiskId,
        [first_sent, alone]: [Option<Instant>; 2],
    ) {
        let least = self.settings.lag;
        let in_sync = self.members(index).is_in_sync(disk);
        let lagged = first_sent.zip(alone).is_some_and(|(sent, alone)| {
            let (took, others) = (now.since(sent), alone.since(sent));
            least > Duration::ZERO
                && took.saturating_sub(others) >= least
                && took >= others.saturating_mul(TIMES)
        });
        self.disks.get_mut(disk).pace.note_write(lagged && in_sync);
    }

    /// The one disk that lags most, for long, is to be done without where another copy is; never
    /// more than one at a time.
    // rule: volume/who-lags-for-long-is-done-without
    pub(crate) fn look_at_pace(&mut self, now: Instant) {
        if now.since(self.pace_looked) < WINDOW {
            return;
        }
        self.pace_looked = now;
        let mut worst: Option<(u32, DiskId)> = None;
        let mut any_away = false;
        for (disk, pace) in self.disks.paces() {
            any_away |= pace.is_away();
            let lagged = pace.end_window(now).map(|lagged| (lagged, disk));
            worst = worst.max(lagged);
        }
        if let Some((_, disk)) = worst
            && !any_away
        {
            self.disks.get_mut(disk).pace.send_away(now);
            self.members_dirty = true;
        }
    }

    /// The map has no room for another copy.
    pub(crate) fn bear_with_who_lags(&mut self) {
        self.disks.paces().for_each(|(_, pace)| pace.bear_with());
    }

    /// It answers, and keeps all guests waiting.
    pub(crate) fn is_lagging(&self, index: SegmentIndex, disk: DiskId) -> bool {
        let away = self.disks.get(disk).is_some_and(|state| state.pace.is_away());
        away && self.segment(index).is_serving()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn windows(pace: &mut Pace, lagging: &[bool]) -> Vec<bool> {
        let window = |lags: &bool| {
            (0..WRITES_MIN).for_each(|_| pace.note_write(*lags));
            pace.end_window(at(0)).is_some()
        };
        lagging.iter().map(window).collect()
    }

    // rule: volume/who-lags-for-long-is-done-without
    #[test]
    fn three_windows_in_a_row_and_few_writes_are_none() {
        let mut pace = Pace::default();
        let lags = windows(&mut pace, &[true, true, false, true, true, true, true]);
        assert_eq!(lags, [false, false, false, false, false, true, true]);
        (1..WRITES_MIN).for_each(|_| pace.note_write(true));
        assert_eq!(pace.end_window(at(0)), None);
    }

    // rule: volume/who-lags-for-long-is-done-without
    #[test]
    fn it_is_away_for_longer_each_time() {
        let mut pace = Pace::default();
        for minutes in [5, 10, 20, 40, 60, 60] {
            pace.send_away(at(100));
            assert!(!pace.end_away(at(99 + minutes * 60)) && pace.is_away());
            assert!(pace.end_away(at(100 + minutes * 60)) && !pace.is_away());
        }
    }
}
