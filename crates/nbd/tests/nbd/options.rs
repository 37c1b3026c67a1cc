//! Each option, right and wrong.

use crate::client::{Client, LIMITS, SIZE, info, meta};
use gabion_nbd::{Effect, Export, Input, Want};

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const POLICY: u32 = 0x8000_0002;
const UNKNOWN: u32 = 0x8000_0006;
const SHUTDOWN: u32 = 0x8000_0007;
const TOO_BIG: u32 = 0x8000_0009;

/// The kinds of the replies that came.
fn kinds(client: &mut Client) -> Vec<u32> {
    client.answers().into_iter().map(|(_, kind, _)| kind).collect()
}

#[test]
fn unknown_client_flags_close() {
    let mut client = Client::new(LIMITS);
    client.option(2, b"ignored");
    assert_eq!(client.answers(), [(2, ACK, vec![])]);
    assert!(client.closed);

    let mut connection = gabion_nbd::Connection::new(LIMITS);
    connection.handle(Input::Received(bytes::Bytes::from_static(&[0, 0, 0, 4])));
    assert_eq!(connection.want(), Want::Closed);
}

#[test]
fn what_has_no_data_or_is_not_known_is_refused() {
    let mut client = Client::new(LIMITS);
    for (option, data, kind) in [
        (3, &b"x"[..], INVALID),
        (4, b"", UNSUP),
        (5, b"", UNSUP),
        (5, b"x", INVALID),
        (8, b"x", INVALID),
        (8, b"", ACK),
        (8, b"", ACK),
        (11, b"", UNSUP),
        (77, b"whatever", UNSUP),
        (6, b"", INVALID),
        (7, b"\0\0\0\x09vm1\0\0", INVALID),
        (7, b"\0\0\0\x03vm1\0\x01", INVALID),
        (7, b"\0\0\0\x03vm1\0\0\0", INVALID),
        (7, b"\0\0\0\x03v\xff1\0\0", INVALID),
        (9, b"\0\0\0\x03vm1", INVALID),
        (10, b"\0\0\0\x03vm1\0\0\0\x02\0\0\0\x05base:", INVALID),
        (10, b"\0\0\0\x03vm1\xff\xff\xff\xff", INVALID),
        (10, b"\0\0\0\x03vm1\0\0\0\0!", INVALID),
    ] {
        client.option(option, data);
        let answers = client.answers();
        assert_eq!(answers.len(), 1, "option {option}");
        assert_eq!((answers[0].0, answers[0].1), (option, kind), "option {option} {data:?}");
    }
    assert!(client.others.is_empty(), "nobody was asked");
}

#[test]
fn exports_are_listed() {
    let mut client = Client::new(LIMITS);
    client.option(3, &[]);
    assert_eq!(client.others, [Effect::List]);
    assert_eq!(client.connection.want(), Want::Paused);
    client.handle(Input::Listed { exports: vec!["vm1".into(), "db".into()] });
    let answers = client.answers();
    assert_eq!(answers[0], (3, 2, b"\0\0\0\x03vm1".to_vec()));
    assert_eq!(answers[1], (3, 2, b"\0\0\0\x02db".to_vec()));
    assert_eq!(answers[2], (3, ACK, vec![]));
}

