//! Each command: what it asks of the volume, what it answers, what it refuses.

use crate::client::{Client, LIMITS, Reply, SIZE, content, range};
use bytes::Bytes;
use gabion_types::{GuestData, GuestOp, IoError, MappedExtent};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[test]
fn every_command_becomes_what_it_should() {
    let range = range(4608, 8192);
    let at = |command, flags| (command, flags, 4608, 8192);
    let data = content(range);
    let write = |fua| GuestOp::Write { range, data: data.clone(), fua };
    let zeros = |fua| GuestOp::Write { range, data: Bytes::from_static(&[0; 8192]), fua };
    for structured in [false, true] {
        for ((command, flags, offset, length), op) in [
            (at(READ, 0), GuestOp::Read { range }),
            (at(READ, FUA), GuestOp::Read { range }),
            (at(WRITE, 0), write(false)),
            (at(WRITE, FUA), write(true)),
            ((FLUSH, 0, 0, 0), GuestOp::Flush),
            ((FLUSH, FUA, 0, 0), GuestOp::Flush),
            (at(TRIM, 0), GuestOp::Trim { range, fua: false }),
            (at(TRIM, FUA), GuestOp::Trim { range, fua: true }),
            (at(ZEROES, 0), GuestOp::Zero { range, fua: false }),
            (at(ZEROES, FUA | FAST_ZERO), GuestOp::Zero { range, fua: true }),
            (at(ZEROES, NO_HOLE), zeros(false)),
            (at(ZEROES, NO_HOLE | FUA), zeros(true)),
        ] {
            let mut client = Client::serving(structured);
            client.request(command, flags, 42, offset, length);
            if command == WRITE {
                client.send(&data);
            }
            let ops: Vec<_> = client.requests.iter().map(|(_, op)| op.clone()).collect();
            assert_eq!(ops, [op], "command {command} flags {flags:x}");
            assert!(client.received.is_empty(), "not answered before it is done");
            client.done(0);
            if command == READ && !structured {
                assert_eq!(client.take(16)[4..], *b"\0\0\0\0\0\0\0\0\0\0\0\x2a");
                assert_eq!(client.take(8192), data);
            } else if command == READ {
                let (cookie, offset) = (42, range.offset());
                let data = data.clone();
                assert_eq!(client.replies(), [Reply::Data { cookie, offset, data, last: true }]);
            } else {
                assert_eq!(client.replies(), [Reply::Simple { cookie: 42, error: 0 }]);
            }
            assert!(client.received.is_empty() && client.connection.requests_in_flight() == 0);
        }
    }
}

