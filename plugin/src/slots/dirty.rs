//! Owns the bits that say which pages under each registered slot have changed by the window's own
//! doing. Never knows why they did, and never asks the hypervisor for its own bits.

use std::collections::BTreeMap;

use crate::range::{PAGE_SIZE, PageRange};

const BITS: u64 = u64::BITS as u64;

/// One bitmap for each registered slot, by the slot's offset in the window.
#[derive(Debug, Default)]
pub(crate) struct DirtyBits {
    by_start: BTreeMap<u64, Bitmap>,
    /// Slots that went during the change that is being made. The hypervisor's bits went with them,
    /// so a slot that comes over one of them begins dirty there.
    gone: Vec<PageRange>,
}

#[derive(Debug)]
struct Bitmap {
    range: PageRange,
    words: Vec<u64>,
}

impl DirtyBits {
    /// A slot is registered now.
    pub(super) fn came(&mut self, range: PageRange) {
        let words = vec![0; words_for(range.len())];
        let mut bitmap = Bitmap { range, words };
        for gone in &self.gone {
            bitmap.mark(*gone);
        }
        self.by_start.insert(range.start(), bitmap);
    }

    /// A slot is not registered any more.
    pub(super) fn went(&mut self, range: PageRange) {
        self.by_start.remove(&range.start());
        self.gone.push(range);
    }

    /// A change has come to its end: what lies under no slot now is a hole, and whatever comes to
    /// lie there is a change of its own.
    pub(super) fn settle(&mut self) {
        self.gone.clear();
    }

    /// The pages of `range` have changed.
    pub(super) fn mark(&mut self, range: PageRange) {
        let before = self.by_start.range(..range.start()).next_back();
        let from = before.map_or(range.start(), |(start, _)| *start);
        for (_, bitmap) in self.by_start.range_mut(from..range.end()) {
            bitmap.mark(range);
        }
    }

    /// Adds the bits of `words` to those of the slot at `start`, if they are as many.
    pub(super) fn fold(&mut self, start: u64, words: &[u64]) -> bool {
        let Some(bitmap) = self.by_start.get_mut(&start) else {
            return false;
        };
        if bitmap.words.len() != words.len() {
            return false;
        }
        for (own, more) in bitmap.words.iter_mut().zip(words) {
            *own |= more;
        }
        // Whatever stands past the last page is no page.
        let past = (bitmap.range.len() / PAGE_SIZE) % BITS;
        if let Some(last) = bitmap.words.last_mut().filter(|_| past > 0) {
            *last &= lowest(past);
        }
        true
    }

    /// The bits of the slot at `start`, which are clear afterwards.
    pub(super) fn take(&mut self, start: u64) -> Vec<u64> {
        let Some(bitmap) = self.by_start.get_mut(&start) else {
            return Vec::new();
        };
        let clear = vec![0; bitmap.words.len()];
        std::mem::replace(&mut bitmap.words, clear)
    }
}

impl Bitmap {
    fn mark(&mut self, range: PageRange) {
        let Some(part) = self.range.intersection(range) else {
            return;
        };
        let page = |offset: u64| self.range.distance_to(offset) / PAGE_SIZE;
        let (from, to) = (page(part.start()), page(part.end()));
        let first = usize::try_from(from / BITS).unwrap_or(usize::MAX);
        let base = (from / BITS).saturating_mul(BITS);
        let bases = (base..to).step_by(u64::BITS as usize);
        for (word, base) in self.words.iter_mut().skip(first).zip(bases) {
            let within = |page: u64| page.saturating_sub(base).min(BITS);
            *word |= lowest(within(to)) & !lowest(within(from));
        }
    }
}

/// How many words KVM has for a slot of `len` bytes: a bit for each page.
fn words_for(len: u64) -> usize {
    let words = (len / PAGE_SIZE).div_ceil(BITS);
    // A slot is address space of this process, so its pages fit a usize.
    usize::try_from(words).unwrap_or(usize::MAX)
}

/// The lowest `count` bits.
fn lowest(count: u64) -> u64 {
    let shifted = u32::try_from(count)
        .ok()
        .and_then(|count| 1_u64.checked_shl(count));
    shifted.map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    fn set(words: &[u64]) -> Vec<u64> {
        let bit = |page: &u64| words[*page as usize / 64] >> (page % 64) & 1 == 1;
        (0..words.len() as u64 * 64).filter(bit).collect()
    }

    #[test]
    fn bitmaps_have_the_length_that_kvm_has() {
        for (pages, words) in [(1, 1), (63, 1), (64, 1), (65, 2), (512, 8)] {
            assert_eq!(words_for(pages * PAGE_SIZE), words);
        }
    }

    #[test]
    fn a_slot_over_one_that_went_begins_dirty_there() {
        let mut bits = DirtyBits::default();
        bits.came(pages(0, 100));
        bits.went(pages(0, 100));
        bits.came(pages(90, 20));
        bits.settle();
        bits.came(pages(0, 10));
        assert_eq!(set(&bits.take(90 * PAGE_SIZE)), (0..10).collect::<Vec<_>>());
        assert!(set(&bits.take(0)).is_empty());
    }

    #[test]
    fn foreign_bits_of_another_length_are_not_taken() {
        let mut bits = DirtyBits::default();
        bits.came(pages(4, 70));
        assert!(!bits.fold(4 * PAGE_SIZE, &[1]));
        assert!(!bits.fold(0, &[1, 0]));
        assert!(bits.fold(4 * PAGE_SIZE, &[2, 1]));
        assert_eq!(set(&bits.take(4 * PAGE_SIZE)), [1, 64]);
        // Bits past the last page are not taken either.
        assert!(bits.fold(4 * PAGE_SIZE, &[0, u64::MAX]));
        assert_eq!(set(&bits.take(4 * PAGE_SIZE)), (64..70).collect::<Vec<_>>());
        bits.came(pages(200, 64));
        assert!(bits.fold(200 * PAGE_SIZE, &[u64::MAX]));
        assert_eq!(set(&bits.take(200 * PAGE_SIZE)).len(), 64);
    }

    proptest! {
        #[test]
        fn marks_are_those_of_a_set_of_pages(
            marks in proptest::collection::vec((0..400_u64, 1..300_u64), 0..8),
        ) {
            // Slots of 100, 64 and 150 pages with room between them.
            let slots = [pages(10, 100), pages(110, 64), pages(200, 150)];
            let mut bits = DirtyBits::default();
            for slot in slots {
                bits.came(slot);
            }
            for (start, count) in &marks {
                bits.mark(pages(*start, *count));
            }
            for slot in slots {
                let first = slot.start() / PAGE_SIZE;
                let marked = |page: &u64| {
                    let page = page + first;
                    marks.iter().any(|(start, count)| (*start..start + count).contains(&page))
                };
                let expected: Vec<u64> = (0..slot.len() / PAGE_SIZE).filter(marked).collect();
                prop_assert_eq!(set(&bits.take(slot.start())), expected);
                prop_assert!(set(&bits.take(slot.start())).is_empty());
            }
        }
    }
}
