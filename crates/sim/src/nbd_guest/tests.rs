use super::*;
use gabion_types::{ByteRange, GuestData, IoError, MappedExtent};

fn greeted(guest: &mut NbdGuest) {
    let mut bytes = BytesMut::new();
    bytes.put_u64(MAGIC);
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u16(3);
    assert_eq!(guest.receive(&[bytes.freeze()]), Ok(VecDeque::new()));
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u64(OPTION_REPLY_MAGIC);
    bytes.put_u32(option);
    bytes.put_u32(kind);
    bytes.put_u32(u32::try_from(data.len()).expect("short"));
    bytes.put_slice(data);
    bytes.freeze()
}

fn export(size_bytes: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size_bytes.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn simple(error: u32, tag: u64, data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32(SIMPLE_REPLY_MAGIC);
    bytes.put_u32(error);
    bytes.put_u64(tag);
    bytes.put_slice(data);
    bytes.freeze()
}

fn chunk(tag: u64, last: bool, kind: u16, data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32(STRUCTURED_REPLY_MAGIC);
    bytes.put_u16(u16::from(last));
    bytes.put_u16(kind);
    bytes.put_u64(tag);
    bytes.put_u32(u32::try_from(data.len()).expect("short"));
    bytes.put_slice(data);
    bytes.freeze()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn error(code: u32, offset: Option<u64>) -> Vec<u8> {
    let offset = offset.map(u64::to_be_bytes);
    let offset = offset.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    [&code.to_be_bytes()[..], &[0, 2], b"no", offset].concat()
}

fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).expect("small")
}

/// It has opened an export of 1 MiB, with all that it may use.
fn serving() -> NbdGuest {
    let dialect = Dialect { structured: true, allocation: true, ..Dialect::PLAIN };
    let mut guest = NbdGuest::new("vm".into(), dialect, 0);
    greeted(&mut guest);
    let context = [&[0, 0, 0, 1][..], proto::ALLOCATION].concat();
    let replies = [
        option_reply(proto::option::STRUCTURED_REPLY, answer::ACK, &[]),
        option_reply(proto::option::SET_META_CONTEXT, answer::META_CONTEXT, &context),
        option_reply(proto::option::SET_META_CONTEXT, answer::ACK, &[]),
        option_reply(proto::option::GO, answer::INFO, &export(1 << 20, 1 | CAN_DF)),
        option_reply(proto::option::GO, answer::ACK, &[]),
    ];
    let said: Vec<_> = replies
        .iter()
        .flat_map(|reply| guest.receive(std::slice::from_ref(reply)).expect("NBD"))
        .collect();
    assert_eq!(said, [Said::Opened { size_bytes: 1 << 20 }]);
    guest
}

/// Asks until the read is to come in parts, or as a whole.
fn read(guest: &mut NbdGuest, tag: u64, asked: ByteRange, whole: bool) {
    loop {
        guest.ask(tag, &GuestOp::Read { range: asked });
        let wanted = Asked::Read { range: asked, whole };
        if guest.open.get(&tag).is_some_and(|pending| pending.is(wanted)) {
            return;
        }
    }
}

#[test]
fn it_reads_what_was_sent_in_pieces() {
    let mut guest = NbdGuest::new("vm".into(), Dialect::PLAIN, 0);
    greeted(&mut guest);
    guest.want(4);
    assert_eq!(guest.take().as_deref(), Some(&[0, 0, 0, 3][..]));
    let info = option_reply(proto::option::GO, answer::INFO, &export(4096, 1));
    let ack = option_reply(proto::option::GO, answer::ACK, &[]);
    assert_eq!(guest.receive(&[info.slice(..7)]), Ok(VecDeque::new()));
    let said = guest.receive(&[info.slice(7..), ack]).expect("it is NBD");
    assert_eq!(said, [Said::Opened { size_bytes: 4096 }]);
    guest.ask(9, &GuestOp::Read { range: range(512, 512) });
    let reply = simple(0, 9, &[7; 512]);
    let said = guest.receive(std::slice::from_ref(&reply)).expect("it is NBD");
    let data = GuestData::Read(vec![7; 512].into());
    assert_eq!(said, [Said::Done { tag: 9, result: Ok(data) }]);
    assert!(guest.receive(&[reply]).is_err(), "it was answered");
}

#[test]
fn a_refused_volume_and_nonsense_are_told() {
    let mut guest = NbdGuest::new("vm".into(), Dialect::PLAIN, 0);
    assert!(guest.receive(&[Bytes::from_static(&[1; GREETING_BYTES])]).is_err());
    let mut guest = NbdGuest::new("vm".into(), Dialect::PLAIN, 0);
    greeted(&mut guest);
    let refused = option_reply(proto::option::GO, answer::ERR_UNKNOWN, b"no");
    let said = guest.receive(&[refused]).expect("it is NBD");
    assert_eq!(said, [Said::NotOpened]);
}