#[test]
fn what_must_not_be_is_refused_with_the_right_error() {
    let end = SIZE;
    let max = 32 << 20;
    // Command, flags, offset, length; error with simple replies, with structured ones.
    let table = [
        (READ, DF, 0, 4096, EINVAL, 0),
        (READ, NO_HOLE, 0, 4096, EINVAL, EINVAL),
        (READ, 0, 1, 512, EINVAL, EINVAL),
        (READ, 0, 0, 513, EINVAL, EINVAL),
        (READ, 0, end - 512, 1024, EINVAL, EINVAL),
        (READ, 0, u64::MAX - 511, 512, EINVAL, EINVAL),
        (READ, 0, 0, max + 512, EINVAL, EOVERFLOW),
        (READ, 0, end, 0, 0, 0),
        (WRITE, DF, 0, 512, EINVAL, EINVAL),
        (WRITE, 0, 256, 512, EINVAL, EINVAL),
        (WRITE, 0, end, 512, ENOSPC, ENOSPC),
        (WRITE, 0, 0, max + 512, EINVAL, EINVAL),
        (WRITE, 0, 512, 0, 0, 0),
        (FLUSH, 0, 0, 512, EINVAL, EINVAL),
        (FLUSH, 0, 512, 0, EINVAL, EINVAL),
        (FLUSH, REQ_ONE, 0, 0, EINVAL, EINVAL),
        (TRIM, NO_HOLE, 0, 512, EINVAL, EINVAL),
        (TRIM, 0, end, 512, EINVAL, EINVAL),
        (TRIM, 0, 0, 0, 0, 0),
        (CACHE, FAST_ZERO, 0, 512, EINVAL, EINVAL),
        (CACHE, 0, end, 512, EINVAL, EINVAL),
        (CACHE, 0, 0, 4096, 0, 0),
        (CACHE, FUA, 0, 64 << 20, 0, 0),
        (ZEROES, DF, 0, 512, EINVAL, EINVAL),
        (ZEROES, 0, end, 512, ENOSPC, ENOSPC),
        (ZEROES, 0, 0, 100, EINVAL, EINVAL),
        (ZEROES, FAST_ZERO | NO_HOLE, 0, 4096, ENOTSUP, ENOTSUP),
        (ZEROES, NO_HOLE, 0, 0, 0, 0),
        (STATUS, 0, 0, 0, EINVAL, EINVAL),
        (STATUS, DF, 0, 512, EINVAL, EINVAL),
        (STATUS, 0, end, 512, EINVAL, EINVAL),
        (8, 0, 0, 512, EINVAL, EINVAL),
        (0xffff, 0, 0, 512, EINVAL, EINVAL),
    ];
    for (command, flags, offset, length, simple, structured) in table {
        for (is_structured, error) in [(false, simple), (true, structured)] {
            if (command, flags, error) == (READ, DF, 0) {
                continue;
            }
            let mut client = Client::serving(is_structured);
            client.request(command, flags, 7, offset, length);
            if command == WRITE {
                assert!(error == 0 || client.received.is_empty(), "answered when all is read");
                client.send(&vec![0; length as usize]);
            }
            let replies = client.replies();
            let shown = format!("command {command} flags {flags:x} {offset}+{length}: {replies:?}");
            assert_eq!(replies.len(), 1, "{shown}");
            assert_eq!((replies[0].cookie(), replies[0].error()), (7, error), "{shown}");
            let is_chunk = !matches!(replies[0], Reply::Simple { .. });
            assert_eq!(is_chunk, is_structured && (error != 0 || command == READ), "{shown}");
            assert!(client.requests.is_empty(), "{shown}");
            client.request(FLUSH, 0, 8, 0, 0);
            assert_eq!(client.requests.len(), 1, "still in step");
        }
    }
}

#[test]
fn a_read_only_export_is_not_written() {
    for structured in [false, true] {
        let mut client = Client::serving_with(LIMITS, structured, true);
        for command in [WRITE, TRIM, ZEROES] {
            client.request(command, 0, 7, 0, 512);
            if command == WRITE {
                client.send(&[1; 512]);
            }
            assert_eq!(client.one_error(), EPERM);
        }
        client.request(READ, 0, 7, 0, 512);
        client.request(FLUSH, 0, 7, 0, 0);
        assert_eq!(client.requests.len(), 2);
    }
}

#[test]
fn block_status_needs_a_context() {
    let mut client = Client::serving(false);
    client.request(STATUS, 0, 7, 0, 512);
    assert_eq!(client.one_error(), EINVAL);
}

#[test]
fn errors_of_the_volume_have_their_codes() {
    for (error, reads, writes) in [
        (IoError::OutOfRange, EINVAL, ENOSPC),
        (IoError::Misaligned, EINVAL, EINVAL),
        (IoError::TooLarge, EINVAL, EINVAL),
        (IoError::NoSpace, ENOSPC, ENOSPC),
        (IoError::Lost, EIO, EIO),
        (IoError::HeldTooLong, EIO, EIO),
        (IoError::Gone, ESHUTDOWN, ESHUTDOWN),
        (IoError::Stopping, ESHUTDOWN, ESHUTDOWN),
    ] {
        for structured in [false, true] {
            for command in [READ, WRITE, FLUSH, TRIM, ZEROES, STATUS] {
                if command == STATUS && !structured {
                    continue;
                }
                let mut client = Client::serving(structured);
                let length = if command == FLUSH { 0 } else { 4096 };
                client.request(command, 0, 7, 0, length);
                if command == WRITE {
                    client.send(&[1; 4096]);
                }
                client.done_with(0, Err(error));
                let code = if [WRITE, TRIM, ZEROES].contains(&command) { writes } else { reads };
                assert_eq!(client.one_error(), code, "{error:?} to command {command}");
            }
        }
    }
}

