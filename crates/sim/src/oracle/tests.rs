use super::*;

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

fn label(id: WriteId) -> [Found; 1] {
    [Found::Label(Label(id.0))]
}

const ZEROS: [Found; 1] = [Found::Label(Label::ZEROS)];
const UNIT: Units = Units { volume: 0, first: 3, count: 1 };

fn oracle() -> Oracle {
    let mut oracle = Oracle::new(4096);
    oracle.add_volume(1 << 20);
    oracle
}

#[test]
fn an_acknowledged_write_is_there() {
    let mut oracle = oracle();
    let write = oracle.write(UNIT, false, at(10));
    assert_eq!(oracle.read(UNIT, &ZEROS, at(11), at(12)), Ok(()));
    assert_eq!(oracle.acknowledged(write, at(20)), Ok(()));
    assert_eq!(oracle.read(UNIT, &label(write), at(21), at(22)), Ok(()));
    let broken = oracle.read(UNIT, &ZEROS, at(23), at(24)).unwrap_err();
    assert_eq!(broken.promise, "no-silent-corruption");
}

#[test]
fn an_older_value_does_not_come_back() {
    let mut oracle = oracle();
    let old = oracle.write(UNIT, false, at(10));
    oracle.acknowledged(old, at(11)).unwrap();
    let new = oracle.write(UNIT, false, at(20));
    oracle.acknowledged(new, at(21)).unwrap();
    let broken = oracle.read(UNIT, &label(old), at(22), at(23)).unwrap_err();
    assert_eq!(broken.promise, "acked-survives");
}

#[test]
fn a_value_that_was_read_stays_even_if_nobody_acknowledged_it() {
    let mut oracle = oracle();
    let old = oracle.write(UNIT, false, at(10));
    oracle.acknowledged(old, at(11)).unwrap();
    let new = oracle.write(UNIT, false, at(20));
    assert_eq!(oracle.read(UNIT, &label(old), at(30), at(31)), Ok(()), "it may not have happened");
    assert_eq!(oracle.read(UNIT, &label(new), at(32), at(33)), Ok(()), "or later");
    let broken = oracle.read(UNIT, &label(old), at(34), at(35)).unwrap_err();
    assert_eq!(broken.promise, "one-register");
}

#[test]
fn concurrent_reads_may_differ_in_one_order_only() {
    let mut oracle = oracle();
    let new = oracle.write(UNIT, false, at(20));
    assert_eq!(oracle.read(UNIT, &label(new), at(30), at(50)), Ok(()));
    assert_eq!(oracle.read(UNIT, &ZEROS, at(31), at(49)), Ok(()), "it overlaps the other read");
    assert!(oracle.read(UNIT, &ZEROS, at(51), at(52)).is_err());
}

#[test]
fn a_write_of_a_guest_that_is_gone_does_not_land_after_another_shook_hands() {
    let mut oracle = oracle();
    let orphan = oracle.write(UNIT, false, at(10));
    oracle.bound(orphan, at(15));
    let new = oracle.write(UNIT, false, at(20));
    oracle.acknowledged(new, at(25)).unwrap();
    assert!(oracle.read(UNIT, &label(orphan), at(30), at(31)).is_err());
}

#[test]
fn a_refused_write_is_never_read() {
    let mut oracle = oracle();
    let write = oracle.write(UNIT, false, at(10));
    oracle.void(write);
    assert!(oracle.read(UNIT, &label(write), at(30), at(31)).is_err());
}

#[test]
fn zeros_need_a_reason() {
    let mut oracle = oracle();
    let data = oracle.write(UNIT, false, at(10));
    oracle.acknowledged(data, at(11)).unwrap();
    let zero = oracle.write(UNIT, true, at(20));
    assert_eq!(oracle.read(UNIT, &ZEROS, at(22), at(23)), Ok(()));
    assert_eq!(oracle.acknowledged(zero, at(30)), Ok(()));
    assert!(oracle.read(UNIT, &label(data), at(34), at(35)).is_err());
}

#[test]
fn a_block_is_not_torn() {
    let mut oracle = Oracle::new(512);
    oracle.add_volume(1 << 20);
    let block = Units { volume: 0, first: 8, count: 8 };
    let first = oracle.write(block, false, at(10));
    let second = oracle.write(block, false, at(10));
    let mut found = vec![Found::Label(Label(first.0)); 8];
    assert_eq!(oracle.read(block, &found, at(11), at(12)), Ok(()));
    found[5] = Found::Label(Label(second.0));
    let broken = oracle.read(block, &found, at(11), at(12)).unwrap_err();
    assert!(broken.text.contains("torn"), "{broken}");
}

#[test]
fn forgetting_keeps_what_may_still_be_read() {
    let mut oracle = oracle();
    let open = oracle.begin(at(5));
    let kept = oracle.write(UNIT, false, at(10));
    oracle.acknowledged(kept, at(11)).unwrap();
    for number in 0..100 {
        let write = oracle.write(UNIT, false, at(20 + number * 10));
        oracle.acknowledged(write, at(25 + number * 10)).unwrap();
    }
    assert_eq!(oracle.read(UNIT, &label(kept), at(5), at(3000)), Ok(()), "it began before");
    oracle.end(open);
    for number in 0..1000 {
        let write = oracle.write(UNIT, false, at(4000 + number * 10));
        oracle.acknowledged(write, at(4005 + number * 10)).unwrap();
    }
    let last = WriteId(1101);
    assert_eq!(oracle.read(UNIT, &label(last), at(90_000), at(90_001)), Ok(()));
    for number in 0..100 {
        let zeroed = oracle.write(UNIT, true, at(90_010 + number));
        oracle.void(zeroed);
        assert_eq!(oracle.read(UNIT, &label(last), at(91_000), at(91_001)), Ok(()));
    }
    let register = &oracle.volumes[0][3];
    assert!(register.history().matches('w').count() < 100, "{}", register.history());
}

#[test]
fn a_write_that_is_open_while_the_owner_changes_may_come_twice_until_it_is_answered() {
    let mut oracle = oracle();
    let twice = oracle.write(UNIT, false, at(10));
    assert_eq!(oracle.read(UNIT, &label(twice), at(11), at(12)), Ok(()));
    let other = oracle.write(UNIT, false, at(20));
    oracle.acknowledged(other, at(21)).unwrap();
    oracle.may_repeat(twice);
    assert_eq!(oracle.read(UNIT, &label(other), at(22), at(23)), Ok(()));
    assert_eq!(oracle.read(UNIT, &label(twice), at(30), at(31)), Ok(()));
    assert_eq!(oracle.acknowledged(twice, at(32)), Ok(()));
    let last = oracle.write(UNIT, false, at(40));
    oracle.acknowledged(last, at(41)).unwrap();
    assert!(oracle.read(UNIT, &label(twice), at(42), at(43)).is_err(), "it was answered");
}
