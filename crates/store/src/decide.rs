//! What recovery concludes from what it finds. Plain tables: every input has its line.

/// One of the two places of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SuperblockSeen {
    Good {
        generation: u64,
    },
    /// No superblock, or one whose checksum fails.
    Unreadable,
    TooNew {
        version: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SuperblockVerdict {
    /// Place 0 or 1. `alone`: the other may have been newer; the journal tells.
    Use {
        place: usize,
        alone: bool,
    },
    NotFormatted,
    TooNew {
        version: u16,
    },
}

pub(crate) fn decide_superblock(seen: [SuperblockSeen; 2]) -> SuperblockVerdict {
    use SuperblockSeen::{Good, TooNew, Unreadable};
    match seen {
        [TooNew { version }, _] | [_, TooNew { version }] => SuperblockVerdict::TooNew { version },
        [Good { generation: a }, Good { generation: b }] => {
            SuperblockVerdict::Use { place: usize::from(b > a), alone: false }
        }
        [Good { .. }, Unreadable] => SuperblockVerdict::Use { place: 0, alone: true },
        [Unreadable, Good { .. }] => SuperblockVerdict::Use { place: 1, alone: true },
        [Unreadable, Unreadable] => SuperblockVerdict::NotFormatted,
    }
}

/// The frame that comes next by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Whole, of this life, and it names the frame before.
    Chained,
    /// Not there, torn, or not the successor of the frame before.
    Missing,
}

/// What later frames of this life say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    Nothing,
    /// There are some, but none was written after this one was synced.
    Unsynced,
    /// One was written after this one was synced.
    ProvesDurable,
}

/// The data that the frame names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Matches,
    Differs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Replay,
    /// The journal's clean end.
    End,
    /// A torn tail: this frame and what is behind it were never answered.
    Cut,
    /// Damage: what was durable is gone. Go on behind it.
    Hole,
}

// rule: store/recovery-decides
pub(crate) fn decide_frame(next: Next, beyond: Beyond, data: Data) -> Verdict {
    match (next, beyond, data) {
        (Next::Chained, Beyond::ProvesDurable, Data::Matches | Data::Differs)
        | (Next::Chained, Beyond::Nothing | Beyond::Unsynced, Data::Matches) => Verdict::Replay,
        (Next::Chained, Beyond::Nothing | Beyond::Unsynced, Data::Differs)
        | (Next::Missing, Beyond::Unsynced, Data::Matches | Data::Differs) => Verdict::Cut,
        (Next::Missing, Beyond::Nothing, Data::Matches | Data::Differs) => Verdict::End,
        (Next::Missing, Beyond::ProvesDurable, Data::Matches | Data::Differs) => Verdict::Hole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_over_all_inputs() {
        use SuperblockSeen::{Good, TooNew, Unreadable};
        let inputs =
            [Good { generation: 4 }, Good { generation: 5 }, Unreadable, TooNew { version: 9 }];
        for (a, b) in inputs.into_iter().flat_map(|a| inputs.map(|b| (a, b))) {
            let verdict = decide_superblock([a, b]);
            let expected = match (a, b) {
                (TooNew { .. }, _) | (_, TooNew { .. }) => SuperblockVerdict::TooNew { version: 9 },
                (Unreadable, Unreadable) => SuperblockVerdict::NotFormatted,
                (Good { .. }, Unreadable) => SuperblockVerdict::Use { place: 0, alone: true },
                (Unreadable, Good { .. }) => SuperblockVerdict::Use { place: 1, alone: true },
                (Good { generation: a }, Good { generation: b }) => {
                    SuperblockVerdict::Use { place: usize::from(b > a), alone: false }
                }
            };
            assert_eq!(verdict, expected, "{a:?} {b:?}");
        }
    }

    // rule: store/recovery-decides
    #[test]
    fn frames_over_all_inputs() {
        use Beyond::{Nothing, ProvesDurable, Unsynced};
        use Data::{Differs, Matches};
        use Next::{Chained, Missing};
        use Verdict::{Cut, End, Hole, Replay};
        let table = [
            (Chained, Nothing, Matches, Replay),
            (Chained, Nothing, Differs, Cut),
            (Chained, Unsynced, Matches, Replay),
            (Chained, Unsynced, Differs, Cut),
            (Chained, ProvesDurable, Matches, Replay),
            // Rotten since: the read says so, and the frame counts.
            (Chained, ProvesDurable, Differs, Replay),
            (Missing, Nothing, Matches, End),
            (Missing, Nothing, Differs, End),
            (Missing, Unsynced, Matches, Cut),
            (Missing, Unsynced, Differs, Cut),
            (Missing, ProvesDurable, Matches, Hole),
            (Missing, ProvesDurable, Differs, Hole),
        ];
        for (next, beyond, data, verdict) in table {
            assert_eq!(decide_frame(next, beyond, data), verdict, "{next:?} {beyond:?} {data:?}");
        }
    }
}
