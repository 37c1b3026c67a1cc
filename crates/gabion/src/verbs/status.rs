//! `gabion status`, `disk list`, `events`.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::size::ByteSize;
use crate::span;
use crate::verbs::show;
use gabion_api::v1;
use gabion_api::view;
use serde_json::{Value, json};
use std::time::Duration;

const WATCH_EVERY: Duration = Duration::from_secs(1);

pub fn run(remote: &Remote, watch: bool, as_json: bool) -> Result<(), Failure> {
    loop {
        let status = remote.status();
        match status {
            Ok(status) => {
                if watch && !as_json {
                    // Home, and clear what is below: no flicker.
                    print!("\x1b[H\x1b[J");
                }
                show(as_json, &view::status(&status), || text(&status));
            }
            Err(failure) if watch => eprintln!("{failure}"),
            Err(failure) => return Err(failure),
        }
        if !watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn text(status: &v1::StatusResponse) -> String {
    let mut parts = vec![headline(status)];
    parts.extend(status.problems.iter().map(|problem| format!("  - {problem}")));
    parts.extend(status.notes.iter().map(|note| format!("  * {note}")));
    parts.push(String::new());
    parts.push(nodes(&status.nodes));
    parts.push(String::new());
    parts.push(if status.volumes.is_empty() {
        "no volumes; `gabion volume create NAME --size 1GiB` makes one".to_owned()
    } else {
        volumes(&status.volumes)
    });
    if let Some(safety) = &status.safety {
        parts.push(String::new());
        parts.extend(safety_lines(safety));
    }
    if let Some(capacity) = &status.capacity {
        let fits = if capacity.survives_largest_node { "would" } else { "would NOT" };
        let percent = u128::from(capacity.promised_bytes) * 100;
        let percent = percent / u128::from(capacity.total_bytes.max(1));
        parts.push(format!(
            "{} of {} used, {} left for new data; {} promised to volumes ({percent} %); all data {fits} still fit, with all copies, after the loss of the largest node",
            ByteSize(capacity.used_bytes),
            ByteSize(capacity.total_bytes),
            ByteSize(capacity.free_bytes),
            ByteSize(capacity.promised_bytes)
        ));
    }
    parts.join("\n")
}

/// Yes or no, and why not.
pub fn safety_lines(safety: &v1::Safety) -> Vec<String> {
    let (node, disk) = (safety.survives_any_node, safety.survives_any_disk);
    let yes = |survives: bool| if survives { "yes" } else { "NO" };
    let mut lines = vec![format!(
        "survives the loss of any one node: {}; of any one disk: {}",
        yes(node),
        yes(disk)
    )];
    lines.extend(safety.why.iter().map(|why| format!("  - {why}")));
    lines
}

fn headline(status: &v1::StatusResponse) -> String {
    let leader = match status.leader {
        Some(leader) => format!("node {leader} leads"),
        None => "nobody leads: no majority".to_owned(),
    };
    format!("cluster {}: {}; {leader}", status.cluster_id, view::health(status.health))
}

pub fn nodes(nodes: &[v1::Node]) -> String {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                node.id.to_string(),
                node.name.clone(),
                view::node_state(node).to_owned(),
                if node.voter { "yes" } else { "-" }.to_owned(),
                span::shown(Duration::from_millis(node.since_ms)),
                node.pid.map_or(String::new(), |pid| pid.to_string()),
                node.disks.len().to_string(),
                node.guests.to_string(),
                without(node),
                node.api.clone(),
                node.nbd.clone(),
            ]
        })
        .collect();
    view::table(
        &[
            "NODE", "NAME", "STATE", "VOTE", "SINCE", "PID", "DISKS", "GUESTS", "WITHOUT", "API",
            "NBD",
        ],
        &rows,
    )
}

/// The peers that a node does without, or tries again.
fn without(node: &v1::Node) -> String {
    if node.peers.is_empty() {
        return if node.reachable { "-" } else { "?" }.to_owned();
    }
    let state = |peer: &v1::PeerBreaker| {
        view::breaker_state(peer.breaker.as_ref().map_or(0, |it| it.state))
    };
    let open = node.peers.iter().filter(|peer| state(peer) == "open");
    let without: Vec<String> = open.map(|peer| peer.node.to_string()).collect();
    if without.is_empty() { "-".to_owned() } else { without.join(", ") }
}

