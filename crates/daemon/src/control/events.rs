//! What happened, in the words that operators read.

use gabion_api::v1::Severity;
use gabion_cluster::{DrainOf, DrainReason, DrainStep, Fact, MapEvent};
use gabion_node::NodeEvent;
use gabion_store::{Damage, StoreEvent};
use gabion_types::{DiskId, NodeId, ScrubFound, ScrubKind, VolumeId};
use gabion_volume::{MemberFailure, VolumeEvent};
use std::collections::BTreeSet;

pub struct Text {
    pub severity: Severity,
    /// Short, and stable.
    pub kind: &'static str,
    /// A sentence for people.
    pub text: String,
    pub volume: Option<VolumeId>,
    pub disk: Option<DiskId>,
}

impl Text {
    fn info(kind: &'static str, text: String) -> Self {
        Self { severity: Severity::Info, kind, text, volume: None, disk: None }
    }

    fn warn(kind: &'static str, text: String) -> Self {
        Self { severity: Severity::Warn, ..Self::info(kind, text) }
    }

    fn error(kind: &'static str, text: String) -> Self {
        Self { severity: Severity::Error, ..Self::info(kind, text) }
    }

    fn volume(self, volume: VolumeId) -> Self {
        Self { volume: Some(volume), ..self }
    }

    fn disk(self, disk: DiskId) -> Self {
        Self { disk: Some(disk), ..self }
    }
}

impl Text {
    pub fn log(&self) {
        let (kind, what) = (self.kind, &self.text);
        match self.severity {
            Severity::Error => tracing::error!(kind, "{what}"),
            Severity::Warn => tracing::warn!(kind, "{what}"),
            Severity::Info | Severity::Unspecified => tracing::info!(kind, "{what}"),
        }
    }
}

pub fn node_event(event: &NodeEvent) -> Text {
    match event {
        NodeEvent::PeerUp { node } => {
            Text::info("peer_up", format!("node {} can be reached", node.get()))
        }
        NodeEvent::PeerDown { node } => {
            Text::warn("peer_down", format!("node {} cannot be reached", node.get()))
        }
        NodeEvent::LinkRefused { node, reason } => {
            let whom = node.map_or("somebody".to_owned(), |node| format!("node {}", node.get()));
            Text::warn("link_refused", format!("a link with {whom} was refused: {reason:?}"))
        }
        NodeEvent::DiskOpened { disk, id, map } => {
            let text = format!("disk {} of this node is open; it saw map {map}", disk.0);
            id.iter().fold(Text::info("disk_opened", text), |text, id| text.disk(*id))
        }
        NodeEvent::DiskOut { disk, why } => Text::error(
            "disk_out",
            format!("disk {} of this node is out of service: {why}", disk.0),
        ),
        NodeEvent::Store { disk, event } => store_event(disk.0, event),
        NodeEvent::Volume { volume, event } => volume_event(event).volume(*volume),
        NodeEvent::Owning { volume } => {
            let text = format!("this node owns volume {}", volume.get());
            Text::info("owning", text).volume(*volume)
        }
        NodeEvent::OwningEnded { volume } => {
            let text = format!("this node does not own volume {} any more", volume.get());
            Text::info("owning_ended", text).volume(*volume)
        }
        NodeEvent::Removed => {
            let text = "this node was removed from the cluster; its process stops".to_owned();
            Text::warn("removed", text)
        }
        NodeEvent::Superseded { by } => {
            let text = format!("another process of this node runs ({by}); this one stops");
            Text::error("superseded", text)
        }
    }
}

fn store_event(disk: u32, event: &StoreEvent) -> Text {
    match event {
        StoreEvent::Recovered { frames, entries_dropped } => {
            let text = format!(
                "disk {disk} of this node replayed {frames} frames of its journal and dropped \
                 {entries_dropped} entries that were never answered"
            );
            Text::info("recovered", text)
        }
        StoreEvent::Damaged(Damage { part, offset, segment }) => {
            let text = format!("disk {disk} of this node: the {part} at byte {offset} is damaged");
            match segment {
                None => Text::warn("damaged", text),
                Some((volume, index)) => {
                    let of = format!(
                        "{text}; it is of segment {} of volume {}",
                        index.get(),
                        volume.get()
                    );
                    Text::warn("damaged", of).volume(*volume)
                }
            }
        }
        StoreEvent::Corrupt { volume, segment, block } => {
            let text = format!(
                "disk {disk} of this node gave wrong data for block {block} of segment {segment} \
                 of volume {volume}"
            );
            Text::warn("corrupt", text).volume(VolumeId::new(*volume))
        }
        StoreEvent::Checkpointed { pages } => {
            Text::info("checkpoint", format!("disk {disk} of this node wrote {pages} pages"))
        }
    }
}

