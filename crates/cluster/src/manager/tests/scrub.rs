//! Volumes are scrubbed so often as the settings say, whoever leads.

use super::{Input, ME, Rig, millis};
use crate::command::{AdminReply, AdminRequest, Change};
use crate::map::tests::Small;
use gabion_types::{NodeId, ScrubFound, ScrubKind};

const DAY_MS: u64 = 24 * 3600 * 1000;
const START_MS: u64 = 1_700_000_000_000;

fn wanted(rig: &Rig) -> Vec<ScrubKind> {
    let kinds = rig.proposed.iter().filter_map(|(_, change)| {
        if let Change::WantScrub { kind, .. } = change { Some(*kind) } else { None }
    });
    kinds.collect()
}

/// So that a test can jump over days, no lease ends meanwhile.
fn jump(rig: &mut Rig, ms: u64) {
    let now = rig.now.nanos() / 1_000_000 + ms;
    rig.handle(Input::WallClock { unix_ms: START_MS + now });
    rig.live(millis(1_100), &[]);
}

fn done(rig: &mut Rig, at_ms: u64) {
    let ask = rig.small.volume().scrub.wanted.unwrap();
    let (volume, owner_epoch) = (rig.small.id(), rig.small.volume().owner_epoch);
    let found = ScrubFound::default();
    rig.by(1, Change::Scrubbed { volume, owner_epoch, ask, at_ms: START_MS + at_ms, found });
    assert_eq!(rig.small.volume().scrub.wanted, None);
}

#[test]
fn the_first_is_deep_and_then_each_has_its_time() {
    let mut small = Small::with_volume(3, 2, 1);
    small.take_over(1);
    // An hour here is a minute elsewhere.
    for (name, value) in [("scrub.light", "64s"), ("scrub.deep", "336h")] {
        let (name, value) = (name.to_string(), value.to_string());
        small.by(1, Change::SetSetting { name, value });
    }
    let mut rig = Rig::new(small);
    rig.live(millis(3_000), &[]);
    assert!(wanted(&rig).is_empty(), "it does not know what time it is");
    rig.handle(Input::WallClock { unix_ms: START_MS });
    rig.live(millis(1_000), &[]);
    assert!(wanted(&rig).is_empty(), "not all at once after a start");
    rig.live(millis(3_000), &[]);
    assert_eq!(wanted(&rig), [ScrubKind::Deep]);
    rig.live(millis(5_000), &[]);
    assert_eq!(wanted(&rig).len(), 1, "it is under way");
    rig.commit();
    rig.live(millis(90_000), &[]);
    assert!(wanted(&rig).is_empty(), "its owner is at it");
    let base = rig.now.nanos() / 1_000_000;
    done(&mut rig, base);
    rig.handle(Input::WallClock { unix_ms: START_MS + base });
    rig.live(millis(60_000), &[]);
    assert!(wanted(&rig).is_empty());
    rig.live(millis(5_000), &[]);
    assert_eq!(wanted(&rig), [ScrubKind::Light]);
    rig.commit();
    done(&mut rig, base + DAY_MS);
    // The last deep one was fifteen days ago, by another leader.
    rig.lead(9);
    rig.commit();
    jump(&mut rig, 15 * DAY_MS);
    assert_eq!(wanted(&rig), [ScrubKind::Deep]);
}

/// A light one that an operator asked for is not followed by a deep one at once.
#[test]
fn the_first_deep_one_waits_for_its_day() {
    let mut small = Small::with_volume(3, 2, 1);
    small.take_over(1);
    let volume = small.id();
    small.by(1, Change::WantScrub { volume, kind: ScrubKind::Light });
    let mut rig = Rig::new(small);
    rig.handle(Input::WallClock { unix_ms: START_MS });
    done(&mut rig, 0);
    rig.live(millis(5_000), &[]);
    assert!(wanted(&rig).is_empty());
    jump(&mut rig, DAY_MS);
    assert_eq!(wanted(&rig), [ScrubKind::Deep]);
}

#[test]
fn zero_is_never() {
    let mut small = Small::with_volume(3, 2, 1);
    small.take_over(1);
    for name in ["scrub.light", "scrub.deep"] {
        let (name, value) = (name.to_string(), "0".to_string());
        small.by(1, Change::SetSetting { name, value });
    }
    let mut rig = Rig::new(small);
    rig.handle(Input::WallClock { unix_ms: START_MS });
    jump(&mut rig, 1000 * DAY_MS);
    assert!(wanted(&rig).is_empty());
}

#[test]
fn an_operator_asks_and_a_volume_without_an_owner_gets_one() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 1));
    let name = rig.small.volume().spec.name.clone();
    let number = rig.ask(AdminRequest::ScrubVolume { name, kind: ScrubKind::Light });
    rig.commit();
    assert_eq!(rig.answer(number), Some(AdminReply::Done));
    rig.live(millis(3_500), &[]);
    let takes = |(_, change): &(u64, Change)| matches!(change, Change::TakeOver { .. });
    assert!(rig.proposed.iter().any(takes));
    rig.commit();
    assert!(rig.small.volume().owner.is_some());
    let none = AdminRequest::ScrubVolume { name: "none".to_string(), kind: ScrubKind::Light };
    let number = rig.ask(none);
    assert!(matches!(rig.answer(number), Some(AdminReply::Refused(_))));
    assert!(rig.small.map.is_alive(NodeId::new(ME)));
}
