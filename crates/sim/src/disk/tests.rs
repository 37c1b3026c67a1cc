use super::*;

fn disk(seed: u64) -> VirtualDisk {
    VirtualDisk::new(1 << 20, DiskTimes::FAST, Prng::new(seed))
}

fn write(disk: &mut VirtualDisk, token: u64, page: u64, fill: u8) {
    let pieces = vec![Bytes::from(vec![fill; 4096])];
    let kind = DiskOpKind::Write { offset: page * 4096, pieces };
    disk.submit(DiskOp { token: DiskToken(token), kind });
    assert_eq!(disk.complete(DiskToken(token)).unwrap().result, Ok(Bytes::new()));
}

fn read(disk: &mut VirtualDisk, page: u64, pages: u64) -> Result<Bytes, DiskError> {
    let kind = DiskOpKind::Read { offset: page * 4096, length: pages * 4096 };
    disk.submit(DiskOp { token: DiskToken(999), kind });
    disk.complete(DiskToken(999)).unwrap().result
}

#[test]
fn a_sync_covers_what_had_completed_when_it_was_issued() {
    let mut disk = disk(1);
    write(&mut disk, 1, 7, 0x11);
    disk.submit(DiskOp { token: DiskToken(2), kind: DiskOpKind::Sync });
    write(&mut disk, 3, 8, 0x22);
    disk.complete(DiskToken(2)).unwrap();
    disk.lose_power(PowerCut::LosesAll);
    let both = read(&mut disk, 7, 2).unwrap();
    assert_eq!((both[0], both[4096]), (0x11, 0));
}

#[test]
fn a_process_leaves_the_cache_behind() {
    let mut disk = disk(2);
    write(&mut disk, 1, 3, 0x33);
    disk.lose_process();
    assert_eq!(read(&mut disk, 3, 1).unwrap()[4095], 0x33);
    assert_eq!(disk.complete(DiskToken(1)), None);
}

#[test]
fn a_power_cut_tears_and_reorders_what_was_not_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let mut disk = disk(seed);
        write(&mut disk, 1, 0, 1);
        write(&mut disk, 2, 0, 2);
        write(&mut disk, 3, 1, 3);
        disk.lose_power(if seed % 2 == 0 { PowerCut::Tears } else { PowerCut::Writes });
        let data = read(&mut disk, 0, 2).unwrap();
        let sectors: Vec<u8> = data.chunks(512).map(|sector| sector[0]).collect();
        outcomes.insert(sectors);
    }
    assert!(outcomes.len() > 50);
    assert!(outcomes.iter().any(|sectors| sectors[0] == 0 && sectors[8] == 3), "reordered");
    assert!(outcomes.iter().any(|sectors| sectors[0] == 1 && sectors[1] == 2), "torn");
}

#[test]
fn rot_stays_until_the_page_is_written() {
    let mut disk = disk(4);
    write(&mut disk, 1, 5, 0x55);
    disk.rot(5, Rot::Unreadable);
    assert_eq!(read(&mut disk, 4, 2), Err(DiskError::Io { errno: EIO }));
    write(&mut disk, 2, 5, 0x56);
    disk.rot(5, Rot::Flip { bit: 8 });
    assert_eq!(read(&mut disk, 5, 1).unwrap()[..3], [0x56, 0x57, 0x56]);
    assert_eq!(read(&mut disk, 255, 2), Err(DiskError::PastEnd { end: 257 * 4096 }));
}

#[test]
fn a_lost_write_is_answered_and_never_there() {
    let mut disk = disk(11);
    write(&mut disk, 1, 3, 0x11);
    disk.set_next_write(NextWrite::Vanishes);
    write(&mut disk, 2, 3, 0x22);
    write(&mut disk, 3, 4, 0x33);
    let both = read(&mut disk, 3, 2).unwrap();
    assert_eq!((both[0], both[4096]), (0x11, 0x33), "one write only");
}

#[test]
fn a_write_that_goes_astray_lands_once_and_not_there() {
    for seed in 0..40 {
        let mut disk = disk(seed);
        write(&mut disk, 1, 3, 0x11);
        disk.set_next_write(NextWrite::GoesAstray);
        write(&mut disk, 2, 200, 0x22);
        let all = read(&mut disk, 0, 256).unwrap();
        let places = all.chunks(4096).filter(|page| page[0] == 0x22).count();
        assert_eq!(places, 1);
    }
}

#[test]
fn after_a_failed_sync_nobody_knows_what_is_there() {
    let mut kept = [0, 0];
    for seed in 0..40 {
        let mut disk = disk(seed);
        write(&mut disk, 1, 3, 0x11);
        disk.fail_next_sync();
        disk.submit(DiskOp { token: DiskToken(2), kind: DiskOpKind::Sync });
        assert!(disk.complete(DiskToken(2)).unwrap().result.is_err());
        kept[usize::from(read(&mut disk, 3, 1).unwrap()[0] == 0x11)] += 1;
    }
    assert!(kept[0] > 0 && kept[1] > 0, "{kept:?}");
}

#[test]
fn a_read_error_comes_once() {
    let mut disk = disk(12);
    write(&mut disk, 1, 3, 0x11);
    disk.fail_next_read();
    assert!(read(&mut disk, 3, 1).is_err());
    assert_eq!(read(&mut disk, 3, 1).unwrap()[0], 0x11);
}

#[test]
fn a_disk_that_is_rolled_back_is_as_it_was() {
    let mut disk = disk(13);
    write(&mut disk, 1, 3, 0x11);
    disk.submit(DiskOp { token: DiskToken(2), kind: DiskOpKind::Sync });
    disk.complete(DiskToken(2)).unwrap();
    write(&mut disk, 3, 4, 0x22);
    let old = disk.snapshot();
    write(&mut disk, 4, 3, 0x33);
    disk.lose_power(PowerCut::KeepsAll);
    disk.roll_back(&old);
    let both = read(&mut disk, 3, 2).unwrap();
    assert_eq!((both[0], both[4096]), (0x11, 0), "only what a sync covered");
}
