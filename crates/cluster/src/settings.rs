//! Settings of the whole cluster: changed at run time, the same on all nodes, kept in the map.

use gabion_types::Duration;
use std::collections::BTreeMap;

/// What the settings come to, typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub rebuild_wait: Duration,
    pub rebuild_away_percent: u64,
    /// For a node, the value that stands in its `NodeEntry` counts.
    pub lease_duration: Duration,
    pub lease_renew: Duration,
    pub fence_wait: Duration,
    pub member_slow: Duration,
    /// Zero: never.
    pub member_lag: Duration,
    pub fill_bytes_in_flight: u64,
    pub ping_interval: Duration,
    pub ping_silence: Duration,
    pub overcommit_percent: u64,
    pub near_full_percent: u64,
    /// Zero: never by itself.
    pub scrub_light: Duration,
    pub scrub_deep: Duration,
    pub scrub_share_percent: u32,
    /// Zero: never.
    pub suspect_blocks: u64,
    /// Zero: never.
    pub disk_hang: Duration,
    pub voter_wait: Duration,
    /// Zero: never.
    pub rebalance_spread_percent: u64,
    pub rebalance_wait: Duration,
}

/// One setting as `gabion settings list` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    pub unit: Unit,
    /// Units: milliseconds, bytes or percent.
    pub default: u64,
    pub least: u64,
    pub most: u64,
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Kept in milliseconds.
    Time,
    Bytes,
    Percent,
    /// A plain number.
    Count,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("no setting of that name; see `gabion settings list`")]
    NoSuch,
    #[error("the value does not fit: {wants}")]
    BadValue { wants: String },
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Good disks take seconds now and then: an error that their firmware tries to mend, a flush of all of a cache.
const DISK_HANG_LEAST: Duration = Duration::from_secs(5);

const fn time(name: &'static str, range: [u64; 3], meaning: &'static str) -> Setting {
    let [least, default, most] = range;
    Setting { name, unit: Unit::Time, default, least, most, meaning }
}

const fn percent(name: &'static str, range: [u64; 3], meaning: &'static str) -> Setting {
    let [least, default, most] = range;
    Setting { name, unit: Unit::Percent, default, least, most, meaning }
}

/// Every setting. Shape: `[least, default, most]`.
pub const SETTINGS: [Setting; 20] = [
    time(
        "rebuild.wait",
        [0, MINUTE, 24 * HOUR],
        "a copy on a silent node is given so long to return before another is filled from the base",
    ),
    percent(
        "rebuild.away",
        [0, 34, 100],
        "no rebuild while more than this part of the nodes is silent",
    ),
    time(
        "lease.duration",
        [SECOND, 3 * SECOND, MINUTE],
        "how long a node's lease holds; counts for a node from its next start on",
    ),
    time("lease.renew", [50, 500, 10 * SECOND], "how often a node renews its lease"),
    time(
        "fence.wait",
        [50, SECOND, MINUTE],
        "how long a copy that does not answer is waited for when a volume is taken over",
    ),
    time(
        "member.slow",
        [SECOND, 5 * SECOND, MINUTE],
        "a copy that takes longer than this for a write is removed",
    ),
    time(
        "member.lag",
        [0, 100, MINUTE],
        "a copy that most writes wait so long for, after all others answered, is removed; 0: never",
    ),
    Setting {
        name: "fill.inflight",
        unit: Unit::Bytes,
        default: 8 * MIB,
        least: 256 * KIB,
        most: GIB,
        meaning: "bytes of filling in flight of one volume",
    },
    time("ping.interval", [20, 250, 10 * SECOND], "how often a node pings each peer"),
    time("ping.silence", [100, SECOND, MINUTE], "a peer that says nothing for so long is away"),
    percent(
        "overcommit.ratio",
        [100, 400, 10_000],
        "how much may be promised on a disk, in parts of its capacity",
    ),
    percent(
        "space.near_full",
        [1, 85, 100],
        "a disk of which so much is used is told of by `gabion status`",
    ),
    time(
        "scrub.light",
        [0, DAY, 365 * DAY],
        "so often the tables of a volume's copies are compared; 0: never by itself",
    ),
    time(
        "scrub.deep",
        [0, 14 * DAY, 365 * DAY],
        "so often every block of every copy is read and verified; 0: never by itself",
    ),
    percent("scrub.share", [1, 10, 100], "the part of a disk's time that scrubs take at most"),
    Setting {
        name: "disk.suspect",
        unit: Unit::Count,
        default: 64,
        least: 0,
        most: 1 << 32,
        meaning: "a disk of which so many blocks were corrupt since its node started is emptied; 0: none is",
    },
    time(
        "disk.hang",
        [0, 30 * SECOND, HOUR],
        "a disk that has not answered for so long, without an error, is out of service; 0: it may take for ever",
    ),
    time(
        "voter.wait",
        [SECOND, 5 * MINUTE, DAY],
        "a voter that is silent for so long is replaced by another node, if one is there",
    ),
    percent(
        "rebalance.spread",
        [0, 10, 100],
        "copies move to a disk that came when more of another is promised by so much of it; 0: never",
    ),
    time(
        "rebalance.wait",
        [0, MINUTE, DAY],
        "so long nothing may be amiss before copies are moved to level the disks",
    ),
];

