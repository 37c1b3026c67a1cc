//! What this node knows of what happened: in memory, and in files that outlive its process.

use crate::control::event_file::EventFile;
use crate::control::events::{Text, map_event, node_event, voters_event};
use crate::control::history::now_ms;
use gabion_api::v1::Event;
use gabion_cluster::MapEvent;
use gabion_node::NodeEvent;
use gabion_store::StoreEvent;
use gabion_types::{DiskId, MapIndex, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// Events that a node remembers; the oldest go first. A few MiB.
pub const EVENTS_MAX: usize = 16_384;
/// For so long, if they are not too many.
pub const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// A reader that is so many behind loses the oldest.
const BEHIND_MAX: usize = 1024;

/// Links are tried again many times a second: the same refusal within so long, among the last so
/// many events, is told once.
const REPEAT_MS: u64 = 10_000;
const REPEATS_AMONG: usize = 16;

/// Where an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Every node knows it from the map.
    Map,
    /// Only this node noticed it.
    Node,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    pub origin: Origin,
    pub event: Event,
}

/// The last events of this node.
pub struct EventLog {
    node: NodeId,
    kept: Mutex<Kept>,
    live: broadcast::Sender<Noted>,
    file: EventFile,
}

#[derive(Default)]
struct Kept {
    next: u64,
    events: VecDeque<Noted>,
}

impl Kept {
    fn of(events: VecDeque<Noted>) -> Self {
        let next = events.iter().map(|noted| noted.event.number).max().unwrap_or_default();
        Self { next, events }
    }

    /// The same was said a moment ago: a node that knocks again and again is one event.
    fn says_already(&self, text: &Text, time_ms: u64) -> bool {
        let latest = self.events.iter().rev().take(REPEATS_AMONG);
        let same = |noted: &Noted| {
            let event = &noted.event;
            event.text == text.text
                && event.volume == text.volume.map(VolumeId::get)
                && event.time_ms + REPEAT_MS > time_ms
        };
        text.kind == "link_refused" && latest.into_iter().any(same)
    }

    /// A process before this one told it.
    fn has(&self, map_index: Option<u64>, text: &Text) -> bool {
        let same = |event: &Event| event.map_index == map_index && event.text == text.text;
        map_index.is_some() && self.events.iter().any(|noted| same(&noted.event))
    }

    fn forget_older_than(&mut self, time_ms: u64) {
        while self.events.front().is_some_and(|noted| noted.event.time_ms < time_ms) {
            self.events.pop_front();
        }
    }
}

impl EventLog {
    /// With what earlier processes of this node left in its directory.
    pub fn new(node: NodeId, dir: &Path) -> Self {
        let (file, events) = EventFile::open(dir, oldest(now_ms()));
        let live = broadcast::Sender::new(BEHIND_MAX);
        Self { node, kept: Mutex::new(Kept::of(events)), live, file }
    }

    pub fn on_node_event(&self, event: &NodeEvent) {
        let text = node_event(event);
        if let NodeEvent::Store { event: StoreEvent::Checkpointed { .. }, .. } = event {
            // Work as ever, every few seconds: it would push out what somebody wants to know.
            text.log();
            return;
        }
        self.note(Origin::Node, text, None);
    }

    pub fn on_map_event(&self, event: &MapEvent) {
        self.note(Origin::Map, map_event(event), Some(event.index));
    }

    /// Told by each node; heard by operators once.
    pub fn on_voters(&self, before: &BTreeSet<NodeId>, now: &BTreeSet<NodeId>, index: MapIndex) {
        self.note(Origin::Map, voters_event(before, now), Some(index));
    }

