//! Messages that are nearly right: whoever knows the checksums gets errors, or another message that has
//! these bytes.

use super::{encode, header_of, samples};
use crate::assembler::Assembler;
use crate::header::{HEADER_BYTES, Header};
use bytes::Bytes;
use gabion_types::Prng;
use rounds::{mutate, rounds};

#[path = "../../../../types/tests/fuzz/rounds.rs"]
mod rounds;

fn forged(prng: &mut Prng) -> Vec<u8> {
    let messages = samples();
    let Some(message) = prng.pick(&messages) else { return Vec::new() };
    let encoded = encode(message).unwrap();
    let mut head = header_of(&encoded).encode().to_vec();
    let mut aux = encoded.head[HEADER_BYTES..].to_vec();
    aux.truncate(aux.len().saturating_sub(4));
    let mut payload = encoded.payload.unwrap_or_default().to_vec();
    match prng.below(4) {
        0 => mutate(prng, &mut head),
        1 => mutate(prng, &mut payload),
        _ => mutate(prng, &mut aux),
    }
    if !aux.is_empty() {
        let crc = crc32fast::hash(&aux);
        aux.extend_from_slice(&crc.to_le_bytes());
    }
    head.resize(HEADER_BYTES, 0);
    // Now and then the lengths stay wrong.
    if !prng.chance(1, 8) {
        head[4..8].copy_from_slice(&u32::try_from(aux.len()).unwrap().to_le_bytes());
        head[56..60].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    }
    if !prng.chance(1, 16) {
        let crc = crc32fast::hash(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
    }
    [head, aux, payload].concat()
}

// promise: bounded
#[test]
fn what_is_nearly_right_is_refused_or_is_what_its_bytes_say() {
    let mut decoded = 0_u64;
    rounds(|prng| {
        let mut bytes = forged(prng);
        bytes.extend(forged(prng));
        let mut left = Bytes::from(bytes);
        let mut assembler = Assembler::new();
        while assembler.want() > 0 && assembler.want() <= left.len() {
            let before = left.clone();
            let want = assembler.want();
            let Ok(found) = assembler.received(left.split_to(want)) else { break };
            let Some(message) = found else { continue };
            decoded += 1;
            // It ends where what was received ends, and has these bytes.
            let again = encode(&message).unwrap();
            let end = before.len() - left.len();
            let tail = again.payload.as_ref().map_or(&again.head[..], |payload| &payload[..]);
            let common = tail.len().min(end);
            assert_eq!(tail[tail.len() - common..], before[end - common..end], "{message:?}");
            let header = Header::decode(again.head.first_chunk().unwrap()).unwrap();
            assert_eq!(header, header_of(&again));
        }
    });
    assert!(decoded > 0, "nothing ever came through");
}

#[test]
fn arbitrary_bytes_are_refused() {
    rounds(|prng| {
        let length = usize::try_from(prng.below(300)).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| prng.next_u64().to_le_bytes()[0]).collect();
        let mut left = Bytes::from(bytes);
        let mut assembler = Assembler::new();
        while assembler.want() > 0 && assembler.want() <= left.len() {
            let want = assembler.want();
            if assembler.received(left.split_to(want)).is_err() {
                break;
            }
        }
    });
}