impl Setting {
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Reads a value as an operator types it. Errors: a text that says what is wanted.
    pub fn parse(&self, value: &str) -> Result<u64, SettingError> {
        let wants = || SettingError::BadValue { wants: self.wants() };
        let number = parse_with_unit(value.trim(), self.unit).ok_or_else(wants)?;
        if (self.least..=self.most).contains(&number) { Ok(number) } else { Err(wants()) }
    }

    /// In the largest unit that divides it.
    pub fn text(&self, value: u64) -> String {
        let (factor, unit) = units(self.unit)
            .iter()
            .find(|(factor, _)| value > 0 && value.is_multiple_of(*factor))
            .copied()
            .unwrap_or(match self.unit {
                Unit::Time => (SECOND, "s"),
                Unit::Bytes => (1, "B"),
                Unit::Percent => (1, "%"),
                Unit::Count => (1, ""),
            });
        format!("{}{unit}", value / factor)
    }

    fn wants(&self) -> String {
        let range = format!("{} to {}", self.text(self.least), self.text(self.most));
        match self.unit {
            Unit::Time => format!("a time from {range}, such as 500ms, 60s or 5min"),
            Unit::Bytes => format!("a size from {range}, such as 8MiB"),
            Unit::Percent => format!("a share from {range}, such as 50%"),
            Unit::Count => format!("a number from {range}"),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(&BTreeMap::new())
    }
}

impl Settings {
    /// From what was set; the rest has its default.
    pub fn of(set: &BTreeMap<String, String>) -> Self {
        let number = |name: &str| {
            let setting = Setting::find(name).expect("every name below stands in the table");
            set.get(name).and_then(|value| setting.parse(value).ok()).unwrap_or(setting.default)
        };
        let time = |name: &str| Duration::from_millis(number(name));
        Self {
            rebuild_wait: time("rebuild.wait"),
            rebuild_away_percent: number("rebuild.away"),
            lease_duration: time("lease.duration"),
            lease_renew: time("lease.renew"),
            fence_wait: time("fence.wait"),
            member_slow: time("member.slow"),
            member_lag: time("member.lag"),
            fill_bytes_in_flight: number("fill.inflight"),
            ping_interval: time("ping.interval"),
            ping_silence: time("ping.silence"),
            overcommit_percent: number("overcommit.ratio"),
            near_full_percent: number("space.near_full"),
            scrub_light: time("scrub.light"),
            scrub_deep: time("scrub.deep"),
            scrub_share_percent: u32::try_from(number("scrub.share")).unwrap_or(u32::MAX),
            suspect_blocks: number("disk.suspect"),
            disk_hang: time("disk.hang"),
            voter_wait: time("voter.wait"),
            rebalance_spread_percent: number("rebalance.spread"),
            rebalance_wait: time("rebalance.wait"),
        }
    }

