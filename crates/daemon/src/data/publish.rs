//! What the rest of the process sees of the node.

use gabion_cluster::Map;
use gabion_engine::Caller;
use gabion_node::{GuestId, Node, NodeStats};
use gabion_types::{Duration, Instant};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// At most one a so long.
const INTERVAL: Duration = Duration::from_millis(100);

type Callers = Arc<BTreeMap<GuestId, Caller>>;

/// As of a moment ago.
#[derive(Clone, Debug)]
pub struct Published {
    pub stats: NodeStats,
    /// The same one until the map changes.
    pub map: Arc<Map>,
    /// Who this node's NBD guests are.
    pub callers: Callers,
}

impl Published {
    pub(crate) fn of(node: &Node) -> Self {
        Self { stats: node.stats(), map: Arc::new(node.map().clone()), callers: Arc::default() }
    }
}

pub(crate) struct Publisher {
    sender: watch::Sender<Arc<Published>>,
    last: Instant,
    dirty: bool,
}

impl Publisher {
    pub(crate) fn new(sender: watch::Sender<Arc<Published>>, now: Instant) -> Self {
        Self { sender, last: now, dirty: true }
    }

    /// Something happened that may show.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.dirty.then(|| self.last + INTERVAL)
    }

    pub(crate) fn publish_when_due(&mut self, now: Instant, node: &Node, callers: &Callers) {
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.publish(now, node, callers);
        }
    }

    pub(crate) fn publish(&mut self, now: Instant, node: &Node, callers: &Callers) {
        let stats = node.stats();
        let before = Arc::clone(&self.sender.borrow());
        let map = if before.stats.map == stats.map {
            Arc::clone(&before.map)
        } else {
            Arc::new(node.map().clone())
        };
        self.sender.send_replace(Arc::new(Published { stats, map, callers: Arc::clone(callers) }));
        self.last = now;
        self.dirty = false;
    }
}
