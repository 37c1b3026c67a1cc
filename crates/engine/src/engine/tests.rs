use super::*;
use gabion_types::Duration;

fn engine() -> Engine {
    let config = EngineConfig { arena_bytes: 4 << 20, ..EngineConfig::default() };
    Engine::new(&config).unwrap()
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let mut engine = engine();
    let mut events = Vec::new();
    let start = engine.now();
    engine.turn(Some(start + Duration::from_millis(20)), &mut events).unwrap();
    assert!(engine.now().since(start) >= Duration::from_millis(19));
    assert_eq!(events, []);
    engine.turn(Some(start), &mut events).unwrap();
    assert_eq!(events, [], "a deadline that has passed does not wait");
    assert!(engine.is_drained());
}

#[test]
fn a_wake_from_another_thread_ends_a_turn() {
    let mut engine = engine();
    for _ in 0..3 {
        let waker = engine.waker();
        let thread = std::thread::spawn(move || {
            waker.wake();
            waker.wake();
        });
        let mut events = Vec::new();
        while events.is_empty() {
            engine.turn(None, &mut events).unwrap();
        }
        assert_eq!(events[0], Event::Woken);
        thread.join().unwrap();
        let soon = engine.now() + Duration::from_millis(5);
        engine.turn(Some(soon), &mut events).unwrap();
        assert!(events.len() <= 2, "wakes are folded together: {events:?}");
    }
}

#[test]
fn the_portable_driver_is_refused_by_name() {
    let config = EngineConfig { mode: IoMode::Portable, ..EngineConfig::default() };
    assert!(matches!(Engine::new(&config), Err(EngineError::NoPortableDriver)));
}