/// Answers come from another node, sometimes; they are not believed.
#[test]
fn an_answer_that_does_not_fit_is_an_error() {
    let wrong = [
        (READ, GuestData::Done),
        (READ, GuestData::Read(Bytes::from_static(&[0; 4095]))),
        (READ, GuestData::Read(Bytes::from_static(&[0; 4097]))),
        (WRITE, GuestData::Read(Bytes::from_static(&[0; 4096]))),
        (FLUSH, GuestData::Status(vec![])),
        (STATUS, GuestData::Done),
        (STATUS, GuestData::Status(vec![])),
        (STATUS, GuestData::Status(vec![MappedExtent { length: 0, data: true }])),
    ];
    for (command, data) in wrong {
        for flags in if command == READ { &[0, DF][..] } else { &[0] } {
            let mut client = Client::serving(true);
            client.request(command, *flags, 7, 0, if command == FLUSH { 0 } else { 4096 });
            if command == WRITE {
                client.send(&[1; 4096]);
            }
            client.done_with(0, Ok(data.clone()));
            assert_eq!(client.one_error(), EIO, "command {command}");
        }
    }
}

#[test]
fn status_is_told_in_runs() {
    let extent = |blocks: u64, data| MappedExtent { length: blocks * 4096, data };
    let extents = [(2, true), (1, true), (4, false), (0, true), (3, false), (1 << 40, true)];
    let extents: Vec<_> = extents.map(|(blocks, data)| extent(blocks, data)).to_vec();
    let blocks = |count: u32, flags| (count * 4096, flags);
    for (flags, length, expected) in [
        (0, 64 << 10, vec![blocks(3, 0), blocks(7, 3), blocks(6, 0)]),
        (REQ_ONE, 64 << 10, vec![blocks(3, 0)]),
        (0, 16 << 10, vec![blocks(3, 0), blocks(1, 3)]),
        (0, 512, vec![(512, 0)]),
        (REQ_ONE | FUA, 8192, vec![blocks(2, 0)]),
    ] {
        let mut client = Client::serving(true);
        client.request(STATUS, flags, 7, 4096, length);
        let op = GuestOp::Status { range: range(4096, u64::from(length)) };
        assert_eq!(client.requests[0].1, op);
        client.done_with(0, Ok(GuestData::Status(extents.clone())));
        assert_eq!(client.replies(), [Reply::Status { cookie: 7, descriptors: expected }]);
    }
}

/// promise: bounded
#[test]
fn status_has_a_limit() {
    let mut client = Client::serving(true);
    client.request(STATUS, 0, 7, 0, 64 << 20);
    let extent = |at: u32| MappedExtent { length: 512, data: at.is_multiple_of(2) };
    client.done_with(0, Ok(GuestData::Status((0..20_000).map(extent).collect())));
    let replies = client.replies();
    let Reply::Status { descriptors, .. } = &replies[0] else { panic!("{replies:?}") };
    assert_eq!(descriptors.len(), 16 << 10);
}

/// Payload-free commands cover more than a payload may.
#[test]
fn trim_and_zeroes_are_one_part_whatever_their_length() {
    for (command, op) in [
        (TRIM, GuestOp::Trim { range: range(0, SIZE), fua: false }),
        (ZEROES, GuestOp::Zero { range: range(0, SIZE), fua: false }),
    ] {
        let mut client = Client::serving(true);
        client.request(command, 0, 7, 0, u32::try_from(SIZE).unwrap());
        assert_eq!(client.requests[0].1, op);
        client.done(0);
        assert_eq!(client.one_error(), 0);
    }
}
