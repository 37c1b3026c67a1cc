//! How nodes prove the cluster's secret to each other in a call, without saying it.
//!
//! A node that is called has a challenge, drawn when its process starts and told to everybody. A
//! caller names itself by a number drawn at random, counts its calls, and proves the secret over
//! challenge, caller, count and what is called. So a proof is good for one call of one kind at one
//! process: whoever else answers at that address learns nothing that opens anything. The answer is
//! proven in the same way. What is said is not covered by it: that is for TLS.

use gabion_types::{ClusterId, NodeId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Processes that call one node. Full: it draws a new challenge, and all prove themselves anew.
const CALLERS_MAX: usize = 256;
/// Calls of one caller that may overtake each other. A call that comes later than that is refused.
const WINDOW: u64 = 1024;
const WINDOW_WORDS: usize = 16;

pub type Challenge = [u8; 16];
type Tag = [u8; 32];

/// In the name of whom and for what a proof is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub challenge: Challenge,
    pub caller: [u8; 16],
    pub count: u64,
}

/// What both sides know.
#[derive(Clone)]
pub struct Secret {
    pub secret: [u8; 32],
    pub cluster: ClusterId,
}

#[derive(Clone, Copy)]
enum Speaker {
    Caller,
    Answerer,
}

impl Secret {
    /// Source: HMAC-SHA256, RFC 2104.
    fn mac(&self, speaker: Speaker, to: NodeId, call: &Call, path: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(match speaker {
            Speaker::Caller => b"gabion call 1  ",
            Speaker::Answerer => b"gabion answer 1",
        });
        mac.update(&self.cluster.bytes());
        mac.update(&to.get().to_le_bytes());
        mac.update(&call.challenge);
        mac.update(&call.caller);
        mac.update(&call.count.to_le_bytes());
        mac.update(path.as_bytes());
        mac
    }

    fn tag(&self, speaker: Speaker, to: NodeId, call: &Call, path: &str) -> Tag {
        self.mac(speaker, to, call, path).finalize().into_bytes().into()
    }
}

/// The side that calls one node.
pub struct Prover {
    secret: Secret,
    to: NodeId,
    caller: [u8; 16],
    count: AtomicU64,
    challenge: Mutex<Option<Challenge>>,
}

impl Prover {
    /// `caller` is drawn at random for each.
    pub fn new(secret: Secret, to: NodeId, caller: [u8; 16]) -> Self {
        Self { secret, to, caller, count: AtomicU64::new(0), challenge: Mutex::new(None) }
    }

    pub fn challenge(&self) -> Option<Challenge> {
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: it is asked for before the next call.
    pub fn learn(&self, challenge: Option<Challenge>) {
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = challenge;
    }

    /// For one call, and what goes with it.
    pub fn prove(&self, challenge: Challenge, path: &str) -> (Call, String) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let call = Call { challenge, caller: self.caller, count };
        let tag = self.secret.tag(Speaker::Caller, self.to, &call, path);
        (call, format!("{}.{count:016x}.{}", hex(&self.caller), hex(&tag)))
    }

    /// Whether who answered knows the secret.
    pub fn is_answer(&self, call: &Call, path: &str, told: &[u8]) -> bool {
        let mac = self.secret.mac(Speaker::Answerer, self.to, call, path);
        unhex::<32>(told).is_some_and(|tag| mac.verify_slice(&tag).is_ok())
    }
}

/// The side that is called.
pub struct Verifier {
    secret: Secret,
    me: NodeId,
    draw: fn() -> Challenge,
    door: Mutex<Door>,
}

struct Door {
    challenge: Challenge,
    callers: HashMap<[u8; 16], Window>,
}

/// Which of the last counts came already.
struct Window {
    highest: u64,
    /// Bit `count % WINDOW`.
    seen: [u64; WINDOW_WORDS],
}

impl Verifier {
    /// `draw` gives what nobody can guess, never twice the same.
    pub fn new(secret: Secret, me: NodeId, draw: fn() -> Challenge) -> Self {
        let door = Door { challenge: draw(), callers: HashMap::new() };
        Self { secret, me, draw, door: Mutex::new(door) }
    }

    /// What proves this side's answer; else the challenge to prove the secret over.
    pub fn verify(&self, path: &str, told: Option<&[u8]>) -> Result<String, Challenge> {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        let challenge = door.challenge;
        let (caller, count, tag) = told.and_then(parse).ok_or(challenge)?;
        let call = Call { challenge, caller, count };
        let mac = self.secret.mac(Speaker::Caller, self.me, &call, path);
        mac.verify_slice(&tag).map_err(|_| challenge)?;
        if !door.callers.contains_key(&caller) && door.callers.len() >= CALLERS_MAX {
            *door = Door { challenge: (self.draw)(), callers: HashMap::new() };
            return Err(door.challenge);
        }
        let window = door.callers.entry(caller).or_insert_with(Window::new);
        if !window.admit(count) {
            return Err(challenge);
        }
        Ok(hex(&self.secret.tag(Speaker::Answerer, self.me, &call, path)))
    }
}