#[test]
fn chunks_of_a_read_come_in_any_order() {
    let mut guest = serving();
    read(&mut guest, 3, range(4096, 3072), false);
    let hole = [&5120_u64.to_be_bytes()[..], &1024_u32.to_be_bytes()].concat();
    let parts = [
        chunk(3, false, chunk::OFFSET_DATA, &data(6144, &[2; 1024])),
        chunk(3, false, chunk::OFFSET_HOLE, &hole),
        chunk(3, true, chunk::OFFSET_DATA, &data(4096, &[1; 1024])),
    ];
    assert_eq!(guest.receive(&parts[..2]), Ok(VecDeque::new()));
    let bytes = [[1; 1024], [0; 1024], [2; 1024]].concat();
    let result = Ok(GuestData::Read(bytes.into()));
    assert_eq!(guest.receive(&parts[2..]), Ok([Said::Done { tag: 3, result }].into()));
}

#[test]
fn a_read_that_does_not_fit_is_not_nbd() {
    let fails = |whole, parts: &[Bytes]| {
        let mut guest = serving();
        read(&mut guest, 3, range(0, 2048), whole);
        assert!(guest.receive(parts).is_err(), "{parts:?}");
    };
    let part =
        |last, offset, bytes: &[u8]| chunk(3, last, chunk::OFFSET_DATA, &data(offset, bytes));
    fails(false, &[part(true, 0, &[1; 1024])]);
    fails(false, &[part(false, 0, &[1; 1024]), part(true, 512, &[1; 1536])]);
    fails(false, &[part(true, 0, &[1; 4096])]);
    fails(true, &[part(false, 0, &[1; 1024]), part(true, 1024, &[1; 1024])]);
    fails(false, &[simple(0, 3, &[1; 2048])]);
    fails(false, &[chunk(4, true, chunk::NONE, &[])]);
    fails(false, &[chunk(3, true, chunk::NONE, &[])]);
    fails(false, &[chunk(3, true, chunk::ERROR_OFFSET, &error(5, Some(4096)))]);
}

#[test]
fn a_part_that_is_lost_makes_the_read_fail() {
    let mut guest = serving();
    read(&mut guest, 3, range(0, 2048), false);
    let parts = [
        chunk(3, false, chunk::ERROR_OFFSET, &error(5, Some(1024))),
        chunk(3, true, chunk::OFFSET_DATA, &data(0, &[1; 1024])),
    ];
    let lost = Said::Done { tag: 3, result: Err(IoError::Lost) };
    assert_eq!(guest.receive(&parts), Ok([lost].into()));
}

#[test]
fn a_status_tells_of_runs() {
    let extents = |id: u32, runs: &[(u32, u32)]| {
        let mut bytes = BytesMut::new();
        bytes.put_u32(id);
        for (length, flags) in runs {
            bytes.put_u32(*length);
            bytes.put_u32(*flags);
        }
        chunk(5, true, chunk::BLOCK_STATUS, &bytes)
    };
    let answered = |reply| {
        let mut guest = serving();
        let asked = Asked::Status { range: range(0, 12_288), one: false, context: 1 };
        guest.open.insert(5, Pending::new(asked));
        guest.receive(&[reply])
    };
    let run = |length, data| MappedExtent { length, data };
    let result = Ok(GuestData::Status(vec![run(4096, true), run(8192, false)]));
    let said = answered(extents(1, &[(4096, 0), (8192, 3)]));
    assert_eq!(said, Ok([Said::Done { tag: 5, result }].into()));
    assert!(answered(extents(2, &[(4096, 0)])).is_err(), "another context");
    assert!(answered(extents(1, &[])).is_err());
    assert!(answered(extents(1, &[(16_384, 0)])).is_err(), "past the end");
    assert!(answered(extents(1, &[(4096, 1)])).is_err(), "no data, and no zeros");
    assert!(answered(extents(1, &[(4096, 0), (4096, 0)])).is_err(), "one run in two");
}

#[test]
fn what_has_to_be_refused_is() {
    let answered = |wanted, code| {
        let mut guest = serving();
        let asked = Asked::Aside { error: wanted, reads: false };
        guest.open.insert(ASIDE | 1, Pending::new(asked));
        guest.receive(&[chunk(ASIDE | 1, true, chunk::ERROR, &error(code, None))])
    };
    assert_eq!(answered(22, 22), Ok([Said::Refused].into()));
    assert_eq!(answered(22, 108), Ok([Said::Refused].into()), "its node stops");
    assert!(answered(22, 28).is_err());
    assert!(answered(0, 22).is_err());
}

/// Whatever is drawn, it opens its export in the end or says that it does not.
#[test]
fn each_dialect_has_an_end() {
    let mut prng = Prng::new(5);
    for number in 0..500 {
        let dialect = Dialect::draw(&mut prng);
        let steps = dialect::steps(dialect, &mut prng);
        assert!(matches!(steps.back(), Some(Step::Go | Step::ExportName)), "{number}: {steps:?}");
        let selects = steps.contains(&Step::SetMeta);
        assert_eq!(selects, dialect.allocation, "{steps:?}");
        assert!(!selects || dialect.structured, "{steps:?}");
    }
}
