//! Whatever the log holds: the map never panics and keeps its invariants.

use super::{GIB, MIB, Small, placed};
use crate::command::{Change, Command, Proposer};
use crate::event::EVENTS_MAX;
use crate::map::room::promised;
use crate::map::{DrainReason, Map, NodeState, STALE_MAX, VolumeEntry, VolumeState, WRITE_SET_MAX};
use crate::placement::{Wanted, place};
use gabion_types::{
    ClusterId, Combining, DiskId, Epoch, Incarnation, Limits, MapIndex, Move, NodeId, Outcome,
    OwnerChange, Pair, Promotion, Removal, ScrubAsk, ScrubFound, ScrubKind, SegmentIndex,
    SegmentMembers, Seq, VolumeId,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use std::collections::BTreeSet;

/// What holds after every entry.
pub(crate) fn check(map: &Map) {
    assert!(map.events.len() <= EVENTS_MAX);
    // rule: cluster/the-account-is-what-the-map-comes-to
    if let Some(account) = map.account.get() {
        assert_eq!(*account, promised(map));
    }
    let mut names = BTreeSet::new();
    for volume in map.volumes.values() {
        check_volume(map, volume);
        if volume.state != VolumeState::Deleting {
            assert!(names.insert(volume.spec.name.clone()), "two of one name");
        }
    }
    for (id, disk) in &map.disks {
        assert!(!disk.is_failed() || disk.to_drop.is_empty());
        assert!(!disk.drain.is_some_and(|drain| drain.done) || map.is_empty_disk(*id));
        for (volume, segments) in &disk.to_drop {
            assert!(map.volumes.contains_key(volume), "an order without a volume");
            assert!(!segments.is_empty());
            for segment in segments.keys() {
                let members = map.members(*volume, *segment);
                let named = members.is_some_and(|members| holders(members).contains(id));
                assert!(!named, "{id} is to drop what it is a member of");
            }
        }
    }
}

fn check_volume(map: &Map, volume: &VolumeEntry) {
    let growth = volume.growth.iter().flat_map(|growth| &growth.segments);
    for members in volume.segments.iter().chain(growth) {
        assert!(!members.in_sync.is_empty());
        let all = holders(members);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a disk twice");
        assert!(all.iter().all(|disk| map.disks.contains_key(disk)));
        assert!(members.write_set().count() <= WRITE_SET_MAX);
        assert!(members.stale.len() <= STALE_MAX);
        assert!(members.creation <= volume.epoch);
        assert!(members.joining.iter().all(|joining| joining.joined <= volume.epoch));
        assert!(members.stale.iter().all(|stale| stale.left <= volume.epoch));
    }
    assert!(volume.owner_epoch <= volume.epoch);
    if let Some((node, incarnation)) = volume.owner {
        let node = &map.nodes[&node];
        assert_eq!((node.incarnation, node.state), (incarnation, NodeState::Alive));
        assert_eq!(volume.state, VolumeState::Ready);
    }
    match &volume.state {
        VolumeState::Creating { waiting } => assert!(!waiting.is_empty() && volume.clean),
        VolumeState::Ready => {
            let growth = volume.growth.as_ref();
            assert!(growth.is_none_or(|growth| !growth.waiting.is_empty()));
        }
        VolumeState::Deleting => {
            assert!(volume.segments.is_empty() && volume.growth.is_none());
            let left = map.disks.values().any(|disk| disk.to_drop.contains_key(&volume.id));
            assert!(left, "nothing left to drop");
        }
    }
}

fn holders(members: &SegmentMembers) -> Vec<DiskId> {
    crate::map::room::holders(members).collect()
}

/// Members or the owner changed: then so did the epoch. It never falls.
fn check_epochs(before: &Map, after: &Map) {
    for (id, old) in &before.volumes {
        let Some(new) = after.volumes.get(id) else { continue };
        assert!(new.epoch >= old.epoch);
        let changed = old.owner != new.owner
            || old.segments != new.segments
            || old.spec != new.spec
            || old.owner_epoch != new.owner_epoch;
        assert!(!changed || new.epoch > old.epoch, "{old:?} -> {new:?}");
    }
}

/// Numbers that become a command which often makes sense in the map as it is.
#[derive(Clone, Copy, Debug)]
struct Dice([u32; 5]);

impl Dice {
    fn command(self, small: &Small) -> Command {
        let nodes: Vec<_> = small.map.nodes.keys().collect();
        let node = nodes[self.0[4] as usize / 256 % nodes.len()].get();
        if self.0[4].is_multiple_of(61) {
            return small.new_process(node);
        }
        if self.0[4].is_multiple_of(59) {
            let old = self.0[1] as usize % small.log.len();
            return small.log[old].clone();
        }
        let incarnation = small.incarnation(node);
        let node = NodeId::new(node);
        let change = self.change(&small.map, node, incarnation);
        let change = change.unwrap_or(Change::Revive { node, incarnation });
        Command { from: small.proposer(node.get()), change }
    }

    fn pick<T: Copy>(self, place: usize, items: impl Iterator<Item = T>) -> Option<T> {
        let items: Vec<_> = items.collect();
        let index = self.0[place] as usize;
        items.get(index % items.len().max(1)).copied()
    }

    fn volume(self, map: &Map) -> Option<VolumeId> {
        self.pick(1, map.volumes.keys().copied())
    }

    fn disk(self, map: &Map) -> DiskId {
        self.pick(3, map.disks.keys().copied()).unwrap_or(DiskId::new(1))
    }

    /// Nearly always the present one.
    fn epoch(self, present: Epoch) -> Epoch {
        if self.0[4].is_multiple_of(17) { present.next() } else { present }
    }

    fn change(self, map: &Map, node: NodeId, incarnation: Incarnation) -> Option<Change> {
        let disk = self.disk(map);
        Some(match self.0[0] % 24 {
            0 if self.0[1].is_multiple_of(3) => Change::DiskFailed { disk },
            0 => Change::DiskMissing { disk },
            1 => {
                let mut uuid = [9; 16];
                uuid[0] = u8::try_from(self.0[1] % 200).unwrap();
                let path = String::new();
                Change::AddDisk { node, uuid, capacity_bytes: GIB, path }
            }
            2 => {
                let segments = 1 + self.0[1] % 4;
                let rf = u8::try_from(1 + self.0[2] % 3).unwrap();
                let size_bytes = u64::from(segments) * MIB - u64::from(self.0[4] % 2) * 4096;
                let near = Some(node);
                let placement = place(map, Wanted { size_bytes, had: 0, rf, near }).ok()?;
                let name = format!("v{}", self.0[3] % 8);
                let spec = Small::spec(&name, size_bytes, rf);
                Change::CreateVolume { spec, placement }
            }
            3..=6 => {
                let order = self.pick(1, map.creates_for(node).into_iter())?;
                let (volume, disk, creation) = (order.volume, order.disk, order.creation);
                Change::Created { volume, disk, creation }
            }
            7 => {
                let volume = self.volume(map)?;
                let entry = &map.volumes[&volume];
                let more = self.0[2] % 3;
                let had = u32::try_from(entry.segments.len()).unwrap();
                let size_bytes = u64::from(had + more) * MIB;
                let placement = placed(map, size_bytes, had, entry.spec.rf).ok()?;
                Change::ResizeVolume { volume, size_bytes, placement }
            }
            8 => {
                let volume = self.volume(map)?;
                Change::DeleteVolume { volume, force: self.0[2].is_multiple_of(3) }
            }
            9 | 10 => {
                let order = self.pick(1, map.drops_for(node).into_iter())?;
                let replicas = vec![(order.volume, order.segment)];
                Change::Dropped { disk: order.disk, replicas }
            }
            11..=13 => {
                let volume = self.volume(map)?;
                let epoch = self.epoch(map.volumes[&volume].epoch);
                Change::TakeOver { volume, epoch, node, incarnation }
            }
            14 => Change::Lead { term: map.term + u64::from(self.0[1] % 2) },
            15 => {
                let node = self.pick(2, map.nodes.keys().copied())?;
                let incarnation = map.nodes[&node].incarnation;
                Change::Expire { node, incarnation, term: map.term }
            }
            16 => Change::Revive { node, incarnation },
            17 => {
                let why = self.0[2].is_multiple_of(2).then_some(DrainReason::Operator);
                if self.0[1].is_multiple_of(7) && map.nodes.len() > 1 {
                    let node = self.pick(2, map.nodes.keys().copied())?;
                    Change::RemoveNode { node, force: self.0[2].is_multiple_of(3) }
                } else if self.0[1].is_multiple_of(3) {
                    Change::DrainNode { node, why }
                } else {
                    Change::DrainDisk { disk, why }
                }
            }
            18 => {
                let volume = self.volume(map)?;
                let segments = &map.volumes[&volume].segments;
                let place = self.0[2] as usize % segments.len().max(1);
                let from = self.pick(3, segments.get(place)?.in_sync.iter().copied())?;
                let to = self.pick(4, map.disks.keys().copied())?;
                let index = SegmentIndex::new(u32::try_from(place).unwrap());
                let off = self.0[1].is_multiple_of(5);
                let moves = (!off).then_some((index, Move { from, to })).into_iter().collect();
                Change::MoveCopies { volume, moves }
            }
            19 => {
                let volume = self.volume(map)?;
                let stranded = map.stranded(&map.volumes[&volume]);
                let survivors =
                    stranded.iter().map(|one| (one.segment, one.remains.disk())).collect();
                Change::AcceptLoss { volume, survivors }
            }
            _ => {
                let volume = self.volume(map)?;
                let change = self.owner_change(&map.volumes[&volume]);
                Change::Owner { volume, change }
            }
        })
    }

    fn owner_change(self, volume: &VolumeEntry) -> OwnerChange {
        let epoch = self.epoch(volume.epoch);
        let place = self.0[2] as usize % volume.segments.len().max(1);
        let segment = SegmentIndex::new(u32::try_from(place).unwrap());
        let members = volume.segments.get(place);
        let named = members.map(holders).unwrap_or_default();
        let disk = self.pick(3, named.into_iter()).unwrap_or(DiskId::new(self.0[3] % 9));
        let flag = |bit: u32| self.0[4] >> bit & 1 == 1;
        match self.0[0] / 24 % 9 {
            0..=2 => {
                let (compare_all, may_return, replaced) = (flag(5), flag(6), flag(8) && flag(9));
                let reach = flag(10).then_some(Seq::new(1));
                let removal = Removal { segment, disk, compare_all, may_return, replaced, reach };
                OwnerChange::RemoveMembers { epoch, removals: vec![removal], add_joiner: flag(7) }
            }
            3 => OwnerChange::AddJoining { epoch, joins: vec![(segment, Some(disk))] },
            4 => OwnerChange::AddJoining { epoch, joins: vec![(segment, None)] },
            5 => {
                let joining = members.and_then(|members| members.joining.first());
                let promotes = joining.map(|joining| Promotion {
                    segment,
                    disk: joining.disk,
                    joined: joining.joined,
                });
                OwnerChange::Promote { epoch, promotes: promotes.into_iter().collect() }
            }
            6 => {
                let pair = members.and_then(|members| members.pairs().next());
                let combines = pair.map(|Pair { joiner, joined, elder, .. }| Combining {
                    segment,
                    joiner,
                    joined,
                    elder,
                });
                OwnerChange::Combine { epoch, combines: combines.into_iter().collect() }
            }
            7 => OwnerChange::Forget { epoch, stale: vec![(segment, disk)] },
            _ => OwnerChange::Release { epoch, clean: flag(5) },
        }
    }
}

/// A log of commands, as processes of up to five nodes write it: each as the map is then, some of a
/// process that is gone. What is left of it when it is made small is a log too.
#[derive(Debug)]
struct Log;

impl ReferenceStateMachine for Log {
    type State = Small;
    type Transition = Command;

    fn init_state() -> BoxedStrategy<Small> {
        (1_u32..6).prop_map(|nodes| Small::new(nodes, 2)).boxed()
    }

    fn transitions(small: &Small) -> BoxedStrategy<Command> {
        let small = small.clone();
        any::<[u32; 5]>().prop_map(move |dice| Dice(dice).command(&small)).boxed()
    }

    fn apply(mut small: Small, command: &Command) -> Small {
        small.append(command);
        small
    }
}

/// Another one's map of the same log.
#[derive(Debug)]
struct Follower {
    map: Map,
}

impl Follower {
    fn append(&mut self, command: &Command) {
        let before = self.map.clone();
        let index = MapIndex::new(self.map.applied.get() + 1);
        let outcome = self.map.apply(index, command).outcome;
        check(&self.map);
        check_epochs(&before, &self.map);
        if outcome != Outcome::Done {
            assert_eq!(before.volumes, self.map.volumes);
            assert_eq!(before.disks, self.map.disks);
        }
    }

    /// A proposal that comes twice changes nothing.
    fn check_repeat(&self, command: &Command) {
        let mut again = self.map.clone();
        let applied = MapIndex::new(self.map.applied.get() + 1);
        again.apply(applied, command);
        assert_eq!(Map { applied, ..self.map.clone() }, again);
    }
}

impl StateMachineTest for Follower {
    type SystemUnderTest = Self;
    type Reference = Log;

    fn init_test(small: &Small) -> Self {
        let mut follower = Self { map: Map::default() };
        small.log.iter().for_each(|command| follower.append(command));
        follower
    }

    // rule: cluster/each-proposal-once
    // rule: cluster/in-sync-never-empty
    fn apply(mut follower: Self, small: &Small, command: Command) -> Self {
        follower.append(&command);
        follower.check_repeat(&command);
        follower.check_repeat(&small.log[small.log.len() / 2]);
        follower
    }

    fn check_invariants(follower: &Self, small: &Small) {
        assert_eq!(follower.map, small.map);
    }

    fn teardown(follower: Self, _: Small) {
        let text = serde_json::to_string(&follower.map).unwrap();
        assert_eq!(serde_json::from_str::<Map>(&text).unwrap(), follower.map);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_log_keeps_the_invariants(sequential 1..160 => Follower);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_command_panics(commands in proptest::collection::vec(command(), 1..40)) {
        let mut small = Small::with_volume(3, 2, 3);
        small.take_over(1);
        for mut command in commands {
            if let Some(node) = small.map.node(command.from.node) {
                command.from.incarnation = node.incarnation;
            }
            let before = small.map.clone();
            small.apply(command.from, command.change);
            check(&small.map);
            check_epochs(&before, &small.map);
        }
    }
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0_u32..6, 1 => any::<u32>()]
}

fn wide() -> impl Strategy<Value = u64> {
    let sizes = (0_u64..9).prop_map(|count| count * MIB);
    prop_oneof![6 => 0_u64..6, 1 => any::<u64>(), 1 => Just(u64::MAX), 2 => sizes]
}

/// Also above what `Epoch::new` allows: it comes from the log, not from its constructor.
fn epoch() -> impl Strategy<Value = Epoch> {
    wide().prop_map(|value| serde_json::from_str(&value.to_string()).unwrap())
}

fn volume() -> impl Strategy<Value = VolumeId> {
    number().prop_map(VolumeId::new)
}

fn disk() -> impl Strategy<Value = DiskId> {
    number().prop_map(DiskId::new)
}

fn node() -> impl Strategy<Value = NodeId> {
    number().prop_map(NodeId::new)
}

fn segment() -> impl Strategy<Value = SegmentIndex> {
    number().prop_map(SegmentIndex::new)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("vm".to_string()),
        Just("rebuild.wait".to_string()),
        Just("9s".to_string()),
        ".{0,8}",
        "a{5000}"
    ]
}

