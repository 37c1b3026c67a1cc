//! HAProxy in front of a cluster, as `docs/haproxy.cfg` has it: one address behind which another node answers when one is gone.

use gabion_harness::command::Started;
use gabion_harness::fixture::{Cluster, wait};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LISTENS_MOST: Duration = Duration::from_secs(20);
/// Where the sample's nodes are, by number.
const SAMPLE: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// On a unix socket.
pub struct Proxy {
    pub socket: PathBuf,
    _haproxy: Started,
}

impl Proxy {
    /// The sample, with this cluster's addresses in it.
    #[track_caller]
    pub fn before(cluster: &Cluster) -> Self {
        let socket = cluster.dir.join("haproxy.sock");
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/haproxy.cfg");
        let mut text = std::fs::read_to_string(sample).expect("the sample is there");
        let mut put = |from: &str, to: &str| {
            assert!(text.contains(from), "the sample has no {from}");
            text = text.replacen(from, to, 1);
        };
        put("bind 127.0.0.1:10809", &format!("bind unix@{}", socket.display()));
        for (node, host) in cluster.local.ids().into_iter().zip(SAMPLE) {
            let entry = cluster.local.dir.entry(node).expect("a node of this cluster");
            let check = entry.http.rsplit(':').next().expect("a port");
            put(
                &format!("{host}:10809 check port 7600"),
                &format!("{} check port {check}", entry.nbd),
            );
        }
        let config = cluster.dir.join("haproxy.cfg");
        std::fs::write(&config, text).expect("a file in the temporary directory");
        let mut haproxy = Started::start(Command::new("haproxy").arg("-db").arg("-f").arg(config));
        wait("haproxy listens", LISTENS_MOST, || socket.exists() || !haproxy.running());
        assert!(haproxy.running(), "{}", haproxy.complained());
        Self { socket, _haproxy: haproxy }
    }
}
