//! Golden bytes for each structure, round trips, and arbitrary bytes never panic.

mod fuzz;

use crate::{
    BitmapPage, BlockEntry, BlockState, CHUNK_PAGES, ChunkRef, Content, Entry, Frame, FrameHead,
    Lsn, MapPage, PAGE_BYTES, PageRef, Root, Rule, SegmentKey, SegmentMeta, SegmentPage,
    SegmentRecord, Slot, Superblock, encode_frame, frame_pages,
};
use gabion_types::{
    BlockIndex, BlockRange, ClusterId, Crc, Epoch, Limits, MapIndex, SegmentIndex, Seq, Version,
    VolumeId,
};
use proptest::prelude::*;
use std::fmt::Write as _;

const UUID: [u8; 16] = *b"0123456789abcdef";

fn key(volume: u32, segment: u32) -> SegmentKey {
    SegmentKey::new(VolumeId::new(volume), SegmentIndex::new(segment))
}

fn epoch(value: u64) -> Epoch {
    Epoch::new(value).unwrap()
}

fn version(value: u64, seq: u64) -> Version {
    Version::new(epoch(value), Seq::new(seq))
}

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(BlockIndex::new(first), count).unwrap()
}

fn superblock() -> Superblock {
    Superblock {
        uuid: UUID,
        cluster: ClusterId::new([7; 16]),
        generation: 5,
        life: 3,
        capacity: 64 << 20,
        limits: Limits::DEFAULT,
        lsn: Lsn::new(77),
        chain: 0xdead_beef,
        journal_next: 8192,
        root_length: 4096,
        root_crc: 0x0102_0304,
        highest_map: MapIndex::new(99),
    }
}

fn entries() -> Vec<Entry> {
    let data = |slot: u32, crcs: &[u32]| Content::Data {
        slot: Slot::new(slot),
        crcs: crcs.iter().copied().map(Crc::new).collect(),
    };
    let blocks = |rule, content, count| Entry::Blocks {
        key: key(1, 2),
        rule,
        range: range(3, count),
        version: version(4, 5),
        content,
    };
    vec![
        blocks(Rule::Write, data(9, &[1, 2]), 2),
        blocks(Rule::Settle, Content::Lost, 1),
        blocks(Rule::Install { joined: epoch(6) }, Content::Absent, 7),
        blocks(Rule::Repair, data(10, &[3]), 1),
        blocks(Rule::Move, data(11, &[4]), 1),
        blocks(Rule::Write, Content::Zero, 4000),
        Entry::Fence { volume: VolumeId::new(1), epoch: epoch(8) },
        Entry::Settled { key: key(1, 2), seq: Seq::new(9) },
        Entry::Join { key: key(1, 2), joined: epoch(10), creation: epoch(11) },
        Entry::Promoted { key: key(1, 2), joined: epoch(12), settled: Seq::new(13) },
        Entry::EpochStart { key: key(1, 2), epoch: epoch(14), next: Seq::new(15) },
        Entry::New { first: key(1, 2), count: 16, creation: epoch(17) },
        Entry::Gone { key: key(1, 2), creation: epoch(18), epoch: epoch(19) },
        Entry::SawMap { index: MapIndex::new(20) },
    ]
}

fn head() -> FrameHead {
    FrameHead {
        uuid: UUID,
        life: 3,
        lsn: Lsn::new(78),
        durable: Lsn::new(76),
        generation: 5,
        chain: 0xdead_beef,
    }
}

fn map_page() -> MapPage {
    let mut entries = [BlockEntry::ABSENT; 128];
    entries[1] = BlockEntry::new(version(2, 3), BlockState::Zero);
    entries[2] = BlockEntry::new(version(4, 5), BlockState::Lost);
    entries[3] = BlockEntry::UNKNOWN;
    let state = BlockState::Data { slot: Slot::new(6), crc: Crc::new(0x0a0b_0c0d) };
    entries[127] = BlockEntry::new(Version::new(Epoch::MAX, Seq::MAX), state);
    MapPage {
        uuid: UUID,
        key: key(1, 2),
        index: 3,
        lsn: Lsn::new(78),
        highest: Seq::new(9),
        entries,
    }
}

