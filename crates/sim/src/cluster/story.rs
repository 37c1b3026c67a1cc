//! What people want to hear of a run: what went wrong, what the cluster did about it, and how long
//! guests waited. No part of the trace's hash.

use super::machine::{machine_of, who};
use super::schedule::{Strike, named};
use super::{Cluster, FaultKind};
use crate::net::Machine;
use crate::world::Who;
use gabion_cluster::{DrainOf, DrainStep, Fact, MapEvent};
use gabion_node::NodeEvent;
use gabion_store::StoreEvent;
use gabion_types::{DiskId, Duration, Instant, MapIndex, VolumeId};
use gabion_volume::VolumeEvent;
use std::fmt;

/// A longer story is cut short.
const TOLD_MAX: usize = 20_000;
/// The same thing again within so long is told once, with a sum.
const SAME_WITHIN: Duration = Duration::from_secs(1);
/// How far back the same thing is looked for.
const SAME_LINES: usize = 12;

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub at: Instant,
    pub who: Who,
    /// Stands in the text for `#`.
    pub count: u64,
    pub text: String,
}

/// The longest time in which a guest wanted something and was answered nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    pub guest: usize,
    pub volume: String,
    pub from: Instant,
    pub took: Duration,
}

#[derive(Debug, Default)]
pub struct Story {
    told: Vec<Told>,
    /// Since when every copy is there.
    pub whole_at: Option<Instant>,
    /// When the last fault ended.
    pub mended_at: Option<Instant>,
}

impl Story {
    pub fn tell(&mut self, told: Told) {
        let room = self.told.len() < TOLD_MAX;
        let mut recent = self.told.iter_mut().rev().take(SAME_LINES);
        let same = recent.find(|line| {
            let near = told.at.since(line.at) <= SAME_WITHIN;
            near && (line.who, &line.text) == (told.who, &told.text)
        });
        match same {
            Some(line) => line.count += told.count,
            None if room => self.told.push(told),
            None => {}
        }
    }

    pub fn into_lines(self) -> Vec<Told> {
        self.told
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.at.nanos() / 1_000_000;
        write!(f, "{:>5}.{:03} s  {:<7} ", ms / 1000, ms % 1000, self.who)?;
        let text = match self.count {
            1 => self.text.replace("# copies", "1 copy").replace("# segments", "1 segment"),
            count => self.text.replace('#', &count.to_string()),
        };
        f.write_str(&text)
    }
}

impl Cluster {
    pub(super) fn tell(&mut self, who: Who, text: impl Into<String>) {
        self.tell_many(who, 1, text);
    }

    /// `count` stands for `#` in the text; the same text soon after adds to it.
    fn tell_many(&mut self, who: Who, count: u32, text: impl Into<String>) {
        let (at, count, text) = (self.queue.now(), u64::from(count), text.into());
        self.story.tell(Told { at, who, count, text });
    }

    pub(super) fn tell_strike(&mut self, strike: &Strike) {
        let (one, other) = (named(strike.one), named(strike.other));
        let lasts = format!("for {:.1} s", strike.lasts.as_secs_f64());
        let text = match strike.kind {
            FaultKind::Kill => format!("{one} is killed {lasts}"),
            FaultKind::PowerCut => format!("{one} loses power {lasts}"),
            FaultKind::PowerCutAll => "all machines lose power".to_string(),
            FaultKind::Stop => format!("{one} is stopped cleanly"),
            FaultKind::Drain => format!("{one} is drained, and stopped later"),
            FaultKind::Pause => format!("{one} hangs {lasts}"),
            FaultKind::Cut => format!("{one} and {other} do not hear each other {lasts}"),
            FaultKind::CutOneWay => format!("{other} does not hear {one} {lasts}"),
            FaultKind::Isolate => format!("{one} is cut off from all others {lasts}"),
            FaultKind::Reset => format!("connections of {one} break"),
            FaultKind::SlowWay => format!("the way from {one} to {other} is slow {lasts}"),
            FaultKind::SlowDisk => format!("disks of {one} are slow {lasts}"),
            FaultKind::Unseat => "the leader is voted out".to_string(),
            FaultKind::StuckDisk => format!("disks of {one} answer nothing {lasts}"),
            FaultKind::PauseClock => format!("{one} hangs, and its clock stands still"),
            FaultKind::ClockJump => format!("the clock of {one} jumps ahead"),
            FaultKind::Leaderless => format!("nobody leads {lasts}"),
            FaultKind::Move => format!("somebody wants a volume to move to {one}"),
            FaultKind::Remake => "somebody deletes a volume and makes it anew".to_string(),
            FaultKind::Grow => "somebody wants a volume to be larger".to_string(),
            FaultKind::EmptyDisk => format!("somebody wants a disk of {one} to be empty"),
            FaultKind::Evict => "somebody closes all guests of a volume".to_string(),
            FaultKind::EmptyNode => format!("somebody wants {one} to be empty"),
            FaultKind::ReadError => format!("a disk of {one} fails a read"),
            FaultKind::WriteError => format!("a disk of {one} fails a write"),
            FaultKind::SyncError => format!("a disk of {one} fails a sync"),
            FaultKind::DeadDisk => format!("a disk of {one} fails for good"),
            FaultKind::LostWrite => format!("a disk of {one} loses a write"),
            FaultKind::AstrayWrite => format!("a disk of {one} writes to another place"),
            FaultKind::BitRot => format!("blocks of {one} rot"),
            FaultKind::NewDisk => format!("{one} gets an empty disk"),
            FaultKind::OldDisk => format!("a disk of {one} will be as it is now"),
        };
        self.tell(Who::World, text);
    }

