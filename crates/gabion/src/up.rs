//! `gabion up`: a cluster on this machine, in the foreground.

use crate::bar::Bar;
use crate::cli::UpArgs;
use crate::failure::Failure;
use crate::layout::{ClusterDir, NODES_MAX, NodeEntry, Plan};
use crate::local::LocalCluster;
use crate::process;
use crate::verbs::show;
use gabion_api::view;
use serde_json::{Value, json};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u64 = 256 << 20;
/// Between looks at the children.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that dies is started again after this, so that one that cannot run does not spin.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// JSON: one object when the nodes serve; what is said besides goes to standard error.
pub fn up(args: &UpArgs, as_json: bool) -> Result<(), Failure> {
    let say = |text: &str| if as_json { eprintln!("{text}") } else { println!("{text}") };
    let continued = ClusterDir::exists(&args.dir);
    let mut cluster = LocalCluster::lay_out(&args.dir, &plan(args), process::program()?)?;
    say(&format!(
        "{} the cluster in {}: {} nodes",
        if continued { "continuing" } else { "making" },
        cluster.dir.dir.display(),
        cluster.ids().len()
    ));
    // A Ctrl-C until here simply ends it; the next `up` goes on with the disks.
    make_disks(&cluster, as_json)?;
    let stop = stop_signals()?;
    cluster.start_all()?;
    let nodes = cluster.ids();
    if let Err(failure) = cluster.wait_ready(&nodes) {
        cluster.stop();
        return Err(failure);
    }
    show(as_json, &as_object(&cluster), || endpoints(&cluster));
    watch(&mut cluster, args.restart, &stop, say);
    say("stopping: volumes are released, disks are brought to rest");
    for node in cluster.stop() {
        eprintln!("node {node} did not stop in time and was killed; nothing acknowledged is lost");
    }
    say(&format!("stopped; `gabion up --dir {}` goes on from here", args.dir.display()));
    Ok(())
}

fn plan(args: &UpArgs) -> Plan {
    assert!(args.nodes < NODES_MAX, "the command line allows no more");
    Plan {
        nodes: args.nodes,
        disks: args.disks,
        disk_bytes: args.disk_size.0,
        witness: args.witness,
        port_offset: args.hidden.base_port_offset,
        segment_bytes: args.hidden.segment_size.map_or(SEGMENT_BYTES, |size| size.0),
        io: args.hidden.io.name().to_owned(),
        zones: args.zones.clone(),
    }
}

/// With a progress bar, if there is something to make.
pub fn make_disks(cluster: &LocalCluster, as_json: bool) -> Result<(), Failure> {
    let mut bar = Bar::new("disk files");
    let mut written = 0;
    let result = cluster.make_disks(|made, all| {
        written = made;
        bar.set(made, all);
    });
    bar.done(if as_json { 0 } else { written });
    result
}

fn pid_of(cluster: &LocalCluster, node: u32) -> Option<i32> {
    cluster.pid(node).map(|pid| pid.as_raw_pid())
}

fn endpoints(cluster: &LocalCluster) -> String {
    let nodes = &cluster.dir.file.nodes;
    let row = |entry: &NodeEntry| {
        vec![
            entry.id.to_string(),
            pid_of(cluster, entry.id).map_or(String::new(), |pid| pid.to_string()),
            entry.api.clone(),
            entry.peer.clone(),
            format!("nbd://{}/NAME", entry.nbd),
            format!("http://{}/", entry.http),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    let mut lines = vec![view::table(&["NODE", "PID", "API", "PEER", "NBD", "HTTP"], &rows)];
    lines.push("over unix sockets:".to_owned());
    let socket =
        |entry: &NodeEntry| format!("  nbd+unix:///NAME?socket={}", entry.nbd_unix.display());
    lines.extend(nodes.iter().map(socket));
    lines.push(
        "ready; try `gabion volume create vm1 --size 1GiB`; Ctrl-C stops it cleanly".to_owned(),
    );
    lines.join("\n")
}

fn as_object(cluster: &LocalCluster) -> Value {
    let node = |entry: &NodeEntry| {
        json!({
            "id": entry.id.to_string(),
            "pid": pid_of(cluster, entry.id),
            "api": entry.api,
            "peer": entry.peer,
            "nbd": entry.nbd,
            "nbd_unix": entry.nbd_unix,
            "http": entry.http,
        })
    };
    let nodes: Vec<_> = cluster.dir.file.nodes.iter().map(node).collect();
    json!({ "dir": cluster.dir.dir, "nodes": nodes })
}

fn watch(cluster: &mut LocalCluster, restart: bool, stop: &Receiver<()>, say: impl Fn(&str)) {
    let mut again: Vec<(Instant, u32)> = Vec::new();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK_EVERY) {
        for (node, status) in cluster.ended() {
            say(&format!("node {node} ended: {status}; see {}", cluster.dir.log(node).display()));
            if restart {
                again.push((Instant::now() + RESTART_PAUSE, node));
            } else {
                say(&format!(
                    "  `gabion node start {node} --dir {}` starts it again",
                    cluster.dir.dir.display()
                ));
            }
        }
        let now = Instant::now();
        let due: Vec<u32> = again.iter().filter(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
        again.retain(|(at, _)| *at > now);
        for node in due {
            match cluster.start(node) {
                Ok(()) => say(&format!("node {node} is started again")),
                Err(failure) => eprintln!("node {node} cannot be started: {failure}"),
            }
        }
    }
}

/// One message a signal that asks for the end.
pub fn stop_signals() -> Result<Receiver<()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |e: std::io::Error| Failure::failed(format!("cannot listen for signals: {e}"), "");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let (send, receive) = channel();
    let (interrupt, terminate, hangup) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(cannot)?,
            signal(SignalKind::terminate()).map_err(cannot)?,
            signal(SignalKind::hangup()).map_err(cannot)?,
        )
    };
    std::thread::spawn(move || {
        let (mut interrupt, mut terminate, mut hangup) = (interrupt, terminate, hangup);
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if send.send(()).is_err() {
                    return;
                }
            }
        });
    });
    Ok(receive)
}
