//! The cluster's answers as JSON with stable names, and as tables.
//!
//! Shape of JSON: names in snake_case, bytes and milliseconds as integers, ids as strings.

use crate::v1;
use serde_json::{Map, Value, json};

pub fn status(status: &v1::StatusResponse) -> Value {
    json!({
        "cluster_id": status.cluster_id,
        "leader": status.leader.map(|id| id.to_string()),
        "term": status.term,
        "map_index": status.map_index,
        "answered_by": status.answered_by.to_string(),
        "health": health(status.health),
        "problems": status.problems,
        "notes": status.notes,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "volumes": status.volumes.iter().map(volume).collect::<Vec<_>>(),
        "capacity": status.capacity.as_ref().map(|capacity| json!({
            "total_bytes": capacity.total_bytes,
            "used_bytes": capacity.used_bytes,
            "survives_largest_node": capacity.survives_largest_node,
            "free_bytes": capacity.free_bytes,
            "promised_bytes": capacity.promised_bytes,
        })),
        "safety": status.safety.as_ref().map(safety),
    })
}

/// What the loss of one node or disk would cost now.
pub fn safety(safety: &v1::Safety) -> Value {
    json!({
        "survives_any_node": safety.survives_any_node,
        "survives_any_disk": safety.survives_any_disk,
        "why": safety.why,
        "losses": safety.losses.iter().map(loss).collect::<Vec<_>>(),
    })
}

fn loss(loss: &v1::Loss) -> Value {
    let (kind, id) = match loss.what {
        Some(v1::loss::What::Node(node)) => ("node", node.to_string()),
        Some(v1::loss::What::Disk(disk)) => ("disk", disk.to_string()),
        None => ("unknown", String::new()),
    };
    let volume = |cost: &v1::VolumeLoss| {
        json!({
            "volume": cost.volume.to_string(),
            "name": cost.name,
            "held_segments": cost.held_segments,
            "lost_segments": cost.lost_segments,
        })
    };
    json!({
        "of": kind,
        "id": id,
        "name": loss.name,
        "stops_cluster": loss.stops_cluster,
        "volumes": loss.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}

pub fn explained(found: &v1::ExplainVolumeResponse) -> Value {
    let id = |id: Option<u32>| id.map(|id| id.to_string());
    let copying = |copying: &v1::Copying| {
        json!({
            "segment": copying.segment,
            "from": { "node": id(copying.from_node), "disk": id(copying.from_disk) },
            "to": { "node": copying.to_node.to_string(), "disk": copying.to_disk.to_string() },
            "copied_bytes": copying.copied_bytes,
            "total_bytes": copying.total_bytes,
            "waiting": copying.waiting,
        })
    };
    json!({
        "volume": found.volume.as_ref().map(volume),
        "safety": found.safety.as_ref().map(safety),
        "copying": found.copying.iter().map(copying).collect::<Vec<_>>(),
    })
}

pub fn node(node: &v1::Node) -> Value {
    let mut shown = object(json!({
        "id": node.id.to_string(),
        "name": node.name,
        "state": node_state(node),
        "zone": node.zone,
        "voter": node.voter,
        "drain": drain(node.drain),
        "drain_waits": node.drain_waits,
        "since_ms": node.since_ms,
        "leader": node.leader,
        "reachable": node.reachable,
        "api": node.api,
        "peer": node.peer,
        "nbd": node.nbd,
        "http": node.http,
        "version": node.version,
        "guests": node.guests,
        "peers": node.peers.iter().map(peer).collect::<Vec<_>>(),
        "disks": node.disks.iter().map(disk).collect::<Vec<_>>(),
    }));
    if let Some(pid) = node.pid {
        shown.insert("pid".to_owned(), json!(pid));
    }
    Value::Object(shown)
}

pub fn disk(disk: &v1::Disk) -> Value {
    json!({
        "id": disk.id.to_string(),
        "node": disk.node.to_string(),
        "uuid": disk.uuid,
        "path": disk.path,
        "state": disk_state(disk),
        "drain": drain(disk.drain),
        "to_drop": disk.to_drop,
        "suspect_blocks": disk.suspect_blocks,
        "capacity_bytes": disk.capacity_bytes,
        "used_bytes": disk.used_bytes,
        "corrupt_blocks": disk.corrupt_blocks,
        "filled_bytes": disk.filled_bytes,
        "replicas": disk.replicas,
        "free_bytes": disk.free_bytes,
        "promised_bytes": disk.promised_bytes,
        "space": disk_space(disk.space),
        "breaker": disk.breaker.as_ref().map(breaker),
        "doubted": disk.doubted.iter().map(doubted).collect::<Vec<_>>(),
    })
}

fn peer(peer: &v1::PeerBreaker) -> Value {
    json!({ "node": peer.node.to_string(), "breaker": peer.breaker.as_ref().map(breaker) })
}

fn doubted(doubt: &v1::DoubtedDisk) -> Value {
    json!({ "volume": doubt.volume, "breaker": doubt.breaker.as_ref().map(breaker) })
}

fn breaker(breaker: &v1::Breaker) -> Value {
    json!({
        "state": breaker_state(breaker.state),
        "why": breaker.why,
        "lasts_ms": breaker.lasts_ms,
    })
}

pub fn breaker_state(number: i32) -> &'static str {
    match v1::BreakerState::try_from(number) {
        Ok(v1::BreakerState::Closed) => "closed",
        Ok(v1::BreakerState::HalfOpen) => "half_open",
        Ok(v1::BreakerState::Open) => "open",
        Ok(v1::BreakerState::Unspecified) | Err(_) => "unknown",
    }
}

pub fn disk_space(space: i32) -> &'static str {
    match v1::DiskSpace::try_from(space) {
        Ok(v1::DiskSpace::Ok) => "ok",
        Ok(v1::DiskSpace::NearFull) => "near-full",
        Ok(v1::DiskSpace::Full) => "full",
        Ok(v1::DiskSpace::Unspecified) | Err(_) => "unknown",
    }
}

