//! promise: acked-survives. Settled means settled: what the durable settled seq of a replica covers
//! is on every in-sync replica, and on itself, or void. Source: DESIGN 2 (`settled`), 4.1 and 4.7.
//!
//! A takeover looks at nothing at or below the highest settled seq, and a delta join at nothing at
//! or below the joiner's own: what is missing there stays missing.

use super::place::{Place, held};
use crate::oracle::Broken;
use gabion_cluster::Map;
use gabion_types::{
    BlockInfo, BlockKind, DiskId, SegmentIndex, SegmentMembers, Seq, Version, VolumeId,
};

/// What one replica has of a segment.
#[derive(Debug)]
struct Replica {
    disk: DiskId,
    settled: Seq,
    /// The seq that it reaches for sure: of a write, or of the start of an epoch.
    reach: Seq,
    blocks: Vec<BlockInfo>,
}

/// Errors: the first block that is settled, and missing somewhere.
pub fn check(map: &Map, places: &[Place<'_>]) -> Result<(), Broken> {
    for volume in map.volumes().values() {
        for (index, members) in (0..).zip(&volume.segments) {
            let segment = (volume.id, SegmentIndex::new(index));
            let replica = |disk: DiskId| read(map, places, disk, segment, members);
            let in_sync: Vec<_> = members.in_sync.iter().copied().filter_map(replica).collect();
            let trusted = members.joining.iter().filter(|joining| !joining.compare_all);
            let joining = trusted.map(|joining| joining.disk);
            let stale = members.stale.iter().filter(|stale| !stale.compare_all);
            let others = joining.chain(stale.map(|stale| stale.disk)).filter_map(replica);
            compare(&in_sync, &others.collect::<Vec<_>>()).map_err(|text| Broken {
                promise: "settled-on-all",
                text: format!("{} {}: {text}", segment.0, segment.1),
            })?;
        }
    }
    Ok(())
}

fn read(
    map: &Map,
    places: &[Place<'_>],
    disk: DiskId,
    segment: (VolumeId, SegmentIndex),
    members: &SegmentMembers,
) -> Option<Replica> {
    let (place, held) = held(map, places, disk, segment)?;
    // What rots in a frame that nothing proves durable is dropped as torn at the next start, and
    // told to the next fence, which takes the replica out. A sound disk never loses what it synced.
    let told = held.dropped_from.is_some() && place.disk.has_rotted();
    if held.creation != members.creation || held.damaged || told {
        return None;
    }
    let reach = held.highest.max(held.next.previous()).max(held.settled);
    // Promoted, and not told yet: what was installed counts as well, and is not told here.
    let reach = if held.joined.is_some() { Seq::new(u64::MAX) } else { reach };
    let blocks = place.store?.blocks(segment.0, segment.1, &mut place.peek());
    Some(Replica { disk, settled: held.settled, reach, blocks })
}

fn compare(in_sync: &[Replica], others: &[Replica]) -> Result<(), String> {
    for one in in_sync {
        for other in in_sync.iter().filter(|other| other.disk != one.disk) {
            lacks(one.settled, one, other)?;
            lacks(one.settled, other, one)?;
            // A new owner would take it for one that was rolled back.
            if other.reach < one.settled {
                let (disk, reach) = (other.disk, other.reach);
                return Err(format!(
                    "{} is settled to {}, {disk} reaches {reach}",
                    one.disk, one.settled
                ));
            }
        }
        for other in others {
            lacks(other.settled, one, other)?;
        }
    }
    Ok(())
}

/// What the first has of seqs up to `settled` and the second has not.
fn lacks(settled: Seq, has: &Replica, lacks: &Replica) -> Result<(), String> {
    for (ours, theirs) in has.blocks.iter().zip(&lacks.blocks) {
        let covered = ours.version != Version::NEVER && ours.version.seq <= settled;
        let known = |info: &BlockInfo| info.kind != BlockKind::Bad;
        if covered && known(ours) && known(theirs) && theirs.version < ours.version {
            let (one, other) = (has.disk, lacks.disk);
            let (have, lack) = (ours.version, theirs.version);
            let block = ours.block.get();
            return Err(format!(
                "block {block}: {one} has {have}, {other} has {lack}, and {settled} is settled"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::{BlockIndex, Crc, Epoch};

    fn replica(disk: u32, settled: u64, seqs: &[u64]) -> Replica {
        let info = |(block, seq): (u32, &u64)| {
            let version = Version::new(Epoch::new(1).expect("small"), Seq::new(*seq));
            let (block, crc) = (BlockIndex::new(block), Crc::default());
            BlockInfo { block, kind: BlockKind::Zero, version, crc }
        };
        let highest = seqs.iter().max().expect("some blocks");
        Replica {
            disk: DiskId::new(disk),
            settled: Seq::new(settled),
            reach: Seq::new(*highest),
            blocks: (0..).zip(seqs).map(info).collect(),
        }
    }

    #[test]
    fn what_is_settled_is_everywhere() {
        let whole = || replica(1, 5, &[3, 5, 9]);
        assert_eq!(compare(&[whole(), replica(2, 4, &[3, 5, 6])], &[]), Ok(()));
        assert!(compare(&[whole(), replica(2, 4, &[2, 5, 9])], &[]).is_err());
        assert!(compare(&[replica(2, 4, &[2, 5, 9]), whole()], &[]).is_err());
        assert!(compare(&[replica(1, 8, &[3, 8]), replica(2, 0, &[3, 7])], &[]).is_err());
        // One that left lacks what came after; what it says to have it has.
        assert_eq!(compare(&[whole()], &[replica(3, 4, &[3, 1, 1])]), Ok(()));
        assert!(compare(&[whole()], &[replica(3, 5, &[3, 1, 1])]).is_err());
    }
}