/// Why a disk is not used, or by whom: a line each.
fn reasons(disk: &v1::Disk) -> Vec<String> {
    let line = |who: &str, breaker: Option<&v1::Breaker>| {
        let breaker = breaker.filter(|breaker| !breaker.why.is_empty())?;
        let (state, why) = (view::breaker_state(breaker.state).replace('_', "-"), &breaker.why);
        let lasts = span::shown(Duration::from_millis(breaker.lasts_ms));
        Some(format!("disk {} is {state} for {who}, for {lasts}: {why}", disk.id))
    };
    let own = line("its node", disk.breaker.as_ref());
    let owners = disk.doubted.iter();
    let owners = owners
        .filter_map(|doubt| line(&format!("volume {}", doubt.volume), doubt.breaker.as_ref()));
    own.into_iter().chain(owners).collect()
}

pub fn volumes(volumes: &[v1::Volume]) -> String {
    let rows: Vec<Vec<String>> = volumes
        .iter()
        .map(|volume| {
            let owner = volume.owner.as_ref().map_or("-".to_owned(), |owner| owner.name.clone());
            vec![
                volume.name.clone(),
                ByteSize(volume.size_bytes).to_string(),
                volume.rf.to_string(),
                match v1::VolumeState::try_from(volume.state) {
                    Ok(v1::VolumeState::Ready) => view::health(volume.health).to_owned(),
                    Ok(_) | Err(_) => view::volume_state(volume.state).to_owned(),
                },
                owner,
                volume.guests.to_string(),
                rebuild(volume),
            ]
        })
        .collect();
    view::table(&["VOLUME", "SIZE", "RF", "HEALTH", "OWNER", "GUESTS", "REBUILD"], &rows)
}

pub fn rebuild(volume: &v1::Volume) -> String {
    let Some(rebuild) = &volume.rebuild else { return String::new() };
    let left = ByteSize(rebuild.remaining_bytes);
    match rebuild.eta_ms {
        Some(eta) => format!(
            "{left} left, {}/s, done in {}",
            ByteSize(rebuild.bytes_per_s),
            span::shown(Duration::from_millis(eta))
        ),
        None => format!("{left} to copy, waiting"),
    }
}

pub fn disks(remote: &Remote, as_json: bool) -> Result<(), Failure> {
    let disks = remote.disks()?;
    let shown: Vec<Value> = disks.iter().map(view::disk).collect();
    let known = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |b| ByteSize(b).to_string());
    show(as_json, &json!({ "disks": shown }), || {
        let rows: Vec<Vec<String>> = disks
            .iter()
            .map(|disk| {
                vec![
                    disk.id.to_string(),
                    disk.node.to_string(),
                    view::disk_state(disk).to_owned(),
                    ByteSize(disk.capacity_bytes).to_string(),
                    known(disk.used_bytes),
                    known(disk.free_bytes),
                    ByteSize(disk.promised_bytes).to_string(),
                    view::disk_space(disk.space).to_owned(),
                    disk.replicas.to_string(),
                    disk.corrupt_blocks.map_or("?".to_owned(), |count| count.to_string()),
                    disk.breaker.as_ref().map_or("?".to_owned(), |breaker| {
                        view::breaker_state(breaker.state).replace('_', "-")
                    }),
                    disk.path.clone(),
                ]
            })
            .collect();
        let table = view::table(
            &[
                "DISK", "NODE", "STATE", "SIZE", "USED", "FREE", "PROMISED", "SPACE", "REPLICAS",
                "CORRUPT", "BREAKER", "PATH",
            ],
            &rows,
        );
        [table].into_iter().chain(disks.iter().flat_map(reasons)).collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

/// JSON: one object a line.
pub fn events(remote: &Remote, follow: bool, as_json: bool) -> Result<(), Failure> {
    remote.events(follow, |event| {
        show(as_json, &view::event(&event), || {
            format!(
                "{}  node {}  {:5}  {:16}  {}",
                clock(event.time_ms),
                event.node,
                view::severity(event.severity),
                event.kind,
                event.text
            )
        });
    })
}

/// In UTC, to the millisecond.
fn clock(time_ms: u64) -> String {
    let at = i64::try_from(time_ms).ok().and_then(chrono::DateTime::from_timestamp_millis);
    at.map_or_else(|| time_ms.to_string(), |at| at.format("%F %H:%M:%S%.3fZ").to_string())
}