/// With its segments only where they were asked for: lists leave them out.
pub fn volume(volume: &v1::Volume) -> Value {
    let mut shown = json!({
        "id": volume.id.to_string(),
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "rf": volume.rf,
        "hold_ms": volume.hold_ms,
        "attach": attach(volume.attach),
        "state": volume_state(volume.state),
        "owner": volume.owner.as_ref().map(|owner| json!({
            "node": owner.node.to_string(),
            "name": owner.name,
            "epoch": owner.epoch,
        })),
        "epoch": volume.epoch,
        "health": health(volume.health),
        "segments_total": volume.segments_total,
        "segments_degraded": volume.segments_degraded,
        "segments_sharing_zones": volume.segments_sharing_zones,
        "rebuild": rebuild(volume),
        "traffic": volume.traffic.as_ref().map(traffic),
        "guests": volume.guests,
        "reasons": volume.reasons,
        "short_ms": volume.short_ms,
        "scrub": volume.scrub.as_ref().map(|scrubs| json!({
            "under_way": scrubs.under_way.as_ref().map(|scrub| json!({
                "number": scrub.number,
                "deep": scrub.deep,
                "done_bytes": scrub.done_bytes,
                "total_bytes": scrub.total_bytes,
                "found": scrub_found(scrub.found.as_ref()),
            })),
            "light": scrubs.light.as_ref().map(scrub_done),
            "deep": scrubs.deep.as_ref().map(scrub_done),
        })),
    });
    if !volume.segments.is_empty() {
        shown["segments"] = volume.segments.iter().map(segment).collect();
    }
    shown
}

pub fn recovered(name: &str, stranded: &[v1::StrandedSegment], accepted: bool) -> Value {
    let one = |one: &v1::StrandedSegment| {
        json!({
            "segment": one.segment,
            "remains": remains(one.remains()),
            "node": one.node.map(|node| node.to_string()),
            "disk": one.disk.map(|disk| disk.to_string()),
        })
    };
    let stranded: Vec<Value> = stranded.iter().map(one).collect();
    json!({ "name": name, "accepted": accepted, "stranded": stranded })
}

fn remains(remains: v1::Remains) -> &'static str {
    match remains {
        v1::Remains::Unspecified => "unknown",
        v1::Remains::Whole => "whole",
        v1::Remains::Older => "older",
        v1::Remains::Part => "part",
        v1::Remains::Nothing => "nothing",
    }
}