fn segment_page() -> SegmentPage {
    let mut pages = vec![None; CHUNK_PAGES];
    pages[7] = Some(PageRef { slot: Slot::new(8), lsn: Lsn::new(9) });
    SegmentPage { uuid: UUID, key: key(1, 2), chunk: 1, pages }
}

fn root() -> Root {
    let mut meta = SegmentMeta::new(epoch(3));
    meta.joined = epoch(4);
    meta.joining = true;
    meta.damaged = true;
    meta.settled = Seq::new(5);
    meta.highest = Seq::new(6);
    meta.installed = Seq::new(7);
    meta.next = Seq::new(8);
    meta.next_epoch = epoch(9);
    meta.dropped_from = Some(Seq::new(10));
    let chunk = ChunkRef { chunk: 0, slot: Slot::new(11), crc: 12 };
    Root {
        uuid: UUID,
        generation: 5,
        lsn: Lsn::new(77),
        bitmap: Some(0x5a5a),
        fences: vec![(VolumeId::new(1), epoch(2))],
        segments: vec![SegmentRecord { key: key(1, 2), meta, chunks: vec![chunk] }],
    }
}

fn bitmap() -> BitmapPage {
    BitmapPage { uuid: UUID, generation: 5, index: 6, bits: vec![0x5a; 4000] }
}

/// Sixteen bytes a line; a repeated line is left out.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut before: Option<&[u8]> = None;
    for (index, line) in bytes.chunks(16).enumerate() {
        if before != Some(line) {
            write!(text, "{:06x}", index * 16).unwrap();
            line.iter().for_each(|byte| write!(text, " {byte:02x}").unwrap());
            text.push('\n');
        }
        before = Some(line);
    }
    writeln!(text, "{:06x}", bytes.len()).unwrap();
    text
}

fn check_golden(name: &str, version: u16, bytes: &[u8]) {
    let path = format!("{}/golden/{name}.v{version}.txt", env!("CARGO_MANIFEST_DIR"));
    let found = dump(bytes);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}: what is on disks already would not be read any more");
}

#[test]
fn the_bytes_on_disk_stay_what_they_are() {
    check_golden("superblock", 2, &superblock().encode());
    check_golden("frame", 1, &encode_frame(&head(), entries().iter()).0);
    check_golden("map_page", 1, &map_page().encode());
    check_golden("segment_page", 1, &segment_page().encode());
    check_golden("root", 2, &root().encode().0);
    check_golden("bitmap", 1, &bitmap().encode());
}

/// As an older build wrote it.
fn as_version_1(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[8] = 1;
    reseal(&mut bytes);
    bytes
}

// promise: self-describing
#[test]
fn what_an_older_version_wrote_is_read() {
    let bytes = as_version_1(&superblock().encode());
    check_golden("superblock", 1, &bytes);
    assert_eq!(Superblock::decode(&bytes), Ok(superblock()));
    let root = Root { bitmap: None, ..root() };
    let bytes = as_version_1(&root.encode().0);
    check_golden("root", 1, &bytes);
    assert_eq!(Root::decode(&bytes), Ok(root));
}

#[test]
fn each_structure_comes_back() {
    assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    let (bytes, crc) = encode_frame(&head(), entries().iter());
    assert_eq!(frame_pages(&bytes), Some(1));
    assert_eq!(Frame::decode(&bytes, UUID), Ok(Frame { head: head(), crc, entries: entries() }));
    assert_eq!(MapPage::decode(&map_page().encode()), Ok(map_page()));
    assert_eq!(SegmentPage::decode(&segment_page().encode()), Ok(segment_page()));
    assert_eq!(Root::decode(&root().encode().0), Ok(root()));
    assert_eq!(BitmapPage::decode(&bitmap().encode()), Ok(bitmap()));
}

#[test]
fn a_frame_of_another_disk_is_refused() {
    let (bytes, _) = encode_frame(&head(), entries().iter());
    assert_eq!(Frame::decode(&bytes, [1; 16]), Err(crate::FormatError::OtherDisk));
}

/// Every structure decoder on the same bytes.
fn decode_all(bytes: &[u8]) -> usize {
    [
        Superblock::decode(bytes).is_ok(),
        Frame::decode(bytes, UUID).is_ok(),
        MapPage::decode(bytes).is_ok(),
        SegmentPage::decode(bytes).is_ok(),
        Root::decode(bytes).is_ok(),
        BitmapPage::decode(bytes).is_ok(),
    ]
    .into_iter()
    .filter(|decoded| *decoded)
    .count()
}

