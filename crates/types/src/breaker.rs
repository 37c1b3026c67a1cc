//! Whether a peer or a disk is asked anything, told in three words. It is derived from what its user acts
//! on, never kept beside it: there is no second opinion.
//!
//! Source: M. Nygard, "Release It!", the pattern Circuit Breaker.

use crate::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker<Why> {
    /// It is asked.
    Closed,
    /// Nothing is asked of it, since then.
    Open { since: Instant, why: Why },
    /// It is being tried again; what `why` says kept it from being asked, since then.
    HalfOpen { since: Instant, why: Why },
}

/// The names that operators read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

/// A breaker as it was at one moment, for who shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerSeen {
    pub state: BreakerState,
    /// Empty: it is closed.
    pub why: String,
    /// For how long it has not been closed.
    pub lasts: Duration,
}

impl<Why: ToString> Breaker<Why> {
    pub fn seen(&self, now: Instant) -> BreakerSeen {
        let (state, since, why) = match self {
            Self::Closed => (BreakerState::Closed, now, String::new()),
            Self::Open { since, why } => (BreakerState::Open, *since, why.to_string()),
            Self::HalfOpen { since, why } => (BreakerState::HalfOpen, *since, why.to_string()),
        };
        BreakerSeen { state, why, lasts: now.since(since) }
    }
}

impl BreakerState {
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// For metrics: the worse, the larger.
    pub fn level(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_why_and_for_how_long_it_is_not_closed() {
        let (then, now) = (Instant::from_nanos(1), Instant::from_nanos(1_000_000_001));
        let closed = Breaker::<&str>::Closed.seen(now);
        assert_eq!((closed.state, closed.lasts), (BreakerState::Closed, Duration::ZERO));
        assert!(closed.why.is_empty());
        let open = Breaker::Open { since: then, why: "it is slow" }.seen(now);
        let half = Breaker::HalfOpen { since: then, why: "it is slow" }.seen(now);
        assert_eq!((open.state, half.state), (BreakerState::Open, BreakerState::HalfOpen));
        for seen in [open, half] {
            assert_eq!((seen.why.as_str(), seen.lasts), ("it is slow", Duration::from_secs(1)));
        }
    }

    #[test]
    fn the_worse_is_the_larger() {
        let levels = BreakerState::ALL.map(BreakerState::level);
        assert_eq!(levels, [0, 1, 2]);
        assert!(BreakerState::ALL.is_sorted());
    }
}
