//! Owns what a page carries: the stamp of the device that made it, and the mark of the guest that
//! looked at it. Never knows where a page is mapped.

use anyhow::Result;

use crate::PAGE;
use crate::words::Words;

/// Where the words of a page lie in it, in bytes.
const NUMBER: u64 = 0;
const INDEX: u64 = 8;
const MARK: u64 = 2048;
const LAST: u64 = PAGE - 8;

/// What a read finds where no memory is.
pub const OPEN_BUS: u64 = u64::MAX;
/// What the guest writes where no memory is. No memory may ever hold it.
pub const LOST: u64 = 0x6e6f_7768_6572_6521;

/// What tells a page from all others: the number of the change that brought it, and its place in
/// the memory that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The number of the change.
    pub number: u64,
    /// The page's place in its memory, from 0 on.
    pub index: u64,
}

impl Stamp {
    /// Writes the stamp into the page at `at`.
    pub fn put(self, memory: &impl Words, at: u64) -> Result<()> {
        memory.store(place(at, NUMBER), self.number)?;
        memory.store(place(at, INDEX), self.index)?;
        memory.store(place(at, LAST), self.last())
    }

    /// The first word of the page at `at` that is not as the stamp has it.
    pub fn wrong(self, memory: &impl Words, at: u64) -> Result<Option<Wrong>> {
        let expected = [
            (NUMBER, self.number),
            (INDEX, self.index),
            (LAST, self.last()),
        ];
        for (word, expected) in expected {
            let at = place(at, word);
            let found = memory.load(at)?;
            if found != expected {
                return Ok(Some(Wrong { at, found }));
            }
        }
        Ok(None)
    }

    /// What the guest writes into a page that carries this stamp.
    #[must_use]
    pub const fn mark(self) -> u64 {
        !self.last()
    }

    /// A word that no other page has at its end: a page that is half another one is found out.
    const fn last(self) -> u64 {
        let mixed = self.number.rotate_left(32) ^ self.index;
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }
}

/// A word that is not what it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrong {
    /// Where it lies, in bytes.
    pub at: u64,
    /// What is there.
    pub found: u64,
}

/// Reads the guest's mark in the page at `at`; 0 where it wrote none.
pub fn mark(memory: &impl Words, at: u64) -> Result<u64> {
    memory.load(place(at, MARK))
}

/// Writes a mark into the page at `at`.
pub fn put_mark(memory: &impl Words, at: u64, mark: u64) -> Result<()> {
    memory.store(place(at, MARK), mark)
}

/// The first word of the page at `at` that memory lies behind, where there should be none.
pub fn wrong_hole(memory: &impl Words, at: u64) -> Result<Option<Wrong>> {
    put_mark(memory, at, LOST)?;
    for word in [NUMBER, MARK, LAST] {
        let at = place(at, word);
        let found = memory.load(at)?;
        if found != OPEN_BUS {
            return Ok(Some(Wrong { at, found }));
        }
    }
    Ok(None)
}

const fn place(page: u64, word: u64) -> u64 {
    page.wrapping_add(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;
    use proptest::prelude::*;

    #[test]
    fn page_of_another_change_or_place_is_found_out() {
        let memory = Blob::empty(2).unwrap();
        let stamp = Stamp {
            number: 7,
            index: 3,
        };
        stamp.put(&memory, PAGE).unwrap();
        assert_eq!(stamp.wrong(&memory, PAGE).unwrap(), None);
        for other in [Stamp { index: 4, ..stamp }, Stamp { number: 8, ..stamp }] {
            assert!(other.wrong(&memory, PAGE).unwrap().is_some());
        }
        memory.store(PAGE + LAST, 0).unwrap();
        let wrong = stamp.wrong(&memory, PAGE).unwrap().unwrap();
        assert_eq!((wrong.at, wrong.found), (2 * PAGE - 8, 0));
    }

    #[test]
    fn memory_where_none_should_be_is_found_out() {
        let memory = Blob::empty(1).unwrap();
        assert_eq!(
            wrong_hole(&memory, 0).unwrap(),
            Some(Wrong { at: 0, found: 0 })
        );
        assert_eq!(mark(&memory, 0).unwrap(), LOST);
    }

    proptest! {
        #[test]
        fn marks_are_never_what_an_untouched_page_or_a_hole_has(number: u64, index: u64) {
            let mark = Stamp { number, index }.mark();
            prop_assert!(mark != 0 && mark != OPEN_BUS);
        }
    }
}
