//! Makes a node: its identity, and its disks. Nothing else ever makes or formats a disk.

mod found;
#[cfg(test)]
mod tests;

use crate::data::{NewDiskError, format_device, make_disk_file};
use crate::home::{Home, HomeError, random};
use crate::identity::{Identity, IdentityError, KnownDisk, hex};
use crate::settings::{Disk, Settings};
use found::{Found, look};
use gabion_store::NewDisk;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Nothing was touched.
    #[error("{}", all_of(.0))]
    Refused(Vec<RefusedDisk>),
    #[error(transparent)]
    Disk(#[from] NewDiskError),
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A disk that is not made, and why.
#[derive(Debug, thiserror::Error)]
pub enum RefusedDisk {
    #[error("{path} holds {held}; --force makes a disk of it, and that is lost", path = path.display())]
    Holds { path: PathBuf, held: String },
    #[error(
        "{path}, which was made for this node, is not there; connect or mount it; --force makes a \
         new one in its place, and what only that one held is lost", path = path.display()
    )]
    Gone { path: PathBuf },
    #[error("{path} is in use: it is mounted, or another process has it; --force does not change \
             that", path = path.display())]
    InUse { path: PathBuf },
    #[error("there is no device {path}; see `lsblk`", path = path.display())]
    NoDevice { path: PathBuf },
    #[error(
        "there is no directory for the disk file {path}; make it, or mount what belongs there",
        path = path.display()
    )]
    NoDirectory { path: PathBuf },
    #[error("the size of the new disk file {path} is not given; add `size_bytes`", path = path.display())]
    NoSize { path: PathBuf },
    #[error("{path} is no file and no block device", path = path.display())]
    NotADisk { path: PathBuf },
    #[error("{path} has {found} bytes, and {wanted} are to be used", path = path.display())]
    TooSmall { path: PathBuf, found: u64, wanted: u64 },
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
}

fn all_of(refused: &[RefusedDisk]) -> String {
    refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What became of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitedDisk {
    pub path: PathBuf,
    pub done: Done,
    /// What it held, or what was in its place, is lost.
    pub lost: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was made for this node before.
    Kept,
    MadeFile {
        bytes: u64,
    },
    FormattedDevice {
        bytes: u64,
    },
}

impl fmt::Display for InitedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.done {
            Done::Kept => write!(f, "{path}: is this node's already")?,
            Done::MadeFile { bytes } => write!(f, "{path}: made, {bytes} bytes")?,
            Done::FormattedDevice { bytes } => write!(f, "{path}: formatted, {bytes} bytes")?,
        }
        match &self.lost {
            Some(lost) => write!(f, "; lost: {lost}"),
            None => Ok(()),
        }
    }
}

/// What is to be done with one disk.
struct Plan {
    done: Done,
    lost: Option<String>,
    /// A file is in the way.
    replaces: bool,
}

/// Whether `gabion node init` has nothing to do before this node can run.
pub fn is_initialised(settings: &Settings) -> Result<bool, IdentityError> {
    Ok(Identity::read(settings)?.is_some_and(|identity| identity.complete))
}

/// The cluster removed this node for good: it cannot run any more.
pub fn is_removed(settings: &Settings) -> Result<bool, IdentityError> {
    Ok(Identity::read(settings)?.is_some_and(|identity| identity.removed))
}

