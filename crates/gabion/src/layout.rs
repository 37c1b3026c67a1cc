//! The files and ports of a cluster on one machine: what `up` and `demo` lay out in `--dir`.
//!
//! Shape: `cluster.toml` names the nodes for all verbs; `node<i>/config.toml` is what
//! `gabion node run` reads; beside it lie that node's `pid`, `log`, `nbd.sock`, `meta/` and disks.

use crate::failure::{Exit, Failure};
use gabion_daemon::identity::write_whole;
use gabion_daemon::settings::SOCKET_PATH_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Nodes of one machine: every port range has room for so many.
pub const NODES_MAX: u32 = 64;

const API_PORT: u16 = 7400;
const PEER_PORT: u16 = 7500;
const HTTP_PORT: u16 = 7600;
const NBD_PORT: u16 = 10808;

/// `cluster.toml`: how verbs find the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// 32 hex digits.
    pub cluster: String,
    pub nodes: Vec<NodeEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub id: u32,
    pub name: String,
    pub api: String,
    /// Files of older versions lack it.
    #[serde(default)]
    pub peer: String,
    pub nbd: String,
    pub nbd_unix: PathBuf,
    pub http: String,
}

/// `node<i>/config.toml`, as `gabion node run` reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    pub cluster: String,
    pub node: u32,
    pub name: String,
    /// Files of older versions lack it.
    #[serde(default)]
    pub zone: String,
    pub dir: PathBuf,
    /// 64 hex digits.
    pub secret: String,
    pub io: String,
    pub listen: Listen,
    pub disks: Vec<DiskEntry>,
    pub voters: Vec<Voter>,
    pub limits: LimitsEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    pub api: String,
    pub peer: String,
    pub nbd: String,
    pub nbd_unix: PathBuf,
    pub http: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    pub path: PathBuf,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    pub node: u32,
    pub name: String,
    pub api: String,
    pub peer: String,
    pub nbd: String,
    pub http: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsEntry {
    pub segment_bytes: u64,
}

/// What a new cluster on this machine is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Those with disks.
    pub nodes: u32,
    pub disks: u32,
    pub disk_bytes: u64,
    /// One node more, the last, without disks: it only votes.
    pub witness: bool,
    /// Added to each port.
    pub port_offset: u16,
    pub segment_bytes: u64,
    pub io: String,
    /// Nodes are in one after the other, over and over; none: in no zone.
    pub zones: Vec<String>,
}

/// An address that a node is going to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub node: u32,
    pub what: &'static str,
    pub address: String,
}

/// A directory that holds a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDir {
    pub dir: PathBuf,
    pub file: ClusterFile,
}

impl ClusterDir {
    pub fn file_of(dir: &Path) -> PathBuf {
        dir.join("cluster.toml")
    }

    pub fn exists(dir: &Path) -> bool {
        Self::file_of(dir).exists()
    }