    /// Whether `name` may become `value` beside what is set; gives its usual spelling.
    pub fn check(
        set: &BTreeMap<String, String>,
        name: &str,
        value: &str,
    ) -> Result<String, SettingError> {
        let setting = Setting::find(name).ok_or(SettingError::NoSuch)?;
        let text = setting.text(setting.parse(value)?);
        let mut all = set.clone();
        all.insert(name.to_string(), text.clone());
        let settings = Self::of(&all);
        if settings.lease_renew * 3 > settings.lease_duration {
            let wants = "lease.renew at most a third of lease.duration".to_string();
            return Err(SettingError::BadValue { wants });
        }
        if settings.ping_interval * 2 > settings.ping_silence {
            let wants = "ping.interval at most half of ping.silence".to_string();
            return Err(SettingError::BadValue { wants });
        }
        if settings.disk_hang > Duration::ZERO && settings.disk_hang < DISK_HANG_LEAST {
            let wants = "disk.hang at least 5s, or 0s".to_string();
            return Err(SettingError::BadValue { wants });
        }
        Ok(text)
    }
}

/// The largest first.
fn units(unit: Unit) -> &'static [(u64, &'static str)] {
    match unit {
        Unit::Time => &[(HOUR, "h"), (MINUTE, "min"), (SECOND, "s"), (1, "ms")],
        Unit::Bytes => &[(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B")],
        Unit::Percent => &[(1, "%")],
        Unit::Count => &[(1, "")],
    }
}

fn parse_with_unit(value: &str, unit: Unit) -> Option<u64> {
    let digits = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let (number, suffix) = value.split_at(digits);
    let number = number.parse::<u64>().ok()?;
    let suffix = suffix.trim_start();
    if suffix.is_empty() && (number == 0 || matches!(unit, Unit::Percent | Unit::Count)) {
        return Some(number);
    }
    let (factor, _) = units(unit).iter().find(|(_, name)| *name == suffix)?;
    number.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_within_its_range_and_reads_back() {
        for setting in SETTINGS {
            for value in [setting.default, setting.least, setting.most] {
                assert_eq!(setting.parse(&setting.text(value)), Ok(value), "{}", setting.name);
            }
        }
        let settings = Settings::default();
        assert_eq!(settings.rebuild_wait, Duration::from_secs(60));
        assert_eq!(settings.fill_bytes_in_flight, 8 << 20);
    }

    #[test]
    fn a_value_needs_its_unit_and_its_range() {
        let set = BTreeMap::new();
        let check = |name, value| Settings::check(&set, name, value);
        assert_eq!(check("rebuild.wait", "90s"), Ok("90s".to_string()));
        assert_eq!(check("rebuild.wait", "120 s"), Ok("2min".to_string()));
        assert_eq!(check("rebuild.wait", "0"), Ok("0s".to_string()));
        assert_eq!(check("fill.inflight", "200MiB"), Ok("200MiB".to_string()));
        assert_eq!(check("overcommit.ratio", "200"), Ok("200%".to_string()));
        assert_eq!(check("rebuild.wat", "1s"), Err(SettingError::NoSuch));
        for bad in ["", "s", "60", "-1s", "1.5s", "60S", "25h", "99999999999999999999h"] {
            let error = check("rebuild.wait", bad).unwrap_err().to_string();
            assert!(error.contains("0s to 24h"), "{bad}: {error}");
        }
        assert!(check("fill.inflight", "8M").is_err());
        assert!(check("lease.renew", "2s").unwrap_err().to_string().contains("a third"));
        assert!(check("ping.interval", "900ms").unwrap_err().to_string().contains("half"));
        assert!(check("disk.hang", "4999ms").unwrap_err().to_string().contains("5s"));
        assert_eq!(check("disk.hang", "5s"), Ok("5s".to_string()));
        assert_eq!(check("disk.hang", "0s"), Ok("0s".to_string()));
    }

    #[test]
    fn what_is_set_counts() {
        let set = BTreeMap::from([("rebuild.wait".to_string(), "5s".to_string())]);
        assert_eq!(Settings::of(&set).rebuild_wait, Duration::from_secs(5));
        assert_eq!(Settings::of(&set).fence_wait, Duration::from_secs(1));
    }
}