    /// Those that are kept, oldest first, and all that come from now on.
    pub fn follow(&self) -> (Vec<Noted>, broadcast::Receiver<Noted>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.events.iter().cloned().collect(), self.live.subscribe())
    }

    fn note(&self, origin: Origin, text: Text, at: Option<MapIndex>) {
        let time_ms = now_ms();
        let map_index = at.map(MapIndex::get);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.says_already(&text, time_ms) || kept.has(map_index, &text) {
            return;
        }
        text.log();
        kept.next += 1;
        let event = Event {
            number: kept.next,
            time_ms,
            node: self.node.get(),
            severity: text.severity.into(),
            kind: text.kind.to_owned(),
            text: text.text,
            volume: text.volume.map(VolumeId::get),
            disk: text.disk.map(DiskId::get),
            map_index,
        };
        let noted = Noted { origin, event };
        kept.forget_older_than(oldest(time_ms));
        if kept.events.len() >= EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.events.push_back(noted.clone());
        self.file.keep(&noted);
        // Fails only when nobody follows.
        let _unread = self.live.send(noted);
    }
}

/// Older ones are forgotten. Units: ms since 1970.
fn oldest(now_ms: u64) -> u64 {
    now_ms.saturating_sub(u64::try_from(KEPT_FOR.as_millis()).unwrap_or(u64::MAX))
}

/// What several nodes keep, told once, in the order of time: of the same change of the map the first word
/// that any of them has.
pub fn merged(told: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut events: Vec<Event> = told.into_iter().collect();
    events.sort_by_key(|event| (event.time_ms, event.node, event.number));
    let mut seen = BTreeSet::new();
    events.retain(|event| {
        let Some(index) = event.map_index else { return true };
        seen.insert((index, event.kind.clone(), event.text.clone()))
    });
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_cluster::Fact;
    use std::fs;
    use std::path::PathBuf;

    fn dir(what: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("gabion-{what}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        dir
    }

    fn silent(index: u64, node: u32) -> MapEvent {
        let node = NodeId::new(node);
        MapEvent { index: MapIndex::new(index), what: Fact::NodeSilent { node } }
    }

    fn told(log: &EventLog) -> Vec<(u64, String)> {
        let (kept, _) = log.follow();
        kept.into_iter().map(|noted| (noted.event.number, noted.event.text)).collect()
    }

    #[test]
    fn the_next_process_knows_what_the_one_before_did() {
        let dir = dir("event-log");
        let first = EventLog::new(NodeId::new(1), &dir);
        first.on_map_event(&silent(7, 2));
        first.on_node_event(&NodeEvent::PeerDown { node: NodeId::new(2) });
        let before = told(&first);
        assert_eq!(before.len(), 2);
        drop(first);
        let second = EventLog::new(NodeId::new(1), &dir);
        assert_eq!(told(&second), before);
        // It sees that entry of the log again, and another one.
        second.on_map_event(&silent(7, 2));
        second.on_map_event(&silent(9, 2));
        let after = told(&second);
        assert_eq!(after[..2], before[..]);
        assert_eq!((after.len(), after[2].0), (3, 3), "its numbers go on");
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn what_is_work_as_ever_is_no_event() {
        let dir = dir("event-work");
        let log = EventLog::new(NodeId::new(1), &dir);
        let event = StoreEvent::Checkpointed { pages: 4 };
        log.on_node_event(&NodeEvent::Store { disk: gabion_node::DiskSlot(0), event });
        assert!(told(&log).is_empty());
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn what_several_nodes_tell_is_told_once_with_the_earliest_time() {
        let event = |node, number, time_ms, map_index, text: &str| Event {
            node,
            number,
            time_ms,
            map_index,
            text: text.to_owned(),
            ..Event::default()
        };
        let all = merged([
            event(1, 1, 50, Some(3), "made"),
            event(1, 2, 90, None, "seen by one"),
            event(2, 1, 40, Some(3), "made"),
            event(2, 2, 60, Some(4), "made"),
            event(2, 3, 91, None, "seen by one"),
        ]);
        let times: Vec<(u64, u32)> = all.iter().map(|event| (event.time_ms, event.node)).collect();
        assert_eq!(times, [(40, 2), (60, 2), (90, 1), (91, 2)]);
    }
}
