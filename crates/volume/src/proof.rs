//! A member whose link broke may be another one now: its process restarted, on a disk that lost what
//! it had answered. Before it is used again it says what it has.

use crate::asks::{Ask, Purpose};
use crate::io::MemberFailure;
use crate::segment::JoinStep;
use crate::volume::{SEGMENTS_PER_MESSAGE, Volume};
use gabion_types::{DiskId, Instant, NodeId, SegmentIndex, Seq};
use gabion_wire::{FenceReport, FencedSegment, LinkClass, ReplicaOp};

impl Volume {
    /// The node's data link is up after it was lost: its disks are asked what they have. Until they
    /// have said so nothing else is asked of them.
    // rule: volume/replica-proves-itself-after-a-break
    pub(crate) fn prove_disks(&mut self, now: Instant, node: NodeId) {
        for disk in self.disks.unproved(node) {
            self.drop_asks(|ask| ask.disk == disk && matches!(ask.purpose, Purpose::Prove { .. }));
            self.disks.get_mut(disk).unproved = false;
            let fenced = self.served_on(disk);
            for chunk in fenced.chunks(SEGMENTS_PER_MESSAGE) {
                let segments = chunk.iter().map(|fenced| fenced.segment).collect();
                let op = ReplicaOp::Fence { segments: chunk.to_vec() };
                self.disks.get_mut(disk).proofs_out += 1;
                self.ask(now, disk, LinkClass::Data, op, Purpose::Prove { segments });
            }
        }
    }

    /// Segments that are served and of which the disk is a member.
    fn served_on(&self, disk: DiskId) -> Vec<FencedSegment> {
        let serving = self.segments.iter().filter(|segment| segment.is_serving());
        let fenced = serving.filter_map(|segment| {
            let (index, members) = (segment.index, self.members(segment.index));
            let joined = members.joining(disk).map(|joining| joining.joined);
            let member = members.is_in_sync(disk) || joined.is_some();
            member.then_some(FencedSegment { segment: index, creation: members.creation, joined })
        });
        fenced.collect()
    }

    pub(crate) fn on_proved(
        &mut self,
        now: Instant,
        disk: DiskId,
        segments: &[SegmentIndex],
        reports: &[FenceReport],
    ) {
        for report in reports.iter().filter(|report| segments.contains(&report.segment)) {
            let index = report.segment;
            if !self.segment(index).is_serving() {
                continue;
            }
            if self.members(index).is_in_sync(disk) {
                self.judge_in_sync(index, disk, report);
            } else if self.segment(index).joiners.contains_key(&disk) {
                self.judge_joiner(index, disk, report);
            }
        }
        self.members_dirty = true;
        self.fills_dirty = true;
        if self.disks.get(disk).is_some_and(|state| state.proofs_out == 0) {
            let waits = |ask: &Ask| ask.disk == disk && ask.is_parked();
            self.send_all_again(now, waits);
            self.wake_stalled();
        }
    }

    /// The last sound copy goes on whatever it has: there is no other.
    fn judge_in_sync(&mut self, index: SegmentIndex, disk: DiskId, report: &FenceReport) {
        let reach = report.highest.max(report.next.previous()).max(report.settled);
        let why = if !report.present {
            MemberFailure::NoSegment
        } else if report.damaged || reach < self.segment(index).seqs.top() {
            MemberFailure::RolledBack
        } else {
            return;
        };
        let other = |member: &DiskId| *member != disk && self.is_sound(index, *member);
        if !report.present || self.members(index).in_sync.iter().any(other) {
            self.segment_mut(index).failed.insert(disk, why);
        }
    }

    /// What was installed may be gone, so its fill begins anew; what it was written may not be.
    fn judge_joiner(&mut self, index: SegmentIndex, disk: DiskId, report: &FenceReport) {
        let Some(joiner) = self.segment(index).joiners.get(&disk).copied() else { return };
        if !joiner.takes_writes() {
            return;
        }
        // Nobody else is left: it is asked anew by itself.
        if self.members(index).joining(disk).is_some_and(|joining| joining.alone) {
            return;
        }
        if report.joined != Some(joiner.joined) || report.damaged || report.highest < joiner.reached
        {
            self.segment_mut(index).failed.insert(disk, MemberFailure::RolledBack);
            return;
        }
        self.drop_fills(index);
        self.fills.remove(&(index, disk));
        self.fill_anew(index, disk);
    }

    /// What it was given may be gone.
    pub(crate) fn fill_anew(&mut self, index: SegmentIndex, disk: DiskId) {
        let step = self.segment(index).joiners.get(&disk).map(|joiner| joiner.step);
        if matches!(step, Some(JoinStep::Filled | JoinStep::Combined)) {
            self.set_join_step(index, disk, JoinStep::Started { frozen: Seq::ZERO });
        }
    }
}
