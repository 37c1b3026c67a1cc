//! Data that tells which write it came from.

use bytes::{Bytes, BytesMut};

/// Names one write of the workload; every write has its own. Zero stands for zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u64);

impl Label {
    /// Never written, zeroed or trimmed.
    pub const ZEROS: Self = Self(0);
}

/// What a unit of data turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Label(Label),
    /// No write of the workload made this, or not for this place.
    Garbage,
}

/// Fills units of `unit_bytes`, the first of which is the `first`-th of the volume.
///
/// Shape: the first word of a unit is its label, each other one follows from label and place.
pub fn fill(label: Label, first: u64, unit_bytes: usize, units: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(unit_bytes * units);
    for unit in (first..).take(units) {
        words(label, unit, unit_bytes).for_each(|word| data.extend_from_slice(&word.to_le_bytes()));
    }
    data.freeze()
}

/// Every byte of the unit is looked at.
pub fn identify(data: &[u8], unit: u64) -> Found {
    let Some(head) = data.first_chunk::<8>() else {
        return Found::Garbage;
    };
    let label = Label(u64::from_le_bytes(*head));
    if label == Label::ZEROS {
        let zeros = data.chunks_exact(8).all(|word| word == [0; 8]);
        return if zeros { Found::Label(label) } else { Found::Garbage };
    }
    let equal = data
        .chunks_exact(8)
        .zip(words(label, unit, data.len()))
        .all(|(chunk, word)| chunk == word.to_le_bytes());
    if equal { Found::Label(label) } else { Found::Garbage }
}

fn words(label: Label, unit: u64, unit_bytes: usize) -> impl Iterator<Item = u64> {
    let base =
        label.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ unit.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let rest = (1..unit_bytes as u64 / 8).map(move |place| {
        if label == Label::ZEROS {
            0
        } else {
            base.wrapping_add(place.wrapping_mul(0xA24B_AED4_963E_E407))
        }
    });
    std::iter::once(label.0).chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_its_write_and_its_place() {
        let data = fill(Label(77), 5, 4096, 2);
        assert_eq!(data.len(), 8192);
        assert_eq!(identify(&data[..4096], 5), Found::Label(Label(77)));
        assert_eq!(identify(&data[4096..], 6), Found::Label(Label(77)));
        assert_eq!(identify(&data[4096..], 5), Found::Garbage);
        let mut torn = data[..4096].to_vec();
        torn[4095] ^= 1;
        assert_eq!(identify(&torn, 5), Found::Garbage);
        assert_eq!(identify(&[0; 512], 9), Found::Label(Label::ZEROS));
        assert_eq!(fill(Label::ZEROS, 3, 512, 1), vec![0; 512]);
    }
}
