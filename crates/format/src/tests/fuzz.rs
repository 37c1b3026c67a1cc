//! Structures that are nearly right, with the right crc: refused, or read as what their bytes say.

use super::{UUID, decode_all, reseal, samples};
use crate::{BitmapPage, Frame, MapPage, Root, SegmentPage, Superblock, encode_frame, frame_pages};
use crate::{root, superblock};
use rounds::{mutate, rounds};

#[path = "../../../types/tests/fuzz/rounds.rs"]
mod rounds;

/// What an older version wrote is written by the newest, which has the same shape.
fn as_newest(bytes: &[u8], version: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    reseal(&mut bytes);
    bytes
}

// promise: no-silent-corruption
#[test]
fn what_is_nearly_right_is_refused_or_is_what_its_bytes_say() {
    let mut decoded = 0_u64;
    let samples = samples();
    rounds(|prng| {
        let Some(sample) = prng.pick(&samples) else { return };
        let mut bytes = sample.clone();
        mutate(prng, &mut bytes);
        if prng.chance(3, 4) {
            // Most structures are of whole pages.
            bytes.resize(sample.len(), 0);
        }
        if bytes.len() >= 16 {
            reseal(&mut bytes);
        }
        frame_pages(&bytes);
        decoded += decode_all(&bytes) as u64;
        let same = |again: &[u8]| {
            let lengths = (again.len(), bytes.len());
            assert!(again == bytes, "it is written in another way: {lengths:?}");
        };
        if let Ok(read) = MapPage::decode(&bytes) {
            same(&read.encode());
        }
        if let Ok(read) = SegmentPage::decode(&bytes) {
            same(&read.encode());
        }
        if let Ok(read) = Superblock::decode(&bytes) {
            assert!(read.encode() == as_newest(&bytes, superblock::VERSION), "superblock");
        }
        if let Ok(read) = BitmapPage::decode(&bytes) {
            same(&read.encode());
        }
        if let Ok(read) = Root::decode(&bytes) {
            assert!(read.encode().0 == as_newest(&bytes, root::VERSION), "root");
        }
        if let Ok(read) = Frame::decode(&bytes, UUID) {
            // What lies behind a frame is another one.
            let (again, _) = encode_frame(&read.head, read.entries.iter());
            assert!(bytes.starts_with(&again), "it is written in another way");
        }
    });
    assert!(decoded > 0, "nothing ever came through");
}