fn placement() -> impl Strategy<Value = Vec<Vec<DiskId>>> {
    proptest::collection::vec(proptest::collection::vec(disk(), 0..4), 0..5)
}

fn command() -> impl Strategy<Value = Command> {
    let from = (node(), any::<u64>(), wide()).prop_map(|(node, incarnation, number)| Proposer {
        node,
        incarnation: Incarnation::new(incarnation),
        number,
    });
    (from, change()).prop_map(|(from, change)| Command { from, change })
}

fn change() -> impl Strategy<Value = Change> {
    let life = || any::<u64>().prop_map(Incarnation::new);
    let spec =
        || (text(), wide(), any::<u8>()).prop_map(|(name, size, rf)| Small::spec(&name, size, rf));
    let limits = wide().prop_map(|segment| Limits {
        segment: serde_json::from_str(&segment.to_string()).unwrap(),
        ..Limits::DEFAULT
    });
    prop_oneof![
        limits.prop_map(|limits| Change::Init { cluster: ClusterId::new([1; 16]), limits }),
        (1_u32..6, life()).prop_map(|(node, incarnation)| Change::Register {
            node: Small::info(node),
            incarnation
        }),
        (node(), any::<u8>(), wide(), text()).prop_map(|(node, uuid, capacity_bytes, path)| {
            Change::AddDisk { node, uuid: [uuid; 16], capacity_bytes, path }
        }),
        disk().prop_map(|disk| Change::DiskMissing { disk }),
        disk().prop_map(|disk| Change::DiskFailed { disk }),
        (disk(), why()).prop_map(|(disk, why)| Change::DrainDisk { disk, why }),
        (node(), why()).prop_map(|(node, why)| Change::DrainNode { node, why }),
        (node(), any::<bool>()).prop_map(|(node, force)| Change::RemoveNode { node, force }),
        (spec(), placement())
            .prop_map(|(spec, placement)| Change::CreateVolume { spec, placement }),
        (volume(), disk(), epoch()).prop_map(|(volume, disk, creation)| Change::Created {
            volume,
            disk,
            creation
        }),
        (volume(), wide(), placement()).prop_map(|(volume, size_bytes, placement)| {
            Change::ResizeVolume { volume, size_bytes, placement }
        }),
        (volume(), any::<bool>())
            .prop_map(|(volume, force)| Change::DeleteVolume { volume, force }),
        (disk(), proptest::collection::vec((volume(), segment()), 0..4))
            .prop_map(|(disk, replicas)| Change::Dropped { disk, replicas }),
        (volume(), epoch(), node(), life()).prop_map(|(volume, epoch, node, incarnation)| {
            Change::TakeOver { volume, epoch, node, incarnation }
        }),
        (volume(), owner_change()).prop_map(|(volume, change)| Change::Owner { volume, change }),
        (volume(), epoch(), proptest::collection::vec(node(), 0..4)).prop_map(
            |(volume, owner_epoch, nodes)| Change::VoidSessions { volume, owner_epoch, nodes }
        ),
        (volume(), proptest::collection::btree_set(node(), 0..4), any::<bool>())
            .prop_map(|(volume, barred, let_back)| Change::Evict { volume, barred, let_back }),
        (volume(), epoch()).prop_map(|(volume, owner_epoch)| Change::LetIn { volume, owner_epoch }),
        (volume(), scrub_kind()).prop_map(|(volume, kind)| Change::WantScrub { volume, kind }),
        (volume(), epoch(), 0_u64..4, scrub_kind(), wide()).prop_map(
            |(volume, owner_epoch, number, kind, at_ms)| {
                let (ask, found) = (ScrubAsk { number, kind }, ScrubFound::default());
                Change::Scrubbed { volume, owner_epoch, ask, at_ms, found }
            }
        ),
        wide().prop_map(|term| Change::Lead { term }),
        (node(), life(), wide()).prop_map(|(node, incarnation, term)| Change::Expire {
            node,
            incarnation,
            term
        }),
        (node(), life()).prop_map(|(node, incarnation)| Change::Revive { node, incarnation }),
        (text(), text()).prop_map(|(name, value)| Change::SetSetting { name, value }),
    ]
}

