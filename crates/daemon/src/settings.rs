//! `config.toml` of one node: parsed once, into types; unknown keys are refused.

mod join;

pub use join::JoinSettings;

use crate::http::access::{TOKEN_CHARS_MIN, Tokens};
use gabion_cluster::NodeInfo;
use gabion_engine::IoMode;
use gabion_types::{ClusterId, Limits, NodeId, SegmentSize};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The smallest disk: room for the journal, the metadata and some data.
pub const DISK_BYTES_MIN: u64 = 64 << 20;
/// Disks of one node.
pub const DISKS_MAX: usize = 64;
/// First voters of a new cluster.
pub const VOTERS_MAX: usize = 7;
/// A unix socket's address holds so much of a path. Source: unix(7), without the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Clone, Debug)]
pub struct Settings {
    pub cluster: ClusterId,
    pub info: NodeInfo,
    /// Holds `pid`, `lock`, `meta/`.
    pub dir: PathBuf,
    pub secret: [u8; 32],
    pub io: IoMode,
    pub listen: Listen,
    /// Who may use the console.
    pub http: Tokens,
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
    /// Used when it is made; afterwards its superblock counts. A device without it is used whole.
    pub size_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "cannot read the configuration {path} ({error}); `gabion up` makes one, README.md has an \
         example"
    )]
    Read { path: PathBuf, error: std::io::Error },
    #[error(
        "cannot read the cluster file {path} ({error}); `gabion cluster init` makes it on one \
         machine, and each node has a copy"
    )]
    ReadShared { path: PathBuf, error: std::io::Error },
    #[error("the configuration {path} is not what this version reads: {error}")]
    Parse { path: PathBuf, error: Box<toml::de::Error> },
    #[error("the configuration {path}: `{key}` is {value:?}; it must be {wants}")]
    Value { path: PathBuf, key: &'static str, value: String, wants: &'static str },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Else as `gabion cluster join` wrote it into the cluster file.
    node: Option<u32>,
    dir: PathBuf,
    #[serde(default = "auto")]
    io: String,
    /// What all nodes share, as `gabion cluster init` writes it; else it stands here.
    cluster_file: Option<PathBuf>,
    cluster: Option<String>,
    secret: Option<String>,
    voters: Option<Vec<FileVoter>>,
    /// Else as its voter's.
    name: Option<String>,
    /// What fails together with it: a rack, a room. None: nothing.
    #[serde(default)]
    zone: String,
    /// Else where its voter is to be found.
    listen: Option<FileListen>,
    #[serde(default)]
    disks: Vec<FileDisk>,
    limits: Option<FileLimits>,
    #[serde(default)]
    http: FileHttp,
}

/// Without a token whoever reaches the port may change everything.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHttp {
    token: Option<String>,
    read_token: Option<String>,
}

/// What all nodes of a cluster have in common.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    /// Of a node that joined later: its own id. Where it stands, the file is that node's alone.
    node: Option<u32>,
    cluster: String,
    secret: String,
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
    size_bytes: Option<u64>,
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

const NO_NODE: &str = "given: its place in the cluster file; a node that joins a running cluster gets it \
                       by `gabion cluster join`";

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

impl Listen {
    /// Where others than this machine may reach it.
    pub fn beyond_loopback(&self) -> Vec<(&'static str, SocketAddr)> {
        let all = [("api", self.api), ("peer", self.peer), ("nbd", self.nbd), ("http", self.http)];
        all.into_iter().filter(|(_, at)| !at.ip().to_canonical().is_loopback()).collect()
    }
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

