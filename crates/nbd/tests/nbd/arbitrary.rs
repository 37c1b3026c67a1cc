//! Any bytes, any requests, answers in any order.

use crate::client::{Client, LIMITS, Reply, SIZE, answer, content, header, range};
use bytes::Bytes;
use gabion_nbd::{Connection, Effect, Export, Input, Want};
use gabion_types::{GuestData, GuestOp, IoError, Prng};
use proptest::prelude::*;
use proptest::sample::Index;
use rounds::{mutate, rounds};
use std::collections::BTreeMap;

#[path = "../../../types/tests/fuzz/rounds.rs"]
mod rounds;

#[derive(Clone, Debug)]
struct Asked {
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
}

fn any_asked() -> impl Strategy<Value = Asked> {
    let offset = prop_oneof![
        6 => (0..SIZE / 512).prop_map(|sector| sector * 512),
        2 => (0..16u64).prop_map(|back| SIZE - back * 512),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        6 => (0..1000u32).prop_map(|sectors| sectors * 512),
        1 => 0..2000u32,
    ];
    let flags = prop_oneof![3 => Just(0u16), 2 => 0..32u16];
    (0..9u16, flags, offset, length).prop_map(|(command, flags, offset, length)| {
        // Who leaves is another test.
        let command = if command == 2 { 0 } else { command };
        let flush_is_right = command == 3 && flags & 2 == 0;
        let (offset, length) = if flush_is_right { (0, 0) } else { (offset, length) };
        Asked { command, flags, offset, length }
    })
}

/// Checks what goes to the volume, whatever the client asks.
fn check_op(op: &GuestOp) {
    if let Some(range) = op.range() {
        assert!(range.length() > 0 && range.end() <= SIZE);
        assert!(range.offset().is_multiple_of(512) && range.length().is_multiple_of(512));
        assert!(op.payload_bytes() <= u64::from(LIMITS.part_bytes));
    }
    if let GuestOp::Write { range, data, .. } = op {
        assert_eq!(data.len() as u64, range.length());
    }
}

/// One reply that ends each request, no more after it; reads are covered once, by the right bytes.
fn check_replies(asked: &[Asked], replies: &[Reply], failures: bool) {
    let mut read: BTreeMap<u64, u64> = BTreeMap::new();
    let mut over: BTreeMap<u64, bool> = BTreeMap::new();
    for reply in replies {
        let cookie = reply.cookie();
        assert!(!over.contains_key(&cookie), "an answer after the last");
        if let Reply::Data { offset, data, .. } = reply {
            assert_eq!(*data, content(range(*offset, data.len() as u64)));
            *read.entry(cookie).or_default() += data.len() as u64;
        }
        if let Reply::Error { offset: Some(_), .. } = reply {
            read.insert(cookie, 1 << 40);
        }
        if reply.is_last() {
            over.insert(cookie, reply.error() == 0);
        }
    }
    assert_eq!(over.len(), asked.len(), "each request has its answer");
    for (asked, (cookie, went_well)) in asked.iter().zip(over) {
        let bytes = read.get(&cookie).copied().unwrap_or_default();
        if asked.command == 0 && went_well && bytes < 1 << 40 {
            assert_eq!(bytes, u64::from(asked.length));
        }
        let fits = asked.offset.is_multiple_of(512)
            && asked.length.is_multiple_of(512)
            && asked.offset.checked_add(asked.length.into()).is_some_and(|end| end <= SIZE);
        let plain = asked.flags == 0 && asked.command < 7;
        if plain && !failures && (fits || asked.command == 3) {
            assert!(went_well, "{asked:?}");
        }
    }
}

