use super::*;
use crate::setup::{IoMode, Warning};
use gabion_types::Duration;

crate::on_both::on_both!(a_turn_ends_at_its_deadline, a_wake_from_another_thread_ends_a_turn,);

fn engine() -> Engine {
    let mode = crate::on_both::mode();
    let config = EngineConfig { mode, arena_bytes: 4 << 20, ..EngineConfig::default() };
    Engine::new(&config).unwrap()
}

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

/// The kernel refuses io_uring on this thread from now on, as a container's seccomp profile does.
#[allow(unsafe_code)]
fn refuse_uring() {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut program = [
        // The number of the system call is the first field of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, refused),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call that copies it.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    assert_eq!(results, [0, 0], "a thread may give up system calls");
}

#[test]
fn where_io_uring_is_refused_the_portable_driver_does_it_and_says_why() {
    let refused = std::thread::spawn(|| {
        refuse_uring();
        let with = |mode| EngineConfig { mode, arena_bytes: 4 << 20, ..EngineConfig::default() };
        let forced = Engine::new(&with(IoMode::Uring));
        assert!(matches!(forced, Err(EngineError::UringRefused(_))));
        let mut engine = Engine::new(&with(IoMode::Auto)).unwrap();
        assert_eq!(engine.setup().driver, "portable");
        let why = Warning::UringRefused { errno: libc::EPERM };
        assert_eq!(engine.setup().warnings, [why]);
        engine.waker().wake();
        let mut events = Vec::new();
        engine.turn(None, &mut events).unwrap();
        assert_eq!(events, [Event::Woken]);
    });
    refused.join().unwrap();
}
