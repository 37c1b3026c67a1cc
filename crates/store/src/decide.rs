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

/// What may be met at the next place of the journal, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameCase {
    /// The frame is there, and one was written after this one's sync: it counts, and so does what it
    /// names. Its data is not looked at. If that is rotten since, the next read of the block finds
    /// it, and another copy mends it; to drop the frame would bring an older value back.
    Proven,
    /// The frame is there with all of its data, and nothing says whether its sync came to its end. It
    /// may have been answered, so it counts. Was it not answered, it counts all the same: a write
    /// without an answer may have happened.
    Whole,
    /// The frame is there and some of its data is not: data and frame were on their way together when
    /// power went. Its sync did not come to its end, so nothing of it was answered, nor of any frame
    /// behind it. To replay it would show garbage, or an error where the old value is whole.
    TornData,
    /// No frame is there, or a torn one, and some behind it are whole, none of which was written after
    /// this one's sync. They were under way together, or are of one batch with it. None was answered.
    TornFrame,
    /// No frame is there and none behind it: here the journal ends. All of it was replayed.
    CleanEnd,
    /// No frame is there, but a later one says that it was synced: the disk lost a durable write, or it
    /// rotted. What it told of cannot be known, so every block may be older here than it should be:
    /// all segments are damaged, settled seqs stay those before the hole, and what is behind it is
    /// replayed, since it was answered too.
    LostFrame,
}

pub(crate) fn frame_case(next: Next, beyond: Beyond, data: Data) -> FrameCase {
    match (next, beyond, data) {
        (Next::Chained, Beyond::ProvesDurable, Data::Matches | Data::Differs) => FrameCase::Proven,
        (Next::Chained, Beyond::Nothing | Beyond::Unsynced, Data::Matches) => FrameCase::Whole,
        (Next::Chained, Beyond::Nothing | Beyond::Unsynced, Data::Differs) => FrameCase::TornData,
        (Next::Missing, Beyond::Unsynced, Data::Matches | Data::Differs) => FrameCase::TornFrame,
        (Next::Missing, Beyond::Nothing, Data::Matches | Data::Differs) => FrameCase::CleanEnd,
        (Next::Missing, Beyond::ProvesDurable, Data::Matches | Data::Differs) => {
            FrameCase::LostFrame
        }
    }
}

// rule: store/recovery-decides
pub(crate) fn decide_frame(next: Next, beyond: Beyond, data: Data) -> Verdict {
    match frame_case(next, beyond, data) {
        FrameCase::Proven | FrameCase::Whole => Verdict::Replay,
        FrameCase::TornData | FrameCase::TornFrame => Verdict::Cut,
        FrameCase::CleanEnd => Verdict::End,
        FrameCase::LostFrame => Verdict::Hole,
    }
}

/// What may be met of the two superblocks and of frames that name a newer one, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewestCase {
    /// Both can be read and no frame names a newer one: the newer of the two is the newest there was.
    Sound,
    /// One can be read, and no frame names a newer one: the other was being written when power went,
    /// or was never written, or rotted while it was the older one. Nothing is lost.
    OtherTorn,
    /// One can be read, and a frame names a newer one: the newest rotted after it was durable. The
    /// checkpoint that it led to is lost, and the journal before it may be written over: damage.
    NewestRotten,
    /// Both can be read, and a frame names a newer one: the disk said that it wrote the newest and did
    /// not. Damage, like the case before.
    NewestNeverWritten,
}

impl NewestCase {
    pub(crate) fn is_damage(self) -> bool {
        match self {
            Self::Sound | Self::OtherTorn => false,
            Self::NewestRotten | Self::NewestNeverWritten => true,
        }
    }
}

/// `alone`: only one superblock can be read. `newer`: a frame names a newer one.
pub(crate) fn newest_case(alone: bool, newer: bool) -> NewestCase {
    match (alone, newer) {
        (false, false) => NewestCase::Sound,
        (true, false) => NewestCase::OtherTorn,
        (true, true) => NewestCase::NewestRotten,
        (false, true) => NewestCase::NewestNeverWritten,
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
        use FrameCase::{CleanEnd, LostFrame, Proven, TornData, TornFrame, Whole};
        use Next::{Chained, Missing};
        use Verdict::{Cut, End, Hole, Replay};
        let table = [
            (Chained, Nothing, Matches, Whole, Replay),
            (Chained, Nothing, Differs, TornData, Cut),
            (Chained, Unsynced, Matches, Whole, Replay),
            (Chained, Unsynced, Differs, TornData, Cut),
            (Chained, ProvesDurable, Matches, Proven, Replay),
            // Rotten since: the read says so, and the frame counts.
            (Chained, ProvesDurable, Differs, Proven, Replay),
            (Missing, Nothing, Matches, CleanEnd, End),
            (Missing, Nothing, Differs, CleanEnd, End),
            (Missing, Unsynced, Matches, TornFrame, Cut),
            (Missing, Unsynced, Differs, TornFrame, Cut),
            (Missing, ProvesDurable, Matches, LostFrame, Hole),
            (Missing, ProvesDurable, Differs, LostFrame, Hole),
        ];
        for (next, beyond, data, case, verdict) in table {
            let input = format!("{next:?} {beyond:?} {data:?}");
            assert_eq!(frame_case(next, beyond, data), case, "{input}");
            assert_eq!(decide_frame(next, beyond, data), verdict, "{input}");
        }
        let mut inputs: Vec<_> =
            table.iter().map(|line| format!("{:?}", (line.0, line.1, line.2))).collect();
        inputs.sort_unstable();
        inputs.dedup();
        assert_eq!(inputs.len(), 2 * 3 * 2, "every input has its line");
    }

    #[test]
    fn the_newest_superblock_over_all_inputs() {
        let table = [
            (false, false, NewestCase::Sound, false),
            (true, false, NewestCase::OtherTorn, false),
            (true, true, NewestCase::NewestRotten, true),
            (false, true, NewestCase::NewestNeverWritten, true),
        ];
        for (alone, newer, case, damage) in table {
            assert_eq!(newest_case(alone, newer), case);
            assert_eq!(case.is_damage(), damage, "{case:?}");
        }
    }
}
