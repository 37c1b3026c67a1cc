//! What guests do.

use gabion_types::{BLOCK_BYTES, Prng};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Read,
    Write { fua: bool },
    Zero,
    Trim,
    Flush,
    Status,
}

/// One request. Units: those of the oracle (512 or 4096 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpPlan {
    pub kind: OpKind,
    pub first: u64,
    pub count: u64,
}

/// How the requests of a guest are drawn. Units of the parts: of their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub read: u64,
    pub write: u64,
    pub zero: u64,
    pub trim: u64,
    pub flush: u64,
    pub status: u64,
    /// One request in so many goes anywhere, the rest to the hot part.
    pub cold_of: u64,
    /// Units from the start of the volume.
    pub hot: u64,
    pub count_max: u64,
}

impl Mix {
    pub fn draw(prng: &mut Prng, units: u64, unit_bytes: u64, part_bytes: u64) -> Self {
        let rare = |prng: &mut Prng| if prng.chance(1, 2) { prng.between(1, 10) } else { 0 };
        Self {
            read: prng.between(5, 60),
            write: prng.between(20, 60),
            zero: rare(prng),
            trim: rare(prng),
            flush: rare(prng),
            status: rare(prng),
            cold_of: prng.between(2, 20),
            hot: prng.between(1, units.min(64)),
            count_max: prng.between(1, (part_bytes / unit_bytes).min(64)),
        }
    }

    /// Writes anywhere, and hardly gives anything back.
    pub fn fill_up(&mut self, count_max: u64) {
        (self.write, self.cold_of, self.zero, self.trim) = (60, 1, 0, self.trim.min(1));
        self.count_max = count_max;
    }

    /// Units of the volume: `units`; the request lies within.
    pub fn next(&self, prng: &mut Prng, units: u64) -> OpPlan {
        let kind = self.kind(prng);
        if kind == OpKind::Flush {
            return OpPlan { kind, first: 0, count: 0 };
        }
        let room = if prng.chance(1, self.cold_of) { units } else { self.hot.min(units) };
        let first = prng.below(room);
        let most = match kind {
            OpKind::Zero | OpKind::Trim | OpKind::Status => self.count_max * 4,
            OpKind::Read | OpKind::Write { .. } | OpKind::Flush => self.count_max,
        };
        let most = if prng.chance(1, 2) { 1 } else { most };
        let count = prng.between(1, most).min(units - first);
        OpPlan { kind, first, count }
    }

    fn kind(&self, prng: &mut Prng) -> OpKind {
        let fua = prng.chance(1, 8);
        let parts = [
            (self.read, OpKind::Read),
            (self.write, OpKind::Write { fua }),
            (self.zero, OpKind::Zero),
            (self.trim, OpKind::Trim),
            (self.flush, OpKind::Flush),
            (self.status, OpKind::Status),
        ];
        let mut drawn = prng.below(parts.iter().map(|(part, _)| part).sum());
        for (part, kind) in parts {
            if drawn < part {
                return kind;
            }
            drawn -= part;
        }
        OpKind::Read
    }
}

impl OpPlan {
    /// The units that read as zeros afterwards: whole blocks only. None: nothing is sure.
    pub fn trimmed(&self, unit_bytes: u64) -> Option<(u64, u64)> {
        let per_block = BLOCK_BYTES / unit_bytes;
        let first = self.first.next_multiple_of(per_block);
        let end = (self.first + self.count) / per_block * per_block;
        (first < end).then(|| (first, end - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lie_within_the_volume() {
        let mut prng = Prng::new(3);
        for _ in 0..50 {
            let mix = Mix::draw(&mut prng, 300, 512, 65536);
            for _ in 0..200 {
                let plan = mix.next(&mut prng, 300);
                assert!(plan.first + plan.count <= 300, "{plan:?}");
                assert!(plan.count > 0 || plan.kind == OpKind::Flush, "{plan:?}");
            }
        }
    }

    #[test]
    fn a_trim_covers_whole_blocks_only() {
        let trim = |first, count| OpPlan { kind: OpKind::Trim, first, count }.trimmed(512);
        assert_eq!(trim(3, 4), None);
        assert_eq!(trim(3, 13), Some((8, 8)));
        assert_eq!(trim(8, 8), Some((8, 8)));
        assert_eq!(OpPlan { kind: OpKind::Trim, first: 5, count: 2 }.trimmed(4096), Some((5, 2)));
    }
}
