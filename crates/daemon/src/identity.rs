//! Who this node is, and which disks were made for it: `identity.toml` in its directory, written by
//! `gabion node init`. A directory without it is not the node's: its file system is not mounted, say.

use crate::settings::Settings;
use gabion_types::ClusterId;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const NAME: &str = "identity.toml";
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    version: u32,
    /// 32 hex digits.
    cluster: String,
    node: u32,
    /// Every disk was made; else it was interrupted.
    pub complete: bool,
    /// Its consensus log was made: where it is not there any more, it was lost.
    #[serde(default)]
    pub log_made: bool,
    /// The cluster removed it for good.
    #[serde(default)]
    pub removed: bool,
    #[serde(default)]
    pub disks: Vec<KnownDisk>,
    /// One more that is being made; what is there of it may be made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub making: Option<KnownDisk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDisk {
    pub path: PathBuf,
    /// 32 hex digits.
    pub uuid: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "{dir} does not hold the identity of node {node}; if the node ran before, is the file \
         system mounted that holds it? else `gabion node init` makes it, and the node's disks",
        dir = dir.display()
    )]
    Missing { dir: PathBuf, node: u32 },
    #[error(
        "{path} is of node {node} of cluster {cluster}, the configuration is of another one; \
         give each node a directory of its own", path = path.display()
    )]
    Other { path: PathBuf, cluster: String, node: u32 },
    #[error(
        "the disks of node {node} were not all made: that was interrupted; `gabion node init` \
         goes on with it"
    )]
    Incomplete { node: u32 },
    #[error(
        "node {node} was removed from the cluster; give what is made here another id, and a \
         directory of its own"
    )]
    Removed { node: u32 },
    #[error("{path} is not what this version reads ({why})", path = path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
}

impl Identity {
    pub fn new(settings: &Settings, disks: Vec<KnownDisk>, complete: bool) -> Self {
        let cluster = settings.cluster.to_string();
        let node = settings.info.id.get();
        Self {
            version: VERSION,
            cluster,
            node,
            complete,
            log_made: false,
            removed: false,
            disks,
            making: None,
        }
    }

    /// Of a node that may run. Errors: it was not made, not to its end, or is another node's.
    pub fn of_initialised(settings: &Settings) -> Result<Self, IdentityError> {
        let node = settings.info.id.get();
        let missing = || IdentityError::Missing { dir: settings.dir.clone(), node };
        let identity = Self::read(settings)?.ok_or_else(missing)?;
        if !identity.complete {
            return Err(IdentityError::Incomplete { node });
        }
        Ok(identity)
    }

    /// None: there is none. Errors: it is another node's.
    pub fn read(settings: &Settings) -> Result<Option<Self>, IdentityError> {
        let path = settings.dir.join(NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(IdentityError::Io { path, error }),
        };
        let identity: Self = toml::from_str(&text).map_err(|error| IdentityError::Unreadable {
            path: path.clone(),
            why: error.message().to_owned(),
        })?;
        if identity.version != VERSION {
            let why = format!("version {}", identity.version);
            return Err(IdentityError::Unreadable { path, why });
        }
        let ours = Self::new(settings, Vec::new(), true);
        if identity.cluster != ours.cluster || identity.node != ours.node {
            let Self { cluster, node, .. } = identity;
            return Err(IdentityError::Other { path, cluster, node });
        }
        Ok(Some(identity))
    }

    /// Durable: when it returns; never half of it.
    pub fn write(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(NAME);
        let text = toml::to_string(self).expect("plain structs of strings and numbers");
        write_whole(&path, text.as_bytes(), 0o644)
            .map_err(|error| IdentityError::Io { path, error })
    }

    pub fn knows(&self, cluster: ClusterId, uuid: [u8; 16]) -> bool {
        let uuid = hex(uuid);
        let mut all = self.disks.iter().chain(&self.making);
        self.cluster == cluster.to_string() && all.any(|disk| disk.uuid == uuid)
    }
}

pub fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file is either what it was or all of the new: written beside it, synced, renamed. Nobody but
/// its owner sees more of it than `mode` allows, at any moment.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
