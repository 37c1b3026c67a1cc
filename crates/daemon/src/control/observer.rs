//! Watches this node's copy of the map: where nodes are, since when they are up or silent, events.

use crate::consensus::{Replica, SharedMap};
use crate::control::event_log::EventLog;
use crate::control::peers::Peers;
use crate::control::show;
use gabion_cluster::{Fact, Map, MapEvent, NodeState};
use gabion_types::{MapIndex, NodeId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub struct Observer {
    map: SharedMap,
    peers: Arc<Peers>,
    events: Arc<EventLog>,
    since: Mutex<Since>,
    voters: Mutex<BTreeSet<NodeId>>,
}

#[derive(Debug, Default)]
struct Since {
    nodes: BTreeMap<NodeId, (NodeState, Instant)>,
    /// Volumes with fewer copies than they are to have, or some on nodes that are silent.
    short: BTreeMap<VolumeId, Instant>,
}

impl Observer {
    /// What the map tells already is not an event, but that it was made anew before this start.
    pub fn start(map: SharedMap, peers: Arc<Peers>, events: Arc<EventLog>) -> Arc<Self> {
        let observer = Arc::new(Self {
            map,
            peers,
            events,
            since: Mutex::default(),
            voters: Mutex::default(),
        });
        let mut seen = observer.map.read_map(Map::applied);
        let newest = observer.map.read_map(|map| map.events().next_back().cloned());
        if let Some(event) = newest
            .filter(|it| matches!(it.what, Fact::Recovered { .. } | Fact::MajorityForced { .. }))
        {
            observer.events.on_map_event(&event);
        }
        let weak = Arc::downgrade(&observer);
        let mut applied = observer.map.applied();
        tokio::spawn(async move {
            while let Some(observer) = weak.upgrade() {
                applied.mark_unchanged();
                observer.look(&mut seen);
                drop(observer);
                if applied.changed().await.is_err() {
                    return;
                }
            }
        });
        observer
    }

    /// How long a node has been in the state that the map gives it, as far as this process knows.
    pub fn since(&self, node: NodeId) -> Duration {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.nodes.get(&node).map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// How long volumes are short of copies by the map, as far as this process knows.
    pub fn short(&self) -> BTreeMap<VolumeId, Duration> {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.short.iter().map(|(volume, since)| (*volume, since.elapsed())).collect()
    }

    /// The first that are seen are no event.
    fn look_at_voters(&self) {
        let look = |replica: &Replica| {
            (!replica.voters_change()).then(|| (replica.voters(), replica.voters_index()))
        };
        let Some((voters, index)) = self.map.read(look) else { return };
        let mut seen = self.voters.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *seen, voters.clone());
        if !before.is_empty() && before != voters {
            self.events.on_voters(&before, &voters, index);
        }
    }

    fn look(&self, seen: &mut MapIndex) {
        let (nodes, short, events, applied) = self.map.read_map(|map| {
            let nodes: Vec<_> = map
                .nodes()
                .iter()
                .map(|(id, node)| (*id, node.state, node.info.api.clone()))
                .collect();
            let short = map.volumes().values().filter(|entry| show::is_short(map, entry));
            let short: BTreeSet<_> = short.map(|entry| entry.id).collect();
            let newer = |event: &&MapEvent| event.index > *seen;
            let events: Vec<MapEvent> = map.events().filter(newer).cloned().collect();
            (nodes, short, events, map.applied())
        });
        *seen = applied;
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, state, api) in nodes {
            self.peers.learn(id, &api);
            match since.nodes.get(&id) {
                Some((before, _)) if *before == state => {}
                Some(_) | None => {
                    since.nodes.insert(id, (state, Instant::now()));
                }
            }
        }
        since.short.retain(|volume, _| short.contains(volume));
        for volume in short {
            since.short.entry(volume).or_insert_with(Instant::now);
        }
        drop(since);
        self.look_at_voters();
        events.iter().for_each(|event| self.events.on_map_event(event));
    }
}
