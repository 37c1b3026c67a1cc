//! Zeroes and trims: written only where something is.

use crate::DONE;
use crate::bench::{Bench, disk, node, view};
use gabion_types::{GuestData, GuestOp, Instant};
use gabion_volume::{Input, Ticket};
use gabion_wire::ReplicaOp;

/// Zeroes over the first 16 blocks.
fn zero_all(bench: &mut Bench, ticket: u64) {
    let op = GuestOp::Zero { range: bench.block(0, 16), fua: false };
    bench.feed(Input::Guest { ticket: Ticket(ticket), op });
}

fn zeroes(bench: &Bench, id: u32) -> Vec<(u32, u32)> {
    let mut zeroes = Vec::new();
    for op in bench.asked_of(id) {
        if let ReplicaOp::Zero { range, .. } = op {
            zeroes.push((range.first().get(), range.count()));
        }
    }
    zeroes
}

// rule: volume/zeroes-only-where-something-is
// promise: bounded
#[test]
fn zeroes_cost_nothing_where_nothing_is() {
    let mut bench = Bench::serving(view());
    zero_all(&mut bench, 1);
    // The own disk is looked at, and that is all.
    assert!(bench.asked_of(2).is_empty());
    assert!(matches!(bench.asked_of(1)[..], [ReplicaOp::Scan { .. }]));
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), DONE);
    assert!(bench.asked.is_empty());
    let (first, second) = (bench.block(3, 1), bench.block(6, 2));
    bench.write(2, first, 1);
    bench.write(3, second, 1);
    bench.answer_all();
    zero_all(&mut bench, 4);
    bench.answer_disk(1);
    assert_eq!((zeroes(&bench, 1), zeroes(&bench, 2)), (vec![(3, 5)], vec![(3, 5)]));
    assert_eq!(bench.done.get(&4), None);
    bench.answer_all();
    assert_eq!(bench.done.get(&4), DONE);
    bench.read(5, bench.block(0, 16));
    bench.answer_all();
    let Some(Ok(GuestData::Read(data))) = bench.done.get(&5) else { panic!("{:?}", bench.done) };
    assert!(data.iter().all(|byte| *byte == 0));
    // Holes are there now.
    zero_all(&mut bench, 6);
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&6), DONE);
    assert!(bench.asked.is_empty());
}

// rule: volume/zeroes-only-where-something-is
// rule: volume/lease-after-the-data
// promise: one-register
#[test]
fn that_nothing_is_there_counts_under_the_lease_and_from_a_member_only() {
    let mut bench = Bench::serving(view());
    zero_all(&mut bench, 1);
    bench.feed(Input::Lease { until: bench.now });
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), None, "another owner may have written since");
    bench.feed(Input::Lease { until: Instant::from_nanos(u64::MAX) });
    assert_eq!(bench.asked_of(1).len(), 1, "it is looked at anew");
    // Meanwhile that disk is no member any more.
    bench.feed(Input::NodeDown { node: node(2) });
    bench.asked.retain(|asked| asked.ask.disk == disk(1));
    bench.commit(|view| {
        view.segments[0].in_sync = vec![disk(2)];
    });
    bench.answer_disk(1);
    assert_eq!(bench.done.get(&1), None);
    bench.feed(Input::LinkUp { node: node(2) });
    bench.answer_all();
    assert_eq!(bench.done.get(&1), DONE);
}
