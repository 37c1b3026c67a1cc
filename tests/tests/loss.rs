//! More is lost than copies: what had all is gone for good, and an operator says to go on with what is left.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::{NbdClient, NbdError, Request};
use gabion_tests::fixture::wait;
use gabion_tests::{Cluster, Shape};
use serde_json::{Value, json};
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);
const BLOCK: u32 = 4096;
const REFUSED: i32 = 5;
const EIO: u32 = 5;

fn one_segment(nodes: u32, witness: bool) -> Cluster {
    let cluster = Cluster::of(Shape { nodes, witness, ..Shape::default() });
    cluster.create("vm1", 32);
    cluster
}

/// Once every copy that had all is gone.
fn stranded(cluster: &Cluster) -> Value {
    let told = || cluster.json(&["volume", "recover", "vm1"]);
    wait("nobody has all", MOST, || !told()["stranded"].as_array().unwrap().is_empty());
    let told = told();
    assert_eq!(told["accepted"], json!(false), "it only tells");
    told["stranded"].clone()
}

fn healthy_reads(cluster: &Cluster, node: u32, wanted: u8) {
    let mut guest = cluster.client(node, "vm1").unwrap();
    assert_eq!(guest.read(0, BLOCK).unwrap(), [wanted; BLOCK as usize], "through node {node}");
    guest.disconnect();
}

fn lost(guest: &mut NbdClient, offset: u64) -> bool {
    matches!(guest.read(offset, BLOCK), Err(NbdError::Failed(EIO)))
}

// promise: hold-not-fail
// rule: cluster/only-what-is-stranded-is-given-up
#[test]
fn an_older_copy_serves_only_by_an_operators_word() {
    let mut cluster = one_segment(2, true);
    let mut guest = cluster.client(1, "vm1").unwrap();
    guest.write(0, &[1; BLOCK as usize]).unwrap();
    cluster.kill(2);
    cluster.wait_removed("vm1", 2);
    guest.write(0, &[2; BLOCK as usize]).unwrap();
    guest.disconnect();
    let early = cluster.gabion(&["volume", "recover", "vm1", "--accept-loss"]);
    assert_eq!(early.code(), REFUSED, "the copy that has all is there: {}", early.out);
    assert!(early.err.contains("nothing to accept"), "{}", early.err);

    cluster.kill(1);
    cluster.start_node(2);
    let left = stranded(&cluster);
    assert_eq!(
        left,
        json!([{ "segment": 0, "remains": "older", "node": "2", "disk": left[0]["disk"] }])
    );
    let why = cluster.show("vm1")["reasons"].to_string();
    assert!(why.contains("gabion volume recover vm1"), "{why}");
    // An old value is not served by itself: whoever comes waits at the door.
    assert!(cluster.client(2, "vm1").is_err());
    assert_eq!(cluster.show("vm1")["health"], "held");

    cluster.gabion(&["volume", "recover", "vm1", "--accept-loss"]).ok();
    let mut guest = cluster.client(2, "vm1").unwrap();
    let read = guest.read(0, BLOCK).unwrap();
    assert_eq!(read, [1; BLOCK as usize], "as it was when it left");
    guest.write(u64::from(BLOCK), &[3; BLOCK as usize]).unwrap();
    guest.disconnect();
    let events = cluster.gabion(&["events"]).ok();
    assert!(events.contains("by an operator's word"), "{events}");

    // The one that had all is back: it counts no more.
    cluster.start_node(1);
    cluster.wait_healthy("vm1");
    assert_eq!(cluster.holders("vm1"), [1, 2]);
    for node in [1, 2] {
        healthy_reads(&cluster, node, 1);
    }
    cluster.kill(2);
    healthy_reads(&cluster, 1, 1);
    let again = cluster.gabion(&["volume", "recover", "vm1", "--accept-loss"]);
    assert_eq!(again.code(), REFUSED, "{}", again.out);
}

// promise: no-silent-corruption
// rule: volume/what-a-survivor-lacks-is-lost
#[test]
fn where_nothing_is_left_reads_fail_until_it_is_written() {
    let mut cluster = one_segment(5, false);
    let [one, other] = cluster.holders("vm1")[..] else { panic!("two copies") };
    let front = cluster.local.ids().into_iter().find(|node| ![one, other].contains(node)).unwrap();
    let mut guest = cluster.client(one, "vm1").unwrap();
    guest.write(0, &[1; BLOCK as usize]).unwrap();
    guest.disconnect();
    cluster.kill(one);
    cluster.kill(other);
    let left = stranded(&cluster);
    assert_ne!(left[0]["remains"], "older", "{left}");
    let name = one.to_string();
    let removed = cluster.gabion(&["node", "remove", &name, "--force"]);
    assert_eq!(removed.code(), REFUSED, "{}", removed.out);
    assert!(removed.err.contains("gabion volume recover"), "{}", removed.err);

    cluster.gabion(&["volume", "recover", "vm1", "--accept-loss"]).ok();
    let mut guest = cluster.client(front, "vm1").unwrap();
    let last = (32 << 20) - u64::from(BLOCK);
    for offset in [0, 5 << 20, last] {
        assert!(lost(&mut guest, offset), "never zeros: {offset}");
    }
    guest.write(0, &[4; BLOCK as usize]).unwrap();
    assert_eq!(guest.read(0, BLOCK).unwrap(), [4; BLOCK as usize]);
    assert!(lost(&mut guest, u64::from(BLOCK)), "what is beside it is lost as before");
    // Its owner tells of it within a moment.
    wait("it is listed", MOST, || cluster.show("vm1")["health"] == "lost");
    guest.call(Request::Trim { offset: 0, length: 32 << 20 }).unwrap();
    for offset in [0, 5 << 20, last] {
        assert_eq!(guest.read(offset, BLOCK).unwrap(), [0; BLOCK as usize]);
    }
    guest.write(0, &[5; BLOCK as usize]).unwrap();
    guest.disconnect();
    // With two of five away nothing is copied; with one of four it is.
    cluster.gabion(&["node", "remove", &name, "--force"]).ok();
    cluster.wait_healthy("vm1");
    cluster.start_node(other);
    cluster.wait_healthy("vm1");
    healthy_reads(&cluster, other, 5);
}
