//! `gabion cluster recover --from-disks`: all nodes have lost their consensus logs, and with them the map.
//! It is made anew from what the disks say.

use crate::cli::RecoverArgs;
use crate::failure::{Exit, Failure};
use crate::offline_disk::{OfflineDisk, refused};
use crate::process;
use crate::size::ByteSize;
use crate::verbs::{force_majority, show};
use gabion_daemon::recover::{
    Doubt, FoundDisk, Known, KnownVolume, RecoverError, Salvage, Stopped, salvage,
};
use gabion_store::inspect::{self, Holdings};
use gabion_types::{ClusterId, Limits, NodeId, SegmentIndex, VolumeId};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// What somebody remembers of a volume, as it is typed: `ID=NAME[,size=20GiB][,rf=2]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    id: u32,
    known: KnownVolume,
}

impl FromStr for Remembered {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let wants = || format!("{typed:?} is not like 3=vm1,size=20GiB,rf=2");
        let (id, rest) = typed.split_once('=').ok_or_else(wants)?;
        let mut parts = rest.split(',');
        let name = parts.next().filter(|name| !name.is_empty()).ok_or_else(wants)?;
        let mut known = KnownVolume { name: Some(name.to_owned()), ..KnownVolume::default() };
        for part in parts {
            match part.split_once('=').ok_or_else(wants)? {
                ("size", size) => {
                    let size: ByteSize = size.parse().map_err(|error| format!("{error}"))?;
                    known.size_bytes = Some(size.0);
                }
                ("rf", rf) => known.rf = Some(rf.parse().map_err(|_| wants())?),
                (_, _) => return Err(wants()),
            }
        }
        Ok(Self { id: id.parse().map_err(|_| wants())?, known })
    }
}

/// What was found of one disk of a node.
struct Read {
    node: NodeId,
    path: PathBuf,
    held: Result<Holdings, Failure>,
}

pub fn run(args: &RecoverArgs, as_json: bool) -> Result<(), Failure> {
    if !args.force_majority.is_empty() {
        return force_majority::run(args, as_json);
    }
    let mut nodes = Vec::new();
    for config in configs(&args.from_disks)? {
        nodes.push(Stopped::hold(process::settings(&config)?).map_err(|error| cannot(&error))?);
    }
    let Some(first) = nodes.first() else {
        return Err(Failure::new(Exit::NotFound, "no node was named", ""));
    };
    let (cluster, voters) = (first.settings.cluster, first.settings.voters.clone());
    if let Some(other) = nodes.iter().find(|node| node.settings.cluster != cluster) {
        let what = format!("node {} is of another cluster", other.settings.info.id.get());
        return Err(Failure::new(Exit::Refused, what, "name the nodes of one cluster"));
    }
    let disks = read_disks(&nodes);
    let mut absent: Vec<String> = voters
        .iter()
        .filter(|voter| nodes.iter().all(|node| node.settings.info.id != voter.id))
        .map(|voter| format!("node {} ({}) was not named", voter.id.get(), voter.name))
        .collect();
    let unread = disks.iter().filter_map(|disk| Some((disk, disk.held.as_ref().err()?)));
    absent.extend(unread.map(|(disk, why)| format!("node {}: {}", disk.node.get(), why.what)));
    let held = disks.iter().filter_map(|disk| Some((disk, disk.held.as_ref().ok()?)));
    let held: Vec<(&Read, &Holdings)> = held.collect();
    let limits = limits_of(&held, cluster)?;
    let remembered = args.volumes.iter().map(|one| (VolumeId::new(one.id), one.known.clone()));
    let known = Known { cluster, limits, volumes: remembered.collect() };
    let found = held.iter().map(|(disk, held)| found(disk, held)).collect();
    let salvaged = salvage(&known, found)
        .map_err(|error| Failure::new(Exit::Refused, error.to_string(), "nothing was written"))?;
    let may = absent.is_empty() || args.others_are_lost;
    let written = may && !args.dry_run;
    if written {
        give(&mut nodes, &salvaged)?;
    }
    show(as_json, &shown(cluster, &disks, &salvaged, &absent, written), || {
        text(&disks, &salvaged, &absent, args, written)
    });
    if may {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Refused,
        "what is not here may be newer than what is: nothing was written",
        "bring those, or give --others-are-lost if they are gone for good",
    ))
}

