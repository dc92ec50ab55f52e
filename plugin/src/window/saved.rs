//! Owns second mappings of the memory that a batch is about to cover, so that it can be put back.
//! Never saves what no failure can cost.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use super::merge;
use super::prepare::{Placement, Run};
use super::shared::Shared;
use crate::arena::areas::Room;
use crate::arena::{Arena, Refused, Staged};
use crate::error::Error;
use crate::layout::{Layout, Mapping, Origin};
use crate::range::PageRange;

#[derive(Debug, Default)]
pub(super) struct Saved {
    mappings: Vec<(PageRange, Staged)>,
    /// What had memory and was not saved.
    left_out: Option<PageRange>,
    _room: Option<Room>,
}

impl Saved {
    /// Saves what `runs` cover, each mapping once and whole, since a part can be less than a huge
    /// page; and all that one mapping can hold, together. `fails_late` says whether anything can
    /// fail when all memory is in place: slots that come after it, and DMA.
    pub(super) fn before(
        shared: &Shared,
        layout: &Layout,
        runs: &[Run<'_>],
        fails_late: bool,
    ) -> Result<Self, Error> {
        let (runs, left_out) = match runs {
            // After the last one nothing can fail, unless the caller knows better. A hole, and what
            // is mapped in place, is refused before anything is lost, or not at all
            // (`Arena::punch`, `Arena::place_directly`).
            [before @ .., last]
                if !fails_late && !matches!(last.placement, Placement::Staged(_)) =>
            {
                (before, Some(last.range))
            }
            _ => (runs, None),
        };
        let touched: BTreeMap<u64, &Mapping> = runs
            .iter()
            .flat_map(|run| layout.overlapping(run.range))
            .filter(|old| old.in_place().is_none())
            .map(|old| (old.range.start(), old))
            .collect();
        let joined = joined(touched.into_values());
        let room = match joined.first() {
            Some(&(range, _)) => Some(shared.areas.room_for(joined.len(), range)?),
            None => None,
        };
        let save = |(range, first): (PageRange, &Mapping)| match save_one(shared, range, first) {
            Ok(staged) => Ok((range, staged)),
            Err(errno) => Err(Error::Stage {
                range,
                source: errno.into(),
            }),
        };
        Ok(Self {
            mappings: joined.into_iter().map(save).collect::<Result<_, _>>()?,
            left_out: left_out.filter(|range| layout.has_memory(*range)),
            _room: room,
        })
    }

    /// Whether memory of `range` was not saved.
    pub(super) fn lacks(&self, range: PageRange) -> bool {
        self.left_out
            .is_some_and(|left_out| left_out.intersection(range).is_some())
    }

    /// Puts everything back; stops at the first that the kernel refuses.
    pub(super) fn put_back(self, arena: &Arena) -> Result<(), (PageRange, Refused)> {
        self.mappings.into_iter().try_for_each(|(range, staged)| {
            let placed = arena.place(range, staged);
            placed.map_err(|refused| (range, refused))
        })
    }
}

/// Neighbours that one mapping can hold, each with the first of them.
fn joined<'a>(mappings: impl Iterator<Item = &'a Mapping>) -> Vec<(PageRange, &'a Mapping)> {
    let mut joined: Vec<(PageRange, &Mapping)> = Vec::new();
    let mut last: Option<&Mapping> = None;
    for next in mappings {
        match joined.last_mut() {
            Some((range, _)) if last.is_some_and(|last| merge::continues(last, next)) => {
                *range = range.hull(next.range);
            }
            _ => joined.push((next.range, next)),
        }
        last = Some(next);
    }
    joined
}

/// A second mapping of `range`, which goes on in `first`.
pub(super) fn save_one(
    shared: &Shared,
    range: PageRange,
    first: &Mapping,
) -> rustix::io::Result<Staged> {
    match (shared.arena.duplicate(range), first.origin, &first.keep) {
        (Err(_), Origin::Descriptor { offset, .. }, Some(fd)) => {
            let (len, protection) = (range.len(), first.protection);
            let site = shared.arena.site(range);
            Staged::descriptor(len, fd.as_fd(), offset, protection, site)
        }
        (duplicated, ..) => duplicated,
    }
}
