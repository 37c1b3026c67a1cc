//! Operators' requests, from the question to the answer.

use super::{ME, Rig, millis};
use crate::command::{AdminError, AdminReply, AdminRequest, Change, VolumeSpec};
use crate::manager::{Effect, Input};
use crate::map::tests::{GIB, MIB, Small};
use gabion_types::{NodeId, Outcome, OwnerChange, RefusedChange};

fn create(name: &str, size_bytes: u64, rf: u8) -> AdminRequest {
    AdminRequest::CreateVolume { spec: Small::spec(name, size_bytes, rf), near: None }
}

fn delete(force: bool) -> AdminRequest {
    AdminRequest::DeleteVolume { name: "vm".to_string(), force }
}

fn resize(size_bytes: u64) -> AdminRequest {
    AdminRequest::ResizeVolume { name: "vm".to_string(), size_bytes }
}

fn move_to(to: u32) -> AdminRequest {
    AdminRequest::MoveVolume { name: "vm".to_string(), to: NodeId::new(to) }
}

fn set(name: &str, value: &str) -> AdminRequest {
    AdminRequest::SetSetting { name: name.to_string(), value: value.to_string() }
}

fn refused(error: AdminError) -> Option<AdminReply> {
    Some(AdminReply::Refused(error))
}

#[test]
fn a_volume_is_created_when_every_disk_has_recorded_it() {
    let mut rig = Rig::new(Small::new(3, 1));
    let asked = rig.ask(create("vm", 5 * MIB, 2));
    assert_eq!(rig.commit(), 1);
    assert_eq!(rig.answer(asked), None);
    let volume = rig.small.id();
    rig.small.record(1, volume);
    rig.small.record(2, volume);
    rig.handle(Input::Applied);
    assert_eq!(rig.answer(asked), None);
    rig.small.record(3, volume);
    rig.handle(Input::Applied);
    assert_eq!(rig.answer(asked), Some(AdminReply::Created { volume }));
}

#[test]
fn bad_requests_are_refused_at_once_and_by_name() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 4));
    let most = rig.small.map.volume_bytes_max();
    let long = "x".repeat(256);
    let cases = [
        (create("", MIB, 2), AdminError::BadName),
        (create(".x", MIB, 2), AdminError::BadName),
        (create("a b", MIB, 2), AdminError::BadName),
        (create(&long, MIB, 2), AdminError::BadName),
        (create("vm", MIB, 2), AdminError::NameTaken),
        (create("a", MIB, 0), AdminError::BadRf),
        (create("a", MIB, 4), AdminError::BadRf),
        (create("a", 0, 2), AdminError::BadSize { most }),
        (create("a", 4095, 2), AdminError::BadSize { most }),
        (create("a", most + 4096, 2), AdminError::BadSize { most }),
        (resize(5), AdminError::BadSize { most }),
        (resize(3 * MIB), AdminError::Shrinks { size_bytes: 4 * MIB }),
        (move_to(9), AdminError::NoNode),
        (set("a.b", "1s"), AdminError::NoSetting),
    ];
    for (request, error) in cases {
        let text = format!("{request:?}");
        let asked = rig.ask(request);
        assert_eq!(rig.answer(asked), refused(error), "{text}");
        assert!(rig.proposed.is_empty());
    }
    let asked = rig.ask(set("rebuild.wait", "soon"));
    let Some(AdminReply::Refused(AdminError::BadValue { value, wants })) = rig.answer(asked) else {
        panic!("it is no time")
    };
    assert_eq!(value, "soon");
    assert!(wants.contains("60s"), "{wants}");
}

