use super::*;
use crate::arena::ALIGN;
use crate::disk_file::create_disk_file;
use crate::setup::EngineConfig;
use crate::sys::scratch::Scratch;
use gabion_types::{DiskOp, DiskOpKind, DiskToken};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

crate::on_both::on_both!(
    exactly_as_many_bytes_come_as_are_expected,
    many_small_messages_cost_one_receive,
    sends_go_out_in_order_and_are_counted,
    two_engines_talk,
    a_dial_that_nobody_answers_fails,
    a_hang_up_is_seen_while_nothing_is_read,
    what_was_said_before_hanging_up_is_heard_if_so_wished,
    a_hang_up_that_was_seen_is_told_when_reading_stops,
    what_came_in_the_turn_of_the_hang_up_is_not_lost,
    busy_disks_leave_room_for_connections,
    a_connection_closes_while_it_sends_and_receives,
    what_was_queued_goes_out_before_a_polite_close,
    a_peer_that_does_not_read_is_not_waited_for_without_end,
    one_that_stalls_does_not_hold_up_another,
    unix_sockets_do_the_same,
    connections_are_bounded,
);

fn engine() -> Engine {
    let mode = crate::on_both::mode();
    let config = EngineConfig { mode, arena_bytes: 4 << 20, connections_max: 16 };
    Engine::new(&config).unwrap()
}

fn turn(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    let deadline = engine.now() + Duration::from_secs(10);
    while events.is_empty() {
        engine.turn(Some(deadline), &mut events).unwrap();
        assert!(engine.now() < deadline, "nothing happened");
    }
    events
}

/// Turns until one event that is looked for; the others are dropped.
fn until<T>(engine: &mut Engine, mut look: impl FnMut(&Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = turn(engine).iter().find_map(&mut look) {
            return found;
        }
    }
}

fn accepted(event: &Event) -> Option<ConnHandle> {
    if let Event::Accepted { conn, .. } = event { Some(*conn) } else { None }
}

fn received(event: &Event) -> Option<Bytes> {
    if let Event::Received { bytes, .. } = event { Some(bytes.clone()) } else { None }
}

fn hung_up(event: &Event) -> Option<ConnHandle> {
    if let Event::HungUp { conn } = event { Some(*conn) } else { None }
}

/// A connection of the engine and its other end.
fn pair(engine: &mut Engine, hang_up: HangUp) -> (ConnHandle, TcpStream) {
    let listener = engine.listen_tcp("127.0.0.1:0".parse().unwrap(), hang_up).unwrap();
    let other = TcpStream::connect(engine.local_address(listener).unwrap()).unwrap();
    (until(engine, accepted), other)
}

fn get(engine: &mut Engine, conn: ConnHandle, bytes: usize) -> Bytes {
    engine.expect(conn, bytes).unwrap_or_else(|| until(engine, received))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 253).unwrap()).collect()
}

fn exactly_as_many_bytes_come_as_are_expected() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AfterData);
    let data = pattern(3_000_000);
    let sent = data.clone();
    let thread = std::thread::spawn(move || other.write_all(&sent).map(|()| other));
    let mut at = 0;
    // Small ones, one over a chunk's end, none, and such that are placed.
    for bytes in [1, 64, 0, 30_000, 40_000, 65_535, 65_536, 300_001, 28, 262_144, 2_000_000, 5] {
        let got = get(&mut engine, conn, bytes);
        assert!(got == data[at..at + bytes], "{bytes} bytes at {at}");
        assert!(bytes < 65_536 || (got.as_ptr() as usize).is_multiple_of(ALIGN));
        at += bytes;
    }
    assert!(get(&mut engine, conn, data.len() - at) == data[at..]);
    thread.join().unwrap().unwrap();
}

fn many_small_messages_cost_one_receive() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AfterData);
    other.write_all(&pattern(64 * 100)).unwrap();
    let mut at_once = 0;
    for message in 0..100 {
        let got = match engine.expect(conn, 64) {
            Some(bytes) => {
                at_once += 1;
                bytes
            }
            None => until(&mut engine, received),
        };
        assert_eq!(got, pattern(64 * 100)[message * 64..][..64]);
    }
    assert!(at_once >= 90, "{at_once} of 100 were there without a turn");
}

