use super::*;
use gabion_types::Seq;

const MIB: u64 = 1 << 20;

fn epoch(number: u64) -> Epoch {
    Epoch::new(number).unwrap()
}

fn replica(volume: u32, segment: u32, last_epoch: u64) -> FoundReplica {
    FoundReplica {
        volume: VolumeId::new(volume),
        segment: SegmentIndex::new(segment),
        creation: epoch(1),
        joining: false,
        damaged: false,
        last_epoch: epoch(last_epoch),
        highest: Seq::new(9),
    }
}

fn disk(number: u8, replicas: Vec<FoundReplica>) -> FoundDisk {
    FoundDisk {
        uuid: [number; 16],
        node: NodeId::new(u32::from(number)),
        path: format!("/disk{number}"),
        capacity_bytes: 64 * MIB,
        highest_map: MapIndex::new(u64::from(number) * 10),
        fences: vec![(VolumeId::new(1), epoch(4)), (VolumeId::new(7), epoch(2))],
        replicas,
    }
}

fn known() -> Known {
    let limits =
        Limits { segment: gabion_types::SegmentSize::new(4 * MIB).unwrap(), ..Limits::DEFAULT };
    Known { cluster: ClusterId::new([5; 16]), limits, volumes: BTreeMap::new() }
}

fn members_of(salvage: &Salvage, segment: usize) -> &SegmentMembers {
    &salvage.map.volume(VolumeId::new(1)).unwrap().segments[segment]
}

fn ids(numbers: &[u32]) -> Vec<DiskId> {
    numbers.iter().copied().map(DiskId::new).collect()
}

// promise: self-describing
#[test]
fn whole_disks_give_the_whole_map_in_whatever_order() {
    let disks = vec![
        disk(1, vec![replica(1, 0, 5), replica(1, 1, 5)]),
        disk(2, vec![replica(1, 0, 5), replica(2, 0, 1)]),
        disk(3, vec![replica(1, 1, 5), replica(2, 0, 1)]),
    ];
    let salvaged = salvage(&known(), disks.clone()).unwrap();
    assert_eq!((salvaged.doubts.len(), &salvaged.gone[..]), (0, &[VolumeId::new(7)][..]));
    let backwards = salvage(&known(), disks.into_iter().rev().collect()).unwrap();
    assert_eq!(salvaged, backwards);
    let Salvage { map, .. } = &salvaged;
    assert_eq!(map.disks().len(), 3);
    // Behind every map that a disk saw; ids of volumes that are gone are not given again.
    assert_eq!((map.applied().get(), map.last_volume, map.last_disk), (30 + AHEAD, 7, 3));
    let volume = map.volume(VolumeId::new(1)).unwrap();
    assert_eq!((volume.spec.name.as_str(), volume.spec.size_bytes), ("recovered-1", 8 * MIB));
    assert_eq!((volume.spec.rf, volume.epoch, volume.clean), (2, epoch(6), false));
    assert_eq!(members_of(&salvaged, 0).in_sync, ids(&[1, 2]));
    assert_eq!(members_of(&salvaged, 1).in_sync, ids(&[1, 3]));
    let view = map.view(VolumeId::new(2)).unwrap();
    assert_eq!((view.rf, view.size_bytes, view.homes.len()), (2, 4 * MIB, 2));
}

// rule: cluster/newest-epoch-is-in-sync
#[test]
fn who_left_before_the_last_write_is_stale_and_a_joiner_serves_nothing() {
    let joiner = FoundReplica { joining: true, ..replica(1, 0, 6) };
    let disks = vec![
        disk(1, vec![replica(1, 0, 5)]),
        disk(2, vec![replica(1, 0, 6)]),
        disk(3, vec![joiner]),
    ];
    let salvaged = salvage(&known(), disks).unwrap();
    let members = members_of(&salvaged, 0);
    assert_eq!(members.in_sync, ids(&[2]));
    assert_eq!(members.stale.iter().map(|stale| stale.disk).collect::<Vec<_>>(), ids(&[1, 3]));
    assert!(members.stale.iter().all(|stale| stale.compare_all));
    assert!(members.joining.is_empty());
}

