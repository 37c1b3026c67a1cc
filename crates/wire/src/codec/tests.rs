//! Golden bytes of each kind, round trips of everything, and arbitrary bytes.

mod fuzz;

use super::*;
use crate::assembler::{Assembler, LARGE_PAYLOAD_BYTES};
use crate::header::{AUX_BYTES_MAX, ENTRIES_MAX, PAYLOAD_BYTES_MAX, VERSION};
use crate::link::{Hello, LinkClass, LinkMessage, LinkRefusal, PROTOCOL};
use crate::replica::*;
use crate::session::{SessionMessage, SessionNumber};
use gabion_types::*;
use proptest::prelude::*;
use std::fmt::Write as _;

fn epoch(value: u64) -> Epoch {
    Epoch::new(value).unwrap()
}

fn version(e: u64, seq: u64) -> Version {
    Version::new(epoch(e), Seq::new(seq))
}

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(BlockIndex::new(first), count).unwrap()
}

fn bytes_range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).unwrap()
}

fn data(bytes: usize) -> Bytes {
    (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn info(block: u32, kind: BlockKind) -> BlockInfo {
    let crc = if kind == BlockKind::Data { Crc::new(0xdead_beef) } else { Crc::default() };
    BlockInfo { block: BlockIndex::new(block), kind, version: version(7, 0x1122), crc }
}

/// One block of each kind; one of them has data.
fn infos() -> Vec<BlockInfo> {
    use BlockKind::{Absent, Bad, Data, Lost, Zero};
    [Absent, Zero, Data, Lost, Bad].into_iter().zip(20..).map(|(k, block)| info(block, k)).collect()
}

fn links() -> Vec<LinkMessage> {
    let hello = |class| {
        LinkMessage::Hello(Hello {
            cluster: ClusterId::new([0xc1; 16]),
            node: NodeId::new(1),
            to: NodeId::new(2),
            incarnation: Incarnation::new(0x1234_5678_9abc_def0),
            class,
            protocol_min: 1,
            protocol_max: PROTOCOL,
            nonce: [0x55; 16],
        })
    };
    let refused = |reason| LinkMessage::Refused { reason };
    vec![
        hello(LinkClass::Control),
        hello(LinkClass::Data),
        hello(LinkClass::Bulk),
        LinkMessage::Proof { mac: [0xab; 32] },
        refused(LinkRefusal::WrongCluster),
        refused(LinkRefusal::WrongNode),
        refused(LinkRefusal::WrongIncarnation),
        refused(LinkRefusal::NoCommonProtocol),
        refused(LinkRefusal::BadProof),
        refused(LinkRefusal::UnknownNode),
        LinkMessage::Ping { number: 3 },
        LinkMessage::Pong { number: 3 },
        LinkMessage::Renew { incarnation: Incarnation::new(9), number: 4, term: 5 },
        LinkMessage::Renewed { number: 4 },
        LinkMessage::ReleaseVolume { volume: VolumeId::new(11), idle: true },
    ]
}

fn ops() -> Vec<ReplicaOp> {
    let segment = SegmentIndex::new(6);
    let joined = epoch(8);
    let fenced = |joined| FencedSegment { segment, creation: epoch(2), joined };
    vec![
        ReplicaOp::Create { creation: epoch(1), first: segment, count: 80 },
        ReplicaOp::Fence { segments: vec![fenced(None), fenced(Some(joined))] },
        ReplicaOp::Fence { segments: vec![] },
        ReplicaOp::Write {
            segment,
            version: version(9, 1000),
            range: range(16, 2),
            crcs: vec![Crc::new(1), Crc::new(2)],
            data: data(8192),
            settled: Seq::new(990),
        },
        ReplicaOp::Zero {
            segment,
            version: version(9, 1001),
            range: range(0, 65536),
            settled: Seq::new(991),
        },
        ReplicaOp::Read { segment, range: range(3, 4) },
        ReplicaOp::Scan {
            segment,
            from: BlockIndex::new(5),
            seq_above: Seq::new(77),
            epoch_from: Some(epoch(4)),
            entries_max: 4096,
        },
        ReplicaOp::Scan {
            segment,
            from: BlockIndex::new(0),
            seq_above: Seq::ZERO,
            epoch_from: None,
            entries_max: 1,
        },
        ReplicaOp::Settle { segment, blocks: infos(), data: data(4096) },
        ReplicaOp::Repair { segment, blocks: infos(), data: data(4096) },
        ReplicaOp::EpochStart {
            starts: vec![EpochStart { segment, epoch: epoch(9), next: Seq::new(2000) }],
        },
        ReplicaOp::Advance { settled: vec![(segment, Seq::new(1999))] },
        ReplicaOp::JoinStart { segment, joined, creation: epoch(2) },
        ReplicaOp::Install { segment, joined, blocks: infos(), data: data(4096) },
        ReplicaOp::Promoted { segment, joined, settled: Seq::new(1998) },
        ReplicaOp::Drop { segment, creation: epoch(2), epoch: epoch(12) },
    ]
}

fn results() -> Vec<Result<ReplicaDone, Refusal>> {
    let report = |joined, dropped_from| FenceReport {
        segment: SegmentIndex::new(6),
        present: true,
        settled: Seq::new(100),
        highest: Seq::new(120),
        joined,
        next: Seq::new(110),
        dropped_from,
        damaged: joined.is_some(),
        unbroken: false,
    };
    let reports = vec![report(None, None), report(Some(epoch(8)), Some(Seq::new(119)))];
    let mut results = vec![
        Ok(ReplicaDone::Done),
        Ok(ReplicaDone::Fenced { reports }),
        Ok(ReplicaDone::Blocks { blocks: infos(), data: data(4096) }),
        Ok(ReplicaDone::Table { entries: infos(), next: Some(BlockIndex::new(25)) }),
        Ok(ReplicaDone::Table { entries: vec![], next: None }),
        Ok(ReplicaDone::JoinStarted { settled: Seq::new(42) }),
    ];
    results.extend([
        Err(Refusal::Fenced { by: epoch(13) }),
        Err(Refusal::NoSegment),
        Err(Refusal::NoDisk),
        Err(Refusal::NoSpace),
        Err(Refusal::OutOfService),
        Err(Refusal::WrongEpoch),
        Err(Refusal::BadPayload),
        Err(Refusal::NotReady),
        Err(Refusal::Invalid),
        Err(Refusal::Busy),
    ]);
    results
}

fn later_ops() -> Vec<ReplicaOp> {
    vec![ReplicaOp::Verify { segment: SegmentIndex::new(6), range: range(64, 64) }]
}

fn guest_ops() -> Vec<GuestOp> {
    let range = bytes_range(4608, 1024);
    vec![
        GuestOp::Read { range },
        GuestOp::Write { range, data: data(1024), fua: true },
        GuestOp::Zero { range, fua: false },
        GuestOp::Trim { range, fua: true },
        GuestOp::Flush,
        GuestOp::Status { range },
        GuestOp::Room { range },
    ]
}

fn guest_results() -> Vec<GuestResult> {
    let extent = |length, data| MappedExtent { length, data };
    vec![
        Ok(GuestData::Done),
        Ok(GuestData::Read(data(512))),
        Ok(GuestData::Read(Bytes::new())),
        Ok(GuestData::Status(vec![extent(4096, true), extent(1 << 40, false)])),
        Err(IoError::OutOfRange),
        Err(IoError::Misaligned),
        Err(IoError::TooLarge),
        Err(IoError::NoSpace),
        Err(IoError::Lost),
        Err(IoError::HeldTooLong),
        Err(IoError::Gone),
        Err(IoError::Stopping),
    ]
}

fn sessions() -> Vec<SessionMessage> {
    let (volume, owner_epoch) = (VolumeId::new(4), epoch(9));
    let (number, guest) = (SessionNumber(31), 77);
    let mut sessions = vec![
        SessionMessage::Open { volume, owner_epoch, applied: MapIndex::new(123) },
        SessionMessage::Have { volume, owner_epoch, next: number, missing: vec![SessionNumber(7)] },
        SessionMessage::Opened { volume, owner_epoch },
        SessionMessage::HungUp { volume, owner_epoch, guest },
        SessionMessage::Attach { volume, owner_epoch, guest },
        SessionMessage::Attached { volume, owner_epoch, guest },
        SessionMessage::Flush { volume, owner_epoch, number: 5 },
        SessionMessage::Flushed { volume, owner_epoch, number: 5, guests: false },
        SessionMessage::Closed { volume, owner_epoch },
    ];
    let request = |op| SessionMessage::Request { volume, owner_epoch, number, guest, op };
    let response = |result| SessionMessage::Response { volume, owner_epoch, number, result };
    sessions.extend(guest_ops().into_iter().map(request));
    sessions.extend(guest_results().into_iter().map(response));
    sessions.push(SessionMessage::Flushed { volume, owner_epoch, number: 5, guests: true });
    sessions.push(SessionMessage::KeptOut { volume, owner_epoch, guest, by: NodeId::new(3) });
    sessions
}

/// At least one message of each variant of each type on the wire.
fn samples() -> Vec<Message> {
    let (disk, volume) = (DiskId::new(3), VolumeId::new(4));
    let mut bodies: Vec<Body> = links().into_iter().map(Body::Link).collect();
    let ask = |op| Body::Replica(ReplicaRequest { disk, volume, owner_epoch: epoch(9), op });
    bodies.extend(ops().into_iter().map(ask));
    bodies.extend(
        results().into_iter().map(|result| {
            Body::Answer(ReplicaAnswer { disk, volume, credit_bytes: 1 << 26, result })
        }),
    );
    bodies.extend(sessions().into_iter().map(Body::Session));
    // What came later stands behind, so that the bytes of the others stay as they are.
    bodies.extend(later_ops().into_iter().map(ask));
    bodies.push(Body::Link(LinkMessage::Leaving));
    bodies
        .into_iter()
        .zip(1..)
        .map(|(body, number)| Message { request: RequestId(number), body })
        .collect()
}

fn header_of(encoded: &Encoded) -> Header {
    Header::decode(encoded.head.first_chunk().unwrap()).unwrap()
}

fn decode_whole(encoded: &Encoded) -> Result<Message, WireError> {
    let header = header_of(encoded);
    decode(&header, &encoded.head[HEADER_BYTES..], encoded.payload.clone().unwrap_or_default())
}

/// Feeds a link's bytes to an assembler, as a driver does.
fn assemble(mut bytes: Bytes) -> Result<Vec<Message>, WireError> {
    let mut assembler = Assembler::new();
    let mut messages = Vec::new();
    while assembler.want() <= bytes.len() {
        assert!(assembler.want() > 0, "an unbroken link always wants something");
        messages.extend(assembler.received(bytes.split_to(assembler.want()))?);
    }
    Ok(messages)
}

fn flat(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let encoded = encode(message).unwrap();
        bytes.extend_from_slice(&encoded.head);
        bytes.extend_from_slice(&encoded.payload.unwrap_or_default());
    }
    bytes
}

/// `version` stands for as long as `golden/v1.txt` does: another layout is another version.
#[test]
fn golden_bytes() {
    let mut text = String::from("# kind: header, fields; payload as length and crc\n");
    for message in samples() {
        let encoded = encode(&message).unwrap();
        let hex = |bytes: &[u8]| {
            bytes.chunks(32).fold(String::new(), |mut lines, chunk| {
                lines.push_str("\n ");
                chunk.iter().for_each(|byte| write!(lines, " {byte:02x}").unwrap());
                lines
            })
        };
        let kind = header_of(&encoded).kind;
        write!(text, "{kind:?}{}", hex(&encoded.head[..HEADER_BYTES])).unwrap();
        text.push_str(&hex(&encoded.head[HEADER_BYTES..]));
        if let Some(payload) = &encoded.payload {
            write!(text, "\n  + {} {:08x}", payload.len(), crc32fast::hash(payload)).unwrap();
        }
        text.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/v1.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text, "UPDATE_GOLDEN=1 writes it anew");
}

#[test]
fn every_kind_has_a_sample_and_a_code_of_its_own() {
    let kinds: Vec<Kind> = samples().iter().map(|m| header_of(&encode(m).unwrap()).kind).collect();
    for kind in Kind::ALL {
        assert!(kinds.contains(kind), "{kind:?} has no sample");
        assert_eq!(Kind::from_code(kind.code()), Some(*kind));
    }
    assert_eq!((0..=255).filter_map(Kind::from_code).count(), Kind::ALL.len());
    assert_eq!(u16::from(VERSION), PROTOCOL);
}

#[test]
fn every_sample_comes_back() {
    for message in samples() {
        assert_eq!(decode_whole(&encode(&message).unwrap()), Ok(message));
    }
    assert_eq!(assemble(flat(&samples()).into()), Ok(samples()));
}

/// The receiver's payload is the bytes that the driver brought, not a copy of them.
#[test]
fn a_large_payload_is_asked_for_by_itself() {
    let blocks = LARGE_PAYLOAD_BYTES / 4096;
    let op = ReplicaOp::Write {
        segment: SegmentIndex::new(0),
        version: version(1, 1),
        range: range(0, blocks),
        crcs: vec![Crc::default(); blocks as usize],
        data: data(LARGE_PAYLOAD_BYTES as usize),
        settled: Seq::ZERO,
    };
    let (disk, volume) = (DiskId::new(1), VolumeId::new(1));
    let body = Body::Replica(ReplicaRequest { disk, volume, owner_epoch: epoch(1), op });
    let encoded = encode(&Message { request: RequestId(1), body }).unwrap();
    let mut head = encoded.head.clone();
    let payload = encoded.payload.unwrap();

    let mut assembler = Assembler::new();
    assert_eq!(assembler.received(head.split_to(assembler.want())), Ok(None));
    assert_eq!(assembler.want(), head.len());
    assert!(!assembler.wants_payload());
    assert_eq!(assembler.received(head), Ok(None));
    assert!(assembler.wants_payload());
    assert_eq!(assembler.want(), payload.len());
    let message = assembler.received(payload.clone()).unwrap().unwrap();
    let Body::Replica(ReplicaRequest { op: ReplicaOp::Write { data, .. }, .. }) = message.body
    else {
        panic!("a write was sent");
    };
    assert_eq!(data.as_ptr(), payload.as_ptr());
    assert_eq!(assembler.want(), HEADER_BYTES);
}

/// promise: bounded
#[test]
fn nothing_over_the_bounds_is_sent_or_asked_for() {
    let starts = |count: usize| {
        let start = EpochStart { segment: SegmentIndex::new(0), epoch: epoch(1), next: Seq::ZERO };
        let op = ReplicaOp::EpochStart { starts: vec![start; count] };
        let (disk, volume) = (DiskId::new(1), VolumeId::new(1));
        let body = Body::Replica(ReplicaRequest { disk, volume, owner_epoch: epoch(1), op });
        Message { request: RequestId(1), body }
    };
    let fits = (AUX_BYTES_MAX as usize - 8) / 20;
    assert_eq!(decode_whole(&encode(&starts(fits)).unwrap()), Ok(starts(fits)));
    assert!(matches!(encode(&starts(fits + 1)), Err(WireError::AuxTooLarge { .. })));

    let announce = |kind, aux_len, payload_len| {
        let header = Header { aux_len, payload_len, ..Header::new(kind, 1) };
        let mut assembler = Assembler::new();
        let result = assembler.received(Bytes::copy_from_slice(&header.encode()));
        (result, assembler.want())
    };
    let (result, want) = announce(Kind::Write, AUX_BYTES_MAX + 1, 0);
    assert!(matches!(result, Err(WireError::AuxTooLarge { .. })));
    assert_eq!(want, 0, "a broken link wants nothing more");
    let (result, _) = announce(Kind::Write, 0, PAYLOAD_BYTES_MAX + 1);
    assert!(matches!(result, Err(WireError::PayloadTooLarge { .. })));
    let (result, _) = announce(Kind::Ping, 0, 1);
    assert!(matches!(result, Err(WireError::PayloadTooLarge { max: 0, .. })));
    let (result, want) = announce(Kind::Write, AUX_BYTES_MAX, PAYLOAD_BYTES_MAX);
    assert_eq!((result, want), (Ok(None), AUX_BYTES_MAX as usize));
}

/// The longest entry of all is a fence report with all of its optional fields.
#[test]
fn a_list_of_the_longest_entries_fits() {
    let report = FenceReport {
        segment: SegmentIndex::new(1),
        present: true,
        settled: Seq::MAX,
        highest: Seq::MAX,
        joined: Some(Epoch::MAX),
        next: Seq::MAX,
        dropped_from: Some(Seq::MAX),
        damaged: true,
        unbroken: true,
    };
    let result = Ok(ReplicaDone::Fenced { reports: vec![report; ENTRIES_MAX] });
    let (disk, volume) = (DiskId::new(1), VolumeId::new(1));
    let body = Body::Answer(ReplicaAnswer { disk, volume, credit_bytes: 0, result });
    let message = Message { request: RequestId(1), body };
    assert_eq!(decode_whole(&encode(&message).unwrap()), Ok(message));
}

#[test]
fn a_broken_link_stays_broken() {
    let mut assembler = Assembler::new();
    let error = WireError::Magic { found: 0 };
    assert_eq!(assembler.received(Bytes::from_static(&[0; HEADER_BYTES])), Err(error));
    let good = encode(&samples()[0]).unwrap().head.slice(..HEADER_BYTES);
    assert_eq!(assembler.received(good.clone()), Err(error));
    let short = Assembler::new().received(good.slice(1..));
    assert_eq!(short, Err(WireError::Chunk { found: 63, wanted: 64 }));
}

/// promise: no-silent-corruption. One bit anywhere but in a payload that has block checksums of its
/// own is noticed here.
#[test]
fn every_flipped_bit_is_noticed() {
    for message in samples() {
        let encoded = encode(&message).unwrap();
        let session = matches!(message.body, Body::Session(_));
        let checked = if session { encoded.byte_count() } else { encoded.head.len() };
        for bit in 0..checked * 8 {
            let mut bytes = flat(std::slice::from_ref(&message));
            bytes[bit / 8] ^= 1 << (bit % 8);
            let got = assemble(bytes.into());
            assert!(got != Ok(vec![message.clone()]), "bit {bit} of {message:?}");
            assert!(got.is_err() || got == Ok(vec![]), "bit {bit} of {message:?}");
        }
    }
}

/// A forger who knows the checksums still gets nothing but errors.
#[test]
fn what_cannot_be_is_refused() {
    let forge = |message: &Message, change: &dyn Fn(&mut Header, &mut Vec<u8>)| {
        let encoded = encode(message).unwrap();
        let mut header = header_of(&encoded);
        let mut aux = encoded.head[HEADER_BYTES..].to_vec();
        aux.truncate(aux.len().saturating_sub(4));
        change(&mut header, &mut aux);
        if !aux.is_empty() {
            let crc = crc32fast::hash(&aux);
            aux.extend_from_slice(&crc.to_le_bytes());
        }
        header.aux_len = u32::try_from(aux.len()).unwrap();
        decode(&header, &aux, encoded.payload.unwrap_or_default())
    };
    for message in samples() {
        let kind = header_of(&encode(&message).unwrap()).kind;
        let more = forge(&message, &|_, aux| aux.push(0));
        assert!(more.is_err(), "{kind:?} with a byte more");
        let fields: [fn(&mut Header); 7] = [
            |header| header.volume ^= 1,
            |header| header.segment ^= 1,
            |header| header.disk ^= 1,
            |header| header.block ^= 1,
            |header| header.owner_epoch ^= 1,
            |header| header.version_epoch ^= 1,
            |header| header.version_seq ^= 1,
        ];
        for field in fields {
            if let Ok(other) = forge(&message, &|header, _| field(header)) {
                assert_ne!(other, message, "{kind:?} ignores a field of its header");
            }
        }
        for cut in 0..encode(&message).unwrap().head.len() - HEADER_BYTES {
            let short = forge(&message, &|_, aux| aux.truncate(cut));
            let whole = encode(&message).unwrap().head.len() - HEADER_BYTES - 4;
            assert!(cut >= whole || short.is_err(), "{kind:?} cut to {cut}");
        }
    }
    let sample = |kind| {
        let is_kind = |m: &Message| header_of(&encode(m).unwrap()).kind == kind;
        samples().into_iter().find(is_kind).unwrap()
    };
    let longer = forge(&sample(Kind::Write), &|_, aux| aux[0] = 3);
    assert!(matches!(longer, Err(WireError::Value { .. })));
    let many = forge(&sample(Kind::Advance), &|_, aux| aux[..4].fill(0xff));
    assert!(matches!(many, Err(WireError::Short { .. })), "room is made only for what is there");
    let epoch = forge(&sample(Kind::Write), &|header, _| header.owner_epoch = 1 << 48);
    assert!(matches!(epoch, Err(WireError::Value { .. })));
}

fn any_epoch() -> impl Strategy<Value = Epoch> {
    (0..=Epoch::MAX.get()).prop_map(epoch)
}

fn any_version() -> impl Strategy<Value = Version> {
    (any_epoch(), any::<u64>()).prop_map(|(epoch, seq)| Version::new(epoch, Seq::new(seq)))
}

fn any_segment() -> impl Strategy<Value = SegmentIndex> {
    any::<u32>().prop_map(SegmentIndex::new)
}

fn any_seq() -> impl Strategy<Value = Seq> {
    any::<u64>().prop_map(Seq::new)
}

fn any_info() -> impl Strategy<Value = BlockInfo> {
    use BlockKind::{Absent, Bad, Data, Lost, Zero};
    let kind = prop::sample::select(vec![Absent, Zero, Data, Lost, Bad]);
    (any::<u32>(), kind, any_version(), any::<u32>()).prop_map(|(block, kind, version, crc)| {
        BlockInfo { block: BlockIndex::new(block), kind, version, crc: Crc::new(crc) }
    })
}

fn any_blocks() -> impl Strategy<Value = (Vec<BlockInfo>, Bytes)> {
    prop::collection::vec(any_info(), 0..24).prop_map(|blocks| {
        let with_data = blocks.iter().filter(|info| info.kind == BlockKind::Data).count();
        (blocks, data(with_data * 4096))
    })
}

fn any_write() -> impl Strategy<Value = ReplicaOp> {
    let crcs = prop::collection::vec(any::<u32>().prop_map(Crc::new), 1..40);
    (any_segment(), any_version(), 0..u32::MAX - 64, crcs, any_seq()).prop_map(
        |(segment, version, first, crcs, settled)| {
            let count = u32::try_from(crcs.len()).unwrap();
            let data = data(crcs.len() * 4096);
            ReplicaOp::Write { segment, version, range: range(first, count), crcs, data, settled }
        },
    )
}

fn any_op() -> impl Strategy<Value = ReplicaOp> {
    let fenced = (any_segment(), any_epoch(), prop::option::of(any_epoch()))
        .prop_map(|(segment, creation, joined)| FencedSegment { segment, creation, joined });
    let start = (any_segment(), any_epoch(), any_seq())
        .prop_map(|(segment, epoch, next)| EpochStart { segment, epoch, next });
    prop_oneof![
        any_write(),
        prop::collection::vec(fenced, 0..40).prop_map(|segments| ReplicaOp::Fence { segments }),
        prop::collection::vec(start, 0..40).prop_map(|starts| ReplicaOp::EpochStart { starts }),
        prop::collection::vec((any_segment(), any_seq()), 0..40)
            .prop_map(|settled| ReplicaOp::Advance { settled }),
        (any_segment(), any_blocks()).prop_map(|(segment, (blocks, data))| ReplicaOp::Settle {
            segment,
            blocks,
            data
        }),
        (any_segment(), any_epoch(), any_blocks()).prop_map(|(segment, joined, (blocks, data))| {
            ReplicaOp::Install { segment, joined, blocks, data }
        }),
        (any_segment(), any::<u32>(), any_seq(), prop::option::of(any_epoch()), any::<u32>())
            .prop_map(|(segment, from, seq_above, epoch_from, entries_max)| {
                let from = BlockIndex::new(from);
                ReplicaOp::Scan { segment, from, seq_above, epoch_from, entries_max }
            }),
        prop::sample::select([ops(), later_ops()].concat()),
    ]
}

fn any_result() -> impl Strategy<Value = Result<ReplicaDone, Refusal>> {
    let report = (
        (any_segment(), any::<bool>(), any_seq(), any_seq()),
        (prop::option::of(any_epoch()), any_seq(), prop::option::of(any_seq()), any::<[bool; 2]>()),
    );
    let report = report.prop_map(|((segment, present, settled, highest), rest)| {
        let (joined, next, dropped_from, [damaged, unbroken]) = rest;
        FenceReport {
            segment,
            present,
            settled,
            highest,
            joined,
            next,
            dropped_from,
            damaged,
            unbroken,
        }
    });
    prop_oneof![
        prop::collection::vec(report, 0..40)
            .prop_map(|reports| Ok(ReplicaDone::Fenced { reports })),
        any_blocks().prop_map(|(blocks, data)| Ok(ReplicaDone::Blocks { blocks, data })),
        (prop::collection::vec(any_info(), 0..40), prop::option::of(any::<u32>())).prop_map(
            |(entries, next)| Ok(ReplicaDone::Table { entries, next: next.map(BlockIndex::new) })
        ),
        prop::sample::select(results()),
    ]
}

fn any_body() -> impl Strategy<Value = Body> {
    let (disk, volume) = (any::<u32>(), any::<u32>());
    let (disk, volume) = (disk.prop_map(DiskId::new), volume.prop_map(VolumeId::new));
    prop_oneof![
        prop::sample::select(links()).prop_map(Body::Link),
        prop::sample::select(sessions()).prop_map(Body::Session),
        (disk.clone(), volume.clone(), any_epoch(), any_op()).prop_map(
            |(disk, volume, owner_epoch, op)| {
                Body::Replica(ReplicaRequest { disk, volume, owner_epoch, op })
            }
        ),
        (disk, volume, any::<u64>(), any_result()).prop_map(
            |(disk, volume, credit_bytes, result)| {
                Body::Answer(ReplicaAnswer { disk, volume, credit_bytes, result })
            }
        ),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    (any::<u64>(), any_body())
        .prop_map(|(request, body)| Message { request: RequestId(request), body })
}

proptest! {
    #[test]
    fn any_stream_of_messages_comes_back(
        messages in prop::collection::vec(any_message(), 0..6)
    ) {
        prop_assert_eq!(assemble(flat(&messages).into()), Ok(messages));
    }

    /// Bytes behind a header that is right, with checksums that are right: whatever decodes is a
    /// message whose bytes are the same again.
    #[test]
    fn what_decodes_encodes_to_the_same_bytes(
        message in any_message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        fields in any::<[u32; 4]>(),
        field_mask in 0u8..16,
    ) {
        let encoded = encode(&message).unwrap();
        let mut header = header_of(&encoded);
        let mut aux = encoded.head[HEADER_BYTES..].to_vec();
        if !aux.is_empty() {
            let fields_end = aux.len() - 4;
            for (index, value) in changes {
                aux[index.index(fields_end)] = value;
            }
            let crc = crc32fast::hash(&aux[..fields_end]);
            aux[fields_end..].copy_from_slice(&crc.to_le_bytes());
        }
        let set = |bit: u8, field: &mut u32, value: u32| {
            if field_mask & bit != 0 { *field = value; }
        };
        set(1, &mut header.segment, fields[0]);
        set(2, &mut header.disk, fields[1]);
        set(4, &mut header.block, fields[2]);
        set(8, &mut header.volume, fields[3]);
        let payload = encoded.payload.unwrap_or_default();
        if let Ok(message) = decode(&header, &aux, payload.clone()) {
            let again = encode(&message).unwrap();
            prop_assert_eq!(&again.head[..HEADER_BYTES], &header.encode()[..]);
            prop_assert_eq!(&again.head[HEADER_BYTES..], &aux[..]);
            prop_assert_eq!(again.payload.unwrap_or_default(), payload);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        header in any::<[u8; HEADER_BYTES]>(),
        kind in prop::sample::select(Kind::ALL),
        aux in prop::collection::vec(any::<u8>(), 0..200),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let _ = Header::decode(&header);
        let mut aux = aux;
        let crc = crc32fast::hash(&aux);
        aux.extend_from_slice(&crc.to_le_bytes());
        let header = Header {
            aux_len: u32::try_from(aux.len()).unwrap(),
            payload_len: u32::try_from(payload.len()).unwrap(),
            ..Header::new(kind, 1)
        };
        let _ = decode(&header, &aux, payload.into());
        let _ = assemble(Bytes::copy_from_slice(&aux));
    }
}
