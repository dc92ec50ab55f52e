//! Owns what the device asks the guest, and what the guest answers. Never knows how either gets to
//! the other side.

use crate::stamp::Wrong;

/// What the guest should find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Pages of the change `number`, from its page `index` on. The guest leaves its mark in each.
    Stamps {
        /// The number of the change.
        number: u64,
        /// The place of the first page in its memory.
        index: u64,
        /// Whether the guest's marks stay, or are dropped.
        writable: bool,
    },
    /// No memory: all ones, and writes are dropped.
    Hole,
}

/// Which pages the guest is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Where the range begins in the region, in bytes.
    pub at: u64,
    /// How many pages it has.
    pub pages: u64,
    /// Every how manieth page is looked at; the last one always is.
    pub stride: u64,
    /// What should be there.
    pub expected: Expected,
}

impl Look {
    /// The places of the pages that are looked at, counted in pages from the range's start.
    pub fn places(&self) -> impl Iterator<Item = u64> + use<> {
        let (pages, stride) = (self.pages, self.stride.max(1));
        let last = pages.saturating_sub(1);
        let mut next = Some(0_u64).filter(|_| pages > 0);
        std::iter::from_fn(move || {
            let place = next?;
            next = Some(place.saturating_add(stride).min(last)).filter(|next| *next > place);
            Some(place)
        })
    }
}

/// What the device has for the guest to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To look.
    Look(Look),
    /// To stop.
    End,
}

/// What the guest has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How many pages it looked at.
    pub looked: u64,
    /// How many of them were not as expected.
    pub wrong: u64,
    /// The first word that was not, as an offset into the region.
    pub first: Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_begin_with_the_first_page_and_end_with_the_last(
            pages in 1u64..2000, stride in 0u64..3000,
        ) {
            let places: Vec<_> = Look { at: 0, pages, stride, expected: Expected::Hole }.places().collect();
            prop_assert_eq!(places.first(), Some(&0));
            prop_assert_eq!(places.last(), Some(&(pages - 1)));
            let steps = places.windows(2).map(|two| two[1].checked_sub(two[0]));
            let steps: Option<Vec<_>> = steps.collect();
            let fine = steps.unwrap().iter().all(|step| (1..=stride.max(1)).contains(step));
            prop_assert!(fine);
        }
    }
}
