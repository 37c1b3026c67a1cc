//! Processes die, freeze and come back under load: nothing acknowledged is lost, nothing flips back.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::judge::{Judge, fill};
use gabion::nbd_client::{NbdClient, NbdError, Patience, Request};
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::command::Started;
use gabion_tests::fixture::{program, wait};
use gabion_tests::{Cluster, needs, rounds, run};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

const STALL_MOST: Duration = Duration::from_secs(10);
/// Exit codes.
const NOT_FOUND: i32 = 4;
const REFUSED: i32 = 5;

fn paced(plan: WriterPlan) -> WriterPlan {
    WriterPlan { pace: Duration::from_millis(1), ..plan }
}

/// All that was acknowledged, through each node.
#[track_caller]
fn all_is_there(cluster: &Cluster, volume: &str, judge: &mut Judge) {
    for node in cluster.local.ids() {
        let address = cluster.local.nbd_tcp(node);
        read_back(&address, volume, judge, Patience::default())
            .unwrap_or_else(|error| panic!("through node {node}: {error}"));
    }
}

#[track_caller]
fn wait_filled(writer: &Writer) {
    wait("the first fill", Duration::from_secs(60), || writer.progress().filled || writer.ended());
    assert!(!writer.ended());
}

/// The guest gets on: so many more writes are acknowledged.
#[track_caller]
fn gets_on(writer: &Writer, most: Duration) {
    let before = writer.progress().writes_acknowledged;
    let went_on = || writer.ended() || writer.progress().writes_acknowledged > before + 100;
    gabion::process::wait_for(most, went_on);
    let now = writer.progress();
    assert!(now.writes_acknowledged > before + 100, "it stands still: {now:?}");
}

/// It may have missed anything: what it says is what the cluster knows when it was asked.
#[test]
fn a_node_that_hung_does_not_answer_from_what_it_knew() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let apis = cluster.local.api_addresses();
    let asks = |node: u32, arguments: &[&str]| {
        let mut command = Command::new(program());
        let api = &apis[node as usize - 1];
        run(command.args(["--json", "--cluster", api]).args(arguments), Duration::from_secs(20))
    };
    for node in cluster.local.ids() {
        let other = node % 3 + 1;
        cluster.signal(node, Signal::STOP);
        // One that leads is followed by another meanwhile.
        let name = format!("made{node}");
        wait("the others decide something", Duration::from_secs(30), || {
            let made = asks(other, &["volume", "create", &name, "--size", "8MiB"]);
            made.status.success() || made.code() == REFUSED
        });
        cluster.signal(node, Signal::CONT);
        wait("it has heard the leader", Duration::from_secs(10), || {
            let shown = asks(node, &["volume", "show", &name]);
            assert_ne!(shown.code(), NOT_FOUND, "node {node} says so: {}", shown.err);
            shown.status.success()
        });
        cluster.wait_healthy("vm1");
    }
}

// promise: hold-not-fail
#[test]
fn fio_verifies_while_the_other_nodes_die_in_turn() {
    if !needs(&["fio"]) {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.create("vm1", 192);
    let uri = cluster.unix(1, "vm1");
    let mut fio = Started::start(Command::new("fio").args([
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--iodepth=16",
        "--size=192M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=4096",
        "--verify_state_save=0",
        "--do_verify=1",
        "--time_based",
        "--runtime=40",
    ]));
    wait("fio attached", Duration::from_secs(20), || cluster.owner("vm1").is_some());
    assert_eq!(cluster.owner("vm1"), Some(1), "the node that the guest attached to");
    let until = Instant::now() + Duration::from_secs(30);
    // Those that died while fio ran and came back before it ended.
    let mut killed = BTreeSet::new();
    for node in [2, 3].into_iter().cycle() {
        std::thread::sleep(Duration::from_secs(2));
        if Instant::now() >= until || !fio.running() {
            break;
        }
        cluster.kill(node);
        cluster.wait_removed("vm1", node);
        cluster.start_node(node);
        cluster.wait_healthy("vm1");
        if fio.running() {
            killed.insert(node);
        }
    }
    assert_eq!(killed, BTreeSet::from([2, 3]), "each of the others is to die under fio");
    let ran = fio.finish(Duration::from_secs(180));
    assert!(ran.status.success(), "{}\n{}", ran.out, ran.err);
    assert!(!ran.err.contains("verify:"), "{}", ran.err);
    cluster.wait_healthy("vm1");
}

// promise: acked-survives, one-register, one-owner
#[test]
fn the_owner_dies_under_a_writer_that_remembers() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 128);
    let writer = Writer::start(paced(cluster.writer_plan("vm1", 128, 1)));
    wait_filled(&writer);
    for _ in 0..rounds(3, 20) {
        let owner = cluster.owner("vm1").expect("a guest is attached");
        cluster.kill(owner);
        gets_on(&writer, Duration::from_secs(20));
        cluster.start_node(owner);
        cluster.wait_healthy("vm1");
        gets_on(&writer, Duration::from_secs(20));
    }
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    let stall = left.progress.stall_most;
    assert!(stall < STALL_MOST, "a stall of {stall:?}");
    all_is_there(&cluster, "vm1", &mut left.judge);
}