/// The configurations of nodes: each named itself, by the node's directory, or by that of `up`.
pub(super) fn configs(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut configs = Vec::new();
    for path in named {
        let own = path.join("config.toml");
        if path.is_file() {
            configs.push(path.clone());
        } else if own.is_file() {
            configs.push(own);
        } else {
            let inside = std::fs::read_dir(path).map_err(|e| Failure::io("read", path, &e))?;
            let inside = inside.filter_map(|entry| Some(entry.ok()?.path().join("config.toml")));
            let mut inside: Vec<_> = inside.filter(|config| config.is_file()).collect();
            if inside.is_empty() {
                let what = format!("there is no config.toml in {}", path.display());
                let next = "name each node's directory, or its configuration file";
                return Err(Failure::new(Exit::NotFound, what, next));
            }
            inside.sort();
            configs.extend(inside);
        }
    }
    Ok(configs)
}

fn read_disks(nodes: &[Stopped]) -> Vec<Read> {
    let mut disks = Vec::new();
    for node in nodes {
        for path in &node.disks {
            let node = node.settings.info.id;
            disks.push(Read { node, path: path.clone(), held: holdings(path) });
        }
    }
    disks
}

fn holdings(path: &Path) -> Result<Holdings, Failure> {
    let disk = OfflineDisk::open(path)?;
    let mut read = |offset, length| disk.read(offset, length);
    inspect::holdings(disk.bytes, &mut read).map_err(|why| refused(path, why))
}

/// All disks of a cluster were formatted alike.
fn limits_of(disks: &[(&Read, &Holdings)], cluster: ClusterId) -> Result<Limits, Failure> {
    if let Some((disk, held)) = disks.iter().find(|(_, held)| held.cluster != cluster) {
        let what = format!("disk {} is of cluster {}", disk.path.display(), held.cluster);
        return Err(Failure::new(Exit::Refused, what, "take it away, or name the right nodes"));
    }
    let Some((first, of_first)) = disks.first() else {
        return Err(Failure::failed("no disk can be read", "see `gabion disk check`"));
    };
    match disks.iter().find(|(_, held)| held.limits != of_first.limits) {
        None => Ok(of_first.limits),
        Some((other, _)) => Err(Failure::new(
            Exit::Refused,
            format!(
                "{} and {} were formatted with different limits",
                first.path.display(),
                other.path.display()
            ),
            "they are not of one cluster",
        )),
    }
}

fn found(disk: &Read, held: &Holdings) -> FoundDisk {
    FoundDisk {
        uuid: held.uuid,
        node: disk.node,
        path: disk.path.display().to_string(),
        capacity_bytes: held.capacity_bytes,
        highest_map: held.highest_map,
        fences: held.fences.clone(),
        replicas: held.replicas.clone(),
    }
}

/// Elections raise a term by one: no log of this cluster can know one as high as the time.
pub(super) fn highest_term() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn give(nodes: &mut [Stopped], salvaged: &Salvage) -> Result<(), Failure> {
    let runtime = process::runtime()?;
    let term = highest_term();
    for node in nodes {
        let given = runtime.block_on(node.give(term, &salvaged.map));
        given.map_err(|error| cannot(&error))?;
    }
    Ok(())
}

pub(super) fn cannot(error: &RecoverError) -> Failure {
    let (exit, next) = match error {
        RecoverError::HasLog { .. } => {
            (Exit::Refused, "where a majority has its logs, all is there")
        }
        RecoverError::Home(_) => (Exit::Refused, "stop the node first"),
        RecoverError::NoLog { .. } => {
            (Exit::Refused, "leave it out: it can be given anew as another node")
        }
        RecoverError::Identity(_)
        | RecoverError::Log(_)
        | RecoverError::Access(_)
        | RecoverError::Map(_)
        | RecoverError::Io { .. } => (Exit::Failed, "nothing of this cluster was changed by it"),
    };
    Failure::new(exit, error.to_string(), next)
}

