//! `gabion support bundle`: what a maintainer needs to know of a cluster, in one file. Nothing of guests' data, and no secret, is in it.

use crate::failure::{Exit, Failure};
use crate::layout::ClusterDir;
use crate::process;
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::view;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const METRICS_MOST: Duration = Duration::from_secs(5);
/// Of each log, the end. Units: bytes.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// `dir`: of an `up` on this machine, whose logs are taken, too.
pub fn bundle(
    remote: &Remote,
    out: Option<&Path>,
    dir: &Path,
    as_json: bool,
) -> Result<(), Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("gabion-support-{}", since.as_secs());
    let path = out.map_or_else(|| PathBuf::from(format!("{name}.tar")), Path::to_owned);
    if path.exists() {
        let what = format!("{} is there already", path.display());
        return Err(Failure::new(Exit::Refused, what, "give another --out"));
    }
    let parts = collect(remote, dir);
    let missing: Vec<&str> =
        parts.iter().filter(|part| part.contents.is_err()).map(|part| part.name.as_str()).collect();
    write(&path, &name, &parts).map_err(|e| Failure::io("write", &path, &e))?;
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let shown = json!({ "path": path.display().to_string(), "files": names, "missing": missing });
    show(as_json, &shown, || {
        let missing = match missing.as_slice() {
            [] => String::new(),
            missing => format!("; could not be had: {}", missing.join(", ")),
        };
        format!("{}: {} files{missing}", path.display(), names.len())
    });
    Ok(())
}

/// A file of the bundle; what could not be had says why.
struct Part {
    name: String,
    contents: Result<Vec<u8>, String>,
}

impl Part {
    fn json(name: &str, value: Result<Value, Failure>) -> Self {
        let text = |value: Value| format!("{value:#}\n").into_bytes();
        let contents = value.map(text).map_err(|failure| failure.to_string());
        Self { name: format!("{name}.json"), contents }
    }
}

/// What one node cannot tell does not keep the rest out.
fn collect(remote: &Remote, dir: &Path) -> Vec<Part> {
    let (status, volumes, nodes) = (remote.status(), remote.volumes(), remote.nodes());
    let all = |shown: Vec<Value>, of: &str| json!({ of: shown });
    let mut parts = vec![
        Part {
            name: "version.txt".to_owned(),
            contents: Ok(format!("gabion {}\n", env!("CARGO_PKG_VERSION")).into_bytes()),
        },
        Part::json("status", status.map(|status| view::status(&status))),
        Part::json(
            "disks",
            remote.disks().map(|disks| all(disks.iter().map(view::disk).collect(), "disks")),
        ),
        Part::json(
            "settings",
            remote.settings().map(|them| all(them.iter().map(view::setting).collect(), "settings")),
        ),
    ];
    let mut events = Vec::new();
    let told = remote.events(false, |event| events.push(view::event(&event)));
    parts.push(Part::json("events", told.map(|()| all(events, "events"))));
    for volume in volumes.iter().flatten() {
        let name = format!("volumes/{}", volume.name);
        let found = remote.explain(&volume.name).map(|found| view::explained(&found));
        parts.push(Part::json(&name, found));
    }
    for node in nodes.iter().flatten() {
        let metrics = process::get(&node.http, "/metrics", METRICS_MOST);
        let contents = match metrics {
            Ok((200, text)) => Ok(text.into_bytes()),
            Ok((status, text)) => Err(format!("it answered {status}: {text}")),
            Err(error) => Err(format!("{}: {error}", node.http)),
        };
        parts.push(Part { name: format!("nodes/{}/metrics.txt", node.name), contents });
    }
    parts.extend(logs(dir));
    parts
}

fn logs(dir: &Path) -> Vec<Part> {
    let Some(cluster) = ClusterDir::exists(dir).then(|| ClusterDir::open(dir).ok()).flatten()
    else {
        return Vec::new();
    };
    let log = |node: u32| Part {
        name: format!("nodes/node{node}/log"),
        contents: tail(&cluster.log(node)).map_err(|error| error.to_string()),
    };
    cluster.file.nodes.iter().map(|node| log(node.id)).collect()
}

fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut end = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut end)?;
    Ok(end)
}

/// A tar, so that one file is sent. What is missing stands in it with its reason.
fn write(path: &Path, name: &str, parts: &[Part]) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(File::create_new(path)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for part in parts {
        let (ending, contents) = match &part.contents {
            Ok(contents) => ("", contents.as_slice()),
            Err(why) => (".missing", why.as_bytes()),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        tar.append_data(&mut header, format!("{name}/{}{ending}", part.name), contents)?;
    }
    let mut file = tar.into_inner()?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_could_not_be_had_says_why() {
        let dir = std::env::temp_dir().join(format!("gabion-support-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("bundle.tar");
        let parts = [
            Part { name: "a.txt".to_owned(), contents: Ok(b"all".to_vec()) },
            Part { name: "nodes/n/b.txt".to_owned(), contents: Err("it is silent".to_owned()) },
        ];
        write(&path, "it", &parts).unwrap();
        let mut tar = tar::Archive::new(File::open(&path).unwrap());
        let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name, text)
        };
        let found: Vec<(String, String)> = tar.entries().unwrap().map(read).collect();
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(
            found,
            [pair("it/a.txt", "all"), pair("it/nodes/n/b.txt.missing", "it is silent")]
        );
        assert!(write(&path, "it", &parts).is_err(), "nothing is overwritten");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