fn sends_go_out_in_order_and_are_counted() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AtOnce);
    let data = pattern(8 << 20);
    let mut rest = Bytes::from(data.clone());
    let mut size = 1;
    while !rest.is_empty() {
        let piece = rest.split_to(size.min(rest.len()));
        engine.send(conn, [Bytes::new(), piece]);
        size = (size * 3) % 100_003 + 1;
    }
    assert_eq!(engine.send_backlog(conn), 8 << 20);
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 8 << 20];
        other.read_exact(&mut all).map(|()| (all, other))
    });
    let mut events = Vec::new();
    while engine.send_backlog(conn) > 0 {
        let deadline = engine.now() + Duration::from_secs(10);
        engine.turn(Some(deadline), &mut events).unwrap();
    }
    let (all, _other) = reader.join().unwrap().unwrap();
    assert!(all == data);
    assert_eq!(events, []);
}

fn two_engines_talk() {
    let (mut left, mut right) = (engine(), engine());
    let listener = right.listen_tcp("127.0.0.1:0".parse().unwrap(), HangUp::AfterData).unwrap();
    let address = right.local_address(listener).unwrap();
    let dialled = left.connect_tcp(address, HangUp::AfterData).unwrap();
    let connected =
        until(
            &mut left,
            |event| {
                if let Event::Connected { conn } = event { Some(*conn) } else { None }
            },
        );
    assert_eq!(connected, dialled);
    let taken = until(&mut right, accepted);
    let payload = left.arena().take(262_144).into_bytes();
    left.send(dialled, [Bytes::from_static(b"head"), payload.clone()]);
    assert_eq!(right.expect(taken, 4), None);
    let done = std::cell::Cell::new(false);
    let mut head = None;
    while !done.get() {
        let mut events = Vec::new();
        let soon = left.now() + Duration::from_millis(1);
        left.turn(Some(soon), &mut events).unwrap();
        let soon = right.now() + Duration::from_millis(1);
        right.turn(Some(soon), &mut events).unwrap();
        for bytes in events.iter().filter_map(received) {
            if head.is_none() {
                head = Some(bytes);
                assert_eq!(right.expect(taken, 262_144), None);
            } else {
                assert!(bytes == payload);
                done.set(true);
            }
        }
    }
    right.send(taken, [Bytes::from_static(b"ok")]);
    right.close_after_send(taken);
    assert_eq!(left.expect(dialled, 2), None);
    while right.connections() > 0 || left.connections() > 0 {
        let mut events = Vec::new();
        right.turn(Some(right.now() + Duration::from_millis(1)), &mut events).unwrap();
        assert_eq!(events, [], "nothing comes of what is closed");
        left.turn(Some(left.now() + Duration::from_millis(1)), &mut events).unwrap();
        for event in events {
            if let Some(bytes) = received(&event) {
                assert_eq!(bytes, "ok");
                assert_eq!(left.expect(dialled, 1), None);
            } else if hung_up(&event).is_some() {
                left.close(dialled);
            }
        }
    }
}

fn a_dial_that_nobody_answers_fails() {
    let mut engine = engine();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let conn = engine.connect_tcp(address, HangUp::AfterData).unwrap();
    let events = turn(&mut engine);
    assert_eq!(events, [Event::ConnectFailed { conn, errno: libc::ECONNREFUSED }]);
    // Never answered: its backlog is full of connections that nobody accepts.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let blocked = full_backlog(address);
    let before = engine.now();
    let conn = engine.connect_tcp(address, HangUp::AfterData).unwrap();
    assert_eq!(turn(&mut engine), [Event::ConnectFailed { conn, errno: libc::ECANCELED }]);
    assert!(engine.now().since(before) >= CONNECT_TIMEOUT);
    assert_eq!(engine.connections(), 0);
    drop((listener, blocked));
}

/// Connections to a listener until it takes no more.
fn full_backlog(address: SocketAddr) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(50)) {
        streams.push(stream);
        assert!(streams.len() < 10_000);
    }
    streams
}

