//! What one replica may hold: per block the versions that it may show, as its only client knows.

use crate::content::{self, Found, Label};
use gabion_types::{BlockInfo, BlockKind, Instant, Version};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Absent,
    Zero,
    Data(Label),
    Lost,
}

#[derive(Clone, Debug)]
struct Known {
    content: Content,
    /// Requests that carried this version, and those that are not answered.
    sent: u32,
    carriers: u32,
    /// Since when no request carries it.
    quiet_since: Instant,
    /// From then on it can't be seen.
    over_since: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct Block {
    versions: BTreeMap<Version, Known>,
    /// The data of this version were damaged.
    pub rotten: Option<Version>,
    /// In this life the store told that it is bad: only then does it take a repair.
    pub seen_bad: bool,
    /// When damage was last mended.
    mended: Option<Instant>,
}

impl Default for Block {
    fn default() -> Self {
        let absent = Known {
            content: Content::Absent,
            sent: 0,
            carriers: 0,
            quiet_since: Instant::ZERO,
            over_since: None,
        };
        Self {
            versions: BTreeMap::from([(Version::NEVER, absent)]),
            rotten: None,
            seen_bad: false,
            mended: None,
        }
    }
}

impl Block {
    /// A request that carries this version was sent.
    pub fn sent(&mut self, version: Version, content: Content) {
        let known = self.versions.entry(version).or_insert(Known {
            content,
            sent: 0,
            carriers: 0,
            quiet_since: Instant::ZERO,
            over_since: None,
        });
        known.sent += 1;
        known.carriers += 1;
    }

    /// It was answered as done: everything older is over.
    pub fn done(&mut self, version: Version, now: Instant) {
        self.put_down(version, now);
        self.end(now, |other| other < version);
    }

    /// It was refused: it never was applied by that request.
    pub fn refused(&mut self, version: Version, now: Instant) {
        self.put_down(version, now);
        let known = self.versions.get_mut(&version).expect("it was sent");
        if known.carriers == 0 && known.sent == 1 {
            known.over_since.get_or_insert(now);
        }
    }

    /// The replica may have applied it or not; it is not on its way any more.
    pub fn cut_off(&mut self, version: Version, now: Instant) {
        self.put_down(version, now);
    }

    /// An install is sent: it may bring back a version that was over.
    pub fn install_sent(&mut self, version: Version, content: Content) {
        self.sent(version, content);
        self.versions.get_mut(&version).expect("just put in").over_since = None;
    }

    /// Another version stands there now, or the same one was written anew.
    pub fn mend(&mut self, version: Version, repaired: bool, now: Instant) {
        if self.rotten.is_some_and(|rotten| repaired || version > rotten) {
            self.rotten = None;
            self.seen_bad = false;
            self.mended = Some(now);
        }
    }

    /// Everything from before the join is what was installed.
    pub fn installed(&mut self, version: Version, joined: gabion_types::Epoch, now: Instant) {
        self.put_down(version, now);
        self.end(now, |other| other.epoch < joined && other != version);
    }

    /// Every version that may be seen now.
    pub fn possible(&self) -> impl Iterator<Item = (Version, Content)> + '_ {
        let seen = self.versions.iter().filter(|(_, known)| known.over_since.is_none());
        seen.map(|(version, known)| (*version, known.content))
    }

    /// What it holds, if that is sure.
    pub fn certain(&self) -> Option<(Version, Content)> {
        let mut possible = self.possible();
        let only = possible.next()?;
        let moving = self.versions.values().any(|known| known.carriers > 0);
        (possible.next().is_none() && !moving).then_some(only)
    }

    /// Judges what a read that began then found. Errors: why it can't be.
    pub fn read(
        &mut self,
        info: &BlockInfo,
        data: Option<&[u8]>,
        began: Instant,
        now: Instant,
    ) -> Result<(), String> {
        if info.kind == BlockKind::Bad {
            let rotten = self.rotten.is_some() || self.mended.is_some_and(|mended| mended >= began);
            return if rotten { Ok(()) } else { Err("bad, and nothing damaged it".into()) };
        }
        let Some(known) = self.versions.get(&info.version) else {
            return Err("a version that was never sent".into());
        };
        if known.over_since.is_some_and(|over| over < began) {
            return Err(format!("a version that was over; possible: {:?}", self.list()));
        }
        let equal = match (known.content, info.kind) {
            (Content::Absent, BlockKind::Absent)
            | (Content::Zero, BlockKind::Zero)
            | (Content::Lost, BlockKind::Lost) => true,
            (Content::Data(label), BlockKind::Data) => data.is_none_or(|data| {
                content::identify(data, u64::from(info.block.get())) == Found::Label(label)
            }),
            (_, _) => false,
        };
        if !equal {
            return Err(format!("other content than {:?}", known.content));
        }
        self.seen(info.version, began, now);
        Ok(())
    }

    /// Those that are over, too.
    pub fn data_versions(&self) -> impl Iterator<Item = (Version, Label)> + '_ {
        self.versions.iter().filter_map(|(version, known)| match known.content {
            Content::Data(label) => Some((*version, label)),
            Content::Absent | Content::Zero | Content::Lost => None,
        })
    }

    pub fn list(&self) -> Vec<(Version, Content)> {
        self.possible().collect()
    }

    /// Older ones are over; newer ones that nothing carries any more never got there. One that is
    /// on its way may come yet: an install brings back what is older.
    fn seen(&mut self, version: Version, began: Instant, now: Instant) {
        for (other, known) in &mut self.versions {
            let quiet = known.carriers == 0 && known.quiet_since < began;
            if *other != version && quiet {
                known.over_since.get_or_insert(now);
            }
        }
    }

    fn end(&mut self, now: Instant, is_over: impl Fn(Version) -> bool) {
        for (version, known) in &mut self.versions {
            if is_over(*version) {
                known.over_since.get_or_insert(now);
            }
        }
        // What is over for long can't be seen by any read in progress; few reads last a second.
        let long = |at: Instant| now.since(at).as_secs() >= 5;
        self.versions.retain(|_, known| known.carriers > 0 || !known.over_since.is_some_and(long));
    }

    fn put_down(&mut self, version: Version, now: Instant) {
        let known = self.versions.get_mut(&version).expect("it was sent");
        known.carriers -= 1;
        known.quiet_since = now;
    }
}
