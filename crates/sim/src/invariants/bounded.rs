//! promise: bounded. Nothing that has a named bound goes over it. Source: DESIGN 1, 6.

use crate::oracle::Broken;
use gabion_types::Load;

/// Errors: what is over its bound.
pub fn check(loads: &[Load]) -> Result<(), Broken> {
    match loads.iter().find(|load| load.used > load.max) {
        Some(Load { what, used, max, .. }) => {
            Err(Broken { promise: "bounded", text: format!("{what}: {used} of {max}") })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_not_over() {
        assert_eq!(check(&[Load::new("requests", 8, 8)]), Ok(()));
        assert!(check(&[Load::new("requests", 3, 8), Load::new("guests", 9, 8)]).is_err());
    }
}
