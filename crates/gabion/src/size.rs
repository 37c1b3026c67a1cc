//! Sizes as people type and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Typed as `20GiB`, `512MiB` or plain bytes; shown in binary units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error(
        "{typed} could mean {binary} ({binary_bytes} bytes) or {decimal_bytes} bytes: write one of the two"
    )]
    Ambiguous { typed: String, binary: String, binary_bytes: u64, decimal_bytes: u64 },
    #[error("a size is a number and a unit, KiB, MiB, GiB or TiB, such as 20GiB, or plain bytes")]
    NotASize,
    #[error("a size fits in 64 bits")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(typed: &str) -> Result<Self, SizeError> {
        let digits = typed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = typed.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::NotASize);
        }
        let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
        let unit = unit.trim_start();
        if unit.is_empty() || unit == "B" {
            return Ok(Self(number));
        }
        if let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) {
            return number.checked_mul(*bytes).map(Self).ok_or(SizeError::TooLarge);
        }
        Err(ambiguous(typed, number, unit).unwrap_or(SizeError::NotASize))
    }
}

/// `10G`, `10g` and `10GB` are 10 GiB to some and 10^10 bytes to others.
fn ambiguous(typed: &str, number: u64, unit: &str) -> Option<SizeError> {
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix('B').unwrap_or(&upper);
    let power = ["K", "M", "G", "T"].iter().position(|known| *known == letter)?;
    let exponent = u32::try_from(power + 1).expect("four units");
    Some(SizeError::Ambiguous {
        typed: typed.to_owned(),
        binary: format!("{number}{letter}iB"),
        binary_bytes: number.checked_mul(1024u64.pow(exponent))?,
        decimal_bytes: number.checked_mul(1000u64.pow(exponent))?,
    })
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((name, unit)) = UNITS.iter().find(|(_, unit)| self.0 >= *unit) else {
            return write!(f, "{} B", self.0);
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        if rest == 0 {
            return write!(f, "{whole} {name}");
        }
        let tenths = u128::from(rest) * 10 / u128::from(*unit);
        write!(f, "{whole}.{tenths} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_units_and_plain_bytes_are_sizes() {
        for (typed, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("512B", 512),
            ("1KiB", 1024),
            ("20GiB", 20 << 30),
            ("3 TiB", 3 << 40),
        ] {
            assert_eq!(typed.parse(), Ok(ByteSize(bytes)), "{typed}");
        }
    }

    #[test]
    fn a_unit_with_two_meanings_is_refused_naming_both() {
        for typed in ["10G", "10g", "10GB", "10gb"] {
            let error = typed.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains("10GiB (10737418240 bytes)"), "{error}");
            assert!(error.contains("10000000000 bytes"), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for typed in ["", "GiB", "-1GiB", "1.5GiB", "1PiB", "ten"] {
            assert_eq!(typed.parse::<ByteSize>(), Err(SizeError::NotASize), "{typed}");
        }
        for typed in ["99999999999999999999", "99999999999TiB"] {
            assert_eq!(typed.parse::<ByteSize>(), Err(SizeError::TooLarge), "{typed}");
        }
        assert!("99999999999T".parse::<ByteSize>().is_err());
    }

    #[test]
    fn shown_with_one_digit_behind_the_point() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 30, "20 GiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
    }
}
