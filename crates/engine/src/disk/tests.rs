use super::*;
use crate::disk_file::create_disk_file;
use crate::setup::EngineConfig;
use crate::sys::scratch::Scratch;

crate::on_both::on_both!(
    what_is_written_is_read_aligned_or_not_direct_or_not,
    more_pieces_and_operations_than_the_kernel_takes_at_once,
    a_disk_ends_where_it_ends,
    a_disk_has_one_user,
    the_devices_errors_keep_their_meaning,
    an_engine_that_is_dropped_waits_for_its_disk,
);

const MIB: u64 = 1 << 20;

fn engine() -> Engine {
    let mode = crate::on_both::mode();
    let config = EngineConfig { mode, arena_bytes: 4 << 20, ..EngineConfig::default() };
    Engine::new(&config).unwrap()
}

/// Runs operations to their end; results in the order of the tokens.
fn run(
    engine: &mut Engine,
    disk: DiskHandle,
    kinds: Vec<DiskOpKind>,
) -> Vec<Result<Bytes, DiskError>> {
    let count = kinds.len();
    for (token, kind) in kinds.into_iter().enumerate() {
        engine.disk(disk, DiskOp { token: DiskToken(token as u64), kind });
    }
    let mut results: Vec<Option<_>> = vec![None; count];
    let mut events = Vec::new();
    while results.iter().any(Option::is_none) {
        engine.turn(None, &mut events).unwrap();
        for event in events.drain(..) {
            let Event::Disk { disk: from, done } = event else { panic!("{event:?}") };
            assert_eq!(from, disk);
            let slot = &mut results[usize::try_from(done.token.0).unwrap()];
            assert!(slot.replace(done.result).is_none(), "exactly one completion");
        }
    }
    results.into_iter().map(Option::unwrap).collect()
}

fn write(offset: u64, pieces: Vec<Bytes>) -> DiskOpKind {
    DiskOpKind::Write { offset, pieces }
}

fn read(offset: u64, length: u64) -> DiskOpKind {
    DiskOpKind::Read { offset, length }
}

fn pattern(length: usize, seed: u8) -> Bytes {
    let bytes = (0..length).map(|at| u8::try_from(at / 512 % 251).unwrap() ^ seed);
    bytes.collect::<Vec<_>>().into()
}

fn aligned(engine: &Engine, bytes: &[u8]) -> Bytes {
    let mut buf = engine.arena().take(bytes.len());
    buf.copy_from_slice(bytes);
    buf.into_bytes()
}

fn what_is_written_is_read_aligned_or_not_direct_or_not() {
    let scratch = Scratch::new("disk");
    for direct in [true, false] {
        let mut engine = engine();
        let path = scratch.path(&format!("disk-{direct}"));
        create_disk_file(&path, 8 * MIB, |_| {}).unwrap();
        let disk = engine.add_disk(&path, direct).unwrap();
        assert_eq!(engine.disk_info(disk).capacity_bytes, 8 * MIB);
        let (a, b, c) = (pattern(8192, 1), pattern(4096, 2), pattern(12288, 3));
        let data = [a.as_ref(), &b, &c].concat();
        // In place; odd pieces; a page that lies across pieces; a large one from the heap.
        let pieces = vec![
            aligned(&engine, &a),
            b.slice(..100),
            b.slice(100..),
            aligned(&engine, &c).slice(..4096),
            c.slice(4096..),
        ];
        let large = pattern(2 << 20, 9);
        let writes = vec![
            write(0, vec![aligned(&engine, &a)]),
            write(MIB, pieces),
            write(4 * MIB, vec![large.clone()]),
            write(7 * MIB, vec![]),
        ];
        assert!(run(&mut engine, disk, writes).iter().all(Result::is_ok));
        assert_eq!(run(&mut engine, disk, vec![DiskOpKind::Sync]), [Ok(Bytes::new())]);
        let reads =
            vec![read(0, 8192), read(MIB, 24576), read(4 * MIB, 2 << 20), read(7 * MIB, 4096)];
        let results = run(&mut engine, disk, reads);
        assert_eq!(results[0].as_ref().unwrap(), &a);
        assert_eq!(results[1].as_ref().unwrap(), &data);
        assert!(results[2].as_ref().unwrap() == &large);
        assert!(results[3].as_ref().unwrap().iter().all(|byte| *byte == 0));
        for bytes in results.into_iter().flatten() {
            assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
        }
    }
}

