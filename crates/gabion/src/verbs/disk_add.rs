//! `gabion disk add`: on a node's own machine, whether it runs or not.

use crate::bar::Bar;
use crate::cli::AddDiskArgs;
use crate::failure::{Exit, Failure};
use crate::process;
use crate::verbs::{join, show};
use gabion_api::v1::{self, ErrorDetail};
use gabion_daemon::control::new_disks::word;
use gabion_daemon::control::peers::Peers;
use gabion_daemon::init::{self, Done};
use gabion_daemon::settings::{Disk, Settings};
use serde::Serialize;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tonic::Status;

/// As a node's configuration has it.
#[derive(Serialize)]
struct Entry {
    disks: [EntryDisk; 1],
}

#[derive(Serialize)]
struct EntryDisk {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
}

/// The node makes the disk if it runs, else it is made here. The configuration names it last: what is
/// interrupted may be called again.
pub fn run(args: &AddDiskArgs, as_json: bool) -> Result<(), Failure> {
    let config = args.config.clone().map_or_else(join::usual_config, Ok)?;
    let settings = process::settings(&config)?;
    let path = std::path::absolute(&args.path).map_err(|e| Failure::io("find", &args.path, &e))?;
    let disk = Disk { path, size_bytes: args.size.map(|size| size.0) };
    let text = entry_text(&config, &settings, &disk)?;
    let mut bar = Bar::new("disk file");
    let added = match ask(&settings, &disk, args.force, &mut bar)? {
        Some(added) => added,
        None => make_here(&settings, &disk, args.force, &mut bar)?,
    };
    bar.done(0);
    if let Some(text) = text {
        append(&config, &text)?;
    }
    let path = disk.path.display().to_string();
    let (node, v1::AddedDisk { done, size_bytes, lost, disk }) = (settings.info.id.get(), added);
    let value = json!({
        "node": node.to_string(), "path": path, "done": done, "size_bytes": size_bytes,
        "lost": lost, "disk": disk.map(|id| id.to_string()),
    });
    show(as_json, &value, || {
        let lost = lost.map_or(String::new(), |lost| format!("; lost: {lost}"));
        let what = format!("{path}: {done}, {size_bytes} bytes{lost}");
        match disk {
            Some(id) => format!("{what}\nit is disk {id} of node {node}, in service"),
            None => format!(
                "{what}\nit is in service when node {node} runs and the cluster has a majority"
            ),
        }
    });
    Ok(())
}

/// What the configuration lacks; none: it names the disk already.
///
/// Errors: it is written in a way to which nothing can be added.
fn entry_text(config: &Path, settings: &Settings, disk: &Disk) -> Result<Option<String>, Failure> {
    if settings.disks.iter().any(|known| known.path == disk.path) {
        return Ok(None);
    }
    let Disk { path, size_bytes } = disk.clone();
    let text = toml::to_string(&Entry { disks: [EntryDisk { path, size_bytes }] });
    let text = format!("\n{}", text.expect("a path and a number"));
    let before = std::fs::read_to_string(config).map_err(|e| Failure::io("read", config, &e))?;
    Settings::parse(config, &format!("{before}\n{text}")).map_err(|error| {
        let next =
            format!("put it into {} by hand:{}", config.display(), text.replace('\n', "\n  "));
        Failure::failed(format!("the configuration would not be read any more: {error}"), next)
    })?;
    Ok(Some(text))
}

/// It keeps its owner and its rights.
fn append(config: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::io("write", config, &e);
    let mut file = OpenOptions::new().append(true).open(config).map_err(failed)?;
    file.write_all(format!("\n{text}").as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// None: the node does not answer, so it does not run.
fn ask(
    settings: &Settings,
    disk: &Disk,
    force: bool,
    bar: &mut Bar,
) -> Result<Option<v1::AddedDisk>, Failure> {
    let runtime = process::runtime()?;
    let address = own_api(settings);
    let me = settings.info.id;
    runtime.block_on(async {
        if tokio::net::TcpStream::connect(&address).await.is_err() {
            return Ok(None);
        }
        let own = [(me, address.clone())];
        let peers = Peers::new(me, settings.cluster, settings.secret, own);
        let no_client = || Failure::failed(format!("{address} is no address"), "");
        let mut client = peers.client(me).ok_or_else(no_client)?;
        let request = v1::AddDiskRequest {
            path: disk.path.display().to_string(),
            size_bytes: disk.size_bytes.unwrap_or_default(),
            force,
        };
        let failed = |status: Status| {
            let detail = ErrorDetail::from_status(&status);
            let refused = detail.code() != v1::ErrorCode::Internal;
            let exit = if refused { Exit::Refused } else { Exit::Failed };
            Failure::new(exit, detail.what, detail.next)
        };
        let mut steps = client.add_disk(request).await.map_err(failed)?.into_inner();
        while let Some(step) = steps.message().await.map_err(failed)? {
            if step.added.is_some() {
                return Ok(step.added);
            }
            bar.set(step.written_bytes, step.all_bytes);
        }
        Err(Failure::failed("the node ended before the disk was made", "start it, and try again"))
    })
}

/// `0.0.0.0` is heard on the loopback, too.
fn own_api(settings: &Settings) -> String {
    let at = settings.listen.api;
    if !at.ip().is_unspecified() {
        return at.to_string();
    }
    let loopback: std::net::IpAddr =
        if at.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() };
    SocketAddr::new(loopback, at.port()).to_string()
}

fn make_here(
    settings: &Settings,
    disk: &Disk,
    force: bool,
    bar: &mut Bar,
) -> Result<v1::AddedDisk, Failure> {
    let all = disk.size_bytes.unwrap_or_default();
    let made = init::add_to_stopped(settings, disk, force, |done| bar.set(done, all));
    let made = made.map_err(|error| process::cannot_init(&error))?;
    let size_bytes = match made.done {
        Done::Kept => all,
        Done::MadeFile { bytes } | Done::FormattedDevice { bytes } => bytes,
    };
    let (done, lost) = (word(made.done).to_owned(), made.lost);
    Ok(v1::AddedDisk { done, size_bytes, lost, disk: None })
}