    /// Order: `cluster.toml` is written last, so a directory that has it is complete.
    pub fn create(dir: &Path, plan: &Plan) -> Result<Self, Failure> {
        fs::create_dir_all(dir).map_err(|e| Failure::io("make", dir, &e))?;
        let dir = fs::canonicalize(dir).map_err(|e| Failure::io("find", dir, &e))?;
        check_socket_paths(&dir, plan.all_nodes())?;
        let cluster = random_hex(16)?;
        let secret = random_hex(32)?;
        let voters: Vec<Voter> = (1..=plan.all_nodes()).map(|node| plan.voter(node)).collect();
        let mut nodes = Vec::new();
        for voter in &voters {
            let node_dir = node_dir(&dir, voter.node);
            fs::create_dir_all(&node_dir).map_err(|e| Failure::io("make", &node_dir, &e))?;
            let file = NodeFile {
                cluster: cluster.clone(),
                node: voter.node,
                name: voter.name.clone(),
                zone: plan.zone_of(voter.node),
                dir: node_dir.clone(),
                secret: secret.clone(),
                io: plan.io.clone(),
                listen: Listen {
                    api: voter.api.clone(),
                    peer: voter.peer.clone(),
                    nbd: voter.nbd.clone(),
                    nbd_unix: socket_path(&dir, voter.node),
                    http: voter.http.clone(),
                },
                disks: plan.disks_of(voter.node, &node_dir),
                voters: voters.clone(),
                limits: LimitsEntry { segment_bytes: plan.segment_bytes },
            };
            write_secret_toml(&node_dir.join("config.toml"), &file)?;
            nodes.push(NodeEntry {
                id: voter.node,
                name: voter.name.clone(),
                api: voter.api.clone(),
                peer: voter.peer.clone(),
                nbd: voter.nbd.clone(),
                nbd_unix: file.listen.nbd_unix,
                http: voter.http.clone(),
            });
        }
        let file = ClusterFile { cluster, nodes };
        write_toml(&Self::file_of(&dir), &file)?;
        Ok(Self { dir, file })
    }

    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let path = Self::file_of(dir);
        let file = read_cluster_file(&path)?;
        let dir = fs::canonicalize(dir).map_err(|e| Failure::io("find", dir, &e))?;
        Ok(Self { dir, file })
    }

    pub fn addresses(&self) -> Result<Vec<Wanted>, Failure> {
        let mut wanted = Vec::new();
        for entry in &self.file.nodes {
            let l = self.node_file(entry.id)?.listen;
            wanted.extend(Wanted::all(entry.id, [&l.api, &l.peer, &l.nbd, &l.http]));
        }
        Ok(wanted)
    }

    pub fn node_dir(&self, node: u32) -> PathBuf {
        node_dir(&self.dir, node)
    }

    pub fn config(&self, node: u32) -> PathBuf {
        self.node_dir(node).join("config.toml")
    }

    pub fn log(&self, node: u32) -> PathBuf {
        self.node_dir(node).join("log")
    }

    pub fn entry(&self, node: u32) -> Option<&NodeEntry> {
        self.file.nodes.iter().find(|entry| entry.id == node)
    }

    pub fn node_file(&self, node: u32) -> Result<NodeFile, Failure> {
        let path = self.config(node);
        let text = fs::read_to_string(&path).map_err(|e| Failure::io("read", &path, &e))?;
        toml::from_str(&text).map_err(|e| {
            Failure::failed(format!("{} is not a node's configuration: {e}", path.display()), "")
        })
    }
}

impl Wanted {
    fn all(node: u32, [api, peer, nbd, http]: [&String; 4]) -> [Self; 4] {
        let one = |what, address: &String| Self { node, what, address: address.clone() };
        [one("gRPC", api), one("peers", peer), one("NBD", nbd), one("HTTP", http)]
    }
}

impl Plan {
    fn all_nodes(&self) -> u32 {
        self.nodes + u32::from(self.witness)
    }

    pub fn addresses(&self) -> Vec<Wanted> {
        let voters = (1..=self.all_nodes()).map(|node| self.voter(node));
        voters.flat_map(|v| Wanted::all(v.node, [&v.api, &v.peer, &v.nbd, &v.http])).collect()
    }

    fn voter(&self, node: u32) -> Voter {
        let at = |base: u16| format!("127.0.0.1:{}", self.port(base, node));
        Voter {
            node,
            name: format!("node{node}"),
            api: at(API_PORT),
            peer: at(PEER_PORT),
            nbd: at(NBD_PORT),
            http: at(HTTP_PORT),
        }
    }

    fn port(&self, base: u16, node: u32) -> u16 {
        let node = u16::try_from(node).expect("at most NODES_MAX nodes");
        base.saturating_add(node).saturating_add(self.port_offset)
    }

    fn zone_of(&self, node: u32) -> String {
        let turns = self.zones.iter().cycle();
        turns.take(node as usize).last().cloned().unwrap_or_default()
    }

    fn disks_of(&self, node: u32, dir: &Path) -> Vec<DiskEntry> {
        let count = if node > self.nodes { 0 } else { self.disks };
        (0..count)
            .map(|disk| DiskEntry {
                path: dir.join(format!("disk{disk}")),
                size_bytes: self.disk_bytes,
            })
            .collect()
    }
}