fn volume_event(event: &VolumeEvent) -> Text {
    match event {
        VolumeEvent::TookOver { segments, settled_blocks, lost_blocks, took } => {
            let text = format!(
                "took over: {segments} segments, {settled_blocks} blocks settled, \
                 {lost_blocks} lost, in {took:?}"
            );
            if *lost_blocks > 0 {
                return Text::error("takeover", text);
            }
            Text::info("takeover", text)
        }
        VolumeEvent::MemberFailed { disk, why: MemberFailure::Leaving } => {
            let text =
                format!("the copies on disk {} are done without: its node stops", disk.get());
            Text::info("member_leaves", text).disk(*disk)
        }
        VolumeEvent::MemberFailed { disk, why } => {
            let text = format!("the copies on disk {} failed: {why:?}", disk.get());
            Text::warn("member_failed", text).disk(*disk)
        }
        VolumeEvent::FillStarted { disk, segment, full } => {
            let how = if *full { "from the base" } else { "by what it missed" };
            let text = format!("segment {segment} on disk {} is being filled {how}", disk.get());
            Text::info("fill_started", text).disk(*disk)
        }
        VolumeEvent::FillDone { disk, segment, copied_bytes, took } => {
            let text = format!(
                "segment {segment} on disk {} is filled: {copied_bytes} bytes in {took:?}",
                disk.get()
            );
            Text::info("fill_done", text).disk(*disk)
        }
        VolumeEvent::Repaired { disk, segment, blocks } => {
            let text =
                format!("{blocks} blocks of segment {segment} were mended on disk {}", disk.get());
            Text::warn("repaired", text).disk(*disk)
        }
        VolumeEvent::ScrubBegan { deep } => {
            let what = if *deep { "every block of" } else { "the tables of" };
            Text::info("scrub_began", format!("{what} all copies are being looked through"))
        }
        VolumeEvent::Scrubbed { deep, found, took } => {
            let kind = if *deep { ScrubKind::Deep } else { ScrubKind::Light };
            let text = scrubbed(kind, found);
            Text { kind: "scrub_ended", text: format!("{}, in {took:?}", text.text), ..text }
        }
        VolumeEvent::Lost { segment, block, blocks } => {
            let text = format!(
                "{blocks} blocks of segment {segment}, from block {block} on, are lost: no copy is \
                 readable"
            );
            Text::error("lost", text)
        }
        VolumeEvent::Held { segment } => {
            Text::error("held", format!("segment {segment} has no usable copy: its I/O waits"))
        }
        VolumeEvent::Combining { segment, disk, elder } => {
            let text = format!(
                "no whole copy of segment {segment} is left: what disk {disk} got since disk {elder} left, \
                 and what that has from before, are put together"
            );
            Text::warn("combining", text)
        }
        VolumeEvent::Unfit { segment, disk } => {
            let text = format!(
                "disk {disk} has lost something of segment {segment}: nothing is made whole with it"
            );
            Text::warn("unfit", text)
        }
        VolumeEvent::HoldOver { segment } => {
            Text::info("hold_over", format!("segment {segment} is served again"))
        }
    }
}

fn scrubbed(kind: ScrubKind, found: &ScrubFound) -> Text {
    let name = match kind {
        ScrubKind::Light => "light",
        ScrubKind::Deep => "deep",
    };
    let text = format!(
        "a {name} scrub compared {} blocks and verified {}: {} bad, {} behind, {} mended, {} \
         differing, {} lost, {} parts passed over",
        found.compared_blocks,
        found.verified_blocks,
        found.bad_blocks,
        found.behind_blocks,
        found.mended_blocks,
        found.differing_blocks,
        found.lost_blocks,
        found.skipped
    );
    if found.lost_blocks + found.differing_blocks > 0 {
        Text::error("scrubbed", text)
    } else if found.bad_blocks + found.behind_blocks > 0 {
        Text::warn("scrubbed", text)
    } else {
        Text::info("scrubbed", text)
    }
}

