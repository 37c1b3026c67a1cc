use super::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn traffic(reads: u64, writes: u64, took: Duration) -> v1::Traffic {
    let mut latencies = Latencies::default();
    (0..writes).for_each(|_| latencies.add(took));
    v1::Traffic {
        serving: true,
        reads,
        read_bytes: reads * 4096,
        writes,
        write_bytes: writes * 4096,
        write_latencies: Some(v1::Latencies {
            counts: latencies.counts().to_vec(),
            sum_ns: u64::try_from(latencies.sum().as_nanos()).expect("short"),
        }),
        ..v1::Traffic::default()
    }
}

fn volume(id: u32, name: &str, traffic: v1::Traffic) -> v1::Volume {
    v1::Volume {
        id,
        name: name.to_owned(),
        health: v1::Health::Healthy.into(),
        owner: Some(v1::Owner { node: 1, name: "node1".to_owned(), ..v1::Owner::default() }),
        traffic: Some(traffic),
        ..v1::Volume::default()
    }
}

fn status(volumes: Vec<v1::Volume>) -> v1::StatusResponse {
    v1::StatusResponse {
        cluster_id: "0123456789abcdef".to_owned(),
        leader: Some(1),
        health: v1::Health::Healthy.into(),
        nodes: vec![v1::Node {
            id: 1,
            name: "node1".to_owned(),
            state: v1::NodeState::Up.into(),
            leader: true,
            ..v1::Node::default()
        }],
        volumes,
        ..v1::StatusResponse::default()
    }
}

/// Two looks, two seconds apart.
fn two(then: Vec<v1::Volume>, now: Vec<v1::Volume>) -> Top {
    let mut top = Top::default();
    let at = Instant::now();
    top.told(status(then), at);
    top.told(status(now), at + Duration::from_secs(2));
    top
}

fn picture(top: &Top) -> String {
    let mut terminal = Terminal::new(TestBackend::new(110, 24)).expect("no terminal is needed");
    terminal.draw(|frame| draw::draw(frame, top)).expect("it is drawn");
    terminal.backend().to_string()
}

#[test]
fn rates_are_of_what_came_between_two_looks() {
    let (fast, slow) = (Duration::from_micros(100), Duration::from_millis(50));
    let mut now = traffic(30, 200, fast);
    let mut latencies = Latencies::default();
    (0..100).for_each(|_| latencies.add(fast));
    (0..100).for_each(|_| latencies.add(slow));
    now.write_latencies.as_mut().expect("set").counts = latencies.counts().to_vec();
    now.write_latencies.as_mut().expect("set").sum_ns = 5_010_000_000;
    let top = two(vec![volume(7, "vm1", traffic(10, 100, fast))], vec![volume(7, "vm1", now)]);
    let rates = top.rates(7).expect("known");
    assert_eq!((rates.reads, rates.writes, rates.write_bytes), (10.0, 50.0, 50.0 * 4096.0));
    assert_eq!(rates.read_p99, None);
    // Of those that are newer, not of all.
    assert!(rates.write_p99 >= Some(slow), "{rates:?}");
    assert_eq!(top.history, [60]);
}

#[test]
fn another_owner_counts_anew_and_that_is_no_rate() {
    let took = Duration::from_micros(100);
    let top = two(
        vec![volume(7, "vm1", traffic(10, 100, took))],
        vec![volume(7, "vm1", traffic(3, 200, took))],
    );
    assert_eq!(top.rates(7), None);
    assert!(picture(&top).contains("vm1"));
}

#[test]
fn the_busiest_come_first_or_all_by_name() {
    let took = Duration::from_micros(100);
    let idle = || traffic(0, 0, took);
    let mut top = two(
        vec![volume(1, "a", idle()), volume(2, "b", idle()), volume(3, "c", idle())],
        vec![volume(1, "a", idle()), volume(2, "b", idle()), volume(3, "c", traffic(0, 10, took))],
    );
    let names = |top: &Top| {
        let status = top.status.as_ref().expect("told");
        top.volumes(status).iter().map(|volume| volume.name.clone()).collect::<String>()
    };
    assert_eq!(names(&top), "cab");
    top.turn_order();
    assert_eq!(names(&top), "abc");
    top.scroll(99);
    assert_eq!(top.first, 2);
    top.scroll(-99);
    assert_eq!(top.first, 0);
}

#[test]
fn what_is_wrong_and_what_is_copied_is_drawn() {
    let took = Duration::from_micros(100);
    let copied = |left: u64| {
        let rebuild =
            v1::Rebuild { remaining_bytes: left, bytes_per_s: 1 << 20, eta_ms: Some(1000) };
        v1::Volume { rebuild: Some(rebuild), ..volume(7, "vm1", traffic(0, 0, took)) }
    };
    let mut top = two(vec![copied(8 << 20)], vec![copied(2 << 20)]);
    assert_eq!(top.rebuilt(&copied(2 << 20)), Some(0.75));
    top.status.as_mut().expect("told").problems =
        (1..=6).map(|number| format!("problem {number}")).collect();
    let seen = picture(&top);
    for words in ["healthy", "node 1 leads", "problem 3", "and 3 more", "2 MiB left", "q ends"] {
        assert!(seen.contains(words), "{words}:\n{seen}");
    }
    assert!(!seen.contains("problem 4"), "{seen}");
    top.failed("no node answers".to_owned());
    assert!(picture(&top).contains("no node answers"));
}

#[test]
fn a_small_terminal_and_nothing_known_are_drawn_too() {
    let took = Duration::from_micros(100);
    let top = two(
        vec![volume(7, "vm1", traffic(1, 1, took))],
        vec![volume(7, "vm1", traffic(2, 2, took))],
    );
    for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no terminal");
        for top in [&top, &Top::default()] {
            terminal.draw(|frame| draw::draw(frame, top)).expect("it is drawn");
        }
    }
}
