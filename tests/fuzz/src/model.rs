//! Owns the changes that the target of honest calls makes, and the model of a window that says what
//! they lead to: a table with one entry a page. Never looks at a window.

use arbitrary::Arbitrary;
use vm_remap::{PAGE_SIZE, PageRange, Prefault, Protection};

use crate::memories::{Backing, Memory, PAGES};

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Range {
    start: u8,
    pages: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub(crate) memory: Memory,
    from: u8,
    read_only: bool,
    prefault: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Change {
    Map(Range, Mapped),
    Replace(Range, Mapped),
    Unmap(Range),
}

impl Range {
    /// It always lies in the window: other figures are the business of the target `requests`.
    pub(crate) fn pages(self) -> PageRange {
        let start = u64::from(self.start) % PAGES;
        let count = 1 + u64::from(self.pages) % (PAGES - start);
        PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }
}

impl Mapped {
    pub(crate) fn first_page(self, range: PageRange) -> u64 {
        let count = range.len() / PAGE_SIZE;
        u64::from(self.from) % (PAGES - count + 1)
    }

    pub(crate) fn protection(self) -> Protection {
        match self.read_only {
            true => Protection::ReadOnly,
            false => Protection::ReadWrite,
        }
    }

    pub(crate) fn prefault(self) -> Prefault {
        match self.prefault % 8 {
            0 => Prefault::HostRead,
            1 => Prefault::HostWrite,
            2 => Prefault::Guest,
            _ => Prefault::None,
        }
    }
}

impl Change {
    pub(crate) fn parts(self) -> (PageRange, Option<Mapped>, bool) {
        match self {
            Self::Map(range, mapped) => (range.pages(), Some(mapped), true),
            Self::Replace(range, mapped) => (range.pages(), Some(mapped), false),
            Self::Unmap(range) => (range.pages(), None, false),
        }
    }
}

/// What is behind a page of the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) backing: Backing,
    pub(crate) writable: bool,
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) pages: Vec<Option<Entry>>,
    /// Mappings of anonymous memory so far.
    pub(crate) instances: u64,
}

impl Model {
    pub(crate) fn of(&mut self, range: PageRange) -> &mut [Option<Entry>] {
        let (start, end) = (range.start() / PAGE_SIZE, range.end() / PAGE_SIZE);
        &mut self.pages[start as usize..end as usize]
    }

    /// Makes a change, or says that it must be refused.
    pub(crate) fn apply(&mut self, change: Change, private_works: bool) -> bool {
        let (range, mapped, into_hole) = change.parts();
        if into_hole && self.of(range).iter().any(Option::is_some) {
            return false;
        }
        if mapped.is_some_and(|mapped| mapped.memory == Memory::Private) && !private_works {
            return false;
        }
        self.instances += 1;
        let instance = self.instances;
        for (at, page) in (0..).zip(self.of(range)) {
            *page = mapped.map(|mapped| Entry {
                backing: Backing {
                    memory: mapped.memory,
                    instance: match mapped.memory {
                        Memory::Anonymous => instance,
                        _ => 0,
                    },
                    page: mapped.first_page(range) + at,
                },
                writable: !mapped.read_only,
            });
        }
        true
    }
}

/// A window with nothing in it.
pub(crate) fn nothing() -> Vec<Option<Entry>> {
    vec![None; PAGES as usize]
}
