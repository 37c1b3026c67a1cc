//! Ways between machines are cut while guests write: it goes on within seconds where there is a
//! majority, nothing is acknowledged where there is none, and all is well when the ways are back.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Outcome, Writer, WriterPlan, read_back};
use gabion_tests::fixture::{id, wait};
use gabion_tests::machines::Machines;
use gabion_tests::net::Net;
use gabion_tests::rounds;
use std::time::{Duration, Instant};

const MIB: u64 = 64;
/// Of guests whose node is one of a majority.
const STALL_MOST: Duration = Duration::from_secs(10);

/// Three machines and a volume that a guest of node 1 filled and goes on to write.
struct Lab {
    machines: Machines,
    writer: Writer,
}

fn number(value: &serde_json::Value) -> u16 {
    id(value).and_then(|node| u16::try_from(node).ok()).expect("a node")
}

impl Lab {
    fn start(net: Net) -> Self {
        let mut machines = Machines::in_namespaces(net);
        machines.start_all();
        machines.gabion(&["volume", "create", "vm1", "--size", &format!("{MIB}MiB")]).ok();
        let writer = Writer::start(plan(&machines, &[1, 2, 3], 1));
        let lab = Self { machines, writer };
        let filled = || lab.writer.progress().filled || lab.writer.ended();
        wait("the first fill", Duration::from_secs(60), filled);
        assert_eq!(lab.owner(), 1, "its guest is there");
        lab
    }

    fn owner(&self) -> u16 {
        number(&self.machines.json(&["volume", "show", "vm1"])["owner"]["node"])
    }

    fn leader(&self) -> u16 {
        number(&self.machines.json(&["status"])["leader"])
    }

    /// Another node with a copy of the first segment.
    fn replica(&self) -> u16 {
        let shown = self.machines.json(&["volume", "show", "vm1"]);
        let members = shown["segments"][0]["in_sync"].as_array().unwrap().clone();
        let nodes = members.iter().map(|member| number(&member["node"]));
        nodes.into_iter().find(|node| *node != 1).unwrap()
    }

    /// So many more writes are acknowledged.
    #[track_caller]
    fn gets_on(&self, most: Duration) {
        let before = self.writer.progress().writes_acknowledged;
        let now = || self.writer.progress().writes_acknowledged;
        wait("it gets on", most, || self.writer.ended() || now() > before + 100);
        assert!(!self.writer.ended());
    }

    /// The ways are back: all copies are in sync again, and all that was acknowledged is there, through
    /// each node. No stall was longer than is borne.
    #[track_caller]
    fn ends_well(self) {
        self.machines.net().heal();
        self.machines.wait_healthy("vm1");
        let stall = judge(&self.machines, self.writer.stop());
        println!("longest stall {stall:?}");
        assert!(stall < STALL_MOST, "a stall of {stall:?}");
    }
}

fn plan(machines: &Machines, nodes: &[u16], seed: u64) -> WriterPlan {
    WriterPlan {
        addresses: nodes.iter().map(|node| machines.nbd_address(*node)).collect(),
        export: "vm1".to_owned(),
        first_block: 0,
        blocks: MIB << 8,
        depth: 16,
        seed,
        reads_percent: 25,
        fill_first: true,
        pace: Duration::from_millis(1),
        patience: Patience::default(),
    }
}

#[track_caller]
fn judge(machines: &Machines, mut left: Outcome) -> Duration {
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    for node in 1..=3 {
        let address = machines.nbd_address(node);
        read_back(&address, "vm1", &mut left.judge, Patience::default())
            .unwrap_or_else(|error| panic!("through node {node}: {error}"));
    }
    left.progress.stall_most
}