// promise: majority-first
#[test]
fn a_node_with_a_copy_dies_and_the_survivors_fill_a_new_one() {
    let mut cluster = Cluster::start();
    cluster.set("rebuild.wait", "1s");
    cluster.create("vm1", 128);
    let writer = Writer::start(paced(cluster.writer_plan("vm1", 128, 1)));
    wait_filled(&writer);
    let owner = cluster.owner("vm1");
    let victim = cluster.holders("vm1").into_iter().find(|node| Some(*node) != owner).unwrap();
    cluster.kill(victim);
    cluster.wait_removed("vm1", victim);
    cluster.wait_healthy("vm1");
    assert!(!cluster.holders("vm1").contains(&victim));
    gets_on(&writer, Duration::from_secs(10));
    cluster.start_node(victim);
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    all_is_there(&cluster, "vm1", &mut left.judge);
}

// promise: acked-survives, self-describing
#[test]
fn all_nodes_die_at_once_under_load() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 128);
    let mut judge = None;
    for _ in 0..rounds(2, 10) {
        let plan = WriterPlan { fill_first: judge.is_none(), ..cluster.writer_plan("vm1", 128, 1) };
        let writer = Writer::start_with(WriterPlan { seed: fresh_seed(), ..plan }, judge.take());
        wait_filled(&writer);
        gets_on(&writer, Duration::from_secs(20));
        cluster.kill_all();
        let dark = Instant::now();
        cluster.start_all();
        gets_on(&writer, Duration::from_secs(20).saturating_sub(dark.elapsed()));
        cluster.wait_healthy("vm1");
        let mut left = writer.stop();
        assert_eq!(left.wrong, None);
        all_is_there(&cluster, "vm1", &mut left.judge);
        judge = Some(left.judge);
    }
}

/// Writers that follow each other on one region name their writes differently.
fn fresh_seed() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(100);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A front end freezes with writes on their way; the guest overwrites through another node; when the
/// front end goes on, nothing old lands.
fn a_frozen_front_end(front: u32, first: u32) {
    const BLOCKS: usize = 64;
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let attached = cluster.client(first, "vm1").unwrap();
    assert_eq!(cluster.owner("vm1"), Some(first));
    let mut judge = Judge::new(0, BLOCKS);
    let mut guest = cluster.client(front, "vm1").unwrap();
    let write = |guest: &mut NbdClient, judge: &mut Judge, label: u64, block: usize| {
        let block_u64 = u64::try_from(block).unwrap();
        judge.begin(label, block_u64, 1);
        let data = fill(label, block_u64, 1);
        guest.submit(Request::Write { offset: block_u64 * 4096, data: &data, fua: false })
    };
    for round in 0..u64::try_from(rounds(3, 30)).unwrap() {
        let label =
            |block: usize, late: u64| 1 + round * 1000 + late * 500 + u64::try_from(block).unwrap();
        // Half of them on their way when the node freezes, half still in its socket.
        for block in 0..BLOCKS / 2 {
            write(&mut guest, &mut judge, label(block, 0), block).unwrap();
        }
        cluster.signal(front, Signal::STOP);
        for block in BLOCKS / 2..BLOCKS {
            write(&mut guest, &mut judge, label(block, 0), block).unwrap();
        }
        drop(guest);
        let other = cluster.local.ids().into_iter().find(|node| ![front, first].contains(node));
        let mut elsewhere = connect_somewhere(&cluster, other.unwrap());
        for block in 0..BLOCKS {
            write(&mut elsewhere, &mut judge, label(block, 1), block).unwrap();
        }
        for _ in 0..BLOCKS {
            let completion = elsewhere.receive().unwrap();
            assert_eq!(completion.result, Ok(Vec::new()));
        }
        for block in 0..BLOCKS {
            judge.acknowledge(label(block, 1), u64::try_from(block).unwrap(), 1);
        }
        cluster.signal(front, Signal::CONT);
        let soon = Instant::now() + Duration::from_secs(2);
        while Instant::now() < soon {
            let data = elsewhere.read(0, u32::try_from(BLOCKS * 4096).unwrap()).unwrap();
            judge.check(0, &data).unwrap();
        }
        cluster.wait_healthy("vm1");
        for node in cluster.local.ids() {
            let mut reader = connect_somewhere(&cluster, node);
            let data = reader.read(0, u32::try_from(BLOCKS * 4096).unwrap()).unwrap();
            judge.check(0, &data).unwrap_or_else(|wrong| panic!("through node {node}: {wrong}"));
        }
        guest = connect_somewhere(&cluster, front);
    }
    drop(attached);
}

