//! A schedule that waits for its moment, which chance hardly ever meets.

use super::Solo;
use crate::disk::PowerCut;
use gabion_types::BLOCK_BYTES;

/// A disk begins with the two places of its superblock. Source: DESIGN 5.
const SUPERBLOCKS: [u64; 2] = [0, BLOCK_BYTES];
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Script {
    /// A superblock is to be written, and not synced.
    #[default]
    Superblock,
    /// The process died then. The power goes when this life has written what its own superblock is to
    /// lead to, and syncs it.
    Recovery { life: u64 },
}

impl Solo {
    /// After the disk did something.
    pub(super) fn play(&mut self) {
        if !self.plan.strikes_superblock || self.finale.is_some() || self.store.is_none() {
            return;
        }
        let cached = SUPERBLOCKS.iter().any(|at| self.disk.is_cached(*at));
        match self.script {
            Script::Superblock if self.opened && cached => {
                self.count("script-superblock");
                self.lose(None);
                self.script = Script::Recovery { life: self.life + 1 };
            }
            Script::Superblock => {}
            Script::Recovery { life } if self.life == life && cached => {
                if self.disk.is_syncing() {
                    self.count("script-recovery");
                    let cut = PowerCut::draw(&mut self.prng);
                    self.lose(Some(cut));
                    self.script = Script::Superblock;
                }
            }
            // It was synced before: too late.
            Script::Recovery { life } if self.life >= life => self.script = Script::Superblock,
            Script::Recovery { .. } => {}
        }
    }
}