#[test]
fn unknown_volumes_are_refused() {
    let mut rig = Rig::new(Small::new(3, 1));
    for request in [delete(true), resize(MIB), move_to(1)] {
        let asked = rig.ask(request);
        assert_eq!(rig.answer(asked), refused(AdminError::NoVolume));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_numbers() {
    let mut rig = Rig::new(Small::new(2, 1));
    let asked = rig.ask(create("a", MIB, 3));
    let error = AdminError::TooFewNodes { wanted: 3, nodes: 2 };
    assert_eq!(rig.answer(asked), refused(error));
    let asked = rig.ask(create("a", 2 * GIB, 2));
    let error = AdminError::NoRoom { wanted_bytes: 2 * GIB, free_bytes: GIB, rf: 2 };
    assert_eq!(rig.answer(asked), refused(error), "it could never be written full");
    rig.small.silence(2);
    let asked = rig.ask(create("a", MIB, 2));
    let error = AdminError::TooFewNodes { wanted: 2, nodes: 1 };
    assert_eq!(rig.answer(asked), refused(error));
}

#[test]
fn who_does_not_lead_says_who_does() {
    let mut rig = Rig::following(Small::new(3, 1));
    let asked = rig.ask(create("vm", MIB, 2));
    assert_eq!(rig.answer(asked), refused(AdminError::NotLeader { leader: None }));
    let leader = Some(NodeId::new(3));
    rig.handle(Input::Leader { term: 5, leader });
    let asked = rig.ask(create("vm", MIB, 2));
    assert_eq!(rig.answer(asked), refused(AdminError::NotLeader { leader }));
}

#[test]
fn without_a_majority_a_request_ends_after_ten_seconds() {
    let mut rig = Rig::new(Small::new(3, 1));
    let asked = rig.ask(create("vm", MIB, 2));
    rig.pass(millis(9_999));
    assert_eq!(rig.answer(asked), None);
    rig.pass(millis(1));
    assert_eq!(rig.answer(asked), refused(AdminError::NoMajority));
    rig.commit();
    assert_eq!(rig.answer(asked), None, "once");
}

#[test]
fn a_disk_that_does_not_record_is_named() {
    let mut rig = Rig::new(Small::new(2, 1));
    let asked = rig.ask(create("vm", MIB, 2));
    rig.commit();
    let volume = rig.small.id();
    rig.small.record(1, volume);
    rig.pass(millis(10_000));
    let waiting = rig.small.map.disks().iter().find(|(_, disk)| disk.node == NodeId::new(2));
    let waiting = vec![*waiting.unwrap().0];
    assert_eq!(rig.answer(asked), refused(AdminError::StillMaking { waiting }));
}

// rule: cluster/a-leader-answers-from-its-own-term-on
#[test]
fn a_new_leader_answers_when_it_has_heard_what_was_decided_before() {
    let mut rig = Rig::following(Small::with_volume(3, 2, 2));
    rig.lead(5);
    let asked = rig.ask(create("vm", MIB, 2));
    assert_eq!(rig.answer(asked), None, "that it is deleted is on its way, may be");
    let volume = rig.small.id();
    rig.small.by(2, Change::DeleteVolume { volume, force: true });
    rig.commit();
    rig.commit();
    rig.small.record_all(rig.small.id());
    rig.handle(Input::Applied);
    assert!(matches!(rig.answer(asked), Some(AdminReply::Created { .. })));

    let mut rig = Rig::following(Small::new(3, 1));
    rig.lead(5);
    let all: Vec<u64> = (0..65).map(|_| rig.ask(create("vm", MIB, 2))).collect();
    let me = Some(NodeId::new(ME));
    assert_eq!(rig.answer(all[64]), refused(AdminError::NotLeader { leader: me }), "a bound");
    let leader = Some(NodeId::new(2));
    rig.handle(Input::Leader { term: 6, leader });
    assert_eq!(rig.answer(all[0]), refused(AdminError::NotLeader { leader }));
}

#[test]
fn a_plan_that_the_map_outran_is_made_anew() {
    let mut rig = Rig::new(Small::new(3, 1));
    let asked = rig.ask(create("vm", MIB, 2));
    rig.small.silence(2);
    assert_eq!(rig.commit(), 2, "the second without the silent node");
    rig.small.record_all(rig.small.id());
    rig.handle(Input::Applied);
    assert!(matches!(rig.answer(asked), Some(AdminReply::Created { .. })));

    let asked = rig.ask(create("vm2", MIB, 2));
    let spec = VolumeSpec { name: "vm2".to_string(), ..Small::spec("vm2", MIB, 1) };
    let placement = vec![vec![rig.small.volume().segments[0].in_sync[0]]];
    rig.by(1, Change::CreateVolume { spec, placement });
    rig.commit();
    assert_eq!(rig.answer(asked), refused(AdminError::NameTaken), "that is no better next time");
}

#[test]
fn a_volume_grows() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 2));
    let asked = rig.ask(resize(2 * MIB));
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
    let asked = rig.ask(resize(4 * MIB));
    assert_eq!(rig.commit(), 1);
    assert_eq!(rig.answer(asked), None);
    let second = rig.ask(resize(8 * MIB));
    assert_eq!(rig.answer(second), refused(AdminError::Map(RefusedChange::Busy)));
    rig.small.record_all(rig.small.id());
    rig.handle(Input::Applied);
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
    assert_eq!(rig.small.volume().spec.size_bytes, 4 * MIB);
    let asked = rig.ask(resize(4 * GIB));
    assert!(matches!(rig.answer(asked), Some(AdminReply::Refused(AdminError::NoRoom { .. }))));
}

