//! Two nodes with disks and a witness: any one of the three may go, and come back.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::Patience;
use gabion::writer::{Writer, WriterPlan, read_back};
use gabion_tests::fixture::wait;
use gabion_tests::{Cluster, Shape};
use std::time::Duration;

const STALL_MOST: Duration = Duration::from_secs(10);

// promise: acked-survives, majority-first, hold-not-fail
#[test]
fn any_one_of_two_nodes_and_a_witness_may_go() {
    let mut cluster = Cluster::of(Shape { nodes: 2, witness: true, ..Shape::default() });
    assert_eq!(cluster.local.ids(), [1, 2, 3]);
    cluster.create("vm1", 64);
    let plan = cluster.writer_plan("vm1", 64, 1);
    let writer = Writer::start(WriterPlan { pace: Duration::from_millis(1), ..plan });
    let acknowledged = || writer.progress().writes_acknowledged;
    wait("the first fill", Duration::from_secs(60), || writer.progress().filled);
    assert_eq!(cluster.holders("vm1"), [1, 2], "the witness holds nothing");
    for victim in [3, 2, 1] {
        writer.reset_stall();
        cluster.kill(victim);
        for _ in 0..3 {
            let before = acknowledged();
            let on = || writer.ended() || acknowledged() > before + 100;
            wait("it gets on", STALL_MOST, on);
            std::thread::sleep(Duration::from_millis(500));
        }
        assert!(!writer.ended());
        println!("without {victim}: a stall of {:?}", writer.progress().stall_most);
        cluster.start_node(victim);
        cluster.wait_healthy("vm1");
        assert_eq!(cluster.holders("vm1"), [1, 2]);
        assert!(writer.progress().stall_most < STALL_MOST);
    }
    let mut left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    for node in cluster.local.ids() {
        let address = cluster.local.nbd_tcp(node);
        read_back(&address, "vm1", &mut left.judge, Patience::default())
            .unwrap_or_else(|error| panic!("through node {node}: {error}"));
    }
    let three = cluster.gabion(&["volume", "create", "vm2", "--size", "64MiB", "--rf", "3"]);
    assert_eq!(three.code(), 5, "the witness is no place for a copy: {}", three.err);
}
