//! Large requests, many at once, while links break and copies are away: it goes on, and memory stays
//! within its bounds.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::nbd_client::{NbdClient, Patience, Request};
use gabion_tests::Cluster;
use gabion_tests::fixture::wait;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const MIB_LONG: u32 = 1 << 20;
const DEPTH: usize = 64;
const STALL_MOST: Duration = Duration::from_secs(10);
/// What one node of a cluster may hold in memory.
const NODE_MEMORY_MOST: u64 = 300 << 20;
/// What a node takes of one held volume's guests, in MiB; the rest waits in their sockets.
const SHARE_MIB: usize = 32;

fn patient() -> Patience {
    Patience { io: Duration::from_secs(120), ..Patience::default() }
}

/// A guest that has 64 writes of 1 MiB under way all the time, over its part of the volume.
struct Heavy {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Left>,
}

/// What it left: its connection, and by MiB what was acknowledged last.
struct Left {
    client: NbdClient,
    written: BTreeMap<u64, u64>,
    stall: Duration,
}

fn content(at: u64, turn: u64) -> Vec<u8> {
    let word = (at << 32 | turn).to_le_bytes();
    word.iter().copied().cycle().take(MIB).collect()
}

impl Heavy {
    fn start(mut client: NbdClient, first: u64, count: u64) -> Self {
        assert!(count > DEPTH as u64, "no two writes of one MiB at a time");
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut under_way = BTreeMap::new();
            let mut written = BTreeMap::new();
            let (mut next, mut stall, mut last) = (0, Duration::ZERO, Instant::now());
            loop {
                while under_way.len() < DEPTH && !stopped.load(Ordering::Relaxed) {
                    let (at, turn) = (first + next % count, next / count);
                    next += 1;
                    let (offset, data) = (at * MIB as u64, content(at, turn));
                    let write = Request::Write { offset, data: &data, fua: false };
                    under_way.insert(client.submit(write).unwrap(), (at, turn));
                }
                if under_way.is_empty() {
                    return Left { client, written, stall };
                }
                let completion = client.receive().unwrap();
                completion.result.unwrap();
                let (at, turn) = under_way.remove(&completion.cookie).unwrap();
                written.insert(at, turn);
                told.fetch_add(1, Ordering::Relaxed);
                stall = stall.max(last.elapsed());
                last = Instant::now();
            }
        });
        Self { acknowledged, stop, thread }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn gets_on(&self, writes: u64) {
        let before = self.acknowledged();
        wait("it gets on", STALL_MOST * 2, || {
            self.thread.is_finished() || self.acknowledged() >= before + writes
        });
        assert!(!self.thread.is_finished());
    }

    #[track_caller]
    fn finish(self) -> Left {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no request failed")
    }
}

impl Left {
    #[track_caller]
    fn check(&mut self) {
        for (at, turn) in &self.written {
            let there = self.client.read(at * MIB as u64, MIB_LONG).unwrap();
            assert!(there == content(*at, *turn), "MiB {at} is not as acknowledged");
        }
    }
}

// promise: bounded, hold-not-fail, one-register
#[test]
fn a_full_window_through_a_forwarder_outlives_its_link_and_its_owner() {
    let mut cluster = Cluster::start();
    cluster.create("vm1", 128);
    let mut own = NbdClient::connect(&cluster.local.nbd_tcp(1), "vm1", patient()).unwrap();
    own.write(0, &[0; 4096]).unwrap();
    assert_eq!(cluster.owner("vm1"), Some(1));
    let address = cluster.local.nbd_tcp(2);
    let heavy = Heavy::start(NbdClient::connect(&address, "vm1", patient()).unwrap(), 8, 100);
    heavy.gets_on(100);
    // The front finds the link silent and breaks it; the session is resumed with all it holds.
    for _ in 0..2 {
        cluster.signal(1, Signal::STOP);
        std::thread::sleep(Duration::from_millis(1700));
        cluster.signal(1, Signal::CONT);
        heavy.gets_on(150);
    }
    drop(own);
    let owner = cluster.owner("vm1").expect("a guest is attached");
    if owner != 2 {
        cluster.kill(owner);
    }
    heavy.gets_on(150);
    let mut left = heavy.finish();
    assert!(left.stall < STALL_MOST, "a stall of {:?}", left.stall);
    println!("longest stall {:?}, {} MiB written last", left.stall, left.written.len());
    left.check();
}

// promise: bounded, hold-not-fail
#[test]
fn a_held_volume_does_not_eat_its_node() {
    let mut cluster =
        Cluster::of(gabion_tests::fixture::Shape { disk_mib: 2048, ..Default::default() });
    cluster.create("vm1", 1152);
    let clients: Vec<_> = (0..16)
        .map(|_| NbdClient::connect(&cluster.local.nbd_tcp(1), "vm1", patient()).unwrap())
        .collect();
    assert_eq!(cluster.owner("vm1"), Some(1));
    // Every copy but this node's is away, and so is the majority: all is held.
    cluster.signal(2, Signal::STOP);
    cluster.signal(3, Signal::STOP);
    let heavy: Vec<Heavy> =
        (0..).zip(clients).map(|(guest, client)| Heavy::start(client, guest * 72, 72)).collect();
    std::thread::sleep(Duration::from_secs(8));
    let done: u64 = heavy.iter().map(Heavy::acknowledged).sum();
    let (held, peak) = cluster.memory_bytes(1);
    println!("held: {} MiB in memory, {} MiB at most, {done} done", held >> 20, peak >> 20);
    assert!(peak < NODE_MEMORY_MOST, "{} MiB while 1 GiB is asked for", peak >> 20);
    heavy.iter().for_each(|heavy| heavy.stop.store(true, Ordering::Relaxed));
    cluster.signal(2, Signal::CONT);
    cluster.signal(3, Signal::CONT);
    let mut wrote = 0;
    for heavy in heavy {
        let mut left = heavy.finish();
        wrote += left.written.len();
        left.check();
    }
    assert!(wrote >= SHARE_MIB, "{wrote} MiB: what the node took is done once it can be");
    let (_, peak) = cluster.memory_bytes(1);
    println!("and {} MiB at most when all was done, {wrote} MiB written", peak >> 20);
}
