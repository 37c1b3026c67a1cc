//! Which pages of the arena are free: a buddy allocator.

use std::collections::BTreeSet;

/// The largest run is `1 << ORDER_MAX` pages: 1 MiB.
pub(crate) const ORDER_MAX: u8 = 8;

/// Shape: a run of order `o` is `1 << o` pages, and its first page is a multiple of that.
#[derive(Debug)]
pub(crate) struct Buddy {
    free: [BTreeSet<u32>; ORDER_MAX as usize + 1],
}

impl Buddy {
    /// All of the pages free; what is left of a whole run of the largest order is not used.
    pub(crate) fn new(pages: u32) -> Self {
        let mut free: [BTreeSet<u32>; ORDER_MAX as usize + 1] = Default::default();
        let run = 1 << ORDER_MAX;
        free[usize::from(ORDER_MAX)].extend((0..pages / run).map(|index| index * run));
        Self { free }
    }

    /// The smallest order whose run holds so many pages; none above the largest.
    pub(crate) fn order_of(pages: usize) -> Option<u8> {
        (0..=ORDER_MAX).find(|order| pages <= 1 << order)
    }

    pub(crate) fn take(&mut self, order: u8) -> Option<u32> {
        let from = (order..=ORDER_MAX).find(|at| !self.free[usize::from(*at)].is_empty())?;
        let page = self.free[usize::from(from)].pop_first()?;
        for half in order..from {
            self.free[usize::from(half)].insert(page + (1 << half));
        }
        Some(page)
    }

    pub(crate) fn give_back(&mut self, mut page: u32, mut order: u8) {
        while order < ORDER_MAX && self.free[usize::from(order)].remove(&(page ^ (1 << order))) {
            page &= !(1 << order);
            order += 1;
        }
        let fresh = self.free[usize::from(order)].insert(page);
        assert!(fresh, "a run of pages is given back once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(orders in proptest::collection::vec(0u8..=ORDER_MAX, 1..200)) {
            let mut buddy = Buddy::new(1024);
            let mut owned = [false; 1024];
            let mut runs = Vec::new();
            for (step, order) in orders.into_iter().enumerate() {
                if let Some(page) = buddy.take(order) {
                    for at in page..page + (1 << order) {
                        prop_assert!(!std::mem::replace(&mut owned[at as usize], true));
                    }
                    runs.push((page, order));
                }
                if step % 3 == 2 {
                    let (page, order) = runs.swap_remove(step % runs.len().max(1));
                    owned[page as usize..(page + (1 << order)) as usize].fill(false);
                    buddy.give_back(page, order);
                }
            }
            for (page, order) in runs {
                buddy.give_back(page, order);
            }
            prop_assert_eq!(buddy.free[usize::from(ORDER_MAX)].len(), 4);
        }
    }

    #[test]
    fn the_order_is_the_smallest_that_holds() {
        assert_eq!(Buddy::order_of(1), Some(0));
        assert_eq!(Buddy::order_of(3), Some(2));
        assert_eq!(Buddy::order_of(256), Some(8));
        assert_eq!(Buddy::order_of(257), None);
    }
}