    /// `path` is for the errors, and where a relative `cluster_file` is looked for.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut file: File = from_toml(path, text)?;
        let (shared_path, shared) = shared(path, &mut file)?;
        let wrong = |key, value: &str, wants| wrong_in(path, (key, value.into(), wants));
        let wrong_shared = |wrong| wrong_in(&shared_path, wrong);
        let cluster = hex::<16>(&shared.cluster)
            .ok_or_else(|| wrong_shared(("cluster", shared.cluster.clone(), "32 hex digits")))?;
        let secret = hex::<32>(&shared.secret)
            .ok_or_else(|| wrong_shared(("secret", "…".into(), "64 hex digits")))?;
        let io = io_mode(&file.io)
            .ok_or_else(|| wrong("io", &file.io, "`auto`, `uring` or `portable`"))?;
        let disks = disks(&file.disks).map_err(|wrong| wrong_in(path, wrong))?;
        let voters = voters(&shared.voters).map_err(wrong_shared)?;
        let limits = limits(file.limits.as_ref().unwrap_or(&shared.limits)).ok_or_else(|| {
            wrong("limits.segment_bytes", "…", "a power of two, 64 KiB to 16 GiB")
        })?;
        let node = file.node.or(shared.node).ok_or_else(|| wrong("node", "", NO_NODE))?;
        if shared.node.is_some_and(|joined| joined != node) {
            let wants =
                "the id with which the node joined, which stands in the cluster file; leave it out";
            return Err(wrong("node", &node.to_string(), wants));
        }
        let id = NodeId::new(node);
        let voter = voters.iter().find(|voter| voter.id == id);
        let listen_text = file
            .listen
            .or_else(|| voter.map(listen_of))
            .ok_or_else(|| wrong("listen", "", "given, for this node is none of the voters"))?;
        let listen = listen(&listen_text).map_err(|wrong| wrong_in(path, wrong))?;
        // Others find a voter where all are told to look; `listen` may say 0.0.0.0.
        let info = voter.cloned().unwrap_or_else(|| NodeInfo {
            id,
            name: format!("node{node}"),
            peer: listen_text.peer,
            api: listen_text.api,
            nbd: listen_text.nbd,
            http: listen_text.http,
            zone: String::new(),
        });
        let name = file.name.unwrap_or_else(|| info.name.clone());
        let info = NodeInfo { name, zone: file.zone, ..info };
        let http = tokens(file.http).map_err(|wrong| wrong_in(path, wrong))?;
        let (cluster, dir) = (ClusterId::new(cluster), file.dir);
        Ok(Self { cluster, info, dir, secret, io, listen, http, disks, voters, limits })
    }
}

fn from_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SettingsError> {
    toml::from_str(text)
        .map_err(|error| SettingsError::Parse { path: path.into(), error: Box::new(error) })
}

fn wrong_in(path: &Path, (key, value, wants): Wrong) -> SettingsError {
    SettingsError::Value { path: path.into(), key, value, wants }
}

/// What all nodes share, and the file in which it stands.
fn shared(path: &Path, file: &mut File) -> Result<(PathBuf, Shared), SettingsError> {
    let here = (file.cluster.take(), file.secret.take(), file.voters.take());
    if let Some(name) = &file.cluster_file {
        if !matches!(here, (None, None, None)) {
            let wants = "the only place of `cluster`, `secret` and `voters`, if there is one";
            return Err(wrong_in(path, ("cluster_file", name.display().to_string(), wants)));
        }
        let at = path.parent().unwrap_or(Path::new("")).join(name);
        let text = std::fs::read_to_string(&at)
            .map_err(|error| SettingsError::ReadShared { path: at.clone(), error })?;
        let shared = from_toml(&at, &text)?;
        return Ok((at, shared));
    }
    let missing = |key| {
        let wants = "given, here or in the `cluster_file` that `gabion cluster init` makes";
        wrong_in(path, (key, String::new(), wants))
    };
    let (cluster, secret, voters) = here;
    let shared = Shared {
        node: None,
        cluster: cluster.ok_or_else(|| missing("cluster"))?,
        secret: secret.ok_or_else(|| missing("secret"))?,
        voters: voters.ok_or_else(|| missing("voters"))?,
        limits: FileLimits::default(),
    };
    Ok((path.to_owned(), shared))
}

fn listen_of(voter: &NodeInfo) -> FileListen {
    FileListen {
        api: voter.api.clone(),
        peer: voter.peer.clone(),
        nbd: voter.nbd.clone(),
        nbd_unix: None,
        http: voter.http.clone(),
    }
}

fn listen(found: &FileListen) -> Result<Listen, Wrong> {
    let address = |key, text: &str| {
        let wants = "an address and a port, as in 127.0.0.1:7401";
        text.parse::<SocketAddr>().map_err(|_| (key, text.to_owned(), wants))
    };
    if let Some(path) = &found.nbd_unix
        && path.as_os_str().len() > SOCKET_PATH_BYTES_MAX
    {
        let wants = "at most 107 bytes long, which is all that a socket's address holds: \
                     choose a shorter path (of `up`: a shorter --dir)";
        return Err(("listen.nbd_unix", path.display().to_string(), wants));
    }
    Ok(Listen {
        api: address("listen.api", &found.api)?,
        peer: address("listen.peer", &found.peer)?,
        nbd: address("listen.nbd", &found.nbd)?,
        nbd_unix: found.nbd_unix.clone(),
        http: address("listen.http", &found.http)?,
    })
}

fn tokens(FileHttp { token, read_token }: FileHttp) -> Result<Tokens, Wrong> {
    for (key, given) in [("http.token", &token), ("http.read_token", &read_token)] {
        if given.as_ref().is_some_and(|given| given.len() < TOKEN_CHARS_MIN) {
            return Err((key, "…".into(), "at least 16 characters, drawn at random"));
        }
    }
    if read_token.is_some() && (token.is_none() || token == read_token) {
        let wants = "given beside another `http.token`, which may do everything";
        return Err(("http.read_token", "…".into(), wants));
    }
    Ok(Tokens { token, read_token })
}

