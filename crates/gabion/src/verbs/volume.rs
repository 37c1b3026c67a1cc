//! `gabion volume`.

use crate::bar::Bar;
use crate::cli::{AttachMode, VolumeVerb};
use crate::failure::{Exit, Failure};
use crate::remote::Remote;
use crate::size::ByteSize;
use crate::span::{self, Span};
use crate::verbs::{accept_loss, clients, explain, scrub, show, status};
use gabion_api::v1;
use gabion_api::view;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const WAIT_LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn run(remote: &Remote, verb: &VolumeVerb, as_json: bool) -> Result<(), Failure> {
    match verb {
        VolumeVerb::Create { name, size, rf, hold, attach } => {
            let request = v1::CreateVolumeRequest {
                name: name.clone(),
                size_bytes: size.0,
                rf: *rf,
                hold_ms: parse_hold(hold)?,
                attach: match attach {
                    AttachMode::Any => v1::Attach::Any.into(),
                    AttachMode::Exclusive => v1::Attach::Exclusive.into(),
                },
            };
            let volume = remote.create(request)?;
            show(as_json, &view::volume(&volume), || {
                format!("{name}: {size}, {rf} copies; nbd://HOST:PORT/{name} at any node")
            });
            Ok(())
        }
        VolumeVerb::List => list(remote, as_json),
        VolumeVerb::Show { name } => {
            let volume = remote.volume(name)?;
            show(as_json, &view::volume(&volume), || text(&volume));
            Ok(())
        }
        VolumeVerb::Explain { name } => explain::run(remote, name, as_json),
        VolumeVerb::Wait { name, healthy: _, timeout } => wait(remote, name, *timeout, as_json),
        VolumeVerb::Locate { name, offset } => {
            let found = remote.locate(name, offset.0)?;
            show(as_json, &view::locate(&found), || located(&found));
            Ok(())
        }
        VolumeVerb::Resize { name, size } => {
            let volume = remote.resize(name, size.0)?;
            show(as_json, &view::volume(&volume), || format!("{name}: {size}"));
            Ok(())
        }
        VolumeVerb::Move { name, to } => {
            remote.move_volume(name, to)?;
            show(as_json, &json!({ "name": name, "to": to }), || {
                format!("{name} is owned by {to}")
            });
            Ok(())
        }
        VolumeVerb::Scrub { name, deep, wait } => scrub::run(remote, name, *deep, *wait, as_json),
        VolumeVerb::Recover { name, accept_loss: accept } => {
            accept_loss::run(remote, name, *accept, as_json)
        }
        VolumeVerb::Clients { name } => clients::list(remote, name, as_json),
        VolumeVerb::Evict { name, client, let_back } => {
            clients::evict(remote, name, client.as_deref(), *let_back, as_json)
        }
        VolumeVerb::Delete { name, force } => {
            remote.delete(name, *force)?;
            show(as_json, &json!({ "name": name }), || format!("{name} is deleted"));
            Ok(())
        }
    }
}

fn parse_hold(typed: &str) -> Result<u64, Failure> {
    if typed == "never-fail" {
        return Ok(0);
    }
    let wrong = |_| {
        Failure::new(
            Exit::Usage,
            format!("--hold {typed} is not a time"),
            "never-fail, or a time such as 60s",
        )
    };
    let span: Span = typed.parse().map_err(wrong)?;
    u64::try_from(span.0.as_millis())
        .ok()
        .filter(|ms| *ms > 0)
        .ok_or_else(|| Failure::new(Exit::Usage, "--hold is more than no time", "for example 60s"))
}

fn list(remote: &Remote, as_json: bool) -> Result<(), Failure> {
    let volumes = remote.volumes()?;
    let shown: Vec<Value> = volumes.iter().map(view::volume).collect();
    show(as_json, &json!({ "volumes": shown }), || status::volumes(&volumes));
    Ok(())
}

fn wait(remote: &Remote, name: &str, most: Span, as_json: bool) -> Result<(), Failure> {
    let mut bar = (!as_json).then(|| Bar::new(name));
    let mut copied_most = 0;
    let result = wait_healthy(remote, name, most.0, |volume| {
        if let (Some(bar), Some((done, all))) = (&mut bar, copied(volume)) {
            copied_most = copied_most.max(done);
            bar.set(done, all);
        }
    });
    if let Some(bar) = bar {
        bar.done(copied_most);
    }
    let volume = result?;
    show(as_json, &view::volume(&volume), || format!("{name} is healthy"));
    Ok(())
}