// rule: cluster/newest-epoch-is-in-sync
// promise: no-silent-corruption
#[test]
fn where_the_newest_is_no_whole_copy_or_none_is_there_it_is_held() {
    let joiner = FoundReplica { joining: true, ..replica(1, 0, 6) };
    let disks = vec![
        disk(1, vec![replica(1, 0, 5), replica(1, 2, 5)]),
        disk(3, vec![joiner, replica(1, 2, 5)]),
    ];
    let salvaged = salvage(&known(), disks).unwrap();
    let (volume, segments) = (VolumeId::new(1), |at: u32| vec![SegmentIndex::new(at)]);
    let missing = Doubt::Missing { volume, segments: segments(1) };
    let not_whole = Doubt::NotWhole { volume, segments: segments(0) };
    assert_eq!(salvaged.doubts, [missing, not_whole]);
    let lost = DiskId::new(3);
    for held in 0..2 {
        assert_eq!(members_of(&salvaged, held).in_sync, [lost]);
    }
    assert_eq!(members_of(&salvaged, 2).in_sync, ids(&[1, 2]));
    let entry = salvaged.map.disk(lost).unwrap();
    assert!(entry.is_failed() && salvaged.map.last_disk == 3);
}

#[test]
fn an_earlier_life_of_a_segment_counts_for_nothing_and_fewer_copies_are_told() {
    let anew = |at: u32| FoundReplica { creation: epoch(8), ..replica(1, at, 8) };
    let disks = vec![
        disk(1, vec![replica(1, 0, 7), replica(1, 1, 9), replica(1, 2, 9)]),
        disk(2, vec![anew(0), replica(1, 1, 9), replica(1, 2, 9)]),
    ];
    let salvaged = salvage(&known(), disks).unwrap();
    let members = members_of(&salvaged, 0);
    assert_eq!((members.creation, &members.in_sync), (epoch(8), &ids(&[2])));
    assert!(members.stale.is_empty());
    let doubt =
        Doubt::FewerCopies { volume: VolumeId::new(1), segments: vec![SegmentIndex::new(0)] };
    assert_eq!(salvaged.doubts, [doubt]);
}

#[test]
fn what_somebody_remembers_is_used_where_it_fits() {
    let disks = || {
        vec![
            disk(1, vec![replica(1, 0, 5), replica(1, 1, 5)]),
            disk(2, vec![replica(1, 0, 5), replica(1, 1, 5)]),
            disk(3, vec![replica(1, 0, 5), replica(1, 1, 5)]),
        ]
    };
    let with = |said: KnownVolume| {
        let volumes = BTreeMap::from([(VolumeId::new(1), said)]);
        salvage(&Known { volumes, ..known() }, disks())
    };
    let said = KnownVolume { name: Some("vm1".to_owned()), size_bytes: Some(5 * MIB), rf: Some(2) };
    let salvaged = with(said.clone()).unwrap();
    let spec = &salvaged.map.volume_by_name("vm1").unwrap().spec;
    assert_eq!((spec.size_bytes, spec.rf), (5 * MIB, 2));
    let members = members_of(&salvaged, 1);
    assert_eq!((members.in_sync.len(), members.stale.len()), (2, 1));
    for size_bytes in [4 * MIB, 8 * MIB + 4096, 5 * MIB + 1] {
        let wrong = with(KnownVolume { size_bytes: Some(size_bytes), ..said.clone() });
        assert!(matches!(wrong, Err(SalvageError::DoesNotFit { .. })), "{size_bytes}");
    }
    let wrong = with(KnownVolume { name: Some("no name".to_owned()), ..said });
    assert_eq!(wrong, Err(SalvageError::BadName("no name".to_owned())));
    let mut twice = disks();
    twice[1].uuid = [1; 16];
    assert_eq!(salvage(&known(), twice), Err(SalvageError::Twice([1; 16])));
    let none =
        Known { volumes: BTreeMap::from([(VolumeId::new(9), KnownVolume::default())]), ..known() };
    assert_eq!(salvage(&none, disks()), Err(SalvageError::NoSuchVolume(VolumeId::new(9))));
}