fn more_pieces_and_operations_than_the_kernel_takes_at_once() {
    let scratch = Scratch::new("disk");
    let mut engine = engine();
    let path = scratch.path("disk");
    create_disk_file(&path, 16 * MIB, |_| {}).unwrap();
    let disk = engine.add_disk(&path, true).unwrap();
    let page = aligned(&engine, &pattern(4096, 5));
    let many = vec![page.clone(); WRITE_PIECES_MAX + 300];
    assert_eq!(run(&mut engine, disk, vec![write(0, many)]), [Ok(Bytes::new())]);
    let reads = (0..4 * DISK_OPS_IN_FLIGHT_MAX as u64).map(|at| read(at * 4096, 4096)).collect();
    assert!(run(&mut engine, disk, reads).into_iter().all(|result| result.unwrap() == page));
    assert_eq!(engine.disks[0].in_flight, 0);
}

fn a_disk_ends_where_it_ends() {
    let scratch = Scratch::new("disk");
    let mut engine = engine();
    let path = scratch.path("disk");
    create_disk_file(&path, MIB, |_| {}).unwrap();
    let disk = engine.add_disk(&path, true).unwrap();
    let past = vec![
        read(MIB - 4096, 8192),
        write(MIB, vec![pattern(4096, 1)]),
        read(u64::MAX - 4095, 8192),
        read(MIB - 4096, 4096),
    ];
    let results = run(&mut engine, disk, past);
    assert_eq!(results[0], Err(DiskError::PastEnd { end: MIB + 4096 }));
    assert_eq!(results[1], Err(DiskError::PastEnd { end: MIB + 4096 }));
    assert_eq!(results[2], Err(DiskError::PastEnd { end: u64::MAX }));
    assert!(results[3].is_ok());
    // The file shrinks under the engine: no zeros are made up.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MIB / 2).unwrap();
    let results = run(&mut engine, disk, vec![read(MIB / 2 - 4096, 8192)]);
    assert_eq!(results, [Err(DiskError::PastEnd { end: MIB / 2 + 4096 })]);
}

fn a_disk_has_one_user() {
    let scratch = Scratch::new("disk");
    let path = scratch.path("disk");
    create_disk_file(&path, MIB, |_| {}).unwrap();
    let mut first = engine();
    first.add_disk(&path, true).unwrap();
    let mut second = engine();
    assert!(matches!(second.add_disk(&path, true), Err(DiskOpenError::InUse { .. })));
    let missing = second.add_disk(&scratch.path("none"), true);
    assert!(matches!(missing, Err(DiskOpenError::Open { .. })));
    drop(first);
    assert!(second.add_disk(&path, true).is_ok());
}

fn the_devices_errors_keep_their_meaning() {
    let mut engine = engine();
    // `/dev/full` answers each write with ENOSPC; its size is made up here.
    let file = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    engine.disks.push(Disk {
        file: Rc::new(DiskFile::new(file, None)),
        info: DiskInfo { capacity_bytes: MIB, direct: false },
        in_flight: 0,
        waiting: VecDeque::new(),
    });
    let results = run(&mut engine, DiskHandle(0), vec![write(0, vec![pattern(4096, 1)])]);
    assert_eq!(results, [Err(DiskError::NoSpace)]);
    // A directory can't be read: the device's word comes through as it is.
    let file = File::open("/").unwrap();
    engine.disks[0].file = Rc::new(DiskFile::new(file, None));
    let results = run(&mut engine, DiskHandle(0), vec![read(0, 4096)]);
    assert_eq!(results, [Err(DiskError::Io { errno: libc::EISDIR })]);
}

#[test]
fn what_is_interrupted_is_tried_again_but_not_for_ever() {
    let mut job = DiskJob {
        disk: DiskHandle(0),
        file: Rc::new(DiskFile::new(File::open("/dev/null").unwrap(), None)),
        token: DiskToken(0),
        work: Work::Sync,
        attempts: 0,
    };
    for attempt in 1..ATTEMPTS_MAX {
        let errno = [libc::EINTR, libc::EAGAIN, libc::ECANCELED][attempt as usize % 3];
        let Step::Again(again) = job.advance(-errno) else { panic!("given up at {attempt}") };
        job = again;
    }
    let last = job.advance(-libc::EAGAIN);
    assert!(matches!(last, Step::Done(Err(DiskError::Io { errno: libc::EAGAIN }))));
}

fn an_engine_that_is_dropped_waits_for_its_disk() {
    let scratch = Scratch::new("disk");
    let path = scratch.path("disk");
    create_disk_file(&path, 8 * MIB, |_| {}).unwrap();
    let mut engine = engine();
    let disk = engine.add_disk(&path, true).unwrap();
    for at in 0..64 {
        let kind = write(at * 65536, vec![aligned(&engine, &pattern(65536, 1))]);
        engine.disk(disk, DiskOp { token: DiskToken(at), kind });
    }
    let arena = engine.arena().clone();
    drop(engine);
    // Everything came back: a run of the largest size can be had again.
    let whole = arena.take(1 << 20);
    assert!(arena.holds(whole.as_ptr(), whole.len()));
}