pub fn scrub_done(done: &v1::ScrubDone) -> Value {
    json!({
        "number": done.number,
        "at_ms": done.at_ms,
        "found": scrub_found(done.found.as_ref()),
    })
}

fn scrub_found(found: Option<&v1::ScrubFound>) -> Value {
    let found = found.copied().unwrap_or_default();
    json!({
        "compared_blocks": found.compared_blocks,
        "verified_blocks": found.verified_blocks,
        "bad_blocks": found.bad_blocks,
        "behind_blocks": found.behind_blocks,
        "mended_blocks": found.mended_blocks,
        "differing_blocks": found.differing_blocks,
        "lost_blocks": found.lost_blocks,
        "skipped": found.skipped,
    })
}

/// All zeros: nothing is to be copied.
pub fn rebuild(volume: &v1::Volume) -> Value {
    let rebuild = volume.rebuild.unwrap_or_default();
    let eta_ms = volume.rebuild.map_or(Some(0), |rebuild| rebuild.eta_ms);
    json!({
        "remaining_bytes": rebuild.remaining_bytes,
        "bytes_per_s": rebuild.bytes_per_s,
        "eta_ms": eta_ms,
    })
}

fn segment(segment: &v1::Segment) -> Value {
    let plain = |replicas: &[v1::Replica]| -> Vec<Value> {
        replicas
            .iter()
            .map(|replica| {
                json!({ "node": replica.node.to_string(), "disk": replica.disk.to_string() })
            })
            .collect()
    };
    let joining: Vec<Value> = segment
        .joining
        .iter()
        .map(|replica| {
            json!({
                "node": replica.node.to_string(),
                "disk": replica.disk.to_string(),
                "copied_bytes": replica.copied_bytes,
                "total_bytes": replica.total_bytes,
                "waiting": replica.waiting,
            })
        })
        .collect();
    let lost: Vec<Value> =
        segment.lost.iter().map(|l| json!({ "block": l.block, "count": l.count })).collect();
    json!({
        "index": segment.index,
        "in_sync": plain(&segment.in_sync),
        "joining": joining,
        "stale": plain(&segment.stale),
        "lost": lost,
        "held": segment.held,
    })
}

fn traffic(traffic: &v1::Traffic) -> Value {
    json!({
        "serving": traffic.serving,
        "held_requests": traffic.held_requests,
        "in_flight": traffic.in_flight,
        "reads": traffic.reads,
        "read_bytes": traffic.read_bytes,
        "writes": traffic.writes,
        "write_bytes": traffic.write_bytes,
        "filled_bytes": traffic.filled_bytes,
        "repaired_blocks": traffic.repaired_blocks,
    })
}

pub fn locate(found: &v1::LocateResponse) -> Value {
    let copies: Vec<Value> = found
        .copies
        .iter()
        .map(|copy| {
            json!({
                "node": copy.node.to_string(),
                "disk": copy.disk.to_string(),
                "state": replica_state(copy.state),
                "path": copy.path,
                "known": copy.known,
                "data": copy.data,
                "byte_offset": copy.byte_offset,
                "length": copy.length,
                "version": { "epoch": copy.version_epoch, "seq": copy.version_seq },
                "crc": format!("{:08x}", copy.crc),
            })
        })
        .collect();
    json!({ "segment": found.segment, "block": found.block, "copies": copies })
}

pub fn clients(found: &v1::ClientsResponse) -> Value {
    let ids = |nodes: &[u32]| nodes.iter().map(u32::to_string).collect::<Vec<_>>();
    let client = |client: &v1::VolumeClient| {
        json!({
            "id": client.id,
            "node": client.node.to_string(),
            "protocol": client.protocol,
            "from": client.from,
            "connected_ms": client.connected_ms,
            "waiting": client.waiting,
        })
    };
    let clients: Vec<Value> = found.clients.iter().map(client).collect();
    json!({ "clients": clients, "silent": ids(&found.silent), "kept_out": ids(&found.kept_out) })
}

pub fn setting(setting: &v1::Setting) -> Value {
    json!({
        "name": setting.name,
        "value": setting.value,
        "default": setting.default_value,
        "least": setting.least,
        "most": setting.most,
        "help": setting.help,
    })
}