impl Window {
    fn new() -> Self {
        Self { highest: 0, seen: [0; WINDOW_WORDS] }
    }

    /// Each count once.
    fn admit(&mut self, count: u64) -> bool {
        if count > self.highest {
            // What is passed over may still come; what stood in its place is too old now.
            let newer = (count - self.highest).min(WINDOW);
            for passed in count + 1 - newer..=count {
                let (word, bit) = place(passed);
                self.seen[word] &= !bit;
            }
            self.highest = count;
        } else if self.highest - count >= WINDOW {
            return false;
        }
        let (word, bit) = place(count);
        let first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        first
    }
}

fn place(count: u64) -> (usize, u64) {
    let at = count % WINDOW;
    (usize::try_from(at / 64).expect("below 16"), 1 << (at % 64))
}

fn parse(told: &[u8]) -> Option<([u8; 16], u64, Tag)> {
    let mut parts = told.split(|byte| *byte == b'.');
    let caller = unhex(parts.next()?)?;
    let count = u64::from_be_bytes(unhex(parts.next()?)?);
    let tag = unhex(parts.next()?)?;
    parts.next().is_none().then_some((caller, count, tag))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/gabion.v1.Internal/Vote";

    fn secret(byte: u8) -> Secret {
        Secret { secret: [byte; 32], cluster: ClusterId::new([1; 16]) }
    }

    fn draw() -> Challenge {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut challenge = [0; 16];
        challenge[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        challenge
    }

    fn both() -> (Prover, Verifier) {
        let node = NodeId::new(2);
        (Prover::new(secret(7), node, [3; 16]), Verifier::new(secret(7), node, draw))
    }

    #[test]
    fn a_proof_opens_one_call_of_one_kind_at_one_process() {
        let (prover, verifier) = both();
        let challenge = verifier.verify(PATH, None).unwrap_err();
        let (call, told) = prover.prove(challenge, PATH);
        let elsewhere = Verifier::new(secret(7), NodeId::new(2), draw);
        assert!(elsewhere.verify(PATH, Some(told.as_bytes())).is_err(), "another process");
        assert!(verifier.verify("/gabion.v1.Internal/Append", Some(told.as_bytes())).is_err());
        let answer = verifier.verify(PATH, Some(told.as_bytes())).unwrap();
        assert!(prover.is_answer(&call, PATH, answer.as_bytes()));
        assert_eq!(verifier.verify(PATH, Some(told.as_bytes())), Err(challenge), "again");

        let (later, told) = prover.prove(challenge, PATH);
        assert!(!prover.is_answer(&later, PATH, answer.as_bytes()), "an earlier answer");
        assert!(!prover.is_answer(&call, PATH, &told.as_bytes()[50..]), "what the caller said");
        let other = Prover::new(secret(8), NodeId::new(2), [4; 16]);
        let (_, told) = other.prove(challenge, PATH);
        assert_eq!(verifier.verify(PATH, Some(told.as_bytes())), Err(challenge));
        for told in ["", "x", ".", "..", &"0".repeat(200)] {
            assert_eq!(verifier.verify(PATH, Some(told.as_bytes())), Err(challenge));
        }
    }

    #[test]
    fn calls_may_overtake_each_other_within_the_window() {
        let mut window = Window::new();
        let mut came = std::collections::BTreeSet::new();
        let mut prng = gabion_types::Prng::new(5);
        let mut base = 0;
        for _ in 0..20_000 {
            base += prng.below(3);
            let count = base + prng.below(WINDOW / 2);
            assert_eq!(window.admit(count), came.insert(count), "{count}");
        }
        assert!(window.admit(base + 10 * WINDOW));
        assert!(!window.admit(base), "too old to be told from a second time");
    }

    #[test]
    fn too_many_callers_prove_themselves_anew() {
        let (_, verifier) = both();
        let challenge = verifier.verify(PATH, None).unwrap_err();
        let knock = |number: u64, challenge| {
            let mut caller = [0; 16];
            caller[..8].copy_from_slice(&number.to_le_bytes());
            let prover = Prover::new(secret(7), NodeId::new(2), caller);
            let (_, told) = prover.prove(challenge, PATH);
            verifier.verify(PATH, Some(told.as_bytes()))
        };
        let most = CALLERS_MAX as u64;
        assert!((0..most).all(|number| knock(number, challenge).is_ok()));
        let newer = knock(most, challenge).unwrap_err();
        assert_ne!(newer, challenge);
        assert_eq!(knock(0, challenge), Err(newer), "an old proof does not come back");
        assert!(knock(most, newer).is_ok());
    }
}
