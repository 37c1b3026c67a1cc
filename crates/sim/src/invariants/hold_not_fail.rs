//! promise: hold-not-fail. A request that can not be done now waits: it fails for want of room, where
//! its process or its volume ends, and for nothing else. Source: DESIGN 1, 4.2 ("hold"), 4.9.
//!
//! A volume's guests may bear only so long; and they ask only for what there is.

use crate::oracle::Broken;
use gabion_types::IoError;

/// What becomes of a request that failed as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It was not done, and never will be.
    NoSpace,
    /// It is asked again elsewhere; it may have been done.
    Elsewhere,
    /// It may have been done, and may still be.
    TooLong,
}

/// `ends`: the guest's process stops, or its volume is deleted. `late`: its volume's guests bear
/// to wait for a while only. Errors: it should have waited, or what it asked for is lost.
pub fn check(error: IoError, ends: bool, late: bool, what: &str) -> Result<Failed, Broken> {
    match error {
        IoError::HeldTooLong if late => Ok(Failed::TooLong),
        IoError::NoSpace => Ok(Failed::NoSpace),
        IoError::Stopping | IoError::Gone if ends => Ok(Failed::Elsewhere),
        IoError::Lost => Err(Broken { promise: "acked-survives", text: format!("{what} is lost") }),
        IoError::OutOfRange
        | IoError::Misaligned
        | IoError::TooLarge
        | IoError::HeldTooLong
        | IoError::Gone
        | IoError::Stopping => {
            Err(Broken { promise: "hold-not-fail", text: format!("{what} failed: {error}") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_or_a_full_disk_fails_a_request() {
        use IoError::{
            Gone, HeldTooLong, Lost, Misaligned, NoSpace, OutOfRange, Stopping, TooLarge,
        };
        for error in [OutOfRange, Misaligned, TooLarge, HeldTooLong, Lost] {
            assert!(check(error, true, false, "a read").is_err(), "{error}");
        }
        for error in [Gone, Stopping] {
            assert_eq!(check(error, true, false, "a read"), Ok(Failed::Elsewhere));
            assert!(check(error, false, true, "a read").is_err(), "{error}");
        }
        assert_eq!(check(HeldTooLong, false, true, "a read"), Ok(Failed::TooLong));
        assert_eq!(check(NoSpace, false, false, "a write"), Ok(Failed::NoSpace));
    }
}
