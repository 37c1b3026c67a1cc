//! Every request completes exactly once, where it was asked. Source: DESIGN 4.9; STYLE, "Cores are
//! pure": a completion brings its token back exactly once.

use crate::oracle::Broken;
use gabion_node::GuestId;
use std::collections::BTreeSet;

/// Requests by their guest's connection and their tag.
#[derive(Debug, Default)]
pub struct ExactlyOnce {
    open: BTreeSet<(GuestId, u64)>,
}

impl ExactlyOnce {
    /// Errors: it is open already.
    pub fn asked(&mut self, guest: GuestId, tag: u64) -> Result<(), Broken> {
        let new = self.open.insert((guest, tag));
        if new { Ok(()) } else { Err(broken(guest, tag, "was asked twice")) }
    }

    /// Errors: it was answered before, or never asked.
    pub fn answered(&mut self, guest: GuestId, tag: u64) -> Result<(), Broken> {
        let known = self.open.remove(&(guest, tag));
        if known { Ok(()) } else { Err(broken(guest, tag, "was answered and is not open")) }
    }

    /// Its connection is gone: nothing of it may be answered any more.
    pub fn gone(&mut self, guest: GuestId) {
        self.open.retain(|(other, _)| *other != guest);
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }
}

fn broken(guest: GuestId, tag: u64, what: &str) -> Broken {
    Broken { promise: "exactly-once", text: format!("request {tag} of {guest:?} {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_answer_is_found() {
        let (guest, mut requests) = (GuestId(7), ExactlyOnce::default());
        requests.asked(guest, 1).expect("it is new");
        requests.asked(guest, 2).expect("it is new");
        assert!(requests.asked(guest, 2).is_err());
        requests.answered(guest, 1).expect("it is open");
        assert!(requests.answered(guest, 1).is_err());
        requests.gone(guest);
        assert!(requests.answered(guest, 2).is_err());
        assert_eq!(requests.open(), 0);
    }
}