    /// What one entry of the log changed.
    pub(super) fn tell_committed(&mut self, index: MapIndex) {
        let events = self.map.events().rev().take_while(|event| event.index == index);
        let mut facts: Vec<_> = events.map(|MapEvent { what, .. }| what.clone()).collect();
        facts.reverse();
        facts.iter().for_each(|fact| self.tell_fact(fact));
    }

    fn tell_fact(&mut self, fact: &Fact) {
        let said_by = |node: &gabion_types::NodeId| who(machine_of(*node));
        match fact {
            Fact::Initialized
            | Fact::Recovered { .. }
            | Fact::MajorityForced { .. }
            | Fact::NodeAdmitted { .. }
            | Fact::DiskAdded { .. }
            | Fact::DiskMoved { .. } => {}
            Fact::NodeRegistered { node, .. } => self.tell(said_by(node), "is a new process"),
            Fact::NodeSilent { node } => {
                self.tell(said_by(node), "counts as silent: its lease ended");
            }
            Fact::NodeRevived { node } => self.tell(said_by(node), "counts as alive again"),
            Fact::Led { node, term } => {
                self.tell(said_by(node), format!("leads the cluster in term {term}"));
            }
            Fact::DiskMissing { disk } => {
                let text = format!("{} is missing on its node", self.place(*disk));
                self.tell(Who::World, text);
            }
            Fact::DiskFailed { disk } => {
                let text = format!("{} is out for good", self.place(*disk));
                self.tell(Who::World, text);
            }
            Fact::NodeRemoved { node, .. } => self.tell(said_by(node), "is removed for good"),
            Fact::Drain { of, step } => {
                let text = match step {
                    DrainStep::Begun { .. } => "is to be emptied",
                    DrainStep::Cancelled => "is used again",
                    DrainStep::Done => "is empty",
                };
                match of {
                    DrainOf::Disk(disk) => {
                        let text = format!("{} {text}", self.place(*disk));
                        self.tell(Who::World, text);
                    }
                    DrainOf::Node(node) => self.tell(said_by(node), text),
                }
            }
            Fact::Levelling { volume, copies } => {
                self.count("levelling");
                let name = self.volume_name(*volume);
                let text = match copies {
                    0 => format!("copies of {name} stay where they are"),
                    copies => format!("{copies} copies of {name} are to be on emptier disks"),
                };
                self.tell(Who::World, text);
            }
            Fact::VolumeCreated { .. } | Fact::VolumeResized { .. } => {}
            Fact::VolumeReady { volume } => {
                let text = format!("volume {} is made", self.volume_name(*volume));
                self.tell(Who::World, text);
            }
            Fact::VolumeDeleted { name, .. } => {
                self.tell(Who::World, format!("volume {name} is deleted"));
            }
            Fact::TakenOver { volume, node, epoch } => {
                let text = format!("owns {} from {epoch} on", self.volume_name(*volume));
                self.tell(said_by(node), text);
            }
            Fact::Released { volume, clean } => {
                let how = if *clean { "cleanly" } else { "with writes under way" };
                let text = format!("{} is let go {how}", self.volume_name(*volume));
                self.tell(Who::World, text);
            }
            Fact::Disowned { volume, node } => {
                let text = format!("does not own {} any more", self.volume_name(*volume));
                self.tell(said_by(node), text);
            }
            Fact::MemberRemoved { volume, disk, segments } => {
                self.tell_members(*volume, *disk, *segments, "removed");
            }
            Fact::JoinerAdded { volume, disk, segments } => {
                self.tell_members(*volume, *disk, *segments, "begun");
            }
            Fact::Promoted { volume, disk, segments } => {
                self.tell_members(*volume, *disk, *segments, "in sync");
            }
            Fact::Combined { volume, disk, elder, segments } => {
                let how = format!("whole with what {} had", self.place(*elder));
                self.tell_members(*volume, *disk, *segments, &how);
                self.count("combined");
            }
            Fact::LossAccepted { volume, disk, whole, segments } => {
                let how = if *whole { "all that is left" } else { "what is left, and not all" };
                self.tell_members(*volume, *disk, *segments, how);
                self.count("loss-accepted");
            }
            Fact::Forgotten { volume, disk, segments } => {
                self.tell_members(*volume, *disk, *segments, "not needed any more");
            }
            Fact::Evicted { volume } => {
                let volume = self.volume_name(*volume);
                self.tell(Who::World, format!("guests of {volume} are evicted"));
            }
            // The owner says more.
            Fact::Scrubbed { .. } => {}
            Fact::SettingChanged { name, value } => {
                self.tell(Who::World, format!("{name} is {value}"));
            }
        }
    }