/// Of each volume: those that are held, and those with fewer copies.
fn doubts_of(salvaged: &Salvage, id: VolumeId) -> (Vec<u32>, Vec<u32>) {
    let (mut held, mut fewer) = (Vec::new(), Vec::new());
    for doubt in &salvaged.doubts {
        let (volume, segments, list) = match doubt {
            Doubt::Missing { volume, segments } | Doubt::NotWhole { volume, segments } => {
                (volume, segments, &mut held)
            }
            Doubt::FewerCopies { volume, segments } => (volume, segments, &mut fewer),
        };
        if *volume == id {
            list.extend(segments.iter().copied().map(SegmentIndex::get));
        }
    }
    held.sort_unstable();
    (held, fewer)
}

fn shown(
    cluster: ClusterId,
    disks: &[Read],
    salvaged: &Salvage,
    absent: &[String],
    written: bool,
) -> Value {
    let disks = disks.iter().map(|disk| {
        json!({
            "node": disk.node.get().to_string(), "path": disk.path,
            "replicas": disk.held.as_ref().ok().map(|held| held.replicas.len()),
            "error": disk.held.as_ref().err().map(|why| why.what.clone()),
        })
    });
    let volumes = salvaged.map.volumes().values().map(|volume| {
        let (held, fewer) = doubts_of(salvaged, volume.id);
        json!({
            "id": volume.id.get().to_string(), "name": volume.spec.name,
            "size_bytes": volume.spec.size_bytes, "rf": volume.spec.rf,
            "segments": volume.segment_count(), "held_segments": held,
            "segments_with_fewer_copies": fewer,
        })
    });
    json!({
        "cluster_id": cluster.to_string(), "disks": disks.collect::<Vec<_>>(),
        "volumes": volumes.collect::<Vec<_>>(), "absent": absent, "written": written,
        "gone": salvaged.gone.iter().map(|id| id.get().to_string()).collect::<Vec<_>>(),
    })
}

fn text(
    disks: &[Read],
    salvaged: &Salvage,
    absent: &[String],
    args: &RecoverArgs,
    written: bool,
) -> String {
    let mut lines = Vec::new();
    for disk in disks {
        let (node, path) = (disk.node.get(), disk.path.display());
        let says = match &disk.held {
            Ok(held) => format!("{} segments", held.replicas.len()),
            Err(why) => why.what.clone(),
        };
        lines.push(format!("  node {node}  {path}: {says}"));
    }
    for volume in salvaged.map.volumes().values() {
        let (held, fewer) = doubts_of(salvaged, volume.id);
        let spec = &volume.spec;
        let mut line = format!(
            "volume {} is {}: {}, {} copies, {} segments",
            volume.id.get(),
            spec.name,
            ByteSize(spec.size_bytes),
            spec.rf,
            volume.segment_count()
        );
        if !held.is_empty() {
            line += &format!("; HELD, for nobody here has all of them: segments {held:?}");
        }
        if !fewer.is_empty() {
            line += &format!("; fewer copies, which are made anew: segments {fewer:?}");
        }
        lines.push(line);
    }
    if !salvaged.gone.is_empty() {
        let gone: Vec<u32> = salvaged.gone.iter().map(|id| id.get()).collect();
        lines.push(format!(
            "volumes {gone:?} were deleted, or all that they had is lost: no disk has any of it"
        ));
    }
    lines.extend(absent.iter().map(|what| format!("ABSENT: {what}")));
    lines.push(
        "no disk knows: names and sizes of volumes (--volume ID=NAME,size=S,rf=N says them), settings, events, \
         and deletions that it had not heard of"
            .to_owned(),
    );
    lines.push(match (written, args.dry_run) {
        (true, _) => "each node has a log with this map: start them all".to_owned(),
        (false, true) => "nothing was written (--dry-run)".to_owned(),
        (false, false) => "nothing was written".to_owned(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_remembers_is_read_as_typed() {
        let read = |typed: &str| typed.parse::<Remembered>();
        let whole = read("3=vm1,size=20GiB,rf=2").unwrap();
        assert_eq!((whole.id, whole.known.name.as_deref()), (3, Some("vm1")));
        assert_eq!((whole.known.size_bytes, whole.known.rf), (Some(20 << 30), Some(2)));
        assert_eq!(read("3=vm1").unwrap().known.size_bytes, None);
        for wrong in ["", "3", "3=", "x=vm1", "3=vm1,size=20G", "3=vm1,rf=x", "3=vm1,other=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
