//! Nodes that are told to stop, as an upgrade does one after another: each hands over before it goes.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::Cluster;
use gabion_tests::fixture::wait;
use rustix::process::Signal;
use std::time::Duration;

const STALL_MOST: Duration = Duration::from_millis(500);
const LEAVE_MOST: Duration = Duration::from_secs(20);

// rule: node/leaves-the-write-sets-first
// promise: acked-survives, hold-not-fail
#[test]
fn nodes_are_restarted_in_turn_under_load() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 64);
    let plan = cluster.writer_plan("vm1", 64, 1);
    let writer = Writer::start(WriterPlan { pace: Duration::from_millis(1), ..plan });
    wait("the first fill", Duration::from_secs(60), || writer.progress().filled);
    for node in cluster.local.ids() {
        writer.reset_stall();
        cluster.signal(node, Signal::TERM);
        let gone = || cluster.local.pid(node).is_none();
        wait("it leaves by itself", LEAVE_MOST, gone);
        let before = writer.progress().writes_acknowledged;
        let on = || writer.ended() || writer.progress().writes_acknowledged > before + 100;
        wait("it gets on", LEAVE_MOST, on);
        cluster.start_node(node);
        cluster.wait_healthy("vm1");
        let stall = writer.progress().stall_most;
        println!("restart of {node}: a stall of {stall:?}");
        assert!(stall < STALL_MOST, "restart of {node}: a stall of {stall:?}");
    }
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    let address = cluster.local.nbd_tcp(1);
    read_back(&address, "vm1", &mut left.judge, Patience::default()).unwrap();
}
