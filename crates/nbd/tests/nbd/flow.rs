//! Parts, order, room, and the end.

use crate::client::{Client, LIMITS, Reply, SIZE, content, range};
use gabion_nbd::{Input, Tag, Want};
use gabion_types::{GuestData, GuestOp, IoError};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const ZEROES: u16 = 6;
const ESHUTDOWN: u32 = 108;
const ENOSPC: u32 = 28;
const EIO: u32 = 5;

const PART: u32 = LIMITS.part_bytes;

/// Offset and length of the parts that are out.
fn out(client: &Client) -> Vec<(u64, u64)> {
    let range = |op: &GuestOp| op.range().map(|range| (range.offset(), range.length()));
    client.requests.iter().filter_map(|(_, op)| range(op)).collect()
}

#[test]
fn a_write_is_handed_on_part_by_part() {
    let mut client = Client::serving(true);
    let whole = range(512, u64::from(PART) * 2);
    let data = content(whole);
    client.request(WRITE, 0, 7, 512, PART * 2);
    assert_eq!(client.connection.want(), Want::Exactly(PART as usize - 512));
    client.send(&data[..PART as usize - 513]);
    assert!(client.requests.is_empty(), "not before it is whole");
    client.send(&data[PART as usize - 513..PART as usize + 100]);
    let part = range(512, u64::from(PART) - 512);
    let op = GuestOp::Write { range: part, data: content(part), fua: false };
    assert_eq!(client.requests[0].1, op);
    client.done(0);
    assert!(client.received.is_empty(), "all parts first");
    client.send(&data[PART as usize + 100..]);
    assert_eq!(out(&client), [(PART.into(), PART.into()), (u64::from(PART) * 2, 512)]);
    client.done(1);
    client.done(0);
    assert_eq!(client.replies(), [Reply::Simple { cookie: 7, error: 0 }]);
}

#[test]
fn after_a_part_failed_the_rest_of_a_write_is_dropped() {
    let mut client = Client::serving(true);
    client.request(WRITE, 0, 7, 0, PART * 3);
    client.send(&vec![1; PART as usize]);
    client.done_with(0, Err(IoError::NoSpace));
    assert!(client.received.is_empty(), "its payload is still to come");
    client.send(&vec![1; PART as usize * 2]);
    assert!(client.requests.is_empty());
    assert_eq!(client.one_error(), ENOSPC);
    client.request(FLUSH, 0, 8, 0, 0);
    assert_eq!(client.requests.len(), 1);
}

#[test]
fn the_first_error_of_a_write_is_its_answer() {
    let mut client = Client::serving(true);
    client.request(WRITE, 0, 7, 0, PART * 2);
    client.send(&vec![1; PART as usize * 2]);
    client.done_with(1, Err(IoError::Lost));
    assert!(client.received.is_empty(), "a part is still out");
    client.done_with(0, Err(IoError::NoSpace));
    assert_eq!(client.one_error(), EIO);
}

/// rule: nbd/room-before-parts
#[test]
fn a_large_write_is_taken_as_a_whole_or_not_at_all() {
    let mut client = Client::serving(true);
    client.minds_room = true;
    let whole = range(512, u64::from(PART) * 2);
    client.request(WRITE, 0, 7, 512, PART * 2);
    client.send(&vec![1; PART as usize * 2]);
    assert_eq!(client.requests[0].1, GuestOp::Room { range: whole });
    assert_eq!((client.requests.len(), client.unsent.len()), (1, PART as usize * 2));
    client.done_with(0, Err(IoError::NoSpace));
    assert!(client.requests.is_empty() && client.unsent.is_empty(), "none of it is handed on");
    assert_eq!(client.one_error(), ENOSPC);

    client.request(WRITE, 0, 8, 512, PART * 2);
    client.send(&vec![1; PART as usize * 2]);
    client.done(0);
    assert_eq!(client.requests.len(), 3);
    client.done_all();
    assert_eq!(client.one_error(), 0);

    client.request(ZEROES, 2, 9, 0, PART * 2);
    assert!(matches!(client.requests[..], [(_, GuestOp::Room { .. })]));
    client.done_with(0, Err(IoError::NoSpace));
    assert_eq!(client.one_error(), ENOSPC);
    client.request(ZEROES, 2, 10, 0, PART * 2);
    client.done(0);
    assert_eq!(client.requests.len(), 2);
    client.done_all();
    assert_eq!(client.one_error(), 0);
    client.request(WRITE, 0, 11, 0, PART);
    client.send(&vec![1; PART as usize]);
    assert!(matches!(client.requests[..], [(_, GuestOp::Write { .. })]), "one part needs no word");
}

