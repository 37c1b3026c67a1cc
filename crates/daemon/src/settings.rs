//! `config.toml` of one node: parsed once, into types; unknown keys are refused.

use gabion_cluster::NodeInfo;
use gabion_engine::IoMode;
use gabion_types::{ClusterId, Limits, NodeId, SegmentSize};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The smallest disk: room for the journal, the metadata and some data.
pub const DISK_BYTES_MIN: u64 = 64 << 20;
/// Disks of one node.
pub const DISKS_MAX: usize = 64;
/// First voters of a new cluster.
pub const VOTERS_MAX: usize = 7;

#[derive(Clone, Debug)]
pub struct Settings {
    pub cluster: ClusterId,
    pub info: NodeInfo,
    /// Holds `pid`, `lock`, `meta/`.
    pub dir: PathBuf,
    pub secret: [u8; 32],
    pub io: IoMode,
    pub listen: Listen,
    pub disks: Vec<Disk>,
    /// The first voters of a new cluster; the same on each node.
    pub voters: Vec<NodeInfo>,
    /// Only for a cluster that is being made.
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub api: SocketAddr,
    pub peer: SocketAddr,
    pub nbd: SocketAddr,
    pub nbd_unix: Option<PathBuf>,
    pub http: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    /// Used when the file is made; afterwards its superblock counts.
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "cannot read the configuration {path} ({error}); `gabion up` or `gabion node init` makes one"
    )]
    Read { path: PathBuf, error: std::io::Error },
    #[error("the configuration {path} is not what this version reads: {error}")]
    Parse { path: PathBuf, error: Box<toml::de::Error> },
    #[error("the configuration {path}: `{key}` is {value:?}; it must be {wants}")]
    Value { path: PathBuf, key: &'static str, value: String, wants: &'static str },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: String,
    node: u32,
    name: String,
    dir: PathBuf,
    secret: String,
    #[serde(default = "auto")]
    io: String,
    listen: FileListen,
    #[serde(default)]
    disks: Vec<FileDisk>,
    voters: Vec<FileVoter>,
    #[serde(default)]
    limits: FileLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileListen {
    api: String,
    peer: String,
    nbd: String,
    nbd_unix: Option<PathBuf>,
    http: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDisk {
    path: PathBuf,
    size_bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVoter {
    node: u32,
    name: String,
    api: String,
    peer: String,
    nbd: String,
    http: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    segment_bytes: Option<u64>,
}

fn io_mode(name: &str) -> Option<IoMode> {
    match name {
        "auto" => Some(IoMode::Auto),
        "uring" => Some(IoMode::Uring),
        "portable" => Some(IoMode::Portable),
        _ => None,
    }
}

fn auto() -> String {
    "auto".into()
}

impl Settings {
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::Read { path: path.into(), error })?;
        Self::parse(path, &text)
    }

    /// Overrides the configuration's `io`; none: there is no driver of that name.
    #[must_use]
    pub fn with_io(self, name: &str) -> Option<Self> {
        Some(Self { io: io_mode(name)?, ..self })
    }

    /// `path` is for the errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text)
            .map_err(|error| SettingsError::Parse { path: path.into(), error: Box::new(error) })?;
        let wrong = |key, value: &str, wants| SettingsError::Value {
            path: path.into(),
            key,
            value: value.into(),
            wants,
        };
        let cluster = hex::<16>(&file.cluster)
            .ok_or_else(|| wrong("cluster", &file.cluster, "32 hex digits"))?;
        let secret =
            hex::<32>(&file.secret).ok_or_else(|| wrong("secret", "…", "64 hex digits"))?;
        let io = io_mode(&file.io)
            .ok_or_else(|| wrong("io", &file.io, "`auto`, `uring` or `portable`"))?;
        let address = |key, text: &str| {
            text.parse::<SocketAddr>()
                .map_err(|_| wrong(key, text, "an address and a port, as in 127.0.0.1:7401"))
        };
        let listen = Listen {
            api: address("listen.api", &file.listen.api)?,
            peer: address("listen.peer", &file.listen.peer)?,
            nbd: address("listen.nbd", &file.listen.nbd)?,
            nbd_unix: file.listen.nbd_unix.clone(),
            http: address("listen.http", &file.listen.http)?,
        };
        let disks = disks(&file.disks).map_err(|(key, value, wants)| wrong(key, &value, wants))?;
        let voters =
            voters(&file.voters).map_err(|(key, value, wants)| wrong(key, &value, wants))?;
        let limits = limits(&file.limits).ok_or_else(|| {
            wrong("limits.segment_bytes", "…", "a power of two, 64 KiB to 16 GiB")
        })?;
        let info = NodeInfo {
            id: NodeId::new(file.node),
            name: file.name,
            peer: file.listen.peer,
            api: file.listen.api,
            nbd: file.listen.nbd,
            http: file.listen.http,
        };
        let cluster = ClusterId::new(cluster);
        Ok(Self { cluster, info, dir: file.dir, secret, io, listen, disks, voters, limits })
    }
}

