//! Which peers and disks are done without, as operators read it.

use crate::control::show::Told;
use gabion_api::v1::{
    Breaker, BreakerState, Disk, DiskState, DoubtedDisk, LocalDisk, Node, NodeState, PeerBreaker,
};
use gabion_cluster::{DiskEntry, Map};
use gabion_node::{NodeStats, PeerStats};
use gabion_types::{self as types, BreakerSeen, DiskId, NodeId, VolumeId};

pub(super) fn breaker(seen: &BreakerSeen) -> Breaker {
    Breaker {
        state: match seen.state {
            types::BreakerState::Closed => BreakerState::Closed,
            types::BreakerState::HalfOpen => BreakerState::HalfOpen,
            types::BreakerState::Open => BreakerState::Open,
        }
        .into(),
        why: seen.why.clone(),
        lasts_ms: u64::try_from(seen.lasts.as_millis()).unwrap_or(u64::MAX),
    }
}

/// What a node tells of its peers.
pub(super) fn peers(peers: &[PeerStats]) -> Vec<PeerBreaker> {
    let told = |peer: &PeerStats| PeerBreaker {
        node: peer.node.get(),
        breaker: Some(breaker(&peer.breaker)),
    };
    peers.iter().map(told).collect()
}

/// What the owner of a volume tells of disks.
pub(super) fn doubted(stats: &NodeStats, volume: VolumeId) -> Vec<DoubtedDisk> {
    let of_volume = stats.doubts.iter().filter(|(of, ..)| *of == volume);
    let told = of_volume.map(|(_, disk, seen)| DoubtedDisk {
        disk: disk.get(),
        volume: String::new(),
        breaker: Some(breaker(seen)),
    });
    told.collect()
}

/// By its own node. One that could not be opened has no number there.
pub(super) fn of_disk(told: &Told, id: DiskId, entry: &DiskEntry) -> Option<Breaker> {
    let disks = &told.nodes.get(&entry.node)?.disks;
    let numbered = disks.iter().find(|disk| disk.disk == id.get());
    let unnumbered = |disk: &&LocalDisk| disk.disk == 0 && disk.path == entry.path;
    numbered.or_else(|| disks.iter().find(unnumbered))?.breaker.clone()
}

/// By the owners of volumes.
pub(super) fn doubts_of(map: &Map, told: &Told, id: DiskId) -> Vec<DoubtedDisk> {
    let mut doubts = Vec::new();
    for local in told.nodes.values().flat_map(|node| &node.volumes) {
        let name = VolumeId::new(local.volume);
        let name = map.volume(name).map_or(String::new(), |entry| entry.spec.name.clone());
        let of_disk = local.doubted.iter().filter(|doubt| doubt.disk == id.get());
        doubts.extend(of_disk.map(|doubt| DoubtedDisk { volume: name.clone(), ..doubt.clone() }));
    }
    doubts
}

pub(super) fn peers_of(told: &Told, node: NodeId) -> Vec<PeerBreaker> {
    told.nodes.get(&node).map_or_else(Vec::new, |told| told.peers.clone())
}

/// What the map does not tell, one sentence each: nodes that count as there and do not reach each other, disks
/// that are in service and that somebody does without.
pub(super) fn notes(nodes: &[Node]) -> Vec<String> {
    let mut notes = Vec::new();
    let name = |id: u32| nodes.iter().find(|node| node.id == id).map_or("", |node| &node.name);
    let is_up = |id: u32| nodes.iter().any(|node| node.id == id && node.state() == NodeState::Up);
    for node in nodes {
        let open = node.peers.iter().filter(|peer| is_up(peer.node));
        for (peer, breaker) in open.filter_map(|peer| Some((peer.node, peer.breaker.as_ref()?))) {
            if breaker.state() == BreakerState::Open {
                let (seconds, why) = (breaker.lasts_ms / 1000, &breaker.why);
                notes.push(format!(
                    "node {} has done without node {} for {seconds} s: {why}",
                    node.name,
                    name(peer)
                ));
            }
        }
        // Of one that is out of service the map tells.
        for disk in node.disks.iter().filter(|disk| disk.state() == DiskState::InService) {
            notes.extend(
                disk.doubted.iter().filter_map(|doubt| doubt_note(disk, &node.name, doubt)),
            );
        }
    }
    notes
}

fn doubt_note(disk: &Disk, node: &str, doubt: &DoubtedDisk) -> Option<String> {
    let breaker = doubt.breaker.as_ref()?;
    let (id, volume, why) = (disk.id, &doubt.volume, &breaker.why);
    let seconds = breaker.lasts_ms / 1000;
    Some(format!(
        "volume {volume} has done without disk {id} on node {node} for {seconds} s: {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_there_and_done_without_is_told() {
        let breaker = |state: BreakerState| {
            Some(Breaker { state: state.into(), why: "no byte".into(), lasts_ms: 2500 })
        };
        let node = |id: u32, state: NodeState, of_third: BreakerState| Node {
            id,
            name: format!("n{id}"),
            state: state.into(),
            peers: vec![PeerBreaker { node: 3, breaker: breaker(of_third) }],
            ..Node::default()
        };
        let mut nodes = vec![
            node(1, NodeState::Up, BreakerState::Open),
            node(2, NodeState::Up, BreakerState::HalfOpen),
            Node { peers: Vec::new(), ..node(3, NodeState::Up, BreakerState::Closed) },
        ];
        assert_eq!(notes(&nodes), ["node n1 has done without node n3 for 2 s: no byte"]);
        // That it is silent is told already.
        nodes[2].state = NodeState::Silent.into();
        assert_eq!(notes(&nodes), Vec::<String>::new());
        nodes[2].disks = vec![Disk {
            id: 7,
            state: DiskState::InService.into(),
            doubted: vec![DoubtedDisk {
                disk: 7,
                volume: "vm1".into(),
                breaker: breaker(BreakerState::Open),
            }],
            ..Disk::default()
        }];
        let told = "volume vm1 has done without disk 7 on node n3 for 2 s: no byte";
        assert_eq!(notes(&nodes), [told]);
    }
}