#[test]
fn info_tells_all_and_go_attaches() {
    for (option, structured) in [(6, false), (6, true), (7, false), (7, true)] {
        let mut client = Client::new(LIMITS);
        if structured {
            client.option(8, &[]);
            client.received.clear();
        }
        client.option(option, &info("vm1", &[1, 2, 3, 99]));
        let name = String::from("vm1");
        let asked = if option == 7 { Effect::Open { name } } else { Effect::Describe { name } };
        assert_eq!(client.others, [asked]);
        client.export(false);
        let answers = client.answers();
        let flags: u16 = if structured { 0x0ded } else { 0x0d6d };
        let mut export = b"\0\0".to_vec();
        export.extend_from_slice(&SIZE.to_be_bytes());
        export.extend_from_slice(&flags.to_be_bytes());
        assert_eq!(answers[0], (option, 3, export));
        assert_eq!(answers[1], (option, 3, b"\0\x01vm1".to_vec()));
        assert_eq!(&answers[2].2[..2], b"\0\x02");
        assert_eq!(answers[3].2, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
        assert_eq!(answers[4], (option, ACK, vec![]));
        assert_eq!(answers.len(), 5);
        assert_eq!(client.connection.export().is_some(), option == 7);
        let next = if option == 7 { 28 } else { 16 };
        assert_eq!(client.connection.want(), Want::Exactly(next));
    }
}

#[test]
fn a_read_only_export_says_so() {
    let mut client = Client::new(LIMITS);
    client.option(7, &info("vm1", &[]));
    client.export(true);
    assert_eq!(client.answers()[0].2[10..], 0x0d6fu16.to_be_bytes());
}

#[test]
fn what_is_not_there_is_unknown_and_the_client_may_go_on() {
    let mut client = Client::new(LIMITS);
    client.option(8, &[]);
    client.received.clear();
    for (option, data) in [
        (6, info("no", &[])),
        (7, info("no", &[3])),
        (9, meta("no", &[])),
        (10, meta("no", &["base:allocation"])),
    ] {
        client.option(option, &data);
        client.handle(Input::Export(None));
        assert_eq!(kinds(&mut client), [UNKNOWN]);
        assert_eq!(client.connection.want(), Want::Exactly(16));
    }
}

#[test]
fn a_volume_that_others_have_is_refused_with_the_reason() {
    let mut client = Client::new(LIMITS);
    client.option(7, &info("vm1", &[]));
    client.handle(Input::Refused { why: "others have it".into() });
    assert_eq!(client.answers(), [(7, POLICY, b"others have it".to_vec())]);
    // It may ask again, on the same connection.
    client.option(7, &info("vm1", &[]));
    client.export(false);
    assert!(client.connection.export().is_some());

    let mut client = Client::new(LIMITS);
    client.option(1, b"vm1");
    client.handle(Input::Refused { why: "others have it".into() });
    assert_eq!(client.connection.want(), Want::Closed, "there is no way to say what is wrong");
}

#[test]
fn export_name_attaches_without_a_reply_of_the_usual_form() {
    for (flags, bytes) in [(3u32, 10), (1, 134)] {
        let mut client = Client::new(LIMITS);
        if flags == 1 {
            client.connection = gabion_nbd::Connection::new(LIMITS);
            client.send(&flags.to_be_bytes());
            client.take(18);
        }
        client.option(1, b"vm1");
        assert_eq!(client.others, [Effect::Open { name: "vm1".into() }]);
        client.export(false);
        let reply = client.take(bytes);
        assert_eq!(reply[..8], SIZE.to_be_bytes());
        assert_eq!(reply[8..10], 0x0d6du16.to_be_bytes());
        assert!(reply[10..].iter().all(|byte| *byte == 0));
        assert!(client.received.is_empty());
    }
}

/// It can't be refused in words.
#[test]
fn a_wrong_export_name_closes() {
    let mut client = Client::new(LIMITS);
    client.option(1, b"no");
    client.handle(Input::Export(None));
    assert!(client.closed && client.received.is_empty());

    for name in [&[0xff; 3][..], &[b'x'; 4097]] {
        let mut client = Client::new(LIMITS);
        client.option(1, name);
        assert!(client.closed && client.others.is_empty());
    }
}

#[test]
fn contexts_are_listed_and_selected() {
    let listed: [(&[&str], bool); 5] = [
        (&[], true),
        (&["base:"], true),
        (&["qemu:", "base:allocation"], true),
        (&["base:other"], false),
        (&["qemu:dirty-bitmap:x", "nonsense"], false),
    ];
    let selected: [(&[&str], bool); 4] = [
        (&[], false),
        (&["base:"], false),
        (&["base:allocation", "base:allocation"], true),
        (&["x-a:b"], false),
    ];
    for (option, id, table) in [(9, 0u8, &listed[..]), (10, 1, &selected[..])] {
        for (queries, found) in table {
            let mut client = Client::new(LIMITS);
            client.option(8, &[]);
            client.received.clear();
            client.option(option, &meta("vm1", queries));
            client.export(false);
            let mut expected = vec![(option, ACK, vec![])];
            if *found {
                let mut data = vec![0, 0, 0, id];
                data.extend_from_slice(b"base:allocation");
                expected.insert(0, (option, 4, data));
            }
            assert_eq!(client.answers(), expected, "{option} {queries:?}");
        }
    }
    let mut client = Client::new(LIMITS);
    client.option(10, &meta("vm1", &["base:allocation"]));
    assert_eq!(kinds(&mut client), [INVALID], "structured replies come first");
}

/// The last selection counts, and only for the export of that name.
#[test]
fn a_context_belongs_to_an_export() {
    let serve = |selects: &[(&str, &[&str])]| {
        let mut client = Client::new(LIMITS);
        client.option(8, &[]);
        for (name, queries) in selects {
            client.option(10, &meta(name, queries));
            client.export(false);
        }
        client.option(7, &info("vm1", &[]));
        client.export(false);
        client.received.clear();
        client.request(7, 0, 1, 0, 4096);
        !client.requests.is_empty()
    };
    assert!(serve(&[("vm1", &["base:allocation"])]));
    assert!(!serve(&[("vm2", &["base:allocation"])]));
    assert!(!serve(&[("vm1", &["base:allocation"]), ("vm1", &[])]));
    assert!(!serve(&[]));
}

/// promise: bounded
#[test]
fn too_much_data_is_dropped_and_far_too_much_closes() {
    let mut client = Client::new(LIMITS);
    client.option(7, &vec![0; (64 << 10) + 1]);
    assert_eq!(kinds(&mut client), [TOO_BIG]);
    client.option(9, &vec![0; 5 << 20]);
    assert_eq!(kinds(&mut client), [TOO_BIG]);
    client.option(6, &info("vm1", &[]));
    assert_eq!(client.others, [Effect::Describe { name: "vm1".into() }], "still in step");

    let mut client = Client::new(LIMITS);
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
    assert!(client.closed);
    let mut client = Client::new(LIMITS);
    client.send(b"IHAVEOPS\0\0\0\x07\0\0\0\0");
    assert!(client.closed, "another magic");
}

#[test]
fn an_option_under_way_hears_of_the_end() {
    for (option, data, told) in
        [(3, vec![], true), (7, info("vm1", &[]), true), (1, b"vm1".to_vec(), false)]
    {
        let mut client = Client::new(LIMITS);
        client.option(option, &data);
        client.handle(Input::Shutdown);
        assert_eq!(kinds(&mut client), if told { vec![SHUTDOWN] } else { vec![] });
        assert!(client.closed);
        let export = Export { name: "vm1".into(), size_bytes: SIZE, read_only: false };
        client.handle(Input::Export(Some(export)));
        client.handle(Input::Listed { exports: vec![] });
        client.handle(Input::Shutdown);
        assert!(client.received.is_empty(), "too late");
    }
}

/// An answer to a question that was not asked changes nothing.
#[test]
fn other_answers_change_nothing() {
    let mut client = Client::new(LIMITS);
    client.export(false);
    client.handle(Input::Listed { exports: vec![] });
    client.option(3, &[]);
    client.export(false);
    assert!(client.received.is_empty());
    assert_eq!(client.connection.want(), Want::Paused);
    client.handle(Input::Listed { exports: vec![] });
    assert_eq!(kinds(&mut client), [ACK]);
}
