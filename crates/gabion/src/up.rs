//! `gabion up`: a cluster on this machine, in the foreground.

use crate::bar::Bar;
use crate::cli::UpArgs;
use crate::failure::Failure;
use crate::layout::{ClusterDir, NODES_MAX, Plan};
use crate::local::LocalCluster;
use crate::process;
use crate::view;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u64 = 256 << 20;
/// Between looks at the children.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that dies is started again after this, so that one that cannot run does not spin.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

pub fn up(args: &UpArgs) -> Result<(), Failure> {
    let continued = ClusterDir::exists(&args.dir);
    let mut cluster = LocalCluster::lay_out(&args.dir, &plan(args), process::program()?)?;
    println!(
        "{} the cluster in {}: {} nodes",
        if continued { "continuing" } else { "making" },
        cluster.dir.dir.display(),
        cluster.ids().len()
    );
    // A Ctrl-C until here simply ends it; the next `up` goes on with the disks.
    make_disks(&cluster)?;
    let stop = stop_signals()?;
    cluster.start_all()?;
    let nodes = cluster.ids();
    if let Err(failure) = cluster.wait_ready(&nodes) {
        cluster.stop();
        return Err(failure);
    }
    println!("{}", endpoints(&cluster));
    watch(&mut cluster, args.restart, &stop);
    println!("stopping: volumes are released, disks are brought to rest");
    for node in cluster.stop() {
        eprintln!("node {node} did not stop in time and was killed; nothing acknowledged is lost");
    }
    println!("stopped; `gabion up --dir {}` goes on from here", args.dir.display());
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
    }
}

/// With a progress bar, if there is something to make.
pub fn make_disks(cluster: &LocalCluster) -> Result<(), Failure> {
    let mut bar = Bar::new("disk files");
    let mut written = 0;
    let result = cluster.make_disks(|made, all| {
        written = made;
        bar.set(made, all);
    });
    bar.done(written);
    result
}

fn endpoints(cluster: &LocalCluster) -> String {
    let rows: Vec<Vec<String>> = cluster
        .dir
        .file
        .nodes
        .iter()
        .map(|entry| {
            vec![
                entry.id.to_string(),
                cluster.pid(entry.id).map_or(String::new(), |pid| pid.as_raw_pid().to_string()),
                entry.api.clone(),
                format!("nbd://{}/NAME", entry.nbd),
                format!("http://{}/", entry.http),
            ]
        })
        .collect();
    let socket = cluster.dir.file.nodes.first().map(|entry| entry.nbd_unix.display().to_string());
    format!(
        "{}\nover a unix socket: nbd+unix:///NAME?socket={}\nready; try `gabion volume create vm1 --size 1GiB`; Ctrl-C stops it cleanly",
        view::table(&["NODE", "PID", "API", "NBD", "HTTP"], &rows),
        socket.unwrap_or_default()
    )
}

fn watch(cluster: &mut LocalCluster, restart: bool, stop: &Receiver<()>) {
    let mut again: Vec<(Instant, u32)> = Vec::new();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK_EVERY) {
        for (node, status) in cluster.ended() {
            println!("node {node} ended: {status}; see {}", cluster.dir.log(node).display());
            if restart {
                again.push((Instant::now() + RESTART_PAUSE, node));
            } else {
                println!(
                    "  `gabion node start {node} --dir {}` starts it again",
                    cluster.dir.dir.display()
                );
            }
        }
        let now = Instant::now();
        let due: Vec<u32> = again.iter().filter(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
        again.retain(|(at, _)| *at > now);
        for node in due {
            match cluster.start(node) {
                Ok(()) => println!("node {node} is started again"),
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