/// A unix socket's path has a short limit, which a deep --dir passes.
fn check_socket_paths(dir: &Path, nodes: u32) -> Result<(), Failure> {
    let path = socket_path(dir, nodes);
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let what = format!(
        "the path of a node's socket, {}, has {bytes} bytes, and a unix socket's address holds \
         {SOCKET_PATH_BYTES_MAX}",
        path.display()
    );
    let most = dir.as_os_str().len().saturating_sub(bytes - SOCKET_PATH_BYTES_MAX);
    Err(Failure::new(Exit::Usage, what, format!("use a --dir of at most {most} bytes")))
}

fn socket_path(dir: &Path, node: u32) -> PathBuf {
    node_dir(dir, node).join("nbd.sock")
}

fn node_dir(dir: &Path, node: u32) -> PathBuf {
    dir.join(format!("node{node}"))
}

pub fn read_cluster_file(path: &Path) -> Result<ClusterFile, Failure> {
    let text = fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
    toml::from_str(&text).map_err(|e| {
        Failure::failed(format!("{} does not describe a cluster: {e}", path.display()), "")
    })
}

/// Everybody may read it.
fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    write_with_mode(path, value, 0o644)
}

/// The cluster's secret stands in it: only this user reads it, from its first byte on.
pub(crate) fn write_secret_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    write_with_mode(path, value, 0o600)
}

/// Durable: when it returns; a crash leaves what was there before, or all of the new.
fn write_with_mode<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<(), Failure> {
    let text = toml::to_string(value).expect("plain structs of strings and numbers");
    write_whole(path, text.as_bytes(), mode).map_err(|e| Failure::io("write", path, &e))
}

pub(crate) fn random_hex(bytes: usize) -> Result<String, Failure> {
    let path = Path::new("/dev/urandom");
    let mut drawn = vec![0; bytes];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut drawn))
        .map_err(|e| Failure::io("read", path, &e))?;
    Ok(drawn.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            nodes: 2,
            disks: 2,
            disk_bytes: 1 << 30,
            witness: true,
            port_offset: 100,
            segment_bytes: 1 << 28,
            io: "auto".to_owned(),
            zones: Vec::new(),
        }
    }

    #[test]
    fn a_cluster_is_found_again_as_it_was_laid_out() {
        let dir = std::env::temp_dir().join(format!("gabion-layout-{}", std::process::id()));
        let made = ClusterDir::create(&dir, &plan()).unwrap();
        let found = ClusterDir::open(&dir).unwrap();
        assert_eq!(made, found);
        assert_eq!(found.file.cluster.len(), 32);
        let second = found.node_file(2).unwrap();
        assert_eq!(second.listen.api, "127.0.0.1:7502");
        assert_eq!(second.listen.nbd, "127.0.0.1:10910");
        assert_eq!(second.disks.len(), 2);
        assert_eq!(second.voters.len(), 3);
        assert_eq!(second.secret.len(), 64);
        assert!(found.node_file(3).unwrap().disks.is_empty(), "the witness has no disks");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_secret_is_nobody_elses_at_any_moment() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("gabion-secret-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("config.toml");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // What lies there already, and what an interrupted call left, lend it no rights.
        for left in [&path, &dir.join("config.toml.new")] {
            fs::write(left, "open").unwrap();
            fs::set_permissions(left, fs::Permissions::from_mode(0o666)).unwrap();
        }
        // A reader that had it open from before sees what it was, and not the secret.
        let mut early = fs::File::open(dir.join("config.toml.new")).unwrap();
        let secret = LimitsEntry { segment_bytes: 4711 };
        write_secret_toml(&path, &secret).unwrap();
        assert_eq!(mode(&path), 0o600);
        let mut seen = String::new();
        early.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "open");
        assert!(fs::read_to_string(&path).unwrap().contains("4711"));
        assert!(!dir.join("config.toml.new").exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_too_deep_for_its_sockets_is_told_as_that() {
        let deep = std::env::temp_dir().join("d".repeat(120));
        let failure = ClusterDir::create(&deep, &plan()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.what.contains("a unix socket's address holds 107"), "{failure}");
        assert!(failure.next.contains("--dir of at most"), "{failure}");
        assert!(!ClusterDir::exists(&deep));
        fs::remove_dir_all(&deep).unwrap();
    }
}