fn samples() -> Vec<Vec<u8>> {
    vec![
        superblock().encode().to_vec(),
        encode_frame(&head(), entries().iter()).0.to_vec(),
        map_page().encode().to_vec(),
        segment_page().encode().to_vec(),
        root().encode().0.to_vec(),
        bitmap().encode().to_vec(),
    ]
}

/// Makes the crc right again, so that the fields behind it are looked at.
fn reseal(bytes: &mut [u8]) {
    bytes[12..16].fill(0);
    let crc = crc32fast::hash(bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn a_version() -> impl Strategy<Value = Version> {
    (0..=Epoch::MAX.get(), any::<u64>())
        .prop_map(|(epoch_value, seq)| Version::new(epoch(epoch_value), Seq::new(seq)))
}

fn a_rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::Write),
        Just(Rule::Settle),
        Just(Rule::Repair),
        Just(Rule::Move),
        (0..100u64).prop_map(|joined| Rule::Install { joined: epoch(joined) }),
    ]
}

fn a_content(count: u32) -> impl Strategy<Value = Content> {
    let crcs = proptest::collection::vec(any::<u32>().prop_map(Crc::new), count as usize);
    prop_oneof![
        Just(Content::Zero),
        Just(Content::Lost),
        Just(Content::Absent),
        (0..u32::MAX / 2, crcs)
            .prop_map(|(slot, crcs)| Content::Data { slot: Slot::new(slot), crcs }),
    ]
}

fn an_entry() -> impl Strategy<Value = Entry> {
    let place = (any::<u32>(), any::<u32>());
    let blocks = (place, a_rule(), 0..1_000_000u32, 1..300u32, a_version()).prop_flat_map(
        |((volume, segment), rule, first, count, version)| {
            a_content(count).prop_map(move |content| Entry::Blocks {
                key: key(volume, segment),
                rule,
                range: range(first, count),
                version,
                content,
            })
        },
    );
    prop_oneof![blocks, proptest::sample::select(entries())]
}

proptest! {
    #[test]
    fn frames_round_trip(list in proptest::collection::vec(an_entry(), 0..40), lsn: u64) {
        let head = FrameHead { lsn: Lsn::new(lsn), ..head() };
        let (bytes, crc) = encode_frame(&head, list.iter());
        let frame = Frame { head, crc, entries: list };
        prop_assert_eq!(Frame::decode(&bytes, UUID), Ok(frame));
    }

    #[test]
    fn map_pages_round_trip(
        blocks in proptest::collection::vec((a_version(), 0..5u32, any::<u32>()), 128)
    ) {
        let mut page = map_page();
        for (entry, (version, state, number)) in page.entries.iter_mut().zip(blocks) {
            *entry = BlockEntry::new(version, match state {
                0 => BlockState::Absent,
                1 => BlockState::Zero,
                2 => BlockState::Lost,
                3 => BlockState::Unknown,
                _ => BlockState::Data { slot: Slot::new(number), crc: Crc::new(!number) },
            });
        }
        prop_assert_eq!(MapPage::decode(&page.encode()), Ok(page));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert_eq!(decode_all(&bytes), 0);
    }

    /// One bit anywhere is noticed by the crc; with the crc made right again nothing panics, and
    /// whatever is read comes back as the same bytes.
    #[test]
    fn a_changed_byte_is_noticed(which in 0..6usize, at in 0..PAGE_BYTES, flip in 1..=255u8) {
        let mut bytes = samples()[which].clone();
        bytes[at] ^= flip;
        prop_assert_eq!(decode_all(&bytes), 0);
        reseal(&mut bytes);
        decode_all(&bytes);
        if let Ok(page) = MapPage::decode(&bytes) {
            prop_assert_eq!(page.encode(), bytes.clone());
        }
        if let Ok(frame) = Frame::decode(&bytes, UUID) {
            let (again, _) = encode_frame(&frame.head, frame.entries.iter());
            prop_assert_eq!(again, bytes.clone());
        }
        if let Ok(root) = Root::decode(&bytes) {
            prop_assert_eq!(root.encode().0, bytes.clone());
        }
    }
}
