//! How full what is bounded is.

/// Something with a named maximum, and how much of it is used. promise: bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub what: &'static str,
    pub used: u64,
    pub max: u64,
    /// It may be in use while nothing is under way.
    pub lasts: bool,
}

impl Load {
    pub fn new(what: &'static str, used: usize, max: usize) -> Self {
        let wide = |count| u64::try_from(count).unwrap_or(u64::MAX);
        Self::bytes(what, wide(used), wide(max))
    }

    pub fn bytes(what: &'static str, used: u64, max: u64) -> Self {
        Self { what, used, max, lasts: false }
    }

    pub fn that_lasts(self) -> Self {
        Self { lasts: true, ..self }
    }
}