type Wrong = (&'static str, String, &'static str);

fn disks(found: &[FileDisk]) -> Result<Vec<Disk>, Wrong> {
    if found.len() > DISKS_MAX {
        return Err(("disks", found.len().to_string(), "at most 64 disks"));
    }
    let disks = found.iter().map(|disk| {
        if disk.size_bytes < DISK_BYTES_MIN || !disk.size_bytes.is_multiple_of(4096) {
            let wants = "at least 64 MiB and a multiple of 4096";
            return Err(("disks.size_bytes", disk.size_bytes.to_string(), wants));
        }
        Ok(Disk { path: disk.path.clone(), size_bytes: disk.size_bytes })
    });
    disks.collect()
}

fn voters(found: &[FileVoter]) -> Result<Vec<NodeInfo>, Wrong> {
    let ids: BTreeSet<u32> = found.iter().map(|voter| voter.node).collect();
    if found.is_empty() || found.len() > VOTERS_MAX || ids.len() != found.len() {
        return Err(("voters", found.len().to_string(), "1 to 7 voters with different ids"));
    }
    let voters = found.iter().map(|voter| NodeInfo {
        id: NodeId::new(voter.node),
        name: voter.name.clone(),
        peer: voter.peer.clone(),
        api: voter.api.clone(),
        nbd: voter.nbd.clone(),
        http: voter.http.clone(),
    });
    Ok(voters.collect())
}

fn limits(found: &FileLimits) -> Option<Limits> {
    let segment = match found.segment_bytes {
        Some(bytes) => SegmentSize::new(bytes)?,
        None => SegmentSize::DEFAULT,
    };
    Some(Limits { segment, ..Limits::DEFAULT })
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "000102030405060708090a0b0c0d0e0f"
        node = 1
        name = "node1"
        dir = "/tmp/x/node1"
        secret = "0000000000000000000000000000000000000000000000000000000000000001"
        [listen]
        api = "127.0.0.1:7401"
        peer = "127.0.0.1:7501"
        nbd = "127.0.0.1:10809"
        http = "127.0.0.1:7601"
        [[disks]]
        path = "/tmp/x/node1/disk0"
        size_bytes = 67108864
        [[voters]]
        node = 1
        name = "node1"
        api = "127.0.0.1:7401"
        peer = "127.0.0.1:7501"
        nbd = "127.0.0.1:10809"
        http = "127.0.0.1:7601"
    "#;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_is_read() {
        let settings = parse(GOOD).unwrap();
        assert_eq!(settings.info.id, NodeId::new(1));
        assert_eq!(settings.cluster.bytes()[15], 15);
        assert_eq!(settings.secret[31], 1);
        assert_eq!(settings.disks.len(), 1);
        assert_eq!(settings.limits, Limits::DEFAULT);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, named) in [
            ("node = 1\n        name = \"node1\"\n        dir", "nodes = 1\n dir", "nodes"),
            ("000102030405060708090a0b0c0d0e0f", "xyz", "`cluster`"),
            ("67108864", "4096", "64 MiB"),
            ("[listen]", "io = \"fast\"\n[listen]", "`io` is \"fast\""),
            (
                "api = \"127.0.0.1:7401\"\n        peer",
                "api = \"here\"\n        peer",
                "listen.api",
            ),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