    fn tell_members(&mut self, volume: VolumeId, disk: DiskId, segments: u32, what: &str) {
        let (volume, place) = (self.volume_name(volume), self.place(disk));
        let text = format!("# copies of {volume} on {place} {what}");
        self.tell_many(Who::World, segments, text);
    }

    pub(super) fn tell_event(&mut self, machine: Machine, event: &NodeEvent) {
        let text = match event {
            NodeEvent::Volume { volume, event } => {
                let name = self.volume_name(*volume);
                match event {
                    VolumeEvent::TookOver { settled_blocks, took, .. } => {
                        let ms = took.as_millis();
                        let tail = match settled_blocks {
                            0 => String::new(),
                            blocks => format!(", {blocks} blocks settled"),
                        };
                        format!("serves {name} after {ms} ms{tail}")
                    }
                    VolumeEvent::Held { .. } => {
                        format!("holds requests for # segments of {name}: no usable copy")
                    }
                    VolumeEvent::HoldOver { .. } => format!("goes on with # segments of {name}"),
                    VolumeEvent::Combining { disk, elder, .. } => {
                        let (place, elder) = (self.place(*disk), self.place(*elder));
                        format!("puts # segments of {name} together from {place} and {elder}")
                    }
                    VolumeEvent::Unfit { disk, .. } => {
                        format!("finds {} not fit to make {name} whole", self.place(*disk))
                    }
                    VolumeEvent::Repaired { disk, blocks, .. } => {
                        let place = self.place(*disk);
                        format!("mended {blocks} blocks of {name} on {place}")
                    }
                    VolumeEvent::MemberFailed { disk, why } => {
                        let place = self.place(*disk);
                        format!("misses {place} for {name}: {why:?}")
                    }
                    VolumeEvent::Scrubbed { deep, found, .. } => {
                        let how = if *deep { "deeply " } else { "" };
                        format!("scrubbed {name} {how}and mended {} blocks", found.mended_blocks)
                    }
                    VolumeEvent::Lost { blocks, .. } => {
                        format!("finds {blocks} blocks of {name} readable nowhere")
                    }
                    VolumeEvent::FillStarted { .. }
                    | VolumeEvent::FillDone { .. }
                    | VolumeEvent::ScrubBegan { .. } => return,
                }
            }
            NodeEvent::DiskOut { disk, why } => {
                format!("disk{} is out of service: {why:?}", disk.0)
            }
            NodeEvent::Store { disk, event: StoreEvent::Corrupt { volume, segment, block } } => {
                format!("disk{}: block {block} of v{volume} s{segment} is corrupt", disk.0)
            }
            NodeEvent::Removed => "stops: it was removed".to_string(),
            NodeEvent::Superseded { .. } => "stops: there is a newer process".to_string(),
            NodeEvent::Store { .. }
            | NodeEvent::PeerUp { .. }
            | NodeEvent::PeerDown { .. }
            | NodeEvent::LinkRefused { .. }
            | NodeEvent::DiskOpened { .. }
            | NodeEvent::Owning { .. }
            | NodeEvent::OwningEnded { .. } => return,
        };
        self.tell(who(machine), text);
    }

    fn volume_name(&self, volume: VolumeId) -> String {
        let entry = self.map.volume(volume);
        entry.map_or_else(|| volume.to_string(), |entry| entry.spec.name.clone())
    }

    /// A disk by its machine and, where that has several, its number.
    fn place(&self, disk: DiskId) -> String {
        let Some(entry) = self.map.disk(disk) else { return disk.to_string() };
        let machine = machine_of(entry.node);
        let slot = self.machines[machine].disks.iter().position(|one| one.uuid == entry.uuid);
        match slot {
            Some(slot) if self.machines[machine].disks.len() > 1 => {
                format!("{}/disk{slot}", named(machine))
            }
            Some(_) | None => named(machine),
        }
    }

    pub(super) fn waits(&self) -> Vec<Wait> {
        let planned = self.guests.iter().take(self.swarm.guests.len()).enumerate();
        planned
            .filter_map(|(guest, one)| {
                let (from, took) = one.longest_wait?;
                let volume = self.swarm.volumes[one.plan.volume].name.clone();
                Some(Wait { guest, volume, from, took })
            })
            .collect()
    }
}
