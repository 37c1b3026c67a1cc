//! Spans of time as people type and read them.

use std::str::FromStr;
use std::time::Duration;

/// Typed as `120s`, `500ms`, `2m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is a whole number and a unit, ms, s, m or h, such as 120s")]
pub struct NotASpan;

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(typed: &str) -> Result<Self, NotASpan> {
        let digits = typed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = typed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| NotASpan)?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60 * 1000,
            "h" => 3600 * 1000,
            _ => return Err(NotASpan),
        };
        number.checked_mul(unit_ms).map(Duration::from_millis).map(Self).ok_or(NotASpan)
    }
}

/// In the largest unit that says it with two digits or more.
pub fn shown(span: Duration) -> String {
    let ms = span.as_millis();
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!("120s".parse(), Ok(Span(Duration::from_secs(120))));
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("2m".parse(), Ok(Span(Duration::from_secs(120))));
        for typed in ["", "120", "s", "-1s", "1.5s", "99999999999999999999h"] {
            assert_eq!(typed.parse::<Span>(), Err(NotASpan), "{typed}");
        }
    }

    #[test]
    fn times_are_shown_short() {
        assert_eq!(shown(Duration::from_millis(42)), "42 ms");
        assert_eq!(shown(Duration::from_millis(4250)), "4.2 s");
        assert_eq!(shown(Duration::from_secs(600)), "10 min");
        assert_eq!(shown(Duration::from_secs(90_000)), "25 h");
    }
}