fn a_hang_up_is_seen_while_nothing_is_read() {
    let mut engine = engine();
    for hang_up in [HangUp::AtOnce, HangUp::AfterData] {
        let (conn, mut other) = pair(&mut engine, hang_up);
        other.write_all(b"never read").unwrap();
        drop(other);
        assert_eq!(until(&mut engine, hung_up), conn);
        assert_eq!(engine.expect(conn, 1), None, "nothing more comes of it");
        engine.send(conn, [Bytes::from_static(b"x")]);
        assert_eq!(engine.send_backlog(conn), 0);
        engine.close(conn);
    }
    assert_eq!(engine.connections(), 0);
}

fn what_was_said_before_hanging_up_is_heard_if_so_wished() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AfterData);
    assert_eq!(engine.expect(conn, 64), None);
    other.write_all(&pattern(200_064)).unwrap();
    other.shutdown(Shutdown::Both).unwrap();
    assert_eq!(until(&mut engine, received), pattern(64));
    assert_eq!(get(&mut engine, conn, 200_000).len(), 200_000);
    assert_eq!(engine.expect(conn, 1), None);
    assert_eq!(until(&mut engine, hung_up), conn);
}

fn a_hang_up_that_was_seen_is_told_when_reading_stops() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AfterData);
    assert_eq!(engine.expect(conn, 4), None);
    other.write_all(b"1234").unwrap();
    drop(other);
    let mut seen = Vec::new();
    while !seen.iter().any(|event| hung_up(event).is_some()) {
        seen.extend(turn(&mut engine));
    }
    let data = seen.iter().position(|event| received(event).is_some()).unwrap();
    let end = seen.iter().position(|event| hung_up(event).is_some()).unwrap();
    assert!(data < end);
}

fn what_came_in_the_turn_of_the_hang_up_is_not_lost() {
    let mut engine = engine();
    for round in 0..100 {
        let (conn, mut other) = pair(&mut engine, HangUp::AfterData);
        assert_eq!(engine.expect(conn, 4), None);
        // The receive and the poll for hang-up wait in the kernel; then all happens at once.
        engine.turn(Some(engine.now()), &mut Vec::new()).unwrap();
        other.write_all(b"headlast word").unwrap();
        drop(other);
        assert_eq!(until(&mut engine, received), "head");
        let word = engine.expect(conn, 9).unwrap_or_else(|| {
            panic!("what was received before the hang-up is gone in round {round}")
        });
        assert_eq!(word, "last word");
        assert_eq!(until(&mut engine, hung_up), conn);
        engine.close(conn);
    }
}

fn busy_disks_leave_room_for_connections() {
    let scratch = Scratch::new("busy");
    let path = scratch.path("disk");
    create_disk_file(&path, 1 << 20, |_| {}).unwrap();
    let mode = crate::on_both::mode();
    let config = EngineConfig { mode, arena_bytes: 1 << 20, connections_max: 1 };
    let mut engine = Engine::new(&config).unwrap();
    let disk = engine.add_disk(&path, false).unwrap();
    for token in 0..200 {
        let kind = DiskOpKind::Read { offset: 0, length: 4096 };
        engine.disk(disk, DiskOp { token: DiskToken(token), kind });
    }
    assert!(engine.ring.under_way() > engine.socket_ops_max as usize);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    engine.connect_tcp(listener.local_addr().unwrap(), HangUp::AfterData).unwrap();
}

fn a_connection_closes_while_it_sends_and_receives() {
    let mut engine = engine();
    for _ in 0..40 {
        let (conn, other) = pair(&mut engine, HangUp::AtOnce);
        engine.send(conn, (0..32).map(|_| Bytes::from(vec![1; 1 << 20])));
        assert_eq!(engine.expect(conn, 100_000), None);
        let soon = engine.now() + Duration::from_millis(1);
        let mut events = Vec::new();
        engine.turn(Some(soon), &mut events).unwrap();
        engine.close(conn);
        engine.close(conn);
        assert_eq!(engine.send_backlog(conn), 0);
        // The other side learns of it, and no event comes of a closed connection.
        let thread = std::thread::spawn(move || std::io::copy(&mut &other, &mut std::io::sink()));
        while !thread.is_finished() {
            let soon = engine.now() + Duration::from_millis(1);
            engine.turn(Some(soon), &mut events).unwrap();
        }
        assert_eq!(events, []);
        let _ = thread.join().unwrap();
    }
    // Nothing is left but the wake and 40 listeners, once the kernel gave all back.
    let by = engine.now() + Duration::from_secs(10);
    while engine.ring.under_way() > 41 && engine.now() < by {
        let soon = engine.now() + Duration::from_millis(1);
        engine.turn(Some(soon), &mut Vec::new()).unwrap();
    }
    assert_eq!(engine.ring.under_way(), 41);
}