type Wrong = (&'static str, String, &'static str);

fn disks(found: &[FileDisk]) -> Result<Vec<Disk>, Wrong> {
    if found.len() > DISKS_MAX {
        return Err(("disks", found.len().to_string(), "at most 64 disks"));
    }
    let disks = found.iter().map(|disk| {
        if let Some(bytes) = disk.size_bytes
            && (bytes < DISK_BYTES_MIN || !bytes.is_multiple_of(4096))
        {
            let wants = "at least 64 MiB and a multiple of 4096";
            return Err(("disks.size_bytes", bytes.to_string(), wants));
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
        zone: String::new(),
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
    fn tokens_are_long_and_two() {
        let of = |tokens: &str| parse(&GOOD.replace("[listen]", &format!("{tokens}\n[listen]")));
        let long = "0123456789abcdef";
        let both = format!("[http]\ntoken = \"{long}\"\nread_token = \"{long}0\"");
        assert_eq!(of(&both).unwrap().http.token.as_deref(), Some(long));
        assert_eq!(parse(GOOD).unwrap().http, Tokens::default());
        let short = of("[http]\ntoken = \"short\"").unwrap_err();
        assert!(short.contains("at least 16") && !short.contains("short"), "{short}");
        let alone = of(&format!("[http]\nread_token = \"{long}\"")).unwrap_err();
        assert!(alone.contains("beside another"), "{alone}");
    }

    #[test]
    fn what_all_share_may_stand_in_a_file_of_its_own() {
        let dir = std::env::temp_dir().join(format!("gabion-settings-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let shared = format!(
            "cluster = \"{}\"\nsecret = \"{}\"\n[[voters]]\nnode = 2\nname = \"b\"\n\
             api = \"10.0.0.2:7400\"\npeer = \"10.0.0.2:7500\"\nnbd = \"10.0.0.2:10809\"\n\
             http = \"10.0.0.2:7600\"\n[limits]\nsegment_bytes = 1048576\n",
            "01".repeat(16),
            "02".repeat(32)
        );
        std::fs::write(dir.join("cluster.toml"), shared).unwrap();
        let parse = |text: &str| Settings::parse(&dir.join("node.toml"), text);
        let short = "node = 2\ndir = \"/x\"\ncluster_file = \"cluster.toml\"\n";
        let disk = "[[disks]]\npath = \"/dev/sdb\"\n";
        let settings = parse(&format!("{short}{disk}")).unwrap();
        assert_eq!((settings.info.name.as_str(), settings.secret[0]), ("b", 2));
        assert_eq!(settings.listen.api.to_string(), "10.0.0.2:7400");
        assert_eq!(settings.listen.beyond_loopback().len(), 4);
        assert_eq!(settings.disks[0].size_bytes, None);
        assert_eq!(settings.limits.segment.bytes(), 1 << 20);
        let listen = "[listen]\napi = \"0.0.0.0:7400\"\npeer = \"127.0.0.1:1\"\n\
                      nbd = \"127.0.0.1:2\"\nhttp = \"[::1]:3\"\n";
        let settings = parse(&format!("{short}{listen}")).unwrap();
        assert_eq!(settings.listen.beyond_loopback(), [("api", settings.listen.api)]);
        assert_eq!(settings.info.api, "10.0.0.2:7400", "others are told where it is");
        let both = parse(&format!("{short}secret = \"x\"\n")).unwrap_err().to_string();
        assert!(both.contains("the only place"), "{both}");
        let stranger = parse(&short.replace("node = 2", "node = 3")).unwrap_err().to_string();
        assert!(stranger.contains("none of the voters"), "{stranger}");
        let none = parse(&short.replace("cluster.toml", "gone.toml")).unwrap_err().to_string();
        assert!(none.contains("cluster init"), "{none}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_socket_path_that_no_address_holds_is_told_as_that() {
        let path = format!("/{}", "d".repeat(SOCKET_PATH_BYTES_MAX - 1));
        let with = |path: &str| {
            parse(&GOOD.replacen("[listen]", &format!("[listen]\nnbd_unix = \"{path}\""), 1))
        };
        assert!(with(&path).is_ok());
        let error = with(&format!("{path}d")).unwrap_err();
        assert!(error.contains("at most 107 bytes"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, named) in [
            ("node = 1\n        name = \"node1\"\n        dir", "nodes = 1\n dir", "nodes"),
            ("000102030405060708090a0b0c0d0e0f", "xyz", "`cluster`"),
            ("cluster = \"000102030405060708090a0b0c0d0e0f\"", "", "cluster init"),
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