/// Asks until the volume is healthy. `look` sees each answer.
pub fn wait_healthy(
    remote: &Remote,
    name: &str,
    most: Duration,
    mut look: impl FnMut(&v1::Volume),
) -> Result<v1::Volume, Failure> {
    let until = Instant::now() + most;
    loop {
        let last = match remote.volume(name) {
            Ok(volume) => {
                look(&volume);
                let ready = volume.state == i32::from(v1::VolumeState::Ready);
                if ready && volume.health == i32::from(v1::Health::Healthy) {
                    return Ok(volume);
                }
                let mut reasons = vec![view::health(volume.health).to_owned()];
                reasons.extend(volume.reasons);
                reasons.join("; ")
            }
            // A cluster that does not answer now may do so before the time is up.
            Err(failure) if failure.exit == Exit::Failed => failure.what,
            Err(failure) => return Err(failure),
        };
        if Instant::now() >= until {
            let what = format!("{name} is not healthy after {}: {last}", span::shown(most));
            return Err(Failure::new(
                Exit::NotHealthyInTime,
                what,
                format!("see `gabion volume show {name}`"),
            ));
        }
        std::thread::sleep(WAIT_LOOK_EVERY);
    }
}

/// Bytes copied and bytes to copy of all that is joining now.
pub fn copied(volume: &v1::Volume) -> Option<(u64, u64)> {
    let joining = || volume.segments.iter().flat_map(|segment| &segment.joining);
    joining().next()?;
    Some((joining().map(|r| r.copied_bytes).sum(), joining().map(|r| r.total_bytes).sum()))
}

fn text(volume: &v1::Volume) -> String {
    let owner = volume.owner.as_ref();
    let owner = owner.map_or("nobody".to_owned(), |owner| {
        format!("node {} ({}) since epoch {}", owner.node, owner.name, owner.epoch)
    });
    let mut parts = vec![
        format!(
            "{}: {}, {} copies, {}",
            volume.name,
            ByteSize(volume.size_bytes),
            volume.rf,
            view::health(volume.health)
        ),
        format!("owner: {owner}; epoch {}; {} guests", volume.epoch, volume.guests),
    ];
    parts.extend(volume.reasons.iter().map(|reason| format!("  - {reason}")));
    if volume.segments_sharing_zones > 0 {
        let (sharing, all) = (volume.segments_sharing_zones, volume.segments_total);
        parts.push(format!("  * {sharing} of {all} segments have two copies in one zone"));
    }
    let rebuild = status::rebuild(volume);
    if !rebuild.is_empty() {
        parts.push(format!("rebuild: {rebuild}"));
    }
    parts.extend(scrub::lines(volume));
    let rows: Vec<Vec<String>> = volume
        .segments
        .iter()
        .map(|segment| {
            vec![
                segment.index.to_string(),
                places(&segment.in_sync),
                places(&segment.joining),
                places(&segment.stale),
                segment.lost.iter().map(|lost| lost.count).sum::<u64>().to_string(),
            ]
        })
        .collect();
    let head = ["SEGMENT", "IN SYNC (NODE/DISK)", "JOINING", "STALE", "LOST BLOCKS"];
    parts.push(view::table(&head, &rows));
    parts.join("\n")
}

fn places(replicas: &[v1::Replica]) -> String {
    let place = |replica: &v1::Replica| {
        let copied = match (replica.copied_bytes * 100).checked_div(replica.total_bytes) {
            Some(percent) => format!(" {percent}%"),
            None => String::new(),
        };
        format!("{}/{}{copied}", replica.node, replica.disk)
    };
    replicas.iter().map(place).collect::<Vec<_>>().join(", ")
}

fn located(found: &v1::LocateResponse) -> String {
    let rows: Vec<Vec<String>> = found
        .copies
        .iter()
        .map(|copy| {
            let known = |shown: String| if copy.known { shown } else { "?".to_owned() };
            vec![
                copy.node.to_string(),
                copy.disk.to_string(),
                view::replica_state(copy.state).to_owned(),
                known(if copy.data { copy.byte_offset.to_string() } else { "hole".to_owned() }),
                known(copy.length.to_string()),
                known(format!("{}.{}", copy.version_epoch, copy.version_seq)),
                known(format!("{:08x}", copy.crc)),
                copy.path.clone(),
            ]
        })
        .collect();
    format!(
        "segment {}, block {}\n{}",
        found.segment,
        found.block,
        view::table(
            &["NODE", "DISK", "STATE", "OFFSET", "LENGTH", "VERSION", "CRC", "PATH"],
            &rows
        )
    )
}
