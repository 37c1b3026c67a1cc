//! The tables of several replicas, compared page by page.

use gabion_types::{BlockIndex, BlockInfo, DiskId};
use std::collections::BTreeMap;

/// Entries asked for in one page of a table.
pub(crate) const PAGE_ENTRIES: u32 = 1024;

/// One page of each side, all beginning at the same block.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) from: BlockIndex,
    sides: Vec<(DiskId, Option<Page>)>,
}

#[derive(Debug)]
struct Page {
    entries: Vec<BlockInfo>,
    next: Option<BlockIndex>,
}

impl Window {
    pub(crate) fn new(from: BlockIndex, disks: impl Iterator<Item = DiskId>) -> Self {
        Self { from, sides: disks.map(|disk| (disk, None)).collect() }
    }

    pub(crate) fn disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.sides.iter().map(|(disk, _)| *disk)
    }

    /// False when the page makes no sense for this window.
    pub(crate) fn put(
        &mut self,
        disk: DiskId,
        entries: Vec<BlockInfo>,
        next: Option<BlockIndex>,
    ) -> bool {
        let ascending = entries.is_sorted_by(|a, b| a.block < b.block);
        let inside = entries.first().is_none_or(|first| first.block >= self.from);
        if !ascending || !inside || next.is_some_and(|next| next <= self.from) {
            return false;
        }
        let side = self.sides.iter_mut().find(|(side, _)| *side == disk);
        side.map(|(_, page)| *page = Some(Page { entries, next })).is_some()
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.sides.iter().all(|(_, page)| page.is_some())
    }

    /// Where the next window begins; none: this one reaches the end of the segment.
    pub(crate) fn end(&self) -> Option<BlockIndex> {
        self.sides.iter().filter_map(|(_, page)| page.as_ref()?.next).min()
    }

    /// What each side says of each block that all pages cover.
    pub(crate) fn rows(&self) -> BTreeMap<BlockIndex, Vec<(DiskId, BlockInfo)>> {
        let end = self.end();
        let mut rows: BTreeMap<BlockIndex, Vec<(DiskId, BlockInfo)>> = BTreeMap::new();
        for (disk, page) in &self.sides {
            let entries = page.iter().flat_map(|page| &page.entries);
            for info in entries.filter(|info| end.is_none_or(|end| info.block < end)) {
                rows.entry(info.block).or_default().push((*disk, *info));
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_where_the_shortest_page_ends() {
        let disks = [DiskId::new(1), DiskId::new(2)];
        let mut window = Window::new(BlockIndex::new(2), disks.into_iter());
        let entry = |block| BlockInfo::absent(BlockIndex::new(block));
        assert!(!window.put(disks[0], vec![entry(1)], None));
        assert!(!window.put(disks[0], vec![entry(4), entry(3)], None));
        assert!(window.put(disks[0], vec![entry(3), entry(9)], None));
        assert!(!window.is_whole());
        assert!(window.put(disks[1], vec![entry(3)], Some(BlockIndex::new(5))));
        assert!(window.is_whole());
        assert_eq!(window.end(), Some(BlockIndex::new(5)));
        let rows = window.rows();
        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), vec![BlockIndex::new(3)]);
        assert_eq!(rows[&BlockIndex::new(3)].len(), 2);
    }
}