/// The handshake waits for the frozen node's session to be voided.
#[track_caller]
fn connect_somewhere(cluster: &Cluster, node: u32) -> NbdClient {
    let patience = Patience { handshake: Duration::from_secs(20), io: Duration::from_secs(20) };
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let connected = NbdClient::connect(&cluster.local.nbd_tcp(node), "vm1", patience);
        match connected {
            Ok(client) => return client,
            Err(NbdError::Socket(_) | NbdError::Refused { .. }) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => panic!("through node {node}: {error}"),
        }
    }
}

// promise: one-register
#[test]
fn nothing_old_lands_from_a_frozen_forwarder() {
    a_frozen_front_end(2, 1);
}

// promise: one-owner
#[test]
fn nothing_old_lands_from_a_frozen_owner() {
    a_frozen_front_end(1, 1);
}

#[test]
fn a_stopped_cluster_goes_on_from_where_it_was() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let writer = Writer::start(cluster.writer_plan("vm1", 64, 2));
    wait_filled(&writer);
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert_eq!(cluster.local.stop(), Vec::<u32>::new(), "all stop by themselves");
    cluster.start_all();
    cluster.wait_healthy("vm1");
    let holders = cluster.holders("vm1");
    assert!(holders.len() >= 2, "no member was removed by a clean stop: {holders:?}");
    all_is_there(&cluster, "vm1", &mut left.judge);
}

#[test]
fn the_demo_holds_all_its_checks() {
    let program = gabion_tests::fixture::program();
    let mut demo = Command::new(program);
    demo.args(["demo", "--json", "--base-port-offset", "15000"]);
    let ran = run(&mut demo, Duration::from_secs(150));
    assert!(ran.status.success(), "{}\n{}", ran.out, ran.err);
    let told = ran.json();
    let checks = told["checks"].as_array().unwrap();
    assert!(checks.len() >= 15 && checks.iter().all(|check| check["holds"] == true), "{told}");
    let figure = |name: &str| told["figures"][name].as_u64().unwrap();
    assert_eq!(figure("writes_lost"), 0, "{told}");
    assert!(figure("writes_acknowledged") > 1000 && figure("rebuilt_bytes") > 0, "{told}");
    assert!(figure("delta_bytes") > 0 && figure("delta_bytes") < figure("full_copy_bytes"));
}

/// By the owner, which has no majority any more, and by a node that has no owner any more.
// promise: hold-not-fail
// rule: node/nobody-answers-for-too-long
#[test]
fn guests_that_bear_a_while_hear_that_nobody_answers() {
    let mut cluster = Cluster::start();
    cluster.gabion(&["volume", "create", "vm1", "--size", "32MiB", "--hold", "3s"]).ok();
    let mut near = cluster.client(1, "vm1").unwrap();
    near.write(0, &[1; 4096]).unwrap();
    let mut far = cluster.client(3, "vm1").unwrap();
    far.write(4096, &[2; 4096]).unwrap();
    assert_eq!(cluster.owner("vm1"), Some(1));
    let bears = Duration::from_secs(3);
    let fails = |guest: &mut NbdClient| {
        let began = Instant::now();
        let answer = guest.write(0, &[3; 4096]);
        let took = began.elapsed();
        assert!(matches!(answer, Err(NbdError::Failed(5))), "{answer:?}");
        assert!(took >= bears && took < 4 * bears, "{took:?}");
    };
    cluster.kill(2);
    cluster.signal(3, Signal::STOP);
    fails(&mut near);
    cluster.signal(3, Signal::CONT);
    cluster.start_node(2);
    cluster.wait_healthy("vm1");
    near.write(0, &[4; 4096]).unwrap();

    let mut far = cluster.client(3, "vm1").unwrap();
    assert_eq!(far.read(0, 4096).unwrap(), [4; 4096]);
    cluster.kill(1);
    cluster.kill(2);
    fails(&mut far);
    cluster.start_node(1);
    cluster.start_node(2);
    cluster.wait_healthy("vm1");
    far.write(0, &[5; 4096]).unwrap();
    assert_eq!(far.read(0, 4096).unwrap(), [5; 4096]);
}
