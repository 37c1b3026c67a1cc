use super::*;
use crate::world::Queue;

struct World {
    net: Network<u32>,
    queue: Queue<NetEvent>,
    told: Vec<Told<u32>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut net = Network::new(2, Spread::new(50, 500), Prng::new(seed));
        net.set_process(Instant::ZERO, 0, true);
        net.set_process(Instant::ZERO, 1, true);
        Self { net, queue: Queue::default(), told: Vec::new() }
    }

    fn run(&mut self, duration: Duration) -> Vec<Told<u32>> {
        let end = self.queue.now() + duration;
        loop {
            for (at, event) in self.net.take_due() {
                self.queue.at(at, event);
            }
            if self.queue.next_at().is_none_or(|at| at > end) {
                return std::mem::take(&mut self.told);
            }
            let event = self.queue.pop().unwrap();
            let told = self.net.due(self.queue.now(), event);
            self.told.extend(told);
        }
    }

    fn connected(&mut self) -> Conn {
        let conn = self.net.dial(self.queue.now(), 0, 1);
        let told = self.run(Duration::from_secs(2));
        let accepted = Told::Accepted { machine: 1, conn };
        assert_eq!(told, [accepted, Told::Connected { machine: 0, conn }]);
        conn
    }

    fn send(&mut self, conn: Conn, side: Side, numbers: std::ops::Range<u32>) {
        numbers.for_each(|number| self.net.send(self.queue.now(), conn, side, number));
    }
}

fn numbers(told: &[Told<u32>]) -> Vec<u32> {
    let message = |told: &Told<u32>| match told {
        Told::Message { message, .. } => Some(*message),
        Told::Connected { .. } | Told::Accepted { .. } | Told::Closed { .. } => None,
    };
    told.iter().filter_map(message).collect()
}

#[test]
fn messages_arrive_in_order_and_before_the_hangup() {
    let mut world = World::new(1);
    let conn = world.connected();
    world.send(conn, Side::Dialler, 0..20);
    world.net.close(world.queue.now(), conn, Side::Dialler, true);
    let told = world.run(Duration::from_secs(1));
    assert_eq!(numbers(&told), (0..20).collect::<Vec<_>>());
    assert_eq!(told.last(), Some(&Told::Closed { machine: 1, conn }));
    assert_eq!(world.net.open(), 0);
}

#[test]
fn a_cut_way_holds_messages_until_it_is_mended() {
    let mut world = World::new(2);
    let conn = world.connected();
    world.net.cut(0, 1);
    world.send(conn, Side::Dialler, 0..5);
    world.send(conn, Side::Acceptor, 5..6);
    assert_eq!(numbers(&world.run(Duration::from_secs(3))), [5], "the other way is open");
    world.net.close(world.queue.now(), conn, Side::Dialler, true);
    assert_eq!(world.run(Duration::from_secs(3)), []);
    world.net.mend(world.queue.now(), 0, 1);
    let told = world.run(Duration::from_secs(3));
    assert_eq!(numbers(&told), [0, 1, 2, 3, 4]);
    assert_eq!(told.len(), 6);
    assert_eq!(world.net.open(), 0);
}

#[test]
fn a_dead_process_hangs_up_and_a_dark_machine_does_not() {
    let mut world = World::new(3);
    let conn = world.connected();
    world.net.set_process(world.queue.now(), 1, false);
    let told = world.run(Duration::from_secs(1));
    assert_eq!(told.last(), Some(&Told::Closed { machine: 0, conn }));
    let refused = world.net.dial(world.queue.now(), 0, 1);
    let told = world.run(Duration::from_millis(100));
    assert_eq!(told, [Told::Closed { machine: 0, conn: refused }]);

    world.net.set_process(world.queue.now(), 1, true);
    let conn = world.connected();
    world.net.power_off(1);
    world.send(conn, Side::Dialler, 0..3);
    assert_eq!(world.run(Duration::from_secs(60)), []);
    world.net.set_process(world.queue.now(), 1, true);
    assert_eq!(world.run(Duration::from_secs(1)), [Told::Closed { machine: 0, conn }]);
    assert_eq!(world.net.open(), 0);
}

#[test]
fn a_reset_is_heard_of_on_both_sides_once() {
    let mut world = World::new(4);
    let conn = world.connected();
    world.send(conn, Side::Dialler, 0..3);
    world.net.reset(world.queue.now(), conn);
    let told = world.run(Duration::from_secs(1));
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(world.net.open(), 0);
}
