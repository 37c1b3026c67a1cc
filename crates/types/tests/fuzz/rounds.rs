//! Rounds of fuzzing, for the tests of each crate that reads bytes from elsewhere: a few with the same
//! seeds each time, or new ones for `GABION_FUZZ_SECONDS` (`tests/run --long` sets it to ten minutes).

use gabion_types::Prng;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Rounds where no time is given.
const ROUNDS: u64 = 3000;

/// Says with which seed a round failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it was the round of seed {}: GABION_FUZZ_SEED={0}", self.0);
        }
    }
}

pub fn rounds(mut round: impl FnMut(&mut Prng)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut one = |seed: u64| {
        let _told = Told(seed);
        round(&mut Prng::new(seed));
    };
    if let Some(seed) = number("GABION_FUZZ_SEED") {
        return one(seed);
    }
    let Some(seconds) = number("GABION_FUZZ_SECONDS") else { return (0..ROUNDS).for_each(one) };
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let first = u64::try_from(first).unwrap_or_default();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0_u64;
    while Instant::now() < until {
        (0..100).for_each(|more| one(first.wrapping_add(done + more)));
        done += 100;
    }
    println!("{done} rounds in {seconds} s");
}

/// A few bytes are other ones, some are gone, some come twice.
pub fn mutate(prng: &mut Prng, bytes: &mut Vec<u8>) {
    for _ in 0..prng.between(1, 6) {
        if bytes.is_empty() {
            return;
        }
        let place = |prng: &mut Prng, length: usize| {
            usize::try_from(prng.below(length as u64)).unwrap_or_default()
        };
        let at = place(prng, bytes.len());
        let value = prng.next_u64().to_le_bytes();
        match prng.below(8) {
            0..=2 => bytes[at] ^= 1 << (value[0] % 8),
            3 => bytes[at] = value[0],
            4 => {
                let odd = [0, 1, 0x7f, 0x80, 0xff];
                let end = (at + 1 + usize::from(value[0] % 8)).min(bytes.len());
                bytes[at..end].fill(odd[usize::from(value[1]) % odd.len()]);
            }
            5 => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            6 => drop(bytes.drain(at..(at + usize::from(value[0] % 32)).min(bytes.len()))),
            _ => {
                let end = (at + usize::from(value[0] % 32)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}