/// A connection that is as far as `skip` says gets these bytes, and answers in the order that luck has.
fn drive(skip: u8, stream: Vec<u8>, luck: &[u8]) {
    let mut connection = match skip {
        0 => Connection::new(LIMITS),
        1 => Client::new(LIMITS).connection,
        _ => Client::serving(skip == 2).connection,
    };
    let mut stream: std::collections::VecDeque<u8> = stream.into();
    let mut luck = luck.iter().cycle();
    let mut open = Vec::new();
    let mut asked = Vec::new();
    for _ in 0..2000 {
        while let Some(effect) = connection.next_effect() {
            match effect {
                Effect::Request { tag, op } => {
                    check_op(&op);
                    open.push((tag, op));
                }
                Effect::List | Effect::Describe { .. } | Effect::Open { .. } => {
                    asked.push(effect);
                }
                Effect::Send { .. } | Effect::Close => {}
            }
        }
        let payload: u64 = open.iter().map(|(_, op)| op.payload_bytes()).sum();
        let zeros = 4 * 4 * u64::from(LIMITS.part_bytes);
        assert!(payload <= (32 << 20) + zeros);
        let luck = *luck.next().unwrap();
        let input = match (connection.want(), luck) {
            (Want::Closed, _) => break,
            (_, 0) if !open.is_empty() => {
                let (tag, op) = open.swap_remove(0);
                Input::Done { tag, result: answer(&op) }
            }
            (Want::Exactly(wanted), _) => {
                assert!(wanted > 0 && wanted <= 64 << 10);
                if stream.len() < wanted {
                    break;
                }
                let before = connection.want();
                connection.handle(Input::Listed { exports: vec![] });
                assert_eq!(connection.want(), before);
                Input::Received(stream.drain(..wanted).collect())
            }
            (Want::Paused, 1) => Input::Shutdown,
            (Want::Paused, _) => match asked.pop() {
                Some(Effect::List) => Input::Listed { exports: vec!["vm1".into()] },
                Some(_) => Input::Export((luck != 2).then(|| Export {
                    name: "vm1".into(),
                    size_bytes: SIZE,
                    read_only: luck == 3,
                })),
                None => {
                    assert!(!open.is_empty(), "it waits for somebody");
                    let (tag, op) = open.swap_remove(0);
                    Input::Done { tag, result: answer(&op) }
                }
            },
        };
        connection.handle(input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_request_is_answered_once(
        asked in prop::collection::vec(any_asked(), 1..24),
        structured in any::<bool>(),
        failures in any::<bool>(),
        order in prop::collection::vec((any::<Index>(), 0..12u8), 1..40),
    ) {
        let mut client = Client::serving(structured);
        let mut stream = Vec::new();
        for (asked, cookie) in asked.iter().zip(0u64..) {
            stream.extend(header(asked.command, asked.flags, cookie, asked.offset, asked.length));
            if asked.command == 1 {
                stream.resize(stream.len() + asked.length as usize, 0x5a);
            }
        }
        client.send(&stream);
        let mut turn = order.iter().cycle();
        while !client.requests.is_empty() {
            prop_assert!(client.connection.requests_in_flight() <= 4);
            let (index, luck) = turn.next().unwrap();
            let index = index.index(client.requests.len());
            let op = client.requests[index].1.clone();
            check_op(&op);
            match luck {
                0 if failures => client.done_with(index, Err(IoError::Lost)),
                1 if failures => client.done_with(index, Ok(GuestData::Read(Bytes::new()))),
                _ => client.done_with(index, answer(&op)),
            }
        }
        prop_assert!(client.unsent.is_empty() && !client.closed);
        prop_assert_eq!(client.connection.requests_in_flight(), 0);
        if structured {
            let replies = client.replies();
            check_replies(&asked, &replies, failures);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_get_more_than_the_bounds(
        skip in 0..4u8,
        pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                Just(b"IHAVEOPT".to_vec()),
                (0..12u32).prop_map(|option| option.to_be_bytes().to_vec()),
                (0..70_000u32).prop_map(|length| length.to_be_bytes().to_vec()),
                any_asked().prop_map(|a| header(a.command, a.flags, 1, a.offset, a.length)),
                (0..70_000usize).prop_map(|length| vec![0; length]),
            ],
            0..40,
        ),
        luck in prop::collection::vec(0..9u8, 1..20),
    ) {
        drive(skip, pieces.concat(), &luck);
    }
}

/// What a client says, nearly right.
// promise: bounded
#[test]
fn sessions_that_are_nearly_right_never_panic_and_never_get_more_than_the_bounds() {
    rounds(|prng| {
        let skip = u8::try_from(prng.below(4)).unwrap();
        let mut stream = Vec::new();
        if skip < 2 {
            let flags = u32::try_from(prng.below(4)).unwrap();
            if skip == 0 {
                stream.extend(flags.to_be_bytes());
            }
            for _ in 0..prng.between(1, 8) {
                stream.extend(option(prng));
            }
        }
        for cookie in 0..prng.between(1, 12) {
            let command = *prng.pick(&[0, 0, 1, 1, 3, 4, 5, 6, 7]).unwrap();
            let flags = u16::try_from(prng.below(32)).unwrap();
            let offset = prng.below(SIZE / 512) * 512;
            let length = u32::try_from(prng.below(300) * 512).unwrap();
            stream.extend(header(command, flags, cookie, offset, length));
            if command == 1 {
                stream.resize(stream.len() + length as usize, 0x5a);
            }
        }
        if prng.chance(7, 8) {
            mutate(prng, &mut stream);
        }
        let luck: Vec<u8> = (0..20).map(|_| u8::try_from(prng.below(9)).unwrap()).collect();
        drive(skip, stream, &luck);
    });
}

/// LIST, INFO, GO and the like, with a name and what is asked of it.
fn option(prng: &mut Prng) -> Vec<u8> {
    let option = u32::try_from(prng.between(1, 11)).unwrap();
    let mut data = Vec::new();
    if prng.chance(3, 4) {
        data.extend(3_u32.to_be_bytes());
        data.extend(b"vm1");
        let queries = prng.below(3);
        data.extend(u32::try_from(queries).unwrap().to_be_bytes()[2..].iter());
        (0..queries).for_each(|_| data.extend(3_u16.to_be_bytes()));
    }
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [b"IHAVEOPT".to_vec(), option.to_be_bytes().to_vec(), length.to_vec(), data].concat()
}