pub fn event(event: &v1::Event) -> Value {
    json!({
        "number": event.number,
        "time_ms": event.time_ms,
        "node": event.node.to_string(),
        "severity": severity(event.severity),
        "kind": event.kind,
        "text": event.text,
        "volume": event.volume.map(|id| id.to_string()),
        "disk": event.disk.map(|id| id.to_string()),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

pub fn health(number: i32) -> &'static str {
    match v1::Health::try_from(number) {
        Ok(v1::Health::Healthy) => "healthy",
        Ok(v1::Health::Degraded) => "degraded",
        Ok(v1::Health::Held) => "held",
        Ok(v1::Health::Lost) => "lost",
        Ok(v1::Health::Unspecified) | Err(_) => "unknown",
    }
}

/// None: it is used.
fn drain(number: i32) -> Option<&'static str> {
    match v1::Drain::try_from(number) {
        Ok(v1::Drain::Draining) => Some("draining"),
        Ok(v1::Drain::Drained) => Some("drained"),
        Ok(v1::Drain::Unspecified) | Err(_) => None,
    }
}

/// Of one that is well, also whether it is being emptied.
pub fn node_state(node: &v1::Node) -> &'static str {
    match v1::NodeState::try_from(node.state) {
        Ok(v1::NodeState::Up) => drain(node.drain).unwrap_or("up"),
        Ok(v1::NodeState::Silent) => "silent",
        Ok(v1::NodeState::Unknown | v1::NodeState::Unspecified) | Err(_) => "unknown",
    }
}

/// As `node_state`.
pub fn disk_state(disk: &v1::Disk) -> &'static str {
    match v1::DiskState::try_from(disk.state) {
        Ok(v1::DiskState::InService) => match drain(disk.drain) {
            Some("draining") if disk.suspect_blocks.is_some() => "suspect",
            drain => drain.unwrap_or("in_service"),
        },
        Ok(v1::DiskState::Failed) => "failed",
        Ok(v1::DiskState::Away) => "away",
        Ok(v1::DiskState::Missing) => "missing",
        Ok(v1::DiskState::Unspecified) | Err(_) => "unknown",
    }
}

pub fn volume_state(number: i32) -> &'static str {
    match v1::VolumeState::try_from(number) {
        Ok(v1::VolumeState::Creating) => "creating",
        Ok(v1::VolumeState::Ready) => "ready",
        Ok(v1::VolumeState::Deleting) => "deleting",
        Ok(v1::VolumeState::Unspecified) | Err(_) => "unknown",
    }
}

pub fn replica_state(number: i32) -> &'static str {
    match v1::ReplicaState::try_from(number) {
        Ok(v1::ReplicaState::InSync) => "in_sync",
        Ok(v1::ReplicaState::Joining) => "joining",
        Ok(v1::ReplicaState::Stale) => "stale",
        Ok(v1::ReplicaState::Unspecified) | Err(_) => "unknown",
    }
}

fn attach(number: i32) -> &'static str {
    match v1::Attach::try_from(number) {
        Ok(v1::Attach::Exclusive) => "exclusive",
        Ok(v1::Attach::Any | v1::Attach::Unspecified) | Err(_) => "any",
    }
}

pub fn severity(number: i32) -> &'static str {
    match v1::Severity::try_from(number) {
        Ok(v1::Severity::Info) => "info",
        Ok(v1::Severity::Warn) => "warn",
        Ok(v1::Severity::Error) => "error",
        Ok(v1::Severity::Unspecified) | Err(_) => "unknown",
    }
}

/// Columns as wide as their widest cell, two spaces between; numbers are the caller's to align.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([head[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| -> String {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_strings_and_absent_things_are_null() {
        let shown = volume(&v1::Volume { id: 7, name: "vm1".into(), rf: 2, ..Default::default() });
        assert_eq!(shown["id"], "7");
        assert_eq!(shown["owner"], Value::Null);
        assert_eq!(shown["health"], "unknown");
        let shown = node(&v1::Node { id: 3, ..Default::default() });
        assert!(shown.get("pid").is_none());
    }

    #[test]
    fn tables_align() {
        let rows =
            vec![vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID   NAME\na    bb\nccc");
    }
}