/// The ways between the owner and a node with a copy are cut as told, and come back.
fn the_owner_loses_a_copy(test: &str, cut: impl Fn(&Net, u16)) {
    let Some(net) = Net::of_test(test) else { return };
    let lab = Lab::start(net);
    let replica = lab.replica();
    cut(lab.machines.net(), replica);
    for _ in 0..5 {
        lab.gets_on(STALL_MOST);
        std::thread::sleep(Duration::from_secs(1));
    }
    let shown = lab.machines.json(&["volume", "show", "vm1"]);
    println!("cut from {replica}: {}", shown["health"]);
    lab.machines.net().heal();
    lab.machines.wait_healthy("vm1");
    lab.gets_on(STALL_MOST);
    lab.ends_well();
}

// promise: majority-first, acked-survives
#[test]
fn the_owner_is_cut_from_a_copy() {
    the_owner_loses_a_copy("the_owner_is_cut_from_a_copy", |net, replica| net.cut(1, replica));
}

// promise: majority-first
#[test]
fn what_the_owner_sends_does_not_arrive() {
    the_owner_loses_a_copy("what_the_owner_sends_does_not_arrive", |net, replica| {
        net.cut_one_way(1, replica);
    });
}

// promise: majority-first
#[test]
fn what_a_copy_answers_does_not_arrive() {
    the_owner_loses_a_copy("what_a_copy_answers_does_not_arrive", |net, replica| {
        net.cut_one_way(replica, 1);
    });
}

// promise: majority-first, one-owner, one-register, hold-not-fail
#[test]
fn an_owner_without_a_majority_holds_and_the_others_go_on() {
    let test = "an_owner_without_a_majority_holds_and_the_others_go_on";
    let Some(net) = Net::of_test(test) else { return };
    let mut machines = Machines::in_namespaces(net);
    machines.start_all();
    machines.gabion(&["volume", "create", "vm1", "--size", &format!("{MIB}MiB")]).ok();
    let half = MIB << 7;
    // One guest never leaves node 1, the other is at home where the majority will be.
    let stays = WriterPlan { blocks: half, ..plan(&machines, &[1], 1) };
    let stays = WriterPlan {
        patience: Patience { io: Duration::from_secs(120), ..Patience::default() },
        ..stays
    };
    let stays = Writer::start(stays);
    let filled = |writer: &Writer| {
        wait("the first fill", Duration::from_secs(60), || writer.progress().filled);
    };
    filled(&stays);
    let goes = WriterPlan { first_block: half, blocks: half, ..plan(&machines, &[2, 3], 2) };
    let goes = Writer::start(goes);
    filled(&goes);
    for _ in 0..rounds(1, 10) {
        // The guest at node 1 is what makes it the owner.
        wait("node 1 owns it", Duration::from_secs(30), || {
            number(&machines.json(&["volume", "show", "vm1"])["owner"]["node"]) == 1 || {
                machines.gabion(&["volume", "move", "vm1", "--to", "1"]);
                false
            }
        });
        machines.net().cut(1, 2);
        machines.net().cut(1, 3);
        let acknowledged = |writer: &Writer| writer.progress().writes_acknowledged;
        let dark = acknowledged(&goes);
        let took = wait("the majority goes on", STALL_MOST, || acknowledged(&goes) > dark + 100);
        println!("the majority went on after {took:?}");
        // Its lease is over by now: it acknowledges nothing more.
        let held = acknowledged(&stays);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(acknowledged(&stays), held, "acknowledged by an owner without a majority");
        assert!(!stays.ended(), "it is held, not failed");
        machines.net().heal();
        let back = Instant::now();
        wait("what was held goes on", Duration::from_secs(20), || acknowledged(&stays) > held + 50);
        println!("what was held went on {:?} after the ways were back", back.elapsed());
        machines.wait_healthy("vm1");
    }
    let (stays, goes) = (stays.stop(), goes.stop());
    judge(&machines, stays);
    let stall = judge(&machines, goes);
    assert!(stall < STALL_MOST, "a stall of {stall:?}");
}

