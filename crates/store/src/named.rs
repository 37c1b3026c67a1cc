//! Which slots hold blocks' data, as the map has it. It is written with each checkpoint, behind the map
//! pages, so that the next start knows what is free before it has read its map.
//!
//! What it says of a slot is true of some moment after the map pages of its checkpoint were written. A
//! page that the journal behind the checkpoint does not name is the same in all those moments; those
//! that it names are read at recovery, and what they and the journal name is drawn from them.

use crate::slots::Slots;
use gabion_format::{BITMAP_PAGE_BYTES, BITMAP_PAGE_SLOTS, Slot};
use gabion_types::block_crc;

#[derive(Debug)]
pub(crate) struct Named {
    /// Whole bitmap pages; lowest bit of the first byte first.
    bits: Vec<u8>,
    slots: u32,
    count: u64,
    /// Of each of the two places: pages that differ from what lies there.
    changed: [Vec<bool>; 2],
    /// Of each of the two places: the crc of each page as it was written there.
    crcs: [Vec<u32>; 2],
}

impl Named {
    pub(crate) fn new(slots: u32) -> Self {
        let pages = pages_for(slots);
        Self {
            bits: vec![0; pages * BITMAP_PAGE_BYTES],
            slots,
            count: 0,
            changed: [vec![true; pages], vec![true; pages]],
            crcs: [vec![0; pages], vec![0; pages]],
        }
    }

    pub(crate) fn pages(&self) -> usize {
        self.crcs[0].len()
    }

    /// Slots with data.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_set(&self, slot: Slot) -> bool {
        let (at, bit) = place(slot);
        slot.get() < self.slots && self.bits[at] & bit != 0
    }

    /// False: it was set already, or there is no such slot.
    pub(crate) fn set(&mut self, slot: Slot) -> bool {
        let (at, bit) = place(slot);
        if slot.get() >= self.slots || self.bits[at] & bit != 0 {
            return false;
        }
        self.bits[at] |= bit;
        self.count += 1;
        self.note(at);
        true
    }

    pub(crate) fn clear(&mut self, slot: Slot) {
        let (at, bit) = place(slot);
        if slot.get() < self.slots && self.bits[at] & bit != 0 {
            self.bits[at] &= !bit;
            self.count -= 1;
            self.note(at);
        }
    }

    fn note(&mut self, at: usize) {
        for changed in &mut self.changed {
            changed[at / BITMAP_PAGE_BYTES] = true;
        }
    }

    /// A page as it lies in a place, with its crc there. False: it names slots that are none.
    pub(crate) fn load(&mut self, place: usize, page: usize, bits: &[u8], crc: u32) -> bool {
        let at = page * BITMAP_PAGE_BYTES;
        let Some(own) = self.bits.get_mut(at..at + BITMAP_PAGE_BYTES) else { return false };
        own.copy_from_slice(bits);
        self.count += bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        self.changed[place][page] = false;
        self.crcs[place][page] = crc;
        let mut beyond = (self.slots..slots_of(self.pages())).map(Slot::new);
        page + 1 < self.pages()
            || beyond.all(|slot| {
                let (at, bit) = self::place(slot);
                self.bits[at] & bit == 0
            })
    }

    /// The pages that are to be written to a place; they count as written.
    pub(crate) fn take_changed(&mut self, place: usize) -> Vec<usize> {
        let changed = self.changed[place].iter_mut().enumerate();
        changed.filter_map(|(page, changed)| std::mem::take(changed).then_some(page)).collect()
    }

    /// What lies there is not what was written.
    pub(crate) fn rots(&mut self, place: usize, page: usize) {
        self.changed[place][page] = true;
    }

    pub(crate) fn page_crc(&self, place: usize, page: usize) -> u32 {
        self.crcs[place][page]
    }

    pub(crate) fn page(&self, page: usize) -> &[u8] {
        &self.bits[page * BITMAP_PAGE_BYTES..(page + 1) * BITMAP_PAGE_BYTES]
    }

    pub(crate) fn written(&mut self, place: usize, page: usize, crc: u32) {
        self.crcs[place][page] = crc;
    }

    /// Names all pages of a place at once: one that the disk lost is noticed.
    pub(crate) fn crc(&self, place: usize) -> u32 {
        let bytes = self.crcs[place].iter().flat_map(|crc| crc.to_le_bytes()).collect::<Vec<_>>();
        block_crc(&bytes).get()
    }

    /// Taken by data, and by nothing else yet.
    pub(crate) fn to_slots(&self) -> Slots {
        Slots::of(self.slots, &self.bits)
    }
}

fn pages_for(slots: u32) -> usize {
    slots.div_ceil(BITMAP_PAGE_SLOTS) as usize
}

fn slots_of(pages: usize) -> u32 {
    u32::try_from(pages).map_or(u32::MAX, |pages| pages.saturating_mul(BITMAP_PAGE_SLOTS))
}

fn place(slot: Slot) -> (usize, u8) {
    ((slot.get() / 8) as usize, 1 << (slot.get() % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_a_place_is_what_changed_since_it_was() {
        let mut named = Named::new(BITMAP_PAGE_SLOTS + 100);
        assert_eq!((named.take_changed(0), named.take_changed(1)), (vec![0, 1], vec![0, 1]));
        assert!(named.set(Slot::new(7)) && !named.set(Slot::new(7)));
        assert_eq!(named.take_changed(0), vec![0]);
        named.set(Slot::new(BITMAP_PAGE_SLOTS));
        named.clear(Slot::new(7));
        named.clear(Slot::new(8));
        assert_eq!((named.take_changed(0), named.take_changed(1)), (vec![0, 1], vec![0, 1]));
        assert_eq!((named.count(), named.take_changed(0).len()), (1, 0));
        assert!(!named.set(Slot::new(BITMAP_PAGE_SLOTS + 100)));
        let slots = named.to_slots();
        assert!(slots.is_taken(Slot::new(BITMAP_PAGE_SLOTS)) && !slots.is_taken(Slot::new(7)));
        assert_eq!(slots.free(), u64::from(BITMAP_PAGE_SLOTS) + 99);
    }

    #[test]
    fn it_comes_back_from_its_pages() {
        let mut named = Named::new(BITMAP_PAGE_SLOTS + 100);
        for slot in (0..BITMAP_PAGE_SLOTS + 100).step_by(37) {
            named.set(Slot::new(slot));
        }
        let mut again = Named::new(BITMAP_PAGE_SLOTS + 100);
        for page in 0..2 {
            named.written(1, page, 5);
            assert!(again.load(1, page, named.page(page), 5));
        }
        assert_eq!((again.count(), again.crc(1)), (named.count(), named.crc(1)));
        assert_eq!((again.take_changed(1), again.take_changed(0)), (vec![], vec![0, 1]));
        let beyond = vec![u8::MAX; BITMAP_PAGE_BYTES];
        assert!(!again.load(1, 1, &beyond, 5));
    }
}
