//! What the loss of one node or one disk would cost as things stand now: the one judgement that the
//! command line, the console and the metrics tell.

use crate::map::{Map, VolumeEntry, VolumeState};
use gabion_types::{DiskId, NodeId, SegmentMembers, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// What may be lost by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Node(NodeId),
    Disk(DiskId),
}

/// What that would cost one volume. Units: segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// No usable copy from then on: their I/O waits.
    pub held: u64,
    /// Their only copy is there: if it does not come back, they are lost.
    pub lost: u64,
}

/// The loss of one part that would cost something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub part: Part,
    /// No majority of the voters would be left.
    pub stops_cluster: bool,
    pub volumes: BTreeMap<VolumeId, Cost>,
}

/// Losses, worst first. None: all is served and nothing is lost, whichever one part goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Safety {
    pub losses: Vec<Loss>,
}

impl Safety {
    /// `voters`: whose vote counts; that of who was removed does not.
    pub fn of(map: &Map, voters: &BTreeSet<NodeId>) -> Self {
        let mut losses = Losses::default();
        for entry in map.volumes().values() {
            losses.add_volume(map, entry);
        }
        losses.add_votes(map, voters);
        losses.into_safety()
    }

    /// As `of`, for what one volume would feel.
    pub fn of_volume(map: &Map, voters: &BTreeSet<NodeId>, entry: &VolumeEntry) -> Self {
        let mut losses = Losses::default();
        losses.add_volume(map, entry);
        losses.add_votes(map, voters);
        losses.into_safety()
    }

    pub fn survives_any_node(&self) -> bool {
        !self.losses.iter().any(|loss| matches!(loss.part, Part::Node(_)))
    }

    pub fn survives_any_disk(&self) -> bool {
        !self.losses.iter().any(|loss| matches!(loss.part, Part::Disk(_)))
    }

    /// Segments that the loss of one more part would cost: each as often as there are such parts of
    /// the kind that costs most.
    pub fn at_risk(&self, volume: VolumeId) -> u64 {
        let of = |loss: &Loss| loss.volumes.get(&volume).copied().unwrap_or_default();
        let sum = |nodes: bool| -> u64 {
            let kind = |loss: &&Loss| matches!(loss.part, Part::Node(_)) == nodes;
            let costs = self.losses.iter().filter(kind).map(of);
            costs.map(|cost| cost.held.max(cost.lost)).sum()
        };
        sum(true).max(sum(false))
    }
}

impl Loss {
    fn segments(&self) -> (u64, u64) {
        let costs = self.volumes.values();
        costs.fold((0, 0), |(lost, held), cost| (lost + cost.lost, held + cost.held))
    }
}

#[derive(Default)]
struct Losses {
    stops: BTreeSet<NodeId>,
    costs: BTreeMap<Part, BTreeMap<VolumeId, Cost>>,
}

impl Losses {
    fn add_volume(&mut self, map: &Map, entry: &VolumeEntry) {
        if entry.state != VolumeState::Ready {
            return;
        }
        for members in &entry.segments {
            let copies = Copies::of(map, members);
            if let Some(node) = only(copies.usable.iter().map(|(node, _)| *node)) {
                self.cost(Part::Node(node), entry.id).held += 1;
            }
            if let Some(node) = only(copies.whole.iter().map(|(node, _)| *node)) {
                self.cost(Part::Node(node), entry.id).lost += 1;
            }
            if let Some(disk) = only(copies.usable.iter().map(|(_, disk)| *disk)) {
                self.cost(Part::Disk(disk), entry.id).held += 1;
            }
            if let Some(disk) = only(copies.whole.iter().map(|(_, disk)| *disk)) {
                self.cost(Part::Disk(disk), entry.id).lost += 1;
            }
        }
    }

    /// A voter whose silence would leave too few.
    fn add_votes(&mut self, map: &Map, voters: &BTreeSet<NodeId>) {
        let all = voters.iter().filter(|node| !map.is_removed(**node));
        let all: Vec<NodeId> = all.copied().collect();
        let alive: Vec<NodeId> = all.iter().copied().filter(|node| map.is_alive(*node)).collect();
        let majority = all.len() / 2 + 1;
        if alive.len() <= majority {
            self.stops.extend(alive);
        }
    }

    fn cost(&mut self, part: Part, volume: VolumeId) -> &mut Cost {
        self.costs.entry(part).or_default().entry(volume).or_default()
    }

    fn into_safety(self) -> Safety {
        let Self { stops, mut costs } = self;
        for node in &stops {
            costs.entry(Part::Node(*node)).or_default();
        }
        let loss = |(part, volumes)| {
            let stops_cluster = matches!(part, Part::Node(node) if stops.contains(&node));
            Loss { part, stops_cluster, volumes }
        };
        let mut losses: Vec<Loss> = costs.into_iter().map(loss).collect();
        losses.sort_by_key(|loss| {
            let (lost, held) = loss.segments();
            (std::cmp::Reverse((lost, loss.stops_cluster, held)), loss.part)
        });
        Safety { losses }
    }
}

/// Where the in-sync copies of a segment are.
struct Copies {
    /// Can be read now.
    usable: BTreeSet<(NodeId, DiskId)>,
    /// Also those that a silent node, or one that runs without the disk, may bring back.
    whole: BTreeSet<(NodeId, DiskId)>,
}

impl Copies {
    fn of(map: &Map, members: &SegmentMembers) -> Self {
        let mut copies = Self { usable: BTreeSet::new(), whole: BTreeSet::new() };
        for disk in &members.in_sync {
            let Some(entry) = map.disk(*disk).filter(|entry| !entry.is_failed()) else { continue };
            copies.whole.insert((entry.node, *disk));
            if entry.is_in_service() && map.is_alive(entry.node) {
                copies.usable.insert((entry.node, *disk));
            }
        }
        copies
    }
}

/// The one that they all are.
fn only<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests;
