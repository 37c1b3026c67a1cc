//! How full what is bounded is.

/// Something with a named maximum, and how much of it is used. promise: bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub what: &'static str,
    pub used: u64,
    pub max: u64,
}

impl Load {
    pub fn new(what: &'static str, used: usize, max: usize) -> Self {
        let wide = |count| u64::try_from(count).unwrap_or(u64::MAX);
        Self { what, used: wide(used), max: wide(max) }
    }
}
