//! `gabion sim scale`: what a cluster of many nodes costs, and how long it takes to be whole again after the loss of a
//! rack.

use crate::failure::{Exit, Failure};
use crate::sim_args::SimScaleArgs;
use crate::size::ByteSize;
use crate::span;
use crate::verbs::show;
use gabion_api::view::table;
use gabion_sim::scale::{self, Entries, Meter, Outcome, Plan, Spent};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub fn run(args: &SimScaleArgs, as_json: bool) -> Result<(), Failure> {
    let plan = Plan {
        nodes: args.nodes,
        racks: args.racks,
        disks_per_node: args.disks,
        disk_bytes: args.disk_size.0,
        segments: args.segments,
        segments_per_volume: args.volume_segments,
        rf: args.rf,
        disk_rate: args.disk_rate.0,
        node_rate: args.node_rate.0,
    };
    let began = Instant::now();
    // As they go into the log, and as a snapshot is written.
    let bytes =
        |encoded: Result<Vec<u8>, _>| encoded.map_or(0, |bytes: Vec<u8>| bytes.len() as u64);
    let mut meter = Meter {
        clock: &mut || began.elapsed(),
        entry_bytes: &|command| bytes(serde_json::to_vec(command)),
        map_bytes: &|map| bytes(serde_json::to_vec(map)),
    };
    let outcome = scale::run(&plan, &mut meter).map_err(|refused| {
        Failure::new(Exit::Usage, refused.to_string(), "give other --nodes, --racks or sizes")
    })?;
    show(as_json, &shown_json(&plan, &outcome), || text(&plan, &outcome, began.elapsed()));
    Ok(())
}

fn text(plan: &Plan, outcome: &Outcome, took: Duration) -> String {
    let Plan { nodes, racks, segments, .. } = plan;
    let since = |at: Option<Duration>| at.map_or("never".to_owned(), span::shown);
    let [whole, most] = outcome.map_bytes.map(ByteSize);
    let copied = ByteSize(outcome.copied_bytes);
    let seconds =
        outcome.filling_began.map_or(Duration::ZERO, |began| outcome.rebuilt - began).as_secs();
    let rate = ByteSize(outcome.copied_bytes / seconds.max(1));
    let lines = [
        format!(
            "{nodes} nodes in {racks} racks, {segments} segments; a rack of {} nodes is lost",
            outcome.nodes_lost
        ),
        format!("  copies lost           {}", outcome.copies_lost),
        format!("  segments held         {}", outcome.segments_held),
        format!("  every volume owned    after {}", since(outcome.all_owned)),
        format!("  filling began         after {}", since(outcome.filling_began)),
        format!(
            "  every copy made anew  after {}: {copied} copied, {rate} a second",
            span::shown(outcome.rebuilt)
        ),
        format!("  the map as a snapshot {whole}, at most {most} on the way"),
        format!(
            "  to make the cluster   {} entries, {}",
            outcome.entries_before.count,
            ByteSize(outcome.entries_before.bytes)
        ),
        String::new(),
    ];
    let entries = outcome.entries.iter().map(|(name, it)| {
        let applied = outcome.applied.get(name).copied().unwrap_or_default();
        [
            vec![
                (*name).to_owned(),
                it.count.to_string(),
                ByteSize(it.bytes).to_string(),
                ByteSize(it.most).to_string(),
            ],
            spent_row(&applied),
        ]
        .concat()
    });
    let work = outcome.managed.iter().chain(&outcome.looks);
    let work = work
        .map(|(name, it)| [vec![(*name).to_owned(), it.times.to_string()], spent_row(it)].concat());
    let head = ["ENTRY OF THE LOG", "COUNT", "BYTES", "LARGEST", "APPLIED IN", "MEAN", "MOST"];
    [
        lines.join("\n"),
        table(&head, &entries.collect::<Vec<_>>()),
        String::new(),
        table(
            &["THE MANAGER, WHEN IT HEARS OF", "TIMES", "SUM", "MEAN", "MOST"],
            &work.collect::<Vec<_>>(),
        ),
        String::new(),
        format!(
            "{} of the manager's node in {} of the cluster's time; the simulation took {}",
            span::shown(outcome.managed.values().map(|it| it.sum).sum()),
            span::shown(outcome.rebuilt),
            span::shown(took)
        ),
    ]
    .join("\n")
}

fn spent_row(spent: &Spent) -> Vec<String> {
    let micros = |time: Duration| match time.as_micros() {
        micros @ 0..10_000 => format!("{micros} µs"),
        _ => span::shown(time),
    };
    [spent.sum, spent.mean(), spent.most].map(micros).to_vec()
}

fn shown_json(plan: &Plan, outcome: &Outcome) -> Value {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let spent = |it: &Spent| json!({ "times": it.times, "sum_us": us(it.sum), "mean_us": us(it.mean()), "most_us": us(it.most) });
    let entries = |it: &Entries| json!({ "count": it.count, "bytes": it.bytes, "largest_bytes": it.most, "refused": it.refused });
    let named = |of: &dyn Fn() -> Vec<(String, Value)>| Value::Object(of().into_iter().collect());
    json!({
        "nodes": plan.nodes,
        "racks": plan.racks,
        "segments": plan.segments,
        "nodes_lost": outcome.nodes_lost,
        "copies_lost": outcome.copies_lost,
        "segments_held": outcome.segments_held,
        "all_owned_ms": outcome.all_owned.map(ms),
        "filling_began_ms": outcome.filling_began.map(ms),
        "rebuilt_ms": ms(outcome.rebuilt),
        "copied_bytes": outcome.copied_bytes,
        "map_bytes": outcome.map_bytes[0],
        "map_bytes_most": outcome.map_bytes[1],
        "entries_before": entries(&outcome.entries_before),
        "entries": named(&|| outcome.entries.iter().map(|(name, it)| ((*name).to_owned(), entries(it))).collect()),
        "applied": named(&|| outcome.applied.iter().map(|(name, it)| ((*name).to_owned(), spent(it))).collect()),
        "managed": named(&|| outcome.managed.iter().map(|(name, it)| ((*name).to_owned(), spent(it))).collect()),
        "looks": named(&|| outcome.looks.iter().map(|(name, it)| ((*name).to_owned(), spent(it))).collect()),
    })
}
