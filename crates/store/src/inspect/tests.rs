use super::*;
use crate::io::Part;
use crate::tests::model::{CAPACITY, ModelDisk, World, limits, version, write, zero};
use gabion_format::Layout;
use gabion_types::{BlockIndex, SegmentIndex, VolumeId};

fn layout() -> Layout {
    Layout::new(CAPACITY, limits().segment).unwrap()
}

/// Pages in two segments, some of them only in the journal, and what its power was cut with.
fn used() -> World {
    let mut world = World::new(1);
    for segment in 0..2 {
        world.ok(1, write(segment, version(1, 1), 0, 200));
        world.ok(1, zero(segment, version(1, 2), 10, 3));
    }
    let mut world = world.restart();
    world.ok(1, write(1, version(1, 3), 130, 4));
    // Only a later frame proves that the one before was durable.
    world.ok(1, write(1, version(1, 4), 140, 1));
    world.cut();
    world
}

fn checked(disk: &ModelDisk) -> Result<Check, OutOfService> {
    let mut last = None;
    let mut read = |offset, length| disk.read(offset, length);
    let found = check(CAPACITY, &mut read, &mut |at| last = Some(at))?;
    let last = last.expect("there is data");
    assert_eq!((last.done_bytes, last.all_bytes), (last.all_bytes, found.data_blocks * 4096));
    Ok(found)
}

fn shown(disk: &ModelDisk) -> Shown {
    show(CAPACITY, &mut |offset, length| disk.read(offset, length)).unwrap()
}

#[test]
fn a_disk_that_lost_power_is_clean_and_is_not_written() {
    let disk = used().disk;
    let before = format!("{disk:?}");
    let found = checked(&disk).unwrap();
    assert!(found.is_clean(), "{found:?}");
    assert_eq!((found.segments, found.map_pages), (4, 4));
    assert_eq!((found.data_blocks, found.zero_blocks, found.unknown_blocks), (394, 6, 0));
    assert!(found.frames > 0);
    assert_eq!(format!("{disk:?}"), before);
}

// promise: no-silent-corruption
#[test]
fn rot_of_each_structure_is_found_and_told_with_its_place() {
    let world = used();
    let shown = shown(&world.disk);
    let segment = &shown.segments[0];
    let volume = (VolumeId::new(1), SegmentIndex::new(0));
    let other = shown.superblocks.iter().find(|superblock| !superblock.used).unwrap();
    let durable = shown.frames.iter().find(|frame| frame.standing == FrameStanding::Counts);
    let cases = [
        (Part::Superblock, other.offset, other.offset, None),
        (Part::MapPage, segment.pages[1].offset.unwrap(), 0, Some(volume)),
        (Part::SegmentPage, segment.segment_pages[0].offset, 0, Some(volume)),
        (Part::Journal, durable.unwrap().offset, layout().journal_at, None),
    ];
    for (part, at, told_at, segment) in cases {
        let mut disk = world.disk.clone();
        disk.rot(at + 700);
        let found = checked(&disk).unwrap();
        assert!(!found.is_clean(), "{part}");
        let told = found.damages.iter().find(|damage| damage.part == part);
        let told = told.unwrap_or_else(|| panic!("{part}: {found:?}"));
        assert_eq!(told.offset, if told_at == 0 { at } else { told_at }, "{part}");
        assert_eq!(told.segment, segment, "{part}");
        let times = found.damages.iter().filter(|damage| damage.part == part).count();
        assert_eq!(times, 1, "{part} is told once");
    }
    let mut disk = world.disk.clone();
    disk.rot(shown.root_offset + 100);
    assert_eq!(checked(&disk), Err(OutOfService::Damaged));
}

// promise: no-silent-corruption
#[test]
fn a_rotten_and_an_unreadable_block_are_told_by_name() {
    let world = used();
    let place = |block| {
        let at = world.locate(VolumeId::new(1), SegmentIndex::new(1), BlockIndex::new(block));
        at.unwrap().offset
    };
    let mut disk = world.disk.clone();
    disk.rot(place(60) + 4000);
    disk.unreadable.push(place(199) / 4096);
    let found = checked(&disk).unwrap();
    assert_eq!(found.bad_blocks_count, 2);
    let told: Vec<_> =
        found.bad_blocks.iter().map(|bad| (bad.block.get(), bad.offset, bad.error)).collect();
    let errno = gabion_types::DiskError::Io { errno: 5 };
    let mut expected = [(60, place(60), None), (199, place(199), Some(errno))];
    expected.sort_by_key(|(_, offset, _)| *offset);
    assert_eq!(told, expected);
}

#[test]
fn what_is_shown_lies_where_it_is_said_to_lie() {
    let world = used();
    let shown = shown(&world.disk);
    assert_eq!(shown.layout, layout());
    assert_eq!(shown.superblocks.iter().filter(|superblock| superblock.used).count(), 1);
    for frame in &shown.frames {
        let bytes = world.disk.read(frame.offset, frame.bytes).unwrap();
        let read = gabion_format::Frame::decode(&bytes, [9; 16]).unwrap();
        assert_eq!((read.head.lsn.get(), read.entries.len()), (frame.lsn, frame.entries.len()));
    }
    for segment in &shown.segments {
        for page in segment.pages.iter().filter_map(|page| Some((page, page.offset?))) {
            let bytes = world.disk.read(page.1, 4096).unwrap();
            let read = gabion_format::MapPage::decode(&bytes).unwrap();
            assert_eq!((read.key, read.index), (segment.key, page.0.index));
        }
    }
    let late = shown.frames.iter().filter(|frame| frame.standing == FrameStanding::Counts);
    let late: Vec<_> =
        late.flat_map(|frame| &frame.entries).filter(|e| e.kind == "write").collect();
    assert_eq!((late[0].segment, late[0].blocks), (1, Some((130, 4))));
    let data = world.disk.read(late[0].data_offset.unwrap(), 4096).unwrap();
    assert_eq!(data, crate::tests::model::fill(version(1, 3), 130));
}

#[test]
fn what_no_node_would_open_is_refused_by_name() {
    let blank = ModelDisk::default();
    let refused = check(CAPACITY, &mut |offset, length| blank.read(offset, length), &mut |_| {});
    assert_eq!(refused, Err(OutOfService::NotFormatted));
}
