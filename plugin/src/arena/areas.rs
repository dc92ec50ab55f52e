//! Owns the budget of memory areas (VMAs): how many the windows of this process may use so that
//! unmapping always still works. Never maps anything.
//!
//! The kernel allows a process `vm.max_map_count` areas, and at that limit it may refuse even to
//! close a mapping (Linux: `mm/mmap.c`, 6.1 and 6.12). A mapping in a window costs two at the most,
//! its own and the hole after it. The windows count theirs at that worst; what else the process
//! has is counted when a window opens, now and then, and again before anything is refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use super::{HIGH, LOW};

use crate::error::Error;
use crate::host;
use crate::range::PageRange;

/// Areas that a mapping can cost: its own and the hole after it.
const PER_MAPPING: isize = 2;

/// What all windows of the process use, at their worst.
static WINDOWS: AtomicIsize = AtomicIsize::new(0);

/// What all windows of the process use now.
#[cfg(test)]
pub(crate) fn used_by_windows() -> isize {
    WINDOWS.load(Ordering::Relaxed)
}

/// The budget as one window sees it.
#[derive(Debug)]
pub(crate) struct Areas {
    limit: isize,
    headroom: isize,
    /// What the process had beside its windows when last counted.
    others: AtomicIsize,
    /// Takes until the next count, so that counting costs little for each of them.
    until_count: AtomicIsize,
    /// What this window has taken, to be given back when it goes.
    taken: AtomicIsize,
}

/// Why more areas are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Something is mapped: it has to leave the headroom alone.
    Map,
    /// A mapping is cut in two by an unmap: it may use half of the headroom. The other half is for
    /// unmapping whole mappings, which always works.
    Cut,
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
            until_count: AtomicIsize::new(0),
            taken: AtomicIsize::new(0),
        };
        areas.count_others();
        areas
    }

    /// Takes what `mappings` more mappings can need for `range`, or refuses. A negative figure is
    /// always granted.
    pub(crate) fn take(&self, mappings: isize, need: Need, range: PageRange) -> Result<(), Error> {
        let needed = mappings.saturating_mul(PER_MAPPING);
        let used = WINDOWS
            .fetch_add(needed, Ordering::Relaxed)
            .saturating_add(needed);
        self.taken.fetch_add(needed, Ordering::Relaxed);
        if needed <= 0 {
            return Ok(());
        }
        let stale = self.until_count.fetch_sub(1, Ordering::Relaxed) <= 0;
        if !stale && self.fits(used, need) {
            return Ok(());
        }
        self.count_others();
        if self.fits(used, need) {
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

    /// Takes room for the mappings that preparing `changes` changes makes for a while.
    pub(crate) fn room_for(
        self: &Arc<Self>,
        changes: usize,
        range: PageRange,
    ) -> Result<Room, Error> {
        let mappings = isize::try_from(changes).unwrap_or(isize::MAX);
        self.take(mappings, Need::Map, range)?;
        Ok(Room {
            areas: Arc::clone(self),
            mappings,
        })
    }

    fn fits(&self, windows: isize, need: Need) -> bool {
        let others = self.others.load(Ordering::Relaxed);
        let kept = match need {
            Need::Map => self.headroom,
            Need::Cut => self.headroom / 2,
        };
        windows.saturating_add(others) <= self.limit.saturating_sub(kept)
    }

    fn count_others(&self) {
        if let Ok((all, others)) = File::open("/proc/self/maps").and_then(count) {
            self.others.store(others, Ordering::Relaxed);
            // Counting reads a line for each area.
            self.until_count
                .store((all / 4).saturating_add(256), Ordering::Relaxed);
        }
    }
}

/// How many areas there are, and how many of them lie where no arena does. An arena that found no
/// place of its own counts as well: too many rather than too few.
fn count(maps: impl Read) -> io::Result<(isize, isize)> {
    let (mut all, mut others) = (0_isize, 0_isize);
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        let start = line.split(|byte| *byte == b'-').next().unwrap_or_default();
        let start = std::str::from_utf8(start).ok();
        let start = start.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let of_an_arena = start.is_some_and(|start| (LOW..HIGH).contains(&start));
        all = all.saturating_add(1);
        others = others.saturating_add(isize::from(!of_an_arena));
    }
    Ok((all, others))
}

/// Areas that are needed for a while; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    areas: Arc<Areas>,
    mappings: isize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.areas.give_back(self.mappings);
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
        let error = areas.take(1, Need::Map, range).unwrap_err();
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
        areas.take(1, Need::Cut, range).unwrap_err();
        areas.take(-1, Need::Map, range).unwrap();
        areas.give_back(-1);
    }

    #[test]
    fn areas_of_arenas_are_not_counted_as_others() {
        let maps = b"400000-401000 r-xp 0 0 0 /x\n\
            050000000000-050000001000 ---p 0 0 0 \n\
            7f0000000000-7f0000001000 rw-p 0 0 0 /memfd:\xff\n";
        assert_eq!(count(maps.as_slice()).unwrap(), (3, 2));
    }

    #[test]
    fn a_cut_may_use_half_of_the_headroom_and_no_more() {
        let areas = Areas {
            limit: 1000,
            headroom: 100,
            others: AtomicIsize::new(10),
            until_count: AtomicIsize::new(0),
            taken: AtomicIsize::new(0),
        };
        assert!(areas.fits(890, Need::Map) && !areas.fits(891, Need::Map));
        assert!(areas.fits(940, Need::Cut) && !areas.fits(941, Need::Cut));
    }
}