pub fn map_event(event: &MapEvent) -> Text {
    match &event.what {
        Fact::Initialized => Text::info("initialized", "the cluster is made".to_owned()),
        Fact::Recovered { disks, volumes, held } => Text::warn(
            "recovered_from_disks",
            format!(
                "the map was made anew from what {disks} disks say: {volumes} volumes, {held} segments that \
                 nobody can serve"
            ),
        ),
        Fact::MajorityForced { lost } => {
            let lost: Vec<u32> = lost.iter().map(|node| node.get()).collect();
            let text = format!(
                "an operator has said that nodes {lost:?} are gone for good: the cluster goes on without \
                 their votes, and without what only they had heard"
            );
            Text::warn("majority_forced", text)
        }
        Fact::NodeAdmitted { node, name } => {
            let text = format!("node {name} may join as node {}: its token was good", node.get());
            Text::info("node_admitted", text)
        }
        Fact::NodeRegistered { node, incarnation } => {
            let text = format!("node {} started ({incarnation})", node.get());
            Text::info("node_registered", text)
        }
        Fact::NodeSilent { node } => {
            Text::warn("node_silent", format!("node {} is silent: its lease ended", node.get()))
        }
        Fact::NodeRevived { node } => {
            Text::info("node_revived", format!("node {} is back", node.get()))
        }
        Fact::Led { node, term } => {
            Text::info("leader", format!("node {} leads the cluster in term {term}", node.get()))
        }
        Fact::DiskAdded { disk, node } => {
            let text = format!("disk {} was added on node {}", disk.get(), node.get());
            Text::info("disk_added", text).disk(*disk)
        }
        Fact::DiskMoved { disk, node } => {
            let text = format!("disk {} is on node {} now", disk.get(), node.get());
            Text::info("disk_moved", text).disk(*disk)
        }
        Fact::DiskMissing { disk } => {
            let text = format!("disk {} is missing: its node runs without it", disk.get());
            Text::error("disk_missing", text).disk(*disk)
        }
        Fact::DiskFailed { disk } => {
            let text = format!("disk {} failed for good", disk.get());
            Text::error("disk_failed", text).disk(*disk)
        }
        Fact::Levelling { volume, copies: 0 } => {
            let text = format!("copies of volume {} stay: something is amiss", volume.get());
            Text::info("levelling_off", text).volume(*volume)
        }
        Fact::Levelling { volume, copies } => {
            let text = format!(
                "{copies} copies of volume {} move to other disks, to level them",
                volume.get()
            );
            Text::info("levelling", text).volume(*volume)
        }
        Fact::VolumeCreated { volume, name } => {
            Text::info("volume_created", format!("volume {name} was created")).volume(*volume)
        }
        Fact::VolumeReady { volume } => {
            let text = format!("volume {} is ready", volume.get());
            Text::info("volume_ready", text).volume(*volume)
        }
        Fact::VolumeResized { volume, size_bytes } => {
            let text = format!("volume {} has {size_bytes} bytes", volume.get());
            Text::info("volume_resized", text).volume(*volume)
        }
        Fact::VolumeDeleted { volume, name } => {
            Text::info("volume_deleted", format!("volume {name} was deleted")).volume(*volume)
        }
        Fact::TakenOver { volume, node, epoch } => {
            let text = format!("node {} owns volume {} at {epoch}", node.get(), volume.get());
            Text::info("taken_over", text).volume(*volume)
        }
        Fact::Released { volume, clean } => {
            let how = if *clean { "clean" } else { "not clean" };
            Text::info("released", format!("volume {} was released, {how}", volume.get()))
                .volume(*volume)
        }
        Fact::Disowned { volume, node } => {
            let text = format!("node {} lost volume {}", node.get(), volume.get());
            Text::warn("disowned", text).volume(*volume)
        }
        Fact::Evicted { volume } => {
            Text::warn("evicted", "its guests were evicted".to_owned()).volume(*volume)
        }
        Fact::NodeRemoved { node, disks } => {
            let text = format!("node {} was removed, with {disks} disks", node.get());
            Text::info("node_removed", text)
        }
        Fact::Drain { of, step } => drain_event(*of, *step),
        Fact::MemberRemoved { .. }
        | Fact::JoinerAdded { .. }
        | Fact::Promoted { .. }
        | Fact::Combined { .. }
        | Fact::LossAccepted { .. }
        | Fact::Forgotten { .. }
        | Fact::Scrubbed { .. }
        | Fact::SettingChanged { .. } => member_event(&event.what),
    }
}

