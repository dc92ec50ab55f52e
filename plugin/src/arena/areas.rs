//! Owns the budget of memory areas (VMAs): how many the windows of this process may use so that
//! unmapping always still works. Never maps anything.
//!
//! The kernel allows a process `vm.max_map_count` areas, and at that limit it may refuse even to
//! close a mapping (Linux: `mm/mmap.c`, 6.1 and 6.12). A mapping in a window costs two at the most,
//! its own and the hole after it. The windows count theirs at that worst; what else the process
//! has is counted when a window opens and again before a map is refused.

use std::sync::atomic::{AtomicIsize, Ordering};

use crate::error::Error;
use crate::host;
use crate::range::PageRange;

/// Areas that a mapping can cost: its own and the hole after it.
const PER_MAPPING: isize = 2;

/// What all windows of the process use, at their worst.
static WINDOWS: AtomicIsize = AtomicIsize::new(0);

/// The budget as one window sees it.
#[derive(Debug)]
pub(crate) struct Areas {
    limit: isize,
    headroom: isize,
    /// What the process had beside its windows when last counted. Below 0 where the windows use
    /// less than their worst.
    others: AtomicIsize,
    /// What this window has taken, to be given back when it goes.
    taken: AtomicIsize,
}

impl Areas {
    pub(crate) fn new() -> Self {
        // A host that hides the limit has the default one (Linux: include/linux/mm.h).
        let limit = host::max_map_count().unwrap_or(65530);
        Self::with_limit(limit)
    }

    fn with_limit(limit: usize) -> Self {
        let limit = isize::try_from(limit).unwrap_or(isize::MAX);
        let areas = Self {
            limit,
            headroom: (limit / 64).max(64),
            others: AtomicIsize::new(0),
            taken: AtomicIsize::new(0),
        };
        areas.count_others();
        areas
    }

    /// Takes what `mappings` more mappings can need for `range`, or refuses. A negative figure,
    /// and a cut that makes two mappings of one, is always granted: that is what the headroom is for.
    pub(crate) fn take(&self, mappings: isize, range: Option<PageRange>) -> Result<(), Error> {
        let needed = mappings.saturating_mul(PER_MAPPING);
        let used = WINDOWS
            .fetch_add(needed, Ordering::Relaxed)
            .saturating_add(needed);
        self.taken.fetch_add(needed, Ordering::Relaxed);
        let Some(range) = range.filter(|_| needed > 0) else {
            return Ok(());
        };
        if self.fits(used) {
            return Ok(());
        }
        self.count_others();
        if self.fits(used) {
            return Ok(());
        }
        self.give_back(mappings);
        let figure = |value: isize| usize::try_from(value).unwrap_or(0);
        let others = self.others.load(Ordering::Relaxed);
        Err(Error::MapCount {
            range,
            needed: figure(needed),
            used: figure(used.saturating_sub(needed).saturating_add(others)),
            limit: figure(self.limit),
            headroom: figure(self.headroom),
        })
    }

    /// Takes a `take` back.
    pub(crate) fn give_back(&self, mappings: isize) {
        let needed = mappings.saturating_mul(PER_MAPPING);
        WINDOWS.fetch_sub(needed, Ordering::Relaxed);
        self.taken.fetch_sub(needed, Ordering::Relaxed);
    }

    fn fits(&self, windows: isize) -> bool {
        let others = self.others.load(Ordering::Relaxed);
        windows.saturating_add(others) <= self.limit.saturating_sub(self.headroom)
    }

    fn count_others(&self) {
        if let Ok(now) = host::mapped_areas() {
            let now = isize::try_from(now).unwrap_or(isize::MAX);
            let windows = WINDOWS.load(Ordering::Relaxed);
            self.others
                .store(now.saturating_sub(windows), Ordering::Relaxed);
        }
    }
}

impl Drop for Areas {
    fn drop(&mut self) {
        WINDOWS.fetch_sub(self.taken.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_refuses_at_the_limit_and_names_the_figures() {
        let areas = Areas::with_limit(0);
        let range = PageRange::new(0, 4096).unwrap();
        let error = areas.take(1, Some(range)).unwrap_err();
        let Error::MapCount {
            needed,
            limit,
            headroom,
            ..
        } = error
        else {
            panic!("unexpected error: {error}");
        };
        assert_eq!((needed, limit, headroom), (2, 0, 64));
        assert_eq!(
            areas.taken.load(Ordering::Relaxed),
            0,
            "a refusal takes nothing"
        );
        areas.take(1, None).unwrap();
        areas.take(-1, Some(range)).unwrap();
        assert_eq!(areas.taken.load(Ordering::Relaxed), 0);
    }
}
