//! Owns the dirty pages of a window that were fetched and that nobody has asked for yet. Never
//! fetches any.

use std::collections::BTreeMap;

use vm_remap::{PAGE_SIZE, PageRange};

const BITS: u64 = u64::BITS as u64;

/// Pages by their number in the window, 64 to a word; words without a page are left out.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    words: BTreeMap<u64, u64>,
}

impl Pending {
    /// The page at `offset` bytes into the window is dirty.
    pub(crate) fn mark(&mut self, offset: u64) {
        let page = offset / PAGE_SIZE;
        let bit = 1_u64.wrapping_shl(u32::try_from(page % BITS).unwrap_or(0));
        *self.words.entry(page / BITS).or_default() |= bit;
    }

    /// Takes the pages of `range`, in the form that KVM has for a slot there.
    pub(crate) fn take(&mut self, range: PageRange) -> Vec<u64> {
        let pages = range.len() / PAGE_SIZE;
        let first = range.start() / PAGE_SIZE;
        let words = usize::try_from(pages.div_ceil(BITS)).unwrap_or(usize::MAX);
        let mut taken = vec![0; words];
        let last = first.saturating_add(pages).saturating_sub(1);
        let mut found = Vec::new();
        for (word, bits) in self.words.range_mut(first / BITS..=last / BITS) {
            let base = word.saturating_mul(BITS);
            for bit in 0..u64::BITS {
                let page = base.saturating_add(u64::from(bit));
                let mask = 1_u64.wrapping_shl(bit);
                if *bits & mask != 0 && (first..=last).contains(&page) {
                    *bits &= !mask;
                    found.push(page.saturating_sub(first));
                }
            }
        }
        self.words.retain(|_, bits| *bits != 0);
        for page in found {
            let at = usize::try_from(page / BITS).unwrap_or(usize::MAX);
            if let Some(word) = taken.get_mut(at) {
                *word |= 1_u64.wrapping_shl(u32::try_from(page % BITS).unwrap_or(0));
            }
        }
        taken
    }

    pub(crate) fn clear(&mut self) {
        self.words.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(from: u64, count: u64) -> PageRange {
        PageRange::new(from << 12, count << 12).unwrap()
    }

    #[test]
    fn take_moves_the_pages_of_a_range_and_leaves_the_others() {
        let mut pending = Pending::default();
        for page in [0_u64, 63, 64, 70, 200] {
            pending.mark(page << 12);
        }
        assert_eq!(pending.take(pages(63, 70)), [1 | 1 << 1 | 1 << 7, 0]);
        assert_eq!(pending.take(pages(63, 70)), [0, 0]);
        assert_eq!(pending.take(pages(0, 1)), [1]);
        assert_eq!(pending.take(pages(137, 64)), [1 << 63]);
        assert!(pending.words.is_empty());
    }

    #[test]
    fn clear_forgets_everything() {
        let mut pending = Pending::default();
        pending.mark(0);
        pending.clear();
        assert_eq!(pending.take(pages(0, 1)), [0]);
    }
}
