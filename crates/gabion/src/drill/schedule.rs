//! When drills begin: once, or again and again in hours in which somebody is there.

use chrono::{Datelike, Local, NaiveDateTime, Timelike, Weekday};
use std::str::FromStr;

const DAY_MINUTES: u32 = 24 * 60;

/// A part of each day, by the clock of this machine. Units: minutes from midnight; the end is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: u32,
    to: u32,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is a time of the day to a later one, such as 09:00-17:00")]
pub struct NotAWindow;

impl FromStr for Window {
    type Err = NotAWindow;

    fn from_str(typed: &str) -> Result<Self, NotAWindow> {
        let minute = |typed: &str| {
            let (hours, minutes) = typed.split_once(':')?;
            let number = |typed: &str, below: u32| {
                let digits = typed.len() == 2 && typed.bytes().all(|byte| byte.is_ascii_digit());
                digits.then(|| typed.parse::<u32>().ok())?.filter(|number| *number < below)
            };
            Some(number(hours, 25)? * 60 + number(minutes, 60)?).filter(|at| *at <= DAY_MINUTES)
        };
        let (from, to) = typed.split_once('-').ok_or(NotAWindow)?;
        match (minute(from), minute(to)) {
            (Some(from), Some(to)) if from < to => Ok(Self { from, to }),
            (Some(_) | None, Some(_) | None) => Err(NotAWindow),
        }
    }
}

impl Window {
    /// Drills may begin at this moment.
    pub fn is_open(self, weekdays: bool, now: NaiveDateTime) -> bool {
        let minute = now.hour() * 60 + now.minute();
        let is_weekday = !matches!(now.weekday(), Weekday::Sat | Weekday::Sun);
        (self.from..self.to).contains(&minute) && (is_weekday || !weekdays)
    }

    pub fn is_open_now(self, weekdays: bool) -> bool {
        self.is_open(weekdays, Local::now().naive_local())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;

    #[test]
    fn a_window_is_a_part_of_a_day() {
        assert_eq!("09:00-17:30".parse(), Ok(Window { from: 540, to: 1050 }));
        assert_eq!("00:00-24:00".parse(), Ok(Window { from: 0, to: 1440 }));
        for typed in [
            "",
            "9-17",
            "09:00",
            "17:00-09:00",
            "09:00-09:00",
            "09:60-10:00",
            "00:00-24:01",
            "+9:00-10:00",
        ] {
            assert_eq!(typed.parse::<Window>(), Err(NotAWindow), "{typed}");
        }
    }

    #[test]
    fn it_is_open_from_its_first_minute_to_before_its_last_on_its_days() {
        let window: Window = "09:00-17:00".parse().expect("a window");
        let at = |day, hour, minute| {
            let day = NaiveDate::from_ymd_opt(2026, 11, day).expect("a day");
            day.and_hms_opt(hour, minute, 0).expect("a time")
        };
        // The 27th was a Friday.
        for (day, hour, minute, open) in [
            (27, 8, 59, false),
            (27, 9, 0, true),
            (27, 16, 59, true),
            (27, 17, 0, false),
            (28, 12, 0, false),
            (29, 12, 0, false),
            (30, 12, 0, true),
        ] {
            assert_eq!(window.is_open(true, at(day, hour, minute)), open, "{day} {hour}:{minute}");
        }
        assert!(window.is_open(false, at(28, 12, 0)));
    }
}
