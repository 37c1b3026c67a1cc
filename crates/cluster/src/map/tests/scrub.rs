//! Scrubs that are wanted, and what came of them.

use super::{DONE, Small, refused};
use crate::command::Change;
use crate::event::Fact;
use gabion_types::{Epoch, RefusedChange, ScrubAsk, ScrubFound, ScrubKind, VolumeId};

const FOUND: ScrubFound = ScrubFound {
    compared_blocks: 9,
    verified_blocks: 18,
    bad_blocks: 1,
    behind_blocks: 0,
    mended_blocks: 1,
    differing_blocks: 0,
    lost_blocks: 0,
    skipped: 0,
};

fn want(small: &Small, kind: ScrubKind) -> Change {
    Change::WantScrub { volume: small.id(), kind }
}

fn ask(number: u64, kind: ScrubKind) -> ScrubAsk {
    ScrubAsk { number, kind }
}

// rule: cluster/scrubbed-by-its-owner
#[test]
fn what_the_owner_found_is_kept_and_raises_no_epoch() {
    let mut small = Small::with_volume(3, 2, 1);
    let volume = small.id();
    small.take_over(1);
    let (epoch, owner_epoch) = (small.volume().epoch, small.volume().owner_epoch);
    assert_eq!(small.by(2, want(&small, ScrubKind::Deep)), DONE);
    let wanted = ask(1, ScrubKind::Deep);
    assert_eq!(small.map.view(volume).unwrap().scrub, Some(wanted));
    let done =
        |ask, owner_epoch| Change::Scrubbed { volume, owner_epoch, ask, at_ms: 77, found: FOUND };
    assert_eq!(small.by(2, done(wanted, owner_epoch)), refused(RefusedChange::NotOwner));
    assert_eq!(small.by(1, done(wanted, Epoch::ZERO)), refused(RefusedChange::OtherEpoch));
    let other = ask(2, ScrubKind::Deep);
    assert_eq!(small.by(1, done(other, owner_epoch)), refused(RefusedChange::Invalid));
    assert_eq!(small.by(1, done(wanted, owner_epoch)), DONE);
    let scrub = small.volume().scrub;
    assert_eq!((scrub.wanted, scrub.light, scrub.last), (None, scrub.deep, 1));
    assert_eq!(scrub.deep.map(|deep| (deep.at_ms, deep.found)), Some((77, FOUND)));
    let fact = Fact::Scrubbed { volume, kind: ScrubKind::Deep, found: FOUND };
    assert_eq!(small.map.events().next_back().map(|event| &event.what), Some(&fact));
    assert_eq!(small.volume().epoch, epoch);
    let nothing = Change::WantScrub { volume: VolumeId::new(9), kind: ScrubKind::Deep };
    assert_eq!(small.by(1, nothing), refused(RefusedChange::NotFound));
}

#[test]
fn one_under_way_is_enough_if_it_looks_at_as_much() {
    let mut small = Small::with_volume(3, 2, 1);
    let mut wanted = |kind| {
        small.by(1, want(&small, kind));
        small.volume().scrub.wanted
    };
    let light = Some(ask(1, ScrubKind::Light));
    assert_eq!((wanted(ScrubKind::Light), wanted(ScrubKind::Light)), (light, light));
    let deep = Some(ask(2, ScrubKind::Deep));
    assert_eq!((wanted(ScrubKind::Deep), wanted(ScrubKind::Light)), (deep, deep));
}

/// A map from before there were scrubs can be read.
#[test]
fn an_older_map_has_none() {
    let mut small = Small::with_volume(3, 2, 1);
    let mut entry = serde_json::to_value(small.volume()).unwrap();
    entry.as_object_mut().unwrap().remove("scrub");
    let read: crate::map::VolumeEntry = serde_json::from_value(entry).unwrap();
    assert_eq!(&read, small.volume());
    small.by(1, want(&small, ScrubKind::Light));
    assert_ne!(&read, small.volume());
}