fn release(rig: &mut Rig) -> Outcome {
    let epoch = rig.small.volume().epoch;
    let outcome = rig.small.owner(OwnerChange::Release { epoch, clean: true });
    rig.handle(Input::Applied);
    outcome
}

fn ask_release(rig: &Rig, node: u32, idle: bool) -> Effect {
    Effect::AskRelease { node: NodeId::new(node), volume: rig.small.id(), idle }
}

#[test]
fn an_idle_volume_is_let_go_and_deleted_an_attached_one_is_not() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 2));
    rig.small.take_over(2);
    rig.handle(Input::Applied);
    let asked = rig.ask(delete(false));
    let wanted = ask_release(&rig, 2, true);
    assert!(rig.effects.contains(&wanted));
    assert!(rig.proposed.is_empty());
    rig.live(millis(3_750), &[]);
    assert_eq!(rig.answer(asked), None);
    rig.live(millis(250), &[]);
    assert_eq!(rig.answer(asked), refused(AdminError::Attached));

    let asked = rig.ask(delete(false));
    release(&mut rig);
    rig.live(millis(1_000), &[]);
    rig.small.take_over(3);
    rig.handle(Input::Applied);
    rig.live(millis(4_500), &[]);
    assert_eq!(rig.answer(asked), refused(AdminError::Attached), "a guest's node took it again");
    assert!(rig.small.map.volume_by_name("vm").is_some());

    let asked = rig.ask(delete(false));
    release(&mut rig);
    rig.live(millis(1_250), &[]);
    assert!(rig.proposed.is_empty());
    rig.live(millis(250), &[]);
    assert_eq!(rig.commit(), 1);
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
    assert_eq!(rig.small.map.volume_by_name("vm"), None);
}

#[test]
fn force_does_not_ask() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 2));
    rig.small.take_over(2);
    let asked = rig.ask(delete(true));
    rig.commit();
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
}

#[test]
fn a_volume_moves_when_its_owner_let_it_go() {
    let mut rig = Rig::new(Small::with_volume(3, 2, 2));
    rig.small.take_over(2);
    let here = rig.ask(move_to(2));
    assert_eq!(rig.answer(here), Some(AdminReply::Done));
    let asked = rig.ask(move_to(3));
    let wanted = ask_release(&rig, 2, false);
    assert!(rig.effects.contains(&wanted));
    release(&mut rig);
    // A guest's node was quicker: the owner is asked once more.
    rig.small.take_over(1);
    rig.commit();
    let wanted = ask_release(&rig, 1, false);
    assert!(rig.effects.contains(&wanted));
    release(&mut rig);
    rig.commit();
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
    assert_eq!(rig.small.volume().owner.unwrap().0, NodeId::new(3));

    let asked = rig.ask(move_to(2));
    rig.live(millis(4_100), &[]);
    assert_eq!(rig.answer(asked), refused(AdminError::NotReleased));
    rig.small.silence(2);
    let asked = rig.ask(move_to(2));
    let away = AdminError::NodeAway { node: NodeId::new(2) };
    assert_eq!(rig.answer(asked), refused(away));
}

#[test]
fn a_setting_is_set_through_the_log() {
    let mut rig = Rig::new(Small::new(3, 1));
    let asked = rig.ask(set("rebuild.wait", "7s"));
    assert_eq!(rig.answer(asked), None);
    rig.commit();
    assert_eq!(rig.answer(asked), Some(AdminReply::Done));
    assert_eq!(rig.small.map.settings().rebuild_wait, millis(7000));
}

#[test]
fn requests_are_bounded() {
    let mut rig = Rig::new(Small::new(3, 1));
    let first = rig.ask(set("rebuild.wait", "7s"));
    for _ in 1..super::super::admin::JOBS_MAX {
        rig.ask(set("rebuild.wait", "7s"));
    }
    let asked = rig.ask(set("rebuild.wait", "7s"));
    assert_eq!(rig.answer(asked), refused(AdminError::TooMany));
    rig.commit();
    assert_eq!(rig.answer(first), Some(AdminReply::Done));
    assert!(rig.small.map.is_alive(NodeId::new(ME)));
}