// promise: majority-first, hold-not-fail
#[test]
fn the_leader_is_cut_from_all() {
    let Some(net) = Net::of_test("the_leader_is_cut_from_all") else { return };
    let lab = Lab::start(net);
    // So that the guest's node is one of those that stay together.
    wait("another node than the owner leads", Duration::from_secs(60), || {
        if lab.leader() != 1 {
            return true;
        }
        // The owner is moved to where the leader is not, and its guest with it: by a cut.
        lab.machines.net().cut(1, 2);
        lab.machines.net().cut(1, 3);
        std::thread::sleep(Duration::from_secs(5));
        lab.machines.net().heal();
        std::thread::sleep(Duration::from_secs(5));
        lab.leader() != 1
    });
    lab.machines.wait_healthy("vm1");
    lab.gets_on(STALL_MOST);
    lab.writer.reset_stall();
    let leader = lab.leader();
    let others: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
    others.iter().for_each(|other| lab.machines.net().cut(leader, *other));
    for _ in 0..5 {
        lab.gets_on(STALL_MOST);
        std::thread::sleep(Duration::from_secs(1));
    }
    lab.ends_well();
}

// promise: hold-not-fail
/// Two that see only the third: no election storm, and no removal back and forth.
#[test]
fn two_that_do_not_see_each_other_share_a_third() {
    let Some(net) = Net::of_test("two_that_do_not_see_each_other_share_a_third") else { return };
    let lab = Lab::start(net);
    let apart = [[1, 2], [2, 3], [1, 3]];
    for [one, other] in apart {
        lab.machines.net().cut(one, other);
        let mut leaders = vec![];
        let until = Instant::now() + Duration::from_secs(12);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(300));
            let said = lab.machines.gabion(&["--json", "status"]);
            let Ok(status) = serde_json::from_str::<serde_json::Value>(&said.out) else { continue };
            let Some(leader) = id(&status["leader"]) else { continue };
            if leaders.last() != Some(&leader) {
                leaders.push(leader);
            }
        }
        println!("{one} and {other} apart: leaders {leaders:?}");
        assert!(leaders.len() <= 2, "an election storm: {leaders:?}");
        lab.gets_on(STALL_MOST);
        lab.machines.net().heal();
        lab.machines.wait_healthy("vm1");
    }
    lab.ends_well();
}

// promise: hold-not-fail, acked-survives
/// A way that comes and goes each second: what is copied is at most each segment once, and what was
/// written while a copy was away.
#[test]
fn a_way_that_flaps_costs_one_copy_at_most() {
    let Some(net) = Net::of_test("a_way_that_flaps_costs_one_copy_at_most") else { return };
    let lab = Lab::start(net);
    let replica = lab.replica();
    let written = lab.writer.progress().bytes_acknowledged;
    let until = Instant::now() + Duration::from_secs(rounds(20, 120) as u64);
    while Instant::now() < until {
        lab.machines.net().cut(1, replica);
        std::thread::sleep(Duration::from_secs(1));
        lab.machines.net().heal();
        std::thread::sleep(Duration::from_secs(1));
    }
    lab.gets_on(STALL_MOST);
    lab.machines.wait_healthy("vm1");
    let written = lab.writer.progress().bytes_acknowledged - written;
    let disks = lab.machines.json(&["disk", "list"]);
    let disks = disks["disks"].as_array().unwrap().iter();
    let filled: u64 = disks.map(|disk| disk["filled_bytes"].as_u64().unwrap()).sum();
    println!("{} MiB copied, {} MiB written meanwhile", filled >> 20, written >> 20);
    assert!(filled <= (MIB << 20) + written, "more than one full copy: {filled} bytes");
    lab.ends_well();
}

// promise: hold-not-fail, acked-survives
#[test]
fn lost_packets_slow_and_break_nothing() {
    let Some(net) = Net::of_test("lost_packets_slow_and_break_nothing") else { return };
    let lab = Lab::start(net);
    lab.machines.net().lose(5);
    let until = Instant::now() + Duration::from_secs(rounds(15, 60) as u64);
    while Instant::now() < until {
        lab.gets_on(STALL_MOST);
    }
    lab.ends_well();
}