fn why() -> impl Strategy<Value = Option<DrainReason>> {
    proptest::option::of(Just(DrainReason::Operator))
}

fn scrub_kind() -> impl Strategy<Value = ScrubKind> {
    prop_oneof![Just(ScrubKind::Light), Just(ScrubKind::Deep)]
}

fn owner_change() -> impl Strategy<Value = OwnerChange> {
    let removal = (segment(), disk(), any::<[bool; 3]>()).prop_map(
        |(segment, disk, [compare_all, may_return, replaced])| Removal {
            segment,
            disk,
            compare_all,
            may_return,
            replaced,
            reach: may_return.then_some(Seq::ZERO),
        },
    );
    let combining = (segment(), disk(), epoch(), disk())
        .prop_map(|(segment, joiner, joined, elder)| Combining { segment, joiner, joined, elder });
    let promotion = (segment(), disk(), epoch()).prop_map(|(segment, disk, joined)| Promotion {
        segment,
        disk,
        joined,
    });
    let join = (segment(), proptest::option::of(disk()));
    prop_oneof![
        (epoch(), proptest::collection::vec(removal, 0..5), any::<bool>()).prop_map(
            |(epoch, removals, add_joiner)| OwnerChange::RemoveMembers {
                epoch,
                removals,
                add_joiner
            }
        ),
        (epoch(), proptest::collection::vec(join, 0..4))
            .prop_map(|(epoch, joins)| OwnerChange::AddJoining { epoch, joins }),
        (epoch(), proptest::collection::vec(promotion, 0..4))
            .prop_map(|(epoch, promotes)| OwnerChange::Promote { epoch, promotes }),
        (epoch(), proptest::collection::vec(combining, 0..4))
            .prop_map(|(epoch, combines)| OwnerChange::Combine { epoch, combines }),
        (epoch(), proptest::collection::vec((segment(), disk()), 0..4))
            .prop_map(|(epoch, stale)| OwnerChange::Forget { epoch, stale }),
        (epoch(), any::<bool>()).prop_map(|(epoch, clean)| OwnerChange::Release { epoch, clean }),
    ]
}