#[test]
fn a_structured_read_is_answered_as_its_parts_come() {
    let mut client = Client::serving(true);
    client.request(READ, 0, 7, 512, PART * 2);
    let part = u64::from(PART);
    assert_eq!(out(&client), [(512, part - 512), (part, part), (part * 2, 512)]);
    client.done(1);
    let data = |offset, length, last| Reply::Data {
        cookie: 7,
        offset,
        data: content(range(offset, length)),
        last,
    };
    assert_eq!(client.replies(), [data(part, part, false)]);
    client.done_with(1, Err(IoError::Lost));
    let lost = Reply::Error { cookie: 7, error: EIO, offset: Some(part * 2), last: false };
    assert_eq!(client.replies(), [lost]);
    client.done(0);
    assert_eq!(client.replies(), [data(512, part - 512, true)]);
}

/// No byte of a simple reply goes out before all are there: it could not be taken back.
#[test]
fn a_simple_read_is_answered_in_one_piece() {
    let mut client = Client::serving(false);
    client.request(READ, 0, 7, 512, PART * 2);
    client.done(2);
    client.done(0);
    assert!(client.received.is_empty());
    client.done(0);
    assert_eq!(client.take(16)[..8], *b"\x67\x44\x66\x98\0\0\0\0");
    assert_eq!(client.take(PART as usize * 2), content(range(512, u64::from(PART) * 2)));

    client.request(READ, 0, 7, 512, PART * 2);
    client.done(0);
    client.done_with(1, Err(IoError::Lost));
    client.done(0);
    assert_eq!(client.replies(), [Reply::Simple { cookie: 7, error: EIO }]);
}

#[test]
fn an_unfragmented_read_is_one_chunk() {
    let mut client = Client::serving(true);
    client.request(READ, 4, 7, 0, PART * 2);
    client.done(1);
    assert!(client.received.is_empty());
    client.done(0);
    let data = content(range(0, u64::from(PART) * 2));
    assert_eq!(client.replies(), [Reply::Data { cookie: 7, offset: 0, data, last: true }]);

    client.request(READ, 4, 8, 0, PART * 2);
    client.done_with(0, Err(IoError::Lost));
    client.done(0);
    let error = Reply::Error { cookie: 8, error: EIO, offset: None, last: true };
    assert_eq!(client.replies(), [error]);
}

/// Zeros that take their space go out a few at a time, and stop at the first error.
#[test]
fn zeros_without_a_hole_are_written() {
    let mut client = Client::serving(true);
    client.request(ZEROES, 2 | 1, 7, 512, PART * 10);
    assert_eq!(client.requests.len(), 4);
    let mut at = 512;
    let mut parts = 0;
    while !client.requests.is_empty() {
        assert!(client.received.is_empty());
        let GuestOp::Write { range, data, fua: true } = client.requests[0].1.clone() else {
            panic!("zeros are written, durably");
        };
        assert_eq!((range.offset(), range.length()), (at, data.len() as u64));
        assert!(data.iter().all(|byte| *byte == 0));
        at = range.end();
        parts += 1;
        client.done(0);
        assert!(client.requests.len() <= 4);
    }
    assert_eq!((at, parts), (512 + u64::from(PART) * 10, 11));
    assert_eq!(client.one_error(), 0);

    client.request(ZEROES, 2, 8, 0, PART * 10);
    client.done_with(0, Err(IoError::NoSpace));
    assert_eq!(client.requests.len(), 3);
    client.done_all();
    assert_eq!(client.one_error(), ENOSPC);
}

/// promise: flush-means-flush
///
/// rule: nbd/flush-covers-completed
#[test]
fn a_flush_is_handed_on_behind_what_was_answered() {
    let mut client = Client::serving(true);
    client.request(WRITE, 0, 1, 0, 4096);
    client.send(&[1; 4096]);
    client.done(0);
    assert_eq!(client.one_error(), 0);
    client.request(WRITE, 0, 2, 4096, 4096);
    client.send(&[2; 4096]);
    client.request(FLUSH, 0, 3, 0, 0);
    assert!(matches!(client.requests[1].1, GuestOp::Flush), "handed on at once");
    assert!(client.received.is_empty(), "and answered when it is done");
    client.done(1);
    assert_eq!(client.replies(), [Reply::Simple { cookie: 3, error: 0 }]);
}

/// rule: nbd/refused-payload-is-dropped
#[test]
fn the_payload_of_a_refused_write_is_dropped() {
    let mut client = Client::serving(true);
    client.request(WRITE, 0, 7, SIZE, 1 << 20);
    assert!(matches!(client.connection.want(), Want::Exactly(bytes) if bytes <= 64 << 10));
    let mut payload = crate::client::header(DISC, 0, 9, 0, 0);
    payload.resize(1 << 20, 0x25);
    client.send(&payload);
    assert_eq!(client.one_error(), ENOSPC);
    assert!(!client.closed, "a payload is no request");
    client.request(READ, 0, 8, 0, 4096);
    assert_eq!(client.requests.len(), 1);
}

/// promise: bounded
#[test]
fn nothing_is_read_while_all_places_are_taken() {
    let mut client = Client::serving(true);
    for cookie in 0..6 {
        client.request(FLUSH, 0, cookie, 0, 0);
    }
    assert_eq!((client.requests.len(), client.unsent.len()), (4, 56));
    assert_eq!(client.connection.want(), Want::Paused);
    client.done(2);
    assert_eq!((client.requests.len(), client.unsent.len()), (4, 28));
    client.done_all();
    assert_eq!(client.replies().len(), 6);
}

