//! Ports for tests that run side by side, as processes or as threads.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which the kernel takes ports of outgoing connections: nobody else gets one
/// between here and where it is listened on.
const FIRST: u32 = 11_000;
const COUNT: u32 = 20_000;
/// More than one test process asks for.
const PER_PROCESS: u32 = 97;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn free_port() -> u16 {
    loop {
        let place = std::process::id().wrapping_mul(PER_PROCESS);
        let place = place.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + place).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