/// Writes the node's identity and makes its disks, each whole before it has its name. Blocks for as
/// long as that takes; `progress` is told the bytes of disk files that are written, and of all.
/// What was made before is kept; an interrupted call is gone on with by the next.
///
/// Durable: when it returns. Errors: a disk holds data (`force` takes it nevertheless), or cannot be
/// made; all that is wrong is told before anything is touched.
pub fn init(
    settings: &Settings,
    force: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<InitedDisk>, InitError> {
    let _home = Home::hold(&settings.dir)?;
    let known = Identity::read(settings)?;
    if known.as_ref().is_some_and(|known| known.removed) {
        return Err(IdentityError::Removed { node: settings.info.id.get() }.into());
    }
    let plans = plan_all(settings, known.as_ref(), force)?;
    let mut identity = Identity::new(settings, Vec::new(), false);
    if let Some(known) = known {
        (identity.disks, identity.log_made) = (known.disks, known.log_made);
    }
    let mut uuids = Vec::new();
    for (disk, plan) in settings.disks.iter().zip(&plans) {
        let uuid = match plan.done {
            Done::Kept => kept_uuid(&disk.path)?,
            Done::MadeFile { .. } | Done::FormattedDevice { .. } => random_uuid()?,
        };
        // One that was moved, or is made anew in its place, is known once.
        identity.disks.retain(|old| old.path != disk.path && old.uuid != hex(uuid));
        identity.disks.push(KnownDisk { path: disk.path.clone(), uuid: hex(uuid) });
        uuids.push(uuid);
    }
    identity.write(&settings.dir)?;
    let bytes_of = |plan: &Plan| match plan.done {
        Done::MadeFile { bytes } => bytes,
        Done::Kept | Done::FormattedDevice { .. } => 0,
    };
    let all: u64 = plans.iter().map(bytes_of).sum();
    let mut before = 0;
    let mut made = Vec::new();
    for ((disk, plan), uuid) in settings.disks.iter().zip(plans).zip(uuids) {
        make(settings, disk, &plan, uuid, |bytes| progress(before + bytes, all))?;
        before += bytes_of(&plan);
        made.push(InitedDisk { path: disk.path.clone(), done: plan.done, lost: plan.lost });
    }
    identity.complete = true;
    identity.write(&settings.dir)?;
    Ok(made)
}

/// Makes one disk more of a node that was made before. Its process calls it, or whoever holds its
/// directory. As `init`; `settings` need not name the disk.
pub fn add(
    settings: &Settings,
    disk: &Disk,
    force: bool,
    progress: impl FnMut(u64),
) -> Result<InitedDisk, InitError> {
    let mut identity = Identity::of_initialised(settings)?;
    if identity.removed {
        return Err(IdentityError::Removed { node: settings.info.id.get() }.into());
    }
    let plan = plan_one(settings, disk, Some(&identity), force);
    let plan = plan.map_err(|refused| InitError::Refused(vec![refused]))?;
    let uuid = match plan.done {
        Done::Kept => kept_uuid(&disk.path)?,
        Done::MadeFile { .. } | Done::FormattedDevice { .. } => random_uuid()?,
    };
    let known = KnownDisk { path: disk.path.clone(), uuid: hex(uuid) };
    identity.making = Some(known.clone());
    identity.write(&settings.dir)?;
    make(settings, disk, &plan, uuid, progress)?;
    identity.making = None;
    identity.disks.retain(|old| old.path != known.path && old.uuid != known.uuid);
    identity.disks.push(known);
    identity.write(&settings.dir)?;
    Ok(InitedDisk { path: disk.path.clone(), done: plan.done, lost: plan.lost })
}

/// As `add`, of a node that does not run. Errors: it does.
pub fn add_to_stopped(
    settings: &Settings,
    disk: &Disk,
    force: bool,
    progress: impl FnMut(u64),
) -> Result<InitedDisk, InitError> {
    let _home = Home::hold(&settings.dir)?;
    add(settings, disk, force, progress)
}

fn make(
    settings: &Settings,
    disk: &Disk,
    plan: &Plan,
    uuid: [u8; 16],
    progress: impl FnMut(u64),
) -> Result<(), InitError> {
    let new = |capacity_bytes| NewDisk {
        cluster: settings.cluster,
        uuid,
        capacity_bytes,
        limits: settings.limits,
    };
    match plan.done {
        Done::Kept => {}
        Done::MadeFile { bytes } => {
            if plan.replaces {
                let failed = |error| InitError::Io { path: disk.path.clone(), error };
                std::fs::remove_file(&disk.path).map_err(failed)?;
            }
            make_disk_file(&disk.path, &new(bytes), progress)?;
        }
        Done::FormattedDevice { bytes } => format_device(&disk.path, &new(bytes))?,
    }
    Ok(())
}

fn plan_all(
    settings: &Settings,
    known: Option<&Identity>,
    force: bool,
) -> Result<Vec<Plan>, InitError> {
    let planned = settings.disks.iter().map(|disk| plan_one(settings, disk, known, force));
    let (mut plans, mut refused) = (Vec::new(), Vec::new());
    for plan in planned {
        match plan {
            Ok(plan) => plans.push(plan),
            Err(why) => refused.push(why),
        }
    }
    if refused.is_empty() { Ok(plans) } else { Err(InitError::Refused(refused)) }
}

fn plan_one(
    settings: &Settings,
    disk: &Disk,
    known: Option<&Identity>,
    force: bool,
) -> Result<Plan, RefusedDisk> {
    // Nodes that ran before there were identities have a log, and their disks say whose they are.
    let adopts = known.is_none() && settings.dir.join("meta").exists();
    let found = look(&disk.path, |label| {
        let ours = label.cluster == settings.cluster;
        known.is_some_and(|known| known.knows(label.cluster, label.uuid)) || (adopts && ours)
    });
    let found = found.map_err(|error| RefusedDisk::Io { path: disk.path.clone(), error })?;
    plan(disk, found, known, force)
}

fn plan(
    disk: &Disk,
    found: Found,
    known: Option<&Identity>,
    force: bool,
) -> Result<Plan, RefusedDisk> {
    let path = || disk.path.clone();
    let file = |lost, replaces| {
        let bytes = disk.size_bytes.ok_or_else(|| RefusedDisk::NoSize { path: path() })?;
        Ok(Plan { done: Done::MadeFile { bytes }, lost, replaces })
    };
    match found {
        Found::Ours => Ok(Plan { done: Done::Kept, lost: None, replaces: false }),
        Found::InUse => Err(RefusedDisk::InUse { path: path() }),
        Found::NotADisk => Err(RefusedDisk::NotADisk { path: path() }),
        Found::NoDirectory => Err(RefusedDisk::NoDirectory { path: path() }),
        Found::Nothing => {
            // One that was never finished has not held anything.
            let complete = known.filter(|known| known.complete);
            let old = complete.and_then(|k| k.disks.iter().find(|old| old.path == disk.path));
            match old {
                Some(_) if !force => Err(RefusedDisk::Gone { path: path() }),
                _ if disk.path.starts_with("/dev") => Err(RefusedDisk::NoDevice { path: path() }),
                Some(old) => file(Some(format!("disk {}, which is not there", old.uuid)), false),
                None => file(None, false),
            }
        }
        Found::File { held } => match held {
            Some(held) if !force => Err(RefusedDisk::Holds { path: path(), held }),
            lost => file(lost, true),
        },
        Found::Device { bytes, held } => {
            let wanted = disk.size_bytes.unwrap_or(bytes);
            match held {
                _ if bytes < wanted => {
                    Err(RefusedDisk::TooSmall { path: path(), found: bytes, wanted })
                }
                Some(held) if !force => Err(RefusedDisk::Holds { path: path(), held }),
                lost => {
                    let done = Done::FormattedDevice { bytes: wanted };
                    Ok(Plan { done, lost, replaces: false })
                }
            }
        }
    }
}

fn kept_uuid(path: &Path) -> Result<[u8; 16], InitError> {
    let failed = |error| InitError::Io { path: path.to_owned(), error };
    let label = found::label(path).map_err(failed)?;
    label.map(|label| label.uuid).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

fn random_uuid() -> Result<[u8; 16], HomeError> {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&random()?.to_le_bytes());
    uuid[8..].copy_from_slice(&random()?.to_le_bytes());
    Ok(uuid)
}
