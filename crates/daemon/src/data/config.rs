//! What the data plane is started with, and why it could not start.

use gabion_engine::{DiskOpenError, EngineConfig, EngineError};
use gabion_node::NodeConfig;
use gabion_types::NodeId;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct DataConfig {
    /// `disks` is left empty: it is filled in by what is found.
    pub node: NodeConfig,
    pub engine: EngineConfig,
    /// By place. One that cannot be opened is out of service; one that another process uses stops
    /// the start.
    pub disks: Vec<PathBuf>,
    pub listen_peer: SocketAddr,
    pub listen_nbd: Option<SocketAddr>,
    pub listen_nbd_unix: Option<PathBuf>,
    /// Where peers are found that the map does not name yet: `host:port`.
    pub voters: BTreeMap<NodeId, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Disk(#[from] DiskOpenError),
    #[error("cannot listen for {whom} at {at} ({error}); {}", listen_hint(.error))]
    Listen { whom: &'static str, at: String, error: io::Error },
    #[error("the data plane's thread cannot be started ({0})")]
    Thread(io::Error),
    #[error("the data plane's thread ended while it started; the log says why")]
    Died,
}

/// What to look at when a socket cannot be listened on.
pub fn listen_hint(error: &io::Error) -> &'static str {
    let known = [
        (io::ErrorKind::AddrInUse, "is another node running there? see `ss -ltnp`"),
        (io::ErrorKind::AddrNotAvailable, "this machine has no such address"),
        (io::ErrorKind::PermissionDenied, "this user may not; check the port or the directory"),
        (io::ErrorKind::NotFound, "is there such a directory?"),
        (
            io::ErrorKind::InvalidInput,
            "is it an address? the path of a unix socket has at most 107 bytes",
        ),
    ];
    let found = known.into_iter().find(|(kind, _)| *kind == error.kind());
    found.map_or("check the address in the configuration", |(_, hint)| hint)
}