pub fn voters_event(before: &BTreeSet<NodeId>, now: &BTreeSet<NodeId>) -> Text {
    let names = |ids: &mut dyn Iterator<Item = &NodeId>| {
        ids.map(|id| id.get().to_string()).collect::<Vec<_>>().join(", ")
    };
    let (new, old) = (names(&mut now.difference(before)), names(&mut before.difference(now)));
    let mut text = format!("nodes {} vote", names(&mut now.iter()));
    for (what, whom) in [("new", new), ("no more", old)] {
        if !whom.is_empty() {
            text.push_str(&format!("; {what}: {whom}"));
        }
    }
    Text::info("voters", text)
}

fn drain_event(of: DrainOf, step: DrainStep) -> Text {
    let (what, copies) = match of {
        DrainOf::Disk(disk) => (format!("disk {}", disk.get()), "its copies"),
        DrainOf::Node(node) => (format!("node {}", node.get()), "the copies on its disks"),
    };
    let text = match step {
        DrainStep::Begun { why: DrainReason::Operator } => {
            Text::info("draining", format!("{what} is being drained: {copies} move elsewhere"))
        }
        DrainStep::Begun { why: DrainReason::Suspect { corrupt_blocks } } => {
            let text = format!(
                "{what} is suspect: {corrupt_blocks} blocks of it were corrupt; {copies} move elsewhere"
            );
            Text::warn("suspect", text)
        }
        DrainStep::Cancelled => Text::info(
            "drain_cancelled",
            format!("{what} is not drained any more: it is used again"),
        ),
        DrainStep::Done => {
            let text = format!("{what} is drained: nothing is left on it, it may be taken away");
            Text::info("drained", text)
        }
    };
    match of {
        DrainOf::Disk(disk) => text.disk(disk),
        DrainOf::Node(_) => text,
    }
}

fn member_event(fact: &Fact) -> Text {
    let of = |kind, verb: &str, volume: &VolumeId, disk: &DiskId, segments: &u32| {
        let (id, on) = (volume.get(), disk.get());
        let text = format!("{segments} copies of volume {id} on disk {on} {verb}");
        Text::info(kind, text).volume(*volume).disk(*disk)
    };
    match fact {
        Fact::MemberRemoved { volume, disk, segments } => Text {
            severity: Severity::Warn,
            ..of("member_removed", "were removed", volume, disk, segments)
        },
        Fact::JoinerAdded { volume, disk, segments } => {
            of("joiner_added", "began to join", volume, disk, segments)
        }
        Fact::Promoted { volume, disk, segments } => {
            of("promoted", "are in sync", volume, disk, segments)
        }
        Fact::Combined { volume, disk, elder, segments } => {
            let how = format!("are whole again, with what disk {} had", elder.get());
            Text { severity: Severity::Warn, ..of("combined", &how, volume, disk, segments) }
        }
        Fact::LossAccepted { volume, disk, whole, segments } => {
            let verb = if *whole {
                "go on as they were when they left, by an operator's word: what was written since is LOST"
            } else {
                "go on with what they have, by an operator's word: the rest is LOST, and reads of it fail until it \
                 is written"
            };
            Text { severity: Severity::Error, ..of("loss_accepted", verb, volume, disk, segments) }
        }
        Fact::Forgotten { volume, disk, segments } => {
            of("forgotten", "are dropped", volume, disk, segments)
        }
        Fact::Scrubbed { volume, kind, found } => scrubbed(*kind, found).volume(*volume),
        Fact::SettingChanged { name, value } => {
            Text::info("setting_changed", format!("setting {name} is {value}"))
        }
        Fact::Initialized
        | Fact::Recovered { .. }
        | Fact::MajorityForced { .. }
        | Fact::NodeAdmitted { .. }
        | Fact::NodeRegistered { .. }
        | Fact::NodeSilent { .. }
        | Fact::NodeRevived { .. }
        | Fact::Led { .. }
        | Fact::DiskAdded { .. }
        | Fact::DiskMoved { .. }
        | Fact::DiskMissing { .. }
        | Fact::DiskFailed { .. }
        | Fact::Evicted { .. }
        | Fact::NodeRemoved { .. }
        | Fact::Drain { .. }
        | Fact::Levelling { .. }
        | Fact::VolumeCreated { .. }
        | Fact::VolumeReady { .. }
        | Fact::VolumeResized { .. }
        | Fact::VolumeDeleted { .. }
        | Fact::TakenOver { .. }
        | Fact::Released { .. }
        | Fact::Disowned { .. } => Text::info("map", format!("{fact:?}")),
    }
}