fn what_was_queued_goes_out_before_a_polite_close() {
    let mut engine = engine();
    let (conn, mut other) = pair(&mut engine, HangUp::AtOnce);
    other.write_all(b"unread").unwrap();
    engine.send(conn, [Bytes::from(pattern(5 << 20))]);
    engine.close_after_send(conn);
    let thread = std::thread::spawn(move || {
        let mut all = Vec::new();
        other.read_to_end(&mut all).map(|_| all)
    });
    let mut events = Vec::new();
    while engine.connections() > 0 {
        let soon = engine.now() + Duration::from_millis(10);
        engine.turn(Some(soon), &mut events).unwrap();
    }
    assert!(thread.join().unwrap().unwrap() == pattern(5 << 20));
    assert_eq!(events, []);
}

fn a_peer_that_does_not_read_is_not_waited_for_without_end() {
    let mut engine = engine();
    let (conn, other) = pair(&mut engine, HangUp::AtOnce);
    engine.send(conn, [Bytes::from(vec![0; 64 << 20])]);
    engine.close_after_send(conn);
    let start = engine.now();
    let mut events = Vec::new();
    while engine.connections() > 0 {
        engine.turn(Some(start + LINGER_MAX * 2), &mut events).unwrap();
        assert!(engine.now() < start + LINGER_MAX * 2);
    }
    drop(other);
}

fn one_that_stalls_does_not_hold_up_another() {
    let mut engine = engine();
    let (stalled, mut silent) = pair(&mut engine, HangUp::AtOnce);
    silent.write_all(b"half").unwrap();
    assert_eq!(engine.expect(stalled, 100_000), None);
    engine.send(stalled, [Bytes::from(vec![0; 32 << 20])]);
    let (conn, mut other) = pair(&mut engine, HangUp::AtOnce);
    for _ in 0..100 {
        other.write_all(b"ping").unwrap();
        assert_eq!(get(&mut engine, conn, 4), "ping");
        engine.send(conn, [Bytes::from_static(b"pong")]);
        engine.turn(Some(engine.now()), &mut Vec::new()).unwrap();
        let mut answer = [0; 4];
        other.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
    }
}

fn unix_sockets_do_the_same() {
    let scratch = Scratch::new("unix");
    let path = scratch.path("nbd.sock");
    std::fs::write(&path, "left by an earlier process").unwrap();
    let mut engine = engine();
    engine.listen_unix(&path, HangUp::AtOnce).unwrap();
    let mut other = UnixStream::connect(&path).unwrap();
    let conn = until(&mut engine, accepted);
    other.write_all(b"hello").unwrap();
    assert_eq!(get(&mut engine, conn, 5), "hello");
    engine.send(conn, [Bytes::from_static(b"world")]);
    engine.turn(Some(engine.now()), &mut Vec::new()).unwrap();
    let mut answer = [0; 5];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
    drop(other);
    assert_eq!(until(&mut engine, hung_up), conn);
}

// promise: bounded
fn connections_are_bounded() {
    let mut engine = engine();
    let listener = engine.listen_tcp("127.0.0.1:0".parse().unwrap(), HangUp::AtOnce).unwrap();
    let address = engine.local_address(listener).unwrap();
    let others: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut conns = Vec::new();
    let mut closed = 0;
    for mut other in &others {
        other.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut events = Vec::new();
        engine.turn(Some(engine.now() + Duration::from_millis(5)), &mut events).unwrap();
        conns.extend(events.iter().filter_map(accepted));
        closed += usize::from(matches!(other.read(&mut [0]), Ok(0)));
    }
    let mut events = Vec::new();
    engine.turn(Some(engine.now() + Duration::from_millis(5)), &mut events).unwrap();
    assert_eq!((conns.len(), events.len()), (16, 0));
    assert!(closed <= 4);
    engine.close(conns[0]);
    assert_eq!(engine.connections(), 15);
}