/// promise: bounded
///
/// rule: nbd/whole-request-fits
#[test]
fn a_request_waits_until_all_of_it_fits() {
    for structured in [false, true] {
        let mut client = Client::serving(structured);
        client.request(READ, 0, 1, 0, 600 << 10);
        let first = client.requests.len();
        client.request(READ, 0, 2, 0, 600 << 10);
        client.request(FLUSH, 0, 3, 0, 0);
        assert_eq!(client.requests.len(), first, "none of its parts");
        assert_eq!((client.connection.want(), client.unsent.len()), (Want::Paused, 28));
        for _ in 0..first {
            assert_eq!(client.connection.want(), Want::Paused);
            client.done(0);
        }
        assert_eq!(client.requests.len(), first + 1, "its parts, and what comes behind it");
        client.done_all();
        assert_eq!(client.connection.requests_in_flight(), 0);
    }
}

#[test]
fn a_request_above_the_limit_is_taken_when_it_is_alone() {
    let mut client = Client::serving(true);
    client.request(READ, 0, 1, 0, 512);
    client.request(WRITE, 0, 2, 0, 32 << 20);
    assert_eq!(client.connection.want(), Want::Paused);
    client.done(0);
    assert_eq!(client.connection.want(), Want::Exactly(PART as usize));
    for _ in 0..512 {
        client.send(&vec![3; PART as usize]);
    }
    assert_eq!(client.requests.len(), 512);
    client.done_all();
    assert_eq!(client.replies().len(), 2);
}

/// rule: nbd/shutdown-answers-everything
#[test]
fn at_the_end_everything_is_answered() {
    let serving = |structured| Client::serving(structured);
    let end = |mut client: Client, cookies: &[u64]| {
        client.handle(Input::Shutdown);
        assert!(client.closed);
        let replies = client.replies();
        let told: Vec<_> = replies.iter().map(Reply::cookie).collect();
        assert_eq!(told, cookies);
        assert!(replies.iter().all(|reply| reply.is_last() && reply.error() == ESHUTDOWN));
        while let Some((tag, op)) = client.requests.pop() {
            client.handle(Input::Done { tag, result: crate::client::answer(&op) });
        }
        assert!(client.received.is_empty(), "answered once");
    };
    for structured in [false, true] {
        end(serving(structured), &[]);

        let mut reading = serving(structured);
        reading.request(READ, 0, 1, 0, PART * 2);
        if structured {
            reading.done(0);
            reading.received.clear();
        }
        reading.request(READ, 0, 2, 0, 1 << 20);
        end(reading, &[1, 2]);

        let mut writing = serving(structured);
        writing.request(WRITE, 0, 1, 0, PART * 2);
        writing.send(&vec![0; PART as usize + 100]);
        end(writing, &[1]);

        let mut dropping = serving(structured);
        dropping.request(FLUSH, 0, 1, 0, 0);
        dropping.request(WRITE, 0, 2, SIZE, PART);
        dropping.send(&[0; 100]);
        end(dropping, &[1, 2]);

        let mut leaving = serving(structured);
        leaving.request(FLUSH, 0, 1, 0, 0);
        leaving.request(DISC, 0, 0, 0, 0);
        end(leaving, &[1]);
    }
}

#[test]
fn who_leaves_gets_its_answers() {
    let mut client = Client::serving(true);
    client.request(READ, 0, 1, 0, 4096);
    client.request(FLUSH, 0, 2, 0, 0);
    client.request(DISC, 0, 3, 0, 0);
    client.request(FLUSH, 0, 4, 0, 0);
    assert!(!client.closed && client.connection.want() == Want::Paused);
    client.done(1);
    client.done(0);
    assert!(client.closed);
    assert_eq!(client.replies().len(), 2, "what comes behind the farewell is not read");

    let mut idle = Client::serving(false);
    idle.request(DISC, 0, 0, 0, 0);
    assert!(idle.closed && idle.received.is_empty());
}

#[test]
fn another_magic_closes() {
    let mut client = Client::serving(true);
    client.request(READ, 0, 1, 0, 4096);
    client.send(&[0x25, 0x60, 0x95, 0x14]);
    client.send(&[0; 24]);
    assert!(client.closed);
    client.done(0);
    assert!(client.received.is_empty());
}

#[test]
fn answers_to_nothing_change_nothing() {
    let mut client = Client::serving(true);
    client.request(FLUSH, 0, 1, 0, 0);
    let (tag, _) = client.requests[0];
    client.handle(Input::Done { tag: Tag(tag.0 + 1), result: Ok(GuestData::Done) });
    client.handle(Input::Export(None));
    assert!(client.received.is_empty());
    client.done(0);
    client.handle(Input::Done { tag, result: Ok(GuestData::Done) });
    assert_eq!(client.replies().len(), 1);
}
